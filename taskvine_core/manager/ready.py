"""The ready queue: tasks that could run now, grouped by shape, and shapes by family.

Tasks of one *shape* ask for the same thing (resources, category, features, scheduler), so when one of them fits nowhere
none does, and a million of them cost no more than one to look at. Shapes that differ only in how much they ask for are
a *family*: what fits nowhere says the same of everything larger in it, so a million different sizes do not have to be
looked at one by one either. Order: manager priority, user priority, then order of arrival (reference, section 9.2).
Knows no workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from taskvine_core.constants import VINE_FIXED_LOCATION, VINE_TASK_READY
from taskvine_core.manager.records import TaskRecord, WorkerRecord
from taskvine_core.manager.sizes import Rank, Size, SizeTree, covers
from taskvine_core.resources import Resources

Level = tuple[int, float]  # (-manager priority, -user priority): smaller is earlier


class Shape:
    """All ready tasks that ask for the same thing."""

    __slots__ = ("any_inputs", "count", "family", "filed", "key", "levels", "memo", "memo_version", "order", "rank",
                 "resources", "saturated", "size", "sole")

    def __init__(self, key: tuple[object, ...], task: TaskRecord, family: Family) -> None:
        self.key = key
        self.family = family
        self.resources: Resources = task.spec.resources
        #: What a task is given at least, whatever the worker.
        self.size: Size = tuple([max(0, amount) for amount in self.resources])  # type: ignore[assignment]
        self.any_inputs = False
        self.saturated = False  # no worker had room when last looked at; only of the one shape of a family
        self.filed = False  # in the family's tree
        self.rank: Rank | None = None  # under which the family knows it
        self.count = 0
        self.sole: TaskRecord | None = None  # as long as there was never a second task: saves the tables
        self.levels: dict[Level, deque[TaskRecord]] = {}
        self.order: list[Level] = []
        self.memo: dict[object, Resources | None] = {}
        self.memo_version = -1

    def push(self, task: TaskRecord, front: bool) -> None:
        """Add a task; ``front`` for one that had been taken out before."""
        if task.spec.inputs:
            self.any_inputs = True
        task.shape = self
        self.count += 1
        if self.count == 1 and not self.order:
            self.sole = task
            return
        if self.sole is not None:
            sole, self.sole = self.sole, None
            if sole.shape is self:
                self._enter(sole, front=False)
        self._enter(task, front)

    def _enter(self, task: TaskRecord, front: bool) -> None:
        level = (-task.manager_priority, -task.spec.priority)
        queue = self.levels.get(level)
        if queue is None:
            queue = self.levels[level] = deque()
            heappush(self.order, level)
        if front:
            queue.appendleft(task)
        else:
            queue.append(task)

    def head(self) -> TaskRecord | None:
        """The best task, None when empty. Forgets tasks that were cancelled meanwhile."""
        if self.sole is not None:
            if self.sole.shape is self:
                return self.sole
            self.sole = None
        order = self.order
        while order:
            level = order[0]
            queue = self.levels[level]
            while queue:
                task = queue[0]
                if task.shape is self and task.state == VINE_TASK_READY:
                    return task
                queue.popleft()
            heappop(order)
            del self.levels[level]
        return None

    def top(self, depth: int) -> Iterator[tuple[int, TaskRecord]]:
        """The first ``depth`` tasks of the best level with their positions; call head() before."""
        if self.sole is not None:
            yield 0, self.sole
            return
        queue = self.levels[self.order[0]]
        for position in range(min(depth, len(queue))):
            task = queue[position]
            if task.shape is self:
                yield position, task

    def at(self, position: int) -> TaskRecord:
        """The task at a position that top() gave."""
        return self.sole if self.sole is not None else self.levels[self.order[0]][position]

    def take(self, position: int = 0) -> None:
        """Remove the task at a position of the best level; call head() before."""
        if self.sole is not None:
            task, self.sole = self.sole, None
        else:
            queue = self.levels[self.order[0]]
            task = queue[position]
            if position:
                del queue[position]
            else:
                queue.popleft()
        task.shape = None
        self.count -= 1

    def tasks(self) -> Iterator[TaskRecord]:
        """Every task."""
        if self.sole is not None and self.sole.shape is self:
            yield self.sole
        for queue in self.levels.values():
            for task in queue:
                if task.shape is self:
                    yield task

    def best_rank(self) -> Rank | None:
        """Sort key of the best task, None when empty."""
        task = self.head()
        return None if task is None else (-task.manager_priority, -task.spec.priority, task.id)


class Family:
    """Shapes that differ only in how much they ask for.

    With one shape it is that shape (``only``). With several, those that no worker has room for stand in ``tree``: they
    are offered what room grows; those that came since wait in a heap to be looked at. After ``look_again`` the whole
    tree is to be looked at: ``sweep`` is then what turned out to fit nowhere, None when all has been seen.
    """

    __slots__ = ("_unseen", "category", "count", "exhausted", "features", "fixed", "gpus", "key", "only",
                 "scheduler", "strict", "sweep", "time_min_s", "tree", "unfinished")

    def __init__(self, key: tuple[object, ...], task: TaskRecord, strict: tuple[str, ...]) -> None:
        spec = task.spec
        self.key = key
        self.category = spec.category
        self.features = frozenset(spec.features)
        self.exhausted = task.exhausted
        self.scheduler = spec.scheduler
        self.time_min_s = spec.time_min_s
        self.strict = strict
        self.fixed = bool(strict)
        self.gpus = spec.resources.gpus > 0
        self.count = 0  # ready tasks
        self.only: Shape | None = None
        self.tree: SizeTree[Shape] | None = None
        self.sweep: list[Size] | None = None
        #: Workers that could not be offered all that is here in one pass -> what they have no room for.
        self.unfinished: dict[WorkerRecord, list[Size]] = {}
        self._unseen: list[tuple[Rank, Shape]] = []

    def add(self, shape: Shape) -> None:
        """Take in a shape; its first task comes with ``refile``."""
        if self.only is not None:
            self.tree = SizeTree()
            only, self.only = self.only, None
            only.filed = only.saturated
            self.refile(only)
        elif self.tree is None:
            self.only = shape

    def refile(self, shape: Shape) -> None:
        """Its best task is another one now. A shape without tasks leaves the tree."""
        if self.tree is None:
            return
        rank = shape.best_rank()
        if rank == shape.rank:
            return
        if shape.filed and shape.rank is not None:
            self.tree.remove(shape.rank)
        shape.rank = rank
        if rank is None:
            return
        if shape.filed:
            self.tree.insert(rank, shape.size, shape)
        else:
            heappush(self._unseen, (rank, shape))

    def unseen(self) -> Shape | None:
        """The best of the shapes that nobody has looked for room for."""
        heap = self._unseen
        while heap:
            rank, shape = heap[0]
            if shape.rank == rank and not shape.filed:
                return shape
            heappop(heap)
        return None

    def all_unseen(self) -> Iterator[Shape]:
        """Every one of those."""
        # one that went and came back under the same rank is in the heap twice
        return iter(dict.fromkeys(s for rank, s in self._unseen if s.rank == rank and not s.filed))

    def file(self, shape: Shape) -> None:
        """No worker has room for it."""
        if self.tree is None:
            shape.saturated = True
            return
        if self.sweep is not None and not covers(self.sweep, shape.size):
            self.sweep.append(shape.size)
        if not shape.filed and shape.rank is not None:
            shape.filed = True
            self.tree.insert(shape.rank, shape.size, shape)

    def hopeless(self, shape: Shape) -> bool:
        """Is something that is no larger known to fit nowhere?"""
        assert self.tree is not None
        if self.sweep is not None:
            return covers(self.sweep, shape.size)
        return self.tree.first(shape.size) is not None

    def look_again(self) -> None:
        """What fitted nowhere may fit now (a limit or a category changed)."""
        if self.only is not None:
            self.only.saturated = False
        if self.tree is not None:
            self.sweep = []

    def rank(self) -> Rank | None:
        """Sort key of the best task, None when empty."""
        if self.tree is None:
            return self.only.best_rank() if self.only is not None else None
        first, second = self.tree.head(), self.unseen()
        ranks = [shape.rank for shape in (first, second) if shape is not None and shape.rank is not None]
        return min(ranks, default=None)

    def best(self) -> Shape | None:
        """The shape of the best task."""
        if self.tree is None:
            return self.only
        both = [shape for shape in (self.tree.head(), self.unseen()) if shape is not None]
        return min(both, key=lambda shape: shape.rank or (0, 0.0, 0), default=None)

    def knows(self, shape: Shape) -> bool:
        """Was room looked for already, in vain?"""
        return shape.saturated if self.tree is None else shape.filed and self.sweep is None


class ReadyQueue:
    """All families. ``count`` is the number of ready tasks."""

    def __init__(self) -> None:
        self.shapes: dict[tuple[object, ...], Shape] = {}
        self.families: dict[tuple[object, ...], Family] = {}
        self.count = 0
        self.fresh = False  # something became ready that was not looked at yet

    def push(self, task: TaskRecord, front: bool = False) -> None:
        """Queue a task in its shape."""
        spec = task.spec
        strict = _strict_inputs(task)
        key = (spec.category, spec.resources, spec.features, spec.scheduler, task.exhausted, spec.time_min_s, strict)
        shape = self.shapes.get(key)
        if shape is None:
            shape = self.shapes[key] = self._new_shape(key, task, strict)
        shape.push(task, front)
        family = shape.family
        family.count += 1
        self.count += 1
        if family.tree is not None:
            family.refile(shape)
        if not family.knows(shape):
            self.fresh = True

    def _new_shape(self, key: tuple[object, ...], task: TaskRecord, strict: tuple[str, ...]) -> Shape:
        spec = task.spec
        # What is open, zero or asked for decides how an allocation is worked out: only with the same pattern does one
        # that asks for more always get at least as much.
        pattern = tuple([(amount > 0) - (amount < 0) for amount in spec.resources])
        of_family = (spec.category, pattern, spec.features, spec.scheduler, task.exhausted, spec.time_min_s, strict)
        family = self.families.get(of_family)
        if family is None:
            family = self.families[of_family] = Family(of_family, task, strict)
        elif family.only is not None and not family.only.count:
            del self.shapes[family.only.key]
            family.only = None
        shape = Shape(key, task, family)
        family.add(shape)
        return shape

    def drop(self, task: TaskRecord) -> None:
        """Forget a task that stands in the queue (its entry goes when it is met)."""
        shape = task.shape
        if shape is not None:
            task.shape = None
            shape.count -= 1
            self._one_less(shape)

    def take(self, shape: Shape, position: int = 0) -> None:
        """Remove one task of a shape's best level."""
        shape.take(position)
        self._one_less(shape)

    def _one_less(self, shape: Shape) -> None:
        self.count -= 1
        family = shape.family
        family.count -= 1
        if family.tree is not None:
            family.refile(shape)
            if not shape.count:
                del self.shapes[shape.key]
        elif not shape.count:
            shape.saturated = False  # room that is left over has been offered to nobody

    def in_order(self) -> list[Family]:
        """Families with tasks, best first; empty ones are forgotten."""
        for family in [family for family in self.families.values() if not family.count]:
            del self.families[family.key]
            if family.only is not None:
                del self.shapes[family.only.key]
        live = list(self.families.values())
        if len(live) > 1:
            live.sort(key=lambda family: family.rank() or (0, 0.0, 0))
        return live

    def unsaturate(self) -> None:
        """Look at everything again (a limit or a category changed)."""
        for family in self.families.values():
            family.look_again()
        self.fresh = True

    def tasks(self) -> Iterator[TaskRecord]:
        """Every ready task; O(tasks), for status and demand only."""
        for shape in self.shapes.values():
            yield from shape.tasks()

    def most_asked(self) -> Size:
        """The most of each resource that any ready task asks for, 0 where none does. O(shapes), but quick."""
        most = [0, 0, 0, 0]
        for family in self.families.values():
            for size in family_sizes(family):
                most = [max(known, amount) for known, amount in zip(most, size, strict=True)]
        return most[0], most[1], most[2], most[3]


def family_sizes(family: Family) -> Iterator[Size]:
    """Sizes of which the largest is the largest of the family."""
    if family.only is not None:
        if family.only.count:
            yield family.only.size
    elif family.tree is not None:
        yield family.tree.largest()
        for shape in family.all_unseen():
            yield shape.size


def _strict_inputs(task: TaskRecord) -> tuple[str, ...]:
    """Names that tie the task to a worker: part of the shape, or one such task would hold up those of other workers."""
    for mount in task.spec.inputs:
        if mount.flags & VINE_FIXED_LOCATION:
            return tuple([mount.name for mount in task.spec.inputs if mount.flags & VINE_FIXED_LOCATION])
    return ()

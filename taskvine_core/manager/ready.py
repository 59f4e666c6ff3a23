"""The ready queue: tasks that could run now, grouped by shape.

Tasks of one shape ask for the same thing (resources, category, features, scheduler), so when one of them fits nowhere
none does, and a million of them cost no more than one to look at. Within a shape: manager priority, user priority, then
order of arrival (reference, section 9.2). Shapes are taken by their best task. Knows no workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from taskvine_core.constants import VINE_FIXED_LOCATION, VINE_TASK_READY
from taskvine_core.manager.records import TaskRecord
from taskvine_core.resources import Resources

Level = tuple[int, float]  # (-manager priority, -user priority): smaller is earlier


class Shape:
    """All ready tasks that ask for the same thing."""

    __slots__ = ("any_inputs", "category", "count", "exhausted", "features", "fixed", "key", "levels", "memo",
                 "memo_version",
                 "order", "resources", "saturated", "scheduler", "time_min_s")

    def __init__(self, key: tuple[object, ...], task: TaskRecord) -> None:
        spec = task.spec
        self.key = key
        self.resources: Resources = spec.resources
        self.category = spec.category
        self.features = frozenset(spec.features)
        self.exhausted = task.exhausted
        self.scheduler = spec.scheduler
        self.time_min_s = spec.time_min_s
        self.fixed = bool(_strict_inputs(task))
        self.any_inputs = False
        self.saturated = False  # no worker had room when last looked at
        self.count = 0
        self.levels: dict[Level, deque[TaskRecord]] = {}
        self.order: list[Level] = []
        self.memo: dict[object, Resources | None] = {}
        self.memo_version = -1

    def push(self, task: TaskRecord, front: bool) -> None:
        """Add a task; ``front`` for one that had been taken out before."""
        level = (-task.manager_priority, -task.spec.priority)
        queue = self.levels.get(level)
        if queue is None:
            queue = self.levels[level] = deque()
            heappush(self.order, level)
        if front:
            queue.appendleft(task)
        else:
            queue.append(task)
        task.shape = self
        self.count += 1
        if task.spec.inputs:
            self.any_inputs = True

    def head(self) -> TaskRecord | None:
        """The best task, None when empty. Forgets tasks that were cancelled meanwhile."""
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
        queue = self.levels[self.order[0]]
        for position in range(min(depth, len(queue))):
            task = queue[position]
            if task.shape is self:
                yield position, task

    def at(self, position: int) -> TaskRecord:
        """The task at a position that top() gave."""
        return self.levels[self.order[0]][position]

    def take(self, position: int = 0) -> None:
        """Remove the task at a position of the best level."""
        queue = self.levels[self.order[0]]
        task = queue[position]
        if position:
            del queue[position]
        else:
            queue.popleft()
        task.shape = None
        self.count -= 1

    def rank(self) -> tuple[int, float, int]:
        """Sort key among shapes; only for shapes with a head."""
        task = self.head()
        assert task is not None
        return (-task.manager_priority, -task.spec.priority, task.id)


class ReadyQueue:
    """All shapes. ``count`` is the number of ready tasks."""

    def __init__(self) -> None:
        self.shapes: dict[tuple[object, ...], Shape] = {}
        self.count = 0
        self.fresh = False  # something became ready that was not looked at yet

    def push(self, task: TaskRecord, front: bool = False) -> None:
        """Queue a task in its shape."""
        spec = task.spec
        key = (spec.category, spec.resources, spec.features, spec.scheduler, task.exhausted, spec.time_min_s,
               _strict_inputs(task))
        shape = self.shapes.get(key)
        if shape is None:
            shape = self.shapes[key] = Shape(key, task)
        shape.push(task, front)
        self.count += 1
        if not shape.saturated:
            self.fresh = True

    def drop(self, task: TaskRecord) -> None:
        """Forget a task that stands in the queue (its entry goes when it is met)."""
        if task.shape is not None:
            task.shape.count -= 1
            task.shape = None
            self.count -= 1

    def take(self, shape: Shape, position: int = 0) -> None:
        """Remove one task of a shape's best level."""
        shape.take(position)
        self.count -= 1

    def in_order(self) -> list[Shape]:
        """Shapes with tasks, best first; empty ones are forgotten."""
        live = []
        for key in [key for key, shape in self.shapes.items() if shape.head() is None]:
            del self.shapes[key]
        live = list(self.shapes.values())
        if len(live) > 1:
            live.sort(key=Shape.rank)
        return live

    def unsaturate(self) -> None:
        """Look at everything again (a limit or a category changed)."""
        for shape in self.shapes.values():
            shape.saturated = False
        self.fresh = True

    def tasks(self) -> Iterator[TaskRecord]:
        """Every ready task; O(tasks), for status and demand only."""
        for shape in self.shapes.values():
            for queue in shape.levels.values():
                for task in queue:
                    if task.shape is shape:
                        yield task


def _strict_inputs(task: TaskRecord) -> tuple[str, ...]:
    """Names that tie the task to a worker: part of the shape, or one such task would hold up those of other workers."""
    for mount in task.spec.inputs:
        if mount.flags & VINE_FIXED_LOCATION:
            return tuple([mount.name for mount in task.spec.inputs if mount.flags & VINE_FIXED_LOCATION])
    return ()

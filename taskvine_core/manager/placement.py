"""Which worker gets which task, and how much of it (reference, sections 9.4, 9.5, 10.2, 10.3).

Owns eligibility, allocation (memoised per shape and kind of worker) and the choice among eligible workers. Must not
change any record: it answers, the dispatcher acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from random import Random

from taskvine_core.constants import (
    VINE_ALLOCATION_MODE_GREEDY_BUCKETING,
    VINE_FIXED_LOCATION,
    VINE_SCHEDULE_DISK,
    VINE_SCHEDULE_FCFS,
    VINE_SCHEDULE_FILES,
    VINE_SCHEDULE_RAND,
    VINE_SCHEDULE_TIME,
    VINE_SCHEDULE_WORST,
)
from taskvine_core.manager.allocation import allocate
from taskvine_core.manager.categories import Categories
from taskvine_core.manager.index import WorkerIndex
from taskvine_core.manager.ready import Family, ReadyQueue, Shape
from taskvine_core.manager.records import MB, FileRecord, TaskRecord, WorkerRecord
from taskvine_core.manager.sizes import Size
from taskvine_core.manager.states import REPLICA_READY
from taskvine_core.manager.tuning import Tuning
from taskvine_core.resources import Resources

#: A file held by more workers than this says nothing about where a task should go.
WIDELY_HELD = 64
#: Allocations remembered per shape before the memo is started anew (the cache's size is part of the key).
MEMO_MAX = 4096
#: A room everything fits into.
ANYTHING: Size = (1 << 60, 1 << 60, 1 << 60, 1 << 60)
#: Tasks of one shape compared for the most local one when a worker asks for work.
LOCAL_DEPTH = 16


class Placement:
    """Answers "where could this run, and with what"."""

    def __init__(self, tuning: Tuning, categories: Categories, files: dict[str, FileRecord],
                 workers: dict[int, WorkerRecord], index: WorkerIndex, ready: ReadyQueue, rng: Random) -> None:
        self.tuning = tuning
        self.categories = categories
        self.files = files
        self.workers = workers
        self.index = index
        self.ready = ready
        self.rng = rng
        self.largest: Resources | None = None
        self.default_scheduler = VINE_SCHEDULE_FILES

    # ------------------------------------------------------------------ allocation

    def allocation(self, task: TaskRecord, shape: Shape, worker: WorkerRecord) -> Resources:
        """What the task would get at this worker (section 10.2)."""
        category = self.categories.get(shape.family.category)
        available_disk = worker.totals.disk_mb - worker.cache_mb
        if task.spec.inputs:
            available_disk -= self.input_bytes(task) // MB
        if self.tuning.ramp_down_heuristic and self.ready.count < len(self.workers):
            return self._allocate(task, worker.totals, available_disk, worker.totals.minus(worker.in_use))
        if category.mode >= VINE_ALLOCATION_MODE_GREEDY_BUCKETING:
            return self._allocate(task, worker.totals, available_disk)
        if shape.memo_version != category.version or len(shape.memo) > MEMO_MAX:
            shape.memo.clear()
            shape.memo_version = category.version
        key = (worker.totals, available_disk, self.largest)
        found = shape.memo.get(key)
        if found is None:
            found = shape.memo[key] = self._allocate(task, worker.totals, available_disk)
        return found

    def _allocate(self, task: TaskRecord, totals: Resources, available_disk: int,
                  ramp_down_free: Resources | None = None) -> Resources:
        category = self.categories.get(task.spec.category)
        request = task.spec.resources
        return allocate(request, category.effective_max(request, task.id, task.exhausted, self.largest),
                        category.effective_min(request, task.id, task.exhausted, self.largest),
                        totals, available_disk, tuning=self.tuning, learned=category.learned(task.exhausted),
                        ramp_down_free=ramp_down_free)

    def input_bytes(self, task: TaskRecord) -> int:
        """Size of the task's inputs as far as known."""
        files, total = self.files, 0
        for mount in task.spec.inputs:
            size = files[mount.name].size
            if size > 0:
                total += size
        return total

    # ------------------------------------------------------------------ eligibility

    def fits(self, allocation: Resources, worker: WorkerRecord) -> bool:
        """Section 10.3: is there room now? Disk counts the cache and is never over-committed."""
        used, totals = worker.in_use, worker.totals
        many = self.tuning.resource_submit_multiplier
        if many != 1.0:
            return (self.fits_empty(allocation, worker)
                    and used.cores + allocation.cores <= -(-totals.cores * many // 1)
                    and used.memory_mb + allocation.memory_mb <= -(-totals.memory_mb * many // 1)
                    and used.gpus + allocation.gpus <= -(-totals.gpus * many // 1)
                    and used.disk_mb + worker.cache_mb + allocation.disk_mb <= totals.disk_mb)
        return (used[0] + allocation[0] <= totals[0] and used[1] + allocation[1] <= totals[1]
                and used[3] + allocation[3] <= totals[3]
                and used[2] + worker.cache_mb + allocation[2] <= totals[2])

    def fits_empty(self, allocation: Resources, worker: WorkerRecord) -> bool:
        """Would it fit if the worker were idle?"""
        totals = worker.totals
        return (allocation[0] <= totals[0] and allocation[1] <= totals[1] and allocation[3] <= totals[3]
                and allocation[2] + worker.cache_mb <= totals[2])

    def eligible(self, family: Family, worker: WorkerRecord, now: float) -> bool:
        """Everything of section 9.4 that is not about room."""
        if worker.bucket < 0 or not family.features <= worker.features:
            return False
        return not (worker.end_time and family.time_min_s and worker.end_time < now + family.time_min_s)

    def room_after(self, task: TaskRecord, before: Resources, worker: WorkerRecord, now: float) -> Resources | None:
        """The allocation of a task that takes the place of one with the allocation ``before``; None when it cannot."""
        spec = task.spec
        if task.exhausted or worker.bucket < 0 or not worker.features.issuperset(spec.features):
            return None
        if worker.end_time and spec.time_min_s and worker.end_time < now + spec.time_min_s:
            return None
        available_disk = worker.totals.disk_mb - worker.cache_mb - self.input_bytes(task) // MB
        allocation = self._allocate(task, worker.totals, available_disk)
        if allocation.gpus > 0 or allocation.cores > before.cores or allocation.memory_mb > before.memory_mb:
            return None
        return allocation if self.fits_empty(allocation, worker) else None

    def room_at(self, task: TaskRecord, shape: Shape, worker: WorkerRecord, now: float) -> Resources | None:
        """The allocation if the task can run there now, else None."""
        if not self.eligible(shape.family, worker, now):
            return None
        allocation = self.allocation(task, shape, worker)
        if not self.fits(allocation, worker):
            return None
        return allocation

    def free_at(self, worker: WorkerRecord) -> Size:
        """What is free there, counted as ``fits`` counts it."""
        used, totals, many = worker.in_use, worker.totals, self.tuning.resource_submit_multiplier
        disk = totals[2] - used[2] - worker.cache_mb
        if many == 1.0:
            return totals[0] - used[0], totals[1] - used[1], disk, totals[3] - used[3]
        cores, memory, gpus = (int(min(have, -(-have * many // 1) - taken))
                               for have, taken in ((totals[i], used[i]) for i in (0, 1, 3)))
        return cores, memory, disk, gpus

    def may_fit(self, shape: Shape) -> bool:
        """False when it is known, without looking at workers, that none has room."""
        least = self._least(shape)
        return least is None or self.index.may_have(least)

    def roof(self) -> Size:
        """At most so much of each resource is free at any worker, as far as the index can tell."""
        return self.index.roof() if self.tuning.resource_submit_multiplier == 1.0 else ANYTHING

    def _least(self, shape: Shape) -> Size | None:
        """What must be free for it; None where free resources are not what the index counts."""
        if self.tuning.resource_submit_multiplier != 1.0:
            return None
        cores, memory, disk, gpus = shape.size
        return (cores if shape.family.gpus else max(1, cores)), memory, disk, gpus

    # ------------------------------------------------------------------ choice

    def choose(self, task: TaskRecord, shape: Shape, now: float) -> tuple[WorkerRecord, Resources] | None:
        """The best worker for a task among all that have room, by its scheduler."""
        if shape.family.fixed:
            return self._first(task, shape, self._holders_of_fixed(task), now)
        scheduler = shape.family.scheduler or self.default_scheduler
        if scheduler == VINE_SCHEDULE_FILES:
            found = self.by_locality(task, shape, now)
            if found is not None:
                return found
        candidates = self.index.by_room(self._least(shape), include_full=self.counts_as_full(shape.family) < 0)
        if scheduler in (VINE_SCHEDULE_FILES, VINE_SCHEDULE_WORST):
            return self._first(task, shape, candidates, now)
        return self._sampled(task, shape, candidates, scheduler, now)

    def _first(self, task: TaskRecord, shape: Shape, candidates: Iterable[WorkerRecord],
               now: float) -> tuple[WorkerRecord, Resources] | None:
        for worker in candidates:
            allocation = self.room_at(task, shape, worker, now)
            if allocation is not None:
                return worker, allocation
        return None

    def _sampled(self, task: TaskRecord, shape: Shape, candidates: Iterable[WorkerRecord], scheduler: int,
                 now: float) -> tuple[WorkerRecord, Resources] | None:
        """Schedulers that compare: among at most attempt-schedule-depth workers with room."""
        fitting = ((w, a) for w in candidates if (a := self.room_at(task, shape, w, now)) is not None)
        found = list(islice(fitting, self.tuning.attempt_schedule_depth))
        if not found:
            return None
        if scheduler == VINE_SCHEDULE_DISK:
            return max(found, key=lambda pair: pair[0].totals.disk_mb - pair[0].in_use.disk_mb - pair[0].cache_mb)
        if scheduler == VINE_SCHEDULE_TIME:
            return min(found, key=lambda pair: pair[0].done_s / pair[0].done if pair[0].done else 0.0)
        assert scheduler in (VINE_SCHEDULE_RAND, VINE_SCHEDULE_FCFS)
        return self.rng.choice(found)

    def by_locality(self, task: TaskRecord, shape: Shape, now: float) -> tuple[WorkerRecord, Resources] | None:
        """The worker with room that holds most bytes of the task's inputs, None when none holds any."""
        held: dict[int, int] = {}
        for mount in task.spec.inputs:
            file = self.files[mount.name]
            if 0 < len(file.replicas) <= WIDELY_HELD:
                weight = max(1, file.size)
                for key, state in file.replicas.items():
                    if state == REPLICA_READY:
                        held[key] = held.get(key, 0) + weight
        full = self.counts_as_full(shape.family)
        for key in sorted(held, key=held.__getitem__, reverse=True):
            worker = self.workers[key]
            if worker.bucket <= full:
                continue
            allocation = self.room_at(task, shape, worker, now)
            if allocation is not None:
                return worker, allocation
        return None

    def by_locality_among(self, task: TaskRecord, shape: Shape, candidates: Iterable[WorkerRecord],
                          now: float) -> tuple[WorkerRecord, Resources] | None:
        """The same among a few workers whose room has grown: the only ones worth a look for a saturated shape."""
        best: tuple[WorkerRecord, Resources] | None = None
        most, full = 0, self.counts_as_full(shape.family)
        for worker in islice(candidates, LOCAL_DEPTH):
            if worker.bucket <= full or (held := self.bytes_at(task, worker)) <= most:
                continue
            allocation = self.room_at(task, shape, worker, now)
            if allocation is not None:
                best, most = (worker, allocation), held
        return best

    def counts_as_full(self, family: Family) -> int:
        """Workers in this bucket (free cores) or below can take none of it; most can be told so without arithmetic."""
        return -1 if family.gpus or self.tuning.resource_submit_multiplier != 1.0 else 0

    def most_local(self, shape: Shape, worker: WorkerRecord) -> int:
        """Position, among the first tasks of a shape, of the one with most input bytes at this worker."""
        if not shape.any_inputs or shape.family.fixed:
            return 0
        if (shape.family.scheduler or self.default_scheduler) != VINE_SCHEDULE_FILES:
            return 0
        best, best_bytes = 0, 0
        for position, task in shape.top(LOCAL_DEPTH):
            held = self.bytes_at(task, worker)
            if held > best_bytes and all(self.files[m.name].available_to(task) for m in task.spec.inputs):
                best, best_bytes = position, held
        return best

    def bytes_at(self, task: TaskRecord, worker: WorkerRecord) -> int:
        """Input bytes of a task that a worker holds, not counting what everybody holds."""
        held = 0
        for mount in task.spec.inputs:
            file = worker.files.get(mount.name)
            if file is not None and len(file.replicas) <= WIDELY_HELD and file.replicas[worker.key] == REPLICA_READY:
                held += max(1, file.size)
        return held

    def _holders_of_fixed(self, task: TaskRecord) -> list[WorkerRecord]:
        """Workers that hold every strict input."""
        keys: set[int] | None = None
        for mount in task.spec.inputs:
            if mount.flags & VINE_FIXED_LOCATION:
                ready = set(self.files[mount.name].ready_keys())
                keys = ready if keys is None else keys & ready
        return [self.workers[key] for key in sorted(keys or ())]

    def fixed_is_nowhere(self, task: TaskRecord) -> bool:
        """True when workers are connected and none holds all strict inputs (not even arriving)."""
        if not self.workers:
            return False
        for mount in task.spec.inputs:
            if mount.flags & VINE_FIXED_LOCATION and not self.files[mount.name].replicas:
                return True
        return False

"""Workers by free capacity, so that finding one with room is not a walk over all of them.

Owns which workers may be given tasks at all, in which bucket (free cores) each stands, and what is free at most in a
bucket. Knows no tasks.
"""

from __future__ import annotations

from collections.abc import Iterator

from taskvine_core.manager.records import WorkerRecord
from taskvine_core.manager.sizes import Size
from taskvine_core.manager.states import WORKER_SERVING

#: Workers with more free cores than this share a bucket: what a worker says must not size our tables.
MAX_BUCKET = 1024


class _Bucket:
    """Workers with as many free cores, and bounds on the other resources that are free at one of them: raised with
    every worker that comes, corrected when a look at all of them found no room."""

    __slots__ = ("disk", "gpus", "memory", "workers")

    def __init__(self) -> None:
        self.workers: dict[WorkerRecord, None] = {}
        self.memory = self.disk = self.gpus = 0

    def raise_to(self, worker: WorkerRecord) -> None:
        totals, used = worker.totals, worker.in_use
        memory, disk, gpus = totals[1] - used[1], totals[2] - used[2] - worker.cache_mb, totals[3] - used[3]
        if memory > self.memory:
            self.memory = memory
        if disk > self.disk:
            self.disk = disk
        if gpus > self.gpus:
            self.gpus = gpus

    def correct(self) -> None:
        self.memory = self.disk = self.gpus = 0
        for worker in self.workers:
            self.raise_to(worker)

    def may_have(self, least: Size) -> bool:
        return least[1] <= self.memory and least[2] <= self.disk and least[3] <= self.gpus and bool(self.workers)


class WorkerIndex:
    """Eligible workers in buckets of free cores, and those whose room has grown since the last pass."""

    def __init__(self) -> None:
        self._buckets = [_Bucket()]
        self.grown: dict[WorkerRecord, None] = {}
        self.resting: dict[WorkerRecord, None] = {}

    def update(self, worker: WorkerRecord, now: float, *, grown: bool = False) -> None:
        """Put a worker where its free capacity says; call after every change of what it uses or may do."""
        if worker.state != WORKER_SERVING or worker.blocked:
            self.remove(worker)
            return
        if worker.not_before > now:
            self.remove(worker)
            self.resting[worker] = None
            return
        free = min(MAX_BUCKET, max(0, worker.totals.cores - worker.in_use.cores))
        if free != worker.bucket:
            if worker.bucket >= 0:
                self._buckets[worker.bucket].workers.pop(worker, None)
            while len(self._buckets) <= free:
                self._buckets.append(_Bucket())
            self._buckets[free].workers[worker] = None
            worker.bucket = free
            self._buckets[free].raise_to(worker)
        elif grown:
            self._buckets[free].raise_to(worker)
        if grown:
            self.grown[worker] = None

    def remove(self, worker: WorkerRecord) -> None:
        """Offer nothing to this worker."""
        if worker.bucket >= 0:
            self._buckets[worker.bucket].workers.pop(worker, None)
            worker.bucket = -1
        self.grown.pop(worker, None)
        self.resting.pop(worker, None)

    def wake(self, now: float) -> None:
        """Take back the workers whose rest is over."""
        for worker in [w for w in self.resting if w.not_before <= now]:
            del self.resting[worker]
            self.update(worker, now, grown=True)

    def by_room(self, least: Size | None, *, include_full: bool) -> Iterator[WorkerRecord]:
        """Workers, most free cores first. ``least``: pass over those that are known not to have it free.
        ``include_full``: also those without a free core (gpu tasks use none)."""
        for free in range(len(self._buckets) - 1, -1 if include_full else 0, -1):
            bucket = self._buckets[free]
            if bucket.workers and (least is None or bucket.may_have(least)):
                yield from bucket.workers
                bucket.correct()  # all were looked at in vain: the next one that asks for as much need not

    def may_have(self, least: Size) -> bool:
        """False when no worker has that much free."""
        return any(bucket.may_have(least) for bucket in self._buckets[min(least[0], MAX_BUCKET):])

    def roof(self) -> Size:
        """At most so much of each resource is free at any worker."""
        used = [(free, bucket) for free, bucket in enumerate(self._buckets) if bucket.workers]
        if not used:
            return -1, -1, -1, -1
        cores = used[-1][0]
        return (cores if cores < MAX_BUCKET else 1 << 60, max(b.memory for _, b in used),
                max(b.disk for _, b in used), max(b.gpus for _, b in used))

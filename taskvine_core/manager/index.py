"""Workers by free capacity, so that finding one with room is not a walk over all of them.

Owns which workers may be given tasks at all and in which bucket (free cores) each stands. Knows no tasks.
"""

from __future__ import annotations

from collections.abc import Iterator

from taskvine_core.manager.records import WorkerRecord
from taskvine_core.manager.states import WORKER_SERVING

#: Workers with more free cores than this share a bucket: what a worker says must not size our tables.
MAX_BUCKET = 1024


class WorkerIndex:
    """Eligible workers in buckets of free cores, and those whose room has grown since the last pass."""

    def __init__(self) -> None:
        self._buckets: list[dict[WorkerRecord, None]] = [{}]
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
                self._buckets[worker.bucket].pop(worker, None)
            while len(self._buckets) <= free:
                self._buckets.append({})
            self._buckets[free][worker] = None
            worker.bucket = free
        if grown:
            self.grown[worker] = None

    def remove(self, worker: WorkerRecord) -> None:
        """Offer nothing to this worker."""
        if worker.bucket >= 0:
            self._buckets[worker.bucket].pop(worker, None)
            worker.bucket = -1
        self.grown.pop(worker, None)
        self.resting.pop(worker, None)

    def wake(self, now: float) -> None:
        """Take back the workers whose rest is over."""
        for worker in [w for w in self.resting if w.not_before <= now]:
            del self.resting[worker]
            self.update(worker, now, grown=True)

    def by_room(self, *, include_full: bool) -> Iterator[WorkerRecord]:
        """Workers, most free cores first. ``include_full``: also those without a free core (gpu tasks use none)."""
        for free in range(len(self._buckets) - 1, -1 if include_full else 0, -1):
            bucket = self._buckets[free]
            if bucket:
                yield from bucket

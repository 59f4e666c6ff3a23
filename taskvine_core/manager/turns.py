"""One family's turn in a dispatch pass: which of its shapes is to be tried next, and where.

Owns the order of trying. Must not place anything: the dispatcher does, and says what came of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from taskvine_core.manager.placement import Placement
from taskvine_core.manager.ready import Family, Shape
from taskvine_core.manager.records import WorkerRecord
from taskvine_core.manager.sizes import Rank, Size

MayQueue = Callable[[Family, WorkerRecord], bool]


class Turn:
    """``workers``: those whose room has grown and that may have some for this family, the next one first."""

    def __init__(self, family: Family, grown: Iterable[WorkerRecord], placement: Placement,
                 may_queue: MayQueue) -> None:
        self.family = family
        self.postponed: Rank | None = None  # rank of its next task, when others have priority over that
        self.workers = deque(grown)
        self._placement = placement
        self._may_queue = may_queue
        self._none_for: list[Size] = []  # what the first worker has no room for
        self._looks = 0
        if family.unfinished:
            grown_too = set(self.workers)
            kept = {worker: sizes for worker, sizes in family.unfinished.items() if worker not in grown_too}
            family.unfinished = kept
            self.workers.extend(kept)

    def next(self, now: float) -> tuple[Shape, bool] | None:
        """The best shape that may find room; whether any worker may have it (else it is the first of ``workers``)."""
        family = self.family
        if family.only is not None:
            return self._of_one(family.only, now)
        wide = self._for_any()
        narrow = self._for_first(now)
        if wide is not None and (narrow is None or _rank(wide) <= _rank(narrow)):
            return wide, True
        return None if narrow is None else (narrow, False)

    def too_large(self, shape: Shape) -> None:
        """The first worker has no room for it, nor for what asks for more."""
        self._none_for.append(shape.size)
        self._looks += 1
        if self._looks >= self._placement.tuning.attempt_schedule_depth:
            self.family.unfinished[self.workers[0]] = self._none_for
            self._next_worker()

    def _of_one(self, shape: Shape, now: float) -> tuple[Shape, bool] | None:
        if not shape.saturated:
            return shape, True
        while self.workers:
            if not self._none_for and self._room(self.workers[0], now) is not None:
                return shape, False
            self._next_worker()
        return None

    def _for_any(self) -> Shape | None:
        """The best shape that nobody has looked for room for; what cannot find any is passed over."""
        family, placement = self.family, self._placement
        assert family.tree is not None
        while (unseen := family.unseen()) is not None:
            if placement.may_fit(unseen) and not family.hopeless(unseen):
                break
            family.file(unseen)
        if family.sweep is None:
            return unseen
        again = family.tree.first(placement.roof(), family.sweep)
        if again is None:
            family.sweep = None
            return unseen
        return again if unseen is None or _rank(again) < _rank(unseen) else unseen

    def _for_first(self, now: float) -> Shape | None:
        """The best shape that the first worker may have room for; workers that have none are passed over."""
        family = self.family
        assert family.tree is not None
        while self.workers:
            worker = self.workers[0]
            room = self._room(worker, now)
            if room is not None:
                if not self._none_for and worker in family.unfinished:
                    self._none_for = family.unfinished.pop(worker)
                shape = family.tree.first(room, self._none_for)
                if shape is not None:
                    return shape
            family.unfinished.pop(worker, None)
            self._next_worker()
        return None

    def _next_worker(self) -> None:
        self.workers.popleft()
        self._none_for, self._looks = [], 0

    def _room(self, worker: WorkerRecord, now: float) -> Size | None:
        """What the worker may be given, None for nothing."""
        family, placement = self.family, self._placement
        if not placement.eligible(family, worker, now) or not all(name in worker.files for name in family.strict):
            return None
        if not family.gpus and self._may_queue(family, worker):
            totals = worker.totals
            return totals[0], totals[1], totals[2] - worker.cache_mb, totals[3]
        if worker.queued or worker.bucket <= placement.counts_as_full(family):
            return None
        return placement.free_at(worker)


def _rank(shape: Shape) -> Rank:
    assert shape.rank is not None
    return shape.rank

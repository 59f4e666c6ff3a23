"""Copies of temps: how many there should be, and which lie at one worker only that is to leave.

Owns which temps want another copy, and what a draining worker must not take with it. Must not know how a file gets to
a worker: staging.py brings it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from taskvine_core.constants import VINE_CACHE_LEVEL_WORKFLOW, VINE_TEMP
from taskvine_core.manager.books import Books
from taskvine_core.manager.records import MB, FileRecord, WorkerRecord
from taskvine_core.manager.states import REPLICA_READY


class Copies:
    """Which temps to copy, and when.

    Args:
        bring: orders a file at a worker.
    """

    def __init__(self, books: Books, bring: Callable[[FileRecord, WorkerRecord], None]) -> None:
        self.books = books
        self._bring = bring
        self._draining = 0  # workers whose sole temps are known
        self._crowded: dict[WorkerRecord, None] = {}  # of those, whose temps found nobody with room for the moment
        self._thin: dict[str, FileRecord] = {}
        self._unplaced: dict[str, FileRecord] = {}  # thin, and nobody could take a copy when we looked

    def wants(self, file: FileRecord) -> None:
        """A temp has fewer replicas than temp-replica-count: copy it when there is time."""
        self._thin[file.name] = file

    def start_some(self) -> None:
        """Start copies of thinly held temps, at most transfer-replica-per-cycle."""
        wanted = self.books.tuning.temp_replica_count
        for file in list(self._thin.values())[: self.books.tuning.transfer_replica_per_cycle]:
            if not file.needed or not file.ready or len(file.replicas) >= wanted:
                del self._thin[file.name]
            elif not self.replicate(file):
                del self._thin[file.name]
                self._unplaced[file.name] = file

    def look_again(self) -> None:
        """There may be room by now for copies that nobody could take."""
        if self._unplaced:
            self._thin.update(self._unplaced)
            self._unplaced.clear()

    def room_again(self) -> None:
        """A worker has taken in what it was sent: one that drains may save a temp there."""
        if self._crowded:
            waiting = next(iter(self._crowded))
            del self._crowded[waiting]
            self.books.look_at_leaving(waiting)

    def replicate(self, file: FileRecord) -> bool:
        """Copy a temp to one more worker, the one with most free disk; False when nobody can take it now."""
        limit = self.books.tuning.worker_source_max_transfers
        best: WorkerRecord | None = None
        room = 0
        for worker in self.books.workers.values():
            if worker.key in file.replicas or worker.state or worker.incoming >= limit:
                continue
            free = worker.totals.disk_mb - worker.in_use.disk_mb - worker.cache_mb
            if free > max(room, max(0, file.size) // MB):
                best, room = worker, free
        if best is None:
            return False
        file.level = max(file.level, VINE_CACHE_LEVEL_WORKFLOW)
        self._bring(file, best)
        return True

    def drains(self, worker: WorkerRecord) -> None:
        """From now on know which temps lie only at this worker, without a walk over all it holds."""
        self._draining += 1
        worker.sole = deque(file for file in worker.files.values() if self.is_sole(file, worker))
        self.books.look_at_leaving(worker)

    def drains_no_more(self, worker: WorkerRecord) -> None:
        """It is gone, or serves again."""
        if worker.sole is not None:
            self._draining -= 1
            worker.sole = None
            self.books.leaving.pop(worker, None)
            self._crowded.pop(worker, None)

    def may_be_sole(self, file: FileRecord) -> None:
        """Note it at the draining worker that now holds the only copy of a temp, if one does."""
        if not self._draining or file.ready != 1 or file.decl.kind != VINE_TEMP:
            return
        for key, state in file.replicas.items():
            if state == REPLICA_READY:
                worker = self.books.workers.get(key)
                if worker is not None and worker.sole is not None:
                    worker.sole.append(file)
                    self.books.leaving[worker] = None
                return

    def save_one(self, worker: WorkerRecord) -> bool:
        """Have one temp that only this draining worker holds copied elsewhere; False when there is none left, or when
        no worker has room for any of them."""
        sole, crowded = worker.sole, False
        assert sole is not None
        for _ in range(len(sole)):
            file = sole.popleft()
            if not self.is_sole(file, worker):
                continue
            sole.append(file)  # until it is seen to lie elsewhere; the others come first, next time
            if len(file.replicas) > 1 or self.replicate(file):
                return True
            crowded = crowded or self._somebody_could_hold(file)
        if crowded:
            self._crowded[worker] = None
        return crowded

    def _somebody_could_hold(self, file: FileRecord) -> bool:
        """Would a worker have room for one more copy, were it not taking in others?"""
        size_mb = max(0, file.size) // MB
        return any(worker.totals.disk_mb - worker.in_use.disk_mb - worker.cache_mb > size_mb
                   for worker in self.books.workers.values() if not worker.state and worker.key not in file.replicas)

    def is_sole(self, file: FileRecord, worker: WorkerRecord) -> bool:
        """Does only this worker hold a temp that is still needed?"""
        return (file.decl.kind == VINE_TEMP and file.needed and file.ready == 1 and not file.at_manager
                and file.replicas.get(worker.key) == REPLICA_READY)

"""Where temps live when the program asks for more than one copy each (reference, section 11.6).

Owns three optional policies, all off by default: clean-redundant-replicas, shift-disk-load, and the copies that
temp-replica-count wants. Decides which worker gets or loses a replica; staging moves and deletes.
"""

from __future__ import annotations

from taskvine_core.constants import VINE_TEMP
from taskvine_core.manager.books import Books
from taskvine_core.manager.records import MB, FileRecord, TaskRecord, WorkerRecord
from taskvine_core.manager.staging import Staging
from taskvine_core.manager.states import REPLICA_READY


class Balance:
    """Spreads temps over workers."""

    def __init__(self, books: Books, staging: Staging) -> None:
        self.books = books
        self.staging = staging

    def arrived(self, file: FileRecord, worker: WorkerRecord) -> None:
        """A temp is complete at a worker."""
        tuning = self.books.tuning
        if file.decl.kind != VINE_TEMP:
            return
        if len(file.replicas) < tuning.temp_replica_count:
            self.staging.copies.wants(file)
        if tuning.shift_disk_load and len(file.replicas) <= tuning.temp_replica_count:
            self._shift(file, worker)
        if tuning.clean_redundant_replicas:
            self._clean(file)

    def released(self, task: TaskRecord) -> None:
        """A task ended: its inputs may have copies that only it kept."""
        if self.books.tuning.clean_redundant_replicas:
            for mount in task.spec.inputs:
                file = self.books.files.get(mount.name)
                if file is not None and file.decl.kind == VINE_TEMP:
                    self._clean(file)

    def _clean(self, file: FileRecord) -> None:
        """Delete copies beyond the wanted number, fullest workers first, never under a task that reads the file."""
        surplus = len(file.replicas) - max(1, self.books.tuning.temp_replica_count)
        if surplus <= 0 or file.ready < len(file.replicas):
            return
        holders = [self.books.workers[key] for key, state in file.replicas.items() if state == REPLICA_READY]
        holders.sort(key=lambda holder: holder.cached_bytes, reverse=True)
        for holder in holders:
            if surplus > 0 and not holder.outgoing and not self._reads(holder, file):
                self.staging.unlink(file, holder)
                surplus -= 1

    def _reads(self, worker: WorkerRecord, file: FileRecord) -> bool:
        return any(mount.name == file.name for task in worker.tasks() for mount in task.spec.inputs)

    def _shift(self, file: FileRecord, source: WorkerRecord) -> None:
        """Copy to the worker with most free disk that would still hold less than the source; cleaning drops the
        rest."""
        size_mb = max(0, file.size) // MB
        best: WorkerRecord | None = None
        most = size_mb
        for worker in self.books.workers.values():
            free = worker.totals.disk_mb - worker.in_use.disk_mb - worker.cache_mb
            lighter = worker.cached_bytes + file.size < source.cached_bytes
            if worker.key not in file.replicas and not worker.state and lighter and free > most:
                best, most = worker, free
        if best is not None:
            self.staging.bring(file, best)

"""Getting files to workers: which source, how many at a time, what to do when one fails (reference, sections
11.3-11.6).

Owns replicas and transfers. A file many workers want spreads as a tree: its origin serves few copies, each worker that
has it serves more. A failed source rests (exponentially, not a fixed 15 s) while other sources, a relay through the
manager, or the recovery of a temp take over. Which temps want more copies is in copies.py. Must not know tasks beyond
telling `Needs` that a file cannot come.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Protocol

from taskvine_core.constants import (
    VINE_BUFFER,
    VINE_FILE,
    VINE_MINI_TASK,
    VINE_TEMP,
    VINE_URL,
)
from taskvine_core.manager.books import Books
from taskvine_core.manager.copies import Copies
from taskvine_core.manager.events import CancelUpload, CheckLocal, ExpectUpload, SenderGone, SendLocal
from taskvine_core.manager.outliers import TransferRate
from taskvine_core.manager.records import (
    FROM_MANAGER,
    FROM_MINI_TASK,
    FROM_URL,
    MB,
    TO_MANAGER,
    Fault,
    FileRecord,
    Transfer,
    WorkerRecord,
)
from taskvine_core.manager.states import REPLICA_CREATING, REPLICA_READY
from taskvine_core.model.files import DEFAULT_MODE, INLINE_MAX_BYTES, TINY_TEMP_MAX_BYTES
from taskvine_core.model.platforms import path_for, variant_name
from taskvine_core.protocol.messages import (
    BLAME_SELF,
    BLAME_SOURCE,
    SOURCE_MANAGER,
    SOURCE_PEER,
    SOURCE_URL,
    CacheInvalid,
    CacheUpdate,
    Fetch,
    MiniTask,
    PutInline,
    Unlink,
    Upload,
)

#: A source that sends nothing for this long has failed; bounds silence, not the whole transfer.
FETCH_SILENCE_S = 20.0
#: Copies of one shareable file the manager sends at the same time: the rest comes from peers, as a tree.
ORIGIN_COPIES = 2
#: The same for files peers may not share.
ORIGIN_COPIES_UNSHARED = 10
#: First rest of a failed source; doubles up to transient-error-interval.
FIRST_REST_S = 0.25
#: Failures of one peer for one file before the bytes are asked through the manager instead.
RELAY_AFTER = 2
#: Failures of the manager as a source, or of all sources in a row, before the file counts as unfetchable.
GIVE_UP_AFTER = 5
#: Waiting files looked at when some source becomes free.
KICK_DEPTH = 100
#: Bytes of tiny temps kept at the manager at most, each counted with what its objects take; further ones are moved
#: between workers like large ones.
KEPT_MAX_BYTES = 64 * MB
KEPT_OVERHEAD_BYTES = 128
#: A worker with this many failures as source (as destination), and not more successes, is removed (section 11.5).
BAD_SOURCE, BAD_DESTINATION = 5, 10


class Needs(Protocol):
    """What staging tells the rest of the core."""

    def file_available(self, file: FileRecord) -> None:
        """A first replica is ready."""

    def replica_arrived(self, file: FileRecord, worker: WorkerRecord) -> None:
        """One more replica is complete, by an order of ours."""

    def file_lost(self, file: FileRecord) -> None:
        """No ready replica is left anywhere."""

    def cannot_take(self, worker: WorkerRecord, file: FileRecord, reason: str) -> None:
        """This worker cannot receive the file (its disk is full, ...)."""

    def unfetchable(self, worker: WorkerRecord, file: FileRecord, reason: str) -> None:
        """The file itself cannot be had: the URL answers 404, the mini-task fails."""

    def readers_lose(self, worker: WorkerRecord, file: FileRecord) -> None:
        """The worker will not have the file any more: tasks sent there that have not started must not wait for it."""

    def worker_is_bad(self, worker: WorkerRecord) -> None:
        """Too many failed transfers."""


class Staging:
    """Replicas and transfers."""

    def __init__(self, books: Books, needs: Needs) -> None:
        self.books = books
        self.needs = needs
        self.peers_enabled = True
        self._waiting: dict[str, FileRecord] = {}
        self._retry: list[tuple[float, str]] = []
        self._rate = TransferRate(books.tuning)
        self.kept_bytes = 0
        self.copies = Copies(books, self.bring)

    # ------------------------------------------------------------------ bringing

    def bring(self, file: FileRecord, worker: WorkerRecord) -> None:
        """Make sure the worker has the file or is getting it."""
        if worker.key in file.replicas:
            return
        decl = file.decl
        if decl.kind == VINE_BUFFER and decl.data:
            self._put(file, worker, decl.data, decl.mode or DEFAULT_MODE)
        elif (file.kept_locally and not decl.is_dir and 0 <= file.size <= INLINE_MAX_BYTES and not file.at_manager
              and not decl.per_platform):
            self.books.out.append(SendLocal(worker.key, decl._replace(level=file.level)))
            self.books.observer.put(self.books.now, worker.key, file.name, file.level, file.size, decl.mode)
            self.books.stats.bytes_sent += file.size
            self.mark_ready(file, worker, max(0, file.size), file.sha256)
        else:
            file.put_replica(worker.key, REPLICA_CREATING)
            worker.files[file.name] = file
            if not self._start(file, worker):
                self._wait(file, worker)

    def _put(self, file: FileRecord, worker: WorkerRecord, data: bytes, mode: int) -> None:
        books = self.books
        books.send(worker, PutInline(file.name, file.level, mode, file.sha256, data))
        books.stats.bytes_sent += len(data)
        books.observer.put(books.now, worker.key, file.name, file.level, len(data), mode)
        self.mark_ready(file, worker, len(data), file.sha256)

    def keep(self, file: FileRecord, data: bytes, mode: int) -> None:
        """Hold a tiny temp at the manager while there is room: it came with its task's report."""
        self.let_go(file)
        size = len(data) + KEPT_OVERHEAD_BYTES
        if len(data) <= TINY_TEMP_MAX_BYTES and self.kept_bytes + size <= KEPT_MAX_BYTES:
            self.kept_bytes += size
            file.kept = (data, mode)
            file.at_manager = True

    def let_go(self, file: FileRecord) -> None:
        """The manager's own copy of a temp counts no more."""
        if file.kept is not None:
            self.kept_bytes -= len(file.kept[0]) + KEPT_OVERHEAD_BYTES
            file.kept = None
        file.at_manager = False
        self.copies.may_be_sole(file)

    def _wait(self, file: FileRecord, worker: WorkerRecord) -> None:
        if file.pending is None:
            file.pending = deque()
        file.pending.append(worker.key)
        self._waiting[file.name] = file

    def _start(self, file: FileRecord, worker: WorkerRecord) -> bool:
        """Order the file from a source that is free; False when none is."""
        if file.kept is not None:
            self._put(file, worker, *file.kept)
            return True
        peer = self._free_peer(file, worker)
        if peer is not None:
            peer.outgoing += 1
            self._fetch(file, worker, peer.key, SOURCE_PEER, peer.peer_address())
            return True
        if self._rests(file, FROM_MANAGER):
            return False
        kind = file.decl.kind
        if file.from_manager:
            copies = ORIGIN_COPIES if self.peers_enabled and file.shareable else ORIGIN_COPIES_UNSHARED
            if file.origin_busy >= copies:
                return False
            if file.decl.per_platform:
                self._fetch_variant(file, worker)
                return True
            if kind == VINE_FILE and self.books.tuning.load_from_shared_filesystem and not file.at_manager:
                self._fetch(file, worker, FROM_MANAGER, SOURCE_URL, f"file://{file.decl.source}")
            else:
                self._fetch(file, worker, FROM_MANAGER, SOURCE_MANAGER, "")
            if kind == VINE_FILE and not file.at_manager:
                self.books.out.append(CheckLocal(file.decl))
        elif kind == VINE_URL:
            if file.origin_busy >= self.books.tuning.file_source_max_transfers:
                return False
            self._fetch(file, worker, FROM_URL, SOURCE_URL, file.decl.source)
        elif kind == VINE_MINI_TASK:
            self._run_mini_task(file, worker)
        else:
            return self._relay(file)
        return True

    def _fetch_variant(self, file: FileRecord, worker: WorkerRecord) -> None:
        """The local file for this kind of worker. Size and digest of another worker's say nothing about it."""
        os_name, arch = worker.hello.os, worker.hello.arch
        decl = file.decl._replace(source=path_for(file.decl.source, os_name, arch))
        if self.books.tuning.load_from_shared_filesystem:
            self._fetch(file, worker, FROM_MANAGER, SOURCE_URL, f"file://{decl.source}")
        else:
            self._fetch(file, worker, FROM_MANAGER, SOURCE_MANAGER, variant_name(file.name, os_name, arch))
        self.books.out.append(CheckLocal(decl))

    def _fetch(self, file: FileRecord, worker: WorkerRecord, source: int, where: int, address: str) -> None:
        books = self.books
        size, sha256 = (-1, b"") if file.decl.per_platform else (file.size, file.sha256)
        transfer = Transfer(books.new_transfer_id(), file.name, file, worker.key, source, books.now)
        books.transfers[transfer.id] = transfer
        worker.incoming += 1
        if source < 0:
            file.origin_busy += 1
        books.send(worker,
                   Fetch(file.name, transfer.id, file.level, file.decl.mode, size, sha256, where, address,
                         FETCH_SILENCE_S))
        books.observer.fetch_ordered(books.now, worker.key, file.name, file.level, file.size, file.decl.mode,
                                     transfer.id,
                                     where, address)

    def _run_mini_task(self, file: FileRecord, worker: WorkerRecord) -> None:
        books, spec = self.books, file.decl.mini_task
        assert spec is not None
        for mount in spec.inputs:
            self.bring(books.files[mount.name], worker)
        transfer = Transfer(books.new_transfer_id(), file.name, file, worker.key, FROM_MINI_TASK, books.now)
        books.transfers[transfer.id] = transfer
        worker.incoming += 1
        file.origin_busy += 1
        books.send(worker, MiniTask(file.name, transfer.id, file.level, file.decl.mode, spec, file.decl.mini_source))
        if not file.uses_logged:
            file.uses_logged = True
            books.observer.mini_task_used(books.now, file.name, spec)
        books.observer.mini_task_ordered(books.now, worker.key, file.name, file.level, file.size, file.decl.mode,
                                         transfer.id)

    # ------------------------------------------------------------------ sources

    def _free_peer(self, file: FileRecord, worker: WorkerRecord) -> WorkerRecord | None:
        """The ready replica whose worker sends least, below the limit and not resting."""
        if not file.ready or not self.peers_enabled or not file.shareable:
            return None
        limit = self.books.tuning.worker_source_max_transfers
        best: WorkerRecord | None = None
        for key, state in file.replicas.items():
            if state != REPLICA_READY or key == worker.key or self._rests(file, key):
                continue
            peer = self.books.workers[key]
            if peer.hello.transfer_port and peer.outgoing < limit and (best is None or peer.outgoing < best.outgoing):
                best = peer
                if not peer.outgoing:
                    break
        return best

    def _rests(self, file: FileRecord, source: int) -> bool:
        if file.faults is None:
            return False
        fault = file.faults.get(source)
        return fault is not None and fault.until > self.books.now

    def _blame(self, file: FileRecord, source: int) -> Fault:
        if file.faults is None:
            file.faults = {}
        fault = file.faults.setdefault(source, Fault())
        fault.count += 1
        rest = min(self.books.tuning.transient_error_interval_s, FIRST_REST_S * 2 ** (fault.count - 1))
        fault.until = self.books.now + rest
        heappush(self._retry, (fault.until, file.name))
        return fault

    def _relay(self, file: FileRecord) -> bool:
        """No peer can be reached from where the file is wanted: have one send it to the manager. Always False: the
        wanting workers stay in line until the relayed copy is there."""
        if file.relay or not file.ready:
            return False
        keys = file.ready_keys()
        tired = [k for k in keys if file.faults and k in file.faults and file.faults[k].count >= RELAY_AFTER]
        mute = [k for k in keys if not self.books.workers[k].hello.transfer_port]
        if not self.peers_enabled or not file.shareable:
            mute = keys
        sources = mute or (tired if len(tired) == len(keys) else [])
        if sources:
            file.relay = self.upload(self.books.workers[sources[0]], file.name, "", "relay")
        return False

    def upload(self, worker: WorkerRecord, name: str, path: str, purpose: str, *, task_id: int = 0,
               mode: int = 0, tries: int = 1) -> int:
        """Have a worker send one of its objects to the manager; returns the transfer id. ``tries``: with this one."""
        books = self.books
        transfer = Transfer(books.new_transfer_id(), name, books.files.get(name), worker.key, TO_MANAGER, books.now,
                            purpose, task_id)
        transfer.path, transfer.mode, transfer.tries = path, mode, tries
        books.transfers[transfer.id] = transfer
        worker.outgoing += 1
        books.out.append(ExpectUpload(transfer.id, name, path, purpose, mode))
        books.send(worker, Upload(transfer.id, name, FETCH_SILENCE_S))
        return transfer.id

    # ------------------------------------------------------------------ arrivals

    def on_update(self, worker: WorkerRecord, message: CacheUpdate) -> None:
        """An ordered object arrived."""
        transfer = self._end(message.transfer_id, worker)
        if transfer is None or transfer.file is None:
            return
        file, books = transfer.file, self.books
        self._rate.finished(message.size_bytes, message.wall_s)
        worker.took_ok += 1
        worker.bytes_moved += max(0, message.size_bytes)
        source = books.workers.get(transfer.source)
        if source is not None:
            source.sent_ok += 1
        elif transfer.source == FROM_MANAGER:
            books.stats.bytes_sent += max(0, message.size_bytes)
        books.observer.cache_update(books.now, worker.key, message.name, file.decl.kind, file.level, message.size_bytes,
                                    message.wall_s, message.start, message.transfer_id)
        if worker.key in file.replicas:
            self.mark_ready(file, worker, message.size_bytes, message.sha256)
            self.needs.replica_arrived(file, worker)
        self._kick(file)
        self.kick_some()

    def mark_ready(self, file: FileRecord, worker: WorkerRecord, size: int, sha256: bytes) -> None:
        """The worker holds the file, complete. Size and hash of the first replica count: a later one that differs is
        accounted like it, and found out by whoever fetches it."""
        if file.replicas.get(worker.key) == REPLICA_READY:
            return
        file.put_replica(worker.key, REPLICA_READY)
        worker.files[file.name] = file
        if not file.ready:
            file.size = max(0, size)
            file.sha256 = sha256 or file.sha256
        worker.cached_bytes += file.size
        worker.cache_mb = worker.cached_bytes // MB
        file.ready += 1
        if file.ready == 1:
            if worker.sole is not None:
                self.copies.may_be_sole(file)
            self.needs.file_available(file)
        if file.pending:
            self._kick(file)

    def on_invalid(self, worker: WorkerRecord, message: CacheInvalid) -> None:
        """An ordered object did not arrive."""
        books = self.books
        transfer = self._end(message.transfer_id, worker)
        file = books.files.get(message.name) if transfer is None else transfer.file
        if file is None or (message.transfer_id and transfer is None):
            return
        books.observer.cache_invalid(books.now, worker.key, file.name, message.transfer_id, message.reason)
        self.forget(file, worker)
        if message.blame == BLAME_SELF or transfer is None:
            worker.took_bad += 1
            self.needs.cannot_take(worker, file, message.reason)
        elif message.blame == BLAME_SOURCE and transfer.source not in (FROM_URL, FROM_MINI_TASK):
            self._source_failed(file, worker, transfer, message.reason)
        else:
            self._blame(file, FROM_MANAGER)
            self.needs.unfetchable(worker, file, message.reason)
        if worker.took_bad >= BAD_DESTINATION and worker.took_bad >= worker.took_ok:
            self.needs.worker_is_bad(worker)
        self.kick_some()

    def end_outliers(self) -> None:
        """Take files from other sources when one is far slower than others are."""
        now = self.books.now
        late = [t for t in self.books.transfers.values() if t.source >= 0 or t.source == FROM_MANAGER]
        for transfer in late:
            worker, file = self.books.workers.get(transfer.dest), transfer.file
            if worker is None or file is None or not self._rate.is_outlier(transfer, now):
                continue
            if self._end(transfer.id, worker) is not None:
                # abandons the fetch; tasks there go on waiting for the file
                self.books.send(worker, Unlink((file.name,)))
                self.forget(file, worker)
                self._source_failed(file, worker, transfer, "far slower than other transfers")

    def _source_failed(self, file: FileRecord, worker: WorkerRecord, transfer: Transfer, reason: str) -> None:
        fault = self._blame(file, transfer.source)
        source = self.books.workers.get(transfer.source)
        if source is not None:
            source.sent_bad += 1
            if file.at_manager or fault.count > GIVE_UP_AFTER:
                self.unlink(file, source)  # neither peers nor the relay could read it there: the replica is worthless
            if source.sent_bad >= BAD_SOURCE and source.sent_bad >= source.sent_ok:
                self.needs.worker_is_bad(source)
        elif transfer.source == FROM_MANAGER and fault.count >= GIVE_UP_AFTER:
            self.let_go(file)
            self.needs.unfetchable(worker, file, reason)
            return
        if worker.key not in self.books.workers or not file.needed:
            return
        if file.available:
            self.bring(file, worker)
        else:
            self.needs.readers_lose(worker, file)  # that was the last replica: it must be made again first

    def on_relayed(self, file: FileRecord, transfer: Transfer, error: str) -> None:
        """The manager has (or has not) got its own copy of a temp."""
        file.relay = 0
        source = self.books.workers.get(transfer.dest)
        if not error:
            file.at_manager = True
            if not file.ready:
                self.needs.file_available(file)
        elif source is not None and file.name in source.files:
            self.unlink(file, source)
        self._kick(file)

    def end_upload(self, transfer_id: int) -> Transfer | None:
        """Forget an upload; its record, or None when it is not known any more."""
        transfer = self.books.transfers.pop(transfer_id, None)
        if transfer is not None:
            worker = self.books.workers.get(transfer.dest)
            if worker is not None:
                worker.outgoing -= 1
                self.books.look_at_leaving(worker)
        return transfer

    def _end(self, transfer_id: int, worker: WorkerRecord) -> Transfer | None:
        """Forget a transfer to this worker. None when it is not known (any more) or not this worker's."""
        transfer = self.books.transfers.get(transfer_id)
        if transfer is None or transfer.dest != worker.key or transfer.source == TO_MANAGER:
            return None
        del self.books.transfers[transfer_id]
        self._release_source(transfer)
        worker.incoming -= 1
        self.copies.room_again()
        return transfer

    def _release_source(self, transfer: Transfer) -> None:
        if transfer.source >= 0:
            source = self.books.workers.get(transfer.source)
            if source is not None:
                source.outgoing -= 1
                self.books.look_at_leaving(source)
        elif transfer.source != TO_MANAGER and transfer.file is not None:
            transfer.file.origin_busy -= 1

    # ------------------------------------------------------------------ waiting destinations

    def _kick(self, file: FileRecord) -> None:
        """Start as many waiting deliveries of a file as sources allow."""
        pending = file.pending
        while pending:
            key = pending[0]
            worker = self.books.workers.get(key)
            if worker is not None and file.replicas.get(key) == REPLICA_CREATING and not self._start(file, worker):
                return
            pending.popleft()
        self._waiting.pop(file.name, None)

    def kick_some(self) -> None:
        """A source became free: look at files that wait for one."""
        if self._waiting:
            for file in list(self._waiting.values())[:KICK_DEPTH]:
                self._kick(file)

    def retry_due(self) -> None:
        """Look again at files whose sources have rested, and for room for more copies of temps."""
        self.copies.look_again()
        while self._retry and self._retry[0][0] <= self.books.now:
            file = self.books.files.get(heappop(self._retry)[1])
            if file is not None:
                self._kick(file)

    def next_retry(self) -> float:
        """When retry_due has something to do, seconds since the epoch; infinity for never."""
        return self._retry[0][0] if self._retry else float("inf")

    # ------------------------------------------------------------------ losing

    def forget(self, file: FileRecord, worker: WorkerRecord) -> None:
        """The worker does not hold the file (any more), whatever we thought."""
        state = file.replicas.pop(worker.key, None)
        if state is None:
            return
        worker.files.pop(file.name, None)
        if file.faults is not None:
            file.faults.pop(worker.key, None)
        if state == REPLICA_READY:
            worker.cached_bytes -= max(0, file.size)
            before, worker.cache_mb = worker.cache_mb, max(0, worker.cached_bytes) // MB
            if worker.cache_mb < before and worker.key in self.books.workers:
                self.books.index.update(worker, self.books.now, grown=True)
            file.ready -= 1
            if not file.ready:
                self.needs.file_lost(file)
            else:
                self.copies.may_be_sole(file)
        self.books.look_at_leaving(worker)
        if file.ready and file.decl.kind == VINE_TEMP and len(file.replicas) < self.books.tuning.temp_replica_count:
            self.copies.wants(file)

    def unlink(self, file: FileRecord, worker: WorkerRecord) -> None:
        """Delete one replica."""
        if worker.key in file.replicas:
            if file.users:
                self.needs.readers_lose(worker, file)
            self.books.send(worker, Unlink((file.name,)))
            self.books.observer.unlink(self.books.now, worker.key, (file.name,))
            self._drop_transfers(file, worker)
            self.forget(file, worker)

    def unlink_everywhere(self, file: FileRecord) -> None:
        """Delete all replicas."""
        for key in list(file.replicas):
            self.unlink(file, self.books.workers[key])
        self.let_go(file)

    def _drop_transfers(self, file: FileRecord, worker: WorkerRecord) -> None:
        if worker.incoming and file.replicas.get(worker.key) == REPLICA_CREATING:
            for transfer in [t for t in self.books.transfers.values() if t.file is file and t.dest == worker.key]:
                self._end(transfer.id, worker)

    def worker_gone(self, worker: WorkerRecord) -> list[Transfer]:
        """Forget a worker's replicas and transfers; returns its uploads to the manager, which will not come, without
        those that ended tasks wait for."""
        books = self.books
        uploads = []
        moving = books.transfers.values() if worker.incoming or worker.outgoing else ()
        for transfer in [t for t in moving if worker.key in (t.dest, t.source)]:
            if transfer.source == TO_MANAGER:
                if transfer.purpose in ("output", "stdout"):
                    books.out.append(SenderGone(transfer.id))  # all of it may be here: its end will tell
                    continue
                uploads.append(transfer)
                del books.transfers[transfer.id]
                books.out.append(CancelUpload(transfer.id))
                if transfer.purpose == "relay" and transfer.file is not None:
                    transfer.file.relay = 0
            elif transfer.dest == worker.key:
                del books.transfers[transfer.id]
                self._release_source(transfer)
        for file in list(worker.files.values()):
            self.forget(file, worker)
        for name in worker.offered:
            holders = books.offered.get(name)
            if holders is not None:
                holders.discard(worker.key)
                if not holders:
                    del books.offered[name]
        self.kick_some()
        return uploads

"""The manager's pure core: events in, actions out.

Wires books, staging, lineage, dispatcher, completion and fleet together and routes each event to the one that owns it.
Never touches a socket, a file, a process, a clock or unseeded randomness: `now` and everything else come in as
arguments. A peer's message that contradicts the books is ignored or answered with an Unlink; it never raises.

Invariants (checked after every event in tests and in the simulator): invariants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from typing import Any

from taskvine_core.constants import VINE_RESULT_INPUT_MISSING, VINE_TEMP
from taskvine_core.logs.observer import NullObserver, Observer
from taskvine_core.manager import events as ev
from taskvine_core.manager import report
from taskvine_core.manager.balance import Balance
from taskvine_core.manager.books import Books
from taskvine_core.manager.categories import Categories
from taskvine_core.manager.completion import MAX_STRIKES, Completion
from taskvine_core.manager.contents import Contents
from taskvine_core.manager.demand import Askers
from taskvine_core.manager.dispatcher import Dispatcher
from taskvine_core.manager.events import Action, Event
from taskvine_core.manager.fleet import Fleet
from taskvine_core.manager.lineage import Lineage
from taskvine_core.manager.placement import Placement
from taskvine_core.manager.records import FileRecord, TaskRecord, Transfer, WorkerRecord
from taskvine_core.manager.staging import Staging
from taskvine_core.manager.stats import ManagerStats
from taskvine_core.manager.tuning import Tuning
from taskvine_core.model.platforms import path_for
from taskvine_core.protocol import messages as msg

#: A core that has nothing planned still wants to be asked this often (keepalive, blocked hosts).
IDLE_TICK_S = 1.0


class ManagerCore:
    """One manager. ``handle`` is the only way in for events; attributes are for reading."""

    def __init__(self, *, manager_id: str, name: str = "", observer: Observer | None = None, rng: Random,
                 new_task_id: Callable[[], int], data_port: int = 0) -> None:
        books = self.books = Books(observer or NullObserver(), rng, new_task_id)
        self.placement = Placement(books.tuning, books.categories, books.files, books.workers, books.index,
                                   books.ready, books.rng)
        self.lineage = Lineage(books, self)
        self.staging = Staging(books, self)
        self.lineage.staging = self.staging
        self.contents = Contents(books, self.staging, self.lineage)
        self.dispatcher = Dispatcher(books, self.placement, self.lineage, self.staging)
        self.groups = self.dispatcher.groups
        self.balance = Balance(books, self.staging)
        self.completion = Completion(books, self.dispatcher, self.staging, self.balance)
        self.fleet = Fleet(books, self.dispatcher, self.placement, self.staging, manager_id, name, self._lost_uploads)
        self.fleet.data_port = data_port
        self.manager_id = manager_id
        self.properties: dict[str, str] = {}
        self.tasks_left = 0
        self.askers = Askers()
        self._on_event: Mapping[type, Callable[[Any], object]] = self._event_table()
        self._on_message: Mapping[type, Callable[[WorkerRecord, Any], object]] = self._message_table()

    # ------------------------------------------------------------------ the one way in

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event; returns what is to be done, in order."""
        return self.handle_all((event,), now)

    def handle_all(self, events: Iterable[Event], now: float) -> list[Action]:
        """Take in a batch of events that happened in this order, then place tasks once."""
        books = self.books
        books.now = now
        on_event = self._on_event
        for event in events:
            on_event[type(event)](event)
        if self.contents.wanted:
            self.contents.settle()
        self.groups.settle()
        self.dispatcher.dispatch()
        if self.books.leaving:
            self.fleet.check_draining()
        self.staging.copies.start_some()
        out, books.out = books.out, []
        return out

    def next_deadline(self) -> float:
        """When the core wants a Tick at the latest, seconds since the epoch."""
        return min(self.dispatcher.next_due(), self.staging.next_retry(), self.fleet.next_patrol(),
                   self.books.now + IDLE_TICK_S)

    def _event_table(self) -> Mapping[type, Callable[[Any], object]]:
        fleet = self.fleet
        return {
            ev.MessageArrived: self._message_arrived,
            ev.Submit: lambda e: self.dispatcher.submit(TaskRecord(e.task_id, e.spec, self.books.now)),
            ev.Declare: self._declare,
            ev.Tick: self._tick,
            ev.WorkerJoined: fleet.join,
            ev.WorkerGone: self._worker_gone,
            ev.Cancel: lambda e: self.cancel(e.task_ids),
            ev.Undeclare: self._undeclare,
            ev.Prune: self._prune,
            ev.WantContents: lambda e: self.contents.want(e.name),
            ev.BlockHost: lambda e: fleet.block(e.host, e.until),
            ev.UnblockHost: lambda e: fleet.unblock(e.host),
            ev.DrainHost: lambda e: fleet.drain_host(e.host, e.drain),
            ev.RetireWorkers: lambda e: self.retire_workers(e.worker_ids, e.reason),
            ev.ShutdownIdle: lambda e: fleet.shutdown_idle(e.how_many),
            ev.CloseDown: lambda e: fleet.close_down(e.exit_workers),
            ev.LocalMissing: self._local_missing,
            ev.UploadEnded: self._upload_ended,
            ev.Stored: self.completion.on_stored,
        }

    def _message_table(self) -> Mapping[type, Callable[[WorkerRecord, Any], object]]:
        return {
            msg.TaskDone: self._task_done,
            msg.CacheUpdate: self.staging.on_update,
            msg.CacheInvalid: self.staging.on_invalid,
            msg.CacheGone: self._cache_gone,
            msg.CacheOffer: self.fleet.on_offer,
            msg.ResourceReport: self.fleet.on_report,
            msg.Recalled: self._recalled,
            msg.WatchData: self._watch_data,
            msg.UploadFailed: self._upload_failed,
            msg.LeaveRequest: self.fleet.on_leave_request,
            msg.Pong: lambda worker, message: None,
        }

    # ------------------------------------------------------------------ from the program

    def _declare(self, event: ev.Declare) -> None:
        name = event.decl.name
        file = self.books.files.get(name)
        if file is not None:
            file.declared = True
            return
        self.books.files[name] = FileRecord(event.decl)
        self.books.observer.file_declared(self.books.now, name, event.decl.source, event.decl.size)
        mini = event.decl.mini_task
        for mount in mini.inputs if mini is not None else ():
            self.books.files[mount.name].lineage_refs += 1  # its inputs are needed whenever it is made
        if self.books.offered:
            self.fleet.declared(name)

    def _undeclare(self, event: ev.Undeclare) -> None:
        file = self.books.files.get(event.name)
        if file is not None:
            self.lineage.undeclare(file)

    def _prune(self, event: ev.Prune) -> None:
        file = self.books.files.get(event.name)
        if file is not None:
            self.staging.unlink_everywhere(file)

    def cancel(self, task_ids: Iterable[int]) -> int:
        """Cancel user tasks; how many were not too late."""
        found = (self.books.tasks.get(task_id) for task_id in task_ids)
        return sum(self.dispatcher.cancel(task) for task in found if task is not None)

    def retire_workers(self, worker_ids: Iterable[str], reason: str) -> dict[str, str]:
        """Drain workers by id; returns id -> why not for those that cannot be."""
        refused = {}
        for worker_id in worker_ids:
            worker = self.books.by_worker_id.get(worker_id)
            if worker is None:
                refused[worker_id] = "not connected"
            else:
                self.fleet.drain(worker, reason)
        return refused

    # ------------------------------------------------------------------ from workers

    def _message_arrived(self, event: ev.MessageArrived) -> None:
        worker = self.books.workers.get(event.key)
        if worker is None:
            return
        worker.last_heard = self.books.now
        handler = self._on_message.get(type(event.message))
        if handler is not None:
            handler(worker, event.message)

    def _task_done(self, worker: WorkerRecord, message: msg.TaskDone) -> None:
        self.completion.on_done(worker, message)
        if worker.strikes >= MAX_STRIKES:
            self.fleet.remove_bad(worker)

    def _worker_gone(self, event: ev.WorkerGone) -> None:
        worker = self.books.workers.get(event.key)
        if worker is not None:
            self.fleet.remove(worker, "FAILURE")

    def _cache_gone(self, worker: WorkerRecord, message: msg.CacheGone) -> None:
        for name in message.names:
            file = self.books.files.get(name)
            if file is not None and worker.key in file.replicas:
                self.staging.forget(file, worker)
                self._restage(file, worker)

    def _restage(self, file: FileRecord, worker: WorkerRecord) -> None:
        """Tasks sent there that have not started still need the file: bring it again, or have them back."""
        if not file.users:
            return
        if file.available:
            if self.dispatcher.tasks_at(worker, file):
                self.staging.bring(file, worker)
        else:
            self.readers_lose(worker, file)

    def readers_lose(self, worker: WorkerRecord, file: FileRecord) -> None:
        """Only the worker knows which of them have started (those keep their links): it hands back the others."""
        tasks = self.dispatcher.tasks_at(worker, file)
        if tasks:
            self.books.send(worker, msg.Recall(tuple(task.id for task in tasks)))

    def _recalled(self, worker: WorkerRecord, message: msg.Recalled) -> None:
        for task_id in message.task_ids:
            task = worker.queued.get(task_id) or worker.following.get(task_id) or worker.running.get(task_id)
            if task is not None:
                self.dispatcher.take_back(task)

    def _watch_data(self, worker: WorkerRecord, message: msg.WatchData) -> None:
        task = self.books.tasks.get(message.task_id)
        file = self.books.files.get(message.name)
        if (task is not None and file is not None and task.sent == message.attempt and task.run is not None
                and task.run.worker is worker and any(m.name == message.name for m in task.spec.outputs)):
            self.books.out.append(ev.AppendWatched(file.decl.source, message.offset, message.data))

    # ------------------------------------------------------------------ transfers to the manager

    def _upload_failed(self, worker: WorkerRecord, message: msg.UploadFailed) -> None:
        transfer = self.books.transfers.get(message.transfer_id)
        if transfer is not None and transfer.dest == worker.key:
            self.books.out.append(ev.CancelUpload(message.transfer_id))
            self._upload_ended(ev.UploadEnded(message.transfer_id, 0, b"", False,
                                              message.reason or "the worker could not send it"))

    def _upload_ended(self, event: ev.UploadEnded) -> None:
        transfer = self.staging.end_upload(event.transfer_id)
        if transfer is None:
            return
        if transfer.purpose == "relay":
            if transfer.file is not None:
                self.staging.on_relayed(transfer.file, transfer, event.error)
        elif transfer.purpose == "contents":
            self.books.out.append(ev.ContentsArrived(transfer.name, transfer.id, event.error))
        else:
            self.completion.on_upload_ended(transfer, event)

    def _lost_uploads(self, transfers: list[Transfer]) -> None:
        for transfer in transfers:
            if transfer.purpose == "contents":
                self.contents.upload_lost(transfer)

    def _local_missing(self, event: ev.LocalMissing) -> None:
        """A local input does not exist: its tasks fail with "input missing", wherever they were sent."""
        file = self.books.files.get(event.name)
        if file is None:
            return
        for key in list(file.replicas):
            worker = self.books.workers[key]
            if event.path and path_for(file.decl.source, worker.hello.os, worker.hello.arch) != event.path:
                continue
            for task in self._readers_at(worker, file):
                self.books.send(worker, msg.Kill((task.id,)))
                self.dispatcher.release(task)
                assert task.run is not None
                task.run.result, task.run.exit_code, task.run.error = VINE_RESULT_INPUT_MISSING, -1, event.reason
                self.dispatcher.finish(task)
            self.staging.unlink(file, worker)
        if not event.path:
            file.at_manager = False

    def _readers_at(self, worker: WorkerRecord, file: FileRecord) -> Iterator[TaskRecord]:
        """Tasks sent to a worker that read the file, without those that ended with one before them."""
        for task in self.dispatcher.tasks_at(worker, file):
            if task.run is not None and task.run.worker is worker:
                yield task

    # ------------------------------------------------------------------ what staging tells (Needs)

    def file_available(self, file: FileRecord) -> None:
        """A first replica is ready."""
        if file.waiters and file.decl.kind == VINE_TEMP:
            self.lineage.wake(file)
        self.contents.available(file)

    def replica_arrived(self, file: FileRecord, worker: WorkerRecord) -> None:
        """One more replica is complete."""
        self.balance.arrived(file, worker)

    def file_lost(self, file: FileRecord) -> None:
        """The last replica is gone."""
        self.lineage.lost(file)
        if file.decl.kind != VINE_TEMP or file.at_manager:
            return
        for key in list(file.replicas):  # workers it was on its way to
            worker = self.books.workers.get(key)
            if worker is not None:
                self.staging.unlink(file, worker)

    def cannot_take(self, worker: WorkerRecord, file: FileRecord, reason: str) -> None:
        """The worker cannot hold the file: run its tasks elsewhere."""
        self.dispatcher.rest_worker(worker)
        for task in self._readers_at(worker, file):
            self.dispatcher.forsake(task, f"input {file.name}: {reason}", tell_worker=True)

    def unfetchable(self, worker: WorkerRecord, file: FileRecord, reason: str) -> None:
        """The file cannot be had: its tasks count it as forsaken and try later."""
        for task in self._readers_at(worker, file):
            self.dispatcher.forsake(task, f"input {file.decl.source or file.name}: {reason}", tell_worker=True)

    def worker_is_bad(self, worker: WorkerRecord) -> None:
        """Its transfers keep failing."""
        self.fleet.remove_bad(worker)

    # ------------------------------------------------------------------ what lineage asks (Queueing)

    def enqueue(self, task: TaskRecord, *, front: bool) -> None:
        """All inputs exist."""
        self.dispatcher.enqueue(task, front=front)

    def fail_unplaced(self, task: TaskRecord, reason: str) -> None:
        """An input can never be had."""
        self.dispatcher.fail_unplaced(task, reason)

    def call_off(self, task: TaskRecord) -> None:
        """Nobody needs what it makes."""
        self.dispatcher.stop(task, "nobody needs what it makes any more")

    # ------------------------------------------------------------------ time

    def _tick(self, event: ev.Tick) -> None:
        self.dispatcher.due()
        self.staging.retry_due()
        self.fleet.patrol()
        self.books.index.wake(self.books.now)

    # ------------------------------------------------------------------ for the program to read

    @property
    def stats(self) -> ManagerStats:
        """Counters, and gauges as of the last refresh_stats()."""
        return self.books.stats

    @property
    def tuning(self) -> Tuning:
        """Parameters of section 8."""
        return self.books.tuning

    def tune(self, name: str, value: float) -> int:
        """Set a parameter; 0 ok, -1 unknown. Allocations already worked out are forgotten."""
        answer = self.books.tuning.set(name, value)
        if answer == 0 and name.replace("_", "-").startswith("disconnect-slow-worker"):
            self.books.categories.set_fast_abort(None, self.books.tuning.disconnect_slow_worker_factor)
        self.books.categories.invalidate()
        self.books.ready.unsaturate()
        return answer

    @property
    def categories(self) -> Categories:
        """All categories."""
        return self.books.categories

    @property
    def tasks(self) -> dict[int, TaskRecord]:
        """Unfinished tasks by id."""
        return self.books.tasks

    @property
    def files(self) -> dict[str, FileRecord]:
        """Files by cached name."""
        return self.books.files

    @property
    def workers(self) -> dict[int, WorkerRecord]:
        """Connected workers by connection."""
        return self.books.workers

    def replica_count(self, name: str) -> int:
        """Workers that hold a complete replica."""
        file = self.books.files.get(name)
        return file.ready if file is not None else 0

    def drain_host(self, host: str, drain: bool) -> int:
        """Drain (or not) the workers of a host; how many."""
        return self.fleet.drain_host(host, drain)

    def shutdown_workers(self, how_many: int) -> int:
        """Ask idle workers to exit (0 = all); how many were asked."""
        return self.fleet.shutdown_idle(how_many)

    def task_state(self, task_id: int) -> int | None:
        """VINE_TASK_* of an unfinished task, None for others."""
        task = self.books.tasks.get(task_id)
        return task.state if task is not None else None

    @property
    def user_tasks(self) -> int:
        """User tasks submitted and not yet completed."""
        return self.dispatcher.user_tasks

    def idle_for_program(self) -> bool:
        """Nothing ready, running or waiting for retrieval (reference, section 9.1, point 12)."""
        return not self.books.tasks

    def hungry(self) -> int:
        """How many more tasks the manager would like to have (section 9.7)."""
        return report.hungry_now(self.books)

    def status(self, what: str) -> list[dict[str, Any]]:
        """Section 20.4: "manager", "tasks", "workers", "categories"; [] for anything else."""
        return report.status(self, what)

    def refresh_stats(self) -> None:
        """Recompute the gauges in ``books.stats``."""
        report.refresh_stats(self)

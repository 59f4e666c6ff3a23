"""The worker's decisions: ``handle(event, now) -> actions``.

Owns the meaning of every order and the fate of every run and object. Must not touch files, sockets, processes or
clocks. What keeps its own books lives next door: cache.py, fetches.py, runs.py, life.py.

Invariants (``check_invariants``): allocations never exceed the totals; a run that starts has all inputs READY; a
killed run is never reported; every Dispatch that is neither killed, recalled nor cut off by a disconnect is answered
by exactly one TaskDone; every Fetch and MiniTask by exactly one CacheUpdate or CacheInvalid unless unlinked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from taskvine_core.constants import (
    VINE_CACHE_LEVEL_TASK,
    VINE_CACHE_LEVEL_WORKFLOW,
    VINE_FAILURE_ONLY,
    VINE_RESULT_FORSAKEN,
    VINE_RESULT_MAX_END_TIME,
    VINE_RESULT_MAX_WALL_TIME,
    VINE_RESULT_SANDBOX_EXHAUSTION,
    VINE_RESULT_STDOUT_MISSING,
    VINE_RESULT_SUCCESS,
    VINE_SUCCESS_ONLY,
    VINE_WATCH,
    combine_results,
)
from taskvine_core.errors import SecurityError, StateError
from taskvine_core.model.files import INLINE_MAX_BYTES
from taskvine_core.model.names import check_cache_name, check_sandbox_path
from taskvine_core.model.tasks import KIND_PYTHON, RESULT_REMOTE, TaskSpec
from taskvine_core.protocol import messages as m
from taskvine_core.resources import ZERO, Resources
from taskvine_core.worker import events as e
from taskvine_core.worker.cache import CachedObject, CacheIndex
from taskvine_core.worker.fetches import FetchQueue
from taskvine_core.worker.life import NEVER, TERM_GRACE_S, Life, LifeSettings
from taskvine_core.worker.machines import COLLECTING, CREATING, DELETING, KILLED, QUEUED, READY, RUNNING, STARTING
from taskvine_core.worker.runs import Run, RunTable

BYTES_PER_MB = 1 << 20
#: How often running tasks are looked at for limits, watched outputs and memory.
LOOK_INTERVAL_S = 1.0
#: A sandbox is measured at most this often: a scan reads every directory (reference, section 13.6).
DISK_INTERVAL_S = 5.0
#: Totals and cache size are told when changed, at most this often.
REPORT_INTERVAL_S = 30.0
#: Exit code reported for a task killed at a limit (reference, section 6).
LIMIT_EXIT_CODE = 9
#: The manager said nothing yet about how much stdout to keep.
DEFAULT_MAX_STDOUT_BYTES = 1 << 30


class CoreSettings(NamedTuple):
    """What the worker offers. ``tag`` distinguishes its own object names from those of other workers."""

    total: Resources
    tag: str
    max_transfers: int = 10
    life: LifeSettings = LifeSettings()


class WorkerCore:
    """The pure core of one worker process.

    Args:
        settings: what it offers and its timers.
        kept: objects found in an adopted workspace (level forever).
        now: seconds since the epoch.
    """

    def __init__(self, settings: CoreSettings, kept: tuple[m.CacheEntry, ...], now: float) -> None:
        self.settings = settings
        self.life = Life(settings.life, now)
        self.cache = CacheIndex()
        self.fetches = FetchQueue(settings.max_transfers)
        self.runs = RunTable(settings.total)
        self.manager_id = ""
        self.max_stdout_bytes = DEFAULT_MAX_STDOUT_BYTES
        self._fetch_of: dict[int, CachedObject] = {}   # serial -> object still wanted from a fetch
        self._next_serial = 1
        self._next_run = 1
        self._look_at = NEVER
        self._report_at = 0.0
        self._reported_mb = -1
        self._uploads = 0
        self._out: list[e.Action] = []
        for entry in kept:
            self.cache.store(entry.name, entry.level, entry.size_bytes, entry.sha256, now)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            e.Connected: self._on_connected, e.ConnectFailed: self._on_connect_failed,
            e.Disconnected: self._on_disconnected, e.Received: self._on_received, e.Started: self._on_started,
            e.StartFailed: self._on_start_failed, e.Exited: self._on_exited, e.Collected: self._on_collected,
            e.ObjectArrived: self._on_arrived, e.ObjectFailed: self._on_object_failed,
            e.FetchEnded: self._on_fetch_ended, e.StoreFailed: self._on_store_failed,
            e.UploadEnded: self._on_upload_ended, e.DiskMeasured: self._on_disk, e.MemoryMeasured: self._on_memory,
            e.WatchRead: self._on_watch_read, e.Terminate: self._on_terminate, e.Tick: self._on_tick,
        }
        self._orders: dict[type, Callable[[Any, float], None]] = {
            m.Welcome: self._welcome, m.PutInline: self._put_inline, m.Fetch: self._fetch, m.MiniTask: self._mini_task,
            m.SetLevel: self._set_level, m.Unlink: self._unlink, m.Dispatch: self._dispatch, m.Kill: self._kill,
            m.Recall: self._recall, m.Upload: self._upload, m.Ping: self._ping, m.Drain: self._drain,
            m.Release: self._release,
        }

    # -------------------------------------------------------------------------------------------- entry points

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Digest one event; returns what to do, in order."""
        self._handlers[type(event)](event, now)
        self._start_ready(now)
        if self._out:
            out, self._out = self._out, []
            return out
        return []

    def next_wakeup(self) -> float:
        """When a Tick is due, seconds since the epoch; infinity when nothing is timed."""
        life = self.life
        due = min(life.leave_by, self._look_at, life.idle_at(self.busy))
        if life.connected:
            if self._cache_mb() != self._reported_mb:
                due = min(due, self._report_at)
            if not life.draining:
                due = min(due, life.drain_at)
        else:
            due = min(due, life.connect_at, life.give_up_at)
        return min(due, self.settings.life.end_time or NEVER)

    @property
    def busy(self) -> bool:
        """Is there anything the worker would not want to be interrupted in?"""
        return bool(self.runs.runs) or self.fetches.busy or self._uploads > 0

    # -------------------------------------------------------------------------------------------- connection

    def _on_connected(self, event: e.Connected, now: float) -> None:
        self.life.connected = True
        self._send(event.hello)

    def _on_connect_failed(self, event: e.ConnectFailed, now: float) -> None:
        self.life.failed(now, event.reason if event.denied else "")
        if now >= self.life.give_up_at:
            self._give_up()

    def _give_up(self) -> None:
        if self.life.denied:
            self._out.append(e.Exit(1, f"no manager accepted this worker: {self.life.denied}"))
        else:
            self._out.append(e.Exit(0, "no manager could be reached within the connect timeout"))

    def _on_disconnected(self, event: e.Disconnected, now: float) -> None:
        """All runs die; objects stay until the next manager says who it is, except those of level task."""
        self._abandon_everything(now)
        self.life.lost(now)
        if self.settings.life.single_shot or self.life.draining:
            self._out.append(e.Exit(0, event.reason))

    def _abandon_everything(self, now: float) -> None:
        for run in list(self.runs.runs.values()):
            self._kill_run(run)
        for obj in list(self.cache.objects.values()):
            if obj.state == CREATING:
                self._unlink_object(obj, None)
            elif obj.state == READY:
                obj.needed_by.clear()
                obj.serving = 0
        self._uploads = 0
        self._look_at = NEVER if not self.runs.active else now + LOOK_INTERVAL_S
        self._drop_levels(VINE_CACHE_LEVEL_TASK)

    def _drop_levels(self, level: int) -> None:
        gone = self.cache.of_level_at_most(level)
        for obj in gone:
            self.cache.move(obj, "unlinked")
        if gone:
            self._out.append(e.RemoveObjects(tuple(o.name for o in gone)))

    def _welcome(self, order: m.Welcome, now: float) -> None:
        if self.manager_id and order.manager_id != self.manager_id:
            self._drop_levels(VINE_CACHE_LEVEL_WORKFLOW)
        self.manager_id = order.manager_id
        self.max_stdout_bytes = order.max_stdout_bytes
        self.life.welcomed(now)
        entries = tuple(m.CacheEntry(o.name, o.size_bytes, o.level, o.sha256) for o in self.cache.ready())
        self._send(m.CacheOffer(entries))
        self._reported_mb = -1
        self._report(now)
        if self.life.draining:
            self._ask_to_leave(self.life.draining)

    def _release(self, order: m.Release, now: float) -> None:
        reason = order.reason or "released by the manager"
        self._abandon_everything(now)
        self._out.append(e.Disconnect(reason))
        self.life.lost(now)
        if order.exit or self.settings.life.single_shot or self.life.draining:
            self._out.append(e.Exit(0, reason))

    def _ping(self, order: m.Ping, now: float) -> None:
        self._send(m.Pong(order.nonce))

    def _on_received(self, event: e.Received, now: float) -> None:
        orders = self._orders
        for message in event.messages:
            handler = orders.get(type(message))
            if handler is None:
                self._out.append(e.Disconnect(f"the manager sent a {type(message).__name__}, which only workers send"))
                self._on_disconnected(e.Disconnected("protocol fault of the manager"), now)
                return
            handler(message, now)

    # -------------------------------------------------------------------------------------------- objects

    def _serial(self) -> int:
        serial = self._next_serial
        self._next_serial += 1
        return serial

    def _send(self, message: m.Message) -> None:
        self._out.append(e.Send(message))

    def _refused(self, name: str, transfer_id: int) -> bool:
        """Answer an order about an unsafe name."""
        try:
            check_cache_name(name)
        except SecurityError as error:
            self._send(m.CacheInvalid(name, transfer_id, m.BLAME_SELF, str(error)))
            return True
        return False

    def _put_inline(self, order: m.PutInline, now: float) -> None:
        if self._refused(order.name, 0):
            return
        size = len(order.data)
        if not self._make_room(size):
            self._send(m.CacheInvalid(order.name, 0, m.BLAME_SELF, self._no_room(order.name, size)))
            return
        self._out.append(e.StoreInline(*order))
        self._object_here(order.name, order.level, size, order.sha256, now)

    def _object_here(self, name: str, level: int, size: int, sha256: bytes, now: float) -> CachedObject:
        """An object was put or produced here, whatever was known of it; answers a fetch of it still under way."""
        old = self.cache.get(name)
        waiting = old is not None and old.state == CREATING
        if old is not None:
            self._stop_arrival(old)
        obj = self.cache.store(name, level, size, sha256, now)
        if waiting:
            self._send(m.CacheUpdate(name, obj.transfer_id, size, sha256, now, 0.0))
            self._tell_waiting(obj)
        return obj

    def _stop_arrival(self, obj: CachedObject) -> None:
        serial = obj.serial
        if not serial:
            return
        obj.serial = 0
        if self._fetch_of.pop(serial, None) is None:
            self._kill_maker(serial)
            return
        job = self.fetches.drop(serial)
        if job is not None:
            self._out.append(e.CancelFetch(job))

    def _kill_maker(self, serial: int) -> None:
        for run in list(self.runs.runs.values()):
            if run.makes and run.serial == serial:
                self._kill_run(run)

    def _begin_object(self, name: str, transfer_id: int, level: int, mode: int, now: float) -> CachedObject | None:
        """Prepare the arrival of an object; None when the order is already answered."""
        if self._refused(name, transfer_id):
            return None
        obj = self.cache.get(name)
        if obj is not None and obj.state == READY:
            obj.level = max(obj.level, level)
            self._send(m.CacheUpdate(name, transfer_id, obj.size_bytes, obj.sha256, now, 0.0))
            return None
        if obj is not None:
            self._stop_arrival(obj)
        obj = self.cache.create(name, level, mode, now)
        obj.transfer_id = transfer_id
        obj.serial = self._serial()
        return obj

    def _fetch(self, order: m.Fetch, now: float) -> None:
        obj = self._begin_object(order.name, order.transfer_id, order.level, order.mode, now)
        if obj is None:
            return
        size = max(0, order.size_bytes)
        if not self._make_room(size - obj.size_bytes):
            self._fail_object(obj, m.BLAME_SELF, self._no_room(order.name, size))
            return
        self.cache.announce(obj, size)
        self._fetch_of[obj.serial] = obj
        self.fetches.add(obj.serial, order)

    def _mini_task(self, order: m.MiniTask, now: float) -> None:
        obj = self._begin_object(order.name, order.transfer_id, order.level, order.mode, now)
        if obj is None:
            return
        outputs = (e.OutputOrder(order.name, order.source, order.level, False, order.mode),)
        run = Run(self._next_run, -1, 0, order.spec, ZERO, (), outputs, order.name, obj.serial)
        self._next_run += 1
        problem = _unsafe(order.spec, outputs) or self._attach_inputs(run)
        if problem:
            self._fail_object(obj, m.BLAME_OBJECT, f"cannot make {order.name}: {problem}")
            return
        self.runs.add(run)

    def _on_arrived(self, event: e.ObjectArrived, now: float) -> None:
        obj = self._fetch_of.pop(event.serial, None)
        self.fetches.reported(event.serial)
        if obj is None or obj.serial != event.serial:
            self._out.append(e.Discard(event.serial))
            return
        if obj.state == DELETING:
            self.cache.move(obj, "arrived")
            self._out.append(e.Discard(event.serial))
            return
        if not self._make_room(event.size_bytes - obj.size_bytes):
            self._out.append(e.Discard(event.serial))
            self._fail_object(obj, m.BLAME_SELF, self._no_room(obj.name, event.size_bytes))
            return
        self._out.append(e.Commit(event.serial, obj.name, obj.level, obj.mode or event.mode, event.size_bytes,
                                  event.sha256, event.is_dir))
        self.cache.finish(obj, "arrived", event.size_bytes, event.sha256, now)
        self._send(m.CacheUpdate(obj.name, obj.transfer_id, event.size_bytes, event.sha256, event.start, event.wall_s))
        self._tell_waiting(obj)

    def _on_object_failed(self, event: e.ObjectFailed, now: float) -> None:
        obj = self._fetch_of.pop(event.serial, None)
        self.fetches.reported(event.serial)
        self._out.append(e.Discard(event.serial))
        if obj is not None and obj.serial == event.serial:
            self._fail_object(obj, event.blame, event.reason)

    def _on_fetch_ended(self, event: e.FetchEnded, now: float) -> None:
        for serial in self.fetches.ended(event.job):
            self._on_object_failed(e.ObjectFailed(serial, m.BLAME_SELF, "the transfer ended without a result"), now)

    def _fail_object(self, obj: CachedObject, blame: int, reason: str) -> None:
        """An arrival failed: tell the manager unless it unlinked the object, and give back the tasks that need it."""
        unlinked = obj.state == DELETING
        obj.serial = 0
        self.cache.move(obj, "failed")
        if not unlinked:
            self._send(m.CacheInvalid(obj.name, obj.transfer_id, blame, reason))
        self._forsake_users(obj, f"input {obj.name} did not arrive: {reason}")

    def _tell_waiting(self, obj: CachedObject) -> None:
        for number in obj.needed_by:
            run = self.runs.runs.get(number)
            if run is not None and run.state == QUEUED and run.missing_inputs:
                for mount in run.spec.inputs:
                    if mount.name == obj.name:
                        self.runs.input_ready(run)

    def _forsake_users(self, obj: CachedObject, reason: str) -> None:
        """Queued runs lose this input; started ones keep their hard links."""
        for number in list(obj.needed_by):
            run = self.runs.runs.get(number)
            if run is not None and run.state == QUEUED:
                self._refuse(run, reason)

    def _set_level(self, order: m.SetLevel, now: float) -> None:
        obj = self.cache.get(order.name)
        if obj is not None:
            obj.level = order.level
            if obj.state == READY:
                self._out.append(e.Relevel(order.name, order.level))

    def _unlink(self, order: m.Unlink, now: float) -> None:
        gone: list[str] = []
        for name in order.names:
            obj = self.cache.get(name)
            if obj is not None:
                self._unlink_object(obj, gone)
        if gone:
            self._out.append(e.RemoveObjects(tuple(gone)))

    def _unlink_object(self, obj: CachedObject, gone: list[str] | None) -> None:
        """Drop one object. A fetch under way ends it as DELETING until its thread has noticed."""
        if obj.state == DELETING:
            return
        if obj.state == READY:
            self.cache.move(obj, "unlinked")
            if gone is not None:
                gone.append(obj.name)
        else:
            serial, under_way = obj.serial, obj.serial in self._fetch_of and not self.fetches.waits(obj.serial)
            self.cache.move(obj, "unlinked")
            self._stop_arrival(obj)
            if under_way:
                obj.serial = serial
                self._fetch_of[serial] = obj
            else:
                self.cache.move(obj, "failed")
        self._forsake_users(obj, f"input {obj.name} was unlinked before the task started")

    def _on_store_failed(self, event: e.StoreFailed, now: float) -> None:
        obj = self.cache.get(event.name)
        if obj is None or obj.state != READY:
            return
        self._lose(obj, event.reason, tell=not event.asked)
        if event.asked:
            self._send(m.CacheInvalid(event.name, obj.transfer_id, event.blame, event.reason))

    def _lose(self, obj: CachedObject, reason: str, *, tell: bool = True) -> None:
        """A READY object turned out to be damaged or missing."""
        self.cache.move(obj, "lost")
        self._out.append(e.RemoveObjects((obj.name,)))
        if tell:
            self._send(m.CacheGone((obj.name,), reason))
        self._forsake_users(obj, f"input {obj.name} was lost: {reason}")

    # -------------------------------------------------------------------------------------------- room

    def _cache_mb(self) -> int:
        return -(-self.cache.used_bytes // BYTES_PER_MB)

    def _no_room(self, name: str, size: int) -> str:
        return (f"no room for {name} ({size} bytes): the cache holds {self.cache.used_bytes} bytes in use of "
                f"{self.settings.total.disk_mb} MB")

    def _make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit in the disk bound; False when that is impossible."""
        bound = self.settings.total.disk_mb * BYTES_PER_MB
        excess = self.cache.used_bytes + size - bound
        if excess <= 0 or size <= 0:
            return True
        victims = self.cache.victims(excess)
        if sum(o.size_bytes for o in victims) < excess:
            return False
        self._evict(victims)
        return True

    def _evict(self, victims: list[CachedObject]) -> None:
        if not victims:
            return
        names = tuple(o.name for o in victims)
        for obj in victims:
            self.cache.move(obj, "evicted")
        self._out.append(e.RemoveObjects(names))
        self._send(m.CacheGone(names, "evicted to make room"))

    def _shrink_after_output(self, now: float) -> None:
        """Outputs cannot be refused: evict what is free; when that is not enough, ask to leave."""
        excess = self.cache.used_bytes - self.settings.total.disk_mb * BYTES_PER_MB
        if excess <= 0:
            return
        self._evict(self.cache.victims(excess))
        if self.cache.used_bytes > self.settings.total.disk_mb * BYTES_PER_MB and not self.life.draining:
            self.life.draining = "disk"
            self._ask_to_leave("disk")

    def _report(self, now: float) -> None:
        cache_mb = self._cache_mb()
        self._reported_mb, self._report_at = cache_mb, now + REPORT_INTERVAL_S
        self._out.append(e.SendReport(self.settings.total, cache_mb))

    # -------------------------------------------------------------------------------------------- uploads

    def _upload(self, order: m.Upload, now: float) -> None:
        obj = self.cache.get(order.name)
        if obj is None or obj.state != READY:
            self._send(m.UploadFailed(order.transfer_id, f"{order.name} is not in this worker's cache"))
            return
        obj.serving += 1
        obj.last_used = now
        self._uploads += 1
        self._out.append(e.StartUpload(order.transfer_id, order.name, order.timeout_s))

    def _on_upload_ended(self, event: e.UploadEnded, now: float) -> None:
        self._uploads = max(0, self._uploads - 1)
        obj = self.cache.get(event.name)
        if obj is not None:
            obj.serving = max(0, obj.serving - 1)
        if event.error and self.life.connected:
            self._send(m.UploadFailed(event.transfer_id, event.error))
        self._idle_from(now)

    # -------------------------------------------------------------------------------------------- runs

    def _dispatch(self, order: m.Dispatch, now: float) -> None:
        old = self.runs.of_task.get(order.task_id)
        if old is not None:
            if old.attempt == order.attempt:
                return          # said twice: it is already here
            self._kill_run(old)
        spec = order.spec
        levels, inline = order.output_levels, order.want_inline
        outputs = tuple([e.OutputOrder(out.name, out.remote, levels[i] if i < len(levels) else VINE_CACHE_LEVEL_TASK,
                                       out.name in inline) for i, out in enumerate(spec.outputs)])
        run = Run(self._next_run, order.task_id, order.attempt, spec, order.allocation, order.gpus, outputs)
        self._next_run += 1
        if self.life.asked_to_leave == "idle":
            self.life.asked_to_leave = ""
        problem = _unsafe(spec, outputs)
        if not problem and not order.allocation.fits_in(self.settings.total):
            problem = f"its allocation {tuple(order.allocation)} is larger than the worker {tuple(self.settings.total)}"
        if not problem and min(order.allocation) < 0:
            problem = f"its allocation {tuple(order.allocation)} is not complete"
        problem = problem or self._attach_inputs(run)
        if problem:
            self._finish_unstarted(run, problem, now)
        else:
            self.runs.add(run)

    def _attach_inputs(self, run: Run) -> str:
        """Note who needs what; returns the problem when an input is not even on its way."""
        objects = self.cache.objects
        for mount in run.spec.inputs:
            obj = objects.get(mount.name)
            if obj is None or obj.state == DELETING:
                self.cache.release([i.name for i in run.spec.inputs], run.number)
                return f"input {mount.name} is not at this worker"
            if obj.state != READY:
                run.missing_inputs += 1
            obj.needed_by.add(run.number)
        return ""

    def _start_ready(self, now: float) -> None:
        if self.fetches.busy:
            self._out.extend(self.fetches.start_ready())
        if self.life.draining or not self.life.connected:
            return
        runs = self.runs
        while (run := runs.next_to_start()) is not None:
            runs.move(run, "start")
            runs.hold(run)
            for mount in run.spec.inputs:
                self.cache.objects[mount.name].last_used = now
            self._out.append(e.StartRun(run.number, run.spec, run.allocation, run.gpus, bool(run.makes)))

    def _on_started(self, event: e.Started, now: float) -> None:
        run = self.runs.runs[event.run]
        self.runs.move(run, "started")
        run.started_at = now
        run.disk_asked_at = now
        if self._look_at > now + LOOK_INTERVAL_S:
            self._look_at = now + LOOK_INTERVAL_S

    def _on_start_failed(self, event: e.StartFailed, now: float) -> None:
        run = self.runs.runs[event.run]
        killed = run.state == KILLED
        self.runs.move(run, "failed")
        for name in event.lost:
            obj = self.cache.get(name)
            if obj is not None and obj.state == READY:
                self._lose(obj, event.reason)
        if not killed:
            run.error = event.reason
            self._answer_failure(run, now)
        self._end(run, now)

    def _refuse(self, run: Run, reason: str) -> None:
        """A queued run cannot start any more."""
        self.runs.move(run, "refuse")
        run.error = reason
        self._answer_failure(run, 0.0)
        self._end(run, None)

    def _finish_unstarted(self, run: Run, reason: str, now: float) -> None:
        run.error = reason
        self._answer_failure(run, now)

    def _answer_failure(self, run: Run, now: float) -> None:
        """Say that a run never ran: a task is forsaken, a mini-task's object invalid."""
        if run.makes:
            obj = self.cache.get(run.makes)
            if obj is not None and obj.serial == run.serial:
                self._fail_object(obj, m.BLAME_OBJECT, f"the mini-task could not run: {run.error}")
            return
        self._send(m.TaskDone(run.task_id, run.attempt, VINE_RESULT_FORSAKEN, -1, b"", 0, "", (), (), now, now,
                              m.NOT_MEASURED, run.error))

    def _end(self, run: Run, now: float | None) -> None:
        """Forget a run that is DONE."""
        self.cache.release([mount.name for mount in run.spec.inputs], run.number)
        self.runs.forget(run)
        if now is not None:
            self._idle_from(now)

    def _idle_from(self, now: float) -> None:
        if not self.busy:
            self.life.idle_since = now

    def _on_exited(self, event: e.Exited, now: float) -> None:
        run = self.runs.runs[event.run]
        killed = run.state == KILLED
        self.runs.move(run, "exited")
        self.runs.unhold(run)
        if killed:
            self._out.append(e.DropRun(run.number))
            self._end(run, now)
            return
        run.ended_at = now
        run.cpu_s = event.cpu_s
        run.memory_mb = max(run.memory_mb, event.memory_mb)
        run.exit_code = LIMIT_EXIT_CODE if run.result else event.exit_code
        if event.error:
            run.result, run.exit_code, run.error = VINE_RESULT_FORSAKEN, -1, event.error
        stdout_name = f"stdout-rnd-{self.settings.tag}-{run.number}"
        self._out.append(e.Collect(run.number, self._wanted_outputs(run), stdout_name, self.max_stdout_bytes))

    def _wanted_outputs(self, run: Run) -> tuple[e.OutputOrder, ...]:
        """Outputs to take: by success or failure; an attempt killed at a limit leaves no temps (they are partial)."""
        if run.makes or not run.outputs:
            return run.outputs
        if run.result == VINE_RESULT_FORSAKEN:
            return ()
        good = run.exit_code == 0 and run.result == VINE_RESULT_SUCCESS
        unwanted = VINE_FAILURE_ONLY if good else VINE_SUCCESS_ONLY
        flags = [out.flags for out in run.spec.outputs]
        return tuple([out for out, flag in zip(run.outputs, flags, strict=True)
                      if not flag & unwanted and not (run.result and out.name.startswith("temp-"))])

    def _on_collected(self, event: e.Collected, now: float) -> None:
        run = self.runs.runs[event.run]
        killed = run.state == KILLED
        self.runs.move(run, "collected")
        if killed:
            self._drop_outputs(event)
        elif run.makes:
            self._finish_mini(run, event, now)
        else:
            self._finish_task(run, event, now)
        self._end(run, now)

    def _drop_outputs(self, event: e.Collected) -> None:
        names = [out.name for out in event.outputs] + ([event.stdout_name] if event.stdout_name else [])
        orphans = tuple(name for name in names if (obj := self.cache.get(name)) is None or obj.state != READY)
        if orphans:
            self._out.append(e.RemoveObjects(orphans))

    def _finish_task(self, run: Run, event: e.Collected, now: float) -> None:
        levels = {order.name: order.level for order in run.outputs}
        for out in event.outputs:
            self._object_here(out.name, levels[out.name], out.size_bytes, out.sha256, now)
        if event.stdout_name:
            self._object_here(event.stdout_name, VINE_CACHE_LEVEL_TASK, event.stdout_bytes, b"", now)
        if event.stdout_cut:
            run.result = combine_results(run.result, VINE_RESULT_STDOUT_MISSING)
        measured = m.Measured(run.cpu_s, run.memory_mb, run.disk_mb, -1, -1, run.processes)
        self._send(m.TaskDone(run.task_id, run.attempt, run.result, run.exit_code, event.stdout, event.stdout_bytes,
                              event.stdout_name, event.outputs, event.missing, run.started_at, run.ended_at, measured,
                              run.error or event.error))
        if event.outputs or event.stdout_name:
            self._shrink_after_output(now)

    def _finish_mini(self, run: Run, event: e.Collected, now: float) -> None:
        obj = self.cache.get(run.makes)
        if event.stdout_name:
            self._out.append(e.RemoveObjects((event.stdout_name,)))
        if obj is None or obj.serial != run.serial:
            self._drop_outputs(event._replace(stdout_name=""))
            return
        if run.exit_code != 0 or not event.outputs:
            self._drop_outputs(event._replace(stdout_name=""))
            said = event.stdout[-INLINE_MAX_BYTES // 64:].decode("utf-8", "replace").strip()
            why = run.error or event.error or f"exit code {run.exit_code}, no output {run.outputs[0].remote!r}"
            self._fail_object(obj, m.BLAME_OBJECT, f"the mini-task failed: {why}: {said}")
            return
        out = event.outputs[0]
        self._fetch_done(obj, out, run, now)

    def _fetch_done(self, obj: CachedObject, out: m.OutputReport, run: Run, now: float) -> None:
        self.cache.finish(obj, "arrived", out.size_bytes, out.sha256, now)
        self._send(m.CacheUpdate(obj.name, obj.transfer_id, out.size_bytes, out.sha256, run.started_at,
                                 run.ended_at - run.started_at))
        self._tell_waiting(obj)
        self._shrink_after_output(now)

    def _kill(self, order: m.Kill, now: float) -> None:
        for task_id in order.task_ids:
            run = self.runs.of_task.get(task_id)
            if run is not None:
                self._kill_run(run)
        self._idle_from(now)

    def _kill_run(self, run: Run) -> None:
        """End a run in silence; its allocation is free when its processes are dead."""
        if run.state == KILLED:
            return
        was = run.state
        self.runs.move(run, "kill")
        if was == QUEUED:
            self._end(run, None)
            return
        self.runs.unname(run)
        if was in (STARTING, RUNNING):
            self._out.append(e.KillRun(run.number))

    def _recall(self, order: m.Recall, now: float) -> None:
        back = []
        for task_id in order.task_ids:
            run = self.runs.of_task.get(task_id)
            if run is not None and run.state == QUEUED:
                self.runs.move(run, "recall")
                self._end(run, None)
                back.append(task_id)
        self._send(m.Recalled(tuple(back)))
        self._idle_from(now)

    # -------------------------------------------------------------------------------------------- looking after runs

    def _on_tick(self, event: e.Tick, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + LOOK_INTERVAL_S if self.runs.active else NEVER
            for run in list(self.runs.active.values()):
                if run.state == RUNNING:
                    self._look_after(run, now)
        self._tick_life(now)

    def _look_after(self, run: Run, now: float) -> None:
        spec = run.spec
        if spec.time_max_s and now - run.started_at > spec.time_max_s:
            return self._stop_at_limit(run, VINE_RESULT_MAX_WALL_TIME, f"ran longer than {spec.time_max_s:g} s")
        if spec.time_end_s and now > spec.time_end_s:
            return self._stop_at_limit(run, VINE_RESULT_MAX_END_TIME, "its end time passed")
        self._out.append(e.MeasureMemory(run.number))
        if now - run.disk_asked_at >= DISK_INTERVAL_S and run.disk_asked_at >= 0:
            run.disk_asked_at = -1.0      # one scan at a time: the next is timed from its answer
            self._out.append(e.MeasureDisk(run.number))
        for mount in spec.outputs:
            if mount.flags & VINE_WATCH:
                if run.watched is None:
                    run.watched = {}
                offset = run.watched.setdefault(mount.name, 0)
                if offset >= 0:
                    self._out.append(e.ReadWatched(run.number, mount.name, mount.remote, offset))

    def _stop_at_limit(self, run: Run, result: int, why: str) -> None:
        if not run.result:
            run.result, run.error = result, why
            self._out.append(e.KillRun(run.number))

    def _on_disk(self, event: e.DiskMeasured, now: float) -> None:
        run = self.runs.runs.get(event.run)
        if run is None or run.state != RUNNING:
            return
        run.disk_asked_at = now
        run.disk_mb = max(run.disk_mb, event.disk_mb)
        if run.allocation.disk_mb > 0 and event.disk_mb > run.allocation.disk_mb:
            self._stop_at_limit(run, VINE_RESULT_SANDBOX_EXHAUSTION,
                                f"its sandbox holds {event.disk_mb} MB, allocated were {run.allocation.disk_mb} MB")

    def _on_memory(self, event: e.MemoryMeasured, now: float) -> None:
        run = self.runs.runs.get(event.run)
        if run is not None:
            run.memory_mb = max(run.memory_mb, event.memory_mb)
            run.processes = max(run.processes, event.processes)

    def _on_watch_read(self, event: e.WatchRead, now: float) -> None:
        run = self.runs.runs.get(event.run)
        if run is None or run.state not in (RUNNING, COLLECTING) or run.watched is None:
            return
        if event.data and self.life.connected:
            self._send(m.WatchData(run.task_id, run.attempt, event.name, event.offset, event.data))
        run.watched[event.name] = -1 if event.ended else event.offset + len(event.data)

    # -------------------------------------------------------------------------------------------- leaving

    def _on_terminate(self, event: e.Terminate, now: float) -> None:
        life = self.life
        if event.at_once or not life.connected or life.draining == event.reason:
            self._out.append(e.Exit(0, event.reason))
            return
        life.leave_by = min(life.leave_by, now + TERM_GRACE_S)
        life.draining = event.reason
        self._ask_to_leave(event.reason)

    def _drain(self, order: m.Drain, now: float) -> None:
        if not self.life.draining:
            self.life.draining = order.reason or "drained by the manager"

    def _ask_to_leave(self, reason: str) -> None:
        self.life.asked_to_leave = reason
        by = min(self.life.leave_by, self.settings.life.end_time or NEVER)
        self._send(m.LeaveRequest(reason, 0.0 if by == NEVER else by))

    def _tick_life(self, now: float) -> None:
        life = self.life
        if now >= min(life.leave_by, self.settings.life.end_time or NEVER):
            self._abandon_everything(now)
            self._out.append(e.Exit(0, life.draining or "the wall time is over"))
        elif life.connected:
            if now >= life.drain_at and not life.draining:
                life.draining = "walltime"
                self._ask_to_leave("walltime")
            elif now >= life.idle_at(self.busy):
                self._ask_to_leave("idle")
            if now >= self._report_at and self._cache_mb() != self._reported_mb:
                self._report(now)
        elif now >= life.give_up_at:
            self._give_up()
        elif now >= life.connect_at:
            life.connect_at = NEVER       # until the runner answers
            self._out.append(e.Connect())

    def check_invariants(self) -> None:
        """Raises StateError when the books disagree; called by tests after every event."""
        self.cache.check_invariants()
        self.fetches.check_invariants()
        self.runs.check_invariants()
        for run in self.runs.runs.values():
            if run.state == QUEUED:
                missing = sum(1 for i in run.spec.inputs if self.cache.objects[i.name].state != READY)
                if missing != run.missing_inputs:
                    raise StateError(f"run {run.number} miscounts its inputs", hint="a defect: please report")
        for obj in self.cache.objects.values():
            if not all(number in self.runs.runs for number in obj.needed_by):
                raise StateError(f"{obj.name} is needed by a run that is over", hint="a defect: please report")


def _unsafe(spec: TaskSpec, outputs: tuple[e.OutputOrder, ...]) -> str:
    """Why a task's names must not be used here, or ""."""
    try:
        for mount in spec.inputs:
            check_cache_name(mount.name)
            if mount.remote:
                check_sandbox_path(mount.remote)
        for out in outputs:
            check_cache_name(out.name)
            check_sandbox_path(out.remote)
        if spec.kind == KIND_PYTHON and spec.function:
            check_cache_name(spec.function)
    except SecurityError as error:
        return str(error)
    return ""


__all__ = ["RESULT_REMOTE", "CoreSettings", "WorkerCore"]

"""The worker's decisions: ``handle(event, now) -> actions``.

Owns the meaning of every order and the fate of every run and object. Must not touch files, sockets, processes or
clocks. This module holds the entry points and
the worker's own life; objects.py and running.py the orders about objects and runs; cache.py, fetches.py, runs.py and
life.py keep the books.

Invariants (``check_invariants``): allocations never exceed the totals; a run that starts has all inputs READY; a
killed run is never reported; every Dispatch that is neither killed, recalled nor cut off by a disconnect is answered
by exactly one TaskDone; every Fetch and MiniTask by exactly one CacheUpdate or CacheInvalid unless unlinked.
"""

from __future__ import annotations

from collections.abc import Callable

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK, VINE_CACHE_LEVEL_WORKFLOW
from taskvine_core.errors import StateError
from taskvine_core.protocol import messages as m
from taskvine_core.worker import events as e
from taskvine_core.worker.base import CoreSettings
from taskvine_core.worker.life import NEVER, TERM_GRACE_S
from taskvine_core.worker.machines import CREATING, QUEUED, READY, RUNNING
from taskvine_core.worker.running import LOOK_INTERVAL_S, Running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class WorkerCore(Running):
    """The pure core of one worker process.

    Args:
        settings: what it offers and its timers.
        kept: objects found in an adopted workspace (level forever).
        now: seconds since the epoch.
    """

    def __init__(self, settings: CoreSettings, kept: tuple[m.CacheEntry, ...], now: float) -> None:
        super().__init__(settings, kept, now)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            e.Connected: self._on_connected, e.ConnectFailed: self._on_connect_failed,
            e.Disconnected: self._on_disconnected, e.Received: self._on_received, e.Started: self._on_started,
            e.StartFailed: self._on_start_failed, e.Exited: self._on_exited, e.Collected: self._on_collected,
            e.ObjectArrived: self._on_arrived, e.ObjectFailed: self._on_object_failed,
            e.FetchEnded: self._on_fetch_ended, e.StoreFailed: self._on_store_failed,
            e.UploadEnded: self._on_upload_ended, e.DiskMeasured: self._on_disk, e.MemoryMeasured: self._on_memory,
            e.SharesMeasured: self._on_shares, e.WatchRead: self._on_watch_read, e.Terminate: self._on_terminate,
            e.Tick: self._on_tick,
        }
        self._orders: dict[type, Callable[[Any, float], None]] = {
            m.Welcome: self._welcome, m.PutInline: self._put_inline, m.Fetch: self._fetch, m.MiniTask: self._mini_task,
            m.SetLevel: self._set_level, m.Unlink: self._unlink, m.Dispatch: self._dispatch, m.Kill: self._kill,
            m.Recall: self._recall, m.Upload: self._upload, m.Ping: self._ping, m.Drain: self._drain,
            m.Release: self._release,
        }

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Digest one event; returns what to do, in order."""
        self._now = now
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

    def _on_connected(self, event: e.Connected, now: float) -> None:
        self.life.connected = True
        self._send(event.hello)

    def _on_connect_failed(self, event: e.ConnectFailed, now: float) -> None:
        self.life.failed(now, event.reason, event.denied)
        if now >= self.life.give_up_at:
            self._give_up()

    def _give_up(self) -> None:
        if self.life.denied:
            self._out.append(e.Exit(1, f"no manager accepted this worker: {self.life.denied}"))
        else:
            why = f": {self.life.last_failure}" if self.life.last_failure else ""
            self._out.append(e.Exit(0, f"no manager could be reached within the connect timeout{why}"))

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

    def _on_tick(self, event: e.Tick, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + LOOK_INTERVAL_S if self.runs.active else NEVER
            for run in list(self.runs.active.values()):
                if run.state == RUNNING:
                    self._look_after(run, now)
            self._look_after_memory(now)
        self._tick_life(now)

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


__all__ = ["CoreSettings", "WorkerCore"]

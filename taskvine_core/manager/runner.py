"""The manager's I/O: one background thread with an epoll loop around the pure core.

Owns the thread, the turn (commands, sockets, clock → events → core → actions), and the hand-over to the program's
thread. Holds no policy. The core is touched by the background thread only, so that a signal or an exception in the
program's thread (Ctrl-C in wait) can never leave the core half way through an event.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from taskvine_core.dataplane.channel import Tls as DataTls
from taskvine_core.dataplane.server import DataServer
from taskvine_core.errors import UsageError
from taskvine_core.logs.observer import NullObserver, Observer
from taskvine_core.manager import events as ev
from taskvine_core.manager import queries
from taskvine_core.manager.completion import STDOUT_AT_RUNNER
from taskvine_core.manager.connections import Connection, Connections, Listener, Tls
from taskvine_core.manager.core import ManagerCore
from taskvine_core.manager.effects import Contents, Effects
from taskvine_core.model.files import FileDecl
from taskvine_core.protocol.messages import Fetch, PeerKey, Query, Reply, WorkerHello

T = TypeVar("T")

#: Threads that serve objects; more peers wait in a queue.
DATA_THREADS = 16
#: Silence after which a data connection is given up.
DATA_TIMEOUT_S = 60.0
#: How often buffered log facts are written when the loop is busy.
FLUSH_S = 0.5
#: Facts formatted per busy turn at most, so that logs never delay a dispatch much.
FLUSH_LIMIT = 4_000
#: Facts that may wait to be formatted, some 20 MB.
FLUSH_BACKLOG = 40_000
#: How long close() waits for the last messages to be written.
CLOSE_PATIENCE_S = 5.0
#: So many events of the program may wait for the background thread.
AHEAD_MAX = 2000


@dataclass
class RunnerSettings:
    """What a runner needs to know.

    Attributes:
        ports: closed range to listen on, (0, 0) = any.
        host: address to bind, "" = all.
        insecure: the secret is the one everybody knows: bind the loopback address whatever ``host`` says.
        tls: (key file, certificate file) or None.
        peer_key: what workers encrypt transfers between each other with; only with ``tls``.
        staging: directory for files the manager keeps for a while.
        advertise: called every ``advertise_s`` with the manager record, in the background thread.
    """

    secret: bytes
    staging: Path
    ports: tuple[int, int] = (0, 0)
    host: str = ""
    name: str | None = None
    tls: tuple[str, str] | None = None
    peer_key: PeerKey | None = None
    insecure: bool = False
    observer: Observer = field(default_factory=NullObserver)
    advertise: Callable[[dict[str, Any]], None] | None = None
    advertise_s: float = 5.0


class _Call:
    __slots__ = ("done", "error", "fn", "value")

    def __init__(self, fn: Callable[[ManagerCore, float], Any]) -> None:
        self.fn = fn
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class ManagerRunner:
    """One running manager."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self.manager_id = os.urandom(16).hex()
        self._ids_lock = threading.Lock()
        self._next_id = 1
        tls = self._load_tls(settings.tls)
        secret = settings.secret
        host = "127.0.0.1" if settings.insecure else settings.host
        listener = Listener(self._established, self._messages, self._closed, self._note)
        self._net = Connections(host=host, ports=settings.ports, secret=secret, tls=tls, listener=listener)
        self.port = self._net.port
        self.observer = settings.observer
        self.core = ManagerCore(manager_id=self.manager_id, name=settings.name or "", observer=settings.observer,
                                rng=Random(), new_task_id=self.new_task_id, data_port=self.port)
        self._effects = Effects(settings.staging, self.post, self._decl_of, self._sha256_of)
        data_tls = DataTls(tls.context, tls.fingerprint) if tls is not None else None
        self._data = DataServer(secret=secret, role="manager", provider=self._effects, max_threads=DATA_THREADS,
                                timeout_s=DATA_TIMEOUT_S, tls=data_tls, report=self._note)
        self.completed: deque[ev.TaskOutcome] = deque()
        self._notes: deque[str] = deque(maxlen=1000)  # strangers must not fill the memory
        self._arrivals: dict[str, ev.ContentsArrived] = {}
        self._commands: deque[ev.Event | _Call] = deque()
        self._events: list[ev.Event] = []
        self._sleeping = False
        self._closing = False
        self._changed = threading.Condition()
        self._watchers = 0
        self._unlogged = True
        self._next_flush = self._next_advert = self._next_perf = 0.0
        self._fatal: BaseException | None = None
        now = time.time()
        self.core.books.stats.time_when_started = int(now * 1e6)
        self.observer.manager_start(now, os.getpid(), settings.ports[0], self.port)
        self._thread = threading.Thread(target=self._run, name="vine-manager", daemon=True)
        self._thread.start()

    @staticmethod
    def _load_tls(files: tuple[str, str] | None) -> Tls | None:
        if files is None:
            return None
        from taskvine_core import tls

        return Tls(tls.server_context(*files), tls.fingerprint(files[1]))

    # ------------------------------------------------------------------ for the program's thread

    def new_task_id(self) -> int:
        """The next task id, from 1, shared by user and recovery tasks; callable from any thread."""
        with self._ids_lock:
            given = self._next_id
            self._next_id += 1
            return given

    def set_min_task_id(self, least: int) -> int:
        """Raise the next id to at least ``least``; returns the value in force."""
        with self._ids_lock:
            self._next_id = max(self._next_id, least)
            return self._next_id

    def set_secret(self, secret: bytes) -> None:
        """Key for workers that connect from now on."""
        self._net.set_secret(secret)
        self._data.set_secret(secret)

    def post(self, event: ev.Event) -> None:
        """Hand over an event; returns at once. Order of posting is kept."""
        self._commands.append(event)
        if self._sleeping:
            self._sleeping = False
            self._net.wake()

    def keep_pace(self) -> None:
        """Wait when the program is far ahead of the background thread: what is not taken in yet takes memory that is
        not given back.

        Raises:
            UsageError: the manager is closed.
        """
        if self._closing:
            raise UsageError("the manager is closed", hint="make a new Manager")
        if len(self._commands) > AHEAD_MAX and self._thread.is_alive():
            self.call(lambda core, now: None)

    def call(self, fn: Callable[[ManagerCore, float], T]) -> T:
        """Run ``fn(core, now)`` in the background thread after everything posted before; returns its value."""
        request = _Call(fn)
        self._commands.append(request)
        self._net_wake()
        while not request.done.wait(1.0):
            self._check_alive()
        if request.error is not None:
            raise request.error
        value: T = request.value
        return value

    def do(self, event: ev.Event) -> None:
        """Hand over an event and wait until it and its actions are carried out."""
        self.post(event)
        self.call(lambda core, now: None)

    def pump(self, until: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until ``until()`` or the timeout (None = for ever); checked after every turn that changed something."""
        if until():
            return True
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._watchers += 1
        try:
            with self._changed:
                while not until():
                    left = 1.0 if deadline is None else deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._changed.wait(min(left, 1.0))
                    self._check_alive()
            return True
        finally:
            self._watchers -= 1

    def contents(self, name: str) -> Contents | None:
        """What an output buffer holds: bytes, or a path when large; None before it was stored."""
        return self._effects.contents.get(name)

    def forget_contents(self, name: str) -> None:
        """Drop an output buffer's contents."""
        self._effects.forget_contents(name)

    def fetch_contents(self, name: str, timeout_s: float) -> Contents | None:
        """Bring an object that only workers hold; None when it cannot be had. The caller owns a returned path."""
        self._arrivals.pop(name, None)
        self.post(ev.WantContents(name))
        if not self.pump(lambda: name in self._arrivals, timeout_s):
            return None
        arrival = self._arrivals.pop(name)
        if arrival.error:
            return None
        return arrival.data if arrival.data is not None else self._effects.arrived(arrival.transfer_id)

    def stdout_of(self, outcome: ev.TaskOutcome) -> Contents:
        """The standard output of a task: bytes, or a path when large (owned by the caller)."""
        if not outcome.stdout_path:
            return outcome.stdout
        path = self._effects.arrived(int(outcome.stdout_path[len(STDOUT_AT_RUNNER):]))
        return path if path is not None else outcome.stdout

    def close(self, *, exit_workers: bool) -> None:
        """Tell the workers, write what is queued, stop. Idempotent."""
        if self._closing:
            return
        if self._thread.is_alive():
            self.do(ev.CloseDown(exit_workers))
        self._closing = True
        self._net_wake()
        self._thread.join(CLOSE_PATIENCE_S)
        self._data.close()
        self._net.close()
        self.observer.manager_end(time.time())
        self.observer.close()

    def _net_wake(self) -> None:
        self._sleeping = False
        self._net.wake()

    def _check_alive(self) -> None:
        if self._fatal is not None:
            raise RuntimeError("the manager's background thread ended by a defect") from self._fatal

    # ------------------------------------------------------------------ the turn

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
            self._drain()
        except BaseException as error:
            self._fatal = error
            with self._changed:
                self._changed.notify_all()
            raise

    def _drain(self) -> None:
        """Write the last messages before the sockets close."""
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        self._net.flush()
        while self._net.unsent() and time.monotonic() < deadline:
            self._net.poll(0.05, time.time())
            self._net.flush()

    def _turn(self) -> None:
        now = time.time()
        timeout = 0.0 if self._commands or self._events else self.core.next_deadline() - now
        if timeout > 0:
            timeout = self._idle_work(now, timeout)
            self._sleeping = True
            if self._commands:  # posted between the check and now
                self._sleeping = False
                timeout = 0.0
        self._net.poll(timeout, now)
        self._sleeping = False
        slept, now = now, time.time()
        self.core.books.stats.time_polling += int((now - slept) * 1e6)
        before = self.core.books.stats.tasks_done
        calls = self._take_commands()
        if now >= self.core.next_deadline():
            self._events.append(ev.Tick())
        changed = bool(self._events)
        while self._events:
            events, self._events = self._events, []
            self._carry_out(self.core.handle_all(events, now))
        for request in calls:
            self._answer(request, now)
        self._net.flush()
        if changed or calls:
            self._unlogged = True
            self._notify()
        self._housekeeping(now)
        done = self.core.books.stats.tasks_done - before
        if done:
            self.core.books.own_us_per_task = max(1, int((time.time() - now) * 1e6 / done))

    def _take_commands(self) -> list[_Call]:
        """Posted events join the turn's events. Calls run after them; a command behind a call waits for the next
        turn."""
        commands = self._commands
        while commands:
            item = commands.popleft()
            if isinstance(item, _Call):
                return [item]
            self._events.append(item)
        return []

    def _answer(self, request: _Call, now: float) -> None:
        try:
            self.core.books.now = now
            request.value = request.fn(self.core, now)
            self._carry_out(self.core.handle_all((), now))
        except BaseException as error:
            request.error = error
        request.done.set()

    def _notify(self) -> None:
        if self._watchers and (self.completed or self._arrivals or not self.core.tasks):
            with self._changed:
                self._changed.notify_all()

    def _idle_work(self, now: float, timeout: float) -> float:
        """Write logs when the loop has nothing better to do, in batches; returns how long it may sleep."""
        if not self._unlogged:
            return timeout
        if now >= self._next_flush:
            self._flush_logs(now)
            return timeout
        return min(timeout, self._next_flush - now)

    def _flush_logs(self, now: float) -> None:
        try:
            left = self.observer.flush(now, FLUSH_LIMIT)
            if left > FLUSH_BACKLOG:  # more is told than written: from here on the logs set the pace, not the memory
                left = self.observer.flush(now, left - FLUSH_BACKLOG)
        except Exception as error:  # logs are worth less than tasks: say it once, go on without them
            print(f"vine_manager: logs end here, they could not be formatted: {error!r}", file=sys.stderr)
            self.observer = self.core.books.observer = NullObserver()
            left = 0
        self._unlogged = bool(left)
        self._next_flush = now + (0.0 if left else FLUSH_S)

    def _housekeeping(self, now: float) -> None:
        while self._notes:
            self.observer.note(now, self._notes.popleft())
            self._unlogged = True
        if now >= self._next_flush and self._unlogged:
            self._flush_logs(now)
        if now >= self._next_perf:
            self._next_perf = now + self.core.books.tuning.perf_log_interval_s
            self.core.refresh_stats()
            self.observer.performance(now, self.core.books.stats)
        if self._settings.advertise is not None and self._settings.name and now >= self._next_advert:
            self._next_advert = now + self._settings.advertise_s
            self._settings.advertise(self.core.status("manager")[0])

    # ------------------------------------------------------------------ from the sockets

    def _established(self, connection: Connection, messages: list[Any]) -> bool:
        if connection.role == "data":
            self._data.serve(connection.sock, connection.session, messages)
            return False
        if connection.role == "worker":
            hello = messages[0]
            if not isinstance(hello, WorkerHello):
                self._net.close_after_writing(connection.key, "a worker must say hello first")
                return False
            if self._settings.peer_key is not None:
                self._net.send(connection.key, self._settings.peer_key)     # before the core's Welcome
            self._events.append(ev.WorkerJoined(connection.key, hello, connection.host, connection.port))
            messages = messages[1:]
        if messages:
            self._messages(connection, messages)
        return True

    def _messages(self, connection: Connection, messages: list[Any]) -> None:
        if connection.role == "worker":
            key = connection.key
            self._events.extend([ev.MessageArrived(key, message) for message in messages])
            return
        for message in messages:
            if isinstance(message, Query):
                self._net.send(connection.key, self._reply(message))

    def _reply(self, query: Query) -> Reply:
        try:
            self.core.books.now = time.time()
            body = queries.answer(self.core, query.what, query.body)
            self._carry_out(self.core.handle_all((), self.core.books.now))
            return Reply(query.query_id, body, "")
        except (UsageError, TypeError, ValueError, AttributeError) as error:
            return Reply(query.query_id, b"", str(error))

    def _closed(self, connection: Connection, reason: str) -> None:
        if connection.role == "worker":
            self._events.append(ev.WorkerGone(connection.key, reason))

    def _note(self, text: str) -> None:
        """A sentence for the debug log; from any thread (the log itself belongs to the background thread)."""
        self._notes.append(text)

    # ------------------------------------------------------------------ actions

    def _carry_out(self, actions: list[ev.Action]) -> None:
        send = self._net.send
        for action in actions:
            kind = type(action)
            if kind is ev.Send:
                send(action.key, action.message)  # type: ignore[union-attr]
            elif kind is ev.Complete:
                self.completed.append(action.outcome)  # type: ignore[union-attr]
            else:
                self._carry_out_other(action)

    def _carry_out_other(self, action: ev.Action) -> None:
        effects = self._effects
        if isinstance(action, ev.StoreInline):
            self._react(effects.store(action))
        elif isinstance(action, ev.SendLocal):
            self._send_local(action)
        elif isinstance(action, ev.CheckLocal):
            self._react(effects.check_local(action.decl))
        elif isinstance(action, ev.ExpectUpload):
            effects.expect(action)
        elif isinstance(action, ev.CancelUpload):
            effects.cancel(action.transfer_id)
        elif isinstance(action, ev.SenderGone):
            self._react(effects.sender_gone(action.transfer_id))
        elif isinstance(action, ev.ContentsArrived):
            self._arrivals[action.name] = action
        elif isinstance(action, ev.AppendWatched):
            effects.append(action)
        elif isinstance(action, ev.Disconnect):
            self._net.close_after_writing(action.key, action.reason)
        elif isinstance(action, ev.Notice):
            print(f"vine_manager: {action.text}", file=sys.stderr)
            self._note(action.text)

    def _send_local(self, action: ev.SendLocal) -> None:
        found = self._effects.read_local(action.decl)
        if isinstance(found, ev.LocalMissing):
            self._events.append(found)
        elif found is not None:
            self._net.send_bulk(action.key, found, len(found.data))
        else:  # it has grown beyond what fits in a message: the worker fetches it like any large file
            decl = action.decl
            self._net.send(action.key, Fetch(decl.name, 0, decl.level, decl.mode, -1, b"", 0, "", DATA_TIMEOUT_S))

    def _react(self, event: ev.Event | None) -> None:
        if event is not None:
            self._events.append(event)

    def _decl_of(self, name: str) -> FileDecl | None:
        file = self.core.books.files.get(name)
        return file.decl if file is not None else None

    def _sha256_of(self, name: str) -> bytes:
        file = self.core.books.files.get(name)
        return file.sha256 if file is not None else b""

"""The running factory: all I/O, no policy.

Owns the loop, the threads' inbox, the clock and the carrying out of actions. A pass is five steps: observe (collect
the latest readings), reconcile and decide (in the core), act (in the order of the actions, journal first), record
(state file). The loop itself never calls a batch system or a manager: threads do, so nothing that hangs delays it.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taskvine_core.errors import ConfigError
from vine_factory import defaults, statefile
from vine_factory.batch.base import JobStatus
from vine_factory.batch.registry import DRIVERS
from vine_factory.classic import Rules
from vine_factory.classic_link import ClassicLink
from vine_factory.command import Delivery, address
from vine_factory.config import PoolSettings, Settings
from vine_factory.control import ControlServer, Reply
from vine_factory.core import FactoryCore
from vine_factory.demand import Demand
from vine_factory.discovery import Discovery, Found, Link, Links
from vine_factory.events import (
    Action,
    CancelJobs,
    Event,
    Finish,
    JobRow,
    Note,
    Observed,
    Refused,
    RetireAnswered,
    RetireWorkers,
    SettingsChanged,
    StopRequested,
    SubmitJobs,
    WriteJournal,
)
from vine_factory.history import History
from vine_factory.home import Home
from vine_factory.journal import Journal
from vine_factory.links import ManagerLink
from vine_factory.log import Log
from vine_factory.metrics import MetricsServer
from vine_factory.notify import Notifier
from vine_factory.orders import Orders
from vine_factory.passes import records
from vine_factory.pools import Pools
from vine_factory.readings import Known, Reading, Unknown
from vine_factory.reload import ConfigFile, with_leaving
from vine_factory.stories import Stories

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
_STATE_HEARTBEAT_S = 5.0
_CLOSE_S = 1.0
_RUN_ID_BYTES = 4


class Runner:
    """One factory process.

    Args:
        settings: what to do.
        home: where it lives, locked.
        delivery: how a pool's workers start; called in threads.
        look: finds the managers to serve under the settings of the moment; called in a thread, raises when
            nothing is known.
        secret: shared key for the managers.
        log: where lines go.
        state_path: the state file.
        config: the configuration file to watch, or None.
    """

    def __init__(self, settings: Settings, home: Home, delivery: Callable[[Settings, PoolSettings], Delivery],
                 look: Callable[[Settings], list[Found]], secret: bytes, log: Log, state_path: Path,
                 config: ConfigFile | None = None) -> None:
        self._epoch = time.time() - time.monotonic()
        self._home = home
        self._log = log
        self._secret = secret
        self._state_path = state_path
        self._config = config
        self._inbox: queue.SimpleQueue[Event | Callable[[], None]] = queue.SimpleQueue()
        self._journal = Journal(home.directory / "journal.sqlite")
        run_id, numbers = secrets.token_hex(_RUN_ID_BYTES), iter(range(1, sys.maxsize))
        rows, strange = _known_pools(self._journal.rows(), settings)
        for pool, count in strange.items():
            log.note(Note("adopted", f"{pool}: {count} workers of an earlier run are left alone: the pool is no longer "
                          "configured", 0, {"pool": pool}), self.clock())
        settles_s = {pool.name: DRIVERS[pool.batch].settles_s for pool in settings.pools}
        self._core = FactoryCore(settings, settles_s, lambda: f"{run_id}-{next(numbers)}", rows, self._journal.meters(),
                                 self.clock(), self._journal.orders(), self._journal.hosts())
        self._configured = settings
        self._managers: dict[str, Reading[Demand]] = {}
        self._discovered: Reading[list[Found]] = Unknown("managers have not been looked for yet", self.clock())
        self._links = Links(self._make_link)
        self._own_name = socket.getfqdn()
        self._pools = Pools(home, delivery, self._inbox.put, self._on_listing, self.clock)
        self._pools.serve(settings.pools, self._excluded_hosts())
        self._discovery = Discovery(lambda: look(self._core.settings), self._on_discovery, self.clock)
        self._last_pass = float("-inf")
        self._woken = True
        self._last_state: dict[str, Any] = {}
        self._state_written_at = float("-inf")
        self._journal_problem = ""
        self._signalled_at: float | None = None
        self._parent = os.getppid()
        self._history, self._stories, self._history_problem = History(home.directory), Stories(), ""
        self._orders = Orders(self._core, self._pools, self._take, self._wake, home.factory_id, self.clock)
        self._control = self._listen()
        self._notifier = Notifier(os.environ)
        self._metrics: MetricsServer | None = None
        if settings.metrics_port:
            self._metrics = MetricsServer(settings.metrics_port, lambda: self._last_state)
            log.note(Note("metrics", f"metrics are at http://127.0.0.1:{self._metrics.port}/metrics", 0,
                          {"port": self._metrics.port}), self.clock())
        self._stop_deadline: float | None = None
        self._status: int | None = None

    def clock(self) -> float:
        """Seconds since the epoch, never running backwards."""
        return self._epoch + time.monotonic()

    def _listen(self) -> ControlServer | None:
        def take(order: dict[str, Any], reply: Reply) -> None:
            self._inbox.put(lambda: self._orders.take(order, reply))
        try:
            return ControlServer(self._home.directory, take)
        except OSError as problem:
            self._log.note(Note("control", f"orders cannot be taken in {self._home.directory}: {problem}; everything "
                                "else works", 0), self.clock())
            return None

    def run(self) -> int:
        """Until the end. Returns the exit status: 0, or 1 when workers could not be ended."""
        # A signal that is ignored was ignored on purpose: nohup, a background job.
        previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS
                    if signal.getsignal(number) is not signal.SIG_IGN}
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: self._inbox.put(self._pools.poll_children))
        try:
            while self._status is None:
                self._wait()
                self.one_pass(self.clock())
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._close()
        return self._status

    def one_pass(self, now: float) -> None:
        """Observe, reconcile, decide, act, record."""
        self._last_pass, self._woken = now, False
        self._check_parent()
        self._check_config()
        self._write_journal(None, now)
        observed = self._observe(now)
        self._pools.serve(self._core.settings.pools, self._excluded_hosts())
        self._act(self._core.handle(observed, now), now)
        self._pools.submit_waiting(self._core.settings, self._addresses(), bool(self._core.stopping))
        standings = self._core.standings(now)
        for link in self._links.all():
            link.standings = standings
        self._record(now)
        self._pools.poll(now, self._core.settings.period_s, always=bool(self._core.stopping))
        self._orders.after_pass()
        jobs, pools = len(self._core.fleet.live()), len(self._core.settings.pools)
        self._notifier.passed(self._core.stopping or f"{jobs} jobs, {pools} pools, {len(self._core.views)} managers")
        self._check_deadline(now)

    # ------------------------------------------------------------------------------------------ the loop

    def _wait(self) -> None:
        """Take events until the next pass is due: after the period, or soon after a reading changed."""
        while True:
            now = self.clock()
            self._notifier.alive(now)
            period = defaults.STOP_PERIOD_S if self._core.stopping else self._core.settings.pass_s
            due = self._last_pass + (defaults.MIN_PASS_GAP_S if self._woken else period)
            if now >= due and self._inbox.empty():
                return
            try:
                item = self._inbox.get(timeout=min(defaults.PARENT_CHECK_S, max(0.0, due - now)))
            except queue.Empty:
                self._check_parent()
                continue
            if callable(item):
                item()
            else:
                self._take(item)

    def _take(self, event: Event) -> None:
        self._act(self._core.handle(event, self.clock()), self.clock())
        self._woken = True

    def _wake(self) -> None:
        self._woken = True

    def _on_signal(self, number: int, _frame: object) -> None:
        name, now = signal.Signals(number).name, self.clock()
        self._signalled_at = now if self._signalled_at is None else self._signalled_at
        # A second signal means that somebody does not want to wait for the workers.
        at_once = now - self._signalled_at >= defaults.STOP_AGAIN_S
        self._inbox.put(lambda: self._stop(f"received {name}", at_once))

    def _stop(self, reason: str, at_once: bool = False) -> None:
        now = self.clock()
        self._notifier.stopping()
        if self._stop_deadline is None or at_once:
            grace = 0.0 if at_once else self._core.settings.drain_grace_s
            self._stop_deadline = now + grace + defaults.FINISH_MARGIN_S
        self._act(self._core.handle(StopRequested(reason, at_once, self._core.settings.leave), now), now)
        self._woken = True

    def _check_parent(self) -> None:
        if self._core.settings.parent_death and os.getppid() != self._parent and not self._core.stopping:
            self._stop("the parent process has ended")

    def _check_deadline(self, now: float) -> None:
        if self._core.stopping and self._stop_deadline is None:  # the core's own wish, e.g. factory-timeout
            self._stop_deadline = now + self._core.settings.drain_grace_s + defaults.FINISH_MARGIN_S
        if self._stop_deadline is not None and now >= self._stop_deadline and self._status is None:
            if self._core.keeping:  # a submission without answer: the next start finds what became of it
                self._status = 0
                return
            left = [f"{job.pool}:{job.batch_id or job.intent_id}" for job in self._core.fleet.live()]
            self._log.note(Note("left", f"{len(left)} workers could not be ended: {' '.join(left)}; the same command "
                                "started again finds them", 0, {"jobs": left}), now)
            self._status = 1

    def _check_config(self) -> None:
        if self._config is None:
            return
        settings, notes = self._config.changed(self._configured)
        now = self.clock()
        for text in notes:
            self._log.note(Note("settings", text, 0), now)
        current = self._core.settings
        populated = {job.pool for job in self._core.fleet.live()}
        if settings is not None:
            self._configured = settings
            self._use(with_leaving(settings, current, populated), now)
        elif any(pool.leaving and pool.name not in populated for pool in current.pools):
            self._use(with_leaving(self._configured, current, populated), now)

    def _use(self, settings: Settings, now: float) -> None:
        self._act(self._core.handle(SettingsChanged(settings), now), now)
        self._pools.serve(settings.pools, self._excluded_hosts())
        for link in self._links.all():
            link.shapes = tuple(pool.shape for pool in settings.pools)
            if isinstance(link, ClassicLink):
                link.rules = _rules(settings)

    # ------------------------------------------------------------------------------------------- observe

    def _observe(self, now: float) -> Observed:
        stale_s = max(defaults.READING_STALE_MIN_S, defaults.READING_STALE_PERIODS * self._core.settings.period_s)
        managers = {key: _fresh(reading, now, stale_s) for key, reading in self._managers.items()}
        discovery: Reading[int] = Unknown("", now)
        if isinstance(self._discovered, Known):
            # Looking may take long on a sick file server; how long is no reason to disbelieve the answer
            # until it gets as old as an unanswered question to a manager.
            discovery = _fresh(Known(len(self._discovered.value), self._discovered.at), now, stale_s)
        else:
            discovery = self._discovered
        return Observed(managers, discovery, self._pools.readings(now))

    def _on_listing(self, pool: str, reading: Reading[tuple[JobStatus, ...]]) -> None:
        def take() -> None:
            before = self._pools.take(pool, reading)
            if _listing_key(before) != _listing_key(reading):
                self._pools.changed(pool)
                self._woken = True
        self._inbox.put(take)

    def _excluded_hosts(self) -> dict[str, set[str]]:
        """By pool: where the managers want no workers, and where workers end at once."""
        blocked = {host for reading in self._managers.values() if isinstance(reading, Known)
                   for host in reading.value.blocked_hosts}
        return {pool: blocked.union(hosts) for pool, hosts in self._core.excluded_hosts(self.clock()).items()}

    def _addresses(self) -> tuple[str, ...]:
        """Of the managers that are served now; of those that can use workers, when there are any."""
        if not isinstance(self._discovered, Known):
            return ()
        found = self._discovered.value
        needy = [one for one in found if isinstance(reading := self._managers.get(one.key), Known)
                 and reading.value.tasks_waiting > 0]
        return tuple(address(one.address.hosts, one.address.port, self._own_name) for one in needy or found)

    def _on_demand(self, key: str, reading: Reading[Demand]) -> None:
        def take() -> None:
            if self._links.get(key) is None:
                return  # a last word of a link that was closed
            before = self._managers.get(key)
            self._managers[key] = reading
            self._woken = self._woken or _demand_key(before) != _demand_key(reading)
        self._inbox.put(take)

    def _on_discovery(self, reading: Reading[list[Found]]) -> None:
        def take() -> None:
            first = not isinstance(self._discovered, Known)
            self._discovered = reading
            if isinstance(reading, Known):
                self._links.serve(reading.value)
                for key in set(self._managers) - {found.key for found in reading.value}:
                    del self._managers[key]
                    self._woken = True
            self._woken = self._woken or first
        self._inbox.put(take)

    def _make_link(self, found: Found) -> Link:
        settings = self._core.settings
        if found.classic:
            return ClassicLink(found.key, found.address.hosts, found.address.port, found.address.use_tls,
                               [pool.shape for pool in settings.pools], _rules(settings), settings.factory_name,
                               settings.manager_period_s, self._on_demand, self._inbox.put, self.clock)
        return ManagerLink(found.key, found.address, self._secret, [pool.shape for pool in settings.pools],
                           settings.factory_name, self._home.factory_id, self._core.standings(self.clock()),
                           settings.manager_period_s, self._on_demand, self._inbox.put, self.clock)

    # ----------------------------------------------------------------------------------------------- act

    def _act(self, actions: list[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, WriteJournal):
                self._write_journal(action, now)
            elif isinstance(action, SubmitJobs):
                self._submit(action)
            elif isinstance(action, CancelJobs):
                self._pools.cancel(action.pool, action.jobs, action.force)
            elif isinstance(action, RetireWorkers):
                self._retire(action)
            elif isinstance(action, Note):
                self._log.note(action, now)
            elif isinstance(action, Finish):
                self._status = 0 if action.left == 0 else 1

    def _write_journal(self, change: WriteJournal | None, now: float) -> None:
        problem = ""
        try:
            self._journal.write(change)
        except ConfigError as failure:
            problem = str(failure)
        if problem != self._journal_problem:
            self._log.note(Note("journal", problem or "the journal can be written again", 0), now)
        self._journal_problem = problem

    def _submit(self, action: SubmitJobs) -> None:
        if self._journal_problem:  # what is not journalled could be submitted twice
            self._inbox.put(Refused(action.pool, action.intent_ids, self._journal_problem))
            return
        settings = self._core.settings
        pool = settings.pool(action.pool)
        if pool is None:
            self._inbox.put(Refused(action.pool, action.intent_ids, "the pool is no longer configured"))
            return
        self._pools.submit(settings, pool, action.intent_ids, self._addresses())

    def _retire(self, action: RetireWorkers) -> None:
        link = self._links.get(action.manager)
        if link is not None:
            link.retire(action)
        else:
            kept = {job: "the manager is gone" for job, _ in action.workers}
            self._inbox.put(RetireAnswered(action.manager, (), kept))

    # -------------------------------------------------------------------------------------------- record

    def _record(self, now: float) -> None:
        listings = self._pools.readings(now)
        self._history.decided(records(self._core, listings, now), now)
        self._history.lived(self._stories.look(self._core, listings, now))
        if self._history.problem != self._history_problem:
            self._history_problem = self._history.problem
            self._log.note(Note("history", self._history.problem or "the history can be written again", 0), now)
        state = {**statefile.snapshot(self._core, now), "directory": str(self._home.directory),
                 "factory_id": self._home.factory_id}
        if state == self._last_state and now - self._state_written_at < _STATE_HEARTBEAT_S:
            return
        self._last_state, self._state_written_at = state, now
        try:
            statefile.write(self._state_path, state, now)
        except OSError as problem:
            self._log.note(Note("state", f"cannot write {self._state_path}: {problem}", 0), now)

    def _close(self) -> None:
        for server in (self._control, self._metrics):
            if server is not None:
                server.close()
        self._discovery.close()
        for link in self._links.all():
            link.close()
        self._pools.close(_CLOSE_S)
        self._journal.close()
        self._state_path.unlink(missing_ok=True)
        if self._home.lock is not None:
            self._home.lock.close()


def _rules(settings: Settings) -> Rules:
    return Rules(settings.tasks_per_worker, settings.capacity, tuple(pool.asked for pool in settings.pools))


def _known_pools(rows: Sequence[JobRow], settings: Settings) -> tuple[list[JobRow], Counter[str]]:
    """Rows of pools that are configured, and how many there are of others."""
    known = [row for row in rows if settings.pool(row.pool) is not None]
    return known, Counter(row.pool for row in rows if settings.pool(row.pool) is None)


def _fresh(reading: Reading[Any], now: float, stale_s: float) -> Reading[Any]:
    """An answer that was not renewed for long is no answer any more."""
    if isinstance(reading, Known) and now - reading.at > stale_s:
        return Unknown(f"no answer for {now - reading.at:.0f} s", reading.at)
    return reading


def _listing_key(reading: Reading[tuple[JobStatus, ...]] | None) -> object:
    """What of a listing is worth waking up for."""
    if isinstance(reading, Known):
        return {(status.tag.intent_id, status.state) for status in reading.value}
    return type(reading)


def _demand_key(reading: Reading[Demand] | None) -> object:
    """What of a demand answer is worth waking up for."""
    if isinstance(reading, Known):
        demand = reading.value
        return demand.groups, demand.others, {(worker.worker_id, worker.state) for worker in demand.workers}
    return type(reading)

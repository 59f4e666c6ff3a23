"""The factory's decisions: `handle(event, now) -> list[Action]`.

Owns the factory's whole state and the order of a pass: reconcile, then decide. Invariants: a job is journalled before
it is submitted; nothing shrinks on an unknown reading; a busy worker is retired only where a person wants the pool
empty; after a stop only endings happen. Must not touch a socket, process, file, clock or unseeded randomness;
identities come from ``new_id``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from vine_factory import decide as decisions
from vine_factory import defaults, explain, limits, moves
from vine_factory.budget import Meter
from vine_factory.config import PoolSettings, Settings
from vine_factory.demand import Standing
from vine_factory.events import (
    Accepted,
    Action,
    CancelUnclear,
    Event,
    Finish,
    HostRow,
    JobRow,
    MeterRow,
    Note,
    Observed,
    OrderRow,
    PoolDrained,
    PoolPaused,
    PoolResumed,
    Refused,
    RetireAnswered,
    SettingsChanged,
    StopRequested,
    SubmitUnclear,
)
from vine_factory.fleet import Fleet
from vine_factory.health import Fault, PoolHealth, same_reason
from vine_factory.hosts import HOST_FAULTS, SHORT_LIFE, Hosts
from vine_factory.jobs import Fact, Job, JobState
from vine_factory.readings import Known
from vine_factory.reconcile import (
    Changes,
    ManagerView,
    believable,
    reconcile_connections,
    reconcile_listing,
    reconcile_managers,
)
from vine_factory.retire import RecentHigh
from vine_factory.startup import StartupTimes

_METER_JOURNAL_S = 60.0
"""A kill -9 forgets at most so much of what a budget has paid."""


class FactoryCore:
    """One factory.

    Args:
        settings: what to do.
        settles_s: per pool, how long after a submission without answer its jobs may still show up.
        new_id: gives intent ids, unique over all runs.
        rows: the journal of an earlier run.
        meters: and what its pools had used of their budgets.
        orders: and what a person had ordered for its pools.
        now: seconds since the epoch.
        hosts: which hosts the pools avoid since an earlier run.

    ``discovery_unknown`` says why it is not known which managers there are, "" when it is.
    """

    def __init__(self, settings: Settings, settles_s: Mapping[str, float], new_id: Callable[[], str],
                 rows: Iterable[JobRow] = (), meters: Iterable[MeterRow] = (), now: float = 0.0,
                 orders: Iterable[OrderRow] = (), hosts: Iterable[HostRow] = ()) -> None:
        self.settings = settings
        self.fleet = Fleet(rows, now)
        self.views: dict[str, ManagerView] = {}
        self.pools: dict[str, decisions.PoolState] = {}
        self.stopping = ""
        self.finished = False
        self._settles_s = dict(settles_s)
        self._new_id = new_id
        self._cause = 0
        self._lonely_since = now
        self.discovery_unknown = "managers have not been looked for yet"
        self._said: dict[str, tuple[object, ...]] = {}
        self._kill_now = False
        self.keeping = False
        self._metered_at = now
        self._meters = list(meters)
        self._hosts = list(hosts)
        self._told_stuck: set[tuple[str, str]] = set()
        self._orders = {row.pool: row.order for row in orders}
        self._sync_pools()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; return what has to be done, in order. ``now``: seconds, never running backwards."""
        self._cause += 1
        if isinstance(event, Observed):
            notes = self._reconcile(event, now)
            self._meter(now)
            actions = notes + (self._end_all(now) if self.stopping else self._decide(now))
        else:
            actions = self._take(event, now)
        journal = self.fleet.take_changes()
        # Durable before it happens: whatever the actions start is in the journal first.
        return actions if journal is None else [journal, *actions]

    def check_invariants(self) -> None:
        """What must hold between events.

        Raises:
            AssertionError: a defect.
        """
        self.fleet.check_invariants()
        for pool in self.settings.pools:
            state = self.pools[pool.name]
            if state.decision is not None and not self.stopping:
                assert state.decision.target <= max(pool.maximum, state.decision.active), state.decision

    def standings(self, now: float) -> tuple[Standing, ...]:
        """What managers are told of each pool, in the pools' order."""
        return decisions.standings(self.settings, self.pools, self.fleet, now)

    def excluded_hosts(self, now: float) -> dict[str, tuple[str, ...]]:
        """By pool, the hosts on which no worker should start now."""
        return {name: state.hosts.excluded(now) for name, state in self.pools.items()}

    # ------------------------------------------------------------------------------------------ reconcile

    def _reconcile(self, event: Observed, now: float) -> list[Action]:
        changes = Changes()
        gone_s = self.settings.manager_gone_s
        self.discovery_unknown = "" if isinstance(event.discovery, Known) else event.discovery.reason
        stale_s = max(defaults.READING_STALE_MIN_S, defaults.READING_STALE_PERIODS * self.settings.period_s)
        reconcile_managers(self.views, event.managers, not self.discovery_unknown, now, gone_s, stale_s, changes)
        for pool, state in self.pools.items():
            told = event.batches.get(pool)
            reading = None if told is None else believable(told, now, max(stale_s, defaults.BATCH_SILENT_S))
            if isinstance(reading, Known):
                state.listing_unknown = ""
                if reading.at > state.last_listing_at:
                    state.last_listing_at = reading.at
                    settles_s = self._settles_s.get(pool, defaults.BATCH_SETTLES_S)  # a pool that came while running
                    reconcile_listing(self.fleet, pool, reading.value, reading.at, settles_s, now, changes)
            elif reading is not None:
                state.listing_unknown = f"the batch system does not answer ({reading.reason})"
        reconcile_connections(self.fleet, self.views, now, gone_s, changes)
        self.fleet.forget_old(now)
        return self._health_changes(changes, now) + self._tell_changes(changes)

    def _health_changes(self, changes: Changes, now: float) -> list[Action]:
        for job in changes.survived:
            self.pools[job.pool].health.survived(job.created_at)
        for job in changes.connected:
            self.pools[job.pool].health.connected(job.created_at)
            if job.ours:
                # It happened somewhere in the period before the manager was asked.
                self.pools[job.pool].startup.note(now - job.created_at - self.settings.manager_period_s / 2)
        for job in changes.preempted:
            self.pools[job.pool].health.preempted += 1
        notes: list[Action] = []
        for job in changes.proven:
            hosts = self.pools[job.pool].hosts
            if job.host and hosts.good(job.host, now):
                self.fleet.note_hosts(hosts.rows(job.pool, [job.host]))
                notes.append(self._note("host", f"{job.pool}: host {job.host} is good again", pool=job.pool,
                                        host=job.host))
        for job in changes.short_lived:
            notes += self._against(job, SHORT_LIFE, "it ended soon after it had connected", now)
        return notes + [note for job, kind, words in changes.faults for note in self._fault(job, kind, words, now)]

    def _fault(self, job: Job, kind: Fault, words: str, now: float) -> list[Action]:
        state = self.pools[job.pool]
        notes = self._against(job, HOST_FAULTS.get(kind, 0.0), words, now)
        first = state.health.total.get(kind, 0) == 0
        avoided = job.host and job.host in state.hosts.excluded(now) and self._excludes(job.pool)
        tripped = state.health.fault(kind, job.created_at, words, now, job.host, charged=not avoided)
        if not (first or tripped):
            return notes
        where = f" on {job.host}" if job.host else ""
        text = f"{job.pool}: worker {job.intent_id}{where} {kind.value}: {words}"
        if tripped:
            text += f" -- pausing {state.health.kinds[kind].retry_at - now:.0f} s, then trying with one worker"
        return [*notes, self._note("fault", text, pool=job.pool, fault=kind.value, said=words, job=job.intent_id,
                                   tripped=tripped, host=job.host)]

    def _against(self, job: Job, weight: float, words: str, now: float) -> list[Action]:
        """What happened to ``job`` may be its host's fault."""
        state = self.pools[job.pool]
        until = state.hosts.bad(job.host, weight, now) if job.host and weight else None
        if until is None:
            return []
        self.fleet.note_hosts(state.hosts.rows(job.pool, [job.host]))
        what = f"no more workers on host {job.host} for {until - now:.0f} s"
        if self._excludes(job.pool):
            state.health.forgive(job.host)
        else:
            what = (f"host {job.host} is bad, and the batch system cannot be told to avoid it: tell the site; jobs "
                    f"that start there leave at once for {until - now:.0f} s, and count as faults of the pool")
        return [self._note("host", f"{job.pool}: {what}: workers end there while others do well; the last one: {words}",
                           pool=job.pool, host=job.host, until=until, said=words)]

    def _excludes(self, name: str) -> bool:
        """Does it help to name a bad host to the pool's batch system?"""
        pool = self.settings.pool(name)
        return pool is None or pool.excludes_hosts

    def _tell_changes(self, changes: Changes) -> list[Action]:
        notes: list[Action] = []
        for view in changes.managers_found:
            project = f" ({view.last.project})" if view.last and view.last.project else ""
            notes.append(self._note("manager", f"manager {view.key} answers{project}", manager=view.key))
        for view in changes.managers_lost:
            notes.append(self._note("manager", f"manager {view.key} does not answer ({view.why_gone}); its workers "
                                    f"are left alone for {self.settings.manager_gone_s:g} s", manager=view.key))
        for verb, jobs in (("adopted", changes.adopted), ("connected", changes.connected)):
            for pool, count in Counter(job.pool for job in jobs).items():
                notes.append(self._note(verb, f"{pool}: {count} workers {verb}", pool=pool, jobs=count))
        for pool, count in Counter(job.pool for job in changes.preempted).items():
            notes.append(self._note("preempted", f"{pool}: {count} workers were preempted and are queued again",
                                    pool=pool, jobs=count))
        for (pool, words), count in Counter((job.pool, job.held_words) for job in changes.held).items():
            notes.append(self._note("held", f"{pool}: {count} jobs are held: {words}", pool=pool, jobs=count,
                                    said=words))
        notes += self._tell_stuck(changes)
        for (pool, reason), count in Counter((job.pool, job.end_reason) for job in changes.ended).items():
            notes.append(self._note("ended", f"{pool}: {count} workers {reason}", pool=pool, jobs=count))
        return notes

    def _tell_stuck(self, changes: Changes) -> list[Action]:
        """What is said of jobs that have been queued for long: no fault, and told once."""
        notes: list[Action] = []
        for (pool, words), count in changes.stuck.items():
            key = (pool, same_reason(words))
            if key not in self._told_stuck and len(self._told_stuck) < defaults.KEPT_REASONS * len(self.pools):
                self._told_stuck.add(key)
                notes.append(self._note("queued", f"{pool}: {count} jobs are queued for more than "
                                        f"{defaults.QUEUED_TOLD_S:.0f} s: {words}", pool=pool, jobs=count, said=words))
        return notes

    # --------------------------------------------------------------------------------------------- decide

    def _decide(self, now: float) -> list[Action]:
        lonely = self._lonely(now)
        if lonely:
            return self._take(StopRequested(lonely, keep=self.settings.leave), now)
        actions: list[Action] = []
        found = decisions.decide(self.settings, self.pools, self.views, self.fleet, self.discovery_unknown, now)
        for pool, decision in zip(self.settings.pools, found, strict=True):
            self.pools[pool.name].decision = decision
            chase, overdue = moves.chase(self.settings, pool.name, self.fleet, now, self._cause)
            actions += chase
            for job in overdue.late:
                self._late(job, actions, now)
            for job in overdue.held:
                actions += self._fault(job, Fault.HELD, job.held_words, now)
            if overdue.held:
                actions.append(self._note("held", f"{pool.name}: replacing {len(overdue.held)} held jobs",
                                          pool=pool.name, jobs=len(overdue.held)))
            difference = decision.target - decision.active
            actions += self._tell_decision(decision)
            if difference > 0 and not self._blind(pool.name):
                actions += moves.grow(pool, difference, self.fleet, self._new_id, now, self._cause)
            elif difference < 0:
                actions += self._shrink(pool, -difference, now)
        return actions

    def _blind(self, pool: str) -> bool:
        """Before the first listing it is not known what an earlier run left: starting now could be twice."""
        return self.pools[pool].last_listing_at == float("-inf")

    def _shrink(self, pool: PoolSettings, count: int, now: float) -> list[Action]:
        gone = all(view.gone_since is not None for view in self.views.values())
        return moves.shrink(pool, self.pools[pool.name], count, self.fleet, gone, now, self._cause)

    def _late(self, job: Job, actions: list[Action], now: float) -> None:
        waited = f"ran {self.settings.unconnected_s:g} s without a connection to a manager"
        if not job.connected_once:
            actions += self._fault(job, Fault.NEVER_CONNECTED, waited, now)
        actions.append(self._note("late", f"{job.pool}: replacing worker {job.intent_id}, which {waited}",
                                  pool=job.pool, job=job.intent_id))

    def _lonely(self, now: float) -> str:
        """Why the factory should end for want of managers, "" when it should not."""
        limit = self.settings.factory_timeout_s
        if self.discovery_unknown or any(view.gone_since is None for view in self.views.values()):
            self._lonely_since = now
        return f"no manager for {limit:g} s" if 0 < limit <= now - self._lonely_since else ""

    def _tell_decision(self, decision: explain.Decision) -> list[Action]:
        binding = decision.binding()
        key = (decision.target, binding.limit if binding else "")
        if self._said.get(decision.pool) == key:
            return []
        self._said[decision.pool] = key
        return [self._note("decision", f"{decision.pool}: {explain.sentence(decision)}",
                           **explain.as_record(decision))]

    # ---------------------------------------------------------------------------------------- other events

    def _take(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Accepted):
            self._accepted(event, now)
            return []
        if isinstance(event, Refused | SubmitUnclear):
            return self._submit_failed(event, now)
        if isinstance(event, CancelUnclear):
            for job in self._jobs(event.intent_ids):
                # Not known to have been asked: ask again in the next pass, in the same way.
                if job.killed_at is not None:
                    job.killed_at = None
                else:
                    job.cancelled_at, job.unlisted_since = None, job.created_at
            return [self._note("batch", f"{event.pool}: cancelling failed, will be repeated: {event.said}")]
        if isinstance(event, RetireAnswered):
            return self._retired(event, now)
        if isinstance(event, SettingsChanged):
            self.settings = event.settings
            self._sync_pools()
            return [self._note("settings", "configuration read again")]
        if isinstance(event, StopRequested):
            return self._stop(event, now)
        if isinstance(event, PoolPaused | PoolDrained | PoolResumed):
            return self._ordered(event)
        raise AssertionError(f"unknown event {event!r}")

    def _ordered(self, event: PoolPaused | PoolDrained | PoolResumed) -> list[Action]:
        """Takes effect in the next pass, as one more limit."""
        state = self.pools.get(event.pool)
        if state is None:
            return []  # it has gone while the order was on its way
        order = limits.PAUSED if isinstance(event, PoolPaused) else \
            limits.DRAINING if isinstance(event, PoolDrained) else ""
        self._orders[event.pool] = state.order = order
        self.fleet.note_order(OrderRow(event.pool, order))
        if not order:
            state.health.reset()
        return [self._note("order", f"{event.pool}: {order or 'resumed'} on request", pool=event.pool, order=order)]

    def _accepted(self, event: Accepted, now: float) -> None:
        for intent_id, batch_id in event.jobs:
            for job in self._jobs((intent_id,)):
                job.in_flight, job.batch_id, job.touched_at = False, batch_id, now
                if job.state is JobState.INTENDED:
                    self.fleet.move(job, Fact.ACCEPTED, now)
                self.pools[job.pool].health.accepted(job.created_at)

    def _submit_failed(self, event: Refused | SubmitUnclear, now: float) -> list[Action]:
        notes: list[Action] = []
        kind = Fault.REJECTED if isinstance(event, Refused) else Fault.UNAVAILABLE
        for job in self._jobs(event.intent_ids):
            job.in_flight, job.touched_at = False, now
            notes += self._fault(job, kind, event.said, now)
            if isinstance(event, Refused) and job.live:
                self.fleet.move(job, Fact.OVER, now, "refused by the batch system")
        return notes

    def _retired(self, event: RetireAnswered, now: float) -> list[Action]:
        notes: list[Action] = []
        for job in self._jobs(event.accepted):
            if job.state is JobState.CONNECTED:
                self.fleet.move(job, Fact.TOLD_TO_LEAVE, now)
            job.retire_asked_at = None
        for job in self._jobs(tuple(event.refused)):
            job.retire_asked_at, job.retire_refused_at = None, now
        if event.accepted:
            text = f"{event.manager}: {len(event.accepted)} workers leave as soon as they are idle"
            notes.append(self._note("retire", text, manager=event.manager, jobs=len(event.accepted)))
        for reason, count in Counter(event.refused.values()).items():
            notes.append(self._note("retire", f"{event.manager}: kept {count} workers: {reason}",
                                    manager=event.manager, jobs=count))
        return notes

    # ------------------------------------------------------------------------------------------------ end

    def _stop(self, event: StopRequested, now: float) -> list[Action]:
        self._kill_now = self._kill_now or event.at_once
        if self.stopping:
            return self._end_all(now)
        self.stopping, self.keeping = event.reason, event.keep
        left = self.fleet.live()
        if self.keeping:
            return [self._note("stop", f"ending, and leaving {len(left)} workers: {event.reason}", jobs=len(left)),
                    *self._end_all(now)]
        return [self._note("stop", f"ending: {event.reason}"),
                self._note("removing", f"removing {len(left)} workers...", jobs=len(left)), *self._end_all(now)]

    def _end_all(self, now: float) -> list[Action]:
        actions: list[Action] = []
        left = self.fleet.live()
        if self.keeping:
            # A submission under way is journalled: if its answer does not come, the next start finds out.
            if self.finished or (any(job.in_flight for job in left) and not self._kill_now):
                return []
            self.finished = True
            return [Finish(0)]
        for pool in sorted({job.pool for job in left}):
            mine = [job for job in left if job.pool == pool and not job.in_flight]
            polite = [job for job in mine if job.cancelled_at is None]
            due = [job for job in mine if job.cancelled_at is not None and self._kill_due(job, now)]
            if polite:
                actions.append(moves.cancel(pool, polite, self.fleet, False, now, self._cause))
            if due:
                actions.append(moves.cancel(pool, due, self.fleet, True, now, self._cause))
        # Before the first listing nobody knows what an earlier run has left behind.
        if not left and not self.finished and not any(self._blind(pool.name) for pool in self.settings.pools):
            self.finished = True
            actions += [self._note("removed", "all workers removed."), Finish(0)]
        return actions

    def _kill_due(self, job: Job, now: float) -> bool:
        assert job.cancelled_at is not None
        if job.killed_at is None and self._kill_now:
            return True
        return now - max(job.cancelled_at, job.killed_at or 0.0) >= self.settings.drain_grace_s

    # -------------------------------------------------------------------------------------------- helpers

    def _meter(self, now: float) -> None:
        """Count the cores in use since the last pass."""
        due = now - self._metered_at >= _METER_JOURNAL_S
        for pool in self.settings.pools:
            meter = self.pools[pool.name].meter
            meter.note(decisions.cores_in_use(self.fleet.of_pool(pool.name), pool), now)
            bucket = meter.current()
            if due and bucket is not None and pool.budget_core_hours > 0:
                self.fleet.note_meter(MeterRow(pool.name, *bucket))
        if due:
            self._metered_at = now

    def _jobs(self, intent_ids: Iterable[str]) -> list[Job]:
        return [job for job in map(self.fleet.jobs.get, intent_ids) if job is not None]

    def _note(self, kind: str, text: str, **fields: object) -> Note:
        return Note(kind, text, self._cause, fields)

    def _sync_pools(self) -> None:
        for pool in self.settings.pools:
            state = self.pools.get(pool.name)
            if state is None:
                rows = [(row.start, row.core_s) for row in self._meters if row.pool == pool.name]
                self.pools[pool.name] = decisions.PoolState(
                    PoolHealth(), RecentHigh(self.settings.retire_after_s), StartupTimes(pool.startup_s),
                    Meter(pool.budget_period_s, rows), order=self._orders.get(pool.name, ""),
                    hosts=Hosts(row for row in self._hosts if row.pool == pool.name))
            else:
                state.startup.given_s = pool.startup_s

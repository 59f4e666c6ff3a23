"""From what is believed to how many jobs each pool should have.

Owns the way from demand through packing and sharing to the limits. Changes only what pools remember. Pure; `moves.py`
does something about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from taskvine_core.records import NamedTuple
from vine_factory import defaults, limits, packing
from vine_factory.budget import Meter
from vine_factory.config import PoolSettings, Settings
from vine_factory.demand import DRAINING, Demand, Group, Standing, without_others
from vine_factory.explain import Decision, Share
from vine_factory.fleet import Fleet
from vine_factory.health import PoolHealth
from vine_factory.hosts import Hosts
from vine_factory.jobs import WAITING, Job, JobState
from vine_factory.reconcile import ManagerView
from vine_factory.retire import RecentHigh
from vine_factory.startup import StartupTimes
from vine_factory.walltime import lifetime_s

_MINUTE_S = 60.0
_HOUR_S = 3600.0


@dataclass(slots=True)
class PoolState:
    """What is remembered about a pool between passes. ``retired_at``: when jobs were asked to leave, lately.
    ``order``: what a person wants of it, see limits.PAUSED."""

    health: PoolHealth
    recent: RecentHigh
    startup: StartupTimes
    meter: Meter
    last_listing_at: float = float("-inf")
    listing_unknown: str = "the batch system has not been asked yet"
    hosts: Hosts = field(default_factory=Hosts)
    decision: Decision | None = None
    retired_at: list[float] = field(default_factory=list)
    order: str = ""


class _Row(NamedTuple):
    """One manager that counts: what it can use beyond what others give it."""

    view: ManagerView
    known: bool
    demand: Demand
    groups: tuple[Group, ...]


class _Want(NamedTuple):
    """Of one pool, in workers."""

    load: float                 # in use now
    waiting: float              # workers' worth of waiting tasks that are ours to take
    work_s: float | None        # seconds of one worker that those take
    by_manager: tuple[float, ...]
    tasks: tuple[float, ...] = ()  # of each group of all rows, placed in this pool


def _rows(settings: Settings, views: Mapping[str, ManagerView], fleet: Fleet, now: float) -> list[_Row]:
    shapes, own = [pool.shape for pool in settings.pools], fleet.jobs.keys()
    rows = []
    for view in views.values():
        demand = view.last
        if demand is None or any(len(group.parts) != len(shapes) for group in demand.groups):
            continue
        if view.gone_since is not None and now - view.gone_since > settings.manager_gone_s:
            continue
        rows.append(_Row(view, view.gone_since is None, demand, without_others(demand, shapes, own)))
    return rows


def _wants(rows: Sequence[_Row], loads: Sequence[float], settings: Settings) -> list[_Want]:
    """Pack the waiting tasks of all rows into the pools' room."""
    groups = [group for row in rows for group in row.groups]
    room = [max(0.0, pool.maximum - load) for pool, load in zip(settings.pools, loads, strict=True)]
    placed = packing.pack(groups, room)
    wants = []
    for index, load in enumerate(loads):
        parts, first = [], 0
        for row in rows:
            last = first + len(row.groups)
            parts.append(packing.load(groups[first:last], placed[first:last], index))
            first = last
        wants.append(_Want(load, sum(parts), packing.work_s(groups, placed, index), tuple(parts),
                           tuple(row[index] for row in placed)))
    return wants


def _shared(want: _Want, rows: Sequence[_Row], have: int) -> int:
    """Workers wanted, when factories that could start some too divide what nobody has started yet."""
    total = packing.whole(want.load + want.waiting)
    extra = total - have
    if extra <= 0 or not any(row.demand.others.able for row in rows):
        return total
    ours = 0.0
    for row, part in zip(rows, want.by_manager, strict=True):
        mine = extra * part / want.waiting if want.waiting else 0.0
        sharers, before = row.demand.others.able + 1, row.demand.others.before
        # Whole workers, the earlier names first, so that the shares add up to all of it.
        ours += mine / sharers if sharers == 1 else max(0, packing.whole(mine) - before + sharers - 1) // sharers
    return have + min(extra, packing.whole(ours))


def decide(settings: Settings, pools: Mapping[str, PoolState], views: Mapping[str, ManagerView], fleet: Fleet,
           discovery_unknown: str, now: float) -> list[Decision]:
    """The target of every pool, with reasons."""
    rows = _rows(settings, views, fleet, now)
    jobs = {pool.name: list(fleet.of_pool(pool.name)) for pool in settings.pools}
    loads = [sum(job.load for job in jobs[pool.name] if job.active) for pool in settings.pools]
    answering = [row for row in rows if row.known]
    answered, hoped = _wants(answering, loads, settings), _wants(rows, loads, settings)
    silent = next((v for v in views.values() if v.gone_since is not None
                   and now - v.gone_since <= settings.manager_gone_s), None)
    unfit = _unfit(rows)
    unnamed = sum(row.demand.unnamed or 0 for row in answering)
    decisions = []
    for index, pool in enumerate(settings.pools):
        state = pools[pool.name]
        blind = discovery_unknown or state.listing_unknown
        if silent is not None and not blind:
            blind = f"{silent.key} does not answer ({silent.why_gone})"
        counts = _counts(jobs[pool.name], pool, state, now)
        # Connected, only not told by their jobs' ids: they do not wait.
        there = min(unnamed // pool.workers_per_job, counts.waiting - counts.queued)
        counts, unnamed = counts._replace(waiting=counts.waiting - there), unnamed - there * pool.workers_per_job
        # A manager that does not answer keeps what it has, and gets nothing more on old news.
        have = counts.active * pool.workers_per_job
        wanted = max(_jobs(_shared(answered[index], answering, have), pool),
                     min(_jobs(packing.whole(hoped[index].load + hoped[index].waiting), pool), counts.active))
        situation = _situation(pool, state, counts, wanted, blind, answered[index], settings, now)
        target, steps = limits.apply(situation)
        needs = tuple((row.view.key, packing.whole(part + _load_of(jobs[pool.name], row.view.key)), row.known)
                      for row, part in zip(rows, hoped[index].by_manager, strict=True))
        decisions.append(Decision(pool.name, needs, wanted, counts.active, counts.leaving, target, steps,
                                  pool.workers_per_job, unfit if index == 0 else (), situation,
                                  _shares(rows, hoped[index], index)))
    return decisions


def _shares(rows: Sequence[_Row], want: _Want, index: int) -> tuple[Share, ...]:
    groups = [(row.view.key, group) for row in rows for group in row.groups]
    return tuple(Share(manager, group.category, group.tasks, group.seconds, group.parts[index], group.asks, placed)
                 for (manager, group), placed in zip(groups, want.tasks, strict=True))


def _jobs(workers: int, pool: PoolSettings) -> int:
    return -(-workers // pool.workers_per_job)


def _load_of(jobs: Sequence[Job], manager: str) -> float:
    return sum(one.facts.load for job in jobs for one in job.workers
               if one.manager == manager and one.facts.state != DRAINING)


def _unfit(rows: Sequence[_Row]) -> tuple[tuple[str, int], ...]:
    found: dict[str, float] = {}
    for row in rows:
        for group in row.groups:
            if not any(group.parts):
                found[group.category] = found.get(group.category, 0.0) + group.tasks
    return tuple((category, round(tasks)) for category, tasks in sorted(found.items()))


class _Counts(NamedTuple):
    active: int
    leaving: int
    waiting: int
    queued: int
    busy: int
    unproven: tuple[float, ...]


def _counts(jobs: Sequence[Job], pool: PoolSettings, state: PoolState, now: float) -> _Counts:
    """A job whose walltime ends before a new one could be here is as good as gone: its successor starts now."""
    ahead_s = state.startup.usual_s() or 0.0
    active = [job for job in jobs if job.active and not expiring(job, pool, ahead_s, now)]
    return _Counts(len(active), len(jobs) - len(active), sum(1 for job in active if job.state in WAITING),
                   sum(1 for job in active if job.state in (JobState.SUBMITTED, JobState.QUEUED)),
                   sum(1 for job in active if job.busy), unproven(jobs, state))


def unproven(jobs: Sequence[Job], state: PoolState) -> tuple[float, ...]:
    """When the jobs were created that are to show whether a tripped pool works again; () when it is not tripped."""
    return tuple(job.created_at for job in jobs if job.state in WAITING) if state.health.tripped else ()


def expiring(job: Job, pool: PoolSettings, ahead_s: float, now: float) -> bool:
    """Its lifetime is over within ``ahead_s`` seconds."""
    life_s = lifetime_s(pool.walltime_s, job.intent_id)
    return life_s > 0 and job.running_since is not None and now + ahead_s >= job.running_since + life_s


def _situation(pool: PoolSettings, state: PoolState, counts: _Counts, wanted: int, blind: str, want: _Want,
               settings: Settings, now: float) -> limits.Situation:
    usual_s = state.startup.usual_s()
    minimum, maximum = _jobs(pool.minimum, pool), pool.maximum // pool.workers_per_job
    window_s = max(settings.retire_after_s, min(usual_s or 0.0, defaults.WINDOW_STARTUP_MAX_S))
    # Ends with the pass that is nearest to its end, not with the next one: an idle fleet for half a period is dear.
    state.recent.window_s = max(0.0, window_s - settings.pass_s / 2)
    if blind:
        state.recent.forget()
    else:
        state.recent.note(min(max(wanted, minimum), maximum), now)
    health_new, why = state.health.gate(now, counts.unproven)
    situation = limits.Situation(
        wanted=wanted, active=counts.active, leaving=counts.leaving, waiting=counts.waiting, minimum=minimum,
        maximum=maximum, per_cycle=pool.per_cycle, unknown=blind, recent_high=state.recent.value(now),
        window_s=window_s, health_new=health_new, health_reason=why, busy=counts.busy,
        queued=counts.queued, max_idle=pool.max_idle, order=state.order)
    return _with_budget(_with_worth(_with_disruption(situation, pool, state, now), pool, want, usual_s), pool, state)


def _with_disruption(situation: limits.Situation, pool: PoolSettings, state: PoolState,
                     now: float) -> limits.Situation:
    state.retired_at = [at for at in state.retired_at if now - at < _MINUTE_S]
    if pool.retire_per_minute <= 0:
        return situation
    return situation._replace(may_leave=max(0, pool.retire_per_minute - len(state.retired_at)))


def _with_worth(situation: limits.Situation, pool: PoolSettings, want: _Want,
                usual_s: float | None) -> limits.Situation:
    """How many workers can still be useful when they come after ``usual_s`` seconds.

    With A workers here and n in all, the waiting work W ends at T with W = A T + (n - A)(T - L). The last one is worth
    starting while T - L >= u, which is n <= (W - A L) / u.
    """
    if usual_s is None or want.work_s is None or want.waiting <= 0:
        return situation
    here = situation.active * pool.workers_per_job
    useful_s = max(defaults.USEFUL_MIN_S, defaults.USEFUL_SHARE * usual_s)
    # What runs now ends at some time that nobody knows: as if it had just begun.
    work_s = want.work_s + want.load * (want.work_s / want.waiting)
    most = max(0 if here else 1, int((work_s - here * usual_s) / useful_s))
    return situation._replace(
        worthwhile=_jobs(most, pool),
        worthwhile_reason=f"a new worker takes {usual_s:.0f} s to come, the work left ends before it could do "
                          f"{useful_s:.0f} s of it")


def _with_budget(situation: limits.Situation, pool: PoolSettings, state: PoolState) -> limits.Situation:
    if pool.budget_core_hours <= 0:
        return situation
    left_core_s = pool.budget_core_hours * _HOUR_S - state.meter.used_core_s()
    used = f"{state.meter.used_core_s() / _HOUR_S:.1f} of {pool.budget_core_hours:g} core-hours are used"
    if left_core_s <= 0:
        return situation._replace(affordable=situation.busy, budget_reason=f"the budget is used up: {used}")
    job_cores = max(1, pool.shape.resources.cores) * pool.workers_per_job
    in_all = int(left_core_s / (job_cores * defaults.BUDGET_HORIZON_S))
    return situation._replace(affordable=max(situation.active, in_all),
                              budget_reason=f"near the end of the budget: {used}")


def cores_in_use(jobs: Iterable[Job], pool: PoolSettings) -> int:
    """Cores that a pool's running jobs occupy, whether they work or not."""
    running = sum(1 for job in jobs if job.running_since is not None)
    return running * pool.workers_per_job * max(1, pool.shape.resources.cores)


def standings(settings: Settings, pools: Mapping[str, PoolState], fleet: Fleet, now: float) -> tuple[Standing, ...]:
    """What managers are told of each pool."""
    found = []
    for pool in settings.pools:
        jobs = list(fleet.of_pool(pool.name))
        state, pending = pools[pool.name], sum(1 for job in jobs if job.state in WAITING)
        health_new, _ = state.health.gate(now, unproven(jobs, state))
        grows = health_new is None and not state.order
        room = pool.maximum // pool.workers_per_job - len(jobs) if grows else 0
        found.append(Standing(pending * pool.workers_per_job, max(0, room) * pool.workers_per_job))
    return tuple(found)

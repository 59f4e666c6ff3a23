"""From what is believed to what should be done.

Owns the second half of a pass: demand -> packing -> limits -> which jobs to start, to cancel and to retire. Changes
job records only to note what was decided. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vine_factory import limits, packing
from vine_factory.config import PoolSettings, Settings
from vine_factory.demand import own_need
from vine_factory.events import Action, CancelJobs, Note, RetireWorkers, SubmitJobs
from vine_factory.explain import Decision
from vine_factory.fleet import Fleet
from vine_factory.health import PoolHealth
from vine_factory.jobs import WAITING, Fact, Job, JobState
from vine_factory.reconcile import ManagerView
from vine_factory.retire import RecentHigh, choose_idle, choose_queued

RETIRE_REASON = "more workers than the manager can use"


@dataclass(slots=True)
class PoolState:
    """What is remembered about a pool between passes."""

    health: PoolHealth
    recent: RecentHigh
    last_listing_at: float = float("-inf")
    listing_unknown: str = "the batch system has not been asked yet"
    decision: Decision | None = None


def needs_of(settings: Settings, views: Mapping[str, ManagerView], fleet: Fleet,
             gone_s: float, now: float) -> list[tuple[ManagerView, bool, list[int]]]:
    """One row per manager that counts: (view, answers now, workers of ours per pool)."""
    own = fleet.jobs.keys()
    rows = []
    for view in views.values():
        if view.last is None or len(view.last.needs) != len(settings.pools):
            continue
        if view.gone_since is not None and now - view.gone_since > gone_s:
            continue
        row = [own_need(view.last, index, pool.shape, own) for index, pool in enumerate(settings.pools)]
        rows.append((view, view.gone_since is None, row))
    return rows


def decide(settings: Settings, pools: Mapping[str, PoolState], views: Mapping[str, ManagerView], fleet: Fleet,
           discovery_unknown: str, now: float) -> list[Decision]:
    """The target of every pool, with reasons."""
    rows = needs_of(settings, views, fleet, settings.manager_gone_s, now)
    room = [pool.maximum for pool in settings.pools]
    answered = packing.pack([row for _, known, row in rows if known], room)
    hoped = packing.pack([row for _, _, row in rows], room)
    silent = next((v for v in views.values() if v.gone_since is not None
                   and now - v.gone_since <= settings.manager_gone_s), None)
    decisions = []
    for index, pool in enumerate(settings.pools):
        state = pools[pool.name]
        jobs = list(fleet.of_pool(pool.name))
        active = sum(1 for job in jobs if job.active)
        # A manager that does not answer keeps what it has, and gets nothing more on old news.
        wanted = max(answered[index], min(hoped[index], active))
        blind = discovery_unknown or state.listing_unknown
        if silent is not None and not blind:
            blind = f"{silent.key} does not answer ({silent.why_gone})"
        if blind:
            state.recent.forget()
        else:
            state.recent.note(min(max(wanted, pool.minimum), pool.maximum), now)
        probing = sum(1 for job in jobs if job.state in WAITING and job.created_at >= state.health.tripped_at)
        health_new, why = state.health.gate(now, probing)
        situation = limits.Situation(
            wanted=wanted, active=active, leaving=len(jobs) - active,
            waiting=sum(1 for job in jobs if job.state in WAITING), minimum=pool.minimum, maximum=pool.maximum,
            per_cycle=pool.per_cycle, unknown=blind, recent_high=state.recent.value(now),
            window_s=settings.retire_after_s, health_new=health_new, health_reason=why)
        target, steps = limits.apply(situation)
        needs = tuple((view.key, row[index], known) for view, known, row in rows)
        decisions.append(Decision(pool.name, needs, wanted, active, situation.leaving, target, steps))
    return decisions


def grow(pool: PoolSettings, count: int, fleet: Fleet, new_id: Callable[[], str], now: float,
         cause: int) -> list[Action]:
    """Intend and submit ``count`` jobs. The caller journals the intents before it lets the actions out."""
    ids = []
    for _ in range(count):
        job = Job(new_id(), pool.name, now, in_flight=True, touched_at=now)
        fleet.add(job)
        ids.append(job.intent_id)
    return [SubmitJobs(pool.name, tuple(ids), cause)]


def shrink(pool: PoolSettings, count: int, fleet: Fleet, managers_gone: bool, retry_s: float, now: float,
           cause: int) -> list[Action]:
    """Let ``count`` jobs go: what has not started, what nobody can use, then idle workers."""
    jobs = list(fleet.of_pool(pool.name))
    count -= sum(1 for job in jobs if job.retire_asked_at is not None)  # already on their way out
    actions: list[Action] = []
    dropped = choose_queued(jobs, count)
    if managers_gone:
        dropped += [job for job in jobs if job.state is JobState.RUNNING][:max(0, count - len(dropped))]
    if dropped:
        actions.append(cancel(pool.name, dropped, fleet, False, now, cause))
        actions.append(Note("cancel", f"{pool.name}: cancelling {len(dropped)} jobs that nobody needs", cause,
                            {"pool": pool.name, "jobs": len(dropped)}))
    by_manager: dict[str, list[Job]] = {}
    for job in choose_idle(jobs, count - len(dropped), now, retry_s):
        job.retire_asked_at = now
        by_manager.setdefault(job.manager, []).append(job)
    for manager, chosen in by_manager.items():
        workers = tuple((job.intent_id, job.worker.worker_id) for job in chosen if job.worker is not None)
        actions.append(RetireWorkers(manager, workers, RETIRE_REASON, cause))
    return actions


def cancel(pool: str, jobs: list[Job], fleet: Fleet, force: bool, now: float, cause: int) -> CancelJobs:
    """Mark jobs as leaving and cancel them through the batch system."""
    for job in jobs:
        if job.state is not JobState.DRAINING:
            fleet.move(job, Fact.TOLD_TO_LEAVE, now)
        job.cancelled_at = job.cancelled_at if force and job.cancelled_at is not None else now
        if force:
            job.killed_at = now
    return CancelJobs(pool, tuple((job.intent_id, job.batch_id) for job in jobs), force, cause)


def chase(settings: Settings, pool: str, fleet: Fleet, now: float, cause: int) -> tuple[list[Action], list[Job]]:
    """Follow up on jobs that should have left or connected by now. Returns actions and the jobs never connected."""
    grace = settings.drain_grace_s
    polite, force, late = [], [], []
    for job in fleet.of_pool(pool):
        if job.state is JobState.DRAINING:
            if job.cancelled_at is None:
                if job.unlisted_since is not None and now - job.unlisted_since >= grace:
                    polite.append(job)
            elif now - max(job.cancelled_at, job.killed_at or 0.0) >= grace:
                force.append(job)
        elif job.unconnected_since is not None and now - job.unconnected_since >= settings.unconnected_s:
            late.append(job)
    actions: list[Action] = []
    if polite or late:
        actions.append(cancel(pool, polite + late, fleet, False, now, cause))
    if force:
        actions.append(cancel(pool, force, fleet, True, now, cause))
    return actions, late

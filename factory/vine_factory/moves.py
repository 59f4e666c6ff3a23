"""From decided numbers to jobs: which to start, to cancel, to retire, to follow up on.

Owns the choice of the jobs and the actions about them. Changes job records only to note what was decided. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.config import PoolSettings, Settings
from vine_factory.decide import PoolState, expiring
from vine_factory.events import Action, CancelJobs, Note, RetireWorkers, SubmitJobs
from vine_factory.fleet import Fleet
from vine_factory.jobs import Fact, Job, JobState
from vine_factory.limits import DRAINING
from vine_factory.retire import choose_idle, choose_queued

RETIRE_REASON = "more workers than the manager can use"
DRAIN_REASON = "the pool is drained on request"


def grow(pool: PoolSettings, count: int, fleet: Fleet, new_id: Callable[[], str], now: float,
         cause: int) -> list[Action]:
    """Intend and submit ``count`` jobs. The caller journals the intents before it lets the actions out."""
    ids = []
    for _ in range(count):
        job = Job(new_id(), pool.name, now, ours=True, in_flight=True, touched_at=now)
        fleet.add(job)
        ids.append(job.intent_id)
    return [SubmitJobs(pool.name, tuple(ids), cause)]


def shrink(pool: PoolSettings, state: PoolState, count: int, fleet: Fleet, managers_gone: bool, now: float,
           cause: int) -> list[Action]:
    """Let ``count`` jobs go: what has not started, what nobody can use, then idle workers.

    Of a pool that is to be empty busy workers are asked, too: their manager gives them no new task, and they leave when
    the last one is done.
    """
    ahead_s = state.startup.usual_s() or 0.0
    jobs = [job for job in fleet.of_pool(pool.name) if not expiring(job, pool, ahead_s, now)]
    count -= sum(1 for job in jobs if job.retire_asked_at is not None)  # already on their way out
    actions: list[Action] = []
    dropped = choose_queued(jobs, count)
    if managers_gone:
        dropped += [job for job in jobs if job.state is JobState.RUNNING][:max(0, count - len(dropped))]
    if dropped:
        actions.append(cancel(pool.name, dropped, fleet, False, now, cause))
        actions.append(Note("cancel", f"{pool.name}: cancelling {len(dropped)} jobs that nobody needs", cause,
                            {"pool": pool.name, "jobs": len(dropped)}))
    by_manager: dict[str, list[tuple[str, str]]] = {}
    for job in choose_idle(jobs, count - len(dropped), now, defaults.RETIRE_RETRY_S, state.order == DRAINING):
        job.retire_asked_at = now
        state.retired_at.append(now)
        for one in job.workers:
            by_manager.setdefault(one.manager, []).append((job.intent_id, one.facts.worker_id))
    reason = DRAIN_REASON if state.order == DRAINING else RETIRE_REASON
    actions += [RetireWorkers(manager, tuple(workers), reason, cause)
                for manager, workers in by_manager.items()]
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


class Overdue(NamedTuple):
    """Jobs that are replaced: never connected, and held."""

    late: list[Job]
    held: list[Job]


def chase(settings: Settings, pool: str, fleet: Fleet, now: float, cause: int) -> tuple[list[Action], Overdue]:
    """Follow up on jobs that should have left or connected by now. Returns actions and what they are about."""
    grace = settings.drain_grace_s
    polite, force, overdue = [], [], Overdue([], [])
    for job in fleet.of_pool(pool):
        if job.state is JobState.DRAINING:
            if job.cancelled_at is None:
                if job.unlisted_since is not None and now - job.unlisted_since >= grace:
                    polite.append(job)
            elif now - max(job.cancelled_at, job.killed_at or 0.0) >= grace:
                force.append(job)
        elif job.unconnected_since is not None and now - job.unconnected_since >= settings.unconnected_s:
            overdue.late.append(job)
        elif job.held_since is not None and now - job.held_since >= defaults.HELD_S:
            overdue.held.append(job)
        elif job.retire_asked_at is not None and now - job.retire_asked_at >= defaults.RETIRE_ANSWER_S:
            job.retire_asked_at, job.retire_refused_at = None, now
    actions: list[Action] = []
    polite += overdue.late + overdue.held
    if polite:
        actions.append(cancel(pool, polite, fleet, False, now, cause))
    if force:
        actions.append(cancel(pool, force, fleet, True, now, cause))
    return actions, overdue

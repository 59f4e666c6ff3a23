"""From what was read to what is believed.

Owns the rules by which listings of batch systems and answers of managers change job records. Everything here only
looks and records; nothing causes a side effect. An Unknown reading changes nothing, a job missing from one listing
changes nothing. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from vine_factory import defaults
from vine_factory.batch.base import BatchState, JobStatus
from vine_factory.demand import Demand
from vine_factory.fleet import Fleet, clear_absence
from vine_factory.health import Fault
from vine_factory.jobs import Fact, Job, JobState, Listed
from vine_factory.readings import Known, Reading, Unknown

_S = JobState
T = TypeVar("T")


@dataclass(slots=True)
class ManagerView:
    """One manager: its last answer, and since when there is none. ``gone_since`` None while it answers."""

    key: str
    last: Demand | None = None
    last_at: float = 0.0
    gone_since: float | None = None
    why_gone: str = ""


@dataclass(slots=True)
class Changes:
    """What one reconciliation found, for health and for the log."""

    faults: list[tuple[Job, Fault, str]] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)
    connected: list[Job] = field(default_factory=list)
    survived: list[Job] = field(default_factory=list)
    proven: list[Job] = field(default_factory=list)
    short_lived: list[Job] = field(default_factory=list)
    preempted: list[Job] = field(default_factory=list)
    held: list[Job] = field(default_factory=list)
    stuck: Counter[tuple[str, str]] = field(default_factory=Counter)   # (pool, what is said of queued jobs)
    adopted: list[Job] = field(default_factory=list)
    managers_found: list[ManagerView] = field(default_factory=list)
    managers_lost: list[ManagerView] = field(default_factory=list)


def believable(reading: Reading[T], now: float, stale_s: float) -> Reading[T]:
    """``reading``, or why it says nothing about now: too old, or from a clock that is wrong."""
    if isinstance(reading, Known):
        if now - reading.at > stale_s:
            return Unknown(f"no answer for {now - reading.at:.0f} s", reading.at)
        if reading.at - now > defaults.CLOCKS_AGREE_S:
            return Unknown(f"its last answer is dated {reading.at - now:.0f} s in the future", now)
    return reading


def reconcile_managers(views: dict[str, ManagerView], readings: Mapping[str, Reading[Demand]],
                       listing_known: bool, now: float, gone_s: float, stale_s: float, changes: Changes) -> None:
    """Bring the views up to date. A manager that neither answers nor is listed is dropped after ``gone_s``."""
    for key, told in readings.items():
        view = views.setdefault(key, ManagerView(key))
        reading = believable(told, now, stale_s)
        if isinstance(reading, Known):
            if view.last is None or view.gone_since is not None:
                changes.managers_found.append(view)
            view.last, view.last_at, view.gone_since = reading.value, reading.at, None
        else:
            _lose(view, min(reading.since, now), reading.reason, changes)
    for key, view in views.items():
        if key not in readings and listing_known:
            _lose(view, now, "it is no longer advertised", changes)
        elif key not in readings and now - view.last_at > stale_s:
            _lose(view, now, f"no answer for {now - view.last_at:.0f} s", changes)
    for key in [k for k, v in views.items() if v.gone_since is not None and now - v.gone_since > gone_s]:
        if key not in readings:
            del views[key]


def _lose(view: ManagerView, since: float, reason: str, changes: Changes) -> None:
    if view.gone_since is None:
        view.gone_since = max(since, view.last_at)
        if view.last is not None:
            changes.managers_lost.append(view)
    view.why_gone = reason


def reconcile_listing(fleet: Fleet, pool: str, statuses: tuple[JobStatus, ...], asked_at: float, settles_s: float,
                      now: float, changes: Changes) -> None:
    """Apply one listing of a batch system, asked for at ``asked_at``. Call once per listing."""
    seen: set[str] = set()
    for status in statuses:
        if status.tag.pool != pool:
            continue
        seen.add(status.tag.intent_id)
        job = fleet.jobs.get(status.tag.intent_id)
        if job is None:
            if status.state is BatchState.ENDED:
                continue
            job = _adopt(fleet, status, now, changes)
        _apply_status(fleet, job, status, now, changes)
    for job in list(fleet.of_pool(pool)):
        if job.intent_id not in seen and not job.in_flight and asked_at > job.touched_at:
            _miss(fleet, job, _patience_s(job, bool(seen), settles_s), now, changes)


def _patience_s(job: Job, others_seen: bool, settles_s: float) -> float:
    """How long a job must be missing. An empty listing is more likely a lie than the end of everything, and a new job
    may take a while to show; but that a worker is gone which was there and was told to leave is what was asked for."""
    if job.state is _S.DRAINING and job.connected_once:
        return 0.0
    return 0.0 if others_seen and job.seen else settles_s


def _adopt(fleet: Fleet, status: JobStatus, now: float, changes: Changes) -> Job:
    job = Job(status.tag.intent_id, status.tag.pool, status.started_at or now, touched_at=now)
    fleet.add(job)
    changes.adopted.append(job)
    return job


def _apply_status(fleet: Fleet, job: Job, status: JobStatus, now: float, changes: Changes) -> None:
    clear_absence(job)
    job.seen = True
    if status.state is BatchState.ENDED:
        if job.live:
            job.host = status.host or job.host
            _end(fleet, job, status, now, changes)
        return
    if not job.live:
        fleet.move(job, Fact.REAPPEARED, now)
        changes.adopted.append(job)
    if not job.batch_id:
        job.batch_id = status.batch_id
        if job.state is _S.DRAINING:  # cancelled before it was there: that cancellation reached nothing
            job.cancelled_at = job.killed_at = None
            job.unlisted_since = job.created_at
    if status.state is BatchState.RUNNING:
        _seen_running(fleet, job, status, now, changes)
    elif status.state is BatchState.HELD:
        _seen_held(fleet, job, status, now, changes)
    else:
        _seen_queued(fleet, job, status, now, changes)


def _seen_running(fleet: Fleet, job: Job, status: JobStatus, now: float, changes: Changes) -> None:
    if job.running_since is not None and 0 < job.started_at < status.started_at - defaults.REQUEUED_S:
        changes.preempted.append(job)  # and started again, between two listings
        fleet.restarted(job, min(status.started_at, now))
    job.host, job.started_at, job.requeued = status.host or job.host, status.started_at or job.started_at, False
    if job.state in (_S.INTENDED, _S.SUBMITTED, _S.QUEUED, _S.HELD):
        fleet.move(job, Fact.SEEN_RUNNING, now)
    if job.running_since is None:
        job.running_since = min(status.started_at or now, now)
    if not job.survived and now - job.running_since > defaults.DIED_AT_START_S:
        job.survived = True
        changes.survived.append(job)
    if not job.proven and job.connected_once and now - job.running_since > defaults.SHORT_LIFE_S:
        job.proven = True
        changes.proven.append(job)


def _seen_queued(fleet: Fleet, job: Job, status: JobStatus, now: float, changes: Changes) -> None:
    if job.running_since is not None:
        if job.state is not _S.DRAINING:
            changes.preempted.append(job)
        fleet.restarted(job, None)
    # Of one that a manager has listed and no listing has shown running, the listings are late.
    if job.state in (_S.INTENDED, _S.SUBMITTED, _S.HELD) or \
            (job.state is _S.RUNNING and (job.requeued or not job.connected_once)):
        fleet.move(job, Fact.SEEN_QUEUED, now)
    if status.said and job.state is _S.QUEUED and now - job.created_at > defaults.QUEUED_TOLD_S:
        changes.stuck[job.pool, status.said] += 1


def _seen_held(fleet: Fleet, job: Job, status: JobStatus, now: float, changes: Changes) -> None:
    job.held_words = status.said or "the batch system holds it and gives no reason"
    if job.state in (_S.INTENDED, _S.SUBMITTED, _S.QUEUED, _S.RUNNING):
        fleet.move(job, Fact.SEEN_HELD, now)
        changes.held.append(job)


def _miss(fleet: Fleet, job: Job, patience_s: float, now: float, changes: Changes) -> None:
    """A job is not in a listing that should have it. Believed only after several, and never while a manager is
    talking to its worker."""
    if job.workers:
        clear_absence(job)
        return
    if job.absent_since is None:
        job.absent_since = now
    job.absent_listings += 1
    if job.absent_listings < defaults.ABSENT_LISTINGS or now - job.absent_since < max(defaults.ABSENT_S, patience_s):
        return
    reason = "never reached the batch system" if not job.batch_id else \
        f"gone: not in {job.absent_listings} listings over {now - job.absent_since:.0f} s"
    fleet.move(job, Fact.OVER, now, reason)
    changes.ended.append(job)


def _end(fleet: Fleet, job: Job, status: JobStatus, now: float, changes: Changes) -> None:
    asked_to = job.state is _S.DRAINING
    started = status.started_at or job.running_since
    lived_s = max(0.0, (status.ended_at or now) - started) if started else 0.0
    code = status.exit_code
    how = "unknown status" if code is None else f"signal {-code}" if code < 0 else f"status {code}"
    fleet.move(job, Fact.OVER, now, f"ended with {how} after {lived_s:.0f} s")
    changes.ended.append(job)
    if not asked_to and job.connected_once and not job.proven and code and lived_s <= defaults.SHORT_LIFE_S:
        changes.short_lived.append(job)
    if asked_to or job.connected_once or lived_s > defaults.DIED_AT_START_S:
        return
    words = status.stderr_tail or status.said or f"it ended with {how} and said nothing"
    changes.faults.append((job, Fault.QUIT_AT_START if code == 0 else Fault.DIED_AT_START, words))


def reconcile_connections(fleet: Fleet, views: Mapping[str, ManagerView], now: float, gone_s: float,
                          changes: Changes) -> None:
    """Match jobs to the workers that answering managers list."""
    listed: dict[str, list[Listed]] = {}
    for key, view in views.items():
        if view.gone_since is None and view.last is not None:
            for worker in view.last.workers:
                if worker.job_id in fleet.jobs:
                    listed.setdefault(worker.job_id, []).append(Listed(key, worker))
    for job_id, several in listed.items():
        if len(several) > 1:
            listed[job_id] = _once_each(several)
    all_answer = bool(views) and all(view.gone_since is None for view in views.values())
    # Where a manager tells no job ids, a job that nobody lists may be connected all the same.
    named = all(view.last is None or view.last.unnamed is None for view in views.values())
    for job in fleet.live():
        # A manager that does not answer now says nothing about the connections it had.
        found = listed.get(job.intent_id, [])
        if job.workers and not all_answer:
            kept = [one for one in job.workers if _silent(views.get(one.manager), now, gone_s)]
            found = _once_each(found + kept) if found and kept else found or kept
        if found:
            _connected(fleet, job, tuple(found), now, changes)
        else:
            _not_connected(fleet, job, all_answer and named, now)


def _once_each(several: list[Listed]) -> list[Listed]:
    """One entry per worker. Of two managers that list the same worker, the one where it has work is right."""
    found: dict[str, Listed] = {}
    for one in several:
        known = found.get(one.facts.worker_id)
        if known is None or (one.facts.tasks_running, one.facts.load) > (known.facts.tasks_running, known.facts.load):
            found[one.facts.worker_id] = one
    return list(found.values())


def _silent(view: ManagerView | None, now: float, gone_s: float) -> bool:
    return view is not None and view.gone_since is not None and now - view.gone_since <= gone_s


def _connected(fleet: Fleet, job: Job, workers: tuple[Listed, ...], now: float, changes: Changes) -> None:
    first = not job.connected_once
    if job.state not in (_S.CONNECTED, _S.DRAINING):
        fleet.move(job, Fact.LISTED, now)
    job.manager, job.workers, job.unlisted_since = workers[0].manager, workers, None
    if first and not job.requeued:  # of one that is back in the queue a manager lists the worker that was
        job.connected_once = True
        changes.connected.append(job)
    if job.state is _S.CONNECTED and job.leaving:
        fleet.move(job, Fact.TOLD_TO_LEAVE, now)


def _not_connected(fleet: Fleet, job: Job, all_answer: bool, now: float) -> None:
    if job.workers:
        job.workers = ()
        if job.state is _S.CONNECTED:
            fleet.move(job, Fact.UNLISTED, now)
    if job.state is _S.DRAINING and job.unlisted_since is None:
        job.unlisted_since = now
    if job.state is not _S.RUNNING or not all_answer:
        job.unconnected_since = None  # time in which it could not be seen does not count against it
    elif job.unconnected_since is None:
        job.unconnected_since = now

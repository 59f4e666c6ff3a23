"""The story of each job, told from the changes of its record.

Owns what of a job is worth remembering, and why it happened. Looks at job records once per pass and changes none. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskvine_core.records import NamedTuple
from vine_factory.batch.base import JobStatus
from vine_factory.core import FactoryCore
from vine_factory.explain import sentence
from vine_factory.jobs import Job, JobState
from vine_factory.readings import Known, Reading


class _Seen(NamedTuple):
    state: JobState
    batch_id: str
    workers: tuple[str, ...]
    asked_at: float | None
    refused_at: float | None


_GOING = (JobState.DRAINING, JobState.ENDED)
_NEW = _Seen(JobState.INTENDED, "", (), None, None)


class Stories:
    """Remembers how each job was at the last look."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def look(self, core: FactoryCore, listings: Mapping[str, Reading[tuple[JobStatus, ...]]],
             now: float) -> list[dict[str, Any]]:
        """What has happened since the last look, as JSON-able lines."""
        told: list[dict[str, Any]] = []
        changed = []
        for job in core.fleet.jobs.values():
            seen = _Seen(job.state, job.batch_id, tuple(one.facts.worker_id for one in job.workers),
                         job.retire_asked_at, job.retire_refused_at)
            if self._seen.get(job.intent_id) != seen:
                changed.append((job, self._seen.get(job.intent_id), seen))
        if changed:
            said = _said(listings, {job.intent_id for job, _, _ in changed})
            for job, before, seen in changed:
                told += ({"at": round(now, 3), "job": job.intent_id, "pool": job.pool, "batch_id": job.batch_id, **what}
                         for what in _changes(core, job, before, seen, said.get(job.intent_id)))
                self._seen[job.intent_id] = seen
        for intent_id in self._seen.keys() - core.fleet.jobs.keys():
            del self._seen[intent_id]
        return told


def _said(listings: Mapping[str, Reading[tuple[JobStatus, ...]]], wanted: Iterable[str]) -> dict[str, JobStatus]:
    ids = set(wanted)
    return {status.tag.intent_id: status for reading in listings.values() if isinstance(reading, Known)
            for status in reading.value if status.tag.intent_id in ids}


def _changes(core: FactoryCore, job: Job, before: _Seen | None, seen: _Seen,
             status: JobStatus | None) -> Iterable[dict[str, Any]]:
    if before is None:
        yield {"event": "decided" if job.ours else "found", "why": _decision(core, job)}
        before = _NEW
    if seen.batch_id and not before.batch_id:
        yield {"event": "accepted"}
    if seen.workers and seen.workers != before.workers:
        yield {"event": "connected", "manager": job.manager, "workers": list(seen.workers),
               "hosts": [one.facts.hostname for one in job.workers]}
    if seen.asked_at is not None and seen.asked_at != before.asked_at:
        yield {"event": "asked to leave", "why": _decision(core, job)}
    if seen.refused_at is not None and seen.refused_at != before.refused_at:
        yield {"event": "kept by its manager"}
    if seen.state is JobState.ENDED and job.leaving_since is not None and before.state not in _GOING:
        yield {"event": JobState.DRAINING.value, "why": _why_leaving(core, job, before)}
    taken = seen.state is JobState.SUBMITTED and before.state is JobState.INTENDED  # told as "accepted"
    if seen.state is not before.state and seen.state is not JobState.CONNECTED and not taken:
        yield {"event": seen.state.value, **_details(core, job, before, status)}


def _details(core: FactoryCore, job: Job, before: _Seen, status: JobStatus | None) -> dict[str, Any]:
    if job.state is JobState.ENDED:
        words = {} if status is None else {"said": status.said, "stderr": status.stderr_tail, "host": status.host,
                                           "exit_code": status.exit_code}
        return {"why": job.end_reason, **{name: value for name, value in words.items() if value not in ("", None)}}
    if job.state is JobState.DRAINING:
        return {"why": _why_leaving(core, job, before)}
    if job.state is JobState.RUNNING and before.state is JobState.CONNECTED:
        return {"why": "no manager lists its worker any more"}
    return {} if status is None or not (status.said or status.host) else {"said": status.said, "host": status.host}


def _why_leaving(core: FactoryCore, job: Job, before: _Seen) -> str:
    if core.stopping:
        return f"the factory ends: {core.stopping}"
    if job.cancelled_at is None:
        asked = before.asked_at is not None
        return "its manager has let it go" if asked else "its worker leaves by itself or its program told it to"
    if job.unconnected_since is not None:
        return f"not connected after {core.settings.unconnected_s:g} s: replaced"
    return f"cancelled: {_decision(core, job)}"


def _decision(core: FactoryCore, job: Job) -> str:
    state = core.pools.get(job.pool)
    return sentence(state.decision) if state is not None and state.decision is not None else ""

"""Job ads of HTCondor, from its queue or its history, as its tools or its bindings give them.

Owns the attributes that are asked for and what they mean. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from taskvine_core.errors import BatchUnavailable
from taskvine_core.records import NamedTuple
from vine_factory.batch.base import BatchState, JobTag
from vine_factory.batch.parse.condor_log import held

ATTRIBUTES = ("ClusterId", "ProcId", "VineTag", "JobStatus", "EnteredCurrentStatus", "CompletionDate",
              "JobCurrentStartDate", "JobCurrentStartExecutingDate", "RemoteHost", "LastRemoteHost", "HoldReason",
              "HoldReasonCode", "HoldReasonSubCode", "LastRejMatchReason", "LastRejMatchTime", "LastMatchTime",
              "RemoveReason", "ExitCode", "ExitBySignal", "ExitSignal")
"""A projection: a fifth of the time and memory of whole ads."""

IDLE, RUNNING, REMOVED, COMPLETED, HELD, TRANSFERRING, SUSPENDED = range(1, 8)
_STATES = {IDLE: BatchState.QUEUED, RUNNING: BatchState.RUNNING, COMPLETED: BatchState.ENDED, HELD: BatchState.HELD,
           TRANSFERRING: BatchState.RUNNING, SUSPENDED: BatchState.RUNNING}


class QueueEntry(NamedTuple):
    """One job of an answer. ``state`` None: a status this module does not know, or removed but not yet gone (then
    ``leaving``). ``exit_code`` None when it has none."""

    tag: JobTag
    batch_id: str
    state: BatchState | None
    leaving: bool = False
    host: str = ""
    started_at: float = 0.0
    entered_at: float = 0.0
    exit_code: int | None = None
    said: str = ""


def listing(text: str) -> list[dict[str, object]]:
    """What a tool printed with ``-json``; nothing at all when there is no job.

    Raises:
        BatchUnavailable: it is not that. Half a listing is no listing.
    """
    if not text.strip():
        return []
    try:
        ads = json.loads(text)
    except ValueError as problem:
        raise BatchUnavailable("cannot read the listing", said=f"{problem}: {text[:80]!r}") from None
    if not isinstance(ads, list) or not all(isinstance(ad, dict) for ad in ads):
        raise BatchUnavailable("cannot read the listing", said=f"no list of job ads: {text[:80]!r}")
    return ads


def entries(ads: Sequence[Mapping[str, object]]) -> list[QueueEntry]:
    """Those of the ads that are jobs of ours.

    Raises:
        BatchUnavailable: one has no number or no status: then the answer is not what was asked for.
    """
    found = []
    for ad in ads:
        cluster, proc, status = ad.get("ClusterId"), ad.get("ProcId"), ad.get("JobStatus")
        if not (isinstance(cluster, int) and isinstance(proc, int) and isinstance(status, int)):
            raise BatchUnavailable("cannot read the listing", said=f"a job ad without number or status: {dict(ad)!r}")
        tag = JobTag.parse(str(ad.get("VineTag", "")))
        if tag is not None:
            found.append(_entry(ad, tag, f"{cluster}.{proc}", status))
    return found


def _entry(ad: Mapping[str, object], tag: JobTag, batch_id: str, status: int) -> QueueEntry:
    state = _STATES.get(status)
    host = _text(ad, "RemoteHost") or (_text(ad, "LastRemoteHost") if status in (REMOVED, COMPLETED) else "")
    started = _number(ad, "JobCurrentStartExecutingDate") or _number(ad, "JobCurrentStartDate")
    return QueueEntry(tag, batch_id, state, status == REMOVED, host.rpartition("@")[2],
                      0.0 if state in (BatchState.QUEUED, BatchState.HELD) else started,
                      _number(ad, "CompletionDate") or _number(ad, "EnteredCurrentStatus"), exit_code(ad),
                      _said(ad, status))


def exit_code(ad: Mapping[str, object]) -> int | None:
    """How the job's process ended, negative for a signal; None while it has not or when it is not known."""
    if ad.get("ExitBySignal") is True:
        signal = ad.get("ExitSignal")
        return -signal if isinstance(signal, int) else None
    code = ad.get("ExitCode")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _said(ad: Mapping[str, object], status: int) -> str:
    if status == HELD:
        code, subcode = ad.get("HoldReasonCode"), ad.get("HoldReasonSubCode")
        return held(_text(ad, "HoldReason"), code if isinstance(code, int) else None,
                    subcode if isinstance(subcode, int) else None)
    if status == IDLE:  # the negotiator's last word, unless it has found a machine since
        late = _number(ad, "LastRejMatchTime") >= _number(ad, "LastMatchTime")
        return _text(ad, "LastRejMatchReason").strip() if late else ""
    if status == REMOVED:
        return _text(ad, "RemoveReason")
    if status == SUSPENDED:
        return "suspended"
    return "" if status in _STATES else f"HTCondor gives it the unknown status {status}"


def _text(ad: Mapping[str, object], name: str) -> str:
    value = ad.get(name)
    return value if isinstance(value, str) else ""


def _number(ad: Mapping[str, object], name: str) -> float:
    value = ad.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0

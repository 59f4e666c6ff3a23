"""What Slurm's states, reasons and complaints mean.

Owns the three tables and nothing else. Pure. Slurm's tools have no exit status for it: words are all there is.
"""

from __future__ import annotations

import re

from vine_factory.batch.base import BatchState

STATES: dict[str, BatchState] = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_FED", "CONFIGURING", "POWER_UP_NODE", "SUSPENDED"),
                    BatchState.QUEUED),
    **dict.fromkeys(("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"), BatchState.HELD),
    **dict.fromkeys(("RUNNING", "COMPLETING", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"), BatchState.RUNNING),
    **dict.fromkeys(("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
                     "OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"), BatchState.ENDED),
}
"""A node that boots is not a worker that does not connect; a job that completes may come back (requeue)."""

_FOR_EVER = frozenset((
    "PartitionDown", "PartitionInactive", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig",
    "BadConstraints", "AccountNotAllowed", "InvalidAccount", "InvalidQOS", "QOSNotAllowed", "QOSTimeLimit",
    "ReqNodeNotAvail", "JobHeldAdmin", "JobHeldUser", "JobHoldMaxRequeue", "DependencyNeverSatisfied",
    "ReservationDeleted", "InvalidReservation", "SystemFailure", "JobLaunchFailure",
    "MaxMemPerLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit"))
_PER_JOB = re.compile(r"(Assoc|QOS)(Max\w*Per(Job|Node)(Limit)?|Min\w+)", re.ASCII)
_MAINTENANCE = re.compile(r"maint", re.IGNORECASE)
_HELD = re.compile(r"\bheld\b|requeued in held", re.IGNORECASE)

_NO_ANSWER = re.compile(
    r"unable to contact|timed? ?out|connection|connect failure|zero bytes were transmitted|standby|munge"
    r"|configuration file|not responding|communication|message receive|transport endpoint|authentication"
    r"|insane message|unspecified error|temporarily|resolve|network|slurm_persist|no slurm", re.IGNORECASE)
_ACCOUNTING_OFF = re.compile(r"accounting storage is (disabled|not)|accounting_storage/none", re.IGNORECASE)
_OVER = re.compile(r"invalid job id|already complet|job/step already|not running|can not be altered now"
                   r"|job has already finished|job is pending execution", re.IGNORECASE)
_NO_SUCH_JOB = re.compile(r"invalid job id", re.IGNORECASE)
_WARNING = re.compile(r"^(\w+: )?(warning|info|debug\w*|verbose)\b", re.IGNORECASE)


def state_of(state: str, reason: str) -> BatchState | None:
    """What a state, with its reason, is for the factory; None when it is not known here."""
    found = STATES.get(state.split()[0].rstrip("+").upper() if state.split() else "")
    return BatchState.HELD if found is BatchState.QUEUED and hopeless(reason) else found


def hopeless(reason: str) -> bool:
    """Whether a job that waits for this waits until somebody does something about it."""
    word = re.split(r"[\s,(]", reason.strip(), maxsplit=1)[0]
    if word == "ReqNodeNotAvail" and _MAINTENANCE.search(reason):
        return False
    return word in _FOR_EVER or bool(_PER_JOB.fullmatch(word)) or bool(_HELD.search(reason))


def reason_words(reason: str) -> str:
    """A reason worth telling, else "": a job that starts in order has none."""
    return "" if reason.strip().lower() in ("", "none", "(null)", "priority", "resources") else reason.strip()


def unanswered(said: str) -> bool:
    """Whether a failed command was lost (nobody knows what became of it), rather than refused."""
    return bool(_NO_ANSWER.search(said))


def accounting_off(said: str) -> bool:
    """Whether a cluster keeps no records of jobs that are gone."""
    return bool(_ACCOUNTING_OFF.search(said))


def no_such_job(said: str) -> bool:
    """Whether Slurm has no job of that number any more."""
    return bool(_NO_SUCH_JOB.search(said))


def complaints(said: str) -> str:
    """What of scancel's words is a problem: that a job is over, or not there, is none."""
    return "\n".join(line for line in said.splitlines()
                     if line.strip() and not _OVER.search(line) and not _WARNING.match(line.strip()))

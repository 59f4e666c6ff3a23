"""The life of one batch job that is to become a worker.

Owns the states, the table of allowed transitions and the record of one job. Every transition in the factory goes
through `advance`. Must not know batch systems, managers or policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from taskvine_core.errors import StateError
from taskvine_core.records import NamedTuple
from vine_factory.demand import BUSY, DRAINING, IDLE, WorkerFacts


class JobState(str, Enum):
    """Where a job is. Everything but ENDED counts against the pool's maximum."""

    INTENDED = "intended"      # journalled; the batch system may or may not have it
    SUBMITTED = "submitted"    # accepted by the batch system
    QUEUED = "queued"
    HELD = "held"              # will not start by itself
    RUNNING = "running"        # started, not connected to a manager
    CONNECTED = "connected"    # a manager lists it
    DRAINING = "draining"      # told to leave, by a manager, by us or by itself
    ENDED = "ended"


class Fact(str, Enum):
    """What can be learnt about a job."""

    ACCEPTED = "accepted"
    SEEN_QUEUED = "seen queued"
    SEEN_HELD = "seen held"
    SEEN_RUNNING = "seen running"
    LISTED = "listed by a manager"
    UNLISTED = "no longer listed"
    TOLD_TO_LEAVE = "told to leave"
    OVER = "over"
    REAPPEARED = "reappeared"


_S, _F = JobState, Fact

TABLE: dict[JobState, dict[Fact, JobState]] = {
    _S.INTENDED: {_F.ACCEPTED: _S.SUBMITTED, _F.SEEN_QUEUED: _S.QUEUED, _F.SEEN_HELD: _S.HELD,
                  _F.SEEN_RUNNING: _S.RUNNING, _F.LISTED: _S.CONNECTED, _F.TOLD_TO_LEAVE: _S.DRAINING,
                  _F.OVER: _S.ENDED},
    _S.SUBMITTED: {_F.SEEN_QUEUED: _S.QUEUED, _F.SEEN_HELD: _S.HELD, _F.SEEN_RUNNING: _S.RUNNING,
                   _F.LISTED: _S.CONNECTED, _F.TOLD_TO_LEAVE: _S.DRAINING, _F.OVER: _S.ENDED},
    _S.QUEUED: {_F.SEEN_HELD: _S.HELD, _F.SEEN_RUNNING: _S.RUNNING, _F.LISTED: _S.CONNECTED,
                _F.TOLD_TO_LEAVE: _S.DRAINING, _F.OVER: _S.ENDED},
    # Released by somebody, or the batch system has thought better of it.
    _S.HELD: {_F.SEEN_QUEUED: _S.QUEUED, _F.SEEN_RUNNING: _S.RUNNING, _F.LISTED: _S.CONNECTED,
              _F.TOLD_TO_LEAVE: _S.DRAINING, _F.OVER: _S.ENDED},
    # A batch system may put a running job back into its queue (preemption).
    _S.RUNNING: {_F.SEEN_QUEUED: _S.QUEUED, _F.SEEN_HELD: _S.HELD, _F.LISTED: _S.CONNECTED,
                 _F.TOLD_TO_LEAVE: _S.DRAINING, _F.OVER: _S.ENDED},
    _S.CONNECTED: {_F.UNLISTED: _S.RUNNING, _F.TOLD_TO_LEAVE: _S.DRAINING, _F.OVER: _S.ENDED},
    _S.DRAINING: {_F.OVER: _S.ENDED},
    # Taken for gone because listings did not have it, then seen alive: it is ours and counts again.
    _S.ENDED: {_F.REAPPEARED: _S.SUBMITTED},
}

WAITING = frozenset({_S.INTENDED, _S.SUBMITTED, _S.QUEUED, _S.HELD, _S.RUNNING})
"""States of a job that is expected to connect, or of which it is not known yet that it will not."""


class Listed(NamedTuple):
    """A worker of a job, and the key of the manager that lists it."""

    manager: str
    facts: WorkerFacts


@dataclass(slots=True)
class Job:
    """One job, which becomes one worker or several, and again when it was preempted.

    Times: seconds since the epoch, None when it has not happened.
    """

    intent_id: str
    pool: str
    created_at: float
    state: JobState = JobState.INTENDED
    batch_id: str = ""
    ours: bool = False                  # submitted by this run, so that its start-up can be timed
    in_flight: bool = False             # the submit call has not answered
    touched_at: float = 0.0             # listings asked for before this say nothing about the job
    seen: bool = False                  # in a listing, at least once
    running_since: float | None = None
    started_at: float = 0.0             # by the batch system's clock, 0 = unknown
    requeued: bool = False              # preempted, and not seen running again
    connected_once: bool = False
    survived: bool = False              # lived past the time in which broken workers die
    proven: bool = False                # was connected, and lived on for a while
    host: str = ""                      # where it runs or ran, in the batch system's words
    held_since: float | None = None
    held_words: str = ""
    manager: str = ""                   # key of a manager that lists or listed it
    workers: tuple[Listed, ...] = ()    # what managers say about its workers, () when unlisted
    unconnected_since: float | None = None
    absent_since: float | None = None
    absent_listings: int = 0
    leaving_since: float | None = None
    unlisted_since: float | None = None
    retire_asked_at: float | None = None
    retire_refused_at: float | None = None
    cancelled_at: float | None = None
    killed_at: float | None = None
    ended_at: float | None = None
    end_reason: str = ""

    @property
    def live(self) -> bool:
        """Not known to have ended."""
        return self.state is not JobState.ENDED

    @property
    def active(self) -> bool:
        """Counts as something that is there or will be."""
        return self.state is not JobState.ENDED and self.state is not JobState.DRAINING

    @property
    def idle(self) -> bool:
        """It has workers, and none of them has anything to do."""
        return bool(self.workers) and all(one.facts.state == IDLE and one.facts.tasks_running == 0
                                          for one in self.workers)

    @property
    def busy(self) -> bool:
        """One of its workers has work."""
        return any(one.facts.state == BUSY or one.facts.tasks_running for one in self.workers)

    @property
    def leaving(self) -> bool:
        """All of its workers are on their way out."""
        return bool(self.workers) and all(one.facts.state == DRAINING for one in self.workers)

    @property
    def load(self) -> float:
        """How many workers' worth of it is in use."""
        return sum(one.facts.load for one in self.workers)


def advance(job: Job, fact: Fact) -> None:
    """Move ``job`` along the table.

    Raises:
        StateError: the table has no such transition; a defect of the caller.
    """
    target = TABLE[job.state].get(fact)
    if target is None:
        raise StateError(f"job {job.intent_id} is {job.state.value} and cannot be {fact.value!r}")
    job.state = target

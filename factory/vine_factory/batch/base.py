"""The contract of a batch system.

Owns the words in which the factory and a batch system talk. An implementation does I/O and holds no policy: it does
not retry, does not decide what a silence means, does not forget jobs. Calls may block; they are made from a thread
of their own, one at a time, never from the loop.

What every implementation guarantees (and `tests/contract/test_batch_contract.py` checks on each):

- a submitted job can be found again by its tag alone, also by a new process that has never seen it;
- `poll_many` answers about *all* jobs with the factory's id in one go, or raises BatchUnavailable; it never returns
  half an answer. An ended job stays in the answer for at least `defaults.ENDED_KEPT_S` while this object lives;
- `cancel_many` of a job that is over is no error;
- errors are BatchRejected (asking again is pointless; `said` has the system's words) or BatchUnavailable (nothing is
  known: the call may or may not have had its effect).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from taskvine_core.errors import BatchError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory.batch.place import Place

TAG_VARIABLE = "VINE_FACTORY_TAG"
"""Environment variable of every job that holds the text of its tag."""


class JobTag(NamedTuple):
    """Identity that travels with the job. ``intent_id`` is unique over all runs of all factories."""

    factory_id: str
    pool: str
    intent_id: str

    def text(self) -> str:
        """One word, as it is written into a job's environment or attributes."""
        return f"{self.factory_id}/{self.pool}/{self.intent_id}"

    @staticmethod
    def parse(text: str) -> JobTag | None:
        """Inverse of `text`; None when it is not one of ours."""
        parts = text.split("/")
        return JobTag(*parts) if len(parts) == 3 and all(parts) else None


class JobRequest(NamedTuple):
    """One job to submit. ``environment`` is added to what the batch system gives. ``walltime_s`` 0 = no limit.

    ``ship``: files the job finds in its working directory under their own names; empty when ``command`` names them by
    paths that exist wherever jobs run. ``copies``: how many processes of ``command`` the job runs, one per node or
    whatever the batch system's template makes of it; ``resources`` are those of one copy.
    """

    tag: JobTag
    command: tuple[str, ...]
    environment: Mapping[str, str]
    resources: Resources
    walltime_s: float = 0.0
    ship: tuple[Path, ...] = ()
    copies: int = 1


class SubmitResult(NamedTuple):
    """What became of one request: ``batch_id``, or ``error`` (then it does not exist, or for BatchUnavailable:
    nobody knows)."""

    intent_id: str
    batch_id: str
    error: BatchError | None


class JobHandle(NamedTuple):
    """A job to act on. ``batch_id`` "" when the answer of the submission was lost."""

    tag: JobTag
    batch_id: str


class BatchState(str, Enum):
    """The states all batch systems have. Preempted and requeued is QUEUED; held or waiting for ever is HELD."""

    QUEUED = "queued"
    HELD = "held"
    RUNNING = "running"
    ENDED = "ended"


class JobStatus(NamedTuple):
    """One job in an answer. ``exit_code`` None when unknown, negative for a signal. ``said``: the system's words
    (hold reason, pending reason). ``stderr_tail``: last words of a job that ended badly, "" when not to be had.
    ``started_at``, ``ended_at`` seconds since the epoch, 0 when it has not happened or is unknown."""

    tag: JobTag
    batch_id: str
    state: BatchState
    host: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    exit_code: int | None = None
    said: str = ""
    stderr_tail: str = ""


class BatchSystem(ABC):
    """One batch system. See the module's docstring for what an implementation owes."""

    name: str
    #: Seconds after which a submission whose answer was lost cannot show up any more.
    settles_s: float
    #: What the driver was made with, or None. Drivers look here each time, because it changes: see `reconfigure`.
    place: Place | None = None

    @abstractmethod
    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """Submit; one result per request, same order.

        Raises:
            BatchUnavailable: no answer; each of the requests may or may not exist.
            BatchRejected: all are refused for the same reason.
        """

    @abstractmethod
    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """All jobs of this factory.

        Raises:
            BatchUnavailable: no answer.
        """

    @abstractmethod
    def cancel_many(self, jobs: Sequence[JobHandle], *, force: bool) -> None:
        """Ask jobs to end (SIGTERM, so that a worker drains), or with ``force`` end them and all they started.

        Raises:
            BatchUnavailable: no answer.
        """

    @abstractmethod
    def describe(self, job: JobHandle) -> dict[str, object]:
        """All the batch system knows of one job, in its own words, with "stdout" and "stderr" when to be had.

        Raises:
            BatchRejected: no such job.
            BatchUnavailable: no answer.
        """

    @abstractmethod
    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """What `submit_many` would hand to the batch system, byte for byte, without asking it anything.

        Returns:
            Texts by name, in order: files (submit description, job script), and "command" with the command line.

        Raises:
            ConfigError: a template or value is wrong.
        """

    @abstractmethod
    def check(self, request: JobRequest) -> str:
        """Ask the live system whether it would take this job, without running anything; its own words, or "".

        Raises:
            BatchRejected: it would not; ``said`` has its reason.
            BatchUnavailable: no answer.
        """

    def reconfigure(self, place: Place) -> None:
        """From the next submission on use these options, blocks and excluded hosts. Called in the driver's thread;
        ``factory_id``, ``pool`` and ``directory`` are those it was made with."""
        if self.place is not None:
            self.place = place

    def close(self) -> None:
        """Let go of handles. Jobs are not touched."""
        return

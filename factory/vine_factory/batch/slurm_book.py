"""What is known of the jobs of one pool, from listings, exit codes and the accounting.

Owns the records and how long they are kept. Must not ask anybody anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vine_factory import defaults
from vine_factory.batch.base import BatchState, JobStatus, JobTag
from vine_factory.batch.parse.slurm import Listed, Past, plain_state
from vine_factory.batch.parse.slurm_words import reason_words, state_of

LOOKUPS = 6
"""So often the accounting is asked for a job that left the listing: it lags by seconds, at times by a minute."""
COMPLETED, CANCELLED = "COMPLETED", "CANCELLED"


@dataclass(slots=True)
class Entry:
    """One job. Times: seconds since the epoch, 0 when it has not happened."""

    tag: JobTag
    batch_id: str
    state: BatchState = BatchState.QUEUED
    host: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    exit_code: int | None = None
    said: str = ""
    stderr_tail: str = ""
    noticed_at: float = 0.0    # when we learnt of the end
    listed: bool = True        # in the last listing, or submitted after it
    lookups: int = 0
    cancelled: bool = False    # by us, while it waited: an element of an array then leaves no trace
    ended_as: str = ""         # Slurm's state at the end
    told: str = ""             # a state nobody knows, once it was told


class JobBook:
    """The jobs of one pool, by intent."""

    def __init__(self) -> None:
        self._jobs: dict[str, Entry] = {}

    def find(self, intent_id: str) -> Entry | None:
        """The job of an intent."""
        return self._jobs.get(intent_id)

    def live(self) -> list[Entry]:
        """Jobs that have not ended."""
        return [entry for entry in self._jobs.values() if entry.state is not BatchState.ENDED]

    def submitted(self, tag: JobTag, batch_id: str) -> None:
        """Slurm took a job."""
        self._jobs[tag.intent_id] = Entry(tag, batch_id)

    def listing(self, seen: Iterable[tuple[JobTag, Listed]], now: float) -> list[Entry]:
        """Take the whole queue; returns jobs that it shows to have ended."""
        for entry in self._jobs.values():
            entry.listed = False
        ended = []
        for tag, job in seen:
            known = self._jobs.get(tag.intent_id)
            if known is not None and known.batch_id == job.number:
                entry = known
            elif state_of(job.state, job.reason) is BatchState.ENDED and self._is_past(known, job, now):
                continue
            else:
                entry = self._jobs[tag.intent_id] = Entry(tag, job.number)
            entry.listed, entry.lookups = True, 0
            was_over = entry.state is BatchState.ENDED
            _see(entry, job)
            if entry.state is BatchState.ENDED and not was_over:
                _close(entry, job.ended_at or now, now)
                ended.append(entry)
        for entry in self.live():
            if entry.cancelled and not entry.listed:
                entry.ended_as = entry.said = CANCELLED
                _close(entry, now, now)
                ended.append(entry)
        return ended

    def cancelled(self, tags: Iterable[JobTag]) -> None:
        """These were told to go while they waited."""
        for tag in tags:
            entry = self._jobs.get(tag.intent_id)
            if entry is not None:
                entry.cancelled = True

    def unexplained(self) -> list[Entry]:
        """Jobs that left the listing without a word, while it is worth asking the accounting."""
        return [entry for entry in self._jobs.values()
                if not entry.listed and entry.state is not BatchState.ENDED and entry.lookups < LOOKUPS]

    def past(self, found: Iterable[Past], asked: Iterable[Entry], now: float) -> list[Entry]:
        """Take what the accounting has of ``asked``; returns jobs that it shows to have ended."""
        by_number = {one.number: one for one in found}
        ended = []
        for entry in asked:
            entry.lookups += 1
            one = by_number.get(entry.batch_id)
            if one is None or state_of(one.state, "") is not BatchState.ENDED:
                continue
            entry.ended_as, entry.said = plain_state(one.state), ended_words(one.state, "")
            self.exits([entry], {entry.batch_id: one.exit_code})
            entry.host, entry.started_at = one.host or entry.host, one.started_at or entry.started_at
            _close(entry, one.ended_at or now, now)
            ended.append(entry)
        return ended

    @staticmethod
    def exits(entries: Iterable[Entry], codes: Mapping[str, int | None]) -> None:
        """Take exit codes. What never ran, or ended for a reason of Slurm's own, did not succeed with 0."""
        for entry in entries:
            code = 0 if entry.ended_as == COMPLETED else codes.get(entry.batch_id)
            own = entry.ended_as == COMPLETED or (entry.ended_as == CANCELLED and entry.started_at > 0)
            entry.exit_code = code if code or own else None

    def forget(self, now: float) -> None:
        """Let go of jobs that ended long ago and of those that are gone without a trace."""
        for intent_id, entry in list(self._jobs.items()):
            over = entry.state is BatchState.ENDED and now - entry.noticed_at > defaults.ENDED_KEPT_S
            if (over and not entry.listed) or (not over and not entry.listed and entry.lookups >= LOOKUPS):
                del self._jobs[intent_id]

    def statuses(self, now: float) -> list[JobStatus]:
        """All jobs but those that the queue does not have and nobody can tell why, and those over long ago."""
        return [JobStatus(entry.tag, entry.batch_id, entry.state, entry.host, entry.started_at, entry.ended_at,
                          entry.exit_code, entry.said, entry.stderr_tail) for entry in self._jobs.values()
                if (now - entry.noticed_at <= defaults.ENDED_KEPT_S if entry.state is BatchState.ENDED
                    else entry.listed)]

    @staticmethod
    def _is_past(entry: Entry | None, job: Listed, now: float) -> bool:
        """An ended job that need not be taken up: another of the same tag lives, or it ended long ago."""
        return entry is not None or now - (job.ended_at or now) > defaults.ENDED_KEPT_S


def ended_words(state: str, reason: str) -> str:
    """How a job ended, in Slurm's words; "" when it ended by itself and well."""
    words = [word for word in (state, reason_words(reason)) if word and word != COMPLETED]
    return ": ".join(words)


def _see(entry: Entry, job: Listed) -> None:
    """Bring an entry up to date with the queue. An unknown state keeps the last known one."""
    state = state_of(job.state, job.reason)
    if state is None:
        entry.said = "" if entry.told == job.state else f"Slurm says {job.state}, which is not known here"
        entry.told = job.state
        return
    restarted = entry.started_at and state in (BatchState.QUEUED, BatchState.HELD)
    if state is BatchState.ENDED:
        entry.ended_as, entry.said = plain_state(job.state), ended_words(job.state, job.reason)
    else:
        shown = job.state if job.state not in ("PENDING", "RUNNING") else ""
        entry.said = ": ".join(word for word in (shown, reason_words(job.reason)) if word)
        entry.exit_code, entry.ended_at, entry.noticed_at = None, 0.0, 0.0
    if restarted:
        entry.said = f"back in the queue: {entry.said}"
    entry.state = state
    if state in (BatchState.QUEUED, BatchState.HELD):
        entry.host, entry.started_at = "", 0.0  # the expected start is no start
    else:
        entry.host, entry.started_at = job.host or entry.host, job.started_at


def _close(entry: Entry, at: float, now: float) -> None:
    entry.state, entry.ended_at, entry.noticed_at = BatchState.ENDED, at, now

"""What is known of the jobs of one HTCondor pool, put together from its event log, its queue and its history.

Owns which of them is believed when they differ. Pure. The queue is right about what is in it: the log misses shadows
and machines that vanish, and has nothing when it could not be written. The log knows first, and knows how jobs ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vine_factory import defaults
from vine_factory.batch.base import BatchState, JobStatus, JobTag
from vine_factory.batch.parse.condor_ads import QueueEntry
from vine_factory.batch.parse.condor_log import JobEvent, Kind

LINGER_S = 60.0
"""A job whose end is in the log may be in the queue for a moment longer; after this the queue is believed."""
LOOKUPS = 3
"""So often the history is asked for a job that left without a word; then it is not ours to explain."""
LOOKUP_GAP_S = 1.0
"""A job is in the log a moment before it is in the history."""
KEPT_EVENTS = 8
"""Of each job, for `describe`: a life has half a dozen."""

_STATES = {Kind.SUBMITTED: BatchState.QUEUED, Kind.RUNNING: BatchState.RUNNING, Kind.REQUEUED: BatchState.QUEUED,
           Kind.TERMINATED: BatchState.ENDED, Kind.REMOVED: BatchState.ENDED, Kind.HELD: BatchState.HELD,
           Kind.RELEASED: BatchState.QUEUED, Kind.SUSPENDED: BatchState.RUNNING,
           Kind.DISCONNECTED: BatchState.RUNNING}


@dataclass(slots=True)
class Entry:
    """One job. ``noticed_at``: when its end was learnt. ``removed``: it ended because somebody removed it."""

    tag: JobTag
    batch_id: str
    state: BatchState = BatchState.QUEUED
    host: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    noticed_at: float = 0.0
    exit_code: int | None = None
    removed: bool = False
    said: str = ""
    listed: bool = True
    lookups: int = 0
    looked_up_at: float = 0.0
    stderr_tail: str = ""
    events: list[str] = field(default_factory=list)


class JobBook:
    """The jobs. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._jobs: dict[str, Entry] = {}
        self._by_number: dict[str, Entry] = {}

    def find(self, intent_id: str) -> Entry | None:
        """The job of an intent."""
        return self._jobs.get(intent_id)

    def live(self) -> list[Entry]:
        """Jobs that have not ended."""
        return [entry for entry in self._jobs.values() if entry.state is not BatchState.ENDED]

    def submitted(self, tag: JobTag, batch_id: str) -> None:
        """The schedd took a job."""
        self._open(tag, batch_id)

    def event(self, event: JobEvent, now: float) -> Entry | None:
        """Take one event of the log; returns the job if this ended it."""
        entry = self._by_number.get(event.batch_id)
        if event.kind is Kind.SUBMITTED:
            tag = JobTag.parse(event.tag)
            if tag is None:
                return None
            entry = self._open(tag, event.batch_id)
        if entry is None or entry.state is BatchState.ENDED:
            return None
        entry.events = [*entry.events[1 - KEPT_EVENTS:], _told(event)]
        entry.state, entry.said, entry.listed = _STATES[event.kind], event.said, True
        if event.kind is Kind.RUNNING:
            entry.host, entry.started_at = event.host or entry.host, entry.started_at or event.at
        elif event.kind is Kind.REQUEUED:
            entry.said = f"back in the queue: {event.said}"
        if entry.state in (BatchState.QUEUED, BatchState.HELD):
            entry.host, entry.started_at = "", 0.0
        if entry.state is BatchState.ENDED:
            self._close(entry, event.at, event.exit_code, event.kind is Kind.REMOVED, now)
            return entry
        return None

    def listing(self, entries: Sequence[QueueEntry], now: float) -> list[Entry]:
        """Take the whole queue; returns jobs that it shows to have ended."""
        for entry in self._jobs.values():
            entry.listed = False
        ended = []
        for seen in entries:
            entry = self._open(seen.tag, seen.batch_id)
            entry.listed, entry.lookups = True, 0
            if entry.state is BatchState.ENDED:
                if seen.leaving or seen.state in (BatchState.ENDED, None) or now - entry.noticed_at < LINGER_S:
                    continue
                entry.ended_at, entry.exit_code, entry.removed = 0.0, None, False
            if seen.state is BatchState.ENDED:
                self._close(entry, seen.entered_at or now, seen.exit_code, False, now)
                ended.append(entry)
            else:
                _see(entry, seen)
        return ended

    def unexplained(self, now: float) -> list[Entry]:
        """Jobs of which the history may know more, while it is worth asking: live ones that the last listing did not
        have, and removed ones, of which the log does not tell how their process ended."""
        return [entry for entry in self._jobs.values() if entry.lookups < LOOKUPS
                and not 0 <= now - entry.looked_up_at < LOOKUP_GAP_S and (
            (entry.removed and entry.exit_code is None and entry.started_at > 0)
            if entry.state is BatchState.ENDED else not entry.listed)]

    def past(self, entries: Sequence[QueueEntry], asked: Iterable[Entry], now: float) -> list[Entry]:
        """Take what the history has of ``asked``; returns jobs that it shows to have ended."""
        ended = []
        for one in asked:
            one.lookups += 1
            one.looked_up_at = now
        for seen in entries:
            entry = self._by_number.get(seen.batch_id)
            if entry is None or entry.tag != seen.tag:
                continue
            if entry.state is not BatchState.ENDED:
                entry.host, entry.started_at = seen.host or entry.host, entry.started_at or seen.started_at
                self._close(entry, seen.entered_at or now, None, seen.leaving, now)
                ended.append(entry)
            if entry.exit_code is None:
                entry.exit_code, entry.said = seen.exit_code, seen.said or entry.said
        return ended

    def forget(self, now: float) -> None:
        """Let go of jobs that ended long ago and of those that are gone without a trace."""
        for entry in list(self._jobs.values()):
            if (entry.state is BatchState.ENDED and now - entry.noticed_at > defaults.ENDED_KEPT_S) \
                    or (not entry.listed and entry.lookups >= LOOKUPS and entry.state is not BatchState.ENDED):
                del self._jobs[entry.tag.intent_id]
                self._by_number.pop(entry.batch_id, None)

    def statuses(self) -> list[JobStatus]:
        """All jobs but those that the queue does not have and nobody can tell why."""
        return [JobStatus(entry.tag, entry.batch_id, entry.state, entry.host, entry.started_at, entry.ended_at,
                          entry.exit_code, entry.said, entry.stderr_tail)
                for entry in self._jobs.values() if entry.listed or entry.state is BatchState.ENDED]

    def _open(self, tag: JobTag, batch_id: str) -> Entry:
        """The entry of a job; a new one when it is not known by this number."""
        entry = self._jobs.get(tag.intent_id)
        if entry is None or entry.batch_id != batch_id:
            entry = self._jobs[tag.intent_id] = Entry(tag, batch_id)
        self._by_number[batch_id] = entry
        return entry

    @staticmethod
    def _close(entry: Entry, at: float, exit_code: int | None, removed: bool, now: float) -> None:
        entry.state, entry.ended_at, entry.noticed_at = BatchState.ENDED, at, now
        entry.exit_code, entry.removed = exit_code, removed


def _see(entry: Entry, seen: QueueEntry) -> None:
    """Bring a live entry up to date with the queue."""
    said = entry.said if seen.state is entry.state and not seen.said else seen.said
    if seen.state is not None:
        entry.state = seen.state
    elif seen.leaving:
        said = f"being removed: {seen.said}" if seen.said else "being removed"
    entry.said = said
    if entry.state is BatchState.RUNNING:
        entry.host = seen.host or entry.host
        entry.started_at = entry.started_at or seen.started_at
    elif entry.state is not BatchState.ENDED:
        entry.host, entry.started_at = "", 0.0


def _told(event: JobEvent) -> str:
    code = "" if event.exit_code is None else f" with {event.exit_code}"
    return f"{event.at:.0f} {event.kind.value}{code}{' on ' + event.host if event.host else ''}" \
           f"{': ' + event.said if event.said else ''}"

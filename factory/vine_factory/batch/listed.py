"""What is known of the jobs of a batch system that can only be asked for a listing.

Owns which jobs are there, which have left the listing, and for how long an ended one is remembered. Pure. A job that
left is looked up a few times, because accounting lags behind; until then it keeps its last state. Must not know how
any system is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.batch.base import BatchState, JobStatus, JobTag

LOOKUPS = 5
"""So often it is asked how a job that left the listing ended; then it is left out of the answers."""
LOOKUP_GAP_S = 1.0
"""...and so far apart: accounting is written a second or two after the end."""


class Seen(NamedTuple):
    """One job in a listing, or what an inquiry found out about its end. ``state`` None: it has a state that we do not
    know, or does not say. Times in seconds since the epoch, 0 = unknown. ``final``: there is no more to be known."""

    batch_id: str
    state: BatchState | None
    host: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    exit_code: int | None = None
    said: str = ""
    final: bool = True


@dataclass(slots=True)
class Entry:
    """One job. ``noticed_at``: when its end was learnt. ``open_end``: it ended, how is not known yet. ``called_off``:
    it was cancelled before it had started, so that no accounting will ever tell of it."""

    tag: JobTag
    batch_id: str
    state: BatchState = BatchState.QUEUED
    host: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    noticed_at: float = 0.0
    exit_code: int | None = None
    said: str = ""
    stderr_tail: str = ""
    listed: bool = True
    open_end: bool = False
    called_off: bool = False
    lookups: int = 0
    looked_up_at: float = float("-inf")


class Listed:
    """The jobs of one pool. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._jobs: dict[str, Entry] = {}
        self._by_id: dict[str, Entry] = {}

    def find(self, intent_id: str) -> Entry | None:
        """The job of an intent."""
        return self._jobs.get(intent_id)

    def knows(self, batch_id: str) -> bool:
        """Has this job been seen or submitted?"""
        return batch_id in self._by_id

    def live(self) -> list[Entry]:
        """Jobs that have not ended, as far as is known."""
        return [entry for entry in self._jobs.values() if entry.state is not BatchState.ENDED]

    def submitted(self, tag: JobTag, batch_id: str) -> None:
        """The batch system took a job, or one was found."""
        entry = self._jobs.get(tag.intent_id)
        if entry is None or entry.batch_id != batch_id:
            entry = self._jobs[tag.intent_id] = Entry(tag, batch_id)
        self._by_id[batch_id] = entry

    def cancelled(self, entry: Entry) -> None:
        """The batch system was asked to end this job."""
        entry.called_off = entry.state in (BatchState.QUEUED, BatchState.HELD)

    def listing(self, seen: Iterable[Seen], now: float) -> list[Entry]:
        """Take a whole listing, of jobs that are known; returns those that it shows to have ended."""
        for entry in self._jobs.values():
            entry.listed = False
        ended = []
        for one in seen:
            known = self._by_id.get(one.batch_id)
            if known is None:
                continue
            entry = known
            entry.listed, entry.lookups = True, 0
            if one.state is BatchState.ENDED:
                if entry.state is not BatchState.ENDED:
                    _close(entry, one, now)
                    ended.append(entry)
            elif entry.state is not BatchState.ENDED or not entry.exit_code:
                _see(entry, one, now)
        for entry in self.live():
            if entry.called_off and not entry.listed:
                _close(entry, Seen(entry.batch_id, BatchState.ENDED), now)
                ended.append(entry)
        return ended

    def unexplained(self, now: float) -> list[Entry]:
        """Jobs of which it is worth asking now how they ended."""
        return [entry for entry in self._jobs.values() if entry.lookups < LOOKUPS
                and not 0 <= now - entry.looked_up_at < LOOKUP_GAP_S
                and (entry.open_end if entry.state is BatchState.ENDED else not entry.listed)]

    def explained(self, asked: Iterable[Entry], seen: Iterable[Seen], now: float) -> list[Entry]:
        """Take what an inquiry about ``asked`` found; returns jobs whose end was not known."""
        for entry in asked:
            entry.lookups, entry.looked_up_at = entry.lookups + 1, now
        ended = []
        for one in seen:
            known = self._by_id.get(one.batch_id)
            if known is None or (known.state is BatchState.ENDED and not known.open_end):
                continue
            entry = known
            if entry.state is not BatchState.ENDED:
                ended.append(entry)
            _close(entry, one, now)
        return ended

    def forget(self, now: float) -> None:
        """Let go of jobs that ended long ago and of those that are gone without a trace."""
        for entry in list(self._jobs.values()):
            over = entry.state is BatchState.ENDED
            if (over and not entry.listed and now - entry.noticed_at > defaults.ENDED_KEPT_S) or \
                    (not over and not entry.listed and entry.lookups >= LOOKUPS
                     and now - entry.looked_up_at > defaults.ENDED_KEPT_S):
                del self._jobs[entry.tag.intent_id]
                self._by_id.pop(entry.batch_id, None)

    def statuses(self) -> list[JobStatus]:
        """All jobs but those that the listing does not have and nobody can tell why."""
        return [JobStatus(entry.tag, entry.batch_id, entry.state, entry.host, entry.started_at, entry.ended_at,
                          entry.exit_code, entry.said, entry.stderr_tail) for entry in self._jobs.values()
                if entry.listed or entry.state is BatchState.ENDED or entry.lookups < LOOKUPS]


def _close(entry: Entry, one: Seen, now: float) -> None:
    entry.host, entry.said = one.host or entry.host, one.said or entry.said
    entry.started_at = one.started_at or entry.started_at
    entry.ended_at = one.ended_at or entry.ended_at or now
    if entry.state is not BatchState.ENDED:
        entry.noticed_at = now
    entry.state, entry.open_end = BatchState.ENDED, not one.final
    entry.exit_code = one.exit_code if one.exit_code is not None else entry.exit_code


def _see(entry: Entry, one: Seen, now: float) -> None:
    """Bring an entry up to date. An unknown state keeps the last known one, and is told."""
    if one.state is None and entry.state is BatchState.ENDED:
        return
    entry.said = one.said or ("" if one.state is not entry.state else entry.said)
    entry.state = one.state or entry.state
    entry.ended_at, entry.open_end = 0.0, False
    if entry.state is BatchState.RUNNING:
        entry.host, entry.started_at = one.host or entry.host, one.started_at or entry.started_at or now
        entry.called_off = False  # it was faster
    else:
        entry.host, entry.started_at = "", 0.0

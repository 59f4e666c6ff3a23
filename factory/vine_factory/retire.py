"""Which workers leave when there are too many, and since when there are.

Owns the order of leaving (idle first, cheapest data first) and the window that keeps a worker which was needed a
moment ago. Pure; busy workers are candidates only where a person wants a pool empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from vine_factory.jobs import Job, JobState


class RecentHigh:
    """The largest number wanted in the last ``window_s`` seconds of uninterrupted knowledge."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._past: deque[tuple[float, int]] = deque()  # (until when it was wanted, value): values fall, times rise
        self._current: int | None = None
        self._start = 0.0

    def note(self, wanted: int, now: float) -> None:
        """Add one reading at ``now`` (seconds, not before the last one); it holds until the next."""
        if self._current is None:
            self._start = now
        elif self._current != wanted:
            while self._past and self._past[-1][1] <= self._current:
                self._past.pop()
            self._past.append((now, self._current))
        self._current = wanted

    def forget(self) -> None:
        """Something became unknown: the window starts anew."""
        self._past.clear()
        self._current = None

    def value(self, now: float) -> int | None:
        """The maximum, or None while the window is not complete."""
        if self._current is None or now - self._start < self.window_s:
            return None
        while self._past and self._past[0][0] <= now - self.window_s:
            self._past.popleft()
        return max(self._current, self._past[0][1]) if self._past else self._current


def choose_queued(jobs: Iterable[Job], count: int) -> list[Job]:
    """Up to ``count`` jobs that have not started: held ones, then the newest; the oldest is next to start."""
    queued = [job for job in jobs if job.state in (JobState.QUEUED, JobState.HELD)]
    queued.sort(key=lambda job: (job.state is JobState.HELD, job.created_at, job.intent_id), reverse=True)
    return queued[:max(0, count)]


def choose_idle(jobs: Iterable[Job], count: int, now: float, retry_s: float, busy_too: bool = False) -> list[Job]:
    """Up to ``count`` idle connected jobs: least sole data, then least cached data, then longest idle.

    Jobs that were asked already, or refused within ``retry_s``, are left out. ``busy_too``: connected is enough, for
    a pool that a person wants empty.
    """
    idle = [job for job in jobs if _may_retire(job, now, retry_s) and (job.idle or busy_too)]
    idle.sort(key=_cost)
    return idle[:max(0, count)]


def _may_retire(job: Job, now: float, retry_s: float) -> bool:
    if job.state is not JobState.CONNECTED or job.retire_asked_at is not None:
        return False
    return job.retire_refused_at is None or now - job.retire_refused_at >= retry_s


def _cost(job: Job) -> tuple[int, int, float, str]:
    facts = [one.facts for one in job.workers]
    return (sum(one.sole_mb for one in facts), sum(one.cache_mb for one in facts),
            -min(one.idle_s for one in facts), job.intent_id)

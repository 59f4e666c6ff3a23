"""When a pool's workers fail, how many new ones it still gets.

Owns the kinds of faults, and of each kind its budget, its backoff and its last words. One object per pool; pools do not
influence each other, and neither do kinds: what cures one leaves the others. Pure. A worker that ends after it has
worked, or is preempted, is no fault.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from enum import Enum

from vine_factory import defaults


class Fault(str, Enum):
    """What went wrong with a job that never became a worker."""

    REJECTED = "submission refused"
    UNAVAILABLE = "batch system did not answer a submission"
    HELD = "held by the batch system"
    DIED_AT_START = "died at start"
    QUIT_AT_START = "left at once"
    NEVER_CONNECTED = "never connected"


BUDGET: dict[Fault, int] = {
    Fault.REJECTED: defaults.TRIP_SUBMIT,
    Fault.UNAVAILABLE: defaults.TRIP_SUBMIT,
    Fault.HELD: defaults.TRIP_HELD,
    Fault.DIED_AT_START: defaults.TRIP_DIED_AT_START,
    Fault.QUIT_AT_START: defaults.TRIP_QUIT_AT_START,
    Fault.NEVER_CONNECTED: defaults.TRIP_NEVER_CONNECTED,
}
"""So many in a row trip a pool."""

_SUBMISSION = (Fault.REJECTED, Fault.UNAVAILABLE)
_START = (Fault.DIED_AT_START, Fault.QUIT_AT_START, Fault.HELD)
_NUMBER = re.compile(r"\d+")


class Breaker:
    """Faults of one kind in a row, and the pauses they cause. ``level``: times tripped since the last success."""

    __slots__ = ("by_host", "last_words", "level", "reasons", "retry_at", "strikes", "total", "tripped_at")

    def __init__(self) -> None:
        self.strikes = 0
        self.by_host: Counter[str] = Counter()   # of the strikes, those whose host is known
        self.level = 0
        self.tripped_at = float("-inf")
        self.retry_at = float("-inf")
        self.total = 0
        self.last_words = ""
        self.reasons: Counter[str] = Counter()   # all there were, by what was said

    def close(self) -> None:
        """Back to normal. What has happened stays counted."""
        self.strikes = self.level = 0
        self.by_host.clear()
        self.tripped_at = self.retry_at = float("-inf")


class PoolHealth:
    """The kinds of faults of one pool."""

    def __init__(self) -> None:
        self.kinds: dict[Fault, Breaker] = {}
        self.preempted = 0
        self.last_words = ""

    @property
    def total(self) -> dict[Fault, int]:
        """How many of each kind there were."""
        return {kind: breaker.total for kind, breaker in self.kinds.items()}

    @property
    def tripped(self) -> bool:
        """Some kind holds back new workers."""
        return any(breaker.level for breaker in self.kinds.values())

    def fault(self, kind: Fault, created_at: float, words: str, now: float, host: str = "", *,
              charged: bool = True) -> bool:
        """Count a fault of a job created at ``created_at``. Returns True when this one (re)trips the pool.

        Jobs created before the pool tripped belong to the same wave: a hundred workers that die together are one
        step of backoff, not a hundred. ``charged`` False: it is the host's fault, and only counted.
        """
        breaker = self.kinds.setdefault(kind, Breaker())
        breaker.total += 1
        breaker.last_words = self.last_words = words
        _count(breaker.reasons, words)
        if not charged:
            return False
        breaker.strikes += 1
        if host:
            breaker.by_host[host] += 1
        if breaker.strikes < BUDGET[kind] or (breaker.level > 0 and created_at < breaker.tripped_at):
            return False
        breaker.level += 1
        breaker.tripped_at = now
        breaker.retry_at = now + backoff_s(breaker.level)
        return True

    def accepted(self, created_at: float) -> None:
        """The batch system took a job: cures faults of submission."""
        self._cure(created_at, _SUBMISSION)

    def survived(self, created_at: float) -> None:
        """A worker lives past the time in which broken ones die."""
        self._cure(created_at, _SUBMISSION + _START)

    def connected(self, created_at: float) -> None:
        """A worker has reached its manager: cures everything."""
        self._cure(created_at, tuple(Fault))

    def forgive(self, host: str) -> None:
        """``host`` is bad and gets no more workers: what happened there says nothing about the pool."""
        for kind, breaker in self.kinds.items():
            breaker.strikes -= breaker.by_host.pop(host, 0)
            if breaker.level and breaker.strikes < BUDGET[kind]:
                left, by_host = breaker.strikes, breaker.by_host.copy()
                breaker.close()
                breaker.strikes, breaker.by_host = left, by_host

    def reset(self) -> None:
        """A person says that the causes are gone."""
        for breaker in self.kinds.values():
            breaker.close()

    def gate(self, now: float, waiting: Sequence[float]) -> tuple[int | None, str]:
        """How many workers may be new (None: any) and why: what the most careful kind says.

        Args:
            now: seconds.
            waiting: when the jobs that have not proven anything yet were created. Those created since a kind
                tripped are its probes.
        """
        found: tuple[int | None, str] = (None, "")
        until = float("-inf")
        for kind, breaker in self.kinds.items():
            if breaker.level == 0:
                continue
            what = f"{breaker.strikes} x {kind.value}"
            if now < breaker.retry_at:
                if breaker.retry_at > until:
                    until = breaker.retry_at
                    found = 0, f"{what}: next try with one worker in {breaker.retry_at - now:.0f} s"
                continue
            room = max(0, 1 - sum(1 for created_at in waiting if created_at >= breaker.tripped_at))
            if found[0] is None or room < found[0]:
                found = room, f"{what}: trying with one worker"
        return found

    def _cure(self, created_at: float, kinds: tuple[Fault, ...]) -> None:
        for kind in kinds:
            breaker = self.kinds.get(kind)
            if breaker is not None and created_at >= breaker.tripped_at:  # an old worker says nothing about new ones
                breaker.close()


def same_reason(words: str) -> str:
    """What stays the same when the same happens to another job: the first line without numbers."""
    first = words.strip().partition("\n")[0]
    return _NUMBER.sub("#", first)[:defaults.REASON_CHARS]


def _count(reasons: Counter[str], words: str) -> None:
    reason = same_reason(words)
    if reason not in reasons and len(reasons) >= defaults.KEPT_REASONS:
        del reasons[min(reasons, key=lambda each: reasons[each])]
    reasons[reason] += 1


def backoff_s(level: int) -> float:
    """Seconds to wait after the ``level``-th trip in a row."""
    doublings = min(level - 1, 30)  # beyond this the cap holds anyway
    return min(defaults.BACKOFF_MAX_S, defaults.BACKOFF_FIRST_S * float(2 ** doublings))

"""When a pool's workers fail, how many new ones it still gets.

Owns the kinds of faults, their budgets and the backoff. One object per pool; pools do not influence each other.
Pure. A worker that ends after it has worked, or is preempted, is no fault and never comes here.
"""

from __future__ import annotations

from enum import Enum

from vine_factory import defaults


class Fault(str, Enum):
    """What went wrong with a job that never became a worker."""

    REJECTED = "submission refused"
    UNAVAILABLE = "batch system did not answer a submission"
    DIED_AT_START = "died at start"
    QUIT_AT_START = "left at once"
    NEVER_CONNECTED = "never connected"


BUDGET: dict[Fault, int] = {
    Fault.REJECTED: defaults.TRIP_SUBMIT,
    Fault.UNAVAILABLE: defaults.TRIP_SUBMIT,
    Fault.DIED_AT_START: defaults.TRIP_DIED_AT_START,
    Fault.QUIT_AT_START: defaults.TRIP_QUIT_AT_START,
    Fault.NEVER_CONNECTED: defaults.TRIP_NEVER_CONNECTED,
}


class PoolHealth:
    """Faults in a row and the backoff they cause."""

    def __init__(self) -> None:
        self.strikes: dict[Fault, int] = {}
        self.level = 0                      # times tripped since the last success
        self.tripped_at = float("-inf")
        self.retry_at = float("-inf")
        self.cause: Fault | None = None
        self.last_words = ""
        self.total: dict[Fault, int] = {}

    def fault(self, kind: Fault, created_at: float, words: str, now: float) -> bool:
        """Count a fault of a job created at ``created_at``. Returns True when this one (re)trips the pool.

        Jobs created before the pool tripped belong to the same wave: a hundred workers that die together are one
        step of backoff, not a hundred.
        """
        self.strikes[kind] = self.strikes.get(kind, 0) + 1
        self.total[kind] = self.total.get(kind, 0) + 1
        self.last_words = words
        if self.strikes[kind] < BUDGET[kind] or (self.level > 0 and created_at < self.tripped_at):
            return False
        self.level += 1
        self.cause = kind
        self.tripped_at = now
        self.retry_at = now + backoff_s(self.level)
        return True

    def accepted(self, created_at: float) -> None:
        """The batch system took a job: cures faults of submission."""
        self._cure(created_at, (Fault.REJECTED, Fault.UNAVAILABLE))

    def survived(self, created_at: float) -> None:
        """A worker lives past the time in which broken ones die."""
        self._cure(created_at, (Fault.DIED_AT_START, Fault.QUIT_AT_START, Fault.REJECTED, Fault.UNAVAILABLE))

    def connected(self, created_at: float) -> None:
        """A worker has reached its manager: cures everything."""
        self._cure(created_at, tuple(Fault))

    def reset(self) -> None:
        """A person says that the cause is gone."""
        self.strikes.clear()
        self.level = 0
        self.cause = None
        self.tripped_at = self.retry_at = float("-inf")

    def gate(self, now: float, probing: int) -> tuple[int | None, str]:
        """How many workers may be new (None: any) and why; ``probing``: created since the trip, not yet proven."""
        if self.level == 0 or self.cause is None:
            return None, ""
        what = f"{self.strikes.get(self.cause, 0)} x {self.cause.value}"
        if now < self.retry_at:
            return 0, f"{what}: next try with one worker in {self.retry_at - now:.0f} s"
        return max(0, 1 - probing), f"{what}: trying with one worker"

    def _cure(self, created_at: float, kinds: tuple[Fault, ...]) -> None:
        if created_at < self.tripped_at:
            return  # an old worker says nothing about new ones
        for kind in kinds:
            self.strikes.pop(kind, None)
        if self.cause in kinds:
            self.level = 0
            self.cause = None
            self.tripped_at = self.retry_at = float("-inf")


def backoff_s(level: int) -> float:
    """Seconds to wait after the ``level``-th trip in a row."""
    doublings = min(level - 1, 30)  # beyond this the cap holds anyway
    return min(defaults.BACKOFF_MAX_S, defaults.BACKOFF_FIRST_S * float(2 ** doublings))

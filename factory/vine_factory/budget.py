"""Core-hours a pool has used in the last period.

Owns the sliding sum of one pool. Pure; what it knows survives a kill -9 as rows of the journal.
"""

from __future__ import annotations

from collections.abc import Iterable

from vine_factory import defaults


class Meter:
    """Core-seconds in buckets of a fixed part of the period.

    Args:
        period_s: the budget's period.
        rows: (start of bucket, core-seconds) of an earlier run.
    """

    def __init__(self, period_s: float, rows: Iterable[tuple[float, float]] = ()) -> None:
        self.bucket_s = max(1.0, period_s / defaults.BUDGET_BUCKETS)
        self._period_s = period_s
        self._buckets: dict[float, float] = dict(rows)
        self._last: float | None = None

    def note(self, cores: int, now: float) -> None:
        """So many cores have been in use since the last note (seconds, not before it)."""
        if self._last is not None and now > self._last and cores > 0:
            start = now - now % self.bucket_s
            self._buckets[start] = self._buckets.get(start, 0.0) + cores * (now - self._last)
        self._last = now
        for start in [start for start in self._buckets if start + self.bucket_s <= now - self._period_s]:
            del self._buckets[start]

    def used_core_s(self) -> float:
        """In the period that ended with the last note."""
        return sum(self._buckets.values())

    def current(self) -> tuple[float, float] | None:
        """The newest bucket, for the journal; None when nothing was used."""
        return max(self._buckets.items(), default=None)

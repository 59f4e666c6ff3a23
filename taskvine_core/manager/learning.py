"""First allocations learned from measured peaks: max, min waste, max throughput (reference, section 10.4).

Owns the per-resource histograms and the three rules. Must not know tasks, labels or workers.
"""

from __future__ import annotations

from taskvine_core.constants import (
    VINE_ALLOCATION_MODE_MAX,
    VINE_ALLOCATION_MODE_MAX_THROUGHPUT,
    VINE_ALLOCATION_MODE_MIN_WASTE,
)
from taskvine_core.resources import NOTHING_SET, UNSET, Resources

#: Peaks are rounded up to these, so that near-equal tasks are counted as equal.
BUCKET_SIZES = Resources(cores=1, memory_mb=250, disk_mb=250, gpus=1)
#: Mode max leaves this part of a bucket above the largest peak.
HEADROOM_DIVISOR = 3
#: Keeps the averages meaningful for tasks too short to be timed.
SHORTEST_WALL_S = 1e-6


def round_up(value: int, size: int) -> int:
    """The smallest multiple of ``size`` that is not below ``value``."""
    return -(-value // size) * size


class PeakHistogram:
    """Peaks of one resource, rounded up, with how many tasks showed each and their summed wall time."""

    __slots__ = ("_size", "_sums", "count", "largest", "time_s")

    def __init__(self, size: int) -> None:
        self._size = size
        self._sums: dict[int, tuple[int, float]] = {}
        self.count = 0
        self.time_s = 0.0
        self.largest = UNSET

    def add(self, peak: int, wall_s: float) -> None:
        """Take in the peak of one completed attempt; its bucket gets the wall time (s) too."""
        key = -(-peak // self._size) * self._size
        count, time_s = self._sums.get(key, (0, 0.0))
        self._sums[key] = (count + 1, time_s + wall_s)
        self.count += 1
        self.time_s += wall_s
        if peak > self.largest:
            self.largest = peak

    def counts(self) -> dict[int, int]:
        """How many attempts had each rounded peak."""
        return {key: count for key, (count, _) in self._sums.items()}

    def first_allocation(self, mode: int, top: int) -> int:
        """The value to try first under ``mode``; ``top`` is what a retry would get (-1: the largest peak)."""
        if not self.count:
            return UNSET
        ceiling = top if top >= 0 else round_up(self.largest, self._size)
        if mode == VINE_ALLOCATION_MODE_MAX:
            chosen = round_up(self.largest + self._size // HEADROOM_DIVISOR, self._size)
        else:
            chosen = self._best(mode, ceiling)
        return min(chosen, ceiling) if top >= 0 else chosen

    def _best(self, mode: int, ceiling: int) -> int:
        """The candidate with the least expected waste, or the greatest expected throughput; the smaller on a tie."""
        mean_s = self.time_s / self.count
        above_count, above_s = self.count, self.time_s
        best, best_cost = max(self._sums), float("inf")
        for value in sorted(self._sums):
            count, time_s = self._sums[value]
            above_count -= count
            above_s -= time_s
            retry_s = max(0.0, above_s) / self.count
            if mode == VINE_ALLOCATION_MODE_MIN_WASTE:
                cost = value * mean_s + ceiling * retry_s
            elif value > 0:
                fitting = 1 - above_count / self.count
                cost = -(fitting * ceiling / value + above_count / self.count) / (mean_s + retry_s)
            else:
                continue
            if cost < best_cost:
                best, best_cost = value, cost
        return best


class PeakRecords:
    """What the completed attempts of a category used: one histogram per resource and the largest values seen."""

    __slots__ = ("histograms", "seen")

    def __init__(self) -> None:
        self.histograms = tuple(PeakHistogram(size) for size in BUCKET_SIZES)
        self.seen = NOTHING_SET

    def add(self, peaks: Resources, wall_s: float) -> None:
        """Take in one attempt that ended normally. Unset peaks were not measured and teach nothing."""
        wall_s = max(wall_s, SHORTEST_WALL_S)
        for histogram, peak in zip(self.histograms, peaks, strict=True):
            if peak >= 0:
                histogram.add(peak, wall_s)

    def raise_seen(self, peaks: Resources) -> bool:
        """Raise the largest values seen; True when one rose."""
        if peaks.fits_in(self.seen):
            return False
        self.seen = self.seen.at_least(peaks)
        return True

    def first_allocation(self, mode: int, top: Resources) -> Resources:
        """First allocation of every resource; unset where nothing was measured or the mode learns nothing."""
        if mode not in LEARNING_MODES:
            return NOTHING_SET
        return Resources(*(
            histogram.first_allocation(mode, limit) for histogram, limit in zip(self.histograms, top, strict=True)))


#: The modes that learn one first allocation for the whole category.
LEARNING_MODES = frozenset((
    VINE_ALLOCATION_MODE_MAX, VINE_ALLOCATION_MODE_MIN_WASTE, VINE_ALLOCATION_MODE_MAX_THROUGHPUT))

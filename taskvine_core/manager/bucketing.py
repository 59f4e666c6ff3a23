"""The bucketing allocation modes: a size per task, drawn from buckets of past peaks (reference, section 10.4).

Owns the division of peaks into buckets and the prediction kept for each task id. Must not know categories, labels
or workers. Randomness comes from the generator given at construction.

Expected waste of a division is that of a task that tries the buckets from the smallest up: each bucket that is too
small is lost whole, the one that fits wastes what is above the peak. With ``v`` the largest peak of a bucket, the
sum over all tasks is ``sum over buckets of v * (tasks in this and all larger buckets)`` minus a constant, so a
bucket's cost depends on its own ends only: the best of *all* divisions is found by dynamic programming, not search.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from taskvine_core.constants import (
    VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING,
    VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING,
    VINE_ALLOCATION_MODE_EXHAUSTIVE_BUCKETING,
    VINE_ALLOCATION_MODE_GREEDY_BUCKETING,
    VINE_ALLOCATION_MODE_QUANTIZED_BUCKETING,
)
from taskvine_core.records import NamedTuple
from taskvine_core.resources import UNSET, Resources

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

BUCKETING_MODES = frozenset((
    VINE_ALLOCATION_MODE_GREEDY_BUCKETING, VINE_ALLOCATION_MODE_EXHAUSTIVE_BUCKETING,
    VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING, VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING,
    VINE_ALLOCATION_MODE_QUANTIZED_BUCKETING))
_DETERMINISTIC = frozenset((
    VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING, VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING))
_GREEDY = frozenset((VINE_ALLOCATION_MODE_GREEDY_BUCKETING, VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING))

#: What a task gets while too few tasks are known.
SAMPLING_DEFAULT = Resources(cores=1, memory_mb=1000, disk_mb=1000, gpus=0)
SAMPLING_TASKS = 10
MAX_BUCKETS = 10
#: Number of quantiles the quantized variant splits at: one, the median.
QUANTILES = 1
#: More distinct peaks than this are merged first; bounds the time to divide to a few milliseconds.
MAX_POINTS = 48
#: Peaks are kept with so many significant bits (0.2 %), which bounds memory whatever the tasks do.
SIGNIFICANT_BITS = 9
#: The division is renewed when the records have grown by one part in this many.
RENEWAL_DIVISOR = 20

Point = tuple[int, int]


class Bucket(NamedTuple):
    """Tasks up to ``value``; ``share`` of all tasks are in it."""

    value: int
    share: float


def divide(points: Sequence[Point], mode: int) -> list[Bucket]:
    """Divide ascending ``(peak, tasks)`` points into at most MAX_BUCKETS buckets by the rule of ``mode``."""
    if mode == VINE_ALLOCATION_MODE_QUANTIZED_BUCKETING:
        ends = _quantile_ends(points)
    elif mode in _GREEDY:
        ends = _greedy_ends(points)
    else:
        ends = _exhaustive_ends(points)
    total = sum(count for _, count in points)
    buckets, start = [], 0
    for end in ends:
        buckets.append(Bucket(points[end][0], sum(count for _, count in points[start:end + 1]) / total))
        start = end + 1
    return buckets


def _tasks_from(points: Sequence[Point]) -> list[int]:
    """For each index, how many tasks are at it or above."""
    sums = [0] * (len(points) + 1)
    for index in range(len(points) - 1, -1, -1):
        sums[index] = sums[index + 1] + points[index][1]
    return sums


def _quantile_ends(points: Sequence[Point]) -> list[int]:
    last = len(points) - 1
    total = sum(count for _, count in points)
    ends, below, wanted = [], 0, 1
    for index, (_, count) in enumerate(points):
        below += count
        if wanted <= QUANTILES and below * (QUANTILES + 1) >= wanted * total:
            ends.append(index)
            while below * (QUANTILES + 1) >= wanted * total:
                wanted += 1
    return ends if ends and ends[-1] == last else [*ends, last]


def _greedy_ends(points: Sequence[Point]) -> list[int]:
    """Split where it saves most, again and again, while it saves anything."""
    tasks = _tasks_from(points)
    open_segments = [_best_split(points, tasks, 0, len(points) - 1)]
    ends = [len(points) - 1]
    while open_segments and len(ends) < MAX_BUCKETS:
        best = max(open_segments)
        open_segments.remove(best)
        saved, first, split, last = best
        if saved <= 0:
            break
        ends.append(split)
        open_segments.append(_best_split(points, tasks, first, split))
        open_segments.append(_best_split(points, tasks, split + 1, last))
    return sorted(ends)


def _best_split(points: Sequence[Point], tasks: Sequence[int], first: int, last: int) -> tuple[int, int, int, int]:
    """(waste saved, first, end of the lower part, last); nothing saved when there is nothing to split."""
    whole = points[last][0] * tasks[first]
    best, best_saved = last, 0
    for end in range(first, last):
        saved = whole - points[end][0] * tasks[first] - points[last][0] * tasks[end + 1]
        if saved > best_saved:
            best, best_saved = end, saved
    return best_saved, first, best, last


def _exhaustive_ends(points: Sequence[Point]) -> list[int]:
    """The division of least expected waste of all with at most MAX_BUCKETS buckets."""
    tasks = _tasks_from(points)
    # least[e]: least cost of dividing points[0..e] into the number of buckets reached so far; ends[e]: how.
    least: list[float] = [value * tasks[0] for value, _ in points]
    ends = [[end] for end in range(len(points))]
    best_cost, best = least[-1], ends[-1]
    for _ in range(1, min(MAX_BUCKETS, len(points))):
        next_least: list[float] = [float("inf")] * len(points)
        next_ends: list[list[int]] = [[] for _ in points]
        for end in range(1, len(points)):
            value = points[end][0]
            cost, cut = min((least[cut] + value * tasks[cut + 1], cut) for cut in range(end))
            next_least[end] = cost
            next_ends[end] = [*ends[cut], end]
        least, ends = next_least, next_ends
        if least[-1] < best_cost:
            best_cost, best = least[-1], ends[-1]
    return best


class ResourceBuckets:
    """Peaks of one resource and their division, renewed as they grow."""

    __slots__ = ("_buckets", "_counts", "_default", "_divided_at", "_mode", "_total")

    def __init__(self, mode: int, default: int, counts: Mapping[int, int]) -> None:
        self._mode = mode
        self._default = default
        self._counts = dict(counts)
        self._total = sum(counts.values())
        self._divided_at = 0
        self._buckets: list[Bucket] = []

    def add(self, peak: int) -> None:
        """Take in the peak of one completed task."""
        step = 1 << max(0, peak.bit_length() - SIGNIFICANT_BITS)
        key = -(-peak // step) * step
        self._counts[key] = self._counts.get(key, 0) + 1
        self._total += 1

    def buckets(self) -> list[Bucket]:
        """The division in force."""
        if self._total - self._divided_at >= max(1, self._divided_at // RENEWAL_DIVISOR):
            self._buckets = divide(_merged(sorted(self._counts.items())), self._mode)
            self._divided_at = self._total
        return self._buckets

    def above(self, previous: int, rng: random.Random) -> int:
        """A value larger than ``previous`` (-1: a new task)."""
        if self._total < SAMPLING_TASKS:
            return self._default if previous < self._default or previous < 0 else self._doubled(previous)
        buckets = self.buckets()
        larger = buckets[bisect.bisect_right(buckets, previous, key=lambda bucket: bucket.value):]
        if not larger:
            return self._doubled(previous)
        if self._mode in _DETERMINISTIC:
            return larger[0].value
        point = rng.random() * sum(bucket.share for bucket in larger)
        for bucket in larger:
            point -= bucket.share
            if point < 0:
                return bucket.value
        return larger[-1].value

    def _doubled(self, value: int) -> int:
        """The default doubled until it is larger than ``value``."""
        base = max(1, self._default)
        return base << (value // base).bit_length() if value >= base else base


def _merged(points: list[Point]) -> list[Point]:
    """At most MAX_POINTS points: neighbours are joined at the larger value, so that no peak is understated."""
    if len(points) <= MAX_POINTS:
        return points
    merged = []
    for part in range(MAX_POINTS):
        group = points[part * len(points) // MAX_POINTS:(part + 1) * len(points) // MAX_POINTS]
        merged.append((group[-1][0], sum(count for _, count in group)))
    return merged


class Bucketing:
    """The predictions of one category in one bucketing mode."""

    __slots__ = ("_predictions", "_resources", "_rng")

    def __init__(self, mode: int, rng: random.Random, known: Sequence[Mapping[int, int]] = ({}, {}, {}, {})) -> None:
        self._rng = rng
        self._resources = tuple(
            ResourceBuckets(mode, default, counts) for default, counts in zip(SAMPLING_DEFAULT, known, strict=True))
        self._predictions: dict[int, Resources] = {}

    def predict(self, task_id: int) -> Resources:
        """What this task should get. The same at every call until it exhausts something or is forgotten."""
        prediction = self._predictions.get(task_id)
        if prediction is None:
            prediction = Resources(*(resource.above(UNSET, self._rng) for resource in self._resources))
            self._predictions[task_id] = prediction
        return prediction

    def exhausted(self, task_id: int, given: Resources, measured: Resources, exceeded: Sequence[bool]) -> None:
        """Predict anew after an attempt ran out.

        Args:
            task_id: whose attempt.
            given: the allocation of the attempt.
            measured: its peaks, -1 where not measured.
            exceeded: which resources it ran out of: they get more than was given; the others get at least the
                largest value the task has shown.
        """
        previous = self.predict(task_id).at_least(given)
        self._predictions[task_id] = Resources(*(
            resource.above(had if ran_out else max(shown - 1, UNSET), self._rng)
            for resource, had, shown, ran_out in zip(self._resources, previous, measured, exceeded, strict=True)))

    def record(self, task_id: int, peaks: Resources) -> None:
        """A task completed normally with these peaks (-1: not measured)."""
        self._predictions.pop(task_id, None)
        for resource, peak in zip(self._resources, peaks, strict=True):
            if peak >= 0:
                resource.add(peak)

    def forget(self, task_id: int) -> None:
        """The task will not run again."""
        self._predictions.pop(task_id, None)

"""Bucketing modes: divisions against brute force, and what a task is given next."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvine_core.constants import (
    VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING,
    VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING,
    VINE_ALLOCATION_MODE_EXHAUSTIVE_BUCKETING,
    VINE_ALLOCATION_MODE_GREEDY_BUCKETING,
    VINE_ALLOCATION_MODE_QUANTIZED_BUCKETING,
)
from taskvine_core.manager.bucketing import (
    BUCKETING_MODES,
    MAX_BUCKETS,
    MAX_POINTS,
    SAMPLING_TASKS,
    Bucket,
    Bucketing,
    ResourceBuckets,
    divide,
)
from taskvine_core.resources import NOTHING_SET, Resources

ALL = sorted(BUCKETING_MODES)
ONLY_MEMORY = (False, True, False, False)


def climbing_waste(points: list[tuple[int, int]], values: list[int]) -> int:
    """Waste of all tasks that try ``values`` from the smallest up: straight from the definition."""
    waste = 0
    for peak, count in points:
        for value in values:
            if value >= peak:
                waste += count * (value - peak)
                break
            waste += count * value
    return waste


def all_divisions(points: list[tuple[int, int]]) -> list[list[int]]:
    inner = [value for value, _ in points[:-1]]
    return [[*chosen, points[-1][0]] for size in range(min(MAX_BUCKETS, len(points)))
            for chosen in combinations(inner, size)]


point_lists = st.dictionaries(st.integers(1, 5000), st.integers(1, 40), min_size=1, max_size=9).map(
    lambda found: sorted(found.items()))


@given(points=point_lists)
def test_exhaustive_is_the_best_of_all_divisions(points: list[tuple[int, int]]) -> None:
    found = [bucket.value for bucket in divide(points, VINE_ALLOCATION_MODE_EXHAUSTIVE_BUCKETING)]
    assert climbing_waste(points, found) == min(climbing_waste(points, values) for values in all_divisions(points))


@given(points=point_lists)
def test_the_first_greedy_split_is_the_best_single_one_and_never_wastes_more_than_none(
        points: list[tuple[int, int]]) -> None:
    found = [bucket.value for bucket in divide(points, VINE_ALLOCATION_MODE_GREEDY_BUCKETING)]
    one_split = [values for values in all_divisions(points) if len(values) <= 2]
    assert climbing_waste(points, found) <= min(climbing_waste(points, values) for values in one_split)


@given(points=st.dictionaries(st.integers(0, 9999), st.integers(1, 9), min_size=1, max_size=40).map(
    lambda found: sorted(found.items())), mode=st.sampled_from(ALL))
def test_a_division_covers_all_tasks_with_few_ascending_buckets(points: list[tuple[int, int]], mode: int) -> None:
    buckets = divide(points, mode)
    values = [bucket.value for bucket in buckets]
    assert values == sorted(set(values))
    assert values[-1] == points[-1][0]
    assert 1 <= len(values) <= MAX_BUCKETS
    assert sum(bucket.share for bucket in buckets) == pytest.approx(1)


def test_the_quantized_variant_splits_at_the_median() -> None:
    assert divide([(1, 5), (2, 4), (9, 1)], VINE_ALLOCATION_MODE_QUANTIZED_BUCKETING) == [
        Bucket(1, 0.5), Bucket(9, 0.5)]


def test_det_variants_use_the_same_divisions() -> None:
    points = [(1, 10), (10, 5), (11, 1), (500, 1)]
    for plain, det in ((VINE_ALLOCATION_MODE_GREEDY_BUCKETING, VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING),
                       (VINE_ALLOCATION_MODE_EXHAUSTIVE_BUCKETING, VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING)):
        assert divide(points, plain) == divide(points, det)
        assert len(divide(points, plain)) > 1


@pytest.mark.parametrize("mode", ALL)
def test_while_sampling_every_task_gets_the_default_and_powers_of_two_after_exhaustion(mode: int) -> None:
    bucketing = Bucketing(mode, Random(1))
    assert bucketing.predict(1) == Resources(1, 1000, 1000, 0)
    given_memory = []
    for _ in range(4):
        bucketing.exhausted(1, bucketing.predict(1), Resources(1, 1, 1, 0), ONLY_MEMORY)
        given_memory.append(bucketing.predict(1).memory_mb)
    assert given_memory == [2000, 4000, 8000, 16000]
    assert bucketing.predict(1)[2:] == (1000, 0)


@pytest.mark.parametrize(("had", "expected"), [(1000, 2000), (1500, 2000), (1999, 2000), (2000, 4000), (5000, 8000)])
def test_growth_starts_from_what_the_attempt_really_had(had: int, expected: int) -> None:
    bucketing = Bucketing(VINE_ALLOCATION_MODE_GREEDY_BUCKETING, Random(1))
    bucketing.exhausted(1, Resources(1, had, 1000, 0), NOTHING_SET, ONLY_MEMORY)
    assert bucketing.predict(1).memory_mb == expected


def trained(mode: int, peaks: list[int], seed: int = 1) -> Bucketing:
    bucketing = Bucketing(mode, Random(seed))
    for number, peak in enumerate(peaks):
        bucketing.record(number, Resources(1, peak, 10, 0))
    return bucketing


def test_sampling_ends_with_the_tenth_task() -> None:
    few = trained(VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING, [50] * (SAMPLING_TASKS - 1))
    assert few.predict(99).memory_mb == 1000
    enough = trained(VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING, [50] * SAMPLING_TASKS)
    assert enough.predict(99) == Resources(1, 50, 10, 0)


@pytest.mark.parametrize("mode", ALL)
def test_a_prediction_is_kept_until_something_is_exhausted(mode: int) -> None:
    bucketing = trained(mode, [10] * 10 + [500] * 5 + [4000])
    first = {task: bucketing.predict(task) for task in range(100, 140)}
    assert {task: bucketing.predict(task) for task in range(100, 140)} == first


@pytest.mark.parametrize("mode", ALL)
def test_after_an_exhaustion_a_larger_bucket_is_taken_and_beyond_the_last_powers_of_two(mode: int) -> None:
    bucketing = trained(mode, [10] * 10 + [500] * 5 + [3000])
    seen = [bucketing.predict(100).memory_mb]
    while seen[-1] <= 3000 and len(seen) <= 2 * MAX_BUCKETS:
        bucketing.exhausted(100, bucketing.predict(100), NOTHING_SET, ONLY_MEMORY)
        seen.append(bucketing.predict(100).memory_mb)
    assert seen == sorted(set(seen))
    assert seen[-2:] == [3000, 4000]


def test_deterministic_variants_take_the_smallest_bucket() -> None:
    bucketing = trained(VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING, [10] * 30 + [3000])
    assert {bucketing.predict(task).memory_mb for task in range(100, 150)} == {10}


def test_probabilistic_variants_draw_with_the_share_of_tasks() -> None:
    bucketing = trained(VINE_ALLOCATION_MODE_EXHAUSTIVE_BUCKETING, [10] * 75 + [3000] * 25)
    drawn = [bucketing.predict(task).memory_mb for task in range(1000, 3000)]
    assert set(drawn) == {10, 3000}
    assert drawn.count(10) / len(drawn) == pytest.approx(0.75, abs=0.04)


def test_the_same_seed_gives_the_same_predictions() -> None:
    peaks = [10] * 20 + [700] * 20 + [3000] * 5
    one, two = (trained(VINE_ALLOCATION_MODE_GREEDY_BUCKETING, peaks, seed=7) for _ in range(2))
    assert [one.predict(task) for task in range(99)] == [two.predict(task) for task in range(99)]


def test_what_was_not_exhausted_is_predicted_from_what_the_task_has_shown() -> None:
    bucketing = trained(VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING, [10] * 30 + [3000])
    shown = Resources(1, 2500, 999, 0)
    bucketing.exhausted(100, Resources(1, 3000, 10, 0), shown, (False, False, True, False))
    assert bucketing.predict(100).memory_mb == 3000
    bucketing.exhausted(101, Resources(1, 3000, 10, 0), Resources(1, 10, 999, 0), (False, False, True, False))
    assert bucketing.predict(101).memory_mb == 10


def test_a_forgotten_task_is_predicted_anew() -> None:
    bucketing = Bucketing(VINE_ALLOCATION_MODE_GREEDY_BUCKETING, Random(1))
    bucketing.exhausted(1, bucketing.predict(1), NOTHING_SET, ONLY_MEMORY)
    bucketing.forget(1)
    assert bucketing.predict(1).memory_mb == 1000


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=SAMPLING_TASKS, max_size=400), st.sampled_from(ALL))
def test_no_peak_is_understated_by_the_largest_bucket_and_little_overstated(peaks: list[int], mode: int) -> None:
    buckets = ResourceBuckets(mode, 1000, {})
    for peak in peaks:
        buckets.add(peak)
    found = buckets.buckets()
    assert max(peaks) <= found[-1].value <= max(peaks) * 1.01 + 1
    assert len(found) <= MAX_BUCKETS < MAX_POINTS

"""Categories: limits by mode and label, learning, exhaustion, settings, summaries."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvine_core.constants import (
    VINE_ALLOCATION_MODE_FIXED,
    VINE_ALLOCATION_MODE_MAX,
    VINE_ALLOCATION_MODE_MAX_THROUGHPUT,
    VINE_ALLOCATION_MODE_MIN_WASTE,
)
from taskvine_core.errors import UsageError
from taskvine_core.manager.allocation import allocate
from taskvine_core.manager.categories import FAIL, RETRY_MAX, Categories, Category, parse_mode
from taskvine_core.manager.learning import PeakHistogram, round_up
from taskvine_core.manager.tuning import Tuning
from taskvine_core.resources import NOTHING_SET, Resources

AUTOMATIC = ["max", "min waste", "max throughput"]
WORKER = Resources(4, 1000, 2000, 0)
SMALL = Resources(1, 50, 60, 0)


def tuned(steady: int = 1) -> Tuning:
    tuning = Tuning()
    tuning.set("category-steady-n-tasks", steady)
    tuning.set("proportional-resources", 1)
    return tuning


def category(mode: str = "fixed", steady: int = 1, **most: float) -> Category:
    categories = Categories(tuned(steady), Random(1))
    categories.set_mode("c", mode)
    categories.set_max("c", most)
    return categories.get("c")


def allocation(found: Category, task_id: int = 1, exhausted: bool = False, request: Resources = NOTHING_SET,
               worker: Resources = WORKER) -> Resources:
    return allocate(request, found.effective_max(request, task_id, exhausted, worker),
                    found.effective_min(request, task_id, exhausted, worker), worker, worker.disk_mb,
                    tuning=tuned(), learned=found.learned(exhausted))


# ---------------------------------------------------------------------- the published tables


@pytest.mark.parametrize(("mode", "expected"), [
    ("max", Resources(2, 500, 1000, 0)),
    ("max throughput", Resources(1, 250, 500, 0)),
    ("min waste", Resources(1, 250, 500, 0)),
])
def test_the_last_of_eleven_tasks_gets_what_the_published_program_expects(mode: str, expected: Resources) -> None:
    found = category(mode)
    given_resources = []
    for task_id in range(1, 12):
        given_resources.append(allocation(found, task_id))
        disk_mb = 800 if task_id == 1 else 1
        found.record(task_id, Resources(1, 3, disk_mb, 0), wall_s=0.1, largest_worker=WORKER)
    assert given_resources[0] == Resources(4, 1000, 1500, 0)
    assert given_resources[-1] == expected


# ---------------------------------------------------------------------- first allocations against brute force


peaks_and_times = st.lists(st.tuples(st.integers(0, 3000), st.floats(0.01, 100)), min_size=1, max_size=30)


def histogram(tasks: list[tuple[int, float]]) -> PeakHistogram:
    made = PeakHistogram(250)
    for peak, wall_s in tasks:
        made.add(peak, wall_s)
    return made


@given(tasks=peaks_and_times)
def test_min_waste_is_the_cheapest_of_all_candidates(tasks: list[tuple[int, float]]) -> None:
    rounded = [(round_up(peak, 250), wall_s) for peak, wall_s in tasks]
    top = max(peak for peak, _ in rounded)

    def cost(value: int) -> float:
        """Everyone is tried with ``value``; those above are run again with ``top``."""
        return sum(value * wall_s + (top * wall_s if peak > value else 0) for peak, wall_s in rounded)

    found = histogram(tasks).first_allocation(VINE_ALLOCATION_MODE_MIN_WASTE, -1)
    assert found in {peak for peak, _ in rounded}
    assert cost(found) == pytest.approx(min(cost(peak) for peak, _ in rounded))


@given(tasks=peaks_and_times)
def test_max_throughput_is_the_fastest_of_all_candidates(tasks: list[tuple[int, float]]) -> None:
    rounded = [(max(1, round_up(peak, 250)), wall_s) for peak, wall_s in tasks]
    tasks = [(max(1, peak), wall_s) for peak, wall_s in tasks]
    rounded = [(round_up(peak, 250), wall_s) for peak, wall_s in tasks]
    top, count = max(peak for peak, _ in rounded), len(rounded)

    def rate(value: int) -> float:
        fitting = sum(peak <= value for peak, _ in rounded) / count
        busy_s = sum(wall_s * (2 if peak > value else 1) for peak, wall_s in rounded) / count
        return (fitting * top / value + 1 - fitting) / busy_s

    found = histogram(tasks).first_allocation(VINE_ALLOCATION_MODE_MAX_THROUGHPUT, -1)
    assert rate(found) == pytest.approx(max(rate(peak) for peak, _ in rounded))


@pytest.mark.parametrize(("peak", "top", "expected"), [
    (800, -1, 1000), (170, -1, 500), (167, -1, 250), (800, 900, 900), (0, -1, 250)])
def test_mode_max_leaves_a_third_of_a_bucket_above_the_largest_peak(peak: int, top: int, expected: int) -> None:
    assert histogram([(peak, 1.0)]).first_allocation(VINE_ALLOCATION_MODE_MAX, top) == expected


# ---------------------------------------------------------------------- limits by mode and label


def test_fixed_mode_never_learns() -> None:
    found = category("fixed", cores=2)
    version = found.version
    assert not found.record(1, Resources(4, 900, 900, 0), 1.0)
    assert found.version == version
    assert found.effective_max(NOTHING_SET, 1, False) == Resources(2, -1, -1, -1)
    assert found.effective_min(NOTHING_SET, 1, False) == Resources(2, -1, -1, -1)


def test_explicit_values_of_the_task_beat_those_of_the_category() -> None:
    found = category("fixed", cores=2, memory=500)
    assert found.effective_max(Resources(memory_mb=7), 1, False) == Resources(2, 7, -1, -1)
    found.set_min({"memory": 100, "disk": 5})
    assert found.effective_min(Resources(memory_mb=7), 1, False) == Resources(2, 100, 5, -1)


@pytest.mark.parametrize("mode", AUTOMATIC)
def test_nothing_learned_is_used_before_the_steady_state(mode: str) -> None:
    found = category(mode, steady=3)
    for task_id in range(3):
        found.record(task_id, SMALL, 1.0)
        assert found.effective_max(NOTHING_SET, 9, False) == NOTHING_SET
    assert found.record(4, SMALL, 1.0)
    assert found.effective_max(NOTHING_SET, 9, False) == Resources(1, 250, 250, 0)


@pytest.mark.parametrize("mode", AUTOMATIC)
def test_a_new_largest_peak_ends_the_steady_state(mode: str) -> None:
    found = category(mode)
    found.record(1, SMALL, 1.0)
    found.record(2, SMALL, 1.0)
    assert found.steady
    assert found.record(3, Resources(1, 600, 60, 0), 1.0)
    assert not found.steady
    assert found.effective_max(NOTHING_SET, 9, False) == NOTHING_SET
    assert found.effective_min(NOTHING_SET, 9, False) == Resources(1, 600, 60, 0)


@pytest.mark.parametrize("mode", AUTOMATIC)
def test_the_guess_is_used_until_something_was_learned(mode: str) -> None:
    found = category(mode, memory=900)
    found.set_first_guess({"memory": 300, "cores": 1})
    assert found.effective_max(NOTHING_SET, 1, False) == Resources(1, 300, -1, -1)
    assert found.effective_max(NOTHING_SET, 1, True) == Resources(-1, 900, -1, -1)
    found.record(1, SMALL, 1.0)
    found.record(2, SMALL, 1.0)
    assert found.effective_max(NOTHING_SET, 1, False) == Resources(1, 250, 250, 0)


def test_label_max_without_explicit_maximum_is_the_whole_worker_in_mode_max() -> None:
    found = category("max")
    for task_id in range(4):
        found.record(task_id, SMALL, 1.0)
    assert allocation(found, 9, exhausted=True) == Resources(4, 1000, 1500, 0)


def test_label_max_with_explicit_maximum_is_that_maximum() -> None:
    found = category("max", cores=1, memory=600, disk=700)
    for task_id in range(4):
        found.record(task_id, SMALL, 1.0)
    assert found.effective_max(NOTHING_SET, 9, False)[:3] == (1, 250, 250)
    assert found.effective_max(NOTHING_SET, 9, True)[:3] == (1, 600, 700)


@pytest.mark.parametrize("mode", ["min waste", "max throughput"])
def test_label_max_in_steady_state_is_the_largest_seen_where_waste_or_throughput_counts(mode: str) -> None:
    found = category(mode)
    found.record(0, Resources(1, 800, 60, 0), 1.0)
    for task_id in range(1, 40):
        found.record(task_id, SMALL, 1.0)
    assert found.effective_max(NOTHING_SET, 99, False).memory_mb == 250
    assert found.effective_max(NOTHING_SET, 99, True).memory_mb == 800


def test_learned_values_stay_within_the_explicit_maximum() -> None:
    found = category("max", memory=100)
    found.record(1, SMALL, 1.0)
    found.record(2, SMALL, 1.0)
    assert found.effective_max(NOTHING_SET, 9, False).memory_mb == 100


@pytest.mark.parametrize("mode", [*AUTOMATIC, "greedy bucketing"])
def test_a_resource_with_autolabel_off_is_not_learned(mode: str) -> None:
    found = category(mode)
    found.set_autolabel("memory", False)
    for task_id in range(20):
        found.record(task_id, SMALL, 1.0)
    assert found.effective_max(NOTHING_SET, 99, False).memory_mb == -1
    assert found.effective_min(NOTHING_SET, 99, False).memory_mb == -1
    assert found.effective_max(NOTHING_SET, 99, False).disk_mb > 0


def test_an_outlier_larger_than_every_worker_does_not_block_new_tasks() -> None:
    found = category("max")
    found.record(1, Resources(1, 9000, 60, 0), 1.0)
    assert found.effective_min(NOTHING_SET, 2, False).memory_mb == 9000
    assert found.effective_min(NOTHING_SET, 2, False, WORKER) == Resources(1, 1000, 60, 0)
    assert found.effective_min(NOTHING_SET, 2, True, WORKER).memory_mb == 9000
    found.record(2, SMALL, 1.0)
    assert allocation(found, 3).fits_in(WORKER)


def test_explicit_limits_larger_than_every_worker_stand() -> None:
    assert category("max", memory=9000).effective_min(NOTHING_SET, 1, False, WORKER).memory_mb == 9000
    assert category("max").effective_min(Resources(memory_mb=9000), 1, False, WORKER).memory_mb == 9000


def test_sampling_values_of_bucketing_shrink_to_the_largest_worker() -> None:
    worker = Resources(4, 500, 800, 0)
    assert allocation(category("greedy bucketing"), 1, worker=worker).fits_in(worker)


def test_unmeasured_resources_teach_nothing() -> None:
    found = category("max")
    found.record(1, Resources(-1, 50, -1, -1), 1.0)
    found.record(2, Resources(-1, 50, -1, -1), 1.0)
    assert found.effective_max(NOTHING_SET, 9, False) == Resources(-1, 250, -1, -1)


@given(mode=st.sampled_from(AUTOMATIC), peaks=st.lists(st.integers(0, 3000), max_size=30),
       exhausted=st.booleans())
def test_limits_change_only_with_the_version(mode: str, peaks: list[int], exhausted: bool) -> None:
    found = category(mode, steady=2)
    for task_id, peak in enumerate(peaks):
        version, before = found.version, found.effective_min(NOTHING_SET, 1, exhausted, WORKER)
        changed = found.record(task_id, Resources(1, peak, 5, 0), 1.0, largest_worker=WORKER)
        assert changed == (found.version != version)
        assert changed or found.effective_min(NOTHING_SET, 1, exhausted, WORKER) == before


# ---------------------------------------------------------------------- exhaustion


def test_fixed_mode_fails_on_exhaustion() -> None:
    assert category("fixed").on_exhaustion(NOTHING_SET, Resources(memory_mb=10)) == FAIL


@pytest.mark.parametrize("mode", [*AUTOMATIC, "greedy bucketing"])
def test_a_peak_above_an_explicit_value_fails_and_below_is_tried_again(mode: str) -> None:
    peak, had = Resources(memory_mb=500), Resources(1, 250, 250, 0)
    assert category(mode).on_exhaustion(Resources(memory_mb=400), peak, allocated=had) == FAIL
    assert category(mode, memory=400).on_exhaustion(NOTHING_SET, peak, allocated=had) == FAIL
    assert category(mode, memory=600).on_exhaustion(NOTHING_SET, peak, allocated=had) == RETRY_MAX
    assert category(mode).on_exhaustion(NOTHING_SET, peak, allocated=had) == RETRY_MAX
    assert category(mode, memory=400).on_exhaustion(Resources(memory_mb=600), peak, allocated=had) == RETRY_MAX


@pytest.mark.parametrize("mode", [*AUTOMATIC, "greedy bucketing", "det exhaustive bucketing"])
def test_an_insatiable_task_fails_after_few_attempts(mode: str) -> None:
    found = category(mode)
    for task_id in range(30):
        found.record(task_id, SMALL, 1.0, largest_worker=WORKER)
    exhausted, attempts = False, 0
    while True:
        had = allocation(found, 99, exhausted)
        assert had.fits_in(WORKER)
        attempts += 1
        peak = Resources(1, had.memory_mb + 1, 10, 0)
        if found.on_exhaustion(NOTHING_SET, peak, task_id=99, allocated=had, exhausted=exhausted,
                               largest_worker=WORKER) == FAIL:
            break
        exhausted = True
    assert had.memory_mb == WORKER.memory_mb
    assert 2 <= attempts <= 6


@pytest.mark.parametrize("mode", AUTOMATIC)
def test_a_repeated_exhaustion_that_shows_nothing_new_fails_even_with_no_worker_connected(mode: str) -> None:
    found, had, peak = category(mode), Resources(4, 1000, 1500, 0), Resources(memory_mb=1001)
    assert found.on_exhaustion(NOTHING_SET, peak, allocated=had) == RETRY_MAX
    assert found.on_exhaustion(NOTHING_SET, peak, allocated=had, exhausted=True) == FAIL


def test_a_full_sandbox_raises_the_minimum_of_the_category() -> None:
    found = category("fixed", cores=1)
    assert allocation(found).disk_mb == 375
    assert found.on_sandbox_exhaustion(375, 2.0, NOTHING_SET, largest_worker=WORKER) == RETRY_MAX
    assert allocation(found).disk_mb == 750
    assert found.on_sandbox_exhaustion(200, 2.0, NOTHING_SET) == RETRY_MAX
    assert found.sandbox_min_disk_mb == 750


def test_where_allocations_are_learned_a_full_sandbox_raises_the_largest_disk_seen() -> None:
    found = category("max")
    assert found.on_sandbox_exhaustion(400, 2.0, NOTHING_SET) == RETRY_MAX
    assert found.effective_min(NOTHING_SET, 1, False).disk_mb == 800


def test_a_full_sandbox_fails_when_growth_passes_the_explicit_disk() -> None:
    assert category("fixed", disk=300).on_sandbox_exhaustion(200, 2.0, NOTHING_SET) == FAIL
    assert category("fixed", disk=400).on_sandbox_exhaustion(200, 2.0, NOTHING_SET) == RETRY_MAX
    found = category("fixed")
    assert found.on_sandbox_exhaustion(200, 2.0, Resources(disk_mb=200)) == FAIL
    assert found.sandbox_min_disk_mb == -1


def test_a_task_with_explicit_disk_does_not_get_the_sandbox_minimum() -> None:
    found = category("fixed")
    found.on_sandbox_exhaustion(400, 2.0, NOTHING_SET)
    assert found.effective_min(Resources(disk_mb=100), 1, False).disk_mb == 100


@pytest.mark.parametrize("label_max", [False, True])
@pytest.mark.parametrize("mode", ["fixed", *AUTOMATIC, "greedy bucketing"])
def test_an_insatiable_sandbox_fails_when_no_worker_has_more(mode: str, label_max: bool) -> None:
    found = category(mode)
    had_mb, exhausted = 100, False
    for _ in range(12):
        if found.on_sandbox_exhaustion(had_mb, 2.0, NOTHING_SET, task_id=1, exhausted=exhausted,
                                       largest_worker=WORKER) == FAIL:
            break
        exhausted = label_max
        # A third of the disk is cache: no attempt reaches the limit by its share alone.
        had_mb = allocate(NOTHING_SET, found.effective_max(NOTHING_SET, 1, exhausted, WORKER),
                          found.effective_min(NOTHING_SET, 1, exhausted, WORKER), WORKER, WORKER.disk_mb * 2 // 3,
                          tuning=tuned()).disk_mb
    else:
        pytest.fail("still tried again")
    assert had_mb >= WORKER.disk_mb * 3 // 4


# ---------------------------------------------------------------------- settings


def test_a_new_category_starts_with_mode_and_limits_of_default() -> None:
    categories = Categories(tuned(), Random(1))
    categories.set_mode(None, "Max_Throughput")
    categories.set_max(None, {"cores": 3, "wall_time": 60})
    categories.set_autolabel(None, "disk", False)
    made = categories.get("new")
    assert (made.mode, made.max.resources.cores, made.max.wall_time_s, made.autolabel["disk"]) == (
        VINE_ALLOCATION_MODE_MAX_THROUGHPUT, 3, 60.0, False)
    categories.set_max(None, {"cores": 5})
    assert categories.get("new").max.resources.cores == 3
    assert categories.get("newer").max.resources.cores == 5
    assert [found.name for found in categories] == ["default", "new", "newer"]


@pytest.mark.parametrize("nothing", [None, {}])
def test_an_empty_description_changes_nothing(nothing: dict[str, float] | None) -> None:
    found = category("fixed", cores=2, memory=100)
    found.set_max(nothing)
    assert found.max.resources == Resources(2, 100, -1, -1)


def test_a_description_replaces_only_its_keys_and_negative_unsets() -> None:
    found = category("fixed", cores=2, memory=100, end=1e9)
    found.set_max({"memory": 0.5, "cores": -1})
    assert (found.max.resources, found.max.end_s, found.max.wall_time_s) == (Resources(-1, 1, -1, -1), 1e9, -1.0)


@pytest.mark.parametrize(("description", "named"), [
    ({"core": 1}, "core"), ({"memory": "1 GB"}, "memory"), ({"disk": float("nan")}, "disk"), ({"gpus": True}, "gpus"),
    ({"cores": None}, "cores"), ([1], "dictionary")])
def test_a_bad_description_names_key_and_category(description: object, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        category().set_max(description)  # type: ignore[arg-type]
    assert "'c'" in str(caught.value)


def test_autolabel_of_an_unknown_resource_is_refused() -> None:
    category().set_autolabel("wall_time", False)
    with pytest.raises(UsageError, match="wall"):
        category().set_autolabel("wall", False)


def test_modes_are_given_by_any_spelling_or_number() -> None:
    assert parse_mode("MIN_waste") == VINE_ALLOCATION_MODE_MIN_WASTE
    assert parse_mode(0) == VINE_ALLOCATION_MODE_FIXED
    assert parse_mode(99) is None
    assert not Categories(tuned(), Random(1)).set_mode("c", 99)
    with pytest.raises(UsageError, match="least waste"):
        parse_mode("least waste")


def test_what_was_measured_counts_for_a_mode_set_later() -> None:
    found = category("fixed")
    for task_id in range(12):
        found.record(task_id, SMALL, 1.0)
    found.set_mode(VINE_ALLOCATION_MODE_MAX)
    assert found.effective_max(NOTHING_SET, 99, False) == Resources(1, 250, 250, 0)
    found.set_mode(parse_mode("greedy bucketing") or 0)
    assert found.effective_max(NOTHING_SET, 99, False) == Resources(1, 250, 250, 0)


@pytest.mark.parametrize(("default", "own", "expected"), [
    (-1, 3, [("c", 2.0, 3)]), (4, -1, [("c", 2.0, 4)]), (4, 0.5, [("c", 2.0, 4)]), (4, 0, []), (-1, -1, [])])
def test_slow_workers_are_looked_for_with_the_own_or_the_default_multiplier(
        default: float, own: float, expected: list[tuple[str, float, float]]) -> None:
    categories = Categories(tuned(), Random(1))
    categories.set_fast_abort(None, default)
    categories.set_fast_abort("c", own)
    for task_id in range(9):
        categories.get("c").record(task_id, SMALL, 1.5, transfer_s=0.5)
    assert categories.slow_limits(10) == []
    categories.get("c").record(9, SMALL, 1.5, transfer_s=0.5)
    assert categories.slow_limits(10) == expected


def test_max_concurrent_below_zero_is_no_limit() -> None:
    categories = Categories(tuned(), Random(1))
    categories.set_max_concurrent("c", -5)
    assert categories.get("c").max_concurrent == -1


def test_invalidate_raises_every_version() -> None:
    categories = Categories(tuned(), Random(1))
    before = {found.name: found.version for found in (categories.get("a"), categories.get(None))}
    categories.invalidate()
    assert all(categories.get(name).version > version for name, version in before.items())


# ---------------------------------------------------------------------- summaries


def summary(name: str, memory: object, **others: object) -> str:
    return json.dumps({"category": name, "cores": [0.4, "cores"], "memory": memory, "disk": [10, "MB"],
                       "wall_time": [2.5, "s"], **others}, indent=1)


def test_summaries_seed_the_first_allocation() -> None:
    categories = Categories(tuned(25), Random(1))
    categories.set_mode("a", "max")
    text = "\n".join([summary("a", [800, "MB"]), summary("a", 100), summary("b", [1, "GB"]),
                      summary("a", [5000, "MB"], exit_type="limits")])
    assert categories.initialize(text, {"cores": 4, "memory": 900, "disk": 1000}) == 3
    assert categories.get("a").effective_max(NOTHING_SET, 1, False) == Resources(1, 900, 250, -1)
    assert categories.get("b").records.seen.memory_mb == 1024


@pytest.mark.parametrize(("text", "named"), [
    ("{", "summaries"), ("[1]", "not an object"), ('{"memory": [1, "parsec"]}', "memory"),
    ('{"cores": 1}\n{"disk": "big"}', "line 2: disk")])
def test_unreadable_summaries_say_where(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Categories(tuned(), Random(1)).initialize(text, None)

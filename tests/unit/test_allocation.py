"""What a task gets at a worker: the published table, and rules that hold for any worker."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from taskvine_core.constants import ALLOCATION_MODE_NAMES
from taskvine_core.manager.allocation import allocate, fits
from taskvine_core.manager.bucketing import BUCKETING_MODES
from taskvine_core.manager.categories import Categories
from taskvine_core.manager.tuning import Tuning
from taskvine_core.resources import NOTHING_SET, ZERO, Resources

C, M, D, G = 4, 2000, 2000, 8
WORKER = Resources(C, M, D, G)
BUCKETING_NAMES = [name for name, number in ALLOCATION_MODE_NAMES.items() if number in BUCKETING_MODES]


def tuned(proportional: bool = True, **others: float) -> Tuning:
    tuning = Tuning()
    tuning.set("force-proportional-resources", proportional)
    for name, value in others.items():
        assert tuning.set(name, value) == 0
    return tuning


def by_category(tuning: Tuning, most: dict[str, float], least: dict[str, float], mode: str = "fixed") -> Resources:
    categories = Categories(tuning, Random(1))
    categories.set_mode("c", mode)
    categories.set_max("c", most)
    categories.set_min("c", least)
    category = categories.get("c")
    return allocate(NOTHING_SET, category.effective_max(NOTHING_SET, 1, False, WORKER),
                    category.effective_min(NOTHING_SET, 1, False, WORKER), WORKER, D, tuning=tuning,
                    learned=category.learned(False))


@pytest.mark.parametrize(("proportional", "most", "least", "expected"), [
    (False, {"cores": 1, "memory": 2, "disk": 3, "gpus": 4}, {}, (1, 2, 3, 4)),
    (False, {"cores": 1, "memory": 2, "disk": 3}, {}, (1, 2, 3, 0)),
    (False, {"gpus": 4, "memory": 2, "disk": 3}, {}, (0, 2, 3, 4)),
    (False, {"cores": 0, "memory": 0, "disk": 0, "gpus": 0}, {}, (C, M, D * 3 // 4, 0)),
    (True, {"memory": M // 2}, {}, (C // 2, M // 2, D // 2 * 3 // 4, 0)),
    (True, {"memory": M // 2}, {"cores": 3, "gpus": 2}, (4, M, D * 3 // 4, 2)),
    (True, {"cores": C}, {}, (C, M, D * 3 // 4, 0)),
    (True, {"cores": 1}, {}, (1, M // C, D // C * 3 // 4, 0)),
])
def test_the_published_table(
        proportional: bool, most: dict[str, float], least: dict[str, float], expected: tuple[int, ...]) -> None:
    cores, memory, disk, gpus = expected
    assert by_category(tuned(proportional), most, least) == Resources(cores, memory, disk, gpus)


def test_min_waste_without_data_takes_the_whole_worker() -> None:
    assert by_category(tuned(), {}, {}, "min_waste") == Resources(C, M, D * 3 // 4, 0)


@pytest.mark.parametrize("mode", BUCKETING_NAMES)
def test_bucketing_without_data_takes_the_share_of_its_sampling_values(mode: str) -> None:
    assert by_category(tuned(), {}, {}, mode) == Resources(2, M // 2, D // 2, 0)


def of_task(request: Resources, worker: Resources = WORKER, tuning: Tuning | None = None,
            ramp_down_free: Resources | None = None) -> Resources:
    return allocate(request, request, request, worker, worker.disk_mb, tuning=tuning or tuned(),
                    ramp_down_free=ramp_down_free)


def test_nothing_specified_is_the_whole_worker_without_gpus() -> None:
    assert of_task(NOTHING_SET) == Resources(C, M, D * 3 // 4, 0)


def test_gpus_alone_bring_no_cores_but_their_share_of_memory_and_disk() -> None:
    assert of_task(Resources(gpus=2)) == Resources(0, M // 4, D // 4 * 3 // 4, 2)


def test_all_gpus_bring_all_memory_and_disk_but_no_cores() -> None:
    assert of_task(Resources(gpus=G)) == Resources(0, M, D * 3 // 4, G)


def test_the_share_is_rounded_up_so_that_whole_tasks_fill_the_worker() -> None:
    worker = Resources(10, 1000, 1000, 0)
    assert of_task(Resources(cores=3), worker) == Resources(3, 333, 249, 0)
    assert of_task(Resources(cores=4), worker).memory_mb == 500


def test_a_task_that_names_memory_or_disk_gets_exactly_its_share_of_the_rest() -> None:
    worker = Resources(10, 1000, 1000, 0)
    assert of_task(Resources(memory_mb=400), worker) == Resources(4, 400, 300, 0)
    assert of_task(Resources(disk_mb=400), worker) == Resources(4, 400, 400, 0)


def test_without_whole_tasks_the_share_is_the_plain_one() -> None:
    tuning = tuned()
    tuning.set("proportional-whole-tasks", 0)
    assert of_task(Resources(cores=4), Resources(10, 1000, 1000, 0), tuning) == Resources(4, 400, 300, 0)


def test_a_request_beyond_the_worker_comes_out_unchanged_with_the_whole_worker_around_it() -> None:
    assert of_task(Resources(cores=C + 1)) == Resources(C + 1, M, D * 3 // 4, 0)


def test_overcommitment_divides_the_disk_share() -> None:
    assert of_task(Resources(cores=1), tuning=tuned(resource_submit_multiplier=2)).disk_mb == D // C // 2 * 3 // 4


def test_the_cache_is_not_given_to_tasks() -> None:
    assert allocate(NOTHING_SET, NOTHING_SET, NOTHING_SET, WORKER, 1000, tuning=tuned()).disk_mb == 750
    assert allocate(NOTHING_SET, NOTHING_SET, NOTHING_SET, WORKER, -5, tuning=tuned()).disk_mb == 0


def test_ramping_down_gives_what_is_free() -> None:
    free = Resources(3, 1500, 0, 8)
    assert of_task(Resources(gpus=1), ramp_down_free=free) == Resources(0, 1500, D * 3 // 4, 1)
    limits = Resources(cores=1)
    assert allocate(NOTHING_SET, limits, limits, WORKER, D, tuning=tuned(),
                    ramp_down_free=free) == Resources(3, 1500, D * 3 // 4, 0)


def test_ramping_down_leaves_a_task_that_takes_the_whole_worker_alone() -> None:
    limits = Resources(cores=C)
    assert allocate(NOTHING_SET, limits, NOTHING_SET, WORKER, D, tuning=tuned(),
                    ramp_down_free=Resources(3, 1500, 0, 8)) == Resources(C, M, D * 3 // 4, 0)


def test_a_maximum_beyond_the_worker_alone_is_no_share() -> None:
    limits = Resources(memory_mb=M + 1)
    assert allocate(NOTHING_SET, limits, NOTHING_SET, WORKER, D, tuning=tuned()) == Resources(C, M + 1, D * 3 // 4, 0)


def test_an_odd_number_of_tasks_fills_the_worker_exactly() -> None:
    # 49 * (1 / 49) < 1 in floating point: the share must not lose a core to that.
    assert of_task(Resources(cores=2), Resources(98, 98, 9800, 0)).memory_mb == 2


amount = st.integers(-1, 64)
requests = st.builds(Resources, amount, amount, amount, amount)
workers = st.builds(Resources, st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.integers(0, 8))
tunings = st.builds(tuned, st.booleans(), resource_submit_multiplier=st.sampled_from([1, 1.5, 3]))


@given(request=requests, most=requests, least=requests, worker=workers, tuning=tunings, learned=st.booleans())
def test_an_allocation_exceeds_the_worker_only_where_it_was_asked_to(
        request: Resources, most: Resources, least: Resources, worker: Resources, tuning: Tuning,
        learned: bool) -> None:
    top = most.overridden_by(request)
    found = allocate(request, top, top.at_least(least), worker, worker.disk_mb, tuning=tuning, learned=learned)
    for value, total, asked, low in zip(found, worker, top, least, strict=True):
        assert 0 <= value <= max(total, asked, low)


@given(request=requests, most=requests, least=requests, worker=workers, tuning=tunings)
def test_explicit_values_of_the_task_are_exact(
        request: Resources, most: Resources, least: Resources, worker: Resources, tuning: Tuning) -> None:
    top = most.overridden_by(request)
    found = allocate(request, top, top.at_least(least), worker, worker.disk_mb, tuning=tuning)
    assert all(value == asked for value, asked in zip(found, request, strict=True) if asked >= 0)


@given(cores=st.integers(1, 64), worker=workers)
def test_as_many_whole_tasks_as_fit_by_cores_leave_no_room_for_one_more(cores: int, worker: Resources) -> None:
    assume(cores <= worker.cores)
    each = of_task(Resources(cores=cores), worker)
    many = worker.cores // cores
    assert many * each.memory_mb <= worker.memory_mb or each.memory_mb == 1
    assert (many + 1) * each.cores > worker.cores
    assert worker.memory_mb - many * each.memory_mb < many


@given(memory=st.integers(1, 64), worker=workers)
def test_a_share_taken_without_rounding_is_the_floor_of_the_proportion(memory: int, worker: Resources) -> None:
    assume(memory < worker.memory_mb)
    each = of_task(Resources(memory_mb=memory), worker)
    expected = max(1, worker.cores * memory // worker.memory_mb)
    assert each.cores == expected


IN_USE = Resources(3, 900, 900, 0)
TOTAL = Resources(4, 1000, 1000, 1)


@pytest.mark.parametrize(("allocation", "multiplier", "expected"), [
    (Resources(1, 100, 100, 0), 1.0, True),
    (Resources(2, 100, 100, 0), 1.0, False),
    (Resources(1, 101, 100, 0), 1.0, False),
    (Resources(1, 100, 101, 0), 1.0, False),
    (Resources(0, 100, 100, 1), 1.0, True),
    (Resources(0, 100, 100, 2), 1.0, False),
    (Resources(2, 600, 100, 1), 1.5, True),
    (Resources(3, 600, 100, 1), 1.5, True),
    (Resources(4, 600, 100, 1), 1.5, False),
    (Resources(1, 100, 101, 0), 9.0, False),
    (Resources(1, 1001, 100, 0), 9.0, False),
])
def test_overcommitment_never_concerns_disk_nor_single_tasks_beyond_the_worker(
        allocation: Resources, multiplier: float, expected: bool) -> None:
    assert fits(allocation, TOTAL, IN_USE, multiplier=multiplier) is expected


@given(allocation=workers, worker=workers, multiplier=st.sampled_from([1.0, 1.3, 2.0]))
def test_an_idle_worker_takes_what_is_not_larger_than_it(
        allocation: Resources, worker: Resources, multiplier: float) -> None:
    assert fits(allocation, worker, ZERO, multiplier=multiplier) == allocation.fits_in(worker)
    over = Resources(math.ceil(worker.cores * multiplier), 0, 0, 0)
    assert not fits(allocation, worker, over, multiplier=multiplier)

"""hungry(): the published table, and rules that hold for any numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvine_core.manager.hungry import hungry
from taskvine_core.resources import NOTHING_SET, ZERO, Resources

WORKER = Resources(12, 1200, 1200, 0)
WHOLE = Resources(12, 1200, 900, 0)


def ask(*, waiting: int = 0, running: int = 0, workers: int = 1, committed: Resources = ZERO,
        total: Resources = WORKER, minimum: int = 5, factor: float = 2.0, request: Resources = NOTHING_SET) -> int:
    return hungry(waiting=waiting, running=running, workers=workers, committed=committed, total=total,
                  minimum=minimum, factor=factor, ready=[(request, waiting)] if waiting else [])


@pytest.mark.parametrize(("minimum", "expected"), [(11, 11), (2, 2)])
def test_without_workers_and_tasks_the_minimum_is_wanted(minimum: int, expected: int) -> None:
    assert ask(workers=0, total=ZERO, minimum=minimum) == expected


@pytest.mark.parametrize(("waiting", "expected"), [(1, 1), (2, 0), (3, 0)])
def test_without_workers_waiting_tasks_count_against_the_minimum(waiting: int, expected: int) -> None:
    assert ask(workers=0, total=ZERO, minimum=2, waiting=waiting) == expected


@pytest.mark.parametrize(("minimum", "expected"), [(2, 1), (5, 4)])
def test_one_unsized_task_running_and_one_waiting(minimum: int, expected: int) -> None:
    assert ask(waiting=1, running=1, committed=WHOLE, minimum=minimum) == expected


def test_an_idle_worker_wants_factor_times_its_cores() -> None:
    assert ask() == 24


@pytest.mark.parametrize(("factor", "expected"), [(2, 23), (3, 35)])
def test_one_single_core_task_running(factor: float, expected: int) -> None:
    assert ask(running=1, committed=Resources(1, 100, 75, 0), factor=factor) == expected


def test_a_full_worker_wants_no_more_than_the_minimum() -> None:
    assert ask(running=2, committed=Resources(12, 1200, 900, 0), factor=3) == 5


def test_memory_limits_when_it_is_scarcest() -> None:
    assert ask(running=1, committed=Resources(1, 200, 150, 0), factor=3) == 17


def test_a_waiting_task_is_counted_with_what_it_asks_for() -> None:
    assert ask(waiting=1, running=2, committed=Resources(12, 2, 2, 0), factor=10, request=Resources(2, 1, 1, -1)) == 53


def test_gpus_only_limit_tasks_that_ask_for_them() -> None:
    many = Resources(12, 12000, 12000, 0)
    assert ask(total=many) == 24
    assert ask(total=many, waiting=1, request=Resources(-1, -1, -1, 1), minimum=1, factor=2) == 2 - 1


def test_the_average_request_is_weighted_by_the_number_of_tasks() -> None:
    ready = [(Resources(1, -1, -1, -1), 3), (Resources(5, -1, -1, -1), 1)]
    assert hungry(waiting=4, running=0, workers=1, committed=ZERO, total=WORKER, minimum=1, factor=2,
                  ready=ready) == 24 // 2 - 4


@given(waiting=st.integers(0, 50), running=st.integers(0, 50), workers=st.integers(0, 20),
       minimum=st.integers(1, 100), factor=st.integers(1, 10), cores=st.integers(1, 64))
def test_it_never_asks_for_less_than_the_minimum_leaves_open(
        waiting: int, running: int, workers: int, minimum: int, factor: int, cores: int) -> None:
    total = Resources(cores * workers, 1000 * workers, 1000 * workers, 0)
    committed = Resources(min(running, total.cores), 0, 0, 0)
    answer = ask(waiting=waiting, running=running, workers=workers, committed=committed, total=total,
                 minimum=minimum, factor=factor)
    assert answer >= max(0, max(minimum, factor * workers) - waiting)

"""Statistics objects and the capacity estimate."""

from __future__ import annotations

from taskvine_core.manager.stats import (
    FIELDS,
    REPORTS_KEPT,
    REPORTS_WANTED,
    CapacityEstimator,
    CategoryStats,
    ManagerStats,
)
from taskvine_core.resources import Resources

ONE_CORE = Resources(1, 100, 200, 0)

_PUBLISHED = """workers_connected workers_init workers_idle workers_busy workers_able workers_joined workers_removed
workers_released workers_idled_out workers_slow workers_blocked workers_lost tasks_waiting tasks_on_workers
tasks_running tasks_with_results tasks_recovery tasks_submitted tasks_dispatched tasks_done tasks_failed
tasks_successful tasks_cancelled tasks_exhausted_attempts time_when_started time_send time_receive time_send_good
time_receive_good time_status_msgs time_internal time_polling time_application time_scheduling time_workers_execute
time_workers_execute_good time_workers_execute_exhaustion bytes_sent bytes_received bandwidth capacity_tasks
capacity_cores capacity_memory capacity_disk capacity_gpus capacity_instantaneous capacity_weighted total_cores
total_memory total_disk total_gpus committed_cores committed_memory committed_disk committed_gpus max_cores max_memory
max_disk max_gpus min_cores min_memory min_disk min_gpus inuse_cache"""
PUBLISHED = _PUBLISHED.split()


def test_the_published_attributes_are_there_in_their_order() -> None:
    assert list(FIELDS) == PUBLISHED


def test_values_before_anything_was_measured_are_the_published_ones() -> None:
    stats = ManagerStats()
    assert stats.bandwidth == 1.0
    assert (stats.capacity_tasks, stats.capacity_cores, stats.capacity_memory, stats.capacity_disk,
            stats.capacity_instantaneous, stats.capacity_weighted) == (10, 10, 5120, 10240, 10, 10)
    assert sum(value for name, value in stats.items() if "capacity" not in name) == 1.0


def test_statistics_have_no_room_for_misspelt_names() -> None:
    assert not hasattr(ManagerStats(), "__dict__")
    assert not hasattr(CategoryStats(), "__dict__")


def test_assign_keeps_the_object_and_takes_every_value() -> None:
    live, fresh = ManagerStats(), ManagerStats()
    for number, name in enumerate(FIELDS):
        setattr(fresh, name, number)
    live.assign(fresh)
    assert [value for _, value in live.items()] == list(range(len(FIELDS)))


def test_sums_and_ranges_land_in_their_own_fields() -> None:
    stats = ManagerStats()
    stats.set_total(Resources(1, 2, 3, 4))
    stats.set_committed(Resources(5, 6, 7, 8))
    stats.set_range(Resources(9, 10, 11, 12), Resources(13, 14, 15, 16))
    found = [getattr(stats, f"{group}_{resource}") for group in ("total", "committed", "min", "max")
             for resource in ("cores", "memory", "disk", "gpus")]
    assert found == list(range(1, 17))


def test_the_initial_capacity_stands_until_enough_tasks_are_known() -> None:
    estimator = CapacityEstimator()
    for _ in range(REPORTS_WANTED - 1):
        estimator.report(1000, 5, 5, ONE_CORE)
    assert estimator.estimate().tasks == 10
    estimator.report(1000, 5, 5, ONE_CORE)
    assert estimator.estimate().tasks == 100


def test_capacity_is_run_time_over_time_of_the_manager_with_the_resources_of_an_average_task() -> None:
    estimator = CapacityEstimator()
    for _ in range(10):
        estimator.report(1_000_000, 60_000, 40_000, Resources(2, 100, 200, 1))
    stats = ManagerStats()
    estimator.apply(stats)
    assert (stats.capacity_tasks, stats.capacity_cores, stats.capacity_memory, stats.capacity_disk,
            stats.capacity_gpus, stats.capacity_instantaneous) == (10, 20, 1000, 2000, 10, 10)


def test_only_the_newest_tasks_count() -> None:
    estimator = CapacityEstimator()
    for _ in range(200):
        estimator.report(10_000_000, 10, 0, Resources(8, 8, 8, 8))
    for _ in range(REPORTS_KEPT):
        estimator.report(300, 10, 0, ONE_CORE)
    now = estimator.estimate()
    assert (now.tasks, now.average_task, now.instantaneous) == (30, ONE_CORE, 30)


def test_the_weighted_value_moves_a_twentieth_of_the_way() -> None:
    estimator = CapacityEstimator()
    for _ in range(9):
        estimator.report(10, 1, 0, ONE_CORE)
    estimator.report(210, 1, 0, ONE_CORE)
    assert estimator.estimate().weighted == 20


def test_a_manager_that_took_no_measurable_time_is_no_error() -> None:
    estimator = CapacityEstimator()
    for _ in range(10):
        estimator.report(7, 0, 0, ONE_CORE)
    assert estimator.estimate().tasks == 70

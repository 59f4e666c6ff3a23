"""Tuning parameters: names, aliases, ranges."""

from __future__ import annotations

import dataclasses

import pytest

from taskvine_core.errors import UsageError
from taskvine_core.manager.tuning import TUNING_NAMES, Tuning

_PUBLISHED = """attempt-schedule-depth category-steady-n-tasks clean-redundant-replicas default-transfer-rate
disconnect-slow-worker-factor disconnect-slow-workers-factor disk-proportion-available-to-task
enforce-worker-eviction-interval file-source-max-transfers hungry-minimum hungry-minimum-factor immediate-recovery
keepalive-interval keepalive-timeout large-task-check-interval load-from-shared-filesystem long-timeout short-timeout
max-library-retries max-new-workers max-retrievals max-task-stdout-storage max-workers min-transfer-timeout
monitor-interval option-blocklist-slow-workers-timeout perf-log-interval prefer-dispatch proportional-resources
force-proportional-resources proportional-whole-tasks force-proportional-resources-whole-tasks ramp-down-heuristic
resource-management-interval resource-submit-multiplier asynchrony-multiplier sandbox-grow-factor shift-disk-load
task-groups temp-replica-count transfer-outlier-factor transfer-replica-per-cycle transfer-temps-recovery
transient-error-interval update-interval wait-for-workers watch-library-logfiles worker-retrievals
worker-source-max-transfers"""
PUBLISHED = _PUBLISHED.split()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_is_known_with_dashes_and_underscores(name: str) -> None:
    assert Tuning().set(name, 0.5) == 0
    assert Tuning().set(name.replace("-", "_"), 0.5) == 0


def test_the_list_of_names_is_the_published_one() -> None:
    assert set(TUNING_NAMES) == set(PUBLISHED)


def test_every_attribute_can_be_reached_by_a_name() -> None:
    reached = set()
    for name in PUBLISHED:
        tuning = Tuning()
        # Two values, as one of them may be the default.
        for value in (0.25, 7):
            tuning.set(name, value)
            reached |= {f.name for f in dataclasses.fields(Tuning) if getattr(tuning, f.name) != f.default}
    for name in PUBLISHED:
        tuning = Tuning()
        tuning.set(name, 0)
        reached |= {f.name for f in dataclasses.fields(Tuning) if getattr(tuning, f.name) != f.default}
    assert reached == {f.name for f in dataclasses.fields(Tuning)}


def test_an_unknown_name_changes_nothing_and_does_not_raise() -> None:
    tuning = Tuning()
    assert tuning.set("wait-retrieve-many", 1) == -1
    assert tuning == Tuning()


@pytest.mark.parametrize(("name", "value", "attribute", "expected"), [
    ("attempt-schedule-depth", 0, "attempt_schedule_depth", 1),
    ("category-steady-n-tasks", -3, "category_steady_n_tasks", 1),
    ("hungry-minimum", 0, "hungry_minimum", 1),
    ("hungry-minimum-factor", 0.5, "hungry_minimum_factor", 1.0),
    ("max-retrievals", -7, "max_retrievals", -1),
    ("max-library-retries", 0, "max_library_retries", 1),
    ("max-library-retries", 30, "max_library_retries", 30),
    ("resource-submit-multiplier", 0.1, "resource_submit_multiplier", 1.0),
    ("asynchrony-multiplier", 2.5, "resource_submit_multiplier", 2.5),
    ("sandbox-grow-factor", 1, "sandbox_grow_factor", 1.1),
    ("temp-replica-count", 0, "temp_replica_count", 1),
    ("transient-error-interval", 0.5, "transient_error_interval_s", 15.0),
    ("transient-error-interval", 3, "transient_error_interval_s", 3.0),
    ("large-task-check-interval", 5_000_000, "large_task_check_interval_s", 5.0),
    ("monitor-interval", 0, "monitor_interval_s", 5.0),
    ("monitor-interval", 2, "monitor_interval_s", 2.0),
    ("disconnect-slow-workers-factor", 3, "disconnect_slow_worker_factor", 3.0),
    ("disconnect-slow-worker-factor", 0.5, "disconnect_slow_worker_factor", -1.0),
    ("prefer-dispatch", 1, "prefer_dispatch", True),
    ("worker-retrievals", 0, "worker_retrievals", False),
    ("keepalive-timeout", -1, "keepalive_timeout_s", 0.0),
])
def test_values_are_moved_into_their_range(name: str, value: float, attribute: str, expected: object) -> None:
    tuning = Tuning()
    assert tuning.set(name, value) == 0
    assert getattr(tuning, attribute) == expected


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan")])
def test_the_disk_proportion_must_be_a_proper_fraction(value: float) -> None:
    tuning = Tuning()
    assert tuning.set("disk-proportion-available-to-task", value) == -1
    assert tuning.disk_proportion_available_to_task == 0.75


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    tuning = Tuning()
    assert tuning.set(name, float("inf")) == -1
    assert tuning.set(name, float("nan")) == -1
    assert tuning == Tuning()


def test_proportional_resources_switches_whole_tasks_along() -> None:
    tuning = Tuning()
    assert (tuning.proportional_resources, tuning.proportional_whole_tasks) == (True, False)
    tuning.set("force-proportional-resources", 1)
    assert (tuning.proportional_resources, tuning.proportional_whole_tasks) == (True, True)
    tuning.set("proportional-resources", 0)
    assert (tuning.proportional_resources, tuning.proportional_whole_tasks) == (False, False)
    tuning.set("proportional-whole-tasks", 1)
    assert (tuning.proportional_resources, tuning.proportional_whole_tasks) == (False, True)


def test_a_value_that_is_no_number_names_the_parameter() -> None:
    with pytest.raises(UsageError, match="hungry-minimum"):
        Tuning().set("hungry-minimum", "many")  # type: ignore[arg-type]

"""What the manager tells about itself: hungry, demand, status (reference, sections 9.7, 20.4)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from manager_rig import FOUR_CORES, ONE, Rig

from taskvine_core.errors import UsageError
from taskvine_core.manager import events as ev
from taskvine_core.manager.demand import MAX_SHAPES, demand
from taskvine_core.manager.queries import answer
from taskvine_core.resources import Resources

TWELVE = Resources(12, 1200, 1200, 0)


SHAPE = {"cores": 4, "memory_mb": 8000, "disk_mb": 50_000, "gpus": 0}


def groups(rig: Rig, *shapes: dict[str, object]) -> list[dict[str, Any]]:
    """The waiting tasks as told to a factory that asks for these shapes (default: SHAPE)."""
    return demand(rig.core, {"shapes": [{**SHAPE, **shape} for shape in shapes or ({},)]})["groups"]  # type: ignore[no-any-return]


def useful(rig: Rig, **shape: object) -> float:
    """Workers' worth of waiting tasks for one shape."""
    return sum(group["tasks"] * group["parts"][0] for group in groups(rig, shape))


# ---------------------------------------------------------------------- hungry


@pytest.mark.parametrize(("minimum", "submitted", "answer_"), [(11, 0, 11), (2, 0, 2), (2, 1, 1), (2, 2, 0)])
def test_without_workers_hungry_counts_up_to_the_minimum(minimum: int, submitted: int, answer_: int) -> None:
    rig = Rig()
    rig.core.tuning.set("hungry-minimum", minimum)
    for _ in range(submitted):
        rig.submit()
    assert rig.core.hungry() == answer_


def test_hungry_fills_the_idle_cores_times_the_factor() -> None:
    rig = Rig()
    rig.core.tuning.set("hungry-minimum", 5)
    rig.join(TWELVE)
    assert rig.core.hungry() == 24


@pytest.mark.parametrize(("factor", "answer_"), [(2, 23), (3, 35)])
def test_hungry_counts_what_runs_as_taken(factor: int, answer_: int) -> None:
    rig = Rig()
    rig.core.tuning.set("hungry-minimum", 5)
    rig.core.tuning.set("hungry-minimum-factor", factor)
    rig.join(TWELVE)
    rig.submit(resources=Resources(1, 1, 1, 0))
    assert rig.core.hungry() == answer_


def test_hungry_counts_blocked_and_resting_tasks_as_waiting() -> None:
    rig = Rig()
    rig.core.tuning.set("hungry-minimum", 10)
    maker = rig.submit(outputs=(rig.temp("x"),), time_start_s=rig.now + 100)
    rig.submit(inputs=("temp-rnd-x",))
    rig.submit()
    assert rig.core.hungry() == 7
    rig.tell(ev.Cancel((maker,)))


# ---------------------------------------------------------------------- demand


def test_waiting_tasks_are_told_with_the_share_of_a_worker_that_each_takes() -> None:
    rig = Rig()
    for _ in range(10):
        rig.submit(resources=ONE)
    (group,) = groups(rig, {}, {"cores": 1}, {"cores": 100})
    assert group["tasks"] == 10
    assert group["parts"][:2] == [0.25, 1.0]
    assert group["asks"]["cores"] == 1


def test_a_remainder_that_no_task_fits_in_counts_as_taken() -> None:
    rig = Rig()
    rig.submit(resources=Resources(3, 1, 1, 0))
    assert useful(rig) == 1.0


def test_running_tasks_are_told_as_the_load_of_their_worker() -> None:
    rig = Rig()
    rig.join(FOUR_CORES)
    for _ in range(3):
        rig.submit(resources=ONE)
    told = demand(rig.core, {"shapes": [SHAPE]})
    assert told["groups"] == []
    assert told["workers"][0]["load"] == 0.75


def test_demand_without_tasks_is_nothing() -> None:
    rig = Rig()
    rig.join()
    assert groups(rig) == []


def test_a_shape_that_can_run_nothing_is_not_wanted() -> None:
    rig = Rig()
    rig.submit(resources=Resources(8, 1, 1, 0))
    rig.submit(resources=Resources(1, 1, 1, 1))
    rig.submit(features=("special",))
    assert useful(rig) == 0
    assert useful(rig, gpus=1) == 1
    assert useful(rig, features=["special"]) == 0.25


def test_a_task_that_needs_longer_than_a_pools_walltime_does_not_fit_there() -> None:
    rig = Rig()
    rig.submit(resources=ONE, time_min_s=3600.0)
    assert useful(rig, walltime_s=1800) == 0
    assert useful(rig, walltime_s=7200) == useful(rig) == 0.25


def test_demand_knows_how_long_a_task_takes_once_some_have_run() -> None:
    rig = Rig()
    rig.join(FOUR_CORES)
    rig.finish(rig.submit(resources=ONE), took_s=30.0)
    rig.gone(1)
    for _ in range(8):
        rig.submit(resources=ONE)
    rig.submit(resources=ONE, category="new")
    assert [(group["category"], group["tasks"], group["seconds"]) for group in groups(rig)] == [
        ("default", 8, pytest.approx(30.0)), ("new", 1, None)]


def test_the_largest_need_decides_the_share() -> None:
    rig = Rig()
    for _ in range(4):
        rig.submit(resources=Resources(1, 8000, 1, 0))
    assert useful(rig) == 4


def test_very_many_kinds_of_tasks_are_told_by_a_sample_that_adds_up() -> None:
    rig = Rig()
    count = 2 * MAX_SHAPES
    for number in range(count):
        rig.submit(resources=Resources(1, 1 + number, 1, 0))
    told = groups(rig)
    assert sum(group["tasks"] for group in told) == pytest.approx(count)
    assert len(told) < 10


def test_what_one_factory_may_start_is_not_offered_to_the_next_before_it_asks_again() -> None:
    rig = Rig()
    for _ in range(16):
        rig.submit(resources=ONE)

    def ask(name: str, pending: int, room: int) -> dict[str, Any]:
        shape = {**SHAPE, "pending": pending, "room": room}
        return demand(rig.core, {"factory_id": name, "period_s": 1, "shapes": [shape]})["others"]  # type: ignore[no-any-return]

    assert ask("a", 0, 9)["pending"] == []
    assert ask("b", 0, 9)["pending"] == [{**SHAPE, "workers": 4}]   # all that the 16 tasks are worth
    assert ask("a", 2, 0)["pending"] == []                          # it started two, b none
    assert ask("b", 0, 9)["pending"] == [{**SHAPE, "workers": 2}]


def test_factories_hear_of_each_other_while_they_keep_asking() -> None:
    rig = Rig()

    def ask(name: str, pending: int, room: int) -> dict[str, Any]:
        shape = {**SHAPE, "pending": pending, "room": room}
        return demand(rig.core, {"factory_id": name, "period_s": 30, "shapes": [shape]})["others"]  # type: ignore[no-any-return]

    assert ask("b", 3, 5) == {"able": 0, "before": 0, "pending": []}
    assert ask("a", 0, 9) == {"able": 1, "before": 0, "pending": [{**SHAPE, "workers": 3}]}
    assert ask("b", 3, 0)["before"] == 1
    assert ask("a", 0, 9)["able"] == 0          # b has no room left
    rig.now += 91
    rig.tell()
    assert ask("a", 0, 9) == {"able": 0, "before": 0, "pending": []}


def test_demand_lists_workers_with_what_only_they_hold() -> None:
    rig = Rig()
    key = rig.join()
    temp = rig.temp("x")
    rig.finish(rig.submit(outputs=(temp,)), size=5_000_000)
    rig.now += 7
    told = json.loads(answer(rig.core, "demand", b'{"shapes": []}'))
    (worker,) = told["workers"]
    rig.tell()
    assert (worker["worker_id"], worker["state"], worker["sole_mb"]) == (f"w{key}", "idle", 5)
    rig.submit()
    rig.tell(ev.BlockHost("bad", 0.0))
    told = json.loads(answer(rig.core, "demand", b""))
    assert told["workers"][0]["state"] == "busy" and told["blocked_hosts"] == ["bad"]
    assert (told["tasks_running"], told["tasks_waiting"]) == (1, 0)


def test_retire_says_who_is_accepted_and_why_others_are_not() -> None:
    rig = Rig()
    rig.join()
    told = json.loads(answer(rig.core, "retire", b'{"worker_ids": ["w1", "nobody"], "reason": "idle"}'))
    assert told == {"accepted": ["w1"], "refused": {"nobody": "not connected"}}


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("nonsense", b""),
        ("demand", b"{"),
        ("demand", b'{"shapes": 5}'),
        ("demand", b"[]"),
        ("demand", b'{"shapes": [{"cores": "x"}]}'),
        ("demand", b'{"shapes": [{"cores": 1, "features": 7}]}'),
        ("retire", b'{"worker_ids": 7}'),
        ("retire", b"3"),
        ("demand", b'{"shapes": [{"cores": -4, "memory_mb": -1}]}'),
        ("demand", b"\xff\xfe"),
    ],
)
def test_a_query_that_cannot_be_answered_is_a_usage_error_or_an_answer_but_never_a_crash(
    what: str, body: bytes
) -> None:
    rig = Rig()
    rig.submit()
    try:
        json.loads(answer(rig.core, what, body))
    except UsageError as error:
        assert what in str(error)


@pytest.mark.parametrize("what", ["manager", "tasks", "workers", "categories"])
def test_status_records_are_lists_of_plain_values(what: str) -> None:
    rig = Rig()
    rig.join()
    rig.submit(category="c")
    records = json.loads(answer(rig.core, what, b""))
    assert records and all(isinstance(record, dict) for record in records)


def test_gauges_agree_with_the_books() -> None:
    rig = Rig()
    rig.join()
    rig.join()
    rig.submit(resources=Resources(4, 1, 1, 0))
    rig.submit(time_start_s=rig.now + 100)
    rig.submit(inputs=(rig.temp("never"),))
    rig.core.refresh_stats()
    stats = rig.core.stats
    assert (stats.workers_connected, stats.workers_busy, stats.workers_idle) == (2, 1, 1)
    assert (stats.tasks_running, stats.tasks_waiting, stats.tasks_submitted) == (1, 2, 3)
    assert stats.committed_cores == 4 and stats.total_cores == 8

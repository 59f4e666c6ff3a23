"""What the manager tells about itself: hungry, demand, status (reference, sections 9.7, 20.4)."""

from __future__ import annotations

import json

import pytest
from manager_rig import FOUR_CORES, ONE, Rig

from taskvine_core.errors import UsageError
from taskvine_core.manager import events as ev
from taskvine_core.manager.report import answer, demand
from taskvine_core.resources import Resources

TWELVE = Resources(12, 1200, 1200, 0)


def asked(rig: Rig, **shape: object) -> dict[str, object]:
    """The answer for one shape."""
    full = {"cores": 4, "memory_mb": 8000, "disk_mb": 50_000, "gpus": 0, **shape}
    return demand(rig.core, {"shapes": [full]})["shapes"][0]  # type: ignore[no-any-return]


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


def test_demand_is_how_many_workers_of_a_shape_could_be_busy() -> None:
    rig = Rig()
    for _ in range(10):
        rig.submit(resources=ONE)
    assert asked(rig)["workers"] == 3
    assert asked(rig, cores=1)["workers"] == 10
    assert asked(rig, cores=100)["workers"] == 1


def test_demand_counts_running_tasks_too() -> None:
    rig = Rig()
    rig.join(FOUR_CORES)
    for _ in range(8):
        rig.submit(resources=ONE)
    assert asked(rig)["workers"] == 2


def test_demand_without_tasks_is_nothing() -> None:
    rig = Rig()
    rig.join()
    assert asked(rig) == {"workers": 0, "seconds": None}


def test_a_shape_that_can_run_nothing_is_not_wanted() -> None:
    rig = Rig()
    rig.submit(resources=Resources(8, 1, 1, 0))
    rig.submit(resources=Resources(1, 1, 1, 1))
    rig.submit(features=("special",))
    assert asked(rig)["workers"] == 0
    assert asked(rig, gpus=1)["workers"] == 1
    assert asked(rig, features=["special"])["workers"] == 1


def test_demand_knows_how_long_the_work_takes_once_tasks_have_run() -> None:
    rig = Rig()
    rig.join(FOUR_CORES)
    rig.finish(rig.submit(resources=ONE), took_s=30.0)
    rig.gone(1)
    assert asked(rig)["seconds"] is None
    for _ in range(8):
        rig.submit(resources=ONE)
    assert asked(rig) == {"workers": 2, "seconds": pytest.approx(30.0)}


def test_the_largest_need_decides_the_share() -> None:
    rig = Rig()
    for _ in range(4):
        rig.submit(resources=Resources(1, 8000, 1, 0))
    assert asked(rig)["workers"] == 4


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

"""Reading answers of managers: garbage is never a number, and others' workers are not ours to provide."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from taskvine_core.errors import RemoteProtocolError
from taskvine_core.resources import Resources
from vine_factory.demand import Demand, Group, Shape, Standing, parse_demand, question, without_others

WORKER = {"worker_id": "w1", "job_id": "j1", "factory_name": "f", "hostname": "h", "state": "idle", "idle_s": 1.5,
          "tasks_running": 0, "cache_mb": 10, "sole_mb": 0, "end_time": 0, "cores": 4, "memory_mb": 100,
          "disk_mb": 100, "gpus": 0, "load": 0.0}
GROUP = {"category": "c", "tasks": 12, "seconds": 12.5, "parts": [0.5],
         "asks": {"cores": 1, "memory_mb": -1, "disk_mb": -1, "gpus": -1}}
ANSWER: dict[str, Any] = {"manager_id": "m", "project": "p", "tasks_waiting": 5, "tasks_running": 2, "tasks_left": 7,
                          "groups": [GROUP], "workers": [WORKER], "blocked_hosts": []}
SHAPE = Shape(Resources(2, 100, 100, 0), ("avx",))


def changed(path: tuple[object, ...], value: object) -> dict[str, Any]:
    answer = copy.deepcopy(ANSWER)
    place: Any = answer
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return answer


def parsed(**fields: object) -> Demand:
    return parse_demand({**ANSWER, **fields}, 1)


def test_a_good_answer_is_read() -> None:
    demand = parse_demand(ANSWER, 1)
    assert demand.groups[0] == Group("c", 12, 12.5, (0.5,), Resources(1, -1, -1, -1))
    assert demand.workers[0].resources == Resources(4, 100, 100, 0)


@pytest.mark.parametrize(("path", "value"), [
    (("groups",), None), (("groups",), {}), (("workers",), "many"), (("workers", 0), 3), (("groups", 0), 3),
    (("tasks_waiting",), -2), (("tasks_waiting",), True), (("tasks_waiting",), 1e99), (("tasks_waiting",), "5"),
    (("tasks_waiting",), 2.5), (("groups", 0, "tasks"), 10**12), (("groups", 0, "tasks"), None),
    (("groups", 0, "tasks"), -1), (("groups", 0, "parts"), []), (("groups", 0, "parts"), [1.5]),
    (("groups", 0, "parts"), [-0.5]), (("groups", 0, "parts"), ["x"]), (("groups", 0, "parts"), [float("nan")]),
    (("groups", 0, "asks"), None), (("groups", 0, "asks", "cores"), -7), (("workers", 0, "load"), -1),
    (("groups", 0, "seconds"), -1), (("groups", 0, "seconds"), float("nan")), (("workers", 0, "job_id"), None),
    (("workers", 0, "idle_s"), float("nan")), (("workers", 0, "tasks_running"), "none"), (("project",), 7),
    (("others",), 5), (("others",), {"able": -3, "before": 0, "pending": []}),
])
def test_garbage_is_an_error_and_not_a_number(path: tuple[object, ...], value: object) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_demand(changed(path, value), 1)


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_an_answer_that_is_no_object_is_an_error(body: object) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_demand(body, 1)


def test_the_question_has_every_shape_in_order() -> None:
    shapes = [SHAPE, Shape(Resources(8, 1, 1, 1), (), 3600.0)]
    body = question(shapes, [Standing(2, 5), Standing(0, 0)], "name", "id", 30.0)
    assert body == {"factory": "name", "factory_id": "id", "period_s": 30.0, "shapes": [
        {"cores": 2, "memory_mb": 100, "disk_mb": 100, "gpus": 0, "features": ["avx"], "walltime_s": 0.0,
         "pending": 2, "room": 5},
        {"cores": 8, "memory_mb": 1, "disk_mb": 1, "gpus": 1, "features": [], "walltime_s": 3600.0,
         "pending": 0, "room": 0}]}


def left(demand: Demand, own: set[str]) -> float:
    return sum(group.tasks for group in without_others(demand, [SHAPE], own))


def test_own_workers_leave_the_tasks_to_us() -> None:
    assert left(parsed(), {"j1"}) == 12


def test_others_workers_take_tasks_by_their_cores() -> None:
    assert left(parsed(), set()) == 8       # half of 2 cores each: a worker of 4 takes four


def test_others_workers_take_only_what_they_have_free() -> None:
    assert left(parsed(workers=[{**WORKER, "load": 0.5}]), set()) == 10
    assert left(parsed(workers=[{**WORKER, "load": 1.0}]), set()) == 12


def test_others_workers_that_are_leaving_or_too_small_take_nothing() -> None:
    assert left(parsed(workers=[{**WORKER, "state": "draining"}]), set()) == 12
    assert left(parsed(groups=[{**GROUP, "asks": {**GROUP["asks"], "gpus": 1}}]), set()) == 12  # type: ignore[dict-item]


def test_what_others_have_under_way_takes_tasks_too() -> None:
    pending = {"able": 1, "before": 0, "pending": [{"cores": 2, "memory_mb": 1, "disk_mb": 1, "gpus": 0, "workers": 3}]}
    assert left(parsed(others=pending), {"j1"}) == 6
    assert left(parsed(others={**pending, "pending": [{**pending["pending"][0], "workers": 99}]}), {"j1"}) == 0  # type: ignore[index]

"""Reading answers of managers: garbage is never a number, and others' workers are not ours to provide."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from taskvine_core.errors import RemoteProtocolError
from taskvine_core.resources import Resources
from vine_factory.demand import Demand, Shape, own_need, parse_demand, question

WORKER = {"worker_id": "w1", "job_id": "j1", "factory_name": "f", "hostname": "h", "state": "idle", "idle_s": 1.5,
          "tasks_running": 0, "cache_mb": 10, "sole_mb": 0, "end_time": 0, "cores": 4, "memory_mb": 100,
          "disk_mb": 100, "gpus": 0}
ANSWER: dict[str, Any] = {"manager_id": "m", "project": "p", "tasks_waiting": 5, "tasks_running": 2, "tasks_left": 7,
                          "shapes": [{"workers": 6, "seconds": 12.5}], "workers": [WORKER], "blocked_hosts": []}
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
    assert demand.needs[0] == (6, 12.5)
    assert demand.workers[0].resources == Resources(4, 100, 100, 0)


@pytest.mark.parametrize(("path", "value"), [
    (("shapes",), None), (("shapes",), []), (("shapes",), {}), (("workers",), "many"), (("workers", 0), 3),
    (("tasks_waiting",), -2), (("tasks_waiting",), True), (("tasks_waiting",), 1e99), (("tasks_waiting",), "5"),
    (("tasks_waiting",), 2.5), (("shapes", 0, "workers"), 10**12), (("shapes", 0, "workers"), None),
    (("shapes", 0, "seconds"), -1), (("shapes", 0, "seconds"), float("nan")), (("workers", 0, "job_id"), None),
    (("workers", 0, "idle_s"), float("nan")), (("workers", 0, "tasks_running"), "none"), (("project",), 7),
])
def test_garbage_is_an_error_and_not_a_number(path: tuple[object, ...], value: object) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_demand(changed(path, value), 1)


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_an_answer_that_is_no_object_is_an_error(body: object) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_demand(body, 1)


def test_the_question_has_every_shape_in_order() -> None:
    body = question([SHAPE, Shape(Resources(8, 1, 1, 1))], "name")
    assert body == {"factory": "name", "shapes": [
        {"cores": 2, "memory_mb": 100, "disk_mb": 100, "gpus": 0, "features": ["avx"]},
        {"cores": 8, "memory_mb": 1, "disk_mb": 1, "gpus": 1, "features": []}]}


def test_own_workers_do_not_lower_the_need() -> None:
    assert own_need(parsed(), 0, SHAPE, {"j1"}) == 6


def test_others_workers_lower_the_need_by_their_cores() -> None:
    assert own_need(parsed(), 0, SHAPE, set()) == 4


def test_others_workers_that_are_leaving_do_not_count() -> None:
    assert own_need(parsed(workers=[{**WORKER, "state": "draining"}]), 0, SHAPE, set()) == 6


def test_the_need_is_never_negative() -> None:
    assert own_need(parsed(workers=[{**WORKER, "cores": 64}]), 0, SHAPE, set()) == 0

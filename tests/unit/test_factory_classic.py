"""Need of managers of the C implementation, from records that nobody vouches for."""

from __future__ import annotations

from typing import Any

import pytest
from test_factory_core import Bench

from taskvine_core.errors import RemoteProtocolError
from taskvine_core.resources import Resources
from vine_factory import classic
from vine_factory.batch.base import BatchState
from vine_factory.classic import Rules
from vine_factory.demand import Demand, Shape, without_others
from vine_factory.events import Accepted, CancelJobs, Observed, RetireWorkers, SubmitJobs
from vine_factory.jobs import JobState
from vine_factory.readings import Known

ONE = Resources(4, 8000, -1, -1)
SHAPE = Shape(Resources(4, 8000, 1000, 0))


def record(**values: Any) -> dict[str, Any]:
    return {"type": "vine_manager", "project": "p", "name": "h", "port": 9123, "tasks_waiting": 10, "tasks_left": 2,
            "tasks_on_workers": 3, "workers": 0, **values}


@pytest.mark.parametrize("values,rules,expected", [
    ({}, Rules(0, False, (ONE,)), 15),                                      # one task per worker
    ({}, Rules(4, False, (ONE,)), 4),
    ({"tasks_total_cores": 100}, Rules(4, False, (ONE,)), 25),              # resources ask for more
    ({"tasks_total_memory": 8000 * 30 + 1}, Rules(4, False, (ONE,)), 31),
    ({"tasks_total_disk": 10**9}, Rules(0, False, (ONE,)), 15),             # not sized: not asked
    ({"capacity_weighted": 8}, Rules(0, True, (ONE,)), 8),
    ({"capacity_weighted": 8}, Rules(4, True, (ONE,)), 2),
    ({"capacity_weighted": 8}, Rules(0, False, (ONE,)), 15),
    ({"capacity_weighted": 0}, Rules(0, True, (ONE,)), 15),
    ({"capacity_weighted": 8, "capacity_cores": 9}, Rules(0, True, (ONE,)), 3),
])
def test_need_follows_the_published_arithmetic(values: dict[str, Any], rules: Rules, expected: int) -> None:
    assert classic.need(record(**values), ONE, rules) == expected


@pytest.mark.parametrize("bad", [-1, "7", None, True, 1.5, 10**12, [], float("nan")])
def test_a_count_that_is_none_makes_the_need_unknown_and_not_zero(bad: object) -> None:
    with pytest.raises(RemoteProtocolError):
        classic.need(record(tasks_waiting=bad), ONE, Rules(0, False, (ONE,)))


def left(demand: Demand) -> float:
    return sum(group.tasks for group in without_others(demand, [SHAPE], set()))


def test_workers_of_others_count_against_the_need_and_ours_do_not() -> None:
    workers = [{"factory_name": "me"}, {"factory_name": "me"}, {"factory_name": "you"}, {"hostname": "by-hand"}, 7]
    found = classic.demand(record(workers=5), workers, [SHAPE], Rules(0, False, (ONE,)), "me", 2)
    assert (found.unnamed, len(found.workers), left(found)) == (2, 5, 12)
    assert all(worker.job_id == "" and worker.state == "busy" for worker in found.workers)


def test_with_a_catalog_record_alone_what_cannot_be_ours_is_others() -> None:
    found = classic.demand(record(workers=5), None, [SHAPE], Rules(0, False, (ONE,)), "me", 3)
    assert (found.unnamed, left(found)) == (3, 13)


def test_pools_of_different_sizes_share_one_need() -> None:
    rules = Rules(0, False, (ONE, Resources(1, -1, -1, -1)))
    found = classic.demand(record(tasks_total_cores=40), [], [SHAPE, SHAPE], rules, "me", 0)
    assert [round(part * found.groups[0].tasks) for part in found.groups[0].parts] == [15, 40]


def test_texts_and_hosts_of_a_record_are_not_believed() -> None:
    found = classic.demand(record(project="a\nb", workers_blocked="good.host ;rm x\ty-1"), [], [SHAPE],
                           Rules(0, False, (ONE,)), "me", 0)
    assert found.project == "" and found.blocked_hosts == ("good.host", "x", "y-1")
    found = classic.demand(record(workers_blocked=["a", 3, "b c"]), [], [SHAPE], Rules(0, False, (ONE,)), "me", 0)
    assert found.blocked_hosts == ("a",)


def test_a_catalog_may_list_anything() -> None:
    good = record()
    junk: list[object] = [None, 3, {}, {"type": "vine_factory"}, record(port="1"), record(port=0), record(port=True),
                          record(name=""), record(project=4)]
    assert classic.managers([*junk, good]) == [good]
    with pytest.raises(RemoteProtocolError):
        classic.managers({"type": "vine_manager"})


class ClassicBench(Bench):
    """Its manager is of the C implementation."""

    connected = 0
    waiting = 0

    def tell(self, event: object) -> list[Any]:
        if isinstance(event, Observed):
            workers = [{"factory_name": "me"}] * self.connected
            told = classic.demand(record(tasks_waiting=self.waiting, tasks_left=0, tasks_on_workers=0), workers,
                                  [SHAPE], Rules(0, False, (ONE,)), "me", self.connected)
            event = Observed({"c:1": Known(told, self.now)}, event.discovery, event.batches)
        return super().tell(event)


def test_a_classic_manager_gets_its_workers_and_none_is_replaced_or_retired_for_not_being_named() -> None:
    bench = ClassicBench(workers_per_cycle=2, connect_timeout=30, retire_after=0)
    bench.waiting = 6
    for expected in (2, 2, 2):
        bench.step()
        names = bench.of(SubmitJobs)[0].intent_ids
        assert len(names) == expected
        bench.tell(Accepted("local", tuple((name, "b" + name) for name in names)))
        bench.run(*names, state=BatchState.RUNNING)
        bench.connected += expected  # they connect: nobody tells which is which, and the next may start
    for _ in range(100):
        bench.step(10)
        assert not bench.actions or not (bench.of(CancelJobs) or bench.of(SubmitJobs))
    bench.waiting = 1
    for _ in range(100):
        bench.step(10)
        assert not (bench.of(CancelJobs) or bench.of(RetireWorkers))
    assert {job.state for job in bench.core.fleet.live()} == {JobState.RUNNING}

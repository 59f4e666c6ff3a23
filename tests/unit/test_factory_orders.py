"""What a person orders for a pool while the factory runs: pause, drain, resume."""

from __future__ import annotations

from pathlib import Path

from test_factory_core import Bench

from vine_factory.batch.base import BatchState
from vine_factory.core import FactoryCore
from vine_factory.events import (
    Accepted,
    CancelJobs,
    OrderRow,
    PoolDrained,
    PoolPaused,
    PoolResumed,
    Refused,
    RetireAnswered,
    RetireWorkers,
    SubmitJobs,
    WriteJournal,
)
from vine_factory.journal import Journal
from vine_factory.limits import DRAINING, PAUSED
from vine_factory.readings import Unknown


def test_a_paused_pool_starts_nothing_and_loses_nothing_until_it_is_resumed() -> None:
    bench = Bench()
    bench.fleet(2)
    bench.tell(PoolPaused("local"))
    bench.need = 5
    bench.step()
    assert bench.of(SubmitJobs) == [] and bench.of(RetireWorkers) == []
    decision = bench.core.pools["local"].decision
    assert decision is not None and decision.binding() is not None
    assert [(step.limit, step.before, step.after) for step in decision.steps] == [("paused", 5, 2)]
    assert bench.core.standings(bench.now)[0].room == 0  # other factories may take what we do not
    bench.tell(PoolResumed("local"))
    bench.step()
    assert len(bench.of(SubmitJobs)[0].intent_ids) == 3


def test_a_drained_pool_asks_busy_workers_too_cancels_what_waits_and_ignores_its_minimum() -> None:
    bench = Bench(min_workers=2, retire_after=1000)
    bench.fleet(3)
    jobs = list(bench.workers)
    bench.workers[jobs[0]] = "busy"
    bench.need = 4
    bench.step()
    waiting = bench.of(SubmitJobs)[0].intent_ids
    bench.tell(Accepted("local", tuple((name, "b" + name) for name in waiting)))
    bench.run(*waiting, state=BatchState.QUEUED)
    bench.step()
    bench.tell(PoolDrained("local"))
    bench.step()
    assert {job for job, _ in bench.of(RetireWorkers)[0].workers} == set(jobs)
    assert {job for job, _ in bench.of(CancelJobs)[0].jobs} == set(waiting)
    bench.tell(RetireAnswered("m:1", tuple(jobs), {}))
    bench.workers = dict.fromkeys(jobs, "draining")
    for job in (*jobs[1:], *waiting):
        bench.end(job, 0)
        bench.workers.pop(job, None)
    for _ in range(100):  # the busy one takes its time and is not disturbed
        bench.step(10)
        assert bench.of(CancelJobs) == [] and bench.of(SubmitJobs) == []
    assert [job.intent_id for job in bench.core.fleet.live()] == [jobs[0]]


def test_draining_waits_for_an_answer_of_the_managers() -> None:
    bench = Bench()
    bench.fleet(2)
    bench.manager = Unknown("silent", bench.now)
    bench.tell(PoolDrained("local"))
    bench.step()
    assert bench.of(RetireWorkers) == [] and bench.of(CancelJobs) == []


def test_resume_lets_a_tripped_pool_try_at_once_with_as_many_as_are_wanted() -> None:
    bench = Bench()
    bench.need = 4
    bench.step()
    bench.tell(Refused("local", bench.of(SubmitJobs)[0].intent_ids, "no such queue"))
    bench.step(0.1)
    assert bench.of(SubmitJobs) == []
    bench.tell(PoolResumed("local"))
    bench.step(0.1)
    assert len(bench.of(SubmitJobs)[0].intent_ids) == 4


def test_an_order_is_journalled_and_holds_after_a_restart(tmp_path: Path) -> None:
    bench = Bench(min_workers=2)
    bench.tell(PoolPaused("local"))
    assert bench.of(WriteJournal)[0].orders == (OrderRow("local", PAUSED),)
    journal = Journal(tmp_path / "j")
    journal.write(bench.of(WriteJournal)[0])
    bench.core = FactoryCore(bench.core.settings, {"local": 0.0}, lambda: "x", (), (), 0.0, journal.orders())
    bench.step()
    assert bench.of(SubmitJobs) == []
    bench.tell(PoolDrained("local"))
    journal.write(bench.of(WriteJournal)[0])
    assert journal.orders() == [OrderRow("local", DRAINING)]
    bench.tell(PoolResumed("local"))
    journal.write(bench.of(WriteJournal)[0])
    assert journal.orders() == []
    journal.close()


def test_an_order_for_a_pool_that_has_gone_is_forgotten() -> None:
    bench = Bench()
    bench.tell(PoolPaused("gone"))
    assert bench.actions == []

"""How many: start-up, walltime, budgets, jobs of several workers, factories that share. Through the whole core."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from test_factory_core import Bench

from taskvine_core.resources import Resources
from vine_factory import defaults
from vine_factory.batch.base import BatchState
from vine_factory.budget import Meter
from vine_factory.demand import Demand, Group, Others, WorkerFacts
from vine_factory.events import CancelJobs, MeterRow, Observed, RetireAnswered, RetireWorkers, SubmitJobs, WriteJournal
from vine_factory.explain import sentence
from vine_factory.jobs import JobState
from vine_factory.readings import Known
from vine_factory.startup import StartupTimes
from vine_factory.walltime import lifetime_s


def with_pool(bench: Bench, **fields: object) -> Bench:
    """The bench with other settings of its pool."""
    settings = bench.core.settings
    bench.core.settings = dataclasses.replace(settings, pools=(settings.pools[0]._replace(**fields),))  # type: ignore[arg-type]
    bench.core._sync_pools()
    return bench


def submitted(bench: Bench) -> int:
    return sum(len(action.intent_ids) for action in bench.of(SubmitJobs))


# ------------------------------------------------------------------------------------------------ start-up


def test_the_usual_start_up_is_the_median_and_unknown_at_first() -> None:
    times = StartupTimes()
    for seconds in (5.0, 500.0):
        times.note(seconds)
    assert times.usual_s() is None
    times.note(7.0)
    assert times.usual_s() == 7.0
    assert StartupTimes(33.0).usual_s() == 33.0


def test_what_would_arrive_when_the_work_is_over_is_not_submitted() -> None:
    bench = with_pool(Bench(), startup_s=100.0)
    bench.fleet(4)
    bench.need, bench.seconds = 9, 10.0         # 9 tasks of 10 s: the four here are done after 25 s
    bench.step()
    assert submitted(bench) == 0
    decision = bench.core.pools["local"].decision
    assert decision is not None and decision.steps[-1].limit == "worthwhile"
    bench.seconds = 1000.0
    bench.step()
    assert submitted(bench) == 5


def test_without_any_worker_even_short_work_gets_one() -> None:
    bench = with_pool(Bench(), startup_s=100.0)
    bench.need, bench.seconds = 3, 0.1
    bench.step()
    assert submitted(bench) == 1


def test_work_of_unknown_length_is_not_held_back() -> None:
    bench = with_pool(Bench(), startup_s=100.0)
    bench.need = 9
    bench.step()
    assert submitted(bench) == 9


def test_where_starting_takes_long_an_idle_worker_stays_as_long() -> None:
    bench = with_pool(Bench(retire_after=10.0), startup_s=300.0)
    bench.fleet(3)
    bench.need = 0
    for _ in range(299):
        bench.step()
        assert bench.of(RetireWorkers) == []
    bench.step(3.0)
    assert bench.of(RetireWorkers) != []


# ------------------------------------------------------------------------------------------------ walltime


def test_jobs_of_one_submission_end_one_after_another_and_before_their_limit() -> None:
    lives = sorted(lifetime_s(3600.0, f"run-{n}") for n in range(200))
    assert 3600 - defaults.WALLTIME_MARGIN_S >= lives[-1] > lives[0] >= 3600 * (1 - defaults.EXPIRY_STAGGER) - 120
    assert max(b - a for a, b in itertools.pairwise(lives)) < 30
    assert lifetime_s(3600.0, "x") == lifetime_s(3600.0, "x")
    assert lifetime_s(0.0, "x") == 0.0


def test_a_worker_near_its_walltime_is_replaced_before_it_leaves_and_not_retired() -> None:
    bench = with_pool(Bench(), walltime_s=3600.0, startup_s=60.0)
    bench.fleet(2)
    bench.workers = dict.fromkeys(bench.workers, "busy")
    bench.step(min(lifetime_s(3600.0, job) for job in bench.workers) - 100.0)
    assert submitted(bench) == 0
    bench.step(50.0)
    assert submitted(bench) == 1
    assert bench.of(RetireWorkers) == bench.of(CancelJobs) == []


def test_replacing_never_exceeds_the_maximum() -> None:
    bench = with_pool(Bench(max_workers=2), walltime_s=3600.0, startup_s=60.0)
    bench.fleet(2)
    bench.workers = dict.fromkeys(bench.workers, "busy")
    bench.step(3550.0)
    assert submitted(bench) == 0


# ------------------------------------------------------------------------------------------------ several workers


def observe(bench: Bench, job: str, states: list[str], tasks: float) -> None:
    facts = tuple(WorkerFacts(f"w{n}", job, "h", state, 5.0, int(state == "busy"), 0, 0, Resources(1, 100, 100, 0),
                              float(state == "busy")) for n, state in enumerate(states))
    groups = (Group("c", tasks, None, (1.0,), Resources(1, -1, -1, -1)),) if tasks else ()
    bench.now += 1
    bench.tell(Observed({"m:1": Known(Demand("m", "p", 0, 0, 0, groups, facts, ()), bench.now)}, Known(1, bench.now),
                        {"local": Known(tuple(bench.jobs.values()), bench.now)}))


def test_a_job_of_several_workers_counts_as_several_and_the_maximum_is_of_workers() -> None:
    bench = with_pool(Bench(), workers_per_job=4, maximum=10)
    bench.need = 5
    bench.step()
    assert submitted(bench) == 2
    bench.need = 50
    bench.step()
    assert submitted(bench) == 0        # a third would be the 9th to 12th worker


def test_a_job_of_several_workers_is_retired_as_a_whole_and_only_when_all_are_idle() -> None:
    bench = with_pool(Bench(retire_after=5.0), workers_per_job=3)
    bench.need = 3
    bench.step()
    (job,) = bench.of(SubmitJobs)[0].intent_ids
    bench.run(job)
    for states, retired in ((["idle", "busy", "idle"], False), (["idle", "idle", "idle"], True)):
        seen = False
        for _ in range(9):
            observe(bench, job, states, 0)
            for action in bench.of(RetireWorkers):
                seen = True
                assert [worker for _, worker in action.workers] == ["w0", "w1", "w2"]
        assert seen is retired


# ------------------------------------------------------------------------------------------------ budgets


def test_a_meter_forgets_what_is_older_than_its_period() -> None:
    meter = Meter(4800.0)
    for now in range(0, 1001, 100):
        meter.note(2, float(now))
    assert meter.used_core_s() == 2000.0
    meter.note(0, 5000.0)
    assert 1500 < meter.used_core_s() < 2000
    meter.note(0, 6000.0)
    assert meter.used_core_s() == 0.0


def test_a_used_up_budget_starts_nothing_lets_idle_go_and_keeps_busy_workers() -> None:
    bench = with_pool(Bench(), budget_core_hours=1.0)
    bench.fleet(3)
    bench.workers = {job: "busy" if n < 2 else "idle" for n, job in enumerate(bench.workers)}
    bench.need = 9
    for _ in range(30):
        bench.step(60.0)
    decision = bench.core.pools["local"].decision
    assert decision is not None
    assert "the budget is used up" in sentence(decision)
    assert decision.target == 2
    assert bench.of(CancelJobs) == []


def test_what_was_used_is_known_to_the_next_run() -> None:
    bench = with_pool(Bench(), budget_core_hours=100.0)
    bench.fleet(3)
    rows: dict[tuple[str, float], MeterRow] = {}
    for _ in range(20):
        bench.step(60.0)
        for action in bench.of(WriteJournal):
            rows.update({(row.pool, row.start): row for row in action.meters})
    assert sum(row.core_s for row in rows.values()) == pytest.approx(3 * 1200, abs=240)


# ------------------------------------------------------------------------------------------------ disruption, queue


def test_no_more_than_the_disruption_budget_leave_in_a_minute() -> None:
    bench = with_pool(Bench(retire_after=1.0), retire_per_minute=2)
    bench.fleet(9)
    bench.need = 0
    asked: list[tuple[float, int]] = []
    for _ in range(150):
        bench.step()
        for action in bench.of(RetireWorkers):
            asked.append((bench.now, len(action.workers)))
            bench.tell(RetireAnswered(action.manager, tuple(job for job, _ in action.workers), {}))
            for job, _ in action.workers:
                bench.end(job, 0)
                del bench.workers[job]
    assert sum(n for at, n in asked if at <= asked[0][0] + 59) == 2
    assert sum(n for _, n in asked) >= 4


def test_the_batch_systems_queue_is_not_filled_beyond_max_idle() -> None:
    bench = with_pool(Bench(), max_idle=3)
    bench.need = 9
    bench.step()
    assert submitted(bench) == 3
    names = bench.of(SubmitJobs)[0].intent_ids
    bench.run(*names, state=BatchState.QUEUED)
    bench.step()
    assert submitted(bench) == 0
    bench.run(*names[:2])
    bench.step()
    assert submitted(bench) == 2


# ------------------------------------------------------------------------------------------------ sharing


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_factories_that_can_start_more_divide_what_is_missing(total: int) -> None:
    started = []
    for before in range(3):
        bench = with_pool(Bench(), maximum=500)
        bench.need, bench.others = total, Others(2, before)
        bench.step()
        started.append(submitted(bench))
    assert sum(started) == total
    assert max(started) - min(started) <= 1


def test_a_factory_whose_others_are_full_takes_all() -> None:
    bench = Bench()
    bench.need, bench.others = 7, Others(0, 0)
    bench.step()
    assert submitted(bench) == 7


def test_sharing_never_lets_go_of_what_is_there() -> None:
    bench = Bench(retire_after=1.0)
    bench.fleet(6)
    bench.workers = dict.fromkeys(bench.workers, "busy")
    bench.others = Others(3, 2)
    for _ in range(10):
        bench.step()
    assert all(job.state is JobState.CONNECTED for job in bench.core.fleet.live())


# ------------------------------------------------------------------------------------------------ unfit


def test_tasks_that_fit_no_pool_are_named_instead_of_waited_for() -> None:
    bench = Bench()
    group = Group("huge", 4, None, (0.0,), Resources(64, -1, -1, -1))
    bench.now += 1
    bench.tell(Observed({"m:1": Known(Demand("m", "p", 4, 0, 4, (group,), (), ()), bench.now)}, Known(1, bench.now),
                        {"local": Known((), bench.now)}))
    assert submitted(bench) == 0
    decision = bench.core.pools["local"].decision
    assert decision is not None
    assert "4 waiting tasks of category 'huge' ask for more than a worker of any pool has" in sentence(decision)

"""Readings that fail, are old, empty, zero or from a wrong clock never shrink a fleet, nor is its maximum exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_factory_core import PLAIN, Bench

from taskvine_core.errors import RemoteProtocolError
from vine_factory import defaults
from vine_factory.batch.base import JobStatus
from vine_factory.demand import Demand, Group, WorkerFacts, parse_demand
from vine_factory.events import Accepted, CancelJobs, Observed, RetireAnswered, RetireWorkers, SubmitJobs
from vine_factory.jobs import JobState
from vine_factory.packing import pack, work_s
from vine_factory.readings import Known, Reading, Unknown

MAXIMUM = 6
FAR_S = 10_000.0


def answer(bench: Bench, busy: int) -> Demand:
    """The truth: of the workers there are, so many have work."""
    facts = tuple(WorkerFacts(f"w-{job}", job, "h", "busy" if n < busy else "idle", 5.0, int(n < busy), 0, 0, PLAIN,
                              float(n < busy)) for n, job in enumerate(sorted(bench.workers)))
    waiting = max(0, bench.need - busy)
    groups = (Group("default", waiting, None, (1.0,), PLAIN),) if waiting else ()
    return Demand("m", "p", waiting, 0, waiting, groups, facts, ())


def of_manager(kind: str, truth: Demand, now: float) -> Reading[Demand] | None:
    made: dict[str, Reading[Demand] | None] = {
        "true": Known(truth, now), "unknown": Unknown("timeout", now), "absent": None,
        "zero": Known(Demand("other", "p", 0, 0, 0, (), (), ()), now),
        "doubled": Known(truth._replace(workers=truth.workers * 2), now),
        "old": Known(Demand("m", "p", 0, 0, 0, (), (), ()), now - FAR_S),
        "future": Known(Demand("m", "p", 0, 0, 0, (), (), ()), now + FAR_S)}
    return made[kind]


def of_batch(kind: str, truth: tuple[JobStatus, ...], now: float) -> Reading[tuple[JobStatus, ...]]:
    made: dict[str, Reading[tuple[JobStatus, ...]]] = {
        "true": Known(truth, now), "unknown": Unknown("timeout", now), "empty": Known((), now),
        "partial": Known(truth[1:], now), "old": Known((), now - FAR_S), "future": Known((), now + FAR_S)}
    return made[kind]


STEP = st.tuples(st.sampled_from(["true", "true", "unknown", "absent", "zero", "doubled", "old", "future"]),
                 st.sampled_from(["true", "true", "unknown", "empty", "partial", "old", "future"]),
                 st.sampled_from([0.0, 1.0, 5.0, 30.0]), st.booleans())


@settings(max_examples=300, deadline=None)
@given(need=st.integers(1, 9), steps=st.lists(STEP, min_size=5, max_size=60))
def test_whatever_is_read_no_busy_worker_is_touched_and_the_maximum_holds(
        need: int, steps: list[tuple[str, str, float, bool]]) -> None:
    bench = Bench(max_workers=MAXIMUM, retire_after=10.0)
    bench.fleet(min(need, MAXIMUM))
    lies = {"manager": 0, "batch": 0}
    for manager, batch, dt, sure in steps:
        bench.now += dt
        busy = min(need, len(bench.workers))
        bench.need = need
        # Who lies three times in a row is believed; that is the rule and not the subject.
        lies["manager"] = 0 if manager in ("true", "doubled") else lies["manager"] + (manager == "zero")
        lies["batch"] = 0 if batch == "true" else lies["batch"] + (batch in ("empty", "partial"))
        manager = "true" if lies["manager"] > 2 else manager
        batch = "true" if lies["batch"] > 2 else batch
        truth = answer(bench, busy)
        reading = of_manager(manager, truth, bench.now)
        busy_jobs = {one.job_id for one in truth.workers if one.state == "busy"}
        bench.tell(Observed({} if reading is None else {"m:1": reading},
                            Known(1, bench.now) if sure and reading is not None else Unknown("busy", bench.now),
                            {"local": of_batch(batch, tuple(bench.jobs.values()), bench.now)}))
        asked = {job for action in bench.of(RetireWorkers) for job, _ in action.workers}
        cancelled = {job for action in bench.of(CancelJobs) for job, _ in action.jobs}
        assert not busy_jobs & (asked | cancelled)
        if manager in ("unknown", "old", "future") or batch in ("unknown", "old", "future"):
            assert not asked and not cancelled
        for action in bench.of(RetireWorkers):
            bench.tell(RetireAnswered("m:1", (), {job: "no" for job, _ in action.workers}))
        for action in bench.of(SubmitJobs):
            bench.tell(Accepted("local", tuple((name, "b" + name) for name in action.intent_ids)))
            bench.run(*action.intent_ids)
            bench.workers |= dict.fromkeys(action.intent_ids, "idle")
        assert len(bench.jobs) <= MAXIMUM


@pytest.mark.parametrize("ahead_s", [FAR_S, defaults.CLOCKS_AGREE_S + 2])
def test_a_listing_from_the_future_is_not_believed_and_does_not_deafen_the_factory(ahead_s: float) -> None:
    bench = Bench()
    bench.fleet(3)
    bench.listing = Known((), bench.now + ahead_s)
    bench.step()
    assert "in the future" in bench.core.pools["local"].listing_unknown
    bench.listing = None
    bench.end("j1", 0)
    bench.workers.pop("j1")
    bench.step()
    assert bench.core.fleet.jobs["j1"].state is JobState.ENDED


def test_a_pass_after_a_long_sleep_takes_nothing_old_for_news() -> None:
    bench = Bench()
    bench.fleet(4)
    old = Known(answer(bench, 0)._replace(workers=()), bench.now)
    listing = Known(tuple(bench.jobs.values()), bench.now)
    for _ in range(3):
        bench.now += FAR_S
        bench.tell(Observed({"m:1": old}, Known(1, bench.now), {"local": listing}))
        assert bench.of(RetireWorkers) == bench.of(CancelJobs) == bench.of(SubmitJobs) == []


def test_everything_missing_at_once_is_a_lie_for_as_long_as_a_submission_may_take_to_show() -> None:
    bench = Bench()
    bench.core._settles_s["local"] = 60.0
    bench.fleet(4)
    bench.workers.clear()       # the manager is restarting, and the queue is too
    kept, bench.jobs = bench.jobs, {}
    for _ in range(10):
        bench.step(5.0)
        assert bench.of(SubmitJobs) == []
    bench.jobs = kept
    bench.step()
    assert bench.active() == 4


def test_a_worker_that_two_managers_list_counts_once_and_where_it_works() -> None:
    bench = Bench()
    bench.fleet(2)
    busy = answer(bench, 2)
    half_open = answer(bench, 1)._replace(groups=(), tasks_waiting=0)
    for _ in range(100):
        bench.now += 1.0
        bench.tell(Observed({"m:1": Known(busy, bench.now), "m:2": Known(half_open, bench.now)}, Known(2, bench.now),
                            {"local": Known(tuple(bench.jobs.values()), bench.now)}))
        assert bench.of(RetireWorkers) == [] and bench.of(SubmitJobs) == []
    assert {job.load for job in bench.core.fleet.live()} == {1.0}


def test_a_restarted_manager_with_no_workers_yet_finds_them_again() -> None:
    bench = Bench(retire_after=5.0)
    bench.fleet(3)
    before, bench.workers = bench.workers, {}
    for _ in range(100):
        bench.step()
        assert bench.of(CancelJobs) == bench.of(SubmitJobs) == []
    bench.workers = before
    bench.step()
    assert [job.state for job in bench.core.fleet.live()] == [JobState.CONNECTED] * 3


def test_a_manager_that_never_answers_to_a_retirement_is_asked_again() -> None:
    bench = Bench(retire_after=5.0)
    bench.fleet(2)
    bench.need = 0
    asked = []
    for _ in range(200):
        bench.step()
        asked += [bench.now for _ in bench.of(RetireWorkers)]
    assert len(asked) == 3 and asked[1] - asked[0] >= defaults.RETIRE_ANSWER_S


@pytest.mark.parametrize(("key", "value"), [
    ("seconds", float("inf")), ("seconds", float("nan")), ("tasks", float("inf")), ("tasks", -1), ("tasks", 1e300),
    ("parts", [float("inf")]), ("parts", [-0.1]), ("parts", [float("nan")])])
def test_numbers_that_cannot_be_true_make_an_answer_unreadable(key: str, value: object) -> None:
    group = {"category": "c", "tasks": 3, "seconds": 1.0, "parts": [0.5],
             "asks": {"cores": 1, "memory_mb": -1, "disk_mb": -1, "gpus": 0}}
    body = {"manager_id": "m", "project": "", "tasks_waiting": 3, "tasks_running": 0, "tasks_left": 3, "workers": [],
            "blocked_hosts": [], "groups": [{**group, key: value}]}
    with pytest.raises(RemoteProtocolError):
        parse_demand(body, 1)


@pytest.mark.parametrize(("seconds", "part"), [(1e308, 1.0), (1.0, 1e-300), (1e308, 1e-300)])
def test_absurd_but_possible_numbers_stay_finite(seconds: float, part: float) -> None:
    body = {"manager_id": "m", "project": "", "tasks_waiting": 9, "tasks_running": 0, "tasks_left": 9, "workers": [],
            "blocked_hosts": [], "groups": [{"category": "c", "tasks": 1_000_000, "seconds": seconds, "parts": [part],
                                             "asks": {"cores": 1, "memory_mb": -1, "disk_mb": -1, "gpus": 0}}]}
    groups = parse_demand(body, 1).groups
    rows = pack(groups, (4500.0,))
    total = work_s(groups, rows, 0)
    assert total is not None and int(total) >= 0

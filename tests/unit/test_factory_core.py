"""The core, event by event: what is written before what, what never shrinks, who is asked to leave."""

from __future__ import annotations

import itertools
from typing import TypeVar

import pytest

from taskvine_core.resources import Resources
from vine_factory import config, defaults
from vine_factory.batch.base import BatchState, JobStatus, JobTag
from vine_factory.config import Settings, Sourced
from vine_factory.core import FactoryCore
from vine_factory.demand import Demand, Group, Others, WorkerFacts
from vine_factory.events import (
    Accepted,
    Action,
    CancelJobs,
    CancelUnclear,
    Finish,
    JobRow,
    Note,
    Observed,
    Refused,
    RetireAnswered,
    RetireWorkers,
    SettingsChanged,
    StopRequested,
    SubmitJobs,
    SubmitUnclear,
    WriteJournal,
)
from vine_factory.jobs import JobState
from vine_factory.readings import Known, Reading, Unknown

PLAIN = Resources(1, 100, 100, 0)
A = TypeVar("A")


def make_settings(**values: object) -> Settings:
    given: dict[str, object] = {"batch-type": "local", "max-workers": 10, "cores": 1}
    given |= {key.replace("_", "-"): value for key, value in values.items()}
    return config.build({k: Sourced(config.check_value(k, v, "t"), "t") for k, v in given.items()},
                        config.FileValues(), host="m", port=1, machine=PLAIN)


class Bench:
    """A core and the world it is told of."""

    def __init__(self, rows: tuple[JobRow, ...] = (), **values: object) -> None:
        numbers = itertools.count(1)
        self.now = 0.0
        self.core = FactoryCore(make_settings(**values), {"local": 0.0}, lambda: f"j{next(numbers)}", rows, (), 0.0)
        self.need = 0           # tasks that wait or run, of one worker each
        self.seconds: float | None = None
        self.others = Others()
        self.manager: Unknown | None = None
        self.jobs: dict[str, JobStatus] = {}
        self.workers: dict[str, str] = {}
        self.listing: Reading[tuple[JobStatus, ...]] | None = None
        self.actions: list[Action] = []

    def step(self, dt: float = 1.0) -> list[Action]:
        self.now += dt
        facts = tuple(WorkerFacts(f"w-{job}", job, "h", state, 5.0, int(state == "busy"), 0, 0, PLAIN,
                                  float(state == "busy")) for job, state in self.workers.items())
        waiting = max(0, self.need - sum(state == "busy" for state in self.workers.values()))
        groups = (Group("default", waiting, self.seconds, (1.0,), PLAIN),) if waiting else ()
        demand = Demand("m", "p", waiting, 0, waiting, groups, facts, (), self.others)
        manager: Reading[Demand] = self.manager or Known(demand, self.now)
        listing = self.listing or Known(tuple(self.jobs.values()), self.now)
        return self.tell(Observed({"m:1": manager}, Known(1, self.now), {"local": listing}))

    def tell(self, event: object) -> list[Action]:
        self.actions = self.core.handle(event, self.now)  # type: ignore[arg-type]
        self.core.check_invariants()
        return self.actions

    def of(self, kind: type[A]) -> list[A]:
        return [action for action in self.actions if isinstance(action, kind)]

    def run(self, *intents: str, state: BatchState = BatchState.RUNNING) -> None:
        for intent in intents:
            self.jobs[intent] = JobStatus(JobTag("f", "local", intent), "b" + intent, state, "h", self.now)

    def end(self, intent: str, code: int | None) -> None:
        self.jobs[intent] = self.jobs[intent]._replace(state=BatchState.ENDED, exit_code=code, ended_at=self.now)

    def fleet(self, count: int) -> None:
        """``count`` connected workers."""
        self.need = count
        self.step()
        submits = self.of(SubmitJobs)
        names = submits[0].intent_ids
        self.tell(Accepted("local", tuple((name, "b" + name) for name in names)))
        self.run(*names)
        self.workers = dict.fromkeys(names, "idle")
        self.step()

    def active(self) -> int:
        return sum(1 for job in self.core.fleet.live() if job.active)


def test_intents_are_journalled_before_they_are_submitted() -> None:
    bench = Bench()
    bench.need = 3
    kinds = [type(action) for action in bench.step() if not isinstance(action, Note)]
    assert kinds == [WriteJournal, SubmitJobs]
    assert {row.intent_id for row in bench.of(WriteJournal)[0].rows} == set(bench.of(SubmitJobs)[0].intent_ids)


def test_nothing_is_submitted_before_the_first_listing() -> None:
    bench = Bench(min_workers=2)
    bench.listing = Unknown("not yet", 0.0)
    bench.step()
    assert bench.of(SubmitJobs) == []
    bench.listing = None
    bench.step()
    assert len(bench.of(SubmitJobs)[0].intent_ids) == 2


def test_a_submission_without_answer_is_not_repeated_until_listings_deny_it() -> None:
    bench = Bench()
    bench.need = 2
    names = bench.step() and bench.of(SubmitJobs)[0].intent_ids
    for _ in range(5):  # still in flight
        bench.step()
        assert bench.of(SubmitJobs) == []
    bench.tell(SubmitUnclear("local", names, "timeout"))
    bench.run(names[0])
    for _ in range(4):
        bench.step()
    states = {name: bench.core.fleet.jobs[name].state for name in names}
    assert states == {names[0]: JobState.RUNNING, names[1]: JobState.ENDED}


def test_a_refused_submission_is_over_and_the_words_are_told() -> None:
    bench = Bench()
    bench.need = 1
    names = bench.step() and bench.of(SubmitJobs)[0].intent_ids
    bench.tell(Refused("local", names, "no such account"))
    assert any("no such account" in note.text for note in bench.of(Note))
    assert bench.core.fleet.live() == []


@pytest.mark.parametrize("listings", [1, 2])
def test_a_single_empty_listing_ends_no_job(listings: int) -> None:
    bench = Bench()
    bench.fleet(3)
    bench.workers.clear()
    kept, bench.jobs = bench.jobs, {}
    for _ in range(listings):
        bench.step(5.0)
    bench.jobs = kept
    bench.step()
    assert bench.active() == 3
    assert bench.of(SubmitJobs) == []


def test_listings_asked_for_before_a_job_was_accepted_say_nothing_about_it() -> None:
    bench = Bench()
    bench.need = 1
    bench.step()
    bench.now = 10.0
    bench.tell(Accepted("local", (("j1", "b"),)))
    for tenth in range(9):
        bench.listing = Known((), 9.0 + tenth / 10)
        bench.step(2.0)
    assert bench.core.fleet.jobs["j1"].live


def test_a_job_missing_from_many_listings_is_gone_and_replaced() -> None:
    bench = Bench()
    bench.fleet(3)
    del bench.jobs["j1"], bench.workers["j1"]
    for _ in range(defaults.ABSENT_LISTINGS + 2):
        bench.step()
    assert bench.core.fleet.jobs["j1"].state is JobState.ENDED
    assert bench.active() == 3


def test_the_same_listing_seen_twice_counts_once() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.workers.clear()
    bench.listing = Known((), bench.now + 1)
    for _ in range(20):
        bench.step()
    assert bench.core.fleet.jobs["j1"].live


def test_a_job_its_manager_lists_is_not_gone_whatever_listings_say() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.jobs.clear()
    for _ in range(20):
        bench.step()
    assert bench.core.fleet.jobs["j1"].state is JobState.CONNECTED


def test_a_job_of_ours_that_nobody_remembers_is_adopted() -> None:
    bench = Bench(min_workers=1)
    bench.run("old-1")
    bench.step()
    assert bench.of(SubmitJobs) == []
    assert bench.of(WriteJournal)[0].rows[0].intent_id == "old-1"


def test_journalled_jobs_count_from_the_start() -> None:
    bench = Bench(rows=(JobRow("r-1", "local", "connected", "b", 0.0, True),), min_workers=1)
    bench.run("r-1")
    bench.step()
    assert bench.of(SubmitJobs) == []
    assert bench.core.fleet.jobs["r-1"].state is JobState.RUNNING


def test_idle_workers_are_retired_only_after_the_window() -> None:
    bench = Bench()
    bench.fleet(5)
    bench.workers["j2"] = "busy"
    bench.need = 2
    asked: list[RetireWorkers] = []
    while bench.now < 130 and not asked:
        bench.step()
        asked = bench.of(RetireWorkers)
    assert 60 <= bench.now <= 70
    assert {job for job, _ in asked[0].workers} == {"j1", "j3", "j4"}
    bench.step()
    assert bench.of(RetireWorkers) == []      # not asked twice, nor another one in its place
    bench.tell(RetireAnswered("m:1", ("j1", "j3"), {"j4": "it just got a task"}))
    assert bench.core.fleet.jobs["j1"].state is JobState.DRAINING
    bench.step()
    asked = bench.of(RetireWorkers)           # who refused is not asked again for a while; another one is
    assert [job for action in asked for job, _ in action.workers] == ["j5"]
    assert bench.core.fleet.jobs["j4"].state is JobState.CONNECTED


def test_a_demand_of_zero_for_a_moment_retires_nobody() -> None:
    bench = Bench()
    bench.fleet(4)
    for second in range(300):
        bench.need = 4 if second % 50 == 0 else 0
        bench.step()
        assert bench.of(RetireWorkers) == [] and bench.of(CancelJobs) == []


def test_a_silent_manager_shrinks_nothing_until_it_is_given_up() -> None:
    bench = Bench()
    bench.fleet(4)
    bench.manager = Unknown("timeout", bench.now)
    lost = bench.now
    while bench.now - lost < defaults.MANAGER_GONE_S:
        bench.step()
        assert bench.of(RetireWorkers) == [] and bench.of(CancelJobs) == []
    assert [job.state for job in bench.core.fleet.live()] == [JobState.CONNECTED] * 4
    for _ in range(80):
        bench.step()
    assert bench.active() == 0


def test_a_moment_of_not_knowing_starts_the_window_anew() -> None:
    bench = Bench()
    bench.fleet(4)
    bench.need = 0
    for _ in range(50):
        bench.step()
    bench.manager = Unknown("timeout", bench.now)
    bench.step()
    bench.manager = None
    for _ in range(int(defaults.RETIRE_AFTER_S) - 1):
        bench.step()
        assert bench.of(RetireWorkers) == []
    bench.step(5)
    assert len(bench.of(RetireWorkers)[0].workers) == 4


def test_a_silent_manager_gets_no_more_workers_on_old_news() -> None:
    bench = Bench()
    bench.fleet(4)
    bench.need = 9
    bench.manager = Unknown("timeout", bench.now)
    bench.end("j1", 0)
    bench.step()
    assert bench.of(SubmitJobs) == []


def test_a_worker_that_dies_at_start_is_shown_with_its_last_words() -> None:
    bench = Bench()
    bench.need = 1
    bench.step()
    bench.tell(Accepted("local", (("j1", "b"),)))
    bench.run("j1")
    bench.jobs["j1"] = bench.jobs["j1"]._replace(stderr_tail="ImportError: msgpack")
    bench.end("j1", 1)
    bench.step()
    assert any("ImportError: msgpack" in note.text for note in bench.of(Note))


def test_a_worker_that_has_worked_may_end_as_it_likes() -> None:
    bench = Bench()
    bench.fleet(3)
    for name in ("j1", "j2", "j3"):
        bench.end(name, 1)
    bench.workers.clear()
    bench.step()
    assert bench.core.pools["local"].health.total == {}
    assert len(bench.of(SubmitJobs)[0].intent_ids) == 3


def test_a_job_that_never_connects_is_cancelled_and_replaced() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.need = 2
    bench.step()
    late = bench.of(SubmitJobs)[0].intent_ids[0]
    bench.tell(Accepted("local", ((late, "b"),)))
    bench.run(late)
    cancelled = []
    while bench.now < 400 and not cancelled:
        bench.step()
        cancelled = bench.of(CancelJobs)
    assert [intent for intent, _ in cancelled[0].jobs] == [late]
    assert defaults.UNCONNECTED_S <= bench.now <= defaults.UNCONNECTED_S + 10


def test_time_without_an_answer_of_the_manager_is_not_held_against_a_job() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.need = 2
    bench.step()
    late = bench.of(SubmitJobs)[0].intent_ids[0]
    bench.tell(Accepted("local", ((late, "b"),)))
    bench.run(late)
    for second in range(500):
        bench.manager = Unknown("timeout", bench.now) if second % 100 == 99 else None
        bench.step()
        assert bench.of(CancelJobs) == []


def test_a_leaving_worker_that_stays_is_asked_and_then_killed() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.workers["j1"] = "draining"
    bench.need = 0
    bench.step(100)
    assert bench.of(CancelJobs) == []         # its manager still lists it: it may be handing over data
    bench.workers.clear()
    seen = []
    for _ in range(80):
        bench.step()
        seen += [(action.force, bench.now) for action in bench.of(CancelJobs)]
    assert [force for force, _ in seen][:2] == [False, True]
    assert seen[1][1] - seen[0][1] >= defaults.DRAIN_GRACE_S


def test_stop_asks_then_kills_then_finishes() -> None:
    bench = Bench()
    bench.fleet(2)
    bench.tell(StopRequested("test"))
    assert [note.text for note in bench.of(Note)] == ["ending: test", "removing 2 workers..."]
    assert [action.force for action in bench.of(CancelJobs)] == [False]
    bench.step(defaults.DRAIN_GRACE_S - 1)
    assert bench.of(CancelJobs) == []
    bench.step(2)
    assert [action.force for action in bench.of(CancelJobs)] == [True]
    bench.end("j1", 0)
    bench.step()
    assert bench.of(Finish) == []
    bench.end("j2", -9)
    bench.step()
    assert bench.of(Finish) == [Finish(0)]
    assert bench.of(Note)[-1].text == "all workers removed."
    bench.step()
    assert bench.of(Finish) == [] and bench.of(SubmitJobs) == []


def test_a_second_request_to_stop_does_not_wait() -> None:
    bench = Bench()
    bench.fleet(2)
    bench.tell(StopRequested("test"))
    bench.tell(StopRequested("again", at_once=True))
    assert [action.force for action in bench.of(CancelJobs)] == [True]


def test_stop_waits_for_a_submission_in_flight_and_ends_its_jobs() -> None:
    bench = Bench()
    bench.need = 1
    bench.step()
    bench.tell(StopRequested("test"))
    bench.step()
    assert bench.of(Finish) == [] and bench.of(CancelJobs) == []
    bench.tell(Accepted("local", (("j1", "b"),)))
    bench.run("j1")
    bench.step()
    assert bench.of(CancelJobs)[0].jobs == (("j1", "b"),)


def test_a_job_that_shows_up_after_it_was_cancelled_is_cancelled_again() -> None:
    bench = Bench()
    bench.need = 1
    bench.step()
    bench.tell(SubmitUnclear("local", ("j1",), "timeout"))
    bench.tell(StopRequested("test"))
    assert bench.of(CancelJobs)[0].jobs == (("j1", ""),)
    bench.run("j1")
    bench.step()
    assert [(action.jobs, action.force) for action in bench.of(CancelJobs)] == [((("j1", "bj1"),), False)]


def test_a_stop_before_the_first_listing_waits_for_it_and_ends_what_it_shows() -> None:
    bench = Bench()
    bench.listing = Unknown("not yet", 0.0)
    bench.tell(StopRequested("test"))
    assert bench.of(Finish) == []
    bench.step()
    assert bench.of(Finish) == []
    bench.listing = None
    bench.run("old-1")
    bench.step()
    assert bench.of(Finish) == []
    assert bench.of(CancelJobs)[0].jobs == (("old-1", "bold-1"),)


def test_a_cancellation_without_answer_is_asked_again() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.tell(StopRequested("test"))
    bench.tell(CancelUnclear("local", ("j1",), "timeout"))
    bench.step()
    assert [action.force for action in bench.of(CancelJobs)] == [False]


def test_a_lower_maximum_lets_idle_workers_go_and_no_busy_one() -> None:
    bench = Bench()
    bench.fleet(5)
    bench.workers = dict.fromkeys(bench.workers, "busy") | {"j4": "idle"}
    bench.tell(SettingsChanged(make_settings(max_workers=2)))
    asked: list[RetireWorkers] = []
    for _ in range(100):
        bench.step()
        asked += bench.of(RetireWorkers)
    assert [job for action in asked for job, _ in action.workers] == ["j4"]
    assert bench.of(CancelJobs) == []


def test_queued_jobs_are_cancelled_before_a_worker_is_retired() -> None:
    bench = Bench()
    bench.fleet(2)
    bench.need = 4
    bench.step()
    queued = bench.of(SubmitJobs)[0].intent_ids
    bench.tell(Accepted("local", tuple((name, "b") for name in queued)))
    bench.run(*queued, state=BatchState.QUEUED)
    bench.need = 2
    cancelled: list[CancelJobs] = []
    for _ in range(80):
        bench.step()
        cancelled += bench.of(CancelJobs)
        assert bench.of(RetireWorkers) == []
    assert {intent for action in cancelled for intent, _ in action.jobs} == set(queued)


def test_the_factory_ends_when_there_was_no_manager_for_the_set_time() -> None:
    bench = Bench(factory_timeout=50)
    bench.fleet(1)
    bench.manager = Unknown("refused", bench.now)
    for _ in range(49):
        bench.step()
    assert bench.core.stopping == ""
    bench.step(3)
    assert bench.core.stopping == "no manager for 50 s"


def test_a_decision_is_told_when_it_changes_and_not_in_every_pass() -> None:
    bench = Bench()
    bench.fleet(2)
    for _ in range(30):
        bench.step()
        assert [note for note in bench.of(Note) if note.kind == "decision"] == []
    bench.need = 3
    bench.step()
    told = [note for note in bench.of(Note) if note.kind == "decision"]
    assert len(told) == 1 and "m:1 can use 3" in told[0].text
    assert told[0].cause > 0


def test_workers_that_left_while_no_factory_ran_free_their_places_at_once() -> None:
    rows = tuple(JobRow(name, "local", "draining", "b" + name, 0.0, True) for name in ("a", "b"))
    bench = Bench(rows, max_workers=2)
    bench.core._settles_s = {"local": 60.0}
    bench.need = 2
    for _ in range(8):
        bench.step()
    assert sum(job.state is JobState.DRAINING for job in bench.core.fleet.live()) == 0
    assert bench.active() == 2

"""Records of decisions and what is said about them: from the record alone, in the order that matters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_factory_core import Bench, make_settings

from taskvine_core.errors import ConfigError
from vine_factory import explaining, history, passes, reasons
from vine_factory.batch.base import BatchState, JobStatus, JobTag
from vine_factory.batch.simulated import SimulatedCluster
from vine_factory.demand import Demand
from vine_factory.events import Accepted, Observed, PoolDrained, PoolPaused, Refused, SubmitJobs
from vine_factory.history import History
from vine_factory.readings import Known, Unknown
from vine_factory.simulation import SimManager, World
from vine_factory.stories import Stories


def record(bench: Bench, listing: tuple[JobStatus, ...] = ()) -> dict[str, Any]:
    """The record of now, as it comes back from a file."""
    made = passes.records(bench.core, {"local": Known(listing, bench.now)}, bench.now)
    found: dict[str, Any] = json.loads(json.dumps(made[0]))
    return found


def causes(bench: Bench, listing: tuple[JobStatus, ...] = ()) -> tuple[str, ...]:
    found = reasons.answer(record(bench, listing))
    assert found.agrees
    return found.causes


def test_records_of_a_simulated_run_replay_to_the_same_decision() -> None:
    rng = random.Random(7)
    settings = make_settings(min_workers=1, max_workers=40, workers_per_cycle=7, retire_after=20)
    manager = SimManager("m:1", lambda now: 30 if 40 < now < 80 else 45 if now > 155 else 4)
    world = World(settings, SimulatedCluster(lambda: 0.0, rng), [manager], rng)
    seen = set()
    for step in range(300):
        manager.answers = step % 50 < 40
        world.step()
        if step == 150:
            world._handle(PoolPaused("local"))
        if step == 200:
            world._handle(PoolDrained("local"))
        for made in passes.records(world.core, world._listings, world.now):
            read = json.loads(json.dumps(made))
            target, steps = reasons.replay(read)
            assert (target, [list(each) for each in steps]) == (read["target"], read["steps"])
            assert reasons.answer(read).agrees
            seen |= {each.limit for each in steps}
    assert {"max", "unknown", "per-cycle", "paused", "drained"} <= seen, seen


def test_a_pool_at_its_maximum_is_explained_by_its_maximum() -> None:
    bench = Bench(max_workers=4)
    bench.need = 9
    bench.step()
    found = reasons.answer(record(bench))
    assert "4 and not 9" in found.headline
    assert "max: 9 -> 4 because the pool holds at most 4" in found.steps
    assert any("max-workers" in cause for cause in found.causes)
    assert any("m:1 can use 9" in need for need in found.needs)


def test_nothing_runs_because_no_manager_is_found() -> None:
    bench = Bench()
    bench.tell(Observed({}, Known(0, 0.0), {"local": Known((), 0.0)}))
    assert "no manager is found" in causes(bench)[0]


def test_nothing_runs_because_it_is_not_known_which_managers_there_are() -> None:
    bench = Bench()
    bench.tell(Observed({}, Unknown("stale file handle", 0.0), {"local": Known((), 0.0)}))
    assert "stale file handle" in causes(bench)[0]


def test_nothing_runs_because_the_manager_is_silent() -> None:
    bench = Bench()
    bench.manager = Unknown("Connection refused", 0.0)
    bench.step()
    assert causes(bench)[0] == "manager m:1 does not answer: Connection refused"


def test_nothing_runs_because_no_task_waits() -> None:
    bench = Bench()
    bench.step()
    assert causes(bench) == ("no task waits at any manager",)


def test_nothing_runs_because_tasks_fit_no_pool() -> None:
    bench = Bench()
    bench.need = 2
    original = bench.tell

    def unfit(event: object) -> list[Any]:
        if isinstance(event, Observed):
            reading = event.managers["m:1"]
            assert isinstance(reading, Known)
            demand: Demand = reading.value
            groups = tuple(group._replace(parts=(0.0,)) for group in demand.groups)
            event = Observed({"m:1": Known(demand._replace(groups=groups), reading.at)}, event.discovery, event.batches)
        return original(event)
    bench.tell = unfit  # type: ignore[method-assign]
    bench.step()
    assert "2 waiting tasks of category 'default' ask for more" in causes(bench)[0]


def test_nothing_runs_because_the_pool_is_tripped_and_the_batch_systems_words_are_quoted() -> None:
    bench = Bench()
    bench.need = 2
    bench.step()
    bench.tell(Refused("local", bench.of(SubmitJobs)[0].intent_ids, "invalid partition 'shrot'"))
    bench.step(0.1)
    assert "tripped" in causes(bench)[0] and "invalid partition 'shrot'" in causes(bench)[0]


def test_jobs_that_wait_are_explained_in_the_batch_systems_words_held_ones_first() -> None:
    bench = Bench()
    bench.need = 3
    bench.step()
    names = bench.of(SubmitJobs)[0].intent_ids
    bench.tell(Accepted("local", tuple((name, "b" + name) for name in names)))
    said = ((BatchState.QUEUED, "Priority"), (BatchState.QUEUED, "Priority"), (BatchState.HELD, "no such file"))
    listing = tuple(JobStatus(JobTag("f", "local", name), "b", state, said=words)
                    for name, (state, words) in zip(names, said, strict=True))
    bench.jobs = {status.tag.intent_id: status for status in listing}
    bench.step()
    assert causes(bench, listing) == ("1 job is held in the batch system: no such file",
                                      "2 jobs are queued in the batch system: Priority")


def test_an_order_matters_most() -> None:
    bench = Bench()
    bench.manager = Unknown("gone", 0.0)
    bench.tell(PoolDrained("local"))
    bench.step()
    assert "drained" in causes(bench)[0] and "resume" in causes(bench)[0]


def test_a_record_that_the_limits_of_today_would_decide_otherwise_says_so() -> None:
    bench = Bench()
    bench.need = 3
    bench.step()
    forged = record(bench) | {"target": 99}
    assert not reasons.answer(forged).agrees and "would have decided otherwise" in reasons.answer(forged).text()


@pytest.mark.parametrize("bad", [{}, {"format": 99}, {"format": 1, "situation": {"wanted": 1}},
                                 {"format": 1, "situation": 3}])
def test_what_is_no_record_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        reasons.answer(bad)


def test_a_damaged_record_is_refused() -> None:
    bench = Bench()
    bench.step()
    for name in record(bench):
        damaged = record(bench) | {name: 7.5}
        try:
            assert reasons.answer(damaged).text()
        except ConfigError:
            continue


def test_the_history_keeps_changed_decisions_and_one_per_minute(tmp_path: Path) -> None:
    bench, kept = Bench(), History(tmp_path)
    for _ in range(150):
        bench.step()
        kept.decided(passes.records(bench.core, {}, bench.now), bench.now)
    found = list(history.read(tmp_path / history.DECISIONS))
    assert [entry["at"] for entry in found] == [1, 61, 121]
    bench.need = 3
    bench.step()
    kept.decided(passes.records(bench.core, {}, bench.now), bench.now)
    assert [entry["target"] for entry in history.read(tmp_path / history.DECISIONS)] == [0, 0, 0, 3]


def test_the_history_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    kept = History(tmp_path, limit_bytes=1000)
    for number in range(500):
        kept.lived([{"job": f"j{number}", "filler": "x" * 50}])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 1100
    found = [entry["job"] for entry in history.read(tmp_path / history.JOBS)]
    assert found == [f"j{number}" for number in range(500 - len(found), 500)] and len(found) > 10


def test_a_torn_line_costs_that_line_only(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b'{"a": 1}\n{"b": \n[1]\n\xff\n{"c": 2}\n{"d"')
    assert list(history.read(tmp_path / "f")) == [{"a": 1}, {"c": 2}]


def test_a_history_that_cannot_be_written_is_a_problem_that_is_told_and_passes(tmp_path: Path) -> None:
    kept = History(tmp_path / "later")
    kept.lived([{"a": 1}])
    assert "cannot write" in kept.problem
    (tmp_path / "later").mkdir()
    kept.lived([{"a": 2}])
    assert kept.problem == ""


def test_the_story_of_a_job_has_its_reasons() -> None:
    bench, stories = Bench(retire_after=0), Stories()
    told: list[dict[str, Any]] = []

    def look() -> None:
        told.extend(stories.look(bench.core, {"local": Known(tuple(bench.jobs.values()), bench.now)}, bench.now))
    bench.need = 1
    bench.step()
    look()
    name = bench.of(SubmitJobs)[0].intent_ids[0]
    bench.tell(Accepted("local", ((name, "42"),)))
    bench.run(name)
    bench.step()
    look()
    bench.workers = {name: "idle"}
    bench.need = 0
    bench.step()
    look()
    bench.step()
    look()
    bench.jobs[name] = bench.jobs[name]._replace(state=BatchState.ENDED, exit_code=1, stderr_tail="bye", said="held")
    bench.workers = {}
    bench.step()
    look()
    assert [entry["event"] for entry in told] == ["decided", "accepted", "running", "connected", "asked to leave",
                                                  "ended"]
    assert "m:1 can use 1" in told[0]["why"] and "no manager can use workers" in told[4]["why"]
    assert told[3]["workers"] == [f"w-{name}"] and told[3]["batch_id"] == "42"
    assert "status 1" in told[5]["why"] and told[5]["stderr"] == "bye"


@pytest.mark.parametrize("text,seconds", [("10m", 99_400.0), ("90s", 99_910.0), ("1234.5", 1234.5)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert explaining.moment(text, 100_000.0) == seconds


@pytest.mark.parametrize("text", ["yesterday", "25:00", "2026-13-01", "", "xm"])
def test_a_time_that_is_none_is_an_error_that_says_how(text: str) -> None:
    with pytest.raises(ConfigError, match="HH:MM"):
        explaining.moment(text, 0.0)

"""What is a fault and whose: held, preempted, queued for ever, hosts that ruin workers. Through the whole core."""

from __future__ import annotations

import dataclasses

from test_factory_core import Bench, make_settings

from vine_factory import defaults, passes, reasons
from vine_factory.batch.base import BatchState
from vine_factory.core import FactoryCore
from vine_factory.events import Accepted, CancelJobs, Note, SubmitJobs, WriteJournal
from vine_factory.health import Fault
from vine_factory.jobs import JobState
from vine_factory.limits import Step


def submit(bench: Bench, need: int) -> tuple[str, ...]:
    """Jobs for ``need`` tasks, accepted."""
    bench.need = need
    bench.step()
    names = tuple(name for action in bench.of(SubmitJobs) for name in action.intent_ids)
    bench.tell(Accepted("local", tuple((name, "b" + name) for name in names)))
    return names


def hold(bench: Bench, *names: str, words: str) -> None:
    bench.run(*names, state=BatchState.HELD)
    for name in names:
        bench.jobs[name] = bench.jobs[name]._replace(said=words)


def told(bench: Bench, kind: str) -> list[str]:
    return [note.text for note in bench.of(Note) if note.kind == kind]


def binding(bench: Bench) -> Step:
    decision = bench.core.pools["local"].decision
    assert decision is not None
    step = decision.binding()
    assert step is not None
    return step


# --------------------------------------------------------------------------------------------------- held


def test_held_jobs_are_told_at_once_then_replaced_and_count_as_faults_by_reason() -> None:
    bench = Bench()
    names = submit(bench, 3)
    hold(bench, *names, words="Transfer input files failure")
    bench.step()
    assert told(bench, "held") == ["local: 3 jobs are held: Transfer input files failure"]
    cancelled: list[CancelJobs] = []
    started = bench.now
    while not cancelled and bench.now < 200:
        bench.step()
        cancelled = bench.of(CancelJobs)
    assert bench.now - started == defaults.HELD_S
    assert {intent for intent, _ in cancelled[0].jobs} == set(names)
    health = bench.core.pools["local"].health
    assert health.kinds[Fault.HELD].reasons == {"Transfer input files failure": 3}
    assert any("Transfer input files failure" in text and "pausing" in text for text in told(bench, "fault"))
    for name in names:
        bench.end(name, None)
    bench.step(0.5)
    assert bench.of(SubmitJobs) == [] and binding(bench).limit == "health"
    bench.step(2.0)
    assert len(bench.of(SubmitJobs)[0].intent_ids) == 1     # a probe


def test_a_hold_that_ends_by_itself_is_no_fault() -> None:
    bench = Bench()
    names = submit(bench, 2)
    hold(bench, *names, words="Spooling input data files")
    bench.step(20.0)
    assert all(bench.core.fleet.jobs[name].state is JobState.HELD for name in names)
    bench.run(*names, state=BatchState.QUEUED)
    for _ in range(10):
        bench.step(20.0)
        assert bench.of(CancelJobs) == []
    assert bench.core.pools["local"].health.total == {}


def test_held_jobs_are_the_first_to_go_when_nobody_needs_them() -> None:
    bench = Bench(retire_after=5.0)
    names = submit(bench, 3)
    bench.run(*names, state=BatchState.QUEUED)
    hold(bench, names[0], words="x")
    bench.need = 2
    cancelled: list[CancelJobs] = []
    while not cancelled and bench.now < 30:
        bench.step()
        cancelled = bench.of(CancelJobs)
    assert [intent for intent, _ in cancelled[0].jobs] == [names[0]]


# ---------------------------------------------------------------------------------------------- preempted


def test_a_preempted_worker_is_no_fault_and_its_job_is_a_new_worker() -> None:
    bench = Bench()
    bench.fleet(2)
    bench.step(100.0)
    bench.run("j1", state=BatchState.QUEUED)
    del bench.workers["j1"]
    bench.step()
    job = bench.core.fleet.jobs["j1"]
    assert told(bench, "preempted") == ["local: 1 workers were preempted and are queued again"]
    assert bench.of(SubmitJobs) == [] and bench.core.pools["local"].health.preempted == 1
    assert job.running_since is None and not job.connected_once and not job.ours
    bench.step()
    assert job.state is JobState.QUEUED and told(bench, "preempted") == []
    bench.run("j1")
    bench.end("j1", 1)
    bench.step()        # the new worker dies at start, though the old one had worked
    assert bench.core.pools["local"].health.total == {Fault.DIED_AT_START: 1}


def test_a_restart_between_two_listings_is_a_preemption_and_a_later_clock_is_not() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.jobs["j1"] = bench.jobs["j1"]._replace(started_at=bench.now + 500.0)  # its clock runs ahead
    for _ in range(5):
        bench.step()
    preempted = bench.core.pools["local"].health.preempted
    bench.jobs["j1"] = bench.jobs["j1"]._replace(started_at=bench.now + 600.0)
    bench.step()
    assert bench.core.pools["local"].health.preempted == preempted + 1
    for _ in range(5):
        bench.step()
    assert bench.core.pools["local"].health.preempted == preempted + 1


def test_a_manager_that_still_lists_a_preempted_worker_does_not_make_it_connected_again() -> None:
    bench = Bench()
    bench.fleet(1)
    bench.run("j1", state=BatchState.QUEUED)
    for _ in range(3):
        bench.step()
    assert not bench.core.fleet.jobs["j1"].connected_once
    bench.workers.clear()
    bench.step()
    bench.step()
    assert bench.core.fleet.jobs["j1"].state is JobState.QUEUED


def test_a_late_listing_does_not_put_a_connected_worker_back_into_the_queue() -> None:
    bench = Bench(retire_after=5.0)
    names = submit(bench, 1)
    bench.run(*names, state=BatchState.QUEUED)
    bench.workers = dict.fromkeys(names, "busy")
    bench.step()
    bench.workers.clear()       # one wrong answer of the manager
    bench.need = 0
    for _ in range(20):
        bench.step()
        assert bench.of(CancelJobs) == []
    assert bench.core.fleet.jobs[names[0]].state is JobState.RUNNING


# -------------------------------------------------------------------------------------------- queued long


def test_what_is_said_of_long_queued_jobs_is_told_once_and_is_no_fault() -> None:
    bench = Bench()
    names = submit(bench, 2)
    bench.run(*names, state=BatchState.QUEUED)
    for name in names:
        bench.jobs[name] = bench.jobs[name]._replace(said="QOSMaxJobsPerUserLimit")
    heard = []
    for _ in range(100):
        bench.step(30.0)
        heard += told(bench, "queued")
        assert bench.of(CancelJobs) == [] and bench.of(SubmitJobs) == []
    assert heard == ["local: 2 jobs are queued for more than 600 s: QOSMaxJobsPerUserLimit"]
    assert bench.core.pools["local"].health.total == {}


# --------------------------------------------------------------------------------------------- black holes


def healthy(bench: Bench, count: int) -> None:
    """Connected workers on good hosts, one each."""
    bench.fleet(count)
    for number, name in enumerate(bench.workers):
        bench.jobs[name] = bench.jobs[name]._replace(host=f"good{number}")
        bench.workers[name] = "busy"
    bench.step(defaults.SHORT_LIFE_S + 1)


def die(bench: Bench, names: tuple[str, ...], host: str) -> None:
    bench.run(*names)
    for name in names:
        bench.jobs[name] = bench.jobs[name]._replace(host=host, stderr_tail="no space left on device")
        bench.end(name, 1)


def test_a_black_hole_is_excluded_named_and_kept_in_the_journal_and_the_pool_goes_on() -> None:
    bench = Bench(max_workers=20)
    healthy(bench, 4)
    die(bench, submit(bench, 8), "hole")
    bench.step()
    assert bench.core.excluded_hosts(bench.now) == {"local": ("hole",)}
    assert "no more workers on host hole" in told(bench, "host")[0]
    assert "no space left on device" in told(bench, "host")[0]
    rows = bench.of(WriteJournal)[0].hosts
    assert [(row.pool, row.host, row.level) for row in rows] == [("local", "hole", 1)]
    assert len(bench.of(SubmitJobs)[0].intent_ids) == 4     # at once: it was not the pool
    again = FactoryCore(make_settings(), {}, lambda: "x", now=bench.now, hosts=rows)
    assert again.excluded_hosts(bench.now) == {"local": ("hole",)}
    assert again.excluded_hosts(bench.now + defaults.HOST_EXCLUDED_FIRST_S) == {"local": ()}


def test_a_black_hole_that_the_batch_system_cannot_avoid_is_named_and_slows_the_pool_down() -> None:
    bench = Bench(max_workers=20)
    settings = bench.core.settings
    bench.core.settings = dataclasses.replace(settings, pools=(settings.pools[0]._replace(excludes_hosts=False),))
    healthy(bench, 4)
    die(bench, submit(bench, 8), "hole")
    bench.step()
    assert bench.core.excluded_hosts(bench.now) == {"local": ("hole",)}, "what starts there is told to leave at once"
    assert "cannot be told to avoid it" in told(bench, "host")[0]
    assert bench.of(SubmitJobs) == [] and binding(bench).limit == "health", "or it would eat one job after the other"
    assert "cannot be told to avoid them: hole" in str(reasons.answer(passes.records(bench.core, {}, bench.now)[0]))


def test_the_same_deaths_on_every_host_are_the_pools_fault_and_exclude_nobody() -> None:
    bench = Bench(max_workers=20)
    names = submit(bench, 9)
    for number, name in enumerate(names):
        die(bench, (name,), f"h{number % 3}")
    bench.step()
    assert bench.core.excluded_hosts(bench.now) == {"local": ()}
    assert bench.of(SubmitJobs) == [] and binding(bench).limit == "health"


def test_workers_that_end_soon_after_they_connect_are_their_hosts_fault_and_not_the_pools() -> None:
    bench = Bench(max_workers=20)
    healthy(bench, 4)
    names = submit(bench, 7)
    bench.run(*names)
    for name in names:
        bench.jobs[name] = bench.jobs[name]._replace(host="hole")
        bench.workers[name] = "idle"
    bench.step()
    for name in names:
        bench.end(name, -9)
        del bench.workers[name]
    bench.step()
    assert bench.core.excluded_hosts(bench.now) == {"local": ("hole",)}
    assert bench.core.pools["local"].health.total == {}


def test_a_host_that_has_done_well_again_is_told_and_leaves_the_journal() -> None:
    bench = Bench(max_workers=20)
    healthy(bench, 4)
    die(bench, submit(bench, 7), "hole")
    bench.step()
    again = tuple(bench.of(SubmitJobs)[0].intent_ids)
    bench.tell(Accepted("local", tuple((name, "b" + name) for name in again)))
    bench.run(*again)
    for name in again:
        bench.jobs[name] = bench.jobs[name]._replace(host="hole")
        bench.workers[name] = "busy"
    bench.step()
    bench.step(defaults.SHORT_LIFE_S + 1)
    assert told(bench, "host") == ["local: host hole is good again"]
    assert [row.level for row in bench.of(WriteJournal)[0].hosts] == [0]
    assert bench.core.excluded_hosts(bench.now) == {"local": ()}

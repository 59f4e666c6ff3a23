"""What every batch system owes the factory: one suite, run over each of them (see bench.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.bench import (
    FAILING,
    LONG,
    SHOUTS,
    STUBBORN,
    Bench,
    ended,
    requests,
    running,
    states,
    submit,
)
from contract.bench_command import CommandBench
from contract.bench_condor import CondorBench
from contract.bench_drmaa import DrmaaBench
from contract.bench_local import LocalBench
from contract.bench_simulated import SimulatedBench
from contract.bench_slurm import SlurmBench
from taskvine_core.errors import BatchRejected, BatchUnavailable
from vine_factory.batch.base import JobHandle, JobTag

Make = Callable[[pytest.FixtureRequest, Path], Bench]
BENCHES: dict[str, Make] = {
    "local": lambda request, path: LocalBench(path),
    "simulated": lambda request, path: SimulatedBench(path),
    "condor-bindings": lambda request, path: CondorBench(path, request.getfixturevalue("htcondor_pool"), "bindings"),
    "condor-tools": lambda request, path: CondorBench(path, request.getfixturevalue("htcondor_pool"), "tools"),
    "command": lambda request, path: CommandBench(path, request.getfixturevalue("grid_engine"), system="sge"),
    "drmaa": lambda request, path: DrmaaBench(path, request.getfixturevalue("grid_engine")),
    "drmaa-numbers": lambda request, path: DrmaaBench(path, request.getfixturevalue("grid_engine"), system="other",
                                                      native="-b n -w e"),
    "slurm": lambda request, path: SlurmBench(path, request.getfixturevalue("slurm_cluster")),
}


@pytest.fixture(params=sorted(BENCHES))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = BENCHES[request.param](request, tmp_path / "jobs")
    yield made
    made.end()


def test_many_jobs_are_submitted_in_one_call_and_found_in_one_listing(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, LONG, 5)
    bench.wait(lambda: running(bench, client, jobs))
    found = states(bench, client)
    assert {job.tag.intent_id for job in jobs} == set(found)
    for job in jobs:
        status = found[job.tag.intent_id]
        assert status.tag == job.tag
        assert status.batch_id == job.batch_id
        assert status.started_at > 0


def test_a_client_that_has_never_seen_them_finds_jobs_by_their_tags(bench: Bench) -> None:
    jobs = submit(bench, bench.client(), LONG, 3)
    stranger = bench.client()
    bench.wait(lambda: running(bench, stranger, jobs))
    assert set(states(bench, stranger)) == {job.tag.intent_id for job in jobs}


def test_an_adopting_client_can_cancel_without_knowing_batch_ids(bench: Bench) -> None:
    first = bench.client()
    jobs = submit(bench, first, LONG, 2)
    bench.wait(lambda: bench.trap_is_set(first, jobs))
    stranger = bench.client()
    stranger.cancel_many([JobHandle(job.tag, "") for job in jobs], force=False)
    bench.wait(lambda: ended(bench, first, jobs))


def test_jobs_of_another_factory_are_not_listed(bench: Bench) -> None:
    client = bench.client()
    submit(bench, client, LONG)
    assert client.poll_many(bench.factory_id + "0") == []


def test_a_failing_job_ends_with_its_status_and_last_words(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, FAILING)
    bench.wait(lambda: ended(bench, client, jobs))
    status = states(bench, client)[jobs[0].tag.intent_id]
    assert status.exit_code == 3
    assert status.stderr_tail == "bad news"
    assert status.ended_at >= status.started_at > 0


def test_an_ended_job_stays_in_the_listing(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, FAILING)
    bench.wait(lambda: ended(bench, client, jobs))
    assert ended(bench, client, jobs)
    assert ended(bench, client, jobs)


def test_a_polite_cancellation_lets_the_job_end_itself(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, bench.polite(), 2)
    bench.wait(lambda: bench.trap_is_set(client, jobs))
    client.cancel_many(jobs[:1], force=False)
    bench.wait(lambda: ended(bench, client, jobs[:1]))
    status = states(bench, client)[jobs[0].tag.intent_id]
    assert status.exit_code in (0, None)  # HTCondor does not tell how a removed job ended
    bench.wait(lambda: bench.left_by_itself(status))
    assert running(bench, client, jobs[1:])


def test_force_ends_a_job_that_ignores_the_polite_signal_and_all_it_started(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, STUBBORN)
    bench.wait(lambda: bench.trap_is_set(client, jobs))
    client.cancel_many(jobs, force=False)
    assert not ended(bench, client, jobs)
    client.cancel_many(jobs, force=True)
    bench.wait(lambda: ended(bench, client, jobs))
    bench.wait(lambda: bench.nothing_left(jobs[0]))


def test_cancelling_a_job_that_is_over_or_unknown_is_no_error(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, FAILING)
    bench.wait(lambda: ended(bench, client, jobs))
    unknown = JobHandle(JobTag(bench.factory_id, "pool", "never-was"), "")
    for force in (False, True):
        client.cancel_many([*jobs, unknown], force=force)


def test_a_job_killed_from_outside_is_seen_as_ended(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, LONG)
    bench.wait(lambda: running(bench, client, jobs))
    bench.kill_from_outside(states(bench, client)[jobs[0].tag.intent_id])
    bench.wait(lambda: ended(bench, client, jobs))
    assert states(bench, client)[jobs[0].tag.intent_id].exit_code == -9


def test_what_cannot_run_is_rejected_with_the_systems_words(bench: Bench) -> None:
    client = bench.client()
    wanted = requests(bench, bench.impossible())
    try:
        results = client.submit_many(wanted)
    except BatchRejected as problem:
        assert problem.said
    else:
        assert isinstance(results[0].error, BatchRejected)
        assert results[0].error.said
    assert states(bench, client) == {}


def test_no_answer_is_an_error_and_not_an_empty_listing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.unreachable(monkeypatch) as client:
        with pytest.raises(BatchUnavailable):
            client.poll_many(bench.factory_id)
        with pytest.raises(BatchUnavailable):
            client.submit_many(requests(bench, LONG))


def test_after_an_outage_the_same_client_answers_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = submit(bench, bench.client(), LONG)
    with bench.unreachable(monkeypatch) as client, pytest.raises(BatchUnavailable):
        client.poll_many(bench.factory_id)
    bench.wait(lambda: running(bench, client, jobs))


def test_describe_has_state_and_output(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, SHOUTS, COLOUR="blue")
    bench.wait(lambda: ended(bench, client, jobs))
    facts = client.describe(jobs[0])
    assert facts["state"] == "ended"
    assert facts["exit_code"] == 1
    assert facts["stdout"] == "it is blue"


def test_describing_an_unknown_job_is_rejected(bench: Bench) -> None:
    with pytest.raises(BatchRejected):
        bench.client().describe(JobHandle(JobTag(bench.factory_id, "pool", "never-was"), ""))


def test_a_local_job_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    bench = LocalBench(tmp_path / "jobs")
    script = ("import sys; from pathlib import Path; from vine_factory.batch.local import LocalBatch;"
              "from vine_factory.batch.base import *; from taskvine_core.resources import Resources;"
              f"LocalBatch({bench.factory_id!r}, Path({str(bench.directory)!r})).submit_many([JobRequest("
              f"JobTag({bench.factory_id!r}, 'pool', 'orphan'), {LONG!r}, {{}}, Resources(1, 1, 1, 0))])")
    pid = os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", script],
                     {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        assert pid == 0
        client = bench.client()
        job = JobHandle(JobTag(bench.factory_id, "pool", "orphan"), "")
        bench.wait(lambda: running(bench, client, [job]))
        client.cancel_many([job], force=True)
        bench.wait(lambda: ended(bench, client, [job]))
    finally:
        bench.end()

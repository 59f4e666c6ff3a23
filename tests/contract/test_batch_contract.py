"""What every batch system owes the factory: one suite, run over each of them.

To add a system, add a bench for it to BENCHES: how to make a client, how to make jobs of the kinds below, how to end a
job from outside and how to make the system unreachable.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskvine_core.errors import BatchRejected, BatchUnavailable
from taskvine_core.resources import Resources
from vine_factory.batch import proc
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobStatus, JobTag
from vine_factory.batch.local import LocalBatch
from vine_factory.batch.simulated import Program, SimulatedBatch, SimulatedCluster

PATIENCE_S = 10.0
LONG = ("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done")
STUBBORN = ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
FAILING = ("/bin/sh", "-c", "echo good >&1; echo bad news >&2; exit 3")
SHOUTS = ("/bin/sh", "-c", 'echo "it is $COLOUR"; exit 1')


class LocalBench:
    """Processes of this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.factory_id = f"contract{os.getpid()}.{random.randrange(1 << 30)}"

    def client(self) -> BatchSystem:
        return LocalBatch(self.factory_id, self.directory)

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "condition not met in time"
            time.sleep(0.01)

    def kill_from_outside(self, status: JobStatus) -> None:
        os.kill(int(status.batch_id), signal.SIGKILL)

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        def fail(prefix: str) -> list[proc.TaggedProcess]:
            raise PermissionError("/proc is hidden")
        with monkeypatch.context() as patch:
            patch.setattr(proc, "tagged_processes", fail)
            yield self.client()

    def impossible(self) -> tuple[str, ...]:
        return (str(self.directory / "no-such-program"),)

    def end(self) -> None:
        for process in proc.tagged_processes(self.factory_id + "/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


class SimulatedBench:
    """A cluster in memory whose clock moves when somebody waits."""

    def __init__(self, directory: Path) -> None:
        self.factory_id = "contract"
        self.now = 1.0
        self.cluster = SimulatedCluster(lambda: self.now, random.Random(1), programs=self._program)

    def _program(self, request: JobRequest) -> Program:
        colour = request.environment.get("COLOUR", "")
        return {LONG: Program(), STUBBORN: Program(on_term_s=None),
                FAILING: Program(runtime_s=0.1, exit_code=3, stdout="good", stderr="bad news"),
                SHOUTS: Program(runtime_s=0.1, exit_code=1, stdout=f"it is {colour}")}[request.command]

    def client(self) -> BatchSystem:
        return SimulatedBatch(self.cluster)

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = self.now + PATIENCE_S
        while not condition():
            assert self.now < deadline, "condition not met in time"
            self.now += 0.1

    def kill_from_outside(self, status: JobStatus) -> None:
        self.cluster.end(status.tag.intent_id, -9)

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        self.cluster.down = "no route to host"
        yield self.client()
        self.cluster.down = ""

    def impossible(self) -> tuple[str, ...]:
        self.cluster.rejects = "invalid account"
        return LONG

    def end(self) -> None:
        self.cluster.jobs.clear()


BENCHES = {"local": LocalBench, "simulated": SimulatedBench}
Bench = LocalBench | SimulatedBench


@pytest.fixture(params=sorted(BENCHES))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = BENCHES[request.param](tmp_path / "jobs")
    yield made
    made.end()


_numbers = itertools.count(1)


def requests(bench: Bench, command: tuple[str, ...], count: int = 1, **environment: str) -> list[JobRequest]:
    return [JobRequest(JobTag(bench.factory_id, "pool", f"i-{next(_numbers)}"), command, environment,
                       Resources(1, 100, 100, 0)) for _ in range(count)]


def submit(bench: Bench, client: BatchSystem, command: tuple[str, ...], count: int = 1, **env: str) -> list[JobHandle]:
    wanted = requests(bench, command, count, **env)
    results = client.submit_many(wanted)
    assert [result.intent_id for result in results] == [request.tag.intent_id for request in wanted]
    assert all(result.error is None and result.batch_id for result in results), results
    return [JobHandle(request.tag, result.batch_id) for request, result in zip(wanted, results, strict=True)]


def states(bench: Bench, client: BatchSystem) -> dict[str, JobStatus]:
    return {status.tag.intent_id: status for status in client.poll_many(bench.factory_id)}


def ended(bench: Bench, client: BatchSystem, jobs: list[JobHandle]) -> bool:
    found = states(bench, client)
    return all(found[job.tag.intent_id].state is BatchState.ENDED for job in jobs)


def running(bench: Bench, client: BatchSystem, jobs: list[JobHandle]) -> bool:
    found = states(bench, client)
    return all(job.tag.intent_id in found and found[job.tag.intent_id].state is BatchState.RUNNING for job in jobs)


def trap_is_set(bench: Bench, client: BatchSystem, jobs: list[JobHandle]) -> bool:
    """Running, and past the shell's trap command: its loop has started a child."""
    if isinstance(bench, SimulatedBench):
        return running(bench, client, jobs)
    tags = [p.tag for p in proc.tagged_processes(bench.factory_id + "/") if not p.is_job]
    return all(job.tag.text() in tags for job in jobs)


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
    bench.wait(lambda: trap_is_set(bench, first, jobs))
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
    jobs = submit(bench, client, LONG, 2)
    bench.wait(lambda: trap_is_set(bench, client, jobs))
    client.cancel_many(jobs[:1], force=False)
    bench.wait(lambda: ended(bench, client, jobs[:1]))
    assert states(bench, client)[jobs[0].tag.intent_id].exit_code == 0
    assert running(bench, client, jobs[1:])


def test_force_ends_a_job_that_ignores_the_polite_signal_and_all_it_started(bench: Bench) -> None:
    client = bench.client()
    jobs = submit(bench, client, STUBBORN)
    bench.wait(lambda: trap_is_set(bench, client, jobs))
    client.cancel_many(jobs, force=False)
    assert not ended(bench, client, jobs)
    client.cancel_many(jobs, force=True)
    bench.wait(lambda: ended(bench, client, jobs))
    if isinstance(bench, LocalBench):
        bench.wait(lambda: proc.tagged_processes(jobs[0].tag.text()) == [])


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

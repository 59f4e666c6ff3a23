"""What only command-driven systems do, against a real Grid Engine. What all batch systems do is in
test_batch_contract.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.gridengine import GridEngine

from contract.bench import FAILING, LONG, ended, requests, running, states, submit, submit_requests
from contract.bench_command import CommandBench
from taskvine_core.errors import BatchRejected, BatchUnavailable
from taskvine_core.resources import Resources
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle

Make = Callable[..., CommandBench]


@pytest.fixture
def make(grid_engine: GridEngine, tmp_path: Path) -> Iterator[Make]:
    """Makes benches; options as in a site file."""
    made: list[CommandBench] = []

    def new(**options: object) -> CommandBench:
        made.append(CommandBench(tmp_path / f"jobs{len(made)}", grid_engine, system="sge", **options))
        return made[-1]

    yield new
    for bench in made:
        bench.end()


def batch_ids(bench: CommandBench, client: BatchSystem) -> dict[str, str]:
    return {intent: status.batch_id for intent, status in states(bench, client).items()}


def test_each_element_is_its_own_intent_also_for_a_stranger_without_a_file(make: Make) -> None:
    bench = make(**{"array-size": 3})
    wanted = [request._replace(command=("/bin/sh", "-c", f"echo {request.tag.intent_id} >&2; exec sleep 60"))
              for request in requests(bench, LONG, 8)]
    jobs = submit_requests(bench.client(), wanted)
    assert len({job.batch_id.partition(".")[0] for job in jobs}) == 3
    for file in bench.directory.glob("job-numbers*"):
        file.unlink()
    stranger = bench.client()
    bench.wait(lambda: running(bench, stranger, jobs))
    assert batch_ids(bench, stranger) == {job.tag.intent_id: job.batch_id for job in jobs}
    bench.wait(lambda: all(stranger.describe(job)["stderr"] == job.tag.intent_id for job in jobs))


def test_single_elements_are_cancelled_by_whoever_knows_their_tag(make: Make) -> None:
    bench = make()
    first = bench.client()
    jobs = submit(bench, first, LONG, 4)
    bench.wait(lambda: bench.trap_is_set(first, jobs))
    bench.client().cancel_many([JobHandle(job.tag, "") for job in jobs[1:3]], force=False)
    bench.wait(lambda: ended(bench, first, jobs[1:3]))
    assert running(bench, first, [jobs[0], jobs[3]])
    assert [states(bench, first)[job.tag.intent_id].exit_code for job in jobs[1:3]] == [0, 0]


def test_waiting_elements_go_at_once_and_the_others_wait_on(make: Make) -> None:
    bench = make(**{"extra-directives": ["-h"]})
    client = bench.client()
    jobs = submit(bench, client, LONG, 5)
    assert {status.state for status in states(bench, client).values()} == {BatchState.HELD}
    client.cancel_many(jobs[:2], force=False)
    bench.wait(lambda: ended(bench, client, jobs[:2]))
    left = states(bench, client)
    assert {left[job.tag.intent_id].state for job in jobs[2:]} == {BatchState.HELD}


def test_an_array_whose_answer_was_lost_is_found_and_not_lost(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    shim = bench.directory / "bin" / "qsub"
    shim.parent.mkdir(parents=True)
    shim.write_text('#!/bin/sh\nPATH=${PATH#*:} qsub "$@" >/dev/null\nexec sleep 60\n')
    shim.chmod(0o755)
    wanted = requests(bench, LONG, 4)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
        with pytest.raises(BatchUnavailable, match="did not end"):
            bench.client(2.0).submit_many(wanted)
    stranger = bench.client()
    handles = [JobHandle(request.tag, "") for request in wanted]
    bench.wait(lambda: running(bench, stranger, handles))
    assert len(batch_ids(bench, stranger)) == 4
    stranger.cancel_many(handles, force=True)
    bench.wait(lambda: ended(bench, stranger, handles))


def test_how_each_element_ended_is_known_from_one_look_into_the_accounting(make: Make) -> None:
    bench = make()
    client = bench.client()
    wanted = [request._replace(command=("/bin/sh", "-c", f"echo {code} >&2; exit {code}"))
              for code, request in enumerate(requests(bench, FAILING, 5))]
    jobs = submit_requests(client, wanted)
    bench.wait(lambda: ended(bench, client, jobs))
    found = [states(bench, client)[job.tag.intent_id] for job in jobs]
    assert [status.exit_code for status in found] == [0, 1, 2, 3, 4]
    assert [status.stderr_tail for status in found] == ["", "1", "2", "3", "4"]


def test_an_array_that_is_too_large_is_refused_whole_with_the_systems_words(make: Make) -> None:
    bench = make(queue="nowhere.q")
    results = bench.client().submit_many(requests(bench, LONG, 3))
    assert all(isinstance(result.error, BatchRejected) and "unknown queue" in result.error.said for result in results)


def test_a_job_of_several_workers_runs_and_drains_them_all(make: Make) -> None:
    bench = make(**{"parallel-environment": "smp"})
    client = bench.client()
    marks = bench.directory / "marks"
    command = ("/bin/sh", "-c", f"trap 'echo out >> {marks}; exit 0' TERM USR2; echo in >> {marks}; "
               "while :; do sleep 0.05; done")
    jobs = submit_requests(client, [request._replace(copies=3, resources=Resources(2, 100, 100, 0))
                                    for request in requests(bench, command, 2)])
    bench.wait(lambda: marks.exists() and marks.read_text().count("in") == 6)
    assert "smp range: 6" in str(client.describe(jobs[0])["text"]).replace("  ", " ")
    client.cancel_many(jobs[:1], force=False)
    bench.wait(lambda: ended(bench, client, jobs[:1]))
    assert marks.read_text().count("out") == 3
    assert running(bench, client, jobs[1:])


def test_a_host_to_avoid_gets_no_job(make: Make) -> None:
    bench = make()
    client = bench.client()
    client.reconfigure(bench.place()._replace(excluded_hosts=(os.uname().nodename,)))
    result, = client.submit_many(requests(bench, LONG))
    assert isinstance(result.error, BatchRejected)
    assert "no suitable queues" in result.error.said


def test_a_check_says_that_the_listing_can_be_read(make: Make) -> None:
    bench = make()
    client = bench.client()
    jobs = submit(bench, client, LONG, 3)
    bench.wait(lambda: running(bench, client, jobs))
    (request,) = requests(bench, LONG)
    assert "3 of them of this pool" in client.check(request)
    assert "found suitable queue" in client.check(request)

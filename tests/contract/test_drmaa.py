"""What only Grid Engine and DRMAA do, against a real Grid Engine. What all batch systems do is in
test_batch_contract.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.gridengine import GridEngine

from contract.bench import FAILING, LONG, ended, requests, running, states, submit, submit_requests
from contract.bench_drmaa import NOWHERE, DrmaaBench
from taskvine_core.errors import BatchRejected, BatchUnavailable, ConfigError
from taskvine_core.resources import Resources
from vine_factory.batch import drmaa_text
from vine_factory.batch.base import BatchState
from vine_factory.batch.drmaa_calls import CONTACT_FILE

Make = Callable[..., DrmaaBench]
HOSTILE = ("a b", "it's", '"q"', "", "$(x)", "`x`", "$JOB_ID", "\\n", "\\", "#$ -q x", "ü😀", "%d", "* ? [a]",
           "tab\there", "two\nlines", ";;", ")", "esac", "-n", "{{ x }}")
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('HOSTILE')])); sys.exit(1)"


@pytest.fixture
def make(grid_engine: GridEngine, tmp_path: Path) -> Iterator[Make]:
    """Makes benches; options as in a site file."""
    made: list[DrmaaBench] = []

    def new(**options: object) -> DrmaaBench:
        made.append(DrmaaBench(tmp_path / f"jobs{len(made)}", grid_engine, **options))
        return made[-1]

    yield new
    for bench in made:
        bench.end()


def test_arguments_and_environment_arrive_as_they_are(make: Make) -> None:
    bench = make()
    batch = bench.client()
    jobs = submit_requests(batch, requests(bench, ("python3", "-c", SHOW, *HOSTILE), 2, HOSTILE="".join(HOSTILE)))
    bench.wait(lambda: ended(bench, batch, jobs))
    for job in jobs:
        arguments, variable = json.loads(str(batch.describe(job)["stdout"]))
        assert tuple(arguments) == HOSTILE
        assert variable == "".join(HOSTILE)


def test_each_task_of_an_array_is_its_own_intent_also_for_a_stranger(make: Make,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drmaa_text, "ARRAY_TASKS", 3)
    bench = make()
    wanted = [request._replace(command=("/bin/sh", "-c", f"echo {request.tag.intent_id} >&2; exec sleep 60"))
              for request in requests(bench, LONG, 7)]
    jobs = submit_requests(bench.client(), wanted)
    assert len({job.batch_id.split(".")[0] for job in jobs}) == 3
    stranger = bench.client()
    bench.wait(lambda: running(bench, stranger, jobs))
    bench.wait(lambda: all(stranger.describe(job)["stderr"] == job.tag.intent_id for job in jobs))
    assert {(s.tag.intent_id, s.batch_id) for s in states(bench, stranger).values()} == \
        {(job.tag.intent_id, job.batch_id) for job in jobs}


def test_a_held_job_is_told_and_can_be_cancelled(make: Make) -> None:
    bench = make(**{"extra-directives": ["-h"]})
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: states(bench, batch)[jobs[0].tag.intent_id].state is BatchState.HELD)
    assert states(bench, batch)[jobs[0].tag.intent_id].said == "held (hqw)"
    batch.cancel_many(jobs, force=False)
    bench.wait(lambda: ended(bench, batch, jobs))
    assert states(bench, batch)[jobs[0].tag.intent_id].exit_code is None


def test_a_job_that_cannot_start_has_ended_with_the_systems_reason_and_no_status(make: Make) -> None:
    bench = make()
    batch = bench.client()
    batch.reconfigure(bench.place()._replace(
        blocks={"directives": "{{ super() | replace('#$ -o ', '#$ -o /no/such') }}"}))
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: ended(bench, batch, jobs))
    bench.wait(lambda: "opening input/output file" in states(bench, batch)[jobs[0].tag.intent_id].said)
    assert states(bench, batch)[jobs[0].tag.intent_id].exit_code is None


def test_a_refusal_is_told_in_grid_engines_words(make: Make) -> None:
    bench = make(queue=NOWHERE)
    (result,) = bench.client().submit_many(requests(bench, LONG))
    assert isinstance(result.error, BatchRejected)
    assert result.error.said == f'Job was rejected because job requests unknown queue "{NOWHERE}"'
    assert result.error.said in str(result.error)


def test_a_dead_master_is_no_answer_and_jobs_are_there_when_it_is_back(make: Make) -> None:
    bench = make()
    batch = bench.client(10.0)
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: running(bench, batch, jobs))
    with bench.cluster.master_off():
        with pytest.raises(BatchUnavailable, match="qmaster"):
            batch.poll_many(bench.factory_id)
        with pytest.raises(BatchUnavailable):
            batch.submit_many(requests(bench, LONG))
        with pytest.raises(BatchUnavailable):
            batch.cancel_many(jobs, force=False)
    bench.wait(lambda: running(bench, batch, jobs))
    assert set(states(bench, batch)) == {jobs[0].tag.intent_id}


@pytest.mark.parametrize("session", ["kept", "lost"])
def test_how_a_job_ended_is_known_to_the_next_process(make: Make, session: str) -> None:
    bench = make()
    first = bench.client()
    jobs = submit(bench, first, ("/bin/sh", "-c", f"while [ ! -e {bench.directory}/go ]; do sleep 0.05; done; exit 7"))
    bench.wait(lambda: running(bench, first, jobs))
    first.close()
    if session == "lost":
        (bench.directory / CONTACT_FILE).unlink()
    second = bench.client()
    assert running(bench, second, jobs)
    (bench.directory / "go").touch()
    bench.wait(lambda: ended(bench, second, jobs))
    bench.wait(lambda: states(bench, second)[jobs[0].tag.intent_id].exit_code == 7)


def test_at_the_time_limit_the_worker_is_warned_before_it_is_killed(make: Make) -> None:
    bench = make()
    batch = bench.client()
    wanted = [request._replace(walltime_s=9.0) for request in requests(
        bench, ("/bin/sh", "-c", "trap 'exit 5' USR2; while :; do sleep 0.05; done"))]
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: ended(bench, batch, jobs))
    assert states(bench, batch)[jobs[0].tag.intent_id].exit_code == 5


def test_a_job_of_several_copies_runs_and_drains_them_all(make: Make) -> None:
    bench = make(**{"parallel-environment": "smp", "notify": True})
    batch = bench.client()
    marks = bench.directory / "marks"
    command = ("/bin/sh", "-c", f"trap 'echo out >> {marks}; exit 0' TERM USR2; echo in >> {marks}; "
               "while :; do sleep 0.05; done")
    jobs = submit_requests(batch, [request._replace(copies=3) for request in requests(bench, command)])
    bench.wait(lambda: marks.exists() and marks.read_text().count("in") == 3)
    batch.cancel_many(jobs, force=False)
    bench.wait(lambda: ended(bench, batch, jobs))
    assert marks.read_text().count("out") == 3


def test_options_reach_grid_engine_as_it_understands_them(make: Make) -> None:
    bench = make(**{"queue": "all.q", "parallel-environment": "smp", "memory-resource": "h_vmem",
                    "resources": {"arch": "lx-*"}, "soft-resources": {"mem_free": "1M"}, "priority": -5,
                    "account": "acct", "extra-directives": ["-h"]})
    batch = bench.client()
    batch.reconfigure(bench.place()._replace(excluded_hosts=("bad1", "bad2.site")))
    wanted = [request._replace(resources=Resources(2, 300, 100, 0), walltime_s=3600) for request in
              requests(bench, LONG)]
    facts = batch.describe(submit_requests(batch, wanted)[0])
    hard = set(str(facts["hard resource_list"]).split(","))
    assert hard == {"h_rt=3600", "h_vmem=150M", "arch=lx-*", "hostname=!bad1&!bad2.site"}
    assert facts["soft resource_list"] == "mem_free=1M"
    assert facts["parallel environment"] == "smp range: 2"
    assert (facts["hard_queue_list"], facts["priority"], facts["account"]) == ("all.q", "-5", "acct")
    assert facts["notify"] == "TRUE"


def test_more_cores_than_one_need_a_parallel_environment(make: Make) -> None:
    bench = make()
    wanted = [request._replace(resources=Resources(2, 1, 1, 0)) for request in requests(bench, LONG)]
    with pytest.raises(ConfigError, match="parallel-environment"):
        bench.client().render(wanted)


def test_a_check_asks_the_live_system_and_runs_nothing(make: Make) -> None:
    bench = make()
    (request,) = requests(bench, LONG)
    assert "found suitable queue" in bench.client().check(request)
    assert bench.client().poll_many(bench.factory_id) == []
    with pytest.raises(BatchRejected, match=NOWHERE):
        make(queue=NOWHERE).client().check(request)


def test_a_library_that_is_not_there_is_told(make: Make) -> None:
    bench = make(library="/no/such/libdrmaa.so")
    with pytest.raises(BatchRejected, match="/no/such/libdrmaa"):
        bench.client().submit_many(requests(bench, FAILING))


def test_logs_of_failed_jobs_are_bounded_and_of_good_ones_gone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from vine_factory import defaults

    monkeypatch.setattr(defaults, "KEPT_JOB_LOGS", 2)
    bench = make()
    batch = bench.client()
    jobs = submit(bench, batch, FAILING, 4) + submit(bench, batch, ("/bin/echo", "fine"), 2)
    bench.wait(lambda: ended(bench, batch, jobs))
    assert len(list((bench.directory / "jobs").iterdir())) == 4, "two files each of two jobs"

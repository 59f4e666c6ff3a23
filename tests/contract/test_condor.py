"""What only HTCondor does, against a real pool. What all batch systems do is in test_batch_contract.py."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.htcondor import Pool

from contract.bench import FAILING, FROZEN_TIMEOUT_S, LONG, ended, requests, running, states, submit, submit_requests
from contract.bench_condor import CondorBench
from taskvine_core.errors import BatchRejected, BatchUnavailable, ConfigError
from taskvine_core.resources import Resources
from vine_factory import defaults
from vine_factory.batch.base import BatchState, JobHandle, JobTag
from vine_factory.batch.condor import CondorBatch

Make = Callable[..., CondorBench]
HOSTILE = ("a b", "it's", '"q"', '""', "$(x)", "$ENV(HOME)", "$$(Cpus)", "$$([1+1])", "$", "$$", "$$x", "$x",
           "\\n", "\\", "#", ",x", "ü😀", "",
           "%d", "^a.*$", "* ? [a]", "tab\there", "queue", ")", "a=b", "-n", "{{ x }}")
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('HOSTILE')])); sys.exit(1)"


@pytest.fixture
def make(htcondor_pool: Pool, tmp_path: Path) -> Iterator[Make]:
    """Makes benches: by default with bindings; options as in a site file."""
    made: list[CondorBench] = []

    def new(client: str = "bindings", **options: object) -> CondorBench:
        made.append(CondorBench(tmp_path / f"jobs{len(made)}", htcondor_pool, client, **options))
        return made[-1]

    yield new
    for bench in made:
        bench.end()


@pytest.mark.parametrize("client", ["bindings", "tools"])
def test_arguments_and_environment_arrive_as_they_are(make: Make, client: str) -> None:
    bench = make(client)
    batch = bench.client()
    wanted = requests(bench, ("python3", "-c", SHOW, *HOSTILE), HOSTILE="".join(HOSTILE))
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: ended(bench, batch, jobs))
    arguments, variable = json.loads(str(batch.describe(jobs[0])["stdout"]))
    assert tuple(arguments) == HOSTILE
    assert variable == "".join(HOSTILE)


@pytest.mark.parametrize("text", ["two\nlines", "nul\0", "\x1b[2J", "$(DOLLAR)", "$$$(x)", "$$ENV(x)"])
def test_what_cannot_be_written_into_a_description_is_refused_before_anything_is_submitted(make: Make,
                                                                                           text: str) -> None:
    bench = make()
    batch = bench.client()
    with pytest.raises(BatchRejected, match="cannot be"):
        batch.submit_many(requests(bench, ("/bin/echo", text)))
    with pytest.raises(ConfigError):
        batch.render(requests(bench, ("/bin/echo", text)))
    assert states(bench, batch) == {}


def test_shipped_files_are_in_the_jobs_directory_and_a_shipped_program_is_run(make: Make, tmp_path: Path) -> None:
    bench = make()
    program, data = tmp_path / "my program", tmp_path / "data $x.txt"
    program.write_text("#!/bin/sh\npwd; cat \"$1\"; exit 1\n")
    program.chmod(0o755)
    data.write_text("contents")
    batch = bench.client()
    wanted = [request._replace(ship=(program, data)) for request in requests(bench, ("my program", "data $x.txt"))]
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: ended(bench, batch, jobs))
    where, contents = str(batch.describe(jobs[0])["stdout"]).split("\n")
    assert contents == "contents"
    assert Path(where) != tmp_path


@pytest.mark.parametrize("client", ["bindings", "tools"])
def test_several_workers_of_one_job_share_a_slot_and_are_all_told_to_leave(make: Make, client: str,
                                                                          tmp_path: Path) -> None:
    bench = make(client)
    program = tmp_path / "worker"
    program.write_text(f"#!/bin/sh\ntrap 'echo out >> {tmp_path}/marks; exit 0' TERM\necho in >> {tmp_path}/marks\n"
                       "while :; do sleep 0.05; done\n")
    program.chmod(0o755)
    batch, marks = bench.client(), tmp_path / "marks"
    wanted = [request._replace(copies=2, resources=Resources(1, 100, 50, 0), ship=(program,))
              for request in requests(bench, ("worker",))]
    assert "can run this" in batch.check(wanted[0])
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: marks.exists() and marks.read_text().count("in") == 2)
    facts = batch.describe(jobs[0])
    assert (facts["RequestCpus"], facts["RequestMemory"]) == (2, 200)
    batch.cancel_many(jobs, force=False)
    bench.wait(lambda: ended(bench, batch, jobs))
    assert marks.read_text().count("out") == 2
    bench.wait(lambda: bench.nothing_left(jobs[0]))


def test_a_file_that_is_not_there_is_refused_at_submission(make: Make, tmp_path: Path) -> None:
    bench = make()
    wanted = [request._replace(ship=(tmp_path / "none",)) for request in requests(bench, LONG)]
    results = bench.client().submit_many(wanted)
    assert isinstance(results[0].error, BatchRejected)
    assert "none" in str(results[0].error)


@pytest.mark.parametrize("client", ["bindings", "tools"])
def test_a_held_job_is_told_with_reason_and_code(make: Make, client: str) -> None:
    bench = make(client, **{"extra-directives": ["transfer_input_files = /no/such/input"]})
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    name = jobs[0].tag.intent_id
    bench.wait(lambda: states(bench, batch)[name].state is BatchState.HELD)
    by_log = states(bench, batch)[name].said
    assert "/no/such/input" in by_log
    assert "hold code 13" in by_log
    stranger = bench.client(directory=bench.directory.with_name("other"))
    by_queue = states(bench, stranger)[name]
    assert by_queue.state is BatchState.HELD
    assert "/no/such/input" in by_queue.said
    assert "hold code 13" in by_queue.said
    batch.cancel_many(jobs, force=False)
    bench.wait(lambda: ended(bench, batch, jobs))


def test_a_preempted_job_is_queued_again_and_not_ended(make: Make) -> None:
    bench = make(**{"query-interval": 3600})
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: bench.trap_is_set(batch, jobs))
    bench.wait(lambda: running(bench, batch, jobs))
    bench.pool.tool("condor_hold", jobs[0].batch_id)  # so that it does not start again before we look
    bench.wait(lambda: states(bench, batch)[jobs[0].tag.intent_id].state is BatchState.HELD)
    assert states(bench, batch)[jobs[0].tag.intent_id].started_at == 0
    bench.pool.tool("condor_release", jobs[0].batch_id)
    submit(bench, batch, LONG)
    bench.wait(lambda: running(bench, batch, jobs))
    bench.pool.tool("condor_vacate_job", "-fast", jobs[0].batch_id)
    seen = set()
    bench.wait(lambda: seen.add(states(bench, batch)[jobs[0].tag.intent_id].state) or  # type: ignore[func-returns-value]
               (BatchState.QUEUED in seen and running(bench, batch, jobs)))
    assert BatchState.ENDED not in seen


def test_a_dead_shadow_writes_no_event_and_the_job_is_not_lost(make: Make) -> None:
    bench = make()
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: bench.trap_is_set(batch, jobs))
    for pid in bench.pool.processes("condor_shadow"):
        if jobs[0].batch_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    bench.wait(lambda: bench.nothing_left(jobs[0]))
    bench.wait(lambda: bench.trap_is_set(batch, jobs) and running(bench, batch, jobs))


@pytest.mark.parametrize("harm", ["deleted", "cut", "garbage"])
def test_a_harmed_event_log_costs_speed_only(make: Make, harm: str) -> None:
    bench = make()
    batch = bench.client()
    jobs = submit(bench, batch, FAILING) + submit(bench, batch, LONG)
    bench.wait(lambda: ended(bench, batch, jobs[:1]) and running(bench, batch, jobs[1:]))
    (log,) = bench.directory.glob("events.*.log")
    if harm == "deleted":
        log.unlink()
    elif harm == "cut":
        os.truncate(log, log.stat().st_size // 2)
    else:
        with open(log, "ab") as stream:
            stream.write(os.urandom(4096) + b"\n...\n000 (no event\n...\n\0\0\n")
    new = submit(bench, batch, FAILING) + submit(bench, batch, LONG)
    stranger = bench.client()
    for one in (batch, stranger):
        bench.wait(lambda one=one: new[0].tag.intent_id in states(bench, one)  # type: ignore[misc]
                   and ended(bench, one, new[:1]) and running(bench, one, [jobs[1], new[1]]))
    bench.wait(lambda: states(bench, batch)[new[0].tag.intent_id].exit_code == 3)


def test_jobs_are_adopted_without_any_file_of_the_factory_before(make: Make) -> None:
    bench = make()
    jobs = submit(bench, bench.client(), LONG, 2)
    stranger = bench.client(directory=bench.directory.with_name("elsewhere"))
    bench.wait(lambda: running(bench, stranger, jobs))
    assert {status.batch_id for status in states(bench, stranger).values()} == {job.batch_id for job in jobs}
    stranger.cancel_many([JobHandle(job.tag, "") for job in jobs], force=True)
    bench.wait(lambda: ended(bench, stranger, jobs))


def test_a_job_that_ended_while_no_factory_was_there_is_told_with_its_status(make: Make) -> None:
    bench = make()
    first = bench.client()
    jobs = submit(bench, first, FAILING)
    bench.wait(lambda: ended(bench, first, jobs))
    status = states(bench, bench.client())[jobs[0].tag.intent_id]
    assert (status.state, status.exit_code, status.stderr_tail) == (BatchState.ENDED, 3, "bad news")


def test_a_job_is_removed_at_its_time_limit_and_says_so(make: Make) -> None:
    bench = make()
    batch = bench.client()
    jobs = submit_requests(batch, [request._replace(walltime_s=2.0) for request in requests(bench, LONG)])
    bench.wait(lambda: ended(bench, batch, jobs))
    status = states(bench, batch)[jobs[0].tag.intent_id]
    assert "JobCurrentStartDate" in status.said
    assert status.ended_at - status.started_at >= 1


def test_a_worker_is_given_time_to_finish_when_it_is_told_to_leave(make: Make, tmp_path: Path) -> None:
    bench = make()
    batch = bench.client()
    done = tmp_path / "done"
    jobs = submit(bench, batch, ("/bin/sh", "-c", f"trap 'sleep 2; touch {done}; exit 0' TERM; "
                                                  "while :; do sleep 0.05; done"))
    bench.wait(lambda: bench.trap_is_set(batch, jobs))
    batch.cancel_many(jobs, force=False)
    assert running(bench, batch, jobs), "it is still at work"
    bench.wait(lambda: ended(bench, batch, jobs))
    assert done.exists()


def test_a_host_that_is_excluded_gets_no_job_and_the_negotiators_words_are_told(make: Make) -> None:
    bench = make()
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: running(bench, batch, jobs))
    host = states(bench, batch)[jobs[0].tag.intent_id].host
    batch.place = batch.place._replace(excluded_hosts=(host,))
    waiting = submit(bench, batch, LONG)
    bench.wait(lambda: states(bench, batch)[waiting[0].tag.intent_id].said != "")
    status = states(bench, batch)[waiting[0].tag.intent_id]
    assert status.state is BatchState.QUEUED
    assert "no match found" in status.said


@pytest.mark.parametrize("client", ["bindings", "tools"])
def test_check_says_what_would_happen(make: Make, client: str) -> None:
    bench = make(client, requirements='TARGET.OpSys == "LINUX"')
    batch = bench.client()
    (request,) = requests(bench, LONG)
    said = batch.check(request)
    assert "1 of the pool's 1 slots can run this" in said
    assert client in said or "command-line tools" in said
    with pytest.raises(BatchRejected, match=r"no slot of the pool's 1 can ever run this: the largest have 64 cpus"):
        batch.check(request._replace(resources=Resources(9999, 1, 1, 0)))
    with pytest.raises(BatchRejected, match="no slot of the pool's 1"):
        make(client, requirements='TARGET.OpSys == "PLAN9"').client().check(request)
    with pytest.raises(BatchRejected, match="Parse error in expression"):
        make(client, requirements="((TARGET.Memory").client().check(request)
    assert states(bench, batch) == {}


def is_unavailable(bench: CondorBench, batch: CondorBatch) -> bool:
    try:
        batch.poll_many(bench.factory_id)
    except BatchUnavailable:
        return True
    return False


@pytest.mark.parametrize("client", ["bindings", "tools"])
def test_a_schedd_that_is_off_is_no_answer_and_its_return_is_noticed(make: Make, client: str) -> None:
    bench = make(client)
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: running(bench, batch, jobs))
    with bench.pool.schedd_off():
        bench.wait(lambda: is_unavailable(bench, batch))  # the queue is not asked again at once
        with pytest.raises(BatchUnavailable):
            batch.submit_many(requests(bench, LONG))
        with pytest.raises(BatchUnavailable):
            batch.cancel_many(jobs, force=False)
        with pytest.raises(BatchUnavailable):
            batch.describe(jobs[0])
    bench.wait(lambda: running(bench, batch, jobs))
    assert len(states(bench, batch)) == 1


@pytest.mark.parametrize("client", ["bindings", "tools"])
def test_a_frozen_schedd_costs_one_deadline_per_call(make: Make, client: str) -> None:
    bench = make(client)
    batch = bench.client(FROZEN_TIMEOUT_S)
    jobs = submit(bench, batch, LONG)
    with bench.pool.schedd_frozen():
        bench.wait(lambda: is_unavailable(bench, batch))
        for call in (lambda: batch.poll_many(bench.factory_id), lambda: batch.cancel_many(jobs, force=True),
                     lambda: batch.submit_many(requests(bench, LONG))):
            start = time.monotonic()
            with pytest.raises(BatchUnavailable):
                call()
            assert time.monotonic() - start < FROZEN_TIMEOUT_S + 3
    bench.wait(lambda: jobs[0].tag.intent_id in states(bench, batch))


@pytest.mark.parametrize("client", ["bindings", "tools"])
def test_a_named_schedd_with_spooled_files_is_used_without_a_log(make: Make, client: str, tmp_path: Path) -> None:
    probe = make()
    name = probe.pool.tool("condor_status", "-schedd", "-af", "Name").strip()
    bench = make(client, schedd=name, collector=f"127.0.0.1:{probe.pool.port}", spool=True)
    data = tmp_path / "data"
    data.write_text("7")
    batch = bench.client()
    jobs = submit_requests(batch, [request._replace(ship=(data,)) for request in requests(
        bench, ("/bin/sh", "-c", "exit $(cat data)"), 2)])
    data.unlink()
    bench.wait(lambda: ended(bench, batch, jobs))
    bench.wait(lambda: [status.exit_code for status in states(bench, batch).values()] == [7, 7])
    assert list(bench.directory.glob("events*")) == []


def test_with_autosize_the_worker_is_told_the_size_of_its_slot(make: Make) -> None:
    bench = make(autosize=True)
    batch = bench.client()
    wanted = [request._replace(resources=Resources(2, 256, 100, 0))
              for request in requests(bench, ("/bin/sh", "-c", 'echo "$*"; exit 1', "sh", "--cores", "2"))]
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: ended(bench, batch, jobs))
    words = str(batch.describe(jobs[0])["stdout"]).split()
    assert words[:2] == ["--cores", "2"]
    sizes = dict(zip(words[2::2], map(int, words[3::2]), strict=True))
    assert sizes["--cores"] == 64
    assert sizes["--memory"] == 65536
    assert sizes["--disk"] > 100


def test_outputs_of_good_jobs_go_and_those_of_bad_ones_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "KEPT_JOB_LOGS", 3)
    bench = make()
    batch = bench.client()
    bad = submit(bench, batch, FAILING, 6)
    good = submit(bench, batch, ("/bin/sh", "-c", "echo fine"), 2)
    bench.wait(lambda: ended(bench, batch, bad + good))
    left = {path.stem for path in (bench.directory / "jobs").iterdir()}
    assert len(left) == 3
    assert not left & {job.tag.intent_id for job in good}


def test_tools_are_used_when_there_are_no_bindings_and_the_reason_is_told(make: Make, tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("htcondor", "htcondor2"):
        (broken / f"{name}.py").write_text("raise ImportError('not for this machine')")
    monkeypatch.setenv("PYTHONPATH", f"{broken}:{os.environ['PYTHONPATH']}")
    bench = make("auto")
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    words = str(batch.describe(jobs[0])["client"])
    assert words.startswith("command-line tools")
    assert "not for this machine" in words
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BatchRejected, match=r"no way to talk to HTCondor.*pip install htcondor"):
        bench.client().poll_many(bench.factory_id)


def test_tools_are_used_when_bindings_get_no_answer_that_the_tools_get(make: Make, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "htcondor2.py").write_text(
        "def version(): return '$CondorVersion: 99.1.2 $'\n"
        "class QueryOpts: DefaultMyJobsOnly = 1\n"
        "def Schedd(): raise RuntimeError('Failed communication with schedd')\n")
    monkeypatch.setenv("PYTHONPATH", f"{strange}:{os.environ['PYTHONPATH']}")
    bench = make("auto")
    batch = bench.client()
    assert batch.poll_many(bench.factory_id) == []
    words = str(batch.check(requests(bench, LONG)[0]))
    assert "command-line tools" in words
    assert "Failed communication" in words


def test_bindings_are_used_when_they_work(make: Make) -> None:
    bench = make("auto")
    assert "Python bindings htcondor2" in bench.client().check(requests(bench, LONG)[0])


def test_what_is_rendered_is_what_is_submitted(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make("tools", **{"accounting-group": "group_x", "attributes": {"ProjectName": '"p q"'}, "priority": 5})
    shim = tmp_path / "bin" / "condor_submit"
    shim.parent.mkdir()
    shim.write_text(f"#!/bin/sh\ntee {tmp_path}/given | PATH={os.environ['PATH']} condor_submit \"$@\"\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    batch = bench.client()
    wanted = requests(bench, LONG, 3)
    texts = batch.render(wanted)
    jobs = submit_requests(batch, wanted)
    assert (tmp_path / "given").read_text() == texts["job.sub"]
    (script,) = (name for name in texts if name.endswith(".sh"))
    assert (bench.directory / script).read_text() == texts[script]
    assert len({job.batch_id.split(".")[0] for job in jobs}) == 1, "one cluster"
    facts = batch.describe(jobs[0])
    assert (facts["ProjectName"], facts["AcctGroup"], facts["JobPrio"]) == ("p q", "group_x", 5)
    assert facts["VineTag"] == jobs[0].tag.text()


def test_jobs_of_another_pool_of_the_factory_are_not_listed(make: Make) -> None:
    bench = make()
    batch = bench.client()
    submit(bench, batch, LONG)
    other = CondorBatch(bench.place()._replace(pool="other", directory=bench.directory.with_name("other")))
    try:
        assert other.poll_many(bench.factory_id) == []
    finally:
        other.close()


def test_cancelling_by_tag_reaches_only_the_tags_named(make: Make) -> None:
    bench = make("tools")
    first = bench.client()
    jobs = submit(bench, first, LONG, 2)
    bench.client(directory=bench.directory.with_name("other")).cancel_many(
        [JobHandle(jobs[0].tag, ""), JobHandle(JobTag(bench.factory_id, "pool", "x"), "")], force=True)
    bench.wait(lambda: ended(bench, first, jobs[:1]))
    bench.wait(lambda: running(bench, first, jobs[1:]))

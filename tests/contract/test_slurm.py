"""What only Slurm does, against a real cluster. What all batch systems do is in test_batch_contract.py."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.slurm import Cluster

from contract.bench import FAILING, FROZEN_TIMEOUT_S, LONG, ended, requests, running, states, submit, submit_requests
from contract.bench_slurm import SlurmBench
from taskvine_core.errors import BatchRejected, BatchUnavailable
from taskvine_core.resources import Resources
from vine_factory import defaults
from vine_factory.batch.base import BatchState, JobHandle, JobTag
from vine_factory.batch.slurm import SlurmBatch

Make = Callable[..., SlurmBench]
HOSTILE = ("a b", "it's", '"q"', '""', "$(x)", "${HOME}", "$", "`x`", "\\n", "\\", "#", "#SBATCH --evil", "ü😀", "",
           "%d %A", "* ? [a]", "tab\there", ")", ";;", "esac", "a=b", "-n", "{{ x }}", "two\nlines")  # fmt: skip
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)])); sys.exit(1)"


@pytest.fixture
def make(slurm_cluster: Cluster, tmp_path: Path) -> Iterator[Make]:
    """Makes benches; options as in a site file."""
    made: list[SlurmBench] = []

    def new(**options: object) -> SlurmBench:
        made.append(SlurmBench(tmp_path / f"jobs{len(made)}", slurm_cluster, **options))
        return made[-1]

    yield new
    for bench in made:
        bench.end()


def said(bench: SlurmBench, batch: SlurmBatch, job: JobHandle) -> str:
    return states(bench, batch)[job.tag.intent_id].said


def test_arguments_and_environment_arrive_as_they_are(make: Make) -> None:
    bench = make()
    batch = bench.client()
    wanted = [request._replace(command=(sys.executable, "-c", SHOW, str(index), *HOSTILE)) for index, request
              in enumerate(requests(bench, (), 3, HOSTILE="".join(HOSTILE)))]
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: ended(bench, batch, jobs))
    for index, job in enumerate(jobs):
        arguments, environment = json.loads((bench.directory / "jobs" / f"{job.batch_id}.out").read_text())
        assert tuple(arguments) == (str(index), *HOSTILE)
        assert environment["HOSTILE"] == "".join(HOSTILE)
        assert environment["VINE_FACTORY_TAG"] == job.tag.text()


def test_nothing_of_the_factorys_environment_reaches_a_job_but_what_is_named(make: Make,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET", "WANTED_1", "SLURM_ARRAY_TASK_ID", "SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SQUEUE_STATES"):
        monkeypatch.setenv(name, "7")
    bench = make(export=["WANTED_*"])
    batch = bench.client()
    jobs = submit(bench, batch, (sys.executable, "-c", SHOW))
    bench.wait(lambda: ended(bench, batch, jobs))
    _, environment = json.loads(str((bench.directory / "jobs" / f"{jobs[0].batch_id}.out").read_text()))
    assert environment["WANTED_1"] == "7"
    assert not {"SECRET", "SBATCH_EXPORT", "SQUEUE_STATES", "LC_ALL"} & set(environment)


@pytest.mark.parametrize("text", ["nul\0", "\udc80"])
def test_what_no_script_can_hold_is_refused_before_anything_is_submitted(make: Make, text: str) -> None:
    bench = make()
    batch = bench.client()
    with pytest.raises(BatchRejected, match="cannot write the job script"):
        batch.submit_many(requests(bench, ("/bin/echo", text)))
    assert states(bench, batch) == {}


def test_directories_with_strange_names_get_the_output(make: Make, tmp_path: Path) -> None:
    bench = make()
    batch = bench.client(directory=tmp_path / "a b%j 'c' \"d\" #f $g")
    jobs = submit(bench, batch, FAILING, 2)
    bench.wait(lambda: ended(bench, batch, jobs))
    assert [status.stderr_tail for status in states(bench, batch).values()] == ["bad news"] * 2


def test_a_directory_that_slurm_cannot_name_is_refused(make: Make, tmp_path: Path) -> None:
    bench = make()
    with pytest.raises(BatchRejected, match="backslash"):
        bench.client(directory=tmp_path / "a\\b").submit_many(requests(bench, LONG))


def test_one_array_holds_all_jobs_of_a_call_and_intents_need_not_be_consecutive(make: Make) -> None:
    bench = make()
    batch = bench.client()
    names = ["run-3", "run-4", "run-9", "other.7", "plain", "run-010"]
    wanted = [request._replace(tag=request.tag._replace(intent_id=name))
              for request, name in zip(requests(bench, LONG, 6), names, strict=True)]
    jobs = submit_requests(batch, wanted)
    assert len({job.batch_id.split("_")[0] for job in jobs}) == 1
    stranger = bench.client(directory=bench.directory.with_name("elsewhere"))
    bench.wait(lambda: running(bench, stranger, jobs))
    found = states(bench, stranger)
    assert {name: found[name].batch_id for name in names} == {job.tag.intent_id: job.batch_id for job in jobs}


def test_cancelling_some_elements_of_a_waiting_array_leaves_the_others(make: Make) -> None:
    bench = make(partition="off")
    batch = bench.client()
    jobs = submit(bench, batch, LONG, 8)
    batch.cancel_many([jobs[1], JobHandle(jobs[5].tag, ""), jobs[6]], force=False)
    bench.wait(lambda: ended(bench, batch, [jobs[1], jobs[5], jobs[6]]))
    found = states(bench, batch)
    left = {name for name, status in found.items() if status.state is not BatchState.ENDED}
    assert left == {jobs[index].tag.intent_id for index in (0, 2, 3, 4, 7)}
    assert {found[jobs[index].tag.intent_id].exit_code for index in (1, 5, 6)} == {None}


def test_a_job_that_would_wait_for_ever_is_held_with_the_reason(make: Make) -> None:
    bench = make(partition="off")
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    status = states(bench, batch)[jobs[0].tag.intent_id]
    assert (status.state, status.said) == (BatchState.HELD, "PartitionDown")
    assert status.started_at == 0


def test_a_held_job_is_told_and_a_released_one_runs(make: Make) -> None:
    bench = make(**{"extra-directives": ["--hold"]})
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    name = jobs[0].tag.intent_id
    bench.wait(lambda: states(bench, batch)[name].state is BatchState.HELD)
    assert "JobHeldUser" in said(bench, batch, jobs[0])
    bench.cluster.tool("scontrol", "release", jobs[0].batch_id)
    bench.wait(lambda: running(bench, batch, jobs))


def test_a_job_on_a_drained_node_waits_and_says_so(make: Make) -> None:
    node = f"{make().cluster.prefix}2"
    bench = make(**{"extra-directives": [f"--nodelist={node}"]})
    batch = bench.client()
    first = submit(bench, batch, LONG)
    bench.wait(lambda: running(bench, batch, first))
    assert states(bench, batch)[first[0].tag.intent_id].host == node
    with bench.cluster.node_drained(node):
        second = submit(bench, batch, LONG)
        bench.wait(lambda: "ReqNodeNotAvail" in said(bench, batch, second[0]))
        assert states(bench, batch)[second[0].tag.intent_id].state is BatchState.HELD
        assert running(bench, batch, first), "what runs on it goes on"
    bench.wait(lambda: running(bench, batch, second))


def test_excluded_hosts_get_no_job(make: Make) -> None:
    bench = make()
    batch = bench.client()
    batch.place = batch.place._replace(excluded_hosts=(f"{bench.cluster.prefix}1", f"{bench.cluster.prefix}2"))
    jobs = submit(bench, batch, LONG, 2)
    bench.wait(lambda: running(bench, batch, jobs))
    assert {status.host for status in states(bench, batch).values()} == {f"{bench.cluster.prefix}3"}


def test_a_requeued_job_is_queued_again_and_not_ended(make: Make) -> None:
    bench = make()
    batch = bench.client()
    jobs = submit(bench, batch, LONG, 2)
    bench.wait(lambda: running(bench, batch, jobs))
    bench.wait(lambda: bench.trap_is_set(batch, jobs))
    bench.cluster.tool("scontrol", "requeue", jobs[0].batch_id)
    seen = set()
    name = jobs[0].tag.intent_id
    bench.wait(lambda: seen.add(states(bench, batch)[name].state) or BatchState.QUEUED in seen)  # type: ignore[func-returns-value]
    assert BatchState.ENDED not in seen
    assert "back in the queue" in said(bench, batch, jobs[0]) or "BeginTime" in said(bench, batch, jobs[0])
    assert running(bench, batch, jobs[1:])


def test_a_preempted_job_goes_back_into_the_queue(make: Make) -> None:
    bench = make(partition="scav", exclusive=True)
    batch = bench.client()
    jobs = submit(bench, batch, LONG, 3)
    bench.wait(lambda: running(bench, batch, jobs))
    bench.wait(lambda: bench.trap_is_set(batch, jobs))
    other = make(partition="high", exclusive=True)
    urgent = submit(other, other.client(), LONG)
    bench.wait(lambda: running(other, other.clients[0], urgent))
    seen: set[BatchState] = set()
    bench.wait(lambda: seen.update(one.state for one in states(bench, batch).values()) or BatchState.QUEUED in seen)  # type: ignore[func-returns-value]
    assert BatchState.ENDED not in seen


def test_a_preempted_job_that_is_not_requeued_has_no_exit_code_of_its_own(make: Make) -> None:
    bench = make(partition="scav", exclusive=True, requeue=False)
    batch = bench.client()
    jobs = submit(bench, batch, LONG, 3)
    bench.wait(lambda: running(bench, batch, jobs))
    other = make(partition="high", exclusive=True)
    submit(other, other.client(), LONG)
    bench.wait(lambda: any(one.state is BatchState.ENDED for one in states(bench, batch).values()))
    (status,) = [one for one in states(bench, batch).values() if one.state is BatchState.ENDED]
    assert "PREEMPTED" in status.said


def test_a_worker_is_told_before_its_time_limit(make: Make, tmp_path: Path) -> None:
    bench = make(**{"drain-time": 60})
    batch = bench.client()
    wanted = [request._replace(walltime_s=120.0) for request in requests(bench, LONG)]
    text = batch.render(wanted)["job.sh"]
    assert "#SBATCH --time=0-00:02:00\n" in text
    assert "#SBATCH --signal=B:TERM@60\n" in text
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: running(bench, batch, jobs))
    assert batch.describe(jobs[0])["TimeLimit"] == "00:02:00"


def test_several_workers_of_one_job_are_all_told_to_leave(make: Make, tmp_path: Path) -> None:
    bench = make()
    batch = bench.client()
    script = (f"touch {tmp_path}/up.$SLURM_PROCID; trap 'touch {tmp_path}/drained.$SLURM_PROCID; exit 0' TERM; "
              "while :; do sleep 0.05; done")
    wanted = [request._replace(copies=2) for request in requests(bench, ("/bin/sh", "-c", script))]
    jobs = submit_requests(batch, wanted)
    bench.wait(lambda: len(list(tmp_path.glob("up.*"))) == 2)
    batch.cancel_many(jobs, force=False)
    bench.wait(lambda: ended(bench, batch, jobs))
    assert len(list(tmp_path.glob("drained.*"))) == 2
    assert states(bench, batch)[jobs[0].tag.intent_id].exit_code == 0


def test_an_output_directory_that_is_gone_is_made_again_before_submission(make: Make) -> None:
    bench = make()
    batch = bench.client()
    assert not bench.directory.exists(), "looking makes nothing"
    for _ in range(2):
        jobs = submit(bench, batch, FAILING)
        bench.wait(lambda jobs=jobs: ended(bench, batch, jobs))  # type: ignore[misc]
        assert states(bench, batch)[jobs[0].tag.intent_id].exit_code == 3
        shutil.rmtree(bench.directory)


def test_a_job_that_slurm_could_not_launch_says_so_and_has_no_exit_code(make: Make) -> None:
    bench = make(**{"extra-directives": ["--output=/no/such/dir/x"]})
    batch = bench.client()
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: ended(bench, batch, jobs))
    status = states(bench, batch)[jobs[0].tag.intent_id]
    assert status.exit_code is None
    assert "JobLaunchFailure" in status.said


@pytest.mark.parametrize(("options", "words"), [
    ({"partition": "none"}, "invalid partition specified: none"),
    ({"constraint": "quantum"}, "Invalid feature specification"),
    ({"reservation": "mine"}, "Requested reservation is invalid"),
    ({"gres": "gpu:9"}, r"Invalid generic resource \(gres\) specification"),
    ({"extra-directives": ["--no-such-option"]}, "unrecognized option"),
    ({"extra-directives": ["--nodelist=atlantis"]}, "Invalid node name"),
])
def test_a_refusal_has_slurms_own_words_at_submission_and_at_a_check(make: Make, options: dict[str, object],
                                                                    words: str) -> None:
    bench = make(**options)
    batch = bench.client()
    results = batch.submit_many(requests(bench, LONG))
    assert isinstance(results[0].error, BatchRejected)
    with pytest.raises(BatchRejected, match=words):
        raise results[0].error
    with pytest.raises(BatchRejected, match=words):
        batch.check(requests(bench, LONG)[0])
    assert states(bench, batch) == {}


def test_check_finds_what_sbatch_takes_without_a_word(make: Make) -> None:
    (request,) = requests(make(), LONG)
    text = make().client().check(request)
    assert "to start at" in text
    assert "command-line tools (as configured)" in text
    with pytest.raises(BatchRejected, match="partition off is down"):
        make(partition="off").client().check(request)
    with pytest.raises(BatchRejected, match="MaxArraySize"):
        make(**{"max-array": 5000}).client().check(request)
    with pytest.raises(BatchRejected, match="More processors requested than permitted"):
        make().client().check(request._replace(resources=Resources(999, 1, 1, 0)))


def test_files_cannot_be_sent_with_a_job(make: Make, tmp_path: Path) -> None:
    bench = make()
    wanted = [request._replace(ship=(tmp_path,)) for request in requests(bench, LONG)]
    with pytest.raises(BatchRejected, match='deliver = "shared"'):
        bench.client().submit_many(wanted)


def test_what_is_rendered_is_what_a_person_can_submit(make: Make, tmp_path: Path) -> None:
    bench = make(nice=5, **{"job-name": "my workers"})
    batch = bench.client()
    wanted = requests(bench, LONG, 2)
    texts = batch.render(wanted)
    (tmp_path / "job.sh").write_text(texts["job.sh"])
    subprocess.run(["/bin/sh", "-ec", texts["command"]], cwd=tmp_path, check=True, timeout=30, capture_output=True)
    bench.wait(lambda: len(states(bench, batch)) == 2)
    jobs = [JobHandle(request.tag, "") for request in wanted]
    bench.wait(lambda: running(bench, batch, jobs))
    assert batch.describe(jobs[0])["JobName"] == "my workers"
    assert batch.describe(jobs[0])["Nice"] == "5"
    assert shlex.split(texts["command"])[-2:] == ["<", "job.sh"]


def test_a_site_that_rewrites_comments_can_have_the_tag_in_the_name(make: Make) -> None:
    bench = make(**{"tag-in": "job-name"})
    batch = bench.client()
    jobs = submit(bench, batch, LONG, 3)
    bench.cluster.tool("scontrol", "update", f"jobid={jobs[0].batch_id.split('_')[0]}", "comment=rewritten")
    bench.wait(lambda: running(bench, bench.client(), jobs))


def test_jobs_of_another_pool_are_not_listed(make: Make) -> None:
    bench = make()
    submit(bench, bench.client(), LONG)
    other = SlurmBatch(bench.place()._replace(pool="other", directory=bench.directory.with_name("other")))
    assert other.poll_many(bench.factory_id) == []


def test_requests_that_differ_get_scripts_of_their_own_and_long_lists_are_cut(make: Make) -> None:
    bench = make(partition="off", **{"max-array": 4})
    batch = bench.client()
    wanted = requests(bench, LONG, 6) + [request._replace(resources=Resources(2, 100, 100, 0))
                                         for request in requests(bench, LONG, 1)]
    jobs = submit_requests(batch, wanted)
    assert [len([one for one in jobs if one.batch_id.startswith(base)]) for base in
            dict.fromkeys(job.batch_id.split("_")[0] for job in jobs)] == [4, 2, 1]
    assert set(states(bench, bench.client())) == {job.tag.intent_id for job in jobs}


def test_a_controller_that_is_off_is_no_answer_and_its_return_is_noticed(make: Make) -> None:
    bench = make()
    batch = bench.client(timeout_s=3.0)
    jobs = submit(bench, batch, LONG)
    bench.wait(lambda: running(bench, batch, jobs))
    with bench.cluster.controller_off():
        start = time.monotonic()
        for call in (lambda: batch.poll_many(bench.factory_id), lambda: batch.cancel_many(jobs, force=True),
                     lambda: batch.submit_many(requests(bench, LONG))):
            with pytest.raises(BatchUnavailable):
                call()
        assert time.monotonic() - start < 3 * (3.0 + 1.0)
    bench.wait(lambda: running(bench, batch, jobs))
    assert len(states(bench, batch)) == 1


def test_a_missing_configuration_costs_one_deadline_per_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    monkeypatch.setenv("SLURM_CONF", "/no/such/slurm.conf")
    start = time.monotonic()
    with pytest.raises(BatchUnavailable):
        bench.client(FROZEN_TIMEOUT_S).poll_many(bench.factory_id)
    assert time.monotonic() - start < FROZEN_TIMEOUT_S + 3


def test_without_slurm_the_error_says_what_is_missing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(BatchRejected, match="cannot run 'squeue'"):
            bench.client().poll_many(bench.factory_id)


def test_outputs_of_good_jobs_go_and_those_of_bad_ones_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "KEPT_JOB_LOGS", 3)
    bench = make()
    batch = bench.client()
    bad = submit(bench, batch, FAILING, 6)
    good = submit(bench, batch, ("/bin/sh", "-c", "echo fine"), 2)
    bench.wait(lambda: ended(bench, batch, bad + good))
    left = {path.stem for path in (bench.directory / "jobs").iterdir()}
    assert len(left) == 3
    assert not left & {job.batch_id for job in good}


def test_a_job_that_ended_while_no_factory_was_there_is_told_with_its_status(make: Make) -> None:
    bench = make()
    first = bench.client()
    jobs = submit(bench, first, FAILING)
    bench.wait(lambda: ended(bench, first, jobs))
    status = states(bench, bench.client())[jobs[0].tag.intent_id]
    assert (status.state, status.exit_code, status.stderr_tail) == (BatchState.ENDED, 3, "bad news")


def test_where_there_are_accounts_a_job_that_left_the_listing_is_looked_up(slurm_accounting: Cluster,
                                                                           tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "jobs", slurm_accounting, clusters="testcl")
    try:
        batch = bench.client()
        jobs = submit(bench, batch, FAILING)
        (number,) = {job.batch_id for job in jobs}
        gone = ["squeue", "--noheader", "--states=all", "--format=%i", f"--user={os.geteuid()}"]
        bench.wait(lambda: number not in slurm_accounting.tool(*gone).split())
        bench.wait(lambda: jobs[0].tag.intent_id in states(bench, batch))
        status = states(bench, batch)[jobs[0].tag.intent_id]
        assert (status.state, status.exit_code, status.stderr_tail) == (BatchState.ENDED, 3, "bad news")
        assert status.said == "FAILED"
        assert status.ended_at >= status.started_at > 0
    finally:
        bench.end()


def test_an_account_that_does_not_exist_is_refused_and_one_that_does_is_taken(slurm_accounting: Cluster,
                                                                              tmp_path: Path) -> None:
    bad = SlurmBench(tmp_path / "bad", slurm_accounting, account="nobody")
    good = SlurmBench(tmp_path / "good", slurm_accounting, account="physics")
    try:
        results = bad.client().submit_many(requests(bad, LONG))
        assert isinstance(results[0].error, BatchRejected)
        assert "Invalid account" in results[0].error.said
        assert "the accounting knows" not in good.client().check(requests(good, LONG)[0])
        submit(good, good.clients[0], LONG)
    finally:
        bad.end()
        good.end()


def test_where_there_are_no_accounts_a_job_that_left_is_simply_not_listed(make: Make,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    batch = bench.client()
    batch._book.submitted(JobTag(bench.factory_id, "pool", "gone-1"), "999999")
    assert batch.poll_many(bench.factory_id) == []
    assert not batch._accounting

"""Slurm without Slurm: what scripts say, what is believed of jobs, when pyslurm is used."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import fake_pyslurm
import pytest

from taskvine_core.errors import BatchRejected, ConfigError
from taskvine_core.resources import Resources
from vine_factory import defaults, templating
from vine_factory.batch import slurm_pyslurm
from vine_factory.batch.base import BatchState, JobRequest, JobTag
from vine_factory.batch.parse.slurm import Listed, Past
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options
from vine_factory.batch.slurm_book import LOOKUPS, JobBook
from vine_factory.batch.slurm_calls import Queue, Tools, grouped, submit_environment
from vine_factory.batch.slurm_options import OPTIONS
from vine_factory.batch.slurm_script import TEMPLATE, clock, submissions

TAG = JobTag("fac", "pool", "i-1")
PAGE = Path(__file__).parents[2] / "docs" / "factory-slurm.md"
HOSTILE = ["a b", "it's", '"q"', "$(touch x)", "`touch x`", "${HOME}", "%j", "#", "\\", "a;b", "-n", "", "{{ 7*7 }}"]


def place(blocks: dict[str, str] | None = None, excluded: tuple[str, ...] = (), **options: object) -> Place:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    return Place("fac", "pool", Path("/dir"), check_options(given, OPTIONS, "test"), blocks or {}, excluded)


def request(number: int = 1, **changes: object) -> JobRequest:
    return JobRequest(TAG._replace(intent_id=f"i-{number}"), ("worker", "-t", "5"), {},
                      Resources(4, 2000, 3000, 1))._replace(**changes)


def text(where: Place, *wanted: JobRequest) -> str:
    (made,) = submissions(where, wanted or (request(),))
    return made.text


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def test_sizes_are_in_the_units_of_slurm() -> None:
    made = directives(text(place(tmp_disk=True), request(walltime_s=5400.0)))
    for wanted in ("--cpus-per-task=4", "--mem=2000M", "--gres=gpu:1", "--tmp=3000", "--nodes=1", "--ntasks=1",
                   "--time=0-01:30:00", "--signal=B:TERM@120", "--requeue", "--open-mode=append", "--export=ALL"):
        assert wanted in made
    assert "--mem-per-cpu=500M" in directives(text(place(mem_per_cpu=True)))
    assert not [one for one in directives(text(place(no_memory=True))) if one.startswith("--mem")]
    assert "--no-requeue" in directives(text(place(requeue=False)))


def test_a_job_of_unknown_size_takes_a_whole_node() -> None:
    made = directives(text(place(), request(resources=Resources(-1, -1, -1, -1))))
    assert {"--exclusive", "--mem=0"} <= set(made)
    assert "--exclusive" not in directives(text(place()))


def test_several_workers_in_a_job_are_a_step_that_gets_the_signal() -> None:
    made = text(place(nodes_per_job=2), request(copies=4))
    assert {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--mem=4000M", "--gres=gpu:2"} <= set(directives(made))
    assert "srun --export=ALL" in made
    assert 'scancel --signal=TERM "$SLURM_JOB_ID.0"' in made
    with pytest.raises(ConfigError, match="4 nodes for 2 workers"):
        text(place(nodes_per_job=4), request(copies=2))


def test_one_worker_is_what_the_script_becomes() -> None:
    assert text(place()).endswith('\nexec "$@"\n')


@pytest.mark.parametrize(("seconds", "limit"), [(1, "0-00:01:00"), (61, "0-00:02:00"), (86400, "1-00:00:00"),
                                                (90_061, "1-01:02:00")])
def test_time_limits_are_whole_minutes_and_never_shorter(seconds: float, limit: str) -> None:
    assert clock(seconds) == limit


def test_the_signal_never_comes_in_the_first_half() -> None:
    assert "--signal=B:TERM@300" in directives(text(place(drain_time="2h"), request(walltime_s=600.0)))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_each_element_of_an_array_finds_its_own_command(hostile: str, tmp_path: Path) -> None:
    wanted = [request(number, command=("printf", "%s|", "same", hostile, f"own {number}"),
                      environment={"HOSTILE": hostile}) for number in (1, 2, 5)]
    script = text(place(), *wanted)
    assert "--array=0-2" in directives(script)
    for element, number in enumerate((1, 2, 5)):
        told = script.replace('exec "$@"', 'echo "$VINE_FACTORY_TAG $HOSTILE"; exec "$@"')
        run = subprocess.run(["/bin/sh"], input=told,
                             env={"SLURM_ARRAY_TASK_ID": str(element), "PATH": "/usr/bin:/bin"}, cwd=tmp_path,
                             capture_output=True, text=True, check=True, timeout=20)
        assert run.stdout == f"fac/pool/i-{number} {hostile}\nsame|{hostile}|own {number}|"
    assert list(tmp_path.iterdir()) == []


def test_an_element_that_is_not_in_the_list_starts_nothing() -> None:
    script = text(place(), request(1, command=("echo", "a")), request(2, command=("echo", "b")))
    run = subprocess.run(["/bin/sh"], input=script, env={"SLURM_ARRAY_TASK_ID": "7"}, capture_output=True, text=True,
                         check=False, timeout=20)
    assert (run.returncode, run.stdout) == (1, "")
    assert "no worker has the number 7" in run.stderr


@pytest.mark.parametrize("key", ["constraint", "licenses", "job-name", "gres"])
@pytest.mark.parametrize("hostile", [one for one in HOSTILE if one])
def test_no_value_ends_its_line_or_its_word(key: str, hostile: str) -> None:
    plain = directives(text(place(**{key: "x"})))
    made = directives(text(place(**{key: hostile})))
    assert len(made) == len(plain)
    (line,) = set(made) - set(plain)
    name, _, value = line.partition("=")
    assert name.startswith("--")
    assert value == hostile or (value[0] == value[-1] == '"' and not re.search(r'(?<!\\)(\\\\)*"', value[1:-1]))


@pytest.mark.parametrize("key", ["partition", "account", "qos", "reservation", "clusters"])
@pytest.mark.parametrize("value", ["a b", "a\nb", "a;b", "$(x)", "a\"", "#"])
def test_names_with_strange_letters_are_refused_when_they_are_read(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        place(**{key: value})


@pytest.mark.parametrize("value", ["mail", "", "x\n--y", "not an option"])
def test_an_extra_directive_must_be_an_option(value: str) -> None:
    with pytest.raises(ConfigError, match="extra-directives"):
        place(extra_directives=[value])


def test_excluded_hosts_and_extra_directives_are_in_the_script() -> None:
    made = directives(text(place(excluded=("n2", "n1", "n2"), extra_directives=["--mail-type=FAIL"])))
    assert "--exclude=n1,n2" in made
    assert made[-1] == "--mail-type=FAIL"


def test_a_block_of_the_site_file_replaces_the_shipped_one() -> None:
    made = text(place(blocks={"setup": "module load python", "extra_directives": "#SBATCH --x\n{{ super() }}"}))
    assert "\nmodule load python\n" in made
    assert "--x" in directives(made)


@pytest.mark.parametrize("changes", [
    {"tag": TAG._replace(intent_id="a b")}, {"environment": {"A B": "x"}}, {"ship": (Path("/x"),)},
    {"command": ("a\0b",)}, {"environment": {"A": "\udc80"}}])
def test_what_no_script_can_say_is_an_error(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        text(place(), request(**changes))


def test_arrays_are_cut_before_their_list_is_too_long_for_a_comment() -> None:
    wanted = [request(tag=TAG._replace(intent_id=f"{number:x}-{'z' * 60}.x")) for number in range(100)]
    made = submissions(place(), wanted)
    assert [one for part in made for one in part.requests] == wanted
    for part in made:
        (comment,) = [line for line in directives(part.text) if line.startswith("--comment=")]
        assert len(comment) < 1024
        assert 1 < len(part.requests) < 20


def test_jobs_of_one_call_are_named_in_few_words() -> None:
    assert grouped(["7_0", "9", "7_1", "7_2", "8_5", "7_9"]) == ["9", "7_[0-2,9]", "8_5"]


def test_sbatch_gets_what_is_named_and_no_other_variable() -> None:
    ours = {"PATH": "/bin", "SECRET": "x", "SLURM_JOB_ID": "1", "SBATCH_ACCOUNT": "a", "SBATCH_QOS": "q",
            "SBATCH_TIMELIMIT": "1", "XRD_A": "1", "XRD_B": "2"}
    options = place(account="mine", export=["XRD_*"]).options
    assert submit_environment(options, ours) == {"PATH": "/bin", "SBATCH_QOS": "q", "XRD_A": "1", "XRD_B": "2"}


def test_every_option_and_block_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([a-z]+) \|", page, re.MULTILINE))
    assert rows == {option.key: option.kind for option in OPTIONS}
    for option in OPTIONS:
        assert option.help in page, option.key
    for name in templating.block_names(TEMPLATE):
        assert f"`{name}`" in page


# ------------------------------------------------------------------------------------------ what is believed

def seen(state: str, reason: str = "None", number: str = "7", start: float = 0.0, end: float = 0.0,
         tag: JobTag = TAG) -> tuple[JobTag, Listed]:
    return tag, Listed(number, None, state, reason, "n1", start, end, "name", "")


def test_a_requeued_job_is_queued_again_and_says_so() -> None:
    book = JobBook()
    book.listing([seen("RUNNING", start=100.0)], 110.0)
    assert book.listing([seen("COMPLETING", start=100.0)], 120.0) == []
    assert book.listing([seen("PENDING", "BeginTime", start=250.0)], 130.0) == []
    (status,) = book.statuses(130.0)
    assert (status.state, status.started_at, status.host) == (BatchState.QUEUED, 0.0, "")
    assert status.said == "back in the queue: BeginTime"


def test_an_unknown_state_keeps_the_last_one_and_is_told_once() -> None:
    book = JobBook()
    book.listing([seen("RUNNING", start=100.0)], 110.0)
    told = []
    for now in (120.0, 130.0):
        book.listing([seen("QUANTUM")], now)
        (status,) = book.statuses(now)
        assert (status.state, status.started_at) == (BatchState.RUNNING, 100.0)
        told.append(status.said)
    assert told == ["Slurm says QUANTUM, which is not known here", ""]


def test_an_ended_job_is_kept_and_forgotten_in_time() -> None:
    book = JobBook()
    book.listing([seen("RUNNING", start=100.0)], 110.0)
    ended = book.listing([seen("FAILED", "NonZeroExitCode", start=100.0, end=115.0)], 120.0)
    book.exits(ended, {"7": 3})
    book.listing([], 130.0)
    (status,) = book.statuses(130.0)
    assert (status.state, status.exit_code, status.said) == (BatchState.ENDED, 3, "FAILED: NonZeroExitCode")
    book.forget(121.0 + defaults.ENDED_KEPT_S)
    assert book.statuses(121.0 + defaults.ENDED_KEPT_S) == []
    assert book.find("i-1") is None


def test_a_job_that_ended_long_ago_is_not_taken_up_by_a_new_process() -> None:
    book = JobBook()
    assert book.listing([seen("FAILED", start=1.0, end=2.0)], 1000.0) == []
    assert book.statuses(1000.0) == []


def test_of_two_jobs_with_one_tag_the_living_one_counts() -> None:
    for order in ([0, 1], [1, 0]):
        both = [seen("FAILED", number="7", end=100.0), seen("RUNNING", number="8", start=105.0)]
        book = JobBook()
        book.listing([both[index] for index in order], 110.0)
        (status,) = book.statuses(110.0)
        assert (status.batch_id, status.state) == ("8", BatchState.RUNNING)


@pytest.mark.parametrize(("state", "started", "code", "told"), [
    ("COMPLETED", 100.0, None, 0), ("FAILED", 100.0, 3, 3), ("FAILED", 100.0, -9, -9), ("CANCELLED", 100.0, 0, 0),
    ("CANCELLED", 0.0, 0, None), ("NODE_FAIL", 100.0, 0, None), ("PREEMPTED", 100.0, 0, None),
    ("TIMEOUT", 100.0, 0, None), ("FAILED", 100.0, None, None)])
def test_only_a_job_that_ran_to_its_end_ended_with_0(state: str, started: float, code: int | None,
                                                     told: int | None) -> None:
    book = JobBook()
    ended = book.listing([seen(state, start=started, end=120.0)], 120.0)
    book.exits(ended, {} if code is None else {"7": code})
    assert book.statuses(120.0)[0].exit_code == told


def test_the_accounting_is_asked_some_times_for_a_job_that_left() -> None:
    book = JobBook()
    book.submitted(TAG, "7")
    book.listing([], 100.0)
    assert book.statuses(100.0) == [], "nothing is made up"
    for _ in range(LOOKUPS - 1):
        wanted = book.unexplained()
        assert [entry.batch_id for entry in wanted] == ["7"]
        assert book.past([], wanted, 100.0) == []
    book.past([Past("7", "CANCELLED by 0", -15, "n1", 50.0, 60.0)], book.unexplained(), 110.0)
    (status,) = book.statuses(110.0)
    assert (status.state, status.exit_code, status.ended_at) == (BatchState.ENDED, -15, 60.0)
    assert book.unexplained() == []


def test_a_waiting_job_that_we_cancelled_has_ended_when_it_is_gone() -> None:
    book = JobBook()
    book.listing([seen("PENDING")], 100.0)
    book.cancelled([TAG, TAG._replace(intent_id="unknown")])
    book.listing([seen("PENDING")], 105.0)
    assert book.statuses(105.0)[0].state is BatchState.QUEUED
    assert len(book.listing([], 110.0)) == 1
    (status,) = book.statuses(110.0)
    assert (status.state, status.exit_code, status.said) == (BatchState.ENDED, None, "CANCELLED")


# --------------------------------------------------------------------------------------------------- pyslurm

Choose = Callable[..., Queue]


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Choose:
    """Chooses a way to list jobs, on a machine with tools of Slurm 22.05 and some pyslurm."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "squeue").write_text("#!/bin/sh\necho slurm-wlm 22.05.8\n")
    (tools / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")

    def make(version: str = "", client: str = "auto", *, other: bool = False, **shape: object) -> Queue:
        if version:
            made = fake_pyslurm.write(tmp_path / "site", version, **{"new": True, "old": True, **shape})  # type: ignore[arg-type]
            monkeypatch.setenv("PYTHONPATH", str(made), prepend=":")
        queue = slurm_pyslurm.choose(client, Tools("", 20.0), 20.0, other)
        request.addfinalizer(queue.close)
        return queue

    return make


@pytest.mark.parametrize(("shape", "words"), [
    ({"new": True, "old": False}, "Jobs"), ({"new": True, "old": True}, "Jobs"),
    ({"new": False, "old": True}, "job()")])
def test_both_interfaces_of_pyslurm_give_what_squeue_gives(choose: Choose, shape: dict[str, bool], words: str) -> None:
    queue = choose("22.5.1", **shape)
    assert queue.words == f"pyslurm 22.5.1 ({words})"
    assert queue.listing() == [
        Listed("7_0", 0, "RUNNING", "None", "n1", 1000.0, 4600.0, "w", "f/p/r-[1-4]"),
        *(Listed(f"7_{n}", n, "PENDING", "PartitionDown", "", 0.0, 0.0, "w", "f/p/r-[1-4]") for n in (1, 2, 3)),
        Listed("9", None, "FAILED", "NonZeroExitCode", "n2", 1000.0, 1001.0, "x", "")]


@pytest.mark.parametrize(("version", "head", "words"), [
    ("", "", "pyslurm is not installed"), ("25.11.2", "", "pyslurm 25.11.2 is not made for slurm-wlm 22.05.8"),
    ("22.5.3", "raise ImportError('no libslurm')", "no libslurm"),
    ("22.5.3", "import os; os._exit(1)", "ended with status 1")])
def test_where_pyslurm_does_not_fit_the_tools_are_used_and_the_reason_is_told(choose: Choose, version: str, head: str,
                                                                             words: str) -> None:
    queue = choose(version, head=head)
    assert queue.words.startswith("its command-line tools (")
    assert words in queue.words


def test_pyslurm_that_is_wanted_and_does_not_fit_is_an_error_with_what_to_install(choose: Choose) -> None:
    with pytest.raises(BatchRejected) as problem:
        choose("25.11.2", "pyslurm")
    assert 'pip install "pyslurm==22.5.*"' in problem.value.hint


def test_another_cluster_is_listed_by_the_tools(choose: Choose) -> None:
    assert "other clusters" in choose("22.5.1", other=True).words
    with pytest.raises(BatchRejected, match="other clusters"):
        choose("", "pyslurm", other=True)

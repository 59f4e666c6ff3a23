"""Shipped definitions of batch systems against recorded answers, by commands on PATH that write down what they get."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskvine_core.errors import BatchRejected, BatchUnavailable, ConfigError
from taskvine_core.resources import Resources
from vine_factory.batch import array_tags, command_calls, registry
from vine_factory.batch.base import BatchState, JobHandle, JobRequest, JobStatus, JobTag
from vine_factory.batch.command import CommandBatch
from vine_factory.batch.command_definition import JOB_VALUES, Definition, definition, expanded, shipped
from vine_factory.batch.command_options import DEFINITION, OPTIONS
from vine_factory.batch.command_text import Submission, digest, owner_of, seen, values_of
from vine_factory.batch.job_numbers import JobNumbers
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "recorded"
SYSTEMS = ("pbs", "torque", "lsf", "flux")
TOOLS = ("qsub", "qstat", "qselect", "qdel", "qsig", "bsub", "bjobs", "bkill", "flux")
FAKE = """#!{python}
import json, os, re, sys, time
home = os.environ["FAKE_HOME"]
name = os.path.basename(sys.argv[0])
names = [name + "-" + sys.argv[1] if len(sys.argv) > 1 else name, name]
if any(re.search(r"(^|=|\\[)1-[0-9]+]?$", word) for word in sys.argv[1:]):
    names.insert(0, name + "-array")
with open(home + "/calls", "a") as calls:
    calls.write(json.dumps([[name, *sys.argv[1:]], sys.stdin.read()]) + "\\n")
for one in names:
    if os.path.exists(home + "/" + one + ".hang"):
        time.sleep(60)
for kind, stream in ((".out", sys.stdout), (".err", sys.stderr)):
    for one in names:
        if os.path.exists(home + "/" + one + kind):
            stream.write(open(home + "/" + one + kind).read())
            break
for one in names:
    if os.path.exists(home + "/" + one + ".rc"):
        sys.exit(int(open(home + "/" + one + ".rc").read()))
"""
POOL = Place("rec", "pool", Path("/nowhere"), {})
OPTIONS_OF_A_SITE = {"queue": "long", "account": "acct", "project": "proj", "resources": {"scratch": "10gb"},
                     "extra-directives": ["-x one two"]}


class Site:
    """A batch system made of recordings."""

    def __init__(self, path: Path, system: str) -> None:
        self.path, self.system = path, system
        self.clients: list[CommandBatch] = []
        for file in (RECORDED / system).iterdir():
            (path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")

    def client(self, excluded: tuple[str, ...] = (), timeout_s: float = 20.0, **options: object) -> CommandBatch:
        checked = check_options({"system": self.system, **options}, OPTIONS, "site")
        place = Place("rec", "pool", self.path / "place", checked, excluded_hosts=excluded)
        self.clients.append(CommandBatch(place, timeout_s=timeout_s))
        return self.clients[-1]

    def answer(self, tool: str, *, err: str = "", out: str = "", rc: int = 0) -> None:
        for kind, text in (("err", err), ("out", out), ("rc", str(rc))):
            (self.path / f"{tool}.{kind}").write_text(text)

    def calls(self, *start: str) -> list[tuple[list[str], str]]:
        lines = (self.path / "calls").read_text().splitlines()
        return [(argv, stdin) for argv, stdin in map(json.loads, lines) if tuple(argv[:len(start)]) == start]

    def jobs(self) -> dict[str, JobStatus]:
        return {status.tag.intent_id: status for status in self.client().poll_many("rec")}


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).write_text(FAKE.format(python=sys.executable))
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "factory")]))
    made = Site(tmp_path, request.param)
    yield made
    for client in made.clients:
        client.close()


every_system = pytest.mark.parametrize("site", SYSTEMS, indirect=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


def request_of(intent: str = "i-1", **changes: object) -> JobRequest:
    request = JobRequest(JobTag("rec", "pool", intent), ("/bin/worker", "a b"), {"COLOUR": "it's"},
                         Resources(4, 1000, 2000, 1), 5400.0)
    return request._replace(**changes)  # type: ignore[arg-type]


@every_system
def test_a_new_process_finds_its_jobs_in_the_listing_and_no_others(site: Site) -> None:
    found = site.jobs()
    assert {name: job.state.value for name, job in found.items()} == {
        "i-1": "running", "i-2": "queued", "a-1": "running", "a-2": "queued", "a-3": "ended",
        **({} if site.system == "flux" else {"i-4": "held"}),
        **({} if site.system == "pbs" else {"i-3": "ended", "i-5": "ended"})}
    assert (found["i-1"].host, found["a-1"].host) == ("node7", "node9")
    assert (found["i-1"].exit_code, found["a-3"].exit_code) == (None, 0)
    if site.system != "pbs":
        assert (found["i-3"].exit_code, found["i-5"].exit_code, found["i-3"].host) == (-15, 0, "node8")


@pytest.mark.parametrize("site", ["pbs"], indirect=True)
def test_of_jobs_that_left_the_listing_all_are_asked_for_at_once_and_no_history_is_read(site: Site) -> None:
    """A PBS server may keep the jobs of two weeks: those are not listed in every pass (qselect without -x)."""
    (site.path / "place").mkdir()
    JobNumbers(site.path / "place").add([(JobTag("rec", "pool", f"i-{n}"), f"204{n}.pbs01", f"i-{n}") for n in (3, 5)])
    found = site.jobs()
    assert [argv for argv, _ in site.calls("qstat", "-x")] == [["qstat", "-x", "-f", "2043.pbs01", "2045.pbs01"]]
    assert all("-x" not in argv for argv, _ in site.calls("qselect"))
    assert (found["i-3"].exit_code, found["i-5"].exit_code, found["i-3"].host) == (-15, 0, "node8")


@every_system
def test_jobs_that_are_submitted_together_are_one_array_whose_elements_are_known_to_everybody(site: Site) -> None:
    """Formats: OpenPBS qsub(1B) and qselect(1B) ("2050[].server", "2050[1].server"); Torque, "Multiple job submission"
    of Adaptive Computing; LSF, "Job arrays" of IBM (bsub -J "name[1-3]"); flux-submit(1), --cc."""
    results = site.client().submit_many([request_of(f"a-{n}") for n in (1, 2, 3)])
    (argv, stdin), = site.calls("flux", "submit") if site.system == "flux" else \
        site.calls({"lsf": "bsub"}.get(site.system, "qsub"))
    text = stdin or Path(argv[-1]).read_text()
    name = f"vine.{digest(POOL)}._a-1__3"
    assert {"pbs": ["-J", "1-3"], "torque": ["-t", "1-3"], "lsf": ["-J", f"{name}[1-3]"],
            "flux": ["--cc=1-3", f"--job-name={name}:{{cc}}"]}[site.system] == \
        [word for word in argv[1:] if "1-3" in word or word in ("-J", "-t") or "{cc}" in word]
    assert ("#PBS -r n" in text) is (site.system == "torque"), "PBS: cannot submit non-rerunable Array Job"
    found = site.jobs()
    assert [(result.intent_id, result.batch_id) for result in results] == \
        [(f"a-{n}", found[f"a-{n}"].batch_id) for n in (1, 2, 3)]
    assert found["a-2"].batch_id == {"pbs": "2050[2].pbs01", "torque": "2050[2].torque.example.org", "lsf": "2050[2]",
                                     "flux": "f2Hg3kR1b"}[site.system]


@every_system
def test_each_element_runs_its_own_command_and_has_its_own_outputs(site: Site) -> None:
    variable = {"pbs": "PBS_ARRAY_INDEX", "torque": "PBS_ARRAYID", "lsf": "LSB_JOBINDEX", "flux": "FLUX_JOB_CC"}
    client = site.client()
    requests = [request_of(f"a-{n}", command=("/bin/sh", "-c", 'echo "$@" "$VINE_FACTORY_TAG"; exit 4', "x", "same",
                                              f"it's {n}")) for n in (1, 2, 3)]
    client.submit_many(requests)
    for number, status in ((2, 4), (4, 1)):
        done = subprocess.run(["/bin/sh", "-u", str(site.path / "place" / "scripts" / "a-1.sh")], timeout=20,
                              env={**os.environ, variable[site.system]: str(number)}, capture_output=True, check=False)
        assert done.returncode == status
    assert {path.name: path.read_text() for path in (site.path / "place" / "jobs").iterdir()} == {
        "a-2.out": "same it's 2 rec/pool/a-2\n", "a-2.err": ""}
    assert b"no worker has the number 4" in done.stderr


@every_system
def test_a_single_element_is_cancelled_by_its_own_number(site: Site) -> None:
    client = site.client()
    client.cancel_many([JobHandle(JobTag("rec", "pool", f"a-{n}"), "") for n in (1, 2, 3)], force=False)
    cancel = {"pbs": ("qdel",), "torque": ("qdel",), "lsf": ("bkill", "-s", "KILL"),
              "flux": ("flux", "cancel")}[site.system]
    assert [call[0][len(cancel):] for call in site.calls(*cancel)] == [[site.jobs()["a-2"].batch_id]]


@every_system
def test_an_array_whose_answer_was_lost_is_found_by_the_next_process(site: Site) -> None:
    client = site.client(timeout_s=0.5)
    (site.path / {"lsf": "bsub-array", "flux": "flux-array"}.get(site.system, "qsub-array")).with_suffix(
        ".hang").touch()
    requests = [request_of(f"a-{n}") for n in (1, 2, 3)]
    with pytest.raises(BatchUnavailable, match="did not end"):
        client.submit_many(requests)
    assert JobNumbers(site.path / "place").read() == []
    assert {"a-1", "a-2", "a-3"} <= site.jobs().keys()
    assert {"a-1", "a-2", "a-3"} <= {line[0].intent_id for line in JobNumbers(site.path / "place").read()}


@pytest.mark.parametrize("site", ["flux", "lsf"], indirect=True)
@pytest.mark.parametrize("rc", [0, 1])
def test_an_answer_with_too_few_numbers_is_no_answer(site: Site, rc: int) -> None:
    site.answer({"lsf": "bsub-array", "flux": "flux-array"}[site.system], rc=rc, err="quota",
                out={"lsf": "Job <1> is submitted\nJob <2> is submitted\n", "flux": "f2\nf3\n"}[site.system])
    with pytest.raises(BatchUnavailable, match="2 numbers for 3 jobs"):
        site.client().submit_many([request_of(f"a-{n}") for n in (1, 2, 3)])


@pytest.mark.parametrize("site", ["pbs"], indirect=True)
@pytest.mark.parametrize(("options", "commands"), [({"array-size": 1}, 4), ({"array-size": 3}, 2), ({"array": []}, 4),
                                                   ({}, 2)])
def test_arrays_are_as_large_as_the_site_allows_and_only_of_jobs_that_are_alike(
        site: Site, options: dict[str, object], commands: int) -> None:
    requests = [request_of(f"a-{n}") for n in (1, 2, 3)] + [request_of("b-1", walltime_s=60.0)]
    results = site.client(**options).submit_many(requests)
    assert [result.intent_id for result in results] == ["a-1", "a-2", "a-3", "b-1"]
    assert len(site.calls("qsub")) == commands


@pytest.mark.parametrize("intents", [
    ["x-1"], ["x-1", "x-2", "x-3"], ["x-9", "x-10", "x-12", "y-1", "y-2"], ["7f-007", "7f-008"], ["a", "b.c-d", "12"],
    [f"{n}-{n}" for n in range(3)], [f"deadbeef-{n}" for n in range(1, 501)], ["x-2", "x-1"]])
def test_intents_of_an_array_come_back_from_a_word_that_every_system_takes_as_a_name(intents: list[str]) -> None:
    word = array_tags.encode(intents)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,200}", word)
    assert array_tags.decode(word) == tuple(intents)


def test_what_one_word_cannot_name_is_not_one_array(tmp_path: Path) -> None:
    assert array_tags.encode(["a..b"]) == array_tags.encode(["a__1"]) == array_tags.encode(["_a"]) == ""
    assert array_tags.encode([f"{n}x-{n}" for n in range(100)]) == ""
    for text in ("x-1", "_", "_x-3__1", "_x-1__999999999", "_a..", "_a b"):
        assert array_tags.decode(text) is None
    client = CommandBatch(Place("rec", "pool", tmp_path, check_options({"system": "pbs"}, OPTIONS, "site")))
    texts = client.render([request_of(f"{n}x-{n}") for n in range(100)])
    assert 2 < len(texts) < 20


@every_system
def test_several_workers_ask_for_several_times_as_much(site: Site) -> None:
    client = site.client()
    script = client.render([request_of(copies=3)])["job.sh"]
    client.submit_many([request_of(copies=3)])
    for words in {"pbs": ("-l select=1:ncpus=12:mem=3000mb:ngpus=3",),
                  "torque": ("-l nodes=1:ppn=12:gpus=3", "-l mem=3000mb"),
                  "lsf": ("-n 12", '-R "rusage[mem=3000]"', "-gpu num=3"), "flux": ()}[site.system]:
        assert re.search(rf"^#(PBS|BSUB) {re.escape(words)}$", script, re.MULTILINE), words
    if site.system == "flux":
        assert {"--cores-per-task=12", "--gpus-per-task=3"} <= set(site.calls("flux", "submit")[0][0])


@pytest.mark.parametrize("site", ["pbs"], indirect=True)
def test_several_workers_of_a_job_all_get_the_signal_that_comes_to_its_shell_alone(site: Site) -> None:
    marks = site.path / "marks"
    worker = f"trap 'echo out >> {marks}; exit 0' TERM; echo in >> {marks}; while :; do sleep 0.05; done"
    script = site.client().render([request_of(copies=3, command=("/bin/sh", "-c", worker))])["job.sh"]
    job = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)
    try:
        wait_for(lambda: marks.exists() and marks.read_text().count("in") == 3)
        job.terminate()
        assert job.wait(20) == 0
        assert marks.read_text().count("out") == 3
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


@every_system
def test_hosts_are_avoided_by_the_system_or_the_job_leaves_at_once_and_says_why(site: Site) -> None:
    client = site.client(("node7", "node8.site", os.uname().nodename.partition(".")[0] + ".somewhere"))
    text = client.render([request_of(command=("/bin/true",))])
    told = {"lsf": """select[hname!='node8.site']""", "flux": "--requires=-host:node7,node8.site,"}.get(site.system)
    assert (told or "to be avoided") in "".join(text.values())
    done = subprocess.run(["/bin/sh", "-c", text["job.sh"]], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, "is to be avoided" in done.stderr) == ((0, False) if told else (1, True))
    elsewhere = site.client(("node7",)).render([request_of(command=("/bin/true",))])["job.sh"]
    assert subprocess.run(["/bin/sh", "-c", elsewhere], timeout=20, check=False).returncode == 0


@every_system
def test_what_is_submitted_has_the_options_of_the_site(site: Site) -> None:
    client = site.client(**OPTIONS_OF_A_SITE)
    request = request_of(resources=Resources(4, 1000, 2000, 1))
    (result,) = client.submit_many([request])
    assert result.error is None
    texts = client.render([request])
    (argv, stdin), = site.calls("flux", "submit") if site.system == "flux" else \
        site.calls({"lsf": "bsub"}.get(site.system, "qsub"))
    script = texts["job.sh"]
    assert "set -- /bin/worker 'a b'" in script
    assert "VINE_FACTORY_TAG=rec/pool/i-1; export" in script
    assert (stdin == script) is (site.system == "lsf")
    for words in {"pbs": ("-l select=1:ncpus=4:mem=1000mb:ngpus=1:scratch=10gb", "-l walltime=01:30:00", "-q long",
                          "-A acct", "-P proj", "-x one two"),
                  "torque": ("-l nodes=1:ppn=4:gpus=1", "-l mem=1000mb", "-l scratch=10gb", "-l walltime=01:30:00",
                             "-q long", "-A acct"),
                  "lsf": ("-n 4", '-R "span[hosts=1]"', "-W 90", "-gpu num=1", "-q long", "-G acct", "-P proj",
                          '-R "rusage[scratch=10gb]"'), "flux": ()}[site.system]:
        assert re.search(rf"^#(PBS|BSUB) {re.escape(words)}$", script, re.MULTILINE), words
    if site.system == "flux":
        assert {"--cores-per-task=4", "--queue=long", "--bank=acct", "--gpus-per-task=1",
                "--time-limit=5400s"} <= set(argv)


@every_system
def test_the_number_is_known_to_the_next_process_even_when_the_listing_says_nothing_of_it(site: Site) -> None:
    (result,) = site.client().submit_many([request_of("fresh")])
    assert [line[:2] for line in JobNumbers(site.path / "place").read()] == [
        (JobTag("rec", "pool", "fresh"), result.batch_id)]
    assert site.jobs()["fresh"].batch_id == result.batch_id


@every_system
def test_a_running_job_is_asked_and_a_waiting_one_is_removed(site: Site) -> None:
    client = site.client()
    found = {status.tag.intent_id: status for status in client.poll_many("rec")}
    handles = [JobHandle(JobTag("rec", "pool", name), "") for name in ("i-1", "i-2", "i-3")]
    client.cancel_many(handles, force=False)
    polite = {"pbs": ("qsig", "-s", "SIGTERM"), "torque": ("qsig", "-s", "SIGTERM"), "lsf": ("bkill", "-s", "TERM"),
              "flux": ("flux", "job", "kill", "--signal=SIGTERM")}[site.system]
    cancel = {"pbs": ("qdel",), "torque": ("qdel",), "lsf": ("bkill", "-s", "KILL"),
              "flux": ("flux", "cancel")}[site.system]
    assert [call[0][len(polite):] for call in site.calls(*polite)] == [[found["i-1"].batch_id]]
    assert [call[0][len(cancel):] for call in site.calls(*cancel)] == [[found["i-2"].batch_id]]
    client.cancel_many(handles, force=True)
    assert site.calls(*cancel)[-1][0][len(cancel):] == [found["i-1"].batch_id, found["i-2"].batch_id]


@every_system
def test_a_refusal_has_the_systems_words_and_an_unreachable_system_is_no_refusal(site: Site) -> None:
    tool = {"lsf": "bsub", "flux": "flux-submit"}.get(site.system, "qsub")
    site.answer(tool, err="no such queue: long", rc=1)
    (result,) = site.client().submit_many([request_of()])
    assert isinstance(result.error, BatchRejected)
    assert result.error.said == "no such queue: long"
    words = {"lsf": "LSF is down. Please wait ...", "flux": "flux-submit: ERROR: Unable to connect to Flux"}.get(
        site.system, "qsub: cannot connect to server pbs01 (errno=111)")
    site.answer(tool, err=words, rc=1)
    with pytest.raises(BatchUnavailable, match=re.escape(words)):
        site.client().submit_many([request_of()])


@every_system
def test_a_failed_listing_is_an_error_and_an_empty_one_is_none(site: Site) -> None:
    tool = {"lsf": "bjobs", "flux": "flux-jobs"}.get(site.system, "qselect")
    site.answer(tool, err="something broke", rc=1)
    with pytest.raises(BatchUnavailable, match="something broke"):
        site.jobs()
    site.answer(tool, err="No job found" if site.system == "lsf" else "", rc=255 if site.system == "lsf" else 0)
    assert site.jobs() == {}


@every_system
def test_an_unknown_state_keeps_the_last_known_one_and_is_told(site: Site) -> None:
    client = site.client()
    client.poll_many("rec")
    file = site.path / {"lsf": "bjobs.out", "flux": "flux-jobs.out"}.get(site.system, "qstat--t.out")
    text = file.read_text()
    for old, new in (("job_state = R", "job_state = Z"), ("|RUN|", "|NEW|"), ("|R|", "|NEW|")):
        text = text.replace(old, new)
    file.write_text(text)
    found = {status.tag.intent_id: status for status in client.poll_many("rec")}
    assert found["i-1"].state is BatchState.RUNNING
    assert "unknown state" in found["i-1"].said


@pytest.mark.parametrize("site", ["lsf"], indirect=True)
def test_a_pattern_that_never_ends_is_no_answer_and_does_not_stop_the_factory(site: Site,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_calls, "MATCHING_S", 1.0)
    (site.path / "bjobs.out").write_text(("a" * 40 + "!\n") * 5000)
    began = time.monotonic()
    with pytest.raises(BatchUnavailable, match="could not be matched"):
        site.client(**{"poll-record": r"^(?P<id>(a+)+)$", "poll-fields": {"x": "(?P<state>R)(?P<index>)"}}
                    ).poll_many("rec")
    assert time.monotonic() - began < 5


@every_system
@pytest.mark.parametrize("trouble", ["garbage", "exit 1", "hang", "half a pattern"])
def test_a_listing_that_cannot_be_read_is_one_error_and_no_empty_listing(site: Site, trouble: str) -> None:
    client = site.client()
    before = client.poll_many("rec")
    client.close()
    tool = {"lsf": "bjobs", "flux": "flux-jobs"}.get(site.system, "qstat--t")
    options: dict[str, object] = {}
    if trouble == "garbage":
        site.answer(tool, out="<html>\nThe licence server has moved.\n</html>\n")
    elif trouble == "exit 1":
        site.answer(tool, out=(site.path / f"{tool}.out").read_text(), rc=1)
    elif trouble == "hang":
        (site.path / f"{tool}.hang").touch()
    else:
        options = {"poll-record": r"(?P<id>\d\d\d\d)", "poll-fields": {"state": r"job[ -]sate = (?P<state>\w)",
                                                                       "index": "(?P<index>x)"}}
    client, began = site.client(timeout_s=1.0, **options), time.monotonic()
    with pytest.raises(BatchUnavailable) as problem:
        client.poll_many("rec")
    words = {"garbage": "licence server", "exit 1": tool.partition("-")[0], "hang": "did not end within 1 s",
             "half a pattern": "has a state"}[trouble]
    assert words in str(problem.value)
    assert time.monotonic() - began < 10
    for file in site.path.glob(f"{tool}.*"):
        file.unlink()
    (site.path / f"{tool}.out").write_text((RECORDED / site.system / f"{tool}.out").read_text())
    assert [status.state for status in site.client().poll_many("rec")] == [status.state for status in before]


@pytest.mark.parametrize("site", ["lsf"], indirect=True)
def test_five_thousand_jobs_and_garbage_between_them_are_read(site: Site) -> None:
    lines = (site.path / "bjobs.out").read_text()
    name = re.search(r"vine\.\w+\.", lines)
    assert name
    rows = "".join(f"{number}|0|RUN|-|node{number}|{name[0]}x-{number}|-\n\x00\x07{'|' * 50}\n"
                   for number in range(5000))
    (site.path / "bjobs.out").write_text(rows)
    assert len(site.jobs()) == 5000


def test_every_shipped_definition_can_be_used() -> None:
    assert shipped() == ["flux", "lsf", "pbs", "sge", "torque"]
    for system in shipped():
        assert isinstance(definition(check_options({"system": system}, OPTIONS, "site")), Definition)


@pytest.mark.parametrize(("changes", "words"), [
    ({"system": ""}, "submit is missing"), ({"system": "pbsx"}, "did you mean 'pbs'"),
    ({"poll-record": "(?P<id>["}, "no regular expression"), ({"submit-id": r"\d+"}, "no group 'id'"),
    ({"states": {"R": "runs"}}, "did you mean 'running'"), ({"definition": "/no/such.toml"}, "cannot read"),
    ({"poll-fields": {"state": r"job_state = (\w)"}}, "no pattern has a group 'state'"),
    ({"poll-record": r"^Job Id: +(\S+)"}, "no pattern has a group 'id'"),
    ({"poll-fields": {"state": r"(?P<stat>\w)"}}, "did you mean 'state'"),
    ({"poll-record": r"^Job Id: +(?P<id>\S+)"}, "no pattern has a group 'index'"),
    ({"poll-fields": {"state": r"(?P<state>\w"}}, "poll-fields.state"), ({"unavailable": "*"}, "unavailable = '*'"),
    ({"list-id": r"^\d+"}, "no group 'id'"), ({"cancel": ["qdel"]}, "cancel has no word $ids"),
    ({"cancel": ["qdel", "-W $ids"]}, "stand alone"), ({"poll": ["qstat", "$usr"]}, "the word '$usr'"),
    ({"submit": ["qsub"]}, "submit has no word $script"), ({"array-index": ""}, "array-index is missing"),
    ({"option-words": {"que": "-q $queue"}}, "did you mean 'queue'"),
    ({"submit": ["qsub", "$script"]}, "submit has no word $array"), ({"ended": ["qstat", "-x"]}, "names no job"),
    ({"option-words": {"queue": "-q $qeue"}}, "option-words.queue: the word"),
])
def test_a_definition_that_cannot_be_used_is_refused_with_the_place(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as problem:
        definition(check_options({"system": "pbs", **changes}, OPTIONS, "site"))
    assert words in str(problem.value)
    if "system" not in changes and "definition" not in changes:
        assert "the options of the pool" in str(problem.value), "where it stands"


def test_a_definition_may_be_a_file_and_the_pools_options_go_before_it(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('submit = ["put", "$script"]\npoll = ["ls"]\npoll-record = "(?P<id>.)(?P<state>.)"\n'
                    'cancel = ["rm", "$ids"]\n'
                    'states = {x = "running"}\n')
    made = definition(check_options({"definition": str(file), "poll": ["other"]}, OPTIONS, "site"))
    assert made.words("submit") == ("put", "$script")
    assert made.words("poll") == ("other",)


def test_a_pool_may_add_a_single_state_or_field_to_those_of_the_definition() -> None:
    made = definition(check_options({"system": "pbs", "states": {"Y": "held"}, "poll-fields": {
        "host": "on (?P<host>x)"}}, OPTIONS, "site"))
    assert (made.table("states")["Y"], made.table("states")["R"]) == ("held", "running")
    assert (made.table("poll-fields")["host"], "tag" in made.table("poll-fields")) == ("on (?P<host>x)", True)


def test_words_are_filled_in_one_by_one_and_never_split() -> None:
    values = {"ids": ["1", "2 3"], "name": "a b; rm -rf $HOME"}
    assert expanded(["x", "$ids", "--n=$name", "$$5"], values, "here") == [
        "x", "1", "2 3", "--n=a b; rm -rf $HOME", "$5"]
    with pytest.raises(ConfigError, match="here: the word"):
        expanded(["$nmae"], values, "here")


@pytest.mark.parametrize(("record", "intent"), [
    ({"tag": "rec/pool/i-1"}, "i-1"), ({"tag": "rec/other/i-1"}, None), ({"tag": "other/pool/i-1"}, None),
    ({"name": f"vine.{digest(POOL)}.i-1"}, "i-1"), ({"name": f"vine.{digest(POOL._replace(pool='q'))}.i-1"}, None),
    ({"tag": "rec/pool/_a-1__3", "index": "3"}, "a-3"), ({"tag": "rec/pool/_a-1__3", "index": "4"}, None),
    ({"tag": "rec/pool/_a-1__3", "index": "0"}, None), ({"tag": "rec/pool/_a-1__3"}, None), ({}, None)])
def test_jobs_of_other_pools_and_factories_are_not_ours(record: dict[str, str], intent: str | None) -> None:
    owner = owner_of(POOL, record)
    assert (owner and owner.tag) == (JobTag("rec", "pool", intent) if intent else None)


def test_exit_statuses_above_the_base_are_signals_and_unknown_is_not_zero() -> None:
    made = definition(check_options({"system": "pbs"}, OPTIONS, "site"))
    codes = [seen(made, {"id": "1", "state": "F", **record}).exit_code
             for record in ({"exit": "265"}, {"exit": "7"}, {"exit": "-3"}, {}, {"exit": "9" * 50})]
    assert codes == [-9, 7, -3, None, None]


def test_a_value_that_cannot_be_a_word_of_a_directive_is_refused(tmp_path: Path) -> None:
    for system in ("sge", "pbs", "torque", "lsf"):
        place = Place("rec", "pool", tmp_path, check_options({"system": system}, OPTIONS, "site"))
        for key in ("queue", "account", "project"):
            for hostile in ("a b", "a\n#PBS -q b", "a'b", 'a"b', "a`b", "a\\b", "\0"):
                client = CommandBatch(place._replace(options={**place.options, key: hostile}))
                with pytest.raises(ConfigError):
                    client.render([request_of(resources=Resources(1, 1, 1, 0))])


def test_keys_of_a_definition_are_options_of_the_pool_too() -> None:
    assert {option.key for option in DEFINITION} < {option.key for option in OPTIONS}


def test_the_names_that_a_definition_is_checked_against_are_those_that_have_values(tmp_path: Path) -> None:
    options = check_options({"system": "pbs"}, OPTIONS, "site")
    place = Place("rec", "pool", tmp_path, options)
    found = values_of(place, definition(options), Submission((request_of(),)), Path("x"))
    assert set(found) == {*JOB_VALUES, "options", "array"}


def test_what_is_wrong_with_a_definition_is_told_when_the_site_file_is_read(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[pool.main]\nbatch = "pbs"\n[pool.main.command]\nlist-id = "^\\\\d+"\n')
    done = subprocess.run([sys.executable, "-m", "vine_factory", "check", "-C", str(site)], capture_output=True,
                          text=True, timeout=60, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "factory")])})
    assert done.returncode != 0
    assert "pool.main: the options of the pool: list-id" in done.stderr
    assert "write (?P<id>...) around it" in done.stderr


@pytest.mark.parametrize(("name", "excludes"), [("pbs", False), ("torque", False), ("lsf", True), ("flux", True),
                                                ("sge", True)])
def test_which_systems_can_be_told_to_avoid_hosts(name: str, excludes: bool) -> None:
    assert registry.excludes_hosts(name, check_options({"system": name}, OPTIONS, "site")) is excludes


@pytest.mark.parametrize("site", ["flux"], indirect=True)
def test_a_script_stays_as_long_as_one_element_of_its_array_may_need_it(site: Site) -> None:
    client = site.client()
    client.submit_many([request_of(f"a-{n}") for n in (1, 2, 3)])
    scripts = site.path / "place" / "scripts"
    (scripts / "gone-1.sh").touch()
    for path in scripts.iterdir():
        os.utime(path, (1.0, 1.0))
    client.poll_many("rec")
    assert [path.name for path in scripts.iterdir()] == ["a-1.sh"], "a-1 runs and a-2 waits"


@pytest.mark.parametrize("site", ["pbs"], indirect=True)
def test_a_changed_definition_is_used_from_the_next_submission_on_unless_it_has_become_unusable(site: Site) -> None:
    client = site.client()
    for changes, commands in (({"array-size": 1}, 3), ({"array-size": 1, "submit-id": "nothing"}, 3), ({}, 1)):
        options = {"system": "pbs", **changes}
        client.reconfigure(client.place._replace(options=check_options(options, OPTIONS, "site")))
        before = len(site.calls("qsub")) if (site.path / "calls").exists() else 0
        client.submit_many([request_of(f"a-{n}") for n in (1, 2, 3)])
        assert len(site.calls("qsub")) - before == commands

"""Shipped definitions of batch systems against recorded answers, by commands on PATH that write down what they get."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskvine_core.errors import BatchRejected, BatchUnavailable, ConfigError
from taskvine_core.resources import Resources
from vine_factory.batch import command
from vine_factory.batch.base import BatchState, JobHandle, JobRequest, JobStatus, JobTag
from vine_factory.batch.command import CommandBatch
from vine_factory.batch.command_options import DEFINITION, OPTIONS
from vine_factory.batch.command_text import Definition, definition, digest, expanded, seen, shipped, tag_of
from vine_factory.batch.job_numbers import JobNumbers
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "recorded"
SYSTEMS = ("pbs", "torque", "lsf", "flux")
TOOLS = ("qsub", "qstat", "qselect", "qdel", "qsig", "bsub", "bjobs", "bkill", "flux")
FAKE = """#!{python}
import json, os, sys
home = os.environ["FAKE_HOME"]
name = os.path.basename(sys.argv[0])
names = [name + "-" + sys.argv[1] if len(sys.argv) > 1 else name, name]
with open(home + "/calls", "a") as calls:
    calls.write(json.dumps([[name, *sys.argv[1:]], sys.stdin.read()]) + "\\n")
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

    def client(self, **options: object) -> CommandBatch:
        checked = check_options({"system": self.system, **options}, OPTIONS, "site")
        self.clients.append(CommandBatch(Place("rec", "pool", self.path / "place", checked)))
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


def request_of(intent: str = "i-1", **changes: object) -> JobRequest:
    request = JobRequest(JobTag("rec", "pool", intent), ("/bin/worker", "a b"), {"COLOUR": "it's"},
                         Resources(4, 1000, 2000, 1), 5400.0)
    return request._replace(**changes)  # type: ignore[arg-type]


@every_system
def test_a_new_process_finds_its_jobs_in_the_listing_and_no_others(site: Site) -> None:
    found = site.jobs()
    assert {name: job.state.value for name, job in found.items()} == {
        "i-1": "running", "i-2": "queued", "i-3": "ended", "i-5": "ended",
        **({} if site.system == "flux" else {"i-4": "held"})}
    assert (found["i-1"].host, found["i-3"].host) == ("node7", "node8")
    assert (found["i-3"].exit_code, found["i-5"].exit_code) == (-15, 0)
    assert found["i-1"].exit_code is None


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
    handles = [JobHandle(found[name].tag, "") for name in ("i-1", "i-2", "i-3")]
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
    file = next(site.path.glob({"lsf": "bjobs.out", "flux": "flux-jobs.out"}.get(site.system, "qstat.out")))
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
    monkeypatch.setattr(command, "MATCHING_S", 1.0)
    (site.path / "bjobs.out").write_text(("a" * 40 + "!\n") * 5000)
    began = time.monotonic()
    with pytest.raises(BatchUnavailable, match="could not be matched"):
        site.client(**{"poll-record": r"^(?P<id>(a+)+)$"}).poll_many("rec")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("site", ["lsf"], indirect=True)
def test_five_thousand_jobs_and_garbage_between_them_are_read(site: Site) -> None:
    lines = (site.path / "bjobs.out").read_text()
    name = re.search(r"vine\.\w+\.", lines)
    assert name
    rows = "".join(f"{number}|RUN|-|node{number}|{name[0]}x-{number}|-\n\x00\x07{'|' * 50}\n" for number in range(5000))
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
])
def test_a_definition_that_cannot_be_used_is_refused_with_the_place(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as problem:
        definition(check_options({"system": "pbs", **changes}, OPTIONS, "site"))
    assert words in str(problem.value)


def test_a_definition_may_be_a_file_and_the_pools_options_go_before_it(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('submit = ["put", "$script"]\npoll = ["ls"]\npoll-record = "(?P<id>.)"\ncancel = ["rm", "$ids"]\n'
                    'states = {x = "running"}\n')
    made = definition(check_options({"definition": str(file), "poll": ["other"]}, OPTIONS, "site"))
    assert made.words("submit") == ("put", "$script")
    assert made.words("poll") == ("other",)


def test_words_are_filled_in_one_by_one_and_never_split() -> None:
    values = {"ids": ["1", "2 3"], "name": "a b; rm -rf $HOME"}
    assert expanded(["x", "$ids", "--n=$name", "$$5"], values, "here") == [
        "x", "1", "2 3", "--n=a b; rm -rf $HOME", "$5"]
    with pytest.raises(ConfigError, match="here: the word"):
        expanded(["$nmae"], values, "here")


@pytest.mark.parametrize(("record", "intent"), [
    ({"tag": "rec/pool/i-1"}, "i-1"), ({"tag": "rec/other/i-1"}, None), ({"tag": "other/pool/i-1"}, None),
    ({"name": f"vine.{digest(POOL)}.i-1"}, "i-1"), ({"name": f"vine.{digest(POOL._replace(pool='q'))}.i-1"}, None),
    ({}, None)])
def test_jobs_of_other_pools_and_factories_are_not_ours(record: dict[str, str], intent: str | None) -> None:
    assert tag_of(POOL, record) == (JobTag("rec", "pool", intent) if intent else None)


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

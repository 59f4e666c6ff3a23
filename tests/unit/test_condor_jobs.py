"""HTCondor without HTCondor: what descriptions say, which source is believed, how logs and outputs are kept."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from taskvine_core.errors import ConfigError
from taskvine_core.resources import Resources
from vine_factory import defaults, templating
from vine_factory.batch import condor_eventlog, outputs
from vine_factory.batch.base import BatchState, JobRequest, JobTag
from vine_factory.batch.condor_book import LINGER_S, LOOKUP_GAP_S, LOOKUPS, JobBook
from vine_factory.batch.condor_eventlog import EventLogs
from vine_factory.batch.condor_options import OPTIONS
from vine_factory.batch.condor_text import JOB_TEMPLATE, LAUNCH_TEMPLATE, Names, submissions
from vine_factory.batch.parse.condor_ads import QueueEntry
from vine_factory.batch.parse.condor_log import JobEvent, Kind
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options

TAG = JobTag("fac", "pool", "i-1")
NAMES = Names(Path("/dir"), Path("/dir/jobs"), Path("/dir/events.1.log"))


def place(blocks: dict[str, str] | None = None, excluded: tuple[str, ...] = (), **options: object) -> Place:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    return Place("fac", "pool", Path("/dir"), check_options(given, OPTIONS, "test"), blocks or {}, excluded)


def request(**changes: object) -> JobRequest:
    return JobRequest(TAG, ("worker", "-t", "5"), {}, Resources(4, 2000, 3000, 1))._replace(**changes)


def text(where: Place, *wanted: JobRequest) -> str:
    (made,) = submissions(where, NAMES, wanted or (request(),))
    return made.text


def directive(description: str, name: str) -> str:
    (value,) = re.findall(rf"^{re.escape(name)} = (.*)$", description, re.MULTILINE)
    return str(value)


def test_sizes_are_in_the_units_of_htcondor() -> None:
    made = text(place())
    assert [directive(made, f"request_{what}") for what in ("cpus", "memory", "disk", "gpus")] == \
        ["4", "2000", str(3000 * 1024), "1"]
    unset = text(place(), request(resources=Resources()))
    assert directive(unset, "request_memory") == "1024"
    assert "request_gpus" not in unset


def test_a_job_removes_itself_when_nobody_else_does() -> None:
    guards = directive(text(place(max_idle_time="1h", max_held_time=120, max_starts=7), request(walltime_s=3600.0)),
                       "periodic_remove")
    for term in ("JobStatus == 1 && (time() - EnteredCurrentStatus) > 3600",
                 "JobStatus == 5 && (time() - EnteredCurrentStatus) > 120", "NumJobStarts > 7",
                 "JobStatus == 2 && (time() - JobCurrentStartDate) > 3600"):
        assert term in guards
    assert "JobCurrentStartDate" not in text(place())


def test_requirements_are_the_users_and_the_excluded_hosts() -> None:
    made = text(place(excluded=("b", 'a" || true'), requirements="Memory > 5 || HasX"))
    assert directive(made, "requirements") == \
        r'(Memory > 5 || HasX) && (TARGET.Machine =!= "a\" || true") && (TARGET.Machine =!= "b")'
    assert "requirements" not in text(place())


def test_options_that_are_set_are_in_the_description_and_others_are_not() -> None:
    made = text(place(accounting_group="g.x", accounting_group_user="me", rank="Mips", priority=3,
                      concurrency_limits="disk:2", getenv=["LANG", "LC_*"], attributes={"ProjectName": '"p"'},
                      container_image="docker://x/y", stream_output=True, extra_directives=["+Own = $(Cluster)"]))
    for name, value in (("accounting_group", "g.x"), ("accounting_group_user", "me"), ("rank", "Mips"),
                        ("priority", "3"), ("concurrency_limits", "disk:2"), ("getenv", "LANG, LC_*"),
                        ("My.ProjectName", '"p"'), ("universe", "container"), ("container_image", "docker://x/y"),
                        ("stream_output", "true"), ("+Own", "$(Cluster)")):
        assert directive(made, name) == value
    plain = text(place())
    for name in ("accounting_group", "rank", "concurrency_limits", "getenv", "container_image", "stream_output"):
        assert name not in plain


def test_jobs_that_differ_only_in_tag_and_command_share_a_description() -> None:
    wanted = [request(tag=JobTag("fac", "pool", f"i-{n}"), command=("w", str(n))) for n in range(3)]
    made = submissions(place(), NAMES, [*wanted, request(environment={"A": "1"})])
    assert [len(one.requests) for one in made] == [3, 1]
    assert "i-2 fac/pool/i-2 'w' '2'\n)\n" in made[0].text


def test_a_job_of_several_workers_asks_for_all_of_them_and_starts_each() -> None:
    (made, single) = submissions(place(autosize=True), NAMES, [request(copies=3), request()])
    assert [directive(made.text, f"request_{what}") for what in ("cpus", "gpus")] == \
        ["ifThenElse(TARGET.TotalSlotCpus > 12, TARGET.TotalSlotCpus, 12)", "3"]
    assert 'printf " --cores %d", $2 / 3 ' in made.script
    assert made.launcher != single.launcher


@pytest.mark.parametrize(("given", "own"), [
    ("GPU-a,GPU-b,GPU-c,GPU-d", ["GPU-a,GPU-b", "GPU-c,GPU-d"]), ("", ["", ""])])
def test_workers_of_one_job_have_gpus_of_their_own(tmp_path: Path, given: str, own: list[str]) -> None:
    sized = request(copies=2, resources=Resources(1, 1, 1, 2))
    (made,) = submissions(place(), NAMES, [sized])
    launcher = tmp_path / "launch.sh"
    launcher.write_text(made.script)
    said = subprocess.run(["/bin/sh", str(launcher), "/bin/sh", "-c", 'echo "[$CUDA_VISIBLE_DEVICES]"'], timeout=30,
                          env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": given}, capture_output=True, text=True,
                          check=True)
    assert sorted(said.stdout.split()) == [f"[{devices}]" for devices in own]
    assert not said.stderr


def test_a_site_replaces_blocks_of_description_and_script() -> None:
    (made,) = submissions(place({"setup": "module load python\n", "extra_directives": "+A = 1\n"}), NAMES, [request()])
    assert "module load python\n" in made.script
    assert "+A = 1\n" in made.text
    (other,) = submissions(place(), NAMES, [request()])
    assert made.launcher != other.launcher, "a queued job keeps the script it was submitted with"
    with pytest.raises(ConfigError, match="did you mean 'setup'"):
        submissions(place({"setpu": ""}), NAMES, [request()])


@pytest.mark.parametrize("changes", [
    {"environment": {"A B": "x"}}, {"environment": {"A": "x\ny"}}, {"command": ("a", "b\nqueue 100")},
    {"tag": JobTag("fac", "pool", "a b")}, {"ship": (Path("/a,b"),)}, {"ship": (Path("/a\nb"),)},
    {"ship": (Path('/a"b'),)}])
def test_what_cannot_be_said_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        text(place(), request(**changes))


@pytest.mark.parametrize("key", [option.key for option in OPTIONS if option.kind == "str" and not option.choices])
def test_no_option_adds_a_line_or_swallows_one(key: str) -> None:
    lines = text(place()).count("\n")
    with pytest.raises(ConfigError):
        text(place(**{key: "x\nqueue 100"}))
    try:
        made = text(place(**{key: "x\\"}))
    except ConfigError:
        made = ""
    assert not [line for line in made.splitlines() if line.endswith("\\")]
    assert text(place(**{key: "x"})).count("\n") <= lines + 1


def test_every_option_is_documented_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "factory-htcondor.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([a-z]+) \|", page, re.MULTILINE))
    assert rows == {option.key: option.kind for option in OPTIONS}
    for option in OPTIONS:
        assert option.help in page, option.key


def test_every_block_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "factory-htcondor.md").read_text(encoding="utf-8")
    for template in (JOB_TEMPLATE, LAUNCH_TEMPLATE):
        for name in templating.block_names(template):
            assert f"`{name}`" in page


# ------------------------------------------------------------------------------------------ who is believed

def event(kind: Kind, at: float, **more: object) -> JobEvent:
    tag = TAG.text() if kind is Kind.SUBMITTED else ""
    return JobEvent(kind, "1.0", at, tag=tag)._replace(**more)


def entry(state: BatchState | None, **more: object) -> QueueEntry:
    return QueueEntry(TAG, "1.0", state)._replace(**more)


def running_book() -> JobBook:
    book = JobBook()
    for one in (event(Kind.SUBMITTED, 1), event(Kind.RUNNING, 2, host="h")):
        book.event(one, 3)
    return book


def test_the_queue_is_believed_where_the_log_says_nothing() -> None:
    book = running_book()
    book.listing([entry(BatchState.QUEUED)], 10)
    (status,) = book.statuses()
    assert (status.state, status.host, status.started_at) == (BatchState.QUEUED, "", 0.0)


def test_an_end_in_the_log_is_believed_although_the_job_lingers_in_the_queue() -> None:
    book = running_book()
    assert book.event(event(Kind.TERMINATED, 4, exit_code=0), 5) is not None
    book.listing([entry(BatchState.RUNNING)], 6)
    assert book.statuses()[0].state is BatchState.ENDED
    book.listing([entry(BatchState.RUNNING)], 5 + LINGER_S)
    assert book.statuses()[0].state is BatchState.RUNNING


def test_a_job_that_left_without_a_word_is_looked_up_and_then_left_out() -> None:
    book = running_book()
    book.listing([], 10)
    assert book.statuses() == [], "reconciliation counts what is missing"
    now = 10.0
    for _ in range(LOOKUPS):
        wanted = book.unexplained(now)
        assert [one.batch_id for one in wanted] == ["1.0"]
        book.past([], wanted, now)
        assert book.unexplained(now) == [], "not at once again"
        now += LOOKUP_GAP_S
    assert book.unexplained(now) == []
    book.forget(now)
    assert book.live() == []


def test_the_history_explains_an_end() -> None:
    book = running_book()
    book.listing([], 10)
    seen = entry(BatchState.ENDED, exit_code=-9, entered_at=8.0)
    assert [one.batch_id for one in book.past([seen], book.unexplained(10), 10)] == ["1.0"]
    (status,) = book.statuses()
    assert (status.state, status.exit_code, status.ended_at, status.started_at) == (BatchState.ENDED, -9, 8.0, 2.0)


def test_an_unknown_status_keeps_the_last_known_state_and_is_told() -> None:
    book = running_book()
    book.listing([entry(None, said="HTCondor gives it the unknown status 77")], 10)
    (status,) = book.statuses()
    assert (status.state, status.said) == (BatchState.RUNNING, "HTCondor gives it the unknown status 77")


def test_a_job_being_removed_runs_until_it_is_gone() -> None:
    book = running_book()
    book.listing([entry(None, leaving=True, said="by me")], 10)
    (status,) = book.statuses()
    assert (status.state, status.said) == (BatchState.RUNNING, "being removed: by me")


def test_ended_jobs_are_kept_for_a_while_from_when_it_was_noticed() -> None:
    book = running_book()
    book.event(event(Kind.TERMINATED, 4, exit_code=0), 1000)
    book.forget(1000 + defaults.ENDED_KEPT_S)
    assert len(book.statuses()) == 1
    book.forget(1001 + defaults.ENDED_KEPT_S)
    assert book.statuses() == []


def test_a_number_that_is_used_again_is_another_job() -> None:
    book = running_book()
    book.event(event(Kind.TERMINATED, 4, exit_code=0), 5)
    book.event(event(Kind.SUBMITTED, 6, tag="fac/pool/i-2"), 7)
    assert {status.tag.intent_id: status.state for status in book.statuses()} == \
        {"i-1": BatchState.ENDED, "i-2": BatchState.QUEUED}


# ------------------------------------------------------------------------------------------------- files

def written(number: int, kind: str, words: str = "") -> bytes:
    return f"{kind} ({number:03}.000.000) 2026-11-24 16:00:00 {words}\n    fac/pool/i-{number}\n...\n".encode()


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as stream:
        stream.write(data)


def test_events_are_read_once_and_half_written_ones_later(tmp_path: Path) -> None:
    logs = EventLogs(tmp_path)
    logs.ready()
    whole = written(1, "000")
    append(logs.current, whole + whole[:20])
    assert len(logs.read(0)) == 1
    assert logs.read(0) == []
    append(logs.current, whole[20:])
    assert len(logs.read(0)) == 1
    assert logs.tells_of("1.0")


def test_a_large_log_is_followed_by_a_new_one_and_goes_when_its_jobs_are_over(tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condor_eventlog, "ROTATE_BYTES", 100)
    logs = EventLogs(tmp_path)
    logs.ready()
    first = logs.current
    append(first, written(1, "000") + written(2, "000"))
    logs.read(0)
    logs.ready()
    assert logs.current != first
    append(first, written(1, "005"))
    append(logs.current, written(3, "000"))
    assert len(logs.read(0)) == 2
    assert first.exists()
    logs.keep_only({"3.0"})  # 2.0 is not in the queue any more
    logs.read(0)
    assert not first.exists()
    assert EventLogs(tmp_path).current == logs.current, "also for the next factory"


def test_a_log_without_end_is_passed_over(tmp_path: Path) -> None:
    logs = EventLogs(tmp_path)
    logs.ready()
    append(logs.current, b"x" * (2 << 20))
    assert logs.read(0) == []
    append(logs.current, b"\n...\n" + written(1, "000"))
    assert [event.batch_id for event in logs.read(0)] == ["1.0"]


def test_outputs_of_live_jobs_are_never_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "KEPT_JOB_LOGS", 2)
    for number in range(6):
        outputs.path(tmp_path, f"j{number}", "out").write_text("" if number == 5 else "x")
        outputs.path(tmp_path, f"j{number}", "err").write_text("")
    outputs.prune(tmp_path, {"j0", "j5"})
    left = {path.stem for path in tmp_path.iterdir()}
    assert {"j0", "j5"} < left
    assert len(left) == 4

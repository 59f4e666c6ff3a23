"""Options and files: strict, with the origin of each value; command lines without secrets; the journal."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from taskvine_core import __version__
from taskvine_core.errors import ConfigError
from taskvine_core.resources import Resources
from vine_factory import cli, config, expressions
from vine_factory.command import Delivery, worker_command
from vine_factory.config import Settings, Sourced, from_mapping
from vine_factory.events import JobRow, WriteJournal
from vine_factory.home import claim, plain_name
from vine_factory.journal import Journal
from vine_factory.reload import ConfigFile

WORKER = Delivery(("worker",))
MACHINE = Resources(8, 16000, 50000, 0)


def settings(file: dict[str, object] | None = None, host: str = "", port: int = 0, **given: object) -> Settings:
    values = {key.replace("_", "-"): value for key, value in {"batch_type": "local", **given}.items()}
    checked = {key: Sourced(config.check_value(key, value, "command line"), "command line")
               for key, value in values.items()}
    return config.build(checked, from_mapping(file or {}, "c.json"), host=host, port=port, machine=MACHINE)


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_the_version_is_told_and_nothing_is_started(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([option])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"vine_factory {__version__}\n"


def test_with_nothing_named_everybody_is_served() -> None:
    assert settings().target == ("", 0, ".*")


def test_a_local_pool_fills_the_machine_and_keeps_nothing_warm_by_default() -> None:
    pool = settings(cores="2").pools[0]
    assert (pool.minimum, pool.maximum) == (0, 4)
    assert settings().pools[0].maximum == 1


def test_other_pools_have_the_published_defaults() -> None:
    pool = settings(batch_type="condor").pools[0]
    assert (pool.minimum, pool.maximum, pool.per_cycle) == (5, 100, 0)


def test_a_minimum_above_the_default_maximum_raises_it() -> None:
    pool = settings(min_workers="30").pools[0]
    assert (pool.minimum, pool.maximum) == (30, 30)


def test_min_above_max_is_an_error_on_the_command_line_and_corrected_in_a_file() -> None:
    with pytest.raises(ConfigError, match="min-workers 5 is larger than max-workers 3"):
        settings(min_workers="5", max_workers="3")
    assert settings({"min-workers": 5, "max-workers": 3}).pools[0].minimum == 3


def test_the_file_wins_and_each_value_knows_its_origin() -> None:
    made = settings({"max-workers": 7}, max_workers="3", timeout="60")
    assert made.pools[0].maximum == 7
    assert (made.origins["max-workers"], made.origins["timeout"], made.origins["cores"]) == \
        ("c.json", "command line", "default")


def test_the_shape_asked_for_is_the_machines_where_nothing_is_given() -> None:
    pool = settings(cores="2").pools[0]
    assert pool.shape.resources == Resources(2, 16000, 50000, 0)
    assert pool.asked == Resources(2, -1, -1, -1)


@pytest.mark.parametrize(("record", "words"), [
    ({"max-wrokers": 3}, "did you mean 'max-workers'"), ({"zzzzzz": 1}, "allowed: "),
    ({"max-workers": 0}, "at least 1"), ({"min-workers": -1}, "at least 0"), ({"cores": "many"}, "number"),
    ({"cores": True}, "number"), ({"cores": float("inf")}, "number"), ({"manager-name": 4}, "text"),
    ({"manager-name": "a\nb"}, "text"), ({"password": "x"}, "unknown key"), ({"batch-type": "local"}, "unknown key"),
])
def test_a_bad_key_or_value_is_named_with_its_file_and_what_is_allowed(record: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.json: ") as caught:
        from_mapping(record, "c.json")
    assert words in str(caught.value)


def test_doubles_are_rounded_up_and_published_aliases_understood() -> None:
    read = from_mapping({"memory": 1000.2, "master-name": "x", "task-per-worker": 4, "foremen-name": "x"},
                        "c.json")
    assert read.values["memory"].value == 1001
    assert read.values["manager-name"].value == "x"
    assert read.values["tasks-per-worker"].value == 4
    assert len(read.notes) == 1 and "foremen-name has no effect" in read.notes[0]


# --------------------------------------------------------------------------------------------- expressions


def test_values_may_be_computed_from_others() -> None:
    text = '{"cores": 4, "memory": cores*1000 + 500/2, "a": true, "x": -(1), "env": null, "l": [1, cores]}'
    assert expressions.parse(text) == {"cores": 4, "memory": 4250.0, "a": True, "x": -1, "env": None, "l": [1, 4]}


@pytest.mark.parametrize("text", [
    "", "[]", "[1", "3", '{"a": b}', '{"a": b, "b": a}', '{"a": __import__("os")}', '{"a": 1/0}', '{"a": "x"*9}',
    '{"a": 9**9**9}', '{"a": (lambda: 1)()}', '{1: 2}', '{"a": [x for x in b]}', "{" * 3000, '{"a": true + 1}',
    "\0",
])
def test_what_is_no_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        expressions.parse(text)


def test_a_broken_edit_keeps_the_settings_and_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"max-workers": 3}')
    file = ConfigFile(path, lambda values: config.build({"batch-type": Sourced("local", "t")}, values, host="h", port=1,
                                                        machine=MACHINE))
    current = file.load()
    assert file.changed(current) == (None, [])
    path.write_text('{"max-workers": ')
    changed, notes = file.changed(current)
    assert changed is None and "configuration not changed" in notes[0]
    assert file.changed(current) == (None, [])
    path.write_text('{"max-workers": 40}')
    changed, notes = file.changed(current)
    assert changed is not None and changed.pools[0].maximum == 40
    path.unlink()
    assert file.changed(current) == (None, [])


# ---------------------------------------------------------------------------------------------- the command line


def test_the_worker_is_told_what_it_needs_and_no_secret() -> None:
    made = settings(host="vm", port=9123, cores="2", gpus="0", feature=["avx"], password="/k/pw", ssl=True,
                    worker_extra_options="--workdir '/a b'", factory_name="f", timeout="60", transfer_port="1:9")
    delivery = Delivery(("/py", "-m", "taskvine_core.worker.cli"), "/k/pw")
    assert worker_command(made, made.pools[0], "r-1", delivery) == (
        "/py", "-m", "taskvine_core.worker.cli", "-t", "60", "--from-factory", "f", "--factory-job", "r-1",
        "--cores", "2", "--gpus", "0", "--feature", "avx", "--password", "/k/pw", "--transfer-port", "1:9", "--ssl",
        "--workdir", "/a b", "vm", "9123")


def test_a_worker_does_not_die_with_the_factory_unless_asked() -> None:
    made = settings(manager_name="phys.*")
    assert "--parent-death" not in worker_command(made, made.pools[0], "1", WORKER)
    assert worker_command(made, made.pools[0], "1", WORKER)[-2:] == ("-M", "phys.*")
    made = settings(parent_death=True)
    assert "--parent-death" in worker_command(made, made.pools[0], "1", WORKER)


def test_bad_quotes_and_bad_variables_are_errors() -> None:
    made = settings(worker_extra_options="--x 'y")
    with pytest.raises(ConfigError, match="worker-extra-options"):
        worker_command(made, made.pools[0], "1", WORKER)
    with pytest.raises(ConfigError, match="VARIABLE=value"):
        settings(env=["A=1", "B"])
    assert settings(env=["A=1", "B=x=y"]).pools[0].env == {"A": "1", "B": "x=y"}


@pytest.mark.parametrize("words", [
    ["--batch", "local", "h:p"], ["--batch", "local", "a", "b", "c"], ["--batch", "local", "h"],
    ["--batch", "local", "h", "99999"], ["--batch", "nothing"], ["h:1"], ["--batch", "local", "-M", "x", "h:1"],
    ["--batch", "local", "--min", "3", "--max", "2"], ["--batch", "local", "--cores", "x"],
    ["--batch", "local", "-C", "/no/such/file"],
])
def test_wrong_use_ends_with_status_two_and_a_sentence(words: list[str], capsys: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("vine_factory: ")


# --------------------------------------------------------------------------------------------- journal, home


ROW = JobRow("r-1", "local", "intended", "", 12.5, False)


def test_the_journal_has_what_was_written_when_it_is_opened_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.write(WriteJournal((ROW, ROW._replace(intent_id="r-2")), ()))
    journal.write(WriteJournal((ROW._replace(state="submitted", batch_id="77", connected_once=True),), ("r-2",)))
    again = Journal(tmp_path / "j")
    assert again.rows() == [ROW._replace(state="submitted", batch_id="77", connected_once=True)]


def test_a_change_that_could_not_be_written_is_written_with_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    other = sqlite3.connect(tmp_path / "j", isolation_level=None)
    journal._database.execute("PRAGMA busy_timeout=1")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="cannot write the journal"):
        journal.write(WriteJournal((ROW,), ()))
    other.execute("ROLLBACK")
    journal.write(None)
    assert journal.rows() == [ROW]


def test_a_file_that_is_no_journal_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"this is not a database at all, just some text" * 40)
    with pytest.raises(ConfigError, match="may be removed"):
        Journal(tmp_path / "j")


def test_unnamed_factories_take_the_first_free_place_and_named_ones_exclude_each_other(tmp_path: Path) -> None:
    first = claim(tmp_path, "", "", "local", "m:1")
    second = claim(tmp_path, "", "", "local", "m:1")
    assert second.directory != first.directory and second.factory_id != first.factory_id
    first.lock.close()
    again = claim(tmp_path, "", "", "local", "m:1")
    assert again[:3] == first[:3]
    named = claim(tmp_path, "", "mine", "local", "m:1")
    with pytest.raises(ConfigError, match="another factory is running"):
        claim(tmp_path, "", "mine", "local", "m:2")
    for home in (second, again, named):
        home.lock.close()


def test_names_become_safe_and_stay_distinct() -> None:
    assert plain_name("a-b.c") == "a-b.c"
    assert "/" not in plain_name("../../etc")
    assert plain_name("a b") != plain_name("a/b")
    assert plain_name("x" * 500) != plain_name("x" * 501)

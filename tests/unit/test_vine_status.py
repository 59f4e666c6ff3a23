"""``vine_status``: tables, choice of managers, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskvine_core.catalog.local import Advertiser
from taskvine_core.errors import DiscoveryError
from taskvine_core.tools import vine_status

COLUMNS = {
    "managers": "PROJECT HOST PORT WAITING RUNNING COMPLETE WORKERS",
    "tasks": "ID STATE PRIORITY HOST COMMAND CORES MEMORY DISK GPUS",
    "workers": "HOST ADDRESS COMPLETED RUNNING CORE_USE CORE_ALL MEM_USE MEM_ALL DISK_USE DISK_ALL GPUS_USE GPUS_ALL",
    "able": "CATEGORY DISPATCHED WAITING SUCCESSFUL FIT-WORKERS MAX-CORES MAX-MEMORY MAX-DISK",
    "resources": "MANAGER CORES INUSE MEM(GB) INUSE GPUS INUSE",
    "capacity": "MANAGER TASKS CORES MEMORY DISK",
}
RECORD = {"project": "alpha", "host": "node1", "addresses": ["bad", "good"], "port": 9123, "tasks_waiting": 4,
          "tasks_running": 2, "tasks_complete": 7, "workers": 3, "owner": "alice", "ssl_fingerprint": "ab" * 32}
Calls = list[tuple[str, int, str, str]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def advertised() -> Iterator[None]:
    advertiser = Advertiser()
    advertiser.publish(RECORD)
    yield
    advertiser.withdraw()


def answering(monkeypatch: pytest.MonkeyPatch, answer: object) -> Calls:
    """Let every host but "bad" answer; returns what was asked."""
    calls: Calls = []

    def ask(host: str, port: int, what: str, *, fingerprint: str, **_rest: object) -> object:
        calls.append((host, port, what, fingerprint))
        if host == "bad":
            raise DiscoveryError("no answer")
        return json.loads(json.dumps(answer))

    monkeypatch.setattr(vine_status, "ask", ask)
    return calls


@pytest.mark.parametrize("table", COLUMNS)
def test_table_has_the_published_columns_also_without_entries(table: str) -> None:
    assert vine_status.format_table(vine_status.TABLES[table], []).split() == COLUMNS[table].split()


def test_advertised_managers_are_shown_without_asking_them(
        advertised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, [])
    assert vine_status.main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [COLUMNS["managers"].split(), ["alpha", "node1", "9123", "4", "2", "7", "3"]]
    assert calls == []


def test_no_manager_is_exit_1_with_the_place_that_was_searched(
        state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vine_status.main([]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert str(state) in output.err


@pytest.mark.parametrize(("options", "status"), [
    (["-M", "alpha"], 0), (["-M", "al.*"], 0), (["-M", "al"], 1), (["--where", "owner=alice"], 0),
    (["--where", "owner=bob"], 1), (["--where", "owner"], 1)])
def test_filters(advertised: None, options: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert vine_status.main(options) == status
    output = capsys.readouterr()
    assert ("alpha" in output.out) == (status == 0)
    assert bool(output.err) == (status == 1)


def test_next_address_is_tried_with_the_advertised_fingerprint(
        advertised: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, [{"hostname": "w1", "addrport": "1.2.3.4:5", "total_tasks_complete": 9,
                                     "cores_total": 4}])
    assert vine_status.main(["-W"]) == 0
    assert calls == [("bad", 9123, "workers", "ab" * 32), ("good", 9123, "workers", "ab" * 32)]
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["w1", "1.2.3.4:5", "9", "-", "-", "4", "-", "-", "-", "-", "-", "-"]


def test_json_has_both_names_of_the_address(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, [{"hostname": "w1", "addrport": "1.2.3.4:5"}])
    assert vine_status.main(["--json", "-W", "node9:9000"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["addrport"] == row["address_port"] == "1.2.3.4:5"
    assert calls == [("node9", 9000, "workers", "")]


@pytest.mark.parametrize(("option", "question"), [
    ("-T", "tasks"), ("-A", "categories"), ("-R", "manager"), ("--capacity", "manager"), ("-Q", "manager")])
def test_question_behind_each_table(option: str, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, [{}])
    assert vine_status.main([option, "node9", "9000"]) == 0
    assert calls == [("node9", 9000, question, "")]


def test_task_without_entries_is_a_table_and_exit_0(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, [])
    assert vine_status.main(["-T", "node9", "9000"]) == 0
    assert capsys.readouterr().out.split() == COLUMNS["tasks"].split()


def test_values_of_a_manager_cannot_steer_the_terminal() -> None:
    row = {"task_id": 1, "state": "\x1b[2J", "command": "a\n" * 99}
    text = vine_status.format_table(vine_status.TABLES["tasks"], [row])
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize("answer", [{}, [1], "x"])
def test_answer_of_another_shape_is_an_error(
        answer: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch, answer)
    assert vine_status.main(["-T", "node9", "9000"]) == 1
    assert "not a list of records" in capsys.readouterr().err


def test_host_without_port_is_an_error_that_says_how_to_write_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert vine_status.main(["node9"]) == 1
    assert "vine_status HOST PORT" in capsys.readouterr().err


def test_command_runs_as_a_program_and_survives_a_closed_pipe(advertised: None) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "taskvine_core.tools.vine_status"], stdout=write,
                          stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")

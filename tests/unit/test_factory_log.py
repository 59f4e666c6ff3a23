"""The factory's log: what a terminal and a file get."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from taskvine_core.errors import ConfigError
from vine_factory.events import Note
from vine_factory.log import Log

NOW = 1_700_000_000.0


def test_a_file_gets_the_lines_too_with_their_dates(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = Log(stream, False, str(tmp_path / "log"))
    log.note(Note("started", "two\nlines", 0), NOW)
    assert "vine_factory: two\n" in stream.getvalue() and "2023-11-1" not in stream.getvalue()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("2023-11-1") and first.endswith("vine_factory: two") and second.endswith("| lines")


def test_a_file_that_is_large_is_moved_away_once(tmp_path: Path) -> None:
    log = Log(io.StringIO(), True, str(tmp_path / "log"), 1000)
    for number in range(100):
        log.note(Note("n", str(number), 0), NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["text"] == "99"
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


def test_a_terminal_that_closes_leaves_the_file(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = Log(stream, False, str(tmp_path / "log"))
    stream.close()
    for text in ("one", "two"):
        log.note(Note("n", text, 0), NOW)
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere/log cannot be written"):
        Log(io.StringIO(), False, str(tmp_path / "nowhere" / "log"))

"""Running a batch system's commands: deadlines, bounds, nothing left, English words."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from taskvine_core.errors import BatchRejected, BatchUnavailable
from vine_factory.batch import tool


def test_output_status_and_words_come_back() -> None:
    done = tool.run(["/bin/sh", "-c", "cat; echo trouble >&2; exit 3"], stdin=b"hello")
    assert (done.stdout, done.stderr, done.status, done.said) == ("hello", "trouble\n", 3, "trouble")


def test_a_large_input_to_a_tool_that_answers_meanwhile_does_not_lock_up() -> None:
    data = os.urandom(3 << 20).hex().encode()
    assert tool.run(["cat"], stdin=data, timeout_s=20).stdout.encode() == data


def test_a_tool_that_does_not_read_its_input_is_no_error() -> None:
    assert tool.run(["true"], stdin=bytes(1 << 20), timeout_s=20).status == 0


def test_a_tool_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    start = time.monotonic()
    with pytest.raises(BatchUnavailable, match=r"did not end within 0.5 s.*thinking"):
        tool.run(["/bin/sh", "-c", f"echo thinking >&2; sleep 100 & echo $! > {pid_file}; wait"], timeout_s=0.5)
    assert time.monotonic() - start < 5
    while _lives(int(pid_file.read_text())):
        assert time.monotonic() - start < 5
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter when it goes between opening and reading
        return False


def test_a_child_that_keeps_the_output_open_costs_one_deadline() -> None:
    with pytest.raises(BatchUnavailable):
        tool.run(["/bin/sh", "-c", "sleep 100 & exit 0"], timeout_s=0.5)


def test_more_output_than_can_be_true_is_no_answer() -> None:
    with pytest.raises(BatchUnavailable, match="more than 1000 bytes"):
        tool.run([sys.executable, "-c", "print('x' * 5000)"], max_bytes=1000, timeout_s=20)


def test_a_missing_tool_says_what_to_install() -> None:
    with pytest.raises(BatchRejected, match=r"no-such-sbatch.*installed"):
        tool.run(["no-such-sbatch"])


def test_messages_are_in_english_and_bytes_that_are_no_text_do_no_harm() -> None:
    done = tool.run(["/bin/sh", "-c", r'echo "$LC_ALL $X"; printf "\377"'], environment={"X": "y", "LC_ALL": "de_DE"})
    assert done.stdout == "C y\n�"

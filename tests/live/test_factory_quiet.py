"""A factory leaves a batch system alone between its passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import taskvine_core as vine

pytestmark = pytest.mark.live
PATIENCE_S = 30.0
WINDOW_S = 3.0


def test_the_end_of_a_tool_that_listed_the_jobs_is_no_reason_to_list_them_again(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    bjobs = tmp_path / "bin" / "bjobs"
    bjobs.parent.mkdir()
    bjobs.write_text(f"#!/bin/sh\necho x >> {asked}\necho 'No job found' >&2\nexit 255\n")
    bjobs.chmod(0o755)
    factory = subprocess.Popen(
        [sys.executable, "-m", "vine_factory", "--batch", "lsf", "--min", "0", "--max", "2", "localhost:1"],
        env={**os.environ, "PATH": f"{bjobs.parent}:{os.environ['PATH']}", "XDG_STATE_HOME": str(tmp_path / "state")},
        stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not asked.exists():
            assert factory.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(subprocess.TimeoutExpired):      # the pass period is 30 s
            factory.wait(WINDOW_S)
        assert len(asked.read_text().split()) <= 3
    finally:
        factory.terminate()
        factory.communicate(timeout=PATIENCE_S)


def test_a_batch_system_is_looked_at_once_per_period_however_often_managers_answer_something_new(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    asked = tmp_path / "asked"
    bjobs = tmp_path / "bin" / "bjobs"
    bjobs.parent.mkdir()
    bjobs.write_text(f"#!/bin/sh\necho x >> {asked}\necho 'No job found' >&2\nexit 255\n")
    bjobs.chmod(0o755)
    with vine.Manager(0, run_info_path=str(tmp_path / "run-info")) as manager:
        factory = subprocess.Popen(
            [sys.executable, "-m", "vine_factory", "--batch", "lsf", "--min", "0", "--max", "2", "--cores", "1",
             "--manager-period", "0.05", "localhost", str(manager.port)],
            env={**os.environ, "PATH": f"{bjobs.parent}:{os.environ['PATH']}"}, stderr=subprocess.DEVNULL)
        try:
            seen: set[int] = set()
            deadline = time.monotonic() + PATIENCE_S
            while len(seen) < 10:  # as many passes: what its state file shows
                assert factory.poll() is None and time.monotonic() < deadline
                task = vine.Task("true")
                task.set_cores(100)  # no worker of this pool: the answer is new, and nothing is to be done
                manager.submit(task)
                told = subprocess.run([sys.executable, "-m", "vine_factory", "status", "--json"], capture_output=True,
                                      timeout=PATIENCE_S, check=False)
                seen |= {one["tasks_waiting"] for state in json.loads(told.stdout) for one in state["managers"]}
            assert len(asked.read_text().split()) <= 2, "the period is 30 s"
        finally:
            factory.terminate()
            factory.wait(PATIENCE_S)

"""Two real factories beside one real manager: together they start what it can use, not each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import taskvine_core as vine

pytestmark = pytest.mark.live
PATIENCE_S = 60.0
TASKS = 8


def test_two_factories_that_start_together_share_the_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    gate = tmp_path / "gate"
    with vine.Manager(0, run_info_path=str(tmp_path / "run-info")) as manager:
        for _ in range(TASKS):
            manager.submit(vine.Task(f"until [ -e {gate} ]; do sleep 0.05; done", cores=1))
        factories = [subprocess.Popen(
            [sys.executable, "-m", "vine_factory", "--batch", "local", "--min", "0", "--max", str(TASKS), "--cores",
             "1", "--memory", "100", "--disk", "100", "--factory-name", name, f"localhost:{manager.port}"],
            env=os.environ, stderr=subprocess.DEVNULL) for name in ("a", "b")]
        try:
            deadline = time.monotonic() + PATIENCE_S
            while manager.stats.tasks_running < TASKS:
                manager.wait(0.1)
                assert time.monotonic() < deadline, manager.stats.workers_connected
            gate.touch()
            while not manager.empty():
                manager.wait(0.1)
                assert time.monotonic() < deadline
            assert manager.stats.workers_joined == TASKS
        finally:
            for factory in factories:
                factory.terminate()
            for factory in factories:
                factory.wait(PATIENCE_S)

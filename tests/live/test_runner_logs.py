"""Rules of the manager's runner about its logs: a defect there costs the logs, never the tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import taskvine_core as vine


def test_logs_that_cannot_be_formatted_end_and_the_tasks_go_on(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with vine.Manager(0, run_info_path=str(tmp_path)) as manager:
        def broken(now: float, limit: int | None = None) -> int:
            raise KeyError("a defect")

        manager._runner.observer.flush = broken  # type: ignore[method-assign]
        worker = subprocess.Popen([sys.executable, "-m", "taskvine_core.worker.cli", "--single-shot", "localhost",
                                   str(manager.port), "--workdir", str(tmp_path)], env={**os.environ})
        try:
            manager.submit(vine.Task("echo before"))
            task = manager.wait(30)
            assert task is not None and task.output == "before\n"
            assert manager._runner.pump(lambda: "logs end here" in capfd.readouterr().err, 30)
            manager.submit(vine.Task("echo after"))
            task = manager.wait(30)
            assert task is not None and task.output == "after\n"
        finally:
            worker.terminate()
            worker.wait(20)

"""Rules of the manager's runner about a program that submits faster than the background thread takes in."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import taskvine_core as vine
from taskvine_core.errors import UsageError
from taskvine_core.manager.runner import AHEAD_MAX

PATIENCE_S = 30.0


def test_a_program_waits_when_it_is_far_ahead_and_loses_nothing(tmp_path: Path) -> None:
    with vine.Manager(0, run_info_path=str(tmp_path)) as manager:
        runner, busy, go = manager._runner, threading.Event(), threading.Event()

        def hold_up() -> None:
            runner.call(lambda core, now: (busy.set(), go.wait(PATIENCE_S)))

        def submit() -> None:
            for _ in range(2 * AHEAD_MAX):
                manager.submit(vine.Task(":"))

        threads = [threading.Thread(target=hold_up), threading.Thread(target=submit)]
        threads[0].start()
        assert busy.wait(PATIENCE_S)
        threads[1].start()
        try:
            # It has stopped submitting: its request to be told stands at the end of the queue.
            deadline = threading.Event()
            while len(runner._commands) < AHEAD_MAX + 2:
                assert threads[1].is_alive() and not deadline.wait(0.01)
            assert max(manager._tasks) == AHEAD_MAX + 1
        finally:
            go.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert manager.stats.tasks_waiting == 2 * AHEAD_MAX


def test_a_closed_manager_takes_no_tasks(tmp_path: Path) -> None:
    manager = vine.Manager(0, run_info_path=str(tmp_path))
    manager.close()
    task = vine.Task(":")
    with pytest.raises(UsageError, match="the manager is closed"):
        manager.submit(task)
    assert task.id == 0

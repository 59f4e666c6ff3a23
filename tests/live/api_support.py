"""A manager with real workers on this machine, for tests of whole programs. Everything started is ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import taskvine_core as vine

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


class Cluster:
    """Managers and workers under one directory, with a key file of its own (XDG_STATE_HOME is set by the fixture)."""

    def __init__(self, directory):
        self.directory = directory
        self._managers = []
        self._workers = []

    def manager(self, cls=vine.Manager, **values):
        """A manager on any free port."""
        made = cls(**{"port": 0, "run_info_path": self.directory / "info", **values})
        self._managers.append(made)
        return made

    def worker(self, manager, *options, cores=2, memory=500, disk=1000, wait=True):
        """Start a worker and wait until the manager has it."""
        before = manager.stats.workers_connected
        number = len(self._workers)
        log = open(self.directory / f"worker-{number}.log", "wb")  # noqa: SIM115 - closed in close()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "taskvine_core.worker.cli", "localhost", str(manager.port), "--cores", str(cores),
             "--memory", str(memory), "--disk", str(disk), "--workdir",
             str(self.directory / f"work-{number}"), *options],
            stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL)
        self._workers.append((process, log))
        if wait:
            until(lambda: manager.stats.workers_connected > before, "the worker connected", self.log)
        return process

    def log(self):
        """What the workers printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("worker-*.log")))

    def close(self):
        """End everything."""
        for manager in self._managers:
            manager.close()
        for process, log in self._workers:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            log.close()


def until(condition, what, explain=str):
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}\n{explain()}"
        time.sleep(0.02)


def drain(manager, explain=str):
    """All tasks of a manager, as they come back."""
    deadline = time.monotonic() + PATIENCE_S
    while not manager.empty():
        assert time.monotonic() < deadline, f"tasks did not come back: {manager.status('tasks')}\n{explain()}"
        task = manager.wait(1)
        if task is not None:
            yield task


def run(manager, task, explain=str):
    """Submit one task and have it back."""
    manager.submit(task)
    [back] = drain(manager, explain)
    assert back is task
    return task

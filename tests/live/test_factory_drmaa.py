"""The whole way on a real Grid Engine: a program's tasks, `vine_factory --batch drmaa`, workers as array tasks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.gridengine import GridEngine

import taskvine_core as vine

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
WORKERS = 3
SYSTEMS = ("drmaa", "sge")
"""Names of batch systems that drive a Grid Engine."""


class Bed:
    """A manager in this process, factories as processes, and what Grid Engine knows of their jobs."""

    def __init__(self, cluster: GridEngine, directory: Path, batch: str) -> None:
        self.cluster, self.directory, self.batch = cluster, directory, batch
        self.name = f"e2e{os.getpid()}-{random.randrange(1 << 30)}"
        self.manager = vine.Manager(port=0, run_info_path=directory / "info")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.old: set[str] = set()
        self.old.update(self.queue())

    def factory(self) -> subprocess.Popen[bytes]:
        """Start one; all are the same factory."""
        words = [sys.executable, "-m", "vine_factory", "--batch", self.batch, "--max", str(WORKERS), "--min", "0",
                 "--cores", "1", "--factory-name", self.name, "--factory-period", "0.5", "--retire-after", "2",
                 "--drain-grace", "10", "localhost", str(self.manager.port)]
        with open(self.directory / "log", "ab") as log:
            self.processes.append(subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                                   cwd=self.directory))
        return self.processes[-1]

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def queue(self) -> list[str]:
        """Numbers of the tasks there are, but for those of earlier tests: this cluster has no other user."""
        lines = self.cluster.tool("qstat", "-g", "d").splitlines()[2:]
        return sorted({f"{words[0]}.{words[-1]}" for words in map(str.split, lines)} - self.old)

    def serve(self, condition: Callable[[], bool], what: str) -> list[vine.Task]:
        """Let the manager work until ``condition``; the tasks that came back."""
        done = []
        for _ in range(PATIENCE_S * 5):
            task = self.manager.wait(0.2)
            if task:
                done.append(task)
            if condition():
                return done
        pytest.fail(f"not in {PATIENCE_S} s: {what}\n{self.log()[-3000:]}\n{self.queue()}")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.manager.close()
        self.cluster.tool("qdel", "-u", "*", check=False)


@pytest.fixture(params=SYSTEMS)
def bed(request: pytest.FixtureRequest, grid_engine: GridEngine, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT), str(ROOT / "factory")]))
    made = Bed(grid_engine, tmp_path, request.param)
    yield made
    made.end()


def test_tasks_run_on_workers_that_come_and_go_with_them(bed: Bed) -> None:
    for _ in range(12):
        task = vine.Task("sleep 0.2; echo seven $JOB_ID")
        task.set_cores(1)
        bed.manager.submit(task)
    factory = bed.factory()
    done = bed.serve(bed.manager.empty, "all tasks done")
    assert len(done) == 12
    assert all(str(task.std_output).startswith("seven ") for task in done)
    bed.serve(lambda: bed.queue() == [], "idle workers leave")
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0


def test_a_killed_factory_started_again_has_the_same_workers_and_leaves_nothing(bed: Bed) -> None:
    gate = bed.directory / "gate"
    for _ in range(WORKERS):
        task = vine.Task(f"while [ ! -e {gate} ]; do sleep 0.1; done")
        task.set_cores(1)
        bed.manager.submit(task)
    first = bed.factory()
    bed.serve(lambda: bed.manager.stats.tasks_running == WORKERS, "each worker has a task")
    before = bed.queue()
    assert len(before) == WORKERS
    first.kill()
    first.wait()
    for path in bed.directory.rglob("journal.sqlite*"):
        path.unlink()
    again = len(bed.log())
    second = bed.factory()
    bed.serve(lambda: f"{WORKERS} workers adopted" in bed.log()[again:]
              or f"{WORKERS} workers connected" in bed.log()[again:], "the second factory knows them")
    for _ in range(20):  # eight of its passes
        bed.manager.wait(0.2)
    assert bed.queue() == before, "nothing was submitted twice, nothing ended"
    gate.touch()
    bed.serve(bed.manager.empty, "the tasks are done")
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE_S) == 0
    assert bed.queue() == []

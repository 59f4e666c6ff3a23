"""The whole way on a real Slurm cluster: a program's tasks, `vine_factory --batch slurm`, workers as Slurm's jobs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.slurm import Cluster

import taskvine_core as vine

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
WORKERS = 3
SITE = """\
[pool.{pool}]
batch = "slurm"
min-workers = 0
max-workers = {workers}
cores = 1
memory = 300
disk = 300
env = {{ PYTHONPATH = "{path}" }}
"""


class Bed:
    """A manager in this process, factories as processes, and what the cluster knows of their jobs."""

    def __init__(self, cluster: Cluster, directory: Path, path: str) -> None:
        self.cluster, self.directory = cluster, directory
        self.name = f"e2e{os.getpid()}-{random.randrange(1 << 30)}"
        self.manager = vine.Manager(port=0, run_info_path=directory / "info")
        self.site = directory / "site.toml"
        self.site.write_text(SITE.format(pool=self.name, workers=WORKERS, path=path))
        self.processes: list[subprocess.Popen[bytes]] = []

    def factory(self) -> subprocess.Popen[bytes]:
        """Start one; all are the same factory."""
        words = [sys.executable, "-m", "vine_factory", "-C", str(self.site), "--factory-name", self.name,
                 "--factory-period", "0.5", "--retire-after", "2", "--drain-grace", "10", "localhost",
                 str(self.manager.port)]
        with open(self.directory / "log", "ab") as log:
            self.processes.append(subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                                   cwd=self.directory))
        return self.processes[-1]

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def jobs(self, states: str) -> list[str]:
        """Numbers of the jobs in one of ``states``."""
        listed = self.cluster.tool("squeue", "--noheader", "--array", f"--states={states}", "--format=%i %k")
        return sorted(line.split()[0] for line in listed.splitlines() if f"/{self.name}/" in line)

    def queue(self) -> list[str]:
        return self.jobs("PENDING,CONFIGURING,RUNNING,COMPLETING,SUSPENDED")

    def ever(self) -> list[str]:
        return self.jobs("all")

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
        self.cluster.tool("scancel", "--user", str(os.geteuid()))


@pytest.fixture
def bed(slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = os.pathsep.join([str(ROOT), str(ROOT / "factory")])
    monkeypatch.setenv("PYTHONPATH", path)
    made = Bed(slurm_cluster, tmp_path, path)
    yield made
    made.end()


def test_tasks_run_on_workers_that_come_and_go_with_them(bed: Bed) -> None:
    for _ in range(12):
        task = vine.Task('sleep 0.2; echo "$SLURM_JOB_ID"')
        task.set_cores(1)
        bed.manager.submit(task)
    factory = bed.factory()
    done = bed.serve(bed.manager.empty, "all tasks done")
    assert len(done) == 12
    assert all(str(task.std_output).strip().isdigit() for task in done), "inside jobs of Slurm"
    assert 1 <= len(bed.ever()) <= WORKERS
    bed.serve(lambda: bed.queue() == [], "idle workers leave the cluster")
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("files", ["kept", "lost"])
def test_a_killed_factory_started_again_has_the_same_workers_and_leaves_nothing(bed: Bed, files: str) -> None:
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
    if files == "lost":
        for path in bed.directory.rglob("journal.sqlite*"):
            path.unlink()
    again = len(bed.log())
    second = bed.factory()
    known = [f"{WORKERS} workers adopted", f"{WORKERS} workers connected", f"have {WORKERS}; target {WORKERS}"]
    bed.serve(lambda: any(words in bed.log()[again:] for words in known), "the second factory knows them")
    for _ in range(20):  # eight of its passes
        bed.manager.wait(0.2)
    assert bed.queue() == bed.ever() == before, "nothing was submitted twice, nothing ended"
    gate.touch()
    assert len(bed.serve(bed.manager.empty, "the tasks end")) == WORKERS
    second.send_signal(signal.SIGTERM)
    bed.serve(lambda: second.poll() is not None, "the factory ends")
    assert second.returncode == 0
    assert bed.queue() == []
    assert bed.ever() == before

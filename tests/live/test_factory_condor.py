"""The whole way on a real HTCondor pool: a program's tasks, `vine_factory --batch condor`, workers that are sent there.

Jobs have another home directory than the program, so nothing they use comes from a shared one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.htcondor import Pool

import taskvine_core as vine

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
WORKERS = 3
SITE = """\
[pool.{pool}]
batch = "condor"
min-workers = 0
max-workers = {workers}
cores = 1
memory = 300
disk = 300

[pool.{pool}.condor]
query-interval = 1
"""


class Bed:
    """A manager in this process, factories as processes, and what the pool knows of their jobs."""

    def __init__(self, pool: Pool, directory: Path) -> None:
        self.pool, self.directory = pool, directory
        self.name = f"e2e{os.getpid()}-{random.randrange(1 << 30)}"
        self.manager = vine.Manager(port=0, run_info_path=directory / "info")
        self.site = directory / "site.toml"
        self.site.write_text(SITE.format(pool=self.name, workers=WORKERS))
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

    def queue(self) -> list[str]:
        """Numbers of the jobs in the queue."""
        return sorted(self.pool.tool("condor_q", "-af:j", "JobStatus", "-constraint",
                                     f'VinePool == "{self.name}"').splitlines())

    def numbers(self) -> list[str]:
        return [line.split()[0] for line in self.queue()]

    def ever(self) -> list[str]:
        """Numbers of all jobs there ever were."""
        past = self.pool.tool("condor_history", "-af:j", "JobStatus", "-constraint", f'VinePool == "{self.name}"')
        return sorted({*self.numbers(), *(line.split()[0] for line in past.splitlines())})

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
        for how in ([], ["-forcex"]):
            with contextlib.suppress(AssertionError):  # nothing left is an error to condor_rm
                self.pool.tool("condor_rm", *how, "-constraint", f'VinePool == "{self.name}"')


@pytest.fixture
def bed(htcondor_pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT), str(ROOT / "factory")])
    monkeypatch.setenv("PYTHONPATH", path)
    made = Bed(htcondor_pool, tmp_path)
    yield made
    made.end()


def test_tasks_run_on_workers_that_come_and_go_with_them(bed: Bed) -> None:
    (bed.directory / "data").write_text("seven")
    data = bed.manager.declare_file(bed.directory / "data")
    for _ in range(12):
        task = vine.Task("sleep 0.2; pwd; cat data")
        task.add_input(data, "data")
        task.set_cores(1)
        bed.manager.submit(task)
    factory = bed.factory()
    done = bed.serve(bed.manager.empty, "all tasks done")
    assert len(done) == 12
    for task in done:
        where, content = str(task.std_output).split("\n")
        assert content == "seven"
        assert where.startswith(f"{bed.pool.state}/"), "below the directory that HTCondor gave to the job"
    assert 1 <= len(bed.ever()) <= WORKERS
    bed.serve(lambda: bed.queue() == [], "idle workers leave the pool")
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
    before = bed.numbers()
    assert len(before) == WORKERS
    first.kill()
    first.wait()
    if files == "lost":
        for path in [*bed.directory.rglob("journal.sqlite*"), *bed.directory.rglob("events.*.log")]:
            path.unlink()
    again = len(bed.log())
    second = bed.factory()
    bed.serve(lambda: f"{WORKERS} workers adopted" in bed.log()[again:]
              or f"{WORKERS} workers connected" in bed.log()[again:], "the second factory knows them")
    for _ in range(20):  # eight of its passes
        bed.manager.wait(0.2)
    assert bed.numbers() == bed.ever() == before, "nothing was submitted twice, nothing ended"
    gate.touch()
    assert len(bed.serve(bed.manager.empty, "the tasks end")) == WORKERS
    second.send_signal(signal.SIGTERM)
    bed.serve(lambda: second.poll() is not None, "the factory ends")
    assert second.returncode == 0
    assert bed.queue() == []
    assert bed.ever() == before

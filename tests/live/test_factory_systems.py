"""The factory on each real batch system, and everything around it dying: itself, the scheduler, the manager.

A manager program, `vine_factory -C site.toml` and the batch system are processes of their own. What jobs there are is
asked of the batch system's own tools. The gate is a file for which all tasks wait, so that a test knows who is busy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters.systems import SYSTEMS, System

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("drill_manager.py")
PATIENCE_S = 45.0
LOOK_S = 0.05
WORKERS = 3
SITE = """\
factory-name = "{name}"
factory-period = 0.5
retire-after = {retire_after_s}
drain-grace = 20
"""


class Program:
    """The manager program."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        with open(directory / "manager.log", "ab") as log:
            self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(port)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log, text=True, cwd=directory)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.done: list[dict[str, Any]] = []
        self.stats: dict[str, int] = {"connected": 0, "running": 0, "waiting": 0}
        self.port = int(json.loads(self.process.stdout.readline())["port"])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            record = json.loads(line)
            if "task" in record:
                self.done.append(record)
            else:
                self.stats = record

    def submit(self, count: int, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count} {command}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()


class Bed:
    """One test's place on one batch system."""

    def __init__(self, system: System, cluster: Any, directory: Path) -> None:
        self.system, self.cluster, self.directory = system, cluster, directory
        self.name = f"drill{os.getpid()}-{directory.name}"[:40]
        self.gate = directory / "gate"
        self.site = directory / "site.toml"
        self.old = system.ever(cluster)
        self.program = Program(directory)
        self.factories: list[subprocess.Popen[bytes]] = []

    def write_site(self, *pools: str, retire_after_s: float = 3600) -> None:
        self.site.write_text(SITE.format(name=self.name, retire_after_s=retire_after_s) + "".join(pools))

    def factory(self) -> subprocess.Popen[bytes]:
        """Start it, again."""
        words = [sys.executable, "-m", "vine_factory", "-C", str(self.site), "localhost", str(self.program.port)]
        with open(self.directory / "log", "ab") as log:
            self.factories.append(subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                                   cwd=self.directory))
        return self.factories[-1]

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def jobs(self) -> set[str]:
        return self.system.jobs(self.cluster) - self.old

    def ever(self) -> set[str]:
        return self.system.ever(self.cluster) - self.old

    def status(self) -> dict[str, Any]:
        """What `vine_factory status` says; {} while there is no factory."""
        done = subprocess.run([sys.executable, "-m", "vine_factory", "status", "--json"], capture_output=True,
                              timeout=PATIENCE_S, check=False)
        found = json.loads(done.stdout)
        return dict(found[0]) if found else {}

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not in {PATIENCE_S} s: {what}\n--- log\n{self.log()[-4000:]}\n--- jobs {self.jobs()} of "
                            f"{self.ever()}\n--- {self.program.stats}, {len(self.program.done)} tasks are back\n"
                            f"{(self.directory / 'manager.log').read_text()[-1000:]}")
            time.sleep(LOOK_S)

    def gated(self, count: int) -> None:
        """Submit tasks that run until the gate is there."""
        self.program.submit(count, f"while [ ! -e {self.gate} ]; do sleep 0.1; done; echo through")

    def busy(self) -> None:
        """Until each worker has a task."""
        self.wait(lambda: self.program.stats["running"] == WORKERS, f"{WORKERS} tasks run")

    def back(self, count: int) -> None:
        """Until all tasks are back; each once and well."""
        self.wait(lambda: len(self.program.done) >= count, f"{count} tasks are back")
        assert len({record["task"] for record in self.program.done}) == len(self.program.done) == count
        assert all(record["ok"] and record["out"].startswith("through") for record in self.program.done)

    def stop(self, factory: subprocess.Popen[bytes]) -> None:
        """End it; it leaves no job."""
        self.wait(lambda: self.status().get("pid") == factory.pid, "it is up")
        factory.send_signal(signal.SIGTERM)
        self.wait(lambda: factory.poll() is not None, "the factory ends")
        assert factory.returncode == 0, self.log()[-2000:]
        self.wait(lambda: not self.jobs(), "no job is left")

    def end(self) -> None:
        for factory in self.factories:
            factory.kill()
            factory.wait()
        self.program.kill()
        self.system.end_all(self.cluster)


@pytest.fixture(params=list(SYSTEMS))
def bed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    system = SYSTEMS[request.param]
    cluster = request.getfixturevalue(system.fixture)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*path, str(ROOT), str(ROOT / "factory")]))
    made = Bed(system, cluster, tmp_path)
    yield made
    made.end()


@contextlib.contextmanager
def killed_by_its_submission(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The next submission succeeds, and kill -9 meets the factory before it knows."""
    tool, real = bed.system.submit_tool, shutil.which(bed.system.submit_tool)
    shim, armed = bed.directory / "bin" / tool, bed.directory / "armed"
    shim.parent.mkdir(exist_ok=True)
    armed.touch()
    shim.write_text(f'#!/bin/sh\nsaid=$("{real}" "$@")\nstatus=$?\n'
                    f'rm {armed} 2>/dev/null && kill -9 $PPID\n'
                    'echo "$said"\nexit $status\n')
    shim.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
        yield
        bed.wait(lambda: not armed.exists(), "the submission")


def kill(factory: subprocess.Popen[bytes]) -> None:
    factory.kill()
    factory.wait(PATIENCE_S)


def test_workers_come_for_tasks_and_leave_when_there_are_none(bed: Bed) -> None:
    bed.write_site(bed.system.pool("drill", f"max-workers = {WORKERS}\nmin-workers = 0"), retire_after_s=1)
    (bed.directory / "gate").touch()
    bed.gated(4 * WORKERS)
    factory = bed.factory()
    bed.back(4 * WORKERS)
    assert 1 <= len(bed.ever()) <= WORKERS
    bed.wait(lambda: not bed.jobs(), "idle workers leave")
    bed.stop(factory)


def test_kill_nine_at_any_moment_neither_loses_nor_doubles_a_job_or_a_task(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.write_site(bed.system.pool("drill", f"max-workers = {WORKERS}\nmin-workers = 0"))
    bed.gated(2 * WORKERS)
    # While it submits: the jobs exist, and nobody has told the factory.
    if bed.system.submit_tool:
        with killed_by_its_submission(bed, monkeypatch):
            factory = bed.factory()
        factory.wait(PATIENCE_S)
    else:
        factory = bed.factory()
        bed.wait(bed.jobs, "a job")
        kill(factory)
    # Right after, as soon as the next one knows the jobs.
    factory = bed.factory()
    bed.wait(lambda: len(bed.jobs()) == WORKERS, "all jobs")
    fleet = bed.jobs()
    kill(factory)
    # While tasks run; and its journal is lost, too.
    factory = bed.factory()
    bed.busy()
    kill(factory)
    for path in bed.directory.rglob("journal.sqlite*"):
        path.unlink()
    factory = bed.factory()
    bed.wait(lambda: [pool["connected"] for pool in bed.status().get("pools", [])] == [WORKERS], "all are known again")
    assert bed.jobs() == bed.ever() == fleet
    # While it drains: nobody was needed any more, and half of the tasks wait.
    asked = bed.log().count(f"removing {WORKERS} workers")
    factory.send_signal(signal.SIGTERM)
    bed.wait(lambda: bed.log().count(f"removing {WORKERS} workers") > asked, "it tells the workers to leave")
    kill(factory)
    factory = bed.factory()
    bed.gate.touch()
    bed.back(2 * WORKERS)
    bed.stop(factory)
    assert len(bed.ever()) <= 2 * WORKERS, "those that drained and those that came for the rest"


def test_neither_a_dead_scheduler_nor_a_dead_manager_moves_the_fleet(bed: Bed) -> None:
    bed.write_site(bed.system.pool("drill", f"max-workers = {WORKERS}\nmin-workers = 0"))
    bed.gated(WORKERS)
    factory = bed.factory()
    bed.busy()
    fleet = bed.jobs()
    with bed.system.daemon_off(bed.cluster):
        bed.program.submit(WORKERS, "echo through")
        bed.gate.touch()
        bed.back(2 * WORKERS)  # workers go on
        bed.wait(lambda: "does not answer" in bed.log() or "cannot be asked" in bed.log()
                 or "no answer" in bed.log(), "the factory says so")
    assert factory.poll() is None
    bed.program.kill()
    bed.wait(lambda: any(not one["answers"] for one in bed.status().get("managers", [])), "the manager is missed")
    assert bed.jobs() == fleet
    bed.program = Program(bed.directory, bed.program.port)
    bed.program.submit(2 * WORKERS, "echo through")
    bed.back(2 * WORKERS)
    bed.wait(lambda: bed.program.stats["connected"] == WORKERS, "all workers are back")
    assert bed.jobs() == bed.ever() == fleet
    bed.stop(factory)


@pytest.mark.parametrize("bed", ["condor", "drmaa", "sge"], indirect=True)
def test_several_workers_of_one_job_come_work_and_leave_together(bed: Bed) -> None:
    slots = "" if bed.system.batch == "condor" else 'parallel-environment = "smp"'
    bed.write_site(bed.system.pool("drill", "max-workers = 4\nmin-workers = 0\nworkers-per-job = 2", slots),
                   retire_after_s=1)
    bed.gated(4)
    factory = bed.factory()
    bed.wait(lambda: bed.program.stats["running"] == 4, "four tasks run")
    assert len(bed.ever()) == 2
    bed.gate.touch()
    bed.back(4)
    bed.wait(lambda: not bed.jobs(), "idle workers leave")
    bed.stop(factory)


def test_a_pool_whose_jobs_cannot_start_says_why_and_the_healthy_one_goes_on(bed: Bed) -> None:
    bed.write_site(bed.system.pool("bad", "max-workers = 1\nmin-workers = 1", bed.system.bad),
                   bed.system.pool("good", f"max-workers = {WORKERS}\nmin-workers = {WORKERS}"))
    bed.program.submit(2 * WORKERS, "echo through")
    factory = bed.factory()
    bed.back(2 * WORKERS)
    bed.wait(lambda: re.search(f"bad: .*({bed.system.bad_words})", bed.log()), "the reason in the log")
    said = subprocess.run([sys.executable, "-m", "vine_factory", "status"], capture_output=True, text=True,
                          timeout=PATIENCE_S, check=True).stdout
    assert re.search(bed.system.bad_words, said), said
    bed.stop(factory)

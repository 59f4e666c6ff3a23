"""Real managers, real workers and impostors for the chaos tests: what a test starts here is ended here, by pid.

Owns processes, waiting with deadlines, and hand-made protocol clients. Must not know what a test wants to show.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import taskvine_core as vine
from taskvine_core import constants as c
from taskvine_core.manager.core import ManagerCore
from taskvine_core.protocol import messages as m
from taskvine_core.protocol.session import Session
from taskvine_core.resources import Resources
from taskvine_core.secret import load_secret

#: No single wait of a chaos test may be longer, also on a loaded machine.
PATIENCE_S = 40.0
LOOK_S = 0.005
ROOT = Path(vine.__file__).resolve().parent.parent
MB = 1 << 20


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Look until ``condition`` gives something true and return that; fails with ``what`` after the deadline."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(LOOK_S)
    return found


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child process: this one's, able to import this checkout from anywhere."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


class Worker:
    """A real ``vine_worker`` process. It advertises its own name as a feature, so that tests can steer tasks to it."""

    def __init__(self, name: str, directory: Path, host: str, port: int, *options: str, prefix: Iterable[str] = (),
                 env: dict[str, str] | None = None) -> None:
        self.name = name
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._log = (directory / "worker.log").open("ab")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "taskvine_core.worker.cli", "--workspace", str(directory / "ws"),
             "--feature", name, "--min-backoff", "0.05", "--max-backoff", "0.2", "--memory", "2000",
             *(() if "--disk" in options else ("--disk", "4000")), *(() if "--cores" in options else ("--cores", "1")),
             *options, host, str(port)],
            stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, env=env or environment(),
            start_new_session=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def cache(self) -> Path:
        return self.directory / "ws" / "cache"

    @property
    def incoming(self) -> Path:
        return self.directory / "ws" / "transfer"

    def output(self) -> str:
        return (self.directory / "worker.log").read_text("utf-8", "replace")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()
        end_processes_in(self.directory)


def end_processes_in(directory: Path) -> None:
    """End what a killed worker's tasks left running: processes whose working directory lies in ``directory``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                where = os.readlink(entry / "cwd")
                if where.startswith(f"{directory}/"):
                    os.kill(int(entry.name), signal.SIGKILL)


class Cluster:
    """One manager in this process and its workers."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.manager = vine.Manager(0, run_info_path=directory / "run-info", **options)
        self.workers: list[Worker] = []
        self.returned: Counter[int] = Counter()

    @property
    def port(self) -> int:
        return self.manager.port

    def start(self, *options: str, name: str = "", host: str = "127.0.0.1", join: bool = True, **more: Any) -> Worker:
        """Start a worker; ``join``: wait until the manager knows it."""
        name = name or f"w{len(self.workers)}"
        worker = Worker(name, self.directory / name, host, self.port, *options, **more)
        self.workers.append(worker)
        if join:
            self.wait_joined(worker)
        return worker

    def start_many(self, count: int, *options: str) -> list[Worker]:
        """Start so many at the same time and wait for all."""
        workers = [self.start(*options, join=False) for _ in range(count)]
        for worker in workers:
            self.wait_joined(worker)
        return workers

    def wait_joined(self, worker: Worker) -> None:
        wait_until(lambda: self.key(worker) is not None or worker.process.poll() is not None,
                   f"{worker.name} joins: {worker.output()}")
        assert worker.process.poll() is None, worker.output()

    def core(self, read: Callable[[ManagerCore], Any]) -> Any:
        """Look at the manager's core, between two of its turns."""
        return self.manager._runner.call(lambda core, now: read(core))

    def key(self, worker: Worker) -> int | None:
        """The connection key of a worker that told its cache, None when it is not connected."""
        def read(core: ManagerCore) -> int | None:
            return next((w.key for w in core.workers.values() if worker.name in w.hello.features), None)

        return self.core(read)

    def stat(self, name: str) -> int:
        return int(getattr(self.manager.stats, name))

    def task(self, command: str, at: Worker | None = None, inputs: dict[str, Any] | None = None,
             outputs: dict[str, Any] | None = None, tag: str | None = None) -> vine.Task:
        """Submit a command; inputs and outputs by their names in the sandbox."""
        task = vine.Task(command)
        task.set_cores(1)
        if at is not None:
            task.add_feature(at.name)
        if tag is not None:
            task.set_tag(tag)
        for remote, file in (inputs or {}).items():
            task.add_input(file, remote)
        for remote, file in (outputs or {}).items():
            task.add_output(file, remote)
        self.manager.submit(task)
        return task

    def wait(self, timeout_s: float = PATIENCE_S) -> vine.Task:
        """The next finished task; fails when none comes."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            task = self.manager.wait(min(left, 1.0))
            if task is not None:
                self.returned[task.id] += 1
                return task
        raise AssertionError(f"no task within {timeout_s} s: {self.manager.status('tasks')}")

    def finish(self, timeout_s: float = PATIENCE_S) -> list[vine.Task]:
        """All tasks still out, in order of return; fails when they do not come in time."""
        end = time.monotonic() + timeout_s
        tasks = []
        while not self.manager.empty():
            tasks.append(self.wait(max(0.1, end - time.monotonic())))
        return tasks

    def run(self, command: str, *args: Any, **options: Any) -> vine.Task:
        """Submit and wait for this one task."""
        self.task(command, *args, **options)
        return self.finish()[-1]

    def close(self) -> None:
        try:
            self.manager.close()
        finally:
            for worker in self.workers:
                worker.close()


class Impostor:
    """A hand-made client of the manager's port: raw bytes, or an authenticated session that says what it likes."""

    def __init__(self, port: int, role: str = "worker", secret: bytes | None = None, receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(("127.0.0.1", port))
        self.session = Session(secret=load_secret() if secret is None else secret, role=role, initiator=True,
                               nonce=os.urandom(32))
        self.inbox: list[Any] = []

    def shake_hands(self) -> None:
        self.sock.sendall(self.session.start())
        while not self.session.established:
            self.pump()

    def pump(self) -> bool:
        """Read once; False when the other side has closed."""
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionError:
            return False
        if not data:
            return False
        got, reply = self.session.receive(data)
        if reply:
            self.sock.sendall(reply)
        self.inbox += got
        return True

    def say(self, *messages: Any) -> bytes:
        """Send messages; returns the bytes that went."""
        data = self.session.encode(messages)
        self.sock.sendall(data)
        return data

    def hello(self, worker_id: str, *features: str, cores: int = 1) -> None:
        """Introduce itself as a worker with an empty cache."""
        self.say(a_hello(worker_id, *features, cores=cores), m.CacheOffer(()))

    def expect(self, kind: type) -> Any:
        """The next message of this kind."""
        end = time.monotonic() + PATIENCE_S
        while True:
            for index, message in enumerate(self.inbox):
                if isinstance(message, kind):
                    del self.inbox[index]
                    return message
            assert time.monotonic() < end and self.pump(), f"no {kind.__name__}"

    def closed(self) -> bool:
        """Wait until the other side closes; False when it has not after a while."""
        end = time.monotonic() + PATIENCE_S
        try:
            while time.monotonic() < end:
                if not self.pump():
                    return True
        except TimeoutError:
            return False
        return False

    def close(self) -> None:
        self.sock.close()


def a_hello(worker_id: str, *features: str, cores: int = 1) -> m.WorkerHello:
    return m.WorkerHello(worker_id, f"impostor-{worker_id}", "linux", "x86_64", "0", tuple(features),
                         Resources(cores, 1000, 1000, 0), "", 0, 0.0, 0.0, "", "")


def directory_on_small_disk(path: Path, size_mb: int) -> Callable[[], None]:
    """Mount a small tmpfs at ``path``; returns what unmounts it. Needs root."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size_mb}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(path)], check=True, timeout=PATIENCE_S)

    def unmount() -> None:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=PATIENCE_S)

    return unmount


def may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


def resident_mb() -> int:
    """Memory of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) // 1024 if found else 0


__all__ = ["MB", "PATIENCE_S", "Cluster", "Impostor", "Worker", "a_hello", "c", "environment", "wait_until"]

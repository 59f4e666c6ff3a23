"""What tests of the `vine_factory` command share: a place of their own, a stand-in worker, a stand-in manager.

Everything that waits has a deadline; what a test starts it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskvine_core.protocol.messages import Query, Reply
from taskvine_core.protocol.session import Session
from taskvine_core.secret import load_secret
from vine_factory.batch import proc

PATIENCE_S = 20.0
SLEEPER = """#!/bin/sh
trap 'exit 0' TERM
echo "$@" >> "$(dirname "$0")/started"
while :; do sleep 0.05; done
"""


def wait(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.02)
    return found


class StandInManager:
    """Answers "demand" and "retire". Lists as connected all jobs in ``jobs``; ``hang`` makes it silent."""

    def __init__(self, port: int = 0) -> None:
        self.need = 0
        self.jobs: Callable[[], list[str]] = list
        self.busy: set[str] = set()
        self.retired: list[str] = []
        self.hang = False
        self.questions = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # wakes the thread in accept
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                self._links.append(link)
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        session = Session(secret=load_secret(), role="manager", initiator=False, nonce=os.urandom(32))
        with contextlib.suppress(OSError):
            while data := link.recv(65536):
                messages, answer = session.receive(data)
                link.sendall(answer)
                for message in messages:
                    self.questions += 1
                    if isinstance(message, Query) and not self.hang:
                        body = self._answer(message.what, json.loads(message.body))
                        link.sendall(session.encode([Reply(message.query_id, json.dumps(body).encode(), "")]))

    def _answer(self, what: str, body: Any) -> Any:
        if what == "retire":
            self.retired += body["worker_ids"]
            return {"accepted": body["worker_ids"], "refused": {}}
        workers = [{"worker_id": f"w-{job}", "job_id": job, "factory_name": "f", "hostname": "h", "idle_s": 100.0,
                    "state": "busy" if job in self.busy else "idle", "tasks_running": int(job in self.busy),
                    "load": float(job in self.busy),
                    "cache_mb": 0, "sole_mb": 0, "end_time": 0, "cores": 1, "memory_mb": 1, "disk_mb": 1, "gpus": 0}
                   for job in self.jobs() if f"w-{job}" not in self.retired]
        waiting = max(0, self.need - sum(worker["tasks_running"] for worker in workers))
        group = {"category": "c", "tasks": waiting, "seconds": None, "parts": [1.0 for _ in body["shapes"]],
                 "asks": {"cores": 1, "memory_mb": -1, "disk_mb": -1, "gpus": -1}}
        return {"manager_id": "m", "project": "p", "tasks_waiting": waiting, "tasks_running": 0,
                "tasks_left": waiting, "groups": [group] if waiting else [], "workers": workers, "blocked_hosts": []}


class Bed:
    """A place for one test: state directory, a stand-in worker, factories started here."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.worker = tmp_path / "worker"
        self.set_worker(SLEEPER)
        self.name = f"bed{os.getpid()}-{random.randrange(1 << 30)}"
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                            "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}
        self.processes: list[subprocess.Popen[bytes]] = []

    def set_worker(self, text: str) -> None:
        self.worker.write_text(text)
        self.worker.chmod(0o755)

    def factory(self, *arguments: object, binary: bool = True) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "vine_factory", "--batch", "local", "--factory-name", self.name,
                 "--drain-grace", "3", "--factory-period", "0.2",
                 *(["--worker-binary", str(self.worker)] if binary else []), *map(str, arguments)]
        with open(self.path / "log", "ab") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.path,
                                       env=self.environment)
        self.processes.append(process)
        return process

    def log(self) -> str:
        return (self.path / "log").read_text()

    def started(self, count: int) -> str:
        """A line of each worker that began, once ``count`` did: one is listed before it has written anything."""
        path = self.path / "started"
        return wait(lambda: path.exists() and (text := path.read_text()).count("\n") >= count and text,
                    f"{count} workers have begun")

    def workers(self) -> dict[str, int]:
        """Job id -> pid of the workers that run."""
        return {p.tag.rsplit("/", 1)[1]: p.pid for p in proc.tagged_processes(self.name) if p.is_job}

    def status(self) -> list[dict[str, Any]]:
        done = subprocess.run([sys.executable, "-m", "vine_factory", "status", "--json"], capture_output=True,
                              env=self.environment, timeout=PATIENCE_S, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for found in proc.tagged_processes(self.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)

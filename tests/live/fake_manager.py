"""The smallest thing a worker takes for a manager: one listener, one session at a time, messages on request.

Owns no policy: tests say what to send and what must come back. Everything that waits has a deadline.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK, VINE_CACHE_LEVEL_WORKFLOW
from taskvine_core.dataplane.channel import Tls
from taskvine_core.dataplane.objects import ObjectInfo, hash_object
from taskvine_core.dataplane.server import DataServer, ServedObject
from taskvine_core.model.tasks import KIND_PYTHON, RESULT_REMOTE, Mount, TaskSpec
from taskvine_core.protocol import messages as m
from taskvine_core.protocol.session import Session
from taskvine_core.resources import Resources

SECRET = b"s" * 32
PATIENCE_S = 15.0
ONE_CORE = Resources(1, 100, 100, 0)
T = TypeVar("T")


class FakeManager:
    """A listener on loopback. ``link`` and ``session`` belong to the worker accepted last."""

    def __init__(self, manager_id: str = "m-1", port: int = 0, secret: bytes = SECRET,
                 tls: tuple[ssl.SSLContext, bytes] | None = None, peer_key: m.PeerKey | None = None) -> None:
        self.manager_id = manager_id
        self.secret = secret
        self.tls = tls
        self.peer_key = peer_key
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.inbox: list[Any] = []
        self.files: dict[str, Path] = {}
        self.uploads: dict[int, Path] = {}
        self.upload_ends: dict[int, tuple[ObjectInfo | None, str]] = {}
        self.data = DataServer(secret=secret, role="manager", provider=self, max_threads=4, timeout_s=10.0,
                               tls=Tls(*tls) if tls else None)
        self.data_port = self.data.listen("127.0.0.1", 0)
        self.link: socket.socket | None = None
        self.links: list[socket.socket] = []        # earlier ones stay open until close()
        self.session: Session | None = None

    # Provider of the data server -------------------------------------------------------------------------

    def open_object(self, name: str) -> ServedObject | None:
        path = self.files.get(name)
        return None if path is None else ServedObject(path, b"", lambda ok, sent: None)

    def begin_upload(self, transfer_id: int, name: str) -> Path | None:
        return self.uploads.get(transfer_id)

    def end_upload(self, transfer_id: int, info: ObjectInfo | None, error: str) -> None:
        self.upload_ends[transfer_id] = (info, error)

    # Control connection ----------------------------------------------------------------------------------

    def accept(self, timeout_s: float = PATIENCE_S) -> m.WorkerHello:
        """Take a worker's connection up to its hello."""
        self.listener.settimeout(timeout_s)
        self.link, _ = self.listener.accept()
        self.links.append(self.link)
        binding = b""
        if self.tls:
            self.link.settimeout(timeout_s)
            self.link = self.tls[0].wrap_socket(self.link, server_side=True)
            binding = self.tls[1]
        self.session = Session(secret=self.secret, role="manager", initiator=False, nonce=os.urandom(32),
                               binding=binding, mac=self.tls is None)
        self.inbox = []
        hello = self.expect(m.WorkerHello, timeout_s=timeout_s)
        return hello

    def welcome(self, max_stdout_bytes: int = 1 << 30) -> m.CacheOffer:
        if self.peer_key is not None:
            self.send(self.peer_key)
        self.send(m.Welcome(self.manager_id, "fake", self.data_port, 60.0, max_stdout_bytes))
        return self.expect(m.CacheOffer)

    def send(self, *messages: Any) -> None:
        assert self.link is not None and self.session is not None
        self.link.sendall(self.session.encode(messages))

    def pump(self, timeout_s: float) -> None:
        """Read what comes within ``timeout_s`` (at least one read)."""
        assert self.link is not None and self.session is not None
        self.link.settimeout(max(0.001, timeout_s))
        try:
            data = self.link.recv(1 << 20)
        except TimeoutError:
            return
        if not data:
            raise ConnectionError("the worker closed the connection")
        got, reply = self.session.receive(data)
        if reply:
            self.link.sendall(reply)
        self.inbox += got

    def expect(self, kind: type[T], where: Callable[[T], bool] = lambda message: True,
               timeout_s: float = PATIENCE_S) -> T:
        """The first message of ``kind`` that fits, taken out of the inbox."""
        end = time.monotonic() + timeout_s
        while True:
            for index, message in enumerate(self.inbox):
                if isinstance(message, kind) and where(message):
                    del self.inbox[index]
                    return message
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"no {kind.__name__} within {timeout_s} s; got {self.inbox}")
            self.pump(left)

    def done(self, task_id: int, timeout_s: float = PATIENCE_S) -> m.TaskDone:
        return self.expect(m.TaskDone, lambda t: t.task_id == task_id, timeout_s)

    def drop(self) -> None:
        """Close the control connection."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.listener.close()
        self.data.close()


class WorkerProcess:
    """A real ``vine_worker`` with its workspace in a directory of its own."""

    def __init__(self, port: int, *options: str, cwd: Path, program: list[str] | None = None,
                 env: dict[str, str] | None = None) -> None:
        self.directory = cwd
        key = cwd / "password"
        key.write_text(SECRET_TEXT)
        key.chmod(0o600)
        self.workspace = cwd / "ws"
        self.log = (cwd / "worker.log").open("wb")
        words = program or [sys.executable, "-m", "taskvine_core.worker.cli"]
        self.process = subprocess.Popen(
            [*words, "--password", str(key), "--workspace", str(self.workspace), "--cores", "4", "--memory", "2000",
             "--disk", "1000", "--min-backoff", "0.05", "--max-backoff", "0.1", *options, "127.0.0.1", str(port)],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=env, start_new_session=True)

    def output(self) -> str:
        return (self.directory / "worker.log").read_text("utf-8", "replace")

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.log.close()


#: Content of the password file; fake managers use what it stands for.
SECRET_TEXT = SECRET.hex()


def command(text: str, *, inputs: tuple[Mount, ...] = (), outputs: tuple[Mount, ...] = (), **fields: Any) -> TaskSpec:
    return TaskSpec(command=text, inputs=inputs, outputs=outputs, **fields)


def dispatch(task_id: int, spec: TaskSpec, *, attempt: int = 0, allocation: Resources = ONE_CORE,
             inline: bool = True, level: int = VINE_CACHE_LEVEL_WORKFLOW) -> m.Dispatch:
    wanted = tuple(out.name for out in spec.outputs) if inline else ()
    return m.Dispatch(task_id, attempt, spec, allocation, (), wanted, (level,) * len(spec.outputs))


def put(name: str, data: bytes, *, level: int = VINE_CACHE_LEVEL_TASK, mode: int = 0o644) -> m.PutInline:
    return m.PutInline(name, level, mode, b"", data)


def python_task(function: Any, *args: Any, name: str = "buffer-rnd-fn", serialize: bool = True,
                **fields: Any) -> tuple[m.PutInline, TaskSpec]:
    """What to send for a Python task: its function's blob and its description."""
    import cloudpickle

    blob = put(name, cloudpickle.dumps(function), level=VINE_CACHE_LEVEL_WORKFLOW)
    spec = TaskSpec(command=fields.pop("command", ""), kind=KIND_PYTHON, inputs=(Mount(name, ""),),
                    outputs=(Mount(fields.pop("out", "temp-rnd-result"), RESULT_REMOTE),), function=name,
                    arguments=cloudpickle.dumps([args, {}]), serialize_output=serialize, **fields)
    return blob, spec


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Look until ``condition`` holds; fails with ``what`` after the deadline."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.005)


def fresh_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="worker-test-"))


__all__ = ["FakeManager", "WorkerProcess", "command", "dispatch", "hash_object", "put", "python_task", "wait_until"]

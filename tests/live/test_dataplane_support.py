"""Tools of the data plane's live tests: a provider, and servers and clients that misbehave on purpose. No tests."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskvine_core.dataplane.channel import Channel
from taskvine_core.dataplane.client import FetchResult, fetch
from taskvine_core.dataplane.messages import Local
from taskvine_core.dataplane.objects import ObjectInfo
from taskvine_core.dataplane.server import DataServer, ServedObject
from taskvine_core.protocol.session import Session

SECRET = b"0123456789abcdef0123456789abcdef"
TIMEOUT_S = 5.0
DEADLINE_S = 10.0
HOST = "127.0.0.1"


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for: {what}"
        time.sleep(0.01)


class Shelf:
    """A provider over a directory that remembers what happened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.digests: dict[str, bytes] = {}
        self.done: list[tuple[str, bool, int]] = []
        self.uploads: dict[int, Path] = {}
        self.ended: list[tuple[int, ObjectInfo | None, str]] = []

    def open_object(self, name: str) -> ServedObject | None:
        path = self.directory / name
        if not os.path.lexists(path):
            return None
        return ServedObject(path, self.digests.get(name, b""),
                            lambda ok, sent: self.done.append((name, ok, sent)))

    def begin_upload(self, transfer_id: int, name: str) -> Path | None:
        return self.uploads.get(transfer_id)

    def end_upload(self, transfer_id: int, info: ObjectInfo | None, error: str) -> None:
        self.ended.append((transfer_id, info, error))


class Rig:
    """A shelf with a server, a place to fetch into, and the server's complaints."""

    def __init__(self, root: Path, *, max_threads: int = 4, timeout_s: float = TIMEOUT_S, tls: Any = None,
                 role: str = "worker") -> None:
        self.shelf = Shelf(root / "shelf")
        self.out = root / "out"
        self.out.mkdir()
        self.said: list[str] = []
        self.server = DataServer(secret=SECRET, role=role, provider=self.shelf, max_threads=max_threads,
                                 timeout_s=timeout_s, tls=tls, report=self.said.append)
        self.port = self.server.listen(HOST, 0)

    def add(self, name: str, data: bytes) -> Path:
        path = self.shelf.directory / name
        path.write_bytes(data)
        return path

    def fetch(self, names: Sequence[str], **more: Any) -> list[FetchResult]:
        return list(self.iterate(names, **more))

    def iterate(self, names: Sequence[str], **more: Any) -> Iterator[FetchResult]:
        return fetch_into(self.out, self.port, names, **more)


def fetch_into(out: Path, port: int, names: Sequence[str], *, secret: bytes = SECRET,
               expected: Mapping[str, bytes] | None = None, sizes: Mapping[str, int] | None = None,
               timeout_s: float = TIMEOUT_S, cancel: Callable[[], bool] = lambda: False,
               room: Callable[[int], bool] = lambda size: True, tls: Any = None) -> Iterator[FetchResult]:
    return fetch((HOST, port), names, lambda name: out / name, secret=secret, expected=expected or {},
                 sizes=sizes or {}, timeout_s=timeout_s, cancel=cancel, room=room, tls=tls)


@contextmanager
def scripted_server(script: Callable[[Channel], None], *, secret: bytes = SECRET) -> Iterator[int]:
    """A server with a valid session that does what ``script`` says, once per connection; yields its port."""
    listener = socket.create_server((HOST, 0))
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            session = Session(secret=secret, role="worker", initiator=False, nonce=os.urandom(32))
            channel = Channel(sock, session, "client", TIMEOUT_S, stop.is_set)
            try:
                channel.handshake()
                first = channel.receive()  # a client on this machine introduces itself; scripts are about what follows
                if first is not None and not isinstance(first, Local):
                    channel.give_back([first])
                script(channel)
            except Exception:
                pass  # the client went away, which is what some tests want
            finally:
                channel.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()

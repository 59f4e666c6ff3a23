"""How a running factory takes orders: a Unix socket in its own directory.

Owns the socket, who may speak to it (the same user, asked of the kernel) and how one order and its answer are written:
a JSON object on a line each. Must not know what orders mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskvine_core.errors import ConfigError
from vine_factory import defaults

SOCKET = "control.sock"
_CREDENTIALS = struct.Struct("3i")
_CHUNK_BYTES = 64 * 1024

Reply = Callable[[Mapping[str, Any]], None]


class ControlServer:
    """Listens until it is closed.

    Args:
        directory: of the factory, which holds its lock: an old socket there is nobody's.
        take: gets each order and where its answer goes; called in a thread of the connection.

    Raises:
        OSError: there can be no socket here; some network file systems have none.
    """

    def __init__(self, directory: Path, take: Callable[[dict[str, Any], Reply], None]) -> None:
        self._take = take
        self._directory = directory
        self._slots = threading.BoundedSemaphore(defaults.MAX_ORDERS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            (directory / SOCKET).unlink(missing_ok=True)
            with _short(directory) as name:
                self._listener.bind(name)
            os.chmod(directory / SOCKET, 0o600)  # before anybody can connect
            self._listener.listen(defaults.MAX_ORDERS)
        except BaseException:
            self._listener.close()
            raise
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Take no more orders; those under way may still be answered."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listener.close()
        with contextlib.suppress(OSError):
            (self._directory / SOCKET).unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            if self._slots.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(link,), name="order", daemon=True).start()
            else:
                link.close()

    def _serve(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            try:
                link.settimeout(defaults.ORDER_READ_S)
                link.sendall(_line(self._answer(link)))
            finally:
                self._slots.release()

    def _answer(self, link: socket.socket) -> Mapping[str, Any]:
        _, uid, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.getuid():
            return {"error": f"user {uid} may not give orders to a factory of user {os.getuid()}"}
        try:
            order = json.loads(_read_line(link, defaults.MAX_ORDER_BYTES))
        except (ValueError, RecursionError) as problem:
            return {"error": f"not an order: {problem}"}
        if not isinstance(order, dict):
            return {"error": "not an order: expected a JSON object"}
        answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._take(order, answers.put)
        try:
            return answers.get(timeout=defaults.ORDER_ANSWER_S)
        except queue.Empty:
            return {"error": f"the factory has not answered within {defaults.ORDER_ANSWER_S:g} s; its log says what "
                             "it is waiting for"}


def ask(directory: Path, order: Mapping[str, Any]) -> dict[str, Any]:
    """Give an order to the factory that lives in ``directory``; its answer.

    Raises:
        ConfigError: nobody takes orders there, or it refuses this one.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with link:
        link.settimeout(defaults.ORDER_ANSWER_S + defaults.ORDER_READ_S)
        try:
            with _short(directory) as name:
                link.connect(name)
            link.sendall(_line(order))
            answer = json.loads(_read_line(link, defaults.MAX_ANSWER_BYTES))
        except (OSError, ValueError) as problem:
            raise ConfigError(f"the factory in {directory} takes no orders: {problem}",
                              hint="is it running, and on this machine?") from problem
    if not isinstance(answer, dict) or "error" in answer:
        raise ConfigError(str(answer.get("error")) if isinstance(answer, dict) else "the factory's answer is garbage")
    return answer


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A name of the socket below 108 bytes, however long its directory's is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, default=str).encode() + b"\n"


def _read_line(link: socket.socket, limit: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        chunk = link.recv(_CHUNK_BYTES)
        if not chunk:
            raise ValueError("the other side hung up")
        data += chunk
        if len(data) > limit:
            raise ValueError(f"more than {limit} bytes")
    return data

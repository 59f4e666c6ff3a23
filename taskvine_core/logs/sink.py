"""Log files on disk: appended by one thread, so that a slow file system does not stop the manager.

Owns the files and the thread. Must not know formats. The thread only writes ready bytes: it needs the
interpreter for microseconds, so it does not take turns with the manager (formatting in a thread would: every
system call of the manager would then wait for the interpreter).
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path

#: Bytes that may wait for the file system before ``write`` blocks.
MAX_BACKLOG_BYTES = 64 << 20
#: How long ``write`` blocks, and ``close`` waits, before bytes are given up.
GIVE_UP_S = 10.0
#: The kernel takes at most 1024 pieces in one call.
MAX_VECTOR = 1024


class LogSink:
    """Some append-only files with one writer thread.

    Args:
        directory: existing directory.
        names: file names; the files are created at once.

    Raises:
        OSError: a file cannot be created.
    """

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._files = {name: os.open(directory / name, flags, 0o644) for name in names}
        self._directory = directory
        self._queue: queue.SimpleQueue[tuple[dict[str, list[bytes]], int] | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting_bytes = 0
        self._pending: dict[str, list[bytes]] = {}
        self._pending_bytes = 0
        self._pid = os.getpid()
        #: First failure of each file, in words; bytes lost in all.
        self.errors: dict[str, str] = {}
        self.lost_bytes = 0
        self._thread = threading.Thread(target=self._run, name="taskvine-logs", daemon=True)
        self._thread.start()

    def write(self, name: str, text: str) -> None:
        """Append ``text`` at the next ``push``."""
        data = text.encode("utf-8", "backslashreplace")
        self._pending.setdefault(name, []).append(data)
        self._pending_bytes += len(data)

    def push(self) -> None:
        """Hand what was written to the thread; blocks only while too much waits, and then not for ever."""
        pending, size_bytes = self._pending, self._pending_bytes
        self._pending, self._pending_bytes = {}, 0
        if not pending or os.getpid() != self._pid:
            return  # a forked child has neither the thread nor the right to these files
        with self._room:
            if self._waiting_bytes > MAX_BACKLOG_BYTES and not self._room.wait_for(
                    lambda: self._waiting_bytes <= MAX_BACKLOG_BYTES, GIVE_UP_S):
                for name in pending:
                    self._lose(name, size_bytes, f"the file system took nothing for {GIVE_UP_S:.0f} s")
                return
            self._waiting_bytes += size_bytes
        self._queue.put((pending, size_bytes))

    def close(self) -> None:
        """Write what waits, end the thread, close the files; idempotent."""
        if not self._files or os.getpid() != self._pid:
            return
        self.push()
        self._queue.put(None)
        self._thread.join(GIVE_UP_S)
        if self._thread.is_alive():
            self._lose("logs", self._waiting_bytes, f"the file system took nothing for {GIVE_UP_S:.0f} s")
            return  # the thread still uses the files
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            pending, size_bytes = item
            for name, chunks in pending.items():
                try:
                    _write_all(self._files[name], chunks)
                except OSError as error:
                    self._lose(name, sum(map(len, chunks)), str(error))
            with self._room:
                self._waiting_bytes -= size_bytes
                self._room.notify()

    def _lose(self, name: str, size_bytes: int, why: str) -> None:
        self.lost_bytes += size_bytes
        if name not in self.errors:
            self.errors[name] = why
            print(f"taskvine: log {self._directory / name} is incomplete: {why}", file=sys.stderr)


def _write_all(descriptor: int, chunks: list[bytes]) -> None:
    for first in range(0, len(chunks), MAX_VECTOR):
        group = chunks[first:first + MAX_VECTOR]
        written = os.writev(descriptor, group)
        if written < sum(map(len, group)):
            rest = memoryview(b"".join(group))[written:]
            while rest:
                rest = rest[os.write(descriptor, rest):]

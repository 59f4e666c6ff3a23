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
        self._queue: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting_bytes = 0
        self._pid = os.getpid()
        #: First failure of each file, in words; bytes lost in all.
        self.errors: dict[str, str] = {}
        self.lost_bytes = 0
        self._thread = threading.Thread(target=self._run, name="taskvine-logs", daemon=True)
        self._thread.start()

    def write(self, name: str, text: str) -> None:
        """Append ``text``; blocks only while too much waits for the file system, and then not for ever."""
        if os.getpid() != self._pid:
            return  # a forked child has neither the thread nor the right to these files
        data = text.encode("utf-8", "backslashreplace")
        with self._room:
            if self._waiting_bytes > MAX_BACKLOG_BYTES and not self._room.wait_for(
                    lambda: self._waiting_bytes <= MAX_BACKLOG_BYTES, GIVE_UP_S):
                self._lose(name, len(data), f"the file system took nothing for {GIVE_UP_S:.0f} s")
                return
            self._waiting_bytes += len(data)
        self._queue.put((name, data))

    def close(self) -> None:
        """Write what waits, end the thread, close the files; idempotent."""
        if not self._files or os.getpid() != self._pid:
            return
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
            name, data = item
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._files[name], view):]
            except OSError as error:
                self._lose(name, len(data), str(error))
            with self._room:
                self._waiting_bytes -= len(data)
                self._room.notify()

    def _lose(self, name: str, size_bytes: int, why: str) -> None:
        self.lost_bytes += size_bytes
        if name not in self.errors:
            self.errors[name] = why
            print(f"taskvine: log {self._directory / name} is incomplete: {why}", file=sys.stderr)

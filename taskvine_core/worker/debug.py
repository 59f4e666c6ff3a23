"""The worker's debug log: one line per event and action, written only when asked for.

Owns the format and the rotation of the file. Must not be imported unless ``--debug`` is given.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from taskvine_core.errors import ConfigError

#: Longer texts (file contents, commands) are shortened.
MAX_LINE = 600
STREAMS = {":stderr": sys.stderr, ":stdout": sys.stdout}


class DebugLog:
    """Writes lines; a file that grew beyond ``rotate_bytes`` (0 = never) becomes ``<file>.old``.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, path: str, rotate_bytes: int) -> None:
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._file: TextIO = STREAMS[path] if path in STREAMS else self._open()

    def _open(self) -> TextIO:
        try:
            return open(self._path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            raise ConfigError(f"debug file {self._path} cannot be opened: {error.strerror}") from error

    def __call__(self, what: object) -> None:
        """Write one line about an event or action."""
        now = time.time()
        stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now))
        text = repr(what)
        if len(text) > MAX_LINE:
            text = text[:MAX_LINE] + "..."
        self._file.write(f"{stamp}.{int(now * 100) % 100:02d} vine_worker[{os.getpid()}] {text}\n")
        if self._path in STREAMS:
            self._file.flush()
        elif self._rotate_bytes and self._file.tell() > self._rotate_bytes:
            self._file.close()
            os.replace(self._path, self._path + ".old")
            self._file = self._open()

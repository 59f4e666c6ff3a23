"""The factory's log: one line per change, for people or as JSON.

Owns the format, and the file besides the terminal. Must not decide what is worth a line.
"""

from __future__ import annotations

import json
import logging
import time
from logging.handlers import RotatingFileHandler
from typing import TextIO

from taskvine_core.errors import ConfigError
from vine_factory.events import Note


class Log:
    """Writes notes to ``stream``; ``as_json`` makes each line one JSON object.

    Args:
        path: a file that gets the lines too, "" = none.
        limit_bytes: when it has so many, it becomes ``path``.1, 0 = never.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, stream: TextIO, as_json: bool, path: str = "", limit_bytes: int = 0) -> None:
        self._stream = stream
        self._as_json = as_json
        try:
            self._file = RotatingFileHandler(path, maxBytes=limit_bytes, backupCount=1,
                                             encoding="utf-8") if path else None
        except OSError as problem:
            raise ConfigError(f"the log file {path} cannot be written: {problem.strerror}",
                              hint="give another one with --debug-file") from problem

    def note(self, note: Note, now: float) -> None:
        """One line. A closed terminal must not end the factory."""
        if self._file is not None:
            # A file outlives its day, a terminal's lines are read as they come.
            self._file.emit(logging.makeLogRecord({"msg": self._line(note, now, "%Y-%m-%d %H:%M:%S")}))
        try:
            print(self._line(note, now, "%H:%M:%S"), file=self._stream, flush=True)
        except (BrokenPipeError, ValueError):
            self._stream = open("/dev/null", "w")  # noqa: SIM115 - nobody reads any more; lives as long as we do

    def _line(self, note: Note, now: float, stamp_format: str) -> str:
        if self._as_json:
            return json.dumps({"time": round(now, 3), "event": note.kind, "text": note.text, "cause": note.cause,
                               **note.fields}, default=str)
        stamp = time.strftime(stamp_format, time.localtime(now))
        return f"{stamp} vine_factory: " + note.text.replace("\n", "\n" + " " * len(stamp) + " | ")

"""The factory's log: one line per change, for people or as JSON.

Owns the format. Must not decide what is worth a line.
"""

from __future__ import annotations

import json
import time
from typing import TextIO

from vine_factory.events import Note


class Log:
    """Writes notes to ``stream``; ``as_json`` makes each line one JSON object."""

    def __init__(self, stream: TextIO, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json

    def note(self, note: Note, now: float) -> None:
        """One line. A closed terminal must not end the factory."""
        if self._as_json:
            line = json.dumps({"time": round(now, 3), "event": note.kind, "text": note.text, "cause": note.cause,
                               **note.fields}, default=str)
        else:
            stamp = time.strftime("%H:%M:%S", time.localtime(now))
            line = f"{stamp} vine_factory: " + note.text.replace("\n", "\n" + " " * len(stamp) + " | ")
        try:
            print(line, file=self._stream, flush=True)
        except (BrokenPipeError, ValueError):
            self._stream = open("/dev/null", "w")  # noqa: SIM115 - nobody reads any more; lives as long as we do

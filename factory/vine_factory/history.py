"""What a factory has done, on disk, bounded: its decisions and the stories of its jobs.

Owns the files (JSON, one object per line, the older half in NAME.1) and their size. A full disk costs the history and
nothing else. Must not know what the records mean, except which decisions are new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vine_factory import defaults
from vine_factory.passes import key

DECISIONS, JOBS = "decisions.jsonl", "jobs.jsonl"


class History:
    """Writes the history below ``directory``. ``problem``: why the last writing failed, "" when it did not."""

    def __init__(self, directory: Path, limit_bytes: int = defaults.HISTORY_FILE_BYTES) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._last: dict[str, tuple[object, float]] = {}
        self.problem = ""

    def decided(self, records: Iterable[Mapping[str, Any]], now: float) -> None:
        """Keep those that are not as before, and each once a minute."""
        fresh = []
        for record in records:
            before = self._last.get(record["pool"])
            if before is None or before[0] != key(record) or now - before[1] >= defaults.RECORD_EVERY_S:
                self._last[record["pool"]] = (key(record), now)
                fresh.append(record)
        self._append(DECISIONS, fresh)

    def lived(self, stories: Iterable[Mapping[str, Any]]) -> None:
        """Keep what happened to jobs."""
        self._append(JOBS, stories)

    def _append(self, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry, separators=(",", ":"), default=str) + "\n" for entry in entries)
        if not text:
            return
        path = self._directory / name
        data = text.encode()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
            if size + len(data) >= self._limit:
                path.replace(older(path))
            self.problem = ""
        except OSError as failure:
            self.problem = f"cannot write {path}: {failure}"


def older(path: Path) -> Path:
    """Where the lines before those in ``path`` are."""
    return path.with_name(path.name + ".1")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a history file, oldest first; those that a crash or a full disk has cut are left out."""
    for part in (older(path), path):
        try:
            with open(part, "rb") as lines:
                for line in lines:
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(entry, dict):
                        yield entry
        except FileNotFoundError:
            continue

"""The job event logs of one pool: files that HTCondor appends to and we read on from where we were.

Owns their names, rotation, and what to do when one is missing, cut or replaced. HTCondor never rotates such a log, so
new submissions name a new file when the current one is large; an old one goes when none of its jobs is left. Must not
know what events mean.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from taskvine_core.errors import BatchUnavailable
from vine_factory.batch.parse.condor_log import JobEvent, Kind, complete, events

ROTATE_BYTES = 16 * 1024 * 1024
"""About 20,000 lives of jobs; read in under a second when the factory starts."""
_CHUNK_BYTES = 4 * 1024 * 1024
_MAX_EVENT_BYTES = 1024 * 1024
"""No event is as long: what has no end by then is garbage and passed over."""
_NAME = re.compile(r"events\.(\d+)\.log")


@dataclass(slots=True)
class _File:
    path: Path
    offset: int = 0
    inode: int = 0
    numbers: set[str] = field(default_factory=set)  # jobs submitted to this log, not ended


class EventLogs:
    """The logs in ``directory``, which exists."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        numbers = sorted(int(found[1]) for found in map(_NAME.fullmatch, _names(directory)) if found)
        self._files = [_File(self._path(number)) for number in numbers] or [_File(self._path(1))]

    @property
    def current(self) -> Path:
        """Where new submissions are logged."""
        last = self._files[-1]
        if last.offset >= ROTATE_BYTES:
            found = _NAME.fullmatch(last.path.name)
            assert found is not None
            self._files.append(_File(self._path(int(found[1]) + 1)))
        return self._files[-1].path

    def ready(self) -> None:
        """Make the current log, for HTCondor runs jobs without a word when it cannot.

        Raises:
            BatchUnavailable: it cannot be made: disk full, directory gone.
        """
        try:
            os.close(os.open(self.current, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        except OSError as problem:
            raise BatchUnavailable("cannot write the event log of the jobs", said=str(problem)) from problem

    def tells_of(self, batch_id: str) -> bool:
        """Whether a job is in a log that is there: then its next event will be, too."""
        return any(batch_id in file.numbers and file.inode for file in self._files)

    def read(self, now: float) -> list[JobEvent]:
        """Events since the last reading, in the order of each log."""
        found: list[JobEvent] = []
        for file in list(self._files):
            found += self._read(file, now)
            if file is not self._files[-1] and not file.numbers:
                file.path.unlink(missing_ok=True)
                self._files.remove(file)
        return found

    def ended(self, batch_id: str) -> None:
        """A job is over, whoever said so: it keeps no log from being deleted."""
        for file in self._files:
            file.numbers.discard(batch_id)

    def keep_only(self, live: set[str]) -> None:
        """Jobs other than ``live`` are known not to be in the queue."""
        for file in self._files:
            file.numbers &= live

    def _read(self, file: _File, now: float) -> list[JobEvent]:
        found: list[JobEvent] = []
        try:
            with open(file.path, "rb") as stream:
                facts = os.fstat(stream.fileno())
                if facts.st_ino != file.inode or facts.st_size < file.offset:  # another file, or cut: from its start
                    file.inode, file.offset = facts.st_ino, 0
                while file.offset < facts.st_size:
                    stream.seek(file.offset)
                    data = stream.read(_CHUNK_BYTES)
                    whole, length = complete(data)
                    if not length:
                        if len(data) < _MAX_EVENT_BYTES:
                            break  # still being written
                        length = len(data)
                    file.offset += length
                    found += events(whole, now)
        except OSError:
            file.inode = 0
            return found  # missing or unreadable: the queue tells then
        for event in found:
            if event.kind is Kind.SUBMITTED:
                file.numbers.add(event.batch_id)
            elif event.kind in (Kind.TERMINATED, Kind.REMOVED):
                file.numbers.discard(event.batch_id)
        return found

    def _path(self, number: int) -> Path:
        return self._directory / f"events.{number}.log"


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []

"""The numbers of a pool's jobs, in a file: for batch systems that cannot be asked for a listing with tags.

Owns the file: one JSON line per submission, written before the submission's answer is passed on, rewritten when most
of it is over. Must not know any batch system.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from taskvine_core.errors import BatchUnavailable
from vine_factory.batch.base import JobTag

FILE = "job-numbers.jsonl"
_SLACK = 100
"""So many lines of jobs that are over may be in the file before it is rewritten."""

Line = tuple[JobTag, str, str]
"""Tag, the batch system's number, stem of the output files."""


class JobNumbers:
    """The file in ``directory``, which is read once and when it was changed by ourselves."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._lines: dict[str, Line] | None = None

    def read(self) -> list[Line]:
        """All jobs.

        Raises:
            BatchUnavailable: the file is there and cannot be read. A torn last line is passed over.
        """
        return list(self._known().values())

    def stem(self, batch_id: str) -> str:
        """Stem of a job's output files; its number when it is not known."""
        line = self._known().get(batch_id)
        return line[2] if line is not None else batch_id

    def add(self, lines: Sequence[Line]) -> None:
        """Jobs that were submitted.

        Raises:
            BatchUnavailable: they cannot be written down, so that a later process would not find them.
        """
        known = self._known()
        known.update({line[1]: line for line in lines})
        self._write(lines, "a")

    def keep_only(self, batch_ids: Collection[str]) -> None:
        """Let go of all others, when it is worth it."""
        known = self._known()
        if len(known) > 2 * len(batch_ids) + _SLACK:
            self._lines = {one: line for one, line in known.items() if one in batch_ids}
            part = self._path.with_suffix(".new")
            self._write(list(self._lines.values()), "w", part)
            part.replace(self._path)

    def _known(self) -> dict[str, Line]:
        if self._lines is None:
            try:
                text = self._path.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                text = ""
            except OSError as problem:
                raise BatchUnavailable(f"cannot read {self._path}", said=str(problem)) from problem
            self._lines = {line[1]: line for line in map(_parsed, text.splitlines()) if line is not None}
        return self._lines

    def _write(self, lines: Sequence[Line], mode: str, path: Path | None = None) -> None:
        # The line break first: the last line may be torn.
        text = "\n" + "".join(json.dumps([tag.text(), number, stem]) + "\n" for tag, number, stem in lines)
        try:
            with open(path or self._path, mode, encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            raise BatchUnavailable(f"cannot write {path or self._path}", said=str(problem)) from problem


def _parsed(text: str) -> Line | None:
    try:
        tag, number, stem = json.loads(text)
        parsed = JobTag.parse(tag)
    except (ValueError, TypeError, AttributeError):
        return None
    return (parsed, str(number), str(stem)) if parsed is not None else None

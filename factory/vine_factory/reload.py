"""Watching a configuration file.

Owns noticing a change and what happens to a broken edit: the old settings stay, and the problem is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from taskvine_core.errors import ConfigError
from vine_factory.config import Settings, Sourced, read_file


class ConfigFile:
    """A file and how it becomes settings.

    Args:
        path: the file.
        build: makes settings of the file's values.
    """

    def __init__(self, path: Path, build: Callable[[Mapping[str, Sourced]], Settings]) -> None:
        self._path = path
        self._build = build
        self._stamp: tuple[int, int, int] | None = None

    def then(self, finish: Callable[[Settings], Settings]) -> None:
        """From now on, pass new settings through ``finish``."""
        build = self._build
        self._build = lambda values: finish(build(values))

    def load(self) -> tuple[Settings, list[str]]:
        """Read it now. Returns settings and notes.

        Raises:
            ConfigError: it cannot be used.
        """
        self._stamp = self._look()
        values, notes = read_file(self._path)
        return self._build(values), notes

    def changed(self, current: Settings) -> tuple[Settings | None, list[str]]:
        """New settings when the file has changed and is good, and what to tell the user."""
        stamp = self._look()
        if stamp is None or stamp == self._stamp:
            return None, []  # a missing file is one that is being replaced
        self._stamp = stamp
        try:
            values, notes = read_file(self._path)
            settings = self._build(values)
        except ConfigError as problem:
            return None, [f"configuration not changed: {problem}"]
        return (settings if settings != current else None), notes

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

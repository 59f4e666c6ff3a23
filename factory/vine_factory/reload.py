"""Watching a configuration file.

Owns noticing a change and what happens to a broken edit: the old settings stay, and the problem is said once; and what
becomes of pools that are no longer in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from taskvine_core.errors import ConfigError
from vine_factory.config import FileValues, Settings, read_file


class ConfigFile:
    """A file and how it becomes settings.

    Args:
        path: the file.
        build: makes settings of the file's values.
    """

    def __init__(self, path: Path, build: Callable[[FileValues], Settings]) -> None:
        self._path = path
        self._build = build
        self._stamp: tuple[int, int, int] | None = None

    def then(self, finish: Callable[[Settings], Settings]) -> None:
        """From now on, pass new settings through ``finish``."""
        build = self._build
        self._build = lambda values: finish(build(values))

    def load(self) -> Settings:
        """Read it now.

        Raises:
            ConfigError: it cannot be used.
        """
        self._stamp = self._look()
        return self._build(read_file(self._path))

    def changed(self, current: Settings) -> tuple[Settings | None, list[str]]:
        """New settings when the file has changed and is good, and what to tell the user."""
        stamp = self._look()
        if stamp is None or stamp == self._stamp:
            return None, []  # a missing file is one that is being replaced
        self._stamp = stamp
        try:
            settings = self._build(read_file(self._path))
            _check_batches(settings, current)
        except ConfigError as problem:
            return None, [f"configuration not changed: {problem}"]
        return (settings if settings != current else None), list(settings.notes)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _check_batches(settings: Settings, current: Settings) -> None:
    """A pool's jobs are in its batch system: it cannot move to another and still know them."""
    for pool in settings.pools:
        before = current.pool(pool.name)
        if before is not None and before.batch != pool.batch:
            raise ConfigError(f"pool {pool.name} is of batch system {before.batch!r} and cannot become {pool.batch!r} "
                              "while the factory runs", hint="give the new pool another name")


def with_leaving(settings: Settings, current: Settings, populated: Collection[str]) -> Settings:
    """``settings`` and, so that their jobs drain, those of the ``current`` pools that are gone but ``populated``."""
    left = tuple(pool._replace(minimum=0, maximum=0, leaving=True) for pool in current.pools
                 if settings.pool(pool.name) is None and pool.name in populated)
    return dataclasses.replace(settings, pools=(*settings.pools, *left)) if left else settings

"""Recreating a directory from its canonical stream.

Owns what may be written and where. Must not know where the stream comes from. Nothing a stream says can place
anything outside ``dest``: entries are created through descriptors of directories made here, one component at a time,
never through a link.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from taskvine_core.dataplane.objects import (
    DIR,
    FILE,
    LINK,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PATH_BYTES,
    MODE_MASK,
    RECORD,
    UP,
    check_entry_name,
    check_link_target,
)
from taskvine_core.errors import IntegrityError

#: A file that is new, ours and no link.
NEW_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class StreamSource(Protocol):
    """Where a canonical stream comes from: a channel, or a directory of this machine."""

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        ...

    def copy(self, fd: int, count: int) -> None:
        """Write the next ``count`` bytes to an open file."""
        ...


def write_all(fd: int, view: memoryview) -> None:
    """Write everything, however little the file system takes at once."""
    while view:
        view = view[os.write(fd, view):]


class TreeWriter:
    """Recreates a directory from its canonical stream.

    Args:
        source: the stream.
        dest: must not exist.
        size_bytes, entries: what was announced; more is refused.
    """

    def __init__(self, source: StreamSource, dest: Path, size_bytes: int, entries: int) -> None:
        self._source = source
        self._dest = dest
        self._bytes_left = size_bytes
        self._entries_left = min(entries, MAX_ENTRIES)
        #: One per open directory: descriptor, permission bits to set at its end, last name, length of its path.
        self._levels: list[tuple[int, int, bytes, int]] = []

    def write(self, mode: int) -> None:
        """Create everything; ``mode`` are the permission bits of ``dest``.

        Raises:
            IntegrityError: the stream is not canonical or not what was announced.
            SecurityError: an unsafe name or link.
            OSError: the file system said no.
        """
        try:
            os.mkdir(self._dest, 0o700)
            self._levels.append((os.open(self._dest, _OPEN_DIR), mode, b"", 0))
            while self._levels:
                kind, bits, name_length, size = RECORD.unpack(self._source.take(RECORD.size))
                if kind == UP:
                    self._leave()
                else:
                    self._entry(kind, bits & MODE_MASK, self._source.take(name_length), size)
        finally:
            for level in self._levels:
                os.close(level[0])
        if self._bytes_left:
            raise IntegrityError(f"directory holds {self._bytes_left} bytes less than announced")

    def _leave(self) -> None:
        fd, mode, _, _ = self._levels.pop()
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)

    def _entry(self, kind: int, mode: int, name: bytes, size: int) -> None:
        fd, own_mode, last, path_bytes = self._levels[-1]
        check_entry_name(name)
        path_bytes += len(name) + 1
        self._entries_left -= 1
        if name <= last or self._entries_left < 0 or path_bytes > MAX_PATH_BYTES:
            raise IntegrityError(f"directory stream is out of order, too deep, or longer than announced at {name!r}")
        self._levels[-1] = (fd, own_mode, name, path_bytes - len(name) - 1)
        if kind == FILE:
            self._file(fd, name, mode, size)
        elif kind == DIR and not size and len(self._levels) <= MAX_DEPTH:
            os.mkdir(name, 0o700, dir_fd=fd)
            self._levels.append((os.open(name, _OPEN_DIR, dir_fd=fd), mode, b"", path_bytes))
        elif kind == LINK and size <= MAX_PATH_BYTES:
            target = self._source.take(size)
            check_link_target(target)
            os.symlink(target, name, dir_fd=fd)
        else:
            raise IntegrityError(f"directory stream holds an impossible entry {name!r} (kind {kind}, {size} bytes)")

    def _file(self, fd: int, name: bytes, mode: int, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise IntegrityError("directory holds more bytes than announced")
        out = os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=fd)
        try:
            self._source.copy(out, size)
            os.fchmod(out, mode)
        finally:
            os.close(out)

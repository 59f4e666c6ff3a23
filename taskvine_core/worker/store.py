"""The cache directory: objects under their names, what they looked like when stored, sidecars of the lasting ones.

Owns ``cache/``, ``transfer/`` and ``trash/``. Must not decide what is kept. An object appears under its final name
by one rename, complete; regular files lose their write bits there because tasks get hard links to them.

Thread use: the loop's thread changes things; server threads only call ``path_of`` and ``is_intact``.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from taskvine_core.constants import VINE_CACHE_LEVEL_FOREVER
from taskvine_core.errors import DiskFullError, IntegrityError, SandboxError, SecurityError
from taskvine_core.model.names import check_cache_name
from taskvine_core.protocol.messages import CacheEntry
from taskvine_core.records import NamedTuple

WRITE_BITS = 0o222
META_SUFFIX = ".meta"
#: Permission bits of a file whose sender gave none.
DEFAULT_MODE = 0o644
#: Freeing the blocks of a larger file takes long enough to be worth a thread.
UNLINK_INLINE_BYTES = 16 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Stored(NamedTuple):
    """What an object looked like when it was stored; a difference later means somebody wrote to it."""

    size: int
    mtime_ns: int
    inode: int
    is_dir: bool
    sha256: bytes


class Store:
    """The objects of one workspace.

    Args:
        root: the workspace directory; cache/, transfer/ and trash/ must exist in it.
        delete_later: called with a path in trash/ that a background thread should delete.
    """

    def __init__(self, root: str, delete_later: Callable[[str], None]) -> None:
        self.cache = os.path.join(root, "cache")
        self.transfer = os.path.join(root, "transfer")
        self.trash = os.path.join(root, "trash")
        self._delete_later = delete_later
        self._stored: dict[str, Stored] = {}
        self._signatures: dict[str, int] = {}   # of directories that have been linked
        self._lasting: set[str] = set()       # names with a sidecar
        self._asides = itertools.count(1)     # next() is atomic: threads discard too
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    def path_of(self, name: str) -> str:
        return f"{self.cache}/{name}"

    def transfer_path(self, serial: int) -> str:
        """Where the object of ``serial`` is received."""
        return f"{self.transfer}/{serial}"

    def knows(self, name: str) -> bool:
        return name in self._stored

    def is_dir(self, name: str) -> bool:
        stored = self._stored.get(name)
        return stored is not None and stored.is_dir

    def size_of(self, name: str) -> int:
        """Bytes of a file that was stored; meaningless for directories."""
        return self._stored[name].size

    def sha256_of(self, name: str) -> bytes:
        stored = self._stored.get(name)
        return b"" if stored is None else stored.sha256

    def is_intact(self, name: str) -> bool:
        """Cheap check that an object still is what was stored: one stat."""
        stored = self._stored.get(name)
        if stored is None:
            return False
        try:
            now = os.lstat(f"{self.cache}/{name}")
        except OSError:
            return False
        if stored.is_dir:
            return stat.S_ISDIR(now.st_mode) and now.st_mtime_ns == stored.mtime_ns
        return (now.st_size == stored.size and now.st_mtime_ns == stored.mtime_ns and now.st_ino == stored.inode
                and stat.S_ISREG(now.st_mode))

    def matches_tree(self, name: str, signature: int) -> bool:
        """Compare what a directory's files looked like while they were linked with how they looked the first time.

        ``signature`` covers path, size and modification time of every file: a write through a hard link shows.
        """
        return self._signatures.setdefault(name, signature) == signature

    def put(self, name: str, level: int, mode: int, sha256: bytes, data: bytes, check: bool) -> None:
        """Store a small object; ``check`` compares it with its hash before.

        Raises:
            IntegrityError, DiskFullError, SandboxError (anything else the file system says).
        """
        if check and hashlib.sha256(data).digest() != sha256:
            raise IntegrityError(f"the content of {name} does not match its hash", hint="send it again")
        path = f"{self.cache}/{name}"
        mode = (mode or DEFAULT_MODE) & 0o777 & ~WRITE_BITS
        try:
            if name in self._stored:
                self.remove(name)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if mode & self._umask:
                    os.fchmod(fd, mode)
                status = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self._unlink_quietly(path)
            raise _storing_failed(name, error) from error
        self._stored[name] = Stored(status.st_size, status.st_mtime_ns, status.st_ino, False, sha256)
        if level >= VINE_CACHE_LEVEL_FOREVER:
            self.relevel(name, level)

    def adopt(self, source: str, name: str, level: int, mode: int, sha256: bytes) -> os.stat_result:
        """Move a finished file or directory into the cache under ``name``; ``mode`` 0 keeps its own bits.

        Raises:
            DiskFullError, SandboxError.
        """
        path = f"{self.cache}/{name}"
        try:
            status = protect(source, mode)
            if name in self._stored:
                self.remove(name)
            try:
                os.rename(source, path)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy_in(source, path)
                status = os.lstat(path)
        except OSError as error:
            raise _storing_failed(name, error) from error
        is_dir = stat.S_ISDIR(status.st_mode)
        self._stored[name] = Stored(status.st_size, status.st_mtime_ns, status.st_ino, is_dir, sha256)
        if level >= VINE_CACHE_LEVEL_FOREVER:
            self.relevel(name, level)
        return status

    def _copy_in(self, source: str, path: str) -> None:
        """Copy across devices, then rename: the final name only ever shows a complete object."""
        import shutil

        part = f"{self.transfer}/copy-{next(self._asides)}"
        if os.path.isdir(source):
            shutil.copytree(source, part, symlinks=True)
            shutil.rmtree(source, ignore_errors=True)
        else:
            shutil.copy2(source, part)
            os.unlink(source)
        os.rename(part, path)

    def remove(self, name: str) -> None:
        """Forget an object; what takes long to delete goes through trash/."""
        stored = self._stored.pop(name, None)
        self._signatures.pop(name, None)
        path = f"{self.cache}/{name}"
        if stored is None or stored.is_dir or stored.size > UNLINK_INLINE_BYTES:
            self.discard(path)
        else:
            self._unlink_quietly(path)
        if name in self._lasting:
            self._lasting.discard(name)
            self._unlink_quietly(path + META_SUFFIX)

    def discard(self, path: str) -> None:
        """Delete a file or tree in the background; it disappears from its place at once."""
        aside = f"{self.trash}/{next(self._asides)}"
        try:
            os.rename(path, aside)
        except OSError:
            return              # nothing there: nothing to delete
        self._delete_later(aside)

    def relevel(self, name: str, level: int) -> None:
        """Write or delete the sidecar that lets an object outlive the process."""
        path = f"{self.cache}/{name}{META_SUFFIX}"
        import json

        stored = self._stored.get(name)
        if stored is None or level < VINE_CACHE_LEVEL_FOREVER:
            self._lasting.discard(name)
            self._unlink_quietly(path)
            return
        self._lasting.add(name)
        meta = {"name": name, "level": level, "size": stored.size, "mtime_ns": stored.mtime_ns,
                "is_dir": stored.is_dir, "sha256": stored.sha256.hex()}
        part = f"{self.transfer}/{name}{META_SUFFIX}"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(meta, file)
        os.rename(part, path)

    def load(self) -> tuple[CacheEntry, ...]:
        """Take over what an earlier process left: objects with a sound sidecar stay, everything else goes.

        Returns:
            what was kept; sizes of directories are counted anew.
        """
        kept = []
        names = os.listdir(self.cache)
        for name in names:
            if name.endswith(META_SUFFIX):
                if name.removesuffix(META_SUFFIX) not in names:
                    self._unlink_quietly(self.path_of(name))
                continue
            entry = self._load_one(name) if name + META_SUFFIX in names else None
            if entry is None:
                self.discard(self.path_of(name))
                self._unlink_quietly(self.path_of(name) + META_SUFFIX)
            else:
                kept.append(entry)
        return tuple(kept)

    def _load_one(self, name: str) -> CacheEntry | None:
        import json

        path = self.path_of(name)
        try:
            check_cache_name(name)
            with open(path + META_SUFFIX, encoding="utf-8") as file:
                meta = json.load(file)
            now = os.lstat(path)
            is_dir = stat.S_ISDIR(now.st_mode)
            sha256 = bytes.fromhex(meta["sha256"])
            same = (is_dir == meta["is_dir"] and now.st_mtime_ns == meta["mtime_ns"]
                    and (is_dir or now.st_size == meta["size"]) and len(sha256) in (0, 32))
            if not same or not (is_dir or stat.S_ISREG(now.st_mode)):
                return None
        except (OSError, ValueError, KeyError, TypeError, SecurityError):
            return None         # a damaged sidecar: the object is fetched again when it is wanted
        self._stored[name] = Stored(now.st_size, now.st_mtime_ns, now.st_ino, is_dir, sha256)
        self._lasting.add(name)
        size = tree_size(path)[0] if is_dir else now.st_size
        return CacheEntry(name, size, VINE_CACHE_LEVEL_FOREVER, sha256)

    @staticmethod
    def _unlink_quietly(path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _storing_failed(name: str, error: OSError) -> DiskFullError | SandboxError:
    if error.errno in NO_ROOM:
        return DiskFullError(f"no room on disk for {name}", hint="free space where the worker's workspace is")
    return SandboxError(f"cannot store {name} in the cache: {error}", hint="look at the worker's workspace")


def protect(path: str, mode: int) -> os.stat_result:
    """Take the write bits from a regular file; returns the status of ``path``.

    A task that opens its hard-linked input for writing then fails, instead of changing the cache for everybody. The
    files of a directory keep their bits, because these are part of its digest: see ``Store.matches_tree``.
    """
    status = os.lstat(path)
    wanted = (mode or status.st_mode) & 0o777 & ~WRITE_BITS
    if stat.S_ISREG(status.st_mode) and wanted != status.st_mode & 0o777:
        os.chmod(path, wanted)
    return status


def tree_size(path: str, stop: Callable[[], bool] = lambda: False, skip_links: bool = False) -> tuple[int, bool]:
    """Bytes of the regular files below ``path``; False when ``stop`` said to end early.

    Args:
        skip_links: leave out files with more than one name (inputs: they belong to the cache).
    """
    total = 0
    todo = [path]
    while todo:
        if stop():
            return total, False
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        if not (skip_links and status.st_nlink > 1):
                            total += status.st_size
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            continue            # it changed while we looked: a task is at work
    return total, True

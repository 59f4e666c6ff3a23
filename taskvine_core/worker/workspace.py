"""The worker's directory: where it is made, who owns it, what is left of a dead owner.

Owns creation, the lock and removal. Must not know what objects mean. A workspace is held by an flock that ends with
the process, so a dead owner is told from a live one without asking whether its pid was used again; pid and start
time are written down for people and for file systems whose locks do not work.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from taskvine_core.errors import ConfigError
from taskvine_core.worker.children import kill_left_in

PARTS = ("cache", "temp", "transfer", "trash")
LOCK_NAME = ".taskvine-worker.lock"
#: Where a workspace is made, first writable one (reference, section 13.1).
PLACES = ("CCTOOLS_TEMP", "_CONDOR_SCRATCH_DIR", "TMPDIR", "TEMP", "TMP")
_STAT_START = 19


class Workspace:
    """A directory held by this process.

    Attributes:
        path: absolute.
        adopted: it had been used before.
    """

    def __init__(self, path: str, lock_fd: int, adopted: bool, keep: bool) -> None:
        self.path = path
        self.adopted = adopted
        self._lock_fd = lock_fd
        self._keep = keep

    def close(self) -> None:
        """Give it up: delete it unless it is to be kept."""
        if self._keep:
            for part in ("temp", "transfer", "trash"):
                _remove(f"{self.path}/{part}")
            for name in os.listdir(self.path):
                if name.startswith(("task.", "mini.")):
                    _remove(f"{self.path}/{name}")
        else:
            _remove(self.path)
        os.close(self._lock_fd)


def open_workspace(wanted: str, keep: bool, environ: Mapping[str, str]) -> Workspace:
    """Make or adopt the workspace.

    Args:
        wanted: the user's path, "" for a fresh one in a temporary place.
        keep: leave it behind at the end.

    Raises:
        ConfigError: it cannot be made.
    """
    own_name = f"worker-{os.getuid()}-{os.getpid()}"
    if not wanted:
        parent = _temporary_place(environ)
        _remove_dead(parent)
        return _claim(f"{parent}/{own_name}", False)
    wanted = os.path.abspath(wanted)
    try:
        return _claim(wanted, keep)
    except BlockingIOError:
        # Another worker lives there: several workers given one directory each get their own below it.
        _remove_dead(wanted)
        return _claim(f"{wanted}/{own_name}", keep)


def _claim(path: str, keep: bool) -> Workspace:
    """Take a directory; BlockingIOError when a live worker holds it, ConfigError when it cannot be made."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(f"{path}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"workspace {path} cannot be made: {error.strerror}",
                          hint="give a writable directory with --workspace") from error
    try:
        _lock(fd)
        adopted = os.path.isdir(f"{path}/cache")
        if adopted:
            kill_left_in(path)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d %d\n" % (os.getpid(), process_start(os.getpid())), 0)
        _sweep_out(path)
        for part in PARTS:
            os.makedirs(f"{path}/{part}", mode=0o700, exist_ok=True)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"workspace {path} cannot be prepared: {error.strerror}",
                          hint="give a writable directory with --workspace") from error
    return Workspace(path, fd, adopted, keep)


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        # A file system without locks: believe what is written down.
        words = os.pread(fd, 100, 0).split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            pid, start = int(words[0]), int(words[1])
            if pid != os.getpid() and process_start(pid) == start:
                raise BlockingIOError from None


def _sweep_out(path: str) -> None:
    """Remove what a dead owner left of its running tasks and transfers; its cache is judged by the store."""
    for name in os.listdir(path):
        if name in ("temp", "transfer", "trash") or name.startswith(("task.", "mini.")):
            _remove(f"{path}/{name}")


def _temporary_place(environ: Mapping[str, str]) -> str:
    for place in [environ.get(name, "") for name in PLACES] + ["/tmp"]:
        if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return os.path.abspath(place)
    raise ConfigError("no writable temporary directory was found", hint="give one with --workspace")


def _remove_dead(parent: str) -> None:
    """Delete workspaces of workers of this user that are no more."""
    prefix = f"worker-{os.getuid()}-"
    for name in os.listdir(parent):
        path = f"{parent}/{name}"
        if name.startswith(prefix) and name[len(prefix):].isdigit() and os.path.exists(f"{path}/{LOCK_NAME}"):
            with _held(path) as held:
                if held:
                    kill_left_in(path)
                    _remove(path)


@contextmanager
def _held(path: str) -> Iterator[bool]:
    """Hold another workspace's lock if nobody else does."""
    try:
        fd = os.open(f"{path}/{LOCK_NAME}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        _lock(fd)
        yield os.fstat(fd).st_uid == os.getuid()
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks since boot, 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[_STAT_START])
    except (OSError, IndexError, ValueError):
        return 0


def _remove(path: str) -> None:
    """Delete a tree as far as that is possible."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)

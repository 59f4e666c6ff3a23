"""The worker's directory: where it is made, who owns it, what is left of a dead owner.

Owns creation, the lock and removal. Must not know what objects mean. A workspace is held by an flock that ends with
the process, so a dead owner is told from a live one without asking whether its pid was used again; pid and start
time are written down for people and for file systems whose locks do not work. A lock counts only while its file is
the one that the path leads to: who holds it may delete the directory, and somebody else may have opened the file by
then.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from taskvine_core.errors import ConfigError
from taskvine_core.worker.children import kill_left_in

PARTS = ("cache", "temp", "transfer", "trash")
LOCK_NAME = ".taskvine-worker.lock"
#: Where a workspace is made, first writable one (reference, section 13.1).
PLACES = ("CCTOOLS_TEMP", "_CONDOR_SCRATCH_DIR", "TMPDIR", "TEMP", "TMP")
_STAT_START = 19
_TRIES = 10
"""A directory above a workspace may be deleted while it is made, but not that often."""
_NAMES = 100
"""So many names are tried for a fresh workspace: a worker that starts beside this one may be looking whether the
owner of the first is dead, and one in another container may have the same pid."""


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
        self._shared = ""

    def within(self, shared: str) -> Workspace:
        """It is below a directory that several workers were given; the last one deletes that, too."""
        self._shared = shared
        return self

    def close(self) -> None:
        """Give it up: delete it unless it is to be kept."""
        if self._keep:
            for part in ("temp", "transfer", "trash"):
                _remove(f"{self.path}/{part}")
            for name in os.listdir(self.path):
                if name.startswith(("task.", "mini.")):
                    _remove(f"{self.path}/{name}")
        else:
            _remove_dead(self.path)
            _remove_held(self.path)
            if self._shared:
                with suppress(OSError):  # others are there
                    os.rmdir(self._shared)
        os.close(self._lock_fd)


def open_workspace(wanted: str, keep: bool, environ: Mapping[str, str]) -> Workspace:
    """Make or adopt the workspace.

    Args:
        wanted: the user's path, "" for a fresh one in a temporary place.
        keep: leave it behind at the end.

    Raises:
        ConfigError: it cannot be made.
    """
    if not wanted:
        return _fresh(temporary_place(environ), False)
    wanted = os.path.abspath(wanted)
    try:
        return _claim(wanted, keep)
    except BlockingIOError:
        # Another worker lives there: several workers given one directory each get their own below it.
        return _fresh(wanted, keep).within(wanted)


def _fresh(parent: str, keep: bool) -> Workspace:
    """One under a name of its own below ``parent``, where many may start at once."""
    _remove_dead(parent)
    own_name = f"{parent}/worker-{os.getuid()}-{os.getpid()}"
    for path in (own_name, *(f"{own_name}-{number}" for number in range(1, _NAMES))):
        try:
            return _claim(path, keep)
        except BlockingIOError:
            continue
    raise ConfigError(f"workspace {own_name} cannot be made: others hold it and {_NAMES - 1} more names",
                      hint="give a directory with --workspace")


def _claim(path: str, keep: bool) -> Workspace:
    """Take a directory; BlockingIOError when somebody else holds it, ConfigError when it cannot be made."""
    lock = f"{path}/{LOCK_NAME}"
    try:
        _make(path)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == lock:
            raise BlockingIOError(f"{path} was deleted by who held it") from None
        raise ConfigError(f"workspace {path} cannot be made: {error.strerror}",
                          hint="give a writable directory with --workspace") from error
    try:
        _lock(path, fd, unwritten=False)
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


def _make(path: str) -> None:
    """Make the directory and those above, which the last worker in them may be deleting."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError, FileExistsError):
            os.makedirs(path, mode=0o700, exist_ok=True)
            return
    os.makedirs(path, mode=0o700, exist_ok=True)


def _lock(path: str, fd: int, *, unwritten: bool) -> None:
    """Lock the workspace by its open lock file; BlockingIOError when somebody holds it. ``unwritten``: where locks do
    not work, a file with nothing in it is somebody's who has just made it."""
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
        elif unwritten:
            raise BlockingIOError from None
    try:
        there = os.stat(f"{path}/{LOCK_NAME}", follow_symlinks=False)
    except FileNotFoundError:
        raise BlockingIOError(f"{path} was deleted by who held it") from None
    if not os.path.samestat(there, os.fstat(fd)):
        raise BlockingIOError(f"{path} is another directory by now")


def _sweep_out(path: str) -> None:
    """Remove what a dead owner left of its running tasks and transfers; its cache is judged by the store."""
    for name in os.listdir(path):
        if name in ("temp", "transfer", "trash") or name.startswith(("task.", "mini.")):
            _remove(f"{path}/{name}")


def temporary_place(environ: Mapping[str, str]) -> str:
    """The first of the places for temporary files that can be written to.

    Raises:
        ConfigError: there is none.
    """
    for place in [environ.get(name, "") for name in PLACES] + ["/tmp"]:
        if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return os.path.abspath(place)
    raise ConfigError("no writable temporary directory was found", hint="give one with --workspace")


def _remove_dead(parent: str) -> None:
    """Delete workspaces of workers of this user that are no more."""
    names: list[str] = []
    with suppress(FileNotFoundError):  # its owner has just deleted it
        names = os.listdir(parent)
    for name in names:
        path = f"{parent}/{name}"
        if _is_workers(name) and os.path.exists(f"{path}/{LOCK_NAME}"):
            with _held(path) as held:
                if held:
                    kill_left_in(path)
                    _remove_held(path)


def _is_workers(name: str) -> bool:
    prefix = f"worker-{os.getuid()}-"
    return name.startswith(prefix) and name[len(prefix):].replace("-", "").isdigit()


@contextmanager
def _held(path: str) -> Iterator[bool]:
    """Hold another workspace's lock if nobody else does."""
    try:
        fd = os.open(f"{path}/{LOCK_NAME}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        _lock(path, fd, unwritten=True)
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


def _remove_held(path: str) -> None:
    """Delete a workspace whose lock is held, but no other worker's below it. The lock goes last: who comes in between
    finds it taken, or gone."""
    with suppress(OSError):
        for name in os.listdir(path):
            if name != LOCK_NAME and not _is_workers(name):
                _remove_entry(f"{path}/{name}")
        os.unlink(f"{path}/{LOCK_NAME}")
        os.rmdir(path)


def _remove_entry(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        _remove(path)
    else:
        with suppress(OSError):
            os.unlink(path)

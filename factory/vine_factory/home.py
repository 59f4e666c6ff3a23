"""Where a factory lives on disk, and that it lives there alone.

Owns the directory of journal and workers' output, the lock on it and the factory's identity, which is the same each
time a factory is started in the same place with the same name: that is how it finds its workers again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
from pathlib import Path
from typing import IO

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_MAX_NAME = 60
_ID = re.compile(r"[A-Za-z0-9_.-]{1,100}")
IDENTITY = "factory-id"
"""File with the identity that a factory has taken over, see `take_identity`."""
_MAX_FACTORIES = 1000  # of one user, for one target, on one machine


class Home(NamedTuple):
    """A place. ``lock`` is held while the file object lives; None: only looked at."""

    name: str
    factory_id: str
    directory: Path
    lock: IO[str] | None


def claim(state_directory: Path, scratch: str, name: str, batch: str, target: str) -> Home:
    """Find the place for a factory and lock it.

    With a name, or a scratch directory, there is one place, and a second factory is an error. Without, the first
    free one for this target is taken: after a kill -9 that is the old one.

    Raises:
        ConfigError: the place is taken or cannot be made.
    """
    host = host_name()
    if name or scratch:
        wanted = locate(state_directory, scratch, name, batch, target)
        home = _lock(wanted.name, wanted.directory, host)
        if home is None:
            raise ConfigError(f"another factory is running in {wanted.directory}",
                              hint="end it, or give this one another --factory-name or --scratch-dir")
        return home
    base = plain_name(f"{batch}-{target}")
    for number in range(1, _MAX_FACTORIES):
        final = base if number == 1 else f"{base}-{number}"
        home = _lock(final, state_directory / "factory" / host / final, host)
        if home is not None:
            return home
    raise ConfigError(f"{_MAX_FACTORIES} factories for {target} are running", hint="end some")


def locate(state_directory: Path, scratch: str, name: str, batch: str, target: str) -> Home:
    """The place `claim` would take if no other factory ran, not locked and not made."""
    host = host_name()
    final = name or plain_name(f"{batch}-{target}")
    directory = Path(scratch).absolute() if scratch else state_directory / "factory" / host / plain_name(final)
    return Home(final, _identity(final, directory, host), directory, None)


def host_name() -> str:
    """This machine's name, as a file name."""
    return _UNSAFE.sub("-", socket.gethostname())


def plain_name(text: str) -> str:
    """``text`` as a file name: odd characters become dashes; a digest keeps what was cut apart."""
    name = _UNSAFE.sub("-", text).strip("-.") or "factory"
    if name == text and len(name) <= _MAX_NAME:
        return name
    return f"{name[:_MAX_NAME].strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _lock(name: str, directory: Path, host: str) -> Home | None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(directory / "lock", "a+")  # noqa: SIM115 - held for the life of the factory
    except OSError as problem:
        raise ConfigError(f"cannot use the directory {directory}: {problem}",
                          hint="--scratch-dir chooses another") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return Home(name, _identity(name, directory, host), directory, lock)


def take_identity(directory: Path, factory_id: str) -> None:
    """From its next start on the factory in ``directory`` is the one called ``factory_id``, whose own directory is
    lost: it finds that one's jobs and takes them for its own.

    Raises:
        ConfigError: the id cannot be one, or the factory is running.
    """
    if not _ID.fullmatch(factory_id):
        raise ConfigError(f"{factory_id!r} is no factory id", hint="it is in the first line of the lost factory's log, "
                          "and the first part of its jobs' tags (NAME.0123456789)")
    home = _lock(directory.name, directory, host_name())
    if home is None:
        raise ConfigError(f"a factory is running in {directory}", hint="only one that does not run can become another")
    assert home.lock is not None  # by _lock
    with home.lock:
        try:
            (directory / IDENTITY).write_text(factory_id + "\n", encoding="ascii")
        except OSError as problem:
            raise ConfigError(f"cannot write {directory / IDENTITY}: {problem}") from problem


def _identity(name: str, directory: Path, host: str) -> str:
    try:
        taken = (directory / IDENTITY).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        taken = ""
    if _ID.fullmatch(taken):
        return taken
    place = f"{host}:{os.getuid()}:{os.path.realpath(directory)}"
    return f"{plain_name(name)}.{hashlib.sha256(place.encode()).hexdigest()[:10]}"

"""How managers are found without a server: one small JSON file per manager in a directory of the user.

Owns the files, the heartbeat and the judgement which files are of live managers. Must not know sockets, messages or
what a manager does; standard library only and cheap to import, since every worker and factory loads it.

The directory may lie on a home shared by many hosts. A record written on this machine is judged by its
process and by the monotonic clock both sides share. A record of another host is judged by age alone, and
that age is the difference of two modification times made by the same file server: the record's and that of a
probe file touched now. So clocks of hosts may differ by any amount.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from taskvine_core.catalog.record import (
    MAX_TEXT,
    ManagerRecord,
    NameMatch,
    host_identity,
    malformed,
    number,
    process_start,
    to_record,
)
from taskvine_core.errors import DiscoveryError
from taskvine_core.records import NamedTuple

__all__ = ["ADVERTISE_INTERVAL_S", "STALE_AFTER_S", "Advertiser", "ManagerRecord", "Scan", "default_directory",
           "find_managers", "no_manager", "scan"]

#: A manager rewrites its record this often.
ADVERTISE_INTERVAL_S = 5.0
#: Without a rewrite for six intervals a manager is taken for gone: a busy file server delays by less.
STALE_AFTER_S = 6 * ADVERTISE_INTERVAL_S
#: Files of other hosts are deleted only when so old that no pause of host or file server explains it.
DELETE_AFTER_S = 3600.0
#: A record is a few kilobytes; anything larger is not ours.
MAX_RECORD_BYTES = 256 * 1024
#: How long ``withdraw`` waits for a write that a file server holds up.
WITHDRAW_TIMEOUT_S = 2.0

_SUFFIX = ".json"
_TEMP_PREFIX = ".tmp-"
_SECRET_KEY = re.compile(r"secret|passw|private|token", re.IGNORECASE)


class Scan(NamedTuple):
    """What one look into the directory gave: live managers (best first), and file names ignored with the reason."""

    directory: Path
    managers: list[ManagerRecord]
    ignored: list[tuple[str, str]]


class _Entry(NamedTuple):
    """A well-formed file, not yet judged."""

    path: Path
    raw: dict[str, object]
    mtime: float


def default_directory() -> Path:
    """Where managers of this user advertise (may not exist yet)."""
    from taskvine_core.secret import state_directory

    return state_directory() / "managers"


class Advertiser:
    """Keeps one record of one manager in the directory, for as long as ``publish`` is called.

    The first ``publish`` writes before it returns. Later ones hand the record to a thread, so that a file
    server that does not answer never stops the manager.

    Args:
        directory: where to write; None = the user's default.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = default_directory() if directory is None else directory
        self._pid = os.getpid()
        self._path: Path | None = None
        self._wake = threading.Condition()
        self._next: Mapping[str, object] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self.last_error = ""

    @property
    def path(self) -> Path | None:
        """The file now advertised, None before ``publish`` and after ``withdraw``."""
        return self._path

    def publish(self, record: Mapping[str, object]) -> None:
        """Write or renew the record (call it every ADVERTISE_INTERVAL_S).

        ``project`` and ``port`` are required; ``host``, ``addresses`` and ``pid`` are filled in. Keys that
        sound like secrets are left out. The mapping must not be changed afterwards.

        Raises:
            DiscoveryError: the first write failed, or the record lacks a required key. Later failures are
                kept in ``last_error`` and tried again at the next call.
        """
        if os.getpid() != self._pid:
            return  # a forked child: the manager is its parent
        if self._path is None:
            name = f"{os.uname().nodename[:MAX_TEXT // 4]}-{self._pid}-{os.urandom(4).hex()}{_SUFFIX}"
            path = self._directory / name.replace("/", "_")
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(path, record)
            except OSError as error:
                raise DiscoveryError(f"cannot advertise the manager in {self._directory}: {error}",
                                     hint="make that directory writable, or set XDG_STATE_HOME") from error
            self._closed = False
            self._path = path
            return
        with self._wake:
            self._next = record
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="taskvine-advertiser", daemon=True)
                self._thread.start()
            self._wake.notify()

    def withdraw(self) -> None:
        """Remove the record; idempotent. A forked child does not remove what its parent advertises."""
        path, self._path = self._path, None
        if path is None or os.getpid() != self._pid:
            return
        with self._wake:
            self._closed = True
            self._next = None
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(WITHDRAW_TIMEOUT_S)
            self._thread = None
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self.last_error = str(error)

    def _renew(self) -> None:
        while True:
            with self._wake:
                while self._next is None and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                record, self._next, path = self._next, None, self._path
            if record is None or path is None:
                continue
            try:
                self._write(path, record)
                self.last_error = ""
                if self._closed:  # withdrawn while a slow file server held up the write
                    path.unlink(missing_ok=True)
            except (OSError, DiscoveryError) as error:
                self.last_error = str(error)
                _note("cannot renew %s: %s", path, error)

    def _write(self, path: Path, record: Mapping[str, object]) -> None:
        raw = {key: value for key, value in record.items() if not _SECRET_KEY.search(key)}
        host = raw.setdefault("host", os.uname().nodename)
        raw.setdefault("addresses", [host])
        raw.update(pid=self._pid, pid_start=process_start(self._pid) or 0, host_identity=host_identity(),
                   monotonic=time.monotonic(), updated_at=time.time())
        why = malformed(raw)
        if why:
            raise DiscoveryError(f"cannot advertise the manager: its record is not usable, {why}")
        data = json.dumps(raw, separators=(",", ":")).encode()
        if len(data) > MAX_RECORD_BYTES:
            raise DiscoveryError(f"cannot advertise the manager: its record has {len(data)} bytes",
                                 hint=f"keep properties below {MAX_RECORD_BYTES} bytes")
        temp = path.with_name(f"{_TEMP_PREFIX}{path.name}")
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        os.replace(temp, path)


def find_managers(name_regex: str | None = None, directory: Path | None = None) -> list[ManagerRecord]:
    """Live managers whose whole name matches, highest priority first; files of dead ones are removed.

    Args:
        name_regex: regular expression for the whole name, or a name; None = any.
        directory: where to look; None = the user's default.
    """
    matches = NameMatch(name_regex)
    return [record for record in scan(directory).managers if matches(record.project)]


def no_manager(name_regex: str | None = None, directory: Path | None = None) -> DiscoveryError:
    """The error to raise when ``find_managers`` gave nothing: says where was looked and what was seen."""
    seen = scan(directory)
    wanted = f"no manager with a name matching {name_regex!r}" if name_regex is not None else "no manager"
    if seen.managers:
        names = ", ".join(sorted({f"{m.project!r} on {m.host}:{m.port}" for m in seen.managers})[:8])
        found = f"managers there have other names: {names}"
    else:
        found = "no live manager advertises there"
    if seen.ignored:
        name, why = seen.ignored[0]
        found += f"; {len(seen.ignored)} file(s) ignored, e.g. {name}: {why}"
    problem = NameMatch(name_regex).problem
    if problem:
        found += f"; {name_regex!r} is no regular expression ({problem}) and was taken as a plain name"
    return DiscoveryError(f"{wanted} was found in {seen.directory}: {found}",
                          hint="start a manager with name=..., or give its host and port")


def scan(directory: Path | None = None) -> Scan:
    """Look at every file once; remove those of dead managers."""
    directory = default_directory() if directory is None else directory
    ignored: list[tuple[str, str]] = []
    managers: list[ManagerRecord] = []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        names = []
    except OSError as error:
        names, ignored = [], [(str(directory), str(error))]
    here = host_identity()
    clock = _ServerClock(directory)
    for name in names:
        path = directory / name
        if name.startswith(_TEMP_PREFIX):
            _remove_old_temp(path, clock)
        if not name.endswith(_SUFFIX) or name.startswith("."):
            continue
        entry = _read(path)
        if isinstance(entry, _Entry):
            age_s = _age(entry, here, clock)
            if isinstance(age_s, float):
                managers.append(to_record(entry.raw, age_s))
                continue
            entry = age_s
        if entry:
            ignored.append((name, entry))
            _note("ignored %s: %s", path, entry)
    managers.sort(key=lambda record: (-record.priority, record.project, record.host, record.port))
    return Scan(directory, managers, ignored)


class _ServerClock:
    """What the clock of the directory's file server says, asked at most once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._now: float | None = None

    def now(self) -> float:
        if self._now is None:
            self._now = self._touch()
        return self._now

    def _touch(self) -> float:
        probe = self._directory / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            _note("no probe file in %s (%s): using the clock of this host", self._directory, error)
            return time.time()
        try:
            os.write(descriptor, b"\n")
            os.fsync(descriptor)  # makes an NFS client ask the server, whose clock is wanted
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
            probe.unlink(missing_ok=True)


def _read(path: Path) -> _Entry | str:
    """The file's content, or why it is ignored ("" when it just vanished)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        if status.st_uid != os.geteuid():
            return f"belongs to user id {status.st_uid}"
        if status.st_size > MAX_RECORD_BYTES:
            return f"has {status.st_size} bytes"
        raw = json.loads(os.read(descriptor, MAX_RECORD_BYTES))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({str(error)[:80]})"
    finally:
        os.close(descriptor)
    if not isinstance(raw, dict):
        return "is not a JSON object"
    why = malformed(raw)
    return f"has {why}" if why else _Entry(path, raw, status.st_mtime)


def _age(entry: _Entry, here: str, clock: _ServerClock) -> float | str:
    """Seconds since the last heartbeat of a live manager, or why it is not live; removes files of dead
    ones."""
    raw = entry.raw
    if here and raw["host_identity"] == here:
        start = process_start(number(raw["pid"]))
        if start is not None and start != raw["pid_start"]:
            _remove(entry.path)
            return f"its manager (pid {raw['pid']}) has ended"
        age_s = time.monotonic() - float(str(raw["monotonic"]))
        if start is None or not 0 <= age_s <= STALE_AFTER_S:
            # Its process lives (or cannot be seen), so the file stays whatever its age.
            return f"its manager (pid {raw['pid']}) has not renewed it for {age_s:.0f} s"
        return age_s
    age_s = max(0.0, clock.now() - entry.mtime)
    if age_s > DELETE_AFTER_S:
        _remove(entry.path)
    if age_s > STALE_AFTER_S:
        return f"its manager on {raw['host']} has not renewed it for {age_s:.0f} s"
    return age_s


def _remove_old_temp(path: Path, clock: _ServerClock) -> None:
    try:
        if clock.now() - path.lstat().st_mtime > DELETE_AFTER_S:
            _remove(path)
    except FileNotFoundError:
        return


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _note("cannot remove %s: %s", path, error)


def _note(text: str, *arguments: object) -> None:
    import logging  # only when there is something to say: workers import this module at start

    logging.getLogger("taskvine.catalog").debug(text, *arguments)

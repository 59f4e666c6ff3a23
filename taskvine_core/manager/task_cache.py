"""Results of tasks on disk, by fingerprint: what the result cache keeps between runs (reference, section 18.3).

A directory of outputs and a log with one JSON object per line. Several programs may share them: files appear by a
rename, lines by one write under a lock, and every output is compared with the digest in the log when it is used, so
whatever is missing or contradicts is a miss. Both must be the user's own: who may write there decides what the program
unpickles. Must not know tasks or managers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvine_core.errors import UsageError
from taskvine_core.records import NamedTuple

COMPLETED, FAILED = "COMPLETED", "FAILED"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_CHUNK_BYTES = 1 << 20

#: An output: bytes, or where they lie.
Content = bytes | Path


class Entry(NamedTuple):
    """A result that is known. ``facts``: as given to ``put``; ``parts``: name -> where the bytes are."""

    facts: dict[str, Any]
    parts: dict[str, Path]


class TransactionLog:
    """The log file: what was written by others since the last look is read with ``news``.

    Raises:
        UsageError: it belongs to somebody else, others may write to it, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._read = 0
        try:
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb"):
                _check_owner(self.path, "log of the result cache")
        except OSError as error:
            raise UsageError(f"the log of the result cache {str(self.path)!r} cannot be written: {error}") from error

    def append(self, event: str, fingerprint: str, facts: Mapping[str, Any]) -> None:
        """Write one line; OSError when that fails."""
        line = json.dumps({"timestamp": time.time(), "event": event, "task_id": fingerprint, **facts}).encode()
        with open(self.path, "ab+", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            end = stream.seek(0, os.SEEK_END)
            torn = end > 0 and os.pread(stream.fileno(), 1, end - 1) != b"\n"  # a writer was killed
            stream.write((b"\n" if torn else b"") + line + b"\n")

    def news(self) -> list[dict[str, Any]]:
        """Complete lines since the last call that are what we would write; others are passed over."""
        try:
            if self.path.stat().st_size <= self._read:
                return []
            with open(self.path, "rb") as stream:
                stream.seek(self._read)
                data = stream.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [record for line in whole.splitlines() if (record := _record(line)) is not None]


class TasksCache:
    """Results by fingerprint.

    Args:
        cache_dir: created when missing.
        log_file: created when missing.

    Raises:
        UsageError: one of them belongs to somebody else, may be written by others, or cannot be used.
    """

    def __init__(self, cache_dir: str | os.PathLike[str], log_file: str | os.PathLike[str]) -> None:
        self.directory = Path(cache_dir).absolute()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self.directory, "directory of the result cache")
        except OSError as error:
            raise UsageError(f"the directory of the result cache {str(cache_dir)!r} cannot be used: {error}") from error
        self.log = TransactionLog(Path(log_file).absolute())
        self._known: dict[str, dict[str, Any]] = {}

    def find(self, fingerprint: str) -> Entry | None:
        """The result of a task that completed, if all its outputs are still there as they were."""
        for record in self.log.news():
            if record["event"] == COMPLETED:
                self._known[record["task_id"]] = record
        facts = self._known.get(fingerprint)
        if facts is None:
            return None
        parts = {}
        for name, (size, digest) in facts["parts"].items():
            path = self._path(fingerprint, name)
            if not _is_whole(path, size, digest):
                return None
            parts[name] = path
        return Entry(facts, parts)

    def put(self, fingerprint: str, parts: Mapping[str, Content], facts: Mapping[str, Any]) -> None:
        """Keep a result. OSError when it cannot be kept; then it is not known either.

        Args:
            parts: outputs by name; "" is the task's own.
            facts: what JSON can hold; exit_code, std_output, command and executable (names of parts) are needed.
        """
        stored = {name: self._store(self._path(fingerprint, name), content) for name, content in parts.items()}
        self.log.append(COMPLETED, fingerprint, {**facts, "parts": stored})

    def failed(self, fingerprint: str, facts: Mapping[str, Any]) -> None:
        """Note a failure, for whoever reads the log; the task will be run again."""
        self.log.append(FAILED, fingerprint, facts)

    def _path(self, fingerprint: str, name: str) -> Path:
        return self.directory / (f"{fingerprint}.output" + (f".{name}" if name else ""))

    def _store(self, path: Path, content: Content) -> tuple[int, str]:
        handle, temporary = tempfile.mkstemp(prefix=".", dir=self.directory)
        try:
            with open(handle, "wb") as target:
                if isinstance(content, bytes):
                    target.write(content)
                else:
                    with open(content, "rb") as source:
                        while chunk := source.read(_CHUNK_BYTES):
                            target.write(chunk)
            size, digest = os.path.getsize(temporary), _digest(Path(temporary))
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return size, digest


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of the log, None for anything that is not one."""
    try:
        record = json.loads(line)
        if record["event"] != COMPLETED:
            return record if isinstance(record["event"], str) and isinstance(record["task_id"], str) else None
        usable = (isinstance(record["task_id"], str) and isinstance(record["exit_code"], int)
                  and isinstance(record["std_output"], str) and isinstance(record["command"], str)
                  and isinstance(record["executable"], list)
                  and all(name == "" or name.isdecimal() for name in record["parts"])
                  and all(isinstance(size, int) and isinstance(digest, str)
                          for size, digest in record["parts"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if usable and record["task_id"].isalnum() else None


def _is_whole(path: Path, size: int, digest: str) -> bool:
    try:
        facts = path.lstat()
        return (stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and facts.st_size == size
                and _digest(path) == digest)
    except OSError:
        return False


def _digest(path: Path) -> str:
    state = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _check_owner(path: Path, what: str) -> None:
    facts = path.stat()
    if facts.st_uid != os.geteuid():
        raise UsageError(f"the {what} {str(path)!r} belongs to another user",
                         hint="results kept there are loaded by your program: use a place of your own")
    if facts.st_mode & _OTHERS_WRITE:
        raise UsageError(f"others may write to the {what} {str(path)!r}",
                         hint=f"results kept there are loaded by your program: chmod go-w {path}")

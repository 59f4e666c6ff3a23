"""What one advertisement says, and whether its writer still lives.

Owns the format of a record: validity, conversion, the match of names, and the identity of host and process that
liveness rests on. Must not know the directory or its files (local.py does).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from taskvine_core.records import NamedTuple

MAX_TEXT = 255
MAX_ADDRESSES = 64
MAX_PORT = 65535
#: Keys that serve only the judgement of liveness.
INTERNAL_KEYS = frozenset(("host_identity", "monotonic", "pid_start"))

_FINGERPRINT = re.compile(r"(?:[0-9a-f]{64})?\Z")
#: Index of "start time" in /proc/PID/stat, counted after the command name.
_STAT_START = 19


class ManagerRecord(NamedTuple):
    """One live manager.

    Args:
        project: its name.
        host: name of its machine.
        port: control port.
        addresses: addresses to try, best first; at least one.
        pid: process id on its machine.
        manager_id: unique per manager instance.
        priority: larger is preferred.
        ssl_fingerprint: SHA-256 of the server certificate in hex, "" without TLS.
        updated_at: last heartbeat, seconds since the epoch on the clock of the reader.
        record: everything the manager published.
    """

    project: str
    host: str
    port: int
    addresses: tuple[str, ...]
    pid: int
    manager_id: str
    priority: int
    ssl_fingerprint: str
    updated_at: float
    record: dict[str, object]


def host_identity() -> str:
    """Names the running kernel and process-id space: equal only where process ids may be compared.

    Host names do not do: containers with their own process ids may share one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; 0 when there is no such process, None when unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[_STAT_START])
    except (FileNotFoundError, ProcessLookupError):
        return 0 if os.path.exists("/proc/self/stat") else None
    except (OSError, ValueError, IndexError):
        return None


def _text(value: object, least: int = 1) -> bool:
    return isinstance(value, str) and least <= len(value) <= MAX_TEXT and value.isprintable()


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def malformed(raw: Mapping[str, object]) -> str:
    """Which required value is missing or of the wrong type; "" when all are well."""
    addresses = raw.get("addresses")
    print_ = raw.get("ssl_fingerprint", "")
    checks = {
        "project": _text(raw.get("project")),
        "host": _text(raw.get("host")),
        "port": _whole(raw.get("port"), 1, MAX_PORT),
        "pid": _whole(raw.get("pid"), 1, 1 << 31),
        "pid_start": _whole(raw.get("pid_start"), 0, 1 << 63),
        "manager_id": _text(raw.get("manager_id", ""), 0),
        "priority": _whole(raw.get("priority", 0), -(1 << 31), 1 << 31),
        "ssl_fingerprint": isinstance(print_, str) and _FINGERPRINT.match(print_) is not None,
        "host_identity": _text(raw.get("host_identity"), 0),
        "monotonic": isinstance(raw.get("monotonic"), float),
        "addresses": isinstance(addresses, list | tuple) and 0 < len(addresses) <= MAX_ADDRESSES
        and all(_text(address) for address in addresses),
    }
    wrong = [key for key, good in checks.items() if not good]
    return f"no usable value for {', '.join(wrong)}" if wrong else ""


def to_record(raw: dict[str, object], age_s: float) -> ManagerRecord:
    """The record of well-formed ``raw``, last renewed ``age_s`` seconds ago."""
    addresses = raw["addresses"]
    assert isinstance(addresses, list)
    return ManagerRecord(
        project=str(raw["project"]), host=str(raw["host"]), port=number(raw["port"]), addresses=tuple(addresses),
        pid=number(raw["pid"]), manager_id=str(raw.get("manager_id", "")), priority=number(raw.get("priority", 0)),
        ssl_fingerprint=str(raw.get("ssl_fingerprint", "")), updated_at=time.time() - age_s, record=raw)


def number(value: object) -> int:
    """An integer of a well-formed record."""
    assert isinstance(value, int)
    return value


class NameMatch:
    """Whole-name match; a name always matches itself, also when it is no regular expression.

    Args:
        name_regex: regular expression, or a name; None matches all.
    """

    def __init__(self, name_regex: str | None) -> None:
        self._plain = name_regex
        self._pattern: re.Pattern[str] | None = None
        #: Why ``name_regex`` is no regular expression, "" when it is.
        self.problem = ""
        try:
            self._pattern = re.compile(name_regex) if name_regex is not None else None
        except re.error as error:
            self.problem = str(error)

    def __call__(self, project: str) -> bool:
        if self._plain is None or project == self._plain:
            return True
        return self._pattern is not None and self._pattern.fullmatch(project) is not None

"""Reading /proc: which processes carry a tag, and is a pid still the process it was.

Owns the format of /proc. Must not know jobs' life cycles.
"""

from __future__ import annotations

import os

from taskvine_core.records import NamedTuple

TAG_VARIABLE = "VINE_FACTORY_JOB"
PID_VARIABLE = "VINE_FACTORY_JOB_PID"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_FIELD_STATE, _FIELD_START = 0, 19  # after the command name; proc(5) counts from 1 and includes pid and name


class TaggedProcess(NamedTuple):
    """A process whose environment carries a tag. ``is_job``: the job's own first process, not something it
    started (children inherit the variable but have another pid)."""

    pid: int
    start_ticks: int
    tag: str
    is_job: bool


def start_ticks(pid: int) -> int | None:
    """When ``pid`` started (ticks since boot), None when there is no such process or it is a zombie. With the pid it
    names a process for good: pids come round again, start times do not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            text = stream.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2:].split()
    return None if fields[_FIELD_STATE] in (b"Z", b"X") else int(fields[_FIELD_START])


def started_at(ticks: int) -> float:
    """Seconds since the epoch for a start time in ticks since boot."""
    with open("/proc/stat", "rb") as stream:
        for line in stream:
            if line.startswith(b"btime "):
                return int(line.split()[1]) + ticks / _TICKS_PER_S
    return 0.0


def tagged_processes(prefix: str) -> list[TaggedProcess]:
    """Processes of this user whose tag starts with ``prefix``.

    Raises:
        OSError: /proc cannot be listed. Processes that end meanwhile or belong to others are passed over.
    """
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            process = _tagged(int(entry), prefix)
            if process is not None:
                found.append(process)
    return found


def _tagged(pid: int, prefix: str) -> TaggedProcess | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            environment = stream.read()
    except OSError:
        return None  # gone, or another user's: in both cases not ours
    needle = f"{TAG_VARIABLE}={prefix}".encode()
    if needle not in environment:
        return None
    tag, own_pid = "", ""
    for item in environment.split(b"\0"):
        name, _, value = item.partition(b"=")
        if name == TAG_VARIABLE.encode():
            tag = value.decode(errors="replace")
        elif name == PID_VARIABLE.encode():
            own_pid = value.decode(errors="replace")
    ticks = start_ticks(pid)
    if ticks is None or not tag.startswith(prefix):
        return None
    # No pid variable at all: the job itself, in the moment before its shell becomes the command.
    return TaggedProcess(pid, ticks, tag, own_pid in ("", str(pid)))

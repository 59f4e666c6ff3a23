"""What this machine offers to one worker that is given no resources, as the worker itself will see it.

Owns a few reads of /proc and /sys. gpus are not looked for: a worker finds its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from taskvine_core.resources import Resources

_MB = 1 << 20
_DISK_SHARE = 0.5
"""A worker offers half of the free disk unless told otherwise (its own default)."""
_CGROUP = Path("/sys/fs/cgroup")


def resources(scratch: str) -> Resources:
    """Cores, memory and half of the free disk under ``scratch``, within the limits of this control group."""
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    cores = len(os.sched_getaffinity(0))
    if quota.isdigit() and period.isdigit():
        cores = max(1, min(cores, int(quota) // int(period)))
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MB
    limit = _read(_CGROUP / "memory.max")
    if limit.isdigit():
        memory_mb = min(memory_mb, int(limit) // _MB)
    disk = os.statvfs(scratch)
    return Resources(cores, memory_mb, int(disk.f_bavail * disk.f_frsize * _DISK_SHARE) // _MB, 0)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # no such limit here

"""What the machine has: cores, memory, disk, gpus, as far as this process may use them.

Owns reading /proc, /sys and the file system. Must not know options.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from taskvine_core.records import NamedTuple

CGROUP_ROOT = "/sys/fs/cgroup"
_NVIDIA_TIMEOUT_S = 10.0
_MB = 1 << 20


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def cgroup_directories(controller: str, self_cgroup: str | None = None, root: str = CGROUP_ROOT) -> list[str]:
    """Directories of this process's cgroup and its ancestors, innermost first, for v2 and for a v1 controller."""
    text = _read("/proc/self/cgroup") if self_cgroup is None else self_cgroup
    found = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = f"{root}/{controller}" if controllers else root
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            found.append("/".join([base, *parts[:depth]]))
    return found


def cores(self_cgroup: str | None = None, root: str = CGROUP_ROOT) -> int:
    """Cores this process may use: its affinity mask, cut by cpu quotas; at least 1."""
    count = float(len(os.sched_getaffinity(0)))
    for directory in cgroup_directories("cpu", self_cgroup, root):
        quota, _, period = _read(f"{directory}/cpu.max").partition(" ")
        if not quota:
            quota, period = _read(f"{directory}/cpu.cfs_quota_us"), _read(f"{directory}/cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            count = min(count, int(quota) / int(period))
    return max(1, int(count))


def memory_mb(self_cgroup: str | None = None, root: str = CGROUP_ROOT) -> int:
    """MB of memory of the machine, cut by cgroup limits."""
    total = 0
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    for directory in cgroup_directories("memory", self_cgroup, root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(f"{directory}/{name}")
            if limit.isdigit() and int(limit):
                total = min(total, int(limit))
    return max(1, total // _MB)


def disk_free_mb(path: str) -> int:
    """MB free for us on the file system of ``path``; 0 when it cannot be told."""
    try:
        status = os.statvfs(path)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize // _MB


class Gpu(NamedTuple):
    """A device this process may use. ``device`` is what CUDA_VISIBLE_DEVICES calls it, ``model`` "" when unknown."""

    device: str
    model: str


def gpus(environ: Mapping[str, str]) -> list[Gpu]:
    """The GPUs ``nvidia-smi`` lists, as far as CUDA_VISIBLE_DEVICES lets us use them; [] when there is no such
    program or it fails."""
    return visible_gpus(_ask_nvidia(environ.get("PATH", "")), environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(listed: str, visible: str | None) -> list[Gpu]:
    """What is left of a machine's GPUs.

    Args:
        listed: what ``nvidia-smi`` printed, a line "index, uuid, name" each; lines of another form are complaints.
        visible: CUDA_VISIBLE_DEVICES as the batch system set it: indexes, uuids or their beginnings; None: not set.
            As in CUDA, what follows a device that is not there does not count. Parts of a GPU (MIG) are taken as they
            are: they are listed elsewhere.
    """
    rows = [row for line in listed.splitlines() if len(row := [part.strip() for part in line.split(",", 2)]) == 3]
    found = [(index, uuid, model) for index, uuid, model in rows if index.isdigit()]
    if visible is None:
        return [Gpu(index, model) for index, _, model in found]
    allowed: list[Gpu] = []
    for device in (part.strip() for part in visible.split(",")):
        models = [model for index, uuid, model in found
                  if device == index or (device.startswith("GPU-") and uuid.startswith(device))]
        if not models and not (found and device.startswith("MIG-")):
            break
        allowed.append(Gpu(device, models[0] if models else ""))
    return allowed


def device_list(count: int, found: list[Gpu], visible: str | None) -> tuple[str, ...]:
    """Names of the devices that tasks are given, as many as the worker offers.

    Args:
        count: how many that is; it may have been told more than was found.
        found: what ``gpus`` found.
        visible: CUDA_VISIBLE_DEVICES of the worker; counts when nothing was found because there is no nvidia-smi.
    """
    named = [gpu.device for gpu in found] or [
        part.strip() for part in (visible or "").split(",") if part.strip() not in ("", "-1", "NoDevFiles")]
    numbers = (str(number) for number in range(count) if str(number) not in named)
    return tuple([*named, *numbers][:count])


def _ask_nvidia(path: str) -> str:
    if not any(os.access(f"{d}/nvidia-smi", os.X_OK) for d in path.split(":")):
        return ""
    import subprocess

    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"], check=True,
                              capture_output=True, timeout=_NVIDIA_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.decode("utf-8", "replace")

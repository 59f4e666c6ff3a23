"""What the machine has: cores, memory, disk, gpus, as far as this process may use them.

Owns reading /proc, /sys and the file system. Must not know options.
"""

from __future__ import annotations

import os

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


def gpu_models() -> list[str]:
    """Model names of the GPUs ``nvidia-smi`` lists, [] when there is no such program or it fails."""
    if not any(os.access(f"{d}/nvidia-smi", os.X_OK) for d in os.environ.get("PATH", "").split(":")):
        return []
    import subprocess

    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], check=True,
                              capture_output=True, timeout=_NVIDIA_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in said.stdout.decode("utf-8", "replace").splitlines() if line.strip()]

"""What a program reads from a finished task: resource objects and metrics (reference, sections 4.4 and 7.2).

Owns the conversion of a TaskOutcome into the published names and units. Must not know managers or files.
"""

from __future__ import annotations

from collections.abc import Callable

from taskvine_core.manager.events import TaskOutcome
from taskvine_core.resources import Resources

_MICROSECONDS = 1_000_000
_MB = 1 << 20

#: Numeric attributes of a resource object.
NUMBERS = (
    "start", "end", "wall_time", "cpu_time", "memory", "virtual_memory", "swap_memory", "disk", "bytes_read",
    "bytes_written", "bytes_received", "bytes_sent", "bandwidth", "gpus", "cores", "cores_avg", "machine_cpus",
    "machine_load", "context_switches", "max_concurrent_processes", "total_processes", "total_files", "fs_nodes",
    "workers",
)
_TEXTS = ("category", "command", "taskid", "exit_type", "signal", "exit_status", "last_error")


class ResourceSummary:
    """A set of resource values. Every name of the reference exists; -1 (or None for texts) means "not set".

    Units: seconds, MB (2^20 bytes), whole cores and gpus.
    """

    __slots__ = (*NUMBERS, *_TEXTS, "limits_exceeded", "peak_times", "snapshots")

    def __init__(self, **values: object) -> None:
        for name in NUMBERS:
            setattr(self, name, values.pop(name, -1))
        for name in _TEXTS:
            setattr(self, name, values.pop(name, None))
        self.limits_exceeded: ResourceSummary | None = None
        self.peak_times: ResourceSummary | None = None
        self.snapshots: list[ResourceSummary] = []
        if values:
            raise TypeError(f"unknown resource names {sorted(values)}")

    def __repr__(self) -> str:
        known = ", ".join(f"{n}={getattr(self, n)!r}" for n in (*NUMBERS, *_TEXTS)
                          if getattr(self, n) not in (-1, None))
        return f"ResourceSummary({known})"


def from_resources(resources: Resources, **values: object) -> ResourceSummary:
    """The published object for our four resources and whatever else is known."""
    return ResourceSummary(cores=resources.cores, memory=resources.memory_mb, disk=resources.disk_mb,
                           gpus=resources.gpus, **values)


def measured_summary(outcome: TaskOutcome) -> ResourceSummary:
    """What the attempt used; the allocation where nothing was measured."""
    used, given, times = outcome.measured, outcome.allocated, outcome.times
    wall_s = max(0.0, times.end - times.start)
    return ResourceSummary(
        cores=given.cores,
        gpus=given.gpus,
        memory=used.memory_mb if used.memory_mb >= 0 else given.memory_mb,
        disk=used.disk_mb if used.disk_mb >= 0 else given.disk_mb,
        wall_time=wall_s,
        start=times.start,
        end=times.end,
        cpu_time=used.cpu_s,
        cores_avg=used.cpu_s / wall_s if used.cpu_s >= 0 and wall_s > 0 else -1,
        bytes_read=_mb(used.bytes_read),
        bytes_written=_mb(used.bytes_written),
        max_concurrent_processes=used.processes,
        exit_status=outcome.exit_code,
    )


def _mb(size_bytes: int) -> float:
    return size_bytes / _MB if size_bytes >= 0 else -1


def _us(seconds: float) -> int:
    return round(seconds * _MICROSECONDS)


_METRICS: dict[str, Callable[[TaskOutcome], int]] = {
    "time_when_submitted": lambda o: _us(o.times.submitted),
    "time_when_commit_start": lambda o: _us(o.times.commit_start),
    "time_when_commit_end": lambda o: _us(o.times.commit_end),
    "time_when_retrieval": lambda o: _us(o.times.retrieval),
    "time_when_done": lambda o: _us(o.times.done),
    "time_workers_execute_last": lambda o: _us(o.times.execute_last_s),
    "time_workers_execute_all": lambda o: _us(o.times.execute_all_s),
    "time_workers_execute_exhaustion": lambda o: _us(o.times.execute_exhaustion_s),
    "time_workers_execute_failure": lambda o: _us(o.times.execute_failure_s),
    "bytes_sent": lambda o: o.bytes_sent,
    "bytes_received": lambda o: o.bytes_received,
    "bytes_transferred": lambda o: o.bytes_sent + o.bytes_received,
}


def metric(outcome: TaskOutcome | None, name: str) -> int:
    """One metric of section 4.4 (µs or bytes); 0 for an unknown name or an unfinished task."""
    read = _METRICS.get(name)
    return 0 if read is None or outcome is None else read(outcome)

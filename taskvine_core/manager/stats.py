"""The statistics a program, a status query and the performance log see (reference, section 7.1).

Owns names, order, initial values and the capacity estimate. Must not know where the numbers come from.
Times are integer microseconds, as published; sizes as the reference says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from taskvine_core.records import NamedTuple
from taskvine_core.resources import ZERO, Resources

#: Assumed before anything was measured: this many workers can be kept busy with tasks of the size below.
INITIAL_CAPACITY = 10
INITIAL_TASK = Resources(cores=1, memory_mb=512, disk_mb=1024, gpus=0)
INITIAL_BANDWIDTH_MB_S = 1.0
#: Task reports kept, how many are wanted before they are believed, weight of the newest in the weighted value.
REPORTS_KEPT = 50
REPORTS_WANTED = 10
NEWEST_WEIGHT = 0.05


class ManagerStats:
    """Live counters; every attribute of section 7.1, declared in its order (see ``FIELDS``)."""

    workers_connected: int
    workers_init: int
    workers_idle: int
    workers_busy: int
    workers_able: int
    workers_joined: int
    workers_removed: int
    workers_released: int
    workers_idled_out: int
    workers_slow: int
    workers_blocked: int
    workers_lost: int
    tasks_waiting: int
    tasks_on_workers: int
    tasks_running: int
    tasks_with_results: int
    tasks_recovery: int
    tasks_submitted: int
    tasks_dispatched: int
    tasks_done: int
    tasks_failed: int
    tasks_successful: int
    tasks_cancelled: int
    tasks_exhausted_attempts: int
    time_when_started: int
    time_send: int
    time_receive: int
    time_send_good: int
    time_receive_good: int
    time_status_msgs: int
    time_internal: int
    time_polling: int
    time_application: int
    time_scheduling: int
    time_workers_execute: int
    time_workers_execute_good: int
    time_workers_execute_exhaustion: int
    bytes_sent: int
    bytes_received: int
    bandwidth: float
    capacity_tasks: int
    capacity_cores: int
    capacity_memory: int
    capacity_disk: int
    capacity_gpus: int
    capacity_instantaneous: int
    capacity_weighted: int
    total_cores: int
    total_memory: int
    total_disk: int
    total_gpus: int
    committed_cores: int
    committed_memory: int
    committed_disk: int
    committed_gpus: int
    max_cores: int
    max_memory: int
    max_disk: int
    max_gpus: int
    min_cores: int
    min_memory: int
    min_disk: int
    min_gpus: int
    inuse_cache: int

    __slots__ = tuple(__annotations__)

    def __init__(self) -> None:
        for name in FIELDS:
            setattr(self, name, 0)
        self.bandwidth = INITIAL_BANDWIDTH_MB_S
        self.set_capacity(INITIAL_CAPACITY, INITIAL_CAPACITY, INITIAL_CAPACITY, INITIAL_TASK)

    def set_capacity(self, tasks: int, instantaneous: int, weighted: int, task: Resources) -> None:
        """Set all capacity values from a number of tasks and the resources of an average one."""
        self.capacity_tasks = tasks
        self.capacity_cores, self.capacity_memory, self.capacity_disk, self.capacity_gpus = (
            tasks * one for one in task)
        self.capacity_instantaneous = instantaneous
        self.capacity_weighted = weighted

    def set_total(self, total: Resources) -> None:
        """Sum over connected workers."""
        self.total_cores, self.total_memory, self.total_disk, self.total_gpus = total

    def set_committed(self, committed: Resources) -> None:
        """Sum of the allocations in use."""
        self.committed_cores, self.committed_memory, self.committed_disk, self.committed_gpus = committed

    def set_range(self, smallest: Resources, largest: Resources) -> None:
        """Smallest and largest single worker, each resource by itself."""
        self.min_cores, self.min_memory, self.min_disk, self.min_gpus = smallest
        self.max_cores, self.max_memory, self.max_disk, self.max_gpus = largest

    def items(self) -> Iterator[tuple[str, int | float]]:
        """(name, value) in the published order."""
        return ((name, getattr(self, name)) for name in FIELDS)

    def assign(self, other: ManagerStats) -> None:
        """Take over all values: the object a program holds stays the same, only API calls refresh it."""
        for name in FIELDS:
            setattr(self, name, getattr(other, name))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.items() if value)
        return f"{type(self).__name__}({shown})"


FIELDS: tuple[str, ...] = ManagerStats.__slots__


class CategoryStats(ManagerStats):
    """The same attributes, counted for the tasks of one category."""

    __slots__ = ()


class Capacity(NamedTuple):
    """How many workers' worth of tasks this manager can keep busy: average, newest task alone, weighted."""

    tasks: int
    instantaneous: int
    weighted: int
    average_task: Resources


INITIAL_ESTIMATE = Capacity(INITIAL_CAPACITY, INITIAL_CAPACITY, INITIAL_CAPACITY, INITIAL_TASK)


class CapacityEstimator:
    """Execution time over the manager's own time per task, for the newest tasks. Each report costs O(1)."""

    __slots__ = ("_busy_us", "_execute_us", "_instantaneous", "_reports", "_resources", "_weighted")

    def __init__(self) -> None:
        self._reports: deque[tuple[int, int, Resources]] = deque()
        self._execute_us = 0
        self._busy_us = 0
        self._resources = ZERO
        self._instantaneous = INITIAL_CAPACITY
        self._weighted = float(INITIAL_CAPACITY)

    def report(self, execute_us: int, transfer_us: int, manager_us: int, allocation: Resources) -> None:
        """Take in one completed task: its run time, transfer time and the manager's time for it, all in µs."""
        busy_us = transfer_us + manager_us
        self._reports.append((execute_us, busy_us, allocation))
        self._execute_us += execute_us
        self._busy_us += busy_us
        self._resources = self._resources.plus(allocation)
        if len(self._reports) > REPORTS_KEPT:
            old_execute_us, old_busy_us, old_allocation = self._reports.popleft()
            self._execute_us -= old_execute_us
            self._busy_us -= old_busy_us
            self._resources = self._resources.minus(old_allocation)
        self._instantaneous = _up(execute_us, busy_us)
        self._weighted += NEWEST_WEIGHT * (self._instantaneous - self._weighted)

    def estimate(self) -> Capacity:
        """The estimate now; the initial one until enough tasks were seen."""
        count = len(self._reports)
        if count < REPORTS_WANTED:
            return INITIAL_ESTIMATE
        average = Resources(*(_up(amount, count) for amount in self._resources))
        return Capacity(_up(self._execute_us, self._busy_us), self._instantaneous, -int(-self._weighted // 1), average)

    def apply(self, stats: ManagerStats) -> None:
        """Write the estimate into ``stats``."""
        now = self.estimate()
        stats.set_capacity(now.tasks, now.instantaneous, now.weighted, now.average_task)


def _up(amount: int, by: int) -> int:
    """Division rounding up, by at least one (a manager that needed no measurable time needed a microsecond)."""
    return -(-amount // max(1, by))

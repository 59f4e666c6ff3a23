"""Which arrivals are asked for, when, and together with which others.

Owns the order and concurrency of fetches. Must not know the cache, sockets or files.
Many small objects of one source share a job: one connection, no round trip per object.
"""

from __future__ import annotations

from collections import OrderedDict

from taskvine_core.errors import StateError
from taskvine_core.protocol.messages import SOURCE_URL, Fetch
from taskvine_core.worker.events import FetchItem, StartFetch

#: Objects above this size travel alone so that they run in parallel with others.
SHARED_MAX_BYTES = 1 << 20
#: Objects per job: enough to hide the connection's cost, few enough to spread over the threads.
ITEMS_PER_JOB = 256


class FetchQueue:
    """Waiting fetches by source, and the jobs under way (at most ``max_jobs``)."""

    def __init__(self, max_jobs: int) -> None:
        self.max_jobs = max_jobs
        self._waiting: OrderedDict[tuple[int, str], OrderedDict[int, Fetch]] = OrderedDict()
        self._source_of: dict[int, tuple[int, str]] = {}
        self.jobs: dict[int, set[int]] = {}
        self._job_of: dict[int, int] = {}
        self._unwanted: set[int] = set()
        self._next_job = 1

    @property
    def busy(self) -> bool:
        return bool(self.jobs or self._waiting)

    def add(self, serial: int, order: Fetch) -> None:
        source = (order.where, order.address)
        self._waiting.setdefault(source, OrderedDict())[serial] = order
        self._source_of[serial] = source

    def start_ready(self) -> list[StartFetch]:
        """The jobs that may start now, one source after the other."""
        started = []
        while self._waiting and len(self.jobs) < self.max_jobs:
            source, orders = next(iter(self._waiting.items()))
            started.append(self._take_job(source, orders))
            if orders:
                self._waiting.move_to_end(source)
            else:
                del self._waiting[source]
        return started

    def _take_job(self, source: tuple[int, str], orders: OrderedDict[int, Fetch]) -> StartFetch:
        items: list[FetchItem] = []
        timeout_s = 0.0
        for serial, order in list(orders.items()):
            small = 0 <= order.size_bytes <= SHARED_MAX_BYTES and source[0] != SOURCE_URL
            if items and not small:
                break
            items.append(FetchItem(serial, order.name, order.size_bytes, order.sha256))
            timeout_s = max(timeout_s, order.timeout_s)
            del orders[serial]
            del self._source_of[serial]
            if not small or len(items) == ITEMS_PER_JOB:
                break
        job = self._next_job
        self._next_job += 1
        self.jobs[job] = {item.serial for item in items}
        for item in items:
            self._job_of[item.serial] = job
        return StartFetch(job, source[0], source[1], timeout_s, tuple(items))

    def drop(self, serial: int) -> int | None:
        """A fetch is no longer wanted. Returns the job to cancel, or None when others still want something of it."""
        source = self._source_of.pop(serial, None)
        if source is not None:
            orders = self._waiting[source]
            del orders[serial]
            if not orders:
                del self._waiting[source]
            return None
        job = self._job_of.get(serial)
        if job is None:
            return None
        self._unwanted.add(serial)
        return job if self.jobs[job] <= self._unwanted else None

    def waits(self, serial: int) -> bool:
        """True when no job has taken it yet."""
        return serial in self._source_of

    def reported(self, serial: int) -> None:
        """The result of ``serial`` is known."""
        job = self._job_of.pop(serial, None)
        if job is not None:
            self.jobs[job].discard(serial)
            self._unwanted.discard(serial)

    def ended(self, job: int) -> set[int]:
        """The job is over; returns serials it never reported."""
        left = self.jobs.pop(job, set())
        for serial in left:
            del self._job_of[serial]
            self._unwanted.discard(serial)
        return left

    def check_invariants(self) -> None:
        """Raises StateError when bookkeeping disagrees."""
        if len(self.jobs) > self.max_jobs:
            raise StateError(f"{len(self.jobs)} fetch jobs, at most {self.max_jobs} allowed", hint="a defect")
        waiting = sum(len(o) for o in self._waiting.values())
        if waiting != len(self._source_of) or not all(self._waiting.values()):
            raise StateError("waiting fetches do not add up", hint="a defect: please report")

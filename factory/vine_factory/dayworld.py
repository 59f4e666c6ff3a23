"""A manager, its workers and a batch system in virtual time, for comparing ways to scale.

Owns the events of a simulated day: tasks arrive, are run by connected workers and end; jobs wait in a queue, start,
connect, leave when idle for long. Whoever scales is asked once per period. Every wait is drawn from one generator, so
that a seed is a day. Must not know how it is scaled; reads no clock.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from taskvine_core.records import NamedTuple
from vine_factory.trace import Work

PERIOD_S = 30.0
IDLE_TIMEOUT_S = 300.0
"""Of the workers; the published default, for everybody alike."""


class Site(NamedTuple):
    """``queue_s``: least and most seconds from submission to start; ``connect_s``: from there to the connection."""

    maximum: int = 200
    cores: int = 4
    queue_s: tuple[float, float] = (20.0, 90.0)
    connect_s: float = 5.0


@dataclass(slots=True)
class DayJob:
    """A job and its worker. Times in seconds, None when it has not happened."""

    name: str
    submitted_at: float
    starts_at: float
    free: int
    started: bool = False
    connected_at: float | None = None
    ended_at: float | None = None
    idle_since: float | None = None
    draining: bool = False
    running: int = 0


@dataclass(slots=True)
class Totals:
    """What a day cost and gave. ``waits_s``: of each task, from arrival to start."""

    waits_s: list[float] = field(default_factory=list)
    makespan_s: float = 0.0
    busy_core_s: float = 0.0
    core_s: float = 0.0
    jobs: int = 0
    peak: int = 0


class Day:
    """One simulated day.

    Args:
        works: in the order of arrival.
        site: the batch system.
        seed: of the queue's waits.
    """

    def __init__(self, works: Sequence[Work], site: Site, seed: int) -> None:
        self.site = site
        self.now = 0.0
        self.jobs: dict[str, DayJob] = {}           # those that are not over
        self.lately_ended: deque[DayJob] = deque()
        self.waiting: dict[int, deque[Work]] = {}   # by cores
        self.totals = Totals()
        self.done: dict[int, tuple[int, float]] = {}  # by cores: tasks ended, their seconds
        self.patient = False                        # workers stay however idle they are
        self._works = works
        self._left = len(works)
        self._rng = random.Random(seed)
        self._free: list[dict[str, None]] = [{} for _ in range(site.cores + 1)]  # connected, by free cores
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def waiting_tasks(self) -> int:
        """Tasks that have not started."""
        return sum(len(queue) for queue in self.waiting.values())

    @property
    def running_tasks(self) -> int:
        """Tasks on workers."""
        return sum(job.running for job in self.jobs.values())

    def run(self, scale: Callable[[], None], period_s: float = PERIOD_S) -> Totals:
        """The whole day: ``scale`` is called once per period, until all tasks are done and no job is left."""
        for work in self._works:
            self._at(work.arrives_s, lambda work=work: self._arrives(work))  # type: ignore[misc]
        self._at(0.0, lambda: self._period(scale, period_s))
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.totals

    def submit(self, name: str) -> None:
        """One job into the queue."""
        starts_at = self.now + self._rng.uniform(*self.site.queue_s)
        self._put(DayJob(name, self.now, starts_at, self.site.cores))
        self._at(starts_at, lambda: self._starts(self.jobs.get(name)))

    def have(self, name: str) -> None:
        """A worker that is there without waiting, from now on."""
        job = DayJob(name, self.now, self.now, self.site.cores, started=True)
        self._put(job)
        self._connects(job)

    def end(self, name: str) -> None:
        """End a job now; of a busy one the caller may not want that."""
        job = self.jobs.pop(name, None)
        if job is None:
            return
        if job.running:
            raise AssertionError(f"{name} is busy")
        job.ended_at = self.now
        self.lately_ended.append(job)
        self._free[job.free].pop(name, None)
        if job.started:
            self.totals.core_s += (self.now - job.starts_at) * self.site.cores

    # ------------------------------------------------------------------------------------------- events

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _put(self, job: DayJob) -> None:
        self.jobs[job.name] = job
        self.totals.jobs += 1
        self.totals.peak = max(self.totals.peak, len(self.jobs))

    def _period(self, scale: Callable[[], None], period_s: float) -> None:
        scale()
        if self._left or (self.jobs and not self.patient):
            self._at(self.now + period_s, lambda: self._period(scale, period_s))

    def _arrives(self, work: Work) -> None:
        for free in range(work.cores, self.site.cores + 1):  # the fullest worker that has room
            if self._free[free]:
                self._start(self.jobs[next(iter(self._free[free]))], work)
                return
        self.waiting.setdefault(work.cores, deque()).append(work)

    def _starts(self, job: DayJob | None) -> None:
        if job is not None:
            job.started = True
            self._at(self.now + self.site.connect_s, lambda: self._connects(self.jobs.get(job.name)))

    def _connects(self, job: DayJob | None) -> None:
        if job is not None:
            job.connected_at = self.now
            self._free[job.free][job.name] = None
            self._fill(job)

    def _fill(self, job: DayJob) -> None:
        """Give a worker what it can take, oldest first."""
        while True:
            heads = [queue[0] for cores, queue in self.waiting.items() if queue and cores <= job.free]
            if not heads:
                break
            work = min(heads)
            self.waiting[work.cores].popleft()
            self._start(job, work)
        if not job.running:
            job.idle_since = self.now
        if not job.running and not self.patient:
            self._at(self.now + IDLE_TIMEOUT_S, lambda: self._idled_out(job))

    def _start(self, job: DayJob, work: Work) -> None:
        self._resize(job, -work.cores)
        job.running, job.idle_since = job.running + 1, None
        self.totals.waits_s.append(self.now - work.arrives_s)
        self.totals.busy_core_s += work.seconds * work.cores
        self._at(self.now + work.seconds, lambda: self._ends(job, work))

    def _ends(self, job: DayJob, work: Work) -> None:
        self._left -= 1
        self.totals.makespan_s = self.now
        count, seconds = self.done.get(work.cores, (0, 0.0))
        self.done[work.cores] = count + 1, seconds + work.seconds
        job.running -= 1
        self._resize(job, work.cores)
        self._fill(job)

    def _resize(self, job: DayJob, cores: int) -> None:
        self._free[job.free].pop(job.name, None)
        job.free += cores
        self._free[job.free][job.name] = None

    def _idled_out(self, job: DayJob) -> None:
        if job.ended_at is None and job.idle_since is not None and self.now - job.idle_since >= IDLE_TIMEOUT_S:
            self.end(job.name)

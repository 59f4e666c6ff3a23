"""A whole factory in memory: its core, a simulated cluster, simulated managers, a virtual clock and kill -9.

Owns the stand-in for the runner. The core is the real one. Everything random comes from one seeded generator, so a
seed is a world. Must not read a clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from taskvine_core.errors import BatchError, BatchRejected
from taskvine_core.resources import Resources
from vine_factory.batch.base import JobHandle, JobRequest, JobStatus, JobTag
from vine_factory.batch.simulated import SimulatedBatch, SimulatedCluster
from vine_factory.config import Settings
from vine_factory.core import FactoryCore
from vine_factory.demand import BUSY, DRAINING, IDLE, Demand, Group, WorkerFacts
from vine_factory.events import (
    Accepted,
    Action,
    CancelJobs,
    CancelUnclear,
    Event,
    Finish,
    JobRow,
    Note,
    Observed,
    Refused,
    RetireAnswered,
    RetireWorkers,
    StopRequested,
    SubmitJobs,
    SubmitUnclear,
    WriteJournal,
)
from vine_factory.readings import Known, Reading, Unknown
from vine_factory.walltime import lifetime_s

FACTORY_ID = "sim"
PLAIN = Resources(1, 1024, 1024, 0)
_COIN = 0.5


class Killed(Exception):
    """The factory process is no more."""


@dataclass
class SimManager:
    """A manager. ``need``: workers it could use at a time. ``answers`` False: it hangs or is gone.

    A worker's id is that of its job, with ``+1``, ``+2`` ... for further ones of the same job.
    """

    key: str
    need: Callable[[float], int]
    connect_s: float = 1.0
    answers: bool = True
    parts: tuple[float, ...] = (1.0,)                          # of a worker of each pool that one task takes
    workers: dict[str, str] = field(default_factory=dict)      # id -> idle, busy, draining
    last: Known[Demand] | None = None

    def demand(self, now: float) -> Demand:
        """Its answer."""
        workers = tuple(WorkerFacts(f"w-{worker}", job_of(worker), "host", state, 1.0 if state == IDLE else 0.0,
                                    int(state == BUSY), 0, 0, PLAIN, float(state == BUSY))
                        for worker, state in self.workers.items())
        waiting = max(0, self.need(now) - sum(1 for state in self.workers.values() if state == BUSY))
        groups = (Group("default", waiting, None, self.parts, PLAIN),) if waiting else ()
        return Demand("m", "sim", waiting, 0, waiting, groups, workers, ())


def job_of(worker: str) -> str:
    """Whose worker it is."""
    return worker.partition("+")[0]


class World:
    """Everything of one simulation.

    Args:
        settings: the pools.
        cluster: where the jobs of all pools run; its clock is replaced by this world's.
        managers: whom to serve.
        rng: decides when calls hang and where the factory is killed.
    """

    def __init__(self, settings: Settings, cluster: SimulatedCluster, managers: list[SimManager],
                 rng: random.Random) -> None:
        self.settings = settings
        self.cluster = cluster
        cluster.clock = lambda: self.now
        self.managers = {manager.key: manager for manager in managers}
        self.rng = rng
        self.now = 0.0
        self.journal: dict[str, JobRow] = {}
        self.kill_after: int | None = None      # points until the process dies: before actions, in calls
        self.hang_until = 0.0                   # the batch system's call in progress returns then
        self.submit_s = 0.0                     # what a submission takes per job
        self.notes: list[str] = []
        self.finished = False
        self.runs = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._listings: dict[str, Reading[tuple[JobStatus, ...]]] = {}
        self._walltimes = any(pool.walltime_s > 0 for pool in settings.pools)
        self._events: deque[Event] = deque()
        self.core = self._start()

    def _start(self) -> FactoryCore:
        self.runs += 1
        run, numbers = self.runs, iter(range(1, 1 << 30))
        self._batch = SimulatedBatch(self.cluster)
        self._calls.clear()
        self._events.clear()
        self._listings = {pool.name: Unknown("not asked yet", self.now) for pool in self.settings.pools}
        for manager in self.managers.values():
            manager.last = None
        settles_s = {pool.name: self._batch.settles_s for pool in self.settings.pools}
        return FactoryCore(self.settings, settles_s, lambda: f"{run}-{next(numbers)}",
                           list(self.journal.values()), (), self.now)

    def kill_and_restart(self) -> None:
        """kill -9 now. Calls that have not begun are never made; the one in progress may still arrive."""
        self.kill_after = None
        if self.hang_until > self.now and self._calls and self.rng.random() < _COIN:
            self._calls[0]()
        self.hang_until = self.now
        self.core = self._start()

    def step(self, dt: float = 1.0) -> None:
        """One period: the world moves on, the factory makes a pass."""
        self.now += dt
        self._live()
        try:
            self._call_batch()
            while self._events:
                self._handle(self._events.popleft())
            self._handle(self._observe())
            if self._poll not in self._calls:
                self._calls.append(self._poll)
        except Killed:
            self.kill_and_restart()

    def stop(self, keep: bool = False) -> None:
        """Ask the factory to end; ``keep``: alone."""
        self._handle(StopRequested("test", keep=keep))

    def start_again(self) -> None:
        """The next process, after one that has ended."""
        self.finished = False
        self.core = self._start()

    # ------------------------------------------------------------------------------------------- the world

    def _live(self) -> None:
        """Workers connect, work and vanish with their jobs."""
        if self._walltimes:
            self._let_expire()
        live = {job.tag.intent_id: job for job in self.cluster.live()}
        for manager in self.managers.values():
            for worker in list(manager.workers):
                job = live.get(job_of(worker))
                if job is None or job.starts_at > self.now:
                    del manager.workers[worker]
        connected = {job_of(worker) for manager in self.managers.values() for worker in manager.workers}
        up = [manager for manager in self.managers.values() if manager.answers]
        for job_id, job in live.items():
            if job_id not in connected and up and job.program.runtime_s is None:
                manager = up[int(job.batch_id) % len(up)]
                if self.now >= job.starts_at + manager.connect_s:
                    manager.workers[job_id] = IDLE
                    manager.workers.update((f"{job_id}+{n}", IDLE) for n in range(1, job.request.copies))
        for manager in up:
            places = manager.need(self.now)
            for worker, state in sorted(manager.workers.items()):
                if state != DRAINING:
                    manager.workers[worker] = BUSY if places > 0 else IDLE
                    places -= 1

    def _let_expire(self) -> None:
        """Workers with a walltime leave by themselves, before the batch system ends them."""
        for job in self.cluster.live():
            life_s = lifetime_s(job.request.walltime_s, job.tag.intent_id)
            if 0 < life_s <= self.now - job.starts_at:
                self.cluster.end(job.tag.intent_id, 0)

    def _observe(self) -> Observed:
        readings: dict[str, Reading[Demand]] = {}
        for key, manager in self.managers.items():
            if manager.answers:
                manager.last = Known(manager.demand(self.now), self.now)
                readings[key] = manager.last
            else:
                readings[key] = Unknown("no answer", manager.last.at if manager.last else self.now)
        return Observed(readings, Known(len(readings), self.now), dict(self._listings))

    # ----------------------------------------------------------------------------------------- the runner

    def _handle(self, event: Event) -> None:
        actions = self.core.handle(event, self.now)
        self.core.check_invariants()
        for action in actions:
            self._point()
            self._act(action)

    def _point(self) -> None:
        """Here the process may die."""
        if self.kill_after is not None:
            self.kill_after -= 1
            if self.kill_after <= 0:
                raise Killed

    def _act(self, action: Action) -> None:
        if isinstance(action, WriteJournal):
            self.journal.update({row.intent_id: row for row in action.rows})
            for intent_id in action.over:
                self.journal.pop(intent_id, None)
        elif isinstance(action, SubmitJobs):
            assert all(intent in self.journal for intent in action.intent_ids), "submitted before it was journalled"
            self._calls.append(lambda: self._submit(action))
        elif isinstance(action, CancelJobs):
            self._calls.append(lambda: self._cancel(action))
        elif isinstance(action, RetireWorkers):
            self._retire(action)
        elif isinstance(action, Note):
            self.notes.append(f"{self.now:.1f} {action.text}")
        elif isinstance(action, Finish):
            self.finished = True

    def _call_batch(self) -> None:
        """The batch thread: one call after the other, none while one hangs."""
        while self._calls and self.now >= self.hang_until:
            self._calls.popleft()()

    def _submit(self, action: SubmitJobs) -> None:
        pool = self.settings.pool(action.pool)
        assert pool is not None
        requests = [JobRequest(JobTag(FACTORY_ID, pool.name, intent), ("worker",), {}, PLAIN, pool.walltime_s,
                               copies=pool.workers_per_job) for intent in action.intent_ids]
        self._point()
        try:
            results = self._batch.submit_many(requests)
        except BatchRejected as problem:
            self._events.append(Refused(action.pool, action.intent_ids, str(problem)))
        except BatchError as problem:
            self._events.append(SubmitUnclear(action.pool, action.intent_ids, str(problem)))
        else:
            self.hang_until = max(self.hang_until, self.now + self.submit_s * len(requests))
            self._point()
            self._events.append(Accepted(action.pool, tuple((r.intent_id, r.batch_id) for r in results)))

    def _cancel(self, action: CancelJobs) -> None:
        asked = {intent for intent, _ in action.jobs}
        for manager in self.managers.values():
            busy = [worker for worker, state in manager.workers.items() if state == BUSY and job_of(worker) in asked]
            assert not busy or not manager.answers or self.core.stopping, f"cancelled busy workers {busy}"
        self._point()
        try:
            self._batch.cancel_many([JobHandle(JobTag(FACTORY_ID, action.pool, i), b) for i, b in action.jobs],
                                    force=action.force)
            self._point()
        except BatchError as problem:
            self._events.append(CancelUnclear(action.pool, tuple(i for i, _ in action.jobs), str(problem)))

    def _poll(self) -> None:
        self._point()
        reading: Reading[tuple[JobStatus, ...]]
        try:
            reading = Known(tuple(self._batch.poll_many(FACTORY_ID)), self.now)
        except BatchError as problem:
            reading = Unknown(str(problem), self.now)
        self._listings = dict.fromkeys(self._listings, reading)

    def _retire(self, action: RetireWorkers) -> None:
        manager = self.managers[action.manager]
        if not manager.answers:
            self._events.append(RetireAnswered(manager.key, (), {job: "no answer" for job, _ in action.workers}))
            return
        jobs = {job for job, _ in action.workers}
        busy = {job_of(worker) for worker, state in manager.workers.items() if state == BUSY}
        accepted = sorted(jobs & {job_of(worker) for worker in manager.workers} - busy)
        for worker in manager.workers:
            if job_of(worker) in accepted:
                manager.workers[worker] = DRAINING
        for job in accepted:
            self.cluster.terminate(job, force=False)
        refused = dict.fromkeys(jobs.difference(accepted), "busy")
        self._events.append(RetireAnswered(manager.key, tuple(accepted), refused))

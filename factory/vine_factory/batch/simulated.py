"""A batch system that exists only in memory, under a virtual clock.

Owns the simulated cluster (jobs, latencies, faults from a seeded generator) and a client of it that keeps the contract
of `BatchSystem`. The cluster outlives its clients as a real one outlives a factory. Part of the product: simulations
use it as tests do. Must not read a clock or draw unseeded numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskvine_core.errors import BatchRejected, BatchUnavailable
from vine_factory import defaults
from vine_factory.batch.base import (
    BatchState,
    BatchSystem,
    JobHandle,
    JobRequest,
    JobStatus,
    JobTag,
    SubmitResult,
)

_KILLED = -9
_TERMINATED = -15


@dataclass(frozen=True)
class Program:
    """What a job does: runs ``runtime_s`` (None: until told to end), then ends. ``on_term_s``: how long it takes
    to leave after a polite signal, None when it ignores it."""

    runtime_s: float | None = None
    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""
    on_term_s: float | None = 0.0
    term_code: int = 0


WORKER = Program()


@dataclass(frozen=True)
class Weather:
    """How the cluster behaves. Probabilities per call, times in seconds."""

    start_s: tuple[float, float] = (0.0, 0.0)     # from submission to running, drawn evenly
    visible_s: tuple[float, float] = (0.0, 0.0)   # from submission to the first listing that has the job
    lose_answer: float = 0.0                      # a submission works, its answer is lost
    lose_call: float = 0.0                        # a submission does not arrive, nor does an answer
    poll_fails: float = 0.0
    empty_listing: float = 0.0                    # a listing wrongly has no job; at most two in a row
    cancel_fails: float = 0.0
    cycle_s: float = 0.0                          # jobs are looked at only so often
    start_rate: float = 0.0                       # so many start per second, 0 = any number
    hold: float = 0.0                             # a job is held when it is submitted, until it is cancelled


@dataclass(slots=True)
class SimJob:
    """One job of the cluster."""

    request: JobRequest
    program: Program
    batch_id: str
    visible_at: float
    starts_at: float
    ends_at: float | None = None
    exit_code: int = 0
    held: str = ""                      # why it does not start, "" when it will

    @property
    def tag(self) -> JobTag:
        """The job's identity."""
        return self.request.tag


class SimulatedCluster:
    """The cluster. ``programs`` says what a request will do; ``clock`` gives the virtual time in seconds."""

    def __init__(self, clock: Callable[[], float], rng: random.Random, weather: Weather = Weather(),
                 programs: Callable[[JobRequest], Program] = lambda request: WORKER) -> None:
        self.clock = clock
        self.rng = rng
        self.weather = weather
        self.programs = programs
        self.jobs: dict[str, SimJob] = {}
        self.down = ""                      # why it does not answer, "" when it does
        self.rejects = ""                   # why it refuses submissions, "" when it does not
        self._lies = 0
        self._number = 0
        self._next_start = float("-inf")

    def submit(self, request: JobRequest) -> str:
        """Take a job now. The same intent twice is the one thing that must never happen."""
        intent_id = request.tag.intent_id
        if intent_id in self.jobs:
            raise AssertionError(f"intent {intent_id} was submitted twice")
        self._number += 1
        now, program = self.clock(), self.programs(request)
        starts_at = self._start_time(now)
        job = SimJob(request, program, str(self._number), now + self.rng.uniform(*self.weather.visible_s), starts_at)
        if self.weather.hold and self.rng.random() < self.weather.hold:
            job.held, job.starts_at = "Transfer input files failure", math.inf
        if program.runtime_s is not None:
            job.ends_at, job.exit_code = job.starts_at + program.runtime_s, program.exit_code
        elif request.walltime_s > 0:
            job.ends_at, job.exit_code = job.starts_at + request.walltime_s, _TERMINATED
        self.jobs[intent_id] = job
        return job.batch_id

    def _start_time(self, now: float) -> float:
        starts_at = now + self.rng.uniform(*self.weather.start_s)
        if self.weather.cycle_s > 0:
            starts_at = math.ceil(starts_at / self.weather.cycle_s) * self.weather.cycle_s
        if self.weather.start_rate > 0:
            starts_at = max(starts_at, self._next_start)
            self._next_start = starts_at + 1 / self.weather.start_rate
        return starts_at

    def preempt(self, intent_id: str) -> None:
        """End what a running job does and put it back into the queue."""
        job = self.jobs[intent_id]
        if not self.over(job) and job.starts_at <= self.clock():
            job.starts_at = self.clock() + max(1.0, self.rng.uniform(*self.weather.start_s))
            job.ends_at = job.starts_at + job.request.walltime_s if job.request.walltime_s > 0 else None

    def end(self, intent_id: str, exit_code: int) -> None:
        """End a job now, as its program or somebody outside would."""
        job = self.jobs[intent_id]
        if not self.over(job):
            job.ends_at, job.exit_code = self.clock(), exit_code

    def terminate(self, intent_id: str, force: bool) -> None:
        """A signal for a job; unknown and ended ones are passed over."""
        job = self.jobs.get(intent_id)
        if job is None or self.over(job):
            return
        if force or job.starts_at > self.clock():
            self.end(intent_id, _KILLED if force else _TERMINATED)
        elif job.program.on_term_s is not None:
            leaves_at = self.clock() + job.program.on_term_s
            if job.ends_at is None or leaves_at < job.ends_at:
                job.ends_at, job.exit_code = leaves_at, job.program.term_code

    def over(self, job: SimJob) -> bool:
        """It has ended by now."""
        return job.ends_at is not None and job.ends_at <= self.clock()

    def live(self) -> list[SimJob]:
        """Jobs that have not ended."""
        return [job for job in self.jobs.values() if not self.over(job)]

    def status(self, job: SimJob) -> JobStatus:
        """The job as a listing shows it."""
        now = self.clock()
        if self.over(job):
            failed = job.exit_code != 0
            return JobStatus(job.tag, job.batch_id, BatchState.ENDED, "simulated", min(job.starts_at, now),
                             job.ends_at or now, job.exit_code, "", job.program.stderr if failed else "")
        if job.held:
            return JobStatus(job.tag, job.batch_id, BatchState.HELD, said=job.held)
        if job.starts_at > now:
            return JobStatus(job.tag, job.batch_id, BatchState.QUEUED)
        return JobStatus(job.tag, job.batch_id, BatchState.RUNNING, "simulated", job.starts_at)

    def lie(self) -> bool:
        """Whether this listing is wrongly empty; never more than two in a row."""
        self._lies = self._lies + 1 if self._lies < defaults.ABSENT_LISTINGS - 1 \
            and self.rng.random() < self.weather.empty_listing else 0
        return self._lies > 0


class SimulatedBatch(BatchSystem):
    """A client of a simulated cluster."""

    name = "simulated"

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self.settles_s = defaults.BATCH_SETTLES_S

    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """See `BatchSystem`."""
        cluster = self._cluster
        self._answers("submit")
        if cluster.rejects:
            raise BatchRejected("submission refused", said=cluster.rejects)
        if cluster.rng.random() < cluster.weather.lose_call:
            raise BatchUnavailable("submit", said="connection reset")
        results = [SubmitResult(request.tag.intent_id, cluster.submit(request), None) for request in requests]
        if cluster.rng.random() < cluster.weather.lose_answer:
            raise BatchUnavailable("submit", said="timed out")
        return results

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """See `BatchSystem`."""
        cluster = self._cluster
        self._answers("poll")
        if cluster.rng.random() < cluster.weather.poll_fails:
            raise BatchUnavailable("poll", said="timed out")
        if cluster.lie():
            return []
        now = cluster.clock()
        return [cluster.status(job) for job in cluster.jobs.values()
                if job.tag.factory_id == factory_id and job.visible_at <= now
                and (job.ends_at is None or now - job.ends_at <= defaults.ENDED_KEPT_S)]

    def cancel_many(self, jobs: Sequence[JobHandle], *, force: bool) -> None:
        """See `BatchSystem`."""
        self._answers("cancel")
        if self._cluster.rng.random() < self._cluster.weather.cancel_fails:
            raise BatchUnavailable("cancel", said="timed out")
        for handle in jobs:
            self._cluster.terminate(handle.tag.intent_id, force)

    def describe(self, job: JobHandle) -> dict[str, object]:
        """See `BatchSystem`."""
        self._answers("describe")
        found = self._cluster.jobs.get(job.tag.intent_id)
        if found is None:
            raise BatchRejected(f"no simulated job {job.tag.intent_id}")
        status = self._cluster.status(found)
        shown = found.program if status.state is BatchState.ENDED else WORKER
        return {"state": status.state.value, "exit_code": status.exit_code, "started_at": status.started_at,
                "stdout": shown.stdout, "stderr": shown.stderr}

    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """See `BatchSystem`."""
        return {"command": "".join(" ".join(request.command) + "\n" for request in requests)}

    def check(self, request: JobRequest) -> str:
        """See `BatchSystem`."""
        self._answers("check")
        if self._cluster.rejects:
            raise BatchRejected("the job would be refused", said=self._cluster.rejects)
        return ""

    def _answers(self, what: str) -> None:
        if self._cluster.down:
            raise BatchUnavailable(what, said=self._cluster.down)

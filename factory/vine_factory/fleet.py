"""All jobs of a factory, and what became of them.

Owns the collection of job records, their journal rows and the book of what changed since the last writing. Must not
know policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vine_factory import defaults
from vine_factory.events import HostRow, JobRow, MeterRow, OrderRow, WriteJournal
from vine_factory.jobs import Fact, Job, JobState, advance

_RESTORED = {JobState.INTENDED.value: JobState.INTENDED, JobState.DRAINING.value: JobState.DRAINING}


class Fleet:
    """Jobs by intent id."""

    def __init__(self, rows: Iterable[JobRow] = (), now: float = 0.0) -> None:
        self.jobs: dict[str, Job] = {}
        self._live: dict[str, dict[str, Job]] = {}     # by pool; those that are not over
        self._ended: dict[str, Job] = {}
        self._changed: set[str] = set()
        self._hosts: list[HostRow] = []
        self._meters: dict[str, MeterRow] = {}
        self._orders: dict[str, OrderRow] = {}
        for row in rows:
            # Beyond "the batch system has it" a state is an observation, and is made again.
            state = _RESTORED.get(row.state, JobState.SUBMITTED)
            job = Job(row.intent_id, row.pool, row.created_at, state, row.batch_id, touched_at=now,
                      connected_once=row.connected_once)
            if state is JobState.DRAINING:
                job.leaving_since = now
            self._keep(job)

    def of_pool(self, pool: str) -> Collection[Job]:
        """Jobs of one pool that are not over. Take a copy to change states while going through them."""
        return self._live.get(pool, {}).values()

    def live(self) -> list[Job]:
        """Jobs that are not over."""
        return [job for jobs in self._live.values() for job in jobs.values()]

    def add(self, job: Job) -> None:
        """A new record."""
        self._keep(job)
        self._changed.add(job.intent_id)

    def _keep(self, job: Job) -> None:
        self.jobs[job.intent_id] = job
        self._live.setdefault(job.pool, {})[job.intent_id] = job

    def move(self, job: Job, fact: Fact, now: float, reason: str = "") -> None:
        """Advance a job and keep what hangs on its state in step."""
        advance(job, fact)
        self._changed.add(job.intent_id)
        if job.state is not JobState.HELD:
            job.held_since = None
        if job.state is JobState.ENDED:
            del self._live[job.pool][job.intent_id]
            self._ended[job.intent_id] = job
            job.ended_at, job.end_reason, job.workers = now, reason, ()
        elif job.state is JobState.DRAINING:
            job.leaving_since = now
            job.retire_asked_at = None
        elif job.state is JobState.CONNECTED:
            job.connected_once = job.connected_once or not job.requeued
            job.unconnected_since = None
        elif job.state is JobState.QUEUED:
            job.running_since = None
        elif job.state is JobState.HELD:
            job.held_since, job.running_since = now, None
        elif fact is Fact.REAPPEARED:
            del self._ended[job.intent_id]
            self._live.setdefault(job.pool, {})[job.intent_id] = job
            job.ended_at, job.end_reason, job.touched_at = None, "", now
        clear_absence(job)

    def restarted(self, job: Job, running_since: float | None) -> None:
        """The batch system has put the job back into its queue and maybe started it again: the worker that comes is a
        new one, of which nothing is known."""
        job.running_since, job.host, job.unconnected_since = running_since, "", None
        job.connected_once = job.survived = job.proven = job.ours = False
        job.requeued = running_since is None
        self._changed.add(job.intent_id)

    def forget_old(self, now: float) -> None:
        """Drop jobs that ended long ago."""
        for intent_id, job in list(self._ended.items()):
            if job.ended_at is not None and now - job.ended_at <= defaults.ENDED_KEPT_S:
                return  # they are in the order in which they ended
            del self._ended[intent_id], self.jobs[intent_id]

    def note_hosts(self, rows: Iterable[HostRow]) -> None:
        """Which hosts a pool avoids now, to go into the journal with the next changes."""
        self._hosts += rows

    def note_meter(self, row: MeterRow) -> None:
        """What a pool has used, to go into the journal with the next changes."""
        self._meters[row.pool] = row

    def note_order(self, row: OrderRow) -> None:
        """What a person ordered, to go into the journal with the next changes."""
        self._orders[row.pool] = row

    def take_changes(self) -> WriteJournal | None:
        """What the journal has to learn, None when nothing changed."""
        if not (self._changed or self._meters or self._orders or self._hosts):
            return None
        rows, over = [], []
        for intent_id in sorted(self._changed):
            job = self.jobs.get(intent_id)
            if job is None or job.state is JobState.ENDED:
                over.append(intent_id)
            else:
                rows.append(JobRow(job.intent_id, job.pool, job.state.value, job.batch_id, job.created_at,
                                   job.connected_once))
        change = WriteJournal(tuple(rows), tuple(over), tuple(self._meters.values()),
                              tuple(self._orders.values()), tuple(self._hosts))
        self._changed.clear()
        self._meters.clear()
        self._orders.clear()
        self._hosts.clear()
        return change

    def check_invariants(self) -> None:
        """What must hold between events.

        Raises:
            AssertionError: a defect.
        """
        for intent_id, job in self.jobs.items():
            assert job.intent_id == intent_id
            assert (job.ended_at is not None) == (job.state is JobState.ENDED), job
            assert job.state is not JobState.DRAINING or job.leaving_since is not None, job
            assert not job.workers or job.state in (JobState.CONNECTED, JobState.DRAINING), job
            assert job.killed_at is None or job.cancelled_at is not None, job
            assert (job.held_since is not None) == (job.state is JobState.HELD), job
            assert (intent_id in self._live.get(job.pool, {})) == job.live == (intent_id not in self._ended), job


def clear_absence(job: Job) -> None:
    """The job has been seen: start counting anew when it is missed again."""
    job.absent_since = None
    job.absent_listings = 0

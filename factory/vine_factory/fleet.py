"""All jobs of a factory, and what became of them.

Owns the collection of job records, their journal rows and the book of what changed since the last writing. Must not
know policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vine_factory import defaults
from vine_factory.events import JobRow, MeterRow, OrderRow, WriteJournal
from vine_factory.jobs import Fact, Job, JobState, advance

_RESTORED = {JobState.INTENDED.value: JobState.INTENDED, JobState.DRAINING.value: JobState.DRAINING}


class Fleet:
    """Jobs by intent id."""

    def __init__(self, rows: Iterable[JobRow] = (), now: float = 0.0) -> None:
        self.jobs: dict[str, Job] = {}
        self._changed: set[str] = set()
        self._meters: dict[str, MeterRow] = {}
        self._orders: dict[str, OrderRow] = {}
        for row in rows:
            # Beyond "the batch system has it" a state is an observation, and is made again.
            state = _RESTORED.get(row.state, JobState.SUBMITTED)
            job = Job(row.intent_id, row.pool, row.created_at, state, row.batch_id, touched_at=now,
                      connected_once=row.connected_once)
            if state is JobState.DRAINING:
                job.leaving_since = now
            self.jobs[row.intent_id] = job

    def of_pool(self, pool: str) -> Iterator[Job]:
        """Jobs of one pool that are not over."""
        return (job for job in self.jobs.values() if job.pool == pool and job.state is not JobState.ENDED)

    def live(self) -> list[Job]:
        """Jobs that are not over."""
        return [job for job in self.jobs.values() if job.state is not JobState.ENDED]

    def add(self, job: Job) -> None:
        """A new record."""
        self.jobs[job.intent_id] = job
        self._changed.add(job.intent_id)

    def move(self, job: Job, fact: Fact, now: float, reason: str = "") -> None:
        """Advance a job and keep what hangs on its state in step."""
        advance(job, fact)
        self._changed.add(job.intent_id)
        if job.state is JobState.ENDED:
            job.ended_at, job.end_reason, job.workers = now, reason, ()
        elif job.state is JobState.DRAINING:
            job.leaving_since = now
            job.retire_asked_at = None
        elif job.state is JobState.CONNECTED:
            job.connected_once = True
            job.unconnected_since = None
        elif job.state is JobState.QUEUED:
            job.running_since = None
        elif fact is Fact.REAPPEARED:
            job.ended_at, job.end_reason, job.touched_at = None, "", now
        clear_absence(job)

    def forget_old(self, now: float) -> None:
        """Drop jobs that ended long ago."""
        old = [i for i, job in self.jobs.items()
               if job.ended_at is not None and now - job.ended_at > defaults.ENDED_KEPT_S]
        for intent_id in old:
            del self.jobs[intent_id]

    def note_meter(self, row: MeterRow) -> None:
        """What a pool has used, to go into the journal with the next changes."""
        self._meters[row.pool] = row

    def note_order(self, row: OrderRow) -> None:
        """What a person ordered, to go into the journal with the next changes."""
        self._orders[row.pool] = row

    def take_changes(self) -> WriteJournal | None:
        """What the journal has to learn, None when nothing changed."""
        if not self._changed and not self._meters and not self._orders:
            return None
        rows, over = [], []
        for intent_id in sorted(self._changed):
            job = self.jobs.get(intent_id)
            if job is None or job.state is JobState.ENDED:
                over.append(intent_id)
            else:
                rows.append(JobRow(job.intent_id, job.pool, job.state.value, job.batch_id, job.created_at,
                                   job.connected_once))
        change = WriteJournal(tuple(rows), tuple(over), tuple(self._meters.values()), tuple(self._orders.values()))
        self._changed.clear()
        self._meters.clear()
        self._orders.clear()
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


def clear_absence(job: Job) -> None:
    """The job has been seen: start counting anew when it is missed again."""
    job.absent_since = None
    job.absent_listings = 0

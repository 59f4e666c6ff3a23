"""A thread that makes the blocking calls of one batch system, one at a time.

Owns the queue of calls and how answers and errors become events. A call that hangs holds up this pool and nothing
else. Must not decide anything.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable, ConfigError
from vine_factory.batch.base import BatchSystem, JobHandle, JobRequest, JobStatus
from vine_factory.batch.place import Place
from vine_factory.events import Accepted, CancelUnclear, Event, Refused, SubmitUnclear
from vine_factory.readings import Known, Reading, Unknown


class BatchDriver:
    """Drives one pool's batch system.

    Args:
        pool: its name.
        make: makes the batch system; it is made and used in this object's thread only.
        factory_id: whose jobs are polled.
        post: takes events; called from the thread.
        listed: takes readings of a poll; called from the thread.
        clock: seconds since the epoch.
    """

    def __init__(self, pool: str, make: Callable[[], BatchSystem], factory_id: str, post: Callable[[Event], None],
                 listed: Callable[[str, Reading[tuple[JobStatus, ...]]], None], clock: Callable[[], float]) -> None:
        self.pool = pool
        self._make = make
        self._made: BatchSystem | None = None
        self._factory_id = factory_id
        self._post = post
        self._listed = listed
        self._clock = clock
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._poll_asked_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"batch-{pool}", daemon=True)
        self._thread.start()

    def poll(self) -> bool:
        """Ask for a listing, unless one is asked for already; returns False then."""
        if self._poll_asked_at is not None:
            return False
        self._poll_asked_at = self._clock()
        self._calls.put(self._poll)
        return True

    def silent_since(self) -> float | None:
        """When the open poll was asked for (seconds), None when there is none."""
        return self._poll_asked_at

    def submit(self, ids: tuple[str, ...], compose: Callable[[], Sequence[JobRequest]]) -> None:
        """Submit what ``compose``, called in the thread, makes for the intents ``ids``; the outcome comes as Accepted,
        Refused and SubmitUnclear events."""
        self._calls.put(lambda: self._submit(ids, compose))

    def cancel(self, jobs: Sequence[JobHandle], force: bool) -> None:
        """Cancel; only a failure comes as an event."""
        self._calls.put(lambda: self._cancel(jobs, force))

    def describe(self, job: JobHandle, reply: Callable[[Mapping[str, object]], None]) -> None:
        """All the batch system knows of a job, {"job": ...}, or {"error": ...}; ``reply`` is called in the thread."""
        self._calls.put(lambda: self._describe(job, reply))

    def reconfigure(self, place: Place) -> None:
        """Use another place from the next submission on."""
        self._calls.put(lambda: self._reconfigure(place))

    def close(self, timeout_s: float) -> None:
        """Let the thread end when it is not in a call that hangs."""
        self._calls.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                if self._made is not None:
                    self._made.close()
                return
            call()

    def _system(self) -> BatchSystem:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _reconfigure(self, place: Place) -> None:
        if self._made is not None:
            self._made.reconfigure(place)

    def _poll(self) -> None:
        asked_at = self._clock()
        reading: Reading[tuple[JobStatus, ...]]
        try:
            reading = Known(tuple(self._system().poll_many(self._factory_id)), asked_at)
        except (BatchError, ConfigError) as problem:
            reading = Unknown(str(problem), asked_at)
        except Exception:  # a defect in one batch system must not stop the others; it is shown, not hidden
            reading = Unknown(traceback.format_exc(limit=-2), asked_at)
        self._poll_asked_at = None
        self._listed(self.pool, reading)

    def _describe(self, job: JobHandle, reply: Callable[[Mapping[str, object]], None]) -> None:
        try:
            reply({"job": self._system().describe(job)})
        except Exception as problem:  # somebody waits for an answer, whatever it was
            reply({"error": str(problem) or type(problem).__name__})

    def _submit(self, ids: tuple[str, ...], compose: Callable[[], Sequence[JobRequest]]) -> None:
        try:
            results = self._system().submit_many(compose())
        except (BatchRejected, ConfigError) as problem:
            self._post(Refused(self.pool, ids, str(problem)))
            return
        except BatchError as problem:
            self._post(SubmitUnclear(self.pool, ids, str(problem)))
            return
        except Exception:  # as in _poll: what it did before it failed is not known
            self._post(SubmitUnclear(self.pool, ids, traceback.format_exc(limit=-2)))
            return
        accepted = tuple((r.intent_id, r.batch_id) for r in results if r.error is None)
        if accepted:
            self._post(Accepted(self.pool, accepted))
        for result in results:
            if isinstance(result.error, BatchUnavailable):
                self._post(SubmitUnclear(self.pool, (result.intent_id,), str(result.error)))
            elif result.error is not None:
                self._post(Refused(self.pool, (result.intent_id,), str(result.error)))

    def _cancel(self, jobs: Sequence[JobHandle], force: bool) -> None:
        try:
            self._system().cancel_many(jobs, force=force)
        except Exception as problem:  # whatever it was: the jobs may still be there, and have to be asked again
            self._post(CancelUnclear(self.pool, tuple(job.tag.intent_id for job in jobs), str(problem)))

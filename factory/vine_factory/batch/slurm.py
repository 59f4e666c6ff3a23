"""Jobs of a Slurm cluster.

Owns what is asked of Slurm when, and how answers become the contract's. One array per submission and kind of job;
its comment names the intents of its elements, so a process that knows nothing finds every job by one listing. Needs
a directory that exists under the same name where jobs run. Must not decide when jobs are submitted or ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from taskvine_core.errors import BatchRejected, ConfigError
from vine_factory import defaults
from vine_factory.batch import outputs, slurm_check, slurm_pyslurm
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobStatus, JobTag, SubmitResult
from vine_factory.batch.parse.slurm import Listed
from vine_factory.batch.parse.slurm_words import state_of
from vine_factory.batch.place import Place
from vine_factory.batch.portions import submit_portions
from vine_factory.batch.slurm_book import COMPLETED, Entry, JobBook
from vine_factory.batch.slurm_calls import Queue, Tools, shell_line, submit_environment
from vine_factory.batch.slurm_script import TEMPLATE, Submission, outputs_of, submissions
from vine_factory.batch.slurm_tags import Tags, decode


class SlurmBatch(BatchSystem):
    """One pool on Slurm.

    Args:
        place: see `Place`. ``directory`` must exist under the same name on the nodes: Slurm writes outputs there.
        clock: seconds since the epoch.
        timeout_s: for one command of Slurm.
    """

    name = "slurm"
    settles_s = defaults.BATCH_SETTLES_S
    place: Place

    def __init__(self, place: Place, clock: Callable[[], float] = time.time,
                 timeout_s: float = defaults.TOOL_TIMEOUT_S) -> None:
        self.place = place
        self._clock = clock
        self._timeout_s = timeout_s
        self._tools = Tools(str(place.options["clusters"]), timeout_s)
        self._queue: Queue | None = None
        self._book = JobBook()
        self._accounting = True

    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """See `BatchSystem`."""
        made = self._submissions(requests)
        return submit_portions(requests, made, self._submit)

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """See `BatchSystem`. One listing; exit codes and the accounting when something ended."""
        if factory_id != self.place.factory_id:
            return []
        now = self._clock()
        ended = self._book.listing(self._listing(), now)
        if ended:
            worth = any(entry.ended_as != COMPLETED for entry in ended)
            self._book.exits(ended, self._tools.exits() if worth else {})
        ended += self._look_up(now)
        self._keep_last_words(ended)
        self._book.forget(now)
        return self._book.statuses(now)

    def cancel_many(self, jobs: Sequence[JobHandle], *, force: bool) -> None:
        """See `BatchSystem`. Politely: SIGTERM to the process that became the worker; jobs that wait just go."""
        wanted = {job.tag for job in jobs}
        found = [(tag, job.number, state_of(job.state, job.reason)) for tag, job in self._listing() if tag in wanted]
        polite = [number for _, number, state in found if state is BatchState.RUNNING and not force]
        others = [number for _, number, state in found if state is not BatchState.ENDED and
                  (force or state is not BatchState.RUNNING)]
        self._tools.cancel(others, politely=False)
        self._book.cancelled(tag for tag, _, state in found if state in (BatchState.QUEUED, BatchState.HELD))
        self._tools.cancel(polite, politely=True)

    def describe(self, job: JobHandle) -> dict[str, object]:
        """See `BatchSystem`: Slurm's record with its own names, and under names in small letters what we make of it."""
        status = next((one for one in self.poll_many(self.place.factory_id) if one.tag == job.tag), None)
        if status is None and not self._same(job):
            raise BatchRejected(f"Slurm has no job {job.tag.text()}", hint="it may have ended long ago")
        number = status.batch_id if status is not None else job.batch_id
        facts: dict[str, object] = dict(self._tools.show(number))
        if status is not None:
            facts |= {"state": status.state.value, "exit_code": status.exit_code, "said": status.said,
                      "host": status.host}
        elif not facts:
            raise BatchRejected(f"Slurm has no job {number} any more")
        files = {f"std{kind}": outputs.tail(outputs.path(self._outputs, number, kind)) for kind in outputs.KINDS}
        return {**facts, "batch_id": number, "client": self._way().words, **files}

    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """See `BatchSystem`."""
        made = submissions(self.place, requests)
        command = shell_line(self._tools.submit_command(), self._given())
        texts = {f"job{'' if index == 0 else f'-{index + 1}'}.sh": submission.text
                 for index, submission in enumerate(made)}
        return {**texts, "command": "".join(f"{command} < {name}\n" for name in texts)}

    def check(self, request: JobRequest) -> str:
        """See `BatchSystem`: what sbatch says, and what it takes without a word though nothing can come of it."""
        (submission,) = self._submissions([request])
        _make(self._outputs)
        said = slurm_check.check(self._tools, submission.text, self.place.options)
        return "\n".join([*said, f"Slurm is asked through {self._way().words}"])

    def reconfigure(self, place: Place) -> None:
        """See `BatchSystem`. How Slurm is asked is chosen anew with the next question."""
        self.close()
        self.place = place
        self._tools = Tools(str(place.options["clusters"]), self._timeout_s)
        self._queue = None

    def close(self) -> None:
        """See `BatchSystem`."""
        if self._queue is not None:
            self._queue.close()

    # -------------------------------------------------------------------------------------------- submitting

    @property
    def _outputs(self) -> Path:
        return outputs_of(self.place.directory)

    def _given(self) -> list[str]:
        return list(submit_environment(self.place.options, os.environ))

    def _submissions(self, requests: Sequence[JobRequest]) -> list[Submission]:
        try:
            return submissions(self.place, requests)
        except ConfigError as problem:
            raise BatchRejected(f"cannot write the job script ({TEMPLATE})", said=str(problem)) from problem

    def _submit(self, submission: Submission) -> list[str]:
        _make(self._outputs)  # sbatch takes a job whose output has no place, and it fails without a word
        numbers = submission.numbers(self._tools.submit(submission.text, self.place.options))
        for request, number in zip(submission.requests, numbers, strict=True):
            self._book.submitted(request.tag, number)
        return numbers

    # ----------------------------------------------------------------------------------------------- polling

    def _listing(self) -> list[tuple[JobTag, Listed]]:
        """This pool's jobs in the queue, each with its tag."""
        in_name = self.place.options["tag-in"] == "job-name"
        read: dict[str, Tags | None] = {}
        found = []
        for job in self._way().listing():
            text = job.name if in_name else job.comment
            if text not in read:
                read[text] = decode(text)
            tags = read[text]
            if tags is None or (tags.factory_id, tags.pool) != (self.place.factory_id, self.place.pool):
                continue
            tag = tags.of(job.element)
            if tag is not None:
                found.append((tag, job))
        return found

    def _look_up(self, now: float) -> list[Entry]:
        """Ask the accounting, where there is one, for jobs that left without a word."""
        wanted = self._book.unexplained()
        if not wanted:
            return []
        found = self._tools.accounting([entry.batch_id for entry in wanted]) if self._accounting else []
        self._accounting = found is not None
        return self._book.past(found or (), wanted, now)

    def _keep_last_words(self, ended: Sequence[Entry]) -> None:
        if not ended or not self._outputs.is_dir():
            return
        for entry in ended:
            if entry.exit_code == 0 or not entry.started_at:
                outputs.drop(self._outputs, [entry.batch_id])
            else:
                entry.stderr_tail = outputs.tail(outputs.path(self._outputs, entry.batch_id, "err"))
        outputs.prune(self._outputs, {entry.batch_id for entry in self._book.live()})

    # ------------------------------------------------------------------------------------------------- who

    def _way(self) -> Queue:
        if self._queue is None:
            self._queue = slurm_pyslurm.choose(str(self.place.options["client"]), self._tools, self._timeout_s,
                                               bool(self.place.options["clusters"]))
        return self._queue

    def _same(self, job: JobHandle) -> bool:
        """A number is only believed for a job that this object submitted."""
        entry = self._book.find(job.tag.intent_id)
        return entry is not None and entry.batch_id == job.batch_id != ""


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as problem:
        raise ConfigError(f"cannot make {directory}: {problem}", hint="give the factory another directory") from problem

"""Jobs of Grid Engine, or of another batch system that has a DRMAA library.

Owns what is asked of it when, and how answers become the contract's. Jobs are submitted as arrays through DRMAA and,
on Grid Engine, found again by qstat: the name says that they are the pool's, the job context which intents they are.
DRMAA itself can list nothing; on other systems the numbers of jobs are kept in a file. Must not decide when jobs are
submitted or ended.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from taskvine_core.errors import BatchRejected, BatchUnavailable, ConfigError
from vine_factory import defaults
from vine_factory.batch import outputs
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobStatus, SubmitResult
from vine_factory.batch.drmaa_calls import DrmaaCalls, has_listing
from vine_factory.batch.drmaa_options import AUTO, GRID_ENGINE
from vine_factory.batch.drmaa_text import Submission, job_name, output_name, submissions, tags_of
from vine_factory.batch.job_numbers import JobNumbers
from vine_factory.batch.listed import Entry, Listed, Seen
from vine_factory.batch.place import Place
from vine_factory.batch.portions import submit_portions

_DIGEST_CHARS = 16
_KEPT_SCRIPTS_S = 60.0
"""Grid Engine copies a script at submission; others may read it a little later."""
_DETAILS_PER_CALL = 200
_ACCOUNTED_JOBS = 10
"""qacct reads its whole file for each array: no more than so many in one poll."""


class DrmaaBatch(BatchSystem):
    """One pool on Grid Engine or another system with DRMAA.

    Args:
        place: see `Place`. ``directory`` must be the same wherever jobs run.
        clock: seconds since the epoch.
        timeout_s: for one call; the option ``poll-timeout`` when not given.
    """

    name = "drmaa"
    settles_s = defaults.BATCH_SETTLES_S
    place: Place

    def __init__(self, place: Place, clock: Callable[[], float] = time.time, timeout_s: float | None = None) -> None:
        self.place = place
        self._clock = clock
        self._outputs, self._scripts = place.directory / "jobs", place.directory / "scripts"
        try:
            for directory in (place.directory, self._outputs, self._scripts):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            raise ConfigError(f"cannot make {place.directory}: {problem}",
                              hint="give the factory another directory") from problem
        options = place.options
        self._calls = DrmaaCalls(place.directory, str(options["library"]), str(options["system"]),
                                 timeout_s or float(str(options["poll-timeout"])))
        self._name = job_name(place.factory_id, place.pool)
        self._listed = Listed()
        self._numbers = JobNumbers(place.directory)
        self._outputs_of: dict[str, str] = {}

    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """See `BatchSystem`."""
        try:
            made = submissions(self.place, self._calls.system(), self._outputs, requests)
        except ConfigError as problem:
            raise BatchRejected("cannot write the job script", said=str(problem)) from problem
        return submit_portions(requests, made, self._submit)

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """See `BatchSystem`. One qstat; more only for jobs that are new to this process, held, or have left."""
        if factory_id != self.place.factory_id:
            return []
        now = self._clock()
        seen = self._by_qstat() if self._lists() else self._by_number()
        ended = self._listed.listing(seen, now)
        ended += self._look_up(now)
        self._keep_last_words(ended)
        self._listed.forget(now)
        if not self._lists():
            self._numbers.keep_only({entry.batch_id for entry in self._listed.live()})
        return self._listed.statuses()

    def cancel_many(self, jobs: Sequence[JobHandle], *, force: bool) -> None:
        """See `BatchSystem`. Grid Engine sends SIGUSR2 to jobs submitted with -notify, and SIGKILL after the queue's
        ``notify`` time; nothing that a user may do is faster. So ``force`` is the same wish once more."""
        ids = [job.batch_id or self._id_of(job) for job in jobs]
        if not all(ids):
            self.poll_many(self.place.factory_id)
            ids = [known or self._id_of(job) for known, job in zip(ids, jobs, strict=True)]
        self._calls.terminate([batch_id for batch_id in ids if batch_id])

    def describe(self, job: JobHandle) -> dict[str, object]:
        """See `BatchSystem`: what qstat knows of the whole array, and under names in small letters what we make of
        it."""
        self.poll_many(self.place.factory_id)
        entry = self._listed.find(job.tag.intent_id)
        if entry is None or entry.tag != job.tag:
            raise BatchRejected(f"there is no job {job.tag.text()}", hint="it may have ended long ago")
        facts = self._calls.facts(entry.batch_id.partition(".")[0]) \
            if self._lists() and entry.state is not BatchState.ENDED else {}
        files = {f"std{kind}": outputs.tail(self._output(entry.batch_id, kind)) for kind in outputs.KINDS}
        return {**facts, "batch_id": entry.batch_id, "state": entry.state.value, "exit_code": entry.exit_code,
                "host": entry.host, "said": entry.said, "client": self._calls.words, **files}

    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """See `BatchSystem`. On Grid Engine the script holds all that it is told but the native specification."""
        system = str(self.place.options["system"])
        made = submissions(self.place, GRID_ENGINE if system == AUTO else system, self._outputs, requests)
        texts = {f"job{'' if index == 0 else f'-{index + 1}'}.sh": one.script for index, one in enumerate(made)}
        return {**texts, "command": "".join(
            f"drmaa_run_bulk_jobs(job_name={self._name}, remote_command={name}, native_specification={one.native!r}, "
            f"1..{len(one.requests)})\n" for name, one in zip(texts, made, strict=True))}

    def check(self, request: JobRequest) -> str:
        """See `BatchSystem`: ``qsub -w v`` with the very script."""
        try:
            (submission,) = submissions(self.place, self._calls.system(), self._outputs, [request])
        except ConfigError as problem:
            raise BatchRejected("cannot write the job script", said=str(problem)) from problem
        return self._calls.verify(self._written(submission))

    def close(self) -> None:
        """See `BatchSystem`."""
        self._calls.close()

    # -------------------------------------------------------------------------------------------- submitting

    def _submit(self, submission: Submission) -> list[str]:
        script = self._written(submission)
        count = len(submission.requests)
        bulk = count > 1 or self._calls.system() == GRID_ENGINE
        ids = self._calls.submit(script, submission.native, self._name, count, self._outputs, bulk=bulk)
        for request, batch_id in zip(submission.requests, ids, strict=True):
            self._listed.submitted(request.tag, batch_id)
        if not self._lists():
            stems = [f"{script.stem}.{number}" for number in range(1, count + 1)]
            self._numbers.add([(request.tag, batch_id, stem) for request, batch_id, stem
                               in zip(submission.requests, ids, stems, strict=True)])
        return ids

    def _written(self, submission: Submission) -> Path:
        digest = hashlib.sha256(submission.script.encode()).hexdigest()[:_DIGEST_CHARS]
        path = self._scripts / f"{digest}.sh"
        part = path.with_suffix(".new")
        try:
            self._outputs.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in self._scripts.iterdir():
                if self._clock() - old.stat().st_mtime > _KEPT_SCRIPTS_S and self._lists():
                    old.unlink(missing_ok=True)
            part.write_text(submission.script, encoding="utf-8")
            part.chmod(0o700)
            part.replace(path)
        except OSError as problem:
            raise BatchUnavailable(f"cannot write {path}", said=str(problem)) from problem
        return path

    # ----------------------------------------------------------------------------------------------- polling

    def _lists(self) -> bool:
        """Jobs can be listed: it is Grid Engine and its qstat is there."""
        return self._calls.system() == GRID_ENGINE and has_listing()

    def _by_qstat(self) -> list[Seen]:
        rows = [row for row in self._calls.listing() if row.name == self._name]
        held = {row.job for row in rows if row.seen.state is BatchState.HELD}
        asked = sorted({row.job for row in rows if not self._listed.knows(row.seen.batch_id)} | held)
        said = {}
        for start in range(0, len(asked), _DETAILS_PER_CALL):
            for job, details in self._calls.details(asked[start:start + _DETAILS_PER_CALL]).items():
                if job in held:
                    said[job] = details.said
                for number, tag in enumerate(tags_of(details.context, self.place.factory_id, self.place.pool), 1):
                    if not self._listed.knows(f"{job}.{number}"):
                        self._listed.submitted(tag, f"{job}.{number}")
        return [row.seen._replace(said=f"{row.seen.said}: {said[row.job]}")
                if row.seen.state is BatchState.HELD and said.get(row.job) else row.seen for row in rows]

    def _by_number(self) -> list[Seen]:
        for tag, batch_id, _ in self._numbers.read():
            if tag.factory_id == self.place.factory_id and tag.pool == self.place.pool \
                    and not self._listed.knows(batch_id):
                self._listed.submitted(tag, batch_id)
        return self._calls.states([entry.batch_id for entry in self._listed.live()])

    def _look_up(self, now: float) -> list[Entry]:
        """Ask how jobs ended: DRMAA for those of its session, then the accounting for the others."""
        wanted = self._listed.unexplained(now)
        if not wanted:
            return []
        found = {one.batch_id: one for one in self._calls.reap([entry.batch_id for entry in wanted])}
        if self.place.options["accounting"] and self._lists():
            missing = {entry.batch_id.partition(".")[0] for entry in wanted
                       if entry.batch_id not in found or not found[entry.batch_id].final}
            for job in sorted(missing)[:_ACCOUNTED_JOBS]:
                found.update({one.batch_id: one for one in self._calls.accounting(job)})
        asked = {entry.batch_id for entry in wanted}
        return self._listed.explained(wanted, [one for one in found.values() if one.batch_id in asked], now)

    def _keep_last_words(self, ended: Sequence[Entry]) -> None:
        if not ended:
            return
        for entry in ended:
            if entry.exit_code == 0 or not entry.started_at:
                for kind in outputs.KINDS:
                    self._output(entry.batch_id, kind).unlink(missing_ok=True)
            else:
                entry.stderr_tail = outputs.tail(self._output(entry.batch_id, "err"))
        outputs.prune(self._outputs, {self._stem(entry.batch_id) for entry in self._listed.live()})

    def _stem(self, batch_id: str) -> str:
        return output_name(batch_id) if self._lists() else self._numbers.stem(batch_id)

    def _output(self, batch_id: str, kind: str) -> Path:
        return outputs.path(self._outputs, self._stem(batch_id), kind)

    def _id_of(self, job: JobHandle) -> str:
        entry = self._listed.find(job.tag.intent_id)
        return entry.batch_id if entry is not None and entry.tag == job.tag else ""

"""Jobs of a batch system that is driven by its commands, as a definition describes them.

Owns when which command is run and what becomes of its answer. Where the definition has arrays, jobs that are
submitted together are one. Jobs are found again by a tag or name in the listing, and by their numbers, which are kept
in a file. Must not know any batch system.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from taskvine_core.errors import BatchRejected, BatchUnavailable, ConfigError
from vine_factory import defaults
from vine_factory.batch import outputs
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobStatus, SubmitResult
from vine_factory.batch.command_calls import Calls, chunks, user
from vine_factory.batch.command_definition import definition
from vine_factory.batch.command_text import (
    Submission,
    batch_id,
    numbers,
    owner_of,
    script,
    seen,
    submissions,
    values_of,
)
from vine_factory.batch.job_numbers import JobNumbers, Line
from vine_factory.batch.listed import Entry, Listed, Seen
from vine_factory.batch.place import Place
from vine_factory.batch.portions import submit_portions

_KEPT_SCRIPTS_S = 5 * defaults.BATCH_SETTLES_S
"""A script without a job that we know of may be that of one whose submission was not answered."""
_SWEEP_S = 60.0


class CommandBatch(BatchSystem):
    """One pool on a batch system driven by its commands.

    Args:
        place: see `Place`. ``directory`` must be the same wherever jobs run.
        clock: seconds since the epoch.
        timeout_s: for one command; the option ``poll-timeout`` when not given.

    Raises:
        ConfigError: the definition cannot be used.
    """

    name = "command"
    settles_s = defaults.BATCH_SETTLES_S
    place: Place

    def __init__(self, place: Place, clock: Callable[[], float] = time.time, timeout_s: float | None = None) -> None:
        self.place = place
        self._clock = clock
        self._given_timeout_s = timeout_s
        self._calls = self._made(place)
        self._outputs, self._scripts = place.directory / "jobs", place.directory / "scripts"
        try:
            for directory in (place.directory, self._outputs, self._scripts):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            raise ConfigError(f"cannot make {place.directory}: {problem}",
                              hint="give the factory another directory") from problem
        self._listed = Listed()
        self._numbers = JobNumbers(place.directory)
        self._swept_at = float("-inf")

    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """See `BatchSystem`. One command for each array, or for each job where there are none; after one without an
        answer no other is tried."""
        return submit_portions(requests, submissions(self._calls.definition, requests), self._submit)

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """See `BatchSystem`."""
        if factory_id != self.place.factory_id:
            return []
        now = self._clock()
        for tag, number, _ in self._numbers.read():
            if (tag.factory_id, tag.pool) == (self.place.factory_id, self.place.pool) \
                    and not self._listed.knows(number):
                self._listed.submitted(tag, number)
        ended = self._listed.listing(self._listing(), now)
        ended += self._look_up(now)
        self._keep_last_words(ended)
        self._listed.forget(now)
        self._numbers.keep_only({entry.batch_id for entry in self._listed.live()})
        self._sweep(now)
        return self._listed.statuses()

    def cancel_many(self, jobs: Sequence[JobHandle], *, force: bool) -> None:
        """See `BatchSystem`. Politely: ``stop`` for running ones, where the definition has it."""
        if not all(job.batch_id and self._listed.find(job.tag.intent_id) for job in jobs):
            self.poll_many(self.place.factory_id)
        chosen: dict[str, list[str]] = {"stop": [], "cancel": []}
        for job in jobs:
            entry = self._listed.find(job.tag.intent_id)
            if entry is None or entry.tag != job.tag or entry.state is BatchState.ENDED:
                continue
            polite = not force and entry.state is BatchState.RUNNING and self._calls.definition.words("stop")
            chosen["stop" if polite else "cancel"].append(entry.batch_id)
        for key, ids in chosen.items():
            for some in chunks(ids):
                done = self._calls.run(key, {"ids": some, "user": user()})
                if done.status != 0:
                    self._calls.check_reached(done)  # any other complaint is that jobs are gone, or about to
        for job in jobs:
            if (entry := self._listed.find(job.tag.intent_id)) is not None and entry.tag == job.tag:
                self._listed.cancelled(entry)

    def describe(self, job: JobHandle) -> dict[str, object]:
        """See `BatchSystem`: what the describe command prints under "text", and what we make of the job."""
        self.poll_many(self.place.factory_id)
        entry = self._listed.find(job.tag.intent_id)
        if entry is None or entry.tag != job.tag:
            raise BatchRejected(f"there is no job {job.tag.text()}", hint="it may have ended long ago")
        values: dict[str, object] = {"id": entry.batch_id, "whole": self._calls.whole(entry.batch_id), "user": user()}
        text = self._calls.run("describe", values).stdout if self._calls.definition.words("describe") else ""
        files = {f"std{kind}": outputs.tail(self._output(entry, kind)) for kind in outputs.KINDS}
        return {"batch_id": entry.batch_id, "state": entry.state.value, "exit_code": entry.exit_code,
                "host": entry.host, "said": entry.said, "text": text, "client": self._calls.definition.where, **files}

    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """See `BatchSystem`: the script of each job or array, and the commands."""
        made = self._calls.definition
        texts: dict[str, str] = {}
        commands = []
        for number, submission in enumerate(submissions(made, requests), 1):
            name = f"job{'' if number == 1 else f'-{number}'}.sh"
            texts[name] = script(self.place, made, submission)
            words = self._calls.argv("submit", values_of(self.place, made, submission, Path(name)))
            commands.append(shlex.join(words) + (f" < {name}" if made.values["script-on-stdin"] else "") + "\n")
        return {**texts, "command": "".join(commands)}

    def check(self, request: JobRequest) -> str:
        """See `BatchSystem`. That it answers a poll, and what the definition's check says of the job."""
        submission = Submission((request,))
        jobs = self._calls.listing()
        ours = sum(owner_of(self.place, record) is not None for record in jobs)
        said = f"{self._calls.definition.where}: it answers, and lists {len(jobs)} jobs, {ours} of them of this pool"
        try:
            path, values = self._written(submission)
            if not self._calls.definition.words("check"):
                return f"{said}; it has no way to check one that is not submitted"
            done = self._calls.run("check", values, path)
        except ConfigError as problem:
            raise BatchRejected("cannot write the job script", said=str(problem)) from problem
        if done.status != 0:
            self._calls.check_reached(done)
            raise BatchRejected(done.argv[0], said=done.said)
        return f"{said}\n{done.said}"

    def reconfigure(self, place: Place) -> None:
        """See `BatchSystem`. A definition that has become unusable since it was read for the site file is not taken
        over."""
        self.place = place
        with contextlib.suppress(ConfigError):
            made = self._made(place)
            self._calls.close()
            self._calls = made

    def close(self) -> None:
        """See `BatchSystem`."""
        self._calls.close()

    def _made(self, place: Place) -> Calls:
        return Calls(definition(place.options), self._given_timeout_s or float(str(place.options["poll-timeout"])))

    # -------------------------------------------------------------------------------------------- submitting

    def _submit(self, submission: Submission) -> list[str]:
        try:
            path, values = self._written(submission)
            done = self._calls.run("submit", values, path)
        except ConfigError as problem:
            raise BatchRejected("cannot write the job script", said=str(problem)) from problem
        answers = self._calls.submitted(done)
        if done.status != 0:
            self._calls.check_reached(done)
            if not answers or submission.jobs == 1:
                raise BatchRejected(done.argv[0], said=done.said)
        ids = numbers(self._calls.definition, answers, submission.jobs) if done.status == 0 else []
        if not ids:
            raise BatchUnavailable(f"{done.argv[0]} gave {len(answers)} numbers for {submission.jobs} jobs",
                                   said=done.said)
        lines: list[Line] = [(request.tag, number, submission.stem) for request, number
                             in zip(submission.requests, ids, strict=True)]
        for tag, number, _ in lines:
            self._listed.submitted(tag, number)
        self._numbers.add(lines)
        return ids

    def _written(self, submission: Submission) -> tuple[Path, dict[str, object]]:
        text = script(self.place, self._calls.definition, submission)
        path = self._scripts / f"{submission.stem}.sh"
        part = path.with_suffix(".new")
        try:
            part.write_text(text, encoding="utf-8")
            part.chmod(0o700)
            part.replace(path)
        except OSError as problem:
            raise BatchUnavailable(f"cannot write {path}", said=str(problem)) from problem
        return path, values_of(self.place, self._calls.definition, submission, path)

    # ----------------------------------------------------------------------------------------------- polling

    def _listing(self) -> list[Seen]:
        found: list[Seen] = []
        strangers: list[Line] = []
        for record in self._calls.listing():
            number, owner = batch_id(self._calls.definition, record), owner_of(self.place, record)
            if owner is not None and not self._listed.knows(number):
                self._listed.submitted(owner.tag, number)
                strangers.append((owner.tag, number, owner.stem))
            found.append(seen(self._calls.definition, record))
        if strangers:
            with contextlib.suppress(BatchUnavailable):  # they are in the next listing, too
                self._numbers.add(strangers)
        return found

    def _look_up(self, now: float) -> list[Entry]:
        """Ask how jobs ended that are not listed any more."""
        wanted = {entry.batch_id: entry for entry in self._listed.unexplained(now)}
        if not wanted:
            return []
        asked, records = self._calls.ended(list(wanted))
        found = [one for one in (seen(self._calls.definition, record, has_ended=True) for record in records)
                 if one.state is BatchState.ENDED and one.batch_id in wanted]
        return self._listed.explained([wanted[number] for number in asked], found, now)

    def _keep_last_words(self, ended: Sequence[Entry]) -> None:
        for entry in ended:
            if entry.exit_code == 0:
                outputs.drop(self._outputs, [entry.tag.intent_id])
            else:
                entry.stderr_tail = outputs.tail(self._output(entry, "err"))
        if ended:
            outputs.prune(self._outputs, {entry.tag.intent_id for entry in self._listed.live()})

    def _sweep(self, now: float) -> None:
        """Delete scripts whose jobs are over: some systems read them when a job starts, and an array's is one."""
        if 0 <= now - self._swept_at < _SWEEP_S:
            return
        self._swept_at = now
        kept = {self._numbers.stem(entry.batch_id) for entry in self._listed.live()}
        with contextlib.suppress(OSError):
            for path in self._scripts.iterdir():
                if path.stem not in kept and not 0 <= now - path.stat().st_mtime < _KEPT_SCRIPTS_S:
                    path.unlink(missing_ok=True)

    def _output(self, entry: Entry, kind: str) -> Path:
        return outputs.path(self._outputs, entry.tag.intent_id, kind)

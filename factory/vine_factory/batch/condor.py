"""Jobs of an HTCondor pool.

Owns what is asked of HTCondor when, and how answers become the contract's. One cluster per call and kind of job; each
job carries its tag in attributes of its own. The event log tells of changes at no cost for the schedd, the queue is
asked for now and then, the history for what left without a word. No shared file system is assumed. Must not decide
when jobs are submitted or ended.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from taskvine_core.errors import BatchRejected, BatchUnavailable, ConfigError
from vine_factory import defaults
from vine_factory.batch import condor_calls, condor_check, outputs
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobStatus, SubmitResult
from vine_factory.batch.condor_book import Entry, JobBook
from vine_factory.batch.condor_calls import Calls, Where
from vine_factory.batch.condor_eventlog import EventLogs
from vine_factory.batch.condor_text import Names, Submission, of_job, string, submissions
from vine_factory.batch.parse.condor_ads import ATTRIBUTES, QueueEntry, entries
from vine_factory.batch.place import Place
from vine_factory.batch.portions import submit_portions

UNLOGGED_INTERVAL_S = 15.0
"""How often the queue is asked for while jobs are there that no readable log tells of, at most."""
UNCLEAR_INTERVAL_S = 5.0
"""...and while it is open whether a submission without an answer took effect."""
HISTORY_S = 86400.0
"""How far back the history is searched: of a job that left before, nobody needs the exit status any more."""
_LOOKED_UP = 200
"""So many jobs are looked up in the history at once; the others in the next poll."""
_TAGS_PER_CALL = 200
"""The schedd compares each job with each tag."""
_REASON = "vine_factory: this worker is not needed any more"
_SCRIPT_MODE = 0o700


class CondorBatch(BatchSystem):
    """One pool on HTCondor.

    Args:
        place: see `Place`. ``directory`` must be on a local disk of the submit machine: HTCondor's log is there.
        clock: seconds since the epoch.
        timeout_s: for one call to HTCondor.
    """

    name = "condor"
    settles_s = defaults.BATCH_SETTLES_S
    place: Place

    def __init__(self, place: Place, clock: Callable[[], float] = time.time,
                 timeout_s: float = defaults.TOOL_TIMEOUT_S) -> None:
        self.place = place
        self._clock = clock
        self._timeout_s = timeout_s
        self._calls: Calls | None = None
        self._book = JobBook()
        self._logs: EventLogs | None = None
        self._asked_at: float | None = None
        self._unclear_until = float("-inf")
        _make(place.directory)
        _make(self._outputs)
        self._take_options()

    def reconfigure(self, place: Place) -> None:
        """See `BatchSystem`."""
        super().reconfigure(place)
        self.close()
        self._take_options()

    def _take_options(self) -> None:
        options = self.place.options
        self._calls = None
        self._where = Where(str(options["schedd"]), str(options["collector"]))
        self._spool = bool(options["spool"])
        self._interval_s = float(str(options["query-interval"]))
        remote = bool(self._where.schedd or self._where.collector or self._spool)
        self._logs = None if remote else self._logs or EventLogs(self.place.directory)

    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """See `BatchSystem`."""
        try:
            made = submissions(self.place, self._names(), requests)
        except ConfigError as problem:
            raise BatchRejected("cannot write the submit description", said=str(problem)) from problem
        return submit_portions(requests, made, self._submit)

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """See `BatchSystem`. The queue, the log and the history, as far as each has to be asked now."""
        if factory_id != self.place.factory_id:
            return []
        now = self._clock()
        ended: list[Entry] = []
        if self._query_due(now):
            calls, started = self._way(), self._clock()
            listed = self._mine(calls.queue(self._own(), ATTRIBUTES))
            self._asked_at = started
            ended += self._book.listing(listed, now)
            if self._logs is not None:
                self._logs.keep_only({entry.batch_id for entry in listed} |
                                     {entry.batch_id for entry in self._book.live()})
        ended += self._read_log(now)
        ended += self._look_up(now)
        self._keep_last_words(ended)
        self._book.forget(now)
        return self._book.statuses()

    def cancel_many(self, jobs: Sequence[JobHandle], *, force: bool) -> None:
        """See `BatchSystem`. Politely: removal, on which HTCondor sends SIGTERM and waits for the drain time."""
        calls = self._way()
        found = {job.tag: job.batch_id or self._number(job) for job in jobs}
        ids = [number for number in found.values() if number]
        tags = [tag.text() for tag, number in found.items() if not number]
        for action in (condor_calls.REMOVE, condor_calls.REMOVE_AT_ONCE)[:2 if force else 1]:
            if ids:
                calls.act(action, ids=ids, reason=_REASON)
            for start in range(0, len(tags), _TAGS_PER_CALL):
                calls.act(action, constraint=self._own(tags[start:start + _TAGS_PER_CALL]), reason=_REASON)

    def describe(self, job: JobHandle) -> dict[str, object]:
        """See `BatchSystem`: the whole job ad, and under names in small letters what we make of it."""
        calls, constraint = self._way(), self._own([job.tag.text()])
        now = self._clock()
        ads = calls.queue(constraint, ()) or calls.history(constraint, (), 1, _since(now))
        if not ads:
            raise BatchRejected(f"HTCondor has no job {job.tag.text()}", hint="it may have ended long ago")
        self._read_log(now)
        (seen, *_), entry = self._mine(ads), self._book.find(job.tag.intent_id)
        state = seen.state or (BatchState.ENDED if entry is None else entry.state)
        files = {f"std{kind}": outputs.tail(outputs.path(self._outputs, job.tag.intent_id, kind))
                 for kind in outputs.KINDS}
        return {**ads[0], "batch_id": seen.batch_id, "state": state.value, "exit_code": seen.exit_code,
                "said": seen.said, "host": seen.host, "events": list(entry.events) if entry else [],
                "client": calls.words, **files}

    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """See `BatchSystem`. Both ways of submitting are given this text."""
        made = submissions(self.place, self._names(), requests)
        target = [word for option, value in (("-name", self._where.schedd), ("-pool", self._where.collector)) if value
                  for word in (option, value)]
        command = shlex.join(condor_calls.submit_command(target, self._spool))
        texts = {f"job{'' if index == 0 else f'-{index + 1}'}.sub": submission.text
                 for index, submission in enumerate(made)}
        return {**texts, **{submission.launcher.name: submission.script for submission in made},
                "command": "".join(f"{command} < {name}\n" for name in texts)}

    def check(self, request: JobRequest) -> str:
        """See `BatchSystem`: what the schedd would say, and what it would only find out later."""
        try:
            (submission,) = submissions(self.place, self._names(), [request])
        except ConfigError as problem:
            raise BatchRejected("cannot write the submit description", said=str(problem)) from problem
        self._prepare(submission)
        calls = self._way()
        said = condor_check.dry_run(submission.text, self.place.directory / "dry-run", self._timeout_s)
        return "\n".join([*said, condor_check.fitting_slots(calls, self.place, of_job(request)),
                          f"HTCondor is used through its {calls.words}"])

    def close(self) -> None:
        """See `BatchSystem`."""
        if self._calls is not None:
            self._calls.close()

    # -------------------------------------------------------------------------------------------- submitting

    @property
    def _outputs(self) -> Path:
        return self.place.directory / "jobs"

    def _names(self) -> Names:
        return Names(self.place.directory, None if self._spool else self._outputs,
                     None if self._logs is None else self._logs.current)

    def _submit(self, submission: Submission) -> list[str]:
        self._prepare(submission)
        calls = self._way()
        try:
            ids = calls.submit(submission.text, self._spool)
            if len(ids) != len(submission.requests):
                raise BatchUnavailable("submit", said=f"{len(ids)} of {len(submission.requests)} jobs were submitted")
        except BatchUnavailable:
            self._unclear_until = self._clock() + self.settles_s
            raise
        for request, batch_id in zip(submission.requests, ids, strict=True):
            self._book.submitted(request.tag, batch_id)
        return ids

    def _prepare(self, submission: Submission) -> None:
        """What HTCondor would find out only when the job starts."""
        for path in submission.requests[0].ship:
            if not os.access(path, os.R_OK):
                raise BatchRejected(f"cannot ship {path}", said="no such file, or it cannot be read")
        if self._logs is not None:
            self._logs.ready()
        if submission.launcher.is_file():  # its name is a digest of its text
            return
        made = submission.launcher.with_suffix(".new")
        try:
            made.write_text(submission.script, encoding="utf-8")
            made.chmod(_SCRIPT_MODE)
            made.replace(submission.launcher)
        except OSError as problem:
            raise BatchUnavailable(f"cannot write {submission.launcher}", said=str(problem)) from problem

    # ----------------------------------------------------------------------------------------------- polling

    def _query_due(self, now: float) -> bool:
        if self._asked_at is None:
            return True
        interval = self._interval_s
        if self._logs is None or not all(self._logs.tells_of(entry.batch_id) for entry in self._book.live()):
            interval = min(interval, UNLOGGED_INTERVAL_S)
        if now < self._unclear_until:
            interval = min(interval, UNCLEAR_INTERVAL_S)
        return now - self._asked_at >= interval or now < self._asked_at

    def _read_log(self, now: float) -> list[Entry]:
        if self._logs is None:
            return []
        found = (self._book.event(event, now) for event in self._logs.read(now))
        return [entry for entry in found if entry is not None and self._is_mine(entry.tag.factory_id, entry.tag.pool)]

    def _look_up(self, now: float) -> list[Entry]:
        """Ask the history for jobs that left without a word, and how removed ones ended."""
        wanted = self._book.unexplained(now)[:_LOOKED_UP]
        if not wanted:
            return []
        ads = self._way().history(self._own([entry.tag.text() for entry in wanted]), ATTRIBUTES, len(wanted),
                                  _since(now))
        return self._book.past(self._mine(ads), wanted, now)

    def _keep_last_words(self, ended: Sequence[Entry]) -> None:
        if not ended:
            return
        for entry in ended:
            if entry.exit_code == 0 or (entry.removed and not entry.started_at):
                outputs.drop(self._outputs, [entry.tag.intent_id])
            else:
                entry.stderr_tail = outputs.tail(outputs.path(self._outputs, entry.tag.intent_id, "err"))
        outputs.prune(self._outputs, {entry.tag.intent_id for entry in self._book.live()})

    # ------------------------------------------------------------------------------------------------- who

    def _way(self) -> Calls:
        if self._calls is None:
            self._calls = condor_calls.choose(str(self.place.options["client"]), self._where, self._timeout_s)
        return self._calls

    def _own(self, tags: Sequence[str] = ()) -> str:
        """Constraint: jobs of this pool of this factory, or those of them that have one of ``tags``."""
        mine = f"VineFactory == {string(self.place.factory_id)} && VinePool == {string(self.place.pool)}"
        return f"{mine} && member(VineTag, {{{', '.join(string(tag) for tag in tags)}}})" if tags else mine

    def _mine(self, ads: Sequence[dict[str, object]]) -> list[QueueEntry]:
        return [entry for entry in entries(ads) if self._is_mine(entry.tag.factory_id, entry.tag.pool)]

    def _is_mine(self, factory_id: str, pool: str) -> bool:
        return (factory_id, pool) == (self.place.factory_id, self.place.pool)

    def _number(self, job: JobHandle) -> str:
        entry = self._book.find(job.tag.intent_id)
        return entry.batch_id if entry is not None else ""


def _since(now: float) -> str:
    return f"EnteredCurrentStatus < {int(now - HISTORY_S)}"


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as problem:
        raise ConfigError(f"cannot make {directory}: {problem}", hint="give the factory another directory") from problem

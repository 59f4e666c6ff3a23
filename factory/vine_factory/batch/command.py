"""Jobs of a batch system that is driven by its commands, as a definition describes them.

Owns when which command is run and what its failure means. One job per submit command; jobs are found again by a tag
or name in the listing, and by their numbers, which are kept in a file. Output is matched in a helper process with a
deadline. Must not know any batch system.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable, ConfigError
from vine_factory import defaults
from vine_factory.batch import outputs
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobStatus, SubmitResult
from vine_factory.batch.command_text import definition, expanded, script, seen, tag_of, values_of
from vine_factory.batch.job_numbers import JobNumbers
from vine_factory.batch.listed import Entry, Listed, Seen
from vine_factory.batch.matching import Record
from vine_factory.batch.place import Place
from vine_factory.batch.rpc import Helper
from vine_factory.batch.tool import Finished, run

MATCHING = "vine_factory.batch.matching"
MATCHING_S = 10.0
"""A listing of 5,000 jobs takes a tenth of a second; what takes this long has a pattern that goes back and forth."""
_IDS_PER_CALL = 200
_LOOKED_UP = 20
"""So many ended jobs are asked for in one poll: it is a command for each."""


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
        self._definition = definition(place.options)
        self._timeout_s = timeout_s or float(str(place.options["poll-timeout"]))
        self._outputs, self._scripts = place.directory / "jobs", place.directory / "scripts"
        try:
            for directory in (place.directory, self._outputs, self._scripts):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            raise ConfigError(f"cannot make {place.directory}: {problem}",
                              hint="give the factory another directory") from problem
        self._listed = Listed()
        self._numbers = JobNumbers(place.directory)
        self._matching = Helper(MATCHING, timeout_s=MATCHING_S)

    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """See `BatchSystem`. One command for each; after one without an answer no other is tried."""
        results: list[SubmitResult] = []
        unclear: BatchError | None = None
        for request in requests:
            batch_id, error = "", unclear
            if error is None:
                try:
                    batch_id = self._submit(request)
                except BatchRejected as problem:
                    error = problem
                except ConfigError as problem:
                    error = BatchRejected("cannot write the job script", said=str(problem))
                except BatchUnavailable as problem:
                    if not any(result.error is None for result in results):
                        raise
                    error = unclear = problem
            results.append(SubmitResult(request.tag.intent_id, batch_id, error))
        return results

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """See `BatchSystem`."""
        if factory_id != self.place.factory_id:
            return []
        now = self._clock()
        for tag, batch_id, _ in self._numbers.read():
            if (tag.factory_id, tag.pool) == (self.place.factory_id, self.place.pool) \
                    and not self._listed.knows(batch_id):
                self._listed.submitted(tag, batch_id)
        ended = self._listed.listing(self._listing(), now)
        ended += self._look_up(now)
        self._keep_last_words(ended)
        self._listed.forget(now)
        self._numbers.keep_only({entry.batch_id for entry in self._listed.live()})
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
            polite = not force and entry.state is BatchState.RUNNING and self._definition.words("stop")
            chosen["stop" if polite else "cancel"].append(entry.batch_id)
        for key, ids in chosen.items():
            for some in _chunks(ids):
                done = self._run(key, {"ids": some, "user": _user()})
                if done.status != 0:
                    self._check_reached(done)  # any other complaint is that jobs are gone, or about to
        for job in jobs:
            if (entry := self._listed.find(job.tag.intent_id)) is not None and entry.tag == job.tag:
                self._listed.cancelled(entry)

    def describe(self, job: JobHandle) -> dict[str, object]:
        """See `BatchSystem`: what the describe command prints under "text", and what we make of the job."""
        self.poll_many(self.place.factory_id)
        entry = self._listed.find(job.tag.intent_id)
        if entry is None or entry.tag != job.tag:
            raise BatchRejected(f"there is no job {job.tag.text()}", hint="it may have ended long ago")
        text = self._run("describe", {"id": entry.batch_id, "user": _user()}).stdout \
            if self._definition.words("describe") else ""
        files = {f"std{kind}": outputs.tail(self._output(entry, kind)) for kind in outputs.KINDS}
        return {"batch_id": entry.batch_id, "state": entry.state.value, "exit_code": entry.exit_code,
                "host": entry.host, "said": entry.said, "text": text, "client": self._definition.where, **files}

    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """See `BatchSystem`: the script of each job, and the commands."""
        texts: dict[str, str] = {}
        commands = []
        for number, request in enumerate(requests, 1):
            name = f"job{'' if number == 1 else f'-{number}'}.sh"
            texts[name] = script(self.place, self._definition, request)
            values = values_of(self.place, self._definition, request, Path(name))
            words = expanded(self._definition.words("submit"), values, self._definition.where)
            on_stdin = f" < {name}" if self._definition.values["script-on-stdin"] else ""
            commands.append(repr(words) + on_stdin)
        return {**texts, "command": "".join(f"{command}\n" for command in commands)}

    def check(self, request: JobRequest) -> str:
        """See `BatchSystem`. Where the definition has no check: whether the system answers a poll."""
        try:
            path, values = self._written(request)
            if not self._definition.words("check"):
                self._listing()
                return f"{self._definition.where}: it answers, and has no way to check a job"
            done = self._run("check", values, path)
        except ConfigError as problem:
            raise BatchRejected("cannot write the job script", said=str(problem)) from problem
        if done.status != 0:
            self._check_reached(done)
            raise BatchRejected(done.argv[0], said=done.said)
        return done.said

    def close(self) -> None:
        """See `BatchSystem`."""
        self._matching.close()

    # -------------------------------------------------------------------------------------------- submitting

    def _submit(self, request: JobRequest) -> str:
        path, values = self._written(request)
        done = self._run("submit", values, path)
        if done.status != 0:
            self._check_reached(done)
            raise BatchRejected(done.argv[0], said=done.said)
        ids = self._match("groups", text=done.stdout, pattern=self._definition.text("submit-id"), name="id")
        if len(ids) != 1 or not ids[0]:
            raise BatchUnavailable(f"{done.argv[0]} gave no number of a job", said=done.said)
        batch_id = str(ids[0])
        self._listed.submitted(request.tag, batch_id)
        self._numbers.add([(request.tag, batch_id, request.tag.intent_id)])
        return batch_id

    def _written(self, request: JobRequest) -> tuple[Path, dict[str, object]]:
        text = script(self.place, self._definition, request)
        path = self._scripts / f"{request.tag.intent_id}.sh"
        part = path.with_suffix(".new")
        try:
            part.write_text(text, encoding="utf-8")
            part.chmod(0o700)
            part.replace(path)
        except OSError as problem:
            raise BatchUnavailable(f"cannot write {path}", said=str(problem)) from problem
        return path, values_of(self.place, self._definition, request, path)

    # ----------------------------------------------------------------------------------------------- polling

    def _listing(self) -> list[Seen]:
        values: dict[str, object] = {"user": _user()}
        texts = []
        if self._definition.words("list"):
            listed = self._asked("list", values)
            ids = self._match("groups", text=listed, pattern=self._definition.text("list-id"), name="id")
            texts = [self._asked("poll", {**values, "ids": some}) for some in _chunks(ids)]
        else:
            texts = [self._asked("poll", values)]
        found = []
        for text in texts:
            for record in self._records("poll", text):
                tag = tag_of(self.place, record)
                if tag is not None and not self._listed.knows(record.get("id", "")):
                    self._listed.submitted(tag, record["id"])
                found.append(seen(self._definition, record))
        return found

    def _look_up(self, now: float) -> list[Entry]:
        """Ask how jobs ended that are not listed any more."""
        wanted = self._listed.unexplained(now)[:_LOOKED_UP]
        found = []
        for entry in wanted if self._definition.words("ended") else ():
            done = self._run("ended", {"id": entry.batch_id, "user": _user()})
            if done.status != 0:
                self._check_reached(done)
                continue
            found += [seen(self._definition, record, has_ended=True) for record in self._records("ended", done.stdout)]
        return self._listed.explained(wanted, found, now)

    def _records(self, key: str, text: str) -> list[Record]:
        found: list[Record] = self._match("records", text=text, begin=self._definition.text(f"{key}-record"),
                                          fields=self._definition.table(f"{key}-fields"))
        return [record for record in found if record.get("id")]

    def _asked(self, key: str, values: dict[str, object]) -> str:
        """What a question printed; "" when the answer is that there is nothing.

        Raises:
            BatchUnavailable: it failed.
        """
        done = self._run(key, values)
        if done.status != 0 and not self._matches(done, "none"):
            raise BatchUnavailable(done.argv[0], said=done.said)
        return done.stdout

    def _run(self, key: str, values: dict[str, object], script_path: Path | None = None) -> Finished:
        argv = expanded(self._definition.words(key), values, f"{self._definition.where}: {key}")
        stdin = b""
        if script_path is not None and self._definition.values["script-on-stdin"]:
            stdin = script_path.read_bytes()
        return run(argv, stdin=stdin, timeout_s=self._timeout_s)

    def _check_reached(self, done: Finished) -> None:
        """Raises BatchUnavailable when a failed command says that it did not reach the batch system."""
        if self._matches(done, "unavailable"):
            raise BatchUnavailable(done.argv[0], said=done.said)

    def _matches(self, done: Finished, key: str) -> bool:
        return bool(self._match("matches", text=done.stderr + "\n" + done.stdout, pattern=self._definition.text(key)))

    def _match(self, method: str, **arguments: object) -> Any:
        try:
            return self._matching.call(method, MATCHING_S, **arguments)
        except BatchUnavailable as problem:
            raise BatchUnavailable(f"{self._definition.where}: the output could not be matched in {MATCHING_S:g} s",
                                   said=str(problem), hint="simplify the regular expressions") from problem

    def _keep_last_words(self, ended: Sequence[Entry]) -> None:
        for entry in ended:
            (self._scripts / f"{entry.tag.intent_id}.sh").unlink(missing_ok=True)
            if entry.exit_code == 0:
                outputs.drop(self._outputs, [entry.tag.intent_id])
            else:
                entry.stderr_tail = outputs.tail(self._output(entry, "err"))
        if ended:
            outputs.prune(self._outputs, {entry.tag.intent_id for entry in self._listed.live()})

    def _output(self, entry: Entry, kind: str) -> Path:
        return outputs.path(self._outputs, entry.tag.intent_id, kind)


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start:start + _IDS_PER_CALL] for start in range(0, len(ids), _IDS_PER_CALL)]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())

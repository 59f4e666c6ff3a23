"""Jobs as processes of this machine.

Owns starting, finding, signalling and reaping them, and their output files. Each job is the leader of its own
session, carries its tag and its own pid in its environment (so that a later factory finds it, and tells it from what
it started), and outlives the factory that started it. Must not decide when anything is started or ended.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable
from vine_factory import defaults
from vine_factory.batch import outputs, proc
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobStatus, JobTag, SubmitResult

_EXEC = f'{proc.PID_VARIABLE}=$$; export {proc.PID_VARIABLE}; exec "$@"'
"""A shell that writes its pid into its environment and becomes the command: same pid, no second process."""


@dataclass(slots=True)
class _Local:
    tag: JobTag
    pid: int
    start_ticks: int
    started_at: float
    child: subprocess.Popen[bytes] | None   # None: adopted
    exit_code: int | None = None
    ended_at: float | None = None
    tail: str = ""


class LocalBatch(BatchSystem):
    """Local processes.

    Args:
        factory_id: whose jobs are looked for in /proc.
        directory: where output files of jobs go; made when missing.
        clock: seconds since the epoch.
    """

    name = "local"
    settles_s = defaults.LOCAL_SETTLES_S

    def __init__(self, factory_id: str, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._factory_id = factory_id
        self._directory = directory
        self._clock = clock
        self._jobs: dict[str, _Local] = {}
        self._first_look: float | None = None
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def submit_many(self, requests: Sequence[JobRequest]) -> list[SubmitResult]:
        """See `BatchSystem`. A command that is not there is refused here, not found out by its death."""
        self._adopt()
        return [self._submit(request) for request in requests]

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        """See `BatchSystem`."""
        if factory_id != self._factory_id:
            return []
        self._adopt()
        now = self._clock()
        fallen = [job for job in self._jobs.values() if job.ended_at is None and self._ended(job, now)]
        self._sweep({job.tag.text() for job in fallen if job.exit_code != 0})
        for intent_id in [i for i, job in self._jobs.items()
                          if job.ended_at is not None and now - job.ended_at > defaults.ENDED_KEPT_S]:
            del self._jobs[intent_id]
        return [self._status(job) for job in self._jobs.values()]

    def cancel_many(self, jobs: Sequence[JobHandle], *, force: bool) -> None:
        """See `BatchSystem`. Politely: the job's first process only, so that it can finish what it runs."""
        self._adopt()
        for handle in jobs:
            job = self._jobs.get(handle.tag.intent_id)
            if job is not None and job.ended_at is None and not self._ended(job, self._clock()):
                _signal(job.pid, signal.SIGKILL if force else signal.SIGTERM)
        if force:
            self._sweep({handle.tag.text() for handle in jobs})

    def describe(self, job: JobHandle) -> dict[str, object]:
        """See `BatchSystem`."""
        local = self._jobs.get(job.tag.intent_id)
        if local is None:
            raise BatchRejected(f"no local job {job.tag.intent_id}", hint="it may have ended long ago")
        return {"pid": local.pid, "state": self._status(local).state.value, "exit_code": local.exit_code,
                "started_at": local.started_at, "adopted": local.child is None,
                "stdout": outputs.tail(self._output(local.tag, "out")),
                "stderr": outputs.tail(self._output(local.tag, "err"))}

    def render(self, requests: Sequence[JobRequest]) -> dict[str, str]:
        """See `BatchSystem`: the command lines, one per job."""
        return {"command": "".join(shlex.join(request.command) + "\n" for request in requests)}

    def check(self, request: JobRequest) -> str:
        """See `BatchSystem`: is the program there?"""
        return _program(request, self._environment(request))

    @staticmethod
    def _environment(request: JobRequest) -> dict[str, str]:
        environment = {**os.environ, **request.environment, proc.TAG_VARIABLE: request.tag.text()}
        environment.pop(proc.PID_VARIABLE, None)
        return environment

    def _submit(self, request: JobRequest) -> SubmitResult:
        intent_id = request.tag.intent_id
        environment = self._environment(request)
        try:
            program = _program(request, environment)
        except BatchRejected as problem:
            return SubmitResult(intent_id, "", problem)
        try:
            with open(self._output(request.tag, "out"), "wb") as out, \
                    open(self._output(request.tag, "err"), "wb") as err:
                child = subprocess.Popen(["/bin/sh", "-c", _EXEC, "sh", program, *request.command[1:]],
                                         env=environment, cwd=self._directory, stdin=subprocess.DEVNULL,
                                         stdout=out, stderr=err, start_new_session=True)
        except OSError as problem:  # no more processes, no disk: may pass, and nothing was started
            error: BatchError = BatchRejected("cannot start a local worker", said=str(problem),
                                              hint="will be tried again")
            return SubmitResult(intent_id, "", error)
        ticks = proc.start_ticks(child.pid) or 0
        self._jobs[intent_id] = _Local(request.tag, child.pid, ticks, self._clock(), child)
        return SubmitResult(intent_id, str(child.pid), None)

    def _adopt(self) -> None:
        """Find what an earlier factory of this id left running.

        Looked for until nothing of it can show up any more: one that was being started when its factory was killed
        has its tag a moment later. After that all jobs are ours and known.
        """
        now = self._clock()
        if self._first_look is not None and now - self._first_look > self.settles_s:
            return
        try:
            processes = proc.tagged_processes(self._factory_id + "/")
        except OSError as problem:
            raise BatchUnavailable("cannot look for local workers in /proc", said=str(problem)) from problem
        self._first_look = now if self._first_look is None else self._first_look
        for process in processes:
            tag = JobTag.parse(process.tag)
            if process.is_job and tag is not None and tag.intent_id not in self._jobs:
                self._jobs[tag.intent_id] = _Local(tag, process.pid, process.start_ticks,
                                                   proc.started_at(process.start_ticks), None)

    def _ended(self, job: _Local, now: float) -> bool:
        """Notice an end, once."""
        if job.child is not None:
            code = job.child.poll()
            if code is None:
                return False
            job.exit_code = code
        elif proc.start_ticks(job.pid) == job.start_ticks:
            return False  # adopted and alive; when gone, its exit code went to init
        job.ended_at = now
        self._keep_last_words(job)
        return True

    def _keep_last_words(self, job: _Local) -> None:
        if job.exit_code == 0:
            outputs.drop(self._directory, [job.tag.intent_id])
            return
        job.tail = outputs.tail(self._output(job.tag, "err"))
        outputs.prune(self._directory, {other.tag.intent_id for other in self._jobs.values() if other.ended_at is None})

    def _sweep(self, tags: set[str]) -> None:
        """Kill what jobs that are over have left: a killed worker cannot end its tasks itself."""
        if not tags:
            return
        for process in proc.tagged_processes(self._factory_id + "/"):
            if process.tag in tags:
                _signal(process.pid, signal.SIGKILL)

    def _status(self, job: _Local) -> JobStatus:
        state = BatchState.RUNNING if job.ended_at is None else BatchState.ENDED
        return JobStatus(job.tag, str(job.pid), state, os.uname().nodename, job.started_at, job.ended_at or 0.0,
                         job.exit_code, "", job.tail)

    def _output(self, tag: JobTag, kind: str) -> Path:
        return outputs.path(self._directory, tag.intent_id, kind)


def _program(request: JobRequest, environment: Mapping[str, str]) -> str:
    program = shutil.which(request.command[0], path=environment.get("PATH"))
    if program is None:
        raise BatchRejected(f"cannot start {request.command[0]!r}", said="no such executable file",
                            hint="give --worker-binary a path")
    return program


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself: what was wanted
        os.kill(pid, number)

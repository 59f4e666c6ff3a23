"""Processes of this machine under the contract suite."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from contract.bench import Bench
from vine_factory.batch import proc
from vine_factory.batch.base import BatchSystem, JobHandle, JobStatus
from vine_factory.batch.local import LocalBatch


class LocalBench(Bench):
    """Processes of this machine."""

    def client(self) -> BatchSystem:
        return LocalBatch(self.factory_id, self.directory)

    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        tags = [p.tag for p in proc.tagged_processes(self.factory_id + "/") if not p.is_job]
        return all(job.tag.text() in tags for job in jobs)

    def kill_from_outside(self, status: JobStatus) -> None:
        os.kill(int(status.batch_id), signal.SIGKILL)

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        def fail(prefix: str) -> list[proc.TaggedProcess]:
            raise PermissionError("/proc is hidden")
        with monkeypatch.context() as patch:
            patch.setattr(proc, "tagged_processes", fail)
            yield self.client()

    def impossible(self) -> tuple[str, ...]:
        return (str(self.directory / "no-such-program"),)

    def nothing_left(self, job: JobHandle) -> bool:
        return proc.tagged_processes(job.tag.text()) == []

    def end(self) -> None:
        for process in proc.tagged_processes(self.factory_id + "/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

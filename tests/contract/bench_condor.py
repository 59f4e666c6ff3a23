"""A real HTCondor pool under the contract suite, by its Python bindings and by its command-line tools."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.htcondor import Pool

from contract.bench import Bench, processes_with
from vine_factory.batch.base import BatchSystem, JobHandle, JobStatus
from vine_factory.batch.condor import CondorBatch
from vine_factory.batch.condor_options import OPTIONS
from vine_factory.batch.condor_text import TAG_VARIABLE
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options

REFUSED = "/refused/by/the/pool"
FROZEN_TIMEOUT_S = 2.0


class CondorBench(Bench):
    """One pool of jobs. ``options`` as in a site file."""

    patience_s = 30.0

    def __init__(self, directory: Path, pool: Pool, client: str, **options: object) -> None:
        super().__init__(directory)
        self.pool = pool
        self.options = {"client": client, "query-interval": 1, **options}
        self.clients: list[CondorBatch] = []

    def place(self) -> Place:
        """With the bench's options."""
        return Place(self.factory_id, "pool", self.directory, check_options(self.options, OPTIONS, "bench"))

    def client(self, timeout_s: float = 60.0, directory: Path | None = None) -> CondorBatch:
        place = self.place() if directory is None else self.place()._replace(directory=directory)
        self.clients.append(CondorBatch(place, timeout_s=timeout_s))
        return self.clients[-1]

    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        return all(any(not first for _, first in processes_with(TAG_VARIABLE, job.tag.text())) for job in jobs)

    def kill_from_outside(self, status: JobStatus) -> None:
        # A job is "running" from when its files are on their way.
        self.wait(lambda: any(first for _, first in processes_with(TAG_VARIABLE, status.tag.text())))
        for pid, first in processes_with(TAG_VARIABLE, status.tag.text()):
            if first:
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        client = self.client(FROZEN_TIMEOUT_S)
        with self.pool.schedd_frozen():
            yield client

    def impossible(self) -> tuple[str, ...]:
        return (REFUSED,)

    def nothing_left(self, job: JobHandle) -> bool:
        return not list(processes_with(TAG_VARIABLE, job.tag.text()))

    def end(self) -> None:
        for client in self.clients:
            client.close()
        with contextlib.suppress(AssertionError):  # "none found" is an error to it
            self.pool.tool("condor_rm", "-constraint", f'VineFactory == "{self.factory_id}"')
            self.pool.tool("condor_rm", "-forcex", "-constraint", f'VineFactory == "{self.factory_id}"')

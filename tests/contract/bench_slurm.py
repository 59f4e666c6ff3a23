"""A real Slurm cluster under the contract suite."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters.slurm import Cluster

from contract.bench import Bench, processes_with
from vine_factory.batch.base import BatchSystem, JobHandle, JobStatus
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options
from vine_factory.batch.slurm import SlurmBatch
from vine_factory.batch.slurm_options import OPTIONS
from vine_factory.batch.slurm_script import TAG_VARIABLE

FROZEN_TIMEOUT_S = 2.0


class SlurmBench(Bench):
    """One pool of jobs. ``options`` as in a site file."""

    patience_s = 30.0

    def __init__(self, directory: Path, cluster: Cluster, **options: object) -> None:
        super().__init__(directory)
        self.cluster = cluster
        self.options = {"client": "tools", **options}
        self.clients: list[SlurmBatch] = []

    def place(self) -> Place:
        """With the bench's options."""
        return Place(self.factory_id, "pool", self.directory, check_options(self.options, OPTIONS, "bench"))

    def client(self, timeout_s: float = 60.0, directory: Path | None = None) -> SlurmBatch:
        place = self.place() if directory is None else self.place()._replace(directory=directory)
        self.clients.append(SlurmBatch(place, timeout_s=timeout_s))
        return self.clients[-1]

    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        return all(any(not first for _, first in processes_with(TAG_VARIABLE, job.tag.text())) for job in jobs)

    def kill_from_outside(self, status: JobStatus) -> None:
        self.wait(lambda: any(first for _, first in processes_with(TAG_VARIABLE, status.tag.text())))
        for pid, first in processes_with(TAG_VARIABLE, status.tag.text()):
            if first:
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        client = self.client(FROZEN_TIMEOUT_S)
        with self.cluster.controller_frozen():
            yield client

    def impossible(self) -> tuple[str, ...]:
        for client in self.clients:
            options = {**client.place.options, "partition": "no-such-partition"}
            client.reconfigure(client.place._replace(options=options))
        return ("/bin/true",)

    def nothing_left(self, job: JobHandle) -> bool:
        return not list(processes_with(TAG_VARIABLE, job.tag.text()))

    def end(self) -> None:
        for client in self.clients:
            client.close()
        with contextlib.suppress(AssertionError):
            self.cluster.tool("scancel", "--user", str(os.geteuid()))
        for pid in [pid for pid in map(_number, os.listdir("/proc")) if pid and _is_job_of(pid, self.factory_id)]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)  # Slurm would give those that ignore SIGTERM some seconds


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _is_job_of(pid: int, factory_id: str) -> bool:
    with contextlib.suppress(OSError):
        return f"{TAG_VARIABLE}={factory_id}/".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False

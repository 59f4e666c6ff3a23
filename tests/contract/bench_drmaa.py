"""A real Grid Engine under the contract suite, by DRMAA and qstat, and by DRMAA alone."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.gridengine import GridEngine

from contract.bench import LONG, Bench, processes_with
from vine_factory.batch.base import BatchSystem, JobHandle, JobStatus
from vine_factory.batch.drmaa import DrmaaBatch
from vine_factory.batch.drmaa_options import OPTIONS
from vine_factory.batch.drmaa_text import TAG_VARIABLE
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options

FROZEN_TIMEOUT_S = 2.0
NOWHERE = "nowhere.q"


class DrmaaBench(Bench):
    """One pool of jobs. ``options`` as in a site file."""

    patience_s = 30.0
    make: Callable[..., BatchSystem] = DrmaaBatch
    table = OPTIONS

    def __init__(self, directory: Path, cluster: GridEngine, **options: object) -> None:
        super().__init__(directory)
        self.cluster = cluster
        self.options = options
        self.clients: list[BatchSystem] = []

    def place(self) -> Place:
        """With the bench's options."""
        return Place(self.factory_id, "pool", self.directory, check_options(self.options, self.table, "bench"))

    def client(self, timeout_s: float = 30.0) -> BatchSystem:
        self.clients.append(type(self).make(self.place(), timeout_s=timeout_s))
        return self.clients[-1]

    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        # The command's shell is the job's own process: past the trap it has started something.
        return all(len(list(processes_with(TAG_VARIABLE, job.tag.text()))) > 1 for job in jobs)

    def kill_from_outside(self, status: JobStatus) -> None:
        self.wait(lambda: any(first for _, first in processes_with(TAG_VARIABLE, status.tag.text())))
        for pid, first in processes_with(TAG_VARIABLE, status.tag.text()):
            if first:
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        client = self.client(FROZEN_TIMEOUT_S)
        with self.cluster.master_frozen():
            yield client

    def impossible(self) -> tuple[str, ...]:
        if self.options.get("native"):
            self.options["native"] = f"{self.options['native']} -q {NOWHERE}"
        self.options["queue"] = NOWHERE
        for client in self.clients:
            client.reconfigure(self.place())
        return LONG

    def nothing_left(self, job: JobHandle) -> bool:
        return not list(processes_with(TAG_VARIABLE, job.tag.text()))

    def end(self) -> None:
        for client in self.clients:
            with contextlib.suppress(Exception):
                left = [JobHandle(status.tag, status.batch_id) for status in client.poll_many(self.factory_id)]
                client.cancel_many(left, force=True)
            client.close()
        for pid, _ in [found for tag in self._tags() for found in processes_with(TAG_VARIABLE, tag)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _tags(self) -> set[str]:
        """Of processes that are there: not all jobs need to be waited for."""
        prefix = f"{TAG_VARIABLE}={self.factory_id}/".encode()
        found = set()
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    for item in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        if item.startswith(prefix):
                            found.add(item.decode().partition("=")[2])
        return found

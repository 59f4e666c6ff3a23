"""A real Grid Engine under the contract suite, by DRMAA and qstat, by DRMAA alone, and by its commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from clusters.gridengine import GridEngine

from contract.bench import LONG, DaemonBench, processes_with
from vine_factory.batch.base import TAG_VARIABLE, BatchSystem, JobHandle
from vine_factory.batch.drmaa import DrmaaBatch
from vine_factory.batch.drmaa_options import OPTIONS

NOWHERE = "nowhere.q"


class DrmaaBench(DaemonBench[BatchSystem]):
    """One pool of jobs."""

    make: Callable[..., BatchSystem] = DrmaaBatch
    table = OPTIONS

    def __init__(self, directory: Path, cluster: GridEngine, **options: object) -> None:
        super().__init__(directory, **options)
        self.cluster = cluster

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        return self.cluster.master_frozen()

    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        # The command's shell is the job's own process: past the trap it has started something.
        return all(len(list(processes_with(TAG_VARIABLE, job.tag.text()))) > 1 for job in jobs)

    def impossible(self) -> tuple[str, ...]:
        if self.options.get("native"):
            self.options["native"] = f"{self.options['native']} -q {NOWHERE}"
        self.options["queue"] = NOWHERE
        for client in self.clients:
            client.reconfigure(self.place())
        return LONG

    def end(self) -> None:
        for client in self.clients:
            with contextlib.suppress(Exception):
                left = [JobHandle(status.tag, status.batch_id) for status in client.poll_many(self.factory_id)]
                client.cancel_many(left, force=True)
            client.close()
        self.kill_all()

"""A real Slurm cluster under the contract suite."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from clusters.slurm import Cluster

from contract.bench import DaemonBench
from vine_factory.batch.slurm import SlurmBatch
from vine_factory.batch.slurm_options import OPTIONS


class SlurmBench(DaemonBench[SlurmBatch]):
    """One pool of jobs."""

    make = SlurmBatch
    table = OPTIONS

    def __init__(self, directory: Path, cluster: Cluster, **options: object) -> None:
        super().__init__(directory, **{"client": "tools", **options})
        self.cluster = cluster

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        return self.cluster.controller_frozen()

    def impossible(self) -> tuple[str, ...]:
        for client in self.clients:
            options = {**client.place.options, "partition": "no-such-partition"}
            client.reconfigure(client.place._replace(options=options))
        return ("/bin/true",)

    def end(self) -> None:
        for client in self.clients:
            client.close()
        with contextlib.suppress(AssertionError):
            self.cluster.tool("scancel", "--user", str(os.geteuid()))
        self.kill_all()

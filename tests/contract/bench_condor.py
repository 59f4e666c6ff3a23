"""A real HTCondor pool under the contract suite, by its Python bindings and by its command-line tools."""

from __future__ import annotations

import contextlib
from pathlib import Path

from clusters.htcondor import Pool

from contract.bench import DaemonBench
from vine_factory.batch.condor import CondorBatch
from vine_factory.batch.condor_options import OPTIONS

REFUSED = "/refused/by/the/pool"


class CondorBench(DaemonBench[CondorBatch]):
    """One pool of jobs. ``client``: "bindings" or "tools"."""

    make = CondorBatch
    table = OPTIONS

    def __init__(self, directory: Path, pool: Pool, client: str, **options: object) -> None:
        super().__init__(directory, **{"client": client, "query-interval": 1, **options})
        self.pool = pool

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        return self.pool.schedd_frozen()

    def impossible(self) -> tuple[str, ...]:
        return (REFUSED,)

    def end(self) -> None:
        for client in self.clients:
            client.close()
        with contextlib.suppress(AssertionError):  # "none found" is an error to it
            self.pool.tool("condor_rm", "-constraint", f'VineFactory == "{self.factory_id}"')
            self.pool.tool("condor_rm", "-forcex", "-constraint", f'VineFactory == "{self.factory_id}"')

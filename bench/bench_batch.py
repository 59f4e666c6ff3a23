"""Submitting, listing and cancelling many jobs on a real batch system: what a factory's pass costs there.

    python bench/bench_batch.py --system condor [--count 1000] [--repeat 3] [--client bindings] [--array-size 500]

The jobs ask for what no machine has, so that the figures are those of the queue and not of starting processes.
A pool or cluster of its own is started as the tests do. ``value``: seconds from the first call to the last job gone.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench_support import ROOT, BenchError, Report, parser

sys.path.insert(0, str(ROOT / "tests"))

from taskvine_core.resources import Resources
from vine_factory.batch.base import BatchState, BatchSystem, JobHandle, JobRequest, JobTag

GONE_PATIENCE_S = 120.0
System = Callable[[str, Mapping[str, object]], contextlib.AbstractContextManager[Callable[[Path], BatchSystem]]]


@contextlib.contextmanager
def condor(factory_id: str, options: Mapping[str, object]) -> Iterator[Callable[[Path], BatchSystem]]:
    """A pool, and how to make a client of it."""
    from clusters.htcondor import Pool

    from vine_factory.batch.condor import CondorBatch
    from vine_factory.batch.condor_options import OPTIONS
    from vine_factory.batch.place import Place
    from vine_factory.batch.schema import check_options

    pool = Pool()
    try:
        os.environ.update(pool.up())
        checked = check_options({"requirements": "false", **options}, OPTIONS, "bench")
        yield lambda directory: CondorBatch(Place(factory_id, "bench", directory, checked))
    finally:
        pool.down()


@contextlib.contextmanager
def grid_engine(factory_id: str, options: Mapping[str, object]) -> Iterator[Callable[[Path], BatchSystem]]:
    """A Grid Engine, and how to make a client of it."""
    from clusters.gridengine import GridEngine

    from vine_factory.batch.drmaa import DrmaaBatch
    from vine_factory.batch.drmaa_options import OPTIONS
    from vine_factory.batch.place import Place
    from vine_factory.batch.schema import check_options

    cluster = GridEngine()
    try:
        os.environ.update(cluster.up())
        checked = check_options({"extra-directives": ["-h"], **options}, OPTIONS, "bench")
        yield lambda directory: DrmaaBatch(Place(factory_id, "bench", directory, checked))
    finally:
        cluster.down()


@contextlib.contextmanager
def commands(factory_id: str, options: Mapping[str, object]) -> Iterator[Callable[[Path], BatchSystem]]:
    """A Grid Engine, and how to make a client of it that runs its commands."""
    from clusters.gridengine import GridEngine

    from vine_factory.batch.command import CommandBatch
    from vine_factory.batch.command_options import OPTIONS
    from vine_factory.batch.place import Place
    from vine_factory.batch.schema import check_options

    cluster = GridEngine()
    try:
        os.environ.update(cluster.up())
        checked = check_options({"system": "sge", "extra-directives": ["-h"], **options}, OPTIONS, "bench")
        yield lambda directory: CommandBatch(Place(factory_id, "bench", directory, checked))
    finally:
        cluster.down()


@contextlib.contextmanager
def slurm(factory_id: str, options: Mapping[str, object]) -> Iterator[Callable[[Path], BatchSystem]]:
    """A cluster, and how to make a client of it."""
    from clusters.slurm import Cluster

    from vine_factory.batch.place import Place
    from vine_factory.batch.schema import check_options
    from vine_factory.batch.slurm import SlurmBatch
    from vine_factory.batch.slurm_options import OPTIONS

    cluster = Cluster()
    try:
        os.environ.update(cluster.up())
        checked = check_options({"partition": "off", **options}, OPTIONS, "bench")
        yield lambda directory: SlurmBatch(Place(factory_id, "bench", directory, checked))
    finally:
        cluster.down()


SYSTEMS: dict[str, System] = {"condor": condor, "drmaa": grid_engine, "sge": commands, "slurm": slurm}


def measure(client: BatchSystem, factory_id: str, count: int) -> dict[str, float]:
    """One round. Seconds; "poll" is the first listing, which asks everything, "poll_again" one soon after."""
    run = f"{random.randrange(1 << 40):x}"
    requests = [JobRequest(JobTag(factory_id, "bench", f"{run}-{n}"), ("/bin/sleep", "1000"), {},
                           Resources(1, 100, 100, 0)) for n in range(count)]
    figures, start = {}, time.perf_counter()
    results = client.submit_many(requests)
    figures["submit"] = time.perf_counter() - start
    jobs = [JobHandle(request.tag, result.batch_id) for request, result in zip(requests, results, strict=True)]
    for name in ("poll", "poll_again"):
        asked = time.perf_counter()
        listed = [status for status in client.poll_many(factory_id) if status.state is not BatchState.ENDED]
        figures[name] = time.perf_counter() - asked
        if len(listed) != count:
            raise BenchError(f"{len(listed)} of {count} jobs are listed")
    asked = time.perf_counter()
    client.cancel_many(jobs, force=False)
    figures["cancel"] = time.perf_counter() - asked
    while any(status.state is not BatchState.ENDED for status in client.poll_many(factory_id)):
        if time.perf_counter() - asked > GONE_PATIENCE_S:
            raise BenchError("cancelled jobs do not go away")
        time.sleep(0.02)
    figures["gone"] = time.perf_counter() - asked
    figures["all"] = time.perf_counter() - start
    return figures


def main() -> None:
    """Run."""
    options = parser(__doc__)
    options.add_argument("--system", choices=sorted(SYSTEMS), required=True)
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--client", default="", help="HTCondor: bindings or tools; Slurm: pyslurm or tools")
    options.add_argument("--array-size", type=int, default=0, help="sge: so many jobs in one array at most")
    given = options.parse_args()
    report = Report("batch", "s", "limited by the batch system only")
    factory_id = f"bench{os.getpid()}"
    chosen: dict[str, object] = {"client": given.client} if given.client else {}
    if given.array_size:
        chosen["array-size"] = given.array_size
    rounds = []
    with SYSTEMS[given.system](factory_id, chosen) as make, tempfile.TemporaryDirectory() as scratch:
        for number in range(given.repeat):
            client = make(Path(scratch) / str(number))
            try:
                rounds.append(measure(client, factory_id, given.count))
            finally:
                client.close()
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    report.emit(medians["all"], None, None, {"system": given.system, "client": given.client, "jobs": given.count,
                                             "array_size": given.array_size, **medians,
                                             "runs": [one["all"] for one in rounds]})


if __name__ == "__main__":
    main()

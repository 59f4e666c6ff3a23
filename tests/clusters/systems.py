"""What a test, a record or a bench has to know of each real batch system, in one form for all of them.

Owns the words of the systems' own tools. Everything here asks the system itself, never the factory.
"""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol


class Cluster(Protocol):
    """What tests/clusters/htcondor.py, slurm.py and gridengine.py have in common."""

    environment: dict[str, str]

    def up(self) -> Mapping[str, str]: ...
    def down(self) -> None: ...
    def tool(self, *argv: str) -> str: ...


class System(NamedTuple):
    """One batch system, driven in one way.

    Args:
        title: as people call it.
        batch: as a site file calls it; ``table``: of its options there; ``options``: lines of that table.
        fixture: of conftest.py, for tests; ``make``: the same cluster for scripts.
        jobs: numbers of the jobs that are in the system now; ``ever``: and of all that ended, with what it remembers.
        listing: what a person types to see the jobs; ``version``: to see which version it is.
        daemon_off: context manager during which nobody can submit or ask; jobs go on.
        bad: lines of a pool's options with which its jobs never start; ``bad_words``: what the system says to that.
        submit_tool: program that submits, "" where a library does.
        end: argument lists that end all jobs.
    """

    title: str
    batch: str
    table: str
    options: str
    fixture: str
    make: Callable[[], Any]
    jobs: Callable[[Any], set[str]]
    ever: Callable[[Any], set[str]]
    listing: tuple[str, ...]
    version: tuple[str, ...]
    daemon_off: Callable[[Any], contextlib.AbstractContextManager[None]]
    bad: str
    bad_words: str
    submit_tool: str
    end: tuple[tuple[str, ...], ...]

    def pool(self, name: str, more: str = "", options: str = "") -> str:
        """A pool of a site file. ``more``: lines of the pool, ``options``: of its batch system."""
        return (f'[pool.{name}]\nbatch = "{self.batch}"\ncores = 1\nmemory = 300\ndisk = 300\n{more}\n'
                f"[pool.{name}.{self.table}]\n{self.options}\n{options}\n")

    def end_all(self, cluster: Cluster) -> None:
        """End all jobs there are."""
        for argv in self.end:
            with contextlib.suppress(AssertionError):  # "there are none" is an error to some
                cluster.tool(*argv)

    @contextlib.contextmanager
    def running(self) -> Iterator[Any]:
        """A cluster of its own, for a script."""
        cluster = self.make()
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.down()


# ---------------------------------------------------------------------------------------------- HTCondor

def _condor() -> Any:
    from clusters.htcondor import Pool
    return Pool()


def _condor_jobs(pool: Cluster) -> set[str]:
    return set(pool.tool("condor_q", "-allusers", "-af:j", "JobStatus").split("\n")) - {""}


def _numbers(lines: set[str]) -> set[str]:
    return {line.split()[0] for line in lines}


def _condor_ever(pool: Cluster) -> set[str]:
    past = pool.tool("condor_history", "-af:j", "JobStatus").split("\n")
    return _numbers(_condor_jobs(pool) | (set(past) - {""}))


# ----------------------------------------------------------------------------------------------- Slurm

def _slurm() -> Any:
    from clusters.slurm import Cluster as Slurm
    return Slurm()


def _squeue(cluster: Cluster, states: str) -> set[str]:
    return set(cluster.tool("squeue", "--noheader", "--array", f"--states={states}", "--format=%i").split())


# ------------------------------------------------------------------------------------------- Grid Engine
# Its daemon is frozen, not killed. With a new qmaster the old execd is heard of after half a minute, and job deletions
# did not reach it in another; a new execd tells of the end of older jobs a minute late. No fault of a factory.

def _grid_engine() -> Any:
    from clusters.gridengine import GridEngine
    return GridEngine()


def _qstat(cluster: Cluster, states: str) -> set[str]:
    found = set()
    for words in map(str.split, cluster.tool("qstat", "-g", "d", "-s", states).splitlines()[2:]):
        tasks = words[-1] if ":" in words[-1] or words[-1].isdigit() else "1"
        if words[4] == "z" and ":" in tasks:  # an array that is over has one line: "1-3:1"
            first, last = tasks.partition(":")[0].split("-")
            found |= {f"{words[0]}.{number}" for number in range(int(first), int(last) + 1)}
        else:
            found.add(f"{words[0]}.{tasks}")
    return found


_CONDOR = System(
    "HTCondor", "condor", "condor", "query-interval = 1", "htcondor_pool", _condor,
    lambda pool: _numbers(_condor_jobs(pool)), _condor_ever, ("condor_q", "-nobatch"), ("condor_version",),
    lambda pool: pool.schedd_off(),  # type: ignore[no-any-return]
    'extra-directives = ["transfer_input_files = /no/such/input"]', "/no/such/input", "",
    (("condor_rm", "-all"), ("condor_rm", "-forcex", "-all")))
_GRID_ENGINE = System(
    "Grid Engine", "drmaa", "drmaa", "poll-timeout = 3", "grid_engine", _grid_engine,
    lambda cluster: _qstat(cluster, "prs"), lambda cluster: _qstat(cluster, "prsz"), ("qstat", "-g", "d"),
    ("qstat", "-help"), lambda cluster: cluster.master_frozen(),  # type: ignore[no-any-return]
    'extra-directives = ["-h"]', "hqw", "", (("qdel", "-f", "-u", "*"),))

SYSTEMS: dict[str, System] = {
    "condor": _CONDOR._replace(title="HTCondor (Python bindings)", options='query-interval = 1\nclient = "bindings"'),
    "condor-tools": _CONDOR._replace(title="HTCondor (command-line tools)", submit_tool="condor_submit",
                                     options='query-interval = 1\nclient = "tools"'),
    "slurm": System(
        "Slurm", "slurm", "slurm", 'client = "tools"', "slurm_cluster", _slurm,
        lambda cluster: _squeue(cluster, "PENDING,CONFIGURING,RUNNING,COMPLETING,SUSPENDED"),
        lambda cluster: _squeue(cluster, "all"), ("squeue",), ("sinfo", "--version"),
        lambda cluster: cluster.controller_off(),  # type: ignore[no-any-return]
        'partition = "off"', "PartitionDown|down", "sbatch", (("scancel", "--user", getpass.getuser()),)),
    "drmaa": _GRID_ENGINE._replace(title="Grid Engine (DRMAA)"),
    "sge": _GRID_ENGINE._replace(title="Grid Engine (its commands)", batch="sge", table="command", submit_tool="qsub"),
}
"""By the name that a command line gives; the first of a batch system is the one to use where one is enough."""

"""Which batch systems there are: one table from name to driver.

Owns names, aliases, and what of a batch system must be known before its driver is loaded. Drivers and their tables of
options are imported when a pool names them. Must not talk to any of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.batch.base import BatchSystem
from vine_factory.batch.place import Place
from vine_factory.batch.schema import SiteOption, nearest_hint

TRANSFER, SHARED = "transfer", "shared"
"""How the worker gets to the job: sent with it, or named by a path that exists wherever jobs run."""

MANAGERS = {TRANSFER: "addresses", SHARED: "home"}
"""How workers find managers when nothing is said: where there is no shared home, they cannot look there."""


class Driver(NamedTuple):
    """One batch system.

    Args:
        title: as people call it.
        module: of the driver, below ``vine_factory.batch``.
        class_name: of the driver in it; made as ``Class(place)``.
        options: module with its table ``OPTIONS``, "" = it has none.
        deliver: how the worker gets to the job when nothing is said.
        period_s: pass period when nothing is said.
        settles_s: how long after an unanswered submission jobs may still show up.
        transfers: can send files with a job.
        preset: options that the name of an alias stands for.
        excludes: module with ``excludes_hosts(options)``, for systems of which some cannot be told to avoid a host.
    """

    title: str
    module: str
    class_name: str
    options: str = ""
    deliver: str = SHARED
    period_s: float = defaults.BATCH_PERIOD_S
    settles_s: float = defaults.BATCH_SETTLES_S
    transfers: bool = False
    preset: Mapping[str, object] = {}
    excludes: str = ""

    @property
    def table(self) -> str:
        """Name of the table of its options in a site file."""
        return self.module


_COMMAND = Driver("a batch system driven by its commands", "command", "CommandBatch", "command_options",
                  excludes="command_definition")
DRIVERS: dict[str, Driver] = {
    "local": Driver("processes of this machine", "local", "LocalBatch", "", SHARED, defaults.LOCAL_PERIOD_S,
                    defaults.LOCAL_SETTLES_S),
    "condor": Driver("HTCondor", "condor", "CondorBatch", "condor_options", TRANSFER, transfers=True),
    "slurm": Driver("Slurm", "slurm", "SlurmBatch", "slurm_options"),
    "drmaa": Driver("a batch system with a DRMAA library", "drmaa", "DrmaaBatch", "drmaa_options"),
    "command": _COMMAND,
    "sge": _COMMAND._replace(title="Grid Engine", preset={"system": "sge"}),
    "pbs": _COMMAND._replace(title="PBS", preset={"system": "pbs"}),
    "torque": _COMMAND._replace(title="Torque", preset={"system": "torque"}),
    "lsf": _COMMAND._replace(title="LSF", preset={"system": "lsf"}),
    "flux": _COMMAND._replace(title="Flux", preset={"system": "flux"}),
}
ALIASES = {"htcondor": "condor", "uge": "sge", "gridengine": "sge", "openpbs": "pbs"}
NOT_HERE = {
    "moab": "its commands can be given to the batch system 'command'", "cluster": "use 'command'",
    "vine": "workers that start workers are not part of this project", "wq": "Work Queue is not part of this project",
    "amazon": "cloud machines are not part of this project", "k8s": "Kubernetes is not part of this project",
    "mesos": "Mesos is not part of this project",
    "dryrun": "`vine_factory render` shows what would be submitted",
}
"""Published names that stand for nothing here, and why."""


def canonical(name: str) -> str:
    """The name in `DRIVERS` that ``name`` stands for.

    Raises:
        ConfigError: there is no such batch system here; names those there are.
    """
    found = ALIASES.get(name, name)
    if found in DRIVERS:
        return found
    if name in NOT_HERE:
        raise ConfigError(f"batch system {name!r}: {NOT_HERE[name]}", hint="one of: " + ", ".join(DRIVERS))
    raise ConfigError(f"batch system {name!r} is not known" if name else "no batch system is named",
                      hint="give one: " + nearest_hint(name, DRIVERS))


def require(name: str) -> None:
    """See that the driver is there.

    Raises:
        ConfigError: it is not part of this version.
    """
    if not available(name):
        raise ConfigError(f"batch system {name!r} is not supported by this version",
                          hint="one of: " + ", ".join(usable()))


def usable() -> list[str]:
    """Names of the batch systems whose driver is there."""
    return [name for name in DRIVERS if available(name)]


def tables() -> list[str]:
    """Names that tables of options have in a site file."""
    return sorted({driver.table for name, driver in DRIVERS.items() if driver.options and available(name)})


def table_names(name: str) -> frozenset[str]:
    """Under which names a pool of this batch system may have its table of options."""
    return frozenset({name, DRIVERS[name].table})


def available(name: str) -> bool:
    """Is the driver's module there? It is not loaded."""
    return importlib.util.find_spec(f"vine_factory.batch.{DRIVERS[name].module}") is not None


def options_of(name: str) -> tuple[SiteOption, ...]:
    """What a pool of this batch system may set in the table of its options."""
    module = DRIVERS[name].options
    if not module or not available(name):
        return ()
    table: tuple[SiteOption, ...] = importlib.import_module(f"vine_factory.batch.{module}").OPTIONS
    return table


def excludes_hosts(name: str, options: Mapping[str, object]) -> bool:
    """Can this batch system be told on which hosts a pool's jobs must not run?

    Raises:
        ConfigError: the options name a description of the system that cannot be used.
    """
    module = DRIVERS[name].excludes
    return not module or not available(name) or bool(
        importlib.import_module(f"vine_factory.batch.{module}").excludes_hosts(options))


def create(name: str, place: Place) -> BatchSystem:
    """The driver for one pool. Call it in the thread that uses it.

    Raises:
        ConfigError: the place cannot be used.
    """
    driver = DRIVERS[name]
    made: Any = getattr(importlib.import_module(f"vine_factory.batch.{driver.module}"), driver.class_name)
    system: BatchSystem = made(place.factory_id, place.directory) if name == "local" else made(place)
    return system

"""What the factory acts on.

Owns the values only: complete, typed, with the origin of each. How they come about is in build.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory import defaults
from vine_factory.config.options import Sourced
from vine_factory.demand import Shape

EVERYBODY = ".*"
"""With no manager named, all of the user's own managers are served."""


class Target(NamedTuple):
    """Whom to serve: one address, or by name (``regex``)."""

    host: str
    port: int
    regex: str

    def text(self) -> str:
        """As a person would say it."""
        return f"{self.host}:{self.port}" if self.host else f"managers named {self.regex!r}"


class PoolSettings(NamedTuple):
    """One pool of equal workers.

    Args:
        minimum, maximum: workers, also where a job is several of them.
        asked: resources as given (-1 unset); shape: as they will be.
        env: of the workers.
        walltime_s: of a job, 0 = no limit.
        workers_per_job: processes one job runs.
        excludes_hosts: the batch system can be told on which hosts no job must run.
        deliver: "transfer" or "shared"; managers: "home" or "addresses".
        python: interpreter on the execution host, "" = ours (shared) or python3 (transfer).
        options: of the batch system, by its own table; blocks: replaced parts of its template.
        max_idle, budget_core_hours, retire_per_minute: 0 = no limit.
        startup_s: expected time from submission to the first connection, 0 = as learnt.
        leaving: the pool is no longer configured; its jobs drain.
    """

    name: str
    batch: str
    minimum: int
    maximum: int
    per_cycle: int
    asked: Resources
    shape: Shape
    worker_timeout_s: int
    extra_options: str
    env: Mapping[str, str] = {}
    walltime_s: float = 0.0
    workers_per_job: int = 1
    excludes_hosts: bool = True
    deliver: str = "shared"
    managers: str = "home"
    python: str = ""
    directory: str = ""
    worker_binary: str = ""
    wrapper: str = ""
    wrapper_input: tuple[Path, ...] = ()
    task_wrapper: str = ""
    poncho_env: str = ""
    blocked_hosts: tuple[str, ...] = ()
    options: Mapping[str, object] = {}
    blocks: Mapping[str, str] = {}
    max_idle: int = 0
    budget_core_hours: float = 0.0
    budget_period_s: float = defaults.BUDGET_PERIOD_S
    retire_per_minute: int = 0
    startup_s: float = 0.0
    leaving: bool = False


@dataclass(frozen=True)
class Settings:
    """All the factory acts on. ``sourced``: every value as given, with its origin; those of a pool under
    ``pool.NAME.key``. ``period_s``: between looks at batch systems, ``manager_period_s``: between questions to a
    manager. ``label``: what an unnamed factory is called after. ``classic``: the manager given by its address is of the
    C implementation. ``notes``: what the user should know. ``log_file``: of the log lines besides stderr; it is moved
    away at ``log_file_bytes``, 0 = never."""

    factory_name: str
    target: Target
    pools: tuple[PoolSettings, ...]
    period_s: float
    manager_period_s: float
    factory_timeout_s: float
    retire_after_s: float
    manager_gone_s: float
    unconnected_s: float
    drain_grace_s: float
    password: str = ""
    ssl: bool = False
    single_shot: bool = False
    debug_workers: bool = False
    scratch_dir: str = ""
    transfer_port: str = ""
    parent_death: bool = False
    metrics_port: str = ""
    catalog: str = ""
    classic: bool = False
    capacity: bool = False
    tasks_per_worker: int = 0
    leave: bool = False
    label: str = ""
    log_file: str = ""
    log_file_bytes: int = 0
    sourced: Mapping[str, Sourced] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def origins(self) -> dict[str, str]:
        """Where each value came from."""
        return {key: sourced.origin for key, sourced in self.sourced.items()}

    @property
    def pass_s(self) -> float:
        """Seconds between passes in which nothing happens."""
        return min(self.period_s, self.manager_period_s)

    def pool(self, name: str) -> PoolSettings | None:
        """The pool of that name, None when there is none (any more)."""
        return next((pool for pool in self.pools if pool.name == name), None)

"""Settings: one table of options, typed values with their origin, strict reading.

Owns which options exist, their types, bounds and defaults, and how command line and configuration file combine: a
value in the file wins over the command line (as in the published factory, where the file is re-read while running).
Unknown keys are errors that name the nearest valid one. Must not parse argv, know processes or talk to anyone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory import defaults, expressions
from vine_factory.demand import Shape


class Option(NamedTuple):
    """One option. ``kind``: "int", "float", "str", "flag" or "list". ``in_file``: allowed in a configuration file."""

    key: str
    kind: str
    default: object
    low: float
    in_file: bool
    help: str


_NONE = float("-inf")

OPTIONS: dict[str, Option] = {option.key: option for option in (
    Option("batch-type", "str", "", _NONE, False, "batch system that runs the workers"),
    Option("manager-name", "str", "", _NONE, True, "serve managers whose name matches this regular expression"),
    Option("min-workers", "int", -1, 0, True, "keep at least so many workers"),
    Option("max-workers", "int", -1, 1, True, "have at most so many workers"),
    Option("workers-per-cycle", "int", defaults.WORKERS_PER_CYCLE, 0, True,
           "at most so many workers that are not connected yet, 0 = no limit"),
    Option("cores", "int", -1, 0, True, "cores per worker (default: what the machine has)"),
    Option("memory", "int", -1, 0, True, "memory per worker in MB"),
    Option("disk", "int", -1, 0, True, "disk per worker in MB"),
    Option("gpus", "int", -1, 0, True, "gpus per worker"),
    Option("timeout", "int", defaults.WORKER_TIMEOUT_S, 1, True, "workers leave after so many idle seconds"),
    Option("factory-timeout", "float", defaults.FACTORY_TIMEOUT_S, 0, True,
           "end when there was no manager for so many seconds, 0 = never"),
    Option("factory-period", "float", 0.0, 0, False, "seconds between passes (default: 1 for local workers, else 30)"),
    Option("factory-name", "str", "", _NONE, True, "name of this factory"),
    Option("worker-extra-options", "str", "", _NONE, True, "further options for the workers"),
    Option("transfer-port", "str", "", _NONE, True, "port or min:max where workers serve their peers"),
    Option("feature", "list", (), _NONE, False, "feature the workers offer (repeatable)"),
    Option("env", "list", (), _NONE, False, "VARIABLE=value for the workers (repeatable)"),
    Option("password", "str", "", _NONE, False, "file with the password of the managers"),
    Option("ssl", "flag", False, _NONE, False, "managers use TLS"),
    Option("single-shot", "flag", False, _NONE, False, "workers end when their first manager disconnects"),
    Option("worker-binary", "str", "", _NONE, False, "worker program to use"),
    Option("scratch-dir", "str", "", _NONE, False, "journal and workers' output go here"),
    Option("parent-death", "flag", False, _NONE, False, "end, with the workers, when the parent process dies"),
    Option("retire-after", "float", defaults.RETIRE_AFTER_S, 0, False,
           "retire workers that have not been needed for so many seconds"),
    Option("manager-gone", "float", defaults.MANAGER_GONE_S, 0, False,
           "leave the workers of a vanished manager alone for so many seconds"),
    Option("connect-timeout", "float", defaults.UNCONNECTED_S, 1, False,
           "replace a worker that has not connected for so many seconds"),
    Option("drain-grace", "float", defaults.DRAIN_GRACE_S, 0, False,
           "seconds between asking workers to end and killing them"),
    Option("json", "flag", False, _NONE, False, "log lines as JSON"),
)}

ALIASES = {"master-name": "manager-name", "extra-options": "worker-extra-options"}

_NO_NEED = "the manager tells how many workers it can use"
WITHOUT_EFFECT = {
    "foremen-name": "there are no foremen here",
    "task-per-worker": _NO_NEED,
    "tasks-per-worker": _NO_NEED,
    "capacity": _NO_NEED,
    "autosize": "for HTCondor only",
    "condor-requirements": "for HTCondor only",
    "workers-blocked": "a local pool has one host",
}
"""Published keys that are understood and change nothing in a local pool; the user is told so."""


class Sourced(NamedTuple):
    """A value and where it came from."""

    value: object
    origin: str


class Target(NamedTuple):
    """Whom to serve: one address, or by name (``regex``)."""

    host: str
    port: int
    regex: str

    def text(self) -> str:
        """As a person would say it."""
        return f"{self.host}:{self.port}" if self.host else f"managers named {self.regex!r}"


EVERYBODY = ".*"
"""With no manager named, all of the user's own managers are served."""


class PoolSettings(NamedTuple):
    """One pool of equal workers. ``asked``: resources as given (-1 unset); ``shape``: as they will be.

    Of the others 0 means: no such limit, or learnt. ``max_idle``: queued jobs; ``startup_s``: from submission to the
    first connection; ``minimum`` and ``maximum`` count workers, also where a job is several of them.
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
    walltime_s: float = 0.0
    workers_per_job: int = 1
    max_idle: int = 0
    retire_per_minute: int = 0
    budget_core_hours: float = 0.0
    budget_period_s: float = defaults.BUDGET_PERIOD_S
    startup_s: float = 0.0


@dataclass(frozen=True)
class Settings:
    """All the factory acts on. ``origins`` tells of each option where its value came from."""

    factory_name: str
    target: Target
    pools: tuple[PoolSettings, ...]
    period_s: float
    factory_timeout_s: float
    retire_after_s: float
    manager_gone_s: float
    unconnected_s: float
    drain_grace_s: float
    password: str = ""
    ssl: bool = False
    single_shot: bool = False
    worker_binary: str = ""
    scratch_dir: str = ""
    transfer_port: str = ""
    env: tuple[str, ...] = ()
    parent_death: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)

    def pool(self, name: str) -> PoolSettings | None:
        """The pool of that name, None when there is none (any more)."""
        return next((pool for pool in self.pools if pool.name == name), None)


def check_value(key: str, value: object, where: str) -> object:
    """``value`` in the type of option ``key``. Doubles given for whole numbers are rounded up (published rule).

    Raises:
        ConfigError: wrong type or out of bounds; names ``where``, key, value and what is allowed.
    """
    option = OPTIONS[key]
    if option.kind in ("int", "float"):
        return _check_number(option, value, where)
    if option.kind == "flag":
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {key} = {value!r}", hint="expected true or false")
        return value
    if option.kind == "list":
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: {key} = {value!r}", hint="expected a list of texts")
        return tuple(value)
    if not isinstance(value, str) or "\0" in value or "\n" in value:
        raise ConfigError(f"{where}: {key} = {value!r}", hint="expected a text of one line")
    return value


def _check_number(option: Option, value: object, where: str) -> int | float:
    allowed = f"expected a number of at least {option.low:g}"
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{where}: {option.key} = {value!r}", hint=allowed) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < option.low:
        raise ConfigError(f"{where}: {option.key} = {value!r}", hint=allowed)
    return math.ceil(value) if option.kind == "int" else float(value)


def read_file(path: Path) -> tuple[dict[str, Sourced], list[str]]:
    """Read a configuration file. Returns its values and notes about keys without effect.

    Raises:
        ConfigError: unreadable, not JSON, an unknown key or a bad value.
    """
    try:
        if path.stat().st_size > defaults.MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than {defaults.MAX_CONFIG_BYTES} bytes", hint="is it the right file?")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"cannot read the configuration {path}: {problem}") from problem
    try:
        record = expressions.parse(text)
    except ConfigError as problem:
        raise ConfigError(f"{path}: {problem.message}", hint=problem.hint) from problem
    return from_mapping(record, str(path))


def from_mapping(record: Mapping[str, object], where: str) -> tuple[dict[str, Sourced], list[str]]:
    """Check the keys and values of a configuration. Returns and raises as `read_file`."""
    values: dict[str, Sourced] = {}
    notes = []
    for given, value in record.items():
        key = ALIASES.get(given, given)
        if given in WITHOUT_EFFECT:
            notes.append(f"{where}: {given} has no effect: {WITHOUT_EFFECT[given]}")
        elif key in OPTIONS and OPTIONS[key].in_file:
            values[key] = Sourced(check_value(key, value, where), where)
        else:
            raise ConfigError(f"{where}: unknown key {given!r}", hint=_nearest(given))
    return values, notes


def _nearest(key: str) -> str:
    valid = [name for name, option in OPTIONS.items() if option.in_file] + [*ALIASES, *WITHOUT_EFFECT]
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "allowed: " + ", ".join(sorted(valid))


def build(command_line: Mapping[str, Sourced], file: Mapping[str, Sourced], *, host: str, port: int,
          machine: Resources) -> Settings:
    """Combine to settings. ``machine``: what a worker finds here that is given no resources.

    Raises:
        ConfigError: no batch system, unusable combination.
    """
    values = {key: file.get(key) or command_line.get(key) or Sourced(option.default, "default")
              for key, option in OPTIONS.items()}
    batch = _str(values, "batch-type")
    regex = _str(values, "manager-name")
    if host and regex:
        raise ConfigError("both an address and a manager name are given", hint="give one of them")
    minimum, maximum = _min_max(values, batch, machine)
    asked = _asked(values)
    pool = PoolSettings(
        name=batch, batch=batch, minimum=minimum, maximum=maximum, per_cycle=_int(values, "workers-per-cycle"),
        asked=asked, shape=Shape(machine.overridden_by(asked), _list(values, "feature")),
        worker_timeout_s=_int(values, "timeout"), extra_options=_str(values, "worker-extra-options"))
    period = _float(values, "factory-period")
    return Settings(
        factory_name=_str(values, "factory-name"), target=Target(host, port, "" if host else regex or EVERYBODY),
        pools=(pool,), period_s=period or (defaults.LOCAL_PERIOD_S if batch == "local" else defaults.BATCH_PERIOD_S),
        factory_timeout_s=_float(values, "factory-timeout"), retire_after_s=_float(values, "retire-after"),
        manager_gone_s=_float(values, "manager-gone"), unconnected_s=_float(values, "connect-timeout"),
        drain_grace_s=_float(values, "drain-grace"), password=_str(values, "password"),
        ssl=bool(values["ssl"].value), single_shot=bool(values["single-shot"].value),
        worker_binary=_str(values, "worker-binary"), scratch_dir=_str(values, "scratch-dir"),
        transfer_port=_str(values, "transfer-port"),
        env=_list(values, "env"), parent_death=bool(values["parent-death"].value),
        origins={key: sourced.origin for key, sourced in values.items()})


def _asked(values: Mapping[str, Sourced]) -> Resources:
    """Resources of a worker; 0 cores, memory or disk mean, as for the worker, "what is there"."""
    cores, memory, disk = (_int(values, key) or -1 for key in ("cores", "memory", "disk"))
    return Resources(cores, memory, disk, _int(values, "gpus"))


def _min_max(values: Mapping[str, Sourced], batch: str, machine: Resources) -> tuple[int, int]:
    minimum, maximum = _int(values, "min-workers"), _int(values, "max-workers")
    if maximum < 0:
        cores = _int(values, "cores")
        # More local workers than the machine has room for only get in each other's way, unless somebody asks.
        room = max(1, machine.cores // cores) if cores > 0 else 1
        maximum = max(room if batch == "local" else defaults.MAX_WORKERS, minimum)
    if minimum < 0:
        minimum = min(maximum, defaults.LOCAL_MIN_WORKERS if batch == "local" else defaults.MIN_WORKERS)
    if minimum > maximum:
        if values["min-workers"].origin == values["max-workers"].origin == "command line":
            raise ConfigError(f"min-workers {minimum} is larger than max-workers {maximum}", hint="swap them?")
        minimum = maximum  # the published rule for configuration files
    return minimum, maximum


def _int(values: Mapping[str, Sourced], key: str) -> int:
    value = values[key].value
    assert isinstance(value, int)  # by check_value
    return value


def _float(values: Mapping[str, Sourced], key: str) -> float:
    value = values[key].value
    assert isinstance(value, float | int)  # by check_value
    return float(value)


def _str(values: Mapping[str, Sourced], key: str) -> str:
    value = values[key].value
    assert isinstance(value, str)  # by check_value
    return value


def _list(values: Mapping[str, Sourced], key: str) -> tuple[str, ...]:
    value = values[key].value
    assert isinstance(value, tuple)  # by check_value
    return value

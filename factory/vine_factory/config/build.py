"""From command line and file to settings.

Owns how values combine: a pool's own, then the file's defaults for pools, then the file's top level, then the command
line, then what is right for the batch system. Everything that contradicts itself is found here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.resources import Resources
from vine_factory import defaults
from vine_factory.batch import registry
from vine_factory.batch.schema import check_options
from vine_factory.config.files import FileValues, PoolTable
from vine_factory.config.options import CLASSIC, OPTIONS, SECURE, Sourced
from vine_factory.config.pool_options import BY_KEY, FROM_FACTORY
from vine_factory.config.published import system_options, without_effect
from vine_factory.config.settings import EVERYBODY, PoolSettings, Settings, Target
from vine_factory.demand import Shape

DEFAULT = "default"


def build(command_line: Mapping[str, Sourced], file: FileValues, *, host: str, port: int,
          machine: Resources, notes: Sequence[str] = ()) -> Settings:
    """Combine to settings. ``machine``: what a local worker finds here that is given no resources. ``notes``: what
    there is to say about the command line.

    Raises:
        ConfigError: no batch system, unusable combination.
    """
    values = {key: file.values.get(key) or command_line.get(key) or Sourced(option.default, DEFAULT)
              for key, option in OPTIONS.items()}
    regex = _str(values, "manager-name")
    if host and regex:
        raise ConfigError("both an address and a manager name are given", hint="give one of them")
    sourced = dict(values)
    tables = file.pools if file.pools is not None else (PoolTable(_str(values, "batch-type")),)
    pools = tuple(_Pool(table, file, values, sourced, machine).settings() for table in tables)
    _check_defaults(file.defaults)
    period = _float(values, "factory-period") or min(registry.DRIVERS[pool.batch].period_s for pool in pools)
    asking = _float(values, "manager-period") or min(period, defaults.MANAGER_PERIOD_S)
    sourced["factory-period"] = values["factory-period"]._replace(value=period)
    sourced["manager-period"] = values["manager-period"]._replace(value=asking)
    return Settings(
        factory_name=_str(values, "factory-name"), target=Target(host, port, "" if host else regex or EVERYBODY),
        pools=pools, period_s=period, manager_period_s=asking, factory_timeout_s=_float(values, "factory-timeout"),
        retire_after_s=_float(values, "retire-after"), manager_gone_s=_float(values, "manager-gone"),
        unconnected_s=_float(values, "connect-timeout"), drain_grace_s=_float(values, "drain-grace"),
        password=_str(values, "password"), ssl=bool(values["ssl"].value),
        single_shot=bool(values["single-shot"].value), debug_workers=bool(values["debug-workers"].value),
        scratch_dir=_str(values, "scratch-dir"), transfer_port=_str(values, "transfer-port"),
        parent_death=bool(values["parent-death"].value), log_file=_str(values, "debug-file"),
        log_file_bytes=int(_float(values, "debug-file-size")), metrics_port=_str(values, "metrics-port"),
        catalog=_str(values, "catalog"), classic=_is_classic(values), capacity=bool(values["capacity"].value),
        tasks_per_worker=int(_float(values, "tasks-per-worker")),
        leave=bool(values["leave"].value),
        label=file.label if file.pools is not None else pools[0].batch, sourced=sourced,
        notes=(*notes, *file.notes, *without_effect([pool.batch for pool in pools], values),
               *_other_workers(values, pools)))


def _other_workers(values: Mapping[str, Sourced], pools: Sequence[PoolSettings]) -> list[str]:
    if _is_classic(values) or values["catalog"].value:
        return [f"pool {pool.name}: managers of the C implementation take only their own vine_worker: give "
                "worker-binary"
                for pool in pools if not pool.worker_binary]
    return []


def _is_classic(values: Mapping[str, Sourced]) -> bool:
    given = values["protocol"]
    if given.value not in (SECURE, CLASSIC):
        raise ConfigError(f"{given.origin}: protocol = {given.value!r}", hint=f"expected {SECURE} or {CLASSIC}")
    return given.value == CLASSIC


def _check_defaults(common: PoolTable) -> None:
    """Options that no pool uses are checked as well: a typing error there waits for the first pool that does."""
    for system, given in common.systems.items():
        for option in given.values():
            check_options({key: sourced.value for key, sourced in given.items()},
                          registry.options_of(registry.canonical(system)), option.origin)


class _Pool:
    """One pool in the making. Every value that is looked up is put down with its origin."""

    def __init__(self, table: PoolTable, file: FileValues, factory: Mapping[str, Sourced], sourced: dict[str, Sourced],
                 machine: Resources) -> None:
        self._table = table
        self._common = file.defaults
        self._in_file = file.pools is not None
        self._factory = factory
        self._sourced = sourced
        self._prefix = f"pool.{table.name}" if self._in_file else ""
        self._machine = machine
        given = self._find("batch")
        try:
            self._batch = registry.canonical(str(given.value or ""))
        except ConfigError as problem:
            raise ConfigError(f"{self._at(given.origin)}{problem.message}", hint=problem.hint) from None
        self._driver = registry.DRIVERS[self._batch]

    def settings(self) -> PoolSettings:
        minimum, maximum = self._min_max()
        asked = self._asked()
        env = self._env()
        options = self._options()
        deliver = self._str("deliver", self._driver.deliver)
        if deliver == registry.TRANSFER and not self._driver.transfers:
            raise ConfigError(f"{self._at()}deliver = {deliver!r}: {self._driver.title} sends no files with a job",
                              hint='expected "shared"')
        per_job = self._int("workers-per-job", 1)
        if per_job > 1 and self._batch == "local":
            raise ConfigError(f"{self._at()}workers-per-job = {per_job}: a local job is one worker")
        return PoolSettings(
            name=self._table.name if self._in_file else self._batch, batch=self._batch,
            minimum=minimum, maximum=maximum,
            per_cycle=self._int("workers-per-cycle", defaults.WORKERS_PER_CYCLE), asked=asked,
            shape=Shape(self._machine.overridden_by(asked), self._list("features"), self._float("walltime", 0.0)),
            worker_timeout_s=int(self._float("timeout", defaults.WORKER_TIMEOUT_S)),
            extra_options=self._str("worker-extra-options"), env=env, walltime_s=self._float("walltime", 0.0),
            workers_per_job=per_job, deliver=deliver, managers=self._str("managers", registry.MANAGERS[deliver]),
            python=self._str("python"), directory=self._str("directory"), worker_binary=self._str("worker-binary"),
            wrapper=self._str("wrapper"), wrapper_input=tuple(Path(item) for item in self._list("wrapper-input")),
            task_wrapper=self._str("task-wrapper"), poncho_env=self._str("poncho-env"),
            blocked_hosts=self._list("workers-blocked"),
            options=options, excludes_hosts=self._excludes_hosts(options), blocks=self._blocks(),
            max_idle=self._int("max-idle", 0),
            budget_core_hours=self._float("budget-core-hours", 0.0),
            budget_period_s=self._float("budget-period", defaults.BUDGET_PERIOD_S),
            retire_per_minute=self._int("retire-per-minute", 0), startup_s=self._float("startup-time", 0.0))

    # ------------------------------------------------------------------------------------------ values

    def _find(self, key: str, default: object = None) -> Sourced:
        found = self._table.values.get(key) or self._common.values.get(key)
        factory_key = FROM_FACTORY.get(key, "")
        if found is None and factory_key:
            candidate = self._factory[factory_key]
            # The table's own default is not a wish: the pool may know better.
            found = candidate if candidate.origin != DEFAULT else None
        if found is None:
            found = Sourced(BY_KEY[key].default if default is None else default, DEFAULT)
        if self._in_file:
            self._sourced[f"{self._prefix}.{key}"] = found
        return found

    def _int(self, key: str, default: int) -> int:
        value = self._find(key, default).value
        assert isinstance(value, int)  # by check_value
        return value

    def _float(self, key: str, default: float) -> float:
        value = self._find(key, default).value
        assert isinstance(value, int | float)  # by check_value
        return float(value)

    def _str(self, key: str, default: str = "") -> str:
        value = self._find(key, default).value
        assert isinstance(value, str)  # by check_value
        return value

    def _list(self, key: str) -> tuple[str, ...]:
        value = self._find(key, ()).value
        assert isinstance(value, tuple)  # by check_value
        return value

    def _at(self, origin: str = "") -> str:
        """How a message about this pool begins."""
        return f"{origin or self._prefix}: " if self._in_file else ""

    # ------------------------------------------------------------------------------- what needs a thought

    def _asked(self) -> Resources:
        """Resources of a worker; 0 cores, memory or disk mean, as for the worker, "what is there"."""
        if self._batch == "local":
            default = (-1, -1, -1)
        else:  # a batch system has to be told something
            cores = max(1, self._int("cores", 1))
            default = (1, cores * defaults.MEMORY_PER_CORE_MB, cores * defaults.DISK_PER_CORE_MB)
        cores, memory, disk = (self._int(key, size) or -1
                               for key, size in zip(("cores", "memory", "disk"), default, strict=True))
        for key, size in (("cores", cores), ("memory", memory), ("disk", disk)):
            self._settle(key, size)
        return Resources(cores, memory, disk, self._int("gpus", -1))

    def _min_max(self) -> tuple[int, int]:
        local = self._batch == "local"
        low, high = self._find("min-workers", -1), self._find("max-workers", -1)
        assert isinstance(low.value, int) and isinstance(high.value, int)  # by check_value
        minimum, maximum = low.value, high.value
        if maximum < 0:
            cores = self._int("cores", -1)
            # More local workers than the machine has room for only get in each other's way, unless somebody asks.
            room = max(1, self._machine.cores // cores) if cores > 0 else 1
            maximum = max(room if local else defaults.MAX_WORKERS, minimum)
        if minimum < 0:
            minimum = min(maximum, defaults.LOCAL_MIN_WORKERS if local else defaults.MIN_WORKERS)
        if minimum > maximum:
            if self._in_file or low.origin == high.origin == "command line":
                raise ConfigError(f"{self._at()}min-workers {minimum} is larger than max-workers {maximum}",
                                  hint="swap them?")
            minimum = maximum  # the published rule for configuration files
        self._settle("min-workers", minimum)
        self._settle("max-workers", maximum)
        return minimum, maximum

    def _settle(self, key: str, value: object) -> None:
        """Show what a value that nobody gave has become."""
        name = f"{self._prefix}.{key}" if self._in_file else FROM_FACTORY[key]
        self._sourced[name] = self._sourced[name]._replace(value=value)

    def _env(self) -> dict[str, str]:
        """The factory's variables, then the defaults', then the pool's."""
        merged: dict[str, Sourced] = {}
        factory = self._factory["env"]
        assert isinstance(factory.value, tuple)  # by check_value
        for item in factory.value:
            name, separator, value = item.partition("=")
            if not separator or not name:
                raise ConfigError(f"env = {item!r}", hint="expected VARIABLE=value")
            merged[name] = Sourced(value, factory.origin)
        for table in (self._common, self._table):
            given = table.values.get("env")
            if given is not None:
                assert isinstance(given.value, dict)  # by check_value
                merged.update({name: Sourced(value, given.origin) for name, value in given.value.items()})
        for name in merged:
            if not name.replace("_", "a").isalnum() or not name.isascii() or name[0].isdigit():
                raise ConfigError(f"{self._at()}env: {name!r} cannot be the name of a variable",
                                  hint="expected letters, digits and '_'")
        self._put("env", merged)
        return {name: str(sourced.value) for name, sourced in merged.items()}

    def _options(self) -> dict[str, object]:
        """Options of the batch system, checked by its own table."""
        merged = system_options(self._batch, self._factory)
        merged.update({key: Sourced(value, f"batch = {self._find('batch').value!r}")
                       for key, value in self._driver.preset.items() if registry.available(self._batch)})
        names = registry.table_names(self._batch)
        for table in (self._common, self._table):
            for system, given in table.systems.items():
                if registry.ALIASES.get(system, system) in names:
                    merged.update(given)
                elif table is self._table:
                    raise ConfigError(f"{self._at()}{system}: the pool's batch system is {self._batch!r}",
                                      hint=f"its options are in [{self._prefix}.{self._driver.table}]")
        origins: dict[str, dict[str, object]] = {}
        for key, sourced in merged.items():
            origins.setdefault(sourced.origin, {})[key] = sourced.value
        known = registry.options_of(self._batch)
        for origin, part in origins.items():  # each part by itself, so that a message names where it stands
            check_options(part, known, origin)
        checked = check_options({key: sourced.value for key, sourced in merged.items()}, known, self._at())
        self._put(self._driver.table, {key: Sourced(value, merged[key].origin if key in merged else DEFAULT)
                                       for key, value in checked.items()})
        return checked

    def _excludes_hosts(self, options: Mapping[str, object]) -> bool:
        """Reads the description of the batch system, too, where there is one: what is wrong there is told now."""
        try:
            return registry.excludes_hosts(self._batch, options)
        except ConfigError as problem:
            raise ConfigError(f"{self._at()}{problem.message}", hint=problem.hint) from None

    def _blocks(self) -> dict[str, str]:
        merged = {**self._common.blocks, **self._table.blocks}
        self._put("blocks", merged)
        return {name: str(sourced.value) for name, sourced in merged.items()}

    def _put(self, part: str, values: Mapping[str, Sourced]) -> None:
        self._sourced.pop(f"{self._prefix}.{part}", None)
        prefix = f"{self._prefix}.{part}" if self._in_file else part
        for key, sourced in values.items():
            self._sourced[f"{prefix}.{key}"] = sourced


def _float(values: Mapping[str, Sourced], key: str) -> float:
    value = values[key].value
    assert isinstance(value, float | int)  # by check_value
    return float(value)


def _str(values: Mapping[str, Sourced], key: str) -> str:
    value = values[key].value
    assert isinstance(value, str)  # by check_value
    return value

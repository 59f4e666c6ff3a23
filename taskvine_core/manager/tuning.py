"""The tuning parameters of a manager: names, defaults, permitted ranges.

Owns reference section 8 as one typed object. Must not know what the numbers are used for beyond their range, nor
do I/O: a refused name is answered with -1 and it is the caller who prints the notice.

Attributes are the public names with "_" for "-" and a unit suffix where there is a unit (``_s``, ``_mb_s``,
``_bytes``). ``set`` takes the public units, which differ for one name only (large-task-check-interval: µs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from taskvine_core.errors import UsageError

MICROSECONDS = 1_000_000
#: What the resource monitor uses when it is not told (reference, section 22.3).
MONITOR_DEFAULT_INTERVAL_S = 5.0
#: Longest pause of our growing back-off after failures; the reference pauses that long at once.
TRANSIENT_ERROR_DEFAULT_S = 15.0
#: Below that a retry after a full sandbox would meet the same limit again.
SMALLEST_GROW_FACTOR = 1.1
#: A multiplier below one means "do not disconnect slow workers" (reference, section 3.7).
OFF = -1.0
GIGABYTE = 1 << 30

PROPORTIONAL_RESOURCES = "proportional_resources"


@dataclass(slots=True)
class Tuning:
    """Every parameter of reference section 8. Change through ``set``: plain assignment checks nothing."""

    attempt_schedule_depth: int = 100
    category_steady_n_tasks: int = 25
    clean_redundant_replicas: bool = False
    default_transfer_rate_mb_s: float = 1.0
    disconnect_slow_worker_factor: float = OFF
    disk_proportion_available_to_task: float = 0.75
    enforce_worker_eviction_interval_s: float = 0.0
    file_source_max_transfers: int = 1
    hungry_minimum: int = 10
    hungry_minimum_factor: float = 2.0
    immediate_recovery: bool = False
    keepalive_interval_s: float = 120.0
    keepalive_timeout_s: float = 900.0
    large_task_check_interval_s: float = 180.0
    load_from_shared_filesystem: bool = False
    long_timeout_s: float = 3600.0
    short_timeout_s: float = 5.0
    max_library_retries: int = 15
    max_new_workers: int = 10
    max_retrievals: int = 1
    max_task_stdout_storage_bytes: int = GIGABYTE
    max_workers: int = -1
    min_transfer_timeout_s: float = 60.0
    monitor_interval_s: float = MONITOR_DEFAULT_INTERVAL_S
    option_blocklist_slow_workers_timeout_s: float = 900.0
    perf_log_interval_s: float = 5.0
    prefer_dispatch: bool = False
    proportional_resources: bool = True
    proportional_whole_tasks: bool = False
    ramp_down_heuristic: bool = False
    resource_management_interval_s: float = 30.0
    resource_submit_multiplier: float = 1.0
    sandbox_grow_factor: float = 2.0
    shift_disk_load: bool = False
    task_groups: bool = False
    temp_replica_count: int = 1
    transfer_outlier_factor: float = 10.0
    transfer_replica_per_cycle: int = 10
    transfer_temps_recovery: bool = False
    transient_error_interval_s: float = TRANSIENT_ERROR_DEFAULT_S
    update_interval_s: float = 60.0
    wait_for_workers: int = 0
    watch_library_logfiles: bool = False
    worker_retrievals: bool = True
    worker_source_max_transfers: int = 10

    def set(self, name: str, value: float) -> int:
        """Set one parameter.

        Args:
            name: public name or alias; "-" and "_" mean the same.
            value: number in the public unit; out of range is moved to the nearest permitted value.

        Returns:
            0, or -1 when nothing was changed: the name is unknown, or no permitted value is nearest (not finite;
            disk-proportion-available-to-task outside 0..1).

        Raises:
            UsageError: ``value`` is not a number.
        """
        key = name.replace("-", "_")
        rule = _RULES.get(_ALIASES.get(key, key))
        if rule is None:
            return -1
        attribute, convert = rule
        converted = convert(_number(name, value))
        if converted is None:
            return -1
        setattr(self, attribute, converted)
        if attribute == PROPORTIONAL_RESOURCES:
            self.proportional_whole_tasks = bool(converted)
        return 0


Converter = Callable[[float], "int | float | None"]


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"tuning parameter {name!r} got {value!r}", hint="give a number") from None


def _switch(value: float) -> bool | None:
    return value > 0 if math.isfinite(value) else None


def _whole(low: int) -> Converter:
    return lambda value: max(low, int(value)) if math.isfinite(value) else None


def _real(low: float, scale: float = 1.0) -> Converter:
    return lambda value: max(low, value / scale) if math.isfinite(value) else None


def _or_default(low: float, default: float) -> Converter:
    """Values below ``low`` ask for the default."""
    return lambda value: (default if value < low else value) if math.isfinite(value) else None


def _proper_fraction(value: float) -> float | None:
    return value if 0 < value < 1 else None


_ALIASES = {
    "asynchrony_multiplier": "resource_submit_multiplier",
    "disconnect_slow_workers_factor": "disconnect_slow_worker_factor",
    "force_proportional_resources": PROPORTIONAL_RESOURCES,
    "force_proportional_resources_whole_tasks": "proportional_whole_tasks",
}

_SPECIAL: dict[str, tuple[str, Converter]] = {
    "default_transfer_rate": ("default_transfer_rate_mb_s", lambda v: v if 0 < v < math.inf else None),
    "disconnect_slow_worker_factor": ("disconnect_slow_worker_factor", _or_default(1.0, OFF)),
    "disk_proportion_available_to_task": ("disk_proportion_available_to_task", _proper_fraction),
    "hungry_minimum_factor": ("hungry_minimum_factor", _real(1.0)),
    "large_task_check_interval": ("large_task_check_interval_s", _real(0.0, MICROSECONDS)),
    "max_task_stdout_storage": ("max_task_stdout_storage_bytes", _whole(0)),
    # Zero is the published way to say "what the monitor does by itself".
    "monitor_interval": ("monitor_interval_s", _or_default(math.ulp(0.0), MONITOR_DEFAULT_INTERVAL_S)),
    "resource_submit_multiplier": ("resource_submit_multiplier", _real(1.0)),
    "sandbox_grow_factor": ("sandbox_grow_factor", _real(SMALLEST_GROW_FACTOR)),
    "transfer_outlier_factor": ("transfer_outlier_factor", _real(1.0)),
    "transient_error_interval": ("transient_error_interval_s", _or_default(1.0, TRANSIENT_ERROR_DEFAULT_S)),
}

#: Lowest permitted value of the plain counts.
_COUNTS = {
    "attempt_schedule_depth": 1, "category_steady_n_tasks": 1, "file_source_max_transfers": 1, "hungry_minimum": 1,
    "max_library_retries": 1, "max_new_workers": 1, "max_retrievals": -1, "max_workers": -1,
    "temp_replica_count": 1, "transfer_replica_per_cycle": 0, "wait_for_workers": 0,
    "worker_source_max_transfers": 1,
}

_SECONDS = (
    "enforce_worker_eviction_interval", "keepalive_interval", "keepalive_timeout", "long_timeout", "short_timeout",
    "min_transfer_timeout", "option_blocklist_slow_workers_timeout", "perf_log_interval",
    "resource_management_interval", "update_interval",
)

_SWITCHES = (
    "clean_redundant_replicas", "immediate_recovery", "load_from_shared_filesystem", "prefer_dispatch",
    PROPORTIONAL_RESOURCES, "proportional_whole_tasks", "ramp_down_heuristic", "shift_disk_load", "task_groups",
    "transfer_temps_recovery", "watch_library_logfiles", "worker_retrievals",
)

_RULES: dict[str, tuple[str, Converter]] = {
    **_SPECIAL,
    **{name: (name, _whole(low)) for name, low in _COUNTS.items()},
    **{name: (name + "_s", _real(0.0)) for name in _SECONDS},
    **{name: (name, _switch) for name in _SWITCHES},
}

#: Every name ``set`` accepts, with "-", sorted; for notices about unknown names.
TUNING_NAMES = tuple(sorted(name.replace("_", "-") for name in (*_RULES, *_ALIASES)))

"""Resource descriptions as programs write them: ``{"cores": 2, "memory": 1000, "wall_time": 60}``.

Owns the public keys, their units and the check of values. Must not know categories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from taskvine_core.errors import UsageError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import NOTHING_SET, Resources

#: Public key of each element of Resources, in its order.
RESOURCE_KEYS = ("cores", "memory", "disk", "gpus")
TIME_KEYS = ("wall_time", "end")
LIMIT_KEYS = RESOURCE_KEYS + TIME_KEYS


class Limits(NamedTuple):
    """Sized resources, the longest run time, and the latest end in seconds since the epoch; -1 = not set."""

    resources: Resources = NOTHING_SET
    wall_time_s: float = -1.0
    end_s: float = -1.0


NO_LIMITS = Limits()


def update_limits(limits: Limits, description: Mapping[str, float] | None, what: str) -> Limits:
    """``limits`` with the keys of ``description`` replaced.

    Args:
        limits: what is in force.
        description: keys among LIMIT_KEYS; a negative value unsets one; None or {} changes nothing.
        what: the call, for the message.

    Raises:
        UsageError: unknown key, or a value that is not a finite number; the text names it.
    """
    if not description:
        return limits
    if not isinstance(description, Mapping):
        raise UsageError(f"{what}: got {description!r}", hint="give a dictionary such as {'cores': 1, 'memory': 500}")
    values = {key: _checked(key, value, what) for key, value in description.items()}
    resources = Resources(*(
        math.ceil(values[key]) if key in values else old
        for key, old in zip(RESOURCE_KEYS, limits.resources, strict=True)))
    return Limits(resources, values.get("wall_time", limits.wall_time_s), values.get("end", limits.end_s))


def check_resource_key(key: str, what: str) -> str:
    """Return ``key`` when it is one of LIMIT_KEYS, else raise UsageError."""
    if key not in LIMIT_KEYS:
        raise UsageError(f"{what}: unknown resource {key!r}", hint="known are " + ", ".join(LIMIT_KEYS))
    return key


def _checked(key: str, value: float, what: str) -> float:
    check_resource_key(key, what)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{what}: {key} is {value!r}", hint="give a number, -1 to leave it unset")
    return float(value) if value >= 0 else -1.0

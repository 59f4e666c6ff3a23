"""Checks of arguments: each returns the clean value or raises an error that names the argument.

Owns the wording and the exception types of the published API. Must not know managers, tasks or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from taskvine_core.constants import (
    ALLOCATION_MODE_NAMES,
    SCHEDULE_NAMES,
    VINE_CACHE_LEVEL_FOREVER,
    VINE_CACHE_LEVEL_TASK,
    VINE_CACHE_LEVEL_WORKER,
    VINE_CACHE_LEVEL_WORKFLOW,
    VINE_SCHEDULE_DISK,
    VINE_WAIT_FOREVER,
)
from taskvine_core.errors import SecurityError, UsageError, UsageNameError, UsageTypeError
from taskvine_core.model.names import check_sandbox_path

_LEVELS: dict[object, int] = {
    None: VINE_CACHE_LEVEL_TASK,
    False: VINE_CACHE_LEVEL_TASK,
    "task": VINE_CACHE_LEVEL_TASK,
    True: VINE_CACHE_LEVEL_WORKFLOW,
    "workflow": VINE_CACHE_LEVEL_WORKFLOW,
    "worker": VINE_CACHE_LEVEL_WORKER,
    "forever": VINE_CACHE_LEVEL_FOREVER,
}

#: Programs use few different sandbox paths in many tasks; those that are refused are not kept.
_safe_path = lru_cache(maxsize=4096)(check_sandbox_path)

#: What wait() uses in place of a negative timeout that does not mean "for ever".
NEGATIVE_TIMEOUT_S = 5.0


def cache_level(cache: bool | str | None) -> int:
    """VINE_CACHE_LEVEL_* of a ``cache=`` argument (reference, section 2.3)."""
    if cache is None or isinstance(cache, (bool, str)):
        level = _LEVELS.get(cache)
        if level is not None:
            return level
    raise UsageError(f"cache={cache!r} is not a cache level",
                     hint="use False, True, 'task', 'workflow', 'worker' or 'forever'")


def remote_name(name: object, file_kind: str) -> str:
    """A path inside a sandbox."""
    if type(name) is not str and not isinstance(name, str):
        raise UsageTypeError(f"remote_name of an {file_kind} must be a str, not {name!r}")
    try:
        return _safe_path(name)
    except SecurityError as error:
        raise UsageError(f"remote_name of an {file_kind}: {error.message}", hint=error.hint) from None


def text(value: object, what: str) -> str:
    """A str."""
    if not isinstance(value, str):
        raise UsageTypeError(f"{what} must be a str, not {value!r}")
    return value


def module_names(names: Iterable[object]) -> tuple[str, ...]:
    """Dotted names of modules, each once and in one order, so that equal sets share one interpreter."""
    for name in names:
        if not all(part.isidentifier() for part in text(name, "module name").split(".")):
            raise UsageError(f"module name {name!r} is not a dotted name of identifiers",
                             hint="give names as an import statement has them: 'numpy', 'os.path'")
    return tuple(sorted({str(name) for name in names}))


def number(value: object, what: str) -> float:
    """A finite int or float."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise UsageTypeError(f"{what} must be a number, not {value!r}")
    result = float(value)
    if math.isnan(result) or math.isinf(result):
        raise UsageError(f"{what} must be a finite number, not {value!r}")
    return result


def whole(value: object, what: str) -> int:
    """A number, rounded up: half a core takes one."""
    if type(value) is int:
        return value
    return math.ceil(number(value, what))


def amount(value: object, what: str) -> int:
    """A resource: whole, -1 when negative (unset)."""
    return max(-1, whole(value, what))


def scheduler(value: object) -> int:
    """VINE_SCHEDULE_* of a name of section 2.4 or of the constant itself."""
    if isinstance(value, str):
        found = SCHEDULE_NAMES.get(value.strip().lower())
        if found is not None:
            return found
    elif type(value) is int and 0 <= value <= VINE_SCHEDULE_DISK:
        return value
    raise UsageError(f"scheduler {value!r} is unknown", hint="use one of " + ", ".join(SCHEDULE_NAMES))


def allocation_mode(value: object) -> int:
    """VINE_ALLOCATION_MODE_* of a name (case, blanks and underscores do not matter) or of a number.

    Raises:
        UsageNameError: an unknown name. Unknown numbers are returned as they are.
    """
    if isinstance(value, str):
        found = ALLOCATION_MODE_NAMES.get(value.strip().lower().replace("_", " "))
        if found is None:
            raise UsageNameError(f"allocation mode {value!r} is unknown",
                                 hint="use one of " + ", ".join(ALLOCATION_MODE_NAMES))
        return found
    if type(value) is not int:
        raise UsageTypeError(f"mode must be a str or a VINE_ALLOCATION_MODE_* constant, not {value!r}")
    return value


def timeout(value: object) -> float | None:
    """Seconds, or None for ever. Negative numbers other than -1 become NEGATIVE_TIMEOUT_S, with a warning."""
    if value is None or value == "wait_forever":
        return None
    if isinstance(value, str):
        raise UsageError(f"timeout {value!r} is neither seconds nor 'wait_forever'")
    seconds = math.inf if value == math.inf else number(value, "timeout")
    if seconds == VINE_WAIT_FOREVER or seconds == math.inf:
        return None
    if seconds < 0:
        import warnings

        warnings.warn(f"timeout {value!r} is negative: waiting {NEGATIVE_TIMEOUT_S:g} s", stacklevel=4)
        return NEGATIVE_TIMEOUT_S
    return seconds

"""Files of resource summaries, as the resource monitor writes them (reference, sections 7.2 and 22.2).

Owns their text form: JSON objects one after the other, values ``[number, "unit"]`` or plain numbers. Does no I/O.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from taskvine_core.errors import UsageError
from taskvine_core.manager.limits import RESOURCE_KEYS
from taskvine_core.resources import UNSET, Resources

#: Factor from each unit to ours (whole cores and gpus, MB, seconds).
_UNITS = {
    "cores": 1.0, "gpus": 1.0, "MB": 1.0, "GB": 1024.0, "KB": 1 / 1024, "kB": 1 / 1024, "B": 1 / 2**20,
    "s": 1.0, "ms": 1e-3, "us": 1e-6,
}
_HINT = "expected resource summaries as the resource monitor writes them"


def read_summaries(text: str) -> Iterator[tuple[str, Resources, float]]:
    """(category, peaks, wall time in seconds) of every attempt that ended normally.

    Raises:
        UsageError: not JSON objects, or a value that is no number with a known unit; says where.
    """
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    while position < len(text):
        try:
            found, end = decoder.raw_decode(text, position)
        except ValueError as error:
            raise UsageError(f"resource summaries: {error}", hint=_HINT) from None
        line = text.count("\n", 0, position) + 1
        position = _skip(text, end)
        for summary in found if isinstance(found, list) else [found]:
            if not isinstance(summary, dict):
                raise UsageError(f"resource summaries, line {line}: {summary!r} is not an object", hint=_HINT)
            if summary.get("exit_type", "normal") == "normal":
                peaks = Resources(*(_peak(summary, key, line) for key in RESOURCE_KEYS))
                yield str(summary.get("category", "default")), peaks, max(0.0, _value(summary, "wall_time", line))


def _skip(text: str, position: int) -> int:
    """First position that is neither blank nor a comma between objects."""
    while position < len(text) and (text[position].isspace() or text[position] == ","):
        position += 1
    return position


def _peak(summary: dict[str, object], key: str, line: int) -> int:
    return max(UNSET, math.ceil(_value(summary, key, line)))


def _value(summary: dict[str, object], key: str, line: int) -> float:
    value = summary.get(key, float(UNSET))
    unit: object = "MB"
    if isinstance(value, list) and len(value) == 2:
        value, unit = value
    factor = _UNITS.get(unit) if isinstance(unit, str) else None
    if factor is None or isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"resource summaries, line {line}: {key} is {summary.get(key)!r}", hint=_HINT)
    return value * factor if value >= 0 else float(UNSET)

"""How the intents of an array of jobs travel in one word that may be a job's name on any batch system.

Owns the notation, ``_FIRST..SECOND..THIRD``, where ``x-1__50`` stands for x-1 to x-50: only letters, digits, ``.``,
``_`` and ``-``, for LSF takes nothing else in the name of an array. So a process that has never seen the array knows
from any listing whose each element is: element n is the n-th. Pure. (Slurm's comment takes more, and has a shorter
notation of its own: see slurm_tags.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MARK = "_"
"""Begins the intents of an array; an intent does not begin so."""
MAX_CHARS = 200
"""A name may have 255 characters on LSF with the range in it, 230 on PBS; a part of ours says whose it is."""
MAX_ELEMENTS = 100_000
"""More than any system's largest array is not ours."""
_PLAIN = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)
_NUMBERED = re.compile(r"(.*[A-Za-z._-])(0|[1-9][0-9]{0,17})", re.ASCII)
_ITEM = re.compile(r"(.*?[A-Za-z._-])(\d{1,18})__(\d{1,18})", re.ASCII)


def encode(intents: Sequence[str]) -> str:
    """One word for them all, in order; "" when there is none of at most `MAX_CHARS`."""
    if not all(_PLAIN.fullmatch(intent) for intent in intents):
        return ""
    items: list[tuple[str, int, int]] = []  # prefix, first and last number; -1 without one
    for intent in intents:
        match = _NUMBERED.fullmatch(intent)
        prefix, number = (match[1], int(match[2])) if match else (intent, -1)
        if items and number >= 0 and items[-1][0] == prefix and items[-1][2] == number - 1:
            items[-1] = (prefix, items[-1][1], number)
        else:
            items.append((prefix, number, number))
    text = MARK + "..".join(prefix if last < 0 else f"{prefix}{last}" if first == last else f"{prefix}{first}__{last}"
                            for prefix, first, last in items)
    return text if len(text) <= MAX_CHARS else ""


def decode(text: str) -> tuple[str, ...] | None:
    """Inverse of `encode`; None when it is not the intents of an array."""
    if not text.startswith(MARK):
        return None
    intents: list[str] = []
    for item in text.removeprefix(MARK).split(".."):
        match = _ITEM.fullmatch(item)
        if match is None:
            if not _PLAIN.fullmatch(item):
                return None
            intents.append(item)
            continue
        first, last = int(match[2]), int(match[3])
        if not first < last < first + MAX_ELEMENTS - len(intents):
            return None
        intents += [f"{match[1]}{number}" for number in range(first, last + 1)]
    return tuple(intents)

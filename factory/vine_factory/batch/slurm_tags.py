"""How the tags of an array of jobs travel in one short text, and come back.

Owns the notation: ``FACTORY/POOL/LIST``, where LIST names the intents of elements 0, 1, 2 ... in order, runs of
consecutive numbers shortened: ``a-[1-50,53],b-7``. So a process that has never seen the array knows each element's
tag from any listing. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from taskvine_core.records import NamedTuple
from vine_factory.batch.base import JobTag

MAX_CHARS = 1000
"""slurmctld refuses comments and names of more than 1024 characters."""
MAX_ELEMENTS = 100_000
"""More than any cluster's MaxArraySize is not ours."""
_WORD = r"[A-Za-z0-9._-]+"
_NUMBERED = re.compile(r"(.*?[^0-9])(0|[1-9][0-9]{0,17})", re.ASCII)
_TEXT = re.compile(rf"({_WORD})/({_WORD})/([A-Za-z0-9._,\[\]-]+)", re.ASCII)
_ITEM = re.compile(rf"({_WORD})\[([0-9,-]+)\]|({_WORD})", re.ASCII)
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)


class Tags(NamedTuple):
    """What a job or array carries. ``intents`` in the order of the elements."""

    factory_id: str
    pool: str
    intents: tuple[str, ...]

    def of(self, element: int | None) -> JobTag | None:
        """Tag of an element; None of a job that is no array means its first."""
        index = element or 0
        return JobTag(self.factory_id, self.pool, self.intents[index]) if index < len(self.intents) else None


def encode(tags: Sequence[JobTag]) -> str:
    """One text for jobs of one pool."""
    parts = []
    pairs = (_split(tag.intent_id) for tag in tags)
    for (prefix, numbered), group in groupby(pairs, key=lambda pair: (pair[0], pair[1] is not None)):
        found = [number for _, number in group]
        known = [number for number in found if number is not None]
        if not numbered:
            parts += [prefix] * len(found)
        elif len(known) == 1:
            parts.append(f"{prefix}{known[0]}")
        else:
            parts.append(f"{prefix}[{','.join(_ranges(known))}]")
    return f"{tags[0].factory_id}/{tags[0].pool}/{','.join(parts)}"


def decode(text: str) -> Tags | None:
    """Inverse of `encode`; None when it is not one of ours."""
    whole = _TEXT.fullmatch(text)
    if whole is None:
        return None
    intents: list[str] = []
    rest, at = whole[3], 0
    while at < len(rest):
        item = _ITEM.match(rest, at)
        if item is None:
            return None
        if item[3] is not None:
            intents.append(item[3])
        else:
            numbers = _expand(item[2])
            if numbers is None:
                return None
            intents += [f"{item[1]}{number}" for number in numbers]
        at = item.end()
        if at < len(rest):
            if rest[at] != "," or at + 1 == len(rest):
                return None
            at += 1
        if len(intents) > MAX_ELEMENTS:
            return None
    return Tags(whole[1], whole[2], tuple(intents))


def expand(expression: str) -> list[int] | None:
    """Numbers of an array expression, ``0-3,6``; None when it is not one, or names too many."""
    return _expand(expression)


def compact(numbers: Sequence[int]) -> str:
    """An array expression of increasing numbers."""
    return ",".join(_ranges(numbers))


def _split(intent_id: str) -> tuple[str, int | None]:
    """Prefix and number; all of it and None when it does not end in a plain number."""
    match = _NUMBERED.fullmatch(intent_id)
    return (match[1], int(match[2])) if match else (intent_id, None)


def _ranges(numbers: Sequence[int]) -> list[str]:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return [f"{first}-{last}" if last > first else f"{first}" for first, last in ranges]


def _expand(expression: str) -> list[int] | None:
    numbers: list[int] = []
    for part in expression.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            return None
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first or len(numbers) + last - first >= MAX_ELEMENTS:
            return None
        numbers += range(first, last + 1)
    return numbers

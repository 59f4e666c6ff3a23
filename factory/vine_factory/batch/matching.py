"""Regular expressions of a definition, matched in a process of their own: run as ``python -m``, spoken to over `rpc`.

Owns how records are found in what a command printed. A pattern that a person wrote may take for ever on some line;
here it takes until the deadline and is then reported. Must not know batch systems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from taskvine_core.errors import ConfigError
from vine_factory.batch.rpc import serve

Record = dict[str, str]
MAX_LINE_CHARS = 20_000
"""Longer lines are cut: a list of variables may have some thousand characters."""


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A pattern.

    Raises:
        ConfigError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as problem:
        raise ConfigError(f"{where} = {pattern!r} is no regular expression: {problem}") from None


def records(text: str, begin: str, fields: Mapping[str, str]) -> list[Record]:
    """The jobs in a command's output: each begins with a line that ``begin`` matches; ``fields`` are looked for in the
    lines up to the next one. A line that begins with a tab goes on with the one before. Groups without a match are
    left out."""
    first = re.compile(begin)
    others = [re.compile(pattern) for pattern in fields.values()]
    found: list[Record] = []
    for line in _lines(text):
        match = first.search(line)
        if match:
            found.append({})
        for one in [match, *(pattern.search(line) for pattern in others)] if found else ():
            if one:
                found[-1].update({name: value for name, value in one.groupdict().items() if value})
    return found


def groups(text: str, pattern: str, name: str) -> list[str]:
    """What the group ``name`` matches in each line that the pattern matches."""
    found = (re.search(pattern, line) for line in _lines(text))
    return [match[name] for match in found if match]


def matches(text: str, pattern: str) -> bool:
    """Does it match in one of the lines?"""
    return bool(pattern) and any(re.search(pattern, line) for line in _lines(text))


def _lines(text: str) -> Iterator[str]:
    pending = ""
    for line in text.splitlines():
        if line.startswith("\t") and pending:
            pending += line[1:]
            continue
        if pending:
            yield pending[:MAX_LINE_CHARS]
        pending = line
    if pending:
        yield pending[:MAX_LINE_CHARS]


if __name__ == "__main__":
    serve({"records": records, "groups": groups, "matches": matches})

"""One script for several jobs: which requests may share it, and how each element finds its own command.

Owns that comparison and the filter that writes a word of the command. Pure. Must not know any batch system.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskvine_core.records import NamedTuple
from vine_factory.batch.base import JobRequest
from vine_factory.templating import FILTERS, quote


class Element(NamedTuple):
    """A word of the command that differs between elements: their positional parameter of this number."""

    number: int


class Shared(NamedTuple):
    """The command of jobs that share a script, and for each of them its intent and the words that are its own."""

    command: tuple[str | Element, ...]
    elements: tuple[tuple[str, ...], ...]


def alike(requests: Sequence[JobRequest]) -> list[list[JobRequest]]:
    """Requests that differ in nothing but tag and single words of the command, together; in order."""
    groups: dict[object, list[JobRequest]] = {}
    for request in requests:
        key = (request.resources, request.walltime_s, request.copies, len(request.command),
               tuple(sorted(request.environment.items())))
        groups.setdefault(key, []).append(request)
    return list(groups.values())


def shared(group: Sequence[JobRequest]) -> Shared:
    """What requests that are `alike` have in common. Parameter 1 is the intent."""
    first = group[0]
    differing = [index for index in range(len(first.command)) if len({one.command[index] for one in group}) > 1]
    command = tuple(Element(2 + differing.index(index)) if index in differing else word
                    for index, word in enumerate(first.command))
    return Shared(command, tuple((one.tag.intent_id, *(one.command[index] for index in differing)) for one in group))


def element_word(value: object) -> str:
    """Filter: a word of the command, or the parameter that stands for it."""
    return f'"${{{value.number}}}"' if isinstance(value, Element) else quote(value)


FILTERS["element_word"] = element_word

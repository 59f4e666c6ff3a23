"""The commands of one definition, and what is found in their output.

Owns how a command is run, what its failure means, and when its output is no answer. Output is matched in a helper
process with a deadline. Must not know jobs, or any batch system.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskvine_core.errors import BatchUnavailable
from vine_factory.batch.command_definition import Definition, expanded
from vine_factory.batch.matching import Record
from vine_factory.batch.rpc import Helper
from vine_factory.batch.tool import Finished, run

MATCHING = "vine_factory.batch.matching"
MATCHING_S = 10.0
"""A listing of 5,000 jobs takes a tenth of a second; what takes this long has a pattern that goes back and forth."""
_IDS_PER_CALL = 200
_LOOKED_UP = 20
"""So many times in one poll the command ``ended`` is run, where it tells of one job or array at a time."""
_SHOWN_CHARS = 200


class Calls:
    """The commands of ``definition``, each with ``timeout_s``."""

    def __init__(self, definition: Definition, timeout_s: float) -> None:
        self.definition = definition
        self._timeout_s = timeout_s
        self._matching = Helper(MATCHING, timeout_s=MATCHING_S)

    def argv(self, key: str, values: dict[str, object]) -> list[str]:
        """The words of a command.

        Raises:
            ConfigError: one has a name that there is not.
        """
        return expanded(self.definition.words(key), values, self.definition.at(key))

    def run(self, key: str, values: dict[str, object], script: Path | None = None) -> Finished:
        """One command to its end, whatever its status.

        Raises:
            ConfigError: see `argv`.
            BatchRejected: the program is not there. BatchUnavailable: it did not end in time.
        """
        stdin = script.read_bytes() if script is not None and self.definition.values["script-on-stdin"] else b""
        return run(self.argv(key, values), stdin=stdin, timeout_s=self._timeout_s)

    def check_reached(self, done: Finished) -> None:
        """Raises BatchUnavailable when a failed command says that it did not reach the batch system."""
        if self._says(done, "unavailable"):
            raise BatchUnavailable(done.argv[0], said=done.said)

    def submitted(self, done: Finished) -> list[Record]:
        """What ``submit-id`` finds in the answer of a submission."""
        return self._records(done.stdout, self.definition.text("submit-id"), {})

    def listing(self) -> list[Record]:
        """The user's jobs.

        Raises:
            BatchUnavailable: a command failed, or printed what is no listing.
        """
        values: dict[str, object] = {"user": user()}
        calls = [values]
        if self.definition.words("list"):
            done, nothing = self._asked("list", values)
            ids = self._match("groups", text=done.stdout, pattern=self.definition.text("list-id"), name="id")
            if not ids and not nothing:
                raise self._no_answer("list", "list-id", done, "has the number of a job")
            calls = [{**values, "ids": some} for some in chunks(ids)]
        found: list[Record] = []
        for call in calls:
            done, nothing = self._asked("poll", call)
            records = self._records(done.stdout, *self.definition.read_as("poll"))
            if not records and not nothing:
                raise self._no_answer("poll", "poll-record", done, "begins a job that has a number")
            found += records
        if found and not any(record.get("state") for record in found):
            raise BatchUnavailable(f"{self.definition.at('poll')}: none of {len(found)} jobs has a state",
                                   said=str(found[0]), hint="correct the pattern with the group 'state'")
        return found

    def ended(self, ids: Sequence[str]) -> tuple[list[str], list[Record]]:
        """How jobs ended that are not listed any more: about which of ``ids`` it was asked now, and what was found."""
        words = self.definition.words("ended")
        if not words:
            return list(ids), []
        groups = [list(some) for some in chunks(ids)] if "$ids" in words else self._wholes(ids)[:_LOOKED_UP]
        found: list[Record] = []
        for group in groups:
            whole = self.whole(group[0])
            done = self.run("ended", {"id": group[0], "ids": group, "whole": whole, "user": user()})
            if done.status != 0:
                self.check_reached(done)  # any other complaint is that it does not know some of them
            found += self._records(done.stdout, *self.definition.read_as("ended"))
        return [batch_id for group in groups for batch_id in group], found

    def whole(self, batch_id: str) -> str:
        """The number of the array that a job is an element of; the job's own when it is none."""
        found = self._match("groups", text=batch_id, pattern=self.definition.text("whole-id"), name="id")
        return str(found[0]) if found else batch_id

    def close(self) -> None:
        """End the helper."""
        self._matching.close()

    def _wholes(self, ids: Sequence[str]) -> list[list[str]]:
        """By the array that they are elements of, where ``ended`` tells of a whole array."""
        if not any("$whole" in word or "${whole}" in word for word in self.definition.words("ended")):
            return [[batch_id] for batch_id in ids]
        wholes = self._match("groups", text="\n".join(ids), pattern=self.definition.text("whole-id"), name="id")
        groups: dict[str, list[str]] = {}
        for batch_id, whole in zip(ids, wholes if len(wholes) == len(ids) else ids, strict=True):
            groups.setdefault(whole, []).append(batch_id)
        return list(groups.values())

    def _asked(self, key: str, values: dict[str, object]) -> tuple[Finished, bool]:
        """The answer to a question, and whether there may be nothing in it.

        Raises:
            BatchUnavailable: it failed.
        """
        done = self.run(key, values)
        nothing = self._says(done, "none")
        if done.status != 0 and not nothing:
            raise BatchUnavailable(done.argv[0], said=done.said)
        return done, nothing or not done.stdout.strip()

    def _no_answer(self, key: str, pattern: str, done: Finished, what: str) -> BatchUnavailable:
        """Many a command prints its troubles and ends with 0: that is not the same as no jobs."""
        return BatchUnavailable(
            f"{done.argv[0]} printed {len(done.stdout.splitlines())} lines of which none {what}",
            said=done.stdout.strip()[:_SHOWN_CHARS],
            hint=f"correct {self.definition.at(pattern)}; if {key} prints this when there are no jobs, let 'none' "
                 "match it")

    def _records(self, text: str, begin: str, fields: dict[str, str]) -> list[Record]:
        found: list[Record] = self._match("records", text=text, begin=begin, fields=fields)
        return [record for record in found if record.get("id")]

    def _says(self, done: Finished, key: str) -> bool:
        return bool(self._match("matches", text=done.stderr + "\n" + done.stdout, pattern=self.definition.text(key)))

    def _match(self, method: str, **arguments: object) -> Any:
        try:
            return self._matching.call(method, MATCHING_S, **arguments)
        except BatchUnavailable as problem:
            raise BatchUnavailable(f"{self.definition.where}: the output could not be matched in {MATCHING_S:g} s",
                                   said=str(problem), hint="simplify the regular expressions") from problem


def chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    """As many as fit on one command line."""
    return [ids[start:start + _IDS_PER_CALL] for start in range(0, len(ids), _IDS_PER_CALL)]


def user() -> str:
    """Whose jobs they are."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())

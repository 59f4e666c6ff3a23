"""Definitions of batch systems: which commands there are, and how to read what they print.

Owns reading a definition and seeing that it can be used, before any command is run: a typing error in it is told when
the site file is read. Replaces ``$name`` in single words; nothing here becomes a shell line. Must not run anything.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory.batch.command_options import DEFINITION, STATES
from vine_factory.batch.matching import compiled
from vine_factory.batch.schema import check_options, nearest_hint
from vine_factory.config.files import read_definition

SYSTEMS = resources.files("vine_factory").joinpath("batch").joinpath("systems")
JOB_VALUES = ("script", "name", "tag", "directory", "stdout", "stderr", "cores", "memory_mb", "disk_mb", "gpus",
              "walltime_s", "walltime_min", "walltime_clock", "queue", "account", "project", "parallel_environment",
              "workers", "count", "excluded")
"""What ``$name`` may stand for where a job is submitted."""
GROUPS = ("id", "state", "name", "tag", "host", "exit", "said", "started", "ended", "index")
_LISTS = ("ids", "options", "array")
"""These become as many words as needed, and stand alone."""
_NEEDED = ("submit", "poll", "poll-record", "cancel", "states")
_WORDS: dict[str, tuple[str, ...]] = {
    "submit": (*JOB_VALUES, "options", "array"), "check": (*JOB_VALUES, "options", "array"),
    "array": JOB_VALUES, "list": ("user",), "poll": ("user", "ids"), "ended": ("user", "id", "ids", "whole"),
    "stop": ("user", "ids"), "cancel": ("user", "ids"), "describe": ("user", "id", "whole")}
"""Which names the words of each command may have."""
_EXCLUDING_DIALECTS = ("sge", "lsf")
"""Their directives can say on which hosts a job must not run."""


class Definition(NamedTuple):
    """A batch system as its commands. ``values`` by the keys of `command_options.DEFINITION`; ``where``: for messages;
    ``own``: keys that the pool's options set themselves."""

    values: Mapping[str, object]
    where: str
    own: Collection[str] = ()

    def words(self, key: str) -> tuple[str, ...]:
        """A command, () when there is none."""
        value = self.values[key]
        assert isinstance(value, tuple)
        return value

    def text(self, key: str) -> str:
        """One text."""
        return str(self.values[key])

    def table(self, key: str) -> dict[str, str]:
        """A table of texts."""
        value = self.values[key]
        assert isinstance(value, Mapping)
        return {str(name): str(text) for name, text in value.items()}

    def at(self, key: str) -> str:
        """Where a key is set, for messages."""
        return f"{'the options of the pool' if key in self.own else self.where}: {key}"

    @property
    def arrays(self) -> bool:
        """Several jobs can be submitted as one array."""
        return bool(self.words("array")) and int(self.text("array-size")) > 1

    @property
    def excludes(self) -> bool:
        """The batch system can be told on which hosts a job must not run."""
        return self.text("dialect") in _EXCLUDING_DIALECTS or "excluded" in self.table("option-words")

    def read_as(self, key: str) -> tuple[str, dict[str, str]]:
        """How to read jobs in what ``poll`` or ``ended`` printed: the record's pattern and those of further lines."""
        own = key if self.text(f"{key}-record") else "poll"
        return self.text(f"{own}-record"), self.table(f"{own}-fields")


def definition(options: Mapping[str, object]) -> Definition:
    """The definition that a pool's options name, with what they set themselves.

    Raises:
        ConfigError: there is none, a key is missing, or a word, pattern or state is wrong.
    """
    system, file = str(options["system"]), str(options["definition"])
    where, given = "the options of the pool", dict[str, object]()
    if file:
        where, given = file, read_definition(Path(file))
    elif system:
        where, given = f"definition {system!r}", _shipped(system)
    values = check_options(given, DEFINITION, where)
    own = {option.key: options[option.key] for option in DEFINITION if options.get(option.key) is not None}
    made = Definition({**values, **{key: _over(values[key], value) for key, value in own.items()}}, where,
                      frozenset(own))
    for key in _NEEDED:
        if not made.values[key]:
            raise ConfigError(f"{where}: {key} is missing", hint="name a shipped system with batch or 'system', or "
                              "give a definition: see docs/factory-other-systems.md")
    _check_words(made)
    _check_patterns(made)
    _check_arrays(made)
    for name, state in made.table("states").items():
        if state not in STATES:
            raise ConfigError(f"{made.at('states')}.{name} = {state!r}", hint=nearest_hint(state, STATES))
    return made


def excludes_hosts(options: Mapping[str, object]) -> bool:
    """Can the batch system be told on which hosts jobs of a pool with these options must not run?

    Raises:
        ConfigError: as `definition`.
    """
    return definition(options).excludes


def shipped() -> list[str]:
    """Names of the shipped definitions."""
    return sorted(entry.name.removesuffix(".toml") for entry in SYSTEMS.iterdir() if entry.name.endswith(".toml"))


def expanded(words: Sequence[str], values: Mapping[str, object], where: str) -> list[str]:
    """Words of a command with ``$name`` replaced; a word that is ``$name`` of a list becomes as many words.

    Raises:
        ConfigError: a name that there is not.
    """
    made: list[str] = []
    for word in words:
        whole = values.get(word[1:]) if word.startswith("$") else None
        if isinstance(whole, list | tuple):
            made += map(str, whole)
            continue
        try:
            made.append(string.Template(word).substitute({name: str(value) for name, value in values.items()}))
        except (KeyError, ValueError) as problem:
            raise ConfigError(f"{where}: the word {word!r} cannot be filled in: {problem}", hint="$ stands for one of "
                              + ", ".join(sorted(values)) + "; write $$ for a dollar sign") from None
    return made


def names_in(template: str) -> Iterator[str]:
    """The names before which a template has ``$``."""
    for match in string.Template.pattern.finditer(template):
        name = match["named"] or match["braced"]
        if name:
            yield name


def _over(given: object, own: object) -> object:
    """What a pool sets itself: of a table single entries, else the whole."""
    return {**given, **own} if isinstance(given, Mapping) and isinstance(own, Mapping) else own


def _shipped(system: str) -> dict[str, object]:
    if system not in shipped():
        raise ConfigError(f"there is no definition {system!r}", hint=nearest_hint(system, shipped()))
    with resources.as_file(SYSTEMS.joinpath(f"{system}.toml")) as path:
        return read_definition(path)


# ------------------------------------------------------------------------------------------------- checks

def _check_words(made: Definition) -> None:
    for key, names in _WORDS.items():
        values: dict[str, object] = {name: [] if name in _LISTS else "" for name in names}
        for word in made.words(key):
            expanded([word], values, made.at(key))
            if any(name in word and word != name for name in map("${}".format, _LISTS)):
                raise ConfigError(f"{made.at(key)}: the word {word!r} has a list in it",
                                  hint="$ids, $options and $array stand alone, as words of their own")
    _require(made, "submit", "$script", unless=bool(made.values["script-on-stdin"]))
    _require(made, "poll", "$ids", unless=not made.words("list"))
    _require(made, "cancel", "$ids")
    _require(made, "stop", "$ids", unless=not made.words("stop"))
    _require(made, "submit", "$array", unless=not made.words("array"))
    if made.words("ended") and not any(re.search(r"\$\{?(ids?|whole)\b", word) for word in made.words("ended")):
        raise ConfigError(f"{made.at('ended')} names no job", hint="write $ids for all of them, or $id, or $whole")
    values = {name: "" for name in JOB_VALUES}
    for option, word in made.table("option-words").items():
        if option not in JOB_VALUES:
            raise ConfigError(f"{made.at('option-words')}.{option}", hint=nearest_hint(option, JOB_VALUES))
        expanded([word], values, f"{made.at('option-words')}.{option}")


def _require(made: Definition, key: str, name: str, *, unless: bool = False) -> None:
    if not unless and not any(name in word for word in made.words(key)):
        raise ConfigError(f"{made.at(key)} has no word {name}", hint="see docs/factory-other-systems.md")


def _check_patterns(made: Definition) -> None:
    free = set(names_in(made.text("element-id")))
    for key in ("submit-id", "list-id", "whole-id"):
        if "id" not in compiled(made.text(key), made.at(key)).groupindex:
            raise ConfigError(f"{made.at(key)} = {made.text(key)!r} has no group 'id'",
                              hint="write (?P<id>...) around it")
    for key in ("none", "unavailable"):
        compiled(made.text(key), made.at(key))
    for key in ("poll", "ended"):
        if key == "ended" and not made.words(key):
            continue
        found: set[str] = set()
        own = f"{key}-record" if made.text(f"{key}-record") else "poll-record"
        record, fields = made.read_as(key)
        where = {made.at(own): record, **{f"{made.at(own.replace('record', 'fields'))}.{name}": pattern
                                          for name, pattern in fields.items()}}
        for place, pattern in where.items():
            groups = set(compiled(pattern, place).groupindex)
            for group in sorted(groups - set(GROUPS) - free):
                raise ConfigError(f"{place} = {pattern!r}: the group {group!r} means nothing",
                                  hint=nearest_hint(group, GROUPS))
            found |= groups
        for group in ("id", "state") if key == "poll" else ("id",):
            if group not in found:
                raise ConfigError(f"{made.at(own)} and {made.at(own.replace('record', 'fields'))}: no pattern has a "
                                  f"group {group!r}", hint=f"write (?P<{group}>...) around the job's "
                                  + ("number" if group == "id" else group))


def _check_arrays(made: Definition) -> None:
    if not made.words("array"):
        return
    for key in ("array-index", "element-id"):
        if not made.text(key):
            raise ConfigError(f"{made.at(key)} is missing, and {made.at('array')} is set",
                              hint="see docs/factory-other-systems.md")
    record, fields = made.read_as("poll")
    if not any("index" in re.compile(pattern).groupindex for pattern in (record, *fields.values())):
        raise ConfigError(f"{made.at('poll-record')} and poll-fields: no pattern has a group 'index', and "
                          f"{made.at('array')} is set", hint="write (?P<index>...) around the number of the element")
    known = {"index", *names_in(made.text("element-id"))}
    expanded([made.text("element-id")], dict.fromkeys(known, ""), made.at("element-id"))

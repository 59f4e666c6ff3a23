"""Definitions of batch systems, and what they make of requests: words of commands and job scripts.

Owns reading a definition, replacing ``$name`` in single words, and the job script. Nothing here becomes a shell line.
Must not run anything.
"""

from __future__ import annotations

import hashlib
import math
import re
import string
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.batch import drmaa_text, outputs
from vine_factory.batch.base import BatchState, JobRequest, JobTag
from vine_factory.batch.command_options import DEFINITION, STATES
from vine_factory.batch.listed import Seen
from vine_factory.batch.matching import Record, compiled
from vine_factory.batch.place import Place
from vine_factory.batch.schema import check_options, nearest_hint
from vine_factory.config.files import read_definition
from vine_factory.templating import FILTERS, render

SYSTEMS = resources.files("vine_factory").joinpath("batch").joinpath("systems")
TEMPLATE = "command/job.sh.j2"
_PREFIX = {"none": "#", "sge": "#$", "pbs": "#PBS", "torque": "#PBS", "lsf": "#BSUB", "flux": "# flux:"}
_NEEDED = ("submit", "poll", "poll-record", "cancel", "states")
_DIGEST_CHARS = 10
_TIMES = ("%a %b %d %H:%M:%S %Y", "%Y-%m-%dT%H:%M:%S")
FILTERS["ge_not"] = lambda host: f"!{drmaa_text.word(host)}"


class Definition(NamedTuple):
    """A batch system as its commands. ``values`` by the keys of `command_options.DEFINITION`."""

    values: Mapping[str, object]
    where: str

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


def definition(options: Mapping[str, object]) -> Definition:
    """The definition that a pool's options name, with what they set themselves.

    Raises:
        ConfigError: there is none, a key is missing, or a pattern or state is wrong.
    """
    system, file = str(options["system"]), str(options["definition"])
    where, given = "the pool's options", dict[str, object]()
    if file:
        where, given = file, read_definition(Path(file))
    elif system:
        where, given = f"definition {system!r}", _shipped(system)
    values = check_options(given, DEFINITION, where)
    values.update({option.key: options[option.key] for option in DEFINITION if options.get(option.key) is not None})
    made = Definition(values, where)
    for key in _NEEDED:
        if not values[key]:
            raise ConfigError(f"{where}: {key} is missing", hint="name a shipped system with batch or 'system', or "
                              "give a definition: see docs/factory-other-systems.md")
    _check_patterns(made)
    for name, state in made.table("states").items():
        if state not in STATES:
            raise ConfigError(f"{where}: states.{name} = {state!r}", hint=nearest_hint(state, STATES))
    return made


def shipped() -> list[str]:
    """Names of the shipped definitions."""
    return sorted(entry.name.removesuffix(".toml") for entry in SYSTEMS.iterdir() if entry.name.endswith(".toml"))


def _shipped(system: str) -> dict[str, object]:
    if system not in shipped():
        raise ConfigError(f"there is no definition {system!r}", hint=nearest_hint(system, shipped()))
    with resources.as_file(SYSTEMS.joinpath(f"{system}.toml")) as path:
        return read_definition(path)


def _check_patterns(made: Definition) -> None:
    for key, group in (("submit-id", "id"), ("list-id", "id"), ("poll-record", ""), ("ended-record", ""), ("none", ""),
                       ("unavailable", "")):
        if group not in ("", *compiled(made.text(key), f"{made.where}: {key}").groupindex):
            raise ConfigError(f"{made.where}: {key} = {made.text(key)!r} has no group {group!r}",
                              hint=f"write (?P<{group}>...) around it")
    for key in ("poll-fields", "ended-fields"):
        for name, pattern in made.table(key).items():
            compiled(pattern, f"{made.where}: {key}.{name}")


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


def digest(place: Place) -> str:
    """Tells this pool's jobs by their names."""
    return hashlib.sha256(f"{place.factory_id}/{place.pool}".encode()).hexdigest()[:_DIGEST_CHARS]


def job_name(place: Place, tag: JobTag) -> str:
    """A job's name: says whose it is and which intent, in characters that every system takes."""
    return f"vine.{digest(place)}.{tag.intent_id}"


def tag_of(place: Place, record: Record) -> JobTag | None:
    """Whose a listed job is, by its tag or its name; None when it is not of this pool, or does not say."""
    tag = JobTag.parse(record.get("tag", ""))
    if tag is None and record.get("name", "").startswith(f"vine.{digest(place)}."):
        tag = JobTag(place.factory_id, place.pool, record["name"].removeprefix(f"vine.{digest(place)}."))
    return tag if tag is not None and (tag.factory_id, tag.pool) == (place.factory_id, place.pool) else None


def values_of(place: Place, made: Definition, request: JobRequest, script: Path) -> dict[str, object]:
    """What ``$name`` stands for in the commands for one job."""
    directory, name = place.directory / "jobs", request.tag.intent_id
    cores, memory_mb, disk_mb, gpus = request.resources
    minutes, seconds = divmod(math.ceil(request.walltime_s), 60)
    values: dict[str, object] = {
        "script": str(script), "name": job_name(place, request.tag), "tag": request.tag.text(),
        "directory": str(directory), "stdout": str(outputs.path(directory, name, "out")),
        "stderr": str(outputs.path(directory, name, "err")), "cores": max(1, cores), "memory_mb": max(1, memory_mb),
        "disk_mb": max(1, disk_mb), "gpus": max(0, gpus), "walltime_s": math.ceil(request.walltime_s),
        "walltime_min": minutes + (seconds > 0), "walltime_clock": f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}",
        **{key.replace("-", "_"): place.options[key] for key in ("queue", "account", "project",
                                                                 "parallel-environment")}}
    values["options"] = [expanded([word], values, f"{made.where}: option-words")[0]
                         for option, word in made.table("option-words").items() if values.get(option)]
    return values


def script(place: Place, made: Definition, request: JobRequest) -> str:
    """The job script.

    Raises:
        ConfigError: a value cannot be written, or the request needs what there is no option for.
    """
    if request.ship:
        raise ConfigError("files cannot be sent with jobs here", hint='set deliver = "shared" for this pool')
    if request.copies != 1:
        raise ConfigError("a job has one worker here", hint="leave out workers-per-job")
    dialect = made.text("dialect")
    values = values_of(place, made, request, Path("job.sh"))
    if dialect == "sge" and int(str(values["cores"])) > 1 and not values["parallel_environment"]:
        raise ConfigError("a job of several cores needs the option 'parallel-environment'",
                          hint="`qconf -spl` lists them; choose one whose allocation_rule is $pe_slots")
    table = place.options["resources"]
    assert isinstance(table, Mapping)
    return render(TEMPLATE, {**values, "dialect": dialect, "prefix": _PREFIX[dialect], "pool": place.pool,
                             "factory_id": place.factory_id, "resources": list(table.items()),
                             "extra": place.options["extra-directives"], "excluded": place.excluded_hosts,
                             "environment": sorted(request.environment.items()), "command": request.command},
                  place.blocks)


def seen(made: Definition, record: Record, *, has_ended: bool = False) -> Seen:
    """A job as a listing, or with ``has_ended`` the accounting, tells of it."""
    word = record.get("state", "")
    state = BatchState.ENDED if has_ended else BatchState(made.table("states").get(word, "")) \
        if word in made.table("states") else None
    said = record.get("said", "")[:defaults.SAID_CHARS]
    if state is None:
        said = f"unknown state {word!r}"
    elif state is BatchState.HELD:
        said = f"held ({word}): {said}" if said else f"held ({word})"
    started_at = _time(record.get("started", ""))
    code = record.get("exit", "") or made.table("exit-of-state").get(word, "")
    number = int(code) if re.fullmatch(r"-?\d{1,9}", code, re.ASCII) and state is BatchState.ENDED \
        and (started_at or not has_ended) else None
    base = int(made.text("signal-base"))
    return Seen(record.get("id", ""), state, record.get("host", "").strip(), started_at, _time(record.get("ended", "")),
                base - number if number is not None and base and number > base else number, said)


def _time(text: str) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    for form in _TIMES:
        try:
            return time.mktime(time.strptime(text.strip(), form))
        except (ValueError, OverflowError):
            continue
    return 0.0

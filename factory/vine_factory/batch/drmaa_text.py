"""Job scripts for Grid Engine and other systems with a DRMAA library.

Owns how requests become arrays of jobs: one script per array, in which the task's number selects the command; the
script's ``#$`` lines are what Grid Engine is told. Pure. Must not talk to anything.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory.batch.base import JobRequest, JobTag
from vine_factory.batch.drmaa_options import GRID_ENGINE
from vine_factory.batch.place import Place
from vine_factory.templating import FILTERS, FilterError, line, render

TEMPLATE = "drmaa/job.sh.j2"
ARRAY_TASKS = 250
"""Jobs per array: their script is some 100 kB then, and the intents in the context some kB."""
INTENT_SEPARATOR = "+"
_NAME_CHARS = 24
_DIGEST_CHARS = 10
_NOT_WORD = re.compile(r"[\s\"'`\\]")
_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Submission(NamedTuple):
    """One array. ``script``: its text; ``native``: DRMAA's native specification."""

    requests: tuple[JobRequest, ...]
    script: str
    native: str


def word(value: object) -> str:
    """Filter ``ge_word``: one word of a ``#$`` line.

    Raises:
        FilterError: it is empty, or has blanks, quotes or backslashes.
    """
    text = line(value)
    if not text or _NOT_WORD.search(text):
        raise FilterError(f"{text!r} cannot be a word of a directive: it is empty or has blanks, quotes or backslashes")
    return text


def shell_name(value: object) -> str:
    """Filter ``shell_name``: the name of a variable.

    Raises:
        FilterError: it is none.
    """
    text = line(value)
    if not _SHELL_NAME.fullmatch(text):
        raise FilterError(f"{text!r} cannot be the name of an environment variable")
    return text


FILTERS["ge_word"] = word
FILTERS["shell_name"] = shell_name


def job_name(factory_id: str, pool: str) -> str:
    """What the jobs of a pool are called: for people, and told apart from all others by a digest."""
    digest = hashlib.sha256(f"{factory_id}/{pool}".encode()).hexdigest()[:_DIGEST_CHARS]
    return f"vine.{re.sub('[^A-Za-z0-9_.-]', '_', pool)[:_NAME_CHARS]}.{digest}"


def output_name(batch_id: str) -> str:
    """Stem of a job's output files."""
    job, _, task = batch_id.partition(".")
    return f"{job}.{task or 1}"


def tags_of(context: Mapping[str, str], factory_id: str, pool: str) -> list[JobTag]:
    """The tags of an array's tasks, in order, from its job context; [] when it is not of this pool."""
    if context.get("VINE_FACTORY") != factory_id or context.get("VINE_POOL") != pool:
        return []
    return [JobTag(factory_id, pool, intent) for intent in context.get("VINE_INTENTS", "").split(INTENT_SEPARATOR)]


def submissions(place: Place, system: str, outputs: Path, requests: Sequence[JobRequest]) -> list[Submission]:
    """Scripts for all requests; those that need the same of the batch system share one.

    Raises:
        ConfigError: a value cannot be written, or the options do not fit.
    """
    groups: dict[tuple[object, ...], list[JobRequest]] = {}
    for request in requests:
        if request.ship:
            raise ConfigError("DRMAA does not send files with jobs", hint='set deliver = "shared" for this pool')
        groups.setdefault((request.resources, request.walltime_s, request.copies), []).append(request)
    made = []
    for alike in groups.values():
        for start in range(0, len(alike), ARRAY_TASKS):
            some = tuple(alike[start:start + ARRAY_TASKS])
            script = render(TEMPLATE, _values(place, outputs, some), place.blocks)
            made.append(Submission(some, script, _native(place, system)))
    return made


def _native(place: Place, system: str) -> str:
    """``-b n``: the script is copied and its ``#$`` lines are read; ``-w e``: refuse what can never run."""
    given = str(place.options["native"])
    return " ".join(part for part in ("-b n -w e" if system == GRID_ENGINE else "", given) if part)


def _values(place: Place, outputs: Path, requests: Sequence[JobRequest]) -> dict[str, object]:
    first, options = requests[0], place.options
    intents = [request.tag.intent_id for request in requests]
    for intent in intents:
        if INTENT_SEPARATOR in intent or "," in intent or "=" in intent:
            raise ConfigError(f"the intent {intent!r} cannot be part of a job's context")
    cores = max(1, first.resources.cores) * first.copies
    environment = str(options["parallel-environment"])
    if cores > 1 and not environment:
        raise ConfigError(f"a job of {cores} cores needs the option 'parallel-environment'",
                          hint="`qconf -spl` lists them; choose one whose allocation_rule is $pe_slots")
    single = [(flag, options[key]) for flag, key in (("q", "queue"), ("P", "project"), ("A", "account"),
                                                     ("dept", "department"), ("p", "priority")) if options[key]]
    return {
        "factory_id": place.factory_id, "pool": place.pool, "name": job_name(place.factory_id, place.pool),
        "intents": INTENT_SEPARATOR.join(intents), "directory": str(outputs),
        "out": str(outputs / "$JOB_ID.$TASK_ID.out"), "err": str(outputs / "$JOB_ID.$TASK_ID.err"),
        "notify": options["notify"], "walltime_s": math.ceil(first.walltime_s),
        "parallel_environment": environment if cores > 1 else "", "slots": cores, "single": single,
        "hard": [*_asked(options, first, cores), *_table(options["resources"])],
        "soft": _table(options["soft-resources"]),
        "excluded": "&".join(f"!{host}" for host in place.excluded_hosts),
        "extra": options["extra-directives"], "copies": first.copies,
        "gpus_each": max(0, first.resources.gpus),
        "jobs": [{"number": number, "tag": request.tag.text(), "environment": sorted(request.environment.items()),
                  "command": request.command} for number, request in enumerate(requests, 1)],
    }


def _asked(options: Mapping[str, object], request: JobRequest, cores: int) -> list[tuple[str, str]]:
    """Memory, disk and GPUs under the names that they have here; Grid Engine counts them per slot."""
    asked = []
    for key, amount, unit in (("memory-resource", request.resources.memory_mb, "M"),
                              ("disk-resource", request.resources.disk_mb, "M"),
                              ("gpu-resource", request.resources.gpus, "")):
        if options[key] and amount > 0:
            asked.append((str(options[key]), f"{math.ceil(amount * request.copies / cores)}{unit}"))
    return asked


def _table(value: object) -> list[tuple[str, str]]:
    assert isinstance(value, Mapping)
    return [(str(name), str(text)) for name, text in value.items()]

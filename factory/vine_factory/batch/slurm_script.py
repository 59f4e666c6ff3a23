"""From job requests to Slurm job scripts.

Owns the script's language: quoting of directives, which option says what, which requests share an array and how each
element finds its own command. Pure. Must not talk to Slurm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory import templating
from vine_factory.batch.base import TAG_VARIABLE, JobRequest
from vine_factory.batch.elements import alike, shared
from vine_factory.batch.place import Place
from vine_factory.batch.schema import shown
from vine_factory.batch.slurm_tags import MAX_CHARS, encode
from vine_factory.templating import FilterError, line

TEMPLATE = "slurm/job.sh.j2"

_WORD = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_OPTION = re.compile(r"(--[a-z-]+)(?:=(.*))?", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+=\[\]|&*()-]+", re.ASCII)
_MINUTE_S = 60
_MAX_SCRIPT_BYTES = 500_000
"""Each node that starts an element is sent the whole script; slurmctld refuses more than 4 MB."""


class Submission(NamedTuple):
    """One call of sbatch: a job, or an array with one element per request, in order."""

    requests: tuple[JobRequest, ...]
    text: str

    def numbers(self, job: str) -> list[str]:
        """Numbers of the jobs when Slurm calls the whole ``job``."""
        return [job] if len(self.requests) == 1 else [f"{job}_{index}" for index in range(len(self.requests))]


def submissions(place: Place, requests: Sequence[JobRequest]) -> list[Submission]:
    """Scripts for all requests; those that differ in nothing but tag and single words of the command share one.

    Raises:
        ConfigError: a value cannot be written into a script, or a block is wrong.
    """
    if "\\" in str(place.directory):
        raise ConfigError(f"the directory {shown(str(place.directory))}",
                          hint="Slurm cannot name files below a directory with a backslash: use another")
    for request in requests:
        _check(request)
    return [Submission(tuple(part), _text(place, part)) for group in alike(requests)
            for part in _parts(group, int(str(place.options["max-array"])))]


def sbatch(value: object) -> str:
    """Filter: a value in a directive line, as one word."""
    text = line(value)
    if text and _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def sbatch_option(value: object) -> str:
    """Filter: an option with its value."""
    match = _OPTION.fullmatch(line(value))
    if match is None:
        raise FilterError(f"{shown(value)} is no option of sbatch")
    return match[1] if match[2] is None else f"{match[1]}={sbatch(match[2])}"


templating.FILTERS.update(sbatch=sbatch, sbatch_option=sbatch_option)


def _check(request: JobRequest) -> None:
    for word in request.tag:
        if not _WORD.fullmatch(word):
            raise ConfigError(f"{shown(word)} in the job's tag", hint="letters, digits, '.', '_' and '-' are allowed")
    for name in request.environment:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"environment variable {shown(name)}", hint="letters, digits and '_' are allowed")
    if request.ship:
        raise ConfigError(f"{shown(str(request.ship[0]))} cannot be sent with a Slurm job",
                          hint='Slurm transfers no files: use deliver = "shared"')


def _parts(group: Sequence[JobRequest], most: int) -> Iterator[list[JobRequest]]:
    """Arrays that are small enough: in number, in bytes, in the length of what names them."""
    part: list[JobRequest] = []
    size = 0
    for request in group:
        grown = size + sum(len(word) for word in request.command if part and word not in part[0].command)
        if part and (len(part) >= most or grown > _MAX_SCRIPT_BYTES):
            yield from _named(part)
            part, grown = [], 0
        part.append(request)
        size = grown
    yield from _named(part)


def _named(part: list[JobRequest]) -> Iterator[list[JobRequest]]:
    """Halves, until what names them fits."""
    if len(part) == 1 or len(encode([request.tag for request in part])) <= MAX_CHARS:
        yield part
        return
    for half in (part[:len(part) // 2], part[len(part) // 2:]):
        yield from _named(half)


def _text(place: Place, group: Sequence[JobRequest]) -> str:
    first, options, tags = group[0], place.options, encode([request.tag for request in group])
    name = str(options["job-name"]) or f"vine-{place.pool}"
    in_name = options["tag-in"] == "job-name"
    outputs = str(place.directory / "jobs").replace("%", "%%")
    pattern = "%A_%a" if len(group) > 1 else "%j"
    command, elements = shared(group)
    limit = int(str(options["array-limit"]))
    values: Mapping[str, object] = {
        "pool": place.pool, "factory_id": place.factory_id, "job_name": tags if in_name else name,
        "comment": name if in_name else tags, "output": f"{outputs}/{pattern}.out",
        "error": f"{outputs}/{pattern}.err", "directory": place.directory / "jobs",
        "array": "" if len(group) == 1 else f"0-{len(group) - 1}" + (f"%{limit}" if limit else ""),
        "options": list(_options(place, first)), "extra": _list(options["extra-directives"]),
        "elements": elements,
        "environment": sorted(first.environment.items()), "tag_variable": TAG_VARIABLE,
        "tag_start": f"{first.tag.factory_id}/{first.tag.pool}/", "command": command, "copies": first.copies,
    }
    return templating.render(TEMPLATE, values, place.blocks)


def _options(place: Place, request: JobRequest) -> Iterator[str]:
    """What is said in the block ``directives``."""
    options, asked = place.options, request.resources
    for key in ("partition", "account", "qos", "constraint", "reservation", "licenses"):
        if options[key]:
            yield f"--{key}={options[key]}"
    yield from _placed(options, request.copies)
    whole = bool(options["exclusive"]) or asked.cores <= 0  # a worker that is told no number uses all it finds
    if whole:
        yield "--exclusive"
    if asked.cores > 0:
        yield f"--cpus-per-task={asked.cores}"
    if (asked.memory_mb > 0 or whole) and not options["no-memory"]:
        yield _memory(options, request) if asked.memory_mb > 0 else "--mem=0"
    gres = str(options["gres"]) or (f"gpu:{asked.gpus * _per_node(options, request.copies)}" if asked.gpus > 0 else "")
    if gres:
        yield f"--gres={gres}"
    if options["tmp-disk"] and asked.disk_mb > 0:
        yield f"--tmp={asked.disk_mb * _per_node(options, request.copies)}"
    yield from _limited(options, request.walltime_s)
    if options["nice"]:
        yield f"--nice={options['nice']}"
    yield "--requeue" if options["requeue"] else "--no-requeue"
    if place.excluded_hosts:
        yield f"--exclude={','.join(sorted(set(place.excluded_hosts)))}"


def _limited(options: Mapping[str, object], walltime_s: float) -> Iterator[str]:
    if walltime_s > 0:
        yield f"--time={clock(walltime_s)}"
        drain_s = min(float(str(options["drain-time"])), walltime_s / 2)
        if drain_s >= 1:
            yield f"--signal=B:TERM@{drain_s:.0f}"


def _placed(options: Mapping[str, object], copies: int) -> Iterator[str]:
    nodes = int(str(options["nodes-per-job"])) or copies
    if nodes > copies:
        raise ConfigError(f"{nodes} nodes for {copies} workers in one job", hint="lower nodes-per-job")
    yield f"--nodes={nodes}"
    yield f"--ntasks={copies}"
    if copies > 1:
        yield f"--ntasks-per-node={_per_node(options, copies)}"


def _per_node(options: Mapping[str, object], copies: int) -> int:
    return math.ceil(copies / (int(str(options["nodes-per-job"])) or copies))


def _memory(options: Mapping[str, object], request: JobRequest) -> str:
    asked = request.resources
    if options["mem-per-cpu"]:
        return f"--mem-per-cpu={math.ceil(asked.memory_mb / max(1, asked.cores))}M"
    return f"--mem={asked.memory_mb * _per_node(options, request.copies)}M"


def clock(seconds: float) -> str:
    """A time limit as Slurm writes it: whole minutes, for it counts no others."""
    minutes = max(1, math.ceil(seconds / _MINUTE_S))
    days, rest = divmod(minutes, 24 * _MINUTE_S)
    return f"{days}-{rest // _MINUTE_S:02}:{rest % _MINUTE_S:02}:00"


def outputs_of(directory: Path) -> Path:
    """Where Slurm puts what jobs print; files are named by the job's number."""
    return directory / "jobs"


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []

"""What a definition makes of requests, and of what commands printed: job scripts, values of words, states of jobs.

Owns which requests share an array, the job script, and how a listed job says whose it is. Nothing here becomes a shell
line. Pure. Must not run anything.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.batch import array_tags, drmaa_text, outputs
from vine_factory.batch.base import BatchState, JobRequest, JobTag
from vine_factory.batch.command_definition import Definition, expanded, names_in
from vine_factory.batch.elements import alike, shared
from vine_factory.batch.listed import Seen
from vine_factory.batch.matching import Record
from vine_factory.batch.place import Place
from vine_factory.templating import FILTERS, render

TEMPLATE = "command/job.sh.j2"
_PREFIX = {"none": "#", "sge": "#$", "pbs": "#PBS", "torque": "#PBS", "lsf": "#BSUB", "flux": "# flux:"}
_DIGEST_CHARS = 10
_TIMES = ("%a %b %d %H:%M:%S %Y", "%Y-%m-%dT%H:%M:%S")
_NOWHERE = "/dev/null"
FILTERS["ge_not"] = lambda host: f"!{drmaa_text.word(host)}"


class Submission(NamedTuple):
    """One run of the submit command: a job, or an array with one element per request, in order."""

    requests: tuple[JobRequest, ...]

    @property
    def jobs(self) -> int:
        """How many jobs it is."""
        return len(self.requests)

    @property
    def stem(self) -> str:
        """Name of its script."""
        return self.requests[0].tag.intent_id

    @property
    def intents(self) -> str:
        """Its intents in one word, as part of its name and tag."""
        return array_tags.encode([request.tag.intent_id for request in self.requests]) if self.jobs > 1 else self.stem


def submissions(made: Definition, requests: Sequence[JobRequest]) -> list[Submission]:
    """As few as the definition allows for these requests."""
    if not made.arrays:
        return [Submission((request,)) for request in requests]
    most = int(made.text("array-size"))
    return [part for group in alike(requests) for start in range(0, len(group), most)
            for part in _named(group[start:start + most])]


def _named(part: list[JobRequest]) -> list[Submission]:
    """Halves, until one word names them."""
    if len(part) == 1 or Submission(tuple(part)).intents:
        return [Submission(tuple(part))]
    return _named(part[:len(part) // 2]) + _named(part[len(part) // 2:])


def digest(place: Place) -> str:
    """Tells this pool's jobs by their names."""
    return hashlib.sha256(f"{place.factory_id}/{place.pool}".encode()).hexdigest()[:_DIGEST_CHARS]


class Owner(NamedTuple):
    """Whose a listed job is. ``stem``: name of its script, which an array's elements share."""

    tag: JobTag
    stem: str


def owner_of(place: Place, record: Record) -> Owner | None:
    """By tag or name; None when it is not of this pool, does not say, or is the whole of an array and no element."""
    tag, start = JobTag.parse(record.get("tag", "")), f"vine.{digest(place)}."
    if tag is None and record.get("name", "").startswith(start):
        tag = JobTag(place.factory_id, place.pool, record["name"].removeprefix(start))
    if tag is None or (tag.factory_id, tag.pool) != (place.factory_id, place.pool):
        return None
    if not tag.intent_id.startswith(array_tags.MARK):
        return Owner(tag, tag.intent_id)
    intents, index = array_tags.decode(tag.intent_id) or (), record.get("index", "")
    element = int(index) if re.fullmatch(r"\d{1,9}", index, re.ASCII) else 0
    return Owner(tag._replace(intent_id=intents[element - 1]), intents[0]) if 1 <= element <= len(intents) else None


def values_of(place: Place, made: Definition, submission: Submission, script: Path) -> dict[str, object]:
    """What ``$name`` stands for in the commands for one submission. Resources are those of the whole of one job."""
    directory, request = place.directory / "jobs", submission.requests[0]
    # An array's script opens the outputs of its elements itself: every system would call them something else.
    out, err = (_NOWHERE, _NOWHERE) if submission.jobs > 1 else \
        (str(outputs.path(directory, submission.stem, kind)) for kind in outputs.KINDS)
    cores, memory_mb, disk_mb, gpus = (max(least, amount) * request.copies for least, amount
                                       in zip((1, 1, 1, 0), request.resources, strict=True))
    minutes, seconds = divmod(math.ceil(request.walltime_s), 60)
    values: dict[str, object] = {
        "script": str(script), "name": f"vine.{digest(place)}.{submission.intents}",
        "tag": request.tag._replace(intent_id=submission.intents).text(), "directory": str(directory),
        "stdout": out, "stderr": err, "cores": cores, "memory_mb": memory_mb, "disk_mb": disk_mb, "gpus": gpus,
        "walltime_s": math.ceil(request.walltime_s), "walltime_min": minutes + (seconds > 0),
        "walltime_clock": f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}", "workers": request.copies,
        "count": submission.jobs, "excluded": ",".join(place.excluded_hosts),
        **{key.replace("-", "_"): place.options[key] for key in ("queue", "account", "project",
                                                                 "parallel-environment")}}
    words = {option: expanded([word], values, f"{made.at('option-words')}.{option}")[0]
             for option, word in made.table("option-words").items() if values.get(option)}
    array = expanded(made.words("array"), values, made.at("array")) if submission.jobs > 1 else []
    return {**values, "options": list(words.values()), "array": array}


def script(place: Place, made: Definition, submission: Submission) -> str:
    """The job script.

    Raises:
        ConfigError: a value cannot be written, or a request needs what there is no option for.
    """
    if any(request.ship for request in submission.requests):
        raise ConfigError("files cannot be sent with jobs here", hint='set deliver = "shared" for this pool')
    request, dialect = submission.requests[0], made.text("dialect")
    values = values_of(place, made, submission, Path("job.sh"))
    if dialect == "sge" and int(str(values["cores"])) > 1 and not values["parallel_environment"]:
        raise ConfigError(f"a job of {values['cores']} cores needs the option 'parallel-environment'",
                          hint="`qconf -spl` lists them; choose one whose allocation_rule is $pe_slots")
    table = place.options["resources"]
    assert isinstance(table, Mapping)
    common = shared(submission.requests)
    return render(TEMPLATE, {**values, "dialect": dialect, "prefix": _PREFIX[dialect], "pool": place.pool,
                             "factory_id": place.factory_id, "resources": list(table.items()),
                             "extra": place.options["extra-directives"], "hosts": place.excluded_hosts,
                             "guarded": () if made.excludes else _names(place.excluded_hosts),
                             "environment": sorted(request.environment.items()), "command": common.command,
                             "elements": common.elements if submission.jobs > 1 else (),
                             "index": made.text("array-index"), "copies": request.copies,
                             "gpus_each": max(0, request.resources.gpus),
                             "tag_start": f"{place.factory_id}/{place.pool}/"}, place.blocks)


def _names(hosts: Sequence[str]) -> list[str]:
    """What hosts may call themselves: with and without a domain."""
    return list(dict.fromkeys(name for host in hosts for name in (host, host.partition(".")[0])))


def seen(made: Definition, record: Record, *, has_ended: bool = False) -> Seen:
    """A job as a listing, or with ``has_ended`` the accounting, tells of it. What is only ever told of ended jobs
    need not say that they ended."""
    word = record.get("state", "")
    known = made.table("states").get(word)
    state = BatchState(known) if known is not None else BatchState.ENDED if has_ended and not word else None
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
    return Seen(batch_id(made, record), state, record.get("host", "").strip(), started_at,
                _time(record.get("ended", "")),
                base - number if number is not None and base and number > base else number, said)


def batch_id(made: Definition, record: Record) -> str:
    """The number of a listed job: of an element it is put together from what the listing says."""
    return element_id(made, record, record["index"]) if record.get("index") else record.get("id", "")


def element_id(made: Definition, groups: Record, index: str) -> str:
    """The number of one element of an array, ``groups`` being what a pattern found of the array or the element."""
    text = made.text("element-id")
    return expanded([text], {**dict.fromkeys(names_in(text), ""), **groups, "index": index}, made.at("element-id"))[0]


def numbers(made: Definition, answers: Sequence[Record], count: int) -> list[str]:
    """Numbers of ``count`` jobs in the answer of their submission: one for each, or one for their array, of which
    those of the elements are made; [] when it is neither."""
    ids = [answer["id"] for answer in answers]
    if len(ids) == 1 < count:
        ids = [element_id(made, answers[0], str(element)) for element in range(1, count + 1)]
    return ids if len(set(ids)) == count else []


def _time(text: str) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    for form in _TIMES:
        try:
            return time.mktime(time.strptime(text.strip(), form))
        except (ValueError, OverflowError):
            continue
    return 0.0

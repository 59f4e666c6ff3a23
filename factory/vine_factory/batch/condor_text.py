"""From job requests to HTCondor submit descriptions.

Owns the submit language: quoting, which directive says what, which requests share a description. Pure. Both ways of
submitting (bindings, tools) are given exactly this text. Must not talk to HTCondor.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory import templating
from vine_factory.batch.base import TAG_VARIABLE, JobRequest
from vine_factory.batch.place import Place
from vine_factory.batch.schema import nearest_hint, shown
from vine_factory.templating import FilterError, line

JOB_TEMPLATE = "condor/job.sub.j2"
LAUNCH_TEMPLATE = "condor/launch.sh.j2"

_DEFAULT = Resources(1, 1024, 1024, 0)
"""What a job asks for where nobody said anything: published values."""
_KB_PER_MB = 1024
_WORD = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MACRO = re.compile(r"(\$+)([A-Za-z_]*)\(", re.ASCII)
_LAUNCHER_DIGITS = 12


class Submission(NamedTuple):
    """One description: a cluster of jobs. ``launcher``, ``script``: path and text of the script they run."""

    requests: tuple[JobRequest, ...]
    text: str
    launcher: Path
    script: str


class Names(NamedTuple):
    """Where files are: ``outputs`` is a directory, None when output cannot come back; ``log`` None when the schedd
    cannot write one here."""

    directory: Path
    outputs: Path | None
    log: Path | None


def submissions(place: Place, names: Names, requests: Sequence[JobRequest]) -> list[Submission]:
    """Descriptions for all requests; those that differ in nothing but tag and command share one.

    Raises:
        ConfigError: a value cannot be written into a submit description, or a block is wrong.
    """
    check_blocks(place.blocks)
    groups: dict[object, list[JobRequest]] = {}
    for request in requests:
        _check(request)
        key = (request.resources, request.walltime_s, request.copies, request.ship,
               tuple(sorted(request.environment.items())))
        groups.setdefault(key, []).append(request)
    return [_submission(place, names, group) for group in groups.values()]


def _submission(place: Place, names: Names, group: Sequence[JobRequest]) -> Submission:
    script = _script(place, group[0])
    digest = hashlib.sha256(script.encode()).hexdigest()[:_LAUNCHER_DIGITS]
    launcher = names.directory / f"launch-{digest}.sh"
    return Submission(tuple(group), _text(place, names, launcher, group), launcher, script)


def check_blocks(blocks: Mapping[str, str]) -> None:
    """Blocks of both templates share one name space in the site file.

    Raises:
        ConfigError: there is no such block.
    """
    known = (*templating.block_names(JOB_TEMPLATE), *templating.block_names(LAUNCH_TEMPLATE))
    for name in blocks:
        if name not in known:
            raise ConfigError(f"an HTCondor job has no block {shown(name)}", hint=nearest_hint(name, known))


def excluded(hosts: Iterable[str]) -> list[str]:
    """Requirements that keep jobs off hosts."""
    return [f"TARGET.Machine =!= {string(host)}" for host in sorted(set(hosts))]


def requirements(place: Place) -> str:
    """What a machine must satisfy besides the size, "" when anything will do."""
    wish = str(place.options["requirements"]).strip()
    terms = ([f"({wish})"] if wish else []) + [f"({term})" for term in excluded(place.excluded_hosts)]
    return " && ".join(terms)


def string(text: str) -> str:
    """A ClassAd string literal."""
    escaped = line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _check(request: JobRequest) -> None:
    tag = request.tag
    for word in tag:
        if not _WORD.fullmatch(word):
            raise ConfigError(f"{shown(word)} in the job's tag", hint="letters, digits, '.', '_' and '-' are allowed")
    for name in request.environment:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"environment variable {shown(name)}", hint="letters, digits and '_' are allowed")


def _script(place: Place, request: JobRequest) -> str:
    return templating.render(LAUNCH_TEMPLATE, {"pool": place.pool, "autosize": place.options["autosize"],
                                               "copies": request.copies, "gpus_each": max(0, request.resources.gpus)},
                             _blocks_of(place, LAUNCH_TEMPLATE))


def _blocks_of(place: Place, template: str) -> dict[str, str]:
    known = templating.block_names(template)
    return {name: text for name, text in place.blocks.items() if name in known}


def _text(place: Place, names: Names, launcher: Path, group: Sequence[JobRequest]) -> str:
    first, options = group[0], place.options
    outputs = {kind: "/dev/null" if names.outputs is None else f"{names.outputs}/$(vine_intent).{kind}"
               for kind in ("out", "err")}
    values = {
        "pool": place.pool, "factory_id": place.factory_id, "launcher": launcher, "log": names.log or "",
        "universe": "container" if options["container-image"] else "vanilla",
        "environment": [*sorted(first.environment.items()), (TAG_VARIABLE, Macro("$(vine_tag)"))],
        "ship": [str(path) for path in first.ship], "output": Macro(outputs["out"], names.outputs),
        "error": Macro(outputs["err"], names.outputs), "batch_name": f"{place.factory_id}/{place.pool}",
        **_sizes(of_job(first), bool(options["autosize"])),
        "drain_s": _whole(options["drain-time"]), "lease_s": _whole(options["job-lease"]),
        "periodic_remove": _guards(options, first.walltime_s), "priority": options["priority"],
        "single": _single(place), "attributes": sorted(_table(options["attributes"]).items()),
        "extra": _list(options["extra-directives"]),
        "jobs": [{"intent": request.tag.intent_id, "tag": request.tag.text(), "arguments": _command(request)}
                 for request in group],
    }
    return templating.render(JOB_TEMPLATE, values, _blocks_of(place, JOB_TEMPLATE))


def _command(request: JobRequest) -> list[str]:
    """A program that is shipped lies in the job's directory, where no PATH leads."""
    program, *rest = request.command
    return [f"./{program}" if program in {path.name for path in request.ship} else program, *rest]


def of_job(request: JobRequest) -> Resources:
    """What a whole job asks for: its workers are together on one slot."""
    return Resources(*(each * request.copies for each in _DEFAULT.overridden_by(request.resources)))


def _sizes(job: Resources, autosize: bool) -> dict[str, object]:
    cores, memory_mb, disk_mb, gpus = job
    sizes: dict[str, object] = {"request_cpus": cores, "request_memory": memory_mb,
                                "request_disk": disk_mb * _KB_PER_MB, "request_gpus": gpus}
    if autosize:  # disk shrinks while jobs run: what there is then, not what there was at the machine's start
        for key, attribute in (("request_cpus", "TotalSlotCpus"), ("request_memory", "TotalSlotMemory"),
                               ("request_disk", "Disk")):
            least = sizes[key]
            sizes[key] = f"ifThenElse(TARGET.{attribute} > {least}, TARGET.{attribute}, {least})"
    return sizes


def _guards(options: Mapping[str, object], walltime_s: float) -> str:
    """When a job removes itself: what is left by a factory that never came back, and what goes round in circles."""
    in_state = "(time() - EnteredCurrentStatus)"
    terms = [f"(JobStatus == 1 && {in_state} > {_whole(options['max-idle-time'])})",
             f"(JobStatus == 5 && {in_state} > {_whole(options['max-held-time'])})",
             f"(NumJobStarts > {options['max-starts']})"]
    if walltime_s > 0:
        terms.append(f"(JobStatus == 2 && (time() - JobCurrentStartDate) > {_whole(walltime_s)})")
    return " || ".join(terms)


def _single(place: Place) -> list[tuple[str, str]]:
    """Directives that are left out when they are not set."""
    options = place.options
    image = str(options["singularity-image"])
    found = {
        "requirements": requirements(place), "rank": str(options["rank"]),
        "accounting_group": str(options["accounting-group"]),
        "accounting_group_user": str(options["accounting-group-user"]),
        "concurrency_limits": str(options["concurrency-limits"]), "getenv": ", ".join(_list(options["getenv"])),
        "container_image": str(options["container-image"]), "My.SingularityImage": string(image) if image else "",
        "stream_output": "true" if options["stream-output"] else "",
        "stream_error": "true" if options["stream-output"] else "",
        # The schedd keeps a spooled job for ten days after its end, for somebody to fetch its output: nobody will.
        "leave_in_queue": "false" if options["spool"] else "",
    }
    return [(name, value) for name, value in found.items() if value.strip()]


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _list(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _table(value: object) -> dict[str, str]:
    return {str(name): str(item) for name, item in value.items()} if isinstance(value, Mapping) else {}


# ------------------------------------------------------------------------------------------------ filters

class Macro(NamedTuple):
    """A value with a macro of our own in it. ``fixed``: the part in front that is to be taken as it is."""

    text: str
    fixed: Path | None = None

    def written(self) -> str:
        """As it stands in a description."""
        fixed = str(self.fixed) if self.fixed is not None else ""
        return plain(fixed) + self.text.removeprefix(fixed)


def plain(value: object) -> str:
    """Filter ``condor``: a value that is taken as it is: no macro in it is expanded, its line does not go on.

    Raises:
        FilterError: it cannot be part of one line.
    """
    if isinstance(value, Macro):
        return value.written()
    text = line(value)
    if text.endswith("\\"):
        raise FilterError(f"{shown(text)} ends with a backslash, which would join it with the next line")
    return _MACRO.sub(_escaped, text)


def _escaped(macro: re.Match[str]) -> str:
    """What would be expanded, so written that it is not: by the submit language, or when the job starts ("$$(")."""
    dollars, name = macro[1], macro[2]
    if macro[0] + macro.string[macro.end():macro.end() + 7] == "$(DOLLAR)" or len(dollars) > 2 \
            or (len(dollars) == 2 and name):
        raise FilterError(f"{shown(macro.string)} cannot be written in HTCondor's submit language, which has no way "
                          f"to say {macro[0]!r} and mean it")
    return f"$$(DOLLARDOLLAR){name}(" if len(dollars) == 2 else f"$(DOLLAR){name}("


def raw(value: object) -> str:
    """Filter ``condor_raw``: a line of the submit language, macros and all."""
    text = line(value)
    if text.endswith("\\"):
        raise FilterError(f"{shown(text)} ends with a backslash, which would join it with the next line")
    return text


def file_name(value: object) -> str:
    """Filter ``condor_file``: one name of a list of files."""
    text = plain(value)
    if "," in text or '"' in text or text != text.strip() or not text:
        raise FilterError(f"{shown(value)} cannot be in a list of files: no comma, double quote, or blank at an end")
    return text


def item(value: object) -> str:
    """Filter ``condor_item``: a command line, as the last column of a queue statement's table, to be put between
    double quotes there."""
    words = value if isinstance(value, list | tuple) else [value]
    return " ".join(_quoted(word) for word in words)


def words(value: object) -> str:
    """Filter ``condor_words``: environment variables, from pairs of name and value."""
    pairs = value if isinstance(value, list | tuple) else []
    return '"' + " ".join(f"{plain(name)}={_quoted(text)}" for name, text in pairs) + '"'


def _quoted(word: object) -> str:
    inner = plain(word) if isinstance(word, Macro) else plain(f"{line(word)}'")[:-1]
    return "'" + inner.replace("'", "''").replace('"', '""') + "'"


templating.FILTERS.update({"condor": plain, "condor_raw": raw, "condor_file": file_name,
                           "condor_string": lambda value: plain(string(str(value))), "condor_item": item,
                           "condor_words": words})

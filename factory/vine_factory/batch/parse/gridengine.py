"""What Grid Engine's qstat and qacct print.

Owns their formats and what Grid Engine's state letters mean. Pure. Must not know who asks.
"""

from __future__ import annotations

import re
import time
from xml.etree import ElementTree

from taskvine_core.errors import BatchUnavailable
from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.batch.base import BatchState
from vine_factory.batch.listed import Seen

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?", re.ASCII)
_MAX_TASKS = 1_000_000
_EXIT_SIGNAL_BASE = 128
_ACCOUNTING_TIME = "%a %b %d %H:%M:%S %Y"
_ERROR_MESSAGE_TAGS = ("QIM_message", "MES_message")
_NO_MESSAGES = "There are no messages available"


class Listing(NamedTuple):
    """One task of ``qstat -xml``: ``batch_id`` is JOB.TASK; a job that is no array has task 1."""

    job: str
    name: str
    seen: Seen


class Details(NamedTuple):
    """One job of ``qstat -j -xml``. ``said``: error and scheduling messages."""

    job: str
    context: dict[str, str]
    said: str


def listing(text: str) -> list[Listing]:
    """All tasks in an answer of ``qstat -xml -g d -r``.

    Raises:
        BatchUnavailable: it is no such answer.
    """
    found = []
    for element in _parsed(text, "job_info").iter("job_list"):
        job, letters = _text(element, "JB_job_number"), _text(element, "state")
        name = _text(element, "full_job_name") or _text(element, "JB_name")
        if not job.isdigit():
            raise BatchUnavailable("qstat lists a job without a number", said=text[:defaults.SAID_CHARS])
        host = _text(element, "queue_name").partition("@")[2]
        started_at = _local_time(_text(element, "JAT_start_time"), "%Y-%m-%dT%H:%M:%S")
        state, said = meaning(letters)
        for task in _tasks(_text(element, "tasks")):
            found.append(Listing(job, name, Seen(f"{job}.{task}", state, host, started_at, said=said)))
    return found


def meaning(letters: str) -> tuple[BatchState | None, str]:
    """What a combination of state letters means; None for one that is not known, and what is to be said of it."""
    known = set("dEhrRsStTwqNPX")
    if not letters or set(letters) - known:
        return None, f"unknown state {letters!r}"
    if "E" in letters:
        return BatchState.HELD, f"in error state ({letters})"
    going = set(letters) & set("rtsST")
    said = "being deleted" if "d" in letters else ""
    if going:
        if going & set("sST"):
            said = said or f"suspended ({letters})"
        return BatchState.RUNNING, said
    if "h" in letters:
        return BatchState.HELD, said or f"held ({letters})"
    return BatchState.QUEUED, said


def details(text: str) -> dict[str, Details]:
    """Jobs in an answer of ``qstat -j JOBS -xml``; jobs that are gone are not in it.

    Raises:
        BatchUnavailable: it is no such answer.
    """
    root = _parsed(text, "detailed_job_info", "unknown_jobs", "comunication_info", "communication_info")
    jobs = [element for element in root.iter("element") if element.find("JB_job_number") is not None]
    general: dict[str, list[str]] = {}
    for element in root.iter("element"):
        message = _text(element, "MES_message")
        for number in element.iter("MES_job_number"):
            inside = [item.text or "" for item in number.iter()]
            for job in inside:
                if job.strip().isdigit() and message:
                    general.setdefault(job.strip(), []).append(message)
    found = {}
    for element in jobs:
        job = _text(element, "JB_job_number")
        context = {_text(item, "VA_variable"): _text(item, "VA_value") for item in element.iter("context_list")}
        said = [item.text.strip() for tag in _ERROR_MESSAGE_TAGS for item in element.iter(tag) if item.text]
        words = dict.fromkeys([*said, *general.get(job, [])])
        found[job] = Details(job, context, "; ".join(word for word in words if word != _NO_MESSAGES)
                             [:defaults.SAID_CHARS])
    return found


def accounting(text: str) -> list[Seen]:
    """Ended tasks in an answer of ``qacct -j``; of one that was started several times the last."""
    found: dict[str, Seen] = {}
    for record in re.split(r"^={10,}\s*$", text, flags=re.MULTILINE):
        facts = {}
        for line in record.splitlines():
            name, _, value = line.strip().partition(" ")
            facts[name] = value.strip()
        job, task = facts.get("jobnumber", ""), facts.get("taskid", "")
        if job.isdigit():
            batch_id = f"{job}.{task if task.isdigit() else 1}"
            found[batch_id] = _ended(batch_id, facts)
    return list(found.values())


def _ended(batch_id: str, facts: dict[str, str]) -> Seen:
    status = facts.get("exit_status", "").split(" ")[0]
    failed = facts.get("failed", "0")
    started_at = _local_time(facts.get("start_time", ""), _ACCOUNTING_TIME)
    code = int(status) if status.isdigit() and started_at else None  # 0 is also written for what never ran
    if code is not None and code > _EXIT_SIGNAL_BASE:
        code = _EXIT_SIGNAL_BASE - code
    number, _, words = failed.partition(":")
    said = f"failed {number.strip()}: {words.strip()}" if words else ""
    return Seen(batch_id, BatchState.ENDED, facts.get("hostname", ""),
                started_at, _local_time(facts.get("end_time", ""), _ACCOUNTING_TIME), code, said)


def _parsed(text: str, *roots: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(_NOT_XML.sub("?", text))
    except ElementTree.ParseError as problem:
        raise BatchUnavailable(f"qstat's answer cannot be read: {problem}",
                               said=text[:defaults.SAID_CHARS]) from problem
    if root.tag not in roots:
        raise BatchUnavailable(f"qstat's answer is a {root.tag!r}", said=text[:defaults.SAID_CHARS])
    return root


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _tasks(text: str) -> list[int]:
    """Numbers of "1", "1-9:2,12" or "" (no array)."""
    if not text:
        return [1]
    numbers: list[int] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not found or last - first > _MAX_TASKS:
            raise BatchUnavailable(f"qstat lists tasks {text[:80]!r}")
        numbers += range(first, last + 1, int(found[3] or 1) or 1)
    return numbers


def _local_time(text: str, form: str) -> float:
    try:
        return time.mktime(time.strptime(text, form))
    except (ValueError, OverflowError):
        return 0.0

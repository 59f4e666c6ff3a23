"""HTCondor's job event log.

Owns the text format of the log and which events mean something for a job. Pure: bytes in, events out. What it cannot
read it passes over; the queue is asked anyway.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from enum import Enum

from taskvine_core.records import NamedTuple

END = b"\n...\n"
"""What ends an event; anything behind the last one is still being written."""
_SHOWN_CHARS = 500
_HEAD = re.compile(
    r"(?P<number>\d{3}) \((?P<cluster>\d+)\.(?P<proc>\d+)\.\d+\) "
    r"(?:(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)|(?P<month2>\d\d)/(?P<day2>\d\d))[ T]"
    r"(?P<clock>\d\d:\d\d:\d\d)(?:\.\d+)?(?P<utc>Z)? ?", re.ASCII)
_CODE = re.compile(r"\s*Code (-?\d+) Subcode (-?\d+)", re.ASCII)
_RETURN = re.compile(r"\(return value (-?\d+)\)", re.ASCII)
_SIGNAL = re.compile(r"\(signal (\d+)\)", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){2}", re.ASCII)
_SLOT = re.compile(r"\s*SlotName: (?:\S*@)?(\S+)")
_ADDRESS = re.compile(r"<([^:>?]+)")


class Kind(str, Enum):
    """What happened to a job."""

    SUBMITTED = "submitted"
    RUNNING = "running"
    REQUEUED = "requeued"
    TERMINATED = "terminated"
    REMOVED = "removed"
    HELD = "held"
    RELEASED = "released"
    SUSPENDED = "suspended"
    DISCONNECTED = "disconnected"


_KINDS = {"000": Kind.SUBMITTED, "001": Kind.RUNNING, "004": Kind.REQUEUED, "005": Kind.TERMINATED,
          "007": Kind.REQUEUED, "009": Kind.REMOVED, "010": Kind.SUSPENDED, "011": Kind.RUNNING, "012": Kind.HELD,
          "013": Kind.RELEASED, "022": Kind.DISCONNECTED, "023": Kind.RUNNING, "024": Kind.REQUEUED}


class JobEvent(NamedTuple):
    """One event. ``at`` seconds since the epoch. ``said``: the system's words. ``exit_code`` negative for a signal.
    ``tag``: notes of the submission. ``host``: where it runs, "" when the event does not say."""

    kind: Kind
    batch_id: str
    at: float
    said: str = ""
    exit_code: int | None = None
    tag: str = ""
    host: str = ""


def complete(data: bytes) -> tuple[bytes, int]:
    """The whole events at the start of ``data`` and how many bytes they are."""
    length = data.rfind(END) + len(END)
    return (data[:length], length) if length >= len(END) else (b"", 0)


def events(data: bytes, now: float) -> list[JobEvent]:
    """The events that mean something, in order. ``now``: seconds since the epoch, for dates without a year."""
    found = []
    for text in data.decode(errors="replace").split(END.decode()):
        event = _event(text.strip("\n"), now)
        if event is not None:
            found.append(event)
    return found


def _event(text: str, now: float) -> JobEvent | None:
    head = None
    for head in _HEAD.finditer(text):  # noqa: B007 - the last one: what is before it is the torso of an event
        pass
    words, _, rest = text[head.end():].partition("\n") if head else ("", "", "")
    kind = _KINDS.get(head["number"]) if head else None
    at = _time(head, now) if head else None
    if head is None or kind is None or at is None:
        return None
    event = JobEvent(kind, f"{int(head['cluster'])}.{int(head['proc'])}", at)
    body = rest.split("\n") if rest else []
    if kind is Kind.SUBMITTED:
        return event._replace(tag=next((line.strip() for line in body if _TAG.fullmatch(line.strip())), ""))
    if kind is Kind.RUNNING:
        return event._replace(host=_host(words, body))
    if kind is Kind.TERMINATED:
        return _terminated(event, body)
    if kind is Kind.REQUEUED:
        return event._replace(said=_said([words, *_reasons(body)]))
    if kind is Kind.HELD:
        return event._replace(said=held(*_hold(body)))
    return event._replace(said=_said([line for line in body if line.strip()] or [words]))


def held(reason: str, code: int | None, subcode: int | None) -> str:
    """How a hold is told, wherever it was learnt of."""
    numbers = "" if code is None else f" (hold code {code}, subcode {subcode or 0})"
    return f"{reason or 'no reason given'}{numbers}"


def _hold(body: list[str]) -> tuple[str, int | None, int | None]:
    reason, code, subcode = [], None, None
    for line in body:
        numbers = _CODE.fullmatch(line)
        if numbers:
            code, subcode = int(numbers[1]), int(numbers[2])
        elif line.strip():
            reason.append(line)
    return _said(reason), code, subcode


def _terminated(event: JobEvent, body: list[str]) -> JobEvent:
    text = body[0] if body else ""
    returned, signal = _RETURN.search(text), _SIGNAL.search(text)
    code = int(returned[1]) if returned else -int(signal[1]) if signal else None
    return event._replace(exit_code=code)


def _reasons(body: list[str]) -> list[str]:
    """Of an eviction or a shadow's failure: sentences, not the usage tables below them."""
    found = []
    for line in body:
        text = line.strip()
        if text.startswith("Partitionable Resources") or " - " in text or "  -  " in line:
            break
        if text and not text.startswith("("):
            found.append(text.removeprefix("Reason: "))
    return found


def _said(lines: list[str]) -> str:
    return "; ".join(line.strip().rstrip(".") for line in lines if line.strip())[:_SHOWN_CHARS]


def _host(words: str, body: list[str]) -> str:
    for line in body:
        slot = _SLOT.fullmatch(line)
        if slot:
            return slot[1]
    address = _ADDRESS.search(words)
    return address[1] if address else ""


def _time(head: re.Match[str], now: float) -> float | None:
    """Local time unless it says otherwise. A date without a year is the last such day."""
    year = int(head["year"]) if head["year"] else datetime.fromtimestamp(now).year
    month, day = int(head["month"] or head["month2"]), int(head["day"] or head["day2"])
    try:
        moment = datetime.fromisoformat(f"{year:04}-{month:02}-{day:02}T{head['clock']}")
        at = moment.replace(tzinfo=timezone.utc).timestamp() if head["utc"] else moment.timestamp()
        if not head["year"] and at > now + _DAY_S:
            at = moment.replace(year=year - 1).timestamp()
    except (ValueError, OverflowError):
        return None
    return at


_DAY_S = 86400.0

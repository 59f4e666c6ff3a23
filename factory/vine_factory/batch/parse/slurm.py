"""What Slurm's tools print.

Owns squeue's and sacct's columns as we ask for them, job numbers, exit codes, ``scontrol show job``. Pure; texts that
are not what they should be raise ValueError, for nothing may be concluded from half an answer.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator

from taskvine_core.records import NamedTuple
from vine_factory.batch.slurm_tags import expand

FIELD, RECORD = "\x1f", "\x1e"
"""What separates columns and ends records: neither occurs in names that people give to jobs."""
SQUEUE_FORMAT = FIELD.join(("%i", "%T", "%r", "%B", "%S", "%e", "%j", "%k")) + RECORD
SQUEUE_EXITS = "JobArrayID:64,exit_code:16"
SACCT_FORMAT = "JobID,State,ExitCode,NodeList,Start,End"
QUERY_ENVIRONMENT = {"TZ": "UTC0", "SLURM_TIME_FORMAT": "standard"}
"""Under which times come as they are read here."""

_JOB = re.compile(r"(\d+)(?:_(\d+|\[([0-9,-]+)(?:%\d+)?\]))?(?:\+\d+)?", re.ASCII)
_SUBMITTED = re.compile(r"(\d+)(?:;[\w.-]+)?", re.ASCII)
_TIME = "%Y-%m-%dT%H:%M:%S"
_WAIT_STATUS = 256
_SIGNAL_MASK = 0x7F
LAUNCH_FAILURE = 53
"""A "signal" that stands for a job whose output or working directory could not be used."""


class Listed(NamedTuple):
    """One job or array element. ``number`` as "12" or "12_3"; ``element`` None when it is no array. Times in seconds
    since the epoch, 0 = not yet or unknown."""

    number: str
    element: int | None
    state: str
    reason: str
    host: str
    started_at: float
    ended_at: float
    name: str
    comment: str


class Past(NamedTuple):
    """What the accounting knows of one job."""

    number: str
    state: str
    exit_code: int | None
    host: str
    started_at: float
    ended_at: float


def submitted(text: str) -> str:
    """The job's number from what ``sbatch --parsable`` printed, whatever a site's plug-ins said before.

    Raises:
        ValueError: it is not there.
    """
    lines = text.split()
    match = _SUBMITTED.fullmatch(lines[-1]) if lines else None
    if match is None:
        raise ValueError(f"no job number in {text[:80]!r}")
    return match[1]


def listing(text: str) -> list[Listed]:
    """What squeue printed in `SQUEUE_FORMAT`.

    Raises:
        ValueError: it is not that, or is cut.
    """
    *records, rest = text.split(RECORD)
    if FIELD in rest or (rest.strip() and not records):
        raise ValueError(f"squeue's answer is cut or strange: {(rest or text)[-80:]!r}")
    found: list[Listed] = []
    for record in records:
        fields = record.split(FIELD)
        if len(fields) != SQUEUE_FORMAT.count(FIELD) + 1:
            raise ValueError(f"squeue's answer has {len(fields)} columns: {record[:80]!r}")
        number, state, reason, host, start, end, name, comment = fields
        last = number.strip().rpartition("\n")[2].strip()  # a notice, or the name of the cluster, may stand before
        found += [Listed(one, element, state.strip(), reason.strip(), known(host), when(start), when(end),
                         name, "" if comment == "(null)" else comment) for one, element in numbers(last)]
    return found


def numbers(text: str) -> list[tuple[str, int | None]]:
    """Jobs that one identifier of squeue stands for: "7", "7_3", "7_[4-50,60%5]".

    Raises:
        ValueError: it is none, or squeue cut it ("7_[1,3,...]").
    """
    match = _JOB.fullmatch(text)
    if match is None:
        raise ValueError(f"no job number: {text[:80]!r}")
    base, element, several = match.groups()
    if element is None:
        return [(base, None)]
    chosen = [int(element)] if several is None else expand(several)
    if chosen is None:
        raise ValueError(f"no array of jobs: {text[:80]!r}")
    return [(f"{base}_{index}", index) for index in chosen]


def exits(text: str) -> dict[str, int | None]:
    """Exit codes by number, of squeue's columns `SQUEUE_EXITS`; lines that are something else are passed over."""
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and _JOB.fullmatch(words[0]) and words[1].isdigit():
            status = int(words[1])
            found[words[0]] = exit_code(status // _WAIT_STATUS, status & _SIGNAL_MASK)
    return found


def accounting(text: str) -> list[Past]:
    """What ``sacct --parsable2`` printed in `SACCT_FORMAT`; lines that are something else are passed over."""
    found = []
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) == SACCT_FORMAT.count(",") + 1 and _JOB.fullmatch(words[0]):
            number, state, code, host, start, end = words
            found.append(Past(number, plain_state(state), exit_text(code), known(host), when(start), when(end)))
    return found


def plain_state(text: str) -> str:
    """``CANCELLED by 1000`` and ``CANCELLED+`` are CANCELLED."""
    return text.split()[0].rstrip("+") if text.split() else ""


def exit_text(text: str) -> int | None:
    """Exit code from ``3:0`` or ``0:9``; None when it is neither."""
    code, _, signal = text.strip().partition(":")
    return exit_code(int(code), int(signal)) if code.isdigit() and signal.isdigit() else None


def exit_code(code: int, signal: int) -> int | None:
    """Negative for a signal; None when Slurm could not start it."""
    if signal == LAUNCH_FAILURE:
        return None
    return -signal if signal else code


def shown_job(text: str) -> list[dict[str, str]]:
    """Records of ``scontrol show --oneliner job``, names as they are there."""
    return [dict(_pairs(line)) for line in text.splitlines() if line.startswith("JobId=")]


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Values may have spaces: a pair ends where the next name begins."""
    starts = [match.start() for match in re.finditer(r"(?:^|(?<= ))[A-Z][A-Za-z/:]*=", line)]
    for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
        name, _, value = line[start:end].strip().partition("=")
        yield name, value


def when(text: str) -> float:
    """Seconds since the epoch of a time in UTC; 0 for "N/A" and "Unknown"."""
    word = text.strip()
    if word.isdigit():
        return float(word)
    try:
        return float(calendar.timegm(time.strptime(word, _TIME)))
    except ValueError:
        return 0.0


def known(text: str) -> str:
    """A name, "" for Slurm's ways to say that there is none."""
    word = text.strip()
    return "" if word.lower() in ("n/a", "(null)", "none assigned", "none", "unknown") else word

"""`vine_factory explain`: looks up records and stories, and prints what `reasons.py` makes of them."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from taskvine_core.errors import ConfigError
from vine_factory import control, history, reasons, which

_RELATIVE = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parser() -> argparse.ArgumentParser:
    """Of the sub-command."""
    made = argparse.ArgumentParser(
        prog="vine_factory explain", allow_abbrev=False,
        description="Say in plain words why a pool has the workers it has, now or at some time, or what happened to a "
        "job. Works also after the factory has ended.")
    made.add_argument("pool", nargs="?", metavar="POOL", help="only this pool")
    made.add_argument("--at", metavar="TIME", help="as it was then: HH:MM[:SS] today, an ISO date and time, seconds "
                      "since the epoch, or 90s, 10m, 2h, 1d ago")
    made.add_argument("--job", metavar="ID", help="the story of a job, by our id or the batch system's")
    made.add_argument("--worker", metavar="ID", help="the story of the job of this worker")
    made.add_argument("--factory-name", metavar="NAME", help="the factory, where there are several")
    made.add_argument("--replay", metavar="FILE", help="explain the records in this file (decisions.jsonl)")
    made.add_argument("--json", action="store_true", help="the records themselves")
    return made


def main(words: Sequence[str]) -> int:
    """Print it. Returns 0, or 1 when nothing is recorded.

    Raises:
        ConfigError: no such factory, file or time.
    """
    given = parser().parse_args(list(words))
    if given.job or given.worker:
        found = _stories(given)
        return _show([_story(entry) for entry in found], found, bool(given.json),
                     "nothing is recorded of that job")
    records = _chosen(given)
    if given.pool:
        records = [record for record in records if record.get("pool") == given.pool]
    return _show([reasons.answer(record).text() for record in records], records, bool(given.json),
                 "no decision is recorded" + (f" of pool {given.pool}" if given.pool else ""))


def _show(texts: list[str], data: list[dict[str, Any]], as_json: bool, nothing: str) -> int:
    if as_json:
        print(json.dumps(data, indent=1))
    else:
        print("\n".join(texts) or nothing)
    return 0 if data else 1


def _chosen(given: argparse.Namespace) -> list[dict[str, Any]]:
    until = moment(given.at, time.time()) if given.at else None
    if given.replay:
        path = Path(given.replay)
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        return list(history.read(path)) if until is None else _last(history.read(path), until)
    if until is None:
        try:
            now: list[dict[str, Any]] = control.ask(which.to_order(given.factory_name), {"order": "explain"})["records"]
            return now
        except ConfigError:
            until = time.time()  # it has ended, or is on another machine: its last words
    return _last(history.read(which.home(given.factory_name) / history.DECISIONS), until)


def _last(records: Iterable[dict[str, Any]], until: float) -> list[dict[str, Any]]:
    """Of each pool the last record not after ``until``."""
    found = {record["pool"]: record for record in records
             if isinstance(record.get("at"), int | float) and record["at"] <= until and "pool" in record}
    return list(found.values())


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of a time as people write it.

    Raises:
        ConfigError: it is none.
    """
    try:
        if text[-1:] in _RELATIVE:
            return now - float(text[:-1]) * _RELATIVE[text[-1]]
        if text.replace(".", "", 1).isdigit():
            return float(text)
        if "-" in text:
            return datetime.datetime.fromisoformat(text).timestamp()
        clock = datetime.time.fromisoformat(text)
        return datetime.datetime.combine(datetime.datetime.fromtimestamp(now).date(), clock).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"--at {text!r} is no time", hint="HH:MM, 2026-01-31T23:59, seconds since the epoch, or "
                          "10m ago as 10m") from None


def _stories(given: argparse.Namespace) -> list[dict[str, Any]]:
    entries = list(history.read(which.home(given.factory_name) / history.JOBS))
    if given.worker:
        jobs = {entry.get("job") for entry in entries if given.worker in (entry.get("workers") or [])}
    else:
        batch = {entry.get("job") for entry in entries if entry.get("batch_id") == given.job}
        jobs = batch or {entry.get("job") for entry in entries if str(entry.get("job")).startswith(given.job)}
    return [entry for entry in entries if entry.get("job") in jobs]


def _story(entry: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(entry.get("at") or 0)))
    batch = f" ({entry['batch_id']})" if entry.get("batch_id") else ""
    text = f"{at} {entry.get('pool')} job {entry.get('job')}{batch} {entry.get('event')}"
    pieces: list[tuple[str, Callable[[Any], str]]] = [
        ("manager", lambda value: f" to {value}"), ("workers", lambda value: f" as {', '.join(map(str, value))}"),
        ("host", lambda value: f" on {value}"), ("hosts", lambda value: f" on {', '.join(map(str, value))}"),
        ("why", lambda value: f": {value}"), ("said", lambda value: f"; batch system: {value}"),
        ("stderr", lambda value: "\n    " + str(value).replace("\n", "\n    "))]
    return text + "".join(show(entry[name]) for name, show in pieces if entry.get(name))

"""Files into which a batch system puts what jobs print.

Owns their names (INTENT.out, INTENT.err in one directory) and how many are kept. Must not know any batch system.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from pathlib import Path

from vine_factory import defaults

KINDS = ("out", "err")


def path(directory: Path, intent_id: str, kind: str) -> Path:
    """Where a job's output of this kind is."""
    return directory / f"{intent_id}.{kind}"


def tail(file: Path) -> str:
    """The last words in a file, "" when there are none."""
    try:
        with open(file, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - defaults.STDERR_TAIL_BYTES))
            return stream.read().decode(errors="replace").strip()
    except OSError:
        return ""


def drop(directory: Path, intent_ids: Iterable[str]) -> None:
    """Delete the outputs of jobs."""
    for intent_id in intent_ids:
        for kind in KINDS:
            path(directory, intent_id, kind).unlink(missing_ok=True)


def prune(directory: Path, live: Container[str]) -> None:
    """Of jobs that are not ``live`` keep the newest `defaults.KEPT_JOB_LOGS` that said anything."""
    found: dict[str, tuple[float, int]] = {}
    if not directory.is_dir():
        return
    with os.scandir(directory) as listing:
        for entry in listing:
            intent_id, _, kind = entry.name.rpartition(".")
            if kind in KINDS and intent_id not in live:
                try:
                    facts = entry.stat()
                except FileNotFoundError:
                    continue
                at, size = found.get(intent_id, (0.0, 0))
                found[intent_id] = (max(at, facts.st_mtime), size + facts.st_size)
    ranked = sorted(found, key=lambda name: (found[name][1] > 0, found[name][0]), reverse=True)
    drop(directory, ranked[defaults.KEPT_JOB_LOGS:])

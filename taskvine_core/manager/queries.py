"""Answers to the questions that factories and status tools ask over a connection.

Owns which questions there are and how their bodies are read. Must not know how an answer is worked out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from taskvine_core.errors import UsageError
from taskvine_core.manager.demand import demand
from taskvine_core.manager.report import status

if TYPE_CHECKING:
    from taskvine_core.manager.core import ManagerCore


def _strings(value: object, what: str, key: str) -> list[str]:
    if not isinstance(value, list):
        raise UsageError(f"query {what!r}: {key} is not a list of strings")
    return [str(item) for item in value]


def answer(core: ManagerCore, what: str, body: bytes) -> bytes:
    """Answer a Query; UsageError for what cannot be answered."""
    try:
        asked = json.loads(body) if body else {}
    except ValueError as error:
        raise UsageError(f"query {what!r}: the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise UsageError(f"query {what!r}: the body is not an object")
    if what == "demand":
        return _json(demand(core, asked))
    if what == "retire":
        ids = _strings(asked.get("worker_ids", []), what, "worker_ids")
        refused = core.retire_workers(ids, str(asked.get("reason", "factory")))
        return _json({"accepted": [i for i in ids if i not in refused], "refused": refused})
    if what not in ("manager", "tasks", "workers", "categories"):
        raise UsageError(f"query {what!r} is not known", hint="manager, tasks, workers, categories, demand, retire")
    return _json(status(core, what))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

"""The file in which a running factory says how it is, and its readers.

Owns the file's place, format and freshness. `vine_factory status` shows it; the factory replaces it atomically.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from vine_factory.batch import proc
from vine_factory.core import FactoryCore
from vine_factory.explain import as_record, sentence
from vine_factory.jobs import JobState

FORMAT = 1
_MAX_BYTES = 4 * 1024 * 1024


def directory(state_directory: Path) -> Path:
    """Where all state files of a user are."""
    return state_directory / "factories"


def snapshot(core: FactoryCore, now: float) -> dict[str, Any]:
    """What the core knows, as JSON-able data without times (so that equal states are equal)."""
    pools = []
    for pool in core.settings.pools:
        state = core.pools[pool.name]
        counts = dict.fromkeys((s.value for s in JobState if s is not JobState.ENDED), 0)
        idle = 0
        held: Counter[str] = Counter()
        for job in core.fleet.of_pool(pool.name):
            held[job.held_words] += job.state is JobState.HELD
            counts[job.state.value] += 1
            idle += job.idle
        decision = state.decision
        binding = decision.binding() if decision is not None else None
        pools.append({
            "name": pool.name, "batch": pool.batch, "min": pool.minimum, "max": pool.maximum, **counts, "idle": idle,
            "order": state.order, "held_words": held.most_common(1)[0][0] if counts[JobState.HELD.value] else "",
            "wanted": decision.wanted if decision else 0, "target": decision.target if decision else 0,
            "limit": binding.limit if binding else "", "why": sentence(decision) if decision else "",
            "decision": as_record(decision) if decision else None, "last_fault": state.health.last_words,
            "faults": {kind.value: count for kind, count in state.health.total.items()},
            "fault_words": {kind.value: breaker.last_words for kind, breaker in state.health.kinds.items()},
            "fault_reasons": {kind.value: dict(breaker.reasons) for kind, breaker in state.health.kinds.items()},
            "preempted": state.health.preempted, "excluded_hosts": list(state.hosts.excluded(now))})
    managers = [{"address": view.key, "project": view.last.project if view.last else "",
                 "answers": view.gone_since is None, "why": view.why_gone if view.gone_since is not None else "",
                 "tasks_waiting": view.last.tasks_waiting if view.last else 0,
                 "tasks_running": view.last.tasks_running if view.last else 0,
                 "workers": len(view.last.workers) if view.last else 0} for view in core.views.values()]
    return {"format": FORMAT, "factory_name": core.settings.factory_name, "target": core.settings.target.text(),
            "stopping": core.stopping, "pools": pools, "managers": managers}


def write(path: Path, state: dict[str, Any], now: float) -> None:
    """Replace the file at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    record = {**state, "pid": os.getpid(), "pid_start": proc.start_ticks(os.getpid()), "host": socket.gethostname(),
              "updated_at": now}
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.replace(path)


def read_all(state_directory: Path) -> list[dict[str, Any]]:
    """State of all factories of this user that are alive (those of other hosts: as far as can be told)."""
    found = []
    for path in sorted(directory(state_directory).glob("*.json")):
        try:
            if path.stat().st_size > _MAX_BYTES:
                continue
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # vanished, or not ours: the file is replaced atomically, so it is never half written
        if isinstance(record, dict) and record.get("format") == FORMAT and _alive(record):
            found.append(record)
    return found


def _alive(record: dict[str, Any]) -> bool:
    if record.get("host") != socket.gethostname():
        return True
    pid = record.get("pid")
    return isinstance(pid, int) and proc.start_ticks(pid) == record.get("pid_start")

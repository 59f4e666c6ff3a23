"""`vine_factory status`: the state files as a table or JSON."""

from __future__ import annotations

import json
from typing import Any

from taskvine_core.secret import state_directory
from vine_factory.statefile import read_all

_COLUMNS = ("wanted", "target", "submitted", "queued", "held", "running", "connected", "idle", "draining")


def show(name: str | None, as_json: bool) -> int:
    """Print it. Returns 0, or 1 when there is no such factory."""
    found = [state for state in read_all(state_directory()) if name in (None, state["factory_name"])]
    if as_json:
        print(json.dumps(found, indent=2))
    elif found:
        print("\n\n".join(table(state) for state in found))
    else:
        print("no factory is running" if name is None else f"no factory named {name} is running")
    return 0 if found else 1


def table(state: dict[str, Any]) -> str:
    """One factory's state as text."""
    ending = f", ending: {state['stopping']}" if state["stopping"] else ""
    lines = [f"{state['factory_name']} (pid {state['pid']} on {state['host']}) serves {state['target']}{ending}"]
    lines.append(f"  {'POOL':12}" + "".join(f"{column.upper():>10}" for column in _COLUMNS))
    for pool in state["pools"]:
        lines.append(f"  {pool['name']:12}" + "".join(f"{pool[column]:>10}" for column in _COLUMNS))
        lines.append(f"    {pool['why']}")
        if pool["last_fault"]:
            lines.append(f"    last fault: {pool['last_fault']}")
    for manager in state["managers"]:
        how = (f"{manager['tasks_waiting']} waiting, {manager['tasks_running']} running, {manager['workers']} workers"
               if manager["answers"] else f"does not answer: {manager['why']}")
        lines.append(f"  manager {manager['address']} {manager['project']}: {how}")
    return "\n".join(lines)

"""`vine_factory status`: the state files as a table or JSON, once or as it changes."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from typing import Any

from taskvine_core.secret import state_directory
from vine_factory.statefile import read_all

_COLUMNS = {"wanted": "WANTED", "target": "TARGET", "submitted": "SUBMIT", "queued": "QUEUED", "held": "HELD",
            "running": "START", "connected": "CONN", "idle": "IDLE", "draining": "DRAIN"}
_NAME_CHARS = 12
_COLUMN_CHARS = 7
_LOOK_S = 0.5
_HOME_AND_CLEAR, _CLEAR_LINE = "\x1b[H\x1b[J", "\x1b[K"


def show(name: str | None, as_json: bool) -> int:
    """Print it. Returns 0, or 1 when there is no such factory."""
    found = _found(name)
    print(json.dumps(found, indent=2) if as_json else _text(found, name))
    return 0 if found else 1


def watch(name: str | None, as_json: bool) -> int:
    """Print it whenever it changes, until interrupted: on a terminal always in the same place. Returns 0."""
    screen = sys.stdout.isatty() and not as_json
    said = ""
    try:
        while True:
            found = _found(name)
            text = json.dumps([_timeless(state) for state in found]) if as_json else _text(found, name)
            if screen:
                columns, lines = shutil.get_terminal_size()
                shown = _fitted(text, columns, lines)
                text = f"{time.strftime('%H:%M:%S')}  (Ctrl-C ends this, not the factory)\n{shown}"
                print(_HOME_AND_CLEAR + text.replace("\n", _CLEAR_LINE + "\n"), end="", flush=True)
            elif text != said:
                print(text if as_json else f"{time.strftime('%H:%M:%S')}\n{text}", flush=True)
            said = text
            time.sleep(_LOOK_S)
    except (KeyboardInterrupt, BrokenPipeError):
        return 0


def _found(name: str | None) -> list[dict[str, Any]]:
    return [state for state in read_all(state_directory()) if name in (None, state["factory_name"])]


def _timeless(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "updated_at"}


def _text(found: list[dict[str, Any]], name: str | None) -> str:
    if found:
        return "\n\n".join(table(state) for state in found)
    return "no factory is running" if name is None else f"no factory named {name} is running"


def _fitted(text: str, columns: int, lines: int) -> str:
    """``text`` with long lines folded, cut to what fits below the first line of the screen."""
    folded = [part for line in text.split("\n")
              for part in textwrap.wrap(line, columns - 1, subsequent_indent=" " * 6, drop_whitespace=False) or [""]]
    return "\n".join(folded[:lines - 2])


def table(state: dict[str, Any]) -> str:
    """One factory's state as text; its table fits into 80 columns."""
    ending = f", ending: {state['stopping']}" if state["stopping"] else ""
    lines = [f"{state['factory_name']} (pid {state['pid']} on {state['host']}) serves {state['target']}{ending}"]
    lines.append(f"  {'POOL':{_NAME_CHARS}}" + "".join(f"{head:>{_COLUMN_CHARS}}" for head in _COLUMNS.values()))
    for pool in state["pools"]:
        lines.append(f"  {pool['name']:{_NAME_CHARS}.{_NAME_CHARS}}"
                     + "".join(f"{pool[column]:>{_COLUMN_CHARS}}" for column in _COLUMNS))
        order = f"{pool['order']} on request: " if pool["order"] else ""
        lines.append(f"    {order}{pool['why']}")
        if pool["held_words"]:
            lines.append(f"    held: {pool['held_words']}")
        if pool["last_fault"]:
            lines.append(f"    last fault: {pool['last_fault']}")
    for manager in state["managers"]:
        how = (f"{manager['tasks_waiting']} waiting, {manager['tasks_running']} running, {manager['workers']} workers"
               if manager["answers"] else f"does not answer: {manager['why']}")
        lines.append(f"  manager {manager['address']} {manager['project']}: {how}")
    return "\n".join(lines)

"""Which factory a person means.

Owns the search among running factories and among the directories of those that have ended. Must not talk to any.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from taskvine_core.errors import ConfigError
from taskvine_core.secret import state_directory
from vine_factory.history import DECISIONS
from vine_factory.home import host_name, plain_name
from vine_factory.statefile import read_all


def running(name: str | None) -> dict[str, Any]:
    """State of the one factory meant.

    Raises:
        ConfigError: there is none, or a name is needed.
    """
    found = [state for state in read_all(state_directory()) if name in (None, state["factory_name"])]
    if not found:
        raise ConfigError("no factory is running" if name is None else f"no factory named {name} is running")
    return _one(found)


def to_order(name: str | None) -> Path:
    """Directory of the one running factory meant, on this machine.

    Raises:
        ConfigError: as `running`, or it runs elsewhere.
    """
    state = running(name)
    if state["host"] != socket.gethostname():
        raise ConfigError(f"factory {state['factory_name']} runs on {state['host']}", hint="give the order there")
    return Path(state["directory"])


def home(name: str | None) -> Path:
    """Directory of the factory meant, which may have ended: a running one first.

    Raises:
        ConfigError: there is none, or a name is needed.
    """
    found = [state for state in read_all(state_directory()) if name in (None, state["factory_name"])]
    if found:
        return Path(_one(found)["directory"])
    base = state_directory() / "factory" / host_name()
    if name is not None:
        places = [base / plain_name(name)]
    else:
        places = [path.parent for path in base.glob(f"*/{DECISIONS}")]
    places = [place for place in places if (place / DECISIONS).is_file()]
    if len(places) != 1:
        names = ", ".join(sorted(place.name for place in places))
        raise ConfigError(f"{len(places)} factories have a history here" if places else "no factory has a history here",
                          hint=f"--factory-name: {names}" if places else "one with a --scratch-dir has it there: "
                          "--replay FILE")
    return places[0]


def _one(found: list[dict[str, Any]]) -> dict[str, Any]:
    if len(found) > 1:
        names = ", ".join(state["factory_name"] for state in found)
        raise ConfigError(f"{len(found)} factories are running", hint=f"--factory-name, one of: {names}")
    return found[0]

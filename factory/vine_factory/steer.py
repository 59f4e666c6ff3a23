"""The commands that steer a running factory: drain, pause, resume, adopt, logs.

Owns their options and how answers are shown. What an order means is in orders.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvine_core.errors import ConfigError
from taskvine_core.secret import state_directory
from vine_factory import control, history, which
from vine_factory.home import host_name, plain_name, take_identity
from vine_factory.jobs import JobState
from vine_factory.statefile import read_all

_LOOK_S = 0.5
_HELP = {
    "drain": "Empty pools: jobs that wait are cancelled, workers get no new task and leave when they have none. Holds, "
             "also over restarts, until resume.",
    "pause": "Start no workers in pools; those that are there stay while they are needed. Holds, also over restarts, "
             "until resume.",
    "resume": "Take back drain and pause; a pool that is tripped by failing workers is tried again now.",
    "adopt": "Look now for jobs with the factory's id in its batch systems, and tell what was found. With "
             "--factory-id: let a factory that does not run be, from its next start on, the one whose directory was "
             "lost.",
    "logs": "Show what the batch system knows of a job, and the end of what it printed.",
}


def parser(command: str) -> argparse.ArgumentParser:
    """Of one sub-command."""
    made = argparse.ArgumentParser(prog=f"vine_factory {command}", description=_HELP[command], allow_abbrev=False)
    made.add_argument("--factory-name", metavar="NAME", help="the factory, where there are several")
    made.add_argument("--json", action="store_true", help="the answer as JSON")
    if command in ("drain", "pause", "resume"):
        made.add_argument("pool", nargs="*", metavar="POOL", help="only these pools (default: all)")
    if command == "drain":
        made.add_argument("--wait", action="store_true", help="return when the pools are empty")
    if command == "adopt":
        made.add_argument("--factory-id", metavar="ID", help="identity of the lost factory")
        made.add_argument("--scratch-dir", metavar="DIR", help="with --factory-id: directory of the factory that takes "
                          "over, instead of its name")
    if command == "logs":
        made.add_argument("job", metavar="JOB", help="our id of the job (or how it begins), or the batch system's")
        made.add_argument("--stdout", action="store_true", help="only what it printed")
        made.add_argument("--stderr", action="store_true", help="only its errors")
    return made


def _order(command: str, words: Sequence[str]) -> int:
    given = parser(command).parse_args(list(words))
    directory = which.to_order(given.factory_name)
    answer = control.ask(directory, {"order": command, "pools": given.pool})
    _show(answer, given, lambda: f"{command}: {', '.join(answer['pools'])}")
    if command == "drain" and given.wait:
        _wait(directory, answer["pools"], quiet=bool(given.json))
    return 0


def _wait(directory: Path, pools: Sequence[str], *, quiet: bool) -> None:
    """Until the pools have no job. The factory goes on draining when this is interrupted."""
    said = ""
    while True:
        state = control.ask(directory, {"order": "status"})["state"]
        left = {pool["name"]: sum(pool[name.value] for name in JobState if name is not JobState.ENDED)
                for pool in state["pools"] if pool["name"] in pools}
        text = ", ".join(f"{name}: {count} left" for name, count in left.items())
        if text != said and not quiet:
            print(text, flush=True)
        said = text
        if not any(left.values()):
            return
        time.sleep(_LOOK_S)


def _adopt(words: Sequence[str]) -> int:
    given = parser("adopt").parse_args(list(words))
    if given.factory_id:
        return _take_over(given)
    answer = control.ask(which.to_order(given.factory_name), {"order": "adopt"})
    _show(answer, given, lambda: "\n".join(
        f"{pool}: not known, {found['unknown']}" if "unknown" in found else
        f"{pool}: {found['jobs']} jobs of this factory in the batch system, {found['new']} of them new to it"
        for pool, found in answer["pools"].items()))
    return 0


def _take_over(given: argparse.Namespace) -> int:
    alive = [state for state in read_all(state_directory()) if state.get("factory_id") == given.factory_id]
    if alive:
        raise ConfigError(f"{given.factory_id} is running (pid {alive[0]['pid']} on {alive[0]['host']})",
                          hint="nothing is lost: give orders to it")
    if given.scratch_dir:
        directory = Path(given.scratch_dir).absolute()
    elif given.factory_name:
        directory = state_directory() / "factory" / host_name() / plain_name(given.factory_name)
    else:
        raise ConfigError("which factory is to take over?", hint="give its --factory-name or --scratch-dir")
    take_identity(directory, given.factory_id)
    _show({"directory": str(directory), "factory_id": given.factory_id}, given,
          lambda: f"the factory in {directory} is {given.factory_id} from its next start on; start it with the same "
                  "pools, and it finds the jobs")
    return 0


def _logs(words: Sequence[str]) -> int:
    given = parser("logs").parse_args(list(words))
    directory = which.to_order(given.factory_name)
    # The factory forgets ended jobs after some minutes; their stories have pool and batch id.
    old: dict[str, Any] = next((entry for entry in reversed(list(history.read(directory / history.JOBS)))
                if given.job in (entry.get("job"), entry.get("batch_id"))), {})
    order = {"order": "logs", "job": given.job, "pool": old.get("pool", ""), "intent": old.get("job", ""),
             "batch_id": old.get("batch_id", "")}
    job = control.ask(directory, order)["job"]
    only = [name for name in ("stdout", "stderr") if getattr(given, name)]
    _show({name: job.get(name) for name in only} if only else job, given, lambda: _as_text(job, only))
    return 0


def _as_text(job: Mapping[str, Any], only: Sequence[str]) -> str:
    if only:
        return "\n".join(str(job.get(name) or "") for name in only)
    lines = [f"{name} = {value}" for name, value in job.items() if name not in ("stdout", "stderr")]
    for name in ("stdout", "stderr"):
        lines += [f"==> {name} <==", str(job.get(name) or "(nothing)")]
    return "\n".join(lines)


def _show(data: Mapping[str, Any], given: argparse.Namespace, text: Callable[[], str]) -> None:
    print(json.dumps(data, indent=1) if given.json else text())


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "drain": lambda words: _order("drain", words), "pause": lambda words: _order("pause", words),
    "resume": lambda words: _order("resume", words), "adopt": _adopt, "logs": _logs}

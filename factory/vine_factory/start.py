"""From settings to a running factory: puts the parts together.

Owns which batch system a name stands for and where the parts live. Everything that can be wrong is found here,
before the first worker is started.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import taskvine_core
from taskvine_core.errors import ConfigError
from taskvine_core.secret import load_secret, state_directory
from vine_factory import command, discovery, statefile
from vine_factory.batch.base import BatchSystem
from vine_factory.batch.local import LocalBatch
from vine_factory.config import PoolSettings, Settings, Sourced
from vine_factory.events import Note
from vine_factory.home import Home, claim
from vine_factory.log import Log
from vine_factory.reload import ConfigFile
from vine_factory.runner import Runner

BATCH_SYSTEMS: dict[str, Callable[[PoolSettings, Home], BatchSystem]] = {
    "local": lambda pool, home: LocalBatch(home.factory_id, home.directory / "jobs"),
}


def start(build: Callable[[Mapping[str, Sourced]], Settings], path: Path | None, *, as_json: bool) -> int:
    """Run a factory until its end. ``build`` makes settings of the values of the file at ``path``, if any.

    Raises:
        ConfigError: something cannot be used.
    """
    config = ConfigFile(path, build) if path is not None else None
    settings, notes = config.load() if config is not None else (build({}), [])
    for pool in settings.pools:
        if pool.batch not in BATCH_SYSTEMS:
            raise ConfigError(f"batch-type = {pool.batch!r}" if pool.batch else "no batch system is named",
                              hint="give --batch with one of: " + ", ".join(sorted(BATCH_SYSTEMS)))
    for pool in settings.pools:  # wrong quotes and the like are found now, not at the first submission
        command.worker_command(settings, pool, "check", sys.executable)
    command.environment(settings)
    secret = load_secret(settings.password or None)
    state = state_directory()
    home = claim(state, settings.scratch_dir, settings.factory_name, settings.pools[0].batch, settings.target.text())
    named = _with_name(home.name, settings)
    if config is not None:
        config.then(lambda changed: _with_name(home.name, changed))
    _let_workers_import()
    log = Log(sys.stderr, as_json)
    runner = Runner(named, home, {pool.name: BATCH_SYSTEMS[pool.batch](pool, home) for pool in named.pools},
                    _look, secret, log, statefile.directory(state) / f"{home.factory_id}.json", config)
    now = runner.clock()
    for text in notes:
        log.note(Note("settings", text, 0), now)
    log.note(Note("start", f"factory {home.name} serves {named.target.text()}; journal and workers' output in "
                  f"{home.directory}", 0, {"factory_id": home.factory_id}), now)
    return runner.run()


def _with_name(name: str, settings: Settings) -> Settings:
    password = os.path.abspath(settings.password) if settings.password else ""
    binary = settings.worker_binary
    binary = os.path.abspath(binary) if os.sep in binary else binary
    return dataclasses.replace(settings, factory_name=name, password=password, worker_binary=binary)


def _look(settings: Settings) -> list[discovery.Found]:
    if settings.target.host:
        return discovery.fixed(settings.target, settings.ssl)
    return discovery.advertised(settings.target.regex)


def _let_workers_import() -> None:
    """Workers start in another directory: make relative entries of PYTHONPATH absolute, and add ourselves when we
    run from a source tree."""
    entries = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    root = str(Path(taskvine_core.__file__).resolve().parent.parent)
    if not root.endswith(("site-packages", "dist-packages")) and root not in entries:
        entries.append(root)
    if entries:
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)

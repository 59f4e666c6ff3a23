"""From settings to a running factory: puts the parts together.

Owns which batch system a name stands for and where the parts live. Everything that can be wrong is found here,
before the first worker is started.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

import taskvine_core
from taskvine_core.secret import load_secret, state_directory
from vine_factory import command, discovery, statefile
from vine_factory.batch import registry
from vine_factory.config import EVERYBODY, FileValues, PoolSettings, Settings
from vine_factory.events import Note
from vine_factory.home import claim
from vine_factory.log import Log
from vine_factory.payload import Payload
from vine_factory.reload import ConfigFile
from vine_factory.runner import Runner


def start(build: Callable[[FileValues], Settings], path: Path | None, *, as_json: bool) -> int:
    """Run a factory until its end. ``build`` makes settings of the values of the file at ``path``, if any.

    Raises:
        ConfigError: something cannot be used.
    """
    config = ConfigFile(path, build) if path is not None else None
    settings = config.load() if config is not None else build(FileValues())
    for pool in settings.pools:
        registry.require(pool.batch)
    for pool in settings.pools:  # wrong quotes and the like are found now, not at the first submission
        command.worker_command(settings, pool, "check", command.Delivery(("worker",)))
    secret = load_secret(settings.password or None)
    state = state_directory()
    home = claim(state, settings.scratch_dir, settings.factory_name, settings.label, settings.target.text())
    named = finished(home.name, settings)
    if config is not None:
        config.then(lambda changed: finished(home.name, changed))
    let_workers_import()
    log = Log(sys.stderr, as_json, settings.log_file, settings.log_file_bytes)
    runner = Runner(named, home, Payload(home.directory, state, secret).delivery, look, secret, log,
                    statefile.directory(state) / f"{home.factory_id}.json", config)
    now = runner.clock()
    for text in settings.notes:
        log.note(Note("settings", text, 0), now)
    log.note(Note("start", f"factory {home.name} serves {named.target.text()}; journal and workers' output in "
                  f"{home.directory}", 0, {"factory_id": home.factory_id}), now)
    return runner.run()


def finished(name: str, settings: Settings) -> Settings:
    """``settings`` with the factory's final name and absolute paths: workers start in other directories."""
    return dataclasses.replace(settings, factory_name=name, password=_absolute(settings.password),
                               pools=tuple(_absolute_paths(pool) for pool in settings.pools))


def _absolute_paths(pool: PoolSettings) -> PoolSettings:
    binary = pool.worker_binary
    return pool._replace(
        worker_binary=_absolute(binary) if os.sep in binary or pool.deliver == "transfer" else binary,
        directory=_absolute(pool.directory), poncho_env=_absolute(pool.poncho_env),
        wrapper_input=tuple(Path(_absolute(str(p))) for p in pool.wrapper_input))


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def look(settings: Settings) -> list[discovery.Found]:
    """The managers to serve.

    Raises:
        OSError, VineError: nothing is known.
    """
    if settings.target.host:
        return discovery.fixed(settings.target, settings.ssl, settings.classic)
    found = discovery.advertised(settings.target.regex)
    if settings.catalog:
        # A catalog is public: with no name given, only managers that say they are ours.
        owner = getpass.getuser() if settings.target.regex == EVERYBODY else ""
        found += discovery.in_catalog(settings.catalog, settings.target.regex, owner)
    return found


def let_workers_import() -> None:
    """Workers start in another directory: make relative entries of PYTHONPATH absolute, and add ourselves when we
    run from a source tree."""
    entries = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    root = str(Path(taskvine_core.__file__).resolve().parent.parent)
    if not root.endswith(("site-packages", "dist-packages")) and root not in entries:
        entries.append(root)
    if entries:
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)

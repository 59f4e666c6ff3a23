"""What would be submitted, without submitting: `vine_factory render`.

Owns making one job of each pool as the running factory would, and printing it. Must not lock the factory's place or ask
a batch system anything.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
from collections.abc import Sequence

from taskvine_core.errors import ConfigError, VineError
from taskvine_core.records import NamedTuple
from taskvine_core.secret import load_secret, state_directory
from vine_factory.batch import registry
from vine_factory.batch.base import BatchSystem, JobRequest, JobTag
from vine_factory.batch.schema import nearest_hint
from vine_factory.command import address, job_request
from vine_factory.config import PoolSettings, Settings
from vine_factory.home import Home, locate
from vine_factory.payload import Payload
from vine_factory.pools import place_of
from vine_factory.start import finished, let_workers_import, look

INTENT = "preview-1"
NO_MANAGER = "MANAGER-HOST:PORT"
"""Stands for the address of a manager when none is found now."""


class Preview(NamedTuple):
    """A factory that could run with these settings. ``managers``: addresses to name to workers; () = none is found."""

    settings: Settings
    home: Home
    payload: Payload
    managers: tuple[str, ...]

    def job(self, pool: PoolSettings) -> JobRequest:
        """One job of ``pool``. Raises ConfigError."""
        return job_request(self.settings, pool, JobTag(self.home.factory_id, pool.name, INTENT),
                           self.payload.delivery(self.settings, pool), self.managers or (NO_MANAGER,))

    def system(self, pool: PoolSettings) -> BatchSystem:
        """The batch system of ``pool``, to be closed. Raises ConfigError."""
        registry.require(pool.batch)
        return registry.create(pool.batch, place_of(self.home, pool))

    def texts(self, pool: PoolSettings) -> dict[str, str]:
        """What is handed to the batch system, by name. Raises ConfigError."""
        system = self.system(pool)
        try:
            return system.render([self.job(pool)])
        finally:
            system.close()


def prepare(settings: Settings, only: str | None) -> Preview:
    """Make a preview, of the pool ``only`` when it is given.

    Raises:
        ConfigError: no such pool, or no key.
    """
    if only is not None:
        names = [pool.name for pool in settings.pools]
        if only not in names:
            raise ConfigError(f"there is no pool {only!r}", hint=nearest_hint(only, names))
        settings = dataclasses.replace(settings, pools=tuple(p for p in settings.pools if p.name == only))
    secret = load_secret(settings.password or None)
    state = state_directory()
    home = locate(state, settings.scratch_dir, settings.factory_name, settings.label, settings.target.text())
    let_workers_import()
    try:
        found = look(settings)
    except (OSError, VineError):
        found = []
    managers = tuple(address(one.address.hosts, one.address.port, socket.getfqdn()) for one in found)
    return Preview(finished(home.name, settings), home, Payload(home.directory, state, secret), managers)


def render(settings: Settings, only: str | None, as_json: bool) -> int:
    """Print what would be submitted for one worker of each pool. Returns the exit status.

    Raises:
        ConfigError: something cannot be rendered.
    """
    preview = prepare(settings, only)
    texts = {pool.name: preview.texts(pool) for pool in preview.settings.pools}
    if as_json:
        print(json.dumps(texts, indent=1))
    else:
        sys.stdout.write("".join(_shown(name, parts) for name, parts in texts.items()))
    if not preview.managers and any(pool.managers == "addresses" for pool in preview.settings.pools):
        print(f"vine_factory: no manager is found now; {NO_MANAGER} stands for its address", file=sys.stderr)
    return 0


def _shown(pool: str, parts: dict[str, str]) -> str:
    return "".join(f"==> pool {pool}: {name} <==\n{text}" + ("" if text.endswith("\n") else "\n")
                   for name, text in parts.items())


def shown_value(value: object) -> str:
    """A setting as a site file would have it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(shown_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)

"""Which batch system runs the demo's workers: as the user's site file says, or a file that is written here.

Owns the site file of a user who has none. It names the Python that runs the demo, because tasks need uproot and
awkward: right where jobs see this machine's files; elsewhere the user's own file says what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from examples.demo.workflow import MAX_WORKERS, MIN_WORKERS, WORKER_DISK_MB, WORKER_MEMORY_MB
from taskvine_core.errors import ConfigError
from vine_factory.batch import registry
from vine_factory.config import read_file

NAME = "site.toml"
# A factory looks every 30 s at a batch system; a run of a minute wants to see more of it.
PERIOD_S = 2
TEXT = """\
# Written by the demo; a file of your own: python -m examples.demo -C FILE
factory-period = {period_s}

[pool.demo]
batch = "{batch}"
min-workers = {minimum}
max-workers = {maximum}
cores = 1
memory = {memory_mb}
disk = {disk_mb}
walltime = "1h"
# The tasks need uproot and awkward: this Python has them, and jobs must see it at this place.
python = "{python}"
"""


class Workers(NamedTuple):
    """Whose workers: the batch systems as people call them, the one of pools that name none, the site file."""

    label: str
    batch: str = "local"
    site: Path | None = None


def choose(batch: str | None, site: Path | None, folder: Path) -> Workers:
    """Local workers need no file; one that is needed and not given is written to ``folder``.

    Raises:
        ConfigError: no such batch system, a file that cannot be used, or the two contradict each other.
    """
    wanted = registry.canonical(batch or "local")
    if site is not None:
        return Workers(_batch_of(site, batch and wanted), wanted, site.resolve())
    if wanted == "local":
        return Workers(wanted)
    registry.require(wanted)
    path = folder / NAME
    python = sys.executable.replace("\\", r"\\").replace('"', r"\"")
    path.write_text(TEXT.format(period_s=PERIOD_S, batch=wanted, minimum=MIN_WORKERS, maximum=MAX_WORKERS,
                                memory_mb=WORKER_MEMORY_MB, disk_mb=WORKER_DISK_MB, python=python), encoding="utf-8")
    return Workers(wanted, wanted, path)


def _batch_of(site: Path, wanted: str | None) -> str:
    """Which batch systems the pools of the file have."""
    file = read_file(site)
    found = []
    for pool in file.pools or ():
        given = pool.values.get("batch") or file.defaults.values.get("batch") or file.values.get("batch-type")
        found.append(registry.canonical(str(given.value)) if given else wanted or "local")
    if not found or (wanted and wanted not in found):
        raise ConfigError(f"{site} has no pool{f' of {wanted!r}' if wanted else ''}",
                          hint=f"its pools: {', '.join(found) or 'none'}")
    return ", ".join(dict.fromkeys(found))

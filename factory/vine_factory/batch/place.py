"""What the driver of a real batch system is given besides its requests.

Owns nothing but the value. A driver is made as ``XxxBatch(place)``, in the thread that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from taskvine_core.records import NamedTuple


class Place(NamedTuple):
    """One pool as its batch system's driver sees it.

    Args:
        factory_id: whose jobs these are; a word of letters, digits, ``.``, ``_``, ``-``.
        pool: its name.
        directory: the driver's own, absolute; for scripts, logs, outputs of jobs. Made by the driver, mode 0700.
        options: of this batch system (its table in the site file), checked by the schema: see ``batch/schema.py``.
        blocks: parts of the template that the site file replaces, by block name.
        excluded_hosts: where no job of ours may start now; may be changed with ``_replace`` between submissions.
    """

    factory_id: str
    pool: str
    directory: Path
    options: Mapping[str, object]
    blocks: Mapping[str, str] = {}
    excluded_hosts: tuple[str, ...] = ()

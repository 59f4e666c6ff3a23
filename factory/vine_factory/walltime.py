"""How long a worker of a pool with a walltime lives, so that a fleet never ends all at once nor within a task.

Owns the arithmetic. Pure: a job's lifetime follows from its identity, so that a restarted factory knows it too.
"""

from __future__ import annotations

import zlib

from vine_factory import defaults


def lifetime_s(walltime_s: float, intent_id: str) -> float:
    """Seconds after its start at which the worker has left by itself; 0 = never (there is no walltime).

    Before the batch system's limit by a margin, and earlier by up to a tenth of the walltime, evenly over the jobs:
    those that were submitted together are replaced one after another.
    """
    if walltime_s <= 0:
        return 0.0
    margin_s = min(defaults.WALLTIME_MARGIN_S, defaults.WALLTIME_MARGIN_SHARE * walltime_s)
    spread = zlib.crc32(intent_id.encode()) / 2**32
    return max(1.0, walltime_s - margin_s - spread * defaults.EXPIRY_STAGGER * walltime_s)

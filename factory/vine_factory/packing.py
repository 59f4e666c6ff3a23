"""From needs to a number of workers per pool.

Owns the distribution of the managers' needs over the pools. Needs of one manager are alternatives: "ten of the
small or five of the large". Must not know limits other than each pool's room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_EPSILON = 1e-9
"""Shares are quotients of small integers: anything below this is rounding."""


def pack(needs: Sequence[Sequence[int]], room: Sequence[int]) -> list[int]:
    """Workers wanted from each pool.

    Args:
        needs: one row per manager, ``needs[m][p]`` = workers of pool p that alone would satisfy manager m.
        room: how many workers each pool may hold; pools are filled in their order.

    Returns:
        One number per pool. Where room ends before the need does, the last pool that can serve a manager carries
        the rest, so that the limits (which say why) cut it and not this function.
    """
    wanted = [0] * len(room)
    for row in needs:
        for pool, count in enumerate(_trimmed(row, _filled(row, [r - w for r, w in zip(room, wanted, strict=True)]))):
            wanted[pool] += count
    return wanted


def _filled(row: Sequence[int], free: Sequence[int]) -> list[int]:
    """Fill the pools in order until the manager has enough."""
    taken = [0] * len(row)
    share = 1.0  # of the need that is still open
    last = max((pool for pool, need in enumerate(row) if need > 0), default=-1)
    for pool, need in enumerate(row):
        if need > 0 and share > _EPSILON:
            open_here = math.ceil(need * share - _EPSILON)
            taken[pool] = open_here if pool == last else min(open_here, max(0, free[pool]))
            share -= taken[pool] / need
    return taken


def _trimmed(row: Sequence[int], taken: list[int]) -> list[int]:
    """Take back what whole workers of later pools made superfluous."""
    spare = sum(count / need for count, need in zip(taken, row, strict=True) if need > 0) - 1.0
    for pool, need in enumerate(row):
        if need > 0 and spare > _EPSILON:
            back = min(taken[pool], math.floor(spare * need + _EPSILON))
            taken[pool] -= back
            spare -= back / need
    return taken

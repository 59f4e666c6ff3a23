"""From needs to a number of workers per pool.

Owns the distribution of the managers' needs over the pools. Needs of one manager are alternatives: "ten of the
small or five of the large". Must not know limits other than each pool's room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


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
        share = 1.0  # of this manager's need that is still open
        last = max((pool for pool, need in enumerate(row) if need > 0), default=-1)
        for pool, need in enumerate(row):
            if need <= 0 or share <= 0.0:
                continue
            open_here = math.ceil(need * share - 1e-9)
            taken = open_here if pool == last else min(open_here, max(0, room[pool] - wanted[pool]))
            wanted[pool] += taken
            share -= taken / need
    return wanted

"""From waiting tasks to how much of each pool they fill.

Owns the distribution of tasks over the pools. Tasks that fit in few pools choose first; then pools are filled in their
order. Must not know limits other than each pool's room. The unit is one worker of a pool: three tasks that take a
quarter of a worker each are 0.75.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vine_factory.demand import Group

EPSILON = 1e-3
"""Shares are rounded to four digits; anything below this is rounding."""


def pack(groups: Sequence[Group], room: Sequence[float]) -> list[tuple[float, ...]]:
    """Tasks of each group in each pool.

    Args:
        groups: with a part per pool each.
        room: workers' worth that each pool may take.

    Returns:
        One row per group, one number of tasks per pool. Where room ends before the tasks do, the last pool in which
        they can run carries the rest, so that the limits (which say why) cut it and not this function. Tasks that can
        run nowhere are in no pool.
    """
    free = list(room)
    rows: list[tuple[float, ...]] = [()] * len(groups)
    choosers = sorted(range(len(groups)), key=lambda index: sum(part > 0 for part in groups[index].parts))
    for index in choosers:
        rows[index] = _placed(groups[index], free)
        for pool, tasks in enumerate(rows[index]):
            free[pool] -= tasks * groups[index].parts[pool]
    return _closed_up(groups, rows, room)


def _closed_up(groups: Sequence[Group], rows: list[tuple[float, ...]],
               room: Sequence[float]) -> list[tuple[float, ...]]:
    """Do without a pool's last worker where its tasks fit into what last workers of other pools have free."""
    pool = 0
    while pool < len(room):
        better = _without_last(groups, rows, pool, room)
        rows, pool = (rows, pool + 1) if better is None else (better, 0)
    return rows


def _without_last(groups: Sequence[Group], rows: Sequence[tuple[float, ...]], pool: int,
                  room: Sequence[float]) -> list[tuple[float, ...]] | None:
    pools = len(room)
    loads = [load(groups, rows, each) for each in range(pools)]
    excess = loads[pool] - (whole(loads[pool]) - 1)
    slack = [max(0.0, min(whole(here), room[each]) - here) for each, here in enumerate(loads)]
    moved = [list(row) for row in rows]
    for index in sorted(range(len(groups)), key=lambda index: groups[index].parts[pool], reverse=True):
        part = groups[index].parts[pool]
        for other in range(pools):
            there = groups[index].parts[other]
            if loads[pool] <= EPSILON or excess <= EPSILON or part <= 0 or there <= 0 or other == pool:
                continue
            tasks = min(moved[index][pool], math.floor(slack[other] / there + EPSILON),
                        math.ceil(excess / part - EPSILON))
            moved[index][pool] -= tasks
            moved[index][other] += tasks
            slack[other] -= tasks * there
            excess -= tasks * part
    return [tuple(row) for row in moved] if loads[pool] > EPSILON and excess <= EPSILON else None


def _placed(group: Group, free: Sequence[float]) -> tuple[float, ...]:
    row = [0.0] * len(group.parts)
    fits = [pool for pool, part in enumerate(group.parts) if part > 0]
    left = group.tasks
    for pool in fits:
        last = pool == fits[-1]
        row[pool] = left if last else min(left, max(0.0, math.floor(free[pool] / group.parts[pool] + EPSILON)))
        left -= row[pool]
    return tuple(row)


def load(groups: Sequence[Group], rows: Sequence[Sequence[float]], pool: int) -> float:
    """Workers' worth of tasks that ``rows`` puts into a pool."""
    return sum(row[pool] * group.parts[pool] for group, row in zip(groups, rows, strict=True))


def work_s(groups: Sequence[Group], rows: Sequence[Sequence[float]], pool: int) -> float | None:
    """Seconds of one worker that those tasks take, None when one kind's duration is not known."""
    total = 0.0
    for group, row in zip(groups, rows, strict=True):
        if row[pool] > 0:
            if group.seconds is None:
                return None
            total += row[pool] * group.parts[pool] * group.seconds
    return total


def whole(workers: float) -> int:
    """The least number of whole workers."""
    return max(0, math.ceil(workers - EPSILON))

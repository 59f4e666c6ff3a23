"""How many more tasks the manager would like to be given now (reference, section 9.7).

Owns one formula on plain numbers. Must not know queues or workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from taskvine_core.resources import Resources


def hungry(
    *,
    waiting: int,
    running: int,
    workers: int,
    committed: Resources,
    total: Resources,
    minimum: int,
    factor: float,
    ready: Iterable[tuple[Resources, int]] = (),
) -> int:
    """Number of further tasks wanted, 0 when satisfied.

    Args:
        waiting: tasks not dispatched.
        running: tasks executing.
        workers: workers connected.
        committed: sum of the allocations in use at all workers.
        total: sum of the workers' resources.
        minimum: tune hungry-minimum.
        factor: tune hungry-minimum-factor.
        ready: explicit requests of the first attempt-schedule-depth waiting tasks, as (request, how many); only
            read when ``waiting`` > 0.
    """
    low = max(minimum, math.ceil(factor * workers))
    each = [_up(amount, max(1, running)) for amount in committed]
    each[0] = max(1, each[0])
    if waiting:
        each = _average_request(ready, each)
    room = [factor * have - taken for have, taken in zip(total, committed, strict=True)]
    need = min(_up(free, one) for free, one in zip(room, each, strict=True) if one > 0)
    return max(0, max(need, low) - waiting)


def _average_request(ready: Iterable[tuple[Resources, int]], otherwise: list[int]) -> list[int]:
    """Average of what the waiting tasks ask for, rounded up; ``otherwise`` stands in for what one does not name."""
    sums = [0] * len(otherwise)
    count = 0
    for request, many in ready:
        count += many
        for resource, value in enumerate(request):
            sums[resource] += many * (value if value > 0 else otherwise[resource])
    return [_up(total, count) for total in sums] if count else otherwise


def _up(amount: float, by: int) -> int:
    """Division rounding up."""
    return math.ceil(amount / by)

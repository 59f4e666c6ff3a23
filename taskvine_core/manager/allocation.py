"""How much of a worker a task gets, and whether it fits there (reference, sections 10.2 and 10.3).

Owns the arithmetic only: numbers in, numbers out. Must not know tasks, categories or worker objects.

Shares are kept as exact fractions (numerator, denominator): ``1 / (1 / 49)`` in floating point is not always 49, and
the rule "a whole number of such tasks fills the worker" must hold for every worker size.
"""

from __future__ import annotations

import math

from taskvine_core.manager.tuning import Tuning
from taskvine_core.resources import UNSET, Resources

#: A share nothing fits in: something is asked of which the worker has none.
_IMPOSSIBLE = (1, 0)
_UNDEFINED = (UNSET, 1)


def allocate(
    request: Resources,
    limits_max: Resources,
    limits_min: Resources,
    totals: Resources,
    available_disk_mb: int,
    *,
    tuning: Tuning,
    ramp_down_free: Resources | None = None,
    learned: bool = False,
) -> Resources:
    """What a task would get at a worker.

    Args:
        request: explicit values of the task; they come out exactly as given.
        limits_max: effective maximum (``Category.effective_max``).
        limits_min: effective minimum (``Category.effective_min``).
        totals: what the worker offers.
        available_disk_mb: its disk less its cache and less the task's inputs.
        tuning: proportional-*, resource-submit-multiplier and disk-proportion-available-to-task are read.
        ramp_down_free: what is free at the worker when the manager is ramping down, else None.
        learned: ``limits_max`` is a first allocation learned from measurements (``Category.learned``): the disk
            share is then given whole, as the table of section 10.4 has it. The reserve of step 5 protects from
            tasks of which nothing is known.

    Returns:
        Whole numbers >= 0. Whether they fit is another question: ask ``fits``.
    """
    available = max(0, available_disk_mb)
    room = Resources(totals[0], totals[1], available, totals[3])
    given, whole = limits_max, True
    if tuning.proportional_resources:
        given, whole = _proportional(request, limits_max, limits_min, room, tuning)
    cores, memory, disk, gpus = given
    if not whole:
        whole = _takes_all(given, room)
    if whole:
        cores, memory, disk, gpus = _fill(given, room)
    elif ramp_down_free is not None:
        cores = 0 if gpus > 0 else ramp_down_free[0]
        memory, disk = ramp_down_free[1], available
    if not (learned and not whole):
        disk = int(disk * tuning.disk_proportion_available_to_task)
    return Resources(
        request[0] if request[0] >= 0 else max(cores, limits_min[0], 0),
        request[1] if request[1] >= 0 else max(memory, limits_min[1], 0),
        request[2] if request[2] >= 0 else max(disk, limits_min[2], 0),
        request[3] if request[3] >= 0 else max(gpus, limits_min[3], 0),
    )


def fits(allocation: Resources, totals: Resources, in_use: Resources, *, multiplier: float) -> bool:
    """Would the worker take it on now?

    Args:
        allocation: what the task would get.
        totals: what the worker offers.
        in_use: sum of allocations there; disk includes the cache.
        multiplier: resource-submit-multiplier; over-commits everything but disk.
    """
    if not allocation.fits_in(totals) or in_use[2] + allocation[2] > totals[2]:
        return False
    if multiplier == 1.0:
        return (in_use[0] + allocation[0] <= totals[0] and in_use[1] + allocation[1] <= totals[1]
                and in_use[3] + allocation[3] <= totals[3])
    return (in_use[0] + allocation[0] <= math.ceil(totals[0] * multiplier)
            and in_use[1] + allocation[1] <= math.ceil(totals[1] * multiplier)
            and in_use[3] + allocation[3] <= math.ceil(totals[3] * multiplier))


def _largest_share(limits: Resources, room: Resources) -> tuple[int, int]:
    """The largest limit / total over the resources that are limited, as an exact fraction."""
    above, below = _UNDEFINED
    for limit, total in zip(limits if room[3] > 0 else limits[:3], room, strict=False):
        if limit < 0:
            continue
        if total > 0:
            if limit * below > above * total:
                above, below = limit, total
        elif limit > 0:
            return _IMPOSSIBLE
    return above, below


def _proportional(
    request: Resources, limits_max: Resources, limits_min: Resources, room: Resources, tuning: Tuning,
) -> tuple[Resources, bool]:
    """Step 2: (limits filled up in proportion, use the whole worker for what is still open)."""
    above, below = _largest_share(limits_max, room)
    if limits_min != limits_max:
        min_above, min_below = _largest_share(limits_min, room)
        if above >= 0 and min_above * below > above * min_below:
            above, below = min_above, min_below
    if above <= 0 or above > below:
        return limits_max, True
    # A task that names its memory or disk gets what it named, not a rounded-up share.
    if tuning.proportional_whole_tasks and request[1] < 0 and request[2] < 0:
        above, below = 1, below // above
    cores, memory, disk, gpus = limits_max
    if cores < 0 and gpus > 0:
        cores = 0
    else:
        cores = max(1, cores, room[0] * above // below)
    disk_share = room[2] * above // below
    if tuning.resource_submit_multiplier != 1.0:
        disk_share = int(disk_share / tuning.resource_submit_multiplier)
    return Resources(cores, max(1, memory, room[1] * above // below), max(1, disk, disk_share), max(0, gpus)), False


def _takes_all(limits: Resources, room: Resources) -> bool:
    """Step 3: some resource that was asked for is used up by this task alone (or nothing was asked for)."""
    asked = False
    for limit, total in zip(limits, room, strict=True):
        if limit > 0:
            asked = True
            if limit >= total:
                return True
    return not asked


def _fill(limits: Resources, room: Resources) -> Resources:
    """Step 4: the whole worker for everything that is open; gpus only go to who names them."""
    cores, memory, disk, gpus = limits
    if cores <= 0:
        cores = 0 if gpus > 0 else room[0]
    return Resources(cores, memory if memory > 0 else room[1], disk if disk > 0 else room[2], max(0, gpus))

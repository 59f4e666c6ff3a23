"""Other ways to scale, to compare ours with: the published algorithm, and one who knows the future.

Owns the published cycle: so many workers as there are tasks, at most a few new ones per period, nobody is ever told to
leave. Pure.
"""

from __future__ import annotations

from vine_factory.dayworld import Day

WORKERS_PER_CYCLE = 5
"""The published default."""


def published(day: Day, per_cycle: int = WORKERS_PER_CYCLE, tasks_per_worker: int = 0) -> None:
    """One cycle of the published algorithm. ``per_cycle``, ``tasks_per_worker``: its options, 0 = not given."""
    needed = day.waiting_tasks + day.running_tasks
    if tasks_per_worker:
        needed = -(-needed // tasks_per_worker)
    cores = sum(cores * len(queue) for cores, queue in day.waiting.items())
    cores += sum(day.site.cores - job.free for job in day.jobs.values())
    needed = min(day.site.maximum, max(needed, -(-cores // day.site.cores)))
    submitted = len(day.jobs)
    waiting = submitted - sum(1 for job in day.jobs.values() if job.connected_at is not None)
    new = needed - submitted
    if per_cycle and new + waiting > per_cycle:
        new = max(0, per_cycle - waiting)
    for _ in range(new):
        day.submit(f"p-{day.totals.jobs}")


def all_there(day: Day) -> None:
    """Every worker that the site can have, from the first moment on and without waiting. Who knows the future pays only
    for the cores in use."""
    day.patient = True
    if not day.totals.jobs:
        for number in range(day.site.maximum):
            day.have(f"o-{number}")
    day.lately_ended.clear()

"""What a factory asks: which workers could be used, for what, for how long, and who else is providing them.

Reads the core's books and keeps only the list of factories that asked lately. Everything here may walk over workers
and shapes; it is called when a factory asks, not per task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskvine_core.errors import UsageError
from taskvine_core.manager.allocation import allocate
from taskvine_core.manager.ready import Shape
from taskvine_core.manager.records import MB, TaskRecord, WorkerRecord
from taskvine_core.manager.report import idle_s, refresh_stats, worker_state
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources

if TYPE_CHECKING:
    from taskvine_core.manager.core import ManagerCore

Record = dict[str, Any]

#: Stands for "whatever the worker has" where a pool's shape leaves memory or disk open.
UNLIMITED = 1 << 40
#: Shapes of ready tasks looked at for one answer: of more, evenly spread ones stand for the rest.
MAX_SHAPES = 2000
#: A factory that has not asked for so many of its periods is gone.
ASKER_PERIODS = 3.0
ASKER_MIN_S = 10.0
#: How many digits of a share matter: what is closer is the same kind of task to a factory.
SHARE_DIGITS = 4


class Asker(NamedTuple):
    """What a factory said with its last question. ``pending``, ``room``: workers per shape asked for. ``granted``: so
    many it may have under way by now because of the answer: two that ask at once must not both start everything."""

    at: float
    forget_at: float
    shapes: tuple[tuple[Resources, frozenset[str]], ...]
    pending: tuple[int, ...]
    room: tuple[int, ...]
    granted: tuple[int, ...]


class Askers:
    """Factories that asked lately, by identity."""

    def __init__(self) -> None:
        self._known: dict[str, Asker] = {}

    def note(self, factory: str, asker: Asker) -> None:
        """Replace what is known of a factory."""
        self._known[factory] = asker

    def others(self, factory: str, now: float) -> tuple[int, int, list[tuple[Resources, int]]]:
        """Of the other factories: how many could start more, how many of those come before this one by name, and
        the workers that they have under way, by what each offers."""
        for name in [name for name, asker in self._known.items() if asker.forget_at < now]:
            del self._known[name]
        others = {name: asker for name, asker in self._known.items() if name != factory}
        able = [name for name, asker in others.items() if any(asker.room)]
        pending = [(shape[0], max(told, granted)) for asker in others.values()
                   for shape, told, granted in zip(asker.shapes, asker.pending, asker.granted, strict=True)
                   if told or granted]
        return len(able), sum(1 for name in able if name < factory), pending


def demand(core: ManagerCore, body: Record) -> Record:
    """The answer to the "demand" question.

    ``groups``: kinds of ready tasks that are all alike to the factory: how many, seconds each (null: not known yet),
    and per shape asked for the share of such a worker that one task takes (0: it cannot run there).
    """
    refresh_stats(core)
    books, stats = core.books, core.books.stats
    shapes = [_shape(entry) for entry in _entries(body)]
    able, before, pending = core.askers.others(str(body.get("factory_id", "")), books.now)
    groups = _groups(core, shapes)
    _note_asker(core, body, shapes, _granted(groups, shapes, pending, able))
    return {
        "manager_id": core.manager_id, "project": core.fleet.name, "tasks_waiting": stats.tasks_waiting,
        "tasks_running": stats.tasks_on_workers, "tasks_left": core.tasks_left,
        "groups": groups,
        "workers": [_worker(core, worker) for worker in books.workers.values()],
        "blocked_hosts": sorted(core.fleet.blocked_hosts),
        "others": {"able": able, "before": before,
                   "pending": [{**_resources(resources), "workers": count} for resources, count in pending]},
    }


class _Asked(NamedTuple):
    totals: Resources
    features: frozenset[str]
    walltime_s: float
    pending: int
    room: int


def _entries(body: Record) -> list[Record]:
    shapes = body.get("shapes", [])
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise UsageError("query 'demand': 'shapes' is not a list of objects")
    return shapes


def _shape(entry: Record) -> _Asked:
    amounts = [amount(entry, key) for key in ("cores", "memory_mb", "disk_mb", "gpus")]
    features = entry.get("features") or []
    if not isinstance(features, list):
        raise UsageError("query 'demand': features is not a list of strings")
    return _Asked(Resources(*amounts), frozenset(map(str, features)), float(amount(entry, "walltime_s")),
                  amount(entry, "pending"), amount(entry, "room"))


def amount(asked: Record, key: str) -> int:
    """A number of a question; absent and null count as 0."""
    value = asked.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < UNLIMITED:
        raise UsageError(f"query 'demand': {key} is {value!r}, not an amount")
    return int(value)


def _granted(groups: list[Record], shapes: list[_Asked], pending: list[tuple[Resources, int]],
             able: int) -> tuple[int, ...]:
    """Workers of each shape that a factory may have under way once it has this answer: its part of what others have
    not under way. Too many would only make others wait until it asks again."""
    taken_cores = float(sum(max(1, resources.cores) * count for resources, count in pending))
    wanted = [0.0] * len(shapes)
    for group in groups:
        index = next((index for index, part in enumerate(group["parts"]) if part > 0), None)
        if index is None:
            continue
        cores = group["parts"][index] * max(1, shapes[index].totals.cores)
        by_others = min(group["tasks"], taken_cores // cores)
        taken_cores -= by_others * cores
        wanted[index] += (group["tasks"] - by_others) * group["parts"][index]
    return tuple(asked.pending + min(asked.room, math.ceil(max(0.0, want - asked.pending) / (able + 1)))
                 for want, asked in zip(wanted, shapes, strict=True))


def _note_asker(core: ManagerCore, body: Record, shapes: list[_Asked], granted: tuple[int, ...]) -> None:
    factory, now = str(body.get("factory_id", "")), core.books.now
    if factory:
        period_s = float(amount(body, "period_s"))
        core.askers.note(factory, Asker(
            now, now + max(ASKER_MIN_S, ASKER_PERIODS * period_s), tuple((s.totals, s.features) for s in shapes),
            tuple(s.pending for s in shapes), tuple(s.room for s in shapes), granted))


def _groups(core: ManagerCore, shapes: list[_Asked]) -> list[Record]:
    """Ready tasks by what a factory can tell apart: the shares they take, their category's pace."""
    merged: dict[tuple[object, ...], Record] = {}
    for shape, task, count in _sample(core):
        parts = [_part(core, task, shape, asked) for asked in shapes]
        pace = core.dispatcher.pace.get(shape.family.category)
        record = merged.setdefault((shape.family.category, pace, *parts), {
            "category": shape.family.category, "tasks": 0.0, "seconds": pace, "parts": parts,
            "asks": _resources(task.spec.resources)})
        record["tasks"] += count
    return list(merged.values())


def _sample(core: ManagerCore) -> Iterator[tuple[Shape, TaskRecord, float]]:
    shapes = [shape for shape in core.books.ready.shapes.values() if shape.count]
    step = max(1, -(-len(shapes) // MAX_SHAPES))
    seen = shapes[::step]
    total, looked_at = sum(shape.count for shape in shapes), sum(shape.count for shape in seen)
    for shape in seen:
        task = shape.head()
        if task is not None:
            yield shape, task, shape.count * total / looked_at


def _part(core: ManagerCore, task: TaskRecord, shape: Shape, asked: _Asked) -> float:
    """Share of such a worker that one task takes, 0 when it cannot run there."""
    if not shape.family.features <= asked.features:
        return 0.0
    if asked.walltime_s and shape.family.time_min_s > asked.walltime_s:
        return 0.0
    category = core.books.categories.get(shape.family.category)
    request = task.spec.resources
    totals = asked.totals
    given = allocate(request, category.effective_max(request, task.id, task.exhausted),
                     category.effective_min(request, task.id, task.exhausted, None),
                     _filled(totals), totals.disk_mb or UNLIMITED, tuning=core.books.tuning,
                     learned=category.learned(task.exhausted))
    return share(given, totals)


def _filled(totals: Resources) -> Resources:
    return Resources(totals.cores or 1, totals.memory_mb or UNLIMITED, totals.disk_mb or UNLIMITED, totals.gpus)


def share(given: Resources, totals: Resources) -> float:
    """Share of a worker an allocation takes, counting what is left over beside as many of its kind as fit; 0 when
    not even one fits."""
    fit = float("inf")
    for amount_, have in zip(given, _filled(totals), strict=True):
        if amount_ > have:
            return 0.0
        if amount_ > 0:
            fit = min(fit, have // amount_)
    return round(1.0 / fit, SHARE_DIGITS) if fit != float("inf") else 0.0


def _worker(core: ManagerCore, worker: WorkerRecord) -> Record:
    sole = sum(max(0, f.size) for f in worker.files.values() if core.staging.copies.is_sole(f, worker))
    return {
        "worker_id": worker.id, "job_id": worker.hello.job_id, "factory_name": worker.hello.factory_name,
        "hostname": worker.hello.hostname, "state": worker_state(worker), "idle_s": idle_s(worker, core.books.now),
        "tasks_running": worker.sent, "load": _load(worker), "cache_mb": worker.cache_mb,
        "sole_mb": -(-sole // MB), "end_time": worker.end_time, **_resources(worker.totals),
    }


def _load(worker: WorkerRecord) -> float:
    """How much of a worker its tasks take, at most 1."""
    shares = (share(task.run.allocation, worker.totals)
              for task in (*worker.running.values(), *worker.queued.values()) if task.run is not None)
    return round(min(1.0, sum(shares)), SHARE_DIGITS)


def _resources(values: Resources) -> Record:
    return {"cores": values.cores, "memory_mb": values.memory_mb, "disk_mb": values.disk_mb, "gpus": values.gpus}

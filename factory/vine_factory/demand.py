"""What the managers can use, from their answers.

Owns the question and the strict reading of the answer (JSON contract of the "demand" query), and what of it is left
when others have done their part. Pure: gets decoded JSON, knows no connection.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from taskvine_core.errors import RemoteProtocolError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory import defaults

IDLE, BUSY, DRAINING = "idle", "busy", "draining"
_EPSILON = 1e-6
"""Shares are rounded to four digits: ten tenths are a whole."""


class Shape(NamedTuple):
    """What one worker of a pool offers. ``walltime_s`` 0 = it may run for ever."""

    resources: Resources
    features: tuple[str, ...] = ()
    walltime_s: float = 0.0


class Standing(NamedTuple):
    """What a pool tells managers of itself, in workers: under way and not connected yet; still possible."""

    pending: int
    room: int


class Group(NamedTuple):
    """Waiting tasks that are alike. ``seconds``: one of them takes so long, None when the manager cannot tell.
    ``parts``: of each shape asked for, the share of such a worker that one task takes; 0 = it cannot run there.
    ``asks``: what the tasks ask for, -1 where they say nothing."""

    category: str
    tasks: float
    seconds: float | None
    parts: tuple[float, ...]
    asks: Resources


class Others(NamedTuple):
    """Factories that feed the same manager: how many of them could start more, how many of those come before us, and
    workers that they have under way, by what each offers."""

    able: int = 0
    before: int = 0
    pending: tuple[tuple[Resources, int], ...] = ()


class WorkerFacts(NamedTuple):
    """One worker connected to a manager. ``sole_mb``: data nobody else holds. ``load``: 0..1 of it is in use."""

    worker_id: str
    job_id: str
    hostname: str
    state: str
    idle_s: float
    tasks_running: int
    cache_mb: int
    sole_mb: int
    resources: Resources
    load: float = 0.0


class Demand(NamedTuple):
    """One manager's answer; ``groups`` have their parts in the order of the shapes asked for. ``unnamed``: the manager
    tells no job ids, and so many of its workers are ours; None = it tells them."""

    manager_id: str
    project: str
    tasks_waiting: int
    tasks_running: int
    tasks_left: int
    groups: tuple[Group, ...]
    workers: tuple[WorkerFacts, ...]
    blocked_hosts: tuple[str, ...]
    others: Others = Others()
    unnamed: int | None = None


def question(shapes: Sequence[Shape], standings: Sequence[Standing], factory_name: str, factory_id: str,
             period_s: float) -> dict[str, object]:
    """Body of the "demand" query; ``period_s``: when it will be asked again."""
    return {"factory": factory_name, "factory_id": factory_id, "period_s": period_s,
            "shapes": [{**_amounts(shape.resources), "features": list(shape.features),
                        "walltime_s": shape.walltime_s, "pending": standing.pending, "room": standing.room}
                       for shape, standing in zip(shapes, standings, strict=True)]}


def parse_demand(body: object, shapes: int) -> Demand:
    """Read an answer to a question about ``shapes`` shapes.

    Raises:
        RemoteProtocolError: a field is missing, of another type, negative or absurd. The reading is then unknown;
            garbage is never taken for a number.
    """
    record = _mapping(body, "demand")
    return Demand(
        manager_id=_text(record, "manager_id"), project=_text(record, "project"),
        tasks_waiting=_count(record, "tasks_waiting"), tasks_running=_count(record, "tasks_running"),
        tasks_left=_count(record, "tasks_left"),
        groups=tuple(_group(entry, shapes) for entry in _list(record, "groups")),
        workers=tuple(_worker(entry) for entry in _list(record, "workers")),
        blocked_hosts=tuple(str(host) for host in _list(record, "blocked_hosts")),
        others=_others(record.get("others")))


def without_others(demand: Demand, shapes: Sequence[Shape], own_jobs: Collection[str]) -> tuple[Group, ...]:
    """The waiting tasks that are left when workers that are not ours have taken what they can."""
    spare = [(worker.resources, 1.0 - worker.load) for worker in demand.workers
             if worker.job_id not in own_jobs and worker.state != DRAINING and worker.load < 1.0]
    spare += [(resources, 1.0) for resources, count in demand.others.pending for _ in range(count)]
    if not spare:
        return demand.groups
    left = []
    for group in demand.groups:
        tasks = group.tasks
        for index, (resources, free) in enumerate(spare):
            part = _part_elsewhere(group, shapes, resources)
            if tasks > 0 and part > 0:
                taken = min(tasks, math.floor(free / part + _EPSILON))
                tasks -= taken
                spare[index] = (resources, free - taken * part)
        left.append(group._replace(tasks=tasks))
    return tuple(group for group in left if group.tasks > 0)


def _part_elsewhere(group: Group, shapes: Sequence[Shape], resources: Resources) -> float:
    """Share of a foreign worker that one task takes, 0 when it cannot run there: by cores, from a shape of ours."""
    if any(ask > have for ask, have in zip(group.asks, resources, strict=True)):
        return 0.0
    for part, shape in zip(group.parts, shapes, strict=True):
        if part > 0:
            return min(1.0, part * max(1, shape.resources.cores) / max(1, resources.cores))
    return 0.0


def _group(entry: object, shapes: int) -> Group:
    record = _mapping(entry, "group")
    seconds = record.get("seconds")
    parts = _list(record, "parts")
    if len(parts) != shapes:
        raise RemoteProtocolError(f"manager answered for {len(parts)} shapes, asked were {shapes}")
    shares = tuple(max(part, defaults.MIN_PART) if part else 0.0 for part in
                   (_amount(each, "a part") for each in parts))
    if any(share > 1 for share in shares):
        raise RemoteProtocolError(f"manager's answer has parts = {parts!r}, more than a worker")
    tasks = _number(record, "tasks")
    if tasks > defaults.MAX_COUNT:
        raise RemoteProtocolError(f"manager's answer has tasks = {tasks:g}, more than can be true")
    return Group(_text(record, "category"), tasks,
                 None if seconds is None else min(_amount(seconds, "seconds"), defaults.MAX_SECONDS), shares,
                 _asks(_mapping(record.get("asks"), "asks")))


def _others(value: object) -> Others:
    if value is None:
        return Others()
    record = _mapping(value, "others")
    pending = [_mapping(entry, "pending") for entry in _list(record, "pending")]
    return Others(_count(record, "able"), _count(record, "before"),
                  tuple((_offers(entry), min(_count(entry, "workers"), defaults.MAX_PENDING)) for entry in pending))


def _worker(entry: object) -> WorkerFacts:
    record = _mapping(entry, "worker")
    return WorkerFacts(
        worker_id=_text(record, "worker_id"), job_id=_text(record, "job_id"), hostname=_text(record, "hostname"),
        state=_text(record, "state"), idle_s=_number(record, "idle_s"), tasks_running=_count(record, "tasks_running"),
        cache_mb=_count(record, "cache_mb"), sole_mb=_count(record, "sole_mb"), resources=_offers(record),
        load=min(1.0, _number(record, "load")))


def _amounts(values: Resources) -> dict[str, object]:
    return {"cores": values.cores, "memory_mb": values.memory_mb, "disk_mb": values.disk_mb, "gpus": values.gpus}


def _offers(record: Mapping[str, Any]) -> Resources:
    return Resources(_count(record, "cores"), _count(record, "memory_mb"), _count(record, "disk_mb"),
                     _count(record, "gpus"))


def _asks(record: Mapping[str, Any]) -> Resources:
    """As `_offers`, but "says nothing" stays apart from nothing."""
    return Resources(*(-1 if record.get(key) == -1 else _count(record, key)
                       for key in ("cores", "memory_mb", "disk_mb", "gpus")))


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"manager's {what} is {type(value).__name__}, expected an object")
    return value


def _list(record: Mapping[str, Any], key: str) -> list[object]:
    value = record.get(key)
    if not isinstance(value, list):
        raise RemoteProtocolError(f"manager's answer has no list {key!r}")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"manager's answer has no text {key!r}")
    return value


def _number(record: Mapping[str, Any], key: str) -> float:
    return _amount(record.get(key), key)


def _amount(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise RemoteProtocolError(f"manager's answer has {key} = {value!r}, expected a number not below 0")
    return float(value)


def _count(record: Mapping[str, Any], key: str) -> int:
    """A whole number; -1 ("unset") is taken for 0. Disk and memory in MB may exceed MAX_COUNT, counts may not."""
    value = record.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise RemoteProtocolError(f"manager's answer has {key} = {value!r}, expected a count")
    if value > defaults.MAX_COUNT and not key.endswith("_mb"):
        raise RemoteProtocolError(f"manager's answer has {key} = {value}, more than can be true")
    return max(0, value)

"""What the managers can use, from their answers.

Owns the question and the strict reading of the answer (JSON contract of the "demand" query), and the arithmetic
from "workers of this shape in total" to "workers of ours". Pure: gets decoded JSON, knows no connection.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from taskvine_core.errors import RemoteProtocolError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory import defaults

IDLE, BUSY, DRAINING = "idle", "busy", "draining"


class Shape(NamedTuple):
    """What one worker of a pool offers."""

    resources: Resources
    features: tuple[str, ...] = ()


class ShapeNeed(NamedTuple):
    """``workers``: how many of one shape the manager could use now, connected ones included.
    ``seconds``: estimated work for each, None when the manager cannot tell."""

    workers: int
    seconds: float | None


class WorkerFacts(NamedTuple):
    """One worker connected to a manager. ``sole_mb``: data nobody else holds."""

    worker_id: str
    job_id: str
    hostname: str
    state: str
    idle_s: float
    tasks_running: int
    cache_mb: int
    sole_mb: int
    resources: Resources


class Demand(NamedTuple):
    """One manager's answer; ``needs`` in the order of the shapes asked for."""

    manager_id: str
    project: str
    tasks_waiting: int
    tasks_running: int
    tasks_left: int
    needs: tuple[ShapeNeed, ...]
    workers: tuple[WorkerFacts, ...]
    blocked_hosts: tuple[str, ...]


def question(shapes: Sequence[Shape], factory_name: str) -> dict[str, object]:
    """Body of the "demand" query."""
    return {"factory": factory_name,
            "shapes": [{"cores": s.resources.cores, "memory_mb": s.resources.memory_mb,
                        "disk_mb": s.resources.disk_mb, "gpus": s.resources.gpus,
                        "features": list(s.features)} for s in shapes]}


def parse_demand(body: object, shapes: int) -> Demand:
    """Read an answer to a question about ``shapes`` shapes.

    Raises:
        RemoteProtocolError: a field is missing, of another type, negative or absurd. The reading is then unknown;
            garbage is never taken for a number.
    """
    record = _mapping(body, "demand")
    needs = tuple(_need(entry) for entry in _list(record, "shapes"))
    if len(needs) != shapes:
        raise RemoteProtocolError(f"manager answered for {len(needs)} shapes, asked were {shapes}")
    return Demand(
        manager_id=_text(record, "manager_id"), project=_text(record, "project"),
        tasks_waiting=_count(record, "tasks_waiting"), tasks_running=_count(record, "tasks_running"),
        tasks_left=_count(record, "tasks_left"), needs=needs,
        workers=tuple(_worker(entry) for entry in _list(record, "workers")),
        blocked_hosts=tuple(str(host) for host in _list(record, "blocked_hosts")))


def own_need(demand: Demand, index: int, shape: Shape, own_jobs: Collection[str]) -> int:
    """How many workers of pool ``index`` are ours to provide: the total less what others have connected.

    A foreign worker counts by its cores, so that one of 32 cores stands for four of 8.
    """
    total = demand.needs[index].workers
    ours = max(1, shape.resources.cores)
    foreign = 0.0
    for worker in demand.workers:
        if worker.job_id not in own_jobs and worker.state != DRAINING:
            foreign += max(1, worker.resources.cores) / ours
    return max(0, total - int(foreign))


def _need(entry: object) -> ShapeNeed:
    record = _mapping(entry, "shape")
    seconds = record.get("seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0):
        raise RemoteProtocolError(f"manager's answer has seconds = {seconds!r}")
    return ShapeNeed(_count(record, "workers"), None if seconds is None else float(seconds))


def _worker(entry: object) -> WorkerFacts:
    record = _mapping(entry, "worker")
    return WorkerFacts(
        worker_id=_text(record, "worker_id"), job_id=_text(record, "job_id"), hostname=_text(record, "hostname"),
        state=_text(record, "state"), idle_s=_number(record, "idle_s"), tasks_running=_count(record, "tasks_running"),
        cache_mb=_count(record, "cache_mb"), sole_mb=_count(record, "sole_mb"),
        resources=Resources(_count(record, "cores"), _count(record, "memory_mb"), _count(record, "disk_mb"),
                            _count(record, "gpus")))


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
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
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

"""Managers of the C implementation: what they say of themselves, and what follows from it.

Owns the reading of their records (from a catalog or from the manager: the same keys) and the published arithmetic of
need. Such managers speak no "demand" and no "retire", and tell no job ids: workers are counted, never named. Everything
read here is untrusted. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvine_core.errors import RemoteProtocolError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory import defaults
from vine_factory.demand import BUSY, Demand, Group, Others, Shape, WorkerFacts

MANAGER_TYPE = "vine_manager"
ANYTHING = Resources(-1, -1, -1, -1)
_MAX_TEXT = 256
_MAX_PORT = 65535
_SIZES = ("cores", "memory", "disk", "gpus")


class Rules(NamedTuple):
    """How need is worked out. ``per_worker``: tasks one worker runs at a time, 0 = not said. ``capacity``: believe the
    managers' own bound. ``asked``: for each pool what is asked for a worker, -1 = nothing."""

    per_worker: int
    capacity: bool
    asked: tuple[Resources, ...]


def count(record: Mapping[str, Any], key: str, *, needed: bool = True) -> int:
    """A number of a record.

    Raises:
        RemoteProtocolError: it is not there and ``needed``, no whole number, negative or absurd: nothing is known then.
    """
    value = record.get(key)
    if value is None and not needed:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    absurd = isinstance(value, int) and value > defaults.MAX_COUNT and not key.endswith(("memory", "disk"))  # MB
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or absurd:
        raise RemoteProtocolError(f"the manager's record has {key} = {str(value)[:_MAX_TEXT]!r}, expected a count")
    return value


def text(record: Mapping[str, Any], key: str) -> str:
    """A short text of a record, "" when there is none."""
    value = record.get(key)
    return value[:_MAX_TEXT] if isinstance(value, str) and value.isprintable() else ""


def need(record: Mapping[str, Any], asked: Resources, rules: Rules) -> int:
    """Workers of one size that this manager can use in all, those it has included.

    Raises:
        RemoteProtocolError: a count is missing or garbage.
    """
    tasks = count(record, "tasks_waiting") + count(record, "tasks_left", needed=False) + \
        count(record, "tasks_on_workers", needed=False)
    per_worker = max(1, rules.per_worker)
    wanted = _up(tasks, per_worker)
    sizes = [(name, size) for name, size in zip(_SIZES, asked, strict=True) if size > 0]
    for name, size in sizes:
        wanted = max(wanted, _up(count(record, f"tasks_total_{name}", needed=False), size))
    bound = count(record, "capacity_weighted", needed=False) if rules.capacity else 0
    if bound > 0:
        bound = _up(bound, per_worker)
        for name, size in sizes:
            there = count(record, f"capacity_{name}", needed=False)
            bound = min(bound, _up(there, size)) if there > 0 else bound
        wanted = min(wanted, bound)
    return min(wanted, defaults.MAX_COUNT)


def demand(record: Mapping[str, Any], workers: Sequence[object] | None, shapes: Sequence[Shape], rules: Rules,
           factory_name: str, submitted: int) -> Demand:
    """What a factory can act on.

    Args:
        record: of the manager.
        workers: its answer to ``worker_status``, None where only a catalog has told of it.
        shapes: of the pools; rules.asked has their sizes.
        factory_name: ours, as our workers carry it.
        submitted: workers of ours that may be connected somewhere.

    Raises:
        RemoteProtocolError: garbage.
    """
    needs = [need(record, asked, rules) for asked in rules.asked]
    most = max(needs, default=0)
    group = Group("tasks", float(most), None, tuple(each / most for each in needs), ANYTHING) if most else None
    connected = count(record, "workers", needed=False)
    facts: tuple[WorkerFacts, ...] = ()
    if workers is None:
        # Whose they are is not told: those that cannot be ours are others'.
        ours = min(connected, submitted)
        foreign = connected - ours
    else:
        facts = tuple(_worker(entry, index) for index, entry in enumerate(workers))
        ours = sum(isinstance(entry, dict) and entry.get("factory_name") == factory_name for entry in workers)
        foreign = len(facts) - ours
    others = Others(pending=((shapes[0].resources, min(foreign, defaults.MAX_PENDING)),)) if shapes else Others()
    hosts = record.get("workers_blocked")
    blocked = hosts.split() if isinstance(hosts, str) else hosts if isinstance(hosts, list) else []
    return Demand(text(record, "taskvine_uuid"), text(record, "project"), count(record, "tasks_waiting"),
                  count(record, "tasks_running", needed=False), count(record, "tasks_left", needed=False),
                  (group,) if group else (), facts,
                  tuple(host for host in blocked if isinstance(host, str) and host.replace("-", "a").replace(".", "a")
                        .isalnum()), others, ours)


def _up(amount: int, size: int) -> int:
    return -(-amount // size)


def _worker(entry: object, index: int) -> WorkerFacts:
    """For show only: busy, so that nobody thinks it could be retired, and of no known job."""
    record = entry if isinstance(entry, dict) else {}
    return WorkerFacts(text(record, "workerid") or f"worker-{index}", "", text(record, "hostname"), BUSY, 0.0, 0, 0, 0,
                       ANYTHING, 1.0)


def managers(body: object) -> list[Mapping[str, Any]]:
    """Records of managers among those of a catalog that can be used at all; the rest is somebody else's.

    Raises:
        RemoteProtocolError: it is no list.
    """
    if not isinstance(body, list):
        raise RemoteProtocolError(f"the catalog's answer is {type(body).__name__}, expected a list")
    return [record for record in body if isinstance(record, dict) and record.get("type") == MANAGER_TYPE
            and text(record, "project") and (text(record, "name") or text(record, "address"))
            and isinstance(record.get("port"), int) and not isinstance(record["port"], bool)
            and 0 < record["port"] <= _MAX_PORT]

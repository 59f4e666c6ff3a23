"""What orders mean to a running factory.

Owns the names of orders, their checking and their answers. Orders about pools become events of the core, which decides;
the others only look. Called from the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from taskvine_core.records import NamedTuple
from vine_factory import statefile
from vine_factory.batch.base import JobHandle, JobTag
from vine_factory.batch.schema import nearest_hint
from vine_factory.control import Reply
from vine_factory.core import FactoryCore
from vine_factory.events import Event, PoolDrained, PoolPaused, PoolResumed
from vine_factory.jobs import Job
from vine_factory.passes import records
from vine_factory.pools import Pools
from vine_factory.readings import Known

POOL_ORDERS: Mapping[str, Callable[[str], Event]] = {"drain": PoolDrained, "pause": PoolPaused, "resume": PoolResumed}


class _Adoption(NamedTuple):
    """Somebody waits for a fresh listing of every pool."""

    asked_at: float
    known: frozenset[str]
    reply: Reply


class Orders:
    """Takes orders for one factory.

    Args:
        core: the factory.
        pools: its batch systems.
        handle: gives the core an event and carries out what follows.
        wake: has a pass made soon.
        factory_id: of the factory.
        clock: seconds since the epoch.
    """

    def __init__(self, core: FactoryCore, pools: Pools, handle: Callable[[Event], None], wake: Callable[[], None],
                 factory_id: str, clock: Callable[[], float]) -> None:
        self._core = core
        self._pools = pools
        self._handle = handle
        self._wake = wake
        self._factory_id = factory_id
        self._clock = clock
        self._adoptions: list[_Adoption] = []

    def take(self, order: Mapping[str, Any], reply: Reply) -> None:
        """One order. Its answer may come later."""
        name = order.get("order")
        if name in POOL_ORDERS:
            self._pool_order(str(name), order.get("pools"), reply)
        elif name == "status":
            reply({"state": statefile.snapshot(self._core, self._clock())})
        elif name == "explain":
            reply({"records": records(self._core, self._pools.readings(self._clock()), self._clock())})
        elif name == "adopt":
            known = frozenset(job.intent_id for job in self._core.fleet.live())
            self._adoptions.append(_Adoption(self._clock(), known, reply))
            self._pools.look()
        elif name == "logs":
            self._logs(order, reply)
        else:
            reply({"error": f"unknown order {name!r}"})

    def after_pass(self) -> None:
        """Answer those whose listings have come."""
        if not self._adoptions:
            return
        readings = self._pools.readings(self._clock())
        ages = [reading.at if isinstance(reading, Known) else reading.since for reading in readings.values()]
        fresh = min(ages, default=0.0) if len(readings) == len(self._core.settings.pools) else 0.0
        for adoption in [adoption for adoption in self._adoptions if fresh >= adoption.asked_at]:
            self._adoptions.remove(adoption)
            adoption.reply({"pools": {pool.name: self._found(pool.name, adoption, readings.get(pool.name))
                                      for pool in self._core.settings.pools}})
        if self._adoptions:
            self._wake()

    def _found(self, pool: str, adoption: _Adoption, reading: object) -> dict[str, object]:
        if not isinstance(reading, Known):
            return {"unknown": getattr(reading, "reason", "not asked yet")}
        jobs = [job for job in self._core.fleet.of_pool(pool) if job.seen]
        return {"jobs": len(jobs), "new": sum(job.intent_id not in adoption.known for job in jobs)}

    def _pool_order(self, name: str, wanted: object, reply: Reply) -> None:
        known = [pool.name for pool in self._core.settings.pools]
        pools = wanted if isinstance(wanted, list) and wanted else known
        wrong = [pool for pool in pools if pool not in known]
        if wrong:
            reply({"error": f"there is no pool {wrong[0]!r} ({nearest_hint(str(wrong[0]), known)})"})
            return
        for pool in pools:
            self._handle(POOL_ORDERS[name](pool))
        self._wake()
        reply({"pools": pools})

    def _logs(self, order: Mapping[str, Any], reply: Reply) -> None:
        wanted = str(order.get("job", ""))
        found = [job for job in self._core.fleet.jobs.values()
                 if wanted and (job.batch_id == wanted or job.intent_id.startswith(wanted))]
        exact = [job for job in found if wanted in (job.intent_id, job.batch_id)] or found
        pool, intent, batch = str(order.get("pool", "")), str(order.get("intent", "")), \
            str(order.get("batch_id", ""))
        if len(exact) > 1:
            reply({"error": f"{len(exact)} jobs begin with {wanted!r}"})
            return
        if exact:
            pool, intent, batch = _place(exact[0])
        if not self._pools.describe(pool, JobHandle(JobTag(self._factory_id, pool, intent), batch), reply):
            reply({"error": f"no job {wanted!r} is known (vine_factory explain --job has the history of old ones)"})


def _place(job: Job) -> tuple[str, str, str]:
    return job.pool, job.intent_id, job.batch_id

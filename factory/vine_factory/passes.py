"""The record of one pass: everything that a decision was made from, as JSON-able data.

Owns the record's keys. `reasons.py` explains a decision from such a record alone. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vine_factory import defaults
from vine_factory.batch.base import BatchState, JobStatus
from vine_factory.config import PoolSettings
from vine_factory.core import FactoryCore
from vine_factory.demand import DRAINING
from vine_factory.explain import as_record
from vine_factory.jobs import JobState
from vine_factory.readings import Known, Reading

FORMAT = 1
_SAID_KINDS = 5

Listing = Reading[tuple[JobStatus, ...]]


def records(core: FactoryCore, listings: Mapping[str, Listing], now: float) -> list[dict[str, Any]]:
    """One record for each pool that has decided, as things are now."""
    return [_record(core, pool, listings.get(pool.name), now) for pool in core.settings.pools
            if core.pools[pool.name].decision is not None]


def key(record: Mapping[str, Any]) -> object:
    """What makes a decision another one; numbers that merely move along do not."""
    steps = tuple(step[0] for step in record["steps"])
    return (record["target"], steps, record["order"], record["stopping"], record["discovery"], record["listing"],
            record["health"]["tripped"], tuple((each["address"], each["answers"]) for each in record["managers"]))


def _record(core: FactoryCore, pool: PoolSettings, listing: Listing | None, now: float) -> dict[str, Any]:
    state = core.pools[pool.name]
    decision = state.decision
    assert decision is not None and decision.situation is not None  # by `records`; the core always gives both
    largest = sorted(decision.demand, key=lambda share: -share.tasks)[:defaults.RECORDED_GROUPS]
    health = state.health
    return {
        "format": FORMAT, "at": round(now, 3), **as_record(decision), "situation": decision.situation._asdict(),
        "order": state.order, "stopping": core.stopping, "discovery": core.discovery_unknown,
        "listing": state.listing_unknown, "managers": _managers(core),
        "groups": [share._asdict() | {"asks": list(share.asks)} for share in largest],
        "groups_left_out": len(decision.demand) - len(largest), "jobs": _jobs(core, pool),
        "waits": _waits(listing), "target_of": core.settings.target.text(),
        "health": {"tripped": health.tripped, "last_words": health.last_words, "preempted": health.preempted,
                   "kinds": {kind.value: {"total": breaker.total, "tripped": breaker.level > 0,
                                          "retry_at": breaker.retry_at if breaker.level > 0 else None,
                                          "last_words": breaker.last_words}
                             for kind, breaker in health.kinds.items()}},
        "excluded_hosts": list(state.hosts.excluded(now)), "excludes_hosts": pool.excludes_hosts}


def _managers(core: FactoryCore) -> list[dict[str, Any]]:
    return [{"address": view.key, "project": view.last.project if view.last else "",
             "answers": view.gone_since is None, "why": view.why_gone if view.gone_since is not None else "",
             "tasks_waiting": view.last.tasks_waiting if view.last else None,
             "tasks_running": view.last.tasks_running if view.last else None,
             "workers": len(view.last.workers) if view.last else None,
             "draining": sum(one.state == DRAINING for one in view.last.workers) if view.last else None}
            for view in core.views.values()]


def _jobs(core: FactoryCore, pool: PoolSettings) -> dict[str, int]:
    counts = dict.fromkeys((s.value for s in JobState if s is not JobState.ENDED), 0) | {"idle": 0, "busy": 0}
    for job in core.fleet.of_pool(pool.name):
        counts[job.state.value] += 1
        counts["idle"] += job.idle
        counts["busy"] += job.busy
    return counts


def _waits(listing: Listing | None) -> list[list[object]]:
    """Why jobs do not run, in the batch system's own words: (state, words, jobs), the most frequent first."""
    if not isinstance(listing, Known):
        return []
    found = Counter((status.state.value, status.said[:defaults.SAID_CHARS]) for status in listing.value
                    if status.state in (BatchState.QUEUED, BatchState.HELD))
    return [[state, said, count] for (state, said), count in found.most_common(_SAID_KINDS)]

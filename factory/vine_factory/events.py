"""What the factory core is told and what it asks for. Plain frozen values; no behaviour.

``cause`` is the number of the event that led to an action; log lines carry it, so that a line can be followed back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskvine_core.records import NamedTuple
from vine_factory.batch.base import JobStatus
from vine_factory.config import Settings
from vine_factory.demand import Demand
from vine_factory.readings import Reading

# ------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the world: what each manager and each batch system last said. A manager that discovery no longer
    lists is absent from ``managers``; ``discovery`` unknown says that this means nothing."""

    managers: Mapping[str, Reading[Demand]]
    discovery: Reading[int]
    batches: Mapping[str, Reading[tuple[JobStatus, ...]]]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The batch system took these: (intent id, batch id)."""

    pool: str
    jobs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """These do not exist: the batch system said no, in the words ``said``."""

    pool: str
    intent_ids: tuple[str, ...]
    said: str


@dataclass(frozen=True, slots=True)
class SubmitUnclear:
    """No answer: these may or may not exist. Only later listings tell."""

    pool: str
    intent_ids: tuple[str, ...]
    said: str


@dataclass(frozen=True, slots=True)
class CancelUnclear:
    """No answer to a cancellation: it has to be asked for again."""

    pool: str
    intent_ids: tuple[str, ...]
    said: str


@dataclass(frozen=True, slots=True)
class RetireAnswered:
    """A manager's answer, by job."""

    manager: str
    accepted: tuple[str, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The configuration was read again and is valid."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class StopRequested:
    """End all workers, then the factory. ``at_once``: without grace. ``keep``: end the factory alone; its workers go on
    and the next start with the same identity adopts them."""

    reason: str
    at_once: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True)
class PoolPaused:
    """A person wants nothing new in this pool; what is there stays until it is not needed."""

    pool: str


@dataclass(frozen=True, slots=True)
class PoolDrained:
    """A person wants this pool empty: workers leave as soon as they have no task."""

    pool: str


@dataclass(frozen=True, slots=True)
class PoolResumed:
    """A person takes back an order, and wants a pool that is tripped tried again now."""

    pool: str


Event = (Observed | Accepted | Refused | SubmitUnclear | CancelUnclear | RetireAnswered | SettingsChanged
         | StopRequested | PoolPaused | PoolDrained | PoolResumed)

# ------------------------------------------------------------------------------------------------ actions


class JobRow(NamedTuple):
    """What has to survive a kill -9 of one job."""

    intent_id: str
    pool: str
    state: str
    batch_id: str
    created_at: float
    connected_once: bool


class MeterRow(NamedTuple):
    """What a pool has used of its budget: core-seconds in the part of the period that began at ``start``."""

    pool: str
    start: float
    core_s: float


class OrderRow(NamedTuple):
    """What a person ordered for a pool: one of limits.PAUSED and limits.DRAINING, "" = as usual."""

    pool: str
    order: str


class HostRow(NamedTuple):
    """A host that a pool avoids until ``until``, for the ``level``-th time in a row; 0 = it is good again."""

    pool: str
    host: str
    level: int
    until: float


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Durably, before any action after it: these rows are new or changed, these jobs are over."""

    rows: tuple[JobRow, ...]
    over: tuple[str, ...]
    meters: tuple[MeterRow, ...] = ()
    orders: tuple[OrderRow, ...] = ()
    hosts: tuple[HostRow, ...] = ()


@dataclass(frozen=True, slots=True)
class SubmitJobs:
    """Submit one job for each intent."""

    pool: str
    intent_ids: tuple[str, ...]
    cause: int


@dataclass(frozen=True, slots=True)
class CancelJobs:
    """End jobs through the batch system: (intent id, batch id)."""

    pool: str
    jobs: tuple[tuple[str, str], ...]
    force: bool
    cause: int


@dataclass(frozen=True, slots=True)
class RetireWorkers:
    """Ask a manager to let workers go: (job's intent id, worker id)."""

    manager: str
    workers: tuple[tuple[str, str], ...]
    reason: str
    cause: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something changed that a person wants to know."""

    kind: str
    text: str
    cause: int
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to do."""

    left: int


Action = WriteJournal | SubmitJobs | CancelJobs | RetireWorkers | Note | Finish

"""What all parts of the worker's core share: the books, the outgoing actions, and room on disk.

Owns eviction and the report about it. Must not know orders or events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from taskvine_core.protocol import messages as m
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from taskvine_core.worker import events as e
from taskvine_core.worker.cache import CachedObject, CacheIndex
from taskvine_core.worker.fetches import FetchQueue
from taskvine_core.worker.life import NEVER, Life, LifeSettings
from taskvine_core.worker.runs import Run, RunTable

BYTES_PER_MB = 1 << 20
#: Evict this fraction of the bound beyond need, so that a full cache is not searched again for every arrival.
EVICTION_SLACK = 50
#: Totals and cache size are told when changed, at most this often.
REPORT_INTERVAL_S = 30.0
#: The manager said nothing yet about how much stdout to keep.
DEFAULT_MAX_STDOUT_BYTES = 1 << 30


class CoreSettings(NamedTuple):
    """What the worker offers. ``tag`` distinguishes its own object names from those of other workers."""

    total: Resources
    tag: str
    max_transfers: int = 10
    life: LifeSettings = LifeSettings()


class CoreBase(ABC):
    """The books of one worker. The parts built on it are never used alone."""

    def __init__(self, settings: CoreSettings, kept: tuple[m.CacheEntry, ...], now: float) -> None:
        self.settings = settings
        self.life = Life(settings.life, now)
        self.cache = CacheIndex()
        self.fetches = FetchQueue(settings.max_transfers)
        self.runs = RunTable(settings.total)
        self.manager_id = ""
        self.max_stdout_bytes = DEFAULT_MAX_STDOUT_BYTES
        self._fetch_of: dict[int, CachedObject] = {}   # serial -> object still wanted from a fetch
        self._next_serial = 1
        self._next_run = 1
        self._look_at = NEVER
        self._memory_at = 0.0
        self._report_at = 0.0
        self._reported_mb = -1
        self._uploads = 0
        self._now = now
        self._out: list[e.Action] = []
        for entry in kept:
            self.cache.store(entry.name, entry.level, entry.size_bytes, entry.sha256, now)

    @abstractmethod
    def _refuse(self, run: Run, reason: str) -> None:
        """A queued run cannot start any more: say so."""

    @abstractmethod
    def _kill_run(self, run: Run) -> None:
        """End a run in silence."""

    @property
    def busy(self) -> bool:
        """Is there anything the worker would not want to be interrupted in?"""
        return bool(self.runs.runs) or self.fetches.busy or self._uploads > 0

    def _note_idle(self) -> None:
        if not self.busy:
            self.life.idle_since = self._now

    def _ask_to_leave(self, reason: str) -> None:
        self.life.asked_to_leave = reason
        by = min(self.life.leave_by, self.settings.life.end_time or NEVER)
        self._send(m.LeaveRequest(reason, 0.0 if by == NEVER else by))

    def _serial(self) -> int:
        serial = self._next_serial
        self._next_serial += 1
        return serial

    def _send(self, message: m.Message) -> None:
        self._out.append(e.Send(message))

    def _cache_mb(self) -> int:
        return -(-self.cache.used_bytes // BYTES_PER_MB)

    def _no_room(self, name: str, size: int) -> str:
        return (f"no room for {name} ({size} bytes): the cache holds {self.cache.used_bytes} bytes in use of "
                f"{self.settings.total.disk_mb} MB")

    def _make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit in the disk bound; False when that is impossible."""
        bound = self.settings.total.disk_mb * BYTES_PER_MB
        excess = self.cache.used_bytes + size - bound
        if excess <= 0 or size <= 0:
            return True
        victims = self.cache.victims(excess + bound // EVICTION_SLACK)
        if sum(o.size_bytes for o in victims) < excess:
            return False
        self._evict(victims)
        return True

    def _evict(self, victims: list[CachedObject]) -> None:
        if not victims:
            return
        names = tuple(o.name for o in victims)
        for obj in victims:
            self.cache.move(obj, "evicted")
        self._out.append(e.RemoveObjects(names))
        self._send(m.CacheGone(names, "evicted to make room"))

    def _shrink_after_output(self, now: float) -> None:
        """Outputs cannot be refused: evict what is free; when that is not enough, ask to leave."""
        excess = self.cache.used_bytes - self.settings.total.disk_mb * BYTES_PER_MB
        if excess <= 0:
            return
        self._evict(self.cache.victims(excess))
        if self.cache.used_bytes > self.settings.total.disk_mb * BYTES_PER_MB and not self.life.draining:
            self.life.draining = "disk"
            self._ask_to_leave("disk")

    def _report(self, now: float) -> None:
        cache_mb = self._cache_mb()
        self._reported_mb, self._report_at = cache_mb, now + REPORT_INTERVAL_S
        self._out.append(e.SendReport(self.settings.total, cache_mb))

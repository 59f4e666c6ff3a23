"""Which hosts ruin the workers that start on them, and for how long a pool avoids them.

Owns the record of hosts of one pool. A black hole ends its jobs at once, so it draws ever more of them: it has to be
found by what happens there while others do well. Pure; what is excluded survives a kill -9 as rows of the journal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vine_factory import defaults
from vine_factory.events import HostRow
from vine_factory.health import BUDGET, Fault

HOST_FAULTS: dict[Fault, float] = {
    kind: 1.0 / BUDGET[kind] for kind in (Fault.DIED_AT_START, Fault.QUIT_AT_START, Fault.NEVER_CONNECTED)}
SHORT_LIFE = 1.0 / defaults.TRIP_SHORT_LIFE
"""How much one job says against the host on which it ended; 1 is enough."""
_ENOUGH = 1.0 - 1e-6


@dataclass(slots=True)
class _Host:
    """``good_at``: a worker did well; ``level``: times excluded since then."""

    against: list[tuple[float, float]] = field(default_factory=list)   # (when, how much), since it was last good
    good_at: float = float("-inf")
    level: int = 0
    until: float = float("-inf")


class Hosts:
    """The hosts of one pool.

    Args:
        rows: exclusions of an earlier run.
    """

    def __init__(self, rows: Iterable[HostRow] = ()) -> None:
        self._hosts: dict[str, _Host] = {row.host: _Host(level=row.level, until=row.until) for row in rows}

    def good(self, host: str, now: float) -> bool:
        """A worker on ``host`` has connected and lives on. Returns True when the host had been excluded."""
        record = self._record(host, now)
        before = record.level
        record.good_at, record.level, record.until = now, 0, float("-inf")
        record.against.clear()
        return before > 0

    def bad(self, host: str, weight: float, now: float) -> float | None:
        """A worker was ruined on ``host``, which says so much against it. Returns until when the host is excluded
        (seconds) if it now is and was not before."""
        record = self._record(host, now)
        record.against = [(at, each) for at, each in record.against if now - at < defaults.HOST_MEMORY_S]
        record.against.append((now, weight))
        if record.until > now or not self._worse_than_others(now):
            return None
        # One that was excluded before has used up its trust.
        if record.level == 0 and sum(each for _, each in record.against) < _ENOUGH:
            return None
        record.level += 1
        record.until = now + excluded_s(record.level)
        return record.until

    def excluded(self, now: float) -> tuple[str, ...]:
        """Where no job should start now."""
        return tuple(sorted(host for host, record in self._hosts.items() if record.until > now))

    def rows(self, pool: str, hosts: Iterable[str]) -> list[HostRow]:
        """For the journal: these hosts."""
        return [HostRow(pool, host, self._hosts[host].level, self._hosts[host].until) for host in hosts]

    def _worse_than_others(self, now: float) -> bool:
        """At least as many hosts do well as are excluded, this one among them: else it is the pool, not the host."""
        good = sum(1 for record in self._hosts.values() if now - record.good_at < defaults.HOST_MEMORY_S)
        return good >= len(self.excluded(now)) + 1

    def _record(self, host: str, now: float) -> _Host:
        record = self._hosts.get(host)
        if record is None:
            if len(self._hosts) >= defaults.KEPT_HOSTS:
                self._forget(now)
            record = self._hosts[host] = _Host()
        return record

    def _forget(self, now: float) -> None:
        """Room for others: what was heard of longest ago and is not excluded goes first."""
        free = [host for host, record in self._hosts.items() if record.until <= now]
        free.sort(key=lambda host: max([self._hosts[host].good_at, *(at for at, _ in self._hosts[host].against)]))
        for host in free[:max(1, len(free) // 2)]:
            del self._hosts[host]


def excluded_s(level: int) -> float:
    """Seconds for which a host is excluded the ``level``-th time in a row."""
    return min(defaults.HOST_EXCLUDED_MAX_S, defaults.HOST_EXCLUDED_FIRST_S * float(2 ** min(level - 1, 30)))

"""When a worker looks for a manager, gives up, drains and leaves.

Owns the timers of the worker's own life. Must not know tasks, objects or sockets.
"""

from __future__ import annotations

from taskvine_core.records import NamedTuple

NEVER = float("inf")

#: How long after SIGTERM the worker leaves whatever happens: batch systems send SIGKILL 30 s after SIGTERM.
TERM_GRACE_S = 25.0
#: Drain this long before the wall time ends, but never more than a twentieth of it: results must still get out.
WALLTIME_MARGIN_S = 60.0
WALLTIME_MARGIN_SHARE = 0.05


class LifeSettings(NamedTuple):
    """Seconds, except ``end_time`` (seconds since the epoch, 0 = none) and ``single_shot``."""

    idle_timeout_s: float = 900.0
    connect_timeout_s: float = 900.0
    min_backoff_s: float = 1.0
    max_backoff_s: float = 8.0
    start_time: float = 0.0
    end_time: float = 0.0
    single_shot: bool = False


class Life:
    """Connection attempts with backoff, and the reasons to go."""

    def __init__(self, settings: LifeSettings, now: float) -> None:
        self.settings = settings
        self.connected = False
        self.draining = ""              # why, "" = not draining
        self.leave_by = NEVER           # leave at that time whatever happens
        self.asked_to_leave = ""        # reason of the LeaveRequest sent over this connection
        self.searching_since = now
        self.connect_at = now
        self.idle_since = now
        self.denied = ""                # why the last attempt ended in distrust, "" = it did not
        self.last_failure = ""
        self._backoff_s = settings.min_backoff_s
        margin_s = min(WALLTIME_MARGIN_S, WALLTIME_MARGIN_SHARE * max(0.0, settings.end_time - settings.start_time))
        self.drain_at = settings.end_time - margin_s if settings.end_time else NEVER

    def lost(self, now: float) -> None:
        """The manager is gone: start looking again."""
        self.connected = False
        self.asked_to_leave = ""
        self.searching_since = now
        self._backoff_s = self.settings.min_backoff_s
        self.connect_at = now + self._backoff_s

    def failed(self, now: float, reason: str, denied: bool) -> None:
        """A connection attempt failed."""
        self.last_failure = reason
        self.denied = reason if denied else ""
        self.connect_at = now + self._backoff_s
        self._backoff_s = min(self.settings.max_backoff_s, 2 * self._backoff_s)

    def welcomed(self, now: float) -> None:
        self.connected = True
        self.denied = self.last_failure = ""
        self.idle_since = now
        self._backoff_s = self.settings.min_backoff_s

    @property
    def give_up_at(self) -> float:
        return NEVER if self.connected else self.searching_since + self.settings.connect_timeout_s

    def idle_at(self, busy: bool) -> float:
        """When to ask to leave for want of work."""
        if busy or not self.connected or self.asked_to_leave:
            return NEVER
        return self.idle_since + self.settings.idle_timeout_s

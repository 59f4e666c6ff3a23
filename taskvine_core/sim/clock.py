"""Virtual time: a queue of things to happen. Knows nothing of what happens."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush


class Clock:
    """Runs callbacks in order of time, ties in order of scheduling. ``now``: seconds since the epoch, from 1e9 on."""

    def __init__(self) -> None:
        self.now = 1e9
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Schedule ``what`` for ``when`` (not before now)."""
        self._count += 1
        heappush(self._queue, (max(when, self.now), self._count, what))

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        """Schedule ``what`` in ``delay_s`` seconds."""
        self.at(self.now + delay_s, what)

    def next_time(self) -> float:
        """When the next thing happens; infinity for never."""
        return self._queue[0][0] if self._queue else float("inf")

    def step(self) -> None:
        """Move to the next thing and run it."""
        when, _, what = heappop(self._queue)
        self.now = when
        what()

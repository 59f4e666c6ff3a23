"""When a batch system is looked at.

Owns the limit on it, which does not depend on how often managers are asked: once per period; at once after something
was ordered of it; and when a look has shown something new, a few times more. Pure.
"""

from __future__ import annotations

from vine_factory import defaults


class Looks:
    """The looks at one batch system. Times: seconds, never running backwards."""

    def __init__(self) -> None:
        self._asked_at = float("-inf")
        self._filled_at = float("-inf")
        self._wanted = False
        self._new = False
        self._again = 0

    def want(self) -> None:
        """Something was ordered, and what came of it is to be seen soon: jobs were submitted or cancelled."""
        self._wanted = True

    def changed(self) -> None:
        """The last look has shown something new: more may be under way."""
        self._new = True

    def due(self, now: float, period_s: float) -> bool:
        """Is it time to look, when one look per ``period_s`` is usual?"""
        if now - self._filled_at >= period_s:
            self._filled_at, self._again = now, 0
        return self._wanted or now - self._asked_at >= period_s or (self._new and self._again < defaults.LOOKS_AGAIN)

    def asked(self, now: float) -> None:
        """It is being looked at, which was due."""
        if self._new and not self._wanted:
            self._again += 1
        self._asked_at, self._wanted, self._new = now, False, False

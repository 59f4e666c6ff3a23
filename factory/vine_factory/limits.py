"""The chain from "wanted" to "target", each step with its reason.

Owns the limits and their order, in `CHAIN`, in one place. Each limit is a function of one `Situation` and the number
so far; it returns the new number and why, or None when it has nothing to say. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from taskvine_core.records import NamedTuple


class Situation(NamedTuple):
    """All that limits may look at, for one pool in one pass. Counts of workers."""

    wanted: int
    active: int                # there or on their way, not leaving
    leaving: int               # still occupy a place
    waiting: int               # active and not connected
    minimum: int
    maximum: int
    per_cycle: int             # 0 = no such limit
    unknown: str               # what is not known now, "" when all is
    recent_high: int | None    # most wanted in the hysteresis window, None while the window is not complete
    window_s: float
    health_new: int | None     # how many may be new, None = any
    health_reason: str


class Step(NamedTuple):
    """One limit that had something to say."""

    limit: str
    before: int
    after: int
    reason: str


def minimum(s: Situation, n: int) -> tuple[int, str] | None:
    """Never fewer than the pool's minimum."""
    return (s.minimum, f"the pool keeps at least {s.minimum}") if n < s.minimum else None


def maximum(s: Situation, n: int) -> tuple[int, str] | None:
    """Never more than the pool's maximum; a leaving worker still has its place."""
    ceiling = max(0, s.maximum - s.leaving)
    if n <= ceiling:
        return None
    return ceiling, f"the pool holds at most {s.maximum}" + (f", {s.leaving} are still leaving" if s.leaving else "")


def unknown(s: Situation, n: int) -> tuple[int, str] | None:
    """An absent answer is not a no: never shrink on it."""
    return (s.active, f"not shrinking: {s.unknown}") if s.unknown and n < s.active else None


def hysteresis(s: Situation, n: int) -> tuple[int, str] | None:
    """What was needed a moment ago is needed again in a moment."""
    if n >= s.active:
        return None
    if s.recent_high is None:
        return s.active, f"not shrinking before the need has been seen for {s.window_s:g} s"
    kept = min(s.active, max(n, s.recent_high))
    return (kept, f"{s.recent_high} were needed within the last {s.window_s:g} s") if kept > n else None


def health(s: Situation, n: int) -> tuple[int, str] | None:
    """A pool whose workers fail gets new ones one at a time."""
    if s.health_new is None or n <= s.active + s.health_new:
        return None
    return s.active + s.health_new, s.health_reason


def per_cycle(s: Situation, n: int) -> tuple[int, str] | None:
    """At most so many unconnected workers at any time, when the pool sets it (0: no limit)."""
    ceiling = s.active + max(0, s.per_cycle - s.waiting)
    if s.per_cycle <= 0 or n <= ceiling:
        return None
    return ceiling, f"workers-per-cycle is {s.per_cycle}, {s.waiting} are not connected yet"


CHAIN: tuple[tuple[str, Callable[[Situation, int], tuple[int, str] | None]], ...] = (
    ("min", minimum),
    ("max", maximum),           # max beats min
    ("unknown", unknown),       # may hold what is above max: it is there already and cannot be judged
    ("hysteresis", hysteresis),
    ("health", health),         # the last two only ever hold back growth
    ("per-cycle", per_cycle),
)


def apply(situation: Situation) -> tuple[int, tuple[Step, ...]]:
    """Run the chain. Returns the target and the steps that changed something, in order."""
    number = situation.wanted
    steps = []
    for name, limit in CHAIN:
        verdict = limit(situation, number)
        if verdict is not None and verdict[0] != number:
            steps.append(Step(name, number, verdict[0], verdict[1]))
            number = verdict[0]
    return number, tuple(steps)

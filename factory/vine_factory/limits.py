"""The chain from "wanted" to "target", each step with its reason.

Owns the limits and their order, in `CHAIN`, in one place. Each limit is a function of one `Situation` and the number
so far; it returns the new number and why, or None when it has nothing to say. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from taskvine_core.records import NamedTuple

PAUSED, DRAINING = "paused", "draining"
"""What a person may have ordered for a pool."""


class Situation(NamedTuple):
    """All that limits may look at, for one pool in one pass. Counts of jobs: workers, where a job is one worker."""

    wanted: int
    active: int                # there or on their way, not leaving
    leaving: int               # still occupy a place; those whose walltime is nearly over among them
    waiting: int               # active and not connected
    minimum: int
    maximum: int
    per_cycle: int             # 0 = no such limit
    unknown: str               # what is not known now, "" when all is
    recent_high: int | None    # most wanted in the hysteresis window, None while the window is not complete
    window_s: float
    health_new: int | None     # how many may be new, None = any
    health_reason: str
    busy: int = 0              # have work now
    queued: int = 0            # the batch system has them and has not started them
    max_idle: int = 0          # 0 = no such limit
    may_leave: int | None = None            # disruption budget: so many may be retired now, None = any
    worthwhile: int | None = None           # more than so many could not do anything useful, None = not known
    worthwhile_reason: str = ""
    affordable: int | None = None           # so many in all within the budget, None = any
    budget_reason: str = ""
    order: str = ""            # PAUSED or DRAINING, "" = as usual


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


def drained(s: Situation, n: int) -> tuple[int, str] | None:
    """Nothing is wanted of a pool that is to be empty, also not its minimum."""
    return (0, "draining was ordered (until resume)") if s.order == DRAINING and n > 0 else None


def unknown(s: Situation, n: int) -> tuple[int, str] | None:
    """An absent answer is not a no: never shrink on it."""
    return (s.active, f"not shrinking: {s.unknown}") if s.unknown and n < s.active else None


def hysteresis(s: Situation, n: int) -> tuple[int, str] | None:
    """What was needed a moment ago is needed again in a moment."""
    if n >= s.active or s.order == DRAINING:
        return None
    if s.recent_high is None:
        return s.active, f"not shrinking before the need has been seen for {s.window_s:g} s"
    kept = min(s.active, max(n, s.recent_high))
    return (kept, f"{s.recent_high} were needed within the last {s.window_s:g} s") if kept > n else None


def disruption(s: Situation, n: int) -> tuple[int, str] | None:
    """A pool may not lose more than so many workers a minute."""
    if s.may_leave is None or n >= s.active - s.may_leave:
        return None
    return s.active - s.may_leave, f"the disruption budget lets {s.may_leave} more leave in this minute"


def paused(s: Situation, n: int) -> tuple[int, str] | None:
    """What is there stays, nothing new is started."""
    return (s.active, "pausing was ordered (until resume)") if s.order == PAUSED and n > s.active else None


def worthwhile(s: Situation, n: int) -> tuple[int, str] | None:
    """Do not start what arrives when the work is over."""
    if s.worthwhile is None:
        return None
    ceiling = max(s.worthwhile, s.active, min(s.minimum, s.maximum))
    return (ceiling, s.worthwhile_reason) if n > ceiling else None


def budget(s: Situation, n: int) -> tuple[int, str] | None:
    """Within the core-hours given; when they are used up nothing new is started and what idles may go."""
    return (s.affordable, s.budget_reason) if s.affordable is not None and n > s.affordable else None


def max_idle(s: Situation, n: int) -> tuple[int, str] | None:
    """At most so many jobs in the batch system's queue, when the pool sets it."""
    ceiling = s.active + max(0, s.max_idle - s.queued)
    if s.max_idle <= 0 or n <= ceiling:
        return None
    return ceiling, f"max-idle is {s.max_idle}, {s.queued} are queued"


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
    ("drained", drained),
    ("unknown", unknown),       # may hold what is above max: it is there already and cannot be judged
    ("hysteresis", hysteresis),
    ("disruption", disruption),
    ("paused", paused),         # from here on they only hold back growth
    ("worthwhile", worthwhile),
    ("budget", budget),          # ...but for a budget that is used up
    ("health", health),
    ("max-idle", max_idle),
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

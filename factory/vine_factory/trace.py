"""A day of work for simulations: which tasks appear when, how long each takes and how many cores it needs.

Owns the value, a generator of bursty days from a seed, and the text form: one line "ARRIVAL_S SECONDS CORES" per task.
Pure.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple

DAY_S = 86_400.0
BURSTS = 40
"""Of a day: a few people who run analyses, one after another, some at night."""
BURST_TASKS = (4.5, 1.2)
BURST_TASK_S = (4.1, 0.9)
"""Mean and spread of logarithms: a burst has 90 tasks (10 to 1,000) of a minute (10 s to 6 min)."""
TASK_SPREAD = 0.3
"""Tasks of one burst are alike."""
SUBMIT_PER_S = 50.0
MAX_BURST_TASKS = 3000
CORES = (1, 1, 1, 2, 4)
"""Most tasks take one core."""
_MIN_TASK_S = 1.0


class Work(NamedTuple):
    """One task. ``arrives_s`` from the start of the day; it holds ``cores`` for ``seconds``."""

    arrives_s: float
    seconds: float
    cores: int


def bursty_day(seed: int, bursts: int = BURSTS, length_s: float = DAY_S) -> list[Work]:
    """A day of ``bursts`` bursts, the same for the same seed, in the order of arrival."""
    rng = random.Random(seed)
    found = []
    for _ in range(bursts):
        start = rng.uniform(0, 0.9 * length_s)
        tasks = min(MAX_BURST_TASKS, max(1, round(rng.lognormvariate(*BURST_TASKS))))
        usual_s, cores = rng.lognormvariate(*BURST_TASK_S), rng.choice(CORES)
        for number in range(tasks):
            seconds = max(_MIN_TASK_S, usual_s * rng.lognormvariate(0.0, TASK_SPREAD))
            found.append(Work(round(start + number / SUBMIT_PER_S, 3), round(seconds, 3), cores))
    return sorted(found)


def parse(lines: Iterable[str], where: str) -> list[Work]:
    """Read the text form; empty lines and ``#`` comments are passed over.

    Raises:
        ConfigError: a line is something else; names it.
    """
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            arrives, seconds, cores = words
            work = Work(float(arrives), float(seconds), int(cores))
            if not (0 <= work.arrives_s < float("inf") and 0 < work.seconds < float("inf") and work.cores > 0):
                raise ValueError
        except ValueError:
            raise ConfigError(f"{where}:{number}: {line.strip()!r}",
                              hint="expected: arrival in seconds, duration in seconds, cores") from None
        found.append(work)
    return sorted(found)


def text(works: Sequence[Work]) -> str:
    """Inverse of `parse`."""
    return "".join(f"{work.arrives_s:g} {work.seconds:g} {work.cores}\n" for work in works)

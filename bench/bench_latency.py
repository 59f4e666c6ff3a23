"""Round trip of one no-op command and one no-op Python task when nothing else runs, median in ms.

Limit: one bare spawn-and-wait of `/bin/sh -c :`, one bare fork-and-wait of a warm interpreter.

    python bench/bench_latency.py [--count 200] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench_python import make_function
from bench_support import Figures, Report, Rig, fork_rate, median, no_op, parser, spawn_rate, vine


def trips(rig: Rig, make: Callable[[], Any], count: int) -> Figures:
    """One task at a time."""
    times = []
    for _ in range(count):
        task = make()
        start = time.perf_counter()
        rig.manager.submit(task)
        rig.drain(1)
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return {"value": statistics.median(times), "p90": times[len(times) * 9 // 10], "worst": times[-1]}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=200)
    given = options.parse_args()
    report = Report("latency", "ms", "small beside the limit")
    function = make_function()
    commands, python, spawns, forks = [], [], [], []
    for _ in range(given.repeat):
        spawns.append(1e3 / spawn_rate(given.count, threads=1))
        forks.append(1e3 / fork_rate(given.count, slots=1))
        with Rig(given.scratch) as rig:
            rig.start()
            trips(rig, no_op, 1)
            commands.append(trips(rig, no_op, given.count))
            trips(rig, lambda: vine.PythonTask(function), 1)
            python.append(trips(rig, lambda: vine.PythonTask(function), given.count))
    detail = {"command": median(commands), "python": median(python)}
    limit, detail["python"]["limit"] = min(spawns), min(forks)
    value = detail["command"]["value"]
    report.emit(value, limit, value / limit, detail)


if __name__ == "__main__":
    main()

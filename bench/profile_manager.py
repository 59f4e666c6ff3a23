"""Where the manager's time goes: the command bench and the fleet bench, its background thread under cProfile.

cProfile slows everything it sees and shows shares, not rates; nothing of the product is changed. --program profiles the
thread that submits and waits instead.

    python bench/profile_manager.py [--only commands|fleet] [--count 5000] [--workers 4500] [--tasks 100000] [--top 30]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench_fleet import pump
from bench_support import CONNECT_PATIENCE_S, Rig, helper, no_op, raise_file_limit

from taskvine_core.manager.runner import ManagerRunner


@contextmanager
def profiled_runner() -> Iterator[cProfile.Profile]:
    """Managers made inside have their background thread profiled from its first turn on."""
    profiler = cProfile.Profile()
    plain = ManagerRunner._run

    def run(self: ManagerRunner) -> None:
        profiler.enable()
        try:
            plain(self)
        finally:
            profiler.disable()

    ManagerRunner._run = run  # type: ignore[method-assign]
    try:
        yield profiler
    finally:
        ManagerRunner._run = plain  # type: ignore[method-assign]


def commands(given: argparse.Namespace, around: cProfile.Profile | None) -> str:
    with Rig(given.scratch) as rig:
        rig.start()
        figures = _measured(around, lambda: rig.rate(no_op, given.count))
        return f"commands, {given.count} tasks: {figures['value']:.0f}/s, mgr {figures['mgr_ms']:.3f} ms"


def fleet(given: argparse.Namespace, around: cProfile.Profile | None) -> str:
    raise_file_limit()
    with Rig(given.scratch) as rig, helper("fake_workers.py", "localhost", str(rig.manager.port), "--workers",
                                           str(given.workers)):
        rig.until(lambda: rig.connected >= given.workers, "the workers connected", CONNECT_PATIENCE_S)
        figures = _measured(around, lambda: pump(rig, given.tasks, given.window))
        return (f"fleet, {given.workers} workers, {given.tasks} tasks: {figures['value']:.0f}/s, "
                f"mgr {figures['mgr_ms']:.3f} ms")


def _measured(profiler: cProfile.Profile | None, action: Callable[[], Any]) -> Any:
    if profiler is None:
        return action()
    return profiler.runcall(action)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=("commands", "fleet"))
    options.add_argument("--count", type=int, default=5000)
    options.add_argument("--workers", type=int, default=4500)
    options.add_argument("--tasks", type=int, default=100_000)
    options.add_argument("--window", type=int, default=50_000)
    options.add_argument("--top", type=int, default=30)
    options.add_argument("--sort", default="tottime")
    options.add_argument("--program", action="store_true", help="profile the thread that submits and waits")
    options.add_argument("--scratch", default=None)
    given = options.parse_args()
    for name, bench in (("commands", commands), ("fleet", fleet)):
        if given.only not in (None, name):
            continue
        if given.program:
            profiler = cProfile.Profile()
            said = bench(given, profiler)
        else:
            with profiled_runner() as profiler:
                said = bench(given, None)
        print(f"=== {said}")
        pstats.Stats(profiler).sort_stats(given.sort).print_stats(given.top)


if __name__ == "__main__":
    main()

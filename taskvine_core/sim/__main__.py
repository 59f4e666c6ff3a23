"""`python -m taskvine_core.sim`: what would the manager do with 4,500 workers and a million tasks?

Owns options, progress and the summary. Real time is read only to show progress and speed: the run itself depends on the
seed alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections.abc import Sequence
from random import Random

from taskvine_core.manager.invariants import check_invariants
from taskvine_core.resources import Resources
from taskvine_core.sim.chaos import play
from taskvine_core.sim.workloads import WORKLOADS
from taskvine_core.sim.world import SimulationError, World

PROGRESS_S = 2.0
#: Virtual events between two looks at the real clock.
LOOK_EVERY = 2_000
MEMORY_PER_CORE_MB, DISK_PER_CORE_MB = 4_000, 20_000
#: How far single run times lie around --run-time.
SPREAD = 0.2
#: No run takes longer, in virtual time: a year.
LIMIT_S = 365 * 86_400.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m taskvine_core.sim", description=(__doc__ or "").splitlines()[0])
    result.add_argument("--workers", type=int, default=100, help="simulated workers (100)")
    result.add_argument("--tasks", type=int, default=10_000, help="tasks (10000)")
    result.add_argument("--cores", type=int, default=4, help="cores of each worker (4)")
    result.add_argument("--run-time", type=float, default=1.0, help="mean seconds a task runs, in virtual time (1)")
    result.add_argument("--seed", type=int, default=1)
    result.add_argument("--workload", choices=sorted(WORKLOADS), default="noop")
    result.add_argument("--chaos", type=int, default=0, metavar="N",
                        help="instead: N random stories with faults, from --seed on, all invariants checked")
    result.add_argument("--json", action="store_true", help="one JSON line instead of a summary")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when everything came back."""
    options = parser().parse_args(arguments)
    try:
        found = chaos(options) if options.chaos else large(options)
    except SimulationError as error:
        print(f"sim: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):28} {_shown(value)}")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items()) or "-"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def chaos(options: argparse.Namespace) -> dict[str, object]:
    """Random stories."""
    started, events, tasks, recoveries = time.perf_counter(), 0, 0, 0
    for seed in range(options.seed, options.seed + options.chaos):
        world = play(seed)
        events += world.events
        tasks += world.submitted
        recoveries += world.core.books.stats.tasks_recovery
        print(f"\rseed {seed} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"stories": options.chaos, "events": events, "tasks": tasks, "recovery_tasks": recoveries,
            "wall_s": round(time.perf_counter() - started, 1)}


def large(options: argparse.Namespace) -> dict[str, object]:
    """One big run in a perfect world."""
    mean, started = options.run_time, time.perf_counter()

    def run_time(rng: Random) -> float:
        return float(mean * rng.uniform(1 - SPREAD, 1 + SPREAD))

    world = World(options.seed, check=False, keep_outcomes=False, run_time=run_time)
    gc.freeze()
    cores = options.cores
    for _ in range(options.workers):
        world.join(Resources(cores, cores * MEMORY_PER_CORE_MB, cores * DISK_PER_CORE_MB, 0))
    joined, virtual = time.perf_counter(), world.clock.now
    WORKLOADS[options.workload](world, options.tasks)
    submitted = time.perf_counter()
    _finish(world)
    check_invariants(world.core)
    return _summary(options, world, started, joined, submitted, virtual)


def _finish(world: World) -> None:
    """Run to the end, telling how far we are."""
    end, next_progress = world.clock.now + LIMIT_S, time.perf_counter() + PROGRESS_S
    while world.unfinished:
        for _ in range(LOOK_EVERY):
            if not world.unfinished:
                break
            if world.clock.next_time() > end:
                raise SimulationError(f"seed {world.seed}: stuck with {len(world.unfinished)} tasks")
            world.clock.step()
        if time.perf_counter() > next_progress:
            next_progress = time.perf_counter() + PROGRESS_S
            done = world.submitted - len(world.unfinished)
            print(f"\r{done:,} of {world.submitted:,} tasks, {world.clock.now - 1e9:,.1f} s virtual ", end="",
                  file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _summary(options: argparse.Namespace, world: World, started: float, joined: float, submitted: float,
             virtual: float) -> dict[str, object]:
    stats, wall = world.core.books.stats, time.perf_counter() - started
    makespan = world.clock.now - virtual
    ideal = options.tasks * options.run_time / (options.workers * options.cores)
    return {
        "workload": options.workload, "workers": options.workers, "cores": options.cores, "tasks": world.submitted,
        "seed": options.seed, "virtual_makespan_s": round(makespan, 3), "ideal_makespan_s": round(ideal, 3),
        "wall_s": round(wall, 1), "wall_submit_s": round(submitted - joined, 1), "events": world.events,
        "events_per_s": round(world.events / wall), "dispatches": stats.tasks_dispatched,
        "core_us_per_dispatch": round(world.core_s / max(1, stats.tasks_dispatched) * 1e6, 1),
        "tasks_per_core_second": round(world.submitted / max(world.core_s, 1e-9)),
        "longest_turn_ms": round(world.longest_turn_s * 1e3, 1), "results": dict(world.results),
        "bytes": dict(world.network.moved), "recovery_tasks": stats.tasks_recovery,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    sys.exit(main())

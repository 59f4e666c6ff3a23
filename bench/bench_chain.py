"""Chains of no-op tasks in which each reads what the one before made: with and without `task-groups`, tasks per second.

Value: one chain with task-groups. Limit: as many bare spawns of `/bin/sh -c :` one after another.

    python bench/bench_chain.py [--length 500] [--chains 8] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

import time

from bench_support import Figures, Report, Rig, median, parser, spawn_rate, vine


def run(rig: Rig, chains: int, length: int, groups: bool) -> Figures:
    """All chains at once; a worker and a manager that have done such work before."""
    manager = rig.manager
    manager.tune("task-groups", int(groups))
    start = time.perf_counter()
    for _ in range(chains):
        before = None
        for _ in range(length):
            task = vine.Task("echo 1 > out")
            task.set_cores(1)
            if before is not None:
                task.add_input(before, "in")
            before = manager.declare_temp()
            task.add_output(before, "out")
            manager.submit(task)
    rig.drain(chains * length)
    return {"value": chains * length / (time.perf_counter() - start)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--length", type=int, default=500)
    options.add_argument("--chains", type=int, default=8)
    given = options.parse_args()
    report = Report("chain", "tasks/s", "more than without task-groups")
    found: dict[str, list[Figures]] = {}
    spawns = []
    for _ in range(given.repeat):
        spawns.append(spawn_rate(given.length, threads=1))
        for chains in (1, given.chains):
            for groups in (False, True):
                with Rig(given.scratch) as rig:
                    rig.start()
                    run(rig, 1, 20, groups)
                    name = f"{chains} x {given.length}{', task-groups' if groups else ''}"
                    found.setdefault(name, []).append(run(rig, chains, given.length, groups))
    detail = {name: median(figures) for name, figures in found.items()}
    value = detail[f"1 x {given.length}, task-groups"]["value"]
    report.emit(value, max(spawns), value / max(spawns), detail)


if __name__ == "__main__":
    main()

"""No-op command tasks per second, against the bare spawn-and-wait rate of `/bin/sh -c :` on this machine.

Value: the tasks of --count with one worker of 2 cores. Detail: five times as many, 16 declared cores, and one 2-byte
output file per task.

    python bench/bench_commands.py [--count 1000] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

from typing import Any

from bench_support import Figures, Report, Rig, median, no_op, parser, spawn_rate, vine

#: Bare spawns measured per run; enough for a second of work.
LIMIT_COUNT = 1000
MANY = 5
DECLARED_CORES = 16


def run(scratch: str | None, count: int, cores: int, *, outputs: bool = False) -> Figures:
    """One manager, one worker, ``count`` tasks."""
    with Rig(scratch) as rig:
        rig.start(cores=cores)

        def with_output(number: int) -> Any:
            task = vine.Task("echo 1 > out", cores=1)
            task.add_output(rig.manager.declare_file(str(rig.directory / f"out-{number}")), "out")
            return task

        return rig.rate(with_output if outputs else no_op, count)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=1000)
    given = options.parse_args()
    report = Report("commands", "tasks/s", ">= 0.8 of the limit")
    count, scratch = given.count, given.scratch
    runs: dict[str, list[Figures]] = {}
    limits = []
    for _ in range(given.repeat):
        limits.append(spawn_rate(min(count, LIMIT_COUNT)))
        for name, size, cores, outputs in (("2 cores", count, 2, False), ("2 cores, 5x", count * MANY, 2, False),
                                           ("16 cores", count, DECLARED_CORES, False),
                                           ("16 cores, 5x", count * MANY, DECLARED_CORES, False),
                                           ("one output", count, 2, True)):
            runs.setdefault(name, []).append(run(scratch, size, cores, outputs=outputs))
        limits.append(spawn_rate(min(count, LIMIT_COUNT)))
    detail = {name: median(some) for name, some in runs.items()}
    value, limit = detail["2 cores"]["value"], max(limits)
    report.emit(value, limit, value / limit, {**detail, "count": count})


if __name__ == "__main__":
    main()

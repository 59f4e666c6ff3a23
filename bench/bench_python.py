"""No-op Python tasks per second, against the bare fork-and-wait rate of a warm interpreter.

One worker of 2 cores; its interpreter is warmed by one task before.

    python bench/bench_python.py [--count 1000] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

from typing import Any

from bench_support import Figures, Report, Rig, fork_rate, median, parser, vine

LIMIT_COUNT = 1000


def make_function() -> Any:
    """A function of its own, so that it travels by value."""
    def nothing() -> None:
        return None
    return nothing


def run(scratch: str | None, count: int) -> Figures:
    nothing = make_function()
    with Rig(scratch) as rig:
        rig.start()
        def one(number: int) -> Any:
            task = vine.PythonTask(nothing)
            task.set_cores(1)  # without a size it would be given the whole worker
            return task

        first = rig.rate(one, 1)
        figures = rig.rate(one, count)
        figures["first_ms"] = 1e3 / first["value"]
        return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=1000)
    given = options.parse_args()
    report = Report("python", "tasks/s", ">= 0.6 of the limit")
    runs, limits = [], []
    for _ in range(given.repeat):
        limits.append(fork_rate(min(given.count, LIMIT_COUNT)))
        runs.append(run(given.scratch, given.count))
        limits.append(fork_rate(min(given.count, LIMIT_COUNT)))
    detail = median(runs)
    limit = max(limits)
    report.emit(detail["value"], limit, detail["value"] / limit, {"2 cores": detail, "count": given.count})


if __name__ == "__main__":
    main()

"""Submit rate and memory per waiting task, no worker connected.

Each case runs in a process of its own. The rate counts until the manager core has taken every task in; memory is growth
of the resident set per task, with the task objects the program keeps. Value: command tasks. Detail: with one shared
input and one temp output each, Python tasks, and the CPU of one wait(5) on the whole queue.

    python bench/bench_submit.py [--count 100000] [--python-count 20000] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench_python import make_function
from bench_support import PATIENCE_S, BenchError, Figures, Report, Rig, median, no_op, parser, rss_bytes, vine

CASES = ("command", "files", "python")
TARGET_PER_S = 50_000
TARGET_BYTES = 2048


def maker(case: str, rig: Rig) -> Callable[[int], Any]:
    """How a case makes its tasks."""
    manager = rig.manager
    if case == "command":
        return no_op
    if case == "python":
        function = make_function()
        return lambda number: vine.PythonTask(function)
    shared = manager.declare_buffer("shared input")

    def with_files(number: int) -> Any:
        task = vine.Task(":")
        task.add_input(shared, "in")
        task.add_output(manager.declare_temp(), "out")
        return task

    return with_files


def measure(case: str, count: int, wait_s: float, scratch: str | None) -> Figures:
    with Rig(scratch) as rig:
        manager = rig.manager
        make = maker(case, rig)
        manager.submit(make(0))
        gc.collect()
        before, cpu, start = rss_bytes(), time.process_time(), time.perf_counter()
        for number in range(count):
            manager.submit(make(number))
        returned = time.perf_counter()
        waiting = manager.stats.tasks_waiting       # answered after everything submitted before
        elapsed, used = time.perf_counter() - start, time.process_time() - cpu
        if waiting != count + 1:
            raise BenchError(f"{waiting} tasks wait, expected {count + 1}")
        figures = {"value": count / elapsed, "submit_only": count / (returned - start), "cpu_us": used / count * 1e6}
        cpu = time.process_time()
        if manager.wait(wait_s) is not None:
            raise BenchError("a task came back without a worker")
        figures["wait_cpu_s"] = time.process_time() - cpu
        gc.collect()
        figures["bytes"] = (rss_bytes() - before) / count
        return figures


def measure_apart(case: str, count: int, wait_s: float, scratch: str | None) -> Figures:
    """In a new process: memory that earlier cases gave back would hide what this one takes."""
    command = [sys.executable, __file__, "--case", case, "--count", str(count), "--wait", str(wait_s)]
    done = subprocess.run([*command, *(["--scratch", scratch] if scratch else [])], check=True, text=True,
                          stdout=subprocess.PIPE, timeout=PATIENCE_S)
    found: Figures = json.loads(done.stdout)
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=100_000)
    options.add_argument("--python-count", type=int, default=20_000)
    options.add_argument("--wait", type=float, default=5.0, help="seconds of the one wait")
    options.add_argument("--case", choices=CASES, help="run this one here and print its figures")
    given = options.parse_args()
    if given.case:
        print(json.dumps(measure(given.case, given.count, given.wait, given.scratch)))
        return
    report = Report("submit", "tasks/s", f">= {TARGET_PER_S}/s and <= {TARGET_BYTES} bytes")
    detail: dict[str, Any] = {}
    for case in CASES:
        count = given.python_count if case == "python" else given.count
        detail[case] = median([measure_apart(case, count, given.wait, given.scratch) for _ in range(given.repeat)])
        detail[case]["count"] = count
    value = detail["command"]["value"]
    report.emit(value, TARGET_PER_S, value / TARGET_PER_S, detail)


if __name__ == "__main__":
    main()

"""Many real workers on one manager: time until all are connected, idle CPU, no-ops spread over all of them.

Value: seconds from the first start until the largest number is connected. Limit: as many interpreters of the same
version started, importing socket, and waited for, two at a time.

    python bench/bench_workers.py [--workers 50,200,500] [--tasks 2000] [--idle 10] [--repeat 1] [--scratch DIR]
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

from bench_support import (
    CONNECT_PATIENCE_S,
    Figures,
    Report,
    Rig,
    median,
    memory_mb,
    no_op,
    parser,
    raise_file_limit,
)

LIMIT_SAMPLE = 40
TARGET_S = 60


def bare_starts_s(count: int) -> float:
    """Time for ``count`` interpreters, from a sample."""
    sample = min(count, LIMIT_SAMPLE)

    def work() -> None:
        for _ in range(sample // 2):
            subprocess.run([sys.executable, "-c", "import socket"], check=True, timeout=CONNECT_PATIENCE_S)

    crew = [threading.Thread(target=work) for _ in range(2)]
    start = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return (time.perf_counter() - start) / max(1, sample // 2 * 2) * count


def run(scratch: str | None, workers: int, tasks: int, idle_s: float) -> Figures:
    with Rig(scratch) as rig:
        own, start = time.process_time(), time.perf_counter()
        started = rig.start(workers, "--idle-timeout", "900", cores=1, wait=False)
        figures = {"started_s": time.perf_counter() - start}
        rig.until(lambda: rig.connected >= workers, f"{workers} workers connected", CONNECT_PATIENCE_S)
        figures["value"] = time.perf_counter() - start
        figures["connect_mgr_cpu_s"] = time.process_time() - own
        work = rig.rate(no_op, tasks)
        figures.update(tasks_per_s=work["value"], mgr_ms=work["mgr_ms"], wrk_ms=work["wrk_ms"])
        figures.update(idle(rig, idle_s))
        figures.update(memory_mb(started[0].pid))
        return figures


def idle(rig: Rig, idle_s: float) -> Figures:
    """Percent of one core while nothing happens; the manager's includes a program that sleeps in wait."""
    time.sleep(min(1.0, idle_s))
    own, of_workers, start = time.process_time(), rig.workers_cpu_s(), time.perf_counter()
    time.sleep(idle_s)
    elapsed = time.perf_counter() - start
    return {"idle_mgr_percent": (time.process_time() - own) / elapsed * 100,
            "idle_worker_percent": (rig.workers_cpu_s() - of_workers) / elapsed * 100 / len(rig.workers)}


def main() -> None:
    options = parser(__doc__, repeat=1)
    options.add_argument("--workers", default="50,200,500")
    options.add_argument("--tasks", type=int, default=2000)
    options.add_argument("--idle", type=float, default=10.0, help="seconds of idleness measured")
    given = options.parse_args()
    raise_file_limit()
    report = Report("workers", "s", f"<= {TARGET_S} s for 500; < 3 % of a core idle")
    detail: dict[str, Any] = {}
    sizes = sorted(int(word) for word in given.workers.split(","))
    for workers in sizes:
        runs = [run(given.scratch, workers, given.tasks, given.idle) for _ in range(given.repeat)]
        detail[f"{workers} workers"] = median(runs)
    limit = bare_starts_s(sizes[-1])
    value = detail[f"{sizes[-1]} workers"]["value"]
    report.emit(value, limit, value / limit, detail)


if __name__ == "__main__":
    main()

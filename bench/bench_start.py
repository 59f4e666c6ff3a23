"""A worker from exec to connected, and its private memory.

Limit: an interpreter of the same version that starts, imports socket and ends.

    python bench/bench_start.py [--repeat 9] [--scratch DIR]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench_support import CONNECT_PATIENCE_S, Figures, Report, Rig, cpu_s, median, memory_mb, no_op, parser

TARGET_MS = 150


def bare_start_ms() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import socket"], check=True, timeout=CONNECT_PATIENCE_S)
    return (time.perf_counter() - start) * 1e3


def run(scratch: str | None) -> Figures:
    with Rig(scratch) as rig:
        start = time.perf_counter()
        [worker] = rig.start(wait=False)
        rig.until(lambda: rig.connected > 0, "the worker connected", CONNECT_PATIENCE_S)
        elapsed = (time.perf_counter() - start) * 1e3
        rig.rate(no_op, 1)    # what it needs to run tasks is loaded, too
        return {"value": elapsed, "worker_cpu_ms": cpu_s(worker.pid) * 1e3, **memory_mb(worker.pid)}


def main() -> None:
    given = parser(__doc__, repeat=9).parse_args()
    report = Report("worker_start", "ms", f"<= {TARGET_MS} ms and <= 20 MB private")
    runs, limits = [], []
    for _ in range(given.repeat):
        limits.append(bare_start_ms())
        runs.append(run(given.scratch))
    detail = median(runs)
    limit = statistics.median(limits)
    report.emit(detail["value"], limit, detail["value"] / limit, detail)


if __name__ == "__main__":
    main()

"""One million no-op tasks through a real manager program to 4,500 simulated workers over loopback, logs on.

The workers are sockets of one helper process with real handshakes and frames (fake_workers.py); every Dispatch is
answered at once. Value: tasks per second from the first submit to the last return of wait.

    python bench/bench_fleet.py [--workers 4500] [--tasks 1000000] [--window 50000] [--repeat 1] [--scratch DIR]
"""

from __future__ import annotations

import time

from bench_support import (
    CONNECT_PATIENCE_S,
    BenchError,
    Figures,
    Report,
    Rig,
    cpu_s,
    helper,
    median,
    no_op,
    parser,
    raise_file_limit,
    rss_bytes,
)

TARGET_PER_S = 10_000
#: Fake workers answer at once: so long without a task means that one was lost.
SILENCE_S = 60


def run(scratch: str | None, workers: int, tasks: int, window: int, cores: int) -> Figures:
    with Rig(scratch) as rig:
        cpu, start = time.process_time(), time.perf_counter()
        with helper("fake_workers.py", "localhost", str(rig.manager.port), "--workers", str(workers), "--cores",
                    str(cores)) as herd:
            rig.until(lambda: rig.connected >= workers or herd.poll() is not None, f"{workers} workers connected",
                      CONNECT_PATIENCE_S)
            if rig.connected < workers:
                raise BenchError(f"the helper ended; {rig.connected} of {workers} workers were connected")
            figures = {"connect_s": time.perf_counter() - start, "connect_cpu_s": time.process_time() - cpu}
            before = cpu_s(herd.pid)
            figures.update(pump(rig, tasks, window))
            figures["helper_ms"] = (cpu_s(herd.pid) - before) / tasks * 1e3
            figures["manager_rss_mb"] = rss_bytes() / 1e6
        return figures


def pump(rig: Rig, tasks: int, window: int) -> Figures:
    """Submit and wait, at most ``window`` tasks out at a time (0: all)."""
    manager = rig.manager
    submit, wait = manager.submit, manager.wait
    submitted = done = 0
    limit = window or tasks
    cpu, start = time.process_time(), time.perf_counter()
    heard = start
    while done < tasks:
        while submitted < tasks and submitted - done < limit:
            submit(no_op())
            submitted += 1
        task = wait(5)
        if task is not None:
            done += 1
            if not task.successful():
                raise BenchError(f"task {task.id} ended with {task.result}")
            heard = time.perf_counter()
        elif time.perf_counter() - heard > SILENCE_S:
            raise BenchError(f"{done} of {tasks} tasks came back, then none for {SILENCE_S} s")
    elapsed = time.perf_counter() - start
    return {"value": tasks / elapsed, "mgr_ms": (time.process_time() - cpu) / tasks * 1e3, "seconds": elapsed}


def main() -> None:
    options = parser(__doc__, repeat=1)
    options.add_argument("--workers", type=int, default=4500)
    options.add_argument("--cores", type=int, default=4, help="of each worker")
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--window", type=int, default=50_000, help="tasks out at a time; 0: all are submitted first")
    given = options.parse_args()
    raise_file_limit()
    report = Report("fleet", "tasks/s", f">= {TARGET_PER_S}/s with 4500 workers, 1 M tasks")
    detail = median([run(given.scratch, given.workers, given.tasks, given.window, given.cores)
                     for _ in range(given.repeat)])
    report.emit(detail["value"], TARGET_PER_S, detail["value"] / TARGET_PER_S,
                {**detail, "workers": given.workers, "tasks": given.tasks, "window": given.window})


if __name__ == "__main__":
    main()

"""A local factory: from no worker to all that are useful, the queue worked off, back to none, and its idle CPU.

Value: seconds from the start of the factory, with the tasks queued, until all workers are connected. Limit: the same
workers started by hand at once. --tasks 60 --work 5 is the published comparison; the default is shorter.

    python bench/bench_factory.py [--workers 10] [--tasks 40] [--work 1] [--idle 10] [--repeat 1] [--scratch DIR]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bench_support import (
    CONNECT_PATIENCE_S,
    ROOT,
    Figures,
    Report,
    Rig,
    cpu_s,
    median,
    memory_mb,
    parser,
    vine,
)

STOP_PATIENCE_S = 60


def by_hand_s(scratch: str | None, workers: int) -> float:
    """Workers started by hand until all are connected."""
    with Rig(scratch) as rig:
        start = time.perf_counter()
        rig.start(workers, cores=1)
        return time.perf_counter() - start


def popen_factory(rig: Rig, workers: int, timeout_s: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "factory"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "vine_factory", "--batch-type=local", "--min-workers=0",
               f"--max-workers={workers}", "--cores=1", "--memory=500", "--disk=500", f"--timeout={timeout_s}",
               f"--scratch-dir={rig.directory / 'factory'}", "localhost", str(rig.manager.port)]
    with open(rig.directory / "worker-factory.log", "wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                env={**os.environ, "PYTHONPATH": path})


def run(scratch: str | None, workers: int, tasks: int, work_s: float, idle_s: float, timeout_s: int) -> Figures:
    with Rig(scratch) as rig:
        for _ in range(tasks):
            task = vine.Task(f"sleep {work_s}", cores=1)
            task.set_cores(1)
            rig.manager.submit(task)
        start = time.perf_counter()
        factory = popen_factory(rig, workers, timeout_s)
        try:
            rig.until(lambda: rig.connected >= 1, "the first worker connected", CONNECT_PATIENCE_S)
            figures = {"first_s": time.perf_counter() - start}
            rig.until(lambda: rig.connected >= workers, "all workers connected", CONNECT_PATIENCE_S)
            figures["value"] = time.perf_counter() - start
            rig.drain(tasks)
            figures["queue_done_s"] = time.perf_counter() - start
            done = time.perf_counter()
            rig.until(lambda: rig.connected == 0, "no worker left", CONNECT_PATIENCE_S)
            figures["back_to_none_s"] = time.perf_counter() - done
            used = cpu_s(factory.pid)
            time.sleep(idle_s)
            figures["idle_percent"] = (cpu_s(factory.pid) - used) / idle_s * 100
            figures.update(memory_mb(factory.pid))
        finally:
            factory.terminate()
            try:
                factory.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                factory.kill()
                factory.wait(STOP_PATIENCE_S)
        return figures


def main() -> None:
    options = parser(__doc__, repeat=1)
    options.add_argument("--workers", type=int, default=10)
    options.add_argument("--tasks", type=int, default=40)
    options.add_argument("--work", type=float, default=1.0, help="seconds of sleep per task")
    options.add_argument("--idle", type=float, default=10.0, help="seconds of idleness measured")
    options.add_argument("--timeout", type=int, default=5, help="idle seconds after which a worker leaves")
    given = options.parse_args()
    report = Report("factory", "s", "limited by the batch system only")
    limit = by_hand_s(given.scratch, given.workers)
    detail = median([run(given.scratch, given.workers, given.tasks, given.work, given.idle, given.timeout)
                     for _ in range(given.repeat)])
    report.emit(detail["value"], limit, detail["value"] / limit,
                {**detail, "workers": given.workers, "tasks": given.tasks, "work_s": given.work})


if __name__ == "__main__":
    main()

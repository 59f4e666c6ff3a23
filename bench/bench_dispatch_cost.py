"""What one task costs the manager core, with a million waiting and 4,500 workers beside ten thousand and ten.

The core is driven directly: submits go in, every Dispatch is answered by the TaskDone of a no-op. Only time inside
`ManagerCore.handle_all` counts, and of that the CPU time: the core never waits, and others use the machine too. For the
same reason small and large rounds alternate in one process and medians are compared. One JSON line; `limit` is the
small case, `ratio` large / small (target 1.3).

With --different every waiting task asks for another amount of memory; `limit` is then the same number of tasks and
workers with all tasks alike, and `first_ms` what the core took to take in and send the first of them.

    python bench/bench_dispatch_cost.py [--waiting 1000000] [--workers 4500] [--rounds 9] [--profile]
    python bench/bench_dispatch_cost.py --different --waiting 100000 --workers 500
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import resource
import statistics
import time
from collections.abc import Sequence
from itertools import count, cycle
from random import Random

from taskvine_core.constants import VINE_RESULT_SUCCESS
from taskvine_core.manager import events as ev
from taskvine_core.manager.core import ManagerCore
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources

WORKER = Resources(16, 64_000, 200_000, 0)
SMALL_WAITING, SMALL_WORKERS = 10_000, 10
#: Tasks per round: what the small case can give without running low.
ROUND_TASKS = 5_000
#: More than a worker could run at once of the middle size, so that memory is what tasks wait for.
CORES = 16
#: Messages that arrive together in one turn of the runner.
BATCH = 16
SUBMIT_BATCH = 100
TARGET_RATIO = 1.3
START_S = 1e9


class Rig:
    """One core with its waiting tasks and its workers."""

    def __init__(self, workers: int, waiting: int, run_s: float, sizes: Sequence[int] = ()) -> None:
        ids = count(1)
        self.new_task_id = lambda: next(ids)
        self.core = ManagerCore(manager_id="bench", rng=Random(1), new_task_id=self.new_task_id, data_port=1)
        self.now = START_S
        self.run_s = run_s
        self.orders: list[tuple[int, msg.Dispatch]] = []
        self.at = 0
        self.worker = WORKER._replace(memory_mb=CORES * waiting // 2) if sizes else WORKER
        self.sizes = cycle(sizes) if sizes else None
        self.first_ms = 0.0
        self.spent_s = {"submit": 0.0, "done": 0.0}
        for key in range(1, workers + 1):
            self._join(key)
        self.waiting = waiting
        self.fill()

    def _join(self, key: int) -> None:
        hello = msg.WorkerHello(
            f"w{key}", f"host{key}", "linux", "x86_64", "sim", (), self.worker, "", 1000, 0.0, 900.0, "", ""
        )
        self._core(ev.WorkerJoined(key, hello, "10.0.0.1", key))
        self._core(ev.MessageArrived(key, msg.CacheOffer(())))

    def _core(self, *events: ev.Event) -> float:
        """Seconds the core took; what it ordered is remembered."""
        started = time.thread_time()
        actions = self.core.handle_all(events, self.now)
        spent = time.thread_time() - started
        for action in actions:
            if type(action) is ev.Send and type(action.message) is msg.Dispatch:
                self.orders.append((action.key, action.message))
        return spent

    def fill(self) -> int:
        """Submit until ``waiting`` tasks stand in the queue; how many that took."""
        total = 0
        while (missing := self.waiting - self.core.books.ready.count) > 0:
            number = min(SUBMIT_BATCH, missing)
            events = [ev.Submit(self.new_task_id(), self._task()) for _ in range(number)]
            spent = self._core(*events)
            self.first_ms = self.first_ms or spent * 1e3
            self.spent_s["submit"] += spent
            total += number
        return total

    def _task(self) -> TaskSpec:
        if self.sizes is None:
            return TaskSpec(":")
        return TaskSpec(":", resources=Resources(1, next(self.sizes), 1, 0))

    def finish(self, number: int) -> float:
        """Answer the next ``number`` orders; core seconds per task."""
        spent, done = 0.0, 0
        while done < number:
            batch = self.orders[self.at : self.at + min(BATCH, number - done)]
            self.at += len(batch)
            self.now += len(batch) * 1e-4
            spent += self._core(*(ev.MessageArrived(key, self._done(order)) for key, order in batch))
            done += len(batch)
        del self.orders[: self.at]
        self.at = 0
        return spent / number

    def _done(self, order: msg.Dispatch) -> msg.TaskDone:
        return msg.TaskDone(
            order.task_id,
            order.attempt,
            VINE_RESULT_SUCCESS,
            0,
            b"",
            0,
            "",
            (),
            (),
            self.now - self.run_s,
            self.now,
            msg.NOT_MEASURED,
            "",
        )


def measure(large: Rig, small: Rig, rounds: int, tasks: int = ROUND_TASKS) -> tuple[list[float], list[float]]:
    """µs per task of alternating rounds."""
    of_large, of_small = [], []
    for _ in range(rounds):
        for rig, results in ((small, of_small), (large, of_large)):
            rig.fill()
            gc.collect()
            results.append(rig.finish(tasks) * 1e6)
    return of_large, of_small


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=4_500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--run-time", type=float, default=1.0, help="seconds each task claims to have run")
    parser.add_argument("--different", action="store_true", help="each waiting task asks for another size")
    parser.add_argument("--round-tasks", type=int, default=ROUND_TASKS, help="tasks that end in each round")
    parser.add_argument("--profile", action="store_true", help="print where the core spends its time instead")
    options = parser.parse_args(arguments)
    if options.profile:
        profile(options)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = Rig(options.workers, options.waiting, options.run_time, sizes(options))
    submit_us = large.spent_s["submit"] / options.waiting * 1e6
    memory_kib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / options.waiting
    if options.different:
        small = Rig(options.workers, options.waiting, options.run_time, [(options.waiting + 1) // 2])
        small_submit_us = small.spent_s["submit"] / options.waiting * 1e6
    else:
        small, small_submit_us = Rig(SMALL_WORKERS, SMALL_WAITING, options.run_time), 0.0
    of_large, of_small = measure(large, small, options.rounds, options.round_tasks)
    value, limit = statistics.median(of_large), statistics.median(of_small)
    print(
        json.dumps(
            {
                "bench": "dispatch_cost_different" if options.different else "dispatch_cost",
                "value": round(value, 2),
                "limit": round(limit, 2),
                "ratio": round(value / limit, 3),
                "unit": "us per task in the core (dispatch + done + complete)",
                "target_ratio": TARGET_RATIO,
                "waiting": options.waiting,
                "workers": options.workers,
                "submit_us": round(submit_us, 2),
                "submit_us_small": round(small_submit_us, 2),
                "first_ms": round(large.first_ms, 2),
                "core_us": round(value + submit_us, 2),
                "memory_kib_per_waiting_task": round(memory_kib, 2),
                "best": round(min(of_large), 2),
                "best_small": round(min(of_small), 2),
            }
        )
    )


def sizes(options: argparse.Namespace) -> list[int]:
    """One for each waiting task with --different, in no order; none without."""
    return Random(2).sample(range(1, options.waiting + 1), options.waiting) if options.different else []


def profile(options: argparse.Namespace) -> None:
    options.waiting = min(options.waiting, 100_000)
    rig = Rig(options.workers, options.waiting, options.run_time, sizes(options))
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(options.rounds):
        rig.fill()
        rig.finish(ROUND_TASKS)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()

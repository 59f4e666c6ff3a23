"""Under attack and under loss: strangers on the manager's port while commands run; a DAG of temps with ten SIGKILLs.

Value: commands per second while strangers connect, hold connections open, send garbage and oversize lengths. Limit: the
same without them, runs alternating. Detail: seconds of a 12 x 12 DAG with 0.1 s tasks on 4 workers, undisturbed and
with workers killed at random moments and replaced; its results are checked.

    python bench/bench_attack.py [--count 2000] [--size 12] [--kills 10] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

import time
from random import Random

from bench_dag import Dag
from bench_support import Figures, Report, Rig, helper, median, no_op, parser

WORKERS = 4
WORK_S = 0.1
#: Kills are spread over this many seconds from the start, about the length of an undisturbed run and a half.
KILL_SPAN_S = 6.0


def commands(scratch: str | None, count: int) -> tuple[Figures, Figures]:
    """The rate in peace, then under attack, same manager and worker."""
    with Rig(scratch) as rig:
        rig.start()
        rig.rate(no_op, count // 10)
        peace = rig.rate(no_op, count)
        with helper("strangers.py", "localhost", str(rig.manager.port)) as attacker:
            assert attacker.stdout is not None
            attacker.stdout.readline()
            return peace, rig.rate(no_op, count)


def dag(scratch: str | None, size: int, kills: int, seed: int, work_s: float, span_s: float) -> Figures:
    """Seconds until the last task is back; each killed worker is replaced at once."""
    random = Random(seed)
    with Rig(scratch) as rig:
        rig.start(WORKERS)
        graph = Dag(rig.manager, size, size, work_s)
        start = time.perf_counter()
        for task in graph.tasks:
            rig.manager.submit(task)
        done = killed = 0
        for moment in sorted(random.uniform(0, span_s) for _ in range(kills)):
            while (left := start + moment - time.perf_counter()) > 0 and done < len(graph.tasks):
                if rig.manager.wait(min(left, 1.0)) is not None:
                    done += 1
            if done == len(graph.tasks):
                break
            rig.kill(random.choice(rig.workers))
            rig.start(wait=False)
            killed += 1
        rig.drain(len(graph.tasks) - done)
        figures = {"value": time.perf_counter() - start, "killed": float(killed)}
        graph.check(rig.manager)
        return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--size", type=int, default=12)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--work", type=float, default=WORK_S)
    options.add_argument("--span", type=float, default=KILL_SPAN_S, help="seconds over which kills are spread")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    report = Report("attack", "tasks/s", "as fast as without; every DAG right and complete")
    runs: dict[str, list[Figures]] = {}
    for number in range(given.repeat):
        peace, war = commands(given.scratch, given.count)
        seed = given.seed + number
        for name, figures in (
                ("in peace", peace), ("strangers", war),
                ("dag", dag(given.scratch, given.size, 0, seed, given.work, given.span)),
                ("dag, kills", dag(given.scratch, given.size, given.kills, seed, given.work, given.span))):
            runs.setdefault(name, []).append(figures)
    detail = {name: median(some) for name, some in runs.items()}
    value, limit = detail["strangers"]["value"], detail["in peace"]["value"]
    report.emit(value, limit, value / limit, detail)


if __name__ == "__main__":
    main()

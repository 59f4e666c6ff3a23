"""A DAG of temps, each used by two tasks of the next layer, on 3 workers of 2 cores.

Value: no-op tasks per second. Limit: the same number of commands without the DAG on the same workers. Detail: the DAG
with 0.1 s of work per task (ideal: tasks * 0.1 s / 6), with one of the workers SIGKILLed half way, and that with
temp-replica-count 2. The last layer of those is fetched and compared with what it must be.

    python bench/bench_dag.py [--width 20] [--layers 20] [--work 0.1] [--repeat 3] [--scratch DIR]
"""

from __future__ import annotations

import time
from typing import Any

from bench_support import BenchError, Figures, Report, Rig, median, no_op, parser, vine

WORKERS = 3
CORES = 2
MODULUS = 1_000_003


class Dag:
    """Tasks and temps of one graph; task i of a layer reads temps i and i + 1 of the layer before."""

    def __init__(self, manager: Any, width: int, layers: int, work_s: float | None) -> None:
        self.width, self.layers = width, layers
        self.tasks: list[Any] = []
        before: list[Any] = []
        for layer in range(layers):
            outputs = [manager.declare_temp() for _ in range(width)]
            for place, output in enumerate(outputs):
                task = vine.Task(self._command(layer, place, work_s), cores=1)
                if before:
                    task.add_input(before[place], "a")
                    task.add_input(before[(place + 1) % width], "b")
                task.add_output(output, "out")
                self.tasks.append(task)
            before = outputs
        self.last = before

    @staticmethod
    def _command(layer: int, place: int, work_s: float | None) -> str:
        if work_s is None:
            return ": > out"
        value = str(place + 1) if layer == 0 else f"$(( ($(cat a) + $(cat b)) % {MODULUS} ))"
        return f"sleep {work_s}; echo {value} > out"

    def check(self, manager: Any) -> None:
        """Fetch the last layer and compare it with what plain arithmetic gives."""
        values = [place + 1 for place in range(self.width)]
        for _ in range(1, self.layers):
            values = [(values[i] + values[(i + 1) % self.width]) % MODULUS for i in range(self.width)]
        found = []
        for temp in self.last:
            manager.fetch_file(temp)
            found.append(int(temp.contents()))
        if found != values:
            raise BenchError(f"the DAG computed {found}, expected {values}")


def bare(scratch: str | None, width: int, layers: int) -> tuple[Figures, Figures]:
    """Commands without a DAG, then the no-op DAG, on the same workers."""
    with Rig(scratch) as rig:
        rig.start(WORKERS, cores=CORES)
        rig.rate(no_op, width)
        commands = rig.rate(no_op, width * layers)
        dag = Dag(rig.manager, width, layers, None)
        return commands, rig.rate(dag.tasks.__getitem__, width * layers)


def worked(scratch: str | None, width: int, layers: int, work_s: float, *, kill: bool = False,
           replicas: int = 1) -> Figures:
    """The DAG with work; ``kill`` one worker when half of the tasks are done."""
    with Rig(scratch) as rig:
        rig.manager.tune("temp-replica-count", replicas)
        workers = rig.start(WORKERS, cores=CORES)
        dag = Dag(rig.manager, width, layers, work_s)
        start = time.perf_counter()
        for task in dag.tasks:
            rig.manager.submit(task)
        half = len(dag.tasks) // 2
        rig.drain(half)
        if kill:
            rig.kill(workers[0])
        rig.drain(len(dag.tasks) - half)
        figures = {"value": time.perf_counter() - start}
        dag.check(rig.manager)
        return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--width", type=int, default=20)
    options.add_argument("--layers", type=int, default=20)
    options.add_argument("--work", type=float, default=0.1, help="seconds of sleep per task")
    given = options.parse_args()
    report = Report("dag", "tasks/s", ">= 0.6 of the limit")
    shape = (given.scratch, given.width, given.layers)
    runs: dict[str, list[Figures]] = {}
    for _ in range(given.repeat):
        commands, dag = bare(*shape)
        for name, figures in (("commands", commands), ("no-op", dag), ("work", worked(*shape, given.work)),
                              ("work, killed", worked(*shape, given.work, kill=True)),
                              ("work, replicas 2", worked(*shape, given.work, replicas=2)),
                              ("work, killed, replicas 2", worked(*shape, given.work, kill=True, replicas=2))):
            runs.setdefault(name, []).append(figures)
    detail = {name: median(some) for name, some in runs.items()}
    calm = detail["work"]["value"]
    for name in ("work, killed", "work, replicas 2", "work, killed, replicas 2"):
        detail[name]["slowdown"] = detail[name]["value"] / calm
        detail[name]["worst_slowdown"] = detail[name]["max"] / calm
    value, limit = detail["no-op"]["value"], detail["commands"]["value"]
    ideal_s = given.width * given.layers * given.work / (WORKERS * CORES)
    report.emit(value, limit, value / limit, {**detail, "ideal_s": ideal_s, "tasks": given.width * given.layers})


if __name__ == "__main__":
    main()

"""Count words with Python functions whose partial results never leave the workers until they are added up.

    python examples/wordcount.py [FILE ...]

Starts its own two local workers through a factory, so it needs nothing else.
"""

from __future__ import annotations

import sys
from collections import Counter

import ndcctools.taskvine as vine

MOST_COMMON = 5


def count(name: str) -> Counter[str]:
    """Runs on a worker: words of one file in the task's sandbox."""
    with open(name, encoding="utf-8", errors="replace") as text:
        return Counter(text.read().lower().split())


def add(names: list[str]) -> Counter[str]:
    """Runs on a worker: sum of partial counts, which are files in the task's sandbox."""
    import cloudpickle

    total: Counter[str] = Counter()
    for name in names:
        with open(name, "rb") as part:
            total += cloudpickle.load(part)
    return total


def main(paths: list[str]) -> None:
    with vine.Manager(port=0) as m:
        factory = vine.Factory(batch_type="local", manager=m)
        factory.min_workers, factory.max_workers, factory.cores = 1, 2, 1
        with factory:
            counts = []
            for path in paths:
                task = vine.PythonTask(count, "text")
                task.add_input(m.declare_file(path), "text")
                task.enable_temp_output()  # the result stays on the worker, as a temporary file
                m.submit(task)
                counts.append(task)

            total = vine.PythonTask(add, [f"part.{i}" for i in range(len(counts))])
            for i, task in enumerate(counts):
                total.add_input(task.output_file, f"part.{i}")
            m.submit(total)

            while not m.empty():
                task = m.wait(5)
                if task is not None and not task.successful():
                    raise SystemExit(f"task {task.id}: {task.result}, exit code {task.exit_code}\n{task.std_output}")
    for word, times in total.output.most_common(MOST_COMMON):
        print(f"{times:6d} {word}")


if __name__ == "__main__":
    main(sys.argv[1:] or [__file__])

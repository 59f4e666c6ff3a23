"""Run every bench, keep their JSON lines, and print our figures beside those published for the C implementation.

    python bench/run_all.py [--only commands,dag] [--json FILE] [--scratch DIR] [--repeat N] [--small]

The published figures were measured on a 2-core machine (tmpfs where both were given; CPU and the kind of machine
matter, so compare ratios to the limits measured in the same run, too). --small checks that everything works; its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
#: A bench that takes longer hangs.
LIMIT_S = 3600


class Bench(NamedTuple):
    """A script, whether it knows --repeat and --scratch, and options for a run that only shows that it works."""

    script: str
    common: bool
    small: tuple[str, ...]


BENCHES = {
    "commands": Bench("bench_commands.py", True, ("--count", "20")),
    "python": Bench("bench_python.py", True, ("--count", "20")),
    "submit": Bench("bench_submit.py", True, ("--count", "2000", "--python-count", "200", "--wait", "0.1")),
    "latency": Bench("bench_latency.py", True, ("--count", "5")),
    "dag": Bench("bench_dag.py", True, ("--width", "4", "--layers", "3", "--work", "0.05")),
    "chain": Bench("bench_chain.py", True, ("--length", "5", "--chains", "2")),
    "attack": Bench("bench_attack.py", True, ("--count", "20", "--size", "3", "--kills", "1", "--span", "0.2")),
    "worker_start": Bench("bench_start.py", True, ()),
    "workers": Bench("bench_workers.py", True, ("--workers", "2", "--tasks", "20", "--idle", "0.1")),
    "fleet": Bench("bench_fleet.py", True, ("--workers", "20", "--tasks", "2000")),
    "end_to_end": Bench("bench_end_to_end.py", True, ("--megabytes", "4", "--shared-megabytes", "2", "--files", "20",
                                                      "--readers", "2")),
    "factory": Bench("bench_factory.py", True, ("--workers", "2", "--tasks", "4", "--work", "0.2", "--idle", "0.1",
                                                "--timeout", "1")),
    "factory_pass": Bench("bench_factory_pass.py", True, ("--jobs", "50", "--tasks", "200", "--rounds", "2")),
    "factory_ramp": Bench("bench_factory_ramp.py", True, ("--jobs", "50")),
    "transfer": Bench("bench_transfer.py", False, ("--megabytes", "4", "--rounds", "1")),
    "dispatch_cost": Bench("bench_dispatch_cost.py", False, ("--waiting", "12000", "--workers", "20", "--rounds", "1")),
}


class Row(NamedTuple):
    """A published figure: row of baseline.md, what it is, its value, and where ours is: bench and path in its line."""

    row: str
    what: str
    published: float
    unit: str
    bench: str
    path: tuple[str, ...]
    less_is_better: bool = False


ROWS = (
    Row("a", "1000 no-op commands, 2 cores", 645, "/s", "commands", ("detail", "2 cores", "value")),
    Row("a", "  manager CPU", 0.70, "ms", "commands", ("detail", "2 cores", "mgr_ms"), True),
    Row("a", "  worker CPU", 0.38, "ms", "commands", ("detail", "2 cores", "wrk_ms"), True),
    Row("a", "5000 no-op commands, 2 cores", 558, "/s", "commands", ("detail", "2 cores, 5x", "value")),
    Row("a", "  manager CPU", 1.32, "ms", "commands", ("detail", "2 cores, 5x", "mgr_ms"), True),
    Row("a", "1000 no-op commands, 16 declared cores", 799, "/s", "commands", ("detail", "16 cores", "value")),
    Row("a", "5000 no-op commands, 16 declared cores", 707, "/s", "commands", ("detail", "16 cores, 5x", "value")),
    Row("a", "1000 with one 2-byte output", 519, "/s", "commands", ("detail", "one output", "value")),
    Row("b", "no-op Python tasks, 2 cores", 37, "/s", "python", ("value",)),
    Row("d", "submit command tasks", 52_000, "/s", "submit", ("detail", "command", "value")),
    Row("d", "  memory per waiting task", 2355, "bytes", "submit", ("detail", "command", "bytes"), True),
    Row("d", "submit with 1 shared input + 1 temp output", 35_600, "/s", "submit", ("detail", "files", "value")),
    Row("d", "  memory per waiting task", 5323, "bytes", "submit", ("detail", "files", "bytes"), True),
    Row("d", "submit Python tasks", 2700, "/s", "submit", ("detail", "python", "value")),
    Row("d", "  memory per waiting task", 5177, "bytes", "submit", ("detail", "python", "bytes"), True),
    Row("d", "CPU of one wait(5) on 100k queued", 0.27, "s", "submit", ("detail", "command", "wait_cpu_s"), True),
    Row("e", "manager to worker, 1 GB", 1081, "MB/s", "end_to_end", ("value",)),
    Row("e", "  second use", 3, "ms", "end_to_end", ("detail", "manager to worker", "second_use_ms"), True),
    Row("e", "worker to manager, 1 GB output", 1012, "MB/s", "end_to_end", ("detail", "worker to manager", "value")),
    Row("e", "worker to worker, 500 MB temp", 1033, "MB/s", "end_to_end", ("detail", "worker to worker", "value")),
    Row("e", "200 MB temp to 4 other workers", 1783, "MB/s", "end_to_end", ("detail", "temp to 4 workers", "value")),
    Row("e", "200 MB input to 8 workers", 589, "MB/s", "end_to_end", ("detail", "input to 8 workers", "value")),
    Row("e", "  copies sent by the manager", 8, "", "end_to_end", ("detail", "input to 8 workers", "copies_by_manager"),
        True),
    Row("e", "1000 x 10 KB inputs, one task", 11_000, "files/s", "end_to_end",
        ("detail", "small inputs, one task", "value")),
    Row("e", "1000 x 10 KB inputs, one per task", 649, "/s", "end_to_end",
        ("detail", "small inputs, one each", "value")),
    Row("f", "worker exec to connected", 15, "ms", "worker_start", ("value",), True),
    Row("f", "worker memory, proportional", 0.87, "MB", "worker_start", ("detail", "pss_mb"), True),
    Row("f", "50 workers connected", 2.2, "s", "workers", ("detail", "50 workers", "value"), True),
    Row("f", "200 workers connected", 7.6, "s", "workers", ("detail", "200 workers", "value"), True),
    Row("f", "500 workers connected", 9.8, "s", "workers", ("detail", "500 workers", "value"), True),
    Row("f", "  manager CPU for it", 0.33, "s", "workers", ("detail", "500 workers", "connect_mgr_cpu_s"), True),
    Row("f", "idle CPU of the manager with 500 workers", 0.1, "%", "workers",
        ("detail", "500 workers", "idle_mgr_percent"), True),
    Row("f", "2000 no-ops over 50 workers", 484, "/s", "workers", ("detail", "50 workers", "tasks_per_s")),
    Row("f", "2000 no-ops over 200 workers", 570, "/s", "workers", ("detail", "200 workers", "tasks_per_s")),
    Row("f", "2000 no-ops over 500 workers", 464, "/s", "workers", ("detail", "500 workers", "tasks_per_s")),
    Row("g", "DAG 20x20 of temps, no-op", 323, "/s", "dag", ("value",)),
    Row("g", "  with 0.1 s of work (ideal 6.7 s)", 9.0, "s", "dag", ("detail", "work", "value"), True),
    Row("g", "  and 1 of 3 workers killed", 11.0, "s", "dag", ("detail", "work, killed", "value"), True),
    Row("g", "  slowdown, worst", 2.9, "x", "dag", ("detail", "work, killed", "worst_slowdown"), True),
    Row("g", "  and temp-replica-count 2", 10.7, "s", "dag", ("detail", "work, killed, replicas 2", "value"), True),
    Row("i", "factory: all 10 workers (defaults)", 35.1, "s", "factory", ("value",), True),
    Row("i", "factory: back to none", 10.0, "s", "factory", ("detail", "back_to_none_s"), True),
    Row("i", "factory: idle CPU", 0.0, "%", "factory", ("detail", "idle_percent"), True),
    Row("x", "12x12 DAG, 10 workers killed at random", 25.0, "s", "attack", ("detail", "dag, kills", "value"), True),
    Row("x", "rate under attack / rate in peace", 0.0, "x", "attack", ("ratio",)),
)


def run(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines a bench prints; one with "error" when it fails."""
    bench = BENCHES[name]
    command = [sys.executable, str(HERE / bench.script), *(bench.small if given.small else ())]
    repeat = 1 if given.small and given.repeat is None else given.repeat
    if bench.common:
        command += ["--repeat", str(repeat)] if repeat else []
        command += ["--scratch", given.scratch] if given.scratch else []
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    start = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False,
                              stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})
    except subprocess.TimeoutExpired:
        return [{"bench": name, "error": f"took longer than {LIMIT_S} s"}]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        lines.append({"bench": name, "error": f"{bench.script} ended with status {done.returncode}"})
    for line in lines:
        line["took_s"] = round(time.monotonic() - start, 1)
    return lines


def summary(lines: list[dict[str, Any]]) -> str:
    """Ours against our limits, then ours against the published figures."""
    table = [("bench", "value", "limit", "ratio", "unit", "target")]
    for line in lines:
        if "error" in line:
            table.append((line["bench"], "FAILED", "", "", "", line["error"]))
        else:
            target = line.get("target") or line.get("target_ratio", "")
            table.append((line["bench"], *(str(line.get(key, "")) for key in ("value", "limit", "ratio", "unit")),
                          str(target)))
    text = columns(table) + "\n\n"
    found = {line["bench"]: line for line in lines}
    table = [("row", "what", "C TaskVine", "here", "unit", "times better")]
    for row in ROWS:
        ours = pick(found.get(row.bench), row.path)
        if ours is not None:
            table.append((row.row, row.what, f"{row.published:g}", f"{ours:g}", row.unit, better(row, ours)))
    return text + columns(table)


def pick(line: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        line = line.get(key) if isinstance(line, dict) else None
    return line if isinstance(line, (int, float)) else None


def better(row: Row, ours: float) -> str:
    above, below = (row.published, ours) if row.less_is_better else (ours, row.published)
    return f"{above / below:.2f}" if above and below else "-"


def columns(table: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in table)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default=",".join(BENCHES), help="names, separated by commas")
    options.add_argument("--json", default=None, help="append the lines to this file")
    options.add_argument("--scratch", default=None)
    options.add_argument("--repeat", type=int, default=None, help="instead of each bench's own default")
    options.add_argument("--small", action="store_true", help="tiny sizes: does everything work?")
    given = options.parse_args()
    names = given.only.split(",")
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        options.error(f"no bench is named {unknown[0]!r}; there are: {', '.join(BENCHES)}")
    lines: list[dict[str, Any]] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        lines += (new := run(name, given))
        if given.json:
            with open(given.json, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)
    print(summary(lines))
    return int(any("error" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())

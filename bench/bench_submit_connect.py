"""From the decision to submit until workers are connected, on a real batch system; and the factory's CPU when idle.

    python bench/bench_submit_connect.py --system condor [--workers 10] [--idle 60] [--scratch DIR]

A cluster of its own is started as the tests do (root, Debian). ``value``: median over the workers of the seconds from
the factory's decision to the connection. Of these, medians again: ``submit_s`` until the batch system has taken the
job, ``start_s`` until its process exists (the batch system's own share), ``connect_s`` until the manager has the worker
(ours). ``idle_cpu_percent``: of one core, the factory and all it runs, with all workers connected and nothing to do.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_support import CONNECT_PATIENCE_S, LOOK_S, ROOT, TICKS_PER_S, BenchError, Report, Rig, parser, vine

sys.path.insert(0, str(ROOT / "tests"))

from clusters.systems import SYSTEMS, System

TAG = b"VINE_FACTORY_TAG="
STOP_PATIENCE_S = 60.0


def popen_factory(rig: Rig, system: System, workers: int) -> subprocess.Popen[bytes]:
    site = rig.directory / "site.toml"
    site.write_text(system.pool("bench", f"min-workers = 0\nmax-workers = {workers}"))
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "factory"), os.environ.get("PYTHONPATH", "")]))
    with open(rig.directory / "worker-factory.log", "wb") as log:
        return subprocess.Popen([sys.executable, "-m", "vine_factory", "-C", str(site), "--scratch-dir",
                                 str(rig.directory / "factory"), "localhost", str(rig.manager.port)],
                                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=rig.directory,
                                env={**os.environ, "PYTHONPATH": path})


def connections(rig: Rig, workers: int) -> list[float]:
    """When each of the workers was there."""
    found: list[float] = []
    deadline = time.monotonic() + CONNECT_PATIENCE_S
    while len(found) < workers:
        found += [time.time()] * (rig.connected - len(found))
        if time.monotonic() > deadline:
            raise BenchError(f"{len(found)} of {workers} workers connected")
        time.sleep(LOOK_S)
    return found


def stories(directory: Path, event: str) -> list[float]:
    """When the factory noted this of the jobs that the batch system took: what was refused is decided on again."""
    lines = [json.loads(line) for line in (directory / "jobs.jsonl").read_text().splitlines()]
    taken = {line["job"] for line in lines if line["event"] == "accepted"}
    return sorted(line["at"] for line in lines if line["event"] == event and line["job"] in taken)


def job_starts() -> list[float]:
    """When the processes of all jobs began: the first one of each."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    first: dict[bytes, float] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            ticks = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[19])
        except OSError:
            continue
        for tag in (variable for variable in environ if variable.startswith(TAG)):
            first[tag] = min(first.get(tag, float("inf")), booted + ticks / TICKS_PER_S)
    return sorted(first.values())


def cpu_of_all_s(pid: int) -> float:
    """CPU of a process, of what it has run, and of what it runs."""
    total, parents = 0.0, {pid}
    rows = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            rows[int(entry)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICKS_PER_S)
    while parents:
        total += sum(rows[one][1] for one in parents if one in rows)
        parents = {one for one, (parent, _) in rows.items() if parent in parents}
    return total


def run(system: System, workers: int, idle_s: float, scratch: str | None) -> dict[str, float]:
    with system.running() as cluster:
        os.environ.update(cluster.environment)
        with Rig(scratch) as rig:
            for _ in range(workers):
                rig.manager.submit(vine.Task("sleep 3", cores=1))
            factory = popen_factory(rig, system, workers)
            try:
                connected = connections(rig, workers)
                started = job_starts()
                rig.drain(workers)
                directory = rig.directory / "factory"
                rig.until(lambda: len(stories(directory, "connected")) == workers, "the factory knows all")
                before, at = cpu_of_all_s(factory.pid), time.monotonic()
                time.sleep(idle_s)  # measured, not waited for
                idle = 100 * (cpu_of_all_s(factory.pid) - before) / (time.monotonic() - at)
                decided, taken = stories(directory, "decided"), stories(directory, "accepted")
            finally:
                factory.terminate()
                factory.wait(STOP_PATIENCE_S)
            if not len(decided) == len(taken) == len(started) == workers:
                raise BenchError(f"{len(decided)} decided, {len(taken)} accepted, {len(started)} started: did a worker "
                                 "end at once? See the factory's log above")
            parts = {"submit_s": (decided, taken), "start_s": (taken, started), "connect_s": (started, connected),
                     "value": (decided, connected)}
            return {"idle_cpu_percent": idle, **{name: statistics.median(b - a for a, b in zip(*pair, strict=True))
                                                 for name, pair in parts.items()}, "last_s": connected[-1] - decided[0]}


def main() -> None:
    """Run."""
    options = parser(__doc__)
    options.add_argument("--system", choices=sorted(SYSTEMS), required=True)
    options.add_argument("--workers", type=int, default=10)
    options.add_argument("--idle", type=float, default=60.0, help="seconds over which idle CPU is measured")
    given = options.parse_args()
    report = Report("submit_connect", "s", "idle factory below 1 % of a core")
    found = run(SYSTEMS[given.system], given.workers, given.idle, given.scratch)
    report.emit(found.pop("value"), found["start_s"], None,
                {"system": given.system, "workers": given.workers, **found})


if __name__ == "__main__":
    main()

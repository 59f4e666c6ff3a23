"""Run the demo analysis on a real batch system and write down what happened.

    python tests/clusters/record_run.py SYSTEM [--output docs/runs]

Starts the cluster (root, Debian), runs `python -m examples.demo --batch ...` on it as a user would, looks at the queue
meanwhile, and writes SYSTEM.md and the plot. Names of this machine and of its directories are replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "factory"), str(ROOT / "tests")]

import taskvine_core  # noqa: E402
from clusters.systems import SYSTEMS, System  # noqa: E402
from vine_factory import history  # noqa: E402

DEMO_S = 300.0
LOOK_S = 0.5
PLOT = "dimuon_met.png"  # one for all systems: to the byte the same, as the results are
MIDDLE_S = 15.0
LISTING_WITH_JOBS = 3
"""The queue is shown when so many jobs are in it."""


def run_demo(system: System, cluster: Any, output: Path) -> tuple[str, str]:
    """The demo's output, and the queue as its own tool shows it in the middle."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "factory"), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "examples.demo", "--batch", system.batch, "--output", str(output)]
    listing, middle, deadline = "", time.monotonic() + MIDDLE_S, time.monotonic() + DEMO_S
    with tempfile.TemporaryFile("w+") as said:
        demo = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": path})
        try:
            while demo.poll() is None and time.monotonic() < deadline:
                if len(system.jobs(cluster)) >= LISTING_WITH_JOBS and time.monotonic() < middle:
                    listing = cluster.tool(*system.listing)
                keep_history(output)
                time.sleep(LOOK_S)
            status = demo.wait(1)
        finally:
            demo.kill()
        said.seek(0)
        text = said.read()
    if status != 0:
        raise SystemExit(f"the demo ended with {status}:\n{text}")
    return text, listing


def keep_history(output: Path) -> None:
    """The factory's directory goes with the factory: copy what it noted of its jobs while it is there."""
    for path in output.rglob(f"run-info/**/{history.JOBS}"):
        with contextlib.suppress(OSError):
            shutil.copy(path, output / history.JOBS)


def times(output: Path) -> str:
    """Seconds of each job from the decision, as the factory noted them."""
    jobs: dict[str, dict[str, float]] = {}
    for line in history.read(output / history.JOBS):
        jobs.setdefault(line["job"], {}).setdefault(line["event"], line["at"])
    rows = ["| job | taken by the batch system | seen running | connected |", "| ---: | ---: | ---: | ---: |"]
    for number, seen in enumerate(jobs.values(), 1):
        cells = [f"{seen[event] - seen['decided']:.2f} s" if event in seen else ""
                 for event in ("accepted", "running", "connected")]
        rows.append(f"| {number} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def neutral(text: str, *directories: Path) -> str:
    """Without this machine's names."""
    for directory in sorted(map(str, directories), key=len, reverse=True):
        text = text.replace(directory, "…")
    for name in {socket.getfqdn(), socket.gethostname()}:
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "host", text)
    text = re.sub(rf"\b{getpass.getuser()}\b", "user", text)
    text = re.sub(r"127\.0\.0\.\d+(:\d+)?", "loopback", text)
    return re.sub(r"/tmp/[\w./+-]+|/[\w./-]*/site-packages", "…", text)


def workers_over_time(numbers: dict[str, Any]) -> str:
    """A row for each change."""
    rows, last = ["| second | workers connected |", "| ---: | ---: |"], None
    for at_s, workers in numbers["workers_over_time"]:
        if workers != last:
            rows.append(f"| {at_s:.1f} | {workers} |")
            last = workers
    return "\n".join(rows)


def version(system: System, cluster: Any) -> str:
    """The first line the system says about itself."""
    lines = cluster.tool(*system.version).strip().splitlines()
    return str(lines[0]).strip(" $")


def page(name: str, system: System, said: str, listing: str, log: str, numbers: dict[str, Any], versions: str,
         from_submission: str) -> str:
    """The record as text."""
    fence = "```"
    verdict = ("verified: identical to a single-process run" if numbers["identical_to_single_process"]
               else "NOT identical to a single-process run")
    table = "\n".join(line for line in said.splitlines() if line.startswith("  ") and not line.startswith("  /"))
    return f"""\
# The demo analysis on {system.title}

Recorded by `python tests/clusters/record_run.py {name}`; [README.md](README.md) says how to repeat it. Manager, batch
system and workers were on one machine; its names and directories are left out.

{fence}sh
python -m examples.demo --batch {system.batch}
{fence}

{versions}

## Result

{numbers["map_tasks"]} map and {numbers["merge_tasks"]} merge tasks in {numbers["wall_s"]:.1f} s; {verdict}.

{fence}
{table}
{fence}

![Dimuon mass and missing transverse momentum]({PLOT})

## Workers over time

{workers_over_time(numbers)}

## From the decision to the connection

As the factory noted it: it looks every two seconds here, and a worker may connect before the batch system is asked
whether its job runs.

{from_submission}

## The queue in the middle of the run

{fence}
$ {" ".join(system.listing)}
{listing.rstrip()}
{fence}

## The factory's log

{fence}
{log.strip()}
{fence}
"""


def main() -> int:
    """Record one run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("system", choices=sorted(SYSTEMS))
    options.add_argument("--output", type=Path, default=ROOT / "docs" / "runs")
    given = options.parse_args()
    system = SYSTEMS[given.system]
    given.output.mkdir(parents=True, exist_ok=True)
    with system.running() as cluster, tempfile.TemporaryDirectory() as scratch:
        os.environ.update(cluster.environment)
        os.environ["XDG_STATE_HOME"] = f"{scratch}/state"
        output = Path(scratch) / "output"
        said, listing = run_demo(system, cluster, output)
        log = (output / "factory.log").read_text()
        numbers = json.loads((output / "summary.json").read_text())
        versions = (f"{version(system, cluster)}; Python {platform.python_version()}; "
                    f"hpc-worker-factory {taskvine_core.__version__}; {os.cpu_count()} cores.")
        text = page(given.system, system, said, listing, log, numbers, versions, times(output))
        (given.output / f"{given.system}.md").write_text(neutral(text, Path(scratch), ROOT, Path(sys.prefix)))
        shutil.copy(output / PLOT, given.output / PLOT)
    print(given.output / f"{given.system}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

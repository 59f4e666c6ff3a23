"""``python -m examples.demo``: the whole demo, from input files to plot."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import taskvine_core as vine
from examples.demo import analysis, fetch_data, report, site, workflow
from taskvine_core.errors import VineError

PLAIN_PROGRESS_EVERY_S = 5.0  # when the output is a file or a log, not a terminal
EXIT_INTERRUPTED = 130


class Progress:
    """Draws the state of the run: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.printed_at = -PLAIN_PROGRESS_EVERY_S

    def __call__(self, now: workflow.Sample, total: int) -> None:
        line = report.progress_line(now, total)
        if self.live:
            print(f"\r\x1b[2K{line}", end="", flush=True)
        elif now.at_s - self.printed_at >= PLAIN_PROGRESS_EVERY_S:
            self.printed_at = now.at_s
            print(f"{now.at_s:5.0f} s  {line}", flush=True)

    def end(self) -> None:
        """Leave the line as it is and go on below it."""
        if self.live:
            print(flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=analysis.__doc__)
    parser.add_argument("--events-per-task", type=int, help="events in one chunk (default: about 28 chunks in all)")
    parser.add_argument("--batch", help="batch system that runs the workers: local, condor, slurm, drmaa, ... "
                                        "(default: what the site file says, else local)")
    parser.add_argument("-C", "--config-file", type=Path, metavar="FILE", help="site file of the factory (default: one "
                        "is written that lets workers use this Python, which must exist where the jobs run)")
    output = Path(os.environ.get("VINE_DEMO_OUTPUT", fetch_data.ROOT / "demo-output"))
    parser.add_argument("--output", type=Path, default=output, help="where results go (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Run the demo; 0 when the distributed result equals that of a single process."""
    options = arguments()
    # A batch system or a test ends programs with SIGTERM: leave through the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return run(options)
    except (fetch_data.DataError, workflow.AnalysisError, VineError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the factory and its workers were stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def run(options: argparse.Namespace) -> int:
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    workers = site.choose(options.batch, options.config_file, output)
    files = fetch_data.input_files()
    ranges = workflow.chunks(files, options.events_per_task)
    started = time.monotonic()
    manager = vine.Manager(port=0, name=workflow.user_label(), run_info_path=str(output / "run-info"))
    with manager, workflow.make_factory(manager, str(output / "factory.log"), workers.batch, workers.site):
        kept = (f"{workflow.MIN_WORKERS} to {workflow.MAX_WORKERS} local workers of one core" if workers.site is None
                else f"{workers.label} workers as {workers.site} has them")
        print(f"demo: manager {manager.name} listens on port {manager.port}; a factory keeps {kept}")
        progress = Progress()
        try:
            record = workflow.Analysis(manager, progress).run(files, ranges)
        finally:
            progress.end()
    record.batch = workers.label
    record.peer_bytes = workflow.peer_bytes(Path(manager.logging_directory) / "transactions", record.sent_bytes)
    verified = analysis.equal(record.result, workflow.single_process(files))
    paths = report.write(output, record, verified)
    print(report.format_table(report.table(record, verified)))
    if verified:
        print("verified: identical to a single-process run")
    print(f"demo: {time.monotonic() - started:.0f} s in all; results:")
    for path in paths:
        print(f"  {path}")
    return 0 if verified else 1


if __name__ == "__main__":
    sys.exit(main())

"""The manager program: maps over chunks of events, a tree of merges on the workers, one result.

Owns what is submitted when, and what is recorded about the run. It is an ordinary program against the
published API, a little longer than a user's own would be because it draws its progress.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import uproot

import taskvine_core as vine
from examples.demo import analysis

# So many chunks keep a handful of workers busy and still are of a size that one can watch; a small sample is
# never cut below MIN_EVENTS_PER_TASK, as a task costs more than the events in it then.
TARGET_CHUNKS = 28
MIN_EVENTS_PER_TASK = 10
WHOLE_FILE = 2**62
FAN_IN = 5
MIN_WORKERS = 2
MAX_WORKERS = min(max(4, os.cpu_count() or 1), 8)
WORKER_MEMORY_MB, WORKER_DISK_MB = 1000, 1000
POLL_S = 0.5
# Nothing finished for so long: something is wrong, say so instead of waiting for ever.
STALLED_S = 120.0


class AnalysisError(Exception):
    """The analysis cannot go on; the text has the task's own words."""


class Chunk(NamedTuple):
    """A range of entries of one file."""

    path: Path
    start: int
    stop: int


class Sample(NamedTuple):
    """The state of the run at one moment."""

    at_s: float
    workers: int
    waiting: int
    running: int
    done: int
    sent_bytes: int
    received_bytes: int


@dataclass
class Record:
    """What happened, for the summary."""

    result: analysis.Partial = field(default_factory=dict)
    events: int = 0
    maps: int = 0
    merges: int = 0
    samples: list[Sample] = field(default_factory=list)
    wall_s: float = 0.0
    batch: str = "local"
    retries: int = 0
    recoveries: int = 0
    hosts: set[str] = field(default_factory=set)
    sent_bytes: int = 0
    received_bytes: int = 0
    peer_bytes: int = 0


class MergeTree:
    """Which partial results are added next: as many as the fan-in as soon as they are there, the oldest first."""

    def __init__(self, fan_in: int) -> None:
        self.fan_in = fan_in
        self.waiting: deque[Any] = deque()

    def add(self, part: Any) -> None:
        """A task has left a partial result at some worker."""
        self.waiting.append(part)

    def take(self, outstanding: int) -> tuple[list[Any], bool] | None:
        """The next group to merge and whether it is the last one, or None while it is better to wait.

        Args:
            outstanding: tasks that are not finished and will each add one more part.
        """
        if not self.waiting or (len(self.waiting) < self.fan_in and outstanding > 0):
            return None
        group = [self.waiting.popleft() for _ in range(min(self.fan_in, len(self.waiting)))]
        return group, outstanding == 0 and not self.waiting


def chunks(files: Sequence[Path], events_per_task: int | None) -> list[Chunk]:
    """Cut the files into ranges of entries; None chooses the size."""
    entries = {}
    for path in files:
        with uproot.open(path) as file:
            if analysis.TREE not in file:
                raise AnalysisError(f"{path}: has no tree {analysis.TREE!r}; give NanoAOD files")
            entries[path] = int(file[analysis.TREE].num_entries)
    step = events_per_task or max(MIN_EVENTS_PER_TASK, -(-sum(entries.values()) // TARGET_CHUNKS))
    return [Chunk(p, at, min(at + step, n)) for p, n in entries.items() for at in range(0, n, step)]


def single_process(files: Sequence[Path]) -> analysis.Partial:
    """The same analysis with no manager and no workers: one loop over whole files, to check the result against."""
    parts = []
    for path, start, stop in chunks(files, events_per_task=WHOLE_FILE):
        events = analysis.load(str(path), start, stop)
        parts += [{(path.stem, v.name): analysis.histograms(events, v)} for v in analysis.VARIATIONS]
    return analysis.add(parts)


class Analysis:
    """One run: submit, collect, merge, record.

    Args:
        manager: a vine.Manager that workers can reach.
        show: called about twice a second with the state of the run.
    """

    def __init__(self, manager: Any, show: Callable[[Sample, int], None]) -> None:
        self.manager = manager
        self.show = show
        self.record = Record()
        self.tree = MergeTree(FAN_IN)
        self.outstanding = 0
        self.inputs_of: dict[int, list[Any]] = {}
        self.final_id = 0
        # The functions travel with the tasks: a worker on another machine does not have this folder.
        cloudpickle.register_pickle_by_value(analysis)
        # Importing them takes longer than a task's own work: every worker does it once.
        manager.preload_modules("awkward", "numpy", "uproot")

    def run(self, files: Sequence[Path], ranges: Sequence[Chunk]) -> Record:
        """Carry the analysis out and return its record.

        Raises:
            AnalysisError: a task failed or nothing moves any more.
        """
        started = time.monotonic()
        self.record.events = sum(c.stop - c.start for c in ranges)
        self.submit_maps(files, ranges)
        for task in self.finished(started):
            self.check(task)
            self.record.hosts.add(str(task.hostname))
            for part in self.inputs_of.pop(task.id, ()):
                self.manager.undeclare_file(part)
            if task.id == self.final_id:
                self.record.result = task.output
                break
            self.tree.add(task.output_file)
            self.submit_merges()
        self.record.wall_s = time.monotonic() - started
        self.finish_record(started)
        return self.record

    def submit_maps(self, files: Sequence[Path], ranges: Sequence[Chunk]) -> None:
        """One task per chunk and systematic variation; its histograms stay at the worker as a temporary file."""
        # cache=True: a worker fetches a file once, from the manager or from another worker, whatever runs there.
        declared = {path: self.manager.declare_file(str(path), cache=True) for path in files}
        for chunk in ranges:
            for variation in analysis.VARIATIONS:
                task = vine.PythonTask(
                    analysis.analyse, "events.root", chunk.path.stem, chunk.start, chunk.stop, variation.name
                )
                task.add_input(declared[chunk.path], "events.root")
                task.enable_temp_output()
                self.submit(task, "map")
                self.record.maps += 1

    def submit_merges(self) -> None:
        """Add up what is ready. Only the last result comes back to the manager."""
        while (ready := self.tree.take(self.outstanding)) is not None:
            parts, last = ready
            names = [f"part.{index}" for index in range(len(parts))]
            task = vine.PythonTask(analysis.merge_files, names)
            for part, name in zip(parts, names, strict=True):
                task.add_input(part, name)
            if not last:
                task.enable_temp_output()
            task_id = self.submit(task, "merge")
            self.inputs_of[task_id] = parts
            self.record.merges += 1
            if last:
                self.final_id = task_id

    def submit(self, task: Any, category: str) -> int:
        task.set_cores(1)
        task.set_category(category)
        self.outstanding += 1
        return int(self.manager.submit(task))

    def finished(self, started: float) -> Iterator[Any]:
        """Tasks as they end, showing progress in between."""
        last_end = time.monotonic()
        while not self.manager.empty():
            task = self.manager.wait(POLL_S)
            now = time.monotonic()
            self.sample(now - started)
            if task is not None:
                last_end = now
                self.outstanding -= 1
                yield task
            elif now - last_end > STALLED_S:
                raise AnalysisError(
                    f"no task ended for {STALLED_S:.0f} s, {self.outstanding} are left; "
                    "demo-output/factory.log tells what the factory and its workers did"
                )

    def sample(self, at_s: float) -> None:
        """Record and show the state, at most once per POLL_S."""
        previous = self.record.samples[-1].at_s if self.record.samples else -POLL_S
        if at_s - previous < POLL_S:
            return
        stats = self.manager.stats
        total = self.record.maps + self.record.merges
        now = Sample(
            at_s, stats.workers_connected, stats.tasks_waiting, stats.tasks_running, total - self.outstanding,
            stats.bytes_sent, stats.bytes_received,
        )
        self.record.samples.append(now)
        self.show(now, total)

    def check(self, task: Any) -> None:
        """Anything but success ends the demo with the task's own words."""
        if not task.successful():
            raise AnalysisError(
                f"task {task.id} ({task.category}) on {task.hostname or 'no worker'}: {task.result}, "
                f"exit code {task.exit_code}\n{task.std_output or ''}"
            )

    def finish_record(self, started: float) -> None:
        """Read the counters once more, after the last task."""
        stats = self.manager.stats
        record = self.record
        record.samples.append(
            Sample(time.monotonic() - started, stats.workers_connected, 0, 0, record.maps + record.merges,
                   stats.bytes_sent, stats.bytes_received)
        )
        record.retries = max(0, stats.tasks_dispatched - stats.tasks_recovery - record.maps - record.merges)
        record.recoveries = stats.tasks_recovery
        record.sent_bytes, record.received_bytes = stats.bytes_sent, stats.bytes_received


def make_factory(manager: Any, log_file: str, batch: str = "local", site: Path | None = None) -> Any:
    """A factory for this manager: of local workers, between MIN_WORKERS and MAX_WORKERS of one core each, or of the
    workers that the site file describes."""
    factory = vine.Factory(batch_type=batch, manager=manager, log_file=log_file)
    if site is not None:
        factory.config_file = str(site)
        return factory
    factory.min_workers = MIN_WORKERS
    factory.max_workers = MAX_WORKERS
    factory.cores = 1
    factory.memory = WORKER_MEMORY_MB
    factory.disk = WORKER_DISK_MB
    return factory


def peer_bytes(transactions: Path, sent_bytes: int) -> int:
    """Bytes that workers fetched from each other: all that they fetched, less what they fetched from the manager.

    Args:
        transactions: the log of that name that the manager left. What was fetched took some time there; what a
            task produced took none, nor did a small input that travelled inside a message.
        sent_bytes: all that the manager sent.
    """
    fetched = inside_messages = 0
    for line in transactions.read_text().splitlines():
        match line.split():
            case [_, _, "WORKER", _, "CACHE_UPDATE", _, size, wall_us, _] if wall_us.isdigit() and int(wall_us) > 0:
                fetched += int(size)
            case [_, _, "WORKER", _, "TRANSFER", "INPUT", _, size, "0", _]:
                inside_messages += int(size)
    return max(0, fetched - (sent_bytes - inside_messages))


def user_label() -> str:
    """A project name that two demos on one machine do not share."""
    return f"cms-demo-{os.getpid()}"

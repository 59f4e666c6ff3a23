"""Transfers as a program sees them, through manager and workers, from submit to wait.

Value: manager -> worker, one large file. Limit: a bare sendfile/recv pair with SHA-256 beside it, written to the same
file system (bench_transfer.py measures the data plane alone). Detail: the output that comes back (timed from the end
of the command), a temp from worker to worker, one input to eight workers at once, and 1000 small inputs in one task
(limit: one tar of the same bytes) and one per task (limit: the command rate).

    python bench/bench_end_to_end.py [--megabytes 1024] [--shared-megabytes 200] [--files 1000] [--repeat 3]
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_support import SHARED_MEMORY, BenchError, Figures, Report, Rig, median, no_op, parser, spawn_rate, vine
from bench_transfer import receive_bare, send_bare

BLOCK_BYTES = 1 << 20
SMALL_BYTES = 10_000
READERS = 8


def fill(path: Path, megabytes: int) -> int:
    """A file of bytes that do not compress; its size."""
    block = os.urandom(BLOCK_BYTES)
    with path.open("wb") as file:
        for number in range(megabytes):
            file.write(number.to_bytes(8, "little") + block[8:])    # no two blocks, and no two files, are equal
    return megabytes * BLOCK_BYTES


def warm(directory: Path, megabytes: int) -> None:
    """Have the machine give as much memory as a transfer will fill, and free it again just before.

    A virtual machine may hand free memory back to its host, and then the first touch of each page costs more than
    all that is measured here. The limit is the best of runs that follow each other, so it never pays for that.
    """
    path = directory / "warm"
    fill(path, megabytes)
    path.unlink()


def bare_mb_per_s(scratch: Path, megabytes: int, repeat: int) -> float:
    """The best of some bare transfers between two processes."""
    source, target = scratch / "bare", scratch / "bare-copy"
    size = fill(source, megabytes)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_bare, args=(str(source), theirs))
    process.start()
    try:
        port = ours.recv()
        best = 0.0
        for _ in range(repeat):
            start = time.perf_counter()
            receive_bare(port, size, target)
            best = max(best, size / 1e6 / (time.perf_counter() - start))
            target.unlink()
        return best
    finally:
        process.terminate()
        process.join()
        source.unlink()


def serve_bare(path: str, pipe: Any) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        send_bare(listener, Path(path))


def timed(rig: Rig, task: Any) -> float:
    """Seconds from submit to return."""
    start = time.perf_counter()
    rig.manager.submit(task)
    rig.drain(1)
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------ large objects

def to_worker(rig: Rig, megabytes: int) -> Figures:
    """One file that the worker has not seen; then the same again, from its cache."""
    path = rig.directory / "input"
    size = fill(path, megabytes)
    warm(rig.directory, megabytes)
    own, of_workers = time.process_time(), rig.workers_cpu_s()
    start = time.perf_counter()
    file = rig.manager.declare_file(str(path), cache=True)
    declared = time.perf_counter() - start
    elapsed = []
    for _ in range(2):
        task = vine.Task("test -s in")
        task.add_input(file, "in")
        elapsed.append(timed(rig, task))
    own, of_workers = time.process_time() - own, rig.workers_cpu_s() - of_workers
    path.unlink()
    return {"value": size / 1e6 / elapsed[0], "with_declare": size / 1e6 / (elapsed[0] + declared),
            "second_use_ms": elapsed[1] * 1e3, "mgr_cpu_s": own, "wrk_cpu_s": of_workers}


def to_manager(rig: Rig, megabytes: int) -> Figures:
    """One output, timed from the end of the command that wrote it."""
    path = rig.directory / "output"
    task = vine.Task(f"head -c {megabytes * BLOCK_BYTES} /dev/zero > out")
    task.add_output(rig.manager.declare_file(str(path)), "out")
    warm(rig.directory, 2 * megabytes)
    own, of_workers = time.process_time(), rig.workers_cpu_s()
    timed(rig, task)
    own, of_workers = time.process_time() - own, rig.workers_cpu_s() - of_workers
    outcome = task._outcome
    assert outcome is not None
    elapsed = outcome.times.done - outcome.times.end
    if path.stat().st_size != megabytes * BLOCK_BYTES:
        raise BenchError(f"{path} has {path.stat().st_size} bytes")
    path.unlink()
    return {"value": megabytes * BLOCK_BYTES / 1e6 / elapsed, "mgr_cpu_s": own, "wrk_cpu_s": of_workers}


def between_workers(rig: Rig, megabytes: int, readers: int) -> Figures:
    """A temp made at worker "reader0", read at the others, all at once."""
    temp = rig.manager.declare_temp()
    make = vine.Task(f"head -c {megabytes * BLOCK_BYTES} /dev/urandom > out")
    make.add_feature("reader0")
    make.add_output(temp, "out")
    timed(rig, make)
    sent = rig.manager.stats.bytes_sent
    start = time.perf_counter()
    for number in range(1, readers + 1):
        rig.manager.submit(reader(temp, number))
    rig.drain(readers)
    size = megabytes * BLOCK_BYTES * readers
    return {"value": size / 1e6 / (time.perf_counter() - start), "manager_bytes": rig.manager.stats.bytes_sent - sent}


def to_all(rig: Rig, megabytes: int, readers: int) -> Figures:
    """One input of the manager to all workers at once."""
    path = rig.directory / "shared"
    size = fill(path, megabytes)
    sent = rig.manager.stats.bytes_sent
    file = rig.manager.declare_file(str(path), cache=True)
    start = time.perf_counter()
    for number in range(readers):
        rig.manager.submit(reader(file, number))
    rig.drain(readers)
    elapsed = time.perf_counter() - start
    path.unlink()
    return {"value": readers * size / 1e6 / elapsed, "seconds": elapsed,
            "copies_by_manager": (rig.manager.stats.bytes_sent - sent) / size}


def reader(file: Any, number: int) -> Any:
    task = vine.Task("test -s in")
    task.add_feature(f"reader{number}")
    task.add_input(file, "in")
    return task


# ------------------------------------------------------------------------------------------------ small objects

def small_files(directory: Path, count: int) -> list[Path]:
    directory.mkdir()
    paths = [directory / f"{number}.dat" for number in range(count)]
    for path in paths:
        path.write_bytes(os.urandom(SMALL_BYTES))
    return paths


def many_in_one(rig: Rig, count: int) -> Figures:
    """Small inputs of one task, and the same bytes as a tar that is made, sent and unpacked."""
    paths = small_files(rig.directory / "small", count)
    start = time.perf_counter()
    task = vine.Task(":")
    for path in paths:
        task.add_input(rig.manager.declare_file(str(path)), path.name)
    timed(rig, task)
    elapsed = time.perf_counter() - start
    start = time.perf_counter()
    tar = rig.directory / "small.tar"
    subprocess.run(["tar", "cf", str(tar), "-C", str(rig.directory / "small"), "."], check=True)
    task = vine.Task("tar xf in.tar")
    task.add_input(rig.manager.declare_file(str(tar)), "in.tar")
    timed(rig, task)
    by_tar = time.perf_counter() - start
    return {"value": count / elapsed, "seconds": elapsed, "tar_seconds": by_tar, "ratio": elapsed / by_tar}


def one_each(rig: Rig, count: int) -> Figures:
    """A small input of its own for each task."""
    paths = small_files(rig.directory / "each", count)

    def make(number: int) -> Any:
        task = vine.Task(":", cores=1)
        task.add_input(rig.manager.declare_file(str(paths[number])), "in")
        return task

    figures = rig.rate(make, count)
    bare = rig.rate(no_op, count)
    return {**figures, "commands": bare["value"], "ratio": figures["value"] / bare["value"]}


# ------------------------------------------------------------------------------------------------

def with_readers(scratch: str | None, readers: int, action: Callable[[Rig], Figures]) -> Figures:
    with Rig(scratch) as rig:
        for number in range(readers):
            rig.start(1, "--feature", f"reader{number}", cores=1)
        return action(rig)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--megabytes", type=int, default=1024)
    options.add_argument("--shared-megabytes", type=int, default=200)
    options.add_argument("--files", type=int, default=1000)
    options.add_argument("--readers", type=int, default=READERS, help="workers that read one object at once")
    given = options.parse_args()
    report = Report("end_to_end", "MB/s", ">= 0.8 of the limit; small inputs <= 2x the tar")
    big, shared, files, scratch = given.megabytes, given.shared_megabytes, given.files, given.scratch
    many, few = given.readers, given.readers // 2
    cases: dict[str, Callable[[], Figures]] = {
        "manager to worker": lambda: with_readers(scratch, 1, lambda rig: to_worker(rig, big)),
        "worker to manager": lambda: with_readers(scratch, 1, lambda rig: to_manager(rig, big)),
        "worker to worker": lambda: with_readers(scratch, 2, lambda rig: between_workers(rig, big // 2, 1)),
        "temp to 4 workers": lambda: with_readers(scratch, few + 1, lambda rig: between_workers(rig, shared, few)),
        "input to 8 workers": lambda: with_readers(scratch, many, lambda rig: to_all(rig, shared, many)),
        "small inputs, one task": lambda: with_readers(scratch, 1, lambda rig: many_in_one(rig, files)),
        "small inputs, one each": lambda: with_readers(scratch, 2, lambda rig: one_each(rig, files)),
    }
    base = Path(scratch) if scratch else SHARED_MEMORY
    runs: dict[str, list[Figures]] = {name: [] for name in cases}
    limits = []
    for _ in range(given.repeat):
        with tempfile.TemporaryDirectory(dir=base) as work:
            limits.append(bare_mb_per_s(Path(work), big, 2))
        for name, case in cases.items():
            runs[name].append(case())
    detail: dict[str, Any] = {name: median(some) for name, some in runs.items()}
    value, limit = detail["manager to worker"]["value"], statistics.median(limits)
    for name in ("worker to manager", "worker to worker"):
        detail[name]["ratio"] = detail[name]["value"] / limit
    detail["spawn_limit"] = spawn_rate(min(files, 1000))
    report.emit(value, limit, value / limit, {**detail, "megabytes": big})


if __name__ == "__main__":
    main()

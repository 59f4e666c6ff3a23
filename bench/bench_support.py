"""What the benches share: a manager with real workers in a scratch directory, limits, CPU times, the result line.

Owns everything a bench starts and ends all of it. Every wait has a deadline. Must not know what a bench measures.

Figures: ``mgr_ms`` is CPU of this process (program and manager) per task, ``wrk_ms`` own CPU of all workers per task
(without the tasks' processes), ``others_busy`` the share of the machine that others use just before and after.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "compat", ROOT / "factory", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import taskvine_core  # noqa: E402 - the checkout this script lies in, installed or not

vine = taskvine_core

#: Longest time a whole bench may wait for its tasks.
PATIENCE_S = 900.0
#: Longest time for workers to connect.
CONNECT_PATIENCE_S = 240.0
LOOK_S = 0.001
SAMPLE_S = 0.2
SHARED_MEMORY = Path("/dev/shm")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Figures = dict[str, float]


class BenchError(RuntimeError):
    """A measurement that cannot be trusted: something did not end, or ended wrong."""


# ------------------------------------------------------------------------------------------------ command line, result

def parser(doc: str | None, *, repeat: int = 3) -> argparse.ArgumentParser:
    """The options every bench has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeat", type=int, default=repeat, help="runs; medians are printed")
    made.add_argument("--scratch", default=None, help="where to work; default: /dev/shm if there is one")
    return made


class Report:
    """The one line a bench prints. Samples the machine when made and when printed."""

    def __init__(self, bench: str, unit: str, target: str) -> None:
        self._line: dict[str, Any] = {"bench": bench, "unit": unit, "target": target}
        self._busy = [others_busy()]

    def emit(self, value: float, limit: float | None, ratio: float | None, detail: Mapping[str, Any]) -> None:
        """Print it. ``limit``: what the machine could do at best; None when there is no such thing."""
        self._busy.append(others_busy())
        line = {"bench": self._line["bench"], "value": _short(value), "unit": self._line["unit"],
                "limit": _short(limit), "ratio": _short(ratio), "target": self._line["target"],
                "detail": {**_short(dict(detail)), "others_busy": _short(self._busy)}}
        print(json.dumps(line), flush=True)


def _short(value: Any) -> Any:
    """Four digits are what these figures are worth."""
    if isinstance(value, float):
        return round(value, 3) if abs(value) < 100 else round(value, 1)
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value


def median(runs: Sequence[Figures]) -> dict[str, Any]:
    """Medians of the figures of some runs; of ``value`` also the range."""
    keys = dict.fromkeys(key for run in runs for key in run)
    result: dict[str, Any] = {key: statistics.median(run[key] for run in runs if key in run) for key in keys}
    values = [run["value"] for run in runs]
    result.update(min=min(values), max=max(values), n=len(values))
    return result


# ------------------------------------------------------------------------------------------------ the machine

def others_busy(sample_s: float = SAMPLE_S) -> float:
    """Share of the machine in use (0..1) while we do nothing."""
    before = _cpu_times()
    time.sleep(sample_s)
    after = _cpu_times()
    total = sum(after) - sum(before)
    idle = after[3] + after[4] - before[3] - before[4]
    return 1 - idle / total if total else 0.0


def _cpu_times() -> list[int]:
    with open("/proc/stat", encoding="ascii") as file:
        return [int(word) for word in file.readline().split()[1:9]]


def cpu_s(pid: int) -> float:
    """CPU a process used itself, all threads, without its children."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE_BYTES


def memory_mb(pid: int) -> Figures:
    """Private and proportional memory of a process."""
    found = {"Private_Clean": 0, "Private_Dirty": 0, "Pss": 0}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in found:
                found[name] += int(rest.split()[0])
    return {"private_mb": (found["Private_Clean"] + found["Private_Dirty"]) / 1024, "pss_mb": found["Pss"] / 1024}


def compile_package() -> None:
    """Byte code beside the sources, as an installer leaves it; what is up to date is left alone.

    A checkout has none where PYTHONDONTWRITEBYTECODE is set: compiling took half of a worker's start there.
    """
    compileall.compile_dir(str(ROOT / "taskvine_core"), quiet=2, workers=1)


def raise_file_limit() -> int:
    """As many open files as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# ------------------------------------------------------------------------------------------------ limits

def spawn_rate(count: int, threads: int = 2) -> float:
    """`/bin/sh -c :` started and waited for per second by bare Python: the better of subprocess and posix_spawn."""
    return max(_threaded_rate(_by_subprocess, count, threads), _threaded_rate(_by_posix_spawn, count, threads))


def _by_subprocess() -> None:
    subprocess.run(["/bin/sh", "-c", ":"], check=True)


def _by_posix_spawn() -> None:
    os.waitpid(os.posix_spawn("/bin/sh", ["/bin/sh", "-c", ":"], os.environ), 0)


def _threaded_rate(action: Callable[[], None], count: int, threads: int) -> float:
    def work() -> None:
        for _ in range(count // threads):
            action()

    crew = [threading.Thread(target=work) for _ in range(threads)]
    start = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return count // threads * threads / (time.perf_counter() - start)


_FORKER = """
import gc, os, sys, time
import cloudpickle
count, slots = int(sys.argv[1]), int(sys.argv[2])
gc.collect(); gc.freeze()
start = time.perf_counter()
alive = 0
for _ in range(count):
    if alive == slots:
        os.wait(); alive -= 1
    if os.fork() == 0:
        os._exit(0)
    alive += 1
while alive:
    os.wait(); alive -= 1
print(count / (time.perf_counter() - start))
"""


def fork_rate(count: int, slots: int = 2) -> float:
    """Children of a warm interpreter (cloudpickle imported) forked and waited for per second, ``slots`` at a time."""
    done = subprocess.run([sys.executable, "-c", _FORKER, str(count), str(slots)], check=True, capture_output=True,
                          text=True, timeout=PATIENCE_S)
    return float(done.stdout)


# ------------------------------------------------------------------------------------------------ manager and workers

class Rig:
    """A manager and its workers in a directory of their own. A context manager: leaving ends and removes everything."""

    def __init__(self, scratch: str | None = None, **manager: Any) -> None:
        base = scratch or (str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None)
        self.directory = Path(tempfile.mkdtemp(prefix="vine-bench-", dir=base))
        os.environ["XDG_STATE_HOME"] = str(self.directory / "state")
        self.workers: list[subprocess.Popen[bytes]] = []
        self._started = 0
        compile_package()
        signal.signal(signal.SIGTERM, _ended_from_outside)
        try:
            self.manager = vine.Manager(0, run_info_path=str(self.directory / "run-info"), **manager)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with contextlib.suppress(Exception):
            self.manager.close()
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            _end(worker)
        if error is not None:
            sys.stderr.write(self._last_words())
        shutil.rmtree(self.directory, ignore_errors=True)

    def _last_words(self) -> str:
        logs = sorted(self.directory.glob("worker-*.log"))[:3]
        return "".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}\n" for log in logs)

    @property
    def connected(self) -> int:
        """Workers the manager has accepted, without disturbing its thread."""
        return len(self.manager._runner.core.books.workers)

    def start(self, count: int = 1, *options: str, cores: int = 2, wait: bool = True) -> list[subprocess.Popen[bytes]]:
        """Start workers and wait until they are connected."""
        before = self.connected
        started = [self._popen(cores, options) for _ in range(count)]
        if wait:
            self.until(lambda: self.connected >= before + count, f"{count} workers connected", CONNECT_PATIENCE_S)
        return started

    def _popen(self, cores: int, options: Sequence[str]) -> subprocess.Popen[bytes]:
        self._started += 1
        command = [sys.executable, "-m", "taskvine_core.worker.cli", "--cores", str(cores), "--memory", "8000",
                   "--disk", "16000", "--workdir", str(self.directory / f"worker-{self._started}"), *options,
                   "localhost", str(self.manager.port)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with open(self.directory / f"worker-{self._started}.log", "wb") as log:
            worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                      env={**os.environ, "PYTHONPATH": path})
        self.workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL a worker."""
        worker.kill()
        worker.wait(CONNECT_PATIENCE_S)
        self.workers.remove(worker)

    def until(self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise BenchError(f"not within {patience_s:g} s: {what}")
            time.sleep(LOOK_S)

    def workers_cpu_s(self) -> float:
        """Own CPU of all living workers."""
        return sum(cpu_s(worker.pid) for worker in self.workers)

    def drain(self, count: int, each: Callable[[Any], None] | None = None, patience_s: float = PATIENCE_S) -> None:
        """Wait for ``count`` tasks, all of which must succeed."""
        wait = self.manager.wait
        deadline = time.monotonic() + patience_s
        for number in range(count):
            while (task := wait(5)) is None:
                if time.monotonic() > deadline or self.manager.empty():
                    raise BenchError(f"{number} of {count} tasks came back")
            if not task.successful():
                raise BenchError(f"task {task.id} ended with {task.result}, exit code {task.exit_code}: "
                                 f"{task.std_output}")
            if each is not None:
                each(task)

    def rate(self, make: Callable[[int], Any], count: int) -> Figures:
        """Tasks per second from the first submit to the last return, with CPU per task."""
        manager = self.manager
        workers_before, own_before = self.workers_cpu_s(), time.process_time()
        start = time.perf_counter()
        for number in range(count):
            manager.submit(make(number))
        self.drain(count)
        elapsed = time.perf_counter() - start
        own, workers = time.process_time() - own_before, self.workers_cpu_s() - workers_before
        return {"value": count / elapsed, "mgr_ms": own / count * 1e3, "wrk_ms": workers / count * 1e3}


def no_op(number: int = 0) -> Any:
    """A task that costs nothing but its process. One core: a task without a size is given a whole worker."""
    return vine.Task(":", cores=1)


def _ended_from_outside(number: int, frame: object) -> None:
    """SIGTERM ends a bench like an error: what it started must not outlive it."""
    raise SystemExit(128 + number)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


@contextlib.contextmanager
def helper(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another script of this directory beside us, with its standard output to read; ended on leaving."""
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name(script)), *arguments],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

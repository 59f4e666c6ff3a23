"""The observer that writes the logs of a run.

Owns when facts become lines: a call appends one tuple; ``flush`` turns tuples into lines, and a writer
thread puts the bytes on disk. Must not know line formats (transactions.py, debuglog.py, taskgraph.py,
performance.py).

Formatting happens inside ``flush``, in the thread of the caller, not in a thread of its own: a formatting
thread would hold the interpreter in turns of milliseconds, and the manager would wait for it after each
system call.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskvine_core.constants import (
    RESULT_NAMES,
    VINE_RESULT_SUCCESS,
    VINE_TASK_RETRIEVED,
    VINE_TASK_RUNNING,
    VINE_TASK_WAITING_RETRIEVAL,
)
from taskvine_core.logs import performance, taskgraph
from taskvine_core.logs.debuglog import DebugLines
from taskvine_core.logs.observer import Observer
from taskvine_core.logs.sink import LogSink
from taskvine_core.logs.text import Stamp, word
from taskvine_core.logs.tracking import TaskTrack, WorkerTrack
from taskvine_core.logs.transactions import TransactionLines, commit_fields
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol.messages import Measured, WorkerHello
from taskvine_core.resources import Resources

DEBUG = "debug"
PERFORMANCE = "performance"
TRANSACTIONS = "transactions"
TASKGRAPH = "taskgraph"
WORKFLOW = "workflow.json"

#: Lines are joined after so many facts: some 150 kB, which stay in the processor's cache and need no new pages.
FACTS_PER_CHUNK = 256

_LIBRARY_STATES = {"WAITING": 0, "SENT": 1, "STARTED": 2, "FAILURE": 3}
_Fact = tuple[Any, ...]


class LogBook(Observer):
    """Writes ``debug``, ``performance``, ``transactions``, ``taskgraph`` and, at the end, ``workflow.json``.

    Args:
        directory: an existing directory, ``<run>/vine-logs``.
        debug: also write the debug log; without it a task costs half as much, and ``vine_parse`` has no
        input.

    Raises:
        OSError: a log file cannot be created.
    """

    def __init__(self, directory: Path, *, debug: bool = True) -> None:
        self._directory = directory
        self._sink = LogSink(directory, (DEBUG, PERFORMANCE, TRANSACTIONS, TASKGRAPH))
        self._facts: deque[_Fact] = deque()
        self._tell = self._facts.append
        self._stamp = Stamp()
        self._txn = TransactionLines(self._stamp)
        self._debug = DebugLines(self._stamp) if debug else None
        self._graph = taskgraph.TaskGraphLines()
        self._rows = [performance.HEADER]
        self._workers: dict[int, WorkerTrack] = {}
        self._tasks: dict[int, TaskTrack] = {}
        self._closed = False

    @property
    def backlog(self) -> int:
        """Facts told and not yet formatted."""
        return len(self._facts)

    # ------------------------------------------------------------------ Observer: one tuple each

    def manager_start(self, now: float, pid: int, requested_port: int, port: int) -> None:
        self._tell((_manager_start, now, pid, requested_port, port))

    def manager_end(self, now: float) -> None:
        self._tell((_manager_end, now))

    def performance(self, now: float, stats: object) -> None:
        self._rows.append(performance.row(now, stats))

    def application(self, now: float, text: str) -> None:
        self._tell((_application, now, text))

    def application_debug(self, now: float, text: str) -> None:
        self._tell((_application_debug, now, text))

    def note(self, now: float, text: str) -> None:
        self._tell((_note, now, text))

    def worker_connected(self, now: float, worker: int, address: str, hello: WorkerHello) -> None:
        self._tell((_worker_connected, now, worker, address, hello))

    def worker_resources(self, now: float, worker: int, total: Resources) -> None:
        self._tell((_worker_resources, now, worker, total))

    def worker_removed(self, now: float, worker: int, reason: str) -> None:
        self._tell((_worker_removed, now, worker, reason))

    def task_ready(self, now: float, task_id: int, attempt: int, spec: TaskSpec, use_max: bool,
                   requested: Resources) -> None:
        self._tell((_task_ready, now, task_id, attempt, spec, use_max, requested))

    def task_running(self, now: float, task_id: int, worker: int, attempt: int, spec: TaskSpec, use_max: bool,
                     allocation: Resources, commit_start: float, input_s: float, input_bytes: int) -> None:
        self._tell((_task_running, now, task_id, worker, attempt, spec, use_max, allocation, commit_start, input_s,
                    input_bytes))

    def task_waiting_retrieval(self, now: float, task_id: int, worker: int, result: int, exit_code: int,
                               stdout_bytes: int, start: float, end: float, sandbox_mb: int) -> None:
        self._tell((_task_waiting, now, task_id, worker, result, exit_code, stdout_bytes, start, end, sandbox_mb))

    def task_retrieved(self, now: float, task_id: int, result: int, exit_code: int, measured: Measured,
                       limits: Resources | None, output_s: float, output_bytes: int) -> None:
        self._tell((_task_retrieved, now, task_id, result, exit_code, measured, limits, output_s, output_bytes))

    def task_done(self, now: float, task_id: int, result: int, exit_code: int) -> None:
        self._tell((_task_done, now, task_id, result, exit_code))

    def task_kill(self, now: float, task_id: int, worker: int) -> None:
        self._tell((_to_worker, now, worker, DebugLines.kill, task_id))

    def task_send_failed(self, now: float, task_id: int, worker: int) -> None:
        self._tell((_to_worker, now, worker, DebugLines.send_failed, task_id))

    def recovery_submitted(self, now: float, task_id: int, command: str, name: str) -> None:
        self._tell((_recovery, now, task_id, command, name))

    def library_state(self, now: float, task_id: int, worker: int, state: str) -> None:
        self._tell((_library, now, task_id, worker, state))

    def category_changed(self, now: float, category: str, which: str, mode: int, resources: Resources) -> None:
        self._tell((_category, now, category, which, mode, resources))

    def file_declared(self, now: float, name: str, source: str, size_bytes: int) -> None:
        self._tell((_file_declared, now, name, source, size_bytes))

    def mini_task_used(self, now: float, name: str, spec: TaskSpec) -> None:
        self._tell((_mini_task_used, now, name, spec))

    def put(self, now: float, worker: int, name: str, level: int, size_bytes: int, mode: int) -> None:
        self._tell((_put, now, worker, name, level, size_bytes, mode))

    def fetch_ordered(self, now: float, worker: int, name: str, level: int, size_bytes: int, mode: int,
                      transfer_id: int, where: int, address: str) -> None:
        self._tell((_to_worker, now, worker, DebugLines.fetch, name, level, size_bytes, mode, transfer_id, where,
                    address))

    def mini_task_ordered(self, now: float, worker: int, name: str, level: int, size_bytes: int, mode: int,
                          transfer_id: int) -> None:
        self._tell((_to_worker, now, worker, DebugLines.mini_task, name, level, size_bytes, mode))

    def cache_update(self, now: float, worker: int, name: str, kind: int, level: int, size_bytes: int,
                     wall_s: float, start: float, transfer_id: int) -> None:
        self._tell((_cache_update, now, worker, name, kind, level, size_bytes, wall_s, start, transfer_id))

    def cache_invalid(self, now: float, worker: int, name: str, transfer_id: int, reason: str) -> None:
        self._tell((_to_worker, now, worker, DebugLines.cache_invalid, name, transfer_id, reason))

    def transfer_input(self, now: float, worker: int, name: str, size_bytes: int, wall_s: float,
                       start: float) -> None:
        self._tell((_transfer, now, worker, "INPUT", name, size_bytes, wall_s, start))

    def transfer_output(self, now: float, worker: int, name: str, size_bytes: int, wall_s: float,
                        start: float) -> None:
        self._tell((_transfer, now, worker, "OUTPUT", name, size_bytes, wall_s, start))

    def unlink(self, now: float, worker: int, names: Sequence[str]) -> None:
        self._tell((_to_worker, now, worker, DebugLines.unlink, names))

    # ------------------------------------------------------------------ for the runner

    def flush(self, now: float, limit: int | None = None) -> int:
        facts = self._facts
        left = len(facts) if limit is None else min(limit, len(facts))
        take = facts.popleft
        move = self._stamp.set
        last = -1.0
        while left > 0:
            for _ in range(min(left, FACTS_PER_CHUNK)):
                fact = take()
                if fact[1] != last:
                    last = fact[1]
                    move(last)
                fact[0](self, fact)
            left -= FACTS_PER_CHUNK
            self._write()
        self._write()
        self._sink.push()
        return len(facts)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.flush(0.0)
        self._graph.end()
        self._write()
        self._sink.close()
        try:
            (self._directory / WORKFLOW).write_text(taskgraph.workflow_json())
        except OSError as error:  # the run directory was deleted or its disk is full: no reason to fail the program
            sys.stderr.write(f"taskvine: {self._directory / WORKFLOW} could not be written: {error.strerror}\n")

    def _write(self) -> None:
        logs = [(TRANSACTIONS, self._txn.lines), (TASKGRAPH, self._graph.lines), (PERFORMANCE, self._rows)]
        if self._debug is not None:
            logs.append((DEBUG, self._debug.lines))
        for name, lines in logs:
            if lines:
                self._sink.write(name, "".join(lines))
                lines.clear()


# ---------------------------------------------------------------------- from fact to lines, in flush
# Each takes the book and the tuple (itself, now, ...). They are functions of this module rather than methods
# so that telling a fact needs no bound method.


def _manager_start(book: LogBook, fact: _Fact) -> None:
    _, now, pid, requested_port, port = fact
    book._txn.manager_start(now, pid)
    if book._debug is not None:
        book._debug.manager_start(now, pid, requested_port, port)


def _manager_end(book: LogBook, fact: _Fact) -> None:
    book._txn.manager_end(fact[1])
    if book._debug is not None:
        book._debug.manager_end()


def _application(book: LogBook, fact: _Fact) -> None:
    book._txn.application(fact[2])


def _application_debug(book: LogBook, fact: _Fact) -> None:
    if book._debug is not None:
        book._debug.application(fact[2])


def _note(book: LogBook, fact: _Fact) -> None:
    if book._debug is not None:
        book._debug.note(fact[2])


def _worker_connected(book: LogBook, fact: _Fact) -> None:
    _, _now, key, address, hello = fact
    worker = book._workers[key] = WorkerTrack(word(hello.worker_id), word(hello.hostname), address)
    book._txn.connection(worker)
    book._txn.resources(worker, hello.resources)
    if book._debug is not None:
        book._debug.connected(worker, hello)


def _worker_resources(book: LogBook, fact: _Fact) -> None:
    _, _now, key, total = fact
    worker = book._workers.get(key)
    if worker is not None:
        book._txn.resources(worker, total)
        if book._debug is not None:
            book._debug.resources(worker, total)


def _worker_removed(book: LogBook, fact: _Fact) -> None:
    _, _now, key, reason = fact
    worker = book._workers.pop(key, None)
    if worker is not None:
        book._txn.disconnection(worker, reason)
        if book._debug is not None:
            book._debug.removed(worker)


def _task_ready(book: LogBook, fact: _Fact) -> None:
    _, _now, task_id, attempt, spec, use_max, requested = fact
    book._txn.ready(task_id, spec.category, use_max, attempt, requested)
    track = book._tasks.pop(task_id, None)
    if book._debug is not None:
        book._debug.ready(task_id, attempt, track)


def _task_running(book: LogBook, fact: _Fact) -> None:
    _, now, task_id, key, attempt, spec, use_max, allocation, commit_start, input_s, input_bytes = fact
    track = book._tasks[task_id] = TaskTrack(VINE_TASK_RUNNING, book._workers.get(key), spec, allocation,
                                             commit_fields(commit_start, now, input_s, input_bytes))
    book._txn.running(task_id, track, use_max)
    if book._debug is not None:
        book._debug.running(task_id, track, spec, attempt > 0)


def _task_waiting(book: LogBook, fact: _Fact) -> None:
    _, now, task_id, key, result, exit_code, stdout_bytes, start, end, sandbox_mb = fact
    book._txn.waiting_retrieval(task_id, book._workers.get(key))
    track = book._tasks.get(task_id)
    if track is None:
        return
    track.state = VINE_TASK_WAITING_RETRIEVAL
    track.start = start
    track.end = end
    worker = track.worker
    if worker is not None:
        worker.tasks_done += 1
        worker.busy_s += end - start
    if book._debug is not None:
        book._debug.waiting_retrieval(now, task_id, track, result, exit_code, stdout_bytes, sandbox_mb)


def _task_retrieved(book: LogBook, fact: _Fact) -> None:
    _, _now, task_id, result, exit_code, measured, limits, output_s, output_bytes = fact
    track = book._tasks.get(task_id)
    book._txn.retrieved(task_id, track, result, exit_code, measured, limits, output_s, output_bytes)
    if book._debug is not None:
        book._debug.retrieved(task_id, track, RESULT_NAMES.get(result, "UNKNOWN"), result == VINE_RESULT_SUCCESS)
    if track is not None:
        track.state = VINE_TASK_RETRIEVED


def _task_done(book: LogBook, fact: _Fact) -> None:
    _, _now, task_id, result, exit_code = fact
    book._txn.done(task_id, result, exit_code)
    track = book._tasks.pop(task_id, None)
    if book._debug is not None:
        book._debug.done(task_id, track)
    if track is not None:
        book._graph.task(task_id, track.spec)


def _recovery(book: LogBook, fact: _Fact) -> None:
    if book._debug is not None:
        book._debug.recovery(fact[2], fact[3], fact[4])


def _library(book: LogBook, fact: _Fact) -> None:
    _, _now, task_id, key, state = fact
    worker = book._workers.get(key)
    book._txn.library(task_id, state, worker)
    if book._debug is not None and worker is not None:
        book._debug.library(task_id, _LIBRARY_STATES.get(state, 0), worker)


def _category(book: LogBook, fact: _Fact) -> None:
    book._txn.category(fact[2], fact[3], fact[4], fact[5])


def _file_declared(book: LogBook, fact: _Fact) -> None:
    book._graph.file(fact[2], fact[3], fact[4])


def _mini_task_used(book: LogBook, fact: _Fact) -> None:
    book._graph.mini_task(fact[2], fact[3])


def _put(book: LogBook, fact: _Fact) -> None:
    _, now, key, name, level, size_bytes, mode = fact
    worker = book._workers.get(key)
    if worker is not None:
        book._txn.transfer(worker, "INPUT", name, size_bytes, 0.0, now)
        if book._debug is not None:
            book._debug.put(worker, name, level, size_bytes, mode)


def _cache_update(book: LogBook, fact: _Fact) -> None:
    _, _now, key, name, kind, level, size_bytes, wall_s, start, transfer_id = fact
    worker = book._workers.get(key)
    if worker is not None:
        book._txn.cache_update(worker, name, size_bytes, wall_s, start)
        if book._debug is not None:
            book._debug.cache_update(worker, name, kind, level, size_bytes, wall_s, start, transfer_id)


def _transfer(book: LogBook, fact: _Fact) -> None:
    _, _now, key, direction, name, size_bytes, wall_s, start = fact
    worker = book._workers.get(key)
    if worker is not None:
        book._txn.transfer(worker, direction, name, size_bytes, wall_s, start)


def _to_worker(book: LogBook, fact: _Fact) -> None:
    """Facts that only the debug log shows, about a connected worker."""
    worker = book._workers.get(fact[2])
    if book._debug is not None and worker is not None:
        fact[3](book._debug, worker, *fact[4:])

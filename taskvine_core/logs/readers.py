"""Logs back into records: for plots, reports and tests.

Owns the reading of ``transactions`` and ``performance``, ours and those of the published program. Must not know who
reads and why. A log may be read while it grows: a line cut short or not understood becomes ``Unreadable``, never an
exception.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from taskvine_core.records import NamedTuple


class ManagerStart(NamedTuple):
    """``MANAGER pid START``. Times of all records are microseconds since the epoch."""

    time_us: int
    pid: int


class ManagerEnd(NamedTuple):
    """``MANAGER pid END``."""

    time_us: int
    pid: int
    since_start_us: int


class WorkerConnection(NamedTuple):
    """A worker is there; ``address`` is "ip:port"."""

    time_us: int
    worker_id: str
    address: str


class WorkerDisconnection(NamedTuple):
    """A worker is gone."""

    time_us: int
    worker_id: str
    reason: str


class WorkerResources(NamedTuple):
    """What a worker offers, by name (cores, memory in MB, ...)."""

    time_us: int
    worker_id: str
    resources: dict[str, float]


class CacheUpdate(NamedTuple):
    """An object arrived in a worker's cache."""

    time_us: int
    worker_id: str
    name: str
    size_bytes: int
    wall_us: int
    start_us: int


class Transfer(NamedTuple):
    """Manager to worker ("INPUT") or worker to manager ("OUTPUT")."""

    time_us: int
    worker_id: str
    direction: str
    name: str
    size_bytes: int
    wall_us: int
    start_us: int


class CategoryChange(NamedTuple):
    """``which``: MAX, MIN or FIRST; ``mode``: allocation mode with FIRST, else ""."""

    time_us: int
    category: str
    which: str
    mode: str
    resources: dict[str, float]


class TaskReady(NamedTuple):
    """Queued. ``allocation``: FIRST_RESOURCES or MAX_RESOURCES; attempts count from 1."""

    time_us: int
    task_id: int
    category: str
    allocation: str
    attempt: int
    requested: dict[str, float]


class TaskRunning(NamedTuple):
    """Dispatched. ``values``: the allocation and time_commit_start, time_input_mgr, ... by name."""

    time_us: int
    task_id: int
    worker_id: str
    allocation: str
    values: dict[str, float]


class TaskWaitingRetrieval(NamedTuple):
    """The attempt has ended."""

    time_us: int
    task_id: int
    worker_id: str


class TaskRetrieved(NamedTuple):
    """Outputs fetched. ``limits``: exceeded limits by name; ``values``: measured resources and times by name."""

    time_us: int
    task_id: int
    result: str
    exit_code: int
    limits: dict[str, float]
    values: dict[str, float]


class TaskDone(NamedTuple):
    """Returned to the program."""

    time_us: int
    task_id: int
    result: str
    exit_code: int


class LibraryState(NamedTuple):
    """A library instance changed its state."""

    time_us: int
    task_id: int
    state: str
    worker_id: str


class Application(NamedTuple):
    """A line of the program."""

    time_us: int
    text: str


class Unreadable(NamedTuple):
    """A line that is no transaction; ``number`` counts from 1."""

    number: int
    text: str


Transaction = (ManagerStart | ManagerEnd | WorkerConnection | WorkerDisconnection | WorkerResources | CacheUpdate
               | Transfer | CategoryChange | TaskReady | TaskRunning | TaskWaitingRetrieval | TaskRetrieved | TaskDone
               | LibraryState | Application | Unreadable)


def read_transactions(lines: Iterable[str]) -> Iterator[Transaction]:
    """Records of a ``transactions`` log in the order of its lines; comments are left out.

    Args:
        lines: an open text file, or any lines.
    """
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or not line.strip():
            continue
        try:
            time_text, pid_text, subject, rest = line.split(None, 3)
            if not line.endswith("\n"):
                raise ValueError("cut short")
            yield _SUBJECTS[subject](int(time_text), int(pid_text), rest.rstrip("\n"))
        except (ValueError, KeyError, IndexError, TypeError):
            yield Unreadable(number, line.rstrip("\n"))


def read_performance(lines: Iterable[str]) -> list[dict[str, float]]:
    """Rows of a ``performance`` log by column name; rows cut short are left out."""
    columns: list[str] = []
    rows: list[dict[str, float]] = []
    for line in lines:
        words = line.split()
        if line.startswith("#"):
            columns = words[1:]
        elif columns and len(words) == len(columns) and line.endswith("\n"):
            rows.append(dict(zip(columns, map(float, words), strict=True)))
    return rows


def _values(text: str) -> dict[str, float]:
    """``{"cores":[1,"cores"]}`` as name to number."""
    raw = json.loads(text)
    return {name: float(value[0]) for name, value in raw.items()}


def _manager(time_us: int, _pid: int, rest: str) -> Transaction:
    pid, event, number = rest.split()
    if event == "START":
        return ManagerStart(time_us, int(pid))
    if event == "END":
        return ManagerEnd(time_us, int(pid), int(number))
    raise ValueError(event)


def _worker(time_us: int, _pid: int, rest: str) -> Transaction:
    worker, event, values = rest.split(None, 2)
    if event == "CONNECTION":
        return WorkerConnection(time_us, worker, values)
    if event == "DISCONNECTION":
        return WorkerDisconnection(time_us, worker, values)
    if event == "RESOURCES":
        return WorkerResources(time_us, worker, _values(values))
    words = values.split()
    if event == "CACHE_UPDATE":
        return CacheUpdate(time_us, worker, words[0], int(words[1]), int(words[2]), int(words[3]))
    if event == "TRANSFER":
        return Transfer(time_us, worker, words[0], words[1], int(words[2]), int(words[3]), int(words[4]))
    raise ValueError(event)


def _category(time_us: int, _pid: int, rest: str) -> Transaction:
    name, which, values = rest.split(None, 2)
    mode = ""
    if which == "FIRST":
        mode, values = values.split(None, 1)
    return CategoryChange(time_us, name, which, mode, _values(values))


def _task(time_us: int, _pid: int, rest: str) -> Transaction:
    task_text, event, values = rest.split(None, 2)
    task_id = int(task_text)
    if event in ("READY", "WAITING"):
        category, allocation, attempt, requested = values.split(None, 3)
        return TaskReady(time_us, task_id, category, allocation, int(attempt), _values(requested))
    if event == "RUNNING":
        worker, allocation, given = values.split(None, 2)
        return TaskRunning(time_us, task_id, worker, allocation, _values(given))
    if event == "WAITING_RETRIEVAL":
        return TaskWaitingRetrieval(time_us, task_id, values.split()[0])
    result, exit_text, *objects = values.split(None, 2)
    if event == "DONE":
        return TaskDone(time_us, task_id, result, int(exit_text))
    if event == "RETRIEVED":
        limits, used = objects[0].split()
        return TaskRetrieved(time_us, task_id, result, int(exit_text), _values(limits), _values(used))
    raise ValueError(event)


def _library(time_us: int, _pid: int, rest: str) -> Transaction:
    task_id, state, worker = rest.split()
    return LibraryState(time_us, int(task_id), state, worker)


def _application(time_us: int, _pid: int, rest: str) -> Transaction:
    return Application(time_us, rest)


_SUBJECTS: dict[str, Callable[[int, int, str], Transaction]] = {
    "MANAGER": _manager, "WORKER": _worker, "CATEGORY": _category, "TASK": _task, "LIBRARY": _library,
    "APPLICATION": _application,
}

"""What the manager tells about itself: statistics and status records (reference, sections 7, 9.7, 20.2, 20.4).

Reads the core's books, changes only the gauges of the statistics. Everything here may walk over workers and
shapes; it is called when somebody asks, not per task.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

from taskvine_core.constants import TASK_STATE_NAMES
from taskvine_core.manager.books import Books
from taskvine_core.manager.categories import Category
from taskvine_core.manager.hungry import hungry
from taskvine_core.manager.records import TaskRecord, WorkerRecord
from taskvine_core.resources import ZERO, Resources

if TYPE_CHECKING:
    from taskvine_core.manager.core import ManagerCore

Record = dict[str, Any]

STATE_TEXT = ("idle", "draining", "draining")


def hungry_now(books: Books) -> int:
    """Section 9.7 on the current books."""
    running = sum(w.sent for w in books.workers.values())
    waiting = len(books.tasks) - running - _retrieving(books)
    depth = books.tuning.attempt_schedule_depth
    ready = Counter(task.spec.resources for task in islice(books.ready.tasks(), depth))
    return hungry(waiting=waiting, running=running, workers=len(books.workers), committed=_committed(books),
                  total=_total(books), minimum=books.tuning.hungry_minimum, factor=books.tuning.hungry_minimum_factor,
                  ready=ready.items())


def _retrieving(books: Books) -> int:
    return len(books.bereaved) + sum(len(w.retrieving) for w in books.workers.values())


def _total(books: Books) -> Resources:
    total = ZERO
    for worker in books.workers.values():
        total = total.plus(worker.totals)
    return total


def _committed(books: Books) -> Resources:
    total = ZERO
    for worker in books.workers.values():
        total = total.plus(worker.in_use)
    return total


def refresh_stats(core: ManagerCore) -> None:
    """Recompute every gauge."""
    books = core.books
    stats, workers = books.stats, books.workers.values()
    stats.workers_connected = len(books.workers)
    stats.workers_init = sum(1 for w in workers if w.bucket < 0 and not w.state and not w.blocked and not w.not_before)
    stats.workers_busy = sum(1 for w in workers if w.busy)
    stats.workers_idle = stats.workers_connected - stats.workers_busy
    stats.tasks_running = sum(w.sent for w in workers)
    stats.tasks_with_results = _retrieving(books)
    stats.tasks_on_workers = stats.tasks_running + stats.tasks_with_results
    stats.tasks_waiting = len(books.tasks) - stats.tasks_on_workers
    stats.workers_able = _able(core)
    stats.set_total(_total(books))
    stats.set_committed(_committed(books))
    if workers:
        columns = list(zip(*(w.totals for w in workers), strict=True))
        stats.set_range(Resources(*map(min, columns)), Resources(*map(max, columns)))
    else:
        stats.set_range(ZERO, ZERO)
    core.completion.capacity.apply(stats)
    stats.inuse_cache = sum(w.cache_mb for w in workers)


def _able(core: ManagerCore) -> int:
    """Workers that could run the largest waiting task."""
    books = core.books
    if not books.ready.count:
        return len(books.workers)
    largest = Resources(*books.ready.most_asked())
    return sum(1 for w in books.workers.values() if largest.fits_in(w.totals))


def status(core: ManagerCore, what: str) -> list[Record]:
    """The records of section 20.4; [] for an unknown request."""
    makers = {"manager": _manager, "tasks": _tasks, "workers": _workers, "categories": _categories}
    maker = makers.get(what)
    return maker(core) if maker is not None else []


def _manager(core: ManagerCore) -> list[Record]:
    refresh_stats(core)
    books = core.books
    stats = books.stats
    record: Record = {"type": "vine_manager", "project": core.fleet.name, "port": core.fleet.data_port,
                      "taskvine_uuid": core.manager_id, "tasks_left": core.tasks_left, "protocol": 13}
    record.update(stats.items())
    record["workers"] = stats.workers_connected
    record["workers_blocked"] = sorted(core.fleet.blocked_hosts)
    record["tasks_complete"] = stats.tasks_done
    total, used = _total(books), _committed(books)
    for name, have, taken in zip(("cores", "memory", "disk", "gpus"), total, used, strict=True):
        record[f"{name}_total"], record[f"{name}_inuse"] = have, taken
    record["workers_total"], record["workers_inuse"] = stats.workers_connected, stats.workers_busy
    wanted = list(used)
    for shape in books.ready.shapes.values():
        for index, amount in enumerate(shape.resources):
            wanted[index] += max(0, amount) * shape.count
    for name, amount in zip(("cores", "memory", "disk", "gpus"), wanted, strict=True):
        record[f"tasks_total_{name}"] = amount
    record["categories"] = _categories(core)
    record.update(core.properties)
    return [record]


def _tasks(core: ManagerCore) -> list[Record]:
    return [_task(task, core.books.now) for task in core.books.tasks.values()]


def _task(task: TaskRecord, now: float) -> Record:
    spec, run = task.spec, task.run
    given = run.allocation if run is not None else spec.resources
    return {
        "task_id": task.id, "state": TASK_STATE_NAMES[task.state], "tag": spec.tag or "", "category": spec.category,
        "command": spec.command, "needs_library": "", "provides_library": "",
        "addrport": run.addrport if run is not None else "", "host": run.hostname if run is not None else "",
        "cores": given.cores, "gpus": given.gpus, "memory": given.memory_mb, "disk": given.disk_mb,
        "time_when_submitted": int(task.submitted * 1e6),
        "time_when_commit_start": int(run.commit_start * 1e6) if run is not None else 0,
        "time_when_commit_end": int(run.commit_end * 1e6) if run is not None else 0,
        "current_time": int(now * 1e6), "priority": spec.priority,
    }


def _workers(core: ManagerCore) -> list[Record]:
    return [_worker(core, worker) for worker in core.books.workers.values()]


def _worker(core: ManagerCore, worker: WorkerRecord) -> Record:
    hello, now = worker.hello, core.books.now
    record: Record = {
        "hostname": hello.hostname, "os": hello.os, "arch": hello.arch, "addrport": worker.addrport,
        "address_port": worker.addrport, "version": hello.version, "factory_name": hello.factory_name,
        "job_id": hello.job_id, "workerid": worker.id, "ncpus": worker.totals.cores,
        "total_tasks_complete": worker.done, "total_tasks_running": worker.sent,
        "total_bytes_transferred": worker.bytes_moved, "total_transfer_time": 0,
        "start_time": int(worker.joined * 1e6), "current_time": int(now * 1e6),
        "state": worker_state(worker), "idle_s": idle_s(worker, now),
    }
    for name, have, taken in zip(("cores", "memory", "disk", "gpus"), worker.totals, worker.in_use, strict=True):
        record[f"{name}_total"], record[f"{name}_inuse"] = have, taken
    record["disk_inuse"] += worker.cache_mb
    record["workers_total"], record["workers_inuse"] = 1, int(worker.busy)
    for number, task in enumerate(worker.running.values()):
        record[f"current_task_{number:03d}_id"] = task.id
        record[f"current_task_{number:03d}_command"] = task.spec.command
    return record


def worker_state(worker: WorkerRecord) -> str:
    """"idle", "busy" or "draining"."""
    return STATE_TEXT[worker.state] if worker.state or not worker.busy else "busy"


def idle_s(worker: WorkerRecord, now: float) -> float:
    """Seconds without a task, 0 when it has some."""
    return 0.0 if worker.busy else max(0.0, now - worker.idle_since)


def _categories(core: ManagerCore) -> list[Record]:
    books = core.books
    waiting: Counter[str] = Counter()
    for family in books.ready.families.values():
        waiting[family.category] += family.count
    return [_category(core, category, waiting[category.name]) for category in books.categories]


def _category(core: ManagerCore, category: Category, waiting: int) -> Record:
    stats = category.stats
    return {
        "category": category.name, "tasks_waiting": waiting, "tasks_running": category.running,
        "tasks_on_workers": category.running, "tasks_dispatched": stats.tasks_dispatched,
        "tasks_done": stats.tasks_done,
        "tasks_failed": stats.tasks_failed, "tasks_successful": stats.tasks_successful,
        "tasks_cancelled": stats.tasks_cancelled, "workers_able": len(core.books.workers),
        **{f"max_{name}": _seen(explicit, measured) for name, explicit, measured in
           zip(("cores", "memory", "disk", "gpus"), category.max.resources, category.records.seen, strict=True)},
        "first_allocation": _named(category.first_allocation()), "max_allocation": _named(category.max.resources),
        "max_seen": _named(category.records.seen),
    }


def _seen(explicit: int, measured: int) -> str:
    """Plain number = explicit request, ~n = largest measured, na = unknown (section 20.4)."""
    if explicit >= 0:
        return str(explicit)
    return f"~{measured}" if measured >= 0 else "na"


def _named(values: Resources) -> Record:
    return {name: value for name, value in zip(("cores", "memory", "disk", "gpus"), values, strict=True) if value >= 0}

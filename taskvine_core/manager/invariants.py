"""What must hold in the manager core after every event; run in tests and in the simulator.

Owns checks only. Raises AssertionError with the records concerned; never changes anything.
"""

from __future__ import annotations

from taskvine_core.constants import (
    VINE_TASK_DONE,
    VINE_TASK_READY,
    VINE_TASK_RUNNING,
    VINE_TASK_TYPE_STANDARD,
    VINE_TASK_WAITING_RETRIEVAL,
)
from taskvine_core.manager.books import Books
from taskvine_core.manager.core import ManagerCore
from taskvine_core.manager.records import TO_MANAGER, TaskRecord, WorkerRecord
from taskvine_core.manager.staging import KEPT_OVERHEAD_BYTES
from taskvine_core.manager.states import REPLICA_READY, WORKER_DRAINING
from taskvine_core.resources import ZERO


def check_invariants(core: ManagerCore) -> None:
    """Raise AssertionError when an index disagrees with the records it is made from."""
    _check_tasks(core)
    for worker in core.books.workers.values():
        _check_worker(core.books, worker)
    _check_files(core.books)
    kept = [len(file.kept[0]) + KEPT_OVERHEAD_BYTES for file in core.books.files.values() if file.kept is not None]
    assert sum(kept) == core.staging.kept_bytes, f"{sum(kept)} bytes are kept, staging says {core.staging.kept_bytes}"
    _check_queue(core.books)
    _check_transfers(core.books)
    _check_leaving(core)


def _check_tasks(core: ManagerCore) -> None:
    books = core.books
    ready = blocked = users = 0
    for task in books.tasks.values():
        users += task.kind == VINE_TASK_TYPE_STANDARD
        assert task.state != VINE_TASK_DONE, f"done task {task.id} is still in the table"
        if task.state == VINE_TASK_READY:
            assert task.run is None, f"ready task {task.id} has a run"
            ready += task.shape is not None
            blocked += task.blocked > 0
            assert not (task.shape is not None and task.blocked), f"blocked task {task.id} stands in the queue"
        elif task.state == VINE_TASK_RUNNING:
            assert task.run is not None
            holder = task.run.worker
            assert holder.key in books.workers, f"task {task.id} runs at a worker that is gone"
            places = (holder.running, holder.queued, holder.following)
            assert sum(task.id in place for place in places) == 1, f"task {task.id} is not at its worker"
            assert (task.id not in holder.running) == task.run.queued
            if task.id in holder.following:
                _check_following(task, holder)
        elif task.state == VINE_TASK_WAITING_RETRIEVAL:
            assert task.run is not None and task.run.uploads, f"task {task.id} waits for nothing"
            assert task.id in task.run.worker.retrieving
            assert (task.id in books.bereaved) == (task.run.worker.key not in books.workers)
    assert ready == books.ready.count, f"{ready} tasks stand in the queue, it says {books.ready.count}"
    assert blocked == core.lineage.blocked, f"{blocked} tasks are blocked, lineage says {core.lineage.blocked}"
    assert users == core.user_tasks, f"{users} user tasks, counter says {core.user_tasks}"


def _check_following(task: TaskRecord, worker: WorkerRecord) -> None:
    before = [other for other in worker.tasks() if other.run is not None and other.run.successor is task]
    assert before, f"task {task.id} waits at {worker.id} and follows nothing there"


def _check_queue(books: Books) -> None:
    waiting: dict[object, int] = {}
    for shape in books.ready.shapes.values():
        family = shape.family
        assert books.ready.families.get(family.key) is family, f"a shape belongs to no family: {shape.key}"
        assert shape.count == sum(1 for _ in shape.tasks()), f"{shape.key}: {shape.count} tasks are said to be here"
        waiting[family.key] = waiting.get(family.key, 0) + shape.count
        if family.tree is not None:
            assert shape.count and shape.rank == shape.best_rank(), f"{shape.key} does not stand at its place"
    for family in books.ready.families.values():
        assert family.count == waiting.get(family.key, 0), f"{family.key}: {family.count} tasks are said to be here"
        if family.tree is not None:
            shapes = [*family.tree.items(), *family.all_unseen()]
            mine = [shape for shape in books.ready.shapes.values() if shape.family is family]
            assert sorted(shape.rank or () for shape in shapes) == sorted(shape.rank or () for shape in mine)
            assert family.tree.count == sum(1 for _ in family.tree.items())


def _check_worker(books: Books, worker: WorkerRecord) -> None:
    used = ZERO
    for task in worker.running.values():
        assert task.run is not None
        used = used.plus(task.run.allocation)
    assert used == worker.in_use, f"{worker.id}: allocations add up to {used}, books say {worker.in_use}"
    if books.tuning.resource_submit_multiplier == 1.0 and used != ZERO:
        assert used.fits_in(worker.most), f"{worker.id} is overcommitted: {used} of {worker.most}"
    gpus = [gpu for task in worker.running.values() if task.run is not None for gpu in task.run.gpus]
    assert len(set(gpus)) == len(gpus), f"{worker.id}: a gpu is given twice"
    for name, file in worker.files.items():
        assert worker.key in file.replicas, f"{worker.id} lists {name}, the file does not"
    cached = sum(max(0, file.size) for file in worker.files.values() if file.replicas[worker.key] == REPLICA_READY)
    assert abs(cached - worker.cached_bytes) < 1, f"{worker.id}: cache {cached}, books {worker.cached_bytes}"
    assert worker.outgoing >= 0 and worker.incoming >= 0


def _check_files(books: Books) -> None:
    users = dict.fromkeys(books.files, 0)
    for task in books.tasks.values():
        for mount in (*task.spec.inputs, *task.spec.outputs):
            if mount.name in users:
                users[mount.name] += 1
    for name, file in books.files.items():
        for key in file.replicas:
            assert key in books.workers, f"{name} has a replica at a worker that is gone"
            assert name in books.workers[key].files
        assert file.ready == len(file.ready_keys()), f"{name}: ready count is wrong"
        assert file.users == users[name], f"{name}: used by {users[name]} tasks, books say {file.users}"
        assert file.kept is None or file.at_manager, f"{name} is kept and not at the manager"
        assert file.lineage_refs >= 0 and file.origin_busy >= 0
        if file.waiters:
            assert not any(t.blocked and file.available_to(t) for t in file.waiters), (
                f"{name} exists and tasks still wait for it")


def _check_transfers(books: Books) -> None:
    outgoing = dict.fromkeys(books.workers, 0)
    for transfer in books.transfers.values():
        if transfer.dest not in books.workers:
            assert transfer.task_id in books.bereaved, "a transfer to or from a worker that is gone"
        elif transfer.source == TO_MANAGER:
            outgoing[transfer.dest] += 1
        elif transfer.source >= 0 and transfer.source in outgoing:
            outgoing[transfer.source] += 1
    for key, count in outgoing.items():
        assert count == books.workers[key].outgoing, f"{books.workers[key].id}: {count} outgoing, books say otherwise"


def _check_leaving(core: ManagerCore) -> None:
    for worker in core.books.workers.values():
        assert (worker.sole is not None) == (worker.state == WORKER_DRAINING) == (worker.key in core.fleet.draining)
        if worker.sole is not None:
            sole = {file.name for file in worker.files.values() if core.staging.copies.is_sole(file, worker)}
            assert sole <= {file.name for file in worker.sole}, f"{worker.id} would leave with a temp only it holds"

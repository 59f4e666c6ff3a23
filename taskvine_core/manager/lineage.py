"""Who needs which file, when it exists, and how a lost temp is made again (reference, sections 11.7, 12.4).

Owns use counts, the blocking of tasks on inputs that do not exist yet, garbage collection, and recovery tasks. A temp's
producer is kept while the temp is declared, and its inputs' records (not their replicas) with it, so that a chain
can be rebuilt from whatever is still there. Must not choose workers or sources.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Protocol

from taskvine_core.constants import (
    VINE_CACHE_LEVEL_FOREVER,
    VINE_CACHE_LEVEL_TASK,
    VINE_CACHE_LEVEL_WORKFLOW,
    VINE_TASK_DONE,
    VINE_TASK_READY,
    VINE_TASK_RETRIEVED,
    VINE_TASK_RUNNING,
    VINE_TASK_TYPE_RECOVERY,
    VINE_TEMP,
)
from taskvine_core.manager.books import Books
from taskvine_core.manager.records import PRIORITY_RECOVERY, FileRecord, TaskRecord
from taskvine_core.manager.staging import Staging
from taskvine_core.protocol.messages import SetLevel

#: Times a lost temp is made again without success before its consumers fail with "input missing".
MAX_RECOVERIES = 3


class Queueing(Protocol):
    """What lineage asks of the dispatcher."""

    def enqueue(self, task: TaskRecord, *, front: bool) -> None:
        """All inputs exist: the task may be placed."""

    def fail_unplaced(self, task: TaskRecord, reason: str) -> None:
        """An input can never be had: return the task as "input missing"."""

    def call_off(self, task: TaskRecord) -> None:
        """Nobody needs what a recovery task makes any more: end it."""


class Lineage:
    """Uses, waiters, recovery."""

    def __init__(self, books: Books, queueing: Queueing) -> None:
        self.books = books
        self.queueing = queueing
        self.staging: Staging  # set by the core: the two know each other
        self.blocked = 0
        #: Lost temps to look at, one after the other: chains may be longer than Python's stack is deep.
        self._lost: deque[tuple[FileRecord, bool]] = deque()
        self._looking = False
        #: Temps whose recovery may have become useless, likewise.
        self._idle: deque[FileRecord] = deque()
        self._hopeless: set[int] = set()  # tasks that end because an input can never be had

    # ------------------------------------------------------------------ tasks come and go

    def admit(self, task: TaskRecord) -> bool:
        """Count a task's uses; True when all its inputs exist, else it waits for them."""
        files = self.books.files
        for mount in task.spec.inputs:
            file = files[mount.name]
            file.users += 1
            file.uses_ever += 1
            if file.level == VINE_CACHE_LEVEL_TASK and file.uses_ever > 1:
                self._promote(file)
        recovering = task.kind == VINE_TASK_TYPE_RECOVERY
        for mount in task.spec.outputs:
            file = files[mount.name]
            file.users += 1
            if recovering:
                continue
            if file.decl.kind == VINE_TEMP:
                self._set_producer(file, task)
            else:
                if file.makers is None:
                    file.makers = []
                insort(file.makers, task.id)
        return self.all_available(task)

    def all_available(self, task: TaskRecord) -> bool:
        """Block the task on each input that does not exist; True when there is none."""
        missing = [file for mount in task.spec.inputs if not (file := self.books.files[mount.name]).available_to(task)]
        if not missing:
            return True
        self._block(task, missing)
        return False

    def _promote(self, file: FileRecord) -> None:
        """A level-task file that a second task uses lives on with the workflow (section 11.1)."""
        file.level = VINE_CACHE_LEVEL_WORKFLOW
        for key in file.replicas:
            self.books.send(self.books.workers[key], SetLevel(file.name, file.level))

    def _set_producer(self, file: FileRecord, task: TaskRecord) -> None:
        if file.producer is not None:
            self._drop_lineage(file)
        file.producer = task
        for mount in task.spec.inputs:
            self.books.files[mount.name].lineage_refs += 1

    def _block(self, task: TaskRecord, missing: list[FileRecord]) -> None:
        """Register with all files first: making one again may end in giving up, which ends the task."""
        self.blocked += 1
        task.blocked = len(missing)
        for file in missing:
            if file.waiters is None:
                file.waiters = []
            if file.decl.kind == VINE_TEMP:
                file.waiters.append(task)
            else:
                insort(file.waiters, task, key=_task_id)  # each writer that ends lets the first of them go on
        for file in missing:
            if task.blocked and file.decl.kind == VINE_TEMP:
                self.recover(file)

    def retire(self, task: TaskRecord) -> None:
        """A task will not run again: give up its uses, delete what nobody needs any more."""
        files = self.books.files
        if task.blocked:
            self._unblock(task)
        for mount in task.spec.inputs:
            file = files[mount.name]
            file.users -= 1
            if not file.users:
                self._unused(file)
            elif file.recovery is not None:
                self._reconsider(file)
        for mount in task.spec.outputs:
            made = files.get(mount.name)
            if made is not None:
                self._retire_output(made, task)

    def _retire_output(self, file: FileRecord, task: TaskRecord) -> None:
        file.users -= 1
        if task.kind != VINE_TASK_TYPE_RECOVERY and file.decl.kind != VINE_TEMP:
            self._written(file, task)
        elif file.waiters and file.users and not file.available:
            self._after_failed_making(file, task)
        elif file.recovery is task:
            file.recovery = None
        if not file.users:
            self._unused(file)

    def _written(self, file: FileRecord, task: TaskRecord) -> None:
        """One task that writes a file less: those that were submitted before the next one may read it."""
        makers, waiters = file.makers, file.waiters
        assert makers is not None
        del makers[bisect_left(makers, task.id)]
        file.written = True
        if not makers:
            file.makers = None
        if not waiters:
            return
        if makers:
            upto = bisect_right(waiters, makers[0], key=_task_id)
            file.waiters = waiters[:upto]
            del waiters[:upto]
            self.wake(file)
            file.waiters = waiters
        else:
            self.wake(file)

    def _after_failed_making(self, file: FileRecord, task: TaskRecord) -> None:
        if file.recovery is task:
            file.recovery = None
        self._look_at(file, task.id in self._hopeless)

    def wait_no_more(self, task: TaskRecord) -> None:
        """It is sent to where its inputs are being made; it is not to be woken when they are there."""
        for mount in task.spec.inputs:
            file = self.books.files[mount.name]
            if file.waiters is not None:
                file.waiters = [waiter for waiter in file.waiters if waiter is not task] or None
        self._unblock(task)

    def _unblock(self, task: TaskRecord) -> None:
        """Its entries among the waiters are skipped when they are met: no walk over a million waiters here."""
        task.blocked = 0
        self.blocked -= 1

    # ------------------------------------------------------------------ recoveries that nobody needs any more

    def _reconsider(self, file: FileRecord) -> None:
        """One reader less, or the program gave the file up: end its recovery if that was for nobody else."""
        self._idle.append(file)
        if len(self._idle) > 1:
            return  # below is the loop: a chain of recoveries falls from its end
        while self._idle:
            recovery = self._idle[0].recovery
            if recovery is not None and self._is_useless(recovery):
                for mount in recovery.spec.outputs:
                    made = self.books.files.get(mount.name)
                    if made is not None and made.recovery is recovery:
                        made.recovery = None
                        made.recoveries = max(0, made.recoveries - 1)  # it was not tried in vain
                self.queueing.call_off(recovery)
            self._idle.popleft()

    def _is_useless(self, recovery: TaskRecord) -> bool:
        """Does nobody read what it makes? When the program could still name a temp it is made all the same if a
        worker has begun, or if copies are to be kept."""
        if recovery.state not in (VINE_TASK_READY, VINE_TASK_RUNNING):
            return False
        books = self.books
        keep = recovery.state == VINE_TASK_RUNNING or books.tuning.temp_replica_count > 1
        for mount in recovery.spec.outputs:
            file = books.files.get(mount.name)
            if file is not None and (file.users > 1 or file.name in books.wanted or (file.declared and keep)):
                return False
        return True

    # ------------------------------------------------------------------ files come and go

    def wake(self, file: FileRecord) -> None:
        """The file exists: tasks that waited for it may go on."""
        file.recoveries = 0
        waiters, file.waiters = file.waiters, None
        for task in waiters or ():
            if not task.blocked:
                continue  # cancelled meanwhile
            task.blocked -= 1
            if not task.blocked:
                self.blocked -= 1
                self.queueing.enqueue(task, front=False)

    def lost(self, file: FileRecord) -> None:
        """No replica of a file is left."""
        if file.decl.kind != VINE_TEMP or file.at_manager:
            return
        if file.needed and self.books.tuning.immediate_recovery and file.users:
            self.recover(file)

    def recover(self, file: FileRecord) -> None:
        """Make a lost temp again, unless it exists, is being made, or nobody has said how."""
        self._look_at(file, hopeless=False)

    def _look_at(self, file: FileRecord, hopeless: bool) -> None:
        """Deal with a lost temp, and with those that turn out to be lost on the way."""
        self._lost.append((file, hopeless))
        if self._looking:
            return
        self._looking = True
        while self._lost:
            file, hopeless = self._lost.popleft()
            if self.books.files.get(file.name) is not file:
                continue
            if hopeless:
                self._give_up(file, "and cannot be made again: one of its own inputs is lost")
            else:
                self._make_again(file)
        self._hopeless.clear()
        self._looking = False

    def _make_again(self, file: FileRecord) -> None:
        if file.available or file.producer is None:
            return
        producer = file.producer
        if producer.state not in (VINE_TASK_DONE, VINE_TASK_RETRIEVED):
            return
        if file.recovery is not None and file.recovery.state not in (VINE_TASK_DONE, VINE_TASK_RETRIEVED):
            return
        if file.recoveries >= MAX_RECOVERIES:
            self._give_up(file, f"and making it again failed {MAX_RECOVERIES} times")
            return
        file.recoveries += 1
        self._submit_recovery(file, producer)

    def _submit_recovery(self, file: FileRecord, producer: TaskRecord) -> None:
        books = self.books
        temps = tuple(mount for mount in producer.spec.outputs
                      if (made := books.files.get(mount.name)) is not None and made.decl.kind == VINE_TEMP)
        spec = producer.spec._replace(outputs=temps)  # the program has its other outputs, or has given them up
        task = TaskRecord(books.new_task_id(), spec, books.now, VINE_TASK_TYPE_RECOVERY)
        task.manager_priority = PRIORITY_RECOVERY
        for mount in temps:
            books.files[mount.name].recovery = task
        books.tasks[task.id] = task
        books.stats.tasks_recovery += 1
        task.to(VINE_TASK_READY)
        books.observer.task_ready(books.now, task.id, 1, task.spec, False, task.spec.resources)
        books.observer.recovery_submitted(books.now, task.id, task.spec.command, file.name)
        if self.admit(task):
            self.queueing.enqueue(task, front=False)

    def _give_up(self, file: FileRecord, why: str) -> None:
        """Fail what waits for the file. What those would have made is not tried either: each step of a chain would
        multiply the attempts."""
        waiters, file.waiters = file.waiters, None
        file.recoveries = 0
        for task in waiters or ():
            if task.blocked:
                self._hopeless.add(task.id)
                self.queueing.fail_unplaced(task, f"temporary file {file.name} was lost {why}")

    def undeclare(self, file: FileRecord) -> None:
        """The program is done with a file; tasks already submitted keep their use of it."""
        file.declared = False
        self._unused(file)
        if file.recovery is not None:
            self._reconsider(file)

    def _unused(self, file: FileRecord) -> None:
        """No unfinished task uses the file: what may be deleted now?"""
        if file.users:
            return
        file.waiters = None  # all of them were cancelled
        over = not file.declared or file.level == VINE_CACHE_LEVEL_TASK
        if over and (file.replicas or file.kept is not None) and file.level < VINE_CACHE_LEVEL_FOREVER:
            self.staging.unlink_everywhere(file)
        if not file.declared and not file.lineage_refs:
            self._forget(file)

    def _forget(self, file: FileRecord) -> None:
        """Drop a record nobody can ask for again, and what only its lineage held."""
        if self.books.files.pop(file.name, None) is not None:
            self.staging.let_go(file)
            self._drop_lineage(file)

    def _drop_lineage(self, file: FileRecord) -> None:
        pending = [file]
        while pending:
            holder = pending.pop()
            producer, holder.producer = holder.producer, None
            spec = producer.spec if producer is not None else holder.decl.mini_task
            if spec is None:
                continue
            for mount in spec.inputs:
                used = self.books.files.get(mount.name)
                if used is None:
                    continue
                used.lineage_refs -= 1
                if not used.lineage_refs and not used.needed:
                    self.staging.unlink_everywhere(used)
                    self.books.files.pop(used.name, None)
                    pending.append(used)


def _task_id(task: TaskRecord) -> int:
    return task.id

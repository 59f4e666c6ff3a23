"""Chains of tasks sent together (``task-groups``, reference section 12.10).

Owns which waiting task is sent along with the one that makes what it reads, so that it starts at the worker without a
round trip, and what becomes of it when that did not go well. It takes the place of the task before it: no room is kept
for it, and each task has at most one successor, so that what many read still spreads over many workers. Must not know
messages or the ready queue.
"""

from __future__ import annotations

from typing import Protocol

from taskvine_core.constants import VINE_FIXED_LOCATION, VINE_TASK_READY, VINE_TASK_RUNNING, VINE_TEMP
from taskvine_core.manager.books import Books
from taskvine_core.manager.placement import Placement
from taskvine_core.manager.records import FileRecord, Run, TaskRecord, WorkerRecord
from taskvine_core.manager.staging import Staging
from taskvine_core.resources import Resources

#: Tasks that wait at one worker for others there: they are taken back one by one when it drains.
FOLLOWING_MAX = 64
#: Of the tasks that wait for a file so many are looked at for one that may follow,
CANDIDATES = 8
#: and none when more wait: they keep all workers busy anyway.
WAITERS_MAX = 1000


class Sending(Protocol):
    """What the dispatcher does for groups."""

    def send_after(self, task: TaskRecord, worker: WorkerRecord, allocation: Resources) -> None:
        """Send a task that waits for files to the worker where they are being made."""

    def move_in(self, task: TaskRecord) -> None:
        """Its inputs are there."""

    def withdraw(self, task: TaskRecord) -> None:
        """They will not come: have it back."""


class Groups:
    """Which task follows which."""

    def __init__(self, books: Books, sending: Sending, placement: Placement, staging: Staging) -> None:
        self.books = books
        self.loose: list[TaskRecord] = []  # the task before each of them ended, however it did
        self._sending = sending
        self._placement = placement
        self._staging = staging

    def extend(self, task: TaskRecord) -> None:
        """Send along what can follow a task that was sent, or that has moved up at its worker."""
        while (after := _successor_of(task)) is not None:
            task = after
        run = task.run
        while run is not None and len(run.worker.following) < FOLLOWING_MAX:
            found = self._candidate(task, run)
            if found is None:
                return
            task, allocation = found
            self._sending.send_after(task, run.worker, allocation)
            run.successor, run = task, task.run

    def join(self, task: TaskRecord) -> None:
        """A task was submitted that waits for files: it may follow one that was sent already."""
        for mount in task.spec.inputs:
            maker = self.books.files[mount.name].producer
            if maker is not None and maker.run is not None and maker.state == VINE_TASK_RUNNING:
                if _successor_of(maker) is None:
                    self.extend(maker)
                return

    def settle(self) -> None:
        """Deal with those whose predecessor ended; its outputs have been taken in by now."""
        while self.loose:
            task = self.loose.pop()
            run = task.run
            if run is None or task.id not in run.worker.following:
                continue  # it ended as well, or came back
            lacking = []
            for mount in task.spec.inputs:
                file = self.books.files[mount.name]
                if run.worker.key in file.replicas:
                    continue
                if file.available:
                    self._staging.bring(file, run.worker)
                else:
                    lacking.append(file)
            if not lacking:
                self._sending.move_in(task)
            elif not self._attach(task, [self._maker(file, run.worker) for file in lacking]):
                self._sending.withdraw(task)

    def _attach(self, task: TaskRecord, makers: list[TaskRecord | None]) -> bool:
        """Let it follow another of the tasks that make what it reads; False when one of its inputs will not come."""
        for maker in makers if all(makers) else ():
            if maker is not None and maker.run is not None and _successor_of(maker) in (None, task):
                maker.run.successor = task
                return True
        return False

    def _candidate(self, task: TaskRecord, run: Run) -> tuple[TaskRecord, Resources] | None:
        """The first of those that wait for what the task makes that can follow it."""
        for mount in task.spec.outputs:
            file = self.books.files.get(mount.name)
            if file is None or file.decl.kind != VINE_TEMP or not file.waiters or len(file.waiters) > WAITERS_MAX:
                continue
            for waiter in file.waiters[:CANDIDATES]:
                if self._may_follow(waiter, run.worker):
                    allocation = self._placement.room_after(waiter, run.allocation, run.worker, self.books.now)
                    if allocation is not None:
                        return waiter, allocation
        return None

    def _may_follow(self, task: TaskRecord, worker: WorkerRecord) -> bool:
        """Is it due, and is everything it reads there or being made at this worker?"""
        spec, now = task.spec, self.books.now
        if task.state != VINE_TASK_READY or not task.blocked or max(task.not_before, spec.time_start_s) > now:
            return False
        category = self.books.categories.get(spec.category)
        if spec.time_end_s or 0 <= category.max_concurrent <= category.running:
            return False
        for mount in spec.inputs:
            file = self.books.files[mount.name]
            if mount.flags & VINE_FIXED_LOCATION:
                return False
            if not file.available_to(task) and (file.decl.kind != VINE_TEMP or self._maker(file, worker) is None):
                return False
        return True

    def _maker(self, file: FileRecord, worker: WorkerRecord) -> TaskRecord | None:
        """The task at this worker that makes a temp."""
        for task in (file.recovery, file.producer):
            if (task is not None and task.state == VINE_TASK_RUNNING and task.run is not None
                    and task.run.worker is worker):
                return task
        return None


def _successor_of(task: TaskRecord) -> TaskRecord | None:
    """The task sent along with this one, unless it came back."""
    run = task.run
    after = run.successor if run is not None else None
    if run is None or after is None or after.run is None or after.run.worker is not run.worker:
        return None
    return after

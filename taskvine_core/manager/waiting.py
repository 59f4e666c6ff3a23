"""submit, wait and cancel (reference, sections 3.3 and 9.1).

Owns which finished task a call returns. A finished task is handed over exactly once, also when Ctrl-C interrupts a
wait: an outcome leaves the queue only after it is noted here, and noting it twice is harmless.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import cast

from taskvine_core.constants import VINE_TASK_DONE, VINE_TASK_RETRIEVED
from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager import checks
from taskvine_core.manager.base import ManagerBase
from taskvine_core.manager.cached_result import CachedTaskResult
from taskvine_core.manager.events import Submit, TaskOutcome, Undeclare
from taskvine_core.manager.file import Bytes
from taskvine_core.manager.task import Task

#: The object behind ``Manager.stats`` is refreshed at most this often by calls that do not wait.
STATS_INTERVAL_S = 5.0


class WaitingMixin(ManagerBase):
    """Tasks in and out."""

    #: Finished and not returned: outcomes that no wait for a tag or id has wanted yet.
    _finished: dict[int, TaskOutcome]
    _stats_due: float

    def submit(self, task: Task) -> int:
        """Queue a task; its inputs and outputs are fixed from now on.

        Returns:
            its id, >= 1. Of a task whose result is known (``enable_tasks_cache``) the id of that: a str.

        Raises:
            UsageTypeError: not a Task.
            UsageError: (a ValueError) it was submitted before, its description is invalid, or the manager is closed.
        """
        if not isinstance(task, Task):
            raise UsageTypeError(f"task must be a Task, not {task!r}")
        if task._id:
            raise UsageError(f"task {task._id} was submitted before", hint="make a new Task, or use task.clone()")
        if self._home.dropped or self._home.unneeded:
            self._sweep()
        runner = self._runner
        runner.keep_pace()
        task._manager = self  # type: ignore[assignment]
        task.submit_finalize()
        known = None if self._results is None else self._results.look_up(task)
        if isinstance(known, CachedTaskResult):
            self._hits.append(known)
            task._id = runner.new_task_id()
            return cast(int, known.id)  # published so, though every other id is a number
        spec = task.freeze()
        task_id = runner.new_task_id()
        self._tasks[task_id] = task
        task._id = task_id
        if self._results is not None:
            self._results.submitted(task, known)
        runner.post(Submit(task_id, spec))
        return task_id

    # ------------------------------------------------------------------ wait

    def wait(self, timeout: float | str | None = "wait_forever") -> Task | None:
        """The next finished task, or None when ``timeout`` (s) is over or nothing more can happen."""
        return self._wait(None, checks.timeout(timeout))

    def wait_for_tag(self, tag: str | None, timeout: float | str | None = "wait_forever") -> Task | None:
        """As ``wait``, only tasks with this tag (None: any)."""
        if tag is None:
            return self._wait(None, checks.timeout(timeout))
        return self._wait(lambda task: task.tag == tag, checks.timeout(timeout))

    def wait_for_task_id(self, task_id: int, timeout: float | str | None = "wait_forever") -> Task | None:
        """As ``wait``, only the task with this id."""
        return self._wait(lambda task: task._id == task_id, checks.timeout(timeout))

    def _wait(self, wanted: Callable[[Task], bool] | None, timeout_s: float | None) -> Task | None:
        """Return a finished task that is ``wanted`` (None: any), waiting at most ``timeout_s`` (None: for ever)."""
        if self._home.dropped or self._home.unneeded:
            self._sweep()
        task = self._take(wanted)
        if task is None and timeout_s != 0:
            task = self._pump(wanted, timeout_s)
        if time.monotonic() >= self._stats_due:
            self._refresh_stats()
        return task

    def _pump(self, wanted: Callable[[Task], bool] | None, timeout_s: float | None) -> Task | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        runner, completed = self._runner, self._runner.completed
        before = self._happened()
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())

            def over() -> bool:
                return bool(completed) or (self._nothing_left()
                                           and (timeout_s is None or self._happened() != before))

            in_time = runner.pump(over, left_s)
            task = self._take(wanted)
            if task is not None or not in_time:
                return task
            if not completed and self._nothing_left():
                return None

    def _nothing_left(self) -> bool:
        """No task anywhere: a submit that the background thread has not seen yet counts as a task."""
        return len(self._tasks) == len(self._finished) and self._runner.core.idle_for_program()

    def _happened(self) -> int:
        """Grows with every event that counts for returning early."""
        stats = self._runner.core.books.stats
        return (stats.workers_joined + stats.workers_removed + stats.tasks_dispatched + stats.tasks_done
                + stats.tasks_cancelled)

    def _take(self, wanted: Callable[[Task], bool] | None) -> Task | None:
        """Hand over one finished task, oldest first."""
        completed, finished, tasks = self._runner.completed, self._finished, self._tasks
        for index, hit in enumerate(self._hits):
            as_task = cast("Task", hit)  # it has what a program reads of one that is finished
            if wanted is None or wanted(as_task):
                del self._hits[index]
                return as_task
        if wanted is None:
            if not finished and completed:
                self._note(completed[0])
                completed.popleft()
            for task_id in finished:
                return self._hand_over(task_id)
            return None
        while completed:
            self._note(completed[0])
            completed.popleft()
        for task_id in finished:
            if wanted(tasks[task_id]):
                return self._hand_over(task_id)
        return None

    def _note(self, outcome: TaskOutcome) -> None:
        if outcome.task_id in self._tasks:
            self._finished[outcome.task_id] = outcome

    def _hand_over(self, task_id: int) -> Task:
        task, outcome = self._tasks[task_id], self._finished[task_id]
        if outcome.stdout_path:
            outcome = self._claim_stdout(task, outcome)
        task._outcome = outcome
        if self._results is not None:
            self._results.returned(task)
        del self._tasks[task_id], self._finished[task_id]
        return task

    def _claim_stdout(self, task: Task, outcome: TaskOutcome) -> TaskOutcome:
        """A large standard output stays in a file as long as the task object."""
        found = self._runner.stdout_of(outcome)
        if isinstance(found, bytes):
            return outcome._replace(stdout=found, stdout_path="")
        task.__dict__["_stdout_file"] = Bytes(self._home, "", str(found))
        return outcome._replace(stdout_path=str(found))

    def _put_back(self, task: Task | CachedTaskResult) -> None:
        """Undo ``_hand_over``: a later wait returns the task."""
        if isinstance(task, CachedTaskResult):
            self._hits.append(task)
        elif task._outcome is not None:
            self._tasks[task._id] = task
            self._finished[task._id] = task._outcome

    def empty(self) -> bool:
        """True when every submitted task was returned by wait."""
        return not self._tasks and not self._hits

    def hungry(self) -> int:
        """How many more tasks the manager would like to have now (0: none)."""
        return self._runner.call(lambda core, now: core.hungry())

    def task_state(self, task_id: int) -> int:
        """VINE_TASK_* of a task; VINE_TASK_DONE when it was returned or is unknown."""
        if task_id not in self._tasks:
            return VINE_TASK_DONE

        def read(core: object, now: float) -> int:
            record = core.books.tasks.get(task_id)  # type: ignore[attr-defined]
            return VINE_TASK_RETRIEVED if record is None else int(record.state)

        return self._runner.call(read)

    def set_min_task_id(self, minid: int) -> int:
        """Raise the id of the next task to at least ``minid``; returns the value in force."""
        return self._runner.set_min_task_id(checks.whole(minid, "minid"))

    # ------------------------------------------------------------------ cancel

    def cancel_by_task_id(self, task_id: int) -> int:
        """1 when the task was known and not finished yet, else 0. It comes back from wait as "cancelled"."""
        return self._cancel((task_id,))

    def cancel_by_task_tag(self, tag: str) -> int:
        """Cancel one task with this tag; 1 or 0."""
        return next((1 for i in self._ids(lambda t: t.tag == tag) if self._cancel((i,))), 0)

    def cancel_all_by_tag(self, tag: str) -> int:
        """Cancel all tasks with this tag; how many."""
        return self._cancel(self._ids(lambda t: t.tag == tag))

    def cancel_by_category(self, category: str) -> int:
        """Cancel all tasks of a category; how many."""
        return self._cancel(self._ids(lambda t: t.category == category))

    def cancel_all(self) -> int:
        """Cancel all tasks; how many."""
        return self._cancel(tuple(self._tasks))

    def _ids(self, chosen: Callable[[Task], bool]) -> tuple[int, ...]:
        return tuple(task_id for task_id, task in self._tasks.items() if chosen(task))

    def _cancel(self, task_ids: Iterable[int]) -> int:
        return self._runner.call(lambda core, now: core.cancel(task_ids))

    # ------------------------------------------------------------------ upkeep

    def _refresh_stats(self) -> None:
        """Bring the object behind ``stats`` up to date."""
        def read(core: object, now: float) -> None:
            core.refresh_stats()  # type: ignore[attr-defined]
            self._stats.assign(core.books.stats)  # type: ignore[attr-defined]

        self._runner.call(read)
        self._stats_due = time.monotonic() + STATS_INTERVAL_S

    def _sweep(self) -> None:
        """Do what the garbage collector found: forget files and bytes nobody refers to."""
        dropped, unneeded = self._home.dropped, self._home.unneeded
        while dropped:
            self._runner.post(Undeclare(dropped.popleft()))
        while unneeded:
            name, path = unneeded.popleft()
            self._runner.forget_contents(name)
            if path:
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    continue

"""Runs: task attempts and mini-tasks from their order to their end; which queued one starts next.

Owns the queue and the accounting of allocations. Must not know the cache, processes or messages beyond their fields.
"""

from __future__ import annotations

from taskvine_core.constants import VINE_RESULT_SUCCESS
from taskvine_core.errors import StateError
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.resources import ZERO, Resources
from taskvine_core.worker.events import OutputOrder
from taskvine_core.worker.machines import KILLED, QUEUED, RUN_TABLE, STARTING, step


class Run:
    """One execution. A mini-task has ``task_id`` -1 and ``makes`` the object's name."""

    __slots__ = (
        "allocation",
        "attempt",
        "cpu_s",
        "disk_asked_at",
        "disk_mb",
        "ended_at",
        "error",
        "exit_code",
        "gpus",
        "holds",
        "makes",
        "memory_mb",
        "memory_now_mb",
        "missing_inputs",
        "number",
        "outputs",
        "processes",
        "result",
        "serial",
        "spec",
        "started_at",
        "state",
        "task_id",
        "watched",
    )

    def __init__(self, number: int, task_id: int, attempt: int, spec: TaskSpec, allocation: Resources,
                 gpus: tuple[str, ...], outputs: tuple[OutputOrder, ...], makes: str = "", serial: int = 0) -> None:
        self.number = number
        self.task_id = task_id
        self.attempt = attempt
        self.spec = spec
        self.allocation = allocation
        self.gpus = gpus
        self.outputs = outputs
        self.makes = makes
        self.serial = serial
        self.state = QUEUED
        self.missing_inputs = 0
        self.holds = False          # its allocation is counted
        self.started_at = 0.0
        self.ended_at = 0.0
        self.exit_code = -1
        self.result = VINE_RESULT_SUCCESS
        self.error = ""
        self.cpu_s = -1.0
        self.memory_mb = -1         # the most so far
        self.memory_now_mb = 0
        self.disk_mb = -1
        self.processes = -1
        self.disk_asked_at = 0.0
        self.watched: dict[str, int] | None = None   # sandbox path -> offset read so far


class RunTable:
    """Every run that is not DONE, the FIFO of startable ones, and what is allocated."""

    def __init__(self, total: Resources) -> None:
        self.total = total
        self.in_use = ZERO
        self.runs: dict[int, Run] = {}
        self.of_task: dict[int, Run] = {}
        self._startable: dict[int, Run] = {}   # insertion-ordered by run number = order of arrival
        self._sorted = True
        self._full = False                     # the oldest startable run had no room when it was last looked at
        self.active: dict[int, Run] = {}       # holding an allocation

    def add(self, run: Run) -> None:
        self.runs[run.number] = run
        if run.task_id >= 0:
            self.of_task[run.task_id] = run
        if not run.missing_inputs:
            self._startable[run.number] = run

    def input_ready(self, run: Run) -> None:
        """One of the inputs a queued run waits for is there."""
        run.missing_inputs -= 1
        if not run.missing_inputs and run.state == QUEUED:
            self._startable[run.number] = run
            self._sorted = self._full = False

    def next_to_start(self) -> Run | None:
        """The oldest run whose inputs are READY, when its allocation is free.

        The oldest one blocks younger ones while it waits for room: otherwise a stream of small tasks would keep a
        large one waiting for ever.
        """
        if self._full or not self._startable:
            return None
        if not self._sorted:
            self._startable = dict(sorted(self._startable.items()))
            self._sorted = True
        run = next(iter(self._startable.values()))
        if not self.in_use.plus(run.allocation).fits_in(self.total):
            self._full = True
            return None
        del self._startable[run.number]
        return run

    @property
    def waiting(self) -> int:
        """Runs that could start if there were room."""
        return len(self._startable)

    def hold(self, run: Run) -> None:
        run.holds = True
        self.active[run.number] = run
        self.in_use = self.in_use.plus(run.allocation)

    def unhold(self, run: Run) -> None:
        """Return the allocation; safe to call twice."""
        if run.holds:
            run.holds = self._full = False
            del self.active[run.number]
            self.in_use = self.in_use.minus(run.allocation)

    def move(self, run: Run, event: str) -> None:
        after = RUN_TABLE.get((run.state, event))
        if after is None:       # four times per task nobody needs the words
            after = step(RUN_TABLE, run.state, event, f"run {run.number} of task {run.task_id}")
        run.state = after

    def forget(self, run: Run) -> None:
        """The run is DONE, or KILLED and nobody may ask for it again."""
        if self._startable.pop(run.number, None) is not None:
            self._full = False
        self.unhold(run)
        self.runs.pop(run.number, None)
        self.unname(run)

    def unname(self, run: Run) -> None:
        """The manager's number for this run is free again."""
        if self.of_task.get(run.task_id) is run:
            del self.of_task[run.task_id]

    def queued(self) -> list[Run]:
        return [r for r in self.runs.values() if r.state == QUEUED]

    def check_invariants(self) -> None:
        """Raises StateError when accounts or index disagree with the runs."""
        in_use = ZERO
        for run in self.active.values():
            in_use = in_use.plus(run.allocation)
            if not run.holds or run.number not in self.runs or run.state == QUEUED:
                raise StateError(f"run {run.number} holds an allocation in state {run.state}", hint="a defect")
        if in_use != self.in_use or not in_use.fits_in(self.total):
            raise StateError(f"allocations {self.in_use} are not {in_use} within {self.total}", hint="a defect")
        for run in self.runs.values():
            if run.state in (STARTING,) and not run.holds:
                raise StateError(f"run {run.number} is {run.state} without its allocation", hint="a defect")
            if (run.state == QUEUED and not run.missing_inputs) != (run.number in self._startable):
                raise StateError(f"run {run.number} is in the wrong queue", hint="a defect: please report")
            if run.state == KILLED and self.of_task.get(run.task_id) is run:
                raise StateError(f"killed run {run.number} still answers for task {run.task_id}", hint="a defect")

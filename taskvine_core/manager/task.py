"""``Task``: a command the program wants run, and what came of it (reference, section 4).

Owns what the program reads of a finished task. How it is described before is description.py. Must not know workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvine_core.constants import (
    TASK_STATE_NAMES,
    VINE_RESULT_SUCCESS,
    VINE_TASK_DONE,
    VINE_TASK_INITIAL,
    result_text,
)
from taskvine_core.manager.description import Description, Settings
from taskvine_core.manager.results import ResourceSummary, from_resources, measured_summary, metric
from taskvine_core.resources import NOTHING_SET

if TYPE_CHECKING:
    from taskvine_core.manager.api import Manager


class Task(Description):
    """A shell command run in a fresh directory at a worker. Arguments: see ``Description``.

    Every property below has its "not finished" value until ``Manager.wait`` has returned the task.
    """

    __slots__ = ()

    @property
    def manager(self) -> Manager | None:
        """The manager it was submitted to, or None."""
        return self._manager

    @property
    def id(self) -> int:
        """0 before submission."""
        return self._id

    @property
    def tag(self) -> str | None:
        """As set."""
        return self._tag

    @property
    def category(self) -> str:
        """As set, "default" by default."""
        return self._category

    @property
    def command(self) -> str:
        """As set."""
        return self._command

    @property
    def state(self) -> str:
        """INITIAL, READY, RUNNING, WAITING_RETRIEVAL, RETRIEVED or DONE."""
        if self._outcome is not None:
            return TASK_STATE_NAMES[VINE_TASK_DONE]
        if self._id == 0 or self._manager is None:
            return TASK_STATE_NAMES[VINE_TASK_INITIAL]
        return TASK_STATE_NAMES[self._manager.task_state(self._id)]

    @property
    def std_output(self) -> str | None:
        """Standard output and error as text, undecodable bytes replaced; None before the task is done."""
        outcome = self._outcome
        if outcome is None:
            return None
        raw = outcome.stdout
        if outcome.stdout_path:
            try:
                raw = Path(outcome.stdout_path).read_bytes()
            except OSError as error:
                return f"[the output of this task was kept in a file that cannot be read any more: {error}]"
        return raw.decode("utf-8", "replace")

    @property
    def output(self) -> Any:
        """The same as ``std_output``; subclasses return what their function returned."""
        return self.std_output

    @property
    def exit_code(self) -> int:
        """Exit status, or the signal number; -1 before."""
        return -1 if self._outcome is None else self._outcome.exit_code

    @property
    def result(self) -> str:
        """One of the strings of section 2.5; "unknown" before."""
        return "unknown" if self._outcome is None else result_text(self._outcome.result)

    @property
    def hostname(self) -> str | None:
        """Host of the worker that ran it."""
        return None if self._outcome is None else self._outcome.hostname

    @property
    def addrport(self) -> str | None:
        """``ip:port`` of the worker that ran it."""
        return None if self._outcome is None else self._outcome.addrport

    @property
    def resources_measured(self) -> ResourceSummary:
        """What it used (7.2)."""
        return ResourceSummary() if self._outcome is None else measured_summary(self._outcome)

    @property
    def resources_requested(self) -> ResourceSummary:
        """What the program asked for."""
        settings = self._settings or Settings()
        return from_resources(self._resources, wall_time=settings.time_max_s or -1, end=settings.time_end_s or -1)

    @property
    def resources_allocated(self) -> ResourceSummary:
        """What it was given at its last dispatch."""
        return from_resources(NOTHING_SET if self._outcome is None else self._outcome.allocated)

    @property
    def limits_exceeded(self) -> ResourceSummary | None:
        """The limits that were broken, or None."""
        if self._outcome is None or self._outcome.limits is None:
            return None
        return from_resources(self._outcome.limits)

    def completed(self) -> bool:
        """Did it run to its end, whatever the exit code?"""
        return self._outcome is not None and self._outcome.result == VINE_RESULT_SUCCESS

    def successful(self) -> bool:
        """Did it run to its end with exit code 0?"""
        return self.completed() and self.exit_code == 0

    def get_metric(self, name: str) -> int:
        """A time (µs) or a number of bytes of section 4.4; 0 for unknown names."""
        return metric(self._outcome, name)

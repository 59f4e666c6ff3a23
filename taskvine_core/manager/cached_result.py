"""``CachedTaskResult``: what ``wait`` returns for a task whose result was known (reference, section 18.3).

Owns the attributes that a program reads of a finished task. Must not know how results are kept.
"""

from __future__ import annotations

from typing import Any

from taskvine_core.manager.file import File
from taskvine_core.manager.results import NUMBERS, ResourceSummary
from taskvine_core.manager.task import Task

CACHED = "CACHED"


class CachedTaskResult:
    """A finished task that was not run again.

    ``id`` is a string: the fingerprint of the task, which identical tasks share. Times and metrics are 0.
    """

    def __init__(self, fingerprint: str, task: Task) -> None:
        self._task = task
        self._id = self.id = fingerprint
        self.tag = task.tag
        self.category = "default"
        self.hostname = self.addrport = CACHED
        self.state = "DONE"
        nothing = dict.fromkeys(NUMBERS, 0)
        self.resources_measured = ResourceSummary(**nothing)
        self.resources_requested = ResourceSummary(**nothing)
        self.resources_allocated = ResourceSummary(**nothing)
        self.limits_exceeded = None

    @property
    def command(self) -> str:
        """As the task would say."""
        return self._task.command

    @property
    def result(self) -> str:
        """"success": nothing else is kept."""
        return self._task.result

    @property
    def exit_code(self) -> int:
        """0: nothing else is kept."""
        return self._task.exit_code

    @property
    def std_output(self) -> str | None:
        """Standard output and error of the run that was kept."""
        return self._task.std_output

    @property
    def output(self) -> Any:
        """What the task would give. A result of a PythonTask is unpickled here, in the program."""
        return self._task.output

    @property
    def output_file(self) -> File | None:
        """The file with the serialized result of a PythonTask, None of other tasks."""
        return getattr(self._task, "output_file", None)

    def successful(self) -> bool:
        """True: nothing else is kept."""
        return self._task.successful()

    def completed(self) -> bool:
        """True: nothing else is kept."""
        return self._task.completed()

    def get_metric(self, name: str) -> int:
        """0: nothing was measured."""
        return 0

    def decrement_retry(self) -> int:
        """No retry is left, nor needed: 0."""
        return 0

    def load_wrapper_output(self, manager: object = None) -> Any:
        """The same as ``output``."""
        return self.output

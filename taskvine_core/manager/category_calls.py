"""Categories: limits, modes and statistics of groups of tasks (reference, section 3.6).

Owns the argument checks of these calls. What a category does with its limits is categories.py.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from taskvine_core.constants import (
    VINE_TASK_READY,
    VINE_TASK_RUNNING,
    VINE_TASK_TYPE_STANDARD,
    VINE_TASK_WAITING_RETRIEVAL,
)
from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager import checks
from taskvine_core.manager.base import ManagerBase
from taskvine_core.manager.categories import Categories
from taskvine_core.manager.stats import CategoryStats

if TYPE_CHECKING:
    from taskvine_core.manager.core import ManagerCore

_Limits = Mapping[str, float] | None
T = TypeVar("T")


class CategoryMixin(ManagerBase):
    """Settings of categories."""

    def set_resources_max(self, rmd: _Limits) -> None:
        """Default maximum for categories; keys among cores, gpus, memory (MB), disk (MB), wall_time (s), end (s)."""
        self._categories(lambda c: c.set_max(None, _limits(rmd, "rmd")))

    def set_resources_min(self, rmd: _Limits) -> None:
        """Default minimum for categories."""
        self._categories(lambda c: c.set_min(None, _limits(rmd, "rmd")))

    def set_category_resources_max(self, category: str, rmd: _Limits) -> None:
        """Maximum of one category; None or {} changes nothing."""
        self._categories(lambda c: c.set_max(checks.text(category, "category"), _limits(rmd, "rmd")))

    def set_category_resources_min(self, category: str, rmd: _Limits) -> None:
        """Minimum of one category; None or {} changes nothing."""
        self._categories(lambda c: c.set_min(checks.text(category, "category"), _limits(rmd, "rmd")))

    def set_category_first_allocation_guess(self, category: str, rmd: _Limits) -> None:
        """What to try first in a category of which nothing is known."""
        self._categories(lambda c: c.set_first_guess(checks.text(category, "category"), _limits(rmd, "rmd")))

    def set_category_mode(self, category: str | None, mode: str | int) -> int:
        """How allocations of a category are chosen; category None: of those made from now on.

        Returns:
            1 when the mode exists, else 0.

        Raises:
            UsageNameError: (an AttributeError) an unknown name.
        """
        number = checks.allocation_mode(mode)
        return int(self._categories(lambda c: c.set_mode(category, number)))

    def set_category_autolabel_resource(self, category: str, resource: str, autolabel: bool) -> None:
        """Whether one resource of a category may be learned."""
        self._categories(lambda c: c.set_autolabel(category, resource, bool(autolabel)))

    def set_category_max_concurrent(self, category: str, max_concurrent: int) -> None:
        """At most so many tasks of the category at once; negative: no limit."""
        most = checks.whole(max_concurrent, "max_concurrent")
        self._categories(lambda c: c.set_max_concurrent(category, most))

    def initialize_categories(self, filename: str | os.PathLike[str], rm: _Limits) -> int:
        """Seed the statistics of categories from a file of resource summaries; returns how many it had.

        Args:
            rm: the largest worker to expect.

        Raises:
            UsageError: the file cannot be read or understood.
        """
        try:
            text = Path(filename).read_text()
        except OSError as error:
            raise UsageError(f"filename {os.fspath(filename)!r} cannot be read: {error}") from error
        return self._categories(lambda c: c.initialize(text, _limits(rm, "rm")))

    def stats_category(self, category: str) -> CategoryStats:
        """The statistics of one category, as of now."""
        def read(core: ManagerCore, now: float) -> CategoryStats:
            copy = CategoryStats()
            copy.assign(core.books.categories.get(category).stats)
            states = Counter(task.state for task in core.books.tasks.values()
                             if task.spec.category == category and task.kind == VINE_TASK_TYPE_STANDARD)
            copy.tasks_waiting = states[VINE_TASK_READY]
            copy.tasks_running = states[VINE_TASK_RUNNING]
            copy.tasks_with_results = states[VINE_TASK_WAITING_RETRIEVAL]
            copy.tasks_on_workers = copy.tasks_running + copy.tasks_with_results
            copy.tasks_submitted = states.total() + copy.tasks_done + copy.tasks_cancelled
            return copy

        return self._runner.call(read)

    def _categories(self, change: Callable[[Categories], T]) -> T:
        """Run ``change`` on the categories, then let allocations be computed again."""
        return self._runner.call(lambda core, now: change(core.books.categories))


def _limits(rmd: object, what: str) -> _Limits:
    if rmd is None or isinstance(rmd, Mapping):
        return rmd
    raise UsageTypeError(f"{what} must be a dict such as {{'cores': 1}}, not {rmd!r}")

"""map, pair and tree_reduce: one call for many Python tasks (reference, section 3.8).

Owns the cutting into chunks and the order of results. Everything goes through ``submit`` and ``wait`` of the
program's own class, so overrides take effect; other tasks that finish meanwhile are returned by later waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager.file import File
from taskvine_core.manager.python_task import PythonTask, PythonTaskNoResult
from taskvine_core.manager.task import Task
from taskvine_core.manager.waiting import WaitingMixin

#: How long one wait inside these calls lasts; only how often an overridden ``wait`` is called depends on it.
_WAIT_S = 5


def _make_each() -> Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]:
    """The function of a map's tasks. Local, so that it travels by value: workers do not have this module."""
    def each(fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [fn(item) for item in items]
    return each


_EACH = _make_each()


class ConveniencesMixin(WaitingMixin):
    """Many calls at once."""

    def map(self, fn: Callable[[Any], Any], seq: Iterable[Any], chunksize: int = 1) -> list[Any]:
        """``[fn(x) for x in seq]``, ``chunksize`` items per task. A failed task puts its ``output`` (a
        PythonTaskNoResult or the exception) in the place of each of its items."""
        _check(fn, chunksize, 1)
        return self._map_chunks(fn, list(seq), chunksize, None)

    def pair(self, fn: Callable[[Any], Any], seq1: Iterable[Any], seq2: Iterable[Any], chunksize: int = 1,
             env: File | None = None) -> list[Any]:
        """``fn((a, b))`` for each a of ``seq1`` and b of ``seq2``, ordered.

        Args:
            env: environment the tasks run in.
        """
        _check(fn, chunksize, 1)
        second = list(seq2)
        return self._map_chunks(fn, [(a, b) for a in seq1 for b in second], chunksize, env)

    def tree_reduce(self, fn: Callable[[list[Any]], Any], seq: Iterable[Any], chunksize: int = 2) -> Any:
        """Apply ``fn`` to lists of up to ``chunksize`` items until one value is left.

        Returns:
            that value, or the PythonTaskNoResult of a task that failed.

        Raises:
            UsageError: ``seq`` is empty, or ``chunksize`` below 2.
        """
        _check(fn, chunksize, 2)
        values = list(seq)
        if not values:
            raise UsageError("seq is empty: there is nothing to reduce")
        while len(values) > 1:
            chunks = [values[i:i + chunksize] for i in range(0, len(values), chunksize)]
            values = self._run_all([PythonTask(fn, chunk) for chunk in chunks])
            for value in values:
                if isinstance(value, PythonTaskNoResult):
                    return value
        return values[0]

    def _map_chunks(self, fn: Callable[[Any], Any], items: list[Any], chunksize: int, env: File | None) -> list[Any]:
        chunks = [items[i:i + chunksize] for i in range(0, len(items), chunksize)]
        tasks = [PythonTask(_EACH, fn, chunk) for chunk in chunks]
        for task in tasks if env is not None else ():
            task.add_environment(env)  # type: ignore[arg-type]
        results: list[Any] = []
        for chunk, output in zip(chunks, self._run_all(tasks), strict=True):
            whole = isinstance(output, list) and len(output) == len(chunk)
            results.extend(output if whole else [output] * len(chunk))
        return results

    def _run_all(self, tasks: list[PythonTask]) -> list[Any]:
        """Submit, wait for all, outputs in order."""
        pending = [self.submit(task) for task in tasks]  # known results of identical tasks share an id
        others: list[Task] = []
        try:
            while pending:
                task = self.wait(_WAIT_S)
                if task is None:
                    continue
                if task.id in pending:
                    pending.remove(task.id)
                else:
                    others.append(task)
        finally:
            for task in others:
                self._put_back(task)
        return [task.output for task in tasks]


def _check(fn: object, chunksize: object, least: int) -> None:
    if not callable(fn):
        raise UsageTypeError(f"fn must be callable, not {fn!r}")
    if not isinstance(chunksize, int) or isinstance(chunksize, bool):
        raise UsageTypeError(f"chunksize must be an integer, not {chunksize!r}")
    if chunksize < least:
        raise UsageError(f"chunksize must be at least {least}, not {chunksize}")

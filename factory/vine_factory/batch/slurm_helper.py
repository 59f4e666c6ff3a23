"""pyslurm, in a process of its own: run as ``python -m``, spoken to over `rpc`.

Owns everything that differs between its two interfaces: ``pyslurm.Jobs`` from 22.5.2 on, ``pyslurm.job()`` before.
The module is only loaded when it is asked for jobs, for without a configuration its library ends the process. Must
not know jobs' meaning.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterable
from typing import Any

from taskvine_core.errors import BatchUnavailable
from vine_factory.batch.parse.slurm import known, numbers
from vine_factory.batch.rpc import serve

Row = tuple[str, int | None, str, str, str, float, float, str, str]
_NO_VALUE = 0xFFFFFFF0
"""Slurm's "no value" and "infinite" are above this, in 32 bits."""


def installed() -> str:
    """Its version, "" when there is none. It is not loaded."""
    try:
        return importlib.metadata.version("pyslurm")
    except importlib.metadata.PackageNotFoundError:
        return ""


def hello() -> str:
    """Load it and list; which interface it has."""
    listing()
    return "Jobs" if hasattr(_module(), "Jobs") else "job()"


def listing() -> list[Row]:
    """This user's jobs, as squeue shows them; elements that wait one by one."""
    module = _module()
    try:
        rows = _new(module) if hasattr(module, "Jobs") else _old(module)
        return [row for some in rows for row in some]
    except Exception as problem:  # RPCError, ValueError, AttributeError of a version that lacks something
        raise BatchUnavailable("pyslurm", said=f"{type(problem).__name__}: {problem}") from problem


def _module() -> Any:
    return importlib.import_module("pyslurm")


def _new(module: Any) -> Iterable[list[Row]]:
    uid = os.geteuid()
    for job in module.Jobs.load().values():
        if job.user_id == uid:
            yield _rows(job.id, job.array_id, job.array_task_id, getattr(job, "array_tasks_waiting", None), job.state,
                        job.state_reason, job.batch_host, job.start_time, job.end_time, job.name, job.comment)


def _old(module: Any) -> Iterable[list[Row]]:
    uid = os.geteuid()
    for number, job in module.job().get().items():
        if job["user_id"] == uid:
            yield _rows(number, job.get("array_job_id"), job.get("array_task_id"), job.get("array_task_str"),
                        job["job_state"], job.get("state_reason"), job.get("batch_host"), job.get("start_time"),
                        job.get("end_time"), job.get("name"), job.get("comment"))


def _rows(number: object, array: object, element: object, waiting: object, state: object, reason: object,
          host: object, start: object, end: object, name: object, comment: object) -> list[Row]:
    """One record of Slurm as rows of a listing."""
    base, index = _number(array), _number(element)
    if waiting and index is None:
        chosen = numbers(f"{base}_[{str(waiting).strip('[]')}]")
    elif base and index is not None:
        chosen = [(f"{base}_{index}", index)]
    else:
        chosen = [(str(number), None)]
    rest = (_text(state), _text(reason), known(_text(host)), float(_number(start) or 0), float(_number(end) or 0),
            _text(name), _text(comment))
    return [(one, position, *rest) for one, position in chosen]


def _number(value: object) -> int | None:
    """A number; None for what stands for none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value).partition(".")[0]
    return int(text) if text.isdigit() and int(text) < _NO_VALUE else None


def _text(value: object) -> str:
    return "" if value is None else str(value)


if __name__ == "__main__":
    serve({"installed": installed, "hello": hello, "listing": listing})

"""The status table a manager shows while it waits (reference, section 18.2).

Owns the choice of rows and their text; HTML in a notebook when rich is there, plain text on a terminal. Must not change
anything of the manager.
"""

from __future__ import annotations

import sys
import time
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from taskvine_core.manager.api import Manager

_COUNTERS = ("workers_connected", "workers_busy", "tasks_submitted", "tasks_waiting", "tasks_running", "tasks_done",
             "tasks_failed", "tasks_recovery")
_CATEGORY_COLUMNS = ("category", "tasks_waiting", "tasks_running", "tasks_done", "max_cores", "max_memory", "max_disk")
_WORKER_COLUMNS = ("workers", "cores", "gpus", "memory", "disk")

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


class StatusDisplay:
    """Shows a manager's counters, its application's values, workers by size, and categories.

    Args:
        interval: at most one table in so many seconds.
        stream: where text goes; default standard error.
    """

    def __init__(self, interval: float = 10, stream: TextIO | None = None) -> None:
        self.interval = interval
        self._stream = stream
        self._shown_at = float("-inf")

    def update(self, manager: Manager, force: bool = False) -> None:
        """Show the table when the interval is over, or at once when ``force``."""
        now = time.monotonic()
        if not force and now - self._shown_at < self.interval:
            return
        self._shown_at = now
        tables = _tables(manager)
        if not _show_in_notebook(tables):
            stream = self._stream or sys.stderr
            stream.write("\n".join(_as_text(table) for table in tables) + "\n")
            stream.flush()


class JupyterDisplay(StatusDisplay):
    """Older name of ``StatusDisplay``."""


def _tables(manager: Manager) -> list[Table]:
    stats = manager.stats
    tables: list[Table] = [(f"manager {manager.name or ''} port {manager.port}", ("counter", "value"),
                            [(name, str(getattr(stats, name))) for name in _COUNTERS])]
    told: Any = (manager.application_info() or {}).get("application_info", {})
    values, units = told.get("values", {}), told.get("units", {})
    if values:
        tables.append(("application", ("name", "value", "unit"),
                       [(str(k), str(v), str(units.get(k, ""))) for k, v in values.items()]))
    workers = manager.summarize_workers()
    if workers:
        tables.append(("workers", _WORKER_COLUMNS, [tuple(str(w[c]) for c in _WORKER_COLUMNS) for w in workers]))
    categories = manager.status("categories")
    if categories:
        tables.append(("categories", _CATEGORY_COLUMNS,
                       [tuple(str(c.get(n, "")) for n in _CATEGORY_COLUMNS) for c in categories]))
    return tables


def _as_text(table: Table) -> str:
    title, columns, rows = table
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [f"-- {title}"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
              for row in (columns, *rows)]
    return "\n".join(lines)


def _show_in_notebook(tables: list[Table]) -> bool:
    """Show as HTML when this is a notebook; False when it is not, or its packages are missing."""
    if "ipykernel" not in sys.modules:
        return False
    try:
        notebook = import_module("IPython.display")
    except ImportError:
        return False
    notebook.clear_output(wait=True)
    notebook.display(notebook.HTML("".join(
        f"<b>{escape(title)}</b><table><tr>{''.join(f'<th>{escape(c)}</th>' for c in columns)}</tr>"
        + "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows) + "</table>"
        for title, columns, rows in tables)))
    return True

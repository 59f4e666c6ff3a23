"""A submit description taken apart: directives, and the table of its queue statement.

Owns the reading of what `condor_text` writes, for bindings that want the two separately. Pure.
"""

from __future__ import annotations


def taken_apart(text: str) -> tuple[str, list[dict[str, str]]]:
    """Directives, and a row of values by name for each job. The last column is the rest of its line.

    Raises:
        ValueError: it has no queue statement with a table.
    """
    head, found, table = text.rpartition("\nqueue ")
    names, opened, rows = table.partition(" from (\n")
    rows, closed, _ = rows.rpartition(")\n")
    if not (found and opened and closed):
        raise ValueError("the submit description has no queue statement with a table")
    columns = names.replace(",", " ").split()
    return head + "\n", [dict(zip(columns, row.split(None, len(columns) - 1), strict=True))
                         for row in rows.splitlines() if row.strip()]

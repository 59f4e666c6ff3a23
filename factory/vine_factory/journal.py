"""What survives a kill -9: which jobs were intended and which exist, what budgets paid, what was ordered.

Owns the SQLite file and its schema. One transaction per writing, on disk when the call returns. Must not interpret
states.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from taskvine_core.errors import ConfigError
from vine_factory.events import HostRow, JobRow, MeterRow, OrderRow, WriteJournal

SCHEMA_VERSION = 1
METER_KEPT_S = 32 * 86_400.0
"""The longest period that a budget may have is a month; what is older nobody asks for."""
_BUSY_S = 5.0  # somebody may look at the file with another tool


class Journal:
    """A journal in one file. Not shared: the factory's lock keeps others out.

    Raises:
        ConfigError: the file cannot be used; says what to do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: list[WriteJournal] = []
        try:
            self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._database.execute("PRAGMA synchronous=FULL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise ConfigError(f"{path} is a journal of version {version}, this factory writes {SCHEMA_VERSION}",
                                  hint="use the factory that wrote it, or another --scratch-dir")
            self._database.execute("CREATE TABLE IF NOT EXISTS jobs (intent_id TEXT PRIMARY KEY, pool TEXT NOT NULL, "
                                   "state TEXT NOT NULL, batch_id TEXT NOT NULL, created_at REAL NOT NULL, "
                                   "connected_once INTEGER NOT NULL)")
            self._database.execute("CREATE TABLE IF NOT EXISTS meters (pool TEXT NOT NULL, start REAL NOT NULL, "
                                   "core_s REAL NOT NULL, PRIMARY KEY (pool, start))")
            self._database.execute("CREATE TABLE IF NOT EXISTS orders (pool TEXT PRIMARY KEY, order_ TEXT NOT NULL)")
            self._database.execute("CREATE TABLE IF NOT EXISTS hosts (pool TEXT NOT NULL, host TEXT NOT NULL, "
                                   "level INTEGER NOT NULL, until REAL NOT NULL, PRIMARY KEY (pool, host))")
            self._database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.Error as problem:
            raise ConfigError(f"cannot use the journal {path}: {problem}",
                              hint="a damaged one may be removed: running workers are found without it") from problem

    def rows(self) -> list[JobRow]:
        """All jobs not known to be over."""
        found = self._database.execute("SELECT intent_id, pool, state, batch_id, created_at, connected_once FROM jobs")
        return [JobRow(i, p, s, b, at, bool(once)) for i, p, s, b, at, once in found]

    def meters(self) -> list[MeterRow]:
        """What the pools have used of their budgets."""
        return [MeterRow(*row) for row in self._database.execute("SELECT pool, start, core_s FROM meters")]

    def orders(self) -> list[OrderRow]:
        """What was ordered for pools and not taken back."""
        return [OrderRow(*row) for row in self._database.execute("SELECT pool, order_ FROM orders")]

    def hosts(self) -> list[HostRow]:
        """Which hosts the pools avoid."""
        return [HostRow(*row) for row in self._database.execute("SELECT pool, host, level, until FROM hosts")]

    def write(self, change: WriteJournal | None) -> None:
        """Apply one change, durably, after those that could not be written before. None: only those.

        Raises:
            ConfigError: the disk said no; the change is kept for the next call. Nothing may be submitted then.
        """
        if change is not None:
            self._unwritten.append(change)
        if not self._unwritten:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for each in self._unwritten:
                self._apply(each)
            self._database.execute("COMMIT")
        except sqlite3.Error as problem:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise ConfigError(f"cannot write the journal {self._path}: {problem}",
                              hint="is the disk full? --scratch-dir chooses another place") from problem
        self._unwritten.clear()

    def _apply(self, change: WriteJournal) -> None:
        self._database.executemany("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?)", change.rows)
        self._database.executemany("DELETE FROM jobs WHERE intent_id = ?", ((i,) for i in change.over))
        for order in change.orders:
            if order.order:
                self._database.execute("INSERT OR REPLACE INTO orders VALUES (?, ?)", order)
            else:
                self._database.execute("DELETE FROM orders WHERE pool = ?", (order.pool,))
        self._database.executemany("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?, ?)", change.hosts)
        self._database.execute("DELETE FROM hosts WHERE level = 0")
        for row in change.meters:
            self._database.execute("INSERT OR REPLACE INTO meters VALUES (?, ?, ?)", row)
            self._database.execute("DELETE FROM meters WHERE pool = ? AND start < ?",
                                   (row.pool, row.start - METER_KEPT_S))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

"""``vine_status``: tables of managers, workers, tasks and categories (reference, section 20.5).

Owns options and tables. Must not know how managers are found (catalog/local.py) or asked (catalog/query.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from taskvine_core.catalog.local import ManagerRecord, find_managers, no_manager
from taskvine_core.catalog.query import ask
from taskvine_core.catalog.record import INTERNAL_KEYS
from taskvine_core.errors import ConfigError, DiscoveryError, RemoteProtocolError, VineError
from taskvine_core.records import NamedTuple
from taskvine_core.secret import INSECURE_SECRET, load_secret

#: The published default; for the whole of one question to one manager.
DEFAULT_TIMEOUT_S = 30.0
#: An address tried late still gets this long.
MIN_TIMEOUT_S = 1.0
_MB_PER_GB = 1024
_GAP = "  "
_MAX_COMMAND = 40

Row = Mapping[str, object]


class Target(NamedTuple):
    """A manager to ask: addresses to try in order."""

    addresses: tuple[str, ...]
    port: int
    fingerprint: str
    record: dict[str, object]


class Table(NamedTuple):
    """One kind of report: which question it needs, and its columns with the text of each for one entry."""

    question: str
    columns: tuple[tuple[str, Callable[[Row], str]], ...]
    numbers_from: int


def _get(*keys: str, default: str = "-") -> Callable[[Row], str]:
    def text(row: Row) -> str:
        for key in keys:
            value = row.get(key)
            if value is not None and value != "":
                return _shown(value)
        return default
    return text


def _gigabytes(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row.get(key)
        return f"{value / _MB_PER_GB:.1f}" if isinstance(value, int | float) else "-"
    return text


def _command(row: Row) -> str:
    text = " ".join(str(row.get("command", "-")).split()) or "-"
    return text if len(text) <= _MAX_COMMAND else text[:_MAX_COMMAND - 3] + "..."


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "".join(c if c.isprintable() else "?" for c in str(value))


_MANAGER = _get("project", "manager_id")
_HOST = _get("host", "name", "address")

TABLES = {
    "managers": Table("manager", (
        ("PROJECT", _MANAGER), ("HOST", _HOST), ("PORT", _get("port")), ("WAITING", _get("tasks_waiting")),
        ("RUNNING", _get("tasks_running")), ("COMPLETE", _get("tasks_complete", "tasks_done")),
        ("WORKERS", _get("workers", "workers_connected"))), 2),
    "tasks": Table("tasks", (
        ("ID", _get("task_id")), ("STATE", _get("state")), ("PRIORITY", _get("priority")), ("HOST", _get("host")),
        ("COMMAND", _command), ("CORES", _get("cores")), ("MEMORY", _get("memory")), ("DISK", _get("disk")),
        ("GPUS", _get("gpus"))), 5),
    "workers": Table("workers", (
        ("HOST", _get("hostname")), ("ADDRESS", _get("address_port", "addrport")),
        ("COMPLETED", _get("total_tasks_complete")), ("RUNNING", _get("total_tasks_running")),
        ("CORE_USE", _get("cores_inuse")), ("CORE_ALL", _get("cores_total")), ("MEM_USE", _get("memory_inuse")),
        ("MEM_ALL", _get("memory_total")), ("DISK_USE", _get("disk_inuse")), ("DISK_ALL", _get("disk_total")),
        ("GPUS_USE", _get("gpus_inuse")), ("GPUS_ALL", _get("gpus_total"))), 2),
    "able": Table("categories", (
        ("CATEGORY", _get("category")), ("DISPATCHED", _get("tasks_on_workers")), ("WAITING", _get("tasks_waiting")),
        ("SUCCESSFUL", _get("tasks_successful")), ("FIT-WORKERS", _get("workers_able")),
        ("MAX-CORES", _get("max_cores")), ("MAX-MEMORY", _get("max_memory")), ("MAX-DISK", _get("max_disk"))), 1),
    "resources": Table("manager", (
        ("MANAGER", _MANAGER), ("CORES", _get("cores_total", "total_cores")),
        ("INUSE", _get("cores_inuse", "committed_cores")), ("MEM(GB)", _gigabytes("memory_total")),
        ("INUSE", _gigabytes("memory_inuse")), ("GPUS", _get("gpus_total", "total_gpus")),
        ("INUSE", _get("gpus_inuse", "committed_gpus"))), 1),
    "capacity": Table("manager", (
        ("MANAGER", _MANAGER), ("TASKS", _get("capacity_tasks")), ("CORES", _get("capacity_cores")),
        ("MEMORY", _get("capacity_memory")), ("DISK", _get("capacity_disk"))), 1),
}


def format_table(table: Table, rows: Sequence[Row]) -> str:
    """Column heads and one line per entry; the first ``numbers_from`` columns flush left, the others right."""
    lines = [[name for name, _ in table.columns]]
    lines += [[text(row) for _, text in table.columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    shown = []
    for line in lines:
        cells = [cell.ljust(width) if i < table.numbers_from else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        shown.append(_GAP.join(cells).rstrip())
    return "\n".join(shown) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="vine_status", description="Show managers, and what their tasks and workers do.",
        epilog="Without host and port: all managers of this user on this machine or shared home.")
    result.add_argument("host", nargs="?", help="host of a manager, or host:port")
    result.add_argument("port", nargs="?", type=int, help="port of a manager")
    what = result.add_mutually_exclusive_group()
    for short, long, value, text in (
            ("-Q", "--statistics", "managers", "managers (default)"), ("-W", "--workers", "workers", "workers"),
            ("-T", "--tasks", "tasks", "tasks"), ("-A", "--able-workers", "able", "workers that fit each category"),
            ("-R", "--resources", "resources", "resources of the workers"),
            ("", "--capacity", "capacity", "what each manager could keep busy")):
        what.add_argument(*([short] if short else []), long, dest="table", action="store_const", const=value, help=text)
    result.add_argument("-M", "--project-name", metavar="REGEX", help="only managers whose whole name matches")
    result.add_argument("-l", "--verbose", action="store_true", help="whole records as JSON, one per line group")
    result.add_argument("--json", action="store_true", help="whole records as one JSON list")
    result.add_argument("--where", metavar="KEY=VALUE", help="only managers whose record has this value")
    result.add_argument("-C", "--catalog", metavar="HOST:PORT", help="not used: managers are found on the shared home")
    result.add_argument("-t", "--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS",
                        help="give up after so long per manager (%(default)g)")
    result.add_argument("-P", "--password", metavar="FILE", help="password file of the manager")
    result.add_argument("--ssl", action="store_true", help="use TLS with the given host and port")
    result.add_argument("--tls-sni", metavar="NAME", help="accepted for compatibility")
    result.add_argument("--insecure", action="store_true", help="for managers started without a key")
    result.add_argument("-d", "--debug", metavar="FLAG", help="details of failures on standard error")
    result.add_argument("-o", "--debug-file", metavar="FILE", help="write such details there")
    result.add_argument("-O", "--debug-rotate-max", metavar="BYTES", help="accepted for compatibility")
    result.add_argument("-v", "--version", action="version", version=f"vine_status {_version()}")
    result.set_defaults(table="managers")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        the exit status: 0 with a table (which may have no entries), 1 when no manager was found or none answered.
    """
    command_line = parser()
    options = command_line.parse_args(arguments)
    _set_debug(options.debug, options.debug_file)
    if options.catalog:
        print("vine_status: note: --catalog is not used, managers are found on this machine or shared home",
              file=sys.stderr)
    try:
        targets = _targets(options)
        rows = _collect(options, targets)
    except VineError as error:
        print(f"vine_status: {error}", file=sys.stderr)
        return 1
    try:
        _print(options, rows)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _targets(options: argparse.Namespace) -> list[Target]:
    """Whom to ask.

    Raises:
        ConfigError: a host without a port.
        DiscoveryError: no manager was found.
    """
    if options.host is not None:
        host, port = options.host, options.port
        if port is None:
            host, _, text = host.rpartition(":")
            if not host or not text.isdecimal():
                raise ConfigError(f"no port is given for {options.host!r}", hint="write: vine_status HOST PORT")
            port = int(text)
        return [Target((host,), port, "", {})]
    found = [_target(record) for record in find_managers(options.project_name)]
    if not found:
        raise no_manager(options.project_name)
    chosen = [target for target in found if _where(options.where, target.record)]
    if not chosen:
        raise DiscoveryError(f"none of {len(found)} manager(s) has {options.where}", hint="see --json for the values")
    return chosen


def _target(found: ManagerRecord) -> Target:
    record = {**found.record, "project": found.project, "host": found.host, "port": found.port}
    return Target(found.addresses, found.port, found.ssl_fingerprint, record)


def _where(condition: str | None, record: Row) -> bool:
    if condition is None:
        return True
    key, equals, value = condition.partition("=")
    if not equals:
        raise ConfigError(f"--where {condition!r} is not KEY=VALUE", hint="for example --where owner=alice")
    return _shown(record.get(key.strip(), "")) == value.lstrip("=").strip().strip("\"'")


def _collect(options: argparse.Namespace, targets: Sequence[Target]) -> list[dict[str, object]]:
    """All entries of the wanted table. One manager that fails does not hide the others.

    Raises:
        VineError: no manager answered.
    """
    table = TABLES[options.table]
    if options.table == "managers" and all("tasks_waiting" in target.record for target in targets):
        return [_without_internals(target.record) for target in targets]  # at most one heartbeat old; asks nobody
    secret = INSECURE_SECRET if options.insecure else load_secret(options.password)
    rows: list[dict[str, object]] = []
    failure: VineError | None = None
    answered = False
    for target in targets:
        try:
            rows += _ask(target, table.question, secret, options)
            answered = True
        except VineError as error:
            failure = error
            if len(targets) > 1:
                print(f"vine_status: {error}", file=sys.stderr)
    if not answered:
        raise failure if len(targets) == 1 and failure else DiscoveryError(
            f"none of {len(targets)} managers answered", hint="see the messages above")
    return rows


def _ask(target: Target, question: str, secret: bytes, options: argparse.Namespace) -> list[dict[str, object]]:
    """Try the addresses in turn, within one timeout."""
    deadline = time.monotonic() + options.timeout
    for number, host in enumerate(target.addresses, 1):
        left_s = max(MIN_TIMEOUT_S, deadline - time.monotonic()) / (len(target.addresses) - number + 1)
        try:
            answer = ask(host, target.port, question, secret=secret, fingerprint=target.fingerprint,
                         use_tls=options.ssl, timeout_s=left_s)
        except DiscoveryError:
            if number == len(target.addresses):
                raise
            continue
        if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
            raise RemoteProtocolError(f"the answer of {host}:{target.port} to {question!r} is not a list of records")
        return [_complete(row, host, target, question) for row in answer]
    raise DiscoveryError("the manager advertises no address", hint="restart it")


def _complete(row: dict[str, object], host: str, target: Target, question: str) -> dict[str, object]:
    """Add what the manager does not know or names in one way only."""
    address = row.get("addrport", row.get("address_port"))
    if address is not None:
        row["addrport"] = row["address_port"] = address
    if question == "manager":
        row.setdefault("host", target.record.get("host", host))
        row.setdefault("port", target.port)
    return row


def _without_internals(record: Row) -> dict[str, object]:
    return {key: value for key, value in record.items() if key not in INTERNAL_KEYS}


def _print(options: argparse.Namespace, rows: Sequence[dict[str, object]]) -> None:
    if options.json:
        print(json.dumps(rows, indent=2))
    elif options.verbose:
        for row in rows:
            print(json.dumps(row, indent=4))
    else:
        print(format_table(TABLES[options.table], rows), end="")


def _set_debug(flag: str | None, path: str | None) -> None:
    if flag is not None or path is not None:
        import logging

        logging.basicConfig(level=logging.DEBUG, filename=path, format="%(asctime)s vine_status: %(message)s")


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("hpc-worker-factory")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())

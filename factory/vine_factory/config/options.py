"""The factory's own options, as on its command line: names, types, bounds, and reading one value.

Owns which published names exist here, which of them a configuration file may have and which change nothing. Must not
know pools beyond the options that are also on the command line.
"""

from __future__ import annotations

import math

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.batch.schema import line_problem, shown


class Option(NamedTuple):
    """One option. ``kind``: "int", "float", "str", "flag" or "list". ``in_file``: allowed in a configuration file of
    published keys (JSON); a site file may have all of them but those in `NOT_IN_SITE_FILE`."""

    key: str
    kind: str
    default: object
    low: float
    in_file: bool
    help: str


class Sourced(NamedTuple):
    """A value and where it came from."""

    value: object
    origin: str


_NONE = float("-inf")
SECURE, CLASSIC = "secure", "classic"

OPTIONS: dict[str, Option] = {option.key: option for option in (
    Option("batch-type", "str", "", _NONE, False, "batch system that runs the workers"),
    Option("manager-name", "str", "", _NONE, True, "serve managers whose name matches this regular expression"),
    Option("min-workers", "int", -1, 0, True, "keep at least so many workers"),
    Option("max-workers", "int", -1, 1, True, "have at most so many workers"),
    Option("workers-per-cycle", "int", defaults.WORKERS_PER_CYCLE, 0, True,
           "at most so many workers that are not connected yet, 0 = no limit"),
    Option("cores", "int", -1, 0, True, "cores per worker (default: what the machine has)"),
    Option("memory", "int", -1, 0, True, "memory per worker in MB"),
    Option("disk", "int", -1, 0, True, "disk per worker in MB"),
    Option("gpus", "int", -1, 0, True, "gpus per worker"),
    Option("timeout", "int", defaults.WORKER_TIMEOUT_S, 1, True, "workers leave after so many idle seconds"),
    Option("factory-timeout", "float", defaults.FACTORY_TIMEOUT_S, 0, True,
           "end when there was no manager for so many seconds, 0 = never"),
    Option("factory-period", "float", 0.0, 0, False,
           "seconds between looks at the batch system (default: 1 for local workers, else 30)"),
    Option("manager-period", "float", 0.0, 0, False,
           "seconds between questions to a manager (default: 10, or factory-period where that is less)"),
    Option("factory-name", "str", "", _NONE, True, "name of this factory"),
    Option("worker-extra-options", "str", "", _NONE, True, "further options for the workers"),
    Option("transfer-port", "str", "", _NONE, True, "port or min:max where workers serve their peers"),
    Option("feature", "list", (), _NONE, False, "feature the workers offer (repeatable)"),
    Option("env", "list", (), _NONE, False, "VARIABLE=value for the workers (repeatable)"),
    Option("batch-options", "str", "", _NONE, False, "further lines or options for the batch system"),
    Option("condor-requirements", "list", (), _NONE, True,
           "HTCondor runs workers only where this expression holds (repeatable: all of them)"),
    Option("autosize", "flag", False, _NONE, True, "HTCondor workers take the whole slot they get"),
    Option("workers-blocked", "list", (), _NONE, True, "start no workers on this host (repeatable)"),
    Option("password", "str", "", _NONE, False, "file with the password of the managers"),
    Option("ssl", "flag", False, _NONE, False, "managers use TLS"),
    Option("single-shot", "flag", False, _NONE, False, "workers end when their first manager disconnects"),
    Option("worker-binary", "str", "", _NONE, False, "worker program to use"),
    Option("wrapper", "str", "", _NONE, False, "command that starts the worker"),
    Option("wrapper-input", "list", (), _NONE, False, "file the wrapper needs (repeatable)"),
    Option("task-wrapper", "str", "", _NONE, False, "command that starts each task"),
    Option("poncho-env", "str", "", _NONE, False, "environment package (a tar file of conda pack or "
           "poncho_package_create) in which the workers and their Python tasks run"),
    Option("condor-spool", "flag", False, _NONE, False, "HTCondor: copy the files to the schedd at submission"),
    Option("debug-workers", "flag", False, _NONE, False, "workers write debug messages into their stderr"),
    Option("scratch-dir", "str", "", _NONE, False, "journal and workers' output go here"),
    Option("parent-death", "flag", False, _NONE, False, "end, with the workers, when the parent process dies"),
    Option("leave", "flag", False, _NONE, False,
           "leave the workers when the factory ends; the same command started again adopts them"),
    Option("retire-after", "float", defaults.RETIRE_AFTER_S, 0, False,
           "retire workers that have not been needed for so many seconds"),
    Option("manager-gone", "float", defaults.MANAGER_GONE_S, 0, False,
           "leave the workers of a vanished manager alone for so many seconds"),
    Option("connect-timeout", "float", defaults.UNCONNECTED_S, 1, False,
           "replace a worker that has not connected for so many seconds"),
    Option("drain-grace", "float", defaults.DRAIN_GRACE_S, 0, False,
           "seconds between asking workers to end and killing them"),
    Option("catalog", "str", "", _NONE, False, "serve managers of the C implementation that this catalog server knows "
           "(host:port, several with commas)"),
    Option("protocol", "str", SECURE, _NONE, False, "how the manager given by its address is spoken to: secure, or "
           "classic for one of the C implementation"),
    Option("capacity", "flag", False, _NONE, True, "believe managers of the C implementation what they can feed"),
    Option("tasks-per-worker", "int", 0, 0, True, "tasks a worker runs at a time, for managers of the C implementation "
           "(default: one)"),
    Option("metrics-port", "str", "", _NONE, False, "serve numbers for Prometheus on this loopback port, "
           "auto = any free one"),
    Option("json", "flag", False, _NONE, False, "log lines as JSON"),
    Option("debug-file", "str", "", _NONE, False, "write the log lines into this file too, with their dates"),
    Option("debug-file-size", "int", defaults.LOG_FILE_BYTES, 0, False, "bytes after which that file is moved to "
           "FILE.1, 0 = never"),
)}

ALIASES = {"master-name": "manager-name", "task-per-worker": "tasks-per-worker",
           "extra-options": "worker-extra-options", "python-env": "poncho-env", "python-package": "poncho-env"}
NOT_IN_SITE_FILE = frozenset({"debug-file", "debug-file-size", "json", "metrics-port", "parent-death"})
"""They are about the process and not about the site."""

WITHOUT_EFFECT = {
    "foremen-name": "there are no foremen here",
}
"""Published keys that are understood and change nothing; the user is told so."""
NO_EFFECT_ON_COMMAND_LINE = {
    **WITHOUT_EFFECT,
    **{key: "there is no such batch system here" for key in ("amazon-config", "k8s-image", "k8s-worker-image",
                                                             "mesos-master", "mesos-path", "mesos-preload")},
    "run-factory-as-manager": "the factory ends when its workers have ended", "runos": "use wrapper",
    "disable-afs-check": "nothing is checked that it would switch off",
    "tls-sni": "the certificate is pinned by its fingerprint and not by a name",
    "debug": "the factory logs what it decides, and explain has the rest",
}


def check_value(key: str, value: object, where: str) -> object:
    """``value`` in the type of option ``key``. Doubles given for whole numbers are rounded up (published rule).

    Raises:
        ConfigError: wrong type or out of bounds; names ``where``, key, value and what is allowed.
    """
    option = OPTIONS[key]
    if option.kind in ("int", "float"):
        return _check_number(option, value, where)
    if option.kind == "flag":
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {key} = {shown(value)}", hint="expected true or false")
        return value
    if option.kind == "list":
        # Published files have single texts for these: one expression, or hosts with spaces between them.
        if isinstance(value, str):
            value = value.split() if key == "workers-blocked" else [value]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: {key} = {shown(value)}", hint="expected a list of texts")
        return tuple(_line(key, item, where) for item in value)
    # Line breaks in -B are written as \n: published files expand them, so do we.
    return _line(key, value, where)


def _line(key: str, value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key} = {shown(value)}", hint="expected a text of one line")
    problem = line_problem(value)
    if problem:
        raise ConfigError(f"{where}: {key} = {shown(value)}: {problem}", hint="expected a text of one line")
    return value


def _check_number(option: Option, value: object, where: str) -> int | float:
    allowed = f"expected a number of at least {option.low:g}"
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{where}: {option.key} = {shown(value)}", hint=allowed) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < option.low:
        raise ConfigError(f"{where}: {option.key} = {shown(value)}", hint=allowed)
    return math.ceil(value) if option.kind == "int" else float(value)

"""The worker's command line (reference, section 13.1).

Owns option names, their values and the text of ``-h``. Must not act on them. Written by hand because argparse alone
takes longer to import than the rest of the worker.
"""

from __future__ import annotations

from collections.abc import Mapping

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_PORT = 65535
_SECOND_DEFAULT = 900.0


class Options(NamedTuple):
    """Parsed command line. Times in seconds; resources -1 = detect."""

    addresses: tuple[tuple[str, int], ...] = ()
    manager_name: str = ""
    catalog: str = ""
    debug: str = ""
    debug_file: str = ":stderr"
    debug_rotate_max: int = 10 << 20
    ssl: bool = False
    tls_sni: str = ""
    insecure: bool = False
    password: str = ""
    idle_timeout_s: float = _SECOND_DEFAULT
    connect_timeout_s: float = _SECOND_DEFAULT
    min_backoff_s: float = 1.0
    max_backoff_s: float = 8.0
    tcp_window_size: int = 0
    arch: str = ""
    os: str = ""
    workspace: str = ""
    keep_workspace: bool = False
    cores: int = -1
    gpus: int = -1
    memory_mb: int = -1
    disk_mb: int = -1
    disk_percent: float = 50.0
    features: tuple[str, ...] = ()
    wall_time_s: float = 0.0
    connection_mode: str = ""
    single_shot: bool = False
    transfer_ports: tuple[int, int] = (0, 0)
    contact: str = ""
    max_transfers: int = 10
    task_wrapper: str = ""
    from_factory: str = ""
    factory_job: str = ""
    parent_death: bool = False
    poncho_env: str = ""
    show: str = ""


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _amount(text: str) -> int:
    """0 and "all" both mean: whatever the machine has."""
    value = 0 if text == "all" else _count(text)
    return value or -1


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _percent(text: str) -> float:
    value = float(text.rstrip("%"))
    if not 0 < value <= 100:
        raise ValueError
    return value


def _ports(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    pair = int(low), int(high or low)
    if not 0 <= pair[0] <= pair[1] <= MAX_PORT:
        raise ValueError
    return pair


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _mode(text: str) -> str:
    if text not in ("by_ip", "by_hostname", "by_apparent_ip"):
        raise ValueError
    return text


class _Option(NamedTuple):
    names: str                  # "-x --long --other"
    field: str                  # of Options; "" = accepted and ignored
    parse: Any = None           # None: a flag
    wants: str = ""             # what a good value is
    help: str = ""


_S = "a number of seconds, 0 or more"
_N = "a whole number, 0 or more, or 'all'"
_TABLE = (
    _Option("-M --manager-name -N --master-name", "manager_name", _text, "a name or regular expression",
            "serve managers whose project name matches"),
    _Option("-C --catalog", "catalog", _text, "host:port", "catalog server"),
    _Option("-d --debug", "debug", _text, "a flag such as 'all'", "write debug messages"),
    _Option("-o --debug-file", "debug_file", _text, "a file, :stderr or :stdout", "where debug messages go"),
    _Option("--debug-rotate-max", "debug_rotate_max", _count, "a number of bytes", "size at which it is rotated"),
    _Option("--ssl", "ssl", None, "", "encrypt the connection"),
    _Option("--tls-sni", "tls_sni", _text, "a host name", "name sent in the TLS handshake"),
    _Option("--insecure", "insecure", None, "", "no secret (managers that run with it listen on loopback only)"),
    _Option("-P --password", "password", _text, "a file", "password file (default: your own key file)"),
    _Option("-t --timeout", "timeout", _seconds, _S, "sets both timeouts below (900)"),
    _Option("--idle-timeout", "idle_timeout_s", _seconds, _S, "leave after being idle for so long"),
    _Option("--connect-timeout", "connect_timeout_s", _seconds, _S, "give up when no manager could be reached so long"),
    _Option("-w --tcp-window-size", "tcp_window_size", _count, "a number of bytes", "TCP buffer size"),
    _Option("-i --min-backoff", "min_backoff_s", _seconds, _S, "first pause between connection attempts (1)"),
    _Option("-b --max-backoff", "max_backoff_s", _seconds, _S, "longest pause between connection attempts (8)"),
    _Option("-A --arch", "arch", _text, "a word", "architecture to advertise"),
    _Option("-O --os", "os", _text, "a word", "operating system to advertise"),
    _Option("-s --workspace --workdir", "workspace", _text, "a directory", "where the workspace is"),
    _Option("--keep-workspace", "keep_workspace", None, "", "leave it behind (needs --workspace)"),
    _Option("--cores", "cores", _amount, _N, "cores to offer (all)"),
    _Option("--gpus", "gpus", _count, "a whole number, 0 or more", "GPUs to offer (detected)"),
    _Option("--memory", "memory_mb", _amount, _N, "MB of memory to offer (all)"),
    _Option("--disk", "disk_mb", _amount, _N, "MB of disk to offer"),
    _Option("--disk-percent", "disk_percent", _percent, "a percentage above 0, at most 100",
            "share of the free disk to offer without --disk (50)"),
    _Option("--feature", "features", _text, "a word", "advertise a feature (may be repeated)"),
    _Option("--wall-time", "wall_time_s", _seconds, _S, "leave after so long"),
    _Option("--connection-mode", "connection_mode", _mode, "by_ip, by_hostname or by_apparent_ip",
            "which address others are told"),
    _Option("--single-shot", "single_shot", None, "", "leave when the first manager disconnects"),
    _Option("--transfer-port", "transfer_ports", _ports, "a port or min:max", "port for other workers (any)"),
    _Option("--contact-hostport", "contact", _text, "host:port, host or :port", "what others are told to connect to"),
    _Option("--max-transfer-procs", "max_transfers", _positive, "a whole number, 1 or more",
            "concurrent incoming transfers (10)"),
    _Option("--task-wrapper", "task_wrapper", _text, "a command", "prefix of every task command"),
    _Option("--poncho-env --python-env --python-package", "poncho_env", _text, "a tar file",
            "environment package to run in: unpacked once per machine"),
    _Option("--from-factory", "from_factory", _text, "a name", "set by the factory"),
    _Option("--factory-job", "factory_job", _text, "an id", "set by the factory"),
    _Option("--parent-death", "parent_death", None, "", "leave when the parent process dies"),
    _Option("--memory-threshold", "", _text, "a number", "accepted for compatibility"),
    _Option("--disk-threshold", "", _text, "a number", "accepted for compatibility"),
    _Option("--bandwidth", "", _text, "a number", "accepted for compatibility"),
    _Option("-a", "", None, "", "accepted for compatibility"),
    _Option("-v --version", "version", None, "", "show the version"),
    _Option("-h --help", "help", None, "", "show this text"),
)
_BY_NAME = {name: option for option in _TABLE for name in option.names.split()}
#: Environment variables that stand in for absent options.
_FROM_ENVIRONMENT = (("CORES", "cores"), ("GPUS", "gpus"), ("MEMORY", "memory_mb"), ("DISK", "disk_mb"))


def parse(arguments: list[str], environ: Mapping[str, str]) -> Options:
    """Read a command line.

    Raises:
        ConfigError: one sentence about the first thing that is wrong.
    """
    values: dict[str, Any] = {"features": ()}
    rest: list[str] = []
    todo = list(arguments)
    while todo:
        word = todo.pop(0)
        if word == "--":
            rest += todo
            break
        if word.startswith("-") and len(word) > 1:
            _take_option(word, todo, values)
        else:
            rest.append(word)
    if "help" in values or "version" in values:
        return Options(show="help" if "help" in values else "version")
    for variable, field in _FROM_ENVIRONMENT:
        if field not in values and environ.get(variable):
            parser = _count if field == "gpus" else _amount
            values[field] = _value(parser, environ[variable], f"environment variable {variable}", _N)
    values.pop("", None)            # options accepted for compatibility
    timeout = values.pop("timeout", None)
    if timeout is not None:
        values.setdefault("idle_timeout_s", timeout)
        values.setdefault("connect_timeout_s", timeout)
    options = Options(**values)
    return _checked(options._replace(addresses=_addresses(rest, bool(options.manager_name))))


def _take_option(word: str, todo: list[str], values: dict[str, Any]) -> None:
    name, equals, value = word.partition("=")
    if not word.startswith("--") and len(word) > 2 and word[:2] in _BY_NAME:
        name, equals, value = word[:2], "=", word[2:].removeprefix("=")
    option = _BY_NAME.get(name)
    if option is None:
        from difflib import get_close_matches

        near = get_close_matches(name, _BY_NAME, 1)
        raise ConfigError(f"option {name} is not known",
                          hint=f"did you mean {near[0]}?" if near else "see vine_worker -h")
    if option.parse is None:
        if equals:
            raise ConfigError(f"option {name} takes no value")
        values[option.field] = True
        return
    if not equals:
        if not todo:
            raise ConfigError(f"option {name} needs a value: {option.wants}")
        value = todo.pop(0)
    parsed = _value(option.parse, value, f"option {name}", option.wants)
    if option.field == "features":
        parsed = (*values["features"], parsed)
    values[option.field] = parsed


def _value(parser: Any, text: str, what: str, wants: str) -> Any:
    try:
        return parser(text)
    except ValueError:
        raise ConfigError(f"{what} has the value {text!r}, expected is {wants}") from None


def _addresses(words: list[str], by_name: bool) -> tuple[tuple[str, int], ...]:
    if by_name:
        if words:
            raise ConfigError(f"{words[0]!r} and --manager-name were both given", hint="give one of them")
        return ()
    if len(words) == 2 and ":" not in words[0]:
        return ((words[0], _port(words[1])),)
    if len(words) != 1:
        raise ConfigError("which manager to serve is not clear",
                          hint="give HOST PORT, HOST:PORT[;HOST:PORT...] or --manager-name NAME")
    found = []
    for item in words[0].split(";"):
        host, colon, port = item.strip().rpartition(":")
        if not colon or not host:
            raise ConfigError(f"manager address {item!r} is not HOST:PORT")
        found.append((host.strip("[]"), _port(port)))
    return tuple(found)


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= MAX_PORT:
        raise ConfigError(f"port {text!r} is not a number from 1 to {MAX_PORT}")
    return int(text)


def _checked(options: Options) -> Options:
    if options.keep_workspace and not options.workspace:
        raise ConfigError("--keep-workspace needs --workspace", hint="say which directory is to be kept")
    if options.max_backoff_s < options.min_backoff_s:
        raise ConfigError("--max-backoff is smaller than --min-backoff")
    if options.contact:
        _, colon, port = options.contact.rpartition(":")
        if colon:
            _port(port)
    if options.manager_name:
        import re

        try:
            re.compile(options.manager_name)
        except re.error as error:
            raise ConfigError(f"--manager-name {options.manager_name!r} is not a regular expression: {error}") from None
    return options


def usage() -> str:
    """The text of ``-h``."""
    lines = ["usage: vine_worker [options] HOST PORT",
             "       vine_worker [options] HOST:PORT[;HOST:PORT...]",
             "       vine_worker [options] -M NAME-REGEX", "", "options:"]
    for option in _TABLE:
        names = ", ".join(option.names.split()) + (" VALUE" if option.parse else "")
        lines.append(f"  {names:<42} {option.help}" if len(names) < 42 else f"  {names}\n  {'':<42} {option.help}")
    return "\n".join(lines)

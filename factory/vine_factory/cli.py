"""The `vine_factory` command.

Owns the options' spelling and the sub-commands. `run` is meant when the first word is no sub-command. Must not hold
policy: options become `Settings` in config.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from taskvine_core import __version__
from taskvine_core.errors import ConfigError, VineError
from taskvine_core.resources import Resources
from vine_factory import config
from vine_factory.config import OPTIONS, FileValues, Settings, Sourced
from vine_factory.config.options import NO_EFFECT_ON_COMMAND_LINE

COMMAND_LINE = "command line"
_LETTERS = {"manager-name": ("-M", "-N", "--master-name"), "min-workers": ("-w", "--min"),
            "batch-type": ("-T", "--batch"),
            "max-workers": ("-W", "--max"), "timeout": ("-t",), "password": ("-P",), "scratch-dir": ("-S",),
            "capacity": ("-c",), "worker-extra-options": ("-E", "--extra-options"), "batch-options": ("-B",),
            "debug-file": ("-o",), "debug-file-size": ("-O",),
            "poncho-env": ("--python-env", "--python-package")}
_IGNORED: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("-d", "--debug"), True),
    (("-F", "--foremen-name"), True), (("--disable-afs-check",), False), (("--tls-sni",), True),
    *(((f"--{name}",), True) for name in ("amazon-config", "k8s-image", "k8s-worker-image", "mesos-master",
                                          "mesos-path", "mesos-preload", "runos")),
    (("--run-factory-as-manager",), False))
_MAX_PORT = 65535


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 when workers were left, 2 for wrong use."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(words[0]) if words else None
    try:
        code = command(words[1:]) if command is not None else run(words)
        sys.stdout.flush()
        return code
    except VineError as problem:
        print(f"vine_factory: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `vine_factory status | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        return 0


def run(words: Sequence[str]) -> int:
    """`vine_factory [run]`: the factory itself."""
    given = _parser().parse_args(list(words))
    build = builder(given)
    from vine_factory.start import start  # not needed for --help and for errors of use
    return start(build, Path(given.config_file) if given.config_file else None, as_json=bool(given.json))


def builder(given: argparse.Namespace) -> Callable[[FileValues], Settings]:
    """What makes settings of a file's values and of this command line.

    Raises:
        ConfigError: the command line is wrong.
    """
    host, port = _address(given.manager)
    environment = {"batch-options": Sourced(os.environ["BATCH_OPTIONS"], "environment variable BATCH_OPTIONS")} \
        if os.environ.get("BATCH_OPTIONS") else {}
    values = environment | {
        key: Sourced(config.check_value(key, value, COMMAND_LINE), COMMAND_LINE)
        for key in OPTIONS if (value := getattr(given, key.replace("-", "_"))) is not None}
    machine = _machine()
    notes = [f"{names[-1]} has no effect: {NO_EFFECT_ON_COMMAND_LINE[key]}" for names, _ in _IGNORED
             if getattr(given, (key := _name(names)).replace("-", "_"))]

    def build(file: FileValues) -> Settings:
        return config.build(values, file, host=host, port=port, machine=machine, notes=notes)
    return build


def status(words: Sequence[str]) -> int:
    """`vine_factory status`: what the running factories of this user do."""
    given = _status_parser().parse_args(list(words))
    from vine_factory import status as shown
    return (shown.watch if given.watch else shown.show)(given.factory_name, given.json)


def _status_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vine_factory status", description="Show this user's running factories.")
    parser.add_argument("--json", action="store_true", help="the whole state as JSON; with --watch a line per change")
    parser.add_argument("--watch", action="store_true", help="again and again: in place on a terminal, else per change")
    parser.add_argument("--factory-name", metavar="NAME", help="only the factory of this name")
    return parser


def _name(names: tuple[str, ...]) -> str:
    """The long name of an option, as argparse takes it."""
    return next(name for name in names if name.startswith("--")).removeprefix("--")


def render(words: Sequence[str]) -> int:
    """`vine_factory render`: what would be submitted for one worker."""
    given = _render_parser().parse_args(list(words))
    from vine_factory.preview import render as show
    return show(_preview_settings(given), given.pool, bool(given.json))


def _render_parser() -> argparse.ArgumentParser:
    parser = _parser("render", "Print what would be submitted for one worker of each pool, byte for byte.")
    parser.add_argument("--pool", help="only this pool")
    return parser


def check(words: Sequence[str]) -> int:
    """`vine_factory check`: is the configuration right, and would the batch systems take its jobs?"""
    given = _check_parser().parse_args(list(words))
    from vine_factory.check import check as show
    return show(_preview_settings(given), given.pool, bool(given.json), offline=given.offline)


def _check_parser() -> argparse.ArgumentParser:
    parser = _parser("check", "Show the effective settings with their origins, and test all that can be tested without "
                     "running anything. Exit status: 0 all is well, 1 something is not, 2 wrong settings.")
    parser.add_argument("--pool", help="only this pool")
    parser.add_argument("--offline", action="store_true", help="do not ask the batch systems")
    return parser


def _preview_settings(given: argparse.Namespace) -> Settings:
    return builder(given)(config.read_file(Path(given.config_file)) if given.config_file else FileValues())


def _steer(command: str) -> Callable[[Sequence[str]], int]:
    def act(words: Sequence[str]) -> int:
        from vine_factory.steer import COMMANDS as commands
        return commands[command](words)
    return act


def explain(words: Sequence[str]) -> int:
    """`vine_factory explain`: why a pool has the workers it has."""
    from vine_factory.explaining import main as show
    return show(words)


def report(words: Sequence[str]) -> int:
    """`vine_factory report`: the recorded history as a page."""
    from vine_factory.report import main as write
    return write(words)


def simulate(words: Sequence[str]) -> int:
    """`vine_factory simulate`: a day of work under this factory, the published one, and one who knows the future."""
    from vine_factory.compare import main as compare
    return compare(words)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Of all sub-commands but `run`, by name."""
    from vine_factory import compare, explaining, steer
    from vine_factory import report as page
    return {"status": _status_parser(), "check": _check_parser(), "render": _render_parser(),
            "explain": explaining.parser(), "report": page.parser(), "simulate": compare.parser(),
            **{command: steer.parser(command) for command in steer.COMMANDS},
            "completion": _completion_parser(), "man": _man_parser()}


def _completion_parser() -> argparse.ArgumentParser:
    from vine_factory.manpage import SHELLS
    parser = argparse.ArgumentParser(prog="vine_factory completion", description="Print a script that completes "
                                     "options and sub-commands: source <(vine_factory completion bash)")
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    return parser


def _man_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="vine_factory man",
                                   description="Print the manual page: vine_factory man | man -l -")


def completion(words: Sequence[str]) -> int:
    """`vine_factory completion`: a script for a shell."""
    given = _completion_parser().parse_args(list(words))
    from vine_factory.manpage import completion as script
    print(script(given.shell, _parser(), parsers()), end="")
    return 0


def man(words: Sequence[str]) -> int:
    """`vine_factory man`: the manual page."""
    _man_parser().parse_args(list(words))
    from vine_factory.manpage import manual
    print(manual(_parser(), parsers(), __version__), end="")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run, "status": status, "check": check, "render": render, "explain": explain, "report": report,
    "simulate": simulate, "completion": completion, "man": man,
    **{command: _steer(command) for command in ("drain", "pause", "resume", "adopt", "logs")}}


_RUN = ("Keep as many workers running as managers can use. With no manager named, all of the user's own managers are "
        "served.")


def _parser(command: str = "run", description: str = _RUN) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"vine_factory {command}" if command != "run" else "vine_factory", allow_abbrev=False,
        usage=f"vine_factory {'[run]' if command == 'run' else command} [-C FILE] [--batch TYPE] [options] "
              "[host port | host:port]", description=description,
        epilog="sub-commands: " + ", ".join(sorted(COMMANDS)) if command == "run" else None)
    parser.add_argument("manager", nargs="*", metavar="host port", help="the one manager to serve; also host:port")
    parser.add_argument("-v", "--version", action="version", version=f"vine_factory {__version__}")
    parser.add_argument("-C", "--config-file", metavar="FILE",
                        help="site file (TOML) or published keys (JSON), re-read when it changes")
    ignored = parser.add_argument_group("accepted for compatibility, without effect")
    for names, with_value in _IGNORED:
        ignored.add_argument(*names, action="store" if with_value else "store_true", help=argparse.SUPPRESS)
    for key, option in OPTIONS.items():
        flags = [*_LETTERS.get(key, ()), f"--{key}"]
        if option.kind == "flag":
            parser.add_argument(*flags, dest=key.replace("-", "_"), action="store_const", const=True, help=option.help)
        else:
            parser.add_argument(*flags, dest=key.replace("-", "_"), metavar=key.rsplit("-")[-1].upper(),
                                help=option.help, action="append" if option.kind == "list" else "store")
    return parser


def _address(words: Sequence[str]) -> tuple[str, int]:
    """``host port`` or ``host:port``; ("", 0) for none."""
    if not words:
        return "", 0
    text = ":".join(words)
    host, separator, port = text.rpartition(":")
    if len(words) > 2 or not separator or not host or not port.isdigit() or not 0 < int(port) <= _MAX_PORT:
        raise ConfigError(f"manager address {' '.join(words)!r}", hint="expected: host port, or host:port")
    return host.strip("[]"), int(port)


def _machine() -> Resources:
    """What a local worker finds that is given no resources."""
    from vine_factory.machine import resources
    return resources(os.environ.get("TMPDIR", "/tmp"))

"""Manual page and shell completion, made from the parsers of the commands.

Owns their formats. Must not name a single option. Pure.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")

Parsers = Mapping[str, argparse.ArgumentParser]


def manual(main: argparse.ArgumentParser, commands: Parsers, version: str) -> str:
    """The page, in the man macros of roff. ``main``: what runs when no sub-command is named."""
    lines = [f'.TH VINE_FACTORY 1 "" "hpc-worker-factory {version}" "User Commands"', ".SH NAME",
             r"vine_factory \- keep as many workers running as managers can use", ".SH SYNOPSIS", ".nf",
             *(_roff(usage) for usage in [_usage(main), *map(_usage, commands.values())]), ".fi", ".SH DESCRIPTION",
             _roff(main.description or ""), ".SH OPTIONS", *_options(main)]
    for name, parser in commands.items():
        lines += [f".SH {name.upper()}", _roff(parser.description or "")]
        # check and render take what the factory takes; that is not said twice.
        shared = any(action.dest == "config_file" for action in parser._actions)
        lines += _options(parser, frozenset(action.dest for action in main._actions) if shared else frozenset())
        lines += [".PP", "All options of the factory itself are taken as well."] if shared else []
    lines += [".SH EXIT STATUS", "0: well. 1: workers were left, or a check found problems. 2: wrong use.",
              ".SH SEE ALSO", ".BR vine_worker (1),", ".BR vine_status (1)"]
    return "\n".join(lines) + "\n"


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _options(parser: argparse.ArgumentParser, without: frozenset[str] = frozenset()) -> list[str]:
    lines = []
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or action.dest in without:
            continue
        value = "" if action.nargs == 0 else f" \\fI{_roff(str(action.metavar or action.dest).upper())}\\fR"
        names = ", ".join(f"\\fB{_roff(name)}\\fR{value}" for name in action.option_strings) or value.strip()
        lines += [".TP", names, _roff(_help(parser, action))]
    return lines


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help text as argparse shows it, with defaults filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def completion(shell: str, main: argparse.ArgumentParser, commands: Parsers) -> str:
    """A script for ``shell``, one of `SHELLS`."""
    words = {"": _words(main), "run": _words(main), **{name: _words(parser) for name, parser in commands.items()}}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](words)


def _words(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Options and what they mean."""
    return {name: _help(parser, action) for action in parser._actions
            if action.help is not argparse.SUPPRESS for name in action.option_strings}


def _bash(words: Mapping[str, Mapping[str, str]]) -> str:
    commands = [name for name in words if name]
    cases = "\n".join(f"    {name}) words={shlex.quote(' '.join(options))} ;;"
                      for name, options in words.items() if name)
    return f"""# bash completion for vine_factory
_vine_factory() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} words
  case ${{COMP_WORDS[1]}} in
{cases}
    *) words={shlex.quote(' '.join(words['']))} ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="$words {' '.join(commands)}"; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _vine_factory vine_factory
"""


def _zsh(words: Mapping[str, Mapping[str, str]]) -> str:
    def listed(options: Mapping[str, str]) -> str:
        return " ".join(shlex.quote(f"{name}:{text}") for name, text in options.items())
    cases = "\n".join(f"    {name}) found=({listed(options)}) ;;" for name, options in words.items() if name)
    commands = " ".join(shlex.quote(name) for name in words if name)
    return f"""#compdef vine_factory
_vine_factory() {{
  local -a found commands
  commands=({commands})
  case $words[2] in
{cases}
    *) found=({listed(words[''])}) ;;
  esac
  if (( CURRENT == 2 )); then compadd -a commands; fi
  _describe option found
  _files
}}
compdef _vine_factory vine_factory
"""


def _fish(words: Mapping[str, Mapping[str, str]]) -> str:
    commands = [name for name in words if name]
    lines = ["# fish completion for vine_factory"]
    lines += [f"complete -c vine_factory -n __fish_use_subcommand -a {name}" for name in commands]
    for command, options in words.items():
        when = f"__fish_seen_subcommand_from {command}" if command else \
            f"not __fish_seen_subcommand_from {' '.join(name for name in commands if name != 'run')}"
        for name, text in options.items():
            kind = "-l" if name.startswith("--") else "-s"
            quoted = text.replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"complete -c vine_factory -n '{when}' {kind} {name.lstrip('-')} -d '{quoted}'")
    return "\n".join(lines) + "\n"

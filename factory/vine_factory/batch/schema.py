"""Options as typed tables: what one may be, and the strict reading of what a person wrote.

Owns the kinds of values, their bounds and the words of every complaint: file, key, value, what is allowed, nearest
valid key. Pure. Must not know which options exist; each batch system has a table of its own.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple

_SHOWN_CHARS = 80
"""How much of a bad value is repeated."""
_DAY_S, _HOUR_S, _MINUTE_S = 86400, 3600, 60
_UNITS = {"w": 7 * _DAY_S, "d": _DAY_S, "h": _HOUR_S, "m": _MINUTE_S, "min": _MINUTE_S, "s": 1}
_PART = r"(\d+(?:\.\d+)?)\s*(w|d|h|min|m|s)"
_PARTS = re.compile(rf"(?:{_PART}\s*)+", re.ASCII)
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::([0-5]?\d))?(?::([0-5]?\d))?", re.ASCII)
_DURATION_ALLOWED = 'expected seconds as a number, or a text like "90m", "4h", "2d", "1d12h", "12:00:00", "1-12:00:00"'


class SiteOption(NamedTuple):
    """One option.

    Args:
        key: as it is written, in kebab-case.
        kind: "str" (one line), "int", "float", "flag", "list" (of one-line texts), "table" (name -> one-line text)
            or "duration" (seconds as a number, or a text `parse_duration` reads).
        default: in the type of the checked value; None when the option may be left out.
        help: one sentence for the documentation.
        choices: what a text may be; () = anything.
        low, high: bounds of a number or duration (seconds), inclusive; None = none.
        pattern: regular expression that a text, and each text of a list, matches as a whole; "" = any.
    """

    key: str
    kind: str
    default: object
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    pattern: str = ""


def check_options(options: Mapping[str, object], table: Sequence[SiteOption], where: str) -> dict[str, object]:
    """Typed values for every option of ``table``; what is not given has its default.

    Args:
        options: as read from a file.
        table: what is allowed.
        where: file and path of the options, for messages: "site.toml: pool.p.slurm".

    Raises:
        ConfigError: an unknown key or an unusable value.
    """
    known = {option.key: option for option in table}
    checked = {option.key: option.default for option in table}
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {shown(key)}", hint=unknown_hint(key, table))
        checked[key] = check_value(known[key], value, where)
    return checked


def check_value(option: SiteOption, value: object, where: str) -> object:
    """``value`` in the type of ``option``: str, int, float, bool, tuple of str, dict of str, seconds as float.

    Raises:
        ConfigError: wrong type or out of bounds.
    """
    problem = _Problem(option, f"{where}: {option.key} = {shown(value)}")
    if option.kind == "flag":
        if not isinstance(value, bool):
            raise problem.error()
        return value
    if option.kind in ("int", "float"):
        return problem.bounded(_number(option, value, problem))
    if option.kind == "duration":
        try:
            return problem.bounded(parse_duration(value))
        except ConfigError:
            raise problem.error() from None
    if option.kind == "list":
        if not isinstance(value, list | tuple):
            raise problem.error()
        return tuple(problem.text(item) for item in value)
    if option.kind == "table":
        if not isinstance(value, Mapping):
            raise problem.error()
        return {problem.text(name, filled=True): problem.text(_as_text(item)) for name, item in value.items()}
    return problem.text(value)


class _Problem(NamedTuple):
    """Checks that complain about one value of one option."""

    option: SiteOption
    what: str

    def error(self, why: str = "") -> ConfigError:
        return ConfigError(self.what + (f": {why}" if why else ""), hint=f"expected {allowed(self.option)}")

    def bounded(self, number: float | int) -> float | int:
        low, high = self.option.low, self.option.high
        if (low is not None and number < low) or (high is not None and number > high):
            raise self.error()
        return number

    def text(self, value: object, *, filled: bool = False) -> str:
        if not isinstance(value, str) or (filled and not value.strip()):
            raise self.error()
        bad = line_problem(value)
        if bad:
            raise self.error(bad)
        option = self.option
        if option.choices and value not in option.choices:
            raise ConfigError(self.what, hint=_did_you_mean(value, option.choices) + f"expected {allowed(option)}")
        if option.pattern and not re.fullmatch(option.pattern, value):
            raise self.error()
        return value


def _number(option: SiteOption, value: object, problem: _Problem) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise problem.error()
    if option.kind == "float":
        return float(value)
    if value != int(value):
        raise problem.error()
    return int(value)


def _as_text(value: object) -> object:
    """Numbers in a table are meant as their text: ``MaxRuntime = 3600``."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def parse_duration(value: object) -> float:
    """Seconds.

    Args:
        value: seconds as a number, or a text: "4h", "1d12h", "90 m", "hh:mm:ss", "d-hh", "d-hh:mm", "d-hh:mm:ss".

    Raises:
        ConfigError: none of these. Two numbers ("10:30") are refused: some take them for hours, some for minutes.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(value, str):
        text = value.strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            return float(text)
        if _PARTS.fullmatch(text):
            return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text, re.ASCII))
        clock = _CLOCK.fullmatch(text)
        if clock and (clock[1] is not None or clock[4] is not None):
            days, hours, minutes, seconds = (float(part or 0) for part in clock.groups())
            return days * _DAY_S + hours * _HOUR_S + minutes * _MINUTE_S + seconds
    raise ConfigError(f"{shown(value)} is no duration", hint=_DURATION_ALLOWED)


def line_problem(text: str) -> str:
    """Why ``text`` cannot be part of one line of a file, "" when it can."""
    for character in text:
        if character == "\0":
            return "it contains a NUL character"
        if character in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029":
            return "it contains a line break"
        if (character < " " and character != "\t") or "\x7f" <= character < "\xa0":
            return f"it contains the control character U+{ord(character):04X}"
        if "\ud800" <= character <= "\udfff":
            return "it contains a byte that is not UTF-8"
    return ""


def allowed(option: SiteOption) -> str:
    """What an option may be, as the end of the sentence "expected ..."."""
    bounds = "".join(f" of {words} {number:g}" for words, number in (("at least", option.low), ("at most", option.high))
                     if number is not None).replace(" of at most", " and at most" if option.low is not None
                                                    else " of at most")
    texts = f" matching {option.pattern}" if option.pattern else ""
    if option.choices:
        one = "one of " + ", ".join(repr(choice) for choice in option.choices)
        return f"a list of texts, each {one}" if option.kind == "list" else one
    return {
        "str": "a text of one line" + texts, "int": "a whole number" + bounds, "float": "a number" + bounds,
        "flag": "true or false", "list": 'a list of one-line texts, ["a", "b"]' + (f", each{texts}" if texts else ""),
        "table": "a table of names and one-line texts, {NAME = \"text\"}",
        "duration": _DURATION_ALLOWED.removeprefix("expected ") + (f"; in seconds{bounds}" if bounds else ""),
    }[option.kind]


def unknown_hint(key: str, table: Iterable[SiteOption]) -> str:
    """What to say about a key that is not in ``table``: the nearest one and what it may be, and all others."""
    known = {option.key: option for option in table}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        option = known[close[0]]
        return f"did you mean {option.key!r}, which takes {allowed(option)}? allowed: " + ", ".join(sorted(known))
    return "allowed: " + ", ".join(sorted(known)) if known else "nothing is allowed here"


def nearest_hint(word: str, valid: Collection[str]) -> str:
    """What to say about a word that is none of ``valid``."""
    return _did_you_mean(word, valid) + ("allowed: " + ", ".join(sorted(valid)) if valid else "there are none")


def shown(value: object) -> str:
    """A value as it is repeated in messages: short, on one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _did_you_mean(word: str, valid: Collection[str]) -> str:
    close = difflib.get_close_matches(word, sorted(valid), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""

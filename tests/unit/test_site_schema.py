"""Typed option tables: what is read, what is refused, and in which words."""

from __future__ import annotations

import re

import pytest

from taskvine_core.errors import ConfigError
from vine_factory.batch.schema import SiteOption, allowed, check_options, parse_duration

TABLE = (
    SiteOption("partition", "str", None, "where", pattern=r"[a-z,]+"),
    SiteOption("mode", "str", "fast", "how", choices=("fast", "slow")),
    SiteOption("nodes", "int", 1, "how many", low=1, high=64),
    SiteOption("share", "float", 0.5, "part", low=0),
    SiteOption("exclusive", "flag", False, "alone"),
    SiteOption("extra-directives", "list", (), "lines"),
    SiteOption("attributes", "table", {}, "names and values"),
    SiteOption("walltime", "duration", None, "how long", low=60),
)


def check(**options: object) -> dict[str, object]:
    return check_options({key.replace("_", "-"): value for key, value in options.items()}, TABLE, "s.toml: pool.p.x")


def test_what_is_not_given_has_its_default() -> None:
    assert check() == {"partition": None, "mode": "fast", "nodes": 1, "share": 0.5, "exclusive": False,
                       "extra-directives": (), "attributes": {}, "walltime": None}


def test_values_get_the_type_of_their_option() -> None:
    made = check(partition="a,b", nodes=2.0, share=1, exclusive=True, extra_directives=["--x"],
                 attributes={"MaxRuntime": 3600, "Flavour": '"longlunch"'}, walltime="4h")
    assert made["nodes"] == 2 and isinstance(made["nodes"], int)
    assert made["share"] == 1.0 and isinstance(made["share"], float)
    assert made["extra-directives"] == ("--x",)
    assert made["attributes"] == {"MaxRuntime": "3600", "Flavour": '"longlunch"'}
    assert made["walltime"] == 14400.0


@pytest.mark.parametrize(("key", "value", "words"), [
    ("partition", 3, "expected a text of one line matching [a-z,]+"), ("partition", "A", "matching [a-z,]+"),
    ("partition", "a\nb", "contains a line break"), ("partition", "a\0", "NUL"),
    ("partition", "a\u2028b", "line break"),
    ("mode", "fats", "did you mean 'fast'? expected one of 'fast', 'slow'"),
    ("nodes", 0, "a whole number of at least 1 and at most 64"), ("nodes", 65, "at most 64"), ("nodes", 1.5, "whole"),
    ("nodes", True, "whole"), ("nodes", "3", "whole"), ("nodes", float("nan"), "whole"), ("share", -1, "at least 0"),
    ("exclusive", "yes", "true or false"), ("exclusive", 1, "true or false"),
    ("extra-directives", "--x", "a list of one-line texts"), ("extra-directives", ["a", 1], "list"),
    ("extra-directives", ["a\n--evil"], "line break"), ("attributes", ["a"], "a table"),
    ("attributes", {"a": "b\nqueue 100"}, "line break"), ("attributes", {"a\nb": "c"}, "line break"),
    ("attributes", {" ": "c"}, "table"), ("attributes", {"a": True}, "table"), ("attributes", {"a": None}, "table"),
    ("walltime", "10:30", "1-12:00:00"), ("walltime", 5, "at least 60"), ("walltime", "x" * 5000, "..."),
])
def test_a_bad_value_is_named_with_place_key_value_and_what_is_allowed(key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_options({key: value}, TABLE, "s.toml: pool.p.x")
    said = str(caught.value)
    assert said.startswith(f"s.toml: pool.p.x: {key} = ") and words in said
    assert len(said) < 400 and "\n" not in said


def test_an_unknown_key_names_the_nearest_and_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=re.escape(
            "s.toml: pool.p.x: unknown key 'partitoin' (did you mean 'partition', which takes a text of one line "
            "matching [a-z,]+? allowed: attributes, exclusive, ")):
        check(partitoin="a")
    with pytest.raises(ConfigError, match=r"unknown key 'zzz' \(allowed: attributes, "):
        check(zzz="a")
    with pytest.raises(ConfigError, match="nothing is allowed here"):
        check_options({"a": 1}, (), "s.toml")


@pytest.mark.parametrize(("value", "seconds"), [
    (90, 90), (0.5, 0.5), ("90", 90), ("90s", 90), ("90m", 5400), ("15 min", 900), ("4h", 14400), ("1.5h", 5400),
    ("2d", 172800), ("1w", 604800), ("1d12h", 129600), ("1d 12h 30m", 131400), ("12:00:00", 43200),
    ("100:00:01", 360001), ("1-12:00:00", 129600), ("1-12", 129600), ("1-12:30", 131400), ("0", 0), (" 4H ", 14400),
])
def test_durations_are_read_as_people_and_slurm_write_them(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize("value", ["", "h", "4x", "10:30", "12:60:00", "12:00:61", "-4h", -1, True, None, [],
                                   float("inf"), float("nan"), "1e3", "4h\n#SBATCH", "٤h"])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="duration"):
        parse_duration(value)


def test_every_kind_can_be_described() -> None:
    assert {option.kind for option in TABLE} == {"str", "int", "float", "flag", "list", "table", "duration"}
    for option in TABLE:
        assert allowed(option)

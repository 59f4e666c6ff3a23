"""Reading configuration files: TOML site files with pools, and JSON with the published keys.

Owns the form of a file, which keys may stand where, and the words about a wrong one. Values are typed here and get
their origin; how they combine is in build.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory import defaults, expressions
from vine_factory.batch import registry
from vine_factory.batch.schema import check_value as check_site_value
from vine_factory.batch.schema import nearest_hint, shown, unknown_hint
from vine_factory.config.options import (
    ALIASES,
    NOT_IN_SITE_FILE,
    OPTIONS,
    WITHOUT_EFFECT,
    Sourced,
    check_value,
)
from vine_factory.config.pool_options import BY_KEY, POOL_OPTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_POOL_NAME_ALLOWED = "at most 40 letters, digits, '_', '-' and '.', beginning with a letter or digit"
_BLOCKS = "blocks"


class PoolTable(NamedTuple):
    """One pool as a file has it, or the file's defaults for pools. ``systems``: options by batch system, as given."""

    name: str
    values: Mapping[str, Sourced] = {}
    systems: Mapping[str, Mapping[str, Sourced]] = {}
    blocks: Mapping[str, Sourced] = {}


class FileValues(NamedTuple):
    """What a file says. ``pools`` None: it has no pools, its values are for the one of the command line.
    ``label``: name of a factory that has no other. ``notes``: for the user."""

    values: Mapping[str, Sourced] = {}
    defaults: PoolTable = PoolTable("")
    pools: tuple[PoolTable, ...] | None = None
    label: str = ""
    notes: tuple[str, ...] = ()


def read_file(path: Path) -> FileValues:
    """Read a configuration file, TOML or JSON by its content.

    Raises:
        ConfigError: unreadable, neither of them, an unknown key or a bad value.
    """
    try:
        if path.stat().st_size > defaults.MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than {defaults.MAX_CONFIG_BYTES} bytes", hint="is it the right file?")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"cannot read the configuration {path}: {problem}") from problem
    if not text.strip():
        # Not "no settings": an editor may have emptied the file and not yet written it.
        raise ConfigError(f"{path}: the file is empty", hint="expected a site file (TOML) or published keys (JSON)")
    if not text.lstrip().startswith("{"):
        return from_site(_toml(text, str(path)), str(path), label=path.stem)
    try:
        record = expressions.parse(text)
    except ConfigError as problem:
        raise ConfigError(f"{path}: {problem.message}", hint=problem.hint) from problem
    return from_mapping(record, str(path))


def read_definition(path: Path) -> dict[str, object]:
    """Read a TOML file that is not a site file: the definition of a batch system.

    Raises:
        ConfigError: unreadable or not TOML.
    """
    try:
        return _toml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"cannot read the definition {path}: {problem}") from problem


def _toml(text: str, where: str) -> dict[str, object]:
    try:
        record: dict[str, object] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise ConfigError(f"{where}: not TOML: {problem}", hint="correct it there; a JSON file begins with {") from None
    return record


def from_mapping(record: Mapping[str, object], where: str) -> FileValues:
    """Check the published keys of a JSON configuration. Raises as `read_file`."""
    valid = [key for key, option in OPTIONS.items() if option.in_file]
    values, notes = _factory_values(record, where, valid)
    return FileValues(values, notes=tuple(notes))


def from_site(record: Mapping[str, object], where: str, label: str) -> FileValues:
    """Check a site file. Raises as `read_file`."""
    top = {key: value for key, value in record.items() if key not in ("defaults", "pool")}
    for key, value in top.items():
        if isinstance(value, Mapping):
            raise ConfigError(f"{where}: unknown table [{key}]", hint="tables are [defaults] and [pool.NAME]")
    values, notes = _factory_values(top, where, [key for key in OPTIONS if key not in NOT_IN_SITE_FILE])
    common = _pool_table("", _table(record.get("defaults", {}), f"{where}: defaults"), f"{where}: defaults")
    if "pool" not in record:
        if "defaults" in record:
            raise ConfigError(f"{where}: [defaults] without any pool", hint="add a table [pool.NAME]")
        return FileValues(values, label=label, notes=tuple(notes))
    tables = _table(record["pool"], f"{where}: pool")
    if not tables:
        raise ConfigError(f"{where}: there are no pools", hint="add a table [pool.NAME]")
    pools = []
    for name, table in tables.items():
        if not _POOL_NAME.fullmatch(name):
            raise ConfigError(f"{where}: pool name {shown(name)}", hint=f"expected {_POOL_NAME_ALLOWED}")
        pools.append(_pool_table(name, _table(table, f"{where}: pool.{name}"), f"{where}: pool.{name}"))
    folded = [name.lower() for name in tables]
    for name in tables:  # directories are named after pools, and some file systems do not tell a from A
        if folded.count(name.lower()) > 1:
            raise ConfigError(f"{where}: two pools are named {name!r} but for the case of letters",
                              hint="rename one of them")
    return FileValues(values, common, tuple(pools), label, tuple(notes))


def _factory_values(record: Mapping[str, object], where: str,
                    valid: Iterable[str]) -> tuple[dict[str, Sourced], list[str]]:
    values: dict[str, Sourced] = {}
    notes = []
    allowed = set(valid)
    for given, value in record.items():
        key = ALIASES.get(given, given)
        if given in WITHOUT_EFFECT:
            notes.append(f"{where}: {given} has no effect: {WITHOUT_EFFECT[given]}")
        elif key in allowed:
            if key in values:
                raise ConfigError(f"{where}: {given} and {key} are the same option", hint="remove one of them")
            values[key] = Sourced(check_value(key, value, where), where)
        else:
            raise ConfigError(f"{where}: unknown key {shown(given)}",
                              hint=nearest_hint(given, {*allowed, *ALIASES, *WITHOUT_EFFECT}))
    return values, notes


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} = {shown(value)}", hint=f"expected a table: [{where.rpartition(' ')[2]}]")
    return value


def _pool_table(name: str, record: Mapping[str, object], where: str) -> PoolTable:
    values: dict[str, Sourced] = {}
    systems: dict[str, dict[str, Sourced]] = {}
    blocks: dict[str, Sourced] = {}
    for key, value in record.items():
        if key in BY_KEY:
            values[key] = Sourced(check_site_value(BY_KEY[key], value, where), where)
        elif key == _BLOCKS:
            blocks = _blocks(_table(value, f"{where}.{key}"), f"{where}.{key}")
        elif _names_system(key):
            origin = f"{where}.{key}"
            systems[key] = {option: Sourced(item, origin) for option, item in _table(value, origin).items()}
        else:
            raise ConfigError(f"{where}: unknown key {shown(key)}", hint=unknown_hint(key, POOL_OPTIONS) +
                              ", blocks, and tables of options of a batch system: " + ", ".join(registry.tables()))
    return PoolTable(name, values, systems, blocks)


def _names_system(key: str) -> bool:
    return registry.ALIASES.get(key, key) in {*registry.DRIVERS, *registry.tables()}


def _blocks(record: Mapping[str, object], where: str) -> dict[str, Sourced]:
    for name, text in record.items():
        if not isinstance(text, str) or "\0" in text:
            raise ConfigError(f"{where}: {name} = {shown(text)}", hint='expected a text, """of whole lines"""')
    return {name: Sourced(text, where) for name, text in record.items()}

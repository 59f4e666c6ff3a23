"""Job descriptions from templates.

Owns the template language as it is used here: jinja2 in an immutable sandbox, every name must exist, nothing is
escaped by itself but values that become part of a line pass a filter. A site replaces single blocks of a shipped
template, never the whole. jinja2 is loaded with the first rendering. Must not know batch systems; a driver that
needs a filter of its own adds it to `FILTERS` when it is imported.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvine_core.errors import ConfigError
from vine_factory.batch.schema import line_problem, nearest_hint, shown

if TYPE_CHECKING:
    from types import TracebackType

    from jinja2 import Environment, Template

TEMPLATES = resources.files("vine_factory").joinpath("templates")
"""Found in the same way in an installed copy and in a source tree."""
_CACHED_TEMPLATES = 64
"""Compiled ones that are kept: one per pool is used again and again; a re-read site file brings new ones."""


class FilterError(ValueError):
    """A value that a filter cannot put where the template wants it. Text has the value and why."""


def quote(value: object) -> str:
    """Filter ``q``: one word for a POSIX shell.

    Raises:
        FilterError: nothing quotes a NUL, None or a list.
    """
    text = _text(value)
    if "\0" in text:
        raise FilterError(f"{shown(value)} contains a NUL character, which no shell can hold")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise FilterError(f"{shown(value)} contains a byte that is not UTF-8")
    return shlex.quote(text)


def line(value: object) -> str:
    """Filter ``line``: a part of a directive line.

    Raises:
        FilterError: it has line breaks or other control characters (tabs may be).
    """
    text = _text(value)
    problem = line_problem(text)
    if problem:
        raise FilterError(f"{shown(value)} cannot be part of one line: {problem}")
    return text


def _text(value: object) -> str:
    if isinstance(value, str | int | float | Path) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise FilterError("the value is not set")
    str(value)  # a name that does not exist says so itself
    raise FilterError(f"{shown(value)} is neither a text nor a number")


FILTERS: dict[str, Callable[..., object]] = {"q": quote, "line": line}


def render(template: str, values: Mapping[str, object], blocks: Mapping[str, str] = {}) -> str:
    """Fill a template.

    Args:
        template: path below ``templates/``, with slashes.
        values: what the names in it stand for.
        blocks: text in the template language that replaces the block of that name; ``{{ super() }}`` is what it
            replaces.

    Raises:
        ConfigError: no such block, or an error in the template or a block; names template, line and value.
    """
    import jinja2

    try:
        made = _compiled(template, tuple(sorted(blocks.items())))
        made.environment.filters.update(FILTERS)
        return made.render(values)
    except ConfigError:
        raise
    except jinja2.TemplateSyntaxError as problem:
        raise ConfigError(f"template {problem.name or template}, line {problem.lineno}: {problem.message}",
                          hint="correct it there") from None
    except Exception as problem:
        # Whatever the text of a user's block makes jinja2 raise, it is an error in that text. A defect in a
        # shipped template looks the same and is found by its tests.
        name, number = _place(problem.__traceback__, template)
        hint = "names that exist: " + ", ".join(sorted(values)) if isinstance(problem, jinja2.UndefinedError) \
            else "change the value, or the block in the site file"
        raise ConfigError(f"template {name}, line {number}: {problem}", hint=hint) from problem


def block_names(template: str) -> tuple[str, ...]:
    """The blocks of a template that a site may replace, sorted."""
    from jinja2 import nodes

    environment = _environment({})
    parsed = environment.parse(_source(template))
    return tuple(sorted(block.name for block in parsed.find_all(nodes.Block)))


@functools.lru_cache(_CACHED_TEMPLATES)
def _compiled(template: str, blocks: tuple[tuple[str, str], ...]) -> Template:
    """The shipped template, below one generated child per replaced block, so that each has its own line numbers."""
    known = block_names(template)
    sources, parent = {}, template
    for name, text in blocks:
        if name not in known:
            raise ConfigError(f"template {template} has no block {name!r}", hint=nearest_hint(name, known))
        child = f"{template}, block {name!r}"
        _check_block(child, text)
        ending = "" if not text or text.endswith("\n") else "\n"  # a block is whole lines
        sources[child] = f"{{% extends {parent!r} %}}{{% block {name} %}}{_kept(text)}{ending}{{% endblock %}}"
        parent = child
    return _environment(sources).get_template(parent)


def _kept(text: str) -> str:
    """``trim_blocks`` would take the first line break, which belongs to the text."""
    return "\n" + text if text.startswith("\n") else text


def _check_block(name: str, text: str) -> None:
    """A block must be complete in itself: it can neither end early nor open others."""
    from jinja2 import nodes

    parsed = _environment({}).parse(text, name)
    for node in parsed.find_all((nodes.Block, nodes.Extends)):
        raise ConfigError(f"template {name}, line {node.lineno}: it contains another block or extends a template",
                          hint="give the text of this block only")


def _environment(sources: Mapping[str, str]) -> Environment:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def load(name: str) -> tuple[str, str | None, Callable[[], bool] | None]:
        return (sources[name] if name in sources else _source(name)), name, None

    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FunctionLoader(load), undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True,
        keep_trailing_newline=True, auto_reload=False)
    environment.filters.update(FILTERS)
    return environment


def _source(template: str) -> str:
    if ".." in template.split("/"):
        raise ConfigError(f"template {template!r} is not below the templates")
    try:
        return TEMPLATES.joinpath(*template.split("/")).read_text(encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"template {template} cannot be read: {problem}",
                          hint="install the package again") from problem


def _place(traceback: TracebackType | None, template: str) -> tuple[str, int]:
    """Template and line of an error: the last frame that is a template's."""
    name, number = template, 0
    while traceback is not None:
        code: Any = traceback.tb_frame.f_code
        if code.co_filename == template or code.co_filename.startswith(f"{template}, block "):
            name, number = code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return name, number

"""Templates: no value ends its line or its word, a site replaces single blocks, errors say where and what."""

from __future__ import annotations

import importlib
import pkgutil
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import pytest
from jinja2 import nodes

from taskvine_core.errors import ConfigError
from vine_factory import batch, templating
from vine_factory.templating import block_names, render

BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
HOSTILE = ["'", '"', "a'b\"c", "$(touch x)", "`touch x`", "${HOME}", "%d %%", "a;b", "a && b | c > d", "\\", "\\n", "#",
           "*?[a]~", "!!", "-n", "", " ", "\t", "ü€😀", "{{ 7 * 7 }}", "{% raw %}", "x" * 100_000]  # fmt: skip

SHIPPED = """\
head {{ name | line }}
{% block directives %}
one {{ name | line }}
{% endblock %}
{% block setup %}
{% endblock %}
run {{ name | q }}
"""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a template where the shipped ones are looked for; returns its name."""
    monkeypatch.setattr(templating, "TEMPLATES", tmp_path)
    templating._compiled.cache_clear()

    def write(text: str) -> str:
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / "job.j2").write_text(text, encoding="utf-8")
        return "x/job.j2"

    yield write
    templating._compiled.cache_clear()


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\t" not in text])
def test_a_hostile_value_stays_on_its_line_and_is_not_read_as_template(text: str,
                                                                       shipped: Callable[[str], str]) -> None:
    made = render(shipped("a {{ v | line }}\nb\n"), {"v": text})
    assert made == f"a {text}\nb\n"


@pytest.mark.parametrize("text", [*BREAKS, "\0", "\x1b[2J", "\x7f", "\udc80"])
def test_a_value_that_would_end_its_line_is_refused(text: str, shipped: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=r"template x/job\.j2, line 2: .*cannot be part of one line"):
        render(shipped("a\nb {{ v | line }}\n"), {"v": f"good{text}#SBATCH --evil"})


@pytest.mark.parametrize("text", [*HOSTILE, *BREAKS, "two\nlines; $(x)"])
def test_a_quoted_value_is_one_word_for_a_shell_whatever_it_is(text: str, shipped: Callable[[str], str]) -> None:
    script = render(shipped("printf %s {{ v | q }}\n"), {"v": text})
    assert shlex.split(script)[2:] == [text]
    if len(text) < 1000:
        done = subprocess.run(["/bin/sh"], input=script.encode(), capture_output=True, check=True, timeout=20)
        assert done.stdout == text.encode()


@pytest.mark.parametrize(("value", "words"), [("a\0b", "NUL"), ("\udc80", "not UTF-8"), (None, "not set"),
                                              (["a"], "neither a text"), (True, "neither a text")])
@pytest.mark.parametrize("name", ["q", "line"])
def test_what_a_filter_cannot_put_there_is_an_error(name: str, value: object, words: str,
                                                    shipped: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=words):
        render(shipped(f"{{{{ v | {name} }}}}\n"), {"v": value})


def test_a_site_replaces_one_block_and_keeps_the_rest(shipped: Callable[[str], str]) -> None:
    name = shipped(SHIPPED)
    assert block_names(name) == ("directives", "setup")
    assert render(name, {"name": "n"}) == "head n\none n\nrun n\n"
    assert render(name, {"name": "n"}, {"setup": "module load {{ name | q }}"}) == \
        "head n\none n\nmodule load n\nrun n\n"
    assert render(name, {"name": "n"}, {"directives": "{{ super() }}two\n", "setup": "\nthree\n"}) == \
        "head n\none n\ntwo\n\nthree\nrun n\n"
    assert render(name, {"name": "n"}, {"directives": ""}) == "head n\nrun n\n"


def test_an_unknown_block_is_an_error_that_names_the_nearest(shipped: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=r"no block 'directive'.*did you mean 'directives'.*directives, setup"):
        render(shipped(SHIPPED), {"name": "n"}, {"directive": "x"})


@pytest.mark.parametrize(("text", "words"), [
    ("a\n{{ nam | line }}", r"block 'setup', line 2: 'nam' is undefined.*names that exist: name"),
    ("a\n\n{{ name | ", r"block 'setup', line 3"),
    ("{% endblock %}{% block other %}", r"block 'setup', line 1"),
    ("{% block other %}{% endblock %}", r"block 'setup', line 1: it contains another block"),
    ("{{ name | lien }}", r"block 'setup', line 1: No filter named 'lien'"),
    ("{{ name.__class__.__mro__ }}", r"block 'setup', line 1: .*unsafe"),
    ("{{ cycler.__init__.__globals__ }}", r"block 'setup', line 1: .*unsafe"),
    ("{% set x = name.append('y') %}", r"block 'setup', line 1"),
    ("{{ 1 / 0 }}", r"block 'setup', line 1: division by zero"),
])
def test_an_error_in_a_block_names_block_and_line(text: str, words: str, shipped: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=words):
        render(shipped(SHIPPED), {"name": "n"}, {"setup": text})


def test_a_value_a_template_is_given_cannot_be_changed_by_a_block(shipped: Callable[[str], str]) -> None:
    values = {"name": "n", "items": ["a"]}
    with pytest.raises(ConfigError, match="block 'setup', line 1"):
        render(shipped(SHIPPED), values, {"setup": "{{ items.append('b') }}"})
    assert values["items"] == ["a"]


def test_a_drivers_filter_is_known_at_once(shipped: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = shipped("{{ v | line }} {{ v | shout }}\n")
    monkeypatch.setitem(templating.FILTERS, "shout", lambda value: str(value).upper())
    assert render(name, {"v": "a"}) == "a A\n"


def test_a_template_outside_or_missing_is_an_error(shipped: Callable[[str], str]) -> None:
    shipped("")
    with pytest.raises(ConfigError, match="not below"):
        render("../x/job.j2", {})
    with pytest.raises(ConfigError, match=r"x/none\.j2 cannot be read"):
        render("x/none.j2", {})


# ------------------------------------------------------------------------------------------- the shipped ones

TEMPLATES = Path(str(templating.TEMPLATES))


def unfiltered(text: str) -> list[str]:
    """What a template prints without a filter of `FILTERS`; texts of the template itself and super() may be."""
    found = []
    for output in jinja2.Environment().parse(text).find_all(nodes.Output):
        for node in output.nodes:
            if not isinstance(node, nodes.TemplateData | nodes.Const) and not is_filtered(node):
                found.append(f"line {node.lineno}: {node}")
    return found


def is_filtered(node: nodes.Node | None) -> bool:
    if isinstance(node, nodes.Call):
        return isinstance(node.node, nodes.Name) and node.node.name == "super"
    if not isinstance(node, nodes.Filter):
        return False
    if node.name == "join" and isinstance(node.node, nodes.Filter) and node.node.name == "map":
        (first,) = node.node.args
        return isinstance(first, nodes.Const) and first.value in templating.FILTERS
    return node.name in templating.FILTERS


def test_every_value_in_a_shipped_template_passes_a_filter() -> None:
    for module in pkgutil.iter_modules(batch.__path__, "vine_factory.batch."):
        if not module.name.endswith("_helper"):
            importlib.import_module(module.name)  # a driver adds its filters
    found = {str(path.relative_to(TEMPLATES)): unfiltered(path.read_text(encoding="utf-8"))
             for path in TEMPLATES.rglob("*.j2")}
    assert not any(found.values()), found


def test_a_value_without_a_filter_is_noticed() -> None:
    assert unfiltered("{{ a | line }}{{ super() }}{{ a | map('q') | join(' ') }}{{ 'x' }}") == []
    assert len(unfiltered("{{ a }}{{ a | upper }}{{ a | join(' ') }}{{ a() }}")) == 4

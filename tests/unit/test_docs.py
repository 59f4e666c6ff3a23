"""The documentation says what the code does: diagrams and tables are current, links resolve, examples run."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

from taskvine_core.constants import RESULT_NAMES, result_text
from taskvine_core.errors import ConfigError
from taskvine_core.worker.options import parse
from vine_factory.cli import parsers

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = [
    path
    for folder in ("taskvine_core", "factory", "compat", "tools", "bench", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# Modules whose classes a program uses: each public method of these is documented.
PUBLIC = ["api", "base", "cached_result", "category_calls", "conveniences", "declare", "description", "file",
          "mini_tasks", "mounting", "policy", "python_task", "results", "task", "waiting"]  # fmt: skip
GUIDE_TIMEOUT_S = 90
# Results of parts that are on the roadmap, or that this implementation never gives.
NEVER_RETURNED = {"signal", "max retries", "monitor error", "library exit", "missing library"}


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_states", ROOT / "tools" / "draw_states.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def committed_files() -> list[Path]:
    """What git tracks; outside of a checkout (an sdist) everything in the folders we know."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.CalledProcessError):
        return [*SOURCES, *PAGES]
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


# ------------------------------------------------------------------ generated parts


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_generated_parts_are_current(page: Path) -> None:
    assert text(page) == GENERATOR.filled(text(page)), "run: python tools/draw_states.py"


def test_every_generated_part_is_on_a_page() -> None:
    shown = [name for page in DOCS.glob("*.md") for name in GENERATOR.names_in(text(page))]
    assert sorted(shown) == sorted(GENERATOR.GENERATORS)


def test_diagrams_have_every_state_of_their_tables() -> None:
    page = text(DOCS / "state-machines.md")
    arrows = set(re.findall(r"^    (\S+) --> (\S+?):?(?: .*)?$", page, re.MULTILINE))
    for (old, event), new in [*GENERATOR.machines.OBJECT_TABLE.items(), *GENERATOR.machines.RUN_TABLE.items()]:
        assert (old, new) in arrows, f"{old} --{event}--> {new}"
    for old, facts in GENERATOR.jobs.TABLE.items():
        for new in facts.values():
            assert (old.name, new.name) in arrows


def test_a_stale_diagram_is_noticed() -> None:
    page = text(DOCS / "state-machines.md")
    assert GENERATOR.filled(page.replace("READY --> RUNNING\n", "")) == page != page.replace("READY --> RUNNING\n", "")


# ------------------------------------------------------------------ links and names


def anchors(page: Path) -> set[str]:
    """The anchors that headings of a page get."""
    heads = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    body = re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", body):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        found = page.parent / name if name else page
        assert found.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_the_text_exist(page: Path) -> None:
    folders = "taskvine_core|factory|tests|tools|docs|examples|bench|scripts"
    for name in re.findall(rf"`((?:{folders})/[\w/.-]+\.(?:py|md|svg))`", text(page)):
        assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"


def test_options_in_the_operations_page_exist() -> None:
    page = text(DOCS / "operations.md") + text(DOCS / "security.md") + text(DOCS / "user-guide.md")
    known = set(GENERATOR.worker_options().split()) | set(GENERATOR.factory_options().split("`"))
    known |= {word.rstrip(",") for word in known}
    known |= {"--batch", "--min", "--max", "--factory-name", "--tasks"}  # further spellings of the factory and status
    known |= {option for parser in parsers().values() for option in parser._option_string_actions}
    known |= {"--user", "--now"}  # systemctl
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)):
        assert option in known, f"{option} is no option of worker or factory"


def test_worker_commands_in_the_docs_are_accepted() -> None:
    shown = re.findall(r"`(vine_worker [^`\n]*)`|^(vine_worker .*)$", text(DOCS / "user-guide.md"), re.MULTILINE)
    commands = [(one or other).replace("HOST PORT", "host 9123") for one, other in shown]
    assert commands
    for command in commands:
        try:
            parse(command.split()[1:], {})
        except ConfigError as error:
            pytest.fail(f"{command}: {error}")


def test_the_guide_explains_every_result_a_program_can_see() -> None:
    page = text(DOCS / "user-guide.md")
    for code in RESULT_NAMES:
        said = f"| `{result_text(code)}` |" in page
        assert said == (result_text(code) not in NEVER_RETURNED), result_text(code)


# ------------------------------------------------------------------ docstrings


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_owns(path: Path) -> None:
    said = ast.get_docstring(ast.parse(text(path))) or ""
    assert len(said.split()) >= 3, f"{path.relative_to(ROOT)} says {said!r}"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_call_is_documented(name: str) -> None:
    tree = ast.parse(text(ROOT / "taskvine_core" / "manager" / f"{name}.py"))
    missing = [f"{owner}{node.name}" for owner, node in public_callables(tree) if not ast.get_docstring(node)]
    assert not missing, missing


def public_callables(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions, classes, and methods of public classes; declarations without a body do not count."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield "", node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and not is_stub(inner):
                    yield f"{node.name}.", inner


def is_stub(node: ast.FunctionDef) -> bool:
    """``def f(self) -> T: ...`` of a protocol or an overload."""
    (body, *rest) = node.body
    return not rest and isinstance(body, ast.Expr) and isinstance(body.value, ast.Constant) and body.value.value is ...


# ------------------------------------------------------------------ what must not be committed


def test_no_committed_file_names_a_path_of_a_developers_machine() -> None:
    # Put together here, so that this file does not name them either.
    folders = "|".join(re.escape(f"/{first}/{second}") for first, second in
                       (("work", "main"), ("work", "shared"), ("opt", "venv"), ("farm", "in"), ("root", ".pyenv")))
    pattern = re.compile(rf"(?:{folders})\b")
    found = []
    for path in committed_files():
        with contextlib.suppress(UnicodeDecodeError):
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text(path))]
    assert not found, found


# ------------------------------------------------------------------ the guide is a program


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in, with a key and a state directory of its own."""
    yield tmp_path
    shutil.rmtree(tmp_path / "vine-run-info", ignore_errors=True)


@pytest.mark.live
def test_the_blocks_of_the_guide_run_as_one_program_against_one_worker(home: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", text(DOCS / "user-guide.md"), re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^vine_worker (.*)$", text(DOCS / "user-guide.md"), re.MULTILINE)
    (home / "guide.py").write_text("\n".join(blocks), encoding="utf-8")
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "factory", "compat"))
    env = {**os.environ, "XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": path, "TMPDIR": str(home)}
    program = start([sys.executable, "guide.py"], home, env)
    worker = start([sys.executable, "-m", "taskvine_core.worker.cli", *command.split(), "--single-shot", "-t", "30"],
                   home, env)  # fmt: skip
    try:
        said, _ = program.communicate(timeout=GUIDE_TIMEOUT_S)
        assert program.returncode == 0, said
        heard, _ = worker.communicate(timeout=GUIDE_TIMEOUT_S)
        assert worker.returncode == 0, heard
    finally:
        for process in (program, worker):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(GUIDE_TIMEOUT_S)


def start(arguments: list[str], folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip

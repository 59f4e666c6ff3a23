"""Which module may import which: the arrows of the design, read from the source with ast."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"taskvine_core": ROOT / "taskvine_core", "vine_factory": ROOT / "factory" / "vine_factory"}

# part of taskvine_core -> the parts that it may import besides itself; lower layers first.
BOTTOM = frozenset({"errors", "records", "resources", "constants"})
CHANNEL = BOTTOM | {"model", "protocol", "secret", "tls"}
SERVICES = CHANNEL | {"dataplane", "catalog", "logs"}
ALLOWED: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "constants": frozenset(),
    "records": frozenset(),
    "resources": BOTTOM,
    "model": BOTTOM,
    "protocol": BOTTOM | {"model"},
    "secret": BOTTOM,
    "tls": BOTTOM | {"secret"},
    "dataplane": CHANNEL,
    "catalog": CHANNEL,
    "logs": CHANNEL,
    "manager": SERVICES,
    "worker": SERVICES,
    "sim": SERVICES | {"manager", "worker"},
    "factory_handle": BOTTOM,
    "dask": SERVICES | {"manager"},
    "hep": SERVICES | {"manager", "dask"},
    "tools": SERVICES | {"manager", "dask", "hep"},
}
# The factory starts workers and talks to managers; it never loads either.
FACTORY_MAY_IMPORT = SERVICES
# Parts that do no I/O whatever module is looked at.
PURE_PARTS = ("errors", "constants", "records", "resources", "model", "protocol")
FORBIDDEN_IN_PURE = frozenset(
    {
        "asyncio", "fcntl", "ftplib", "glob", "http", "multiprocessing", "os", "platform", "requests", "secrets",
        "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess", "tempfile",
        "threading", "time", "urllib", "uuid",
    }
)  # fmt: skip
EXCEPTIONS = {
    # Packing reuses one packer per thread; no thread is started and nothing is waited for.
    ("taskvine_core.protocol.codec", "threading"),
}


def modules() -> dict[str, Path]:
    """Every module of the project by dotted name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports anywhere, with the line; ``if TYPE_CHECKING`` blocks do not count."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno
        pending.extend(ast.iter_child_nodes(node))


def part(dotted: str) -> str:
    """``taskvine_core.manager.api`` -> ``manager``; the package itself is ''."""
    return dotted.split(".")[1] if "." in dotted else ""


def at(name: str, line: int, target: str) -> str:
    return f"{MODULES[name].relative_to(ROOT)}:{line}: {name} imports {target}"


def pure_modules() -> list[str]:
    """The pure parts, the cores, and whatever of the project a core pulls in when it is loaded."""
    pending = [name for name in MODULES if name.rpartition(".")[2] == "core" or part(name) in PURE_PARTS]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending.extend(target for target, _ in imports(name) if target in MODULES and "." in target)
    return sorted(seen)


def test_every_part_of_the_core_has_its_arrows_stated() -> None:
    parts = {part(name) for name in MODULES if name.startswith("taskvine_core.")}
    assert parts <= ALLOWED.keys(), f"add {parts - ALLOWED.keys()} to ALLOWED, and to docs/architecture.md"


def test_imports_point_only_down_the_layers() -> None:
    wrong = [
        at(name, line, target)
        for name in MODULES
        if name.startswith("taskvine_core.")
        for target, line in imports(name)
        if target.startswith("taskvine_core.") and part(target) not in ALLOWED[part(name)] | {part(name)}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_never_imports_the_factory() -> None:
    wrong = [
        at(name, line, target)
        for name in MODULES
        if name.startswith("taskvine_core")
        for target, line in imports(name)
        if target.split(".")[0] == "vine_factory"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_factory_knows_managers_only_by_their_messages() -> None:
    wrong = [
        at(name, line, target)
        for name in MODULES
        if name.startswith("vine_factory")
        for target, line in imports(name)
        if target.startswith("taskvine_core.") and part(target) not in FACTORY_MAY_IMPORT
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_the_three_cores() -> None:
    cores = {"taskvine_core.manager.core", "taskvine_core.worker.core", "vine_factory.core"}
    assert cores <= MODULES.keys(), "the purity tests would look at nothing"


@pytest.mark.parametrize("name", pure_modules())
def test_pure_modules_import_no_io_clock_or_environment(name: str) -> None:
    wrong = [
        at(name, line, target)
        for target, line in imports(name)
        if target.split(".")[0] in FORBIDDEN_IN_PURE and (name, target) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", pure_modules())
def test_pure_modules_use_only_seeded_randomness(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    used = [
        f"{MODULES[name].relative_to(ROOT)}:{node.lineno}: random.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
        and node.attr != "Random"
    ]
    used += [
        f"{MODULES[name].relative_to(ROOT)}:{node.lineno}: from random import {alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "random"
        for alias in node.names
        if alias.name != "Random"
    ]
    assert not used, "take a random.Random from the caller:\n" + "\n".join(used)


@pytest.mark.parametrize("name", pure_modules())
def test_pure_modules_do_not_open_files_or_print(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    used = [
        f"{MODULES[name].relative_to(ROOT)}:{node.lineno}: {node.func.id}()"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input")
    ]
    assert not used, "\n".join(used)


def test_record_classes_are_declared_with_our_own_namedtuple() -> None:
    users = [path for name, path in MODULES.items() if name != "taskvine_core.records"]
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: NamedTuple comes from taskvine_core.records"
        for path in users
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in ("typing", "collections")
        and {alias.name for alias in node.names} & {"NamedTuple", "namedtuple"}
    ]
    assert not wrong, "\n".join(wrong)

"""What an installed copy must offer: commands, imports, marker files, and nothing that needs an extra."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACTORY = ROOT / "factory" / "vine_factory"
COMMANDS = ("vine_worker", "vine_factory", "vine_status")
IMPORTS = ("taskvine_core", "vine_factory", "ndcctools.taskvine", "taskvine")
RUNTIME_REQUIREMENTS = {"msgpack", "cloudpickle", "jinja2", "tomli"}
# Everything that only an extra brings, or only the factory uses when it fills a template; importing the project must
# not load any of it.
EXTRA_MODULES = ("jinja2", "numpy", "uproot", "awkward", "matplotlib", "dask", "htcondor", "drmaa", "cryptography",
                 "psutil")
BUILD_TIMEOUT_S = 300
COMMAND_TIMEOUT_S = 60


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run to the end, with its words in the assertion when it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as ``python -m build`` makes it: by way of the source distribution, so that is tested as well."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, its run-time requirements and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "pip", "install", "-qq", "--disable-pip-version-check", wheel, cwd=folder)
    return folder / "bin"


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


@pytest.mark.slow
def test_the_wheel_ships_code_and_type_marks_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"taskvine_core/py.typed", "vine_factory/py.typed"} <= names
    shipped = {f"vine_factory/{path.relative_to(FACTORY)}" for path in (FACTORY / "templates").rglob("*.*")}
    shipped |= {f"vine_factory/site-configs/{path.name}" for path in (ROOT / "site-configs").glob("*.toml")}
    shipped |= {f"vine_factory/batch/systems/{path.name}" for path in (FACTORY / "batch" / "systems").glob("*.toml")}
    shipped.add("vine_factory/systemd/vine_factory@.service")
    assert shipped and shipped <= names
    (data,) = {name for name in names if ".data/" in name}
    assert data.endswith(".data/data/share/man/man1/vine_factory.1")
    tops = {top for name in names - {data} if not (top := name.split("/")[0]).endswith(".dist-info")}
    assert tops == {"taskvine_core", "vine_factory", "ndcctools", "taskvine"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_only_few_packages_are_required_and_every_extra_is_there(wheel: Path) -> None:
    text = metadata(wheel)
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert {re.split(r"[ >=<;]", line.split(": ")[1])[0] for line in required} == RUNTIME_REQUIREMENTS
    extras = set(re.findall(r"^Provides-Extra: (\S+)", text, re.MULTILINE))
    assert {"condor", "slurm", "drmaa", "dask", "hep", "plot", "dev", "demo"} <= extras
    for minor in (10, 11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in text


@pytest.mark.slow
@pytest.mark.parametrize("module", IMPORTS)
def test_a_clean_environment_imports_without_extras_or_warnings(clean: Path, module: str) -> None:
    # The old name "taskvine" says that it is old; nothing else may warn.
    script = (
        "import sys, warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    import {module}\n"
        f"loaded = [m for m in {EXTRA_MODULES!r} if m in sys.modules]\n"
        "assert not loaded, loaded\n"
        "print(sorted({w.category.__name__ for w in caught}))\n"
    )
    said = run(clean / "python", "-c", script, cwd=clean).stdout.strip()
    assert said == ("['DeprecationWarning']" if module == "taskvine" else "[]")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_clean_environment_has_the_command_with_help(clean: Path, command: str) -> None:
    assert command in run(clean / command, "--help", cwd=clean).stdout


@pytest.mark.slow
def test_the_old_names_are_the_same_module(clean: Path) -> None:
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import taskvine, ndcctools.taskvine as vine, taskvine_core\n"
        "assert taskvine is vine\n"
        "assert vine.Manager is taskvine_core.Manager and vine.PythonTask is taskvine_core.PythonTask\n"
    )
    run(clean / "python", "-c", script, cwd=clean)


@pytest.mark.slow
def test_an_editable_install_finds_all_packages(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--editable", ROOT, cwd=tmp_path)
    script = "import warnings; warnings.simplefilter('ignore')\n"
    script += f"import {', '.join(IMPORTS)}; print(taskvine_core.__file__)"
    assert run(python, "-c", script, cwd=tmp_path).stdout.startswith(str(ROOT))


def test_the_interpreter_search_prints_one_that_is_new_enough() -> None:
    found = run(ROOT / "scripts" / "find-python", cwd=ROOT).stdout.strip()
    run(found, "-c", "import sys; sys.exit(sys.version_info < (3, 10))", cwd=ROOT)


def test_make_says_which_python_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "make-venv", "no-such-python", tmp_path / "env", "."],
        capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no-such-python" in done.stderr and "3.10" in done.stderr


def test_make_refuses_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    # Answers like an interpreter of version 3.8: fails the version check, prints its version.
    old.write_text('#!/bin/sh\ncase "$2" in *exit*) exit 1;; *) echo 3.8.10;; esac\n')
    old.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts" / "make-venv", old, tmp_path / "env", "."],
        capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "3.8.10" in done.stderr and "3.10 or newer" in done.stderr
    assert not (tmp_path / "env").exists()

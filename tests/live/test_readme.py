"""The README is run: each Python block as a program, each shell block in a folder that has those programs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLISHED_PORT = "9123"
BLOCK_TIMEOUT_S = 60
SKIP_MARK = "<!-- not run by the tests:"
# A block of the README by a phrase that only it contains.
QUICKSTART, FUNCTIONS, NAMED = "grep {keyword}", "def square", 'name="my-analysis"'

pytestmark = pytest.mark.live


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language, without those that say why the tests do not run them."""
    found = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        before = README[: match.start()].rstrip().rsplit("\n", 1)[-1]
        if not before.startswith(SKIP_MARK):
            found.append(match[1])
    return found


def block(language: str, phrase: str) -> str:
    """The one block with this phrase."""
    (text,) = [text for text in blocks(language) if phrase in text]
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> str:
    """Stands for the README's port, which another program of this machine may be using."""
    return str(free_port())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in, which is also the home directory: no key and no manager of the person who runs the tests."""
    yield tmp_path
    for run_info in tmp_path.glob("vine-run-info"):
        shutil.rmtree(run_info)


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "VINE_", "TASKVINE_"))}
    return kept | {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(script: str, home: Path, extra: Mapping[str, str] | None = None) -> str:
    """Run a block as a person would who pastes it into bash; it must succeed and end by itself."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script], cwd=home, env=environment(home) | dict(extra or {}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=BLOCK_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said, _ = process.communicate()
        pytest.fail(f"did not end in {BLOCK_TIMEOUT_S} s:\n{script}\n--- said\n{said}")
    finally:
        # Whatever a block left in the background ends with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
    assert process.returncode == 0, f"exit {process.returncode}:\n{script}\n--- said\n{said}"
    return said


def test_the_quick_start_runs_against_a_worker_of_the_command_line(home: Path, port: str) -> None:
    program = block("python", QUICKSTART).replace(PUBLISHED_PORT, port)
    (home / "quickstart.py").write_text(program)
    said = shell(block("sh", "python quickstart.py").replace(PUBLISHED_PORT, port), home)
    assert f"Listening on port {port}" in said
    for keyword, lines in (("needle", 1), ("house", 2), ("water", 1)):
        assert f"grep {keyword} text.txt | wc -l: {lines}" in said


def test_the_program_with_its_own_factory_prints_the_sum(home: Path) -> None:
    (home / "functions.py").write_text(block("python", FUNCTIONS))
    assert "285" in shell("python functions.py", home).split()


def test_one_factory_serves_a_manager_that_it_finds_by_name(home: Path) -> None:
    (home / "named.py").write_text(block("python", NAMED))
    script = block("sh", "--batch local")
    # As a person would, who looks at it from another terminal.
    look = "until vine_status 2>&1 | grep my-analysis; do sleep 0.1; done\nvine_status --tasks >/dev/null\nwait\n"
    assert script.endswith("wait\n")
    said = shell(script.removesuffix("wait\n") + look, home)
    assert "my-analysis" in said
    assert {str(i) for i in range(20)} <= set(said.split())


@pytest.mark.parametrize(("batch", "fixture"), [("condor", "htcondor_pool"), ("slurm", "slurm_cluster")])
def test_the_same_program_gets_its_workers_from_a_real_batch_system(request: pytest.FixtureRequest, home: Path,
                                                                    batch: str, fixture: str) -> None:
    request.getfixturevalue(fixture)
    (home / "named.py").write_text(block("python", NAMED))
    said = shell(block("sh", f"--batch {batch} --min 0"), home)
    assert {str(i) for i in range(20)} <= set(said.split())
    assert "max: 20 -> 4 because the pool holds at most 4" in said and "all workers removed" in said


def test_the_one_file_worker_serves_through_the_batch_command_shown(home: Path, port: str) -> None:
    """With a stand-in for the batch system that runs one job at once: the job's command line is what is tested."""
    (home / "quickstart.py").write_text(block("python", QUICKSTART).replace(PUBLISHED_PORT, port))
    stand_in(home / "bin")
    script = "python quickstart.py &\n"
    script += "for i in $(seq 100); do test -e ~/.local/state/taskvine/secret && break; sleep 0.1; done\n"
    script += block("sh", "taskvine_core.worker.zipapp")
    script += block("sh", "sbatch --array").replace(PUBLISHED_PORT, port)
    said = shell(f"PATH=$HOME/bin:$PATH\nhostname() {{ echo localhost; }}\n{script}\nwait\n", home)
    assert "grep house text.txt | wc -l: 2" in said


def test_the_site_file_named_in_the_readme_is_there() -> None:
    (named,) = set(re.findall(r"vine_factory .*-C (\S+)", block("sh", "vine_factory check")))
    assert (ROOT / named).is_file()


def stand_in(folder: Path) -> None:
    """A `sbatch` that starts one job in the background with the host's plain Python."""
    folder.mkdir()
    python = 'python3() { env -u PYTHONPATH -i HOME="$HOME" PATH=/usr/local/bin:/usr/bin:/bin "$REAL" -S "$@"; }\n'
    real = f"REAL={sys.base_prefix}/bin/python3\n"
    (folder / "sbatch").write_text(f"#!/usr/bin/env bash\n{real}{python}eval \"${{@: -1}} --single-shot\" &\n")
    (folder / "sbatch").chmod(0o755)


@pytest.mark.parametrize("name", ["quickstart.py", "wordcount.py"])
def test_the_examples_named_in_the_readme_run(home: Path, port: str, name: str) -> None:
    example = ROOT / "examples" / name
    assert name in README
    if name == "quickstart.py":
        said = shell(f"python {example} {port} &\nvine_worker --single-shot localhost {port}\nwait", home)
        assert "needle: 2 lines" in said and "water: 2 lines" in said
    else:
        (home / "text").write_text("to be or not to be\n")
        said = shell(f"python {example} text", home)
        assert re.search(r"2 to\b", said) and re.search(r"2 be\b", said)


def test_every_block_is_run_or_says_why_not() -> None:
    run = [QUICKSTART, FUNCTIONS, NAMED]
    assert len(blocks("python")) == len(run) and all(block("python", phrase) for phrase in run)
    run = ["python quickstart.py", "--batch local", "--batch condor --min 0", "--batch slurm --min 0",
           "taskvine_core.worker.zipapp", "sbatch --array"]
    run.append("vine_factory check")  # needs an HTCondor: tests/unit/test_site_configs.py checks its file offline
    assert "`vine_status`" in README and "`vine_status --tasks`" in README
    assert len(blocks("sh")) == len(run) and all(block("sh", phrase) for phrase in run)
    known = {"python", "sh", ""}
    assert set(re.findall(r"^```(\w*)$", README, re.MULTILINE)) <= known


def test_links_and_make_targets_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z][a-z-]+)\b", README):
        if target in ("demo", "test"):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)

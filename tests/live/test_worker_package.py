"""A worker in an environment package: a real environment, packed, and a module that exists only inside of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from api_support import PATIENCE_S, ROOT, Cluster, drain, run, until

import taskvine_core as vine

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment whose Python has a module that the one outside does not have."""
    prefix = tmp_path_factory.mktemp("packed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True, timeout=PATIENCE_S)
    [site] = prefix.glob("lib/python3*/site-packages")
    (site / "only_inside.py").write_text("ANSWER = 42\n")
    script = prefix / "bin" / "run_in_env"
    script.write_text('#!/bin/sh\nexport FROM_ACTIVATION="set by the package"\nexec "$@"\n')
    script.chmod(0o755)
    return prefix


@pytest.fixture(scope="module")
def archive(environment: Path) -> Path:
    path = environment.parent / "environment.tar.gz"
    with tarfile.open(path, "w:gz") as members:
        for item in sorted(environment.iterdir()):
            members.add(item, item.name)
    return path


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers of this test unpack."""
    made = tmp_path / "scratch"
    made.mkdir()
    for name in ("CCTOOLS_TEMP", "_CONDOR_SCRATCH_DIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(made))
    return made


def unpacked(scratch: Path) -> list[Path]:
    return [path for path in scratch.glob("vine-environment-*") if path.is_dir()]


def look():  # type: ignore[no-untyped-def]
    def inside():  # type: ignore[no-untyped-def]
        import only_inside

        return only_inside.ANSWER, sys.prefix, os.environ.get("FROM_ACTIVATION"), os.environ.get("VINE_WORKER_PACKAGE")
    return inside


def test_tasks_run_in_the_package_and_two_workers_share_one_copy_that_the_last_removes(
    cluster: Cluster, archive: Path, scratch: Path
) -> None:
    manager = cluster.manager()
    workers = [cluster.worker(manager, "--poncho-env", str(archive), cores=1) for _ in range(2)]
    [directory] = unpacked(scratch)
    tasks = [vine.PythonTask(look()) for _ in range(4)]
    for task in tasks:
        manager.submit(task)
    assert len(list(drain(manager, cluster.log))) == 4
    assert {task.output for task in tasks} == {(42, str(directory), "set by the package", None)}, cluster.log()
    found = run(manager, vine.Task("command -v python"), cluster.log)
    assert found.std_output.strip() == f"{directory}/bin/python"
    workers[0].terminate()
    assert workers[0].wait(PATIENCE_S) == 0
    assert unpacked(scratch) == [directory]
    workers[1].terminate()
    assert workers[1].wait(PATIENCE_S) == 0
    assert list(scratch.glob("vine-environment-*")) == []


def test_the_worker_inside_is_the_process_that_was_started(cluster: Cluster, archive: Path) -> None:
    manager = cluster.manager()
    worker = cluster.worker(manager, "--poncho-env", str(archive))
    assert run(manager, vine.Task("echo $PPID"), cluster.log).std_output.strip() == str(worker.pid)


def test_what_a_killed_worker_left_half_unpacked_is_unpacked_anew(
    cluster: Cluster, archive: Path, scratch: Path
) -> None:
    manager = cluster.manager()
    first = cluster.worker(manager, "--poncho-env", str(archive))
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE_S)
    [directory] = unpacked(scratch)
    (directory / ".vine-unpacked").unlink()
    shutil.rmtree(directory / "lib")
    cluster.worker(manager, "--poncho-env", str(archive))
    task = run(manager, vine.PythonTask(look()), cluster.log)
    assert task.output[:2] == (42, str(directory)), cluster.log()


def test_a_package_that_was_replaced_under_its_name_is_not_taken_for_the_old_one(
    cluster: Cluster, environment: Path, scratch: Path, tmp_path: Path
) -> None:
    manager = cluster.manager()
    path = tmp_path / "mine.tar"
    for answer in (42, 43):
        copy = shutil.copytree(environment, tmp_path / f"copy-{answer}", symlinks=True)
        [module] = copy.glob("lib/python3*/site-packages/only_inside.py")
        module.write_text(f"ANSWER = {answer}\n")
        with tarfile.open(path, "w") as members:
            members.add(copy, ".")
        cluster.worker(manager, "--poncho-env", str(path), cores=1)
    assert len(unpacked(scratch)) == 2


def refused(archive: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "taskvine_core.worker.cli", "--poncho-env", str(archive), "localhost",
                           "9"], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1, done
    return done.stderr


def test_what_is_no_environment_package_is_refused_with_its_name(scratch: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere.tar.gz")
    (text := tmp_path / "text.tar.gz").write_text("not a tar file")
    assert f"environment package {text} cannot be unpacked" in refused(text)
    with tarfile.open(empty := tmp_path / "empty.tar.gz", "w:gz") as members:
        members.add(text, "bin/readme")
    assert f"{empty} has no bin/python" in refused(empty)
    with tarfile.open(broken := tmp_path / "broken.tar.gz", "w:gz") as members:
        (script := tmp_path / "run_in_env").write_text("#!/bin/sh\necho no licence today >&2; exit 3\n")
        script.chmod(0o755)
        members.add(script, "bin/run_in_env")
        members.add(os.path.realpath(sys.executable), "bin/python")
    assert f"{broken} cannot be activated: no licence today" in refused(broken)


def test_a_worker_that_came_too_early_for_the_manager_removes_the_package_too(scratch: Path, archive: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "taskvine_core.worker.cli", "--poncho-env", str(archive),
                           "--connect-timeout", "0.5", "localhost", "9"], capture_output=True, text=True,
                          timeout=PATIENCE_S, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    until(lambda: list(scratch.glob("vine-environment-*")) == [], f"nothing is left\n{done}")


def test_a_factorys_local_workers_run_in_the_package(cluster: Cluster, archive: Path, scratch: Path) -> None:
    manager = cluster.manager()
    workers = vine.Factory("local", manager=manager)
    workers.max_workers, workers.min_workers, workers.cores, workers.python_env = 1, 1, 1, str(archive)
    with workers:
        task = run(manager, vine.PythonTask(look()), cluster.log)
    assert task.output[0] == 42 and Path(task.output[1]).parent == scratch
    until(lambda: list(scratch.glob("vine-environment-*")) == [], "nothing is left")

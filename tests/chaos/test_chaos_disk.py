"""Damaged files and full disks: no task sees a bad input, no output is lost in silence."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos_support import MB, Cluster, Worker, wait_until

pytestmark = pytest.mark.live

SMALL_DISK_MB = 64
#: The margin a worker keeps free is 16 MB, so this cannot arrive on a small disk.
TOO_LARGE_MB = 56


def damage(path: Path, how: str) -> None:
    """Spoil an object in a worker's cache behind its back."""
    path.chmod(0o644)
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        path.unlink()


def cached(worker: Worker, kind: str) -> Path:
    found = [path for path in worker.cache.glob(f"{kind}-*") if not path.name.endswith(".meta")]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("how", ["truncated", "changed", "deleted"])
def test_a_cached_input_that_was_damaged_is_fetched_again(cluster: Cluster, tmp_path: Path, how: str) -> None:
    worker = cluster.start()
    source = tmp_path / "source"
    source.write_bytes(os.urandom(MB))
    file = cluster.manager.declare_file(source, cache=True)
    first = cluster.run("sha256sum < in", inputs={"in": file})
    damage(cached(worker, "file"), how)
    second = cluster.run("sha256sum < in", inputs={"in": file})
    assert second.successful() and second.output == first.output


@pytest.mark.parametrize("how", ["truncated", "changed", "deleted"])
def test_a_temp_whose_only_copy_was_damaged_is_made_again(cluster: Cluster, how: str) -> None:
    worker = cluster.start()
    temp = cluster.manager.declare_temp()
    assert cluster.run("seq 100000 > out", outputs={"out": temp}).successful()
    damage(cached(worker, "temp"), how)
    task = cluster.run("tail -n 1 in", inputs={"in": temp})
    assert task.successful() and task.output == "100000\n"
    assert cluster.stat("tasks_recovery") == 1
    assert len(cluster.returned) == 2


@pytest.mark.parametrize("how", ["truncated", "changed", "deleted"])
def test_a_peer_never_takes_over_a_damaged_copy(cluster: Cluster, how: str) -> None:
    holder, reader = cluster.start_many(2)
    temp = cluster.manager.declare_temp()
    assert cluster.run("seq 100000 > out; echo ok", at=holder, outputs={"out": temp}).successful()
    # The recovery task may run at either worker: it inherits the producer's feature.
    damage(cached(holder, "temp"), how)
    task = cluster.run("tail -n 1 in", at=reader, inputs={"in": temp})
    assert task.successful() and task.output == "100000\n"


def test_a_damaged_output_is_not_uploaded(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.start()
    temp = cluster.manager.declare_temp()
    assert cluster.run("seq 100000 > out", outputs={"out": temp}).successful()
    damage(cached(worker, "temp"), "changed")
    text = cluster.manager.fetch_file(temp)
    assert text is None or text.endswith("\n100000\n")


def test_tasks_whose_input_does_not_fit_on_one_worker_run_on_another(
        cluster: Cluster, small_disk: Callable[[str, int], Path], tmp_path: Path) -> None:
    small_disk("full", SMALL_DISK_MB)
    full = cluster.start(name="full")
    source = tmp_path / "source"
    source.write_bytes(b"x" * TOO_LARGE_MB * MB)
    file = cluster.manager.declare_file(source)
    tasks = [cluster.task("stat -c %s in", inputs={"in": file}) for _ in range(3)]
    wait_until(lambda: cluster.core(lambda core: any(task.forsaken for task in core.tasks.values())),
               "the small worker could not take it")
    cluster.start(name="roomy")
    cluster.finish()
    assert all(task.successful() and task.output == f"{TOO_LARGE_MB * MB}\n" for task in tasks)
    assert full.process.poll() is None
    assert cluster.run("echo still of use", at=full).output == "still of use\n"


def test_a_task_that_fills_the_disk_of_its_worker_fails_and_the_worker_goes_on(
        cluster: Cluster, small_disk: Callable[[str, int], Path]) -> None:
    small_disk("full", SMALL_DISK_MB)
    full = cluster.start(name="full")
    task = cluster.run("head -c 1G /dev/zero > out")
    assert not task.successful()
    assert cluster.run("echo room again > x; cat x").output == "room again\n"
    assert full.process.poll() is None


@pytest.mark.parametrize("size", [1000, 8 * MB], ids=["inline", "large"])
def test_an_output_for_which_the_manager_has_no_room_is_an_output_transfer_error(
        cluster: Cluster, small_disk: Callable[[str, int], Path], size: int) -> None:
    place = small_disk("results", 2)
    (place / "filler").write_bytes(b"f" * (2 * MB))
    cluster.start()
    file = cluster.manager.declare_file(place / "out")
    task = cluster.run(f"head -c {size} /dev/zero > out", outputs={"out": file})
    assert task.result == "output transfer error" and not task.successful()
    assert [path.name for path in place.iterdir()] == ["filler"]
    (place / "filler").unlink()
    again = cluster.run("echo fits > out", outputs={"out": cluster.manager.declare_file(place / "out2")})
    assert again.successful() and (place / "out2").read_text() == "fits\n"


@pytest.mark.parametrize("size", [1000, 8 * MB], ids=["inline", "large"])
def test_an_output_below_something_that_is_no_directory_is_an_output_transfer_error(
        cluster: Cluster, tmp_path: Path, size: int) -> None:
    (tmp_path / "plain").write_text("a file")
    cluster.start()
    file = cluster.manager.declare_file(tmp_path / "plain" / "out")
    task = cluster.run(f"head -c {size} /dev/zero > out", outputs={"out": file})
    assert task.result == "output transfer error" and not task.successful()


@pytest.mark.parametrize("size", [1000, 8 * MB], ids=["inline", "large"])
def test_an_output_into_a_directory_that_may_not_be_written_is_an_output_transfer_error(
        cluster: Cluster, size: int) -> None:
    cluster.start()
    place = Path("/proc/self/vine-chaos")  # read-only for root, too
    file = cluster.manager.declare_file(place / "out")
    task = cluster.run(f"head -c {size} /dev/zero > out", outputs={"out": file})
    assert task.result == "output transfer error" and not task.successful()
    assert task._outcome is not None and f"{place}/out cannot be written" in task._outcome.error
    assert cluster.run("echo on").output == "on\n"


def test_outputs_keep_execute_permission_and_replace_what_was_there(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start()
    path = tmp_path / "script"
    path.write_text("old")
    file = cluster.manager.declare_file(path)
    assert cluster.run("echo '#!/bin/sh' > out; chmod 755 out", outputs={"out": file}).successful()
    assert path.read_text() == "#!/bin/sh\n" and stat.S_IMODE(path.stat().st_mode) == 0o755

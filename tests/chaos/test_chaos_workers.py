"""Workers that die, freeze or leave at the worst moment: every task comes back once, with the right answer."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos_support import MB, Cluster, Worker, wait_until

import taskvine_core as vine
from taskvine_core.manager.records import TO_MANAGER

pytestmark = pytest.mark.live

#: Large enough that a transfer over loopback is still under way when a test looks.
LARGE_MB = 192
MAKE_LARGE = f"head -c {LARGE_MB * MB} /dev/zero > out"


def transfers(cluster: Cluster, **wanted: int) -> int:
    """How many transfers with these attributes the manager believes to be under way."""
    return cluster.core(lambda core: sum(
        all(getattr(t, name) == value for name, value in wanted.items()) for t in core.books.transfers.values()))


def bytes_in(directory: Path) -> int:
    """Bytes on disk below a directory that changes meanwhile."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def assert_each_once(cluster: Cluster, count: int) -> None:
    assert len(cluster.returned) == count and set(cluster.returned.values()) == {1}


# ------------------------------------------------------------------------------------------- killed


def test_tasks_of_a_killed_worker_run_again_elsewhere_and_return_once(cluster: Cluster) -> None:
    victim = cluster.start("--cores", "2")
    tasks = [cluster.task(f"sleep 0.2; echo {n}", tag=str(n)) for n in range(8)]
    wait_until(lambda: cluster.stat("tasks_running") >= 2, "two tasks run")
    victim.kill()
    cluster.start("--cores", "4")
    done = cluster.finish()
    assert sorted(task.output.strip() for task in done) == sorted(str(n) for n in range(8))
    assert all(task.successful() for task in tasks)
    assert_each_once(cluster, 8)
    wait_until(lambda: cluster.stat("workers_lost") == 1, "the loss is counted")


def test_a_task_does_not_outlive_its_killed_worker(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.start()
    marker = tmp_path / "pid"
    cluster.task(f"echo $$ > {marker}.part; mv {marker}.part {marker}; exec sleep 61", at=worker)
    wait_until(marker.exists, "the task runs")
    stat = Path(f"/proc/{int(marker.read_text())}/stat")
    worker.kill()
    wait_until(lambda: not stat.exists() or ") Z " in stat.read_text(), "the task ends with its worker", 5)
    cluster.manager.cancel_all()
    assert cluster.finish()[0].result == "cancelled"


def start_large_copy(cluster: Cluster) -> tuple[Worker, Worker, vine.Task]:
    """A large temp at one worker, and a task at another one that has begun to receive it."""
    source, reader = cluster.start(), cluster.start()
    temp = cluster.manager.declare_temp()
    assert cluster.run(MAKE_LARGE, at=source, outputs={"out": temp}).successful()
    task = vine.Task("stat -c %s in")
    task.add_input(temp, "in")
    task.set_cores(1)
    task.add_feature("reads")
    # Only a third worker may read: whoever is killed, the task can go on.
    cluster.workers.remove(reader)
    reader.close()
    reader = cluster.start("--feature", "reads", name="reader")
    cluster.manager.submit(task)
    wait_until(lambda: bytes_in(reader.incoming) > MB, "bytes arrive at the reader")
    return source, reader, task


@pytest.mark.slow
def test_a_temp_whose_only_holder_dies_while_sending_is_made_again(cluster: Cluster) -> None:
    source, _, task = start_large_copy(cluster)
    source.kill()
    cluster.start("--feature", source.name, name=source.name + "b")
    cluster.finish()
    assert task.successful() and task.output.strip() == str(LARGE_MB * MB)
    assert_each_once(cluster, 2)


@pytest.mark.slow
def test_a_worker_killed_while_receiving_costs_nothing_but_the_transfer(cluster: Cluster) -> None:
    source, reader, task = start_large_copy(cluster)
    reader.kill()
    cluster.start("--feature", "reads", name="second")
    cluster.finish()
    assert task.successful() and task.output.strip() == str(LARGE_MB * MB)
    assert source.process.poll() is None and cluster.stat("tasks_recovery") == 0


def test_an_output_whose_worker_dies_while_uploading_is_made_again(cluster: Cluster, tmp_path: Path) -> None:
    victim = cluster.start("--feature", "writes")
    path = tmp_path / "result"
    file = cluster.manager.declare_file(path)
    task = vine.Task(MAKE_LARGE)
    task.add_output(file, "out")
    task.add_feature("writes")
    cluster.manager.submit(task)
    wait_until(lambda: any(p.lstat().st_blocks for p in tmp_path.glob("result.vine-part-*")), "the upload has begun")
    victim.kill()
    assert not path.exists()
    cluster.start("--feature", "writes")
    cluster.finish()
    assert task.successful(), (task.result, task.exit_code, task.std_output)
    assert path.stat().st_size == LARGE_MB * MB
    assert not list(tmp_path.glob("*.vine-part-*"))
    assert_each_once(cluster, 1)


@pytest.mark.slow
def test_a_dag_of_temps_survives_the_loss_of_a_third_of_its_workers_at_once(cluster: Cluster) -> None:
    width = depth = 8
    workers = cluster.start_many(9)
    manager = cluster.manager
    values = list(range(width))
    layer: list[Any] = []
    for n in values:
        temp = manager.declare_temp()
        cluster.task(f"echo {n} > out", outputs={"out": temp})
        layer.append(temp)
    for _ in range(depth - 1):
        above, layer = layer, []
        for n in range(width):
            temp = manager.declare_temp()
            cluster.task("sleep 0.1; echo $(($(cat a) + $(cat b) + 1)) > out",
                         inputs={"a": above[n], "b": above[(n + 1) % width]}, outputs={"out": temp})
            layer.append(temp)
        values = [values[n] + values[(n + 1) % width] + 1 for n in range(width)]
    finals = [cluster.task("cat in", inputs={"in": temp}) for temp in layer]
    wait_until(lambda: cluster.wait() and len(cluster.returned) >= width * depth // 2, "half of it is done")
    for worker in workers[:3]:
        worker.process.kill()
    cluster.finish(60)
    assert [int(task.output) for task in finals] == values
    assert_each_once(cluster, width * depth + width)
    wait_until(lambda: cluster.stat("workers_lost") == 3, "three are lost")


@pytest.mark.slow
def test_a_tree_of_python_tasks_gives_its_sum_while_workers_come_and_are_killed(cluster: Cluster) -> None:
    def add_slowly(*numbers: Any) -> Any:
        """Sum of numbers and of pickled numbers in files; takes long enough to be killed in the middle."""
        import pickle
        import time
        from pathlib import Path

        time.sleep(0.05)
        return sum(pickle.loads(Path(n).read_bytes()) if isinstance(n, str) else n for n in numbers)

    leaves = 64
    manager = cluster.manager
    victims = cluster.start_many(4)
    layer: list[vine.PythonTask] = []
    for n in range(leaves):
        leaf = vine.PythonTask(add_slowly, n)
        layer.append(leaf)
    submitted = 0
    while layer:
        for task in layer:
            task.set_cores(1)
            if len(layer) > 1:
                task.enable_temp_output()
            manager.submit(task)
            submitted += 1
        if len(layer) == 1:
            break
        pairs = list(zip(layer[::2], layer[1::2], strict=True))
        layer = []
        for left, right in pairs:
            parent = vine.PythonTask(add_slowly, "left", "right")
            assert left.output_file is not None and right.output_file is not None
            parent.add_input(left.output_file, "left")
            parent.add_input(right.output_file, "right")
            layer.append(parent)
    top = layer[0]
    for victim in victims:
        seen = len(cluster.returned)
        wait_until(lambda seen=seen: cluster.wait() and len(cluster.returned) >= seen + submitted // 6, "work goes on")
        cluster.start(join=False)
        victim.kill()
    cluster.finish(60)
    assert top.output == sum(range(leaves)), [task.std_output for task in layer]
    assert_each_once(cluster, submitted)


# ------------------------------------------------------------------------------------------- frozen


def test_a_worker_stopped_past_the_keepalive_is_given_up_and_welcome_again(cluster: Cluster) -> None:
    cluster.manager.tune("keepalive-interval", 1)
    cluster.manager.tune("keepalive-timeout", 1)
    frozen = cluster.start(name="frozen")
    task = cluster.task("sleep 0.3; echo done")
    wait_until(lambda: cluster.stat("tasks_running") == 1, "it runs")
    frozen.signal(signal.SIGSTOP)
    cluster.start()
    assert cluster.wait() is task and task.output == "done\n"
    wait_until(lambda: cluster.key(frozen) is None, "the frozen worker is given up")
    frozen.signal(signal.SIGCONT)
    wait_until(lambda: cluster.key(frozen) is not None, "it comes back")
    assert cluster.run("echo back", at=frozen).output == "back\n"
    assert_each_once(cluster, 2)


# ------------------------------------------------------------------------------------------- leaving


def one_copy(cluster: Cluster, *options: str) -> tuple[Worker, Any]:
    """A worker that holds the only copy of a temp somebody still needs."""
    holder = cluster.start(*options, name="holder")
    temp = cluster.manager.declare_temp()
    assert cluster.run("echo precious > out", at=holder, outputs={"out": temp}).successful()
    return holder, temp


def check_moved(cluster: Cluster, holder: Worker, temp: Any) -> None:
    assert holder.process.wait(30) == 0, holder.output()
    assert cluster.run("cat in", inputs={"in": temp}).output == "precious\n"
    assert cluster.stat("tasks_recovery") == 0


def test_a_worker_told_to_leave_first_hands_on_what_only_it_holds(cluster: Cluster) -> None:
    holder, temp = one_copy(cluster)
    cluster.start()
    holder.signal(signal.SIGTERM)
    check_moved(cluster, holder, temp)


@pytest.mark.slow
def test_a_worker_at_the_end_of_its_wall_time_first_hands_on_what_only_it_holds(cluster: Cluster) -> None:
    cluster.start()
    holder, temp = one_copy(cluster, "--wall-time", "20")
    # The margin before the end is a twentieth of the wall time; the worker drains then by itself.
    check_moved(cluster, holder, temp)


def test_a_running_task_is_finished_before_its_worker_leaves(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.start()
    started = tmp_path / "started"  # sent is not started: a task still on its way is handed back instead
    task = cluster.task(f"touch {started}; sleep 1; echo finished", at=worker)
    wait_until(started.exists, "it runs")
    worker.signal(signal.SIGTERM)
    assert cluster.wait() is task and task.output == "finished\n"
    assert worker.process.wait(20) == 0
    assert cluster.stat("tasks_dispatched") == 1


def test_a_temp_with_two_replicas_survives_its_holder_without_recovery(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.manager.tune("temp-replica-count", 2)
    cluster.start_many(3)
    temp = cluster.manager.declare_temp()
    assert cluster.run("echo twice > out", outputs={"out": temp}).successful()
    wait_until(lambda: cluster.manager.get_file_replica_count(temp) == 2, "a second copy")
    holder = next(w for w in cluster.workers if (w.cache / temp.cached_name).exists())
    holder.kill()
    wait_until(lambda: cluster.stat("workers_lost") == 1, "the loss is noticed")
    wait_until(lambda: cluster.manager.get_file_replica_count(temp) == 2, "the second copy is replaced")
    assert cluster.run("cat in", inputs={"in": temp}).output == "twice\n"
    assert cluster.stat("tasks_recovery") == 0


def test_an_upload_order_to_a_frozen_worker_does_not_hold_up_others(cluster: Cluster, tmp_path: Path) -> None:
    cluster.manager.tune("keepalive-interval", 1)
    cluster.manager.tune("keepalive-timeout", 1)
    frozen = cluster.start()
    other = cluster.start()
    file = cluster.manager.declare_file(tmp_path / "late")
    cluster.task(MAKE_LARGE, at=frozen, outputs={"out": file}, tag="late")
    wait_until(lambda: transfers(cluster, source=TO_MANAGER) == 1, "the upload is ordered")
    frozen.signal(signal.SIGSTOP)
    for _ in range(20):
        cluster.task("true", at=other, tag="others")
    for _ in range(20):
        assert cluster.wait().tag == "others" or cluster.returned
    frozen.signal(signal.SIGCONT)
    cluster.finish()
    assert (tmp_path / "late").stat().st_size == LARGE_MB * MB
    assert_each_once(cluster, 21)

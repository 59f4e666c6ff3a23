"""Chains of tasks sent together, with real workers (`task-groups`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_support import Cluster, drain, until

import taskvine_core as vine

pytestmark = pytest.mark.live


def counting(manager: vine.Manager, length: int, command: str = "echo $(($(cat in) + 1)) > out") -> list[vine.Task]:
    """A chain of tasks that count; the last one prints."""
    tasks, before = [], manager.declare_buffer("0")
    for number in range(length):
        last = number == length - 1
        task = vine.Task("cat in" if last else command)
        task.set_cores(1)
        task.add_input(before, "in")
        if not last:
            before = manager.declare_temp()
            task.add_output(before, "out")
        manager.submit(task)
        tasks.append(task)
    return tasks


def test_chains_run_through_in_order_on_few_cores(cluster: Cluster) -> None:
    manager = cluster.manager()
    assert manager.tune("task-groups", 1) == 0
    for _ in range(2):
        cluster.worker(manager, cores=1)
    ends = [counting(manager, 25)[-1] for _ in range(3)]
    assert sum(task.successful() for task in drain(manager, cluster.log)) == 75
    assert [task.output.strip() for task in ends] == ["24"] * 3


def test_a_killed_workers_chain_goes_on_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    manager = cluster.manager()
    manager.tune("task-groups", 1)
    worker = cluster.worker(manager, cores=1)
    tasks = counting(manager, 12, f"echo $(($(cat in) + 1)) > out; echo >> {tmp_path}/steps; sleep 0.1")
    until((tmp_path / "steps").exists, "the first step was made")
    worker.kill()
    cluster.worker(manager, cores=1, wait=False)
    assert sum(task.successful() for task in drain(manager, cluster.log)) == 12
    assert tasks[-1].output.strip() == "11"


def test_a_step_that_makes_nothing_ends_what_follows_as_it_does_without_groups(cluster: Cluster) -> None:
    found = []
    for groups in (0, 1):
        manager = cluster.manager()
        manager.tune("task-groups", groups)
        cluster.worker(manager, cores=1)
        tasks = counting(manager, 4, '[ "$(cat in)" = 1 ] || echo $(($(cat in) + 1)) > out')
        list(drain(manager, cluster.log))
        found.append([(task.result, task.exit_code) for task in tasks])
        manager.close()
    assert found[0] == found[1] and found[0][0] == ("success", 0) and found[0][1][0] == "output missing"


def test_python_tasks_pass_on_what_stays_at_the_worker(cluster: Cluster) -> None:
    manager = cluster.manager()
    manager.tune("task-groups", 1)
    cluster.worker(manager, cores=1)

    def add_one(name: str) -> int:
        import cloudpickle

        with open(name, "rb") as file:
            return int(cloudpickle.load(file)) + 1

    first = vine.PythonTask(lambda: 1)
    tasks = [first]
    for _ in range(10):
        tasks[-1].enable_temp_output()
        manager.submit(tasks[-1])
        follower = vine.PythonTask(add_one, "before")
        follower.add_input(tasks[-1].output_file, "before")
        tasks.append(follower)
    manager.submit(tasks[-1])
    assert sum(task.successful() for task in drain(manager, cluster.log)) == 11
    assert tasks[-1].output == 11

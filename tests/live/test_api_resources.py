"""Allocations and hungry() as a program sees them with a real worker (reference, sections 9.7, 10.2 and 24.3)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from api_support import drain, run, until

import taskvine_core as vine

pytestmark = pytest.mark.live

CORES, MEMORY, DISK, GPUS = 4, 2000, 2000, 8


@pytest.fixture(scope="module")
def cluster(module_cluster):
    return module_cluster


@pytest.fixture(scope="module")
def manager(cluster):
    made = cluster.manager()
    cluster.worker(made, "--gpus", str(GPUS), cores=CORES, memory=MEMORY, disk=DISK)
    return made


CASES = [
    (0, "fixed", {"cores": 1, "memory": 2, "disk": 3, "gpus": 4}, {}, (1, 2, 3, 4)),
    (0, "fixed", {"cores": 1, "memory": 2, "disk": 3}, {}, (1, 2, 3, 0)),
    (0, "fixed", {"gpus": 4, "memory": 2, "disk": 3}, {}, (0, 2, 3, 4)),
    (0, "fixed", {"cores": 0, "memory": 0, "disk": 0, "gpus": 0}, {}, (CORES, MEMORY, DISK * 3 // 4, 0)),
    (1, "fixed", {"memory": MEMORY // 2}, {}, (CORES // 2, MEMORY // 2, DISK // 2 * 3 // 4, 0)),
    (1, "fixed", {"memory": MEMORY // 2}, {"cores": 3, "gpus": 2}, (4, MEMORY, DISK * 3 // 4, 2)),
    (1, "fixed", {"cores": CORES}, {}, (CORES, MEMORY, DISK * 3 // 4, 0)),
    (1, "min_waste", {}, {}, (CORES, MEMORY, DISK * 3 // 4, 0)),
    (1, "fixed", {"cores": 1}, {}, (1, MEMORY // CORES, DISK // CORES * 3 // 4, 0)),
    (1, "greedy bucketing", {}, {}, (2, MEMORY // 2, DISK // 2, 0)),
    (1, "exhaustive bucketing", {}, {}, (2, MEMORY // 2, DISK // 2, 0)),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_allocations_are_the_published_ones(manager, number):
    proportional, mode, most, least, expected = CASES[number]
    category = f"case-{number}"
    manager.tune("force-proportional-resources", proportional)
    manager.set_category_mode(category, mode)
    manager.set_category_resources_max(category, most)
    manager.set_category_resources_min(category, least)
    task = run(manager, vine.Task("echo $CORES $MEMORY $DISK $GPUS", category=category))
    given = task.resources_allocated
    assert (given.cores, given.memory, given.disk, given.gpus) == expected
    assert task.std_output.split() == [str(amount) for amount in expected]


def test_values_of_the_task_are_exact(manager):
    manager.tune("force-proportional-resources", 1)
    task = run(manager, vine.Task("true", category="exact", cores=3, memory=7, disk=11, gpus=1))
    given = task.resources_allocated
    assert (given.cores, given.memory, given.disk, given.gpus) == (3, 7, 11, 1)


def test_hungry_follows_the_published_formula(cluster):
    manager = cluster.manager()

    def hungry(minimum=None, factor=None):
        if minimum is not None:
            manager.tune("hungry-minimum", minimum)
        if factor is not None:
            manager.tune("hungry-minimum-factor", factor)
        return manager.hungry()

    def submit(**values):
        task = vine.Task("sleep 120", **values)
        manager.submit(task)
        return task

    def running(count):
        def reached():
            manager.wait(0.05)
            return manager.stats.tasks_running == count
        until(reached, f"{count} tasks run", lambda: str(manager.stats))

    assert (hungry(11), hungry(2)) == (11, 2)
    first = submit()
    assert hungry() == 1
    second = submit()
    assert hungry() == 0
    cluster.worker(manager, cores=12, memory=1200, disk=1200)
    running(1)
    assert (hungry(2), hungry(5)) == (1, 4)
    manager.cancel_all()
    assert {t.id for t in drain(manager)} == {first.id, second.id}
    running(0)
    assert hungry(5, 2) == 24
    one = submit(cores=1)
    running(1)
    assert (hungry(factor=2), hungry(factor=3)) == (23, 35)
    eleven = submit(cores=11)
    running(2)
    assert hungry(factor=3) == 5
    for task in (one, eleven):
        assert manager.cancel_by_task_id(task.id) == 1
    list(drain(manager))
    memory = submit(cores=1, memory=200)
    running(1)
    assert hungry(factor=3) == 17
    manager.cancel_by_task_id(memory.id)
    list(drain(manager))
    submit(cores=1, memory=1, disk=1)
    submit(cores=11, memory=1, disk=1)
    running(2)
    submit(cores=2, memory=1, disk=1)
    assert hungry(factor=10) == 53
    manager.cancel_all()
    assert len(list(drain(manager))) == 3


def test_workers_are_summarized(manager):
    [group] = manager.summarize_workers()
    assert group == {"workers": 1, "cores": CORES, "gpus": GPUS, "memory": 1792, "disk": 1792}


def test_stats_of_a_category_count_its_tasks(manager):
    run(manager, vine.Task("true", category="counted"))
    run(manager, vine.Task("false", category="counted"))
    manager.submit(vine.Task("true", category="counted", features="nobody has it"))
    stats = manager.stats_category("counted")
    assert (stats.tasks_submitted, stats.tasks_done, stats.tasks_successful, stats.tasks_waiting) == (3, 2, 1, 1)
    assert manager.cancel_by_category("counted") == 1 and len(list(drain(manager))) == 1
    assert manager.stats_category("other").tasks_submitted == 0


def test_draining_a_host_and_back(manager):
    host = manager.status("workers")[0]["hostname"]
    assert manager.set_draining_by_hostname("nowhere.example") == 0
    assert manager.set_draining_by_hostname(host, False) == 1


def test_a_blocked_host_gets_nothing_until_unblocked(manager):
    host = manager.status("workers")[0]["hostname"]
    manager.block_host(host)
    task = vine.Task("true")
    manager.submit(task)
    assert manager.wait(0.5) is None and task.state == "READY"
    manager.unblock_host(host)
    assert manager.wait(10) is task

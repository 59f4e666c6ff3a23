"""Modules declared by the program and kept loaded at the worker, through the published API."""

from __future__ import annotations

import sys

import pytest
from api_support import drain

import taskvine_core as vine

pytestmark = pytest.mark.live


def make_probe():
    def loaded(*names):
        return [name in sys.modules for name in names]

    return loaded


def test_the_managers_default_holds_for_tasks_that_do_not_say(cluster):
    manager = cluster.manager()
    cluster.worker(manager)
    names = ("colorsys", "sndhdr.nowhere", "wave")
    probe = make_probe()
    before, default, own, none = (vine.PythonTask(probe, *names) for _ in range(4))
    manager.submit(before)
    manager.preload_modules("colorsys")
    own.preload_modules("wave")
    none.preload_modules()
    for task in (default, own, none):
        manager.submit(task)
    assert len([task for task in drain(manager, cluster.log) if task.successful()]) == 4
    assert [task.output for task in (before, default, own, none)] == [
        [False, False, False], [True, False, False], [False, False, True], [False, False, False]]


def test_equal_sets_are_the_same_whatever_their_order_and_a_clone_keeps_its_own(cluster):
    manager = cluster.manager()
    one, two = vine.PythonTask(make_probe()), vine.PythonTask(make_probe())
    one.preload_modules("os.path", "json", "json")
    two.preload_modules("json", "os.path")
    manager.submit(copy := one.clone())
    manager.submit(two)
    specs = [manager._runner.call(lambda core, now, task=task: core.tasks[task.id].spec) for task in (copy, two)]
    assert specs[0].preload == specs[1].preload == ("json", "os.path")


@pytest.mark.parametrize(("name", "error"), [(3, TypeError), (None, TypeError), ("a b", ValueError), ("", ValueError),
                                             ("a..b", ValueError), ("-m", ValueError)])
def test_what_cannot_be_a_module_is_an_error_at_the_call(name, error):
    with pytest.raises(error, match="module name"):
        vine.PythonTask(print).preload_modules("json", name)


def test_a_module_the_worker_does_not_have_is_a_traceback_in_the_output(cluster):
    manager = cluster.manager()
    cluster.worker(manager)
    manager.preload_modules("json", "a_module_nobody_has")
    manager.submit(vine.PythonTask(make_probe()))
    (task,) = drain(manager, cluster.log)
    assert not task.successful() and task.exit_code == 1 and isinstance(task.output, vine.PythonTaskNoResult)
    assert "ModuleNotFoundError: No module named 'a_module_nobody_has'" in task.std_output

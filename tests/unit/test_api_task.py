"""Rules of Task and PythonTask: arguments, what is frozen at submit, what is read afterwards (reference, section 4)."""

from __future__ import annotations

import functools
import gc
import pickle
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fake_runner import FakeRunner, outcome

import taskvine_core as vine
from taskvine_core.manager import api
from taskvine_core.manager.events import Submit, TaskTimes, Undeclare
from taskvine_core.model.tasks import KIND_PYTHON, RESULT_REMOTE
from taskvine_core.protocol.messages import Measured
from taskvine_core.resources import Resources


@pytest.fixture
def manager(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "ManagerRunner", FakeRunner)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with vine.Manager(port=0, run_info_path=tmp_path / "info") as made:
        yield made


def frozen(manager, task):
    """The spec the core gets."""
    manager.submit(task)
    return [e for e in FakeRunner.made[-1].events if isinstance(e, Submit)][-1].spec


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize("command", [{"cmd": "x"}, None, 5, b"echo", ["a"]])
def test_a_command_that_is_no_str_is_a_type_error(command):
    with pytest.raises(TypeError, match="command"):
        vine.Task(command)


def test_every_keyword_reaches_the_spec(manager):
    data = manager.declare_buffer("x")
    out = manager.declare_temp()
    spec = frozen(manager, vine.Task(
        "run", tag="t", category="c", scheduler="worst", cores=2, memory=300, disk=400, gpus=1, retries=3, priority=5,
        time_start=1_000_000, time_end=2_000_000, time_max=30, time_min=4, features=["a", "b"],
        env={"A": "1", "B": None},
        inputs={data: {"remote_name": "in", "strict_input": True, "mount_symlink": True}},
        outputs={out: {"remote_name": "out", "watch": True, "failure_only": True}}, max_forsaken=2, unknown="ignored"))
    assert spec.command == "run" and spec.tag == "t" and spec.category == "c"
    assert spec.resources == Resources(2, 300, 400, 1) and spec.retries == 3 and spec.priority == 5.0
    assert (spec.time_start_s, spec.time_end_s, spec.time_max_s, spec.time_min_s) == (1.0, 2.0, 30.0, 4.0)
    assert spec.scheduler == vine.VINE_SCHEDULE_WORST and spec.features == ("a", "b") and spec.max_forsaken == 2
    assert spec.env == (("A", "1"), ("B", None))
    assert spec.inputs == ((data.cached_name, "in", vine.VINE_FIXED_LOCATION | vine.VINE_MOUNT_SYMLINK),)
    assert spec.outputs == ((out.cached_name, "out", vine.VINE_WATCH | vine.VINE_FAILURE_ONLY),)


def test_a_plain_task_asks_for_nothing(manager):
    spec = frozen(manager, vine.Task("x"))
    assert spec.resources.unset and spec.category == "default" and spec.retries == 0 and spec.max_forsaken == -1


def test_single_feature_and_plain_names_are_accepted(manager):
    out = manager.declare_buffer()
    spec = frozen(manager, vine.Task("x", features="gpu", output_files={out: "out"}, category=None))
    assert spec.features == ("gpu",) and spec.outputs[0].remote == "out" and spec.category == "default"


@pytest.mark.parametrize(("values", "error", "named"), [
    ({"inputs": {"file.txt": "in"}}, TypeError, "input"), ({"outputs": {"file.txt": "out"}}, TypeError, "output"),
    ({"inputs": ["x"]}, TypeError, "inputs"), ({"env": ["A=1"]}, TypeError, "env"),
    ({"cores": "two"}, TypeError, "cores"),
    ({"memory": float("nan")}, ValueError, "memory"), ({"priority": "high"}, TypeError, "priority"),
    ({"retries": "many"}, TypeError, "retries"), ({"tag": 5}, TypeError, "tag"),
    ({"category": 5}, TypeError, "category"),
    ({"scheduler": "best"}, ValueError, "scheduler"), ({"features": [5]}, TypeError, "feature"),
    ({"time_max": "1h"}, TypeError, "time_max"), ({"env": {"": "x"}}, ValueError, "environment variable"),
    ({"env": {"A=B": "x"}}, ValueError, "environment variable")])
def test_a_bad_argument_is_named_at_the_call(values, error, named):
    with pytest.raises(error, match=named):
        vine.Task("x", **values)


@pytest.mark.parametrize(("name", "error"), [
    ("/abs", ValueError), ("../up", ValueError), ("a/../../b", ValueError), ("", ValueError), ("a\0b", ValueError),
    ("a//b", ValueError), (5, TypeError), (None, TypeError), (b"in", TypeError)])
def test_sandbox_names_stay_inside(manager, name, error):
    task, file = vine.Task("x"), manager.declare_buffer("x")
    for add in (task.add_input, task.add_output):
        with pytest.raises(error, match="remote_name"):
            add(file, name)
    for how in ("inputs", "outputs"):
        with pytest.raises(error):
            vine.Task("x", **{how: {file: {"remote_name": name}}})


def test_a_mount_without_name_or_of_odd_kind_is_refused(manager):
    file = manager.declare_buffer("x")
    with pytest.raises(ValueError, match="remote_name"):
        vine.Task("x", inputs={file: {}})
    with pytest.raises(TypeError, match="sandbox name"):
        vine.Task("x", inputs={file: 5})


def test_negative_resources_are_unset_and_fractions_take_a_whole_one(manager):
    spec = frozen(manager, vine.Task("x", cores=0.5, memory=-7, disk=0, gpus=-1))
    assert spec.resources == Resources(1, -1, 0, -1)


def test_two_files_under_one_name_are_refused_at_submit(manager):
    task = vine.Task("x")
    task.add_input(manager.declare_buffer("a"), "same")
    task.add_input(manager.declare_buffer("b"), "same")
    with pytest.raises(ValueError, match="'same'"):
        manager.submit(task)


def test_an_input_may_be_written_back_under_its_own_name(manager):
    file = manager.declare_buffer("a")
    task = vine.Task("x")
    task.add_input(file, "f")
    task.add_input(file, "f")
    task.add_output(manager.declare_buffer(), "f")
    assert len(frozen(manager, task).inputs) == 2


@pytest.mark.parametrize("declare", [lambda m: m.declare_url("http://localhost/x"),
                                     lambda m: m.declare_minitask(vine.Task("touch o"), "o")])
def test_urls_and_mini_tasks_are_no_outputs(manager, declare):
    task = vine.Task("x")
    task.add_output(declare(manager), "out")
    with pytest.raises(ValueError, match="output 'out'"):
        manager.submit(task)


def test_files_of_another_manager_are_refused(manager, tmp_path):
    with vine.Manager(port=0, run_info_path=tmp_path / "other") as other:
        task = vine.Task("x", inputs={other.declare_buffer("x"): "in"})
        with pytest.raises(ValueError, match="another manager"):
            manager.submit(task)


def test_a_directory_written_into_is_not_mounted_as_a_link(manager):
    """The command would change the worker's cache through it."""
    first, second = manager.declare_buffer("a"), manager.declare_buffer("b")
    task = vine.Task("x", outputs={manager.declare_temp(): "dir/out"})
    task.add_input(first, "dir", mount_symlink=True)
    task.add_input(second, "directory", mount_symlink=True)
    assert [m.flags for m in frozen(manager, task).inputs] == [0, vine.VINE_MOUNT_SYMLINK]


def test_environments_nest_with_the_last_outermost(manager):
    first, second = manager.declare_temp(), manager.declare_temp()
    task = vine.Task("run")
    task.add_environment(first)
    task.add_poncho_package(second)
    names = [f"__vine_env_{f.cached_name}" for f in (first, second)]
    spec = frozen(manager, task)
    assert spec.command == f"{names[1]}/bin/run_in_env {names[0]}/bin/run_in_env run"
    assert [m.flags for m in spec.inputs] == [vine.VINE_MOUNT_SYMLINK] * 2


def test_any_attribute_can_be_hung_on_a_task():
    task = vine.Task("x")
    task.mine = 5
    assert task.mine == 5


def test_a_clone_is_independent(manager):
    task = vine.Task("x", env={"A": "1"}, features="f")
    task.mine = 1
    copy = task.clone()
    copy.set_env_var("B", "2")
    copy.add_feature("g")
    assert frozen(manager, task).env == (("A", "1"),) and frozen(manager, copy).features == ("f", "g")
    assert copy.mine == 1 and copy.id == 2


# ---------------------------------------------------------------------- results


def test_before_the_end_everything_has_its_neutral_value():
    task = vine.Task("x", cores=2)
    assert (task.id, task.result, task.exit_code, task.std_output, task.output) == (0, "unknown", -1, None, None)
    assert task.hostname is None and task.addrport is None and task.limits_exceeded is None and not task.completed()
    assert task.resources_requested.cores == 2 and task.resources_requested.memory == -1
    assert task.resources_measured.cores == -1 and task.get_metric("bytes_sent") == 0


def test_a_command_that_fails_is_completed_and_not_successful():
    task = vine.Task("x")
    task._outcome = outcome(1, exit_code=2)
    assert task.result == "success" and task.completed() and not task.successful()
    task._outcome = outcome(1, result=vine.VINE_RESULT_MAX_WALL_TIME, exit_code=9)
    assert task.result == "max wall time" and not task.completed()


def test_output_that_is_no_utf8_is_replaced():
    task = vine.Task("x")
    task._outcome = outcome(1, stdout=b"caf\xe9\n")
    assert task.std_output == "caf\ufffd\n" == task.output


def test_large_output_is_read_from_its_file(tmp_path):
    (tmp_path / "out").write_bytes(b"big")
    task = vine.Task("x")
    task._outcome = outcome(1, stdout_path=str(tmp_path / "out"))
    assert task.std_output == "big"
    (tmp_path / "out").unlink()
    assert "cannot be read" in task.std_output


def test_metrics_are_microseconds_and_bytes():
    task = vine.Task("x")
    task._outcome = outcome(1, bytes_sent=3, bytes_received=4, times=TaskTimes(submitted=1.5, execute_all_s=0.25))
    assert task.get_metric("time_when_submitted") == 1_500_000
    assert task.get_metric("time_workers_execute_all") == 250_000
    assert task.get_metric("bytes_transferred") == 7 and task.get_metric("nonsense") == 0


def test_resources_are_allocation_with_what_was_measured_over_it():
    task = vine.Task("x")
    task._outcome = outcome(1, measured=Measured(2.0, 50, -1, 1 << 20, -1, 3), times=TaskTimes(start=10.0, end=14.0),
                            limits=Resources(-1, 40, -1, -1))
    used = task.resources_measured
    assert (used.cores, used.memory, used.disk, used.gpus) == (1, 50, 200, 0)
    assert used.wall_time == 4.0 and used.cpu_time == 2.0 and used.cores_avg == 0.5 and used.bytes_read == 1.0
    assert task.resources_allocated.memory == 100 and task.limits_exceeded.memory == 40
    assert task.limits_exceeded.cores == -1 and used.swap_memory == -1 and used.snapshots == []


# ---------------------------------------------------------------------- Python tasks


def add(a, b):
    return a + b


def finish(manager, task, payload=None, **values):
    runner = FakeRunner.made[-1]
    if payload is not None:
        runner.stored[task.output_file.cached_name] = payload
    runner.finish(task.id, **values)
    assert manager.wait(1) is task


def test_only_callables_make_python_tasks():
    with pytest.raises(TypeError, match="func"):
        vine.PythonTask("print(1)")


def test_small_arguments_travel_inside_the_spec(manager):
    task = vine.PythonTask(add, 1, b=2)
    spec = frozen(manager, task)
    assert spec.kind == KIND_PYTHON and pickle.loads(spec.arguments) == [(1,), {"b": 2}] and spec.arguments_file == ""
    assert spec.inputs[-1] == (spec.function, "", 0)
    assert spec.outputs[-1] == (task.output_file.cached_name, RESULT_REMOTE, 0)
    assert spec.function.startswith("buffer-md5-") and task.command.startswith("python3 w_")


def test_large_arguments_become_a_file_that_goes_with_the_task(manager):
    task = vine.PythonTask(len, b"x" * 100_000)
    spec = frozen(manager, task)
    assert spec.arguments == b"" and spec.arguments_file == spec.inputs[-1].name
    [path] = Path(manager.staging_directory, "arguments").iterdir()
    assert pickle.loads(path.read_bytes()) == [(b"x" * 100_000,), {}]
    finish(manager, task, pickle.dumps(5))
    del task
    gc.collect()
    manager.wait(0)
    assert not path.exists()


def test_arguments_of_a_temps_producer_stay_as_long_as_the_temp(manager):
    def run(func, *args):
        task = vine.PythonTask(func, *args)
        task.enable_temp_output()
        return task

    first = run(len, b"x" * 100_000)
    manager.submit(first)
    second = run(len, "path")
    second.add_input(first.output_file, "path")
    manager.submit(second)
    FakeRunner.made[-1].finish(1)
    FakeRunner.made[-1].finish(2)
    manager.wait(1), manager.wait(1)
    [path] = Path(manager.staging_directory, "arguments").iterdir()
    last = second.output_file
    del first, second
    gc.collect()
    manager.wait(0)
    assert path.exists()  # losing the last temp means running both again
    del last
    gc.collect()
    manager.wait(0)
    assert not path.exists()


def test_one_function_is_one_file_until_it_is_forgotten(manager):
    specs = [frozen(manager, vine.PythonTask(add, i, i)) for i in range(3)]
    assert len({spec.function for spec in specs}) == 1
    before = manager._python.function_file(add)
    manager.undeclare_function(add)
    assert manager._python.function_file(add).cached_name == before.cached_name


def test_functions_of_equal_content_share_a_file_and_go_with_the_last(manager):
    def make():
        return lambda x: x * 2

    names = {frozen(manager, vine.PythonTask(make(), i)).function for i in range(2)}
    assert len(names) == 1
    for _ in range(2):
        FakeRunner.made[-1].finish(_ + 1, result=88)
        manager.wait(0)
    gc.collect()
    manager.wait(0)
    assert [e.name for e in FakeRunner.made[-1].events if isinstance(e, Undeclare)].count(names.pop()) == 1


def test_callables_with_changing_data_are_serialized_each_time(manager):
    class Adder:
        amount = 1

        def __call__(self, x):
            return x + self.amount

        def method(self, x):
            return x + self.amount

    adder = Adder()
    first = frozen(manager, vine.PythonTask(adder, 1)).function
    bound = frozen(manager, vine.PythonTask(adder.method, 1)).function
    adder.amount = 2
    assert frozen(manager, vine.PythonTask(adder, 1)).function != first
    assert frozen(manager, vine.PythonTask(adder.method, 1)).function != bound
    assert frozen(manager, vine.PythonTask(functools.partial(add, 1), 2)).function


@pytest.mark.parametrize("args", [(sys._getframe(),), (iter([1]).__class__, (i for i in range(3)))])
def test_arguments_that_do_not_serialize_are_a_value_error_at_submit(manager, args):
    with pytest.raises(ValueError, match="arguments of add"):
        manager.submit(vine.PythonTask(add, *args))
    assert manager.empty()


def test_a_function_that_does_not_serialize_is_a_value_error_at_submit(manager):
    generator = (i for i in range(3))
    with pytest.raises(ValueError, match="the function"):
        manager.submit(vine.PythonTask(lambda: next(generator)))


def test_the_result_is_loaded_once(manager):
    task = vine.PythonTask(add, 1, 2)
    manager.submit(task)
    assert isinstance(task.output, vine.PythonTaskNoResult)
    finish(manager, task, pickle.dumps([3]))
    assert task.output == [3] and task.output is task.output


def test_none_is_a_result_like_any_other(manager):
    task = vine.PythonTask(add, 1, 2)
    manager.submit(task)
    finish(manager, task, pickle.dumps(None))
    assert task.output is None


@pytest.mark.parametrize("values", [{"exit_code": 1}, {"result": vine.VINE_RESULT_CANCELLED, "exit_code": -1}])
def test_without_success_there_is_no_result(manager, values):
    task = vine.PythonTask(add, 1, 2)
    manager.submit(task)
    finish(manager, task, **values, stdout=b"Traceback ...")
    assert isinstance(task.output, vine.PythonTaskNoResult) and task.std_output == "Traceback ..."


class Explosive:
    def __reduce__(self):
        return (int, ("not a number",))


def test_a_result_that_does_not_load_gives_the_exception_as_output(manager):
    task = vine.PythonTask(add, 1, 2)
    manager.submit(task)
    finish(manager, task, pickle.dumps(Explosive()))
    assert isinstance(task.output, ValueError) and task.successful()


def test_raw_bytes_come_back_as_they_are(manager):
    task = vine.PythonTask(add, 1, 2)
    task.disable_output_serialization()
    assert frozen(manager, task).serialize_output is False
    finish(manager, task, b"\x80not a pickle")
    assert task.output == b"\x80not a pickle"


def test_output_of_a_temp_result_is_a_value_error(manager):
    task = vine.PythonTask(add, 1, 2)
    task.enable_temp_output()
    manager.submit(task)
    assert task.output_file.type() == vine.VINE_TEMP
    with pytest.raises(ValueError, match="enable_temp_output"):
        task.output  # noqa: B018


def test_source_of_an_output_is_a_path_with_its_bytes(manager):
    task = vine.PythonTask(add, 1, 2)
    manager.submit(task)
    finish(manager, task, pickle.dumps(3))
    path = Path(task.output_file.source())
    assert pickle.loads(path.read_bytes()) == 3 and str(path).startswith(manager.staging_directory)


def test_results_nobody_refers_to_are_dropped(manager):
    task = vine.PythonTask(add, 1, 2)
    manager.submit(task)
    finish(manager, task, pickle.dumps(3))
    name = task.output_file.cached_name
    del task
    gc.collect()
    manager.wait(0)
    assert name not in FakeRunner.made[-1].stored
    assert Undeclare(name) in FakeRunner.made[-1].events


def test_a_subclass_may_override_output_and_be_empty(manager):
    class Mine(vine.PythonTask):
        def __len__(self):
            return 0

        @property
        def output(self):
            return ("mine", super().output)

    task = Mine(add, 1, 2)
    manager.submit(task)
    finish(manager, task, pickle.dumps(3))
    assert task.output == ("mine", 3)

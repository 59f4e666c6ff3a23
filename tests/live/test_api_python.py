"""Python tasks with a real worker (reference, sections 3.8, 4.5 and 24.3)."""

from __future__ import annotations

import gc
import pickle
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from api_support import drain, run, until

import taskvine_core as vine

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def cluster(module_cluster):
    return module_cluster


@pytest.fixture(scope="module")
def manager(cluster):
    made = cluster.manager()
    cluster.worker(made)
    return made


def by_value(func):
    """As if the function were defined in the program: workers do not have this test module."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[func.__module__])
    return func


@by_value
def total(*numbers, start=0):
    return sum(numbers) + start


def test_sums_of_two_batches_agree(manager):
    batches = []
    for _ in range(2):
        tasks = [vine.PythonTask(total, i, i + 1, start=i) for i in range(20)]
        for task in tasks:
            task.set_cores(1)
            manager.submit(task)
        assert len(list(drain(manager))) == 20
        batches.append([task.output for task in tasks])
    assert batches[0] == batches[1] == [3 * i + 1 for i in range(20)]


def test_large_arguments_and_results_travel(manager):
    task = run(manager, vine.PythonTask(lambda data: data[::-1], b"ab" * 500_000))
    assert task.output == b"ba" * 500_000


@by_value
def previous():
    """What another task's output file holds."""
    with open("previous", "rb") as stream:
        return pickle.load(stream)


def test_raw_bytes_come_back_as_they_are(manager):
    task = vine.PythonTask(lambda: b"\x80\x00raw")
    task.disable_output_serialization()
    assert run(manager, task).output == b"\x80\x00raw"


def test_raw_output_must_be_bytes(manager):
    task = vine.PythonTask(lambda: {"not": "bytes"})
    task.disable_output_serialization()
    run(manager, task)
    assert not task.successful() and "bytes" in task.std_output and isinstance(task.output, vine.PythonTaskNoResult)


def test_an_exception_leaves_its_traceback_and_no_result(manager):
    task = run(manager, vine.PythonTask(lambda: 1 / 0))
    assert not task.successful() and task.exit_code == 1 and "ZeroDivisionError" in task.std_output
    assert isinstance(task.output, vine.PythonTaskNoResult)


def test_an_exception_that_does_not_pickle_is_still_told(manager):
    def fail():
        class Odd(Exception):
            def __init__(self):
                super().__init__("very odd")
                self.stuck = (i for i in range(3))
        raise Odd

    task = run(manager, vine.PythonTask(fail))
    assert task.exit_code == 1 and "very odd" in task.std_output


def test_a_result_that_does_not_serialize_is_a_failure_with_its_reason(manager):
    task = run(manager, vine.PythonTask(lambda: (i for i in range(3))))
    assert not task.successful() and "generator" in task.std_output and isinstance(task.output, vine.PythonTaskNoResult)


def test_a_result_that_does_not_load_here_gives_the_exception(manager):
    def make():
        class Explosive:
            def __reduce__(self):
                return (int, ("not a number",))
        return Explosive()

    task = run(manager, vine.PythonTask(make))
    assert task.successful() and isinstance(task.output, ValueError)


def test_a_function_that_ends_its_process_fails_alone(manager):
    def die():
        import os
        os._exit(5)

    task = run(manager, vine.PythonTask(die))
    assert task.exit_code == 5 and not task.successful()
    assert run(manager, vine.PythonTask(total, 1)).output == 1


def test_what_a_function_prints_is_its_output_text(manager):
    task = run(manager, vine.PythonTask(lambda: print("hello")))
    assert task.std_output == "hello\n" and task.output is None


def test_a_function_sees_its_inputs_and_writes_outputs(manager, tmp_path):
    def copy():
        with open("in") as source, open("out", "w") as target:
            target.write(source.read().upper())
        return 5

    task = vine.PythonTask(copy)
    task.add_input(manager.declare_buffer("text"), "in")
    task.add_output(manager.declare_file(tmp_path / "out"), "out")
    task.set_env_var("X", "1")
    assert run(manager, task).output == 5 and (tmp_path / "out").read_text() == "TEXT"


def test_a_temp_result_is_the_input_of_the_next(manager):
    first = vine.PythonTask(total, 1, 2)
    first.enable_temp_output()
    run(manager, first)

    second = vine.PythonTask(lambda: previous() * 10)
    second.add_input(first.output_file, "previous")
    assert run(manager, second).output == 30
    assert manager.fetch_file(first.output_file) is not None
    assert first.output_file.contents(pickle.load) == 3
    manager.undeclare_file(first.output_file)
    assert second.output == 30


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_result_at_the_manager_is_the_input_of_the_next(manager, size):
    """Small results arrive inside a message, large ones as a file."""
    first = run(manager, vine.PythonTask(lambda n: b"z" * n, size))
    second = vine.PythonTask(lambda: len(previous()))
    second.add_input(first.output_file, "previous")
    run(manager, second)
    assert second.output == size, (second.result, second.std_output)


def test_a_result_may_be_used_before_it_exists(manager):
    first = vine.PythonTask(lambda: 7)
    manager.submit(first)
    second = vine.PythonTask(lambda: previous() + 1)
    second.add_input(first.output_file, "previous")
    manager.submit(second)
    list(drain(manager))
    assert second.successful() and second.output == 8, (second.result, second.std_output)


def test_source_is_a_path_the_program_may_read_and_remove(manager):
    task = run(manager, vine.PythonTask(total, 4))
    path = Path(task.output_file.source())
    assert pickle.loads(path.read_bytes()) == 4
    path.unlink()
    assert task.output == 4
    manager.undeclare_file(task.output_file)


def test_functions_and_results_nobody_needs_leave_the_core(manager):
    for number in range(5):
        run(manager, vine.PythonTask(lambda x: x, number))
    gc.collect()
    manager.wait(0)

    def buffers():
        return manager._runner.call(lambda core, now: [n for n in core.files if n.startswith("buffer-rnd")])
    until(lambda: not buffers(), "results are forgotten", buffers)


def test_map_pair_and_tree_reduce(manager):
    assert manager.map(lambda x: x * x, range(7), chunksize=3) == [x * x for x in range(7)]
    assert manager.pair(lambda p: p[0] * p[1], [1, 2, 3], [10, 20], chunksize=4) == [10, 20, 20, 40, 30, 60]
    assert manager.tree_reduce(sum, range(11), chunksize=3) == 55
    assert manager.tree_reduce(max, [5]) == 5 and manager.map(abs, []) == []


def test_a_failing_chunk_of_a_map_shows_in_its_places(manager):
    results = manager.map(lambda x: 1 // x, [1, 0, 2], chunksize=1)
    assert results[0] == 1 and results[2] == 0 and isinstance(results[1], vine.PythonTaskNoResult)
    assert isinstance(manager.tree_reduce(lambda xs: 1 // 0, [1, 2, 3]), vine.PythonTaskNoResult)

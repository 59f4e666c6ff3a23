"""``enable_tasks_cache``: a result that is known is not computed again (reference, section 18.3)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest
from api_support import ROOT, Cluster, drain, run

import taskvine_core as vine
from taskvine_core.errors import UsageError
from taskvine_core.manager.fingerprint import NoFingerprintError, digest_of
from taskvine_core.manager.task_cache import TasksCache

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture
def manager(cluster):
    manager = cluster.manager()
    manager.enable_tasks_cache()
    cluster.worker(manager, cores=4)
    return manager


def again(cluster, worker=True):
    """The program is started once more."""
    manager = cluster.manager()
    manager.enable_tasks_cache()
    if worker:
        cluster.worker(manager, cores=4)
    return manager


def functions():
    """Made inside of a function, so that they travel by value: workers cannot import this module."""

    def power(base, exponent):
        return base**exponent

    def read():
        import pickle

        with open("data", "rb") as stream:
            return pickle.load(stream)

    return power, read


power, read = functions()


def all_by_tag(manager):
    return {task.tag: task for task in drain(manager)}


def test_the_published_program(cluster, manager, tmp_path):
    def submit(numbers):
        for number in numbers:
            task = vine.PythonTask(power, number, 2)
            task.set_tag(str(number))
            manager.submit(task)

    submit(range(5))
    first = all_by_tag(manager)
    assert all(task.hostname != "CACHED" and task.successful() for task in first.values())
    assert len(os.listdir(tmp_path / "vine-cache-outputs")) == 5
    submit(range(5))
    second = all_by_tag(manager)
    assert {task.hostname for task in second.values()} == {"CACHED"}
    assert {tag: task.output for tag, task in second.items()} == {tag: task.output for tag, task in first.items()}
    submit([7])
    [new] = drain(manager)
    assert new.hostname != "CACHED"
    assert new.output == 49


def test_a_hit_looks_like_a_finished_task(manager):
    run(manager, vine.PythonTask(power, 3, 3))
    task = vine.PythonTask(power, 3, 3)
    task.set_tag("t")
    number = manager.submit(task)
    assert not manager.empty()
    assert manager.wait_for_tag("other", 0) is None
    hit = manager.wait_for_tag("t", 5)
    assert isinstance(hit.id, str)
    assert hit.id == number
    assert (hit.result, hit.exit_code, hit.output) == ("success", 0, 27)
    assert (hit.category, hit.addrport) == ("default", "CACHED")
    assert hit.successful() and hit.completed()
    assert hit.resources_measured.memory == 0 and hit.resources_allocated.cores == 0
    assert hit.get_metric("time_when_done") == 0 and hit.decrement_retry() == 0
    assert hit.load_wrapper_output(manager) == 27
    assert hit.output_file.contents() and os.path.getsize(hit.output_file.source())
    assert task.output == 27, "the program may also keep its own object"
    assert manager.empty()
    assert manager.wait(0) is None


def test_results_are_known_in_a_later_run_without_any_worker(cluster, manager):
    run(manager, vine.PythonTask(power, 2, 10))
    run(manager, vine.Task("echo hello"))
    later = again(cluster, worker=False)
    for task in (vine.PythonTask(power, 2, 10), vine.Task("echo hello")):
        later.submit(task)
    outputs = [task.output for task in drain(later)]
    assert outputs == [1024, "hello\n"]


def test_outputs_of_commands_come_back_where_the_program_wants_them(cluster, manager, tmp_path):
    def both(where, manager):
        task = vine.Task("cat in; tr a-z A-Z < in > one; echo two > two")
        task.add_input(manager.declare_buffer("some text"), "in")
        task.add_output(manager.declare_file(where / "one.txt"), "one")
        buffer = manager.declare_buffer()
        task.add_output(buffer, "two")
        manager.submit(task)
        [done] = drain(manager)
        return done, (where / "one.txt").read_text(), buffer.contents()

    (tmp_path / "a").mkdir()
    first = both(tmp_path / "a", manager)
    second = both(tmp_path / "b", again(cluster, worker=False))
    assert second[0].hostname == "CACHED"
    assert first[1:] == second[1:] == ("SOME TEXT", b"two\n")
    assert second[0].output == first[0].output == "some text"


def test_a_program_that_a_task_has_made_can_be_run_the_next_time_too(cluster, manager, tmp_path):
    def make(manager, path):
        task = vine.Task("printf '#!/bin/sh\\necho made' > tool; chmod 755 tool; echo plain > data")
        task.add_output(manager.declare_file(path / "tool"), "tool")
        task.add_output(manager.declare_file(path / "data"), "data")
        manager.submit(task)
        [done] = drain(manager)
        return done.hostname, os.access(path / "tool", os.X_OK), os.access(path / "data", os.X_OK)

    assert make(manager, tmp_path)[1:] == (True, False)
    (tmp_path / "later").mkdir()
    assert make(again(cluster, worker=False), tmp_path / "later") == ("CACHED", True, False)


def test_a_known_output_is_the_input_of_the_next_task(cluster, manager):
    def chain(manager, suffix):
        middle = manager.declare_buffer()
        first = vine.Task("echo 5 > out")
        first.add_output(middle, "out")
        manager.submit(first)
        if suffix:
            [_] = drain(manager)
        second = vine.Task(f"cat in; echo {suffix}")
        second.add_input(middle, "in")
        manager.submit(second)
        return [task.hostname == "CACHED" for task in drain(manager)], second

    hits, second = chain(manager, "")
    assert hits == [False, False]
    hits, second = chain(again(cluster), "more")
    assert hits == [False]
    assert second.output == "5\nmore\n"


def test_a_chain_submitted_at_once_is_known_as_a_whole_the_next_time(cluster, manager):
    def chain(manager):
        middle = manager.declare_temp()
        first = vine.Task("echo 5 > out")
        first.add_output(middle, "out")
        second = vine.Task("cat in")
        second.add_input(middle, "in")
        third = vine.PythonTask(read)
        result = vine.PythonTask(power, 2, 3)
        manager.submit(result)
        third.add_input(result.output_file, "data")
        for task in (first, second, third):
            manager.submit(task)
        return sorted((task.command.split()[0], task.hostname == "CACHED", str(task.output)) for task in drain(manager))

    before = chain(manager)
    after = chain(again(cluster, worker=False))
    assert [entry[1] for entry in before] == [False] * 4
    assert [entry[1] for entry in after] == [True] * 4
    assert [entry[2] for entry in before] == [entry[2] for entry in after]


def test_map_and_tree_reduce_use_it_and_leave_other_results_alone(cluster, manager):
    before = manager.map(lambda x: x * x, [1, 2, 2, 2], chunksize=1)
    run(manager, vine.Task("echo other"))
    later = again(cluster, worker=False)
    later.submit(vine.Task("echo other"))
    assert later.map(lambda x: x * x, [1, 2, 2, 2], chunksize=1) == before == [1, 4, 4, 4]
    assert later.wait(5).output == "other\n"
    assert later.empty()


def test_temps_are_local_files_while_it_is_on(cluster, manager):
    assert manager.declare_temp().type() == vine.VINE_FILE
    assert cluster.manager().declare_temp().type() == vine.VINE_TEMP


@pytest.mark.parametrize("change", ["command", "env", "input", "remote", "output"])
def test_what_makes_a_task_another_one(manager, change):
    def task(changed):
        made = vine.Task("cat *; touch out" if changed != "command" else "cat * ; touch out")
        made.set_env_var("X", "1" if changed == "env" else "2")
        made.add_input(manager.declare_buffer("b" if changed == "input" else "a"), "b" if changed == "remote" else "a")
        made.add_output(manager.declare_buffer(), "out")
        if changed == "output":
            made.add_output(manager.declare_buffer(), "more", success_only=True)
        return made

    manager.submit(task(""))
    [first] = drain(manager)
    assert first.successful()
    manager.submit(task(change))
    [other] = drain(manager)
    assert other.hostname != "CACHED"
    manager.submit(task(""))
    [same] = drain(manager)
    assert same.hostname == "CACHED"


def test_failures_are_run_again(manager, tmp_path):
    for _ in range(2):
        task = run(manager, vine.Task("exit 3"))
        assert task.exit_code == 3
    events = [json.loads(line)["event"] for line in (tmp_path / "vine-cache.txlog").read_text().splitlines()]
    assert events == ["FAILED", "FAILED"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "link", "log", "garbage"])
def test_what_is_damaged_is_computed_again(cluster, manager, tmp_path, damage):
    run(manager, vine.PythonTask(power, 5, 2))
    [name] = os.listdir(tmp_path / "vine-cache-outputs")
    path, log = tmp_path / "vine-cache-outputs" / name, tmp_path / "vine-cache.txlog"
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(good[:-1])
    elif damage == "changed":
        path.write_bytes(good[:-2] + b"X.")
    elif damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "log":
        log.write_text(log.read_text()[:-20])
    else:
        line = json.loads(log.read_text())
        wrong = [{**line, "parts": {"../x": [1, "a"]}}, {**line, "parts": 5}, {**line, "exit_code": None}, [], 7]
        log.write_text("\n".join(["\0", "{", *map(json.dumps, wrong)]) + "\n")
    later = again(cluster)
    task = run(later, vine.PythonTask(power, 5, 2))
    assert task.hostname != "CACHED"
    assert task.output == 25
    later.submit(vine.PythonTask(power, 5, 2))
    assert later.wait(5).hostname == "CACHED"


def test_a_directory_that_cannot_be_written_costs_the_result_nothing(manager, tmp_path, monkeypatch, capsys):
    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("taskvine_core.manager.task_cache.tempfile.mkstemp", full)
    for _ in range(2):
        assert run(manager, vine.Task("echo x")).output == "x\n"
    assert capsys.readouterr().err.count("could not be kept") == 1


def test_what_another_program_has_computed_meanwhile_is_known(cluster, manager):
    other = again(cluster)
    run(manager, vine.Task("echo shared"))
    other.submit(vine.Task("echo shared"))
    assert other.wait(5).hostname == "CACHED"


def test_what_others_may_write_to_is_refused(cluster, tmp_path):
    manager = cluster.manager()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="chmod go-w"):
        manager.enable_tasks_cache(tmp_path / "open")
    (tmp_path / "log").touch()
    (tmp_path / "log").chmod(0o666)
    with pytest.raises(UsageError, match="chmod go-w"):
        manager.enable_tasks_cache(tmp_path / "mine", tmp_path / "log")
    with pytest.raises(TypeError):
        manager.enable_tasks_cache(5)
    run_anyway = manager.declare_temp()
    assert run_anyway.type() == vine.VINE_TEMP


def test_nothing_is_unpickled_before_the_program_reads_it(cluster, manager, tmp_path):
    class Telling:
        def __reduce__(self):
            return (open, (str(tmp_path / "told"), "w"))

    def make():
        return Telling()

    run(manager, vine.PythonTask(make))
    later = again(cluster, worker=False)
    later.submit(vine.PythonTask(make))
    hit = later.wait(5)
    assert hit.hostname == "CACHED"
    assert not (tmp_path / "told").exists()
    hit.output.close()
    assert (tmp_path / "told").exists()


def test_two_writers_of_one_log_leave_whole_lines(tmp_path):
    code = ("import sys\nfrom taskvine_core.manager.task_cache import TasksCache\n"
            "c = TasksCache('d', 'l')\n"
            "for n in range(200):\n    c.put(f'{sys.argv[1]}{n}', {'': b'x' * n}, "
            "dict(exit_code=0, std_output='y' * 3000, command='c', executable=[]))\n")
    writers = [subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path,
                                env={**os.environ, "PYTHONPATH": str(ROOT)}) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    cache = TasksCache(tmp_path / "d", tmp_path / "l")
    assert all(cache.find(f"{name}{number}") for name in "ab" for number in range(200))


# ---------------------------------------------------------------------- fingerprints


def source(text, name="f"):
    """A function from source, as another run of an edited program would have it."""
    module = types.ModuleType("__main__")
    exec(compile(text, "program.py", "exec"), module.__dict__)
    return module.__dict__[name]


@pytest.mark.parametrize(("one", "other"), [
    ("def f(x): return x + 1", "def f(x): return x + 2"),
    ("def f(x, y=1): return x + y", "def f(x, y=2): return x + y"),
    ("k = 1\ndef f(x): return x + k", "k = 2\ndef f(x): return x + k"),
    ("def g(x): return x\ndef f(x): return g(x)", "def g(x): return -x\ndef f(x): return g(x)"),
    ("def f(x): return [y + 1 for y in x]", "def f(x): return [y + 2 for y in x]"),
    ("def m(k): return lambda x: x * k\nf = m(1)", "def m(k): return lambda x: x * k\nf = m(2)"),
    ("class C:\n def a(self): return 1\ndef f(): return C().a()",
     "class C:\n def a(self): return 2\ndef f(): return C().a()"),
    ("import math\ndef f(x): return math.sin(x)", "import math\ndef f(x): return math.cos(x)"),
])
def test_a_function_that_does_something_else_is_another_one(one, other):
    assert digest_of(source(one)) == digest_of(source("\n\n# moved\n" + one))
    assert digest_of(source(one)) != digest_of(source(other))


def test_a_function_that_calls_itself_has_a_digest():
    assert digest_of(source("def f(n): return n and f(n - 1)"))


def test_equal_values_have_equal_digests_in_every_run():
    code = ("from taskvine_core.manager.fingerprint import digest_of\nimport decimal, datetime, functools\n"
            "def f(x): return x in {'a', 'b', 'c'}\n"
            "v = [{'b': 1, 'a': {'x', 'y', 'z'}}, frozenset('abc'), 1.5, b'x', f, decimal.Decimal('1.1'),"
            " datetime.date(2026, 1, 2), functools.partial(f, 1), len, int]\nprint(digest_of(v).hex())")
    seen = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60,
                           env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}).stdout
            for seed in ("1", "2", "3")}
    assert len(seen) == 1


@pytest.mark.parametrize("pair", [(1, True), (1, 1.0), ("1", 1), (b"a", "a"), ([1], (1,)), ([[1], 2], [1, [2]]),
                                  ({1: 2}, {2: 1}), (None, "None"), ("ab", ["a", "b"])])
def test_different_values_have_different_digests(pair):
    assert digest_of(pair[0]) != digest_of(pair[1])


def test_what_cannot_be_compared_is_said_to_be_so():
    loop = []
    loop.append(loop)
    for value in (loop, (x for x in ()), sys.stdout):
        with pytest.raises(NoFingerprintError):
            digest_of(value)


def test_a_task_that_cannot_be_compared_runs_each_time(manager):
    def lengths(values):
        return len(values)

    odd = []
    odd.append(odd)
    for _ in range(2):
        assert run(manager, vine.PythonTask(lengths, odd)).output == 1

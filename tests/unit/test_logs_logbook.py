"""From facts to files: the log book, its files, the run directory and the readers."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from taskvine_core.constants import VINE_RESULT_CANCELLED, VINE_RESULT_RESOURCE_EXHAUSTION
from taskvine_core.errors import ConfigError, VineError
from taskvine_core.logs import performance, readers
from taskvine_core.logs.logbook import LogBook
from taskvine_core.logs.observer import CATEGORY_FIRST, REMOVED_FAILURE, NullObserver, Observer
from taskvine_core.logs.rundir import ENVIRONMENT_NAME, create_run_directory
from taskvine_core.logs.sink import LogSink
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol.messages import NOT_MEASURED, SOURCE_URL, WorkerHello
from taskvine_core.resources import Resources

WAIT_S = 10.0
T = 1795359280.0
SPEC = TaskSpec("ls -l", outputs=(Mount("temp-rnd-b", "o"),))
HELLO = WorkerHello("worker-1", "node1", "Linux", "x86_64", "0.1", (), Resources(2, 8000, 9000, 0), "", 0, 0.0, 900.0,
                    "", "")
GIVEN = Resources(1, 100, 100, 0)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.005)


def started(directory: Path, debug: bool = True) -> LogBook:
    book = LogBook(directory, debug=debug)
    book.manager_start(T, 42, 0, 9123)
    book.worker_connected(T, 1, "10.0.0.1:4000", HELLO)
    return book


def ready(book: Observer, at: float, task_id: int = 7, attempt: int = 1) -> None:
    book.task_ready(at, task_id, attempt, SPEC, attempt > 1, Resources(cores=1))


def running(book: Observer, at: float, task_id: int = 7, attempt: int = 1, worker: int = 1) -> None:
    book.task_running(at, task_id, worker, attempt, SPEC, attempt > 1, GIVEN, at - 0.01, 0.0, 0)


def ended(book: Observer, at: float, task_id: int = 7, result: int = 0) -> None:
    book.task_waiting_retrieval(at, task_id, 1, result, 0, 0, at - 0.2, at - 0.1, 0)
    limits = Resources(memory_mb=100) if result == VINE_RESULT_RESOURCE_EXHAUSTION else None
    book.task_retrieved(at, task_id, result, 0, NOT_MEASURED, limits, 0.0, 0)


def changes(directory: Path) -> list[str]:
    lines = (directory / "debug").read_text().splitlines()
    return [line.split("state change: ")[1] for line in lines if "state change: " in line]


def events(directory: Path) -> list[readers.Transaction]:
    with open(directory / "transactions") as stream:
        return list(readers.read_transactions(stream))


def test_life_of_a_task_in_both_logs(tmp_path: Path) -> None:
    book = started(tmp_path)
    ready(book, T + 1)
    running(book, T + 2)
    ended(book, T + 3)
    book.task_done(T + 4, 7, 0, 0)
    book.manager_end(T + 5)
    book.close()
    assert changes(tmp_path) == [
        "INITIAL (0) to READY (1)", "READY (1) to RUNNING (2)", "RUNNING (2) to WAITING_RETRIEVAL (3)",
        "WAITING_RETRIEVAL (3) to RETRIEVED (4)", "RETRIEVED (4) to DONE (5)"]
    second = 1_000_000
    start_us = int(T) * second
    found = events(tmp_path)
    assert found[0] == readers.ManagerStart(start_us, 42)
    assert found[3] == readers.TaskReady(start_us + second, 7, "default", "FIRST_RESOURCES", 1, {"cores": 1})
    run, wait, got, done, end = found[4:]
    assert isinstance(run, readers.TaskRunning) and run.worker_id == "worker-1" and run.values["memory"] == 100
    assert wait == readers.TaskWaitingRetrieval(start_us + 3 * second, 7, "worker-1")
    assert isinstance(got, readers.TaskRetrieved) and got.values["wall_time"] == pytest.approx(0.1)
    assert done == readers.TaskDone(start_us + 4 * second, 7, "SUCCESS", 0)
    assert end == readers.ManagerEnd(start_us + 5 * second, 42, 5 * second)
    assert 'TASK T7 "ls" INPUTS OUTPUTS temp-rnd-b \n# end\n' in (tmp_path / "taskgraph").read_text()
    assert (tmp_path / "workflow.json").is_file()


def test_lost_attempt_goes_back_to_ready(tmp_path: Path) -> None:
    book = started(tmp_path)
    ready(book, T)
    running(book, T)
    book.worker_removed(T, 1, REMOVED_FAILURE)
    ready(book, T, attempt=2)
    book.close()
    assert changes(tmp_path)[1:] == ["READY (1) to RUNNING (2)", "RUNNING (2) to READY (1)"]
    last = events(tmp_path)[-1]
    assert isinstance(last, readers.TaskReady) and last.attempt == 2 and last.allocation == "MAX_RESOURCES"


def test_exhausted_attempt_is_retrieved_in_transactions_only(tmp_path: Path) -> None:
    book = started(tmp_path)
    ready(book, T)
    running(book, T)
    ended(book, T, result=VINE_RESULT_RESOURCE_EXHAUSTION)
    ready(book, T, attempt=2)
    running(book, T, attempt=2)
    ended(book, T)
    book.task_done(T, 7, 0, 0)
    book.close()
    assert changes(tmp_path)[2:5] == [
        "RUNNING (2) to WAITING_RETRIEVAL (3)", "WAITING_RETRIEVAL (3) to READY (1)", "READY (1) to RUNNING (2)"]
    got = [event for event in events(tmp_path) if isinstance(event, readers.TaskRetrieved)]
    results = [(event.result, event.limits) for event in got]
    assert results == [("RESOURCE_EXHAUSTION", {"memory": 100}), ("SUCCESS", {})]


def test_failed_task_that_is_returned_shows_its_retrieval_before_done(tmp_path: Path) -> None:
    book = started(tmp_path)
    ready(book, T)
    running(book, T)
    ended(book, T, result=VINE_RESULT_RESOURCE_EXHAUSTION)
    book.task_done(T, 7, VINE_RESULT_RESOURCE_EXHAUSTION, 9)
    book.close()
    assert changes(tmp_path)[-2:] == ["WAITING_RETRIEVAL (3) to RETRIEVED (4)", "RETRIEVED (4) to DONE (5)"]


def test_task_cancelled_before_it_ran_makes_no_change_readers_do_not_know(tmp_path: Path) -> None:
    book = started(tmp_path)
    ready(book, T)
    book.task_retrieved(T, 7, VINE_RESULT_CANCELLED, 0, NOT_MEASURED, None, 0.0, 0)
    book.task_done(T, 7, VINE_RESULT_CANCELLED, 0)
    book.close()
    assert changes(tmp_path) == ["INITIAL (0) to READY (1)"]
    assert [type(event).__name__ for event in events(tmp_path)[-2:]] == ["TaskRetrieved", "TaskDone"]


def test_library_instance_starts_running(tmp_path: Path) -> None:
    book = started(tmp_path)
    running(book, T, attempt=0)
    book.library_state(T, 7, 1, "STARTED")
    book.close()
    assert changes(tmp_path) == ["INITIAL (0) to RUNNING (2)"]
    assert events(tmp_path)[-1] == readers.LibraryState(int(T) * 1_000_000, 7, "STARTED", "worker-1")


def test_facts_about_unknown_workers_and_tasks_do_no_harm(tmp_path: Path) -> None:
    book = started(tmp_path)
    running(book, T, worker=99)
    ended(book, T)
    ended(book, T, task_id=1000)
    book.task_done(T, 1000, 0, 0)
    book.worker_removed(T, 99, REMOVED_FAILURE)
    book.unlink(T, 99, ("file-md5-a",))
    book.transfer_input(T, 99, "file-md5-a", 1, 0.0, T)
    book.cache_invalid(T, 99, "file-md5-a", 0, "x")
    book.close()
    assert not [event for event in events(tmp_path) if isinstance(event, readers.Unreadable)]


def test_every_other_fact_reaches_its_log(tmp_path: Path) -> None:
    book = started(tmp_path)
    book.put(T, 1, "buffer-rnd-a", 1, 10, 0)
    book.fetch_ordered(T, 1, "url-rnd-a", 1, -1, 0, 5, SOURCE_URL, "https://h/x")
    book.cache_update(T, 1, "url-rnd-a", 2, 1, 100, 0.5, T, 5)
    book.transfer_output(T, 1, "temp-rnd-b", 5, 0.1, T)
    book.category_changed(T, "default", CATEGORY_FIRST, 0, GIVEN)
    book.worker_resources(T, 1, GIVEN)
    book.file_declared(T, "url-rnd-a", "https://h/x", -1)
    book.mini_task_used(T, "task-md5-a", SPEC)
    book.mini_task_ordered(T, 1, "task-md5-a", 1, -1, 0, 6)
    book.application(T, "hello txn")
    book.application_debug(T, "hello debug")
    book.note(T, "a note")
    book.task_kill(T, 7, 1)
    book.task_send_failed(T, 7, 1)
    book.recovery_submitted(T, 8, "ls", "temp-rnd-b")
    book.unlink(T, 1, ("url-rnd-a",))
    book.close()
    kinds = [type(event).__name__ for event in events(tmp_path)[3:]]
    assert kinds == ["Transfer", "CacheUpdate", "Transfer", "CategoryChange", "WorkerResources", "Application"]
    debug = (tmp_path / "debug").read_text()
    for part in ("puturl_now https://h/x", " 5\n", "mini_task ", "APPLICATION hello debug", "a note", "kill 7",
                 "Failed to send task 7", "Submitted recovery task 8 (ls)", "unlink url-rnd-a"):
        assert part in debug
    graph = (tmp_path / "taskgraph").read_text()
    assert 'FILE url-rnd-a "https://h/x" 0\n' in graph
    assert 'TASK T-1 "ls" INPUTS OUTPUTS task-md5-a\n' in graph


def test_flush_writes_the_oldest_facts_up_to_its_limit_and_tells_what_is_left(tmp_path: Path) -> None:
    book = started(tmp_path)
    for number in range(1000):
        ready(book, T, number)
    assert book.flush(T, 2 + 600) == 400
    wait_for(lambda: len([e for e in events(tmp_path) if isinstance(e, readers.TaskReady)]) == 600)
    assert book.flush(T) == 0
    wait_for(lambda: len([e for e in events(tmp_path) if isinstance(e, readers.TaskReady)]) == 1000)
    book.close()
    book.close()


def test_without_debug_only_that_log_is_empty(tmp_path: Path) -> None:
    book = started(tmp_path, debug=False)
    ready(book, T)
    book.close()
    assert (tmp_path / "debug").read_text() == ""
    assert len(events(tmp_path)) == 4


def test_performance_rows_are_read_back(tmp_path: Path) -> None:
    book = LogBook(tmp_path)
    stats = SimpleNamespace(**{performance._ATTRIBUTES.get(c, c): 3 for c in performance.COLUMNS})
    book.performance(T, stats)
    stats.tasks_done = 99  # a row is of the moment it was told
    book.close()
    with open(tmp_path / "performance") as stream:
        (row,) = readers.read_performance(stream)
    assert row["timestamp"] == T * 1e6
    assert row["tasks_done"] == 3


def test_null_observer_takes_every_fact() -> None:
    nothing = NullObserver()
    ready(nothing, T)
    running(nothing, T)
    ended(nothing, T)
    assert nothing.flush(T) == 0
    nothing.close()


def test_odd_bytes_in_commands_do_not_stop_the_log(tmp_path: Path) -> None:
    book = started(tmp_path)
    book.task_ready(T, 7, 1, SPEC, False, Resources())
    odd = TaskSpec("echo \udcff\n'x'", category="é ü")
    book.task_running(T, 7, 1, 1, odd, False, GIVEN, T, 0.0, 0)
    book.close()
    assert "\\udcff" in (tmp_path / "debug").read_text()


def test_full_disk_is_told_once_and_does_not_stop_the_manager(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = LogSink(tmp_path, ("full", "good"))
    os.dup2(os.open("/dev/full", os.O_WRONLY), sink._files["full"])
    for _ in range(2):
        sink.write("full", "12345")
        sink.write("good", "x")
        sink.push()
    sink.close()
    assert (tmp_path / "good").read_text() == "xx"
    assert sink.lost_bytes == 10
    assert capsys.readouterr().err.count("is incomplete") == 1


# ---------------------------------------------------------------------- run directory


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_NAME, "before")


def test_run_directory_layout(tmp_path: Path) -> None:
    run = create_run_directory(tmp_path / "info", now=T)
    name = time.strftime("%Y-%m-%dT%H%M%S", time.localtime(T))
    assert run.runtime == tmp_path / "info" / name
    assert run[1:] == (run.runtime / "vine-logs", run.runtime / "library-logs", run.runtime / "staging",
                       tmp_path / "info" / "vine-cache")
    assert all(path.is_dir() for path in run)
    assert os.readlink(tmp_path / "info" / "most-recent") == str(run.runtime)
    assert os.environ[ENVIRONMENT_NAME] == str(run.runtime)


def test_two_managers_in_one_second_have_two_directories(tmp_path: Path) -> None:
    first = create_run_directory(tmp_path, now=T)
    second = create_run_directory(tmp_path, now=T)
    assert first.runtime != second.runtime
    assert first.cache == second.cache
    assert os.readlink(tmp_path / "most-recent") == str(second.runtime)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_template_is_strftime_and_an_absolute_one_is_used_as_it_is(tmp_path: Path) -> None:
    assert create_run_directory(tmp_path, "run-%Y", now=T).runtime == tmp_path / "run-2026"
    absolute = tmp_path / "elsewhere" / "run"
    for _ in range(2):
        assert create_run_directory(tmp_path / "info", str(absolute)).runtime == absolute
    with pytest.raises(ConfigError, match="template"):
        create_run_directory(tmp_path, "")


def test_staging_is_removed_wherever_it_is(tmp_path: Path) -> None:
    inside = create_run_directory(tmp_path / "info")
    outside = create_run_directory(tmp_path / "info", staging_path=tmp_path / "scratch")
    assert outside.staging.parent == tmp_path / "scratch"
    assert outside.staging.name.startswith("vine-staging")
    for run in (inside, outside):
        (run.staging / "arguments").mkdir()
        (run.staging / "arguments" / "a").write_text("x")
        assert run.remove_staging() == ""
        assert run.remove_staging() == ""
        assert not run.staging.exists()
        assert run.logs.is_dir()
    assert stat.S_ISDIR((tmp_path / "scratch").stat().st_mode)


def test_unwritable_run_info_path_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VineError, match="cannot make the run directory"):
        create_run_directory(tmp_path / "file" / "info")


# ---------------------------------------------------------------------- readers


@pytest.mark.parametrize("line", [
    "garbage\n", "1 2 TASK 1 DONE SUCCESS  0", "1 2 TASK x DONE SUCCESS 0\n", "1 2 TASK 1 READY a b 1 {broken\n",
    "1 2 PLANET 1 2\n", "1 2 WORKER w RESOURCES {\"cores\":1}\n", "1 2 TASK 1 RETRIEVED SUCCESS 0\n"])
def test_line_that_is_not_understood_is_reported_and_the_next_is_read(line: str) -> None:
    found = list(readers.read_transactions(["# comment\n", line, "5 2 MANAGER 2 START 0\n"]))
    assert found == [readers.Unreadable(2, line.rstrip("\n")), readers.ManagerStart(5, 2)]


def test_reader_takes_lines_of_the_published_program() -> None:
    text = ('9 2 TASK 3 RETRIEVED RESOURCE_EXHAUSTION  9 {"memory":[10,"MB"]} {"wall_time":[1.5,"s"]}\n'
            '9 2 TASK 3 WAITING_RETRIEVAL worker-a \n9 2 WORKER worker-a TRANSFER INPUT file-x 5 6 7\n')
    assert list(readers.read_transactions(text.splitlines(keepends=True))) == [
        readers.TaskRetrieved(9, 3, "RESOURCE_EXHAUSTION", 9, {"memory": 10}, {"wall_time": 1.5}),
        readers.TaskWaitingRetrieval(9, 3, "worker-a"), readers.Transfer(9, "worker-a", "INPUT", "file-x", 5, 6, 7)]

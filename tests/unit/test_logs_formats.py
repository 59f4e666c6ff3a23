"""Lines of the logs are those of the published formats, character by character."""

from __future__ import annotations

import json
import re
import shlex
from types import SimpleNamespace

import pytest

from taskvine_core.constants import (
    VINE_ALLOCATION_MODE_FIXED,
    VINE_RESULT_RESOURCE_EXHAUSTION,
    VINE_RESULT_RMONITOR_ERROR,
    VINE_TASK_RUNNING,
    VINE_TASK_WAITING_RETRIEVAL,
)
from taskvine_core.logs import performance, taskgraph
from taskvine_core.logs.debuglog import DebugLines
from taskvine_core.logs.text import Stamp, megabytes, resource_fields, seconds, tame, word
from taskvine_core.logs.tracking import TaskTrack, WorkerTrack
from taskvine_core.logs.transactions import HEADER, TransactionLines, commit_fields
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol.messages import (
    NOT_MEASURED,
    SOURCE_MANAGER,
    SOURCE_PEER,
    SOURCE_URL,
    Measured,
    WorkerHello,
)
from taskvine_core.resources import Resources

# The published sample (reference, section 21.3), without what it leaves out.
SAMPLE = """\
1795359280436120 2797 MANAGER 2797 START 0
1795359280437385 2797 TASK 1 READY default FIRST_RESOURCES 1 {"disk":[0,"MB"],"cores":[1,"cores"]}
1795359280445423 2797 WORKER worker-6ef59b70 CONNECTION 127.0.0.1:49840
1795359280445489 2797 WORKER worker-6ef59b70 RESOURCES {"memory":[8000,"MB"],"disk":[8000,"MB"],"cores":[2,"cores"]}
1795359280445708 2797 TASK 1 RUNNING worker-6ef59b70  FIRST_RESOURCES {"time_commit_start":[1795359280.445505,"s"],\
"time_commit_end":[1795359280.445659,"s"],"time_input_mgr":[0.000154,"s"],"size_input_mgr":[0,"MB"],\
"memory":[4000,"MB"],"disk":[3000,"MB"],"gpus":[0,"gpus"],"cores":[1,"cores"]}
1795359280448035 2797 TASK 1 WAITING_RETRIEVAL worker-6ef59b70\x20
1795359280448060 2797 CATEGORY default MAX {}
1795359280448063 2797 CATEGORY default MIN {}
1795359280448066 2797 CATEGORY default FIRST FIXED {}
1795359280448182 2797 TASK 1 DONE SUCCESS  0\x20
1795359280470262 2797 WORKER worker-6ef59b70 DISCONNECTION EXPLICIT
1795359280470973 2797 MANAGER 2797 END 34853
"""
RETRIEVED_START = ('1795359280448164 2797 TASK 1 RETRIEVED SUCCESS  0  {} {"time_worker_start":'
                   '[1795359280.446042,"s"],"time_worker_end":[1795359280.447852,"s"],')
RETRIEVED_END = ('"wall_time":[0.00181,"s"],"memory":[4000,"MB"],"disk":[3000,"MB"],"gpus":[0,"gpus"],'
                 '"cores":[1,"cores"]}\n')


class Book:
    """Transaction lines at given times."""

    def __init__(self) -> None:
        self.stamp = Stamp()
        self.lines = TransactionLines(self.stamp)
        self.worker = WorkerTrack("worker-6ef59b70", "node1", "127.0.0.1:49840")

    def at(self, us: int) -> TransactionLines:
        self.stamp.set(us / 1e6)
        return self.lines

    def track(self) -> TaskTrack:
        io = commit_fields(1795359280.445505, 1795359280.445659, 0.000154, 0)
        track = TaskTrack(VINE_TASK_RUNNING, self.worker, TaskSpec("true"), Resources(1, 4000, 3000, 0), io)
        track.start, track.end = 1795359280.446042, 1795359280.447852
        return track

    def text(self) -> str:
        return "".join(self.lines.lines[1:])


def test_transactions_are_the_published_sample() -> None:
    book = Book()
    book.at(1795359280436120).manager_start(1795359280.436120, 2797)
    book.at(1795359280437385).ready(1, "default", False, 1, Resources(cores=1, disk_mb=0))
    book.at(1795359280445423).connection(book.worker)
    book.at(1795359280445489).resources(book.worker, Resources(2, 8000, 8000, 0))
    book.at(1795359280445708).running(1, book.track(), False)
    book.at(1795359280448035).waiting_retrieval(1, book.worker)
    for us, which in ((60, "MAX"), (63, "MIN"), (66, "FIRST")):
        book.at(1795359280448000 + us).category("default", which, VINE_ALLOCATION_MODE_FIXED, Resources())
    book.at(1795359280448182).done(1, 0, 0)
    book.at(1795359280470262).disconnection(book.worker, "EXPLICIT")
    book.at(1795359280470973).manager_end(1795359280.470973)
    assert book.text() == SAMPLE


def test_retrieved_begins_and_ends_as_published_and_is_json() -> None:
    book = Book()
    book.lines.manager_start(0.0, 2797)
    book.at(1795359280448164).retrieved(1, book.track(), 0, 0, NOT_MEASURED, None, 0.25, 3 << 20)
    line = book.lines.lines[-1]
    assert line.startswith(RETRIEVED_START)
    assert line.endswith(RETRIEVED_END)
    values = json.loads(line.split("{} ", 1)[1])
    assert values["time_output_mgr"] == [0.25, "s"]
    assert values["size_output_mgr"] == [3.0, "MB"]
    assert values["time_input_mgr"] == [0.000154, "s"]


def test_measured_values_replace_the_allocation() -> None:
    book = Book()
    book.lines.retrieved(1, book.track(), 0, 0, Measured(1.5, 123, -1, 1 << 20, 0, 1), None, 0.0, 0)
    values = json.loads(book.lines.lines[-1].split("{} ", 1)[1])
    assert values["memory"] == [123, "MB"]
    assert values["disk"] == [3000, "MB"]
    assert values["cpu_time"] == [1.5, "s"]
    assert values["bytes_read"] == [1.0, "MB"]


def test_exhaustion_prints_limits_after_one_blank() -> None:
    book = Book()
    book.lines.retrieved(1, None, VINE_RESULT_RESOURCE_EXHAUSTION, 9, NOT_MEASURED, Resources(memory_mb=10), 0.0, 0)
    assert book.lines.lines[-1].endswith(' RETRIEVED RESOURCE_EXHAUSTION  9 {"memory":[10,"MB"]} {}\n')


def test_monitor_error_has_its_short_name() -> None:
    book = Book()
    book.lines.done(1, VINE_RESULT_RMONITOR_ERROR, -1)
    assert book.lines.lines[-1].endswith("TASK 1 DONE MONITOR_ERROR  -1 \n")


def test_transfers_and_libraries_and_application_lines() -> None:
    book = Book()
    book.lines.manager_start(0.0, 7)
    lines = book.at(5)
    lines.transfer(book.worker, "INPUT", "file-md5-a", 10, 0.5, 2.0)
    lines.cache_update(book.worker, "file-md5-a", 10, 0.5, 2.0)
    lines.library(3, "STARTED", book.worker)
    lines.application("two\nlines")
    assert book.lines.lines[-4:] == [
        "5 7 WORKER worker-6ef59b70 TRANSFER INPUT file-md5-a 10 500000 2000000\n",
        "5 7 WORKER worker-6ef59b70 CACHE_UPDATE file-md5-a 10 500000 2000000\n",
        "5 7 LIBRARY 3 STARTED worker-6ef59b70\n",
        "5 7 APPLICATION two\\nlines\n"]


def test_category_names_are_one_word_and_gpus_are_shown_only_when_there() -> None:
    book = Book()
    book.lines.ready(1, "my cat", True, 2, Resources())
    assert " READY my_cat MAX_RESOURCES 2 {}\n" in book.lines.lines[-1]
    book.lines.resources(book.worker, Resources(1, 2, 3, 4))
    assert '"gpus":[4,"gpus"]' in book.lines.lines[-1]


def test_transactions_begin_with_sixteen_comment_lines() -> None:
    lines = HEADER.splitlines()
    assert len(lines) == 16
    assert all(line.startswith("# ") for line in lines)


def test_performance_header_and_row() -> None:
    assert performance.HEADER.startswith("# timestamp workers_connected workers_init ")
    assert " workers_idled_out workers_blocked workers_slow workers_lost tasks_waiting " in performance.HEADER
    assert performance.HEADER.endswith(" min_disk inuse_cache\n")
    assert performance.HEADER.count("\n") == 1
    assert "gpus" not in performance.HEADER
    names = [performance._ATTRIBUTES.get(c, c) for c in performance.COLUMNS]
    stats = SimpleNamespace(**{name: number for number, name in enumerate(names)})
    stats.bandwidth = 1.0
    words = performance.row(2.5, stats).split()
    assert words[0] == "2500000"
    assert words[1 + performance.COLUMNS.index("bandwidth")] == "1.000000"
    assert words[1 + performance.COLUMNS.index("time_execute")] == str(performance.COLUMNS.index("time_execute"))
    assert len(words) == len(performance.HEADER.split()) - 1


def test_taskgraph_lines_can_be_split_like_a_shell() -> None:
    graph = taskgraph.TaskGraphLines()
    graph.file("file-md5-a", '/data/my "best" file', 12)
    spec = TaskSpec('"odd name" --x', inputs=(Mount("file-md5-a", "in"),), outputs=(Mount("temp-rnd-b", "o"),))
    graph.task(4, spec)
    graph.task(5, TaskSpec("true"))
    graph.mini_task("task-md5-c", spec)
    graph.end()
    assert graph.lines[0] == taskgraph.HEADER
    assert shlex.split(graph.lines[1]) == ["FILE", "file-md5-a", "/data/my 'best' file", "12"]
    assert shlex.split(graph.lines[2]) == ["TASK", "T4", "'odd", "INPUTS", "file-md5-a", "OUTPUTS", "temp-rnd-b"]
    assert graph.lines[3] == 'TASK T5 "true" INPUTS OUTPUTS \n'
    assert graph.lines[4].startswith('TASK T-1 "')
    assert graph.lines[5] == "# end\n"


def test_workflow_file_names_the_language() -> None:
    crate = json.loads(taskgraph.workflow_json())
    assert crate["@context"] == "https://w3id.org/ro/crate/1.1/context"
    assert crate["@graph"][0]["@type"] == "ComputerLanguage"
    assert crate["@graph"][1] == {"@id": "managerInfo", "@name": "Manager description"}


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.00181, "0.00181"), (2.5, "2.5"), (1e-6, "1e-06")])
def test_seconds_are_short_and_exact_json(value: float, text: str) -> None:
    assert seconds(value) == text
    assert json.loads(text) == value


def test_small_texts() -> None:
    assert megabytes(0) == "0"
    assert megabytes(1 << 19) == "0.5"
    assert resource_fields(Resources()) == ""
    assert resource_fields(Resources(1, 2, 3, 4)) == (
        '"memory":[2,"MB"],"disk":[3,"MB"],"gpus":[4,"gpus"],"cores":[1,"cores"]')
    assert word("a b\tc\n") == "a_b_c"
    assert word("") == "_"
    assert tame("plain words stay") == "plain words stay"
    assert tame("we put this") == "we\u00a0put\u00a0this"
    assert "\n" not in tame("a\nb")


# ---------------------------------------------------------------------- debug

PREFIX = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d\d vine_manager\[42\](vine|tcp): .*\n\Z")
HELLO = WorkerHello("worker-1", "node1", "Linux", "x86_64", "0.1", ("gpu a",), Resources(2, 8000, 9000, 0), "node1.fr",
                    5001, 0.0, 900.0, "fac", "")


class Debug:
    """Debug lines at one moment, with one worker connected."""

    def __init__(self) -> None:
        stamp = Stamp()
        stamp.set(1795359280.43)
        self.lines = DebugLines(stamp)
        self.lines.manager_start(1795359280.43, 42, 0, 9123)
        self.worker = WorkerTrack("worker-1", "node1", "10.0.0.1:4000")
        self.lines.connected(self.worker, HELLO)
        self.lines.lines.clear()

    def track(self, spec: TaskSpec | None = None) -> TaskTrack:
        track = TaskTrack(VINE_TASK_RUNNING, self.worker, spec or TaskSpec("true"), Resources(1, 2, 3, 0), "")
        track.start, track.end = 1795359280.10, 1795359280.20
        return track

    def take(self) -> list[str]:
        """Messages without their prefix."""
        text = "".join(self.lines.lines)
        self.lines.lines.clear()
        for line in text.splitlines(keepends=True):
            assert PREFIX.match(line), line
        return [line.split(": ", 1)[1] for line in text.splitlines()]


def test_debug_start_begins_with_the_requested_port() -> None:
    stamp = Stamp()
    stamp.set(1795359280.43)
    lines = DebugLines(stamp)
    lines.manager_start(1795359280.43, 42, 0, 9123)
    assert re.match(r"\S+ \S+\.43 vine_manager\[42\]tcp: listening on port 0\n\Z", lines.lines[0])
    assert lines.lines[1].endswith("vine: manager start\n")
    assert lines.lines[3].endswith("vine: Manager is listening on port 9123.\n")


def test_debug_worker_lines() -> None:
    debug = Debug()
    other = WorkerTrack("worker-2", "node2", "10.0.0.2:4000")
    debug.lines.connected(other, HELLO)
    lines = debug.take()
    rx = "rx from node2 (10.0.0.2:4000): "
    assert lines[:2] == ["worker 10.0.0.2:4000 connected", "2 workers connected in total now"]
    assert rx + "info worker-id worker-2" in lines
    assert rx + "feature gpu_a" in lines
    assert rx + "transfer-port 5001" in lines
    assert lines[-8:] == [rx + "resources", "cores 2.000000", "memory 8000.000000", "disk 9000.000000", "gpus 0.000000",
                          "workers 1.000000", "tag 0", "end"]
    debug.lines.removed(other)
    assert debug.take() == ["worker node2 (10.0.0.2:4000) removed", "1 workers connected in total now"]


def test_debug_task_block_is_whole_and_before_the_state_change() -> None:
    debug = Debug()
    spec = TaskSpec("ls -l", category="c d", inputs=(Mount("file-md5-a", "in", 0),),
                    outputs=(Mount("temp-rnd-b", "o", 8),))
    debug.lines.running(7, debug.track(spec), spec, True)
    tx = "tx to node1 (10.0.0.1:4000): "
    assert debug.take() == [
        tx + "task 7", tx + "cmd 5", "ls -l", tx + "category c_d", tx + "cores 1", tx + "gpus 0", tx + "memory 2",
        tx + "disk 3", tx + "infile file-md5-a in 0", tx + "outfile temp-rnd-b o 8", tx + "end",
        "node1 (10.0.0.1:4000) busy on 'ls -l'", "Task 7 state change: READY (1) to RUNNING (2)"]


def test_debug_end_of_an_attempt() -> None:
    debug = Debug()
    debug.lines.waiting_retrieval(1795359280.3, 7, debug.track(), 0, 1, 12, 5)
    rx = "rx from node1 (10.0.0.1:4000): "
    first, *rest = debug.take()
    assert first.startswith(rx + "complete 0 1 12 12 17953592801") and first.endswith(" 5 7")
    assert rest == ["Task 7 state change: RUNNING (2) to WAITING_RETRIEVAL (3)", rx + "stdout 7 12",
                    "tx to node1 (10.0.0.1:4000): kill 7"]


def test_debug_sets_back_the_clock_of_a_worker_that_runs_ahead() -> None:
    debug = Debug()
    debug.lines.waiting_retrieval(1000.0, 7, debug.track(), 0, 0, 0, 0)
    words = debug.take()[0].split()
    assert (int(words[-4]), int(words[-3])) == (999900000, 1000000000)


def test_debug_free_text_cannot_be_taken_for_a_line_of_the_log() -> None:
    debug = Debug()
    debug.lines.application("worker 1.2.3.4:5 removed")
    debug.lines.recovery(3, "sh -c 'put x'", "temp-rnd-b")
    debug.lines.cache_invalid(debug.worker, "file-md5-a", 0, "unlink failed\nbadly")
    app, recovery, invalid, reason = debug.take()
    assert app.split(" ")[:1] == ["APPLICATION"] and len(app.split(" ")) == 2
    assert recovery.split(" ")[:4] == ["Submitted", "recovery", "task", "3"] and recovery.endswith(" temp-rnd-b.")
    assert invalid.endswith("cache-invalid file-md5-a 19")
    assert "unlink" not in reason.split(" ")


@pytest.mark.parametrize(("where", "address", "expected", "known"), [
    (SOURCE_URL, "https://h/x", "puturl_now https://h/x file-md5-a 1 0 0644 9", True),
    (SOURCE_URL, "file:///x", "puturl_now file:///x file-md5-a 1 0 0644 9", True),
    (SOURCE_URL, "http://h/x y", "geturl http://h/x%20y file-md5-a 1 0 0644 9", False),
    (SOURCE_PEER, "node1.fr:5001", "puturl_now workerip://10.0.0.1:5001/file-md5-a file-md5-a 1 0 0644 9", True),
    (SOURCE_PEER, "10.0.0.1:5001", "puturl_now workerip://10.0.0.1:5001/file-md5-a file-md5-a 1 0 0644 9", True),
    (SOURCE_PEER, "10.9.9.9:1", "geturl workerip://10.9.9.9:1/file-md5-a file-md5-a 1 0 0644 9", False),
    (SOURCE_MANAGER, "", "put file-md5-a 1 0", False)])
def test_debug_transfer_id_returns_only_when_its_order_is_known_to_readers(
        where: int, address: str, expected: str, known: bool) -> None:
    debug = Debug()
    debug.lines.fetch(debug.worker, "file-md5-a", 1, -1, 0, 9, where, address)
    assert debug.take()[0] == "tx to node1 (10.0.0.1:4000): " + expected
    for last in ("9" if known else "X", "X"):
        debug.lines.cache_update(debug.worker, "file-md5-a", 1, 1, 5, 0.1, 2.0, 9)
        assert debug.take()[0].endswith(f"cache-update file-md5-a 1 1 5 2 100000 2000000 {last}")


def test_debug_unlinks_only_what_was_shown_there() -> None:
    debug = Debug()
    debug.lines.unlink(debug.worker, ("file-md5-a",))
    assert debug.take() == []
    debug.lines.cache_update(debug.worker, "file-md5-a", 1, 1, 5, 0.1, 2.0, 0)
    debug.lines.unlink(debug.worker, ("file-md5-a",))
    assert debug.take()[1:] == ["tx to node1 (10.0.0.1:4000): unlink file-md5-a"]


def test_debug_retry_after_retrieval_goes_back_from_waiting_retrieval() -> None:
    debug = Debug()
    track = debug.track()
    track.state = VINE_TASK_WAITING_RETRIEVAL
    debug.lines.retrieved(7, track, "RESOURCE_EXHAUSTION", False)
    debug.lines.ready(7, 2, track)
    assert debug.take() == ["Task 7 state change: WAITING_RETRIEVAL (3) to READY (1)"]


def test_debug_task_that_never_ran_makes_no_state_change() -> None:
    debug = Debug()
    debug.lines.retrieved(7, None, "CANCELLED", False)
    debug.lines.done(7, None)
    assert debug.take() == ["Task 7 returns without having run: CANCELLED"]

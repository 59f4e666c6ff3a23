"""Bad input of a program: each kind has its own clear outcome, and the next task runs."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_support import MB, PATIENCE_S, Cluster, environment, wait_until

import taskvine_core as vine

pytestmark = pytest.mark.live


@pytest.fixture
def one(cluster: Cluster) -> Cluster:
    """A cluster with one worker."""
    cluster.start("--cores", "2")
    return cluster


# ------------------------------------------------------------------------------------------- local files


def test_a_local_input_that_does_not_exist_is_input_missing(one: Cluster, tmp_path: Path) -> None:
    task = one.run("cat in", inputs={"in": one.manager.declare_file(tmp_path / "nowhere")})
    assert task.result == "input missing" and not task.successful()
    assert one.run("echo on").output == "on\n"


@pytest.mark.parametrize("size", [10, 8 * MB], ids=["inline", "large"])
def test_a_local_input_that_vanished_after_its_declaration_is_input_missing(
        one: Cluster, tmp_path: Path, size: int) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"x" * size)
    file = one.manager.declare_file(path)
    path.unlink()
    task = one.run("cat in", inputs={"in": file})
    assert task.result == "input missing"


def test_a_local_input_that_changed_size_after_its_declaration_arrives_whole(one: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"x" * 100)
    file = one.manager.declare_file(path)
    path.write_bytes(b"y" * 3 * MB)
    task = one.run("stat -c %s in; tr -d y < in", inputs={"in": file})
    assert task.successful() and task.output == f"{3 * MB}\n"


def test_an_output_that_was_not_produced_is_output_missing(one: Cluster, tmp_path: Path) -> None:
    for file in (one.manager.declare_file(tmp_path / "out"), one.manager.declare_temp(),
                 one.manager.declare_buffer()):
        task = one.run("true", outputs={"out": file})
        assert task.result == "output missing" and task.exit_code == 0 and not task.successful()
    assert not (tmp_path / "out").exists()


def test_a_task_that_reads_a_temp_that_was_not_produced_comes_back(one: Cluster) -> None:
    temp = one.manager.declare_temp()
    producer = one.task("true", outputs={"out": temp})
    reader = one.task("cat in", inputs={"in": temp})
    one.finish()
    assert producer.result == "output missing" and reader.result == "input missing"


def test_directories_are_outputs_like_files(one: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "results"
    (place / "old").mkdir(parents=True)
    file = one.manager.declare_file(place)
    task = one.run("mkdir -p out/a/b; echo deep > out/a/b/c; ln -s a/b/c out/link; mkdir out/empty",
                   outputs={"out": file})
    assert task.successful()
    assert (place / "a/b/c").read_text() == "deep\n" == (place / "link").read_text()
    assert sorted(p.name for p in place.iterdir()) == ["a", "empty", "link"]
    temp = one.manager.declare_temp()
    assert one.run("mkdir out; echo x > out/y", outputs={"out": temp}).successful()
    assert one.run("cat in/y", inputs={"in": temp}).output == "x\n"


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "a/../../escape", "", "a\0b", ".."])
def test_names_that_lead_out_of_the_sandbox_are_refused_at_the_call(one: Cluster, tmp_path: Path, name: str) -> None:
    for add in ("add_input", "add_output"):
        task = vine.Task("true")
        with pytest.raises(ValueError, match="remote"):
            getattr(task, add)(one.manager.declare_file(tmp_path / "f"), name)


# ------------------------------------------------------------------------------------------- stdout


def test_output_that_is_not_utf8_is_text_with_nothing_lost(one: Cluster) -> None:
    task = one.run("printf 'a\\377\\376\\200z'")
    assert task.successful() and isinstance(task.output, str)
    assert task.output.encode("utf-8", "surrogateescape") == b"a\xff\xfe\x80z" or "�" in task.output
    assert task.output.startswith("a") and task.output.endswith("z")


def test_large_stdout_arrives_whole(one: Cluster) -> None:
    task = one.run("head -c 5000000 /dev/zero | tr '\\0' x; echo end")
    assert task.successful() and len(task.output) == 5000004 and task.output.endswith("xend\n")


def test_stdout_beyond_the_limit_is_cut_and_says_so(one: Cluster, tmp_path: Path) -> None:
    one.manager.tune("max-task-stdout-storage", 1_000_000)
    one.workers[0].close()
    one.start(name="fresh")
    task = one.run("head -c 3000000 /dev/zero | tr '\\0' x; echo end")
    assert task.result == "stdout missing" and not task.successful()
    assert len(task.output) <= 1_100_000
    assert one.run("echo on").output == "on\n"


# ------------------------------------------------------------------------------------------- Python tasks


def test_an_exception_of_the_function_is_no_result_and_its_traceback_is_printed(one: Cluster) -> None:
    def fails() -> None:
        raise ValueError("on purpose")

    task = vine.PythonTask(fails)
    one.manager.submit(task)
    one.finish()
    assert isinstance(task.output, vine.PythonTaskNoResult) and not task.successful()
    assert task.result == "output missing" and task.exit_code == 1 and "ValueError: on purpose" in task.std_output


def test_an_exception_that_cannot_be_pickled_still_says_what_it_was(one: Cluster) -> None:
    def fails() -> None:
        import threading

        class Strange(Exception):
            def __init__(self) -> None:
                super().__init__("a strange thing")
                self.lock = threading.Lock()

        raise Strange()

    task = vine.PythonTask(fails)
    one.manager.submit(task)
    one.finish()
    assert "strange" in f"{task.output!r} {task.std_output}".lower()
    assert one.run("echo on").output == "on\n"


def test_a_result_that_cannot_be_pickled_is_no_success_and_says_why(one: Cluster) -> None:
    def opens() -> Any:
        import threading

        return threading.Lock()

    task = vine.PythonTask(opens)
    one.manager.submit(task)
    one.finish()
    assert isinstance(task.output, Exception)
    assert "pickle" in f"{task.output!r} {task.std_output}"


def test_a_result_that_does_not_unpickle_is_the_exception_not_a_crash(one: Cluster) -> None:
    def builds() -> Any:
        class Trap:
            def __reduce__(self) -> Any:
                return (int, ("no number",))

        return Trap()

    task = vine.PythonTask(builds)
    one.manager.submit(task)
    one.finish()
    assert isinstance(task.output, ValueError) and "no number" in str(task.output)


def test_a_function_that_ends_its_process_is_reported(one: Cluster) -> None:
    def leaves() -> None:
        import os

        os._exit(7)

    task = vine.PythonTask(leaves)
    one.manager.submit(task)
    one.finish()
    assert not task.successful() and task.exit_code == 7
    assert isinstance(task.output, vine.PythonTaskNoResult)


def test_a_function_killed_by_a_signal_is_reported(one: Cluster) -> None:
    def dies() -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGSEGV)

    task = vine.PythonTask(dies)
    one.manager.submit(task)
    one.finish()
    assert not task.successful() and isinstance(task.output, vine.PythonTaskNoResult)
    assert one.run("echo on").output == "on\n"


# ------------------------------------------------------------------------------------------- URLs


class WebServer(http.server.ThreadingHTTPServer):
    """Serves bodies and misbehaves on request. ``gets`` counts; ``most`` is the largest number at a time per path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gets: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.now: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.slow = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.send_response(404 if self.path == "/404" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.gets[self.path] += 1
            server.now[self.path] += 1
            server.most[self.path] = max(server.most[self.path], server.now[self.path])
        try:
            self.answer()
        finally:
            with server.lock:
                server.now[self.path] -= 1

    def answer(self) -> None:
        if self.path == "/404":
            self.send_error(404)
            return
        if self.path == "/hangs":
            self.server.stop.wait(PATIENCE_S)
            self.close_connection = True
            return
        body = b"b" * (2 * MB)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/short" or (self.path == "/once-short" and self.server.gets[self.path] == 1):
            self.wfile.write(body[:1000])
            self.close_connection = True
        else:
            time.sleep(0.1)  # others have time to come, were they allowed
            self.wfile.write(body)


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("path", ["/404", "/short"])
def test_a_url_that_cannot_be_fetched_is_forsaken_after_the_allowed_tries(
        one: Cluster, web: WebServer, path: str) -> None:
    task = vine.Task("cat in")
    task.add_input(one.manager.declare_url(web.url(path)), "in")
    task.set_max_forsaken(2)
    one.manager.submit(task)
    one.finish()
    assert task.result == "forsaken" and not task.successful()
    assert web.gets[path] == 3
    assert one.run("echo on").output == "on\n"


def test_a_url_of_a_server_that_is_not_there_is_forsaken(one: Cluster) -> None:
    task = vine.Task("cat in")
    task.add_input(one.manager.declare_url("http://127.0.0.1:1/x"), "in")
    task.set_max_forsaken(1)
    one.manager.submit(task)
    one.finish()
    assert task.result == "forsaken"


def test_a_url_that_hangs_holds_up_only_its_own_task(
        one: Cluster, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.staging.FETCH_SILENCE_S", 1.0)
    hangs = vine.Task("cat in")
    hangs.add_input(one.manager.declare_url(web.url("/hangs")), "in")
    hangs.set_max_forsaken(1)
    hangs.set_cores(1)
    one.manager.submit(hangs)
    for n in range(5):
        one.task(f"echo {n}", tag="quick")
    assert [one.wait().tag for _ in range(5)] == ["quick"] * 5
    one.finish()
    assert hangs.result == "forsaken"


def test_a_url_whose_body_was_short_once_is_fetched_again(one: Cluster, web: WebServer) -> None:
    task = one.run("stat -c %s in", inputs={"in": one.manager.declare_url(web.url("/once-short"))})
    assert task.successful() and task.output == f"{2 * MB}\n"
    assert web.gets["/once-short"] == 2


def test_a_url_many_workers_want_is_asked_of_its_server_rarely_and_one_at_a_time(
        cluster: Cluster, web: WebServer) -> None:
    cluster.manager.tune("file-source-max-transfers", 1)
    workers = cluster.start_many(6)
    file = cluster.manager.declare_url(web.url("/shared"), cache=True)
    tasks = [cluster.task("stat -c %s in", at=worker, inputs={"in": file}) for worker in workers]
    cluster.finish()
    assert all(task.successful() and task.output == f"{2 * MB}\n" for task in tasks)
    assert web.most["/shared"] == 1 and web.gets["/shared"] <= 3


# ------------------------------------------------------------------------------------------- the program itself

INTERRUPTED = """
import sys
import taskvine_core as vine
m = vine.Manager(0, run_info_path=sys.argv[1])
m.submit(vine.Task("echo survived"))
try:
    print(m.port, flush=True)       # whoever reads it may interrupt from here on
    m.wait(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
task = None
while task is None:
    task = m.wait(5)
print(task.result, task.output.strip(), m.empty(), flush=True)
try:
    m.hungry()
    print("usable", flush=True)
finally:
    m.close()
"""


def test_ctrl_c_reaches_a_program_that_waits_and_the_manager_stays_usable(tmp_path: Path) -> None:
    from chaos_support import Worker

    out = tmp_path / "out"
    with out.open("wb") as stream:
        program = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path / "run-info")], stdout=stream,
                                   stderr=subprocess.STDOUT, env=environment(), stdin=subprocess.DEVNULL)
    worker = None
    try:
        wait_until(out.read_text, "it listens")
        # It waits when its main thread sleeps in the kernel; the interrupt must reach it there.
        state = Path(f"/proc/{program.pid}/wchan")
        wait_until(lambda: "futex" in state.read_text() or "wait" in state.read_text() or state.read_text() == "0",
                   "it waits")
        program.send_signal(signal.SIGINT)
        wait_until(lambda: "interrupted" in out.read_text(), "the interrupt arrives")
        worker = Worker("w", tmp_path / "w", "127.0.0.1", int(out.read_text().split()[0]))
        assert program.wait(PATIENCE_S) == 0, out.read_text()
        assert out.read_text().splitlines()[1:] == ["interrupted", "success survived True", "usable"]
    finally:
        if program.poll() is None:
            program.kill()
        program.wait(PATIENCE_S)
        if worker is not None:
            worker.close()

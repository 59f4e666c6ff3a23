"""Command tasks with a real worker: what the published vine_python test expects (reference, sections 6 and 24.3)."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import tarfile
import threading
import time
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
    made.tune("transient-error-interval", 1)
    cluster.worker(made)
    return made


def test_an_executable_with_input_and_output_file(manager, tmp_path):
    (tmp_path / "prog").write_text("#!/bin/sh\ntr a-z A-Z < in > out\n")
    (tmp_path / "prog").chmod(0o755)
    (tmp_path / "data").write_text("text")
    task = vine.Task("./prog", inputs={manager.declare_file(tmp_path / "prog", cache=True): "prog",
                                       manager.declare_file(tmp_path / "data"): "in"})
    task.add_output(manager.declare_file(tmp_path / "deep" / "er" / "out"), "out")
    assert run(manager, task).successful() and (tmp_path / "deep" / "er" / "out").read_text() == "TEXT"
    assert task.id >= 1 and task.hostname and ":" in task.addrport and task.std_output == ""


def test_tasks_may_read_a_local_file_and_write_it_back_one_after_the_other(manager, tmp_path):
    (tmp_path / "ledger").write_text("0")
    ledger = manager.declare_file(tmp_path / "ledger", cache=True)
    for number in range(1, 6):
        task = vine.Task(f"printf ' %s' {number} >> ledger")
        task.add_input(ledger, "ledger")
        task.add_output(ledger, "ledger")
        manager.submit(task)
    assert all(task.successful() for task in drain(manager, 5))
    assert (tmp_path / "ledger").read_text() == "0 1 2 3 4 5"


@pytest.mark.parametrize("symlink", [False, True])
def test_an_output_may_be_inside_an_input_directory(manager, tmp_path, symlink):
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "dir" / "sub" / "f").write_text("x")
    task = vine.Task("cat my_dir/sub/f > my_dir/out")
    task.add_input(manager.declare_file(tmp_path / "dir"), "my_dir", mount_symlink=symlink)
    out = manager.declare_file(tmp_path / "out")
    task.add_output(out, "my_dir/out")
    run(manager, task)
    assert task.successful(), (task.result, task.std_output)
    assert (tmp_path / "out").read_text() == "x" and not (tmp_path / "dir" / "out").exists()


def test_a_virtual_environment_goes_in_comes_out_and_passes_from_worker_to_worker(cluster, tmp_path):
    """Its bin/python leads out of it, which is nothing unusual: links travel as links."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(tmp_path / "env")], check=True,
                   timeout=60)
    (tmp_path / "env" / "missing").symlink_to("/no/such/place")
    other = cluster.manager()
    for feature in ("left", "right"):
        cluster.worker(other, "--feature", feature)
    env, temp, back = other.declare_file(tmp_path / "env", cache=True), other.declare_temp(), None
    first = vine.Task("e/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'; cp -a e f")
    first.add_input(env, "e")
    first.add_output(temp, "f")
    first.add_feature("left")
    second = vine.Task("e/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'")
    second.add_input(temp, "e")
    back = other.declare_file(tmp_path / "back")
    second.add_output(back, "e")
    second.add_feature("right")
    other.submit(first)
    other.submit(second)
    for task in drain(other, cluster.log):
        assert task.successful() and task.std_output == "True\n", (task.result, task.std_output, cluster.log())
    for name in ("bin/python", "bin/python3", "missing"):
        assert os.readlink(tmp_path / "back" / name) == os.readlink(tmp_path / "env" / name)
    assert (tmp_path / "back" / "pyvenv.cfg").read_text() == (tmp_path / "env" / "pyvenv.cfg").read_text()


@pytest.mark.parametrize("size", [10, 300_000])
def test_os_and_arch_in_a_path_choose_the_file_for_each_worker(cluster, tmp_path, size):
    kinds = {"left": ("Linux", "x86_64"), "right": ("Plan9", "mips/el")}
    for os_name, arch in kinds.values():
        (tmp_path / f"prog.{os_name}.{arch.replace('/', '_')}").write_text(f"#{os_name}".ljust(size, "#"))
    other = cluster.manager()
    for feature, (os_name, arch) in kinds.items():
        cluster.worker(other, "--feature", feature, "--os", os_name, "--arch", arch)
    prog = other.declare_file(tmp_path / "prog.$OS.$ARCH", cache="worker")
    assert other.declare_file(tmp_path / "prog.$OS.$ARCH") is prog
    for round_ in range(3):     # what the first worker had says nothing about what the other gets
        for feature in kinds if round_ != 1 else reversed(kinds):
            task = vine.Task("head -c 6 prog; wc -c < prog")
            task.add_input(prog, "prog")
            task.add_feature(feature)
            assert run(other, task, cluster.log).std_output == f"#{kinds[feature][0]}{size}\n"


def test_a_worker_without_a_file_for_its_kind_costs_only_the_tasks_sent_there(cluster, tmp_path):
    (tmp_path / "prog.Linux").write_text("here")
    other = cluster.manager()
    for os_name in ("Linux", "Plan9"):
        cluster.worker(other, "--feature", os_name, "--os", os_name)
    prog = other.declare_file(tmp_path / "prog.$OS")
    waiting = tmp_path / "go"
    for os_name, wait in (("Linux", f"while [ ! -e {waiting} ]; do sleep 0.05; done;"), ("Plan9", "")):
        task = vine.Task(f"{wait} cat prog")
        task.add_input(prog, "prog")
        task.add_feature(os_name)
        task.set_tag(os_name)
        other.submit(task)
    missing = other.wait_for_tag("Plan9", 20)
    assert (missing.result, missing.exit_code) == ("input missing", -1)
    waiting.touch()
    assert other.wait_for_tag("Linux", 20).std_output == "here"


def test_a_file_that_is_really_called_os_is_itself(manager, tmp_path):
    (tmp_path / "price-in-$OS").write_text("literal")
    task = vine.Task("cat in")
    task.add_input(manager.declare_file(tmp_path / "price-in-$OS"), "in")
    assert run(manager, task).std_output == "literal"


def test_a_directory_may_be_an_output(manager, tmp_path):
    task = vine.Task("mkdir -p d/e && echo 1 > d/e/f && ln -s e/f d/link")
    task.add_output(manager.declare_file(tmp_path / "result"), "d")
    assert run(manager, task).successful()
    assert (tmp_path / "result" / "e" / "f").read_text() == "1\n" and os.readlink(tmp_path / "result" / "link") == "e/f"


def test_a_buffer_in_and_two_out(manager):
    data = "hello\n" * 100
    out = [manager.declare_buffer(), manager.declare_buffer()]
    task = vine.Task("cp in a; cp in b", inputs={manager.declare_buffer(data): "in"},
                     outputs={out[0]: "a", out[1]: "b"})
    run(manager, task)
    assert task.successful() and [o.contents() for o in out] == [data.encode()] * 2


def test_a_large_buffer_travels_both_ways(manager):
    data = os.urandom(3 << 20)
    out = manager.declare_buffer()
    run(manager, vine.Task("cp in out", inputs={manager.declare_buffer(data): "in"}, outputs={out: "out"}))
    assert out.contents() == data


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("./data", 126), ("./nothing", 127), ("kill -9 $$", 9)])
def test_a_command_that_fails_is_a_completed_task(manager, command, code):
    task = run(manager, vine.Task(command, inputs={manager.declare_buffer("no program"): "data"}))
    assert (task.result, task.exit_code, task.completed(), task.successful()) == ("success", code, True, False)


def test_a_missing_input_is_found_at_dispatch(manager, tmp_path):
    task = vine.Task("true", inputs={manager.declare_file(tmp_path / "none"): "in"})
    run(manager, task)
    assert (task.result, task.exit_code) == ("input missing", -1)


def test_an_output_not_made_is_missing_and_the_others_come(manager, tmp_path):
    task = vine.Task("echo x > made")
    task.add_output(manager.declare_file(tmp_path / "forgotten"), "forgotten")
    task.add_output(manager.declare_file(tmp_path / "made"), "made")
    run(manager, task)
    assert (task.result, task.exit_code) == ("output missing", 0) and (tmp_path / "made").read_text() == "x\n"


def test_outputs_only_on_success_or_failure(manager, tmp_path):
    for code in (0, 1):
        task = vine.Task(f"echo {code} > good; echo {code} > bad; exit {code}")
        task.add_output(manager.declare_file(tmp_path / f"good{code}"), "good", success_only=True)
        task.add_output(manager.declare_file(tmp_path / f"bad{code}"), "bad", failure_only=True)
        assert run(manager, task).exit_code == code
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad1", "good0"]


def test_time_limits(manager):
    fine = vine.Task("sleep 0.2", time_max=10)
    slow = vine.Task("sleep 60", time_max=1)
    early = vine.Task("sleep 0.2")
    early.set_time_end((time.time() + 20) * 1e6)
    late = vine.Task("sleep 60")
    late.set_time_end((time.time() + 2) * 1e6)
    past = vine.Task("true", time_end=1)
    for task in (fine, slow, early, late, past):
        manager.submit(task)
    list(drain(manager))
    assert [(t.result, t.exit_code) for t in (fine, slow, early, late, past)] == [
        ("success", 0), ("max wall time", 9), ("success", 0), ("max end time", 9), ("max end time", -1)]


def test_environment_variables_and_unset(manager):
    task = vine.Task("echo $A-${HOME-unset}-$CORES", env={"A": "a b", "HOME": None}, cores=1)
    assert run(manager, task).std_output == "a b-unset-1\n"


def test_output_is_decoded_leniently_and_may_be_large(manager):
    task = run(manager, vine.Task(r"printf 'caf\351\n'; head -c 300000 /dev/zero | tr '\0' x"))
    assert task.std_output == "caf\ufffd\n" + "x" * 300_000 and task.result == "success"


def test_an_untarred_url_and_a_mini_task_used_twice(manager, tmp_path):
    (tmp_path / "hello").write_text("from tar")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "hello", "hello")
    untarred = manager.declare_untar(manager.declare_url((tmp_path / "a.tar.gz").as_uri()))
    assert run(manager, vine.Task("cat d/hello", inputs={untarred: "d"})).std_output == "from tar"
    made = manager.declare_minitask(vine.Task("echo made > output"), "output", cache=True)
    made.set_mode(0o600)
    for _ in range(2):
        task = vine.Task("cat f; stat -L -c %a f; echo more >> f && cat f", inputs={made: "f"})
        assert run(manager, task).std_output == "made\n600\nmade\nmore\n"


def test_a_url_used_twice_and_one_that_does_not_exist(manager):
    class Handler(http.server.BaseHTTPRequestHandler):
        asked = []

        def do_GET(self):
            self.asked.append(self.path)
            self.send_response(200 if self.path == "/data" else 404)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        good = manager.declare_url(f"{base}/data", cache=True)
        for _ in range(2):
            assert run(manager, vine.Task("cat in", inputs={good: "in"})).std_output == "data"
        assert Handler.asked.count("/data") == 1
        task = vine.Task("cat in", inputs={manager.declare_url(f"{base}/none"): "in"}, max_forsaken=1)
        run(manager, task)
        assert (task.result, task.exit_code) == ("forsaken", -1)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_a_temp_is_fetched_when_asked_for(manager):
    temp = manager.declare_temp()
    run(manager, vine.Task("echo howdy > out", outputs={temp: "out"}))
    assert manager.get_file_replica_count(temp) == 1
    assert manager.fetch_file(temp) == "howdy\n" and temp.contents() == b"howdy\n"
    assert run(manager, vine.Task("cat in", inputs={temp: "in"})).std_output == "howdy\n"
    manager.prune_file(temp)
    until(lambda: manager.get_file_replica_count(temp) == 0, "the replica is gone")


def test_a_strict_input_nobody_holds_fails(manager, tmp_path):
    task = vine.Task("true")
    task.add_input(manager.declare_buffer("x"), "in", strict_input=True)
    run(manager, task)
    assert task.result == "fixed location missing"


def test_watched_output_arrives_while_the_task_runs(manager, tmp_path):
    path = tmp_path / "log"
    task = vine.Task("echo first >> log; while [ ! -e go ]; do sleep 0.05; done; echo last >> log", time_max=30)
    task.add_output(manager.declare_file(path), "log", watch=True)
    manager.submit(task)
    until(lambda: manager.wait(0.1) is None and path.exists() and path.read_text() == "first\n", "the first line came")
    manager.cancel_all()
    [back] = drain(manager)
    assert back is task and task.result == "cancelled"


def test_features_keep_tasks_away_until_a_worker_has_them(manager, cluster):
    task = vine.Task("echo here", features="special")
    manager.submit(task)
    assert manager.wait(0.5) is None and task.state == "READY"
    worker = cluster.worker(manager, "--feature", "special")
    [back] = drain(manager)
    assert back is task and task.successful()
    worker.terminate()
    until(lambda: manager.stats.workers_connected == 1, "the second worker left")


def test_results_come_in_the_order_of_the_tags_waited_for(manager):
    tags = list("abcdefgh")
    for tag in tags:
        manager.submit(vine.Task("true", tag=tag))
    order = list("hbdafgce")
    assert [manager.wait_for_tag(tag, 10).tag for tag in order] == order and manager.empty()


def test_cancelled_tasks_all_come_back(manager):
    for _ in range(6):
        manager.submit(vine.Task("sleep 60", cores=1))
    assert manager.wait(1) is None
    until(lambda: manager.stats.tasks_running > 0, "some run")
    assert manager.cancel_all() == 6
    assert [t.result for t in drain(manager)] == ["cancelled"] * 6


def test_a_file_to_be_unlinked_waits_for_the_task_object(manager, tmp_path):
    class Cleans(vine.Task):
        def submit_finalize(self):
            self.file = self._manager.declare_file(tmp_path / "f", unlink_when_done=True)
            self.add_input(self.file, "in")

        def __del__(self):
            self._manager.remove_file(self.file)

    (tmp_path / "f").write_text("x")
    task = Cleans("sleep 60")
    manager.submit(task)
    manager.wait(0.2)
    manager.cancel_by_task_id(task.id)
    [back] = drain(manager)
    assert back is task and (tmp_path / "f").exists()
    del task, back
    assert not (tmp_path / "f").exists()


def test_metrics_and_resources_of_a_finished_task(manager):
    task = run(manager, vine.Task("sleep 0.3", cores=1, memory=50, disk=60))
    assert task.get_metric("time_workers_execute_last") >= 300_000
    assert task.get_metric("time_when_submitted") <= task.get_metric("time_when_done")
    given, used = task.resources_allocated, task.resources_measured
    assert (given.cores, given.memory, given.disk) == (1, 50, 60) and used.wall_time >= 0.3
    assert task.resources_requested.memory == 50 and task.limits_exceeded is None


def test_ctrl_c_in_wait_leaves_the_manager_usable(manager):
    manager.submit(vine.Task("sleep 0.5; echo done"))
    timer = threading.Timer(0.2, os.kill, (os.getpid(), 2))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        manager.wait(10)
    timer.join()
    [task] = drain(manager)
    assert task.std_output == "done\n"


def test_the_port_in_use_is_named(manager, capsys, tmp_path):
    with pytest.raises(Exception, match=str(manager.port)):
        vine.Manager(port=manager.port, run_info_path=tmp_path)
    assert str(manager.port) in capsys.readouterr().err


def test_a_range_gives_the_next_free_port(manager, cluster):
    low = manager.port
    assert cluster.manager(port=(low, min(low + 50, 65535))).port > low


def test_workers_are_told_to_exit_when_asked_to(cluster):
    other = cluster.manager(shutdown=True)
    worker = cluster.worker(other)
    other.close()
    assert worker.wait(15) == 0


def test_idle_workers_shut_down(cluster):
    other = cluster.manager()
    worker = cluster.worker(other)
    assert other.workers_shutdown(0) == 1 and worker.wait(15) == 0


@pytest.mark.parametrize("password_first", [True, False])
def test_passwords_keep_others_out(cluster, tmp_path, password_first):
    (tmp_path / "password").write_text("secret word\n")
    other = cluster.manager()
    other.set_password_file(tmp_path / "password")
    options = ("--password", str(tmp_path / "password")) if password_first else ("--connect-timeout", "2")
    worker = cluster.worker(other, *options, wait=password_first)
    if password_first:
        assert run(other, vine.Task("echo in")).std_output == "in\n"
    else:
        worker.wait(20)
        assert other.stats.workers_connected == 0 and other.stats.workers_joined == 0


@pytest.mark.parametrize("own_pair", [False, True])
def test_encrypted_links(cluster, tmp_path, own_pair):
    ssl = True
    if own_pair:
        ssl = (str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=x",
                        "-keyout", ssl[0], "-out", ssl[1]], check=True, capture_output=True, timeout=60)
    other = cluster.manager(ssl=ssl)
    assert other.using_ssl
    cluster.worker(other, "--ssl")
    out = other.declare_buffer()
    data = os.urandom(300_000)
    task = run(other, vine.Task("cp in out", inputs={other.declare_buffer(data): "in"}, outputs={out: "out"}),
               cluster.log)
    assert task.successful() and out.contents() == data


def test_logs_and_staging_at_the_end(cluster):
    other = cluster.manager(run_info_template="the-run")
    other.log_txn_app("hello there")
    other.submit(vine.Task("x"))
    other.close()
    run_directory = Path(other.runtime_directory)
    assert run_directory.name == "the-run" and not (run_directory / "staging").exists()
    assert "APPLICATION hello there" in (run_directory / "vine-logs" / "transactions").read_text()
    assert (run_directory / "vine-logs" / "workflow.json").exists()
    assert os.readlink(run_directory.parent / "most-recent") == str(run_directory)

"""Steering a running factory from the command line, with local workers and stand-in managers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from factory_bed import PATIENCE_S, Bed, StandInManager, wait

from taskvine_core.errors import ConfigError
from vine_factory import control

pytestmark = pytest.mark.live


@pytest.fixture
def manager(stand_in: StandInManager) -> StandInManager:
    return stand_in


def command(bed: Bed, *words: str, status: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "vine_factory", *words], capture_output=True, text=True,
                          env=bed.environment, timeout=PATIENCE_S, check=False)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def home(bed: Bed) -> Path:
    return Path(bed.status()[0]["directory"])


def only_pool(bed: Bed) -> dict[str, Any]:
    state: dict[str, Any] = bed.status()[0]["pools"][0]
    return state


def test_pause_drain_and_resume_change_what_the_factory_does(bed: Bed, manager: StandInManager) -> None:
    manager.need = 2
    manager.jobs = lambda: list(bed.workers())
    bed.factory("--max", 5, f"localhost:{manager.port}")
    before = wait(lambda: len(found := bed.workers()) == 2 and found, "two workers")
    assert "pause: local" in command(bed, "pause")
    manager.need = 5
    wait(lambda: only_pool(bed)["wanted"] == 5, "the larger need is seen")
    assert "local is paused" not in bed.log() and bed.workers() == before
    assert "the pool is paused" in command(bed, "explain")
    command(bed, "resume", "local")
    wait(lambda: len(bed.workers()) == 5, "growth after resume")
    wait(lambda: only_pool(bed)["connected"] == 5, "all are connected")
    manager.busy = {sorted(bed.workers())[0]}
    for process in bed.workers().values():
        os.kill(process, signal.SIGSTOP)  # they will not leave before they are let
    command(bed, "drain")
    wait(lambda: len(manager.retired) == 5, "all are asked to leave, the busy one as well")
    for process in bed.workers().values():
        os.kill(process, signal.SIGCONT)
        os.kill(process, signal.SIGTERM)  # as the manager would end them
    assert "local: 0 left" in command(bed, "drain", "--wait")
    assert bed.workers() == {}
    assert only_pool(bed)["order"] == "draining"


def test_an_order_holds_after_kill_nine_and_restart(bed: Bed) -> None:
    first = bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait(bed.workers, "a worker")
    command(bed, "pause")
    first.kill()
    first.wait()
    os.kill(next(iter(bed.workers().values())), signal.SIGKILL)
    bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait(lambda: [s["pools"][0]["limit"] for s in bed.status()] == ["paused"], "the order is known again")
    assert bed.workers() == {}
    command(bed, "resume")
    wait(bed.workers, "a worker")


def test_explain_tells_why_and_what_happened_to_a_job_also_after_the_end(bed: Bed, manager: StandInManager) -> None:
    manager.need = 6
    manager.jobs = lambda: list(bed.workers())
    factory = bed.factory("--max", 2, f"localhost:{manager.port}")
    jobs = wait(lambda: len(found := bed.workers()) == 2 and found, "two workers")
    wait(lambda: only_pool(bed)["connected"] == 2, "connected")
    text = command(bed, "explain")
    assert "2 and not 6 workers are to be there" in text and "the pool holds at most 2" in text
    assert command(bed, "explain", "nosuch", status=1)
    directory = home(bed)
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0
    late = command(bed, "explain", "--factory-name", bed.name)
    assert "2 and not 6" in late
    replayed = command(bed, "explain", "--replay", str(directory / "decisions.jsonl"))
    assert "2 and not 6" in replayed and "would have decided otherwise" not in replayed
    story = command(bed, "explain", "--job", sorted(jobs)[0])
    order = [story.index(word) for word in (" decided", " accepted", " connected to ", "the factory ends: received",
                                            " ended on ")]
    assert order == sorted(order)
    assert story == command(bed, "explain", "--worker", f"w-{sorted(jobs)[0]}")
    records = json.loads(command(bed, "explain", "--replay", str(directory / "decisions.jsonl"), "--json"))
    assert records[-1]["situation"]["maximum"] == 2


def test_explain_says_that_no_manager_is_there_and_that_workers_die(bed: Bed, manager: StandInManager) -> None:
    bed.factory("-M", "nobody-has-this-name")
    wait(lambda: "no manager is found" in (command(bed, "explain") if bed.status() else ""), "the reason")
    bed.processes[0].kill()
    bed.processes[0].wait()
    bed.set_worker("#!/bin/sh\necho 'libmissing.so: no such file' >&2\nexit 127\n")
    manager.need = 5
    bed.factory("--max", 5, f"localhost:{manager.port}")
    wait(lambda: "libmissing.so: no such file" in (command(bed, "explain", "--factory-name", bed.name)
                                                   if bed.status() else ""), "the last words")


def test_adopt_looks_again_and_a_lost_home_is_taken_over(bed: Bed) -> None:
    arguments = ("--min", 2, "--max", 2, "localhost:1")
    first = bed.factory(*arguments)
    before = wait(lambda: len(found := bed.workers()) == 2 and found, "two workers")
    assert "local: 2 jobs of this factory in the batch system, 0 of them new" in command(bed, "adopt")
    state = bed.status()[0]
    assert "is running" in command(bed, "adopt", "--factory-id", state["factory_id"], "--factory-name", "x", status=2)
    first.kill()
    first.wait()
    shutil.rmtree(state["directory"])
    other = bed.path / "other"
    command(bed, "adopt", "--factory-id", state["factory_id"], "--scratch-dir", str(other))
    bed.factory("--scratch-dir", other, *arguments)
    wait(lambda: "2 workers adopted" in bed.log(), "adoption")
    assert bed.workers() == before
    assert "other" in bed.status()[0]["directory"]


def test_logs_show_the_batch_systems_view_and_the_workers_output(bed: Bed) -> None:
    bed.set_worker("#!/bin/sh\necho hello from $$\necho trouble >&2\ntrap 'exit 0' TERM\n"
                   "while :; do sleep 0.05; done\n")
    bed.factory("--min", 1, "--max", 1, "localhost:1")
    job = wait(lambda: list(bed.workers()), "a worker")[0]
    text = wait(lambda: "trouble" in (found := command(bed, "logs", job)) and found, "its output")
    assert "state = running" in text and "hello from" in text
    assert command(bed, "logs", job[:-1], "--stderr").strip() == "trouble"
    assert "no job 'zzz'" in command(bed, "logs", "zzz", status=2)


def test_the_socket_is_for_its_user_only_and_survives_nonsense(bed: Bed) -> None:
    bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait(bed.status, "the factory")
    path = home(bed) / control.SOCKET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for nonsense in (b"", b"\n", b"[]\n", b"{" * 100_000 + b"\n", b"\xff\n", b'{"order": 7}\n',
                     b'{"order": "pause", "pools": [1]}\n', b'{"order": "logs"}\n', b"x" * 70_000):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(PATIENCE_S)
            with control._short(path.parent) as name:
                link.connect(name)
            try:
                link.sendall(nonsense)
                link.shutdown(socket.SHUT_WR)
                answer = link.recv(65536)
            except OSError:
                continue  # it hung up on too much
            assert answer == b"" or "error" in json.loads(answer)
    assert control.ask(path.parent, {"order": "status"})["state"]["factory_name"] == bed.name


def test_an_order_of_another_user_is_refused(tmp_path: Path) -> None:
    taken: list[dict[str, Any]] = []
    server = control.ControlServer(tmp_path, lambda order, reply: (taken.append(order), reply({"ok": 1}))[1])
    try:
        assert control.ask(tmp_path, {"order": "x"}) == {"ok": 1}
        if os.getuid() != 0:
            pytest.skip("only root can take another user's id")
        os.chmod(tmp_path / control.SOCKET, 0o666)
        folder = tmp_path
        while folder != folder.parent and folder != Path("/tmp"):
            os.chmod(folder, folder.stat().st_mode | 0o055)
            folder = folder.parent
        script = ("import os, sys, socket; os.setuid(65534)\nlink = socket.socket(socket.AF_UNIX)\n"
                  "os.chdir(sys.argv[1]); link.connect('control.sock')\n"
                  "print(link.recv(1000).decode())")
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True,
                              timeout=PATIENCE_S, check=False)
        assert "may not give orders" in done.stdout, done.stderr
        assert len(taken) == 1
    finally:
        server.close()
    with pytest.raises(ConfigError, match="takes no orders"):
        control.ask(tmp_path, {"order": "x"})


def test_a_directory_name_longer_than_a_socket_may_have_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    server = control.ControlServer(deep, lambda order, reply: reply(order))
    try:
        assert control.ask(deep, {"a": "b"}) == {"a": "b"}
    finally:
        server.close()


def test_metrics_are_served_on_loopback_and_systemd_is_told(bed: Bed) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(bed.path / "n"))
        listener.settimeout(PATIENCE_S)
        bed.environment |= {"NOTIFY_SOCKET": str(bed.path / "n"), "WATCHDOG_USEC": "900000"}
        factory = bed.factory("--min", 1, "--max", 1, "--metrics-port", "auto", "localhost:1")
        wait(lambda: listener.recv(4096).startswith(b"READY=1\nSTATUS="), "ready after the first pass")
        wait(lambda: only_pool(bed)["running"] == 1, "a worker")
        port = bed.log().split("http://127.0.0.1:")[1].split("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        assert 'vine_factory_jobs{pool="local",state="running"} 1.0' in text
        wait(lambda: listener.recv(4096) == b"WATCHDOG=1", "a sign of life")
        factory.send_signal(signal.SIGTERM)
        wait(lambda: listener.recv(4096) == b"STOPPING=1", "the end is announced")
        assert factory.wait(PATIENCE_S) == 0


def test_status_watched_through_a_pipe_prints_once_per_change(bed: Bed) -> None:
    factory = bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait(lambda: only_pool(bed)["running"] == 1 if bed.status() else None, "a worker")
    watch = subprocess.Popen([sys.executable, "-m", "vine_factory", "status", "--watch", "--json"], text=True,
                             stdout=subprocess.PIPE, env=bed.environment)
    bed.processes.append(watch)  # type: ignore[arg-type]
    assert watch.stdout is not None
    assert json.loads(watch.stdout.readline())[0]["pools"][0]["order"] == ""
    command(bed, "pause")
    assert json.loads(watch.stdout.readline())[0]["pools"][0]["order"] == "paused"
    factory.send_signal(signal.SIGTERM)
    while json.loads(watch.stdout.readline()):
        pass
    watch.send_signal(signal.SIGINT)
    assert watch.wait(PATIENCE_S) == 0


def test_a_report_is_written_also_after_the_end(bed: Bed) -> None:
    factory = bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait(bed.workers, "a worker")
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0
    command(bed, "report", "-o", str(bed.path / "r.html"), "--factory-name", bed.name)
    assert "<svg" in (bed.path / "r.html").read_text()

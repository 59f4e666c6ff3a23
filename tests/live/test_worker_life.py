"""How a real worker comes, goes, loses managers, and survives what is done to it and its disk."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_manager import FakeManager, WorkerProcess, command, dispatch, put, python_task, wait_until

from taskvine_core import constants as c
from taskvine_core.model.tasks import Mount
from taskvine_core.protocol import messages as m
from taskvine_core.worker import zipapp

pytestmark = pytest.mark.live

#: Stand-ins for the start-time target of the design (section 9), which a busy machine cannot measure.
MAX_MODULES = 175
HEAVY = {
    "asyncio",
    "ssl",
    "subprocess",
    "argparse",
    "logging",
    "urllib.request",
    "http",
    "email",
    "multiprocessing",
    "cloudpickle",
    "dataclasses",
    "inspect",
    "tempfile",
    "concurrent.futures",
    "sqlite3",
    "unittest",
    "uuid",
    "importlib.metadata",
    "importlib.resources",
    "pickle",
    "shutil",
    "json",
    "random",
    "encodings.idna",
    "typing",
    "pathlib",
    "re",
    "urllib.parse",
    "taskvine_core.dataplane.server",
}

Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers, each in a directory of its own, and ends them."""
    workers: list[WorkerProcess] = []

    def begin(port: int, *options: str, **more: object) -> WorkerProcess:
        directory = more.pop("cwd", None) or tmp_path / f"w{len(workers)}"
        assert isinstance(directory, Path)
        directory.mkdir(exist_ok=True)
        workers.append(WorkerProcess(port, *options, cwd=directory, **more))  # type: ignore[arg-type]
        return workers[-1]

    yield begin
    for worker in workers:
        worker.close()


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    one = FakeManager()
    yield one
    one.close()


# ------------------------------------------------------------------------------------------- hello and goodbye


def test_the_hello_says_what_was_given_and_the_messages_are_those_of_the_reference(
    manager: FakeManager, start: Start
) -> None:
    worker = start(
        manager.port,
        "--feature",
        "a b",
        "--feature=c",
        "--from-factory",
        "fac",
        "--factory-job",
        "17.0",
        "--gpus",
        "2",
        "--wall-time",
        "1000",
        "--contact-hostport",
        "me:99",
        "-A",
        "arch",
        "-O",
        "os",
    )
    hello = manager.accept()
    manager.welcome()
    assert (hello.features, hello.factory_name, hello.job_id) == (("a b", "c"), "fac", "17.0")
    assert tuple(hello.resources) == (4, 2000, 1000, 2) and re.fullmatch("worker-[0-9a-f]{32}", hello.worker_id)
    assert (hello.transfer_host, hello.transfer_port, hello.arch, hello.os) == ("me", 99, "arch", "os")
    assert 900 < hello.end_time - time.time() < 1001
    manager.send(m.Release(True, "done with you"))
    assert worker.wait() == 0
    lines = worker.output()
    assert f"vine_worker: creating workspace {worker.workspace}\n" in lines
    assert "vine_worker: using 4 cores, 2000 MB memory, 1000 MB disk, 2 gpus\n" in lines
    assert re.search(rf"^connected to manager 127.0.0.1:{manager.port} via local address 127.0.0.1:\d+$", lines, re.M)
    assert f"disconnected from manager 127.0.0.1:{manager.port}" in lines
    assert not worker.workspace.exists()


def test_sigterm_lets_the_running_task_finish_and_hands_back_the_queue(manager: FakeManager, start: Start) -> None:
    worker = start(manager.port)
    manager.accept()
    manager.welcome()
    gate = worker.directory / "gate"
    manager.send(
        *(
            dispatch(i, command(f"touch begun{i}; until [ -e {gate} ]; do sleep 0.02; done; echo late"))
            for i in range(1, 5)
        ),
        dispatch(5, command("echo never")),
    )
    wait_until(lambda: len(list(worker.workspace.glob("task.*/begun*"))) == 4, "four tasks to start")
    worker.signal(signal.SIGTERM)
    assert manager.expect(m.LeaveRequest).reason == "sigterm"
    manager.send(m.Recall((1, 5)))
    assert manager.expect(m.Recalled).task_ids == (5,)
    gate.touch()
    assert {manager.done(i).stdout for i in range(1, 5)} == {b"late\n"}
    manager.send(m.Release(True, ""))
    assert worker.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_notice_of_the_batch_system_drains_however_often_it_is_given(
        manager: FakeManager, start: Start, number: signal.Signals) -> None:
    worker = start(manager.port)
    manager.accept()
    manager.welcome()
    gate = worker.directory / "gate"
    manager.send(dispatch(1, command(f"touch begun; until [ -e {gate} ]; do sleep 0.02; done; echo late")))
    wait_until(lambda: bool(list(worker.workspace.glob("task.*/begun"))), "the task to start")
    worker.signal(number)
    manager.expect(m.LeaveRequest)
    worker.signal(number)
    worker.signal(signal.SIGUSR1)
    manager.send(m.Recall((7,)))            # answered only by a worker that goes on
    assert manager.expect(m.Recalled).task_ids == ()
    gate.touch()
    assert manager.done(1).stdout == b"late\n"
    manager.send(m.Release(True, ""))
    assert worker.wait() == 0


def test_a_second_sigterm_ends_it_at_once(manager: FakeManager, start: Start) -> None:
    worker = start(manager.port)
    manager.accept()
    manager.welcome()
    worker.signal(signal.SIGTERM)
    manager.expect(m.LeaveRequest)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_an_idle_worker_asks_to_leave(manager: FakeManager, start: Start) -> None:
    start(manager.port, "--idle-timeout", "0.2")
    manager.accept()
    manager.welcome()
    assert manager.expect(m.LeaveRequest).reason == "idle"


def test_nobody_there_ends_with_status_zero_after_the_connect_timeout(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    worker = start(port, "--connect-timeout", "0.3")
    assert worker.wait() == 0 and "connect timeout" in worker.output()


def test_a_wrong_key_ends_with_status_one_and_says_so(start: Start) -> None:
    manager = FakeManager(secret=b"x" * 32)
    try:
        worker = start(manager.port, "--connect-timeout", "0.3")
        with pytest.raises((ConnectionError, Exception)):
            manager.accept()
        manager.drop()
        assert worker.wait() == 1 and "no manager accepted this worker" in worker.output()
    finally:
        manager.close()


@pytest.mark.parametrize(
    "words",
    [
        ["--cores", "many"],
        ["--nonsense"],
        [],
        ["host"],
        ["host", "99999"],
        ["--cores"],
        ["--keep-workspace", "h", "1"],
        [
            "-M",
            "(",
        ],
        ["--password", "/nonexistent", "h", "1"],
    ],
)
def test_bad_options_end_with_status_one_and_one_sentence(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "taskvine_core.worker.cli", *words],
        capture_output=True,
        timeout=20,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"vine_worker: ")
    assert not list(tmp_path.glob("worker-*"))


def test_help_and_version_end_with_status_zero() -> None:
    for word, text in (("-h", b"--single-shot"), ("-v", b"vine_worker")):
        done = subprocess.run(
            [sys.executable, "-m", "taskvine_core.worker.cli", word], capture_output=True, timeout=20, check=True
        )
        assert text in done.stdout


def test_the_death_of_the_parent_ends_the_worker(manager: FakeManager, start: Start, tmp_path: Path) -> None:
    shell = f'{sys.executable} -m taskvine_core.worker.cli "$@" & echo $! > {tmp_path}/pid; wait'
    parent = start(manager.port, "--parent-death", program=["/bin/sh", "-c", shell, "sh"])
    manager.accept()
    manager.welcome()
    parent.process.kill()
    parent.process.wait(5)
    assert "parent" in manager.expect(m.LeaveRequest).reason
    manager.send(m.Release(True, ""))
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the worker")


# ------------------------------------------------------------------------------------------- losing managers


def lose_and_return(manager: FakeManager, manager_id: str) -> m.CacheOffer:
    """The manager dies in the middle of a task and comes back on the same port."""
    manager.accept()
    manager.welcome()
    done = [dispatch(1, command("echo kept > o; echo forever > f", outputs=(Mount("temp-rnd-o", "o"),)))]
    manager.send(put("buffer-rnd-t", b"task", level=0), put("file-md5-f", b"forever", level=3), *done)
    manager.done(1)
    manager.send(dispatch(2, command("sleep 1005")))
    manager.pump(0.05)
    manager.drop()
    manager.manager_id = manager_id
    manager.accept()
    return manager.welcome()


def test_the_same_manager_gets_the_cache_offered_again(manager: FakeManager, start: Start) -> None:
    worker = start(manager.port)
    offer = lose_and_return(manager, "m-1")
    assert sorted(e.name for e in offer.entries) == ["file-md5-f", "temp-rnd-o"]
    manager.send(
        dispatch(3, command("cat o; ps -e -o args= | grep -c '[s]leep 1005'", inputs=(Mount("temp-rnd-o", "o"),)))
    )
    assert manager.done(3).stdout == b"kept\n0\n"
    assert not (worker.workspace / "cache/buffer-rnd-t").exists()


def test_another_manager_gets_only_what_outlives_the_workflow(manager: FakeManager, start: Start) -> None:
    worker = start(manager.port)
    assert [e.name for e in lose_and_return(manager, "m-2").entries] == ["file-md5-f"]
    wait_until(lambda: not (worker.workspace / "cache/temp-rnd-o").exists(), "the end of the temp")


def test_single_shot_ends_when_its_manager_goes(manager: FakeManager, start: Start) -> None:
    worker = start(manager.port, "--single-shot")
    manager.accept()
    manager.welcome()
    manager.drop()
    assert worker.wait() == 0


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n" * 50, os.urandom(2000), b"\0" * 5000])
def test_garbage_instead_of_a_handshake_is_survived(manager: FakeManager, start: Start, garbage: bytes) -> None:
    start(manager.port)
    manager.listener.settimeout(10)
    link, _ = manager.listener.accept()
    link.sendall(garbage)
    link.close()
    assert manager.accept().hostname


def test_garbage_after_the_handshake_and_wrong_messages_end_the_connection_not_the_worker(
    manager: FakeManager, start: Start
) -> None:
    start(manager.port)
    for spoil in (
        lambda: manager.link and manager.link.sendall(b"\0\0\0\x08" + b"x" * 100),
        lambda: manager.send(m.Pong(3)),
    ):
        manager.accept()
        manager.welcome()
        spoil()
        with pytest.raises(ConnectionError):
            while True:
                manager.pump(10.0)
        manager.drop()
    manager.accept()
    manager.welcome()
    manager.send(dispatch(1, command("echo fine")))
    assert manager.done(1).stdout == b"fine\n"


def test_a_manager_that_trickles_bytes_and_reads_slowly_is_served(manager: FakeManager, start: Start) -> None:
    start(manager.port)
    manager.accept()
    manager.welcome()
    assert manager.session is not None and manager.link is not None
    data = manager.session.encode([dispatch(i, command("head -c 60000 /dev/zero")) for i in range(100)])
    for first in range(0, len(data), 1000):
        manager.link.sendall(data[first : first + 1000])
    for i in range(100):
        assert manager.done(i).stdout_bytes == 60000


def test_peers_fetch_from_each_other_and_a_damaged_copy_is_not_served(manager: FakeManager, start: Start) -> None:
    other = FakeManager("m-1")
    try:
        one = start(manager.port)
        two = start(other.port)
        hello = manager.accept()
        manager.welcome()
        other.accept()
        other.welcome()
        manager.send(
            dispatch(1, command("head -c 200000 /dev/urandom > o", outputs=(Mount("temp-rnd-p", "o"),)), inline=False)
        )
        out = manager.done(1).outputs[0]
        where = f"{hello.transfer_host}:{hello.transfer_port}"
        other.send(m.Fetch("temp-rnd-p", 3, 1, 0, out.size_bytes, out.sha256, m.SOURCE_PEER, where, 10.0))
        assert other.expect(m.CacheUpdate).sha256 == out.sha256
        assert (two.workspace / "cache/temp-rnd-p").read_bytes() == (one.workspace / "cache/temp-rnd-p").read_bytes()
        path = one.workspace / "cache/temp-rnd-p"
        path.chmod(0o600)
        path.write_bytes(b"spoilt")
        other.send(m.Unlink(("temp-rnd-p",)), m.Fetch("temp-rnd-p", 4, 1, 0, -1, b"", m.SOURCE_PEER, where, 10.0))
        assert other.expect(m.CacheInvalid).blame == m.BLAME_SOURCE
        assert manager.expect(m.CacheGone).names == ("temp-rnd-p",)
    finally:
        other.close()


def test_everything_works_over_tls_too(start: Start, tmp_path: Path) -> None:
    from taskvine_core import tls

    key, certificate = tls.make_self_signed(tmp_path)
    manager = FakeManager(tls=(tls.server_context(key, certificate), tls.fingerprint(certificate)))
    try:
        start(manager.port, "--ssl")
        manager.accept()
        manager.welcome()
        manager.files = {"file-rnd-s": tmp_path / "s"}
        (tmp_path / "s").write_bytes(b"s" * 300_000)
        manager.send(
            m.Fetch("file-rnd-s", 1, 1, 0, -1, b"", m.SOURCE_MANAGER, "", 10.0),
            put("buffer-rnd-big", b"x" * 60_000),
            dispatch(1, command("cat a b | wc -c", inputs=(Mount("file-rnd-s", "a"), Mount("buffer-rnd-big", "b")))),
            *(dispatch(i, command("head -c 60000 /dev/zero")) for i in range(2, 40)),
        )
        assert manager.done(1).stdout == b"360000\n"
        assert all(manager.done(i).stdout_bytes == 60_000 for i in range(2, 40))
        manager.uploads[9] = tmp_path / "back"
        manager.send(m.Upload(9, "file-rnd-s", 10.0))
        wait_until(lambda: 9 in manager.upload_ends, "the upload")
        assert (tmp_path / "back").read_bytes() == b"s" * 300_000
    finally:
        manager.close()


def test_a_task_sees_the_gpus_that_the_batch_system_gave_to_its_worker(
    manager: FakeManager, start: Start, tmp_path: Path
) -> None:
    """With a stand-in for nvidia-smi that prints what the real one was recorded to print."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    rows = "".join(f"{i}, GPU-0000000{i}-1111-2222-3333-444455556666, NVIDIA RTX A{i}000\n" for i in range(4))
    asked = "--query-gpu=index,uuid,name --format=csv,noheader"
    smi.write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] || exit 2\nprintf "%s" "{rows}"\n')
    smi.chmod(0o755)
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
    worker = start(manager.port, env={**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "3,1"})
    hello = manager.accept()
    assert hello.resources.gpus == 2 and {"NVIDIA RTX A1000", "NVIDIA RTX A3000"} <= set(hello.features)
    manager.welcome()
    spec = command("echo $CUDA_VISIBLE_DEVICES $GPUS_LIST")
    for number, (gpus, seen) in enumerate(((("0",), b"3 3\n"), (("1",), b"1 1\n"), (("1", "0"), b"1,3 1,3\n")), 1):
        manager.send(dispatch(number, spec)._replace(gpus=gpus))
        assert manager.done(number).stdout == seen
    assert 'gpu is called feature "NVIDIA RTX A1000"' in worker.output()


def test_the_debug_log_tells_events_and_is_rotated(manager: FakeManager, start: Start, tmp_path: Path) -> None:
    log = tmp_path / "debug"
    start(manager.port, "-d", "all", "-o", str(log), "--debug-rotate-max", "20000", "--tcp-window-size", "100000")
    manager.accept()
    manager.welcome()
    manager.send(*(dispatch(i, command(":")) for i in range(50)))
    for i in range(50):
        manager.done(i)
    old = tmp_path / "debug.old"
    assert old.exists() and "Exited(run=" in old.read_text() + log.read_text()
    assert log.stat().st_size < 21_000


# ------------------------------------------------------------------------------------------- workspace


def test_forever_objects_survive_a_killed_worker_and_partial_files_do_not(
    manager: FakeManager, start: Start, tmp_path: Path
) -> None:
    place = tmp_path / "keep"
    worker = start(manager.port, "--keep-workspace", cwd=place)
    manager.accept()
    manager.welcome()
    tree = Mount("file-md5-tree", "d")
    manager.send(
        put("file-md5-a", b"forever", level=3),
        put("file-md5-b", b"worker", level=2),
        put("file-md5-c", b"x", level=3),
        dispatch(1, command("mkdir d; echo leaf > d/f", outputs=(tree,)), level=3),
    )
    digest = manager.done(1).outputs[0].sha256
    worker.process.kill()
    worker.wait()
    cache = worker.workspace / "cache"
    (worker.workspace / "transfer" / "99").write_bytes(b"partial")
    (cache / "file-md5-c").chmod(0o600)
    (cache / "file-md5-c").write_bytes(b"changed")
    (cache / "intruder").write_bytes(b"?")
    manager.drop()
    again = start(manager.port, "--keep-workspace", cwd=place)
    manager.accept()
    offer = {entry.name: entry for entry in manager.welcome().entries}
    assert sorted(offer) == ["file-md5-a", "file-md5-tree"] and offer["file-md5-tree"].sha256 == digest
    wait_until(
        lambda: sorted(os.listdir(cache)) == ["file-md5-a", "file-md5-a.meta", "file-md5-tree", "file-md5-tree.meta"],
        "the rest to go",
    )
    assert not os.listdir(worker.workspace / "transfer")
    manager.send(dispatch(2, command("cat d/f", inputs=(tree,))))
    assert manager.done(2).stdout == b"leaf\n"
    again.signal(signal.SIGINT)
    assert again.wait() == 0 and (cache / "file-md5-a").exists()


def test_tasks_left_by_a_killed_worker_end_when_its_workspace_is_taken_over(
    manager: FakeManager, start: Start, tmp_path: Path
) -> None:
    place = tmp_path / "left"
    worker = start(manager.port, cwd=place)
    manager.accept()
    manager.welcome()
    manager.send(dispatch(1, command("sleep 1006 & echo $! > pid.new; mv pid.new pid; wait")))
    wait_until(lambda: bool(list(worker.workspace.glob("task.*/pid"))), "the task to start")
    sleeper = int(next(worker.workspace.glob("task.*/pid")).read_text())
    worker.process.kill()
    worker.wait()
    assert Path(f"/proc/{sleeper}").exists()
    with subprocess.Popen(["sleep", "1007"], cwd=worker.workspace / "cache") as bystander:
        start(manager.port, cwd=place)
        manager.accept()
        wait_until(lambda: not Path(f"/proc/{sleeper}").exists(), "the end of the sleeper")
        assert bystander.poll() is None
        bystander.kill()


def test_a_workspace_in_use_is_not_shared_and_a_dead_ones_is_removed(
    manager: FakeManager, start: Start, tmp_path: Path
) -> None:
    place = tmp_path / "one"
    first = start(manager.port, cwd=place)
    manager.accept()
    second = start(manager.port, cwd=place)
    manager.accept()
    wait_until(lambda: len(list(first.workspace.glob("worker-*"))) == 1, "a workspace below")
    second.process.kill()
    second.wait()
    start(manager.port, cwd=place)
    manager.accept()
    names = [path.name for path in first.workspace.glob("worker-*")]
    assert len(names) == 1 and not names[0].endswith(f"-{second.process.pid}")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting needs root")
def test_a_full_disk_is_told_and_survived(manager: FakeManager, start: Start, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=True, timeout=10)
    except subprocess.CalledProcessError:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        worker = start(manager.port, cwd=small)
        manager.accept()
        manager.welcome()
        manager.files = {"file-rnd-big": tmp_path / "big"}
        (tmp_path / "big").write_bytes(bytes(30 << 20))
        manager.send(m.Fetch("file-rnd-big", 1, 1, 0, -1, b"", m.SOURCE_MANAGER, "", 10.0))
        invalid = manager.expect(m.CacheInvalid)
        assert invalid.blame == m.BLAME_SELF
        manager.send(dispatch(1, command("head -c 40000000 /dev/zero > full; code=$?; rm full; echo code $code")))
        assert b"code 1" in manager.done(1).stdout
        manager.send(put("buffer-rnd-a", b"fits"), dispatch(2, command("cat a", inputs=(Mount("buffer-rnd-a", "a"),))))
        assert manager.done(2).stdout == b"fits"
        worker.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False, timeout=10)


# ------------------------------------------------------------------------------------------- finding managers


def test_a_manager_is_found_by_name(start: Start, tmp_path: Path, manager: FakeManager) -> None:
    from taskvine_core.catalog.local import Advertiser

    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    (tmp_path / "state" / "taskvine").mkdir(parents=True, mode=0o700)
    advertiser = Advertiser(tmp_path / "state" / "taskvine" / "managers")
    advertiser.publish(
        {
            "project": "my-analysis",
            "host": socket.gethostname(),
            "port": manager.port,
            "addresses": ["127.0.0.1"],
            "manager_id": "m-1",
            "priority": 0,
            "ssl_fingerprint": "",
            "pid": os.getpid(),
        }
    )
    try:
        words = [sys.executable, "-m", "taskvine_core.worker.cli", "-M", "my-ana.*"]
        drop_two = 'n=$(($#-2)); i=0; while [ $i -lt $n ]; do set -- "$@" "$1"; shift; i=$((i+1)); done; shift 2; '
        shell = drop_two + "exec " + " ".join(f"'{word}'" for word in words) + ' "$@"'
        start(manager.port, program=["/bin/sh", "-c", shell, "sh"], env=env)
        assert manager.accept().hostname
        manager.welcome()
    finally:
        advertiser.withdraw()


# ------------------------------------------------------------------------------------------- one file, quick, small


def test_a_worker_that_connects_has_loaded_few_modules_and_none_of_the_heavy_ones(
    manager: FakeManager, start: Start
) -> None:
    # -S: not what this environment's .pth files load; -X importtime: a line for each module, when it is loaded.
    program = f"import sys; sys.path[:] = {sys.path!r}; from taskvine_core.worker.cli import main; sys.exit(main())"
    worker = start(manager.port, program=[sys.executable, "-S", "-E", "-X", "importtime", "-c", program])
    manager.accept()
    manager.welcome()
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", worker.output(), re.M))
    assert "taskvine_core.worker.cli" in loaded
    assert not HEAVY & loaded
    assert len(loaded) <= MAX_MODULES, len(loaded)


def test_private_memory_of_a_connected_worker_is_small(manager: FakeManager, start: Start) -> None:
    worker = start(manager.port)
    manager.accept()
    manager.welcome()
    manager.send(dispatch(1, command(":")))
    manager.done(1)
    rollup = Path(f"/proc/{worker.process.pid}/smaps_rollup").read_text()
    private_kb = sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.M))
    assert private_kb < 20_000, rollup


def one_file(directory: Path) -> Path:
    return zipapp.build(directory / "worker.pyz")


@pytest.mark.parametrize("interpreter", [sys.executable, "/usr/bin/python3"])
def test_the_one_file_worker_runs_alone_with_an_empty_environment(
    manager: FakeManager, start: Start, tmp_path: Path, interpreter: str
) -> None:
    if not os.access(interpreter, os.X_OK):
        pytest.skip(f"there is no {interpreter}")
    alone = tmp_path / "alone"
    alone.mkdir()
    file = one_file(alone)
    start(manager.port, program=[interpreter, "-I", str(file)], env={"HOME": str(alone)})
    manager.accept()
    manager.welcome()

    def product(a: int) -> int:
        return a * 7

    blob, spec = python_task(product, 6)
    manager.send(dispatch(1, command("echo shell")), blob, dispatch(2, spec))
    assert manager.done(1).stdout == b"shell\n"
    done = manager.done(2)
    same = subprocess.run(
        [interpreter, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, timeout=20, check=True
    ).stdout.decode().strip() == str(sys.version_info[:2])
    if same:
        assert pickle.loads(done.outputs[0].inline or b"") == 42, done
    else:
        assert done.result in (c.VINE_RESULT_SUCCESS, c.VINE_RESULT_FORSAKEN)


def test_the_one_file_worker_holds_byte_code_of_every_module_ready_to_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(one_file(tmp_path)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
    sources = [name for name in entries if name.endswith(".py")]
    assert "__main__.py" in sources and "taskvine_core/worker/cli.py" in sources
    assert [name for name in sources if name + "c" not in entries] == []
    assert {info.compress_type for name, info in entries.items() if name.endswith(".pyc")} == {zipfile.ZIP_STORED}


def version_of(file: Path, home: Path) -> str:
    done = subprocess.run([sys.executable, "-I", str(file), "--version"], env={"HOME": str(home)}, capture_output=True,
                          text=True, timeout=20, check=True)  # fmt: skip
    return done.stdout


def test_the_one_file_worker_replaces_a_damaged_copy_of_its_c_extension(tmp_path: Path) -> None:
    file = one_file(tmp_path)
    assert version_of(file, tmp_path).startswith("vine_worker")
    [native] = (tmp_path / ".cache/taskvine").glob("native-*/*")
    good = native.read_bytes()
    native.write_bytes(good[: len(good) // 2])
    assert version_of(file, tmp_path).startswith("vine_worker")
    assert [path.read_bytes() == good for path in native.parent.iterdir()] == [True]


def test_the_one_file_worker_loads_nothing_from_a_directory_others_can_write_in(tmp_path: Path) -> None:
    file = one_file(tmp_path)
    version_of(file, tmp_path)
    [native] = (tmp_path / ".cache/taskvine").glob("native-*/*")
    native.unlink()
    native.parent.chmod(0o777)
    assert version_of(file, tmp_path).startswith("vine_worker")
    assert list(native.parent.iterdir()) == []


def test_the_one_file_worker_is_the_same_file_each_time(tmp_path: Path) -> None:
    first = one_file(tmp_path).read_bytes()
    assert one_file(tmp_path).read_bytes() == first

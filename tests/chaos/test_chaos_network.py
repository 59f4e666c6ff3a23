"""Strangers, impostors, cut links and wrong keys: the manager believes nobody too much and goes on for the others."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from chaos_support import MB, PATIENCE_S, Cluster, Impostor, Worker, a_hello, environment, resident_mb, wait_until

import taskvine_core as vine
from taskvine_core.protocol import messages as m

pytestmark = pytest.mark.live

#: How long the rate is taken, once in peace and once under attack.
MEASURE_S = 2.0
STRANGERS = 1000
#: Memory the manager may take more while a thousand strangers hold connections.
MAX_GROWTH_MB = 96


# ------------------------------------------------------------------------------------------- strangers


def finished_in(cluster: Cluster, seconds: float) -> int:
    """How many no-op tasks come back in that time when there always are enough."""
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end:
        while len(cluster.manager._tasks) < 64:
            cluster.task("true")
        task = cluster.manager.wait(1)
        if task is not None:
            assert task.successful()
            cluster.returned[task.id] += 1
            done += 1
    return done


class Crowd:
    """Strangers in a thread of their own: each connects, says its piece and holds the line; closed ones come again."""

    def __init__(self, port: int, pieces: Callable[[int], bytes], count: int) -> None:
        self._port = port
        self._pieces = pieces
        self._count = count
        self._stop = threading.Event()
        self._sockets: list[socket.socket] = []
        self.connected = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Crowd:
        self._thread.start()
        wait_until(lambda: self.connected >= self._count or not self._thread.is_alive(), "the crowd is there")
        return self

    def __exit__(self, *why: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            if self.connected < self._count or self._stop.wait(0.05):
                self._meet(self.connected)

    def _meet(self, number: int) -> None:
        sock = socket.socket()
        sock.settimeout(5)
        with suppress(OSError):
            sock.connect(("127.0.0.1", self._port))
            sock.sendall(self._pieces(number))
        self._sockets.append(sock)
        self.connected += 1
        if len(self._sockets) > 2 * self._count:
            self._sockets.pop(0).close()


def stranger_says(number: int) -> bytes:
    """Nothing, noise, a huge length, half a frame, half a handshake, HTTP."""
    pieces = (b"", os.urandom(700), struct.pack(">I", 0xFFFFFFFF) + b"x" * 100, struct.pack(">I", 4000) + b"y" * 17,
              b"GET / HTTP/1.1\r\nHost: manager\r\n\r\n", b"\0" * 4)
    return pieces[number % len(pieces)]


@pytest.mark.slow
def test_a_thousand_strangers_neither_halve_the_rate_nor_fill_the_memory(cluster: Cluster) -> None:
    cluster.start("--cores", "2")
    finished_in(cluster, 0.5)
    before = resident_mb()
    peace = finished_in(cluster, MEASURE_S)
    with Crowd(cluster.port, stranger_says, STRANGERS):
        attack = finished_in(cluster, MEASURE_S)
        assert resident_mb() - before < MAX_GROWTH_MB
    peace = min(peace, finished_in(cluster, MEASURE_S))  # others may have begun to use the machine meanwhile
    cluster.finish()
    # The strangers' own thread works in this process too, at the manager's cost.
    assert attack >= peace / 2, f"{attack} tasks in {MEASURE_S} s under attack, {peace} in peace"
    assert set(cluster.returned.values()) == {1}


CROWD = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, int(sys.argv[2])))
held = []
for n in range(600):
    sock = socket.socket()
    sock.settimeout(5)
    try:
        sock.connect(("127.0.0.1", int(sys.argv[1])))
    except OSError:
        pass
    held.append(sock)
print("there", flush=True)
sys.stdin.read()
"""


def test_strangers_leave_descriptors_for_workers_and_the_program(make_cluster: Callable[..., Cluster]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    crowd = None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        cluster = make_cluster()
        crowd = subprocess.Popen([sys.executable, "-c", CROWD, str(cluster.port), str(hard)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
        assert crowd.stdout is not None and crowd.stdout.readline() == b"there\n"
        # Less than the strangers' patience: they still hold the line.
        cluster.start(join=False)
        cluster.task("echo in")
        assert cluster.wait(8).output == "in\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if crowd is not None:
            crowd.communicate(timeout=PATIENCE_S)


def test_a_stranger_that_proves_nothing_is_shown_the_door(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.connections.HANDSHAKE_S", 0.3)
    stranger = Impostor(cluster.port)
    try:
        assert stranger.closed()
    finally:
        stranger.close()
    wait_until(lambda: not cluster.manager._runner._net.by_key, "nothing is kept of it", 5)


def test_a_worker_with_the_right_key_that_never_says_hello_is_shown_the_door(
        cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.connections.HANDSHAKE_S", 0.3)
    silent = Impostor(cluster.port)
    try:
        silent.shake_hands()
        assert silent.closed()
    finally:
        silent.close()


def test_garbage_in_the_same_packet_as_the_greeting_ends_that_connection_only(cluster: Cluster) -> None:
    impostor = Impostor(cluster.port)
    try:
        impostor.shake_hands()
        impostor.sock.sendall(impostor.session.encode([a_hello("garbage")]) + b"\xff" * 5000)
        assert impostor.closed()
    finally:
        impostor.close()
    cluster.start()
    assert cluster.run("echo on").output == "on\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_end_the_connection_that_sent_them(cluster: Cluster, value: float) -> None:
    impostor = Impostor(cluster.port)
    try:
        impostor.shake_hands()
        impostor.hello("numbers", "numbers")
        task = vine.Task("true")
        task.add_feature("numbers")
        cluster.manager.submit(task)
        order = impostor.expect(m.Dispatch)
        impostor.say(m.TaskDone(order.task_id, order.attempt, 0, 0, b"", 0, "", (), (), value, value, m.NOT_MEASURED,
                                ""))
        assert impostor.closed()
    finally:
        impostor.close()
    cluster.start("--feature", "numbers")
    assert cluster.wait() is task and task.successful()


@pytest.mark.parametrize("piece", [b"\xff" * 5000, struct.pack(">I", 0xFFFFFFF0), struct.pack(">I", 100) + b"z" * 5000],
                         ids=["noise", "oversize", "forged"])
def test_a_valid_key_and_then_garbage_ends_that_connection_only(cluster: Cluster, piece: bytes) -> None:
    cluster.start()
    impostor = Impostor(cluster.port)
    try:
        impostor.shake_hands()
        impostor.hello("garbage")
        impostor.expect(m.Welcome)
        impostor.sock.sendall(piece)
        assert impostor.closed()
    finally:
        impostor.close()
    wait_until(lambda: len(cluster.core(lambda core: list(core.workers))) == 1, "it is gone")
    assert cluster.run("echo on").output == "on\n"


def test_a_frame_sent_twice_ends_the_connection(cluster: Cluster) -> None:
    cluster.start()
    impostor = Impostor(cluster.port)
    try:
        impostor.shake_hands()
        impostor.hello("replay")
        impostor.expect(m.Welcome)
        impostor.sock.sendall(impostor.say(m.Pong(1)))
        assert impostor.closed()
    finally:
        impostor.close()
    assert cluster.run("echo on").output == "on\n"


def test_frames_of_an_earlier_connection_are_worth_nothing_in_a_new_one(cluster: Cluster) -> None:
    first, second = Impostor(cluster.port), Impostor(cluster.port)
    try:
        first.shake_hands()
        recorded = first.session.encode([m.Pong(1)])
        second.shake_hands()
        second.hello("second")
        second.expect(m.Welcome)
        second.sock.sendall(recorded)
        assert second.closed()
    finally:
        first.close()
        second.close()


# ------------------------------------------------------------------------------------------- impostors


def nonsense(task_id: int, attempt: int, names: tuple[str, ...]) -> list[object]:
    """What a worker gone mad may say about tasks and files of others, and of nobody."""
    done = m.TaskDone(task_id, attempt, 0, 0, b"forged", 6, "", (), (), 0.0, 1.0, m.NOT_MEASURED, "")
    said: list[object] = [
        done, done, done._replace(result=5 << 3), done._replace(result=-77), done._replace(result=2 << 3),
        done._replace(start=9e99, end=-9e99), done._replace(task_id=-1), done._replace(task_id=1 << 60),
        done._replace(outputs=tuple(m.OutputReport(name, 5, b"\0" * 32, 0o644, False, b"wrong") for name in names)),
        done._replace(missing=("..", "/etc/passwd")), done._replace(stdout_name="../../x", stdout_bytes=1 << 50),
        m.Recalled((task_id, task_id, -5)), m.UploadFailed(1, "lies"), m.UploadFailed(1 << 40, ""),
        m.WatchData(task_id, attempt, "../../x", 0, b"x"), m.WatchData(task_id, attempt, "x", -9, b"x"),
        m.CacheGone((*names, "unknown", "../.."), "lies"), m.CacheOffer(()),
        m.CacheOffer((m.CacheEntry("never-heard-of", -4, 77, b"\1"), m.CacheEntry("../../x", 1, 0, b""))),
        m.LeaveRequest("idle", -1.0), m.LeaveRequest("idle", 9e99), m.Pong(1 << 60),
    ]
    for name in (*names, "unknown"):
        said += [m.CacheUpdate(name, 1, 5, b"\0" * 32, 0.0, 0.0), m.CacheUpdate(name, 0, -1, b"", 9e99, -9e99),
                 m.CacheInvalid(name, 0, 2, "lies"), m.CacheInvalid(name, 1, 99, "lies")]
    return said


def test_what_a_mad_worker_says_of_other_workers_tasks_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    honest = cluster.start("--cores", "2")
    temp = cluster.manager.declare_temp()
    assert cluster.run("echo true > out", at=honest, outputs={"out": temp}).successful()
    text = cluster.manager.declare_buffer("honest input")
    result = cluster.manager.declare_file(tmp_path / "result")
    gate = tmp_path / "gate"
    task = cluster.task(f"while [ ! -e {gate} ]; do sleep 0.05; done; cat in temp | tee out", at=honest,
                        inputs={"in": text, "temp": temp}, outputs={"out": result})
    wait_until(lambda: cluster.stat("tasks_running") == 1, "it runs")
    names = (temp.cached_name, text.cached_name, result.cached_name)
    mad = Impostor(cluster.port)
    try:
        mad.shake_hands()
        mad.hello("mad", cores=0)
        mad.expect(m.Welcome)
        for attempt in (1, 0):
            for message in nonsense(task.id, attempt, names):
                mad.say(message)
        mad.say(m.Pong(1))
        honest_says = cluster.core(lambda core: core.tasks[task.id].run.worker.hello.features)
        assert honest.name in honest_says, "the task is still where it was"
        gate.touch()
        cluster.finish()
    finally:
        mad.close()
    assert task.successful() and task.output == "honest inputtrue\n" == (tmp_path / "result").read_text()
    assert cluster.stat("tasks_recovery") == 0 and set(cluster.returned.values()) == {1}


def test_nonsense_about_its_own_task_never_stops_the_manager(cluster: Cluster, tmp_path: Path) -> None:
    """The mad worker gets real tasks; whatever it says about them, each comes back once and others go on."""
    mad = Impostor(cluster.port)
    temp = cluster.manager.declare_temp()
    result = cluster.manager.declare_file(tmp_path / "result")
    try:
        mad.shake_hands()
        mad.hello("mad", "mad", cores=4)
        mad.expect(m.Welcome)
        count = len(nonsense(1, 1, ("a", "b")))
        for n in range(count):
            task = vine.Task("true")
            task.set_cores(1)
            task.set_retries(1)
            task.set_max_forsaken(1)
            task.add_feature("mad")
            task.add_output(temp if n == 0 else cluster.manager.declare_temp(), "t")
            task.add_output(result, "r")
            cluster.manager.submit(task)
            order = mad.expect(m.Dispatch)
            names = tuple(mount.name for mount in order.spec.outputs)
            # One sentence at a time about a fresh task; then a correct end in case it is still wanted.
            mad.say(nonsense(order.task_id, order.attempt, names)[n])
            mad.say(m.TaskDone(order.task_id, order.attempt, 0, 0, b"", 0, "", (), ("t", "r"), 0.0, 1.0,
                               m.NOT_MEASURED, ""))
            mad.say(m.Pong(1))
            cluster.core(lambda core: None)
            mad.inbox.clear()
            if not cluster.core(lambda core: len(core.workers)):
                mad.close()
                mad = Impostor(cluster.port)
                mad.shake_hands()
                mad.hello(f"mad{n}", "mad", cores=4)
    finally:
        mad.close()
    wait_until(lambda: not cluster.core(lambda core: len(core.workers)), "the mad one is gone")
    cluster.start("--feature", "mad")
    cluster.finish()
    assert cluster.run("echo sane").output == "sane\n"
    assert set(cluster.returned.values()) == {1}


def test_the_same_worker_twice_means_the_first_connection_is_dead(cluster: Cluster) -> None:
    first, second = Impostor(cluster.port), Impostor(cluster.port)
    try:
        first.shake_hands()
        first.hello("same", "same")
        first.expect(m.Welcome)
        task = vine.Task("true")
        task.add_feature("same")
        cluster.manager.submit(task)
        first.expect(m.Dispatch)
        second.shake_hands()
        second.hello("same", "same")
        order = second.expect(m.Dispatch)
        assert order.task_id == task.id and order.attempt == 2
        assert first.closed()
        second.say(m.TaskDone(task.id, 2, 0, 0, b"", 0, "", (), (), 0.0, 1.0, m.NOT_MEASURED, ""))
        assert cluster.wait() is task and task.successful()
    finally:
        first.close()
        second.close()


def test_a_worker_that_never_reads_holds_up_nobody(cluster: Cluster) -> None:
    slow = Impostor(cluster.port, receive_buffer=4096)
    try:
        slow.shake_hands()
        slow.hello("slow", "slow", cores=200)
        wait_until(lambda: cluster.core(lambda core: len(core.workers)) == 1, "it joins")
        for _ in range(200):
            task = vine.Task("cat in")
            task.set_cores(1)
            task.add_feature("slow")
            task.add_input(cluster.manager.declare_buffer(os.urandom(60_000)), "in")
            task.set_tag("slow")
            cluster.manager.submit(task)
        wait_until(lambda: cluster.stat("tasks_running") > 0, "they are sent")
        cluster.start()
        worker = cluster.workers[-1]
        for n in range(50):
            cluster.task(f"echo {n}", at=worker, tag="quick")
        for _ in range(50):
            assert cluster.wait().tag == "quick"
    finally:
        slow.close()
    wait_until(lambda: cluster.stat("workers_lost") == 1, "its end is noticed")
    cluster.start("--cores", "4", "--feature", "slow")
    cluster.finish()
    assert set(cluster.returned.values()) == {1} and len(cluster.returned) == 250


def test_data_connections_that_never_read_do_not_stop_the_manager(cluster: Cluster, tmp_path: Path) -> None:
    from taskvine_core.dataplane.messages import DataGet

    big = tmp_path / "big"
    big.write_bytes(b"b" * 4 * MB)
    file = cluster.manager.declare_file(big)
    worker = cluster.start()
    assert cluster.run("stat -c %s in", inputs={"in": file}).output == f"{4 * MB}\n"
    readers = [Impostor(cluster.port, role="data", receive_buffer=4096) for _ in range(8)]
    try:
        for reader in readers:
            reader.shake_hands()
            reader.say(DataGet((file.cached_name,)))
        other = tmp_path / "other"
        other.write_bytes(b"o" * 4 * MB)
        task = cluster.run("stat -c %s in", at=worker, inputs={"in": cluster.manager.declare_file(other)})
        assert task.output == f"{4 * MB}\n"
    finally:
        for reader in readers:
            reader.close()


# ------------------------------------------------------------------------------------------- keys


def end_of(worker: Worker, timeout_s: float = 30) -> str:
    assert worker.process.wait(timeout_s) == 1, worker.output()
    return worker.output()


def test_a_worker_with_another_key_says_so_and_gives_up(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start()
    key = tmp_path / "other-key"
    key.write_text("another password\n")
    key.chmod(0o600)
    wrong = cluster.start("--password", str(key), "--connect-timeout", "1", join=False, name="wrong")
    text = end_of(wrong)
    assert "key" in text.lower() or "password" in text.lower() or "secret" in text.lower(), text
    assert cluster.run("echo on").output == "on\n"
    assert cluster.stat("workers_joined") == 1


def test_a_tls_manager_serves_a_tls_worker_with_data_both_ways(
        make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = make_cluster(ssl=True)
    cluster.start("--ssl")
    source, result = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(2 * MB))
    task = cluster.run("cp in out", inputs={"in": cluster.manager.declare_file(source)},
                       outputs={"out": cluster.manager.declare_file(result)})
    assert task.successful() and result.read_bytes() == source.read_bytes()
    other = cluster.start("--ssl")
    temp = cluster.manager.declare_temp()
    assert cluster.run("head -c 300000 /dev/zero > out", at=cluster.workers[0], outputs={"out": temp}).successful()
    assert cluster.run("stat -c %s in", at=other, inputs={"in": temp}).output == "300000\n"


def test_a_plain_worker_is_told_that_the_manager_wants_tls(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(ssl=True)
    text = end_of(cluster.start("--connect-timeout", "1", join=False))
    assert "ssl" in text.lower() or "tls" in text.lower(), text


def test_a_tls_worker_is_told_that_the_manager_speaks_plainly(cluster: Cluster) -> None:
    text = end_of(cluster.start("--ssl", "--connect-timeout", "1", join=False))
    assert "ssl" in text.lower() or "tls" in text.lower(), text
    cluster.start()
    assert cluster.run("echo on").output == "on\n"


# ------------------------------------------------------------------------------------------- cut links


class Namespaces:
    """Network namespaces with a link to this machine each, and none between them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._made = 0

    def make(self, *, blackhole: bool = False) -> tuple[list[str], str]:
        """A new namespace: the command prefix that enters it, and our address as seen from there.

        ``blackhole``: packets to elsewhere vanish, instead of being refused at once.
        """
        number, self._made = self._made, self._made + 1
        tag = f"{os.getpid() % 10000}n{number}"
        space, ours, theirs = f"vine{tag}", f"vo{tag}", f"vt{tag}"
        subnet = f"10.{200 + os.getpid() % 50}.{number}"
        self._ip("netns", "add", space, undo=("netns", "del", space))
        self._ip("link", "add", ours, "type", "veth", "peer", "name", theirs, undo=("link", "del", ours))
        self._ip("link", "set", theirs, "netns", space)
        self._ip("addr", "add", f"{subnet}.1/24", "dev", ours)
        self._ip("link", "set", ours, "up")
        inside = ("-n", space)
        self._ip(*inside, "addr", "add", f"{subnet}.2/24", "dev", theirs)
        self._ip(*inside, "link", "set", theirs, "up")
        self._ip(*inside, "link", "set", "lo", "up")
        if blackhole:  # a neighbour that does not exist takes everything
            self._ip(*inside, "neigh", "add", f"{subnet}.9", "lladdr", "02:00:00:00:00:09", "dev", theirs)
            self._ip(*inside, "route", "add", "default", "via", f"{subnet}.9")
        return ["ip", "netns", "exec", space], f"{subnet}.1"

    def _ip(self, *words: str, undo: tuple[str, ...] = ()) -> None:
        subprocess.run(["ip", *words], check=True, timeout=PATIENCE_S, capture_output=True)
        if undo:
            self._stack.callback(subprocess.run, ["ip", *undo], check=False, timeout=PATIENCE_S, capture_output=True)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    able = os.geteuid() == 0 and shutil.which("ip") is not None
    if not able and os.environ.get("VINE_REQUIRE_CLUSTERS") != "1":
        pytest.skip("needs root and iproute2 to make network namespaces")
    spaces = Namespaces()
    try:
        yield spaces
    finally:
        spaces.close()


@pytest.mark.parametrize("blackhole", [False, True], ids=["refused", "silent"])
def test_peers_that_cannot_reach_each_other_share_through_the_manager(
        namespaces: Namespaces, tmp_path: Path, blackhole: bool) -> None:
    cluster = Cluster(tmp_path)
    try:
        workers = []
        for name in ("left", "right"):
            prefix, address = namespaces.make(blackhole=blackhole)
            workers.append(cluster.start(name=name, host=address, prefix=prefix))
        temps = []
        for worker in workers:
            temp = cluster.manager.declare_temp()
            assert cluster.run(f"head -c {MB} /dev/zero > big; echo from {worker.name} >> big", at=worker,
                               outputs={"big": temp}).successful()
            temps.append(temp)
        tasks = [cluster.task("tail -c 11 in | tr -d '\\0'", at=worker, inputs={"in": temp})
                 for worker, temp in zip(workers, reversed(temps), strict=True)]
        cluster.finish(90)
        assert [task.output.split()[-1] for task in tasks] == ["right", "left"]
        assert cluster.stat("tasks_recovery") == 0 and cluster.stat("workers_lost") == 0
        again = cluster.run("cat a b | wc -c", at=workers[0], inputs={"a": temps[0], "b": temps[1]})
        assert again.successful()
    finally:
        cluster.close()


# ------------------------------------------------------------------------------------------- a manager that dies

PROGRAM = """
import json, sys
import taskvine_core as vine
m = vine.Manager(int(sys.argv[1]), run_info_path=sys.argv[2])
print(m.port, flush=True)
big = m.declare_file(sys.argv[3], cache="worker")
for n in range(4):
    t = vine.Task(f"sleep {sys.argv[4]}; stat -c %s in; echo {n}")
    t.set_cores(1)
    t.add_input(big, "in")
    m.submit(t)
done = []
while not m.empty():
    t = m.wait(5)
    if t:
        done.append([t.id, t.result, t.output.split()])
        print("done", flush=True)
print(json.dumps({"done": done, "sent": m.stats.bytes_sent}), flush=True)
"""


class Program:
    """A manager in a process of its own."""

    def __init__(self, port: int, directory: Path, big: Path, pause_s: float) -> None:
        directory.mkdir()
        self._out = directory / "out"
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(port), str(directory / "run-info"), str(big), str(pause_s)],
                stdout=out, stderr=subprocess.STDOUT, env=environment(), stdin=subprocess.DEVNULL)

    def lines(self) -> list[str]:
        return self._out.read_text("utf-8", "replace").splitlines()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)


def test_workers_of_a_killed_manager_serve_the_next_one_on_its_port_with_what_they_hold(tmp_path: Path) -> None:
    import json

    big = tmp_path / "big"
    big.write_bytes(os.urandom(8 * MB))
    with ExitStack() as stack:
        first = Program(0, tmp_path / "first", big, 600)
        stack.callback(first.close)
        wait_until(first.lines, "the first manager listens")
        port = int(first.lines()[0])
        workers = [Worker(f"w{n}", tmp_path / f"w{n}", "127.0.0.1", port, "--cores", "2") for n in range(2)]
        for worker in workers:
            stack.callback(worker.close)
        cached = [wait_until(lambda w=worker: [p for p in w.cache.glob("file-*") if not p.name.endswith(".meta")],
                             "it holds the input")[0] for worker in workers]
        stamps = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in cached]
        first.process.kill()
        first.process.wait(PATIENCE_S)
        second = Program(port, tmp_path / "second", big, 0)
        stack.callback(second.close)
        assert second.process.wait(PATIENCE_S) == 0, second.lines()
        answer = json.loads(second.lines()[-1])
        assert len(answer["done"]) == 4 and all(result == "success" and out[0] == str(8 * MB)
                                                for _, result, out in answer["done"])
        assert answer["sent"] < MB, "the input was sent again"
        assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in cached] == stamps
        assert all("connected to manager" in worker.output() for worker in workers)

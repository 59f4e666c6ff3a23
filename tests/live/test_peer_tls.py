"""With ssl= nothing that goes from worker to worker can be read on the network, or it does not go."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from api_support import Cluster, drain
from fake_manager import SECRET, FakeManager, WorkerProcess, command, dispatch
from test_dataplane_support import Shelf

import taskvine_core as vine
from taskvine_core import tls
from taskvine_core.dataplane.channel import Tls, never
from taskvine_core.dataplane.connect import connect
from taskvine_core.dataplane.server import DataServer
from taskvine_core.errors import ConfigError, SourceError
from taskvine_core.model.tasks import Mount
from taskvine_core.protocol import messages as m

pytestmark = pytest.mark.live

#: Content that is recognised wherever it goes by.
CANARY = b"nobody-on-the-network-may-read-this "
NAME = "temp-rnd-canary"
MAKE = command(f"yes '{CANARY.decode().strip()} ' | head -c 300000 > o", outputs=(Mount(NAME, "o"),))

Start = Callable[..., WorkerProcess]


class Wiretap:
    """Passes connections on to a port and keeps every byte of both directions."""

    def __init__(self, port: int) -> None:
        self.seen = bytearray()
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target, 10)
            for source, sink in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._pass, args=(source, sink), daemon=True))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    workers: list[WorkerProcess] = []

    def begin(port: int, *options: str) -> WorkerProcess:
        directory = tmp_path / f"w{len(workers)}"
        directory.mkdir()
        workers.append(WorkerProcess(port, *options, cwd=directory))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tls.make_self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def manager_of(pems: tuple[Path, Path]) -> Iterator[Callable[..., FakeManager]]:
    """Makes fake managers, with TLS unless ``encrypt=False``."""
    made: list[FakeManager] = []

    def build(peer_key: m.PeerKey | None = None, encrypt: bool = True) -> FakeManager:
        pair = (tls.server_context(*pems), tls.fingerprint(pems[1])) if encrypt else None
        made.append(FakeManager(tls=pair, peer_key=peer_key))
        return made[-1]

    yield build
    for manager in made:
        manager.close()


@pytest.fixture
def peer_key(tmp_path: Path) -> m.PeerKey:
    return m.PeerKey(*tls.make_pair(tmp_path))


def _join(manager: FakeManager) -> int:
    """Take a worker; returns its transfer port."""
    hello = manager.accept()
    manager.welcome()
    return hello.transfer_port


def _order(manager: FakeManager, port: int, transfer_id: int = 3) -> None:
    manager.send(m.Fetch(NAME, transfer_id, 1, 0, -1, b"", m.SOURCE_PEER, f"127.0.0.1:{port}", 10.0))


def test_a_transfer_between_workers_of_a_tls_manager_cannot_be_read_on_the_way(
    manager_of: Callable[..., FakeManager], peer_key: m.PeerKey, start: Start, tmp_path: Path
) -> None:
    source, sink = manager_of(peer_key), manager_of(peer_key)
    one = start(source.port, "--ssl", "-d", "all", "-o", str(tmp_path / "debug"))
    two = start(sink.port, "--ssl")
    tap = Wiretap(_join(source))
    try:
        _join(sink)
        source.send(dispatch(1, MAKE, inline=False))
        out = source.done(1).outputs[0]
        _order(sink, tap.port)
        assert sink.expect(m.CacheUpdate).sha256 == out.sha256
    finally:
        tap.close()
    assert (two.workspace / "cache" / NAME).read_bytes()[:len(CANARY)] == CANARY
    assert len(tap.seen) > 300_000
    assert CANARY not in tap.seen and NAME.encode() not in tap.seen
    said = (tmp_path / "debug").read_text() + one.output()
    assert "Welcome" in said and "PeerKey" not in said and "PRIVATE KEY" not in said
    assert not list(one.workspace.rglob("*.pem"))


def test_the_wiretap_of_these_tests_reads_plain_transfers(
    manager_of: Callable[..., FakeManager], start: Start
) -> None:
    source, sink = manager_of(encrypt=False), manager_of(encrypt=False)
    start(source.port)
    start(sink.port)
    tap = Wiretap(_join(source))
    try:
        _join(sink)
        source.send(dispatch(1, MAKE, inline=False))
        source.done(1)
        _order(sink, tap.port)
        sink.expect(m.CacheUpdate)
    finally:
        tap.close()
    assert CANARY in tap.seen and NAME.encode() in tap.seen


def test_a_peer_with_another_certificate_is_not_read_from_even_if_it_knows_the_secret(
    manager_of: Callable[..., FakeManager], peer_key: m.PeerKey, start: Start, pems: tuple[Path, Path], tmp_path: Path
) -> None:
    manager = manager_of(peer_key)
    start(manager.port, "--ssl")
    _join(manager)
    shelf = Shelf(tmp_path / "shelf")
    (shelf.directory / NAME).write_bytes(b"x" * 300_000)
    other = DataServer(secret=SECRET, role="worker", provider=shelf, max_threads=1, timeout_s=10.0,
                       tls=Tls(tls.server_context(*pems), tls.fingerprint(pems[1])))
    plain = DataServer(secret=SECRET, role="worker", provider=shelf, max_threads=1, timeout_s=10.0)
    try:
        for number, server in enumerate((other, plain), 1):
            _order(manager, server.listen("127.0.0.1", 0), number)
            failed = manager.expect(m.CacheInvalid)
            assert failed.transfer_id == number and ("certificate" in failed.reason or "TLS" in failed.reason)
    finally:
        other.close()
        plain.close()
    assert shelf.done == []


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_usable_key_a_worker_of_a_tls_manager_neither_serves_peers_nor_asks_them(
    manager_of: Callable[..., FakeManager], start: Start, broken: bool
) -> None:
    manager = manager_of(m.PeerKey(b"no certificate", b"no key") if broken else None)
    start(manager.port, "--ssl")
    port = _join(manager)
    manager.send(dispatch(1, MAKE, inline=False))
    manager.done(1)
    anything_goes = Tls(tls.client_context(None), b"")
    for protection in (None, anything_goes):
        with pytest.raises(SourceError):
            connect(("127.0.0.1", port), secret=SECRET, timeout_s=5.0, tls=protection, cancel=never)
    manager.send(m.Unlink((NAME,)))
    _order(manager, port)
    failed = manager.expect(m.CacheInvalid)
    assert failed.blame == m.BLAME_SELF and ("no PEM certificate" if broken else "gave no") in failed.reason


def test_a_worker_of_a_tls_manager_does_not_serve_plain_connections(
    manager_of: Callable[..., FakeManager], peer_key: m.PeerKey, start: Start
) -> None:
    manager = manager_of(peer_key)
    start(manager.port, "--ssl")
    port = _join(manager)
    with pytest.raises(SourceError):
        connect(("127.0.0.1", port), secret=SECRET, timeout_s=5.0, tls=None, cancel=never)
    pinned = tls.fingerprint_of(peer_key.certificate)
    channel = connect(("127.0.0.1", port), secret=SECRET, timeout_s=5.0, tls=Tls(tls.client_context(pinned), pinned),
                      cancel=never)
    channel.close()


def test_temporary_files_go_from_worker_to_worker_with_ssl_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    cluster = Cluster(tmp_path)
    try:
        manager = cluster.manager(ssl=True)
        for feature in ("left", "right"):
            cluster.worker(manager, "--ssl", "--feature", feature)
        temp, back = manager.declare_temp(), manager.declare_buffer()
        first = vine.Task("head -c 300000 /dev/urandom | tee t | sha256sum")
        first.add_output(temp, "t")
        first.add_feature("left")
        second = vine.Task("sha256sum < t > o")
        second.add_input(temp, "t")
        second.add_output(back, "o")
        second.add_feature("right")
        manager.submit(first)
        manager.submit(second)
        done = list(drain(manager, cluster.log))
        assert all(task.successful() for task in done), cluster.log()
        assert back.contents() == first.std_output.encode()
        log = Path(manager.logging_directory, "debug").read_text() + Path(
            manager.logging_directory, "transactions").read_text()
        assert "PRIVATE KEY" not in log
        assert not [path for path in Path(manager.runtime_directory).iterdir() if path.name.startswith("tls-")]
    finally:
        cluster.close()


def test_a_manager_that_can_make_no_certificate_for_its_workers_turns_their_transfers_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pems: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setenv("PATH", os.devnull)
    manager = vine.Manager(port=0, ssl=(str(pems[0]), str(pems[1])), run_info_path=str(tmp_path / "info"))
    try:
        assert "workers cannot encrypt transfers between each other" in capsys.readouterr().err
        assert manager.declare_temp().source()      # a local file: it goes through the manager
        with pytest.raises(ConfigError, match="cannot encrypt"):
            manager.enable_peer_transfers()
        assert manager._runner.call(lambda core, now: core.staging.peers_enabled) is False
    finally:
        manager.close()

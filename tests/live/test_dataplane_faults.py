"""What is broken, hostile, slow or full ends in the right error, leaves nothing behind, and holds up nobody else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_dataplane_support import HOST, SECRET, TIMEOUT_S, Rig, fetch_into, scripted_server, wait_until

from taskvine_core.dataplane import acceptor
from taskvine_core.dataplane.channel import Cancelled, Channel
from taskvine_core.dataplane.client import upload
from taskvine_core.dataplane.connect import connect
from taskvine_core.dataplane.messages import (
    ACK_DISK_FULL,
    ACK_GO,
    DataAck,
    DataGet,
    DataPut,
    ObjectHeader,
    ObjectInline,
    Segment,
    Trailer,
)
from taskvine_core.dataplane.objects import DIR, FILE, LINK, RECORD, UP_RECORD, hash_object
from taskvine_core.errors import DiskFullError, IntegrityError, SourceError, TransferError
from taskvine_core.protocol.session import Session

MB = 1 << 20
A, B, C = "file-rnd-a", "file-rnd-b", "file-rnd-c"
SHORT_S = 0.6


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.server.close()


def connected(port: int, timeout_s: float = TIMEOUT_S) -> Channel:
    return connect((HOST, port), secret=SECRET, timeout_s=timeout_s, tls=None, cancel=lambda: False)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes of one file fails as on a full disk (EFBIG instead of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------------------- bad objects


def test_a_missing_object_does_not_stop_the_others(rig: Rig) -> None:
    rig.add(B, b"here")
    missing, unsafe, here = rig.fetch([A, "../../etc/passwd", B])
    assert isinstance(missing.error, SourceError)
    assert "not here" in str(missing.error)
    assert isinstance(unsafe.error, SourceError)
    assert here.error is None


@pytest.mark.parametrize("size", [100, 5 * MB])
def test_a_copy_with_another_hash_than_expected_is_dropped(rig: Rig, size: int) -> None:
    rig.add(A, os.urandom(size))
    rig.add(B, b"good")
    bad, good = rig.fetch([A, B], expected={A: b"\1" * 32})
    assert isinstance(bad.error, IntegrityError)
    assert good.error is None
    assert os.listdir(rig.out) == [B]


@pytest.mark.parametrize("size", [100, MB, 5 * MB])
def test_a_source_whose_copy_rotted_is_found_out_without_an_expected_hash(rig: Rig, size: int) -> None:
    path = rig.add(A, os.urandom(size))
    rig.shelf.digests[A] = hash_object(path).sha256
    with path.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 1]))
    rig.add(B, b"good")
    bad, good = rig.fetch([A, B])
    assert isinstance(bad.error, IntegrityError)
    assert good.error is None
    assert os.listdir(rig.out) == [B]


@pytest.mark.parametrize("size", [100, 5 * MB])
def test_an_object_of_another_size_than_known_is_not_received(rig: Rig, size: int) -> None:
    rig.add(A, os.urandom(size))
    rig.add(B, b"good")
    bad, good = rig.fetch([A, B], sizes={A: size + 1, B: 4})
    assert isinstance(bad.error, IntegrityError)
    assert good.error is None


def test_a_file_that_shrinks_while_it_is_sent_is_a_fault_of_the_source(rig: Rig) -> None:
    path = rig.add(A, bytes(64 * MB))
    rig.add(B, b"good")

    def shrink(size: int) -> bool:
        if size == 64 * MB:
            os.truncate(path, 40 * MB)
        return True

    bad, good = rig.fetch([A, B], room=shrink)
    assert isinstance(bad.error, SourceError)
    assert "shorter" in str(bad.error)
    assert good.error is None
    assert os.listdir(rig.out) == [B]
    assert rig.shelf.done[0][:2] == (A, False)


def test_a_file_that_changes_while_it_is_sent_is_not_accepted(rig: Rig) -> None:
    path = rig.add(A, bytes(64 * MB))

    def change(size: int) -> bool:
        with path.open("r+b") as file:
            file.write(b"new beginning")
        os.utime(path, (1, 1))
        return True

    (bad,) = rig.fetch([A], room=change)
    assert isinstance(bad.error, (SourceError, IntegrityError))
    assert os.listdir(rig.out) == []


def test_a_directory_that_loses_a_file_while_it_is_sent_is_a_fault_of_the_source(rig: Rig) -> None:
    root = rig.shelf.directory / A
    root.mkdir()
    for index in range(5):
        (root / f"{index}").write_bytes(bytes(16 * MB))
    rig.add(B, b"good")
    bad, good = rig.fetch([A, B], room=lambda size: size < MB or not (root / "4").unlink())
    assert isinstance(bad.error, SourceError)
    assert good.error is None
    assert os.listdir(rig.out) == [B]


def test_a_link_that_leads_out_of_a_directory_arrives_as_a_link_and_is_not_read(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not a part of the object")
    (rig.shelf.directory / A).mkdir()
    for name, target in (("one", tmp_path / "secret"), ("two", "../../secret"), ("three", tmp_path)):
        (rig.shelf.directory / A / name).symlink_to(target)
    (result,) = rig.fetch([A])
    assert result.info is not None and result.info.size_bytes == 0
    found = {path.name: os.readlink(path) for path in (rig.out / A).iterdir()}
    assert found == {"one": str(tmp_path / "secret"), "two": "../../secret", "three": str(tmp_path)}


def test_a_pipe_is_refused_at_once_and_not_waited_for(rig: Rig) -> None:
    os.mkfifo(rig.shelf.directory / A)
    (result,) = rig.fetch([A], timeout_s=1.0)
    assert "neither" in str(result.error)


# ---------------------------------------------------------------------------- full disks


def test_no_room_refuses_one_object_and_the_others_arrive(rig: Rig) -> None:
    for name, size in ((A, 5 * MB), (B, 10), (C, 3 * MB)):
        rig.add(name, os.urandom(size))
    results = rig.fetch([A, B, C, A, A, B], room=lambda size: size < 4 * MB)
    assert [type(result.error) for result in results[:5]] == [DiskFullError, type(None), type(None), DiskFullError,
                                                              DiskFullError]
    assert (rig.out / B).exists()
    assert not (rig.out / A).exists()


@pytest.mark.parametrize("size", [100_000, 8 * MB], ids=["through memory", "spliced"])
@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
def test_a_disk_that_fills_up_is_our_own_fault_and_leaves_nothing(rig: Rig, size: int, directory: bool) -> None:
    if directory:
        (rig.shelf.directory / A).mkdir()
        (rig.shelf.directory / A / "small").write_bytes(b"x")
        (rig.shelf.directory / A / "zlarge").write_bytes(bytes(size))
    else:
        rig.add(A, bytes(size))
    rig.add(B, b"good")
    with file_size_limit(70_000):
        bad, good = rig.fetch([A, B])
    assert isinstance(bad.error, DiskFullError)
    assert good.error is None
    assert os.listdir(rig.out) == [B]


def test_what_exists_is_not_overwritten_nor_removed(rig: Rig) -> None:
    rig.add(A, bytes(MB))
    rig.add(B, b"small")
    for name in (A, B):
        (rig.out / name).write_bytes(b"mine")
    for result in rig.fetch([A, B]):
        assert type(result.error) is TransferError
        assert (rig.out / result.name).read_bytes() == b"mine"


def test_a_server_without_room_tells_the_uploader(rig: Rig, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(64 * MB))
    rig.shelf.uploads[3] = tmp_path / "arrived"
    with file_size_limit(MB), pytest.raises(DiskFullError):
        upload((HOST, rig.port), 3, A, source, secret=SECRET, timeout_s=TIMEOUT_S)
    wait_until(lambda: rig.shelf.ended, "end_upload")
    assert rig.shelf.ended[0][1] is None
    assert not (tmp_path / "arrived").exists()


def test_a_refusal_reaches_an_uploader_that_listens_only_at_the_end(rig: Rig, tmp_path: Path) -> None:
    rig.shelf.uploads[3] = tmp_path / "arrived"
    channel = connected(rig.port)
    channel.send(DataPut(3, A), ObjectHeader(A, False, 0o644, 8 * MB, 0))
    channel.expect_message()
    with file_size_limit(MB):
        channel.send(Segment(8 * MB))
        channel.send_raw(bytes(8 * MB))
        # Within the limit, which is the whole process's: sent is not yet written by the server's thread.
        message = channel.expect_message()
    channel.close()
    assert isinstance(message, DataAck)
    assert message.code == ACK_DISK_FULL


def test_an_uploader_hears_the_last_words_of_a_server_that_closed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(32 * MB))

    def refuse(channel: Channel) -> None:
        channel.expect_message()
        channel.expect_message()
        channel.send(DataAck(5, ACK_GO, ""))
        channel.expect_message()
        channel.send(DataAck(5, ACK_DISK_FULL, "no room at all"))

    with scripted_server(refuse) as port, pytest.raises(DiskFullError, match="no room at all"):
        upload((HOST, port), 5, A, tmp_path / "source", secret=SECRET, timeout_s=TIMEOUT_S)


def test_an_uploader_stops_at_the_next_segment_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    os.truncate(tmp_path / "source", 128 * MB)
    drained = [0]

    def refuse(channel: Channel) -> None:
        channel.expect_message()
        channel.expect_message()
        channel.send(DataAck(5, ACK_GO, ""))
        channel.expect_message()
        channel.send(DataAck(5, ACK_DISK_FULL, "no room at all"))
        buffer = memoryview(bytearray(MB))
        while True:
            channel.receive_raw(buffer)
            drained[0] += MB

    with scripted_server(refuse) as port, pytest.raises(DiskFullError, match="no room at all"):
        upload((HOST, port), 5, A, tmp_path / "source", secret=SECRET, timeout_s=TIMEOUT_S, sha256=b"x" * 32)
    assert drained[0] < 64 * MB


# ---------------------------------------------------------------------------- hostile senders


def stream(channel: Channel, name: str, data: bytes, *, size: int, is_dir: bool = True, entries: int = 9,
           sha256: bytes = b"") -> None:
    channel.send(ObjectHeader(name, is_dir, 0o755, size, entries))
    channel.send(Segment(len(data)))
    channel.send_raw(data)
    channel.send(Trailer(sha256 or hashlib.sha256(data).digest(), ""))


def record(kind: int, name: bytes, content: bytes = b"") -> bytes:
    return RECORD.pack(kind, 0o644, len(name), len(content)) + name + content


@pytest.mark.parametrize("data", [
    record(FILE, b"../evil", b"x"),
    record(FILE, b"/tmp/evil", b"x"),
    record(LINK, b"l", b"..") + record(FILE, b"l/evil", b"x"),
    record(LINK, b"l", b"..") + record(DIR, b"l") + record(FILE, b"evil", b"x") + UP_RECORD,
    record(LINK, b"l", b"../evil") + record(FILE, b"l", b"x"),
    record(LINK, b"l", b""),
    record(LINK, b"l", b"a\0b"),
    record(FILE, b"b", b"x") + record(FILE, b"a"),
    record(FILE, b"a", b"xyz"),
    b"\xff" * 200,
], ids=["dots", "absolute", "below a link", "into a link", "through a link", "empty link", "no link", "order",
        "too much", "noise"])
def test_a_hostile_directory_stream_writes_nothing_outside_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def attack(channel: Channel) -> None:
        channel.expect_message()
        stream(channel, A, data + UP_RECORD, size=1)

    with scripted_server(attack) as port:
        (result,) = fetch_into(out, port, [A])
    assert isinstance(result.error, IntegrityError)
    assert os.listdir(out) == []
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    def attack(channel: Channel) -> None:
        channel.expect_message()
        stream(channel, A, b"x" * MB, size=10, is_dir=False)

    with scripted_server(attack) as port:
        (result,) = fetch_into(tmp_path, port, [A])
    assert isinstance(result.error, IntegrityError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("answer", [
    ObjectInline(B, 0o644, b"", b"wrong name"), DataAck(1, ACK_GO, ""), Trailer(b"", ""),
    ObjectHeader(A, False, 0o644, -5, 0), ObjectHeader(A, True, 0o644, 5, 1 << 60), ObjectInline(A, 0, b"bad", b"x"),
], ids=lambda answer: type(answer).__name__)
def test_nonsense_answers_are_a_fault_of_the_source(tmp_path: Path, answer: object) -> None:
    def attack(channel: Channel) -> None:
        channel.expect_message()
        channel.send(answer)

    with scripted_server(attack) as port:
        (result,) = fetch_into(tmp_path, port, [A])
    assert isinstance(result.error, (SourceError, IntegrityError))
    assert os.listdir(tmp_path) == []


def test_frames_without_a_valid_mac_are_a_fault_of_the_source(tmp_path: Path) -> None:
    def attack(channel: Channel) -> None:
        channel.expect_message()
        channel.send_raw(b"\0\0\0\x20" + bytes(64))

    with scripted_server(attack) as port:
        (result,) = fetch_into(tmp_path, port, [A])
    assert isinstance(result.error, SourceError)


# ---------------------------------------------------------------------------- broken connections


@pytest.mark.parametrize("sent", [0, 1000, 3 * MB])
def test_a_source_that_dies_in_the_middle_costs_one_object_and_a_new_connection(tmp_path: Path, sent: int) -> None:
    asked: list[tuple[str, ...]] = []

    def die_once(channel: Channel) -> None:
        message = channel.expect_message()
        assert isinstance(message, DataGet)
        asked.append(message.names)
        if len(asked) == 1:
            channel.send(ObjectHeader(A, False, 0o644, 8 * MB, 0), Segment(8 * MB))
            channel.send_raw(bytes(sent))
        else:
            channel.send(ObjectInline(B, 0o644, hashlib.sha256(b"x").digest(), b"x"))
            channel.receive()

    with scripted_server(die_once) as port:
        dead, alive = fetch_into(tmp_path, port, [A, B])
    assert isinstance(dead.error, SourceError)
    assert alive.error is None
    assert asked == [(A, B), (B,)]
    assert os.listdir(tmp_path) == [B]


def test_a_source_that_always_dies_is_given_up_soon(tmp_path: Path) -> None:
    names = [f"file-rnd-{index}" for index in range(500)]
    connections: list[Channel] = []
    with scripted_server(connections.append) as port:
        results = list(fetch_into(tmp_path, port, names))
    assert [result.name for result in results] == names
    assert all(isinstance(result.error, SourceError) for result in results)
    assert len(connections) < 5


def test_a_refused_connection_fails_every_name_at_once(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    results = list(fetch_into(tmp_path, port, [A, B]))
    assert [result.name for result in results] == [A, B]
    assert all("cannot connect" in str(result.error) for result in results)


def test_a_silent_source_is_left_after_the_timeout(tmp_path: Path) -> None:
    with scripted_server(lambda channel: channel.receive() and channel.receive()) as port:
        start = time.monotonic()
        (result,) = fetch_into(tmp_path, port, [A], timeout_s=SHORT_S)
    assert isinstance(result.error, SourceError)
    assert SHORT_S <= time.monotonic() - start < SHORT_S + 2


def test_a_source_that_stops_in_the_middle_is_left_after_the_timeout(tmp_path: Path) -> None:
    def stall(channel: Channel) -> None:
        channel.expect_message()
        channel.send(ObjectHeader(A, False, 0o644, 8 * MB, 0), Segment(8 * MB))
        channel.send_raw(bytes(MB))
        channel.receive()

    with scripted_server(stall) as port:
        (result,) = fetch_into(tmp_path, port, [A], timeout_s=SHORT_S)
    assert isinstance(result.error, SourceError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("started", [False, True], ids=["before the answer", "in the middle"])
def test_a_cancelled_fetch_ends_within_half_a_second(tmp_path: Path, started: bool) -> None:
    cancelled = threading.Event()
    asked_at: list[float] = []

    def stall(channel: Channel) -> None:
        channel.expect_message()
        if started:
            channel.send(ObjectHeader(A, False, 0o644, 8 * MB, 0), Segment(8 * MB))
            channel.send_raw(bytes(MB))
        asked_at.append(time.monotonic())
        cancelled.set()
        channel.receive()

    with scripted_server(stall) as port:
        results = list(fetch_into(tmp_path, port, [A, B], cancel=cancelled.is_set))
        took = time.monotonic() - asked_at[0]
    assert [result.name for result in results] == [A, B]
    assert all(isinstance(result.error, Cancelled) for result in results)
    assert took < 0.75
    assert os.listdir(tmp_path) == []


def test_a_client_that_goes_away_gives_its_thread_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_threads=1)
    rig.add(A, bytes(64 * MB))
    rig.add(B, b"small")
    iterator = rig.iterate([A], room=lambda size: False)
    next(iterator)
    iterator.close()
    channel = connected(rig.port)
    channel.send(DataGet((A,)))
    channel.expect_message()
    channel.close()
    (result,) = rig.fetch([B])
    rig.server.close()
    assert result.error is None
    assert [done[:2] for done in rig.shelf.done] == [(A, False), (A, False), (B, True)]


def test_a_client_that_does_not_read_gives_its_thread_back_after_the_timeout(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_threads=1, timeout_s=SHORT_S)
    rig.add(A, bytes(64 * MB))
    rig.add(B, b"small")
    lazy = connected(rig.port)
    lazy.send(DataGet((A,)))
    (result,) = rig.fetch([B])
    lazy.close()
    rig.server.close()
    assert result.error is None
    assert rig.shelf.done[0][:2] == (A, False)
    assert any("moved" in text for text in rig.said)


def test_a_client_that_reads_a_byte_now_and_then_counts_as_silent(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_threads=1, timeout_s=SHORT_S)
    rig.add(A, bytes(64 * MB))
    lazy = connected(rig.port)
    lazy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.send(DataGet((A,)))
    deadline = time.monotonic() + SHORT_S * 8
    while not rig.shelf.done and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            lazy.sock.recv(512)
        time.sleep(0.02)
    lazy.close()
    rig.server.close()
    assert rig.shelf.done[0][:2] == (A, False)
    assert any("moved" in text for text in rig.said)


def test_a_peer_that_asks_for_nothing_gives_its_thread_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.dataplane.server.IDLE_PEER_S", SHORT_S)
    rig = Rig(tmp_path, max_threads=1)
    rig.add(B, b"small")
    idle = connected(rig.port)
    (result,) = rig.fetch([B])
    idle.close()
    rig.server.close()
    assert result.error is None


def test_closing_a_server_ends_a_stuck_conversation(tmp_path: Path) -> None:
    rig = Rig(tmp_path, timeout_s=60.0)
    rig.add(A, bytes(64 * MB))
    lazy = connected(rig.port)
    lazy.send(DataGet((A,)))
    lazy.expect_message()
    closer = threading.Thread(target=rig.server.close)
    closer.start()
    closer.join(3.0)
    assert not closer.is_alive()
    lazy.close()
    assert rig.shelf.done[0][:2] == (A, False)


def test_a_fault_in_the_provider_does_not_cost_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, max_threads=1)
    rig.add(B, b"small")
    real = rig.shelf.open_object

    def broken(name: str) -> object:
        if name == A:
            raise ZeroDivisionError("a defect")
        return real(name)

    monkeypatch.setattr(rig.shelf, "open_object", broken)
    (bad,) = rig.fetch([A])
    (good,) = rig.fetch([B])
    rig.server.close()
    assert isinstance(bad.error, SourceError)
    assert good.error is None
    assert any("a defect" in text for text in rig.said)


# ---------------------------------------------------------------------------- strangers


def test_another_secret_is_refused_on_both_sides(rig: Rig) -> None:
    rig.add(A, b"secret data")
    (result,) = rig.fetch([A], secret=b"another key another key another!")
    assert isinstance(result.error, SourceError)
    assert os.listdir(rig.out) == []
    assert rig.shelf.done == []


def test_a_worker_does_not_belong_on_a_data_port(tmp_path: Path) -> None:
    rig = Rig(tmp_path, role="manager")
    with socket.create_connection((HOST, rig.port), timeout=TIMEOUT_S) as sock:
        session = Session(secret=SECRET, role="worker", initiator=True, nonce=os.urandom(32))
        sock.sendall(session.start())
        while data := sock.recv(4096):
            sock.sendall(session.receive(data)[1])
    rig.server.close()
    assert any("does not belong" in text for text in rig.said)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n" * 50, bytes(100_000), b"\xff" * 5000])
def test_garbage_is_dropped_at_once(rig: Rig, garbage: bytes) -> None:
    with socket.create_connection((HOST, rig.port), timeout=TIMEOUT_S) as sock:
        try:
            sock.sendall(garbage)
            while sock.recv(4096):
                pass
        except ConnectionError:
            pass  # reset: dropped with bytes unread
    wait_until(lambda: rig.said, "the refusal")


def test_silent_strangers_keep_no_peer_out_and_are_dropped_in_time(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_TIMEOUT_S", SHORT_S)
    monkeypatch.setattr(acceptor, "MAX_STRANGERS", 20)
    rig = Rig(tmp_path, max_threads=1)
    rig.add(A, b"data")
    threads = threading.active_count()
    strangers = [socket.create_connection((HOST, rig.port), timeout=TIMEOUT_S) for _ in range(60)]
    start = time.monotonic()
    (result,) = rig.fetch([A])
    took = time.monotonic() - start
    assert result.error is None
    assert took < SHORT_S
    assert threading.active_count() <= threads + 1
    for stranger in strangers:
        assert stranger.recv(1) == b""
        stranger.close()
    rig.server.close()
    assert sum("too many" in text for text in rig.said) >= 40
    assert sum("no handshake" in text for text in rig.said) >= 15


def test_handshake_cut_short_is_dropped(rig: Rig) -> None:
    session = Session(secret=SECRET, role="data", initiator=True, nonce=os.urandom(32))
    with socket.create_connection((HOST, rig.port), timeout=TIMEOUT_S) as sock:
        sock.sendall(session.start()[:10])
    wait_until(lambda: any("during the handshake" in text for text in rig.said), "the refusal")


# ---------------------------------------------------------------------------- uploads


def put(rig: Rig, path: Path, **more: bytes) -> None:
    upload((HOST, rig.port), 5, A, path, secret=SECRET, timeout_s=TIMEOUT_S, **more)


def test_an_upload_that_is_not_expected_is_refused(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(SourceError, match="not expected"):
        put(rig, tmp_path / "source")
    assert rig.shelf.ended == []


def test_an_upload_of_something_missing_says_so_before_connecting(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        put(rig, tmp_path / "nothing")


def test_an_upload_that_does_not_match_its_digest_is_refused(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(5 * MB))
    rig.shelf.uploads[5] = tmp_path / "arrived"
    with pytest.raises(IntegrityError):
        put(rig, tmp_path / "source", sha256=b"\1" * 32)
    assert rig.shelf.ended[0][1] is None
    assert not (tmp_path / "arrived").exists()


@pytest.mark.parametrize("then", ["close", "stall"])
def test_an_uploader_that_dies_is_reported_and_gives_its_thread_back(tmp_path: Path, then: str) -> None:
    rig = Rig(tmp_path, max_threads=1, timeout_s=SHORT_S)
    rig.shelf.uploads[5] = tmp_path / "arrived"
    channel = connected(rig.port)
    channel.send(DataPut(5, A), ObjectHeader(A, False, 0o644, 8 * MB, 0))
    channel.expect_message()
    channel.send(Segment(8 * MB))
    channel.send_raw(bytes(3 * MB))
    if then == "close":
        channel.close()
    wait_until(lambda: rig.shelf.ended, "end_upload")
    channel.close()
    rig.add(B, b"x")
    (result,) = rig.fetch([B])
    rig.server.close()
    assert result.error is None
    assert rig.shelf.ended[0][1] is None
    assert rig.shelf.ended[0][2]
    assert not (tmp_path / "arrived").exists()


def test_a_server_that_dies_during_an_upload_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(64 * MB))

    def die(channel: Channel) -> None:
        channel.expect_message()
        channel.expect_message()
        channel.send(DataAck(5, ACK_GO, ""))
        channel.expect_message()

    with scripted_server(die) as port, pytest.raises(SourceError):
        upload((HOST, port), 5, A, tmp_path / "source", secret=SECRET, timeout_s=TIMEOUT_S)


def test_no_descriptor_and_no_thread_is_left_after_faults(tmp_path: Path) -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = count()
    faults: list[Callable[[Rig], object]] = [
        lambda rig: rig.fetch([A], expected={A: b"\1" * 32}),
        lambda rig: rig.fetch([A], room=lambda size: False),
        lambda rig: rig.fetch([A], secret=bytes(32)),
        lambda rig: rig.fetch([C]),
        lambda rig: connected(rig.port).close(),
    ]
    for index, fault in enumerate(faults):
        (tmp_path / str(index)).mkdir()
        rig = Rig(tmp_path / str(index))
        rig.add(A, bytes(8 * MB))
        fault(rig)
        rig.server.close()
    wait_until(lambda: count() == before, f"descriptors and threads back to {before}")

"""When the digest of a stream may be left out: only where nobody can change its bytes on their way."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_dataplane_support import DEADLINE_S, HOST, SECRET, TIMEOUT_S, Rig, fetch_into

from taskvine_core.dataplane.channel import Channel
from taskvine_core.dataplane.client import upload
from taskvine_core.dataplane.connect import connect
from taskvine_core.dataplane.messages import (
    ACK_GO,
    ACK_INTEGRITY,
    DataAck,
    DataGet,
    DataPut,
    Local,
    ObjectHeader,
    Segment,
    Trailer,
)
from taskvine_core.dataplane.sealed import introduction
from taskvine_core.errors import IntegrityError

A = "file-rnd-a"
DATA = os.urandom(3 << 20)
#: Well within the raw bytes of DATA, whatever comes before them.
FLIPPED_AT = 2 << 20


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.server.close()


def open_channel(port: int) -> Channel:
    return connect((HOST, port), secret=SECRET, timeout_s=TIMEOUT_S, tls=None, cancel=lambda: False)


def trailer_after(channel: Channel) -> Trailer:
    """Read a stream to its end."""
    while not isinstance(message := channel.expect_message(), Trailer):
        if isinstance(message, Segment):
            channel.receive_raw(memoryview(bytearray(message.length)))
    return message


@contextmanager
def flipping_proxy(port: int) -> Iterator[int]:
    """A proxy on this machine that changes one byte of what the server sends; yields its port."""
    listener = socket.create_server((HOST, 0))
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, target: socket.socket, flip_at: int) -> None:
        done = 0
        try:
            while data := bytearray(source.recv(1 << 16)):
                if done <= flip_at < done + len(data):
                    data[flip_at - done] ^= 1
                done += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side had enough

    def run() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((HOST, port), TIMEOUT_S)
            for source, target, flip_at in ((client, server, -1), (server, client, FLIPPED_AT)):
                threads.append(threading.Thread(target=pump, args=(source, target, flip_at), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=run)
    accepting.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(DEADLINE_S)
        for thread in threads:
            thread.join(DEADLINE_S)
        assert not accepting.is_alive()


def test_an_unknown_digest_is_left_out_between_processes_of_one_machine_and_only_there(rig: Rig) -> None:
    rig.add(A, DATA)
    channel = open_channel(rig.port)
    (truth,) = introduction(channel)
    channel.close()
    digest = hashlib.sha256(DATA).digest()
    for change, proof in (({}, b""), ({"boot_id": b"another kernel"}, digest), ({"boot_id": b""}, digest),
                          ({"server": f"{HOST} 1"}, digest), ({"client": f"{HOST} 1"}, digest)):
        channel = open_channel(rig.port)
        said = Local(truth.boot_id, *channel.ends())
        channel.send(said._replace(**change), DataGet((A,)))
        assert trailer_after(channel) == Trailer(proof, ""), change
        channel.close()
    channel = open_channel(rig.port)
    channel.send(DataGet((A,)))
    assert trailer_after(channel) == Trailer(digest, "")
    channel.close()


def test_the_receiver_finds_the_digest_itself_when_the_sender_left_it_out(rig: Rig, tmp_path: Path) -> None:
    rig.add(A, DATA)
    (result,) = rig.fetch([A])
    assert result.info is not None and result.info.sha256 == hashlib.sha256(DATA).digest()
    rig.shelf.uploads[1] = tmp_path / "uploaded"
    upload((HOST, rig.port), 1, A, rig.shelf.directory / A, secret=SECRET, timeout_s=TIMEOUT_S)
    ((_, info, _),) = rig.shelf.ended
    assert info is not None and info.sha256 == result.info.sha256 and (tmp_path / "uploaded").read_bytes() == DATA


def test_a_known_digest_is_compared_although_the_trailer_has_none(rig: Rig) -> None:
    rig.add(A, DATA)
    (result,) = rig.fetch([A], expected={A: hashlib.sha256(b"").digest()})
    assert isinstance(result.error, IntegrityError) and not os.listdir(rig.out)


def test_bytes_changed_by_a_proxy_on_this_machine_are_noticed(rig: Rig) -> None:
    """Everything looks local through it, but it cannot have the ports of both ends."""
    rig.add(A, DATA)
    with flipping_proxy(rig.port) as port:
        (result,) = fetch_into(rig.out, port, [A])
    assert isinstance(result.error, IntegrityError) and not os.listdir(rig.out)


def test_a_stream_without_digest_is_refused_from_who_did_not_prove_to_be_local(rig: Rig, tmp_path: Path) -> None:
    rig.shelf.uploads[1] = tmp_path / "uploaded"
    channel = open_channel(rig.port)
    channel.send(DataPut(1, A), ObjectHeader(A, False, 0o644, 4, 0))
    answer = channel.expect_message()
    assert isinstance(answer, DataAck) and answer.code == ACK_GO
    channel.send(Segment(4))
    channel.send_raw(b"data")
    channel.send(Trailer(b"", ""))
    answer = channel.expect_message()
    assert isinstance(answer, DataAck) and answer.code == ACK_INTEGRITY and not (tmp_path / "uploaded").exists()
    channel.close()

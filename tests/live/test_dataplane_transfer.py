"""Objects arrive whole, as they were, over real sockets."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_dataplane_support import HOST, SECRET, TIMEOUT_S, Rig, fetch_into, wait_until

from taskvine_core import tls as tls_module
from taskvine_core.dataplane.channel import Tls
from taskvine_core.dataplane.client import upload
from taskvine_core.dataplane.connect import connect
from taskvine_core.dataplane.messages import DataGet, ObjectInline
from taskvine_core.dataplane.objects import hash_object
from taskvine_core.dataplane.receive import THREADED_HASH_BYTES
from taskvine_core.dataplane.segments import SPLICE_BYTES
from taskvine_core.errors import ConfigError
from taskvine_core.protocol.session import Session


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.server.close()


def make_directory(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "bin" / "run").write_bytes(b"#!/bin/sh\n")
    (root / "bin" / "run").chmod(0o755)
    (root / "big").write_bytes(os.urandom(THREADED_HASH_BYTES + 4321))
    (root / "medium").write_bytes(os.urandom(300_000))
    (root / "zero").write_bytes(b"")
    (root / "link").symlink_to("bin/run")
    (root / "bin" / "back").symlink_to("../big")
    (root / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"name")
    (root / "empty").chmod(0o555)


@pytest.mark.parametrize("known", [False, True], ids=["digest computed", "digest known"])
@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, SPLICE_BYTES, THREADED_HASH_BYTES - 1,
                                  THREADED_HASH_BYTES, 40_000_001])
def test_files_of_any_size_arrive_with_their_mode(rig: Rig, size: int, known: bool) -> None:
    path = rig.add("file-rnd-a", os.urandom(size))
    path.chmod(0o750)
    if known:
        rig.shelf.digests["file-rnd-a"] = hash_object(path).sha256
    (result,) = rig.fetch(["file-rnd-a"], expected={"file-rnd-a": hash_object(path).sha256})
    assert result.error is None
    assert result.info == hash_object(path) == hash_object(rig.out / "file-rnd-a")
    assert (rig.out / "file-rnd-a").read_bytes() == path.read_bytes()
    wait_until(lambda: rig.shelf.done == [("file-rnd-a", True, size)], "on_done")


@pytest.mark.parametrize("known", [False, True], ids=["digest computed", "digest known"])
def test_directories_arrive_with_modes_links_and_empty_directories(rig: Rig, known: bool) -> None:
    source = rig.shelf.directory / "file-rnd-dir"
    make_directory(source)
    if known:
        rig.shelf.digests["file-rnd-dir"] = hash_object(source).sha256
    (result,) = rig.fetch(["file-rnd-dir"])
    assert result.error is None
    assert result.info == hash_object(source) == hash_object(rig.out / "file-rnd-dir")
    assert result.info.is_dir
    assert (rig.out / "file-rnd-dir" / "link").read_bytes() == b"#!/bin/sh\n"
    assert (rig.out / "file-rnd-dir" / "empty").stat().st_mode & 0o777 == 0o555


def test_many_small_objects_come_in_order_over_one_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"file-rnd-{index}" for index in range(1000)]
    for name in names:
        rig.add(name, name.encode())
    served: list[int] = []
    adopt = rig.server.serve
    monkeypatch.setattr(rig.server._acceptors[0], "_adopt",
                        lambda *connection: (served.append(1), adopt(*connection)))
    results = rig.fetch(names)
    assert [result.name for result in results] == names
    assert all(result.error is None for result in results)
    assert all((rig.out / name).read_bytes() == name.encode() for name in names)
    assert len(served) == 1


def test_served_path_may_be_a_link_to_the_object(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x" * 100_000)
    (rig.shelf.directory / "file-rnd-a").symlink_to(tmp_path / "real")
    (result,) = rig.fetch(["file-rnd-a"])
    assert result.info == hash_object(tmp_path / "real")


def test_room_is_asked_once_per_object_with_its_size(rig: Rig) -> None:
    rig.add("file-rnd-a", b"x" * 10)
    rig.add("file-rnd-b", b"x" * 100_000)
    asked: list[int] = []
    rig.fetch(["file-rnd-a", "file-rnd-b"], room=lambda size: (asked.append(size), True)[1])
    assert asked == [10, 100_000]


def test_more_peers_than_threads_are_all_served(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_threads=2)
    rig.add("file-rnd-a", os.urandom(3_000_000))
    results: list[Any] = []

    def one(index: int) -> None:
        out = tmp_path / f"out{index}"
        out.mkdir()
        results.extend(fetch_into(out, rig.port, ["file-rnd-a"]))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S * 2)
    rig.server.close()
    assert len(results) == 12
    assert all(result.error is None for result in results)


@pytest.mark.parametrize("kind", ["file", "directory", "small"])
@pytest.mark.parametrize("known", [False, True], ids=["digest computed", "digest known"])
def test_uploads_arrive(rig: Rig, tmp_path: Path, kind: str, known: bool) -> None:
    source = tmp_path / "source"
    if kind == "directory":
        make_directory(source)
    else:
        source.write_bytes(os.urandom(20_000_000 if kind == "file" else 10))
    rig.shelf.uploads[7] = tmp_path / "arrived"
    upload((HOST, rig.port), 7, "temp-rnd-x", source, secret=SECRET, timeout_s=TIMEOUT_S,
           sha256=hash_object(source).sha256 if known else b"")
    assert rig.shelf.ended == [(7, hash_object(source), "")]
    assert hash_object(tmp_path / "arrived") == hash_object(source)


def test_an_adopted_connection_may_bring_messages_that_were_read_already(rig: Rig) -> None:
    rig.add("file-rnd-a", b"hello")
    ours, theirs = socket.socketpair()
    client = Session(secret=SECRET, role="data", initiator=True, nonce=os.urandom(32))
    server = Session(secret=SECRET, role="manager", initiator=False, nonce=os.urandom(32))
    to_server, messages = client.start(), []
    while not (client.established and server.established):
        messages, to_client = server.receive(to_server)
        _, to_server = client.receive(to_client)
        if client.established:
            messages, _ = server.receive(to_server + client.encode([DataGet(("file-rnd-a",))]))
    rig.server.serve(theirs, server, messages)
    with ours:
        ours.settimeout(TIMEOUT_S)
        found: list[Any] = []
        while not found:
            found, _ = client.receive(ours.recv(65536))
    assert isinstance(found[0], ObjectInline)
    assert found[0].data == b"hello"


def test_listening_takes_the_first_free_port_of_a_range(rig: Rig) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="another port"):
            rig.server.listen(HOST, range(port, port + 1))
        assert rig.server.listen(HOST, range(port, port + 100)) > port


@pytest.fixture
def tls_rig(tmp_path: Path) -> Iterator[tuple[Rig, bytes]]:
    key, cert = tls_module.make_self_signed(tmp_path)
    fingerprint = tls_module.fingerprint(cert)
    rig = Rig(tmp_path, tls=Tls(tls_module.server_context(key, cert), fingerprint))
    yield rig, fingerprint
    rig.server.close()


def test_everything_arrives_over_tls_too(tls_rig: tuple[Rig, bytes], tmp_path: Path) -> None:
    rig, fingerprint = tls_rig
    tls = Tls(tls_module.client_context(fingerprint), fingerprint)
    rig.add("file-rnd-a", os.urandom(9_000_000))
    rig.add("file-rnd-b", b"small")
    make_directory(rig.shelf.directory / "file-rnd-d")
    for result in rig.fetch(["file-rnd-a", "file-rnd-b", "file-rnd-d"], tls=tls):
        assert result.error is None
        assert result.info == hash_object(rig.shelf.directory / result.name) == hash_object(rig.out / result.name)
    rig.shelf.uploads[1] = tmp_path / "up"
    upload((HOST, rig.port), 1, "temp-rnd-x", rig.out / "file-rnd-a", secret=SECRET, timeout_s=TIMEOUT_S, tls=tls)
    assert hash_object(tmp_path / "up") == hash_object(rig.out / "file-rnd-a")


@pytest.mark.parametrize("pinned_by", ["context", "channel"])
def test_another_certificate_than_the_pinned_one_is_refused(tls_rig: tuple[Rig, bytes], pinned_by: str) -> None:
    rig, _ = tls_rig
    wrong = b"w" * 32
    rig.add("file-rnd-b", b"small")
    tls = Tls(tls_module.client_context(wrong if pinned_by == "context" else None), wrong)
    (result,) = rig.fetch(["file-rnd-b"], tls=tls)
    assert "certificate" in str(result.error)


def test_a_plain_client_is_not_served_by_a_tls_server(tls_rig: tuple[Rig, bytes]) -> None:
    rig, _ = tls_rig
    rig.add("file-rnd-b", b"small")
    (result,) = rig.fetch(["file-rnd-b"])
    assert result.error is not None


def test_closing_a_server_with_idle_peers_takes_no_time(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    channels = [connect((HOST, rig.port), secret=SECRET, timeout_s=TIMEOUT_S, tls=None, cancel=lambda: False)
                for _ in range(3)]
    closer = threading.Thread(target=rig.server.close)
    closer.start()
    closer.join(2.0)
    assert not closer.is_alive()
    assert all(channel.receive() is None for channel in channels)
    for channel in channels:
        channel.close()

"""The status client against real sockets: one answer, and a sentence for each way to get none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskvine_core.catalog.query import ask
from taskvine_core.errors import (
    ConfigError,
    DiscoveryError,
    HandshakeError,
    RemoteProtocolError,
    SecurityError,
    VineError,
)
from taskvine_core.protocol.messages import Query, Reply
from taskvine_core.protocol.session import Session
from taskvine_core.tls import fingerprint, make_self_signed, server_context

pytestmark = pytest.mark.live

SECRET = b"k" * 32
WAIT_S = 10.0
LARGE = 300_000


class Manager:
    """Answers status queries on a free port; ``mode`` makes it misbehave."""

    def __init__(self, mode: str = "", tls: tuple[Path, Path] | None = None) -> None:
        self.mode = mode
        self.roles: list[str] = []
        self._binding = fingerprint(tls[1]) if tls else b""
        self._tls = server_context(*tls) if tls else None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(WAIT_S)
            try:
                if self._tls is not None:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                self._talk(sock)
            except (OSError, VineError):
                pass  # a client that gave up, as it should in some tests
            finally:
                sock.close()

    def _talk(self, sock: socket.socket) -> None:
        session = Session(secret=SECRET, role="manager", initiator=False, nonce=os.urandom(32), binding=self._binding,
                          mac=self._tls is None)
        while self.mode != "drop":
            data = sock.recv(1 << 16)
            if not data:
                return
            if self.mode == "silent":
                continue
            if self.mode == "garbage":
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)
                return
            messages, reply = session.receive(data)
            sock.sendall(reply)
            for message in messages:
                assert isinstance(message, Query)
                self.roles.append(session.peer_role)
                if self.mode == "die":
                    return
                sock.sendall(session.encode([self._answer(message)]))

    def _answer(self, query: Query) -> Reply:
        if self.mode == "refuse":
            return Reply(query.query_id, b"", "no such question")
        if self.mode == "broken":
            return Reply(query.query_id, b"{", "")
        body = json.loads(query.body) if query.body else None
        return Reply(query.query_id, json.dumps([{"what": query.what, "body": body, "fill": "x" * LARGE}]).encode(), "")


@pytest.fixture
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    made = Manager(getattr(request, "param", ""))
    yield made
    made.close()


def test_answer_of_any_size_comes_back_with_the_body_that_was_sent(manager: Manager) -> None:
    assert ask("127.0.0.1", manager.port, "demand", {"shapes": [1]}, secret=SECRET, role="factory") == [
        {"what": "demand", "body": {"shapes": [1]}, "fill": "x" * LARGE}]
    assert ask("127.0.0.1", manager.port, "tasks", secret=SECRET) is not None
    assert manager.roles == ["factory", "status"]


@pytest.mark.parametrize(("manager", "error", "words"), [
    ("silent", DiscoveryError, "did not answer within 0.3 s"),
    ("garbage", HandshakeError, "manager at 127"),
    ("drop", HandshakeError, "closed the connection during the handshake"),
    ("die", DiscoveryError, "before it answered"),
    ("refuse", RemoteProtocolError, "no such question"),
    ("broken", RemoteProtocolError, "is not JSON")], indirect=["manager"])
def test_each_failure_has_its_error_and_sentence(manager: Manager, error: type[VineError], words: str) -> None:
    timeout_s = 0.3 if manager.mode == "silent" else WAIT_S
    with pytest.raises(error, match=words):
        ask("127.0.0.1", manager.port, "tasks", secret=SECRET, timeout_s=timeout_s)


def test_wrong_key_is_said_to_be_wrong(manager: Manager) -> None:
    with pytest.raises(HandshakeError, match="key"):
        ask("127.0.0.1", manager.port, "tasks", secret=b"x" * 32)


def test_nobody_listening_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DiscoveryError, match=f"nobody listens at 127.0.0.1:{port}"):
        ask("127.0.0.1", port, "tasks", secret=SECRET)


def test_bad_addresses_are_told_apart() -> None:
    with pytest.raises(DiscoveryError, match="is not known"):
        ask("no-such-host.invalid", 1, "tasks", secret=SECRET)
    with pytest.raises(ConfigError, match="port 70000"):
        ask("127.0.0.1", 70000, "tasks", secret=SECRET)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[Manager, bytes]]:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        assert shutil.which("openssl"), "needs cryptography or openssl"
    pair = make_self_signed(tmp_path)
    made = Manager(tls=pair)
    yield made, fingerprint(pair[1])
    made.close()


def test_tls_with_the_pinned_certificate_and_with_any(secured: tuple[Manager, bytes]) -> None:
    manager, print_ = secured
    for options in ({"fingerprint": print_.hex()}, {"use_tls": True}):
        answer = ask("127.0.0.1", manager.port, "tasks", secret=SECRET, **options)  # type: ignore[arg-type]
        assert isinstance(answer, list)


def test_another_certificate_is_refused(secured: tuple[Manager, bytes]) -> None:
    with pytest.raises(SecurityError, match="certificate"):
        ask("127.0.0.1", secured[0].port, "tasks", secret=SECRET, fingerprint="00" * 32)


def test_plain_client_at_a_tls_manager_and_the_reverse_are_told(
        secured: tuple[Manager, bytes], manager: Manager) -> None:
    with pytest.raises(VineError, match=r"(?i)ssl|tls"):
        ask("127.0.0.1", secured[0].port, "tasks", secret=SECRET)
    with pytest.raises(VineError, match=r"(?i)tls"):
        ask("127.0.0.1", manager.port, "tasks", secret=SECRET, use_tls=True, timeout_s=2.0)

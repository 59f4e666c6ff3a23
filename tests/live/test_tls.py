"""Rules of TLS links, over real sockets on this machine."""

from __future__ import annotations

import builtins
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskvine_core import tls
from taskvine_core.errors import ConfigError, HandshakeError, SecurityError
from taskvine_core.protocol.messages import Ping, Pong
from taskvine_core.protocol.session import Session

pytestmark = pytest.mark.live

TIMEOUT_S = 20
SECRET = b"k" * 32


def _without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "cryptography":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tls.make_self_signed(tmp_path_factory.mktemp("tls"))


class Listener:
    """Takes one connection, speaks TLS and then the protocol on it, and answers a Ping."""

    def __init__(self, key: Path, cert: Path, binding: bytes, context: ssl.SSLContext | None = None) -> None:
        self.error: Exception | None = None
        self._context = context or tls.server_context(key, cert)
        self._binding = binding
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(TIMEOUT_S)
        self.address: tuple[str, int] = self._socket.getsockname()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            plain, _ = self._socket.accept()
            plain.settimeout(TIMEOUT_S)
            with self._context.wrap_socket(plain, server_side=True) as link:
                session = Session(secret=SECRET, role="manager", initiator=False, nonce=os.urandom(32),
                                  binding=self._binding, mac=False)
                while data := link.recv(65536):
                    messages, reply = session.receive(data)
                    link.sendall(reply + (session.encode([Pong(m.nonce) for m in messages]) if messages else b""))
        except Exception as error:  # shown to the test that cares
            self.error = error

    def close(self) -> None:
        self._thread.join(TIMEOUT_S)
        self._socket.close()
        assert not self._thread.is_alive()


@pytest.fixture
def listener(pems: tuple[Path, Path]) -> Iterator[Listener]:
    server = Listener(*pems, binding=tls.fingerprint(pems[1]))
    yield server
    server.close()


def talk(link: ssl.SSLSocket, binding: bytes) -> list[Any]:
    """Handshake, a Ping, and what came back."""
    session = Session(secret=SECRET, role="worker", initiator=True, nonce=os.urandom(32), binding=binding, mac=False)
    link.sendall(session.start())
    while not session.established:
        _, reply = session.receive(link.recv(65536))
        link.sendall(reply)
    link.sendall(session.encode([Ping(5)]))
    got: list[Any] = []
    while not got:
        got = session.receive(link.recv(65536))[0]
    return got


def connect(address: tuple[str, int], fingerprint: bytes | None) -> ssl.SSLSocket:
    plain = socket.create_connection(address, TIMEOUT_S)
    return tls.client_context(fingerprint).wrap_socket(plain)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_client_and_a_manager_talk_over_tls(pinned: bool, listener: Listener, pems: tuple[Path, Path]) -> None:
    expected = tls.fingerprint(pems[1])
    with connect(listener.address, expected if pinned else None) as link:
        assert tls.peer_fingerprint(link) == expected
        assert link.version() in ("TLSv1.2", "TLSv1.3")
        assert talk(link, tls.peer_fingerprint(link)) == [Pong(5)]


def test_a_pinned_client_refuses_another_certificate_before_it_sends_anything(listener: Listener) -> None:
    plain = socket.create_connection(listener.address, TIMEOUT_S)
    with pytest.raises(SecurityError, match="certificate of the peer is not the expected one"):
        tls.client_context(b"\0" * 32).wrap_socket(plain)
    listener.close()


def test_pinning_holds_for_memory_bios_too(pems: tuple[Path, Path]) -> None:
    def run(fingerprint: bytes) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = tls.server_context(*pems).wrap_bio(to_server, to_client, server_side=True)
        client = tls.client_context(fingerprint).wrap_bio(to_client, to_server)
        done: set[ssl.SSLObject] = set()
        for _ in range(20):
            for side in (client, server):
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    continue
        assert done == {client, server}

    run(tls.fingerprint(pems[1]))
    with pytest.raises(SecurityError):
        run(b"\0" * 32)


def test_an_unpinned_client_finds_a_man_in_the_middle_in_the_handshake(pems: tuple[Path, Path], tmp_path: Path) -> None:
    """The attacker ends TLS with his own certificate and passes the bytes on; the manager binds to its own."""
    attacker = tls.make_self_signed(tmp_path)
    server = Listener(*attacker, binding=tls.fingerprint(pems[1]))
    with (connect(server.address, None) as link,
          pytest.raises(HandshakeError, match="certificate seen here is not the one the manager knows")):
        talk(link, tls.peer_fingerprint(link))
    server.close()


def test_versions_before_1_2_are_refused(pems: tuple[Path, Path]) -> None:
    for context in (tls.server_context(*pems), tls.client_context(None)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_plain_peer_of_a_tls_listener_is_turned_away_at_once(listener: Listener) -> None:
    """OpenSSL may send an alert or only reset the connection; either way nobody waits and nothing is established."""
    session = Session(secret=SECRET, role="worker", initiator=True, nonce=b"n" * 32)
    with (socket.create_connection(listener.address, TIMEOUT_S) as link,
          pytest.raises((HandshakeError, ConnectionError), match=r"speaks TLS|reset|closed")):
        link.sendall(session.start())
        data = link.recv(100)
        if not data:
            raise ConnectionError("closed")
        session.receive(data)
    assert not session.established
    listener.close()
    assert isinstance(listener.error, ssl.SSLError)


@pytest.mark.parametrize("how", ["package", "command"])
def test_a_self_signed_certificate_is_usable_and_its_key_private(how: str, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "package":
        pytest.importorskip("cryptography")
        monkeypatch.setenv("PATH", "")
    else:
        assert shutil.which("openssl"), "this test needs the openssl command"
        _without_package(monkeypatch)
    old_mask = os.umask(0)
    try:
        key, cert = tls.make_self_signed(tmp_path)
        first = tls.fingerprint(cert)
        assert tls.make_self_signed(tmp_path) == (key, cert)  # a restarted manager replaces them
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert tls.fingerprint(cert) != first
    server = Listener(key, cert, binding=tls.fingerprint(cert))
    with connect(server.address, tls.fingerprint(cert)) as link:
        assert talk(link, tls.peer_fingerprint(link)) == [Pong(5)]
    server.close()


def test_without_package_and_command_the_error_says_what_to_install(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    _without_package(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"neither .* cryptography nor .* openssl is installed.*pip install"):
        tls.make_self_signed(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_openssl_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "openssl"
    fake.write_text("#!/bin/sh\necho 'no such curve' >&2\nexit 3\n")
    fake.chmod(0o755)
    _without_package(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no such curve"):
        tls.make_self_signed(tmp_path)
    assert list(tmp_path.iterdir()) == [fake]


def test_a_directory_that_does_not_exist_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no TLS key can be written"):
        tls.make_self_signed(tmp_path / "missing")


def test_keys_and_certificates_that_cannot_be_used_are_named(pems: tuple[Path, Path], tmp_path: Path) -> None:
    key, cert = pems
    other_key, _ = tls.make_self_signed(tmp_path)
    for wrong_key, wrong_cert in ((other_key, cert), (cert, key), (tmp_path / "missing", cert)):
        with pytest.raises(ConfigError, match=f"TLS key {wrong_key} and certificate {wrong_cert} cannot be used"):
            tls.server_context(wrong_key, wrong_cert)
    for no_cert in (key, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=f"TLS certificate {no_cert} cannot be read"):
            tls.fingerprint(no_cert)
    with pytest.raises(ConfigError, match="32 bytes"):
        tls.client_context(b"short")


def test_an_encrypted_key_is_refused_without_asking_for_a_passphrase(pems: tuple[Path, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    subprocess.run(["openssl", "pkcs8", "-topk8", "-in", str(pems[0]), "-out", str(locked), "-passout", "pass:abcd"],
                   check=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, capture_output=True)
    with pytest.raises(ConfigError, match="no passphrase"):
        tls.server_context(locked, pems[1])

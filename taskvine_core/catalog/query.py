"""One question to a manager, one answer: the blocking status client.

Owns the connection of a status query. Must not know what questions mean nor how answers are shown.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import time

from taskvine_core.errors import (
    ConfigError,
    DiscoveryError,
    HandshakeError,
    ProtocolError,
    RemoteProtocolError,
    SecurityError,
)
from taskvine_core.protocol.messages import Query, Reply
from taskvine_core.protocol.session import Session

DEFAULT_TIMEOUT_S = 15.0
_READ_BYTES = 1 << 18
_QUERY_ID = 1


def ask(host: str, port: int, what: str, body: object = None, *, secret: bytes, fingerprint: str = "",
        use_tls: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S, role: str = "status") -> object:
    """Ask a manager and return its decoded answer.

    Args:
        host, port: where it listens.
        what: "manager", "tasks", "workers", "categories", "demand" or "retire".
        body: JSON value sent along, None for none.
        secret: the key shared with the manager.
        fingerprint: SHA-256 of its TLS certificate in hex; any other certificate is refused. "" = no TLS.
        use_tls: use TLS with any certificate (the handshake proof is bound to it all the same).
        timeout_s: for the whole call.
        role: "status" or "factory".

    Raises:
        DiscoveryError: nobody listens there, no answer in time, or the connection was lost.
        SecurityError: another certificate (HandshakeError: another key, or not a manager of this project).
        RemoteProtocolError: the manager refused the question or answered something else.
    """
    where = f"{host}:{port}"
    deadline = time.monotonic() + timeout_s
    try:
        with _connect(host, port, timeout_s) as plain:
            if not fingerprint and not use_tls:
                return _exchange(plain, Session(secret=secret, role=role, initiator=True, nonce=os.urandom(32)),
                                 what, body, where, deadline)
            with _wrap(plain, host, fingerprint) as secured:
                from taskvine_core.tls import peer_fingerprint

                session = Session(secret=secret, role=role, initiator=True, nonce=os.urandom(32),
                                  binding=peer_fingerprint(secured), mac=False)
                return _exchange(secured, session, what, body, where, deadline)
    except TimeoutError:
        raise DiscoveryError(f"the manager at {where} did not answer within {timeout_s:g} s",
                             hint="it may be busy or stopped; try a larger timeout") from None
    except ConnectionRefusedError:
        raise DiscoveryError(f"nobody listens at {where}",
                             hint="the manager has ended, or host and port are wrong") from None
    except socket.gaierror as error:
        raise DiscoveryError(f"host {host!r} is not known ({error.strerror})", hint="check its name") from None
    except ssl.SSLError as error:
        raise DiscoveryError(f"no TLS connection to {where}: {error.reason or error}",
                             hint="the manager may not use TLS; leave out --ssl") from None
    except OSError as error:
        raise DiscoveryError(f"the connection to the manager at {where} failed: {error}",
                             hint="check host, port and firewall") from None


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    if not 0 < port < 1 << 16:
        raise ConfigError(f"port {port} does not exist", hint="give one from 1 to 65535")
    return socket.create_connection((host, port), timeout_s)


def _wrap(plain: socket.socket, host: str, fingerprint: str) -> ssl.SSLSocket:
    from taskvine_core.tls import client_context

    try:
        pin = bytes.fromhex(fingerprint) if fingerprint else None
    except ValueError:
        raise ConfigError(f"the TLS fingerprint {fingerprint[:80]!r} is not hexadecimal",
                          hint="give the SHA-256 of the certificate") from None
    return client_context(pin).wrap_socket(plain, server_hostname=host)


def _exchange(sock: socket.socket, session: Session, what: str, body: object, where: str,
              deadline: float) -> object:
    """Handshake, question, answer. A peer that closes during the handshake holds another key or is no manager."""
    sock.sendall(session.start())
    asked = False
    while True:
        if session.established and not asked:
            data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
            sock.sendall(session.encode([Query(_QUERY_ID, what, data)]))
            asked = True
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)
        try:
            received = sock.recv(_READ_BYTES)
        except ConnectionResetError:
            received = b""  # closed by a peer that had not read all we sent: the same to us
        if not received:
            if not session.established:
                raise HandshakeError(f"the peer at {where} closed the connection during the handshake",
                                     hint="its key differs (give the same password file), it wants --ssl, or it is "
                                          "not a manager of this project")
            raise DiscoveryError(f"the manager at {where} closed the connection before it answered",
                                 hint="it may just be ending; ask again")
        messages, reply = _receive(session, received, where)
        if reply:
            sock.sendall(reply)
        for message in messages:
            if isinstance(message, Reply) and message.query_id == _QUERY_ID:
                return _decode(message, what, where)


def _receive(session: Session, received: bytes, where: str) -> tuple[list[object], bytes]:
    try:
        return session.receive(received)
    except SecurityError as error:
        raise HandshakeError(f"manager at {where}: {error.message}",
                             hint="use the password file or key of that manager") from error
    except ProtocolError as error:
        raise RemoteProtocolError(f"manager at {where}: {error.message}") from error


def _decode(message: Reply, what: str, where: str) -> object:
    if message.error:
        raise RemoteProtocolError(f"the manager at {where} refused the question {what!r}: {message.error}")
    try:
        answer: object = json.loads(message.body)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the answer of the manager at {where} to {what!r} is not JSON: {error}") from error
    return answer

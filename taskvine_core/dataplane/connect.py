"""Opening data connections: address, TCP, TLS, proof of the secret.

Owns the connecting side up to an established Channel. Must not know what it is used for.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from taskvine_core.dataplane.channel import (
    HANDSHAKE_TIMEOUT_S,
    NONCE_BYTES,
    POLL_S,
    Address,
    Cancel,
    Cancelled,
    Channel,
    Tls,
    tune,
    wanted_events,
)
from taskvine_core.errors import RemoteProtocolError, SecurityError, SourceError
from taskvine_core.protocol.session import Session

if TYPE_CHECKING:
    import ssl


#: A host that answers at all accepts within a few SYN retries (1, 3 and 7 s after the first); one behind a
#: firewall that drops packets must not hold a task for the whole silence timeout: other sources are waiting.
CONNECT_TIMEOUT_S = 5.0


def connect(address: Address, *, secret: bytes, timeout_s: float, tls: Tls | None, cancel: Cancel) -> Channel:
    """Open an authenticated data connection.

    Raises:
        SourceError: unreachable, silent, or it cannot prove that it knows the secret.
        Cancelled: ``cancel`` said so.
    """
    peer = f"{address[0]}:{address[1]}"
    sock = _connect_socket(address, peer, timeout_s, cancel)
    try:
        binding = b""
        if tls is not None:
            sock, binding = _wrap_client(sock, peer, timeout_s, tls, cancel)
        session = Session(secret=secret, role="data", initiator=True, nonce=os.urandom(NONCE_BYTES), binding=binding,
                          mac=tls is None)
        channel = Channel(sock, session, peer, timeout_s, cancel)
        channel.handshake()
    except (SecurityError, RemoteProtocolError) as error:
        sock.close()
        raise SourceError(f"{peer}: {error}") from error
    except BaseException:
        sock.close()
        raise
    return channel


def _connect_socket(address: Address, peer: str, timeout_s: float, cancel: Cancel) -> socket.socket:
    deadline = time.monotonic() + min(timeout_s, CONNECT_TIMEOUT_S)
    try:
        found = socket.getaddrinfo(address[0], address[1], type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceError(f"cannot resolve {address[0]}: {error}") from error
    reason = "no address"
    for family, kind, protocol, _, target in found:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        sock.setblocking(False)
        try:
            sock.connect(target)
        except BlockingIOError:
            reason = _await_connect(sock, deadline, cancel)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            reason = ""
        if not reason:
            tune(sock)
            return sock
        sock.close()
    raise SourceError(f"cannot connect to {peer}: {reason}", hint="another source may do")


def _await_connect(sock: socket.socket, deadline: float, cancel: Cancel) -> str:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLOUT)
    while not poll.poll(POLL_S * 1000):
        if cancel():
            sock.close()
            raise Cancelled("transfer was cancelled while connecting")
        if time.monotonic() > deadline:
            return "no answer in time"
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return os.strerror(code) if code else ""


def _wrap_client(sock: socket.socket, peer: str, timeout_s: float, tls: Tls,
                 cancel: Cancel) -> tuple[ssl.SSLSocket, bytes]:
    wrapped = tls.context.wrap_socket(sock, server_hostname=peer.rpartition(":")[0], do_handshake_on_connect=False)
    try:
        _shake_tls(wrapped, peer, time.monotonic() + min(HANDSHAKE_TIMEOUT_S, timeout_s), cancel)
        shown = hashlib.sha256(wrapped.getpeercert(True) or b"").digest()
        if tls.fingerprint and shown != tls.fingerprint:
            raise SourceError(f"{peer} shows another certificate than the one expected",
                              hint="it may be another manager on the same port, or an attack")
    except BaseException:
        wrapped.close()
        raise
    return wrapped, shown


def _shake_tls(wrapped: ssl.SSLSocket, peer: str, deadline: float, cancel: Cancel) -> None:
    poll = select.poll()
    while True:
        try:
            wrapped.do_handshake()
            return
        except OSError as error:
            events = wanted_events(error, 0)
            if not events:
                raise SourceError(f"TLS handshake with {peer} failed: {error}") from error
            poll.register(wrapped.fileno(), events)
            poll.poll(POLL_S * 1000)
        if cancel():
            raise Cancelled(f"transfer with {peer} was cancelled during the TLS handshake")
        if time.monotonic() > deadline:
            raise SourceError(f"{peer} did not finish the TLS handshake in time")

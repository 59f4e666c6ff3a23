"""The control connection: connect, TLS, handshake, then messages in and out, never blocking.

Owns one socket at a time. Must not know what messages mean or when to connect again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from taskvine_core.errors import HandshakeError, RemoteProtocolError, SecurityError, VineError
from taskvine_core.protocol.messages import Message, PeerKey
from taskvine_core.protocol.session import Session
from taskvine_core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any

RECEIVE_BYTES = 1 << 18
NONCE_BYTES = 32
#: A manager that answers nothing for this long after the connection attempt is not one.
CONNECT_TIMEOUT_S = 20.0
#: The kernel notices a vanished manager (power cut, cable) after about these.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_COUNT = 4
UNACKNOWLEDGED_MS = 120_000


class Wire(NamedTuple):
    """How sockets are set up. ``window_bytes`` 0 = the kernel decides; ``sni`` "" = the manager's host."""

    window_bytes: int = 0
    sni: str = ""


DEFAULT_WIRE = Wire()


class LinkLost(VineError):
    """The connection cannot be used any more. ``denied``: the two sides do not trust or understand each other."""

    def __init__(self, message: str, *, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


class Link:
    """One connection to a manager, from the first packet on.

    Args:
        host, port: the manager.
        secret: shared key.
        tls: a context makes the link TLS (the session then is bound to the certificate seen).
        deadline: seconds on the caller's clock when an unfinished set-up is given up.
        wire: socket settings.

    Attributes:
        wants_write: the loop should tell when the socket can be written.
    """

    def __init__(self, host: str, port: int, secret: bytes, tls: ssl.SSLContext | None, deadline: float,
                 wire: Wire = DEFAULT_WIRE) -> None:
        self.address = (host, port)
        self.deadline = deadline
        self.wants_write = True
        self.unsent = bytearray()
        self._secret = secret
        self._tls = tls
        self._wire = wire
        self._session: Session | None = None
        self._phase = "connecting"
        self.welcomed = False           # the caller sets it; until then the deadline counts
        self.peer_key: PeerKey | None = None    # kept for the caller until the manager says welcome
        self.was_established = False    # a session that failed later no longer says so itself
        try:
            # As bytes: text would load the codec for international names, a tenth of the start.
            name = host.encode("ascii") if host.isascii() else host
            family, kind, proto, _, where = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise LinkLost(f"host {host} is not known: {error}") from error
        self.socket: Any = socket.socket(family, kind, proto)
        self.socket.setblocking(False)
        if wire.window_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.window_bytes)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wire.window_bytes)
        try:
            self.socket.connect(where)
        except BlockingIOError:
            pass
        except OSError as error:
            self.socket.close()
            raise LinkLost(f"cannot connect to {host}:{port}: {error.strerror}") from error

    @property
    def established(self) -> bool:
        return self._session is not None and self._session.established

    @property
    def local_address(self) -> tuple[str, int]:
        name = self.socket.getsockname()
        return name[0], name[1]

    def fileno(self) -> int:
        return int(self.socket.fileno())

    def close(self) -> None:
        self.socket.close()

    # ------------------------------------------------------------------------------------------ set-up

    def _advance(self) -> bool:
        """Take the set-up further; True when the session has been started."""
        if self._phase == "connecting":
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise LinkLost(f"cannot connect to {self.address[0]}:{self.address[1]}: {os.strerror(error)}")
            tune(self.socket)
            self._phase = "tls" if self._tls else "session"
            if self._tls:
                self.socket = self._tls.wrap_socket(self.socket, do_handshake_on_connect=False,
                                                    server_hostname=self._wire.sni or self.address[0])
        if self._phase == "tls":
            import ssl

            try:
                self.socket.do_handshake()
            except ssl.SSLWantReadError:
                self.wants_write = False
                return False
            except ssl.SSLWantWriteError:
                self.wants_write = True
                return False
            except (ssl.SSLError, SecurityError) as error:
                raise LinkLost(f"TLS with {self.address[0]}:{self.address[1]} failed: {error}", denied=True) from error
            self._phase = "session"
        if self._phase == "session":
            binding = b""
            if self._tls:
                from taskvine_core.tls import peer_fingerprint

                binding = peer_fingerprint(self.socket)
            self._session = Session(secret=self._secret, role="worker", initiator=True, nonce=os.urandom(NONCE_BYTES),
                                    binding=binding, mac=self._tls is None)
            self._phase = "open"
            self._write(self._session.start())
        return True

    # ------------------------------------------------------------------------------------------ traffic

    def on_ready(self, readable: bool, writable: bool) -> tuple[list[Message], bool]:
        """The socket is ready. Returns the messages that came and whether the session has just been established.

        Raises:
            LinkLost: closed, refused or spoilt.
        """
        if self._phase != "open":
            if not self._advance():
                return [], False
            self.wants_write = bool(self.unsent)
            if not readable:
                return [], False
        if writable and self.unsent:
            self._write(b"")
        return self._read() if readable else ([], False)

    def _read(self) -> tuple[list[Message], bool]:
        session = self._session
        assert session is not None
        messages: list[Message] = []
        before = session.established
        while True:
            try:
                data = self.socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if _wants(error):
                    break
                raise LinkLost(f"connection lost: {error.strerror or error}") from error
            if not data:
                where = "closed the connection" if before else "closed the connection during the handshake"
                raise LinkLost(f"the manager {where}")
            try:
                got, reply = session.receive(data)
            except HandshakeError as error:
                raise LinkLost(str(error), denied=True) from error
            except RemoteProtocolError as error:
                raise LinkLost(f"the manager broke the protocol: {error}") from error
            messages.extend(got)
            if reply:
                self._write(reply)
            if len(data) < RECEIVE_BYTES and not self._tls:
                break           # the next call would only say "nothing"; epoll tells when there is more
        self.was_established = self.was_established or session.established
        return messages, session.established and not before

    def send(self, messages: Sequence[Message]) -> None:
        """Queue messages and write what the socket takes.

        Raises:
            LinkLost: closed by the other side. LocalProtocolError: a message is too large.
        """
        assert self._session is not None
        self._write(self._session.encode(messages))

    def _write(self, data: bytes) -> None:
        if self.unsent:
            self.unsent += data
            data = b""
        try:
            if self.unsent:
                while self.unsent:
                    del self.unsent[:self.socket.send(memoryview(self.unsent)[:RECEIVE_BYTES].tobytes())]
            elif data:
                sent = self.socket.send(data)
                if sent < len(data):
                    self.unsent += memoryview(data)[sent:]
        except BlockingIOError:
            self.unsent += data
        except OSError as error:
            if not _wants(error):
                raise LinkLost(f"connection lost: {error.strerror or error}") from error
            self.unsent += data
        self.wants_write = bool(self.unsent)


def _wants(error: OSError) -> bool:
    """Does TLS only want to wait?"""
    return type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


def tune(sock: socket.socket) -> None:
    """No delay for small messages, and a kernel that notices a dead peer."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)

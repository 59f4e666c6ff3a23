"""The listening side until a peer has proved that it knows the secret.

Owns the listening socket and all unauthenticated connections: one thread, no blocking call, so a stranger costs a
descriptor for at most HANDSHAKE_TIMEOUT_S and never a thread, and peers that know the secret pass at once. Must not
know objects; an authenticated connection is handed on and forgotten.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable

from taskvine_core.dataplane.channel import HANDSHAKE_TIMEOUT_S, NONCE_BYTES, Tls, tune, wanted_events
from taskvine_core.errors import ProtocolError, SecurityError
from taskvine_core.protocol.session import Session

#: Unauthenticated connections held at once; one more pushes out the oldest, so strangers cannot keep peers out.
MAX_STRANGERS = 256
#: New connections taken per turn, so that handshakes go on during a flood.
ACCEPTS_PER_TURN = 64
#: Pause when the process has no descriptors left; without it the loop would spin.
NO_DESCRIPTORS_PAUSE_S = 0.1
_READ_BYTES = 4096

Adopt = Callable[[socket.socket, Session, list[object]], None]
Report = Callable[[str], None]


class _Stranger:
    """A connection that has not proved anything yet."""

    __slots__ = ("deadline", "encrypted", "peer", "session", "sock")

    def __init__(self, sock: socket.socket, session: Session, peer: str, deadline: float, encrypted: bool) -> None:
        self.sock = sock
        self.session = session
        self.peer = peer
        self.deadline = deadline
        #: The TLS handshake is over, or there is none.
        self.encrypted = encrypted


class Acceptor:
    """Listens, authenticates, hands on.

    Args:
        secret: shared secret.
        role: our role in the handshake.
        tls: None for plain TCP; ``protect`` changes it.
        adopt: takes an authenticated connection with the messages that came along; must return quickly.
        report: takes a sentence about each refused connection.
    """

    def __init__(self, *, secret: bytes, role: str, tls: Tls | None, adopt: Adopt, report: Report) -> None:
        self._secret = secret
        self._role = role
        self._tls = tls
        self._refusal = ""
        self._adopt = adopt
        self._report = report
        self._selector = selectors.DefaultSelector()
        #: In order of arrival, hence of deadline.
        self._strangers: dict[socket.socket, _Stranger] = {}
        self._stop = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None

    def accept_from(self, listener: socket.socket) -> None:
        """Start on a socket of ``listening.bind``, which is ours from here on."""
        self._listener = listener
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="vine-data-accept", daemon=True)
        self._thread.start()

    def protect(self, tls: Tls | None, refusal: str = "") -> None:
        """How connections accepted from now on are protected; callable from any thread.

        Args:
            tls: None for plain TCP.
            refusal: not "": all are refused, for this reason.
        """
        self._tls, self._refusal = tls, refusal

    def close(self) -> None:
        """Stop listening and drop every stranger."""
        self._stop.set()
        os.write(self._wake_write, b"x")
        if self._thread is not None:
            self._thread.join()
        for stranger in list(self._strangers.values()):
            stranger.sock.close()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(self._patience_s()):
                if key.fileobj is self._listener:
                    self._accept(self._listener)
                elif isinstance(key.data, _Stranger) and key.data.sock in self._strangers:
                    self._advance(key.data)
            self._drop_late()

    def _patience_s(self) -> float | None:
        for stranger in self._strangers.values():
            return max(0.0, stranger.deadline - time.monotonic())
        return None

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # The peer may have gone again, or there are no descriptors: both pass.
                self._report(f"cannot accept data connections for the moment: {error.strerror}")
                self._stop.wait(NO_DESCRIPTORS_PAUSE_S)
                return
            self._meet(sock, f"{address[0]}:{address[1]}")

    def _meet(self, sock: socket.socket, peer: str) -> None:
        tls, refusal = self._tls, self._refusal
        if refusal:
            sock.close()
            self._report(f"refused data connection from {peer}: {refusal}")
            return
        if len(self._strangers) >= MAX_STRANGERS:
            oldest = next(iter(self._strangers.values()))
            self._drop(oldest, "too many connections that have not proved anything")
        sock.setblocking(False)
        tune(sock)
        binding = b""
        if tls is not None:
            try:
                sock = tls.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError as error:
                sock.close()
                self._report(f"{peer}: {error}")
                return
            binding = tls.fingerprint
        session = Session(secret=self._secret, role=self._role, initiator=False, nonce=os.urandom(NONCE_BYTES),
                          binding=binding, mac=tls is None)
        stranger = _Stranger(sock, session, peer, time.monotonic() + HANDSHAKE_TIMEOUT_S, tls is None)
        self._strangers[sock] = stranger
        self._selector.register(sock, selectors.EVENT_READ, stranger)

    def _advance(self, stranger: _Stranger) -> None:
        try:
            while True:
                if not stranger.encrypted:
                    stranger.sock.do_handshake()  # type: ignore[attr-defined]
                    stranger.encrypted = True
                data = stranger.sock.recv(_READ_BYTES)
                if not data:
                    self._drop(stranger, "closed during the handshake")
                    return
                messages, answer = stranger.session.receive(data, limit=1)
                if answer and stranger.sock.send(answer) != len(answer):
                    self._drop(stranger, "does not read")
                    return
                if stranger.session.established:
                    self._hand_on(stranger, list(messages))
                    return
        except OSError as error:
            events = wanted_events(error, select.POLLIN)
            if events:
                wanted = selectors.EVENT_READ if events == select.POLLIN else selectors.EVENT_WRITE
                self._selector.modify(stranger.sock, wanted, stranger)
            else:
                self._drop(stranger, str(error))
        except (SecurityError, ProtocolError) as error:
            self._drop(stranger, str(error))

    def _hand_on(self, stranger: _Stranger, messages: list[object]) -> None:
        if stranger.session.peer_role != "data":
            self._drop(stranger, f"a {stranger.session.peer_role} does not belong on this port")
            return
        self._forget(stranger)
        self._adopt(stranger.sock, stranger.session, messages)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for stranger in list(self._strangers.values()):
            if stranger.deadline > now:
                return
            self._drop(stranger, f"no handshake within {HANDSHAKE_TIMEOUT_S:.0f} s")

    def _forget(self, stranger: _Stranger) -> None:
        self._selector.unregister(stranger.sock)
        del self._strangers[stranger.sock]

    def _drop(self, stranger: _Stranger, why: str) -> None:
        self._forget(stranger)
        stranger.sock.close()
        self._report(f"refused data connection from {stranger.peer}: {why}")

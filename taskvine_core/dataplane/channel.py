"""One data connection: a socket and a Session, messages and raw bytes by turns.

Owns waiting: every wait ends when the peer is silent for ``timeout_s``, and looks at ``cancel`` at least every
POLL_S. Must not know objects, names or directories.

Plain sockets block in the kernel for at most POLL_S per call (SO_RCVTIMEO, SO_SNDTIMEO): the kernel fills or drains
a large buffer with few system calls and few turns of the interpreter. TLS sockets cannot do that: they are
non-blocking and polled.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from taskvine_core.errors import HandshakeError, SourceError, TransferError
from taskvine_core.protocol.session import Session
from taskvine_core.records import NamedTuple

if TYPE_CHECKING:
    import ssl  # 10 ms and 3 MB that most workers never need

#: How often a waiting call looks whether it was cancelled.
POLL_S = 0.25
#: A peer that moves less than this in a whole timeout counts as silent: else one byte a minute would hold a thread.
MIN_PROGRESS_BYTES = 64 * 1024
#: What is read at once while looking for messages; small, because what follows a message may be raw bytes.
MESSAGE_READ_BYTES = 64 * 1024
NONCE_BYTES = 32
#: sendfile looks at its timeout every 64 KiB only. One call may be long as long as calls are quick.
SENDFILE_BYTES = 4 << 20
SENDFILE_SLOW_BYTES = 64 * 1024
_MAPPED = "::ffff:"
#: Not in every Python's os module.
_SPLICE_F_MOVE = 1
_POLL_TIMEVAL = struct.pack("ll", 0, round(POLL_S * 1e6))
#: How long to wait for a peer that was refused to stop sending: enough for two segments on a slow link.
LINGER_S = 5.0
#: Time for a peer to prove that it knows the secret.
HANDSHAKE_TIMEOUT_S = 10.0

Address = tuple[str, int]
Cancel = Callable[[], bool]


class Tls(NamedTuple):
    """TLS for data connections: the context of this side, and the fingerprint (SHA-256) of the server's certificate.

    A client with an empty fingerprint takes the certificate it is shown; the handshake proof still binds to it.
    """

    context: ssl.SSLContext
    fingerprint: bytes


class Cancelled(TransferError):
    """The caller's ``cancel`` said so."""


def never() -> bool:
    """The ``cancel`` of a transfer that is not cancelled."""
    return False


class Channel:
    """A connected socket with its session.

    Args:
        sock: connected; owned by the channel from now on.
        session: established, or about to be by ``handshake``.
        peer: how error texts name the other side.
        timeout_s: longest silence of the peer.
        cancel: polled while waiting.
    """

    def __init__(self, sock: socket.socket, session: Session, peer: str, timeout_s: float,
                 cancel: Cancel = never) -> None:
        self.sock = sock
        self.session = session
        self.peer = peer
        self.timeout_s = timeout_s
        self._cancel = cancel
        self._poll = select.poll()
        self._messages: deque[object] = deque()
        self._spare = memoryview(b"")
        self._plain = not is_tls(sock)
        self._fill_flag = socket.MSG_WAITALL if self._plain else 0
        #: Raw bytes cannot be changed on their way, so a trailer may come without a digest (module ``sealed``).
        self.sealed = not self._plain
        #: True while a stream is under way: the connection can carry nothing else before its trailer.
        self.mid_object = False
        sock.setblocking(self._plain)
        if self._plain:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _POLL_TIMEVAL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _POLL_TIMEVAL)

    # ------------------------------------------------------------------ messages

    def send(self, *messages: object) -> None:
        """Send messages, several in one frame."""
        self.send_raw(self.session.encode(messages))

    def receive(self, timeout_s: float = 0.0) -> object | None:
        """The next message, or None when the peer closed between two messages.

        Args:
            timeout_s: longest silence, 0 = that of the channel.
        """
        if self._messages:
            return self._messages.popleft()
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        spare, self._spare = self._spare, memoryview(b"")
        if not spare:
            spare = memoryview(self.session.take_buffered())
        partial = False
        while True:
            if spare:
                found, _ = self.session.receive(spare, limit=1)
                if found:
                    self._messages.extend(found)
                    return self._messages.popleft()
                partial = True
            data = self._recv(deadline)
            if not data:
                if partial:
                    raise SourceError(f"{self.peer} closed the connection within a message")
                return None
            spare = memoryview(data)

    def expect_message(self) -> object:
        """The next message; SourceError when the peer closed instead."""
        message = self.receive()
        if message is None:
            raise SourceError(f"{self.peer} closed the connection before it was done")
        return message

    def give_back(self, messages: Sequence[object]) -> None:
        """Let ``receive`` return these first: they were decoded before the channel existed."""
        self._messages.extend(messages)

    def readable(self) -> bool:
        """Is there something to receive right now?"""
        if self._messages or self._spare:
            return True
        return bool(self._ready(select.POLLIN, 0))

    def handshake(self) -> None:
        """Prove the secret to each other, as whichever side the session was made for.

        Raises:
            HandshakeError: the other side cannot, in words.
        """
        deadline = time.monotonic() + min(HANDSHAKE_TIMEOUT_S, self.timeout_s)
        outgoing = self.session.start()
        while True:
            if outgoing:
                self.send_raw(outgoing)
            if self.session.established:
                return
            data = self._recv(deadline)
            if not data:
                raise HandshakeError(f"{self.peer} closed the connection during the handshake",
                                     hint="it may have another key or another version")
            found, outgoing = self.session.receive(data, limit=1)
            self._messages.extend(found)

    # ------------------------------------------------------------------ raw bytes

    def send_raw(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as they are."""
        view = memoryview(data)
        window = _Window(self.timeout_s)
        while view:
            try:
                count = self.sock.send(view)
            except OSError as error:
                self._wait(self._blocked(error, select.POLLOUT), window)
            else:
                window.moved += count
                view = view[count:]

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send ``count`` bytes of an open file; returns how many the file really had."""
        if not self._plain:
            return self._send_file_copied(fd, offset, count)
        window = _Window(self.timeout_s)
        out = self.sock.fileno()
        done, most = 0, SENDFILE_BYTES
        while done < count:
            wanted = min(most, count - done)
            try:
                moved = os.sendfile(out, fd, offset + done, wanted)
            except OSError as error:
                most = SENDFILE_SLOW_BYTES
                self._wait(self._blocked(error, select.POLLOUT), window)
                continue
            if moved == 0:
                break
            window.moved += moved
            done += moved
            if moved < wanted:
                most = SENDFILE_SLOW_BYTES
                self._wait(0, window)
        return done

    def _send_file_copied(self, fd: int, offset: int, count: int) -> int:
        done = 0
        while done < count:
            data = os.pread(fd, min(count - done, 1 << 20), offset + done)
            if not data:
                break
            self.send_raw(data)
            done += len(data)
        return done

    def receive_raw(self, view: memoryview) -> None:
        """Fill ``view`` with the raw bytes that follow the last message."""
        spare = self.take_spare(len(view))
        done = len(spare)
        view[:done] = spare
        window = _Window(self.timeout_s)
        while done < len(view):
            try:
                count = self.sock.recv_into(view[done:], 0, self._fill_flag)
            except OSError as error:
                self._wait(self._blocked(error, select.POLLIN), window)
                continue
            if count == 0:
                raise SourceError(f"{self.peer} closed the connection in the middle of an object")
            window.moved += count
            done += count

    @property
    def plain(self) -> bool:
        """No TLS: the kernel sees the bytes as they are."""
        return self._plain

    def ends(self) -> tuple[str, str]:
        """Address and port of this end and of the other one as the kernel knows them; empty when unknown."""
        try:
            here, there = self.sock.getsockname(), self.sock.getpeername()
        except OSError:
            return "", ""
        if not isinstance(here, tuple):
            return "", ""  # not an internet address
        # A socket for both versions of IP gives addresses of version 4 with a prefix; its peer does not.
        return (f"{here[0].removeprefix(_MAPPED)} {here[1]}", f"{there[0].removeprefix(_MAPPED)} {there[1]}")

    def take_spare(self, most: int) -> memoryview:
        """Raw bytes that were received together with the last message, at most so many; may be none."""
        if not self._spare:
            self._spare = memoryview(self.session.take_buffered())
        taken, self._spare = self._spare[:most], self._spare[most:]
        return taken

    def splice_raw(self, pipe: int, count: int) -> int:
        """Move raw bytes into a pipe inside the kernel; plain sockets only, and after ``take_spare`` gave none.

        Returns:
            How many, between 1 and ``count``.
        """
        window = _Window(self.timeout_s)
        while True:
            try:
                moved = os.splice(self.sock.fileno(), pipe, count, flags=_SPLICE_F_MOVE)
            except OSError as error:
                self._wait(self._blocked(error, select.POLLIN), window)
                continue
            if moved == 0:
                raise SourceError(f"{self.peer} closed the connection in the middle of an object")
            return moved

    # ------------------------------------------------------------------ waiting

    def check_cancelled(self) -> None:
        """Raise Cancelled when the caller wants no more."""
        if self._cancel():
            raise Cancelled(f"transfer with {self.peer} was cancelled")

    def linger(self) -> None:
        """Stop sending, and read what is still coming for a moment.

        A socket closed with unread bytes resets the connection, which can destroy the last message on its way.
        """
        deadline = time.monotonic() + LINGER_S
        try:
            self.sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline and self._recv(deadline):
                pass
        except (OSError, TransferError):
            return  # the peer is gone, or does not stop: it had its chance

    def close(self) -> None:
        """Close the socket; the peer sees the end of what was sent."""
        self.sock.close()

    def _recv(self, deadline: float) -> bytes:
        while True:
            try:
                return self.sock.recv(MESSAGE_READ_BYTES)
            except OSError as error:
                events = self._blocked(error, select.POLLIN)
            self.check_cancelled()
            if time.monotonic() > deadline:
                raise SourceError(f"{self.peer} was silent for too long",
                                  hint="it may be overloaded or unreachable; another source may do")
            if not self._plain:
                self._ready(events, POLL_S)

    def _wait(self, events: int, window: _Window) -> None:
        """After a call that moved too little; a plain socket has waited in that call."""
        self.check_cancelled()
        window.check(self.peer)
        if not self._plain:
            self._ready(events, POLL_S)

    def _ready(self, events: int, wait_s: float) -> bool:
        if not self._plain and events & select.POLLIN and self.sock.pending():  # type: ignore[attr-defined]
            return True  # decrypted already, so the kernel has nothing to tell
        self._poll.register(self.sock.fileno(), events)
        return bool(self._poll.poll(wait_s * 1000))

    def _blocked(self, error: OSError, otherwise: int) -> int:
        """What to wait for after a failed call; SourceError when it did not fail for want of waiting."""
        return wanted_events(error, otherwise) or self._lost(error)

    def _lost(self, error: OSError) -> NoReturn:
        raise SourceError(f"connection with {self.peer} was lost: {error.strerror or error}") from error


class _Window:
    """Tells a slow peer from a silent one: less than MIN_PROGRESS_BYTES in a whole timeout is silence."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.start = time.monotonic()
        self.moved = 0

    def check(self, peer: str) -> None:
        now = time.monotonic()
        if now - self.start < self.timeout_s:
            return
        if self.moved < MIN_PROGRESS_BYTES:
            raise SourceError(f"{peer} moved {self.moved} bytes in {now - self.start:.0f} s",
                              hint="it may be overloaded or unreachable; another source may do")
        self.start, self.moved = now, 0


def is_tls(sock: socket.socket) -> bool:
    """Is it an ssl.SSLSocket? Asked without importing ssl."""
    return hasattr(sock, "do_handshake")


def wanted_events(error: OSError, otherwise: int) -> int:
    """What to poll for after a call that would block, 0 when ``error`` is something else.

    A TLS socket may have to wait for another direction than the one it was asked for. Its errors are recognised by
    name: ssl is not imported for plain connections.
    """
    if isinstance(error, BlockingIOError):
        return otherwise
    name = type(error).__name__
    return select.POLLIN if name == "SSLWantReadError" else select.POLLOUT if name == "SSLWantWriteError" else 0


def tune(sock: socket.socket) -> None:
    """Send at once: messages are gathered here, not in the kernel."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

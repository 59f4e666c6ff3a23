"""Sockets of the manager: listening, handshakes, reading, writing.

Owns the epoll set and every control connection from accept to close. Gives complete messages of authenticated peers
upwards, takes messages downwards. Connections of role "data" are handed to the data server. Must not know what a
message means.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from taskvine_core.errors import ConfigError, ProtocolError, SecurityError, VineError
from taskvine_core.protocol.session import Session
from taskvine_core.records import NamedTuple

#: A storm of 4,500 workers must not meet SYN retries.
BACKLOG = 4096
#: Bytes taken from one connection per turn, so that one talker does not starve the others. Below the C library's
#: threshold of 128 KiB: a larger buffer costs three calls of mmap and friends, six times the rest of a short read.
READ_BYTES = 64 * 1024
#: Bytes offered to the kernel in one write.
WRITE_BYTES = 1024 * 1024
#: File contents queued for one connection before they are written without waiting for the end of the turn: the worker
#: stores them while the next ones are read here, and they are never all in memory.
BULK_BYTES = 256 * 1024
#: Unread bytes for one peer beyond which it counts as dead: a whole cache of small inputs still fits.
MAX_UNSENT_BYTES = 512 * 1024 * 1024
#: Time for a stranger to prove that it knows the secret.
HANDSHAKE_S = 10.0
#: Strangers at a time; the oldest goes first. Never more than this share of the descriptors the process may have: the
#: program opens files, too.
MAX_STRANGERS = 6000
STRANGERS_SHARE = 0.25
ACCEPTS_PER_TURN = 512
NONCE_BYTES = 32

#: "Fatal: handshake failure", which a peer without TLS recognizes as TLS.
_TLS_ALERT = bytes((21, 3, 3, 0, 2, 2, 40))

_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


class Tls(NamedTuple):
    """Server side TLS: context and the sha256 fingerprint of the certificate it shows."""

    context: ssl.SSLContext
    fingerprint: bytes


class Connection:
    """One accepted connection."""

    __slots__ = ("closing", "deadline", "encrypted", "fd", "host", "key", "mask", "out", "port", "queue",
                 "queued_bytes", "role", "session", "sock")

    def __init__(self, key: int, sock: socket.socket, host: str, port: int, session: Session, deadline: float,
                 encrypted: bool) -> None:
        self.key = key
        self.sock = sock
        self.fd = sock.fileno()
        self.host = host
        self.port = port
        self.session = session
        self.deadline = deadline
        self.encrypted = encrypted  # TLS handshake done, or no TLS
        self.role = ""
        self.queue: list[Any] = []  # messages to send at the end of the turn
        self.queued_bytes = 0  # contents of files among them
        self.out = bytearray()  # encoded, not yet taken by the kernel
        self.mask = _READ
        self.closing = ""  # reason; close when everything is written


class Listener(NamedTuple):
    """What the owner does with what happens. ``established`` returns False to take the socket away (data plane)."""

    established: Callable[[Connection, list[Any]], bool]
    messages: Callable[[Connection, list[Any]], None]
    closed: Callable[[Connection, str], None]
    note: Callable[[str], None]


class Connections:
    """All control connections."""

    def __init__(self, *, host: str, ports: tuple[int, int], secret: bytes, tls: Tls | None,
                 listener: Listener) -> None:
        self._secret = secret
        self._tls = tls
        self._listener = listener
        self._sock = _bind(host, ports)
        self.port: int = self._sock.getsockname()[1]
        self._poll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._sock.fileno(), _READ)
        self._poll.register(self._wake_fd, _READ)
        self._by_fd: dict[int, Connection] = {}
        self.by_key: dict[int, Connection] = {}
        self._strangers: dict[int, Connection] = {}
        self._max_strangers = min(MAX_STRANGERS, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * STRANGERS_SHARE))
        self._dirty: dict[int, Connection] = {}
        self._last_key = 0

    def set_secret(self, secret: bytes) -> None:
        """For connections accepted from now on."""
        self._secret = secret

    def wake(self) -> None:
        """Make a sleeping turn return; callable from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    # ------------------------------------------------------------------ a turn

    def poll(self, timeout_s: float, now: float) -> None:
        """Wait for something to happen, at most ``timeout_s``; read and accept what is there."""
        try:
            ready = self._poll.poll(max(0.0, timeout_s), 1024)
        except InterruptedError:
            return
        for fd, mask in ready:
            connection = self._by_fd.get(fd)
            if connection is not None:
                self._serve(connection, mask)
            elif fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            elif fd == self._sock.fileno():
                self._accept(now)
        if self._strangers:
            self._drop_late(now)

    def _serve(self, connection: Connection, mask: int) -> None:
        if mask & _WRITE:
            self._dirty[connection.key] = connection
        if mask & ~_WRITE:
            self._read(connection)

    def _accept(self, now: float) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._strangers:
                    self._drop(next(iter(self._strangers.values())), "its descriptor is needed for a newcomer")
                    continue
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._listener.note(f"cannot accept connections: {error.strerror}; "
                                        "raise the limit of open files (ulimit -n)")
                return
            self._meet(sock, address[0], address[1], now)

    def _meet(self, sock: socket.socket, host: str, port: int, now: float) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        binding = b""
        if self._tls is not None:
            sock = self._tls.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            binding = self._tls.fingerprint
        session = Session(secret=self._secret, role="manager", initiator=False, nonce=os.urandom(NONCE_BYTES),
                          binding=binding, mac=self._tls is None)
        self._last_key += 1
        if host.startswith("::ffff:"):
            host = host[7:]
        connection = Connection(self._last_key, sock, host, port, session, now + HANDSHAKE_S, self._tls is None)
        if len(self._strangers) >= self._max_strangers:
            self._drop(next(iter(self._strangers.values())), "too many connections that have not proved anything")
        self._by_fd[connection.fd] = self.by_key[connection.key] = self._strangers[connection.key] = connection
        self._poll.register(connection.fd, _READ)

    def _drop_late(self, now: float) -> None:
        for connection in list(self._strangers.values()):
            if connection.deadline > now:
                return
            self._drop(connection, f"no handshake within {HANDSHAKE_S:.0f} s")

    # ------------------------------------------------------------------ reading

    def _read(self, connection: Connection) -> None:
        try:
            if not connection.encrypted:
                connection.sock.do_handshake()  # type: ignore[attr-defined]
                connection.encrypted = True
            data = connection.sock.recv(READ_BYTES)
            while data:
                self._feed(connection, data)
                if self._tls is None or connection.key not in self.by_key:
                    return
                data = connection.sock.recv(READ_BYTES)  # TLS may hold more that epoll does not see
            self._drop(connection, "closed by the peer")
        except (BlockingIOError, ssl.SSLWantReadError):
            self._watch(connection, _READ if not connection.out else _READ | _WRITE)
        except ssl.SSLWantWriteError:
            self._watch(connection, _READ | _WRITE)
        except OSError as error:
            if not connection.encrypted:
                self._refuse_plain(connection)
            self._drop(connection, error.strerror or str(error))

    def _refuse_plain(self, connection: Connection) -> None:
        """The TLS handshake failed. OpenSSL stays silent towards a peer that speaks no TLS: tell it what we wanted."""
        self._listener.note(f"connection from {connection.host}:{connection.port}: TLS handshake failed")
        with suppress(OSError):
            socket.socket.send(connection.sock, _TLS_ALERT)
            socket.socket.recv(connection.sock, READ_BYTES)  # bytes left unread would make the kernel discard the alert

    def _feed(self, connection: Connection, data: bytes) -> None:
        session = connection.session
        try:
            messages, reply = session.receive(data, limit=None if connection.role else 1)
        except (SecurityError, ProtocolError) as error:
            self._deliver(connection, session.take_undelivered())
            self._listener.note(f"connection from {connection.host}:{connection.port}: {error}")
            self._drop(connection, str(error))
            return
        if reply:
            connection.out += reply
            self._write(connection)
        self._deliver(connection, messages)

    def _deliver(self, connection: Connection, messages: list[Any]) -> None:
        if connection.role:
            if messages:
                self._listener.messages(connection, messages)
            return
        if not connection.session.established or connection.key not in self.by_key:
            return
        if not messages and connection.session.peer_role != "data":
            return  # a worker says hello next; until then it stays a stranger
        connection.role = connection.session.peer_role
        self._strangers.pop(connection.key, None)
        if connection.role == "data":
            self._forget(connection)
        if self._listener.established(connection, messages) and connection.role != "data":
            self._feed(connection, b"")  # what came together with the first message

    # ------------------------------------------------------------------ writing

    def send(self, key: int, message: Any) -> None:
        """Queue a message; written once at the end of the turn."""
        connection = self.by_key.get(key)
        if connection is not None:
            connection.queue.append(message)
            self._dirty[key] = connection

    def send_bulk(self, key: int, message: Any, size_bytes: int) -> None:
        """Queue a message with so much content; written at once when enough has come together."""
        connection = self.by_key.get(key)
        if connection is None:
            return
        connection.queue.append(message)
        connection.queued_bytes += size_bytes
        self._dirty[key] = connection
        if connection.queued_bytes >= BULK_BYTES:
            del self._dirty[key]
            self._flush_one(connection)

    def close_after_writing(self, key: int, reason: str) -> None:
        """Close a connection when what is queued for it is written."""
        connection = self.by_key.get(key)
        if connection is not None:
            connection.closing = reason
            self._dirty[key] = connection

    def flush(self) -> None:
        """Write what the turn queued, one write per connection."""
        while self._dirty:
            self._flush_one(self._dirty.popitem()[1])

    def _flush_one(self, connection: Connection) -> None:
        if connection.queue:
            queue, connection.queue, connection.queued_bytes = connection.queue, [], 0
            try:
                data = connection.session.encode(queue)
            except VineError as error:
                self._listener.note(f"cannot send to {connection.host}:{connection.port}: {error}")
                self._drop(connection, str(error))
                return
            if not connection.out:
                self._write_now(connection, data)
                return
            connection.out += data
        self._write(connection)

    def _write_now(self, connection: Connection, data: bytes) -> None:
        """The usual case: the kernel takes everything at once and nothing is copied."""
        if not connection.encrypted or self._tls is not None:
            connection.out += data
            self._write(connection)
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._drop(connection, error.strerror or str(error))
            return
        if sent < len(data):
            connection.out += memoryview(data)[sent:]
        self._after_write(connection)

    def _write(self, connection: Connection) -> None:
        out = connection.out
        try:
            while out and connection.encrypted:
                with memoryview(out) as view:
                    sent = connection.sock.send(view[:WRITE_BYTES])
                del out[:sent]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._drop(connection, error.strerror or str(error))
            return
        self._after_write(connection)

    def _after_write(self, connection: Connection) -> None:
        if connection.key not in self.by_key:
            return
        if len(connection.out) > MAX_UNSENT_BYTES:
            self._drop(connection, "does not read what it is sent")
        elif connection.out:
            self._watch(connection, _READ | _WRITE)
        elif connection.closing:
            self._drop(connection, connection.closing)
        else:
            self._watch(connection, _READ)

    def _watch(self, connection: Connection, mask: int) -> None:
        if mask != connection.mask and connection.key in self.by_key:
            connection.mask = mask
            self._poll.modify(connection.fd, mask)

    # ------------------------------------------------------------------ closing

    def _forget(self, connection: Connection) -> None:
        if self.by_key.pop(connection.key, None) is None:
            return
        self._by_fd.pop(connection.fd, None)
        self._strangers.pop(connection.key, None)
        self._dirty.pop(connection.key, None)
        self._poll.unregister(connection.fd)

    def _drop(self, connection: Connection, reason: str) -> None:
        if connection.key not in self.by_key:
            return
        self._forget(connection)
        connection.sock.close()
        if connection.role:
            self._listener.closed(connection, reason)
        else:
            self._listener.note(f"connection from {connection.host}:{connection.port} was never let in: {reason}")

    def unsent(self) -> bool:
        """Is something queued that the kernel has not taken?"""
        return any(c.out or c.queue for c in self.by_key.values())

    def close(self) -> None:
        """Close everything."""
        for connection in list(self.by_key.values()):
            self._forget(connection)
            connection.sock.close()
        self._sock.close()
        self._poll.close()
        os.close(self._wake_fd)


def _bind(host: str, ports: tuple[int, int]) -> socket.socket:
    """A listening socket on the first free port of the closed range; (0, 0) = any.

    Raises:
        ConfigError: none is free, or the address cannot be bound.
    """
    low, high = ports
    error: OSError | None = None
    for port in range(low, high + 1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as problem:
            error = problem
            sock.close()
            continue
        sock.setblocking(False)
        return sock
    where = f"port {low}" if low == high else f"ports {low} to {high}"
    raise ConfigError(f"manager cannot listen on {where}: {error.strerror if error else 'empty range'}",
                      hint="another manager may be using it; choose another port, a range, or 0 for any")

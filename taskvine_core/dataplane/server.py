"""Serving objects and taking uploads on data connections.

Owns a bounded pool of threads, each in conversation with one authenticated peer at a time; further connections wait
in a bounded queue, and behind it in the kernel's backlog. Must not know what a cache or a manager is: the Provider
says which path a name stands for. Unauthenticated connections are the Acceptor's.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from taskvine_core.dataplane.acceptor import Acceptor
from taskvine_core.dataplane.channel import Cancelled, Channel, Tls, tune
from taskvine_core.dataplane.listening import bind
from taskvine_core.dataplane.messages import (
    ACK_DISK_FULL,
    ACK_FAILED,
    ACK_GO,
    ACK_GO_SEALED,
    ACK_INTEGRITY,
    ACK_OK,
    ACK_REFUSED,
    DataAck,
    DataGet,
    DataPut,
    Local,
    ObjectHeader,
    ObjectInline,
    ObjectMissing,
)
from taskvine_core.dataplane.objects import MODE_MASK, ObjectInfo
from taskvine_core.dataplane.receive import receive_object
from taskvine_core.dataplane.sealed import is_direct
from taskvine_core.dataplane.send import Outgoing, StreamSender, open_outgoing, read_whole
from taskvine_core.errors import DiskFullError, IntegrityError, RemoteProtocolError, TransferError, VineError
from taskvine_core.model.files import INLINE_MAX_BYTES
from taskvine_core.model.names import check_cache_name
from taskvine_core.protocol.session import Session
from taskvine_core.records import NamedTuple

#: Authenticated connections waiting for a thread; more are closed, and their peers try again or elsewhere.
MAX_WAITING = 1024
#: A peer says what it wants in the moment it connects; one that does not gives its thread back.
IDLE_PEER_S = 10.0
#: An idle thread ends after this.
IDLE_THREAD_S = 10.0
#: Small objects are gathered into frames of about this size.
INLINE_BATCH_BYTES = 256 * 1024
#: Name, digest and framing of a message in such a frame, roughly.
PER_MESSAGE_BYTES = 128
#: How long ``close`` waits for conversations to notice.
CLOSE_PATIENCE_S = 5.0


class ServedObject(NamedTuple):
    """Where an object is.

    Args:
        path: a regular file or directory.
        sha256: its digest if known, else b"".
        on_done: called exactly once, in a server thread: was all of it sent, and how many bytes were.
    """

    path: Path
    sha256: bytes
    on_done: Callable[[bool, int], None]


class Provider(Protocol):
    """What stands behind a server. All methods are called in server threads."""

    def open_object(self, name: str) -> ServedObject | None:
        """The object of this name, None when it is not here."""
        ...

    def begin_upload(self, transfer_id: int, name: str) -> Path | None:
        """Where to receive an upload (a path that does not exist), None when it is not expected."""
        ...

    def end_upload(self, transfer_id: int, info: ObjectInfo | None, error: str) -> None:
        """An upload that was begun is complete (``info``) or failed (``error``; nothing is left at the path)."""
        ...


def _log(text: str) -> None:
    import logging

    logging.getLogger(__name__).warning(text)


class DataServer:
    """Serves data connections.

    Args:
        secret: shared secret.
        role: "manager" or "worker".
        provider: finds objects.
        max_threads: conversations at the same time.
        timeout_s: longest silence of a peer.
        tls: None for plain TCP with MACs.
        report: takes a sentence about each connection that failed; default: the log.
    """

    def __init__(self, *, secret: bytes, role: str, provider: Provider, max_threads: int, timeout_s: float,
                 tls: Tls | None = None, report: Callable[[str], None] = _log) -> None:
        self._provider = provider
        self._max_threads = max_threads
        self._timeout_s = timeout_s
        self._report = report
        self._secret = secret
        self._role = role
        self._tls = tls
        self._refusal = ""
        self._acceptors: list[Acceptor] = []
        self._changed = threading.Condition()
        self._waiting: deque[Channel] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closing = False

    def listen(self, host: str, ports: range | int) -> int:
        """Accept connections on a port of our own, in a thread of our own; returns the port.

        Raises:
            ConfigError: none of the ports is free.
        """
        listener, port = bind(host, ports)
        self.accept_from(listener)
        return port

    def accept_from(self, listener: socket.socket) -> None:
        """The same on a socket of ``listening.bind``, ours from here on."""
        acceptor = Acceptor(secret=self._secret, role=self._role, tls=self._tls, adopt=self.serve,
                            report=self._report)
        acceptor.protect(self._tls, self._refusal)
        acceptor.accept_from(listener)
        self._acceptors.append(acceptor)

    def set_secret(self, secret: bytes) -> None:
        """Key for listeners opened from now on."""
        self._secret = secret

    def protect(self, tls: Tls | None, refusal: str = "") -> None:
        """How connections accepted from now on by our own ports are protected.

        Args:
            tls: None for plain TCP with MACs.
            refusal: not "": all are refused, for this reason.
        """
        self._tls, self._refusal = tls, refusal
        for acceptor in self._acceptors:
            acceptor.protect(tls, refusal)

    def serve(self, sock: socket.socket, session: Session, messages: Sequence[object] = ()) -> None:
        """Adopt an established connection of role "data"; returns at once.

        Args:
            sock: owned by the server from here on.
            session: established; may hold bytes that were received already.
            messages: decoded already, in order.
        """
        try:
            tune(sock)
            channel = Channel(sock, session, _peer_of(sock), self._timeout_s, self._is_closing)
        except OSError:
            sock.close()  # gone between its handshake and now
            return
        channel.give_back(messages)
        with self._changed:
            if self._closing or len(self._waiting) >= MAX_WAITING:
                channel.close()
                self._report(f"closed data connection of {channel.peer}: "
                             + ("shutting down" if self._closing else f"{MAX_WAITING} are waiting already"))
                return
            self._waiting.append(channel)
            if self._idle >= len(self._waiting):
                self._changed.notify()
            elif len(self._threads) < self._max_threads:
                thread = threading.Thread(target=self._run, name="vine-data", daemon=True)
                self._threads.add(thread)
                thread.start()

    def close(self) -> None:
        """Stop listening, end all conversations, wait for the threads."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            waiting, self._waiting = self._waiting, deque()
            threads = list(self._threads)
        for channel in waiting:
            channel.close()
        for thread in threads:
            thread.join(CLOSE_PATIENCE_S)

    def _is_closing(self) -> bool:
        return self._closing

    def _run(self) -> None:
        while (channel := self._next()) is not None:
            try:
                _Conversation(channel, self._provider).run()
            except Cancelled:
                pass
            except VineError as error:
                self._report(f"data connection of {channel.peer}: {error}")
            except Exception as error:  # a defect behind one conversation must not cost the pool a thread
                self._report(f"data connection of {channel.peer} failed: {type(error).__name__}: {error}")
            finally:
                channel.close()

    def _next(self) -> Channel | None:
        with self._changed:
            self._idle += 1
            try:
                if not self._waiting and not self._closing:
                    self._changed.wait(IDLE_THREAD_S)
                if self._waiting and not self._closing:
                    return self._waiting.popleft()
                self._threads.discard(threading.current_thread())
                return None
            finally:
                self._idle -= 1


def _peer_of(sock: socket.socket) -> str:
    name = sock.getpeername()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "a local peer"


class _Conversation:
    """One peer's requests, in order."""

    def __init__(self, channel: Channel, provider: Provider) -> None:
        self._channel = channel
        self._provider = provider
        self._batch: list[ObjectInline | ObjectMissing] = []
        self._batch_bytes = 0
        self._batch_done: list[tuple[Callable[[bool, int], None], int]] = []

    def run(self) -> None:
        """Until the peer closes, or is idle."""
        while (message := self._channel.receive(IDLE_PEER_S)) is not None:
            if isinstance(message, DataGet):
                self._get(message.names)
            elif isinstance(message, DataPut):
                if not self._put(message):
                    return
            elif isinstance(message, Local):
                self._channel.sealed = self._channel.sealed or is_direct(self._channel, message)
            else:
                raise RemoteProtocolError(f"unexpected {type(message).__name__} on a data connection")

    # ------------------------------------------------------------------ get

    def _get(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                self._get_one(name)
            self._flush()
        finally:
            self._settle(False)

    def _get_one(self, name: str) -> None:
        try:
            check_cache_name(name)
            served = self._provider.open_object(name)
        except (VineError, OSError) as error:
            self._gather(ObjectMissing(name, str(error)), 0)
            return
        if served is None:
            self._gather(ObjectMissing(name, "it is not here"), 0)
            return
        try:
            outgoing = open_outgoing(served.path, served.sha256)
        except TransferError as error:
            served.on_done(False, 0)
            self._gather(ObjectMissing(name, str(error)), 0)
            return
        try:
            if outgoing.listing is None and outgoing.size_bytes <= INLINE_MAX_BYTES:
                self._inline(name, outgoing, served)
            else:
                self._stream(name, outgoing, served)
        finally:
            outgoing.close()

    def _inline(self, name: str, outgoing: Outgoing, served: ServedObject) -> None:
        try:
            data, digest = read_whole(outgoing)
        except TransferError as error:
            served.on_done(False, 0)
            self._gather(ObjectMissing(name, str(error)), 0)
            return
        self._batch_done.append((served.on_done, len(data)))
        self._gather(ObjectInline(name, outgoing.status.st_mode & MODE_MASK, digest, data), len(data))

    def _stream(self, name: str, outgoing: Outgoing, served: ServedObject) -> None:
        sender = StreamSender(self._channel, outgoing)
        complete = False
        try:
            self._flush()
            self._channel.send(outgoing.header(name))
            complete = not sender.run()
        finally:
            served.on_done(complete, sender.sent_bytes)

    def _gather(self, message: ObjectInline | ObjectMissing, size: int) -> None:
        self._batch.append(message)
        self._batch_bytes += size + PER_MESSAGE_BYTES
        if self._batch_bytes >= INLINE_BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._channel.send(*batch)
        self._settle(True)

    def _settle(self, sent: bool) -> None:
        done, self._batch_done = self._batch_done, []
        for on_done, size in done:
            on_done(sent, size if sent else 0)

    # ------------------------------------------------------------------ put

    def _put(self, order: DataPut) -> bool:
        """Take one upload. True when the connection can be used further."""
        header = self._channel.expect_message()
        if not isinstance(header, ObjectHeader):
            raise RemoteProtocolError(f"unexpected {type(header).__name__} after DataPut")
        path = self._provider.begin_upload(order.transfer_id, order.name)
        if path is None:
            self._channel.send(DataAck(order.transfer_id, ACK_REFUSED, "this transfer is not expected"))
            return True
        info: ObjectInfo | None = None
        reason, code = "the receiving side failed", ACK_FAILED
        try:
            go = ACK_GO_SEALED if self._channel.sealed else ACK_GO
            self._channel.send(DataAck(order.transfer_id, go, ""))
            info = receive_object(self._channel, header, path)
        except VineError as error:
            reason, code = str(error), _ack_code(error)
        finally:
            self._provider.end_upload(order.transfer_id, info, "" if info else reason)
        if info is not None:
            self._channel.send(DataAck(order.transfer_id, ACK_OK, ""))
            return True
        self._channel.send(DataAck(order.transfer_id, code, reason))
        if self._channel.mid_object:
            self._channel.linger()
        return not self._channel.mid_object


def _ack_code(error: VineError) -> int:
    if isinstance(error, DiskFullError):
        return ACK_DISK_FULL
    return ACK_INTEGRITY if isinstance(error, IntegrityError) else ACK_FAILED

"""One secure channel: bytes in, messages out, and back. No I/O.

Owns the order of things: handshake, then frames, then messages. Must not know sockets, threads, or what to do
with a message.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskvine_core.errors import HandshakeError, LocalProtocolError, RemoteProtocolError
from taskvine_core.protocol import codec
from taskvine_core.protocol.frames import MAX_FRAME_BYTES, FrameReader, FrameWriter
from taskvine_core.protocol.handshake import Handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Messages put in one frame at most. A receiver acts on a frame when all of it is here: frames of some 100 kB
#: cost as little per message as larger ones.
MAX_BATCH = 512


class Session:
    """One side of a connection.

    Args:
        secret: the shared key.
        role: what we are. Initiators: "worker", "status", "factory", "data"; responders: "manager", "worker".
        initiator: True for the side that connected.
        nonce: 32 random bytes from the caller, never used before.
        binding: with TLS the sha256 fingerprint of the server's certificate, given by both sides.
        mac: False when the link is TLS: frames then carry no MAC of their own.
        max_frame_bytes: largest payload taken or sent.

    Attributes:
        established: the peer has proved that it knows the secret and broke no rule since; messages can be sent.
        peer_role: what the peer is; "" before.
    """

    __slots__ = ("_delivered", "_failure", "_handshake", "_mac", "_max_frame_bytes", "_reader", "_writer",
                 "established", "peer_role")

    def __init__(self, *, secret: bytes, role: str, initiator: bool, nonce: bytes, binding: bytes = b"",
                 mac: bool = True, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._handshake: Handshake | None = Handshake(secret=secret, role=role, initiator=initiator, nonce=nonce,
                                                      binding=binding, mac=mac)
        self._mac = mac
        self._max_frame_bytes = max_frame_bytes
        self._reader: FrameReader | None = None
        self._writer: FrameWriter | None = None
        self._failure: HandshakeError | RemoteProtocolError | None = None
        self._delivered: list[Any] = []
        self.established = False
        self.peer_role = ""

    def start(self) -> bytes:
        """What to send first: the initiator's greeting, b"" for the responder."""
        return b"" if self._handshake is None else self._handshake.start()

    def receive(self, data: bytes | memoryview, *, limit: int | None = None) -> tuple[list[Any], bytes]:
        """Take bytes from the peer.

        Args:
            data: what arrived, in any pieces; may be b"" to go on after a ``limit``.
            limit: look at no further frame once this many messages are out; what follows stays unread, for the
                next call or ``take_buffered``.

        Returns:
            the complete messages, and handshake bytes to send back now (before anything ``encode`` gives).

        Raises:
            HandshakeError: the peer is not who it should be.
            RemoteProtocolError: damaged, forged, repeated or malformed data.
            After either the session is dead and raises the same again; ``take_undelivered`` has what was good.
        """
        if self._failure is not None:
            raise self._failure
        messages: list[Any] = []
        self._delivered = messages
        reply = b""
        try:
            if self._handshake is not None:
                reply, data = self._handshake.receive(data)
                self._finish_handshake()
            if self._reader is not None:
                self._read(data, messages, limit)
        except (HandshakeError, RemoteProtocolError) as failure:
            self._failure = failure
            self._reader = self._writer = self._handshake = None
            self.established = False
            raise
        self._delivered = []
        return messages, reply

    def _finish_handshake(self) -> None:
        keys = self._handshake.keys if self._handshake is not None else None
        if keys is None:
            return
        self._reader = FrameReader(keys.receive if self._mac else None, self._max_frame_bytes)
        self._writer = FrameWriter(keys.send if self._mac else None, self._max_frame_bytes)
        self.peer_role = keys.peer_role
        self.established = True
        self._handshake = None

    def _read(self, data: bytes | memoryview, messages: list[Any], limit: int | None) -> None:
        if self._reader is None:
            return

        def take(payload: memoryview) -> bool:
            messages.extend(codec.unpack(payload))
            return limit is None or len(messages) < limit

        self._reader.feed(data, take)

    def take_undelivered(self) -> list[Any]:
        """After ``receive`` raised: the complete, authentic messages that came before the fault, in order."""
        messages, self._delivered = self._delivered, []
        return messages

    def encode(self, messages: Sequence[Any]) -> bytes:
        """Frames ready to send, as few as possible; b"" for no messages.

        Raises:
            LocalProtocolError: not established, or a message that cannot be packed or is larger than a frame.
                Nothing of the call was encoded then.
        """
        if self._writer is None:
            when = "after the connection has failed" if self._failure else "before the handshake is done"
            raise LocalProtocolError(f"messages cannot be sent {when}", hint="look at Session.established")
        if len(messages) <= MAX_BATCH:
            if not messages:
                return b""
            payload = codec.pack(messages)
            if len(payload) <= self._max_frame_bytes:
                return self._writer.frame(payload)
        payloads: list[bytes] = []
        for first in range(0, len(messages), MAX_BATCH):
            self._pack_split(messages[first:first + MAX_BATCH], payloads)
        return b"".join(map(self._writer.frame, payloads))

    def _pack_split(self, messages: Sequence[Any], payloads: list[bytes]) -> None:
        """Pack in halves until each fits in a frame."""
        payload = codec.pack(messages)
        if len(payload) <= self._max_frame_bytes:
            payloads.append(payload)
        elif len(messages) == 1:
            raise LocalProtocolError(f"a {type(messages[0]).__name__} of {len(payload)} bytes is larger than a frame "
                                     f"({self._max_frame_bytes} bytes)", hint="send large data as a file")
        else:
            middle = len(messages) // 2
            self._pack_split(messages[:middle], payloads)
            self._pack_split(messages[middle:], payloads)

    def take_buffered(self) -> bytes:
        """Bytes received after the last message given out and not looked at: the start of a raw object stream."""
        return b"" if self._reader is None else self._reader.take_buffered()

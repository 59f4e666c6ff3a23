"""Rules of handshake, frames and session."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Any

import pytest

from taskvine_core.errors import HandshakeError, LocalProtocolError, RemoteProtocolError
from taskvine_core.protocol import handshake
from taskvine_core.protocol.frames import MAC_BYTES, FrameReader, FrameWriter
from taskvine_core.protocol.handshake import MAX_HANDSHAKE_BYTES, Handshake
from taskvine_core.protocol.messages import PROTOCOL_VERSION, Ping, Pong, Reply, Unlink
from taskvine_core.protocol.session import MAX_BATCH, Session

SECRET = b"k" * 32
HEAD_BYTES = 4 + MAC_BYTES


def initiator(role: str = "worker", **options: Any) -> Session:
    return Session(**{"secret": SECRET, "role": role, "initiator": True, "nonce": b"i" * 32, **options})


def responder(role: str = "manager", **options: Any) -> Session:
    return Session(**{"secret": SECRET, "role": role, "initiator": False, "nonce": b"r" * 32, **options})


def connect(left: Session, right: Session) -> tuple[Session, Session]:
    _, answer = right.receive(left.start())
    _, proof = left.receive(answer)
    right.receive(proof)
    return left, right


def pair(**options: Any) -> tuple[Session, Session]:
    return connect(initiator(**options), responder(**options))


# ---------------------------------------------------------------------------- handshake


@pytest.mark.parametrize(("left", "right"), [("worker", "manager"), ("status", "manager"), ("factory", "manager"),
                                             ("data", "manager"), ("data", "worker")])
def test_each_side_learns_the_role_of_the_other(left: str, right: str) -> None:
    one, other = connect(initiator(left), responder(right))
    assert one.established and other.established
    assert (one.peer_role, other.peer_role) == (right, left)


def test_messages_may_follow_the_last_proof_in_the_same_bytes() -> None:
    left, right = initiator(), responder()
    _, answer = right.receive(left.start())
    _, proof = left.receive(answer)
    assert right.receive(proof + left.encode([Ping(1), Ping(2)])) == ([Ping(1), Ping(2)], b"")


def test_a_handshake_is_small() -> None:
    left, right = initiator(), responder()
    _, answer = right.receive(left.start())
    _, proof = left.receive(answer)
    assert max(len(left.start()), len(answer), len(proof)) < MAX_HANDSHAKE_BYTES
    assert responder().start() == b""


def test_directions_and_connections_have_different_keys() -> None:
    def keys(nonce: bytes) -> list[bytes]:
        left = Handshake(secret=SECRET, role="worker", initiator=True, nonce=nonce)
        right = Handshake(secret=SECRET, role="manager", initiator=False, nonce=b"r" * 32)
        right.receive(left.receive(right.receive(left.start())[0])[0])
        assert left.keys is not None and right.keys is not None
        assert (left.keys.send, left.keys.receive) == (right.keys.receive, right.keys.send)
        return [left.keys.send, left.keys.receive]

    assert len({SECRET, *keys(b"1" * 32), *keys(b"2" * 32)}) == 5


def test_the_side_with_the_wrong_key_says_so_before_it_proves_anything() -> None:
    left, right = initiator(secret=b"w" * 32), responder()
    _, answer = right.receive(left.start())
    with pytest.raises(HandshakeError, match="manager at the other end does not have the same key"):
        left.receive(answer)
    assert not left.established and not right.established


def test_a_responder_refuses_a_wrong_proof() -> None:
    left, right = initiator(), responder()
    right.receive(left.start())
    with pytest.raises(HandshakeError, match="worker at the other end does not have the same key"):
        right.receive(b"\0" * 32)
    assert not right.established


@pytest.mark.parametrize(("left", "right"), [("worker", "worker"), ("status", "worker"), ("manager", "manager"),
                                             ("worker", "data")])
def test_roles_that_do_not_belong_together_are_refused_by_both(left: str, right: str) -> None:
    with pytest.raises(HandshakeError, match=f"a {left} connected to a {right}"):
        connect(initiator(left), responder(right))


def test_another_role_in_the_greeting_spoils_the_proof() -> None:
    left, right = initiator("data"), responder()
    start = bytearray(left.start())
    start[6] = handshake.ROLE_CODES["worker"]
    _, answer = right.receive(bytes(start))
    with pytest.raises(HandshakeError, match="same key"):
        left.receive(answer)


def test_an_unknown_role_is_refused() -> None:
    start = bytearray(initiator().start())
    start[6] = 99
    with pytest.raises(HandshakeError, match=r"unknown role \(99\)"):
        responder().receive(bytes(start))


def test_both_sides_of_different_versions_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    left = initiator()
    monkeypatch.setattr(handshake, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    right = responder()
    messages, answer = right.receive(left.start())
    assert messages == [] and len(answer) == 6
    with pytest.raises(HandshakeError, match=f"protocol version {PROTOCOL_VERSION}, this side {PROTOCOL_VERSION + 1}"):
        right.receive(b"")
    monkeypatch.undo()
    with pytest.raises(HandshakeError, match=f"protocol version {PROTOCOL_VERSION + 1}, this side {PROTOCOL_VERSION}"):
        left.receive(answer)


def test_a_man_in_the_middle_of_tls_is_told_from_a_wrong_key() -> None:
    left, right = initiator(binding=b"a" * 32), responder(binding=b"b" * 32)
    _, answer = right.receive(left.start())
    with pytest.raises(HandshakeError, match="certificate seen here is not the one"):
        left.receive(answer)
    connect(initiator(binding=b"a" * 32), responder(binding=b"a" * 32))


def test_frame_protection_must_be_the_same_on_both_sides() -> None:
    left, right = initiator(mac=False), responder(mac=True)
    _, answer = right.receive(left.start())
    with pytest.raises(HandshakeError, match="another frame protection"):
        left.receive(answer)


def test_our_own_bytes_sent_back_are_refused() -> None:
    left = initiator()
    with pytest.raises(HandshakeError, match="our own greeting"):
        left.receive(left.start() + b"\0" * 32)
    right, other = responder(), initiator()
    _, answer = right.receive(other.start())
    with pytest.raises(HandshakeError):
        right.receive(answer[-32:])  # the responder's proof is no proof of an initiator
    with pytest.raises(HandshakeError, match="our own greeting"):
        responder(nonce=b"i" * 32).receive(other.start())


@pytest.mark.parametrize(("first", "sentence"), [(b"GET / HTTP/1.1\r\n", "does not speak this protocol"),
                                                 (b"\x16\x03\x01", "speaks TLS"), (b"VIRE", "does not speak")])
def test_strangers_are_refused_at_the_first_wrong_byte(first: bytes, sentence: str) -> None:
    with pytest.raises(HandshakeError, match=sentence):
        responder().receive(first)
    with pytest.raises(HandshakeError, match=sentence):
        initiator().receive(first)


def test_a_handshake_needs_a_nonce_a_secret_and_a_known_role() -> None:
    for wrong in ({"nonce": b"short"}, {"secret": b""}, {"role": "visitor"}):
        with pytest.raises(LocalProtocolError):
            initiator(**wrong)


# ---------------------------------------------------------------------------- frames and messages


@pytest.mark.parametrize("mac", [True, False])
def test_messages_arrive_in_order_in_both_directions(mac: bool) -> None:
    left, right = pair(mac=mac)
    for turn in range(3):
        assert right.receive(left.encode([Pong(turn), Pong(-turn)]))[0] == [Pong(turn), Pong(-turn)]
        assert left.receive(right.encode([Ping(turn)]))[0] == [Ping(turn)]


def test_many_messages_share_a_frame() -> None:
    left, _ = pair()
    data = left.encode([Ping(1)] * 100)
    assert struct.unpack_from(">I", data)[0] == len(data) - HEAD_BYTES
    assert len(data) < HEAD_BYTES + 100 * 4
    assert left.encode([]) == b""


def test_a_batch_larger_than_a_frame_is_split_in_order() -> None:
    left, right = pair(max_frame_bytes=1000)
    batch = [Reply(number, bytes(number % 700), "") for number in range(2 * MAX_BATCH)]
    data = left.encode(batch)
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        assert length <= 1000
        at += HEAD_BYTES + length
    assert right.receive(data)[0] == batch


def test_one_message_larger_than_a_frame_is_our_fault_and_spoils_nothing() -> None:
    left, right = pair(max_frame_bytes=1000)
    with pytest.raises(LocalProtocolError, match=r"a Reply of 10.. bytes is larger than a frame"):
        left.encode([Ping(1), Reply(1, bytes(1000), "")])
    assert right.receive(left.encode([Ping(2)]))[0] == [Ping(2)]


def test_nothing_is_sent_before_the_peer_has_proved_itself() -> None:
    left, right = initiator(), responder()
    with pytest.raises(LocalProtocolError, match="before the handshake"):
        left.encode([Ping(1)])
    right.receive(left.start())
    with pytest.raises(LocalProtocolError, match="before the handshake"):
        right.encode([Ping(1)])


def _flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _flip_mac(data: bytes) -> bytes:
    return data[:4] + bytes([data[4] ^ 0x80]) + data[5:]


@pytest.mark.parametrize("tamper", [_flip_last, _flip_mac])
def test_a_changed_frame_is_refused(tamper: Callable[[bytes], bytes]) -> None:
    left, right = pair()
    with pytest.raises(RemoteProtocolError, match="authentication code"):
        right.receive(tamper(left.encode([Ping(1)])))


def test_repeated_dropped_and_swapped_frames_are_refused() -> None:
    for order in ((0, 0), (1,), (0, 2), (1, 0)):
        left, right = pair()
        frames = [left.encode([Ping(number)]) for number in range(3)]
        with pytest.raises(RemoteProtocolError, match="authentication code"):
            for index in order:
                right.receive(frames[index])


def test_a_frame_sent_back_to_its_sender_or_into_another_connection_is_refused() -> None:
    left, _ = pair()
    with pytest.raises(RemoteProtocolError, match="authentication code"):
        left.receive(left.encode([Ping(1)]))
    left, _ = pair()
    _, other = connect(initiator(nonce=b"x" * 32), responder())
    with pytest.raises(RemoteProtocolError, match="authentication code"):
        other.receive(left.encode([Ping(1)]))


@pytest.mark.parametrize("length", [0, 1001, 2**32 - 1])
def test_a_frame_of_forbidden_length_is_refused_at_its_head(length: int) -> None:
    _, right = pair(max_frame_bytes=1000)
    with pytest.raises(RemoteProtocolError, match=f"announces {length} bytes"):
        right.receive(struct.pack(">I", length))


def test_a_dead_session_stays_dead_and_keeps_what_was_good() -> None:
    left, right = pair()
    data = left.encode([Ping(1)]) + left.encode([Ping(2)]) + b"\xff" * 40
    with pytest.raises(RemoteProtocolError) as first:
        right.receive(data)
    assert right.take_undelivered() == [Ping(1), Ping(2)]
    assert right.take_undelivered() == []
    with pytest.raises(RemoteProtocolError) as second:
        right.receive(left.encode([Ping(3)]))
    assert str(first.value) == str(second.value)
    assert right.take_buffered() == b""


def test_a_dead_session_is_not_established() -> None:
    left, right = pair()
    with pytest.raises(RemoteProtocolError):
        right.receive(b"\xff" * 40)
    assert not right.established
    with pytest.raises(LocalProtocolError, match="has failed"):
        right.encode([Ping(1)])
    assert left.established


# ---------------------------------------------------------------------------- raw bytes after a message


def test_with_a_limit_what_follows_a_message_stays_unread() -> None:
    left, right = pair()
    raw = b"\xff" * 100
    messages, _ = right.receive(left.encode([Unlink(("a",))]) + raw, limit=1)
    assert messages == [Unlink(("a",))]
    assert right.take_buffered() == raw
    assert right.take_buffered() == b""
    assert right.receive(left.encode([Ping(1)]))[0] == [Ping(1)]


def test_after_a_limit_the_next_call_goes_on_where_the_last_stopped() -> None:
    left, right = pair()
    data = b"".join(left.encode([Ping(number)]) for number in range(5))
    got = right.receive(data[:-3], limit=1)[0]
    got += right.receive(b"", limit=2)[0]
    assert got == [Ping(0), Ping(1), Ping(2)]
    got += right.receive(data[-3:-2], limit=1)[0]
    assert right.receive(b"")[0] == []
    got += right.receive(memoryview(data[-2:]))[0]
    assert got == [Ping(number) for number in range(5)]


def test_a_partial_frame_is_given_back_by_take_buffered_with_what_was_unread() -> None:
    left, right = pair()
    data = left.encode([Ping(1)])
    assert right.receive(data[:7]) == ([], b"")
    assert right.receive(right.take_buffered() + data[7:])[0] == [Ping(1)]


# ---------------------------------------------------------------------------- frames alone


def test_a_reader_keeps_only_what_arrived() -> None:
    reader = FrameReader(b"k" * 32)

    def unexpected(payload: memoryview) -> bool:
        raise AssertionError(f"{len(payload)} bytes were handed out")

    reader.feed(struct.pack(">I", 30_000_000) + b"x" * 10, unexpected)
    assert len(reader.take_buffered()) == 14


class _CountingReader(FrameReader):
    looks = 0

    def _split(self, whole: bytes, start: int, take: Callable[[memoryview], bool]) -> None:
        self.looks += 1
        super()._split(whole, start, take)


def test_a_large_frame_in_small_pieces_is_looked_at_twice_not_once_per_piece() -> None:
    """Each look copies what has arrived so far: one per piece would make 32 MB cost seconds."""
    reader = _CountingReader(None)
    data = FrameWriter(None).frame(bytes(100_000))
    sizes: list[int] = []
    for at in range(0, len(data), 100):
        reader.feed(data[at:at + 100], lambda payload: not sizes.append(len(payload)))  # type: ignore[func-returns-value]
    assert sizes == [100_000] and reader.looks == 2


def test_a_writer_refuses_an_empty_or_oversize_payload_and_a_key_of_another_length() -> None:
    writer = FrameWriter(None, 10)
    for payload in (b"", b"x" * 11):
        with pytest.raises(LocalProtocolError):
            writer.frame(payload)
    with pytest.raises(LocalProtocolError):
        FrameWriter(b"short")


def test_the_mac_is_hmac_sha256_of_counter_and_payload() -> None:
    writer = FrameWriter(b"k" * 32)
    for count, payload in enumerate((b"one", b"two")):
        expected = hmac.new(b"k" * 32, count.to_bytes(8, "big") + payload, hashlib.sha256).digest()[:MAC_BYTES]
        assert writer.frame(payload) == struct.pack(">I", 3) + expected + payload

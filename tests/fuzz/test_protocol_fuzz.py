"""Whatever a peer sends, in whatever pieces: the same events, our own errors, bounded memory."""

from __future__ import annotations

import random
import tracemalloc
import types
import typing
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgpack import fallback

from taskvine_core.errors import HandshakeError, RemoteProtocolError
from taskvine_core.protocol import codec
from taskvine_core.protocol.messages import NUMBERS, Ping, Pong, TaskDone
from taskvine_core.protocol.session import Session

SECRET = b"k" * 32
MAX_FRAME = 4096
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[
    HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.function_scoped_fixture])

#: What one receive() call may hold beyond a constant times the bytes given to it (1000 frames of the pure msgpack).
SLACK_BYTES = 1024 * 1024
BYTES_PER_BYTE = 100


@pytest.fixture(params=["compiled", "pure"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pure":
        python_code = SimpleNamespace(Packer=fallback.Packer, Unpacker=fallback.Unpacker, unpackb=fallback.unpackb,
                                      ExtraData=msgpack.ExtraData, UnpackException=msgpack.UnpackException)
        monkeypatch.setattr(codec, "msgpack", python_code)
    monkeypatch.setattr(codec, "_per_thread", SimpleNamespace())


# ---------------------------------------------------------------------------- what is fed

_TEXT = st.one_of(st.text(max_size=20), st.binary(max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape")))
_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1), float: st.floats(-1e99, 1e99), bytes: st.binary(max_size=40),
    bool: st.booleans(), str: _TEXT.filter(lambda t: t.encode("utf-8", "surrogateescape").decode(
        "utf-8", "surrogateescape") == t)}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """All values of an annotation."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    if hasattr(hint, "_fields"):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, *(values(hints[name]) for name in hint._fields))
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return st.one_of(*(st.none() if a is type(None) else values(a) for a in arguments))
    if arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    return st.tuples(*(values(argument) for argument in arguments))


MESSAGES = st.sampled_from(sorted(NUMBERS, key=lambda cls: cls.__name__)).flatmap(values)
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=30)


def connected() -> tuple[Session, Session, list[bytes], list[bytes]]:
    """A connected pair with the bytes each side sent for it; the same every time."""
    left = Session(secret=SECRET, role="worker", initiator=True, nonce=b"i" * 32, max_frame_bytes=MAX_FRAME)
    right = Session(secret=SECRET, role="manager", initiator=False, nonce=b"r" * 32, max_frame_bytes=MAX_FRAME)
    hello = left.start()
    answer = right.receive(hello)[1]
    proof = left.receive(answer)[1]
    right.receive(proof)
    return left, right, [hello, proof], [answer]


def fresh() -> tuple[Session, bytes]:
    """A responder at its start, and what an honest initiator sends it: greeting, proof, three frames."""
    left, _, (hello, proof), _ = connected()
    frames = left.encode([Ping(1)]) + left.encode([Pong(2), Pong(3)]) + left.encode([Ping(4)])
    right = Session(secret=SECRET, role="manager", initiator=False, nonce=b"r" * 32, max_frame_bytes=MAX_FRAME)
    return right, hello + proof + frames


def events(session: Session, pieces: Iterator[bytes]) -> list[Any]:
    """Everything a session does when it is given some pieces: messages, replies, and its end."""
    seen: list[Any] = []
    replies = b""
    for piece in pieces:
        try:
            messages, reply = session.receive(piece)
        except (HandshakeError, RemoteProtocolError) as error:
            seen += session.take_undelivered()
            seen.append(type(error))
            break
        seen += messages
        replies += reply
    return [*seen, ("replied", replies if session.established else len(replies) > 0)]


def whole(data: bytes) -> Iterator[bytes]:
    yield data
    yield b""  # a responder that met another version raises after its answer


def bytewise(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at:at + 1]
    yield b""


def in_pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        step = rng.choice((0, 1, 3, 20, 71, 500))
        yield data[at:at + step]
        at += step
    yield b""


def outcome(data: bytes, seed: int) -> list[Any]:
    """What a fresh responder does with ``data``; asserts that the pieces make no difference."""
    at_once = events(fresh()[0], whole(data))
    tail = at_once[:-1]
    assert events(fresh()[0], bytewise(data))[:-1] == tail
    assert events(fresh()[0], in_pieces(data, random.Random(seed)))[:-1] == tail
    return tail


# ---------------------------------------------------------------------------- the rules


@QUICK
@given(st.lists(MESSAGES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_messages_arrive_equal_in_any_pieces(batch: list[Any], rng: random.Random) -> None:
    left, right, _, _ = connected()
    data = left.encode(batch)
    got = [message for piece in in_pieces(data, rng) for message in right.receive(piece)[0]]
    assert got == batch
    assert [type(message) for message in got] == [type(message) for message in batch]


@QUICK
@given(JUNK)
def test_any_msgpack_value_is_messages_or_a_remote_error(value: Any) -> None:
    for payload in (msgpack.packb(value), msgpack.packb([value]), msgpack.packb([[7, *(value or [])]])
                    if isinstance(value, list) else b""):
        try:
            result = codec.unpack(payload)
        except RemoteProtocolError:
            continue
        assert result and all(type(message) in NUMBERS for message in result)


@QUICK
@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_a_remote_error(payload: bytes) -> None:
    try:
        result = codec.unpack(payload)
    except RemoteProtocolError:
        return
    assert all(type(message) in NUMBERS for message in result)


@QUICK
@given(values(TaskDone), st.data())
def test_one_field_of_another_type_is_refused_with_its_name(message: TaskDone, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(message) - 1))
    fields = [NUMBERS[TaskDone], *message]
    fields[index + 1] = {"a": 1} if data.draw(st.booleans()) else None
    with pytest.raises(RemoteProtocolError) as caught:
        codec.unpack(msgpack.packb([fields], unicode_errors="surrogateescape"))
    if fields[index + 1] is None:
        assert f"TaskDone.{TaskDone._fields[index]}" in str(caught.value)


@QUICK
@given(st.binary(max_size=400), st.integers(0, 2**32))
def test_garbage_instead_of_a_handshake_is_refused(data: bytes, seed: int) -> None:
    seen = outcome(data, seed)
    assert seen in ([], [HandshakeError])
    assert seen or data == b"" or fresh()[1].startswith(data[:4])  # only a beginning like ours is waited for


def _mutations(good: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    at = rng.randrange(len(good))
    yield "bit flip", good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1:]
    yield "truncation", good[:at]
    yield "dropped byte", good[:at] + good[at + 1:]
    yield "inserted byte", good[:at] + rng.randbytes(1) + good[at:]
    end = rng.randrange(at, len(good) + 1)
    yield "repeated part", good[:end] + good[at:end] + good[end:]
    yield "zeroed part", good[:at] + bytes(end - at) + good[end:]
    yield "garbage after", good + rng.randbytes(60)
    yield "oversize", good + b"\xff\xff\xff\xff" + rng.randbytes(20)


def test_damaged_streams_give_a_prefix_of_the_messages_and_our_own_errors() -> None:
    """Only a prefix of what was sent is ever seen, and only HandshakeError or RemoteProtocolError after it."""
    rng = random.Random(20)
    good = fresh()[1]
    sent = [Ping(1), Pong(2), Pong(3), Ping(4)]
    assert outcome(good, 0) == sent
    for turn in range(60):
        for what, data in _mutations(good, rng):
            seen = outcome(data, turn)
            errors = [event for event in seen if isinstance(event, type)]
            messages = seen[:len(seen) - len(errors)]
            assert messages == sent[:len(messages)], what
            assert len(errors) <= 1, what
            if data[:len(good)] != good and len(data) >= len(good):
                assert errors or messages != sent, what


def test_every_bit_of_a_handshake_and_a_frame_matters() -> None:
    good = fresh()[1][:72 + 32 + 24]  # greeting, proof, the frame of Ping(1)
    assert outcome(good, 0) == [Ping(1)]
    for at in range(len(good)):
        for bit in range(8):
            damaged = good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1:]
            assert Ping(1) not in events(fresh()[0], whole(damaged))


def test_an_initiator_takes_no_damaged_answer() -> None:
    _, _, _, (answer,) = connected()
    for at in range(len(answer)):
        left = Session(secret=SECRET, role="worker", initiator=True, nonce=b"i" * 32)
        with pytest.raises(HandshakeError):
            left.receive(answer[:at] + bytes([answer[at] ^ 0x10]) + answer[at + 1:])
        assert not left.established


def _replay(frames: list[bytes], echo: list[bytes], rng: random.Random) -> list[bytes]:
    """An order of frames that differs from the one sent at some point."""
    order = [rng.choice(frames + echo) for _ in range(4)]
    return order if order != frames[:4] else echo


def test_replayed_reordered_and_swapped_direction_frames_end_the_session() -> None:
    rng = random.Random(4)
    for _ in range(200):
        left, right, _, _ = connected()
        frames = [left.encode([Ping(number)]) for number in range(4)]
        echo = [right.encode([Ping(number)]) for number in range(2)]
        order = _replay(frames, echo, rng)
        good = 0
        while good < 4 and order[good:good + 1] == [frames[good]]:
            good += 1
        seen = events(right, iter(order))[:-1]
        if good < len(order):
            assert seen == [*(Ping(number) for number in range(good)), RemoteProtocolError]


def _bombs() -> list[tuple[str, Callable[[Session], bytes]]]:
    """Well-authenticated frames made to waste memory: the peer knows the key and is hostile."""
    payloads = {
        "nested announcements": b"\xdc\x0f\xff" * 1300, "empty arrays": b"\xdc\x0f\xf0" + b"\x90" * 0xff0,
        "nils": b"\xdc\x0f\xf0" + b"\xc0" * 0xff0, "small announcements": b"\x91\x93" * 1000,
        "huge string": b"\x91\x92\x25\xdb\x7f\xff\xff\xff", "huge array": b"\x91\xdd\x7f\xff\xff\xff",
        "deep": b"\x91" * 4000, "maps": b"\x80" * 4000, "junk": random.Random(1).randbytes(4000)}
    def framed(payload: bytes) -> Callable[[Session], bytes]:
        return lambda session: session._writer.frame(payload)  # type: ignore[union-attr]
    return [(name, framed(payload)) for name, payload in payloads.items()]


@pytest.mark.parametrize(("name", "frame"), _bombs(), ids=[name for name, _ in _bombs()])
def test_a_hostile_peer_with_the_key_wastes_little_memory(name: str, frame: Callable[[Session], bytes]) -> None:
    left, right, _, _ = connected()
    data = frame(left)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            right.receive(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < SLACK_BYTES + BYTES_PER_BYTE * len(data), name


def test_a_peer_that_announces_and_never_sends_costs_what_it_sent() -> None:
    _, right, _, _ = connected()
    tracemalloc.start()
    try:
        right.receive((MAX_FRAME).to_bytes(4, "big"))
        for _ in range(1000):
            right.receive(b"x")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 16 * 1024

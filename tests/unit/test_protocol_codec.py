"""Rules of the codec: what goes in comes out, and nothing else comes out."""

from __future__ import annotations

import tracemalloc
import types
import typing
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from msgpack import fallback

from taskvine_core.errors import LocalProtocolError, RemoteProtocolError
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol import codec, messages
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources


@pytest.fixture(params=["compiled", "pure"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every rule holds with msgpack's C code and with the Python code of the one-file worker."""
    if request.param == "pure":
        python_code = SimpleNamespace(Packer=fallback.Packer, Unpacker=fallback.Unpacker, unpackb=fallback.unpackb,
                                      ExtraData=msgpack.ExtraData, UnpackException=msgpack.UnpackException)
        monkeypatch.setattr(codec, "msgpack", python_code)
    monkeypatch.setattr(codec, "_per_thread", SimpleNamespace())
    return str(request.param)


def sample(hint: Any) -> Any:
    """Some value of an annotation, of the largest shape it allows."""
    scalars: dict[Any, Any] = {int: -(2**40), float: 2.5, str: "text \udcff \u00e9", bytes: b"\0\xff", bool: True}
    if hint in scalars:
        return scalars[hint]
    if hasattr(hint, "_fields"):
        hints = typing.get_type_hints(hint)
        return hint(*(sample(hints[name]) for name in hint._fields))
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return sample(next(a for a in arguments if a is not type(None)))
    if arguments[-1] is Ellipsis:
        return (sample(arguments[0]), sample(arguments[0]))
    return tuple(sample(argument) for argument in arguments)


SPEC = TaskSpec("echo", inputs=(Mount("file-rnd-a", "in", 0),), env=(("A", "b"), ("C", None)), tag=None)
DISPATCH = messages.Dispatch(7, 0, SPEC, Resources(1, 2, 3, 0), (), ("temp-rnd-b",), (1,))
PING = messages.Ping(3)


def wire(*rows: Any) -> bytes:
    """A payload that no honest side would pack."""
    return bytes(msgpack.packb(list(rows), unicode_errors="surrogateescape"))


def refused(payload: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.unpack(payload)
    return str(caught.value)


@pytest.mark.parametrize("cls", list(messages.NUMBERS), ids=lambda cls: str(cls.__name__))
def test_every_message_survives_the_way_there_with_its_types(cls: type) -> None:
    message = sample(cls)
    again, second = codec.unpack(codec.pack([message, message]))
    assert again == second == message
    assert type(again) is cls
    assert repr(again) == repr(message)  # nested values have their classes again, not only equal content


def test_the_two_msgpack_implementations_give_the_same_bytes() -> None:
    whole = [sample(cls) for cls in messages.NUMBERS]
    rows = [(messages.NUMBERS[type(m)], *m) for m in whole]
    assert codec.pack(whole) == msgpack.packb(rows, unicode_errors="surrogateescape")


def test_commands_that_are_not_utf8_survive() -> None:
    command = b"cat \xff\xfe \xc3".decode("utf-8", "surrogateescape")
    message = DISPATCH._replace(spec=SPEC._replace(command=command))
    (again,) = codec.unpack(codec.pack([message]))
    assert again.spec.command.encode("utf-8", "surrogateescape") == b"cat \xff\xfe \xc3"


def test_nil_is_taken_only_where_the_annotation_says_so() -> None:
    (again,) = codec.unpack(codec.pack([DISPATCH]))
    assert again.spec.tag is None and again.spec.env == (("A", "b"), ("C", None))
    assert "SetLevel.name: expected str, got nil" in refused(wire([36, None, 1]))
    assert "Dispatch.spec.env[1][0]: expected str, got nil" in refused(
        codec.pack([DISPATCH._replace(spec=SPEC._replace(env=(("A", "b"), (None, "x"))))]))  # type: ignore[arg-type]


def test_a_tuple_of_fixed_length_has_that_length() -> None:
    for pair in ((), ("A",), ("A", "b", "c")):
        odd = SPEC._replace(env=(pair,))  # type: ignore[arg-type]
        complaint = f"Dispatch.spec.env[0]: expected 2 elements, got {len(pair)}"
        assert complaint in refused(codec.pack([DISPATCH._replace(spec=odd)]))


def test_an_int_is_taken_for_a_float_and_becomes_one() -> None:
    (upload,) = codec.unpack(wire([41, 1, "n", 30]))
    assert type(upload.timeout_s) is float and upload.timeout_s == 30.0


@pytest.mark.parametrize(("row", "complaint"), [
    ([42, True], "Ping.nonce: expected int, got bool"),
    ([42, 1.0], "Ping.nonce: expected int, got float"),
    ([42, "1"], "Ping.nonce: expected int, got str"),
    ([41, 1, "n", True], "Upload.timeout_s: expected float, got bool"),
    ([36, b"n", 1], "SetLevel.name: expected str, got bytes"),
    ([44, 1, "why"], "Release.exit: expected bool, got int"),
    ([64, 1, "tasks", "{}"], "Query.body: expected bytes, got str"),
    ([37, "ab"], "Unlink.names: expected array, got str"),
    ([37, [1]], "Unlink.names[0]: expected str, got int"),
    ([39, [1, 2, None]], "Kill.task_ids[2]: expected int, got nil"),
    ([37, {}], "Unlink.names: expected array, got map"),
    ([3, [1, 2, 3], 0, 0], "ResourceReport.total: expected 4 fields, got 3"),
    ([3, "abcd", 0, 0], "ResourceReport.total: expected array, got str"),
    ([2, [["n", 1, 2, b"h"], ["n", 1, "2", b"h"]]], "CacheOffer.entries[1].level: expected int, got str"),
    ([42], "Ping: expected 1 fields, got 0"),
    ([42, 1, 2], "Ping: expected 1 fields, got 2"),
])
def test_a_field_of_another_type_is_refused_by_name(row: list[Any], complaint: str) -> None:
    assert complaint in refused(wire(row))


@pytest.mark.parametrize(("payload", "complaint"), [
    (wire([31, 1]), "unknown message number 31"),
    (wire([2**63, 1]), "unknown message number"),
    (wire([True, 1]), "does not start with its number"),
    (wire(["42", 1]), "does not start with its number"),
    (wire([]), "not an array"),
    (wire(42), "not an array"),
    (wire(), "does not hold a list of messages"),
    (b"\x2a", "does not hold a list of messages"),
    (b"", "not readable"),
    (wire([42, 1]) + b"\x00", "bytes after its messages"),
    (wire([42, 1])[:-1], "not readable"),
    (b"\xc1", "not readable"),
    (wire([42, {1: 2}]), "not readable"),
    (wire([42, msgpack.ExtType(5, b"")]), "Ping.nonce: expected int, got ExtType"),
    (wire([42, msgpack.ExtType(5, b"xx")]), "not readable"),
    (wire([42, msgpack.Timestamp(1)]), "not readable"),
    (b"\x91" * 5000, "not readable"),
    (b"\xdd\xff\xff\xff\xff", "not readable"),
    (b"\xdb\xff\xff\xff\xffabc", "not readable"),
])
def test_what_is_no_batch_of_messages_is_refused(payload: bytes, complaint: str) -> None:
    assert complaint in refused(payload)


@pytest.mark.parametrize("bomb", [
    b"\xdc\xff\xff" * 30_000,  # arrays announced inside arrays: msgpack would allocate 0.5 MB for each of 1024
    b"\x91\xdd\x00\x01\x00\x00" * 20_000,
    b"\x91\x91\xc6\x7f\xff\xff\xff" + b"x" * 5000,
])
def test_memory_follows_what_arrived_not_what_was_announced(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        refused(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * len(bomb) + 4_000_000


def test_a_value_that_has_no_form_on_the_wire_is_our_fault_and_named() -> None:
    for bad in ({1}, 2**70, "\ud800", object()):
        with pytest.raises(LocalProtocolError, match=r"cannot send Ping\.nonce"):
            codec.pack([PING, messages.Ping(bad)])  # type: ignore[arg-type]
        assert codec.unpack(codec.pack([PING])) == [PING]  # the packer is usable afterwards
    with pytest.raises(LocalProtocolError, match="a Mount, which is not a registered message"):
        codec.pack([Mount("a", "b")])


class _Extra(NamedTuple):
    name: str


class _Empty(NamedTuple):
    pass


class _Odd(NamedTuple):
    table: dict[str, int]


@pytest.fixture
def own_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_numbers", "_classes", "_decoders"):
        monkeypatch.setattr(codec, table, dict(getattr(codec, table)))


@pytest.mark.usefixtures("own_vocabulary")
def test_a_registered_class_travels_like_the_others() -> None:
    codec.register(120, _Extra)
    codec.register(120, _Extra)
    codec.register(121, _Empty)
    assert codec.unpack(codec.pack([_Extra("x"), _Empty(), PING])) == [_Extra("x"), _Empty(), PING]


@pytest.mark.usefixtures("own_vocabulary")
def test_a_number_or_class_cannot_be_registered_twice() -> None:
    codec.register(120, _Extra)
    for number, cls in ((120, _Empty), (121, _Extra), (42, _Empty)):
        with pytest.raises(LocalProtocolError, match="cannot be number"):
            codec.register(number, cls)


@pytest.mark.usefixtures("own_vocabulary")
def test_an_annotation_without_a_form_on_the_wire_is_named() -> None:
    codec.register(122, _Odd)
    with pytest.raises(LocalProtocolError, match=r"_Odd\.table"):
        codec.unpack(wire([122, {}]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_floats_that_no_arithmetic_survives_are_refused(value: float) -> None:
    leave = messages.LeaveRequest("idle", 1.0)._replace(deadline=value)
    with pytest.raises(RemoteProtocolError, match="deadline"):
        codec.unpack(codec.pack([leave]))

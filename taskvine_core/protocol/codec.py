"""Messages to bytes and back, with every type, length and nesting checked on the way in.

Owns the msgpack form of a batch of messages: an array of arrays ``[number, field, ...]``. What a field may be is
read once from the annotations of the message class, at the first message of that class. Must not know frames,
keys, sockets, or what a message means: names and paths inside messages are checked by who uses them.

Bytes from a peer raise RemoteProtocolError and nothing else. There is no limit besides the length of the frame,
which the sender knows too: whatever ``pack`` accepts and fits in a frame is readable at the other end.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Sequence
from functools import cache

import msgpack

from taskvine_core.errors import LocalProtocolError, RemoteProtocolError
from taskvine_core.protocol import messages as vocabulary
from taskvine_core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    _Check = Callable[[Any], Any]

#: How text that is not UTF-8 travels (commands, paths, environment): as os.fsdecode() reads it, both ways.
UNICODE_ERRORS = "surrogateescape"

#: Payloads above this are walked once without building anything before they are built. msgpack's C code allocates
#: an announced array before its elements arrive, once per nesting level (1024 levels): below this size that is
#: at most 6 MB and the walk costs more than the rest, above it the walk adds a third of the unpacking time.
WALK_FIRST_BYTES = 2048

#: Most characters of a peer's text that are repeated in an error.
QUOTE_CHARS = 80

#: Floats are times and amounts: beyond that, and for NaN and infinity, arithmetic with them would fail or poison sums.
MAX_FLOAT = 1e100
_LOOKS = {int: "int", float: "float", str: "str", bytes: "bytes", bool: "bool", tuple: "array", dict: "map",
          type(None): "nil"}
_HINT = "the other side runs another version or is faulty; the connection is closed"


class _Fault(Exception):
    """A value that does not fit its annotation; ``where`` grows while it climbs to the message."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where = where
        self.why = why


class _Plan(NamedTuple):
    """How a value of one annotation is checked.

    Args:
        check: returns the value as the receiver sees it, or raises _Fault.
        kinds: types of which every value is right as it is; empty where one must look inside.
    """

    check: _Check
    kinds: tuple[type, ...] = ()


def _looks(kind: type) -> str:
    return _LOOKS.get(kind, kind.__name__)


def _mismatch(kinds: Sequence[type], value: object) -> _Fault:
    return _Fault("", f"expected {' or '.join(map(_looks, kinds))}, got {_looks(type(value))}")


def _scalar_plan(*kinds: type) -> _Plan:
    """``int``, ``str``, ``bytes``, ``bool``, and each of them ``| None``. True is not an int here."""

    def check(value: Any) -> Any:
        if type(value) not in kinds:
            raise _mismatch(kinds, value)
        return value

    return _Plan(check, kinds)


def _float_plan(*kinds: type) -> _Plan:
    """``float``: whole numbers may come as ints; NaN and the infinities may not come at all."""

    def check(value: Any) -> Any:
        if type(value) is int:
            value = float(value)
        if type(value) not in kinds:
            raise _mismatch(kinds, value)
        if value is not None and not -MAX_FLOAT < value < MAX_FLOAT:
            raise _Fault("", f"{value} is no usable number")
        return value

    return _Plan(check, kinds)


def _sequence_plan(element: _Plan) -> _Plan:
    """``tuple[X, ...]``."""
    kinds = frozenset(() if float in element.kinds else element.kinds)  # a float needs more than a look at its type
    check = element.check

    def each(values: Any) -> tuple[Any, ...]:
        if type(values) is not tuple:
            raise _mismatch((tuple,), values)
        if not values or (kinds and kinds.issuperset(map(type, values))):
            return values
        try:
            return tuple([check(value) for value in values])
        except _Fault:
            return _one_by_one([check] * len(values), values)  # tells the index

    return _Plan(each)


def _fixed_plan(elements: Sequence[_Plan]) -> _Plan:
    """``tuple[A, B]``."""
    checks = [element.check for element in elements]

    def all_of(values: Any) -> tuple[Any, ...]:
        if type(values) is not tuple:
            raise _mismatch((tuple,), values)
        if len(values) != len(checks):
            raise _Fault("", f"expected {len(checks)} elements, got {len(values)}")
        return _one_by_one(checks, values)

    return _Plan(_compile(tuple, 0, elements, all_of))


def _one_by_one(checks: Sequence[_Check], values: Sequence[Any]) -> tuple[Any, ...]:
    built = []
    for index, (check, value) in enumerate(zip(checks, values, strict=True)):
        try:
            built.append(check(value))
        except _Fault as fault:
            raise _Fault(f"[{index}]{fault.where}", fault.why) from None
    return tuple(built)


def _optional_plan(inner: _Plan) -> _Plan:
    """``X | None`` where X must be looked into."""
    check = inner.check
    return _Plan(lambda value: None if value is None else check(value))


def _record_decoder(cls: type, prefix: int) -> _Check:
    """A function from a wire array to a ``cls``.

    Args:
        cls: a NamedTuple.
        prefix: how many elements before the fields are skipped (a message's number).
    """
    names: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]
    hints = _annotations(cls)
    plans = [_plan_of(hints[name], f"{cls.__name__}.{name}") for name in names]

    def carefully(values: Any) -> Any:
        if type(values) is not tuple:
            raise _mismatch((tuple,), values)
        if len(values) != prefix + len(names):
            raise _Fault("", f"expected {len(names)} fields, got {len(values) - prefix}")
        built = []
        for name, plan, value in zip(names, plans, values[prefix:], strict=True):
            try:
                built.append(plan.check(value))
            except _Fault as fault:
                raise _Fault(f".{name}{fault.where}", fault.why) from None
        return cls(*built)

    return _compile(cls, prefix, plans, carefully)


def _compile(cls: type, prefix: int, plans: Sequence[_Plan], carefully: _Check) -> _Check:
    """The fast way of ``carefully``: one generated function per class, as NamedTuple itself does it.

    A loop over the fields takes three times as long, and the manager decodes 20,000 messages a second. Whatever
    does not fit at once (also an int for a float) is left to ``carefully``, which knows how to say why.
    """
    known: dict[str, Any] = {"cls": cls, "new": tuple.__new__, "carefully": carefully, "Fault": _Fault}
    fields = [f"f{index}" for index in range(len(plans))]
    tests, values = [], list(fields)
    for index, plan in enumerate(plans):
        for kind in plan.kinds:
            known[kind.__name__] = kind
        if plan.kinds:
            tests.append("(" + " or ".join(_fast_test(f"f{index}", kind) for kind in plan.kinds) + ")")
        else:
            known[f"check{index}"] = plan.check
            values[index] = f"check{index}(f{index})"
    source = (f"def decode(values):\n"
              f"    if type(values) is tuple and len(values) == {prefix + len(plans)}:\n"
              f"        ({''.join(name + ', ' for name in ['_'] * prefix + fields)}) = values\n"
              f"        if {' and '.join(tests) or 'True'}:\n"
              f"            try:\n"
              f"                return new(cls, ({''.join(value + ', ' for value in values)}))\n"
              f"            except Fault:\n"
              f"                pass\n"
              f"    return carefully(values)\n")
    exec(source, known)
    decode: _Check = known["decode"]
    return decode


def _fast_test(field: str, kind: type) -> str:
    bounds = f" and -{MAX_FLOAT!r} < {field} < {MAX_FLOAT!r}" if kind is float else ""
    return f"type({field}) is {kind.__name__}{bounds}"


def _annotations(cls: type) -> dict[str, Any]:
    """Annotations of a message class. ``typing.get_type_hints`` without ``typing``, which workers do not load."""
    space = vars(sys.modules[cls.__module__])
    return {name: eval(hint, space) if type(hint) is str else hint for name, hint in cls.__annotations__.items()}


def _plan_of(hint: Any, where: str) -> _Plan:
    """The plan of one annotation.

    Raises:
        LocalProtocolError: an annotation the wire has no form for: a mistake in a message class.
    """
    if hint in (int, str, bytes, bool):
        return _scalar_plan(hint)
    if hint is float:
        return _float_plan(float)
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return _Plan(_shared_record(hint))
    origin = getattr(hint, "__origin__", type(hint))
    arguments: tuple[Any, ...] = getattr(hint, "__args__", ())
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence_plan(_plan_of(arguments[0], where))
    if origin is tuple and arguments and Ellipsis not in arguments:
        return _fixed_plan([_plan_of(argument, where) for argument in arguments])
    if origin is types.UnionType and len(arguments) == 2 and type(None) in arguments:
        inner = next(argument for argument in arguments if argument is not type(None))
        if inner in (int, str, bytes, bool):
            return _scalar_plan(inner, type(None))
        return _float_plan(float, type(None)) if inner is float else _optional_plan(_plan_of(inner, where))
    raise LocalProtocolError(f"{where}: annotation {hint!r} has no form on the wire",
                             hint="allowed: int, float, str, bytes, bool, NamedTuple, tuple[...], X | None")


@cache
def _shared_record(cls: type) -> _Check:
    """Decoder of a NamedTuple that is a field of others (Resources, Mount)."""
    return _record_decoder(cls, 0)


_numbers: dict[type, int] = dict(vocabulary.NUMBERS)
_classes: dict[int, type] = {number: cls for cls, number in _numbers.items()}
_decoders: dict[int, _Check] = {}
_per_thread = threading.local()


def register(number: int, cls: type) -> None:
    """Add a message class to the vocabulary; the same pair again is harmless.

    Args:
        number: its number on the wire.
        cls: a NamedTuple whose annotations are among the allowed ones.

    Raises:
        LocalProtocolError: the number or the class is taken.
    """
    if _classes.get(number, cls) is not cls or _numbers.get(cls, number) != number:
        taken = _classes[number].__name__ if number in _classes else f"number {_numbers[cls]}"
        raise LocalProtocolError(f"message {cls.__name__} cannot be number {number}: already {taken}",
                                 hint="choose a number that no message has")
    _numbers[cls] = number
    _classes[number] = cls


def _packer() -> Any:
    """This thread's packer: it keeps its buffer between messages and must not be used by two threads."""
    try:
        return _per_thread.packer
    except AttributeError:
        _per_thread.packer = msgpack.Packer(use_bin_type=True, unicode_errors=UNICODE_ERRORS)
        return _per_thread.packer


def pack(messages: Sequence[Any]) -> bytes:
    """The payload for some messages, in order.

    Types of fields are not checked here (the type checker did); a value msgpack has no form for is.

    Raises:
        LocalProtocolError: an unknown class, or a field that has no form on the wire.
    """
    numbers = _numbers
    try:
        rows = [(numbers[type(message)], *message) for message in messages]
        packed: bytes = _packer().pack(rows)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot send {_culprit(messages)}: {error or type(error).__name__}",
                                 hint="use registered messages with fields of the annotated types") from error
    return packed


def _culprit(messages: Sequence[Any]) -> str:
    """Which message, and which field of it, cannot be packed: only for the text of an error."""
    for message in messages:
        if type(message) not in _numbers:
            return f"a {type(message).__name__}, which is not a registered message"
        for name, value in zip(message._fields, message, strict=True):
            try:
                _packer().pack(value)
            except (TypeError, ValueError, OverflowError):
                return f"{type(message).__name__}.{name}"
    return "a batch of messages"


def unpack(payload: bytes | bytearray | memoryview) -> list[Any]:
    """The messages of one payload, in order; at least one.

    Memory used is bounded by a constant times the payload's length, whatever it holds.

    Raises:
        RemoteProtocolError: anything but an array of well-formed messages; names message and field.
    """
    rows = _parse(payload)
    if type(rows) is not tuple or not rows:
        raise RemoteProtocolError("a frame does not hold a list of messages", hint=_HINT)
    decoders = _decoders
    result = []
    number: Any = None
    try:
        for row in rows:
            if type(row) is not tuple or not row:
                raise RemoteProtocolError("a message is not an array that starts with a number", hint=_HINT)
            number = row[0]
            if type(number) is not int:
                raise RemoteProtocolError("a message does not start with its number", hint=_HINT)
            result.append((decoders.get(number) or _decoder(number))(row))
    except _Fault as fault:
        raise RemoteProtocolError(f"bad message {_classes[number].__name__}{fault.where}: {fault.why}",
                                  hint=_HINT) from None
    return result


def _decoder(number: int) -> _Check:
    """The decoder of a message number, made at its first use (reading annotations takes about 0.1 ms)."""
    cls = _classes.get(number)
    if cls is None:
        raise RemoteProtocolError(f"unknown message number {number}", hint=_HINT)
    decoder = _decoders[number] = _record_decoder(cls, 1)
    return decoder


def _parse(payload: bytes | bytearray | memoryview) -> Any:
    """msgpack to tuples and scalars; no maps, no extension types, nothing after the end."""
    try:
        if len(payload) > WALK_FIRST_BYTES:
            walker = msgpack.Unpacker(max_buffer_size=len(payload))
            walker.feed(payload)
            walker.skip()
        return msgpack.unpackb(payload, raw=False, use_list=False, unicode_errors=UNICODE_ERRORS,
                               max_str_len=len(payload), max_bin_len=len(payload),
                               max_array_len=len(payload), max_map_len=0, max_ext_len=0)
    except msgpack.ExtraData:
        raise RemoteProtocolError("a frame has bytes after its messages", hint=_HINT) from None
    except (ValueError, msgpack.UnpackException) as error:
        why = str(error)[:QUOTE_CHARS] or type(error).__name__
        raise RemoteProtocolError(f"a frame is not readable: {why}", hint=_HINT) from None

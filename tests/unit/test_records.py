"""The package's NamedTuple behaves as the one of typing."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
import typing
from typing import get_type_hints

import pytest

from taskvine_core.records import NamedTuple


class Mine(NamedTuple):
    """A record."""

    a: int
    b: str
    c: tuple[str, ...] = ()
    d: float | None = None

    def doubled(self) -> int:
        return 2 * self.a

    @property
    def shout(self) -> str:
        return self.b.upper()


class Theirs(typing.NamedTuple):
    a: int
    b: str
    c: tuple[str, ...] = ()
    d: float | None = None


class Empty(NamedTuple):
    """A record without fields."""


@pytest.mark.parametrize("values", [(1, "x"), (1, "x", ("y",)), (1, "x", ("y",), 2.0)])
def test_a_record_is_the_tuple_its_typing_twin_is(values: tuple[typing.Any, ...]) -> None:
    mine, theirs = Mine(*values), Theirs(*values)
    assert mine == theirs == tuple(mine) and hash(mine) == hash(theirs)
    assert isinstance(mine, tuple) and not hasattr(mine, "__dict__")
    assert repr(mine).partition("(")[2] == repr(theirs).partition("(")[2]
    assert (mine.a, mine.b, mine.c, mine.d) == tuple(theirs)
    assert mine._asdict() == theirs._asdict()
    assert mine._replace(b="z", d=3.0) == theirs._replace(b="z", d=3.0)
    assert Mine._make(theirs) == mine
    assert (Mine._fields, Mine._field_defaults) == (Theirs._fields, Theirs._field_defaults)
    assert (mine.doubled(), mine.shout, Mine.__doc__) == (2, "X", "A record.")


def test_a_record_takes_fields_by_name_and_survives_pickle_and_copy() -> None:
    one = Mine(b="x", a=1)
    assert one == Mine(1, "x")
    assert type(pickle.loads(pickle.dumps(one))) is Mine and pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == one
    assert Empty() == () and repr(Empty()) == "Empty()"


@pytest.mark.parametrize("arguments, named", [((1,), {}), ((1, "x", (), None, 5), {}), ((1, "x"), {"e": 1}),
                                              ((1, "x"), {"a": 1})])
def test_a_record_refuses_what_does_not_fit_in_the_same_words(arguments: typing.Any, named: typing.Any) -> None:
    with pytest.raises(TypeError) as theirs:
        Theirs(*arguments, **named)
    with pytest.raises(TypeError) as mine:
        Mine(*arguments, **named)
    assert str(mine.value) == str(theirs.value).replace("Theirs", "Mine")


def test_a_record_refuses_unknown_names_and_wrong_lengths_and_changes() -> None:
    with pytest.raises(ValueError, match="unexpected field names"):
        Mine(1, "x")._replace(e=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Expected 4 arguments, got 1"):
        Mine._make([1])
    with pytest.raises(AttributeError):
        Mine(1, "x").a = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Mine(1, "x").e = 2  # type: ignore[attr-defined]


def test_a_field_without_a_default_after_one_with_a_default_is_refused() -> None:
    with pytest.raises(TypeError, match="without a default"):
        exec("class Bad(NamedTuple):\n    a: int = 1\n    b: int\n", {"NamedTuple": NamedTuple, "__name__": "bad"})


def test_tools_that_read_records_read_these() -> None:
    match Mine(1, "x"):
        case Mine(a, b):
            assert (a, b) == (1, "x")
    assert get_type_hints(Mine) == get_type_hints(Theirs)
    Mine(1, "x")
    assert list(inspect.signature(Mine).parameters) == list(Theirs._fields)


def test_threads_may_make_the_first_record_of_a_class_at_once() -> None:
    for _ in range(50):
        made: list[object] = []
        space: dict[str, typing.Any] = {"NamedTuple": NamedTuple, "__name__": "fresh"}
        exec("class Fresh(NamedTuple):\n    a: int\n    b: int = 2\n", space)
        gate = threading.Barrier(4)

        def make(gate: threading.Barrier = gate, made: list[object] = made, cls: typing.Any = space["Fresh"]) -> None:
            gate.wait(10)
            made.append(cls(1))

        crew = [threading.Thread(target=make) for _ in range(4)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(10)
        assert made == [(1, 2)] * 4

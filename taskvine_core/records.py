"""``NamedTuple`` for this package: as ``typing`` has it, at a tenth of the cost of declaring one.

Owns how a record class is made. Must not know any record. A worker declares some 150 of them before it connects and
uses a third: ``typing.NamedTuple`` compiles every annotation and a constructor for each (0.2 to 0.5 ms), here a
class is ready at once and its constructor is compiled at its first use. Type checkers see ``typing.NamedTuple``.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers go by, without loading typing
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    try:
        from _collections import _tuplegetter as _getter  # what collections.namedtuple takes, four times as fast
    except ImportError:
        from operator import itemgetter

        def _getter(index, doc):
            return property(itemgetter(index), doc=doc)

    class Record(tuple):
        """What all records can do; names as in ``collections.namedtuple``."""

        __slots__ = ()
        _fields = ()
        _field_defaults = {}

        def __new__(cls, *values, **named):
            cls.__new__ = staticmethod(_constructor(cls))
            return cls(*values, **named)

        @classmethod
        def _make(cls, values):
            made = tuple.__new__(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
            return made

        def _replace(self, /, **named):
            changed = tuple.__new__(type(self), map(named.pop, self._fields, self))
            if named:
                raise ValueError(f"Got unexpected field names: {list(named)!r}")
            return changed

        __replace__ = _replace

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            inside = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({inside})"

        def __getnewargs__(self):
            return tuple(self)

    def _constructor(cls):
        """A function of the fields by name: nothing generic comes near its speed."""
        names = "".join(f", {name}" for name in cls._fields)
        source = f"lambda _cls{names}: _new(_cls, ({names[2:]}{',' if names else ''}))"
        made = eval(source, {"_new": tuple.__new__, "__builtins__": {}, "__name__": cls.__module__})
        made.__defaults__ = tuple(cls._field_defaults.values())
        made.__name__, made.__qualname__ = "__new__", f"{cls.__qualname__}.__new__"
        return made

    class _Declared(type):
        """Makes a plain subclass of Record out of ``class X(NamedTuple)``."""

        def __new__(meta, name, bases, members):
            fields = tuple(members.get("__annotations__", ()))
            defaults = {field: members.pop(field) for field in fields if field in members}
            if tuple(defaults) != fields[len(fields) - len(defaults):]:
                raise TypeError(f"{name}: a field without a default follows one with a default")
            for index, field in enumerate(fields):
                if field.startswith("_"):
                    raise ValueError(f"{name}: field {field} starts with an underscore")
                members[field] = _getter(index, f"Field {index} of {name}")
            members.update(__slots__=(), _fields=fields, _field_defaults=defaults, __match_args__=fields)
            return type(name, (Record,), members)

    NamedTuple = type.__new__(_Declared, "NamedTuple", (), {"__doc__": "Base of every record class."})

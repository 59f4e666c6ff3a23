"""One name for equal values, the same in every run: what the result cache recognises tasks by (reference, 18.3).

Pickles will not do: they differ between runs for equal values. Functions count by what they do: their byte code,
defaults, what they enclose and the globals they read; functions and classes of the user's own modules likewise, those
of installed packages by their names. Owns the digests. Must not know tasks, files or managers.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterable
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, type(...))
#: Attributes of a class that say nothing about what it does.
_NOISE = frozenset(("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__",
                    "__static_attributes__", "__annotations__", "__annotate_func__", "__annotations_cache__",
                    "__slotnames__", "__abstractmethods__", "_abc_impl"))
_GLOBAL_READS = frozenset(("LOAD_GLOBAL", "LOAD_NAME"))


class NoFingerprintError(Exception):
    """A value has parts that cannot be compared between runs. Never leaves the result cache."""


def digest_of(value: object) -> bytes:
    """The digest of a value: equal for equal values, in any run of the same Python version.

    Raises:
        NoFingerprintError: something in it cannot be compared.
    """
    try:
        return _Digests().of(value)
    except RecursionError:
        raise NoFingerprintError("nested too deeply") from None


class _Digests:
    def __init__(self) -> None:
        self._open: set[int] = set()

    def of(self, value: Any) -> bytes:
        kind = type(value)
        if kind in _PLAIN:
            return _joined(kind.__name__, repr(value).encode())
        if kind is str:
            return _joined("str", value.encode("utf-8", "surrogatepass"))
        if kind is bytes:
            return _joined("bytes", value)
        if isinstance(value, types.ModuleType):
            return _module(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if id(value) in self._open:
            if isinstance(value, types.FunctionType | type):  # calls itself, or names its own class
                return _joined("again", value.__qualname__.encode())
            raise NoFingerprintError("a value contains itself")
        self._open.add(id(value))
        try:
            return self._compound(value, kind)
        finally:
            self._open.discard(id(value))

    def _compound(self, value: Any, kind: type) -> bytes:
        if kind in (list, tuple):
            return _joined(kind.__name__, *map(self.of, value))
        if kind in (set, frozenset):
            return _joined(kind.__name__, *sorted(map(self.of, value)))
        if kind is dict:
            return _joined("dict", *sorted(self.of(key) + self.of(item) for key, item in value.items()))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.MethodType):
            return _joined("method", self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
            return _reference(value)
        return self._object(value)

    def _function(self, function: types.FunctionType) -> bytes:
        if _installed(function.__module__):
            return _reference(function)
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(self.of(cell.cell_contents))
            except ValueError:
                cells.append(b"empty")
        known = function.__globals__
        reads = [_joined(name, self.of(known[name])) for name in sorted(_globals_read(function.__code__))
                 if name in known]
        return _joined("function", self._code(function.__code__), self.of(function.__defaults__),
                       self.of(function.__kwdefaults__), _joined("cells", *cells), _joined("globals", *reads))

    def _code(self, code: types.CodeType) -> bytes:
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount,
                 code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return _joined("code", code.co_code, repr(names).encode(), getattr(code, "co_exceptiontable", b""),
                       *map(self.of, code.co_consts))

    def _class(self, cls: type) -> bytes:
        if _installed(cls.__module__):
            return _reference(cls)
        members = [_joined(name, self._member(member)) for name, member in sorted(vars(cls).items())
                   if name not in _NOISE]
        return _joined("class", cls.__qualname__.encode(), *map(self.of, cls.__bases__), *members)

    def _member(self, member: Any) -> bytes:
        if isinstance(member, staticmethod | classmethod):
            return _joined(type(member).__name__, self.of(member.__func__))
        if isinstance(member, property):
            return _joined("property", *map(self.of, (member.fget, member.fset, member.fdel)))
        if isinstance(member, types.MemberDescriptorType):
            return b"slot"
        return self.of(member)

    def _object(self, value: Any) -> bytes:
        """Anything else by what it would be pickled as."""
        try:
            parts = value.__reduce_ex__(4)
        except Exception as error:  # what a class of the user raises here may be anything
            raise NoFingerprintError(f"{type(value).__name__} cannot be taken apart: {error}") from error
        if isinstance(parts, str):
            return _joined("global", str(type(value).__module__).encode(), parts.encode())
        plain = [list(part) if number in (3, 4) and part is not None else part for number, part in enumerate(parts)]
        return _joined("object", *map(self.of, plain))


def _joined(kind: str, *parts: bytes) -> bytes:
    """A digest that no other list of parts has."""
    state = hashlib.sha256(kind.encode())
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def _reference(value: Any) -> bytes:
    return _joined("reference", f"{value.__module__}:{value.__qualname__}".encode())


def _module(module: types.ModuleType) -> bytes:
    """An installed module by its name, one of the user's by its source."""
    path = getattr(module, "__file__", None)
    if _installed(module.__name__) or path is None:
        return _joined("module", module.__name__.encode())
    try:
        with open(path, "rb") as stream:
            return _joined("module", module.__name__.encode(), stream.read())
    except OSError as error:
        raise NoFingerprintError(f"module {module.__name__} cannot be read: {error}") from error


def _globals_read(code: types.CodeType) -> set[str]:
    import dis

    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in _GLOBAL_READS}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_read(constant)
    return names


@functools.cache
def _library_paths() -> tuple[str, ...]:
    named: Iterable[str] = (sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return tuple(os.path.realpath(path) + os.sep for path in named)


def _installed(module: str | None) -> bool:
    """Does it come with Python or a package, rather than from the user's own files?"""
    if module == "__main__" or module not in sys.modules:
        return False
    path = getattr(sys.modules[module], "__file__", None)
    return path is None or os.path.realpath(path).startswith(_library_paths()) or module.startswith("taskvine_core")

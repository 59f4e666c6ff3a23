"""The files behind Python tasks: one per distinct function, large arguments, results.

Owns the memory of functions already serialized. Must not know tasks.
"""

from __future__ import annotations

import hashlib
import types
import weakref
from collections.abc import Callable
from typing import Any

from taskvine_core.constants import VINE_BUFFER, VINE_CACHE_LEVEL_TASK, VINE_CACHE_LEVEL_WORKFLOW
from taskvine_core.manager import naming
from taskvine_core.manager.file import File, FileHome
from taskvine_core.manager.python_task import dump_function
from taskvine_core.model.files import INLINE_MAX_BYTES, FileDecl

#: Callables that stay what they were when they were serialized first. Others (bound methods, partials, objects with
#: __call__) carry data that changes, and are serialized at each submit.
_FIXED = (types.FunctionType, types.BuiltinFunctionType, type)


def input_buffer(home: FileHome, name: str, data: bytes, level: int, *, auto: bool, folder: str = "buffers",
                 peer_transfer: bool = True) -> File:
    """A buffer with content: small ones inside the declaration, others (and empty ones) in a staging file."""
    small = 0 < len(data) <= INLINE_MAX_BYTES
    return File(home, FileDecl(
        name=name, kind=VINE_BUFFER, source="" if small else home.stage(data, folder), level=level, size=len(data),
        sha256=hashlib.sha256(data).digest(), peer_transfer=peer_transfer, data=data if small else b""), auto=auto)


class PythonFiles:
    """Functions, arguments and results of one manager's Python tasks.

    Args:
        home: of the manager.
    """

    def __init__(self, home: FileHome) -> None:
        self._home = home
        self._by_function: weakref.WeakKeyDictionary[Callable[..., Any], File] = weakref.WeakKeyDictionary()
        self._by_name: weakref.WeakValueDictionary[str, File] = weakref.WeakValueDictionary()
        self.wrapper_id = naming.random_letters()
        self.preload: tuple[str, ...] = ()      # for tasks that do not say

    def function_file(self, func: Callable[..., Any]) -> File:
        """The buffer with the serialized function; the same for the same function, and for equal content."""
        fixed = isinstance(func, _FIXED)
        if fixed:
            known = self._by_function.get(func)
            if known is not None:
                return known
        data = dump_function(func)
        name = naming.buffer_name(data)
        file = self._by_name.get(name)
        if file is None:
            file = input_buffer(self._home, name, data, VINE_CACHE_LEVEL_WORKFLOW, auto=True, folder="functions")
            self._by_name[name] = file
        if fixed:
            self._by_function[func] = file
        return file

    def forget_function(self, func: Callable[..., Any]) -> bool:
        """Serialize it anew next time; False when it was not known."""
        return isinstance(func, _FIXED) and self._by_function.pop(func, None) is not None

    def arguments_file(self, data: bytes) -> File:
        """Serialized arguments that are too large for a message."""
        return input_buffer(self._home, naming.random_name("buffer"), data, VINE_CACHE_LEVEL_TASK, auto=True,
                            folder="arguments")

    def output_file(self, level: int) -> File:
        """Where a result goes: kept by the runner until nobody refers to the file."""
        return File(self._home, FileDecl(naming.random_name("buffer"), VINE_BUFFER, level=level), auto=True, spill=True)

"""``PythonTask``: a Python function called at a worker (reference, section 4.5).

Owns the serialization of function, arguments and result on the program's side. Results are unpickled here, in the
program's own thread, and nowhere else in the manager. Must not know how the worker runs it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK
from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager import checks
from taskvine_core.manager.file import Claims, File
from taskvine_core.manager.task import Task
from taskvine_core.model.files import INLINE_MAX_BYTES
from taskvine_core.model.tasks import KIND_PYTHON, RESULT_REMOTE, Mount, TaskSpec

if TYPE_CHECKING:
    from typing_extensions import Self

#: Understood by every Python we support, so manager and worker may differ.
PICKLE_PROTOCOL = 5

#: Arguments of only these types need no cloudpickle: the C pickler gives the same bytes ten times faster.
_PLAIN = frozenset((int, float, bool, str, bytes, type(None)))

_ARGUMENTS_REMOTE = ".taskvine.arguments"


class PythonTaskNoResult(Exception):
    """What ``PythonTask.output`` is when the function gave no result. The text says why when that is known."""


class _NotLoaded:
    """Type of the marker for "the result was not asked for yet" (None is a valid result)."""


_NOT_LOADED = _NotLoaded()


class PythonTask(Task):
    """Runs ``func(*args, **kwargs)`` in a fresh process at a worker.

    Args:
        func: any callable cloudpickle can serialize. It and its arguments are serialized at submit.

    Raises:
        UsageTypeError: ``func`` is not callable.
    """

    __slots__ = ("_arguments_file", "_call", "_function_file", "_loaded", "_output_file", "_output_level",
                 "_preload", "_serialize", "_temp_output")

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not callable(func):
            raise UsageTypeError(f"func must be callable, not {func!r}", hint="use Task for a shell command")
        super().__init__("")
        self._call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] = (func, args, kwargs)
        self._loaded: Any = _NOT_LOADED
        self._output_file: File | None = None
        self._function_file: File | None = None
        self._arguments_file: File | None = None
        self._output_level = VINE_CACHE_LEVEL_TASK
        self._serialize = True
        self._temp_output = False
        self._preload: tuple[str, ...] | None = None

    # ------------------------------------------------------------------ description

    def enable_temp_output(self) -> None:
        """Keep the serialized result in the cluster, as a temp file: use ``output_file`` as another task's input."""
        self._temp_output = True

    def disable_temp_output(self) -> None:
        """Bring the result back to the manager (the default)."""
        self._temp_output = False

    def set_output_cache(self, cache: bool | str | None) -> None:
        """Cache level of the output file at workers."""
        self._output_level = checks.cache_level(cache)

    def disable_output_serialization(self) -> None:
        """The function returns bytes, which are the output file as they are."""
        self._serialize = False

    def preload_modules(self, *names: str) -> None:
        """Have the worker import these modules once, not in every task; replaces what the manager's default says.

        A worker keeps one interpreter per set of modules, for all tasks that declare this set; each task still runs
        in a process of its own, forked from it. A module that cannot be imported fails the task with the traceback
        of the import. Numerical libraries read their number of threads when they are imported: here it is one.

        Args:
            names: as in an import statement; none at all: nothing is preloaded.

        Raises:
            UsageTypeError: (a TypeError) a name is no str.
            UsageError: (a ValueError) it cannot be the name of a module.
        """
        self._preload = checks.module_names(names)

    def clone(self) -> Self:
        """A copy that was not submitted yet."""
        new = super().clone()
        new._loaded, new._output_file, new._arguments_file = _NOT_LOADED, None, None
        return new

    def freeze(self) -> TaskSpec:
        """The immutable description; serializes function and arguments.

        Raises:
            UsageError: the function or an argument cannot be serialized.
        """
        manager = self._manager
        if manager is None:
            raise UsageError("a PythonTask can only be frozen by the manager it is submitted to")
        func, args, kwargs = self._call
        function = self._function_file = manager._python.function_file(func)
        function.announce()
        extra = [Mount(function.cached_name, "")]
        arguments = _dump_arguments(func, args, kwargs)
        if len(arguments) > INLINE_MAX_BYTES:
            large = self._arguments_file = manager._python.arguments_file(arguments)
            large.announce()
            extra.append(Mount(large.cached_name, _ARGUMENTS_REMOTE))
            arguments = b""
        output = self._output_file = (manager.declare_temp() if self._temp_output
                                      else manager._python.output_file(self._output_level))
        output.announce()
        spec = super().freeze()
        output._claims = self._claims()
        return spec._replace(
            kind=KIND_PYTHON, function=function.cached_name, arguments=arguments,
            arguments_file="" if arguments else extra[-1].name, serialize_output=self._serialize,
            preload=manager._python.preload if self._preload is None else self._preload,
            inputs=spec.inputs + tuple(extra), outputs=(*spec.outputs, Mount(output.cached_name, RESULT_REMOTE)))

    def _claims(self) -> Claims:
        own = [file._bytes for file in (self._function_file, self._arguments_file)
               if file is not None and file._bytes is not None]
        return (*super()._claims(), *own)

    # ------------------------------------------------------------------ results

    @property
    def command(self) -> str:
        """A command line that stands for the call, of the published form."""
        if self._output_file is None or self._function_file is None or self._manager is None:
            return self._command + "python3"
        own = self._output_file.cached_name.rpartition("-")[2]
        function = self._function_file.cached_name.rpartition("-")[2]
        return f"{self._command}python3 w_{self._manager._python.wrapper_id} f_{function} a_{own} o_{own}"

    @property
    def output_file(self) -> File | None:
        """The file with the serialized result, an input for other tasks; None before submit."""
        return self._output_file

    @property
    def output(self) -> Any:
        """What the function returned.

        A ``PythonTaskNoResult`` when the task did not succeed, the exception object when the result cannot be
        deserialized here.

        Raises:
            UsageError: (a ValueError) the result is kept in the cluster: temp output is enabled.
        """
        if self._temp_output:
            raise UsageError("output is not at the manager because enable_temp_output() was called",
                             hint="use manager.fetch_file(task.output_file) and output_file.contents(cloudpickle.load)")
        if self._outcome is None:
            return PythonTaskNoResult(f"task {self._id} has not been returned by wait yet")
        if isinstance(self._loaded, _NotLoaded):
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        if not self.successful() or self._output_file is None:
            return PythonTaskNoResult(f"task {self._id}: {self.result}, exit code {self.exit_code}")
        try:
            if not self._serialize:
                return self._output_file.contents()
            return self._output_file.contents(pickle.load)
        except Exception as error:  # whatever unpickling user classes raises *is* the output
            return error


def _dump_arguments(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Serialize ``[args, kwargs]``."""
    if not kwargs and all(type(value) in _PLAIN for value in args):
        return pickle.dumps([args, kwargs], PICKLE_PROTOCOL)
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps([args, kwargs], PICKLE_PROTOCOL))
    except Exception as error:
        raise UsageError(f"the arguments of {_name(func)} cannot be serialized: {error}",
                         hint="pass names or plain data and open what they stand for inside the function") from error


def dump_function(func: Callable[..., Any]) -> bytes:
    """Serialize a function.

    Raises:
        UsageError: cloudpickle cannot.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(func, PICKLE_PROTOCOL))
    except Exception as error:
        raise UsageError(f"the function {_name(func)} cannot be serialized: {error}",
                         hint="import modules and open files inside the function") from error


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__qualname__", None) or repr(func)

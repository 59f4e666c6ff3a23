"""Manager, tasks and workers: ``import taskvine_core as vine``.

Owns the public names. Everything else is found in submodules and may change.
"""

from __future__ import annotations

from taskvine_core import constants as cvine
from taskvine_core.constants import *  # noqa: F403 - VINE_* are part of the package's face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from taskvine_core.factory_handle import Factory as Factory
    from taskvine_core.manager.api import Manager as Manager
    from taskvine_core.manager.display import JupyterDisplay as JupyterDisplay
    from taskvine_core.manager.display import StatusDisplay as StatusDisplay
    from taskvine_core.manager.file import File as File
    from taskvine_core.manager.python_task import PythonTask as PythonTask
    from taskvine_core.manager.python_task import PythonTaskNoResult as PythonTaskNoResult
    from taskvine_core.manager.task import Task as Task

__version__ = "0.1.0"

#: Where each public name lives; loaded at first use, so that ``import taskvine_core`` in a worker costs nothing.
_HOMES = {
    "Factory": "taskvine_core.factory_handle",
    "File": "taskvine_core.manager.file",
    "JupyterDisplay": "taskvine_core.manager.display",
    "Manager": "taskvine_core.manager.api",
    "PythonTask": "taskvine_core.manager.python_task",
    "PythonTaskNoResult": "taskvine_core.manager.python_task",
    "StatusDisplay": "taskvine_core.manager.display",
    "Task": "taskvine_core.manager.task",
}

_CONSTANTS = tuple(name for name in vars(cvine) if name.startswith(("VINE_", "CATEGORY_ALLOCATION_MODE_")))

__all__ = sorted([*_HOMES, *_CONSTANTS, "__version__", "cvine"])  # noqa: PLE0605 - a list of str


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

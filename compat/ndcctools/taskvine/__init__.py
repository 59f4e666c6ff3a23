"""``import ndcctools.taskvine as vine``: taskvine_core under the published name.

Owns names only. Everything is loaded when it is first used, as in taskvine_core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import taskvine_core as _core
from ndcctools.taskvine import cvine as cvine
from taskvine_core import __version__ as __version__

if TYPE_CHECKING:
    from taskvine_core import *  # noqa: F403 - the public names

__all__ = list(_core.__all__)


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name not in _core.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_core, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

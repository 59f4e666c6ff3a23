"""``Manager`` and ``Factory`` under the published module name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvine_core.manager.api import Manager as Manager

if TYPE_CHECKING:
    from taskvine_core.factory_handle import Factory as Factory


def __getattr__(name: str) -> Any:
    if name == "Factory":
        from taskvine_core.factory_handle import Factory

        return Factory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

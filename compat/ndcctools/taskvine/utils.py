"""Small helpers under the published module name (reference, section 18.1)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from taskvine_core import constants
from taskvine_core.manager.setup import port_range


def get_c_constant(name: str) -> int:
    """Value of ``VINE_<NAME>``, e.g. for "result_success".

    Raises:
        AttributeError: there is none.
    """
    value: int = getattr(constants, f"VINE_{name.upper()}")
    return value


def set_port_range(port: int | Sequence[int]) -> int:
    """Set TCP_LOW_PORT and TCP_HIGH_PORT for managers made with port 0; a single number is only checked.

    Returns:
        the number, or 0 for a range: what to give to ``Manager(port=...)``.
    """
    low, high = port_range(port, {})
    if not isinstance(port, (tuple, list)):
        return low
    os.environ["TCP_LOW_PORT"], os.environ["TCP_HIGH_PORT"] = str(low), str(high)
    return 0

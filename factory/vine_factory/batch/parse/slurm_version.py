"""Releases of Slurm: the first two numbers of a version. Pure."""

from __future__ import annotations

import re

_VERSION = re.compile(r"(?<![\d.])(\d+)\.(\d+)(?:\.\d+)*", re.ASCII)


def release(text: str) -> tuple[int, int] | None:
    """(22, 5) of "slurm-wlm 22.05.8", "slurm 22.05.8-2" or "22.5.1"; None when there is none."""
    match = _VERSION.search(text)
    return (int(match[1]), int(match[2])) if match else None

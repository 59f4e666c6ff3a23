"""What this machine offers to one worker that is given no resources: measured as the worker measures it."""

from __future__ import annotations

from taskvine_core.resources import Resources
from taskvine_core.worker import detect

_DISK_SHARE = 0.5
"""A worker offers half of the free disk unless told otherwise (its own default)."""


def resources(scratch: str) -> Resources:
    """Cores, memory, half of the free disk under ``scratch``, gpus."""
    return Resources(detect.cores(), detect.memory_mb(), int(detect.disk_free_mb(scratch) * _DISK_SHARE),
                     len(detect.gpu_models()))

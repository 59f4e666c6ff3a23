"""The Resources value type and its arithmetic.

Owns what "cores, memory, disk, gpus" means everywhere. Must not know tasks, workers or I/O.
Unset is -1 (reference, section 2); a *total* or *in use* is never negative.
"""

from __future__ import annotations

from taskvine_core.records import NamedTuple

UNSET = -1


class Resources(NamedTuple):
    """Whole cores, memory and disk in MB (2^20 bytes), whole gpus. -1 means "not set"."""

    cores: int = UNSET
    memory_mb: int = UNSET
    disk_mb: int = UNSET
    gpus: int = UNSET

    def plus(self, other: Resources) -> Resources:
        """Element-wise sum; both must be set."""
        return Resources(self[0] + other[0], self[1] + other[1], self[2] + other[2], self[3] + other[3])

    def minus(self, other: Resources) -> Resources:
        """Element-wise difference; both must be set."""
        return Resources(self[0] - other[0], self[1] - other[1], self[2] - other[2], self[3] - other[3])

    def fits_in(self, room: Resources) -> bool:
        """True when every element is at most the room's."""
        return self[0] <= room[0] and self[1] <= room[1] and self[2] <= room[2] and self[3] <= room[3]

    def overridden_by(self, other: Resources) -> Resources:
        """Elements of ``other`` where they are set (>= 0), else ours."""
        return Resources(*(o if o >= 0 else s for s, o in zip(self, other, strict=True)))

    def at_least(self, other: Resources) -> Resources:
        """Element-wise maximum."""
        return Resources(*(max(s, o) for s, o in zip(self, other, strict=True)))

    @property
    def unset(self) -> bool:
        """True when no element is set."""
        return self == NOTHING_SET


NOTHING_SET = Resources()
ZERO = Resources(0, 0, 0, 0)

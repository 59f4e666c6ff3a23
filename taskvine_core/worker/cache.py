"""The index of cached objects: which exist, in what state, who needs them, what goes first when the disk is full.

Owns accounting and the choice of victims. Must not know files, sockets or messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK, VINE_CACHE_LEVEL_WORKFLOW
from taskvine_core.errors import StateError
from taskvine_core.worker.machines import CREATING, DELETED, DELETING, OBJECT_TABLE, READY, step

#: What losing an object costs, by the kind in its name; higher goes later. A file, buffer or URL is sent again from
#: its origin; a mini-task's product must be made again; a temp may exist only here and cost a chain of tasks.
_REBUILD_RANK = {"task": 1, "temp": 2}


class CachedObject:
    """One object. ``size_bytes`` is the announced size while CREATING, 0 when unknown."""

    __slots__ = ("is_dir", "last_used", "level", "mode", "name", "needed_by", "rank", "serial", "serving", "sha256",
                 "size_bytes", "state", "transfer_id")

    def __init__(self, name: str, level: int, mode: int, now: float) -> None:
        self.name = name
        self.level = level
        self.mode = mode
        self.state = CREATING
        self.size_bytes = 0
        self.sha256 = b""
        self.is_dir = False
        self.serial = 0
        self.transfer_id = 0
        self.last_used = now
        self.needed_by: set[int] = set()
        self.serving = 0
        self.rank = _REBUILD_RANK.get(name.partition("-")[0], 0)

    @property
    def in_use(self) -> bool:
        """True while a run needs it or it is being uploaded."""
        return bool(self.needed_by) or self.serving > 0


class CacheIndex:
    """All objects that are CREATING, READY or DELETING; DELETED ones are forgotten."""

    def __init__(self) -> None:
        self.objects: dict[str, CachedObject] = {}
        self.used_bytes = 0

    def get(self, name: str) -> CachedObject | None:
        return self.objects.get(name)

    def ready(self) -> Iterator[CachedObject]:
        return (o for o in self.objects.values() if o.state == READY)

    def create(self, name: str, level: int, mode: int, now: float) -> CachedObject:
        """Note an object that will arrive; a known one keeps its record and who needs it."""
        known = self.objects.get(name)
        if known is None:
            known = self.objects[name] = CachedObject(name, level, mode, now)
            return known
        self.move(known, "asked again")
        known.level, known.mode = max(known.level, level), mode
        return known

    def expect(self, name: str, now: float) -> CachedObject:
        """The record of an object some run needs; one nobody has ordered yet is CREATING without a serial."""
        known = self.objects.get(name)
        if known is None:
            known = self.objects[name] = CachedObject(name, VINE_CACHE_LEVEL_TASK, 0, now)
        elif known.state == DELETING:
            self.move(known, "asked again")
            known.serial = known.transfer_id = 0  # what is still arriving is the copy that was to go
        return known

    def announce(self, obj: CachedObject, size_bytes: int) -> None:
        """Reserve room for an object under way."""
        self.used_bytes += size_bytes - obj.size_bytes
        obj.size_bytes = size_bytes

    def store(self, name: str, level: int, size_bytes: int, sha256: bytes, now: float) -> CachedObject:
        """An object was put or produced here: READY at once."""
        obj = self.objects.get(name)
        if obj is None:
            obj = self.objects[name] = CachedObject(name, level, 0, now)
        else:
            obj.level = max(obj.level, level)
        self.finish(obj, "produced", size_bytes, sha256, now)
        return obj

    def finish(self, obj: CachedObject, event: str, size_bytes: int, sha256: bytes, now: float) -> None:
        """The bytes of ``obj`` are on disk."""
        self.move(obj, event)
        self.announce(obj, size_bytes)
        obj.sha256 = sha256
        obj.last_used = now
        obj.serial = 0

    def move(self, obj: CachedObject, event: str) -> None:
        """Take one step of the table; a DELETED object is forgotten and its room returned."""
        obj.state = step(OBJECT_TABLE, obj.state, event, obj.name)
        if obj.state == DELETED:
            self.used_bytes -= obj.size_bytes
            if self.objects.get(obj.name) is obj:
                del self.objects[obj.name]

    def of_level_at_most(self, level: int) -> list[CachedObject]:
        """READY objects that do not outlive the given level."""
        return [o for o in self.ready() if o.level <= level]

    def victims(self, needed_bytes: int) -> list[CachedObject]:
        """The least valuable objects that are free to go and together make ``needed_bytes``, possibly fewer.

        Value: first how hard it is to get back, then objects that outlive the workflow, then how lately it was used.
        """
        free = [o for o in self.ready() if not o.in_use]
        free.sort(key=lambda o: (o.rank, o.level > VINE_CACHE_LEVEL_WORKFLOW, o.last_used))
        chosen: list[CachedObject] = []
        for obj in free:
            if needed_bytes <= 0:
                break
            chosen.append(obj)
            needed_bytes -= obj.size_bytes
        return chosen

    def release(self, names: Iterable[str], run: int) -> None:
        """``run`` no longer needs these."""
        for name in names:
            obj = self.objects.get(name)
            if obj is not None:
                obj.needed_by.discard(run)
                if obj.state == CREATING and not obj.serial and not obj.needed_by:
                    self.move(obj, "failed")  # it was expected only, and now by nobody

    def check_invariants(self) -> None:
        """Raises StateError when the accounts do not add up."""
        if self.used_bytes != sum(o.size_bytes for o in self.objects.values()):
            raise StateError("cache bytes do not add up", hint="a defect: please report")
        for name, obj in self.objects.items():
            if name != obj.name or obj.state not in (CREATING, READY, DELETING):
                raise StateError(f"{name} is indexed as {obj.name} in state {obj.state}", hint="a defect")
            if obj.state == CREATING and not obj.serial and not obj.needed_by:
                raise StateError(f"{name} is CREATING and neither ordered nor needed", hint="a defect: please report")

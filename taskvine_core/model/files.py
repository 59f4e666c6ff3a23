"""What a declared file is, as manager core, simulator and logs see it.

Owns the value types. Must not know where bytes are on disk beyond the source string, nor do I/O.
Cached names follow the reference, section 11.2; the part before the first ``-`` is the kind.
"""

from __future__ import annotations

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK, VINE_TEMP
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.records import NamedTuple

#: Objects up to this size travel inside control messages (design, section 4).
INLINE_MAX_BYTES = 64 * 1024

#: A temp of at most this size travels with the report of the task that made it, and is kept at the manager: its readers
#: need no data connection, and it is not lost with a worker. Small, because readers may be on the same worker.
TINY_TEMP_MAX_BYTES = 4 * 1024

#: Permission bits used when the program has set none.
DEFAULT_MODE = 0o644


class FileDecl(NamedTuple):
    """One declared file.

    Args:
        name: cached name.
        kind: VINE_FILE, VINE_URL, VINE_TEMP, VINE_BUFFER or VINE_MINI_TASK.
        source: local path, URL, or label ("" for temps and buffers).
        level: VINE_CACHE_LEVEL_*.
        size: bytes, -1 when unknown.
        sha256: digest of the object when known (see dataplane: for a directory, of its entry stream), else b"".
        peer_transfer: workers may copy it among themselves.
        mode: permission bits, 0 = keep those of the source.
        data: content of an input buffer of at most INLINE_MAX_BYTES; larger ones are put in a staging file that
            ``source`` names. A VINE_BUFFER with neither is an output read back by the program.
        mini_task: the producing task of a VINE_MINI_TASK, else None.
        mini_source: which sandbox name of that task is the object.
        is_dir: a directory (as far as known when declared).
        per_platform: ``source`` holds $OS or $ARCH (see ``platforms``): what workers hold under the name may differ.
    """

    name: str
    kind: int
    source: str = ""
    level: int = VINE_CACHE_LEVEL_TASK
    size: int = -1
    sha256: bytes = b""
    peer_transfer: bool = True
    mode: int = 0
    data: bytes = b""
    mini_task: TaskSpec | None = None
    mini_source: str = ""
    is_dir: bool = False
    per_platform: bool = False

    @property
    def shareable(self) -> bool:
        """May one worker fetch it from another (reference, section 11.5)?"""
        return self.peer_transfer and (self.level > VINE_CACHE_LEVEL_TASK or self.kind == VINE_TEMP)

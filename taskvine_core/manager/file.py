"""``File``: the program's handle on a declared file (reference, section 5).

Owns the handle, reading its contents, and deleting a local file when nobody refers to it any more. Must not know
tasks or how files reach workers. A file becomes known to the manager core when a submitted task first mounts it
(``announce``), so everything set before that (permission bits) counts.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, overload

from taskvine_core.constants import VINE_BUFFER, VINE_FILE, VINE_TEMP
from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager.events import Declare, Event
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import Mount

T = TypeVar("T")

_MODE_MASK = 0o777
#: The owner can always read and write what he declared.
_MODE_OWNER = 0o600


class ContentStore(Protocol):
    """The part of the manager runner a file needs."""

    def post(self, event: Event) -> None: ...
    def contents(self, name: str) -> bytes | Path | None: ...
    def forget_contents(self, name: str) -> None: ...


class FileHome:
    """What all files of one manager share, and what the garbage collector found for the manager to do.

    ``dropped``: names of files no program object refers to any more. ``unneeded``: (name, path) of bytes at the manager
    that no file and no lineage refers to any more. Both are only appended to in ``__del__``: that may run anywhere.
    """

    __slots__ = ("dropped", "staging", "store", "unneeded")

    def __init__(self, store: ContentStore, staging: str) -> None:
        self.store = store
        self.staging = staging
        self.dropped: deque[str] = deque()
        self.unneeded: deque[tuple[str, str]] = deque()

    def stage(self, data: bytes, folder: str) -> str:
        """Write bytes too large for messages under the staging directory; returns the path."""
        directory = os.path.join(self.staging, folder)
        os.makedirs(directory, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=directory)
        with open(handle, "wb") as stream:
            stream.write(data)
        return path


class Bytes:
    """A claim on bytes at the manager: a staging file (``path``), or an output the runner keeps under ``name``.

    Held by the file and by every temp whose producer may have to run again with it.
    """

    __slots__ = ("home", "name", "path")

    def __init__(self, home: FileHome, name: str, path: str = "") -> None:
        self.home = home
        self.name = name
        self.path = path

    def __del__(self) -> None:
        self.home.unneeded.append((self.name, self.path))


#: Claims of a temp's producer: its own and, nested, those of the temps it reads.
Claims = tuple[object, ...]


class Hold:
    """A task's claim on a file that is to be unlinked; ends with the task object."""

    __slots__ = ("_file",)

    def __init__(self, file: File) -> None:
        self._file = file
        file._holds += 1

    def __del__(self) -> None:
        self._file._holds -= 1
        self._file._unlink_if_unused()


class File:
    """A declared file. Made by the ``declare_*`` methods of the manager, never directly.

    Hashable (by identity), usable as a dictionary key, always true.
    """

    __slots__ = ("__weakref__", "_announced", "_auto", "_bytes", "_claims", "_decl", "_declared", "_holds", "_home",
                 "_label", "_loaded", "_mounted", "_needs", "_spill", "_unlink")

    def __init__(self, home: FileHome, decl: FileDecl, *, label: str = "", unlink: bool = False,
                 auto: bool = False, spill: bool = False, needs: tuple[File, ...] = ()) -> None:
        self._home = home
        self._decl = decl
        self._label = label
        self._unlink = unlink
        self._auto = auto  # nobody else can ever name it: undeclare with the last reference
        self._spill = spill  # source() is asked for a path with the bytes
        self._needs = needs  # inputs of the mini-task that makes it
        self._declared = True
        self._announced = False
        self._holds = 0
        self._loaded: bytes | None = None
        self._bytes = Bytes(home, decl.name, decl.source) if decl.kind == VINE_BUFFER and not decl.data else None
        self._claims: Claims = ()
        self._mounted: tuple[Mount] | None = None  # as it was mounted last: most often the next task does the same

    def __repr__(self) -> str:
        return f"<File {self._decl.name}>"

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        decl = self._decl
        if decl.data or decl.size >= 0:
            return max(decl.size, len(decl.data))
        if decl.kind == VINE_FILE:
            try:
                return os.path.getsize(decl.source)
            except OSError:
                return 0  # not there yet: nothing is known
        raw = self._raw()
        if raw is None:
            return 0
        return len(raw) if isinstance(raw, bytes) else os.path.getsize(raw)

    def __del__(self) -> None:
        # The interpreter may be taking the module apart; an instance that failed in __init__ has no slots.
        if getattr(self, "_auto", False) and self._declared and self._announced:
            self._home.dropped.append(self._decl.name)

    @property
    def cached_name(self) -> str:
        """Its name in worker caches."""
        return self._decl.name

    def type(self) -> int:
        """VINE_FILE, VINE_URL, VINE_TEMP, VINE_BUFFER or VINE_MINI_TASK."""
        return self._decl.kind

    def source(self) -> str:
        """Local path, URL or label. For a Python task's output: a path that holds the bytes once they arrived."""
        if not self._spill or self._bytes is None:
            return self._label
        raw = self._raw()
        if isinstance(raw, Path):
            return str(raw)
        if not self._bytes.path:
            self._bytes.path = self._home.stage(raw or b"", "outputs")
        elif raw is not None and not os.path.getsize(self._bytes.path):
            Path(self._bytes.path).write_bytes(raw)
        return self._bytes.path

    @overload
    def contents(self, unserializer: None = None) -> bytes: ...
    @overload
    def contents(self, unserializer: Callable[[BinaryIO], T]) -> T: ...

    def contents(self, unserializer: Callable[[BinaryIO], T] | None = None) -> bytes | T:
        """The bytes of a buffer, a local file, or a temp that ``fetch_file`` brought in.

        Args:
            unserializer: called with an open binary stream; its result is returned instead.

        Raises:
            UsageError: another kind of file, or nothing has arrived yet.
            OSError: the local file cannot be read.
        """
        if self._decl.kind not in (VINE_FILE, VINE_BUFFER, VINE_TEMP):
            raise UsageError(f"file {self._label or self.cached_name!r} has no contents at the manager",
                             hint="call fetch_file first, or declare a local file, a buffer or a temp")
        raw = self._raw()
        if raw is None:
            raise UsageError(f"the contents of file {self.cached_name} are not at the manager",
                             hint="wait for the task that writes it, or call fetch_file for a temp")
        if unserializer is None:
            return raw if isinstance(raw, bytes) else Path(raw).read_bytes()
        with io.BytesIO(raw) if isinstance(raw, bytes) else open(raw, "rb") as stream:
            return unserializer(stream)

    def set_mode(self, mode: int) -> None:
        """Permission bits used in sandboxes; owner read and write are always added. Before its first use only."""
        if not isinstance(mode, int) or isinstance(mode, bool):
            raise UsageTypeError(f"mode must be an integer such as 0o755, not {mode!r}")
        self._decl = self._decl._replace(mode=(mode | _MODE_OWNER) & _MODE_MASK)
        if self._announced:
            self._home.store.post(Declare(self._decl))

    # ------------------------------------------------------------------ for the manager

    def mount(self, remote: str, flags: int) -> tuple[Mount]:
        """The file in a sandbox. A million tasks that mount one file alike share one value."""
        last = self._mounted
        if last is None or last[0].remote != remote or last[0].flags != flags:
            last = self._mounted = (Mount(self._decl.name, remote, flags),)
        return last

    def announce(self) -> None:
        """Tell the manager core about the file when it does not know it.

        A file that was undeclared and is mounted again is known for the task's sake only.
        """
        if self._announced:
            return
        for file in self._needs:
            file.announce()
        self._home.store.post(Declare(self._decl))
        if self._declared:
            self._announced = True
        else:
            self._home.dropped.append(self._decl.name)

    def _raw(self) -> bytes | Path | None:
        decl = self._decl
        if self._loaded is not None:
            return self._loaded
        if decl.kind == VINE_FILE or (decl.kind == VINE_BUFFER and decl.source):
            return Path(decl.source)
        return decl.data or self._home.store.contents(decl.name)

    def _end_declaration(self) -> bool:
        """Forget the declaration; True when the core knew the file."""
        known, self._announced, self._declared = self._announced, False, False
        self._unlink_if_unused()
        return known

    def _unlink_if_unused(self) -> None:
        if self._unlink and not self._declared and self._holds == 0:
            self._unlink = False
            remove_local(self._decl.source)


def remove_local(path: str) -> None:
    """Delete a local file or directory; that it is gone already is what was wanted."""
    import shutil

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        return

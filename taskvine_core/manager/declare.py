"""``declare_*`` and what else a program does with files (reference, sections 3.4, 11.2, 11.7).

Owns which declarations are the same file, and fetching contents. Must not know how files
reach workers.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

from taskvine_core.constants import (
    VINE_BUFFER,
    VINE_CACHE_LEVEL_WORKER,
    VINE_CACHE_LEVEL_WORKFLOW,
    VINE_FILE,
    VINE_TEMP,
    VINE_URL,
)
from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager import checks, naming
from taskvine_core.manager.base import ManagerBase
from taskvine_core.manager.events import Prune, Undeclare
from taskvine_core.manager.file import File, remove_local
from taskvine_core.manager.python_files import input_buffer
from taskvine_core.model.files import FileDecl
from taskvine_core.model.platforms import varies

_Cache = bool | str | None

#: How long fetch_file lets a worker take to start sending; the published manager has the same bound (long-timeout).
FETCH_TIMEOUT_S = 3600.0


class FileTable:
    """Which names are declared. Files with random names are not in it: nobody can name them twice."""

    def __init__(self) -> None:
        self.by_name: dict[str, File] = {}
        #: Local files that did not exist when declared, by path: until they do, the path is the identity.
        self.awaited: weakref.WeakValueDictionary[str, File] = weakref.WeakValueDictionary()


class DeclareMixin(ManagerBase):
    """Declarations."""

    def declare_file(self, path: str | os.PathLike[str], cache: _Cache = False, peer_transfer: bool = True,
                     unlink_when_done: bool = False) -> File:
        """A local file or directory; it may not exist yet when it is to be an output.

        Args:
            path: ``~`` is expanded. ``$OS`` and ``$ARCH`` of an input, unless a file has that very name, are replaced
                for each worker by what it says of itself (``Linux``, ``x86_64``). Workers do not pass such a file to
                each other, and keep it until the workflow's end at the longest.
            cache: how long workers keep it (section 2.3).
            peer_transfer: may workers copy it among themselves?
            unlink_when_done: delete the local file when it is undeclared and no task object refers to it.

        Raises:
            UsageTypeError: ``path`` is no path.
            UsageError: ``path`` is empty, or ``cache`` is no cache level.
        """
        try:
            label = os.path.expanduser(os.fspath(path))
        except TypeError:
            raise UsageTypeError(f"path must be a str or a pathlib.Path, not {path!r}") from None
        if not isinstance(label, str) or not label or "\0" in label:
            raise UsageError(f"path {path!r} is not a usable path")
        level = checks.cache_level(cache)
        full = os.path.abspath(label)
        facts = naming.local_facts(full)
        if not facts.exists and (awaited := self._table.awaited.get(full)) is not None and awaited._declared:
            return awaited
        md5, sha256 = "", b""
        if facts.exists and level >= VINE_CACHE_LEVEL_WORKER:
            try:
                md5, sha256 = naming.content_digests(full, facts.is_dir)
            except OSError as error:
                raise UsageError(f"path {label!r} cannot be read to compute its name: {error}") from error
        name = naming.file_name(full, level, facts, md5)
        variable = not facts.exists and varies(full)
        if variable:
            level, peer_transfer = min(level, VINE_CACHE_LEVEL_WORKFLOW), False
        file = self._known(name) or self._keep(File(self._home, FileDecl(
            name, VINE_FILE, full, level, facts.size, sha256, bool(peer_transfer), is_dir=facts.is_dir,
            per_platform=variable), label=label))
        if unlink_when_done:
            file._unlink = True
        if not facts.exists:
            self._table.awaited[full] = file
        return file

    def declare_temp(self) -> File:
        """A file that lives in worker caches only, written by one task and read by others.

        With peer transfers disabled, or results of tasks cached, it is a local file in the staging directory instead,
        removed when done.
        """
        if self._peer_transfers and self._results is None:
            # Below this level the only copy would vanish with the task that wrote it.
            decl = FileDecl(naming.random_name("temp"), VINE_TEMP, level=VINE_CACHE_LEVEL_WORKFLOW)
            return File(self._home, decl, auto=True)
        path = os.path.join(self._home.staging, f"temp-local-{naming.random_letters()}")
        return self.declare_file(path, cache=False, peer_transfer=False, unlink_when_done=True)

    def declare_url(self, url: str, cache: _Cache = False, peer_transfer: bool = True) -> File:
        """A URL that workers fetch themselves: http, https, ftp, file.

        Raises:
            UsageTypeError: ``url`` is no str.
        """
        checks.text(url, "url")
        if "://" not in url:
            raise UsageError(f"url {url!r} has no scheme", hint="write http://, https://, ftp:// or file://")
        level = checks.cache_level(cache)
        if level < VINE_CACHE_LEVEL_WORKER:
            name = naming.random_name("url")
        else:
            name = naming.url_name(url, level, naming.url_headers(url), _local_md5(url))
        return self._known(name) or self._keep(File(
            self._home, FileDecl(name, VINE_URL, url, level, peer_transfer=bool(peer_transfer)), label=url,
            auto=level < VINE_CACHE_LEVEL_WORKER))

    def declare_buffer(self, buffer: str | bytes | bytearray | memoryview | None = None, cache: _Cache = False,
                       peer_transfer: bool = True) -> File:
        """Content given in memory, or (None) an output read back with ``contents()``.

        Raises:
            UsageTypeError: ``buffer`` is neither str nor bytes-like.
        """
        level = checks.cache_level(cache)
        if buffer is None:
            return File(self._home, FileDecl(naming.random_name("buffer"), VINE_BUFFER, level=level,
                                             peer_transfer=bool(peer_transfer)), auto=True)
        try:
            data = buffer.encode() if isinstance(buffer, str) else bytes(memoryview(buffer))
        except TypeError:
            raise UsageTypeError(f"buffer must be str or bytes-like, not {type(buffer).__name__}") from None
        if level < VINE_CACHE_LEVEL_WORKER:
            return input_buffer(self._home, naming.random_name("buffer"), data, level, auto=True,
                                peer_transfer=bool(peer_transfer))
        name = naming.buffer_name(data)
        return self._known(name) or self._keep(input_buffer(self._home, name, data, level, auto=False,
                                                            peer_transfer=bool(peer_transfer)))

    # ------------------------------------------------------------------ later

    def fetch_file(self, file: File) -> str | None:
        """Bring a file's contents to the manager and return them as text (undecodable bytes as surrogate escapes).

        None when they are nowhere yet, lost, or could not be sent; ``file.contents()`` then gives the bytes.
        """
        _check(file)
        decl = file._decl
        if file._loaded is None and decl.kind not in (VINE_FILE, VINE_BUFFER):
            return self._fetch_from_worker(file)
        raw: Any = file._raw()
        if isinstance(raw, Path):
            try:
                raw = raw.read_bytes()
            except OSError:
                return None  # not written yet, or a directory: the program may ask again
        if raw is None:
            return None
        return bytes(raw).decode("utf-8", "surrogateescape")

    def _fetch_from_worker(self, file: File) -> str | None:
        """Ask a worker that has a replica; what it sends is kept in memory."""
        raw = self._runner.fetch_contents(file.cached_name, FETCH_TIMEOUT_S) if file._announced else None
        if isinstance(raw, Path):
            staged = raw
            raw = None if staged.is_dir() else staged.read_bytes()
            remove_local(str(staged))
        if raw is None:
            return None
        file._loaded = raw
        return raw.decode("utf-8", "surrogateescape")

    def undeclare_file(self, file: File) -> None:
        """The program will not use it any more: workers drop it, and a local file to be unlinked goes too.

        Tasks already submitted keep working.
        """
        _check(file)
        self._table.by_name.pop(file.cached_name, None)
        self._table.awaited.pop(file._decl.source, None)
        if file._end_declaration():
            self._runner.post(Undeclare(file.cached_name))

    def remove_file(self, file: File) -> None:
        """Older name of ``undeclare_file``."""
        self.undeclare_file(file)

    def prune_file(self, file: File) -> None:
        """Remove all replicas from workers; the declaration stays and the file can be sent or made again."""
        _check(file)
        if file._announced:
            self._runner.do(Prune(file.cached_name))

    def undeclare_function(self, fn: Any) -> None:
        """Forget the serialized form of a function kept for ``PythonTask(fn, ...)``."""
        self._python.forget_function(fn)

    def get_file_replica_count(self, file: File) -> int:
        """Workers that hold a ready replica now."""
        _check(file)
        name = file.cached_name
        return self._runner.call(lambda core, now: core.replica_count(name)) if file._announced else 0

    def _known(self, name: str) -> File | None:
        return self._table.by_name.get(name)

    def _keep(self, file: File) -> File:
        if not file._auto:
            self._table.by_name[file.cached_name] = file
        return file


def _check(file: object) -> None:
    if not isinstance(file, File):
        raise UsageTypeError(f"file must be a File from one of the declare_* methods, not {file!r}")


def _local_md5(url: str) -> str:
    """Content digest of a ``file://`` URL; "" for others and for what cannot be read here."""
    if not url.startswith("file://"):
        return ""
    from urllib.parse import unquote, urlsplit

    path = unquote(urlsplit(url).path)
    try:
        return naming.content_digests(path, os.path.isdir(path))[0]
    except OSError:
        return ""

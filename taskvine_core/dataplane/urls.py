"""Objects from URLs.

Owns which schemes are fetched how: ``file`` by copying (directories too), ``http``, ``https`` and ``ftp`` with the
standard library, any other with the ``curl`` command if there is one. Must not know caches or limits. urllib and
subprocess are imported when first used: most workers never fetch a URL.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvine_core.dataplane.channel import POLL_S, Cancel, Cancelled
from taskvine_core.dataplane.objects import (
    HASH_BUFFER_BYTES,
    MODE_MASK,
    LargeFile,
    Listing,
    ObjectInfo,
    hash_object,
    list_directory,
    open_source,
    stat_object,
    stream_pieces,
)
from taskvine_core.dataplane.receive import discard, disk_error, require_absent
from taskvine_core.dataplane.tree import NEW_FILE_FLAGS, TreeWriter, write_all
from taskvine_core.errors import DiskFullError, IntegrityError, SecurityError, SourceError, TransferError

if TYPE_CHECKING:
    import subprocess

USER_AGENT = "hpc-worker-factory"
#: Permission bits of an object that came without any.
URL_MODE = 0o644
MD5_BYTES = 16
_URLLIB_SCHEMES = ("http", "https", "ftp")
_SAFE_VALUE = re.compile(r"[0-9a-fA-F]{32}\Z")
#: What is repeated of curl's complaint.
_SAID_BYTES = 500
#: Exit status of curl when it cannot write its output.
CURL_WRITE_ERROR = 23

Room = Callable[[int], bool]


def scheme_of(url: str) -> str:
    """The scheme in lower case, "" when there is none."""
    head, colon, _ = url.partition(":")
    return head.lower() if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", head) else ""


def fetch_url(url: str, dest: Path, *, timeout_s: float, cancel: Cancel, room: Room) -> ObjectInfo:
    """Bring the object of a URL to ``dest``.

    Args:
        url: any scheme; ``file`` may name a directory.
        dest: does not exist, its directory does; the caller renames it afterwards.
        timeout_s: longest silence of the server.
        cancel: polled at least every 0.5 s.
        room: asked with the size in bytes, once when it is announced, else again as the object grows; for http and
            ftp in another thread, while the caller waits here.

    Returns:
        What it is, with the digest of what was written.

    Raises:
        SourceError: in the server's words.
        IntegrityError: not as long as announced.
        DiskFullError, TransferError: it cannot be written here.
        Cancelled: ``cancel`` said so.
    """
    require_absent(dest)
    scheme = scheme_of(url)
    try:
        if scheme == "file":
            return _copy_local(local_path(url), dest, cancel, room)
        if scheme in _URLLIB_SCHEMES:
            return _Download(url, dest, timeout_s, room).run(cancel)
        return _fetch_with_curl(url, scheme, dest, timeout_s, cancel, room)
    except OSError as error:
        discard(dest)
        raise disk_error(error, dest) from error
    except SecurityError as error:
        discard(dest)
        raise SourceError(f"{url}: {error}") from error
    except BaseException:
        discard(dest)
        raise


def local_path(url: str) -> str:
    """The path of a ``file:`` URL.

    Raises:
        SourceError: it names another host.
    """
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(f"{url} names host {parts.netloc}", hint="file URLs have three slashes: file:///path")
    return url2pathname(parts.path)


# ---------------------------------------------------------------------------- file:


class _LocalStream:
    """The canonical stream of a directory of this machine, hashed as it is read."""

    def __init__(self, listing: Listing, hasher: Any, cancel: Cancel) -> None:
        self._pieces: Iterator[bytearray | LargeFile] = stream_pieces(listing)
        self._hasher = hasher
        self._cancel = cancel
        self._view = memoryview(b"")

    def take(self, count: int) -> bytes:
        if not self._view and count:
            piece = next(self._pieces)
            if isinstance(piece, LargeFile):
                raise SourceError("a directory changed while being copied")
            self._hasher.update(piece)
            self._view = memoryview(piece)
        taken = bytes(self._view[:count])
        self._view = self._view[count:]
        return taken

    def copy(self, fd: int, count: int) -> None:
        if self._view or not count:
            write_all(fd, memoryview(self.take(count)))
            return
        piece = next(self._pieces)
        if isinstance(piece, LargeFile):
            _copy_file(piece.path, piece.size, fd, self._hasher, self._cancel)
        else:
            self._hasher.update(piece)
            self._view = memoryview(piece)
            write_all(fd, memoryview(self.take(count)))


def _copy_file(path: str | bytes, size: int, out: int, hasher: Any, cancel: Cancel) -> None:
    buffer = memoryview(bytearray(min(HASH_BUFFER_BYTES, max(size, 1))))
    fd = open_source(path)
    done = 0
    try:
        while count := os.preadv(fd, [buffer], done):
            if cancel():
                raise Cancelled(f"copying {os.fsdecode(path)} was cancelled")
            hasher.update(buffer[:count])
            write_all(out, buffer[:count])
            done += count
    finally:
        os.close(fd)
    if done != size:
        raise SourceError(f"{os.fsdecode(path)} changed its size while being copied")


def _copy_local(path: str, dest: Path, cancel: Cancel, room: Room) -> ObjectInfo:
    status = stat_object(path)
    real = os.path.realpath(path)
    hasher = hashlib.sha256()
    mode = status.st_mode & MODE_MASK
    if stat.S_ISDIR(status.st_mode):
        listing = list_directory(real)
        _admit(path, listing.size_bytes, room)
        stream = _LocalStream(listing, hasher, cancel)
        TreeWriter(stream, dest, listing.size_bytes, len(listing.entries)).write(mode)
        return ObjectInfo(listing.size_bytes, hasher.digest(), True, mode)
    _admit(path, status.st_size, room)
    out = os.open(dest, NEW_FILE_FLAGS, 0o600)
    try:
        _copy_file(real, status.st_size, out, hasher, cancel)
        os.fchmod(out, mode)
    finally:
        os.close(out)
    return ObjectInfo(status.st_size, hasher.digest(), False, mode)


def _admit(what: str, size_bytes: int, room: Room) -> None:
    if not room(size_bytes):
        raise DiskFullError(f"no room for {what} of {size_bytes} bytes")


# ---------------------------------------------------------------------------- http, https, ftp


class _Download:
    """One download with urllib, in a thread: its reads cannot be interrupted, only left behind.

    A cancelled thread ends at its next byte or after ``timeout_s``; it writes to a file that is deleted already.
    """

    def __init__(self, url: str, dest: Path, timeout_s: float, room: Room) -> None:
        self._url = url
        self._dest = dest
        self._timeout_s = timeout_s
        self._room = room
        self._done = threading.Event()
        self._abandoned = False
        self._info: ObjectInfo | None = None
        self._error: BaseException | None = None

    def run(self, cancel: Cancel) -> ObjectInfo:
        """Download; raises what went wrong."""
        fd = os.open(self._dest, NEW_FILE_FLAGS, 0o600)
        threading.Thread(target=self._work, args=(fd,), name="vine-url", daemon=True).start()
        while not self._done.wait(POLL_S):
            if cancel():
                self._abandoned = True
                raise Cancelled(f"fetching {self._url} was cancelled")
        if self._error is not None:
            raise self._error
        if self._info is None:
            raise TransferError(f"fetching {self._url} ended without a result")
        return self._info

    def _work(self, fd: int) -> None:
        try:
            self._info = self._transfer(fd)
        except BaseException as error:  # handed to the thread that waits
            self._error = error
        finally:
            os.close(fd)
            self._done.set()

    def _transfer(self, fd: int) -> ObjectInfo:
        hasher = hashlib.sha256()
        with _open(self._url, self._timeout_s, "GET") as response:
            announced = _announced(response.headers.get("Content-Length"))
            if announced >= 0:
                _admit(self._url, announced, self._room)
            got = 0
            for data in _chunks(response, self._url):
                if self._abandoned:
                    raise Cancelled(f"fetching {self._url} was cancelled")
                got += len(data)
                if announced < 0:
                    _admit(self._url, got, self._room)
                hasher.update(data)
                write_all(fd, memoryview(data))
        if announced >= 0 and got != announced:
            raise IntegrityError(f"{got} of {announced} bytes arrived from {self._url}", hint="fetch it again")
        os.fchmod(fd, URL_MODE)
        return ObjectInfo(got, hasher.digest(), False, URL_MODE)


def _announced(value: str | None) -> int:
    return int(value) if value is not None and value.isascii() and value.isdigit() else -1


def _chunks(response: Any, url: str) -> Iterator[bytes]:
    from http.client import HTTPException

    # read1 gives what is there; read would sit on a slow stream until a whole buffer is full.
    read = getattr(response, "read1", response.read)
    while True:
        try:
            data = read(HASH_BUFFER_BYTES)
        except HTTPException as error:
            raise IntegrityError(f"{type(error).__name__} while reading {url}", hint="fetch it again") from error
        except OSError as error:
            raise SourceError(f"{_said(error)} while reading {url}") from error
        if not data:
            return
        yield data


def _open(url: str, timeout_s: float, method: str) -> Any:
    """Open a URL with urllib, following redirects; SourceError with the server's words."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        request = Request(url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}, method=method)
        return urlopen(request, timeout=timeout_s)
    except HTTPError as error:
        error.close()
        raise SourceError(f"HTTP {error.code} {error.reason} for {url}") from error
    except URLError as error:
        raise SourceError(f"{_said(error.reason)} for {url}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise SourceError(f"{_said(error)} for {url}") from error


def _said(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# ---------------------------------------------------------------------------- everything else


def _fetch_with_curl(url: str, scheme: str, dest: Path, timeout_s: float, cancel: Cancel, room: Room) -> ObjectInfo:
    curl = shutil.which("curl")
    if curl is None or not scheme:
        raise SourceError(f"cannot fetch {url}: scheme {scheme or '(none)'!r} is not known here",
                          hint="http, https, ftp and file are; install curl for others")
    import subprocess

    silence = str(max(1, round(timeout_s)))
    command = [curl, "--silent", "--show-error", "--fail", "--location", "--globoff", "--user-agent", USER_AGENT,
               "--connect-timeout", silence, "--speed-limit", "1", "--speed-time", silence,
               "--output", str(dest.absolute()), "--url", url]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE) as process:
        try:
            said = _await_curl(process, url, dest, cancel, room)
        except BaseException:
            process.kill()
            raise
    if process.returncode == CURL_WRITE_ERROR:
        raise DiskFullError(f"{said} while writing {dest}", hint="free disk space or raise the quota")
    if process.returncode:
        raise SourceError(f"{said or f'curl exit status {process.returncode}'} for {url}")
    os.chmod(dest, URL_MODE)
    return hash_object(dest)


def _await_curl(process: subprocess.Popen[bytes], url: str, dest: Path, cancel: Cancel, room: Room) -> str:
    import subprocess

    while True:
        try:
            _, said = process.communicate(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            if cancel():
                raise Cancelled(f"fetching {url} was cancelled") from None
            if dest.exists():
                _admit(url, dest.stat().st_size, room)
        else:
            return said[:_SAID_BYTES].decode(errors="replace").strip()


# ---------------------------------------------------------------------------- identity

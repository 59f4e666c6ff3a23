"""Sending one object: header, segments, trailer.

Owns reading what is sent. Must not know who asked or under which name it is stored. A digest that is known is not
computed again, and none is on a sealed channel; else SHA-256 runs beside sendfile. An object that changes while it is
sent ends in a trailer that says so: what was announced in a segment is filled up, so the connection stays usable.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskvine_core.dataplane.channel import Channel
from taskvine_core.dataplane.messages import ObjectHeader, Segment, Trailer
from taskvine_core.dataplane.objects import (
    MODE_MASK,
    LargeFile,
    Listing,
    hash_descriptor,
    list_directory,
    open_source,
    stream_pieces,
)
from taskvine_core.errors import SecurityError, SourceError
from taskvine_core.records import NamedTuple

#: Bounds the filling after a file that shrank, and how soon a refusal of the other side is noticed.
SEGMENT_BYTES = 16 << 20
_FILLER = bytes(1 << 20)


class Outgoing(NamedTuple):
    """An object opened for sending: a file's descriptor, or a directory's listing."""

    path: str
    fd: int
    status: os.stat_result
    listing: Listing | None
    sha256: bytes

    @property
    def size_bytes(self) -> int:
        """Content of its regular files."""
        return self.status.st_size if self.listing is None else self.listing.size_bytes

    def header(self, name: str) -> ObjectHeader:
        """What is told before the stream."""
        entries = 0 if self.listing is None else len(self.listing.entries)
        return ObjectHeader(name, self.listing is not None, self.status.st_mode & MODE_MASK, self.size_bytes, entries)

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)


def open_outgoing(path: Path | str, sha256: bytes = b"") -> Outgoing:
    """Open an object for sending; its size is fixed from here on.

    Raises:
        SourceError: missing, unreadable, or something that cannot be sent.
    """
    try:
        # Without blocking: opening a pipe would wait for a writer. A link at the root of an object is followed.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"cannot open {path}: {error.strerror}") from error
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return Outgoing(os.fspath(path), fd, status, None, sha256)
    os.close(fd)
    if not stat.S_ISDIR(status.st_mode):
        raise SourceError(f"{path} is neither a regular file nor a directory",
                          hint="sockets, pipes and devices cannot be sent")
    try:
        return Outgoing(os.fspath(path), -1, status, list_directory(path), sha256)
    except SecurityError as error:
        raise SourceError(f"{path} cannot be sent: {error}") from error


def read_whole(outgoing: Outgoing) -> tuple[bytes, bytes]:
    """Content and digest of a small file.

    Raises:
        SourceError: it is not as large as it was when opened.
    """
    size = outgoing.status.st_size
    try:
        data = os.pread(outgoing.fd, size + 1, 0)
    except OSError as error:
        raise SourceError(f"cannot read {outgoing.path}: {error.strerror}") from error
    if len(data) != size:
        raise SourceError(f"{outgoing.path} changed its size while being read")
    return data, outgoing.sha256 or hashlib.sha256(data).digest()


def _proceed() -> None:
    """Nobody can say no in between."""


class StreamSender:
    """Sends the stream of one object.

    Args:
        channel: the ObjectHeader has been sent.
        outgoing: what to send.
        before_segment: called before each segment; raises to stop (the receiver refused).
    """

    def __init__(self, channel: Channel, outgoing: Outgoing, before_segment: Callable[[], None] = _proceed) -> None:
        self._channel = channel
        self._outgoing = outgoing
        self._before_segment = before_segment
        self._hasher = None if outgoing.sha256 or channel.sealed else hashlib.sha256()
        self.sent_bytes = 0

    def run(self) -> str:
        """Send segments and trailer.

        Returns:
            "" or why the object could not be delivered, as told in the trailer.

        Raises:
            SourceError, Cancelled: the connection is of no use any more.
        """
        error = ""
        try:
            if self._outgoing.listing is None:
                self._file(self._outgoing.path, self._outgoing.fd, self._outgoing.size_bytes, self._outgoing.status)
            else:
                self._directory(self._outgoing.listing)
        except _Changed as changed:
            error = str(changed)
        digest = self._outgoing.sha256 or (self._hasher.digest() if self._hasher else b"")
        self._channel.send(Trailer(b"" if error else digest, error))
        return error

    def _directory(self, listing: Listing) -> None:
        pieces = stream_pieces(listing)
        while True:
            try:
                piece = next(pieces, None)
            except SourceError as error:
                raise _Changed(str(error)) from error
            if piece is None:
                return
            if isinstance(piece, LargeFile):
                self._large(piece)
            else:
                self._bytes(piece)

    def _bytes(self, data: bytearray) -> None:
        if not data:
            return
        self._segment(len(data))
        if self._hasher is not None:
            self._hasher.update(data)
        self._channel.send_raw(data)
        self.sent_bytes += len(data)

    def _large(self, piece: LargeFile) -> None:
        try:
            fd = open_source(piece.path)
        except SourceError as error:
            raise _Changed(str(error)) from error
        try:
            status = os.fstat(fd)
            if status.st_size != piece.size:
                raise _Changed(f"{os.fsdecode(piece.path)} changed its size while being sent")
            self._file(os.fsdecode(piece.path), fd, piece.size, status)
        finally:
            os.close(fd)

    def _file(self, path: str, fd: int, size: int, before: os.stat_result) -> None:
        hashing = None if self._hasher is None or not size else _HashBeside(fd, size, self._hasher)
        complete = False
        try:
            offset = 0
            while offset < size:
                count = min(SEGMENT_BYTES, size - offset)
                self._segment(count)
                sent = self._channel.send_file(fd, offset, count)
                self.sent_bytes += sent
                if sent < count:
                    self._fill(count - sent)
                    raise _Changed(f"{path} became shorter while being sent")
                offset += count
            complete = True
        finally:
            if hashing is not None:
                hashing.end(abandon=not complete)
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _Changed(f"{path} changed while being sent")

    def _segment(self, count: int) -> None:
        self._channel.check_cancelled()
        self._before_segment()
        self._channel.send(Segment(count))

    def _fill(self, count: int) -> None:
        while count:
            part = min(count, len(_FILLER))
            self._channel.send_raw(memoryview(_FILLER)[:part])
            count -= part


class _Changed(Exception):
    """The object is not what was announced; goes into the trailer, never out of this module."""


class _HashBeside:
    """Hashes a file in a thread while it is sent; both read the page cache, so the disk is read once."""

    def __init__(self, fd: int, size: int, hasher: Any) -> None:
        self._stop = False
        self._thread = threading.Thread(target=self._run, args=(fd, size, hasher), name="vine-sha256", daemon=True)
        self._thread.start()

    def end(self, *, abandon: bool) -> None:
        """Wait for the digest, or give it up at once."""
        self._stop = abandon
        self._thread.join()

    def _run(self, fd: int, size: int, hasher: Any) -> None:
        try:
            done = hash_descriptor(fd, size, hasher, lambda: self._stop)
        except OSError:
            done = -1
        if done != size:
            # Sending meets the same end of file or read error; this only makes the digest match nothing.
            hasher.update(b"unreadable")

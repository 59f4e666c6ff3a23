"""Receiving one object: stream in, file or directory tree out, hashed while it is written.

Owns what may be written and where. Must not know names of caches or who asked. Nothing a sender says can place
anything outside ``dest``: entries are created through descriptors of directories made here, one component at a time,
never through a link. On any error what was written is removed again.

recv and write run in the calling thread, SHA-256 beside them in another for objects large enough to repay it. Large
files over plain sockets do not even pass through our memory on their way to the disk (splice).
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import NamedTuple, Protocol

from taskvine_core.dataplane.channel import Channel
from taskvine_core.dataplane.messages import ObjectHeader, ObjectInline, Segment, Trailer
from taskvine_core.dataplane.objects import (
    DIR,
    FILE,
    LINK,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PATH_BYTES,
    MODE_MASK,
    RECORD,
    UP,
    ObjectInfo,
    check_entry_name,
    check_link_target,
    remove_object,
)
from taskvine_core.dataplane.splice import Splicer
from taskvine_core.errors import DiskFullError, IntegrityError, SecurityError, SourceError, TransferError

#: Large enough that one system call and one hash update cost little per byte, small enough to stay in a cache.
BUFFER_BYTES = 1 << 20
#: Buffers in flight between recv and SHA-256; also bounds the memory of one transfer.
BUFFERS = 4
#: Below this a second thread costs more than it saves.
THREADED_HASH_BYTES = 2 << 20
#: Below this the set-up of a pipe costs more than a copy saves.
SPLICE_BYTES = 1 << 20
#: How far writing may run ahead of SHA-256, in parts of BUFFER_BYTES: what was just written is still in a CPU cache.
PARTS_AHEAD = 8

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: A file that is new, ours and no link.
NEW_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class StreamSource(Protocol):
    """Where a canonical stream comes from: a channel, or a directory of this machine."""

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        ...

    def copy(self, fd: int, count: int) -> None:
        """Write the next ``count`` bytes to an open file."""
        ...


def disk_error(error: OSError, path: object) -> TransferError:
    """What a failed write means: no room here, or another fault of this side."""
    if error.errno in _NO_ROOM:
        return DiskFullError(f"no room for {path}: {error.strerror}", hint="free disk space or raise the quota")
    return TransferError(f"cannot write {path}: {error.strerror or error}", hint="check the directory it is in")


def write_all(fd: int, view: memoryview) -> None:
    """Write everything, however little the file system takes at once."""
    while view:
        view = view[os.write(fd, view):]


class _FilePart(NamedTuple):
    """Bytes that went straight to a file and are to be hashed from there; ``fd`` belongs to the part."""

    fd: int
    offset: int
    length: int


class _HashThread:
    """SHA-256 of buffers and file parts, in order, beside the thread that gives them."""

    def __init__(self) -> None:
        self.hasher = hashlib.sha256()
        self.free: SimpleQueue[bytearray] = SimpleQueue()
        self._items: SimpleQueue[tuple[bytearray, int] | _FilePart | None] = SimpleQueue()
        self._ahead = threading.Semaphore(PARTS_AHEAD)
        self._error: OSError | None = None
        self._abandoned = False
        self._scratch = memoryview(b"")
        self._thread = threading.Thread(target=self._run, name="vine-sha256", daemon=True)
        self._thread.start()

    def put_buffer(self, buffer: bytearray, count: int) -> None:
        """Hash the first bytes; the buffer comes back in ``free``."""
        self._items.put((buffer, count))

    def put_file(self, fd: int, offset: int, length: int) -> None:
        """Hash a part of a file that was written already; waits when too many are outstanding."""
        self._ahead.acquire()
        self._items.put(_FilePart(os.dup(fd), offset, length))

    def end(self, *, abandon: bool) -> None:
        """Wait for the digest, or do without it. Raises OSError when a file could not be read back."""
        self._abandoned = abandon
        self._items.put(None)
        self._thread.join()
        if self._error is not None and not abandon:
            raise self._error

    def _run(self) -> None:
        # A buffer is free again when hashed although the writer may still read it: only the writer takes it from
        # the queue, and not before it is done with what it has.
        while (item := self._items.get()) is not None:
            if isinstance(item, _FilePart):
                self._hash_part(item)
                self._ahead.release()
            else:
                self.hasher.update(memoryview(item[0])[:item[1]])
                self.free.put(item[0])

    def _hash_part(self, part: _FilePart) -> None:
        try:
            done = 0
            while done < part.length and not self._abandoned and self._error is None:
                if not self._scratch:
                    self._scratch = memoryview(bytearray(BUFFER_BYTES))
                view = self._scratch[:min(BUFFER_BYTES, part.length - done)]
                count = os.preadv(part.fd, [view], part.offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "what was written is not there")
                self.hasher.update(view[:count])
                done += count
        except OSError as error:
            self._error = error
        finally:
            os.close(part.fd)


class SegmentReader:
    """The raw bytes of one stream, checked against its trailer.

    Args:
        channel: positioned after the ObjectHeader.
        large: worth a thread for SHA-256.
    """

    def __init__(self, channel: Channel, *, large: bool) -> None:
        self._channel = channel
        self._segment_left = 0
        self._view = memoryview(b"")
        self._allocated = 0
        self._buffer: bytearray | None = None
        self._splicer: Splicer | None = None
        self._beside = _HashThread() if large else None
        self._hasher = hashlib.sha256() if self._beside is None else self._beside.hasher
        #: False until the trailer was read: the connection cannot be used for anything else before.
        self.complete = False

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.end(abandon=True)
        if self._splicer is not None:
            self._splicer.close()

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; for records and names, not for contents."""
        if len(self._view) >= count:
            taken = bytes(self._view[:count])
            self._view = self._view[count:]
            return taken
        taken = bytes(self._view)
        self._view = memoryview(b"")
        while len(taken) < count:
            self._refill()
            part = self._view[:count - len(taken)]
            taken += part
            self._view = self._view[len(part):]
        return taken

    def copy(self, fd: int, count: int) -> None:
        """Write the next ``count`` bytes to ``fd``. Raises OSError of the write, or what receiving raises."""
        while count:
            if self._view:
                part = self._view[:count]
                write_all(fd, part)
                self._view = self._view[len(part):]
                count -= len(part)
            elif self._beside is not None and self._channel.plain and count >= SPLICE_BYTES:
                count -= self._splice(self._beside, fd, count)
            else:
                self._refill()

    def finish(self) -> bytes:
        """Read the trailer and compare.

        Returns:
            The digest.

        Raises:
            SourceError: the sender gave up.
            IntegrityError: the bytes are not those it sent, or more than it announced.
        """
        if self._view or self._segment_left:
            raise IntegrityError(f"{self._channel.peer} sent more bytes than it announced")
        message = self._channel.expect_message()
        if not isinstance(message, Trailer):
            raise IntegrityError(f"{self._channel.peer} sent {type(message).__name__} where the trailer was due")
        self._trailer(message)
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.end(abandon=False)
        digest = self._hasher.digest()
        if digest != message.sha256:
            raise IntegrityError(f"bytes from {self._channel.peer} have hash {digest.hex()[:16]}, it announced "
                                 f"{message.sha256.hex()[:16]}", hint="its copy or the network is damaged")
        return digest

    def _trailer(self, trailer: Trailer) -> None:
        self.complete = True
        if trailer.error:
            raise SourceError(f"{self._channel.peer} could not send it: {trailer.error}")

    def _await_segment(self) -> None:
        self._channel.check_cancelled()
        if self._segment_left:
            return
        message = self._channel.expect_message()
        if isinstance(message, Trailer):
            self._trailer(message)
            raise IntegrityError(f"{self._channel.peer} sent fewer bytes than it announced")
        if not isinstance(message, Segment) or message.length <= 0:
            raise IntegrityError(f"{self._channel.peer} sent {type(message).__name__} within an object")
        self._segment_left = message.length

    def _refill(self) -> None:
        self._await_segment()
        buffer = self._next_buffer()
        count = min(len(buffer), self._segment_left)
        view = memoryview(buffer)[:count]
        self._channel.receive_raw(view)
        self._segment_left -= count
        self._view = view
        if self._beside is None:
            self._hasher.update(view)
        else:
            self._beside.put_buffer(buffer, count)

    def _splice(self, beside: _HashThread, fd: int, most: int) -> int:
        """Move up to BUFFER_BYTES to the file; returns how many."""
        self._await_segment()
        wanted = min(BUFFER_BYTES, most, self._segment_left)
        start = os.lseek(fd, 0, os.SEEK_CUR)
        spare = self._channel.take_spare(wanted)
        write_all(fd, spare)
        done = len(spare)
        if self._splicer is None:
            self._splicer = Splicer()
        while done < wanted:
            done += self._splicer.move(self._channel, fd, wanted - done)
        self._segment_left -= done
        beside.put_file(fd, start, done)
        return done

    def _next_buffer(self) -> bytearray:
        if self._beside is None:
            if self._buffer is None:
                self._buffer = bytearray(BUFFER_BYTES)
            return self._buffer
        if self._beside.free.empty() and self._allocated < BUFFERS:
            self._allocated += 1
            return bytearray(BUFFER_BYTES)
        return self._beside.free.get()


class TreeWriter:
    """Recreates a directory from its canonical stream.

    Args:
        source: the stream.
        dest: must not exist.
        size_bytes, entries: what was announced; more is refused.
    """

    def __init__(self, source: StreamSource, dest: Path, size_bytes: int, entries: int) -> None:
        self._source = source
        self._dest = dest
        self._bytes_left = size_bytes
        self._entries_left = min(entries, MAX_ENTRIES)
        #: One per open directory: descriptor, permission bits to set at its end, last name, length of its path.
        self._levels: list[tuple[int, int, bytes, int]] = []

    def write(self, mode: int) -> None:
        """Create everything; ``mode`` are the permission bits of ``dest``.

        Raises:
            IntegrityError: the stream is not canonical or not what was announced.
            SecurityError: an unsafe name or link.
            OSError: the file system said no.
        """
        try:
            os.mkdir(self._dest, 0o700)
            self._levels.append((os.open(self._dest, _OPEN_DIR), mode, b"", 0))
            while self._levels:
                kind, bits, name_length, size = RECORD.unpack(self._source.take(RECORD.size))
                if kind == UP:
                    self._leave()
                else:
                    self._entry(kind, bits & MODE_MASK, self._source.take(name_length), size)
        finally:
            for level in self._levels:
                os.close(level[0])
        if self._bytes_left:
            raise IntegrityError(f"directory holds {self._bytes_left} bytes less than announced")

    def _leave(self) -> None:
        fd, mode, _, _ = self._levels.pop()
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)

    def _entry(self, kind: int, mode: int, name: bytes, size: int) -> None:
        fd, own_mode, last, path_bytes = self._levels[-1]
        check_entry_name(name)
        path_bytes += len(name) + 1
        self._entries_left -= 1
        if name <= last or self._entries_left < 0 or path_bytes > MAX_PATH_BYTES:
            raise IntegrityError(f"directory stream is out of order, too deep, or longer than announced at {name!r}")
        self._levels[-1] = (fd, own_mode, name, path_bytes - len(name) - 1)
        if kind == FILE:
            self._file(fd, name, mode, size)
        elif kind == DIR and not size and len(self._levels) <= MAX_DEPTH:
            os.mkdir(name, 0o700, dir_fd=fd)
            self._levels.append((os.open(name, _OPEN_DIR, dir_fd=fd), mode, b"", path_bytes))
        elif kind == LINK and size <= MAX_PATH_BYTES:
            target = self._source.take(size)
            check_link_target(target, len(self._levels) - 1)
            os.symlink(target, name, dir_fd=fd)
        else:
            raise IntegrityError(f"directory stream holds an impossible entry {name!r} (kind {kind}, {size} bytes)")

    def _file(self, fd: int, name: bytes, mode: int, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise IntegrityError("directory holds more bytes than announced")
        out = os.open(name, NEW_FILE_FLAGS, 0o600, dir_fd=fd)
        try:
            self._source.copy(out, size)
            os.fchmod(out, mode)
        finally:
            os.close(out)


def receive_object(channel: Channel, header: ObjectHeader, dest: Path) -> ObjectInfo:
    """Receive the stream that follows ``header`` into ``dest``, which must not exist.

    ``channel.mid_object`` stays True when the connection cannot be used further.

    Raises:
        SourceError, IntegrityError: the source's fault.
        DiskFullError, TransferError: ours.
    """
    mode = header.mode & MODE_MASK
    channel.mid_object = True
    require_absent(dest)
    try:
        if header.size_bytes < 0 or not 0 <= header.entries <= MAX_ENTRIES:
            raise IntegrityError(f"{channel.peer} announced an impossible object")
        with SegmentReader(channel, large=header.size_bytes >= THREADED_HASH_BYTES) as reader:
            try:
                if header.is_dir:
                    TreeWriter(reader, dest, header.size_bytes, header.entries).write(mode)
                else:
                    _receive_file(reader, dest, header.size_bytes, mode)
                digest = reader.finish()
            finally:
                channel.mid_object = not reader.complete
    except BaseException as error:
        discard(dest)
        if isinstance(error, SecurityError):
            raise IntegrityError(f"{channel.peer}: {error}") from error
        if isinstance(error, OSError):
            raise disk_error(error, dest) from error
        raise
    return ObjectInfo(header.size_bytes, digest, header.is_dir, mode)


def require_absent(dest: Path) -> None:
    """Refuse to write over something: what is there is not ours to remove when the transfer fails."""
    if os.path.lexists(dest):
        raise TransferError(f"{dest} exists already", hint="give a path that does not exist")


def _receive_file(reader: SegmentReader, dest: Path, size: int, mode: int) -> None:
    fd = os.open(dest, NEW_FILE_FLAGS, 0o600)
    try:
        reader.copy(fd, size)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def store_inline(message: ObjectInline, dest: Path) -> ObjectInfo:
    """Write a small object that came inside a message.

    Raises:
        IntegrityError: it is not what its own hash says.
        DiskFullError, TransferError: it cannot be written.
    """
    digest = hashlib.sha256(message.data).digest()
    if digest != message.sha256:
        raise IntegrityError(f"{message.name} has hash {digest.hex()[:16]}, announced was {message.sha256.hex()[:16]}",
                             hint="the source's copy is damaged")
    mode = message.mode & MODE_MASK
    try:
        fd = os.open(dest, NEW_FILE_FLAGS, mode)
    except OSError as error:
        raise disk_error(error, dest) from error
    try:
        try:
            write_all(fd, memoryview(message.data))
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    except OSError as error:
        discard(dest)
        raise disk_error(error, dest) from error
    return ObjectInfo(len(message.data), digest, False, mode)


def discard(dest: Path) -> None:
    """Remove what is left of a failed transfer; a leftover that resists is the reason to report, not this."""
    try:
        remove_object(dest)
    except OSError as error:
        raise TransferError(f"cannot remove what is left of a failed transfer at {dest}: {error.strerror}",
                            hint="remove it by hand") from error

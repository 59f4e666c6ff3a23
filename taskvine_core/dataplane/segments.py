"""The raw bytes of one incoming stream: from segments to files, hashed on the way.

Owns reading segments up to the trailer, and comparing the digest. Must not know what the bytes mean or where files
are. recv and write run in the calling thread, SHA-256 beside them in another for objects large enough to repay it.
Large files over plain sockets do not even pass through our memory on their way to the disk (splice).
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from queue import SimpleQueue
from types import TracebackType

from taskvine_core.dataplane.channel import Channel
from taskvine_core.dataplane.messages import Segment, Trailer
from taskvine_core.dataplane.splice import Splicer
from taskvine_core.dataplane.tree import write_all
from taskvine_core.errors import IntegrityError, SourceError
from taskvine_core.records import NamedTuple

#: Large enough that one system call and one hash update cost little per byte, small enough to stay in a cache.
BUFFER_BYTES = 1 << 20
#: Buffers in flight between recv and SHA-256; also bounds the memory of one transfer.
BUFFERS = 4
#: Below this the set-up of a pipe costs more than a copy saves.
SPLICE_BYTES = 1 << 20
#: How far writing may run ahead of SHA-256, in parts of BUFFER_BYTES: what was just written is still in a CPU cache.
PARTS_AHEAD = 8


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
            The digest. Only a sealed channel may bring a trailer without one to compare it with.

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
        if not message.sha256 and self._channel.sealed:
            return digest
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

"""From a socket to a file inside the kernel.

Owns the pipe that Linux wants in between. Saves one of two copies of every byte; SHA-256 then reads the page cache,
that is what was stored rather than what was received. Must not know streams or messages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from taskvine_core.dataplane.channel import Channel

#: The largest pipe an ordinary user may have.
PIPE_BYTES = 1 << 20


class Splicer:
    """A pipe for one transfer; ``close`` it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        self._in_kernel = True
        # A user with many pipes gets small ones: slower, not wrong.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def move(self, channel: Channel, fd: int, count: int) -> int:
        """Move at most ``count`` raw bytes from the channel to the position of ``fd``; returns how many, at least 1.

        Raises:
            OSError: the file cannot be written.
            SourceError, Cancelled: from the channel.
        """
        moved = channel.splice_raw(self._write, min(count, PIPE_BYTES))
        left = moved
        while left:
            left -= self._drain(fd, left)
        return moved

    def _drain(self, fd: int, count: int) -> int:
        if self._in_kernel:
            try:
                return os.splice(self._read, fd, count)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._in_kernel = False  # this file system cannot
        return os.write(fd, os.read(self._read, count))

    def close(self) -> None:
        """Give the pipe back, with whatever is in it."""
        os.close(self._read)
        os.close(self._write)

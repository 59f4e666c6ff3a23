"""Receiving one object into a path that does not exist yet.

Owns what a failure means (the source's fault, or no room here) and that nothing is left after one. Must not know
names of caches or who asked.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from taskvine_core.dataplane.channel import Channel
from taskvine_core.dataplane.messages import ObjectHeader, ObjectInline
from taskvine_core.dataplane.objects import MAX_ENTRIES, MODE_MASK, ObjectInfo, remove_object
from taskvine_core.dataplane.segments import SegmentReader
from taskvine_core.dataplane.tree import NEW_FILE_FLAGS, TreeWriter, write_all
from taskvine_core.errors import DiskFullError, IntegrityError, SecurityError, TransferError

#: Below this a second thread costs more than it saves.
THREADED_HASH_BYTES = 2 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_error(error: OSError, path: object) -> TransferError:
    """What a failed write means: no room here, or another fault of this side."""
    if error.errno in _NO_ROOM:
        return DiskFullError(f"no room for {path}: {error.strerror}", hint="free disk space or raise the quota")
    return TransferError(f"cannot write {path}: {error.strerror or error}", hint="check the directory it is in")


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

"""What an object is: a regular file or a directory, and the one canonical byte stream of each.

Owns listing, canonical streams and digests. Must not know sockets. The stream of a file is its content. The stream
of a directory is, for each entry in byte order of its name, a record (``RECORD``, name) followed by the content of
a file, the target of a symbolic link, or the stream of a directory; every directory, the object itself included,
ends with an UP record. Digest of an object = SHA-256 of its stream, so sender, receiver and ``hash_object`` agree.

Invariants of a stream: names are single path components in strictly rising order, so that nothing can be placed below
a link. Sockets, pipes and devices have no place in an object. A link is its text, wherever it leads: whatever lists,
hashes, sends, copies, hard-links or deletes an object must not follow the links in it (only one at its root is
followed, by who names the object).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator

from taskvine_core.errors import SecurityError, SourceError
from taskvine_core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    StrPath = str | Path


#: kind, permission bits, length of the name, bytes of content that follow the name.
RECORD = struct.Struct(">BHHQ")
FILE, LINK, DIR, UP = 1, 2, 3, 4
UP_RECORD = RECORD.pack(UP, 0, 0, 0)

MODE_MASK = 0o777
#: The limit of Linux file systems for one name.
MAX_NAME_BYTES = 255
#: PATH_MAX: a longer path or link target could not be opened again.
MAX_PATH_BYTES = 4096
#: One file descriptor is held per level while a tree is written.
MAX_DEPTH = 100
#: Bounds what a listing may hold in memory (about 200 bytes each).
MAX_ENTRIES = 2_000_000

#: Files up to this size are read whole and sent together with their neighbours.
SMALL_FILE_BYTES = 256 * 1024
#: Pieces of a stream are gathered until they are this large: one system call for many small files.
GATHER_BYTES = 256 * 1024
HASH_BUFFER_BYTES = 1 << 20


class ObjectInfo(NamedTuple):
    """What is known of a complete object.

    Args:
        size_bytes: content of its regular files.
        sha256: digest of its canonical stream.
        is_dir: directory or regular file.
        mode: permission bits of the object itself (not part of the digest).
    """

    size_bytes: int
    sha256: bytes
    is_dir: bool
    mode: int


class Entry(NamedTuple):
    """One step of the canonical stream of a directory. ``path`` is where it is on disk."""

    kind: int
    mode: int
    name: bytes
    size: int
    path: bytes


class Listing(NamedTuple):
    """A directory as found on disk: steps in canonical order, and the number of bytes in its regular files."""

    entries: list[Entry]
    size_bytes: int


class LargeFile(NamedTuple):
    """A piece of a stream that is better sent from the file than from memory."""

    path: bytes
    size: int


def check_entry_name(name: bytes) -> None:
    """Raise SecurityError unless ``name`` is one ordinary path component."""
    if not 0 < len(name) <= MAX_NAME_BYTES or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise SecurityError(f"unsafe entry name {name[:80]!r} in a directory object",
                            hint="the sender is broken or hostile")


def check_link_target(target: bytes) -> None:
    """Raise SecurityError unless ``target`` is text that a symbolic link can hold.

    Where it leads is not judged: users do have directories with links out of them (a virtual environment's
    ``bin/python``). A link is content like any other, and harmless to whoever follows none: see the module's text.
    """
    if not 0 < len(target) <= MAX_PATH_BYTES or b"\0" in target:
        raise SecurityError(f"unsafe symbolic link to {target[:80]!r} in a directory object",
                            hint="the sender is broken or hostile")


def list_directory(root: StrPath) -> Listing:
    """List a directory in canonical order.

    Raises:
        SourceError: unreadable, changed while listed, or it holds a socket, pipe or device.
        SecurityError: the tree is too deep or too large.
    """
    entries: list[Entry] = []
    try:
        size_bytes = _list_level(os.fsencode(root), 0, entries)
    except OSError as error:
        raise SourceError(f"cannot list directory {root}: {error}") from error
    return Listing(entries, size_bytes)


def _list_level(directory: bytes, depth: int, entries: list[Entry]) -> int:
    total = 0
    with os.scandir(directory) as found:
        children = sorted(found, key=lambda child: child.name)
    if depth > MAX_DEPTH or len(entries) + len(children) > MAX_ENTRIES:
        raise SecurityError(f"{os.fsdecode(directory)} is nested deeper than {MAX_DEPTH} levels or brings the object "
                            f"to more than {MAX_ENTRIES} entries", hint="pack it into one archive file")
    for child in children:
        name, path = child.name, child.path
        status = child.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            entries.append(Entry(FILE, status.st_mode & MODE_MASK, name, status.st_size, path))
            total += status.st_size
        elif stat.S_ISDIR(status.st_mode):
            entries.append(Entry(DIR, status.st_mode & MODE_MASK, name, 0, path))
            total += _list_level(path, depth + 1, entries)
        elif stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            check_link_target(target)
            entries.append(Entry(LINK, 0, name, len(target), target))
        else:
            raise SourceError(f"{os.fsdecode(path)} is neither file, directory nor link",
                              hint="sockets, pipes and devices cannot be sent")
    entries.append(Entry(UP, 0, b"", 0, b""))
    return total


def stream_pieces(listing: Listing) -> Iterator[bytearray | LargeFile]:
    """The canonical stream of a directory, small things gathered, large files named.

    Raises:
        SourceError: a file vanished or changed its size since it was listed.
    """
    gathered = bytearray()
    for entry in listing.entries:
        gathered += RECORD.pack(entry.kind, entry.mode, len(entry.name), entry.size)
        gathered += entry.name
        if entry.kind == LINK:
            gathered += entry.path
        elif entry.kind == FILE:
            if entry.size > SMALL_FILE_BYTES:
                yield gathered
                gathered = bytearray()
                yield LargeFile(entry.path, entry.size)
            else:
                gathered += read_small(entry.path, entry.size)
        if len(gathered) >= GATHER_BYTES:
            yield gathered
            gathered = bytearray()
    if gathered:
        yield gathered


def open_source(path: StrPath | bytes) -> int:
    """Open a file of an object for reading; the caller closes the descriptor.

    Raises:
        SourceError: it is gone or unreadable.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"cannot open {os.fsdecode(path)}: {error.strerror}") from error


def read_small(path: StrPath | bytes, size: int) -> bytes:
    """Exactly ``size`` bytes: the whole file, or SourceError when it is not that size any more."""
    fd = open_source(path)
    try:
        data = os.read(fd, size + 1)
    except OSError as error:
        raise SourceError(f"cannot read {os.fsdecode(path)}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(data) != size:
        raise SourceError(f"{os.fsdecode(path)} changed its size while being read")
    return data


def _go_on() -> bool:
    return False


def hash_descriptor(fd: int, size: int, hasher: Any, stop: Callable[[], bool] = _go_on) -> int:
    """Feed the first ``size`` bytes of an open file to ``hasher``; returns how many were there, or until ``stop``."""
    buffer = memoryview(bytearray(min(HASH_BUFFER_BYTES, max(size, 1))))
    done = 0
    while done < size and not stop():
        count = os.preadv(fd, [buffer[:min(len(buffer), size - done)]], done)
        if count == 0:
            break
        hasher.update(buffer[:count])
        done += count
    return done


def hash_listing(listing: Listing, hasher: Any) -> None:
    """Feed the canonical stream of a directory to ``hasher``; SourceError when it changes meanwhile."""
    for piece in stream_pieces(listing):
        if isinstance(piece, LargeFile):
            _hash_file(piece.path, piece.size, hasher)
        else:
            hasher.update(piece)


def _hash_file(path: StrPath | bytes, size: int, hasher: Any) -> None:
    fd = open_source(path)
    try:
        if hash_descriptor(fd, size, hasher) != size or os.fstat(fd).st_size != size:
            raise SourceError(f"{os.fsdecode(path)} changed its size while being read")
    except OSError as error:
        raise SourceError(f"cannot read {os.fsdecode(path)}: {error.strerror}") from error
    finally:
        os.close(fd)


def stat_object(path: StrPath) -> os.stat_result:
    """Status of an object, following a link at its root.

    Raises:
        SourceError: missing, or neither regular file nor directory.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise SourceError(f"{path} is neither a regular file nor a directory",
                          hint="sockets, pipes and devices cannot be sent")
    return status


def hash_object(path: StrPath) -> ObjectInfo:
    """Read a whole file or directory and say what it is.

    Raises:
        SourceError: it cannot be read, or changes while it is read.
        SecurityError: a directory is too deep or too large.
    """
    status = stat_object(path)
    real = os.path.realpath(path)
    hasher = hashlib.sha256()
    mode = status.st_mode & MODE_MASK
    if stat.S_ISDIR(status.st_mode):
        listing = list_directory(real)
        hash_listing(listing, hasher)
        return ObjectInfo(listing.size_bytes, hasher.digest(), True, mode)
    _hash_file(real, status.st_size, hasher)
    return ObjectInfo(status.st_size, hasher.digest(), False, mode)


def remove_object(path: StrPath) -> None:
    """Remove a file or a directory tree, also one whose directories are read-only; no error when it is not there.

    Raises:
        OSError: it is there and cannot be removed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        if os.path.islink(path) or not os.path.isdir(path):
            raise
        _remove_tree(os.fsencode(path))


def _remove_tree(directory: bytes) -> None:
    os.chmod(directory, stat.S_IRWXU)
    with os.scandir(directory) as found:
        children = list(found)
    for child in children:
        if child.is_dir(follow_symlinks=False):
            _remove_tree(child.path)
        else:
            os.unlink(child.path)
    os.rmdir(directory)

"""Messages of the data plane.

Owns the vocabulary spoken on data connections (numbers 96..127) and registers it with the codec. Must not know
sockets or files.

A conversation, client on the left:

    DataGet(names)        ->
                          <-  for each name, in order: ObjectMissing | ObjectInline | ObjectHeader, stream, Trailer
    DataPut, ObjectHeader ->
                          <-  DataAck(ACK_GO or a refusal)
    stream, Trailer       ->
                          <-  DataAck(ACK_OK or a failure)

A stream is any number of ``Segment(n)``, each followed by n raw bytes outside the frames. Raw bytes carry no MAC:
the trailer, which does, carries the SHA-256 of all of them, unless nobody can change them on their way (module
``sealed``); a client that may be on the server's machine says ``Local`` before its request. A sender that has to
give up says so in a trailer where the next segment would have been, so the connection stays usable.
"""

from __future__ import annotations

from taskvine_core.protocol.codec import register
from taskvine_core.records import NamedTuple


class DataGet(NamedTuple):
    """Send these objects, in this order."""

    names: tuple[str, ...]


class ObjectMissing(NamedTuple):
    """Answer for one name: it cannot be had here."""

    name: str
    reason: str


class ObjectInline(NamedTuple):
    """A small regular file, whole."""

    name: str
    mode: int
    sha256: bytes
    data: bytes


class ObjectHeader(NamedTuple):
    """A stream follows. ``size_bytes`` counts file contents, ``entries`` what a directory holds (0 for a file)."""

    name: str
    is_dir: bool
    mode: int
    size_bytes: int
    entries: int


class Segment(NamedTuple):
    """This many raw bytes follow."""

    length: int


class Trailer(NamedTuple):
    """End of a stream: digest of its raw bytes, or ``error`` when the sender could not deliver what it announced."""

    sha256: bytes
    error: str


class DataPut(NamedTuple):
    """The client wants to send the object of this transfer; its ObjectHeader follows."""

    transfer_id: int
    name: str


ACK_OK = 0
ACK_GO = 1
ACK_REFUSED = 2
ACK_DISK_FULL = 3
ACK_INTEGRITY = 4
ACK_FAILED = 5
#: Like ACK_GO, and the trailer needs no digest: we are on the same machine, or speak TLS.
ACK_GO_SEALED = 6


class DataAck(NamedTuple):
    """Answer to DataPut (before the stream) and to the stream; ``code`` is one of ACK_*."""

    transfer_id: int
    code: int
    reason: str


class Local(NamedTuple):
    """The client's view of this connection: boot id of its kernel, its own address and port, those of the server."""

    boot_id: bytes
    client: str
    server: str


#: Wire number of each message. Append only; a number is never used again.
DATA_NUMBERS: dict[type, int] = {
    DataGet: 96, ObjectMissing: 97, ObjectInline: 98, ObjectHeader: 99, Segment: 100, Trailer: 101,
    DataPut: 102, DataAck: 103, Local: 104,
}

for _class, _number in DATA_NUMBERS.items():
    register(_number, _class)
del _class, _number

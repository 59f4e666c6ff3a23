"""Getting objects from a DataServer, and sending one to it.

Owns the client's side of a data connection: what is asked for ahead, what a failure means, when to connect again.
Must not know caches: the caller says where each object goes and renames it there. What is yielded without an error
is complete and has the expected hash; after an error nothing is left at its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from taskvine_core.dataplane.channel import Address, Cancel, Cancelled, Channel, Tls, never
from taskvine_core.dataplane.connect import connect
from taskvine_core.dataplane.messages import (
    ACK_DISK_FULL,
    ACK_GO,
    ACK_GO_SEALED,
    ACK_INTEGRITY,
    ACK_OK,
    DataAck,
    DataGet,
    DataPut,
    ObjectHeader,
    ObjectInline,
    ObjectMissing,
)
from taskvine_core.dataplane.objects import ObjectInfo
from taskvine_core.dataplane.receive import discard, receive_object, store_inline
from taskvine_core.dataplane.sealed import introduction
from taskvine_core.dataplane.send import Outgoing, StreamSender, open_outgoing
from taskvine_core.errors import DiskFullError, IntegrityError, ProtocolError, SourceError, TransferError
from taskvine_core.records import NamedTuple

#: Names asked for ahead: enough that the server never waits for a request, few enough that requests always fit in
#: socket buffers (both sides sending would otherwise wait for each other).
REQUEST_AHEAD = 128
#: Connections in a row that brought nothing before the remaining objects are given up.
MAX_FRUITLESS_CONNECTIONS = 2
#: How long to look for the words of a server that closed the connection while we were sending.
LAST_WORDS_S = 1.0


class FetchResult(NamedTuple):
    """What became of one name: ``info`` or ``error``."""

    name: str
    info: ObjectInfo | None
    error: TransferError | None


def fetch(address: Address, names: Sequence[str], dest: Callable[[str], Path], *, secret: bytes,
          expected: Mapping[str, bytes], sizes: Mapping[str, int], timeout_s: float, cancel: Cancel,
          room: Callable[[int], bool], tls: Tls | None = None) -> Iterator[FetchResult]:
    """Fetch objects, pipelined over one connection (a new one after a failure in the middle of an object).

    Args:
        address: host and port of the server.
        names: cached names; results come in this order, exactly one each.
        dest: where to put an object; a path that does not exist yet, in a directory that does.
        secret: shared secret.
        expected: digests that are known (missing or b"": unknown).
        sizes: content sizes in bytes that are known (missing or negative: unknown).
        timeout_s: longest silence of the server.
        cancel: polled at least every 0.5 s; once true, all remaining names end with Cancelled.
        room: asked once before each object with its size in bytes; False refuses it.
        tls: None for plain TCP.

    Yields:
        Results. Errors: SourceError and IntegrityError are the server's fault, DiskFullError and any other
        TransferError are ours. Nothing else is raised but what ``dest``, ``cancel`` and ``room`` raise.
    """
    wishes = _Wishes(dest, expected, sizes, room)
    done = fruitless = 0
    while done < len(names):
        error: TransferError | None = None
        useful = lost = False
        try:
            channel = connect(address, secret=secret, timeout_s=timeout_s, tls=tls, cancel=cancel)
        except TransferError as failure:
            error, lost = failure, True
        else:
            for result in _converse(channel, names[done:], wishes):
                error = result.error
                useful = useful or error is None
                done += 1
                yield result
        fruitless = fruitless + 1 if isinstance(error, SourceError) and not useful else 0
        if lost or isinstance(error, Cancelled) or fruitless >= MAX_FRUITLESS_CONNECTIONS:
            for name in names[done:]:
                yield FetchResult(name, None, error)
            return


def _converse(channel: Channel, names: Sequence[str], wishes: _Wishes) -> Iterator[FetchResult]:
    """Results over one connection, until all names are done or the connection is of no use; closes it."""
    done = 0
    try:
        if said := introduction(channel):
            channel.send(*said)
            channel.sealed = True  # it is the server that says whether we are, by what its trailers hold
        for name, answer in _answers(channel, names):
            result = wishes.settle(channel, name, answer)
            done += 1
            yield result
            if channel.mid_object:
                return
    except TransferError as failure:
        yield FetchResult(names[done], None, failure)
    finally:
        channel.close()


def _answers(channel: Channel, names: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Ask for names well ahead and pair each with the message that answers it."""
    asked = 0
    for index, name in enumerate(names):
        if asked < len(names) and asked - index <= REQUEST_AHEAD // 2:
            more = tuple(names[asked:asked + REQUEST_AHEAD])
            channel.send(DataGet(more))
            asked += len(more)
        try:
            yield name, channel.expect_message()
        except ProtocolError as error:
            raise SourceError(f"{channel.peer}: {error}") from error


class _Wishes(NamedTuple):
    """What the caller of ``fetch`` wants of every object."""

    dest: Callable[[str], Path]
    expected: Mapping[str, bytes]
    sizes: Mapping[str, int]
    room: Callable[[int], bool]

    def settle(self, channel: Channel, name: str, answer: object) -> FetchResult:
        """Receive one object; ``channel.mid_object`` tells whether the connection survived."""
        try:
            channel.check_cancelled()
            return FetchResult(name, self._receive(channel, name, answer), None)
        except ProtocolError as error:
            channel.mid_object = True
            return FetchResult(name, None, SourceError(f"{channel.peer}: {error}"))
        except Cancelled:
            raise
        except TransferError as error:
            return FetchResult(name, None, error)

    def _receive(self, channel: Channel, name: str, answer: object) -> ObjectInfo:
        if not isinstance(answer, (ObjectMissing, ObjectInline, ObjectHeader)) or answer.name != name:
            channel.mid_object = True
            raise SourceError(f"{channel.peer} answered {name} with {type(answer).__name__}")
        if isinstance(answer, ObjectMissing):
            raise SourceError(f"{channel.peer} cannot send {name}: {answer.reason}")
        if isinstance(answer, ObjectInline):
            self._admit(name, len(answer.data))
            self._compare(channel, name, answer.sha256)
            return store_inline(answer, self.dest(name))
        channel.mid_object = True  # refusing it leaves its bytes on the way
        self._admit(name, answer.size_bytes)
        path = self.dest(name)
        info = receive_object(channel, answer, path)
        try:
            self._compare(channel, name, info.sha256)
        except IntegrityError:
            discard(path)
            raise
        return info

    def _admit(self, name: str, size_bytes: int) -> None:
        known = self.sizes.get(name, -1)
        if size_bytes != known and known >= 0:
            raise IntegrityError(f"{name} is announced with {size_bytes} bytes, known are {known}",
                                 hint="the source's copy is damaged")
        if not self.room(size_bytes):
            raise DiskFullError(f"no room for {name} of {size_bytes} bytes")

    def _compare(self, channel: Channel, name: str, sha256: bytes) -> None:
        known = self.expected.get(name, b"")
        if known and known != sha256:
            raise IntegrityError(f"{name} from {channel.peer} has hash {sha256.hex()[:16]}, expected is "
                                 f"{known.hex()[:16]}", hint="the source's copy is damaged")


def upload(address: Address, transfer_id: int, name: str, path: Path, *, secret: bytes, timeout_s: float,
           tls: Tls | None = None, sha256: bytes = b"", cancel: Cancel = never) -> None:
    """Send an object to a server that expects it.

    Args:
        address: host and port of the server.
        transfer_id: what the server knows this upload by.
        name: cached name, for the server's eyes.
        path: file or directory to send.
        secret: shared secret.
        timeout_s: longest silence of the server.
        tls: None for plain TCP.
        sha256: digest if known; else it is computed while sending.
        cancel: polled at least every 0.5 s.

    Raises:
        SourceError: the object cannot be read or changed, or the connection failed, or it was not expected.
        DiskFullError: the server has no room.
        IntegrityError: what the server got is not what was sent.
        Cancelled: ``cancel`` said so.
    """
    outgoing = open_outgoing(path, sha256)
    try:
        channel = connect(address, secret=secret, timeout_s=timeout_s, tls=tls, cancel=cancel)
        try:
            _put(channel, outgoing, transfer_id, name)
        except ProtocolError as error:
            raise SourceError(f"{channel.peer}: {error}") from error
        finally:
            channel.close()
    finally:
        outgoing.close()


def _put(channel: Channel, outgoing: Outgoing, transfer_id: int, name: str) -> None:
    channel.send(*introduction(channel), DataPut(transfer_id, name), outgoing.header(name))
    answer = channel.expect_message()
    if isinstance(answer, DataAck) and answer.code == ACK_GO_SEALED:
        channel.sealed = True
    else:
        _check_ack(channel, answer, ACK_GO)
    _send_watching(channel, StreamSender(channel, outgoing, lambda: _check_early(channel)), name)
    _check_ack(channel, channel.expect_message(), ACK_OK)


def _send_watching(channel: Channel, sender: StreamSender, name: str) -> None:
    try:
        problem = sender.run()
    except SourceError:
        _last_words(channel)
        raise
    if problem:
        raise SourceError(f"cannot send {name}: {problem}")


def _check_early(channel: Channel) -> None:
    """Before each segment: the server speaks now only to refuse."""
    if channel.readable():
        _check_ack(channel, channel.expect_message(), ACK_OK)


def _last_words(channel: Channel) -> None:
    """A server that gave up said why before it closed; raise that rather than "connection lost"."""
    try:
        message = channel.receive(LAST_WORDS_S)
    except TransferError:
        return
    if message is not None:
        _check_ack(channel, message, ACK_OK)


def _check_ack(channel: Channel, message: object, wanted: int) -> None:
    if not isinstance(message, DataAck):
        raise SourceError(f"{channel.peer} answered an upload with {type(message).__name__}")
    if message.code == wanted:
        return
    text = f"{channel.peer} did not take it: {message.reason}"
    if message.code == ACK_DISK_FULL:
        raise DiskFullError(text)
    if message.code == ACK_INTEGRITY:
        raise IntegrityError(text)
    raise SourceError(text)

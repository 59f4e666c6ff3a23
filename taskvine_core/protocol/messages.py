"""Every control message between manager and worker, and the status/control queries.

Owns the vocabulary of the wire: one NamedTuple per message, its number and its fields. The codec (codec.py) packs
a message as a msgpack array ``[number, field, ...]`` and checks types, lengths and nesting on the way in, from the
annotations here. Allowed annotations: int, float, str, bytes, bool, another NamedTuple of this package,
``tuple[X, ...]``, ``tuple[A, B]``, ``X | None``.

Must not know sockets, files or policy. Order on one connection is the order of sending; receivers rely on it:
a ``PutInline`` before a ``Dispatch`` is in the cache when the task starts.

Conventions: times are seconds since the epoch as floats, durations end in ``_s``, sizes in ``_bytes`` or ``_mb``.
``transfer_id`` is chosen by the manager, unique per manager instance, and names one attempt to move one object.
"""

from __future__ import annotations

from taskvine_core.model.tasks import TaskSpec
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources

PROTOCOL_VERSION = 1

# ---------------------------------------------------------------------------- worker -> manager


class WorkerHello(NamedTuple):
    """First message of a worker. ``end_time`` 0 = no walltime known. ``transfer_port`` 0 = cannot serve peers.
    ``job_id``: the factory's own id of the batch job this worker runs in, "" when started by hand."""

    worker_id: str
    hostname: str
    os: str
    arch: str
    version: str
    features: tuple[str, ...]
    resources: Resources
    transfer_host: str
    transfer_port: int
    end_time: float
    idle_timeout_s: float
    factory_name: str
    job_id: str


class CacheEntry(NamedTuple):
    """An object a worker holds, complete and hashed. ``sha256`` as in FileDecl."""

    name: str
    size_bytes: int
    level: int
    sha256: bytes


class CacheOffer(NamedTuple):
    """Sent once after Welcome: what the worker still holds and may be used again."""

    entries: tuple[CacheEntry, ...]


class ResourceReport(NamedTuple):
    """Totals now offered, and what the cache and the sandboxes use. Sent when changed, at most every 30 s."""

    total: Resources
    cache_mb: int
    disk_free_mb: int


class CacheUpdate(NamedTuple):
    """An object arrived by Fetch or MiniTask and is READY."""

    name: str
    transfer_id: int
    size_bytes: int
    sha256: bytes
    start: float
    wall_s: float


#: Whose fault a failed arrival is: the source's (try another), ours (disk full, bad name), or the object's own
#: (URL answers 404, mini-task fails: trying elsewhere does not help).
BLAME_SOURCE = 0
BLAME_SELF = 1
BLAME_OBJECT = 2


class CacheInvalid(NamedTuple):
    """An object asked for by Fetch/MiniTask/PutInline did not arrive. transfer_id 0 for PutInline."""

    name: str
    transfer_id: int
    blame: int
    reason: str


class CacheGone(NamedTuple):
    """Objects the worker held are no more (evicted, found corrupt, unlinked on its own account)."""

    names: tuple[str, ...]
    reason: str


class OutputReport(NamedTuple):
    """One declared output that was produced and now is in the cache under ``name``.

    ``inline`` holds the bytes when the object is a regular file of at most INLINE_MAX_BYTES and the dispatch asked
    for it (Dispatch.want_inline), else None. ``mode`` are permission bits, ``is_dir`` tells a directory.
    An inlined output of cache level task is not kept at the worker: manager and worker both forget it at once.
    Inputs mounted with remote name "" are only needed in the cache (the function of a Python task).
    """

    name: str
    size_bytes: int
    sha256: bytes
    mode: int
    is_dir: bool
    inline: bytes | None


class Measured(NamedTuple):
    """What an attempt used. -1 where it was not measured."""

    cpu_s: float
    memory_mb: int
    disk_mb: int
    bytes_read: int
    bytes_written: int
    processes: int


NOT_MEASURED = Measured(-1.0, -1, -1, -1, -1, -1)


class TaskDone(NamedTuple):
    """An attempt ended. ``result`` is a VINE_RESULT_* code as the worker saw it (SUCCESS whatever the exit code;
    MAX_WALL_TIME, MAX_END_TIME, SANDBOX_EXHAUSTION, RESOURCE_EXHAUSTION with exit code 9; FORSAKEN when it could
    not be run here, ``error`` says why; STDOUT_MISSING when stdout was cut). ``missing`` are the remote names of
    outputs that were not produced. ``stdout`` holds at most INLINE_MAX_BYTES; when ``stdout_bytes`` is larger the
    whole text was stored as the cached object ``stdout_name``.
    """

    task_id: int
    attempt: int
    result: int
    exit_code: int
    stdout: bytes
    stdout_bytes: int
    stdout_name: str
    outputs: tuple[OutputReport, ...]
    missing: tuple[str, ...]
    start: float
    end: float
    measured: Measured
    error: str


class Recalled(NamedTuple):
    """Answer to Recall: these had not started and are forgotten. Ids not listed have started or are done."""

    task_ids: tuple[int, ...]


class WatchData(NamedTuple):
    """Bytes appended to a watched output of a running task, in order."""

    task_id: int
    attempt: int
    name: str
    offset: int
    data: bytes


class UploadFailed(NamedTuple):
    """The object of an Upload order cannot be sent (gone, connection refused)."""

    transfer_id: int
    reason: str


class LeaveRequest(NamedTuple):
    """The worker wants to go: "idle", "sigterm", "walltime", "disk". It goes on serving what it holds until Release
    (or until ``deadline``, seconds since the epoch, 0 = none, when it leaves regardless)."""

    reason: str
    deadline: float


class Pong(NamedTuple):
    """Answer to Ping."""

    nonce: int


# ---------------------------------------------------------------------------- manager -> worker


class Welcome(NamedTuple):
    """Accepts a worker. A ``manager_id`` other than the last one makes the worker drop objects of level <= workflow.

    ``data_port`` is where manager data-plane connections go (same host as the control connection).
    """

    manager_id: str
    manager_name: str
    data_port: int
    keepalive_interval_s: float
    max_stdout_bytes: int


class PutInline(NamedTuple):
    """A small object (regular file) with its content. No answer unless it fails (CacheInvalid, transfer_id 0)."""

    name: str
    level: int
    mode: int
    sha256: bytes
    data: bytes


SOURCE_MANAGER = 0
SOURCE_PEER = 1
SOURCE_URL = 2


class Fetch(NamedTuple):
    """Get an object into the cache; answered by CacheUpdate or CacheInvalid.

    ``where``: SOURCE_MANAGER (data port of the manager, ``address`` "" or the object's name there), SOURCE_PEER
    (``address`` "host:port"), SOURCE_URL (``address`` the URL). ``size_bytes`` -1 and ``sha256`` b"" when unknown.
    ``timeout_s`` bounds silence, not total time. ``mode`` 0 keeps the source's permission bits.
    """

    name: str
    transfer_id: int
    level: int
    mode: int
    size_bytes: int
    sha256: bytes
    where: int
    address: str
    timeout_s: float


class MiniTask(NamedTuple):
    """Produce an object by running ``spec`` (its inputs are sent before) and taking ``source`` from its sandbox."""

    name: str
    transfer_id: int
    level: int
    mode: int
    spec: TaskSpec
    source: str


class SetLevel(NamedTuple):
    """Promote an object's cache level (reference, section 11.1)."""

    name: str
    level: int


class Unlink(NamedTuple):
    """Drop objects. Running tasks keep their hard links. A fetch in progress for one is abandoned, silently."""

    names: tuple[str, ...]


class Dispatch(NamedTuple):
    """Run a task when its inputs are READY and its allocation is free; orders queue FIFO.

    ``allocation`` is what the task gets. ``want_inline``: cached names of outputs whose bytes (when small) are to
    come inside TaskDone. ``output_levels``: cache level of each of ``spec.outputs``, same order.
    """

    task_id: int
    attempt: int
    spec: TaskSpec
    allocation: Resources
    gpus: tuple[str, ...]
    want_inline: tuple[str, ...]
    output_levels: tuple[int, ...]


class Kill(NamedTuple):
    """End these attempts, running or queued, drop their outputs; no TaskDone is sent for them."""

    task_ids: tuple[int, ...]


class Recall(NamedTuple):
    """Hand back tasks that have not started; answered by Recalled (also when empty)."""

    task_ids: tuple[int, ...]


class Upload(NamedTuple):
    """Send a cached object to the manager over a new data connection, announcing ``transfer_id``."""

    transfer_id: int
    name: str
    timeout_s: float


class Ping(NamedTuple):
    """Keepalive check; any message counts as an answer, Pong is one that is always available."""

    nonce: int


class Drain(NamedTuple):
    """Start no queued task, finish the running ones; the manager recalls the queue itself."""

    reason: str


class Release(NamedTuple):
    """Disconnect now. ``exit``: end the process with status 0, else look for another manager."""

    exit: bool
    reason: str


class PeerKey(NamedTuple):
    """Sent before Welcome on TLS links only: certificate and private key, PEM, with which this manager's workers
    serve each other, and whose fingerprint they pin. Never logged. Without it, workers of a TLS manager neither serve
    peers nor fetch from them."""

    certificate: bytes
    key: bytes


# ---------------------------------------------------------------------------- status and control role


class Query(NamedTuple):
    """A question from ``vine_status`` or a factory. ``what``: "manager", "tasks", "workers", "categories",
    "demand", "retire". ``body`` is JSON (UTF-8), b"" for none."""

    query_id: int
    what: str
    body: bytes


class Reply(NamedTuple):
    """Answer to a Query: JSON, or ``error`` in words."""

    query_id: int
    body: bytes
    error: str


FromWorker = (WorkerHello | CacheOffer | ResourceReport | CacheUpdate | CacheInvalid | CacheGone | TaskDone | Recalled
              | WatchData | UploadFailed | LeaveRequest | Pong)
ToWorker = (Welcome | PutInline | Fetch | MiniTask | SetLevel | Unlink | Dispatch | Kill | Recall | Upload | Ping
            | Drain | Release | PeerKey)
Message = FromWorker | ToWorker | Query | Reply

#: Wire number of each message. Append only; a number is never used again.
NUMBERS: dict[type, int] = {
    WorkerHello: 1, CacheOffer: 2, ResourceReport: 3, CacheUpdate: 4, CacheInvalid: 5, CacheGone: 6, TaskDone: 7,
    Recalled: 8, WatchData: 9, UploadFailed: 10, LeaveRequest: 11, Pong: 12,
    Welcome: 32, PutInline: 33, Fetch: 34, MiniTask: 35, SetLevel: 36, Unlink: 37, Dispatch: 38, Kill: 39, Recall: 40,
    Upload: 41, Ping: 42, Drain: 43, Release: 44, PeerKey: 45,
    Query: 64, Reply: 65,
}

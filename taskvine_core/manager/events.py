"""What goes into the manager core and what comes out.

Owns the events (from the program, from workers, from the runner's I/O), the actions, and the outcome of a task.
Immutable NamedTuples rather than frozen dataclasses: the same guarantees, a third of the cost to create, and there are
several per task. Must not know sockets or files beyond path strings.
"""

from __future__ import annotations

from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol.messages import Measured, Message, WorkerHello
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources

# ---------------------------------------------------------------------------- events: from the program


class Declare(NamedTuple):
    """A file exists for the program. Declaring the same name again is harmless (the first one counts)."""

    decl: FileDecl


class Submit(NamedTuple):
    """A user task. All its files were declared. ``task_id`` is new and larger than any before."""

    task_id: int
    spec: TaskSpec


class Cancel(NamedTuple):
    """Stop these user tasks; each comes back as CANCELLED."""

    task_ids: tuple[int, ...]


class Undeclare(NamedTuple):
    """The program will not use the file any more."""

    name: str


class Prune(NamedTuple):
    """Drop all replicas, keep the declaration."""

    name: str


class WantContents(NamedTuple):
    """The program wants the bytes of an object that only workers hold; answered by ContentsArrived."""

    name: str


class BlockHost(NamedTuple):
    """No more tasks for workers of this host until ``until`` (seconds since the epoch, 0 = for ever)."""

    host: str
    until: float


class UnblockHost(NamedTuple):
    """"" unblocks all."""

    host: str


class DrainHost(NamedTuple):
    """Start or stop draining the workers of a host."""

    host: str
    drain: bool


class RetireWorkers(NamedTuple):
    """Ask these workers (by worker id) to drain and leave."""

    worker_ids: tuple[str, ...]
    reason: str


class ShutdownIdle(NamedTuple):
    """Ask so many idle workers to exit (0 = all)."""

    how_many: int


class CloseDown(NamedTuple):
    """The manager ends: tell workers to disconnect, or to exit."""

    exit_workers: bool


# ---------------------------------------------------------------------------- events: from I/O


class WorkerJoined(NamedTuple):
    """A worker finished its handshake and said hello. ``key`` names the connection, never reused."""

    key: int
    hello: WorkerHello
    host: str
    port: int


class MessageArrived(NamedTuple):
    """A message of a joined worker."""

    key: int
    message: Message


class WorkerGone(NamedTuple):
    """The connection ended, for whatever reason."""

    key: int
    reason: str


class LocalMissing(NamedTuple):
    """A local input could not be read when it was to be sent. ``path``: the one for some workers ($OS, $ARCH); "":
    the same for all."""

    name: str
    reason: str
    path: str = ""


class UploadEnded(NamedTuple):
    """A transfer announced by ExpectUpload ended. ``error`` "" = arrived under the path the action named; ``final``:
    the path cannot be written, and another try would fail like this one."""

    transfer_id: int
    size_bytes: int
    sha256: bytes
    is_dir: bool
    error: str
    final: bool = False


class Stored(NamedTuple):
    """Answer to a StoreInline with a ``store_id``. ``error`` "" = the file is complete where it was to be."""

    task_id: int
    store_id: int
    error: str


class Tick(NamedTuple):
    """Time passed; sent at least when ``ManagerCore.next_deadline`` is reached."""


Event = (Declare | Submit | Cancel | Undeclare | Prune | WantContents | BlockHost | UnblockHost | DrainHost
         | RetireWorkers
         | ShutdownIdle | CloseDown | WorkerJoined | MessageArrived | WorkerGone | LocalMissing | UploadEnded
         | Stored | Tick)

# ---------------------------------------------------------------------------- outcome


class TaskTimes(NamedTuple):
    """Seconds since the epoch (0 = never) and durations in seconds, for Task.get_metric."""

    submitted: float = 0.0
    commit_start: float = 0.0
    commit_end: float = 0.0
    retrieval: float = 0.0
    done: float = 0.0
    execute_last_s: float = 0.0
    execute_all_s: float = 0.0
    execute_exhaustion_s: float = 0.0
    execute_failure_s: float = 0.0
    start: float = 0.0
    end: float = 0.0


class TaskOutcome(NamedTuple):
    """Everything the program learns about a finished task. ``stdout_path`` is set instead of ``stdout`` when large.

    ``limits`` is the broken limit (-1 elements not broken) or None. ``error`` tells why in words where there is more
    to say than the result code.
    """

    task_id: int
    result: int
    exit_code: int
    stdout: bytes
    stdout_path: str
    hostname: str
    addrport: str
    allocated: Resources
    measured: Measured
    limits: Resources | None
    times: TaskTimes
    bytes_sent: int
    bytes_received: int
    dispatches: int
    error: str


# ---------------------------------------------------------------------------- actions


class Send(NamedTuple):
    """Queue a message on a worker's connection; the runner writes once per turn."""

    key: int
    message: Message


class SendLocal(NamedTuple):
    """Read a small local file and send it as PutInline; LocalMissing when it cannot be read."""

    key: int
    decl: FileDecl


class CheckLocal(NamedTuple):
    """A worker was just told to fetch this local object from us: LocalMissing when it does not exist."""

    decl: FileDecl


class StoreInline(NamedTuple):
    """Put a small output where the program wants it: a local path, or (path "") the buffer ``name``.
    With a ``store_id`` the task is not returned before Stored has answered: a disk may be full."""

    task_id: int
    name: str
    path: str
    data: bytes
    mode: int
    store_id: int


class AppendWatched(NamedTuple):
    """Write ``data`` at ``offset`` of a watched output's local path."""

    path: str
    offset: int
    data: bytes


class ExpectUpload(NamedTuple):
    """A worker will send an object: receive it under ``path`` ("" = a staging file of the runner's choice).
    Answered by UploadEnded. ``purpose``: "output", "stdout", "contents" or "relay"."""

    transfer_id: int
    name: str
    path: str
    purpose: str
    mode: int


class CancelUpload(NamedTuple):
    """Nobody waits for this transfer any more."""

    transfer_id: int


class SenderGone(NamedTuple):
    """The worker of this upload is lost. It ends all the same, with exactly one UploadEnded: what has begun to arrive
    may be complete, what has not is told to have failed."""

    transfer_id: int


class Complete(NamedTuple):
    """A user task is finished; the program may have it."""

    outcome: TaskOutcome


class ContentsArrived(NamedTuple):
    """Answer to WantContents. The bytes are here when they are few, else at the runner under ``transfer_id``, or
    ``error`` says why not."""

    name: str
    transfer_id: int
    error: str
    data: bytes | None = None


class Disconnect(NamedTuple):
    """Close a worker's connection after writing what is queued."""

    key: int
    reason: str


class Notice(NamedTuple):
    """Something the person running the program should read (standard error and debug log)."""

    text: str


Action = (Send | SendLocal | CheckLocal | StoreInline | AppendWatched | ExpectUpload | CancelUpload | SenderGone
          | Complete
         | ContentsArrived
          | Disconnect | Notice)

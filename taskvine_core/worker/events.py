"""What happens to a worker (events) and what its core asks for (actions).

Owns the vocabulary between core and runner. Must not know sockets, processes or policy.

``run`` is the worker's own number of one execution (task attempt or mini-task), never used twice by a process.
``serial`` is the same for one arrival of one object. Times are seconds since the epoch.
"""

from __future__ import annotations

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol.messages import Message, OutputReport, WorkerHello
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources

# ------------------------------------------------------------------------------------------------ events


class Connected(NamedTuple):
    """A manager's session is established; ``hello`` is what to introduce ourselves with."""

    hello: WorkerHello


class ConnectFailed(NamedTuple):
    """No manager could be reached. ``denied``: one was, but the secrets or versions differ."""

    reason: str
    denied: bool


class Disconnected(NamedTuple):
    """The manager is gone, or spoke garbage."""

    reason: str


class Received(NamedTuple):
    """All messages that came in one turn of the loop, in order."""

    messages: list[Message]


class Started(NamedTuple):
    run: int


class StartFailed(NamedTuple):
    """The run could not be started. ``lost``: inputs that are no longer what was stored."""

    run: int
    reason: str
    lost: tuple[str, ...] = ()


class Exited(NamedTuple):
    """The main process of a run ended and its whole group is dead. ``exit_code`` is the signal number after a signal.

    ``error``: the run ended because of the worker's own machinery, not of the task ("" otherwise).
    """

    run: int
    exit_code: int
    cpu_s: float
    memory_mb: int
    error: str = ""


class Collected(NamedTuple):
    """Outputs of a run were moved into the cache, those that are not kept only read: their reports have the bytes."""

    run: int
    stdout: bytes
    stdout_bytes: int
    stdout_name: str
    stdout_cut: bool
    outputs: tuple[OutputReport, ...]
    missing: tuple[str, ...]
    error: str


class ObjectArrived(NamedTuple):
    """A fetched object lies complete in its transfer file."""

    serial: int
    size_bytes: int
    sha256: bytes
    is_dir: bool
    mode: int
    start: float
    wall_s: float


class ObjectFailed(NamedTuple):
    serial: int
    blame: int
    reason: str


class FetchEnded(NamedTuple):
    """A fetch job is over: every one of its serials was reported before."""

    job: int


class StoreFailed(NamedTuple):
    """An object believed to be here could not be stored, or is damaged."""

    name: str
    blame: int
    reason: str
    asked: bool   # True: the manager waits for word on it (it just sent it)


class UploadEnded(NamedTuple):
    transfer_id: int
    name: str
    error: str


class DiskMeasured(NamedTuple):
    run: int
    disk_mb: int


class MemoryMeasured(NamedTuple):
    run: int
    memory_mb: int
    processes: int


class SharesMeasured(NamedTuple):
    """(run, MB) for runs as asked, each with its share of what it shares with others."""

    shares: tuple[tuple[int, int], ...]


class WatchRead(NamedTuple):
    """Bytes of a watched output from ``offset``; ``ended`` when it shrank and must not be followed further."""

    run: int
    name: str
    offset: int
    data: bytes
    ended: bool


class Terminate(NamedTuple):
    """The process was told to go (SIGTERM, SIGINT, parent gone). ``at_once``: do not drain."""

    reason: str
    at_once: bool


class Tick(NamedTuple):
    """Time passed; sent when ``WorkerCore.next_wakeup`` says so."""


Event = (Connected | ConnectFailed | Disconnected | Received | Started | StartFailed | Exited | Collected
         | ObjectArrived | ObjectFailed | FetchEnded | StoreFailed | UploadEnded | DiskMeasured | MemoryMeasured
         | SharesMeasured | WatchRead | Terminate | Tick)

# ------------------------------------------------------------------------------------------------ actions


class Send(NamedTuple):
    message: Message


class SendReport(NamedTuple):
    """Send a ResourceReport; the runner adds the free disk it sees."""

    total: Resources
    cache_mb: int


class StartRun(NamedTuple):
    """Make the sandbox, start the process. Answered by Started or StartFailed."""

    run: int
    spec: TaskSpec
    allocation: Resources
    gpus: tuple[str, ...]
    is_mini: bool


class KillRun(NamedTuple):
    """SIGKILL the whole run; Exited follows."""

    run: int


class OutputOrder(NamedTuple):
    """``inline``: the manager wants the bytes, if they are few."""

    name: str
    remote: str
    level: int
    inline: bool
    mode: int = 0

    @property
    def is_temp(self) -> bool:
        return self.name.startswith("temp-")

    @property
    def kept(self) -> bool:
        """Does it stay here even though its bytes went to the manager? (protocol: OutputReport)"""
        return self.is_temp or self.level > VINE_CACHE_LEVEL_TASK


class Collect(NamedTuple):
    """Take outputs and stdout out of the sandbox, then delete it. Answered by Collected."""

    run: int
    outputs: tuple[OutputOrder, ...]
    stdout_name: str
    max_stdout_bytes: int


class DropRun(NamedTuple):
    """Delete the sandbox of a run whose results nobody wants."""

    run: int


class StoreInline(NamedTuple):
    name: str
    level: int
    mode: int
    sha256: bytes
    data: bytes
    check: bool         # is the hash the sender's, to be compared, or was it just computed?


class FetchItem(NamedTuple):
    serial: int
    name: str
    size_bytes: int
    sha256: bytes


class StartFetch(NamedTuple):
    """One connection (or URL) for one or many objects; each is received into the transfer file of its serial."""

    job: int
    where: int
    address: str
    timeout_s: float
    items: tuple[FetchItem, ...]


class CancelFetch(NamedTuple):
    job: int


class Commit(NamedTuple):
    """Move the transfer file of ``serial`` into the cache under ``name``."""

    serial: int
    name: str
    level: int
    mode: int
    size_bytes: int
    sha256: bytes
    is_dir: bool


class Discard(NamedTuple):
    """Delete the transfer file of ``serial``."""

    serial: int


class RemoveObjects(NamedTuple):
    names: tuple[str, ...]


class Relevel(NamedTuple):
    name: str
    level: int


class StartUpload(NamedTuple):
    transfer_id: int
    name: str
    timeout_s: float


class MeasureDisk(NamedTuple):
    run: int


class MeasureMemory(NamedTuple):
    run: int


class MeasureShares(NamedTuple):
    """Measure the memory of these runs exactly; it takes longer. Answered by SharesMeasured."""

    runs: tuple[int, ...]


class ReadWatched(NamedTuple):
    run: int
    name: str
    remote: str
    offset: int


class Connect(NamedTuple):
    """Look for a manager now."""


class Disconnect(NamedTuple):
    """Close the control connection after sending what is queued; no Disconnected follows."""

    reason: str


class Exit(NamedTuple):
    status: int
    reason: str


Action = (Send | SendReport | StartRun | KillRun | Collect | DropRun | StoreInline | StartFetch | CancelFetch | Commit
          | Discard | RemoveObjects | Relevel | StartUpload | MeasureDisk | MeasureMemory | MeasureShares | ReadWatched
          | Connect | Disconnect | Exit)

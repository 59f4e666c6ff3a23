"""What the manager core remembers about tasks, attempts, workers, files and transfers.

Owns the mutable records and the small facts that follow from them alone. Must not decide anything.
Slots everywhere: a million waiting tasks are a million TaskRecords.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from taskvine_core.constants import (
    VINE_BUFFER,
    VINE_CACHE_LEVEL_TASK,
    VINE_FILE,
    VINE_MINI_TASK,
    VINE_TASK_INITIAL,
    VINE_TASK_TYPE_RECOVERY,
    VINE_TASK_TYPE_STANDARD,
    VINE_TEMP,
    VINE_URL,
)
from taskvine_core.manager.states import REPLICA_READY, WORKER_SERVING, check_task_transition
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol.messages import NOT_MEASURED, CacheEntry, Measured, WorkerHello
from taskvine_core.resources import ZERO, Resources

if TYPE_CHECKING:
    from taskvine_core.manager.ready import Shape

PRIORITY_NORMAL, PRIORITY_EXHAUSTION, PRIORITY_RECOVERY = 0, 1, 2

MB = 1 << 20
#: Names of gpus kept per worker at most, whatever a worker claims.
MAX_GPUS = 1024


def gpu_names(count: int) -> list[str]:
    """Names of a worker's gpus: "0", "1", ..."""
    return [str(number) for number in range(min(MAX_GPUS, max(0, count)))]


class Totals:
    """What earlier attempts of a task added up to; most tasks never need one."""

    __slots__ = ("bytes_received", "bytes_sent", "execute_all_s", "execute_exhaustion_s", "execute_failure_s")

    def __init__(self) -> None:
        self.execute_all_s = 0.0
        self.execute_exhaustion_s = 0.0
        self.execute_failure_s = 0.0
        self.bytes_sent = 0
        self.bytes_received = 0


class Run:
    """One attempt at a worker."""

    __slots__ = (
        "addrport",
        "allocation",
        "bytes_received",
        "bytes_sent",
        "commit_end",
        "commit_start",
        "end",
        "error",
        "exit_code",
        "gpus",
        "hostname",
        "levels",
        "limits",
        "measured",
        "queued",
        "result",
        "retrieval",
        "start",
        "stdout",
        "stdout_path",
        "successor",
        "uploads",
        "worker",
    )

    def __init__(self, worker: WorkerRecord, allocation: Resources, gpus: tuple[str, ...], queued: bool,
                 now: float) -> None:
        self.worker = worker
        self.hostname = worker.hello.hostname
        self.addrport = worker.addrport
        self.allocation = allocation
        self.gpus = gpus
        self.queued = queued  # beyond the worker's free room: waits in the worker's own queue
        self.successor: TaskRecord | None = None  # sent along: it reads what this run makes (task-groups)
        self.commit_start = self.commit_end = now
        self.start = self.end = self.retrieval = 0.0
        self.result = 0
        self.exit_code = -1
        self.stdout = b""
        self.stdout_path = ""
        self.measured: Measured = NOT_MEASURED
        self.limits: Resources | None = None
        self.error = ""
        self.uploads: set[int] | None = None
        self.levels: tuple[int, ...] = ()  # cache levels of the outputs as the worker was told
        self.bytes_sent = 0
        self.bytes_received = 0


class TaskRecord:
    """A task from submit until the program has it."""

    __slots__ = ("attempts", "blocked", "earlier", "exhausted", "forsaken", "id", "kind", "manager_priority",
                 "not_before",
                 "run", "sent", "shape", "spec", "state", "submitted")

    def __init__(self, task_id: int, spec: TaskSpec, now: float, kind: int = VINE_TASK_TYPE_STANDARD) -> None:
        self.id = task_id
        self.spec = spec
        self.kind = kind
        self.state = VINE_TASK_INITIAL
        self.manager_priority = PRIORITY_NORMAL
        self.attempts = 0  # those that count for retries
        self.sent = 0  # number of the last Dispatch; never goes back, so an old report cannot pass for a new one
        self.forsaken = 0
        self.exhausted = False
        self.blocked = 0  # inputs that do not exist yet
        self.not_before = 0.0
        self.submitted = now
        self.shape: Shape | None = None  # the ready queue it stands in
        self.run: Run | None = None
        self.earlier: Totals | None = None

    def to(self, state: int) -> None:
        """Change state; StateError when the table does not allow it."""
        check_task_transition(self.id, self.state, state)
        self.state = state


class WorkerRecord:
    """A connected worker."""

    __slots__ = (
        "addrport",
        "blocked",
        "bucket",
        "bytes_moved",
        "cache_mb",
        "cached_bytes",
        "disk_free_mb",
        "done",
        "done_s",
        "end_time",
        "features",
        "files",
        "following",
        "free_gpus",
        "hello",
        "host",
        "id",
        "idle_since",
        "in_use",
        "incoming",
        "joined",
        "key",
        "last_heard",
        "leave_exit",
        "leave_reason",
        "most",
        "not_before",
        "offered",
        "outgoing",
        "pinged",
        "queued",
        "retrieving",
        "running",
        "sent_bad",
        "sent_ok",
        "slow_alarms",
        "sole",
        "state",
        "strikes",
        "took_bad",
        "took_ok",
        "totals",
    )

    def __init__(self, key: int, hello: WorkerHello, host: str, port: int, now: float) -> None:
        self.key = key
        self.id = hello.worker_id
        self.hello = hello
        self.host = host
        self.addrport = f"{host}:{port}"
        self.totals = self.most = hello.resources.at_least(ZERO)  # offered now, and at any time
        self.in_use = ZERO  # allocations of running tasks; the cache is counted apart
        self.cached_bytes = 0
        self.cache_mb = 0
        self.disk_free_mb = -1
        self.free_gpus = gpu_names(hello.resources.gpus)
        self.features = frozenset(hello.features)
        self.end_time = hello.end_time
        self.running: dict[int, TaskRecord] = {}
        self.queued: dict[int, TaskRecord] = {}
        self.following: dict[int, TaskRecord] = {}  # sent, and wait there for what a task before them makes
        self.retrieving: dict[int, TaskRecord] = {}
        self.files: dict[str, FileRecord] = {}
        self.offered: dict[str, CacheEntry] = {}
        self.outgoing = 0
        self.incoming = 0
        self.sent_ok = self.sent_bad = self.took_ok = self.took_bad = 0
        self.bytes_moved = 0
        self.state = WORKER_SERVING
        self.leave_reason = ""
        self.leave_exit = True
        self.blocked = False
        self.not_before = 0.0
        self.strikes = 0  # consecutive attempts forsaken here
        self.slow_alarms = 0
        #: While it drains: temps that may lie only here (entries may be stale, none is absent).
        self.sole: deque[FileRecord] | None = None
        self.bucket = -1
        self.joined = self.last_heard = self.idle_since = now
        self.pinged = 0.0
        self.done = 0
        self.done_s = 0.0

    @property
    def busy(self) -> bool:
        """Has tasks in any stage."""
        return bool(self.running or self.queued or self.following or self.retrieving)

    @property
    def sent(self) -> int:
        """Tasks that it was sent and that have not ended."""
        return len(self.running) + len(self.queued) + len(self.following)

    def tasks(self) -> Iterator[TaskRecord]:
        """Those."""
        return chain(self.running.values(), self.queued.values(), self.following.values())

    def peer_address(self) -> str:
        """host:port where other workers fetch from it, "" when it cannot serve."""
        if not self.hello.transfer_port:
            return ""
        return f"{self.hello.transfer_host or self.host}:{self.hello.transfer_port}"


class Fault:
    """How often a source failed for a file, and until when it rests."""

    __slots__ = ("count", "until")

    def __init__(self) -> None:
        self.count = 0
        self.until = 0.0


#: What every file without a replica has; never written to (``FileRecord.put_replica`` makes one of its own).
_NOWHERE: dict[int, int] = {}


class FileRecord:
    """A file: where its replicas are, who needs it, how it can be made again."""

    __slots__ = (
        "at_manager",
        "decl",
        "declared",
        "faults",
        "kept",
        "level",
        "lineage_refs",
        "makers",
        "origin_busy",
        "pending",
        "producer",
        "ready",
        "recoveries",
        "recovery",
        "relay",
        "replicas",
        "sha256",
        "size",
        "users",
        "uses_ever",
        "uses_logged",
        "waiters",
        "written",
    )

    def __init__(self, decl: FileDecl) -> None:
        self.decl = decl
        self.size = decl.size
        self.sha256 = decl.sha256
        self.level = decl.level
        self.declared = True
        self.users = 0  # unfinished tasks that read or write it
        self.uses_ever = 0
        self.uses_logged = False
        self.lineage_refs = 0  # temps whose producer reads it
        self.replicas = _NOWHERE  # worker key -> REPLICA_*
        self.ready = 0
        self.at_manager = False  # a relayed copy lies in the manager's staging, or it is kept
        self.kept: tuple[bytes, int] | None = None  # a tiny temp's content and permission bits
        self.relay = 0  # transfer id of a relay under way
        self.written = False  # a task that writes it has ended (not temps)
        self.makers: list[int] | None = None  # ids of unfinished tasks that write it, ascending (not temps)
        self.producer: TaskRecord | None = None
        self.recovery: TaskRecord | None = None
        self.recoveries = 0
        self.waiters: list[TaskRecord] | None = None
        self.pending: deque[int] | None = None  # workers that wait for a source to be free
        self.origin_busy = 0
        self.faults: dict[int, Fault] | None = None

    @property
    def name(self) -> str:
        """Cached name."""
        return self.decl.name

    @property
    def available(self) -> bool:
        """Does it exist, as far as we know? What is no temp lies outside of the cluster."""
        return self.decl.kind != VINE_TEMP or self.ready > 0 or self.at_manager

    def available_to(self, task: TaskRecord) -> bool:
        """Could this task start now, somewhere, for all that concerns the file?

        A file that tasks write is read as it was when the reader was submitted: it waits for the writers submitted
        before it, so a task may read a file and write it back. Of a file that is not there yet nobody reads before
        somebody has written it, whatever came first.
        """
        if self.decl.kind == VINE_TEMP:
            return self.ready > 0 or self.at_manager
        makers = self.makers
        if not makers or task.kind == VINE_TASK_TYPE_RECOVERY:  # a recovery's reading was granted to its producer
            return True
        return makers[0] == task.id or (makers[0] > task.id and self.there)

    @property
    def there(self) -> bool:
        """Was a file of the program's there when it was declared, or has a task that writes it ended since?"""
        return self.written or self.decl.size >= 0 or self.decl.is_dir

    @property
    def shareable(self) -> bool:
        """May workers copy it from each other? Level counts as promoted, not as declared."""
        return self.decl.peer_transfer and (self.level > VINE_CACHE_LEVEL_TASK or self.decl.kind == VINE_TEMP)

    @property
    def from_manager(self) -> bool:
        """Does the manager hold the bytes?"""
        return self.decl.kind not in (VINE_TEMP, VINE_URL, VINE_MINI_TASK) or self.at_manager

    @property
    def kept_locally(self) -> bool:
        """A local file, or an output the runner keeps for the program (a buffer without content of its own)?"""
        decl = self.decl
        return decl.kind == VINE_FILE or (decl.kind == VINE_BUFFER and not decl.source and not decl.data)

    @property
    def needed(self) -> bool:
        """Does the program or an unfinished task still want it?"""
        return self.declared or self.users > 0

    def put_replica(self, key: int, state: int) -> None:
        """Note that a worker has the file, or is getting it."""
        if self.replicas is _NOWHERE:
            self.replicas = {}
        self.replicas[key] = state

    def ready_keys(self) -> list[int]:
        """Connections of the workers that hold it complete."""
        return [key for key, state in self.replicas.items() if state == REPLICA_READY]


class Transfer:
    """One attempt to move one object. ``source`` is a worker key, or one of the negative SOURCE_* below."""

    __slots__ = ("dest", "file", "id", "mode", "name", "path", "purpose", "source", "started", "task_id", "tries")

    def __init__(self, transfer_id: int, name: str, file: FileRecord | None, dest: int, source: int, started: float,
                 purpose: str = "input", task_id: int = 0) -> None:
        self.name = name
        self.id = transfer_id
        self.file = file
        self.dest = dest
        self.source = source
        self.started = started
        self.purpose = purpose
        self.task_id = task_id
        self.path = ""  # of an upload: where it goes, "" = wherever the runner keeps such things
        self.mode = 0
        self.tries = 1


#: Where a transfer comes from or goes to when it is no worker.
FROM_MANAGER, FROM_URL, FROM_MINI_TASK, TO_MANAGER = -1, -2, -3, -4

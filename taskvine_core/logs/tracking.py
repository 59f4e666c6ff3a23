"""What the logs remember of a worker or a running task between two facts about it.

Owns two records without behaviour of their own. Must not know formats or files.
"""

from __future__ import annotations

from taskvine_core.model.tasks import TaskSpec
from taskvine_core.resources import Resources


class WorkerTrack:
    """A connected worker.

    Attributes:
        worker_id: "worker-…", one word.
        address: "ip:port" of its connection.
        ip: of its connection.
        label: how debug lines name it, "host (ip:port)".
        names: objects that the debug log has shown there and not yet unlinked.
        tasks_done, busy_s: attempts ended there and the sum of their durations.
    """

    __slots__ = ("address", "busy_s", "ip", "label", "names", "tasks_done", "worker_id")

    def __init__(self, worker_id: str, hostname: str, address: str) -> None:
        self.worker_id = worker_id
        self.address = address
        self.ip = address.rpartition(":")[0]
        self.label = f"{hostname} ({address})"
        self.names: set[str] = set()
        self.tasks_done = 0
        self.busy_s = 0.0


class TaskTrack:
    """A task between its dispatch and its end.

    Attributes:
        state: VINE_TASK_* that the debug log shows.
        worker: where it runs, None when that worker was unknown.
        io: JSON fields of its commit, repeated when it is retrieved.
        start, end: of the attempt, on the worker's clock; 0 before it ended.
        held: debug line of its retrieval, kept back until it is known whether the task is tried again.
    """

    __slots__ = ("allocation", "end", "held", "io", "spec", "start", "state", "worker")

    def __init__(self, state: int, worker: WorkerTrack | None, spec: TaskSpec, allocation: Resources,
                 io: str) -> None:
        self.state = state
        self.worker = worker
        self.spec = spec
        self.allocation = allocation
        self.io = io
        self.start = 0.0
        self.end = 0.0
        self.held = ""

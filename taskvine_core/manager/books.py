"""The tables the parts of the manager core share, and the list of actions of the current event.

Owns the containers and the clock reading of the event being handled. Must not decide anything. `now` is seconds since
the epoch, set by the core at the start of every event.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from taskvine_core.logs.observer import Observer
from taskvine_core.manager.categories import Categories
from taskvine_core.manager.events import Action, Send
from taskvine_core.manager.index import WorkerIndex
from taskvine_core.manager.ready import ReadyQueue
from taskvine_core.manager.records import FileRecord, TaskRecord, Transfer, WorkerRecord
from taskvine_core.manager.stats import ManagerStats
from taskvine_core.manager.tuning import Tuning
from taskvine_core.protocol.messages import Message


class Books:
    """Everything the manager knows."""

    def __init__(self, observer: Observer, rng: Random, new_task_id: Callable[[], int]) -> None:
        self.observer = observer
        self.rng = rng
        self.new_task_id = new_task_id
        self.tuning = Tuning()
        self.categories = Categories(self.tuning, rng)
        self.stats = ManagerStats()
        self.tasks: dict[int, TaskRecord] = {}
        self.workers: dict[int, WorkerRecord] = {}
        self.by_worker_id: dict[str, WorkerRecord] = {}
        self.files: dict[str, FileRecord] = {}
        #: Objects workers offered that nobody has declared (yet): name -> worker keys.
        self.offered: dict[str, set[int]] = {}
        self.transfers: dict[int, Transfer] = {}
        #: Objects the program waits to read that must be made again first.
        self.wanted: set[str] = set()
        #: Draining workers of which something has changed since they were last asked whether they may leave.
        self.leaving: dict[WorkerRecord, None] = {}
        #: Tasks that are over, whose worker is gone and whose outputs are still being taken in.
        self.bereaved: dict[int, TaskRecord] = {}
        self.ready = ReadyQueue()
        self.index = WorkerIndex()
        self.out: list[Action] = []
        self.now = 0.0
        #: The manager's own time per task lately, µs, as the runner measures it; for the capacity estimate.
        self.own_us_per_task = 1
        self._last_transfer = 0

    def send(self, worker: WorkerRecord, message: Message) -> None:
        """Queue a message for a worker."""
        self.out.append(Send(worker.key, message))

    def look_at_leaving(self, worker: WorkerRecord) -> None:
        """Something changed that may let a draining worker leave."""
        if worker.sole is not None:
            self.leaving[worker] = None

    def new_transfer_id(self) -> int:
        """Unique per manager instance, from 1."""
        self._last_transfer += 1
        return self._last_transfer

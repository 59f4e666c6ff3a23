"""The simulated world: one manager core, its workers, the network between them, the program, and what goes wrong.

Owns delivery (latency, order per link), transfers, the program's side (submit, cancel, undeclare, count results) and the
seeded faults. Checks the core's invariants after every event when asked to. Everything is a function of the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from time import perf_counter
from typing import Any, NamedTuple

from taskvine_core.constants import VINE_RESULT_CANCELLED, VINE_TEMP, VINE_URL
from taskvine_core.manager import events as ev
from taskvine_core.manager.core import ManagerCore
from taskvine_core.manager.invariants import check_invariants
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources
from taskvine_core.sim.clock import Clock
from taskvine_core.sim.worker import OUTPUT_BYTES, SimWorker, digest_of


class Faults(NamedTuple):
    """Probabilities, each per occasion; all 0 is a perfect world."""

    disk_full: float = 0.0
    forsaken: float = 0.0
    bad_source: float = 0.0
    upload_breaks: float = 0.0
    url_fails: float = 0.0
    unreachable_pair: float = 0.0
    kill_per_s: float = 0.0
    stop_per_s: float = 0.0
    corrupt_per_s: float = 0.0
    leave_per_s: float = 0.0
    massacre_at_s: float = 0.0
    duplicate_message: float = 0.0


WHO = {msg.SOURCE_MANAGER: "manager to workers", msg.SOURCE_PEER: "worker to worker", msg.SOURCE_URL: "origin to workers"}
LATENCY_S = 0.001
BANDWIDTH_BYTES_S = 500e6
STUCK_S = 5_000.0
#: Characters of the events shown when something breaks.
MAX_SHOWN = 2_000


class SimulationError(AssertionError):
    """A rule was broken; the text has the seed."""


class World:
    """One simulation.

    Args:
        seed: everything follows from it.
        faults: what goes wrong; nothing by default.
        check: look at the core's invariants after every event (slow: for hundreds of tasks, not for a million).
        run_time: seconds one execution takes.
        large_outputs: outputs are too large to travel inside messages.
        keep_outcomes: remember every TaskOutcome in ``outcomes``; off for a million tasks.
    """

    def __init__(self, seed: int, *, faults: Faults | None = None, check: bool = True,
                 run_time: Callable[[Random], float] | None = None, large_outputs: bool = False,
                 keep_outcomes: bool = True) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.faults = faults or Faults()
        self.check = check
        self.clock = Clock()
        self.large_outputs = large_outputs
        self._run_time = run_time or (lambda rng: 0.0)
        ids = count(1)
        self.core = ManagerCore(manager_id="sim", rng=Random(seed + 1), new_task_id=lambda: next(ids), data_port=1)
        self.new_task_id = lambda: next(ids)
        self.workers: dict[int, SimWorker] = {}
        self.by_address: dict[str, SimWorker] = {}
        self.outcomes: dict[int, ev.TaskOutcome] = {}
        self.on_complete: Callable[[ev.TaskOutcome], None] = lambda outcome: None
        self.contents: dict[str, bytes] = {}
        self.submitted = 0
        self.unfinished: set[int] = set()
        self.results: Counter[int] = Counter()
        self.keep_outcomes = keep_outcomes
        self.executions: Counter[int] = Counter()
        self.moved: Counter[str] = Counter()  # bytes by whom
        self.events = 0
        self.core_s = 0.0  # wall time inside the core
        self.longest_turn_s = 0.0
        self._keys = count(1)
        self._expected: dict[int, ev.ExpectUpload] = {}
        self._cancelled: set[int] = set()
        self._to_manager: list[ev.Event] = []
        self._delivery_planned = False
        self._to_workers: list[tuple[int, Any]] = []
        self._to_workers_at = 0.0
        self._tick_at = float("inf")
        self._walls: set[tuple[int, int]] = set()

    # ------------------------------------------------------------------ chance

    def chance(self, what: str) -> bool:
        """Does this fault happen now?"""
        probability: float = getattr(self.faults, what)
        return probability > 0 and self.rng.random() < probability

    def run_time_s(self, order: msg.Dispatch) -> float:
        """How long this execution takes."""
        return self._run_time(self.rng)

    def started(self, order: msg.Dispatch) -> None:
        """A worker started a task."""
        if self.keep_outcomes:
            self.executions[order.task_id] += 1

    def check_content(self, name: str, sha256: bytes) -> None:
        """A task is about to read an input: it must be the real thing."""
        wanted = self.contents.get(name)
        if wanted and sha256 and wanted != sha256:
            raise SimulationError(f"seed {self.seed}: a task would read a wrong version of {name}")

    # ------------------------------------------------------------------ the manager

    def tell(self, *events: ev.Event) -> None:
        """Events for the core, now."""
        self.events += len(events)
        try:
            started = perf_counter()
            actions = self.core.handle_all(events, self.clock.now)
            spent = perf_counter() - started
            self.core_s += spent
            self.longest_turn_s = max(self.longest_turn_s, spent)
            if self.check:
                check_invariants(self.core)
        except Exception as error:
            raise SimulationError(f"seed {self.seed}, t={self.clock.now - 1e9:.3f}, {repr(events)[:MAX_SHOWN]}: "
                                  f"{error!r}") from error
        for action in actions:
            self._act(action)
        self._plan_tick()

    def _plan_tick(self) -> None:
        deadline = self.core.next_deadline()
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.clock.at(deadline, self._tick)

    def _tick(self) -> None:
        if self._tick_at <= self.clock.now:
            self._tick_at = float("inf")
            self.tell(ev.Tick())

    def to_manager(self, worker: SimWorker, message: Any) -> None:
        """A worker's message arrives after the link's latency, with others that arrive at the same time."""
        if worker.key in self.core.books.workers or isinstance(message, msg.WorkerHello):
            event = ev.MessageArrived(worker.key, message)
            self._to_manager.append(event)
            if self.chance("duplicate_message"):
                self._to_manager.append(event)
            if not self._delivery_planned:
                self._delivery_planned = True
                self.clock.after(LATENCY_S, self._deliver)

    def _deliver(self) -> None:
        self._delivery_planned = False
        events, self._to_manager = self._to_manager, []
        if self.check:
            for event in events:
                self.tell(event)
        else:
            self.tell(*events)

    def _act(self, action: ev.Action) -> None:
        if isinstance(action, ev.Send):
            self._to_worker(action.key, action.message)
        elif isinstance(action, ev.Complete):
            self._complete(action.outcome)
        elif isinstance(action, ev.ExpectUpload):
            self._expected[action.transfer_id] = action
        elif isinstance(action, ev.CancelUpload):
            self._expected.pop(action.transfer_id, None)
        elif isinstance(action, ev.Disconnect):
            self._cut(action.key)

    def _to_worker(self, key: int, message: Any) -> None:
        """After the link's latency; messages of one moment share one entry of the clock."""
        due = self.clock.now + LATENCY_S
        if due != self._to_workers_at:
            batch: list[tuple[int, Any]] = []
            self._to_workers, self._to_workers_at = batch, due
            self.clock.at(due, lambda: self._hand_out(batch))
        self._to_workers.append((key, message))

    def _hand_out(self, batch: list[tuple[int, Any]]) -> None:
        for key, message in batch:
            worker = self.workers.get(key)
            if worker is not None:
                worker.receive(message)

    def _complete(self, outcome: ev.TaskOutcome) -> None:
        if outcome.task_id not in self.unfinished:
            raise SimulationError(f"seed {self.seed}: task {outcome.task_id} came back twice or was never submitted")
        self.unfinished.discard(outcome.task_id)
        self.results[outcome.result] += 1
        if self.keep_outcomes:
            self.outcomes[outcome.task_id] = outcome
        self.on_complete(outcome)

    # ------------------------------------------------------------------ workers come and go

    def join(self, resources: Resources, features: tuple[str, ...] = ()) -> SimWorker:
        """A new worker connects."""
        key = next(self._keys)
        host = f"10.{key >> 16 & 255}.{key >> 8 & 255}.{key & 255}"
        hello = msg.WorkerHello(f"worker-{self.seed}-{key}", f"host{key}", "linux", "x86_64", "sim", features, resources,
                                host, 1000, 0.0, 900.0, "", "")
        worker = SimWorker(self, key, hello)
        self.workers[key] = worker
        self.by_address[f"{host}:1000"] = worker
        self.tell(ev.WorkerJoined(key, hello, host, 1))
        return worker

    def kill(self, worker: SimWorker) -> None:
        """SIGKILL: the manager sees the connection close a little later."""
        worker.die()
        self.clock.after(LATENCY_S, lambda: self._gone(worker))

    def released(self, worker: SimWorker) -> None:
        """The worker left as told."""
        self.clock.after(LATENCY_S, lambda: self._gone(worker))

    def _gone(self, worker: SimWorker) -> None:
        if self.workers.pop(worker.key, None) is not None:
            self.tell(ev.WorkerGone(worker.key, "closed by the peer"))

    def _cut(self, key: int) -> None:
        """The manager closed the connection: to the worker that is the end of its tasks."""
        worker = self.workers.get(key)
        if worker is not None:
            worker.die()
            self.clock.after(LATENCY_S, lambda: self._gone(worker))

    # ------------------------------------------------------------------ bytes

    def transfer(self, dest: SimWorker, order: msg.Fetch) -> None:
        """Carry out a Fetch in virtual time."""
        size = max(order.size_bytes, 0) or OUTPUT_BYTES
        self.clock.after(LATENCY_S + size / BANDWIDTH_BYTES_S, lambda: self._arrive(dest, order))

    def _arrive(self, dest: SimWorker, order: msg.Fetch) -> None:
        if order.where == msg.SOURCE_PEER:
            source = self.by_address.get(order.address)
            held = source.cache.get(order.name) if source is not None and source.alive and not source.stopped else None
            if source is None or held is None or self._walled(source, dest) or self.chance("bad_source"):
                dest.fetch_failed(order, msg.BLAME_SOURCE, "peer does not answer")
                return
            self.moved[WHO[order.where]] += held[0]
            dest.fetched(order, held[0], held[1])
            return
        if self.chance("disk_full"):
            dest.fetch_failed(order, msg.BLAME_SELF, "No space left on device")
        elif order.where == msg.SOURCE_URL and self.chance("url_fails"):
            dest.fetch_failed(order, msg.BLAME_OBJECT, "HTTP 503")
        else:
            size = max(order.size_bytes, 0) or OUTPUT_BYTES
            self.moved[WHO[order.where]] += size
            dest.fetched(order, size, self.contents.get(order.name, b""))

    def _walled(self, a: SimWorker, b: SimWorker) -> bool:
        pair = (min(a.key, b.key), max(a.key, b.key))
        return pair in self._walls

    def build_walls(self) -> None:
        """Some pairs of workers can never reach each other."""
        keys = sorted(self.workers)
        for one in keys:
            for other in keys:
                if one < other and self.chance("unreachable_pair"):
                    self._walls.add((one, other))

    def upload(self, source: SimWorker, order: msg.Upload, size: int, sha256: bytes) -> None:
        """A worker sends an object to the manager."""

        def arrive() -> None:
            if self._expected.pop(order.transfer_id, None) is None:
                return
            broken = not source.alive or self.chance("upload_breaks")
            error = "connection lost" if broken else ""
            if not broken:
                self.check_content(order.name, sha256)
                self.moved["workers to manager"] += size
            self.tell(ev.UploadEnded(order.transfer_id, size, sha256, False, error))

        self.clock.after(LATENCY_S + size / BANDWIDTH_BYTES_S, arrive)

    # ------------------------------------------------------------------ the program

    def declare(self, decl: FileDecl) -> None:
        """The program declares a file."""
        self.tell(ev.Declare(decl))

    def declare_temp(self, name: str) -> None:
        """A temp."""
        self.declare(FileDecl(name, VINE_TEMP, level=1))

    def declare_url(self, name: str, size: int = 1_000_000) -> None:
        """A URL."""
        self.declare(FileDecl(name, VINE_URL, source=f"http://origin/{name}", level=1, size=size))

    def submit(self, spec: TaskSpec) -> int:
        """The program submits a task."""
        return self.submit_many([spec])[0]

    def submit_many(self, specs: Sequence[TaskSpec]) -> list[int]:
        """The program submits tasks faster than the manager's turns; their ids."""
        events = []
        for spec in specs:
            task_id = self.new_task_id()
            self.submitted += 1
            self.unfinished.add(task_id)
            for mount in spec.outputs:
                self.contents[mount.name] = digest_of(spec.command, mount.name)
            events.append(ev.Submit(task_id, spec))
        self.tell(*events)
        return [event.task_id for event in events]

    def outcomes_cancelled(self) -> bool:
        """Was any task cancelled? Consumers of its outputs may then lack an input."""
        return any(outcome.result == VINE_RESULT_CANCELLED for outcome in self.outcomes.values())

    # ------------------------------------------------------------------ running

    def run(self, until: Callable[[], bool], limit_s: float = STUCK_S) -> None:
        """Let things happen until ``until()``; SimulationError when they do not within ``limit_s`` of virtual time."""
        end = self.clock.now + limit_s
        while not until():
            if self.clock.next_time() > end:
                raise SimulationError(f"seed {self.seed}: stuck with {len(self.unfinished)} tasks after {limit_s} s of "
                                      f"virtual time, e.g. {sorted(self.unfinished)[:5]}")
            self.clock.step()

    def run_to_end(self, limit_s: float = STUCK_S) -> None:
        """Until every submitted task has come back."""
        self.run(lambda: not self.unfinished, limit_s)

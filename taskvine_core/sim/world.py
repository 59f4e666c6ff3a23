"""The simulated world: one manager core, its workers, the network between them, the program, and what goes wrong.

Owns delivery (latency, order per link), the program's side (submit, cancel, undeclare, count results) and the seeded
faults. Checks the core's invariants after every event when asked to. Everything is a function of the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from time import thread_time
from typing import Any

from taskvine_core.constants import VINE_TEMP, VINE_URL
from taskvine_core.manager import events as ev
from taskvine_core.manager.core import ManagerCore
from taskvine_core.manager.invariants import check_invariants
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from taskvine_core.sim.clock import Clock
from taskvine_core.sim.network import LATENCY_S, Network
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
    reconnect_per_s: float = 0.0
    policy_per_s: float = 0.0  # the person blocks, drains or retires something
    mischief_per_s: float = 0.0
    straggler: float = 0.0
    massacre_at_s: float = 0.0
    duplicate_message: float = 0.0


STUCK_S = 5_000.0
STRAGGLER_SLOWNESS = 50.0
#: How long the manager sees nothing wrong with a half-open connection.
HALF_OPEN_S = 2.0
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
        tiny_temps: every other temp is small enough to travel with its task's report.
        keep_outcomes: remember every TaskOutcome in ``outcomes``; off for a million tasks.
    """

    def __init__(
        self,
        seed: int,
        *,
        faults: Faults | None = None,
        check: bool = True,
        run_time: Callable[[Random], float] | None = None,
        large_outputs: bool = False,
        tiny_temps: bool = False,
        keep_outcomes: bool = True,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.faults = faults or Faults()
        self.check = check
        self.clock = Clock()
        self.large_outputs = large_outputs
        self.tiny_temps = tiny_temps
        self._run_time = run_time or (lambda rng: 0.0)
        self._ids = count(1)
        self.core = self._new_core("first")
        self.network = Network(self)
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
        self.events = 0
        self.core_s = 0.0  # CPU time inside the core: it never waits
        self.longest_turn_s = 0.0
        self._keys = count(1)
        self.expected: dict[int, ev.ExpectUpload] = {}
        self.local_files: set[str] = set()  # paths that exist at the manager
        self.watched: Counter[str] = Counter()  # bytes appended by path
        self._to_manager: list[ev.Event] = []
        self._delivery_planned = False
        self._to_workers: list[tuple[int, Any]] = []
        self._to_workers_at = 0.0
        self._tick_at = float("inf")

    def _new_core(self, manager_id: str) -> ManagerCore:
        return ManagerCore(manager_id=manager_id, rng=Random(self.seed + 1), new_task_id=self.new_task_id, data_port=1)

    def new_task_id(self) -> int:
        """Ids grow, over restarts too."""
        return next(self._ids)

    # ------------------------------------------------------------------ chance

    def chance(self, what: str) -> bool:
        """Does this fault happen now?"""
        probability: float = getattr(self.faults, what)
        return probability > 0 and self.rng.random() < probability

    def run_time_s(self) -> float:
        """How long one execution takes."""
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
            started = thread_time()
            actions = self.core.handle_all(events, self.clock.now)
            spent = thread_time() - started
            self.core_s += spent
            self.longest_turn_s = max(self.longest_turn_s, spent)
            if self.check:
                check_invariants(self.core)
        except Exception as error:
            raise SimulationError(
                f"seed {self.seed}, t={self.clock.now - 1e9:.3f}, {repr(events)[:MAX_SHOWN]}: {error!r}"
            ) from error
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
            self.expected[action.transfer_id] = action
        elif isinstance(action, ev.CancelUpload):
            self.expected.pop(action.transfer_id, None)
        elif isinstance(action, ev.SenderGone):
            self._sender_gone(action.transfer_id)
        elif isinstance(action, ev.Disconnect):
            self._cut(action.key)
        elif isinstance(action, ev.StoreInline):
            self.local_files.add(action.path)
            self._answer_store(action)
        elif isinstance(action, ev.AppendWatched):
            self.watched[action.path] += len(action.data)
        elif isinstance(action, ev.CheckLocal | ev.SendLocal):
            self._read_local(action)

    def _sender_gone(self, transfer_id: int) -> None:
        """The last bytes of an upload may have been on their way when its worker died."""
        core, expected = self.core, self.expected.pop(transfer_id, None)
        if expected is None:
            return
        error = self.rng.choice(("", "connection lost"))
        if not error:
            self.local_files.add(expected.path)
        ended = ev.UploadEnded(transfer_id, 0 if error else OUTPUT_BYTES, b"", False, error)
        self.clock.after(LATENCY_S, lambda: self.tell(ended) if core is self.core else None)

    def _answer_store(self, action: ev.StoreInline) -> None:
        core = self.core
        if action.store_id:
            stored = ev.Stored(action.task_id, action.store_id, "")
            self.clock.after(0.0, lambda: self.tell(stored) if core is self.core else None)

    def _read_local(self, action: ev.CheckLocal | ev.SendLocal) -> None:
        """The runner reads a local input, or finds that it does not exist."""
        decl, core = action.decl, self.core
        if decl.source not in self.local_files:
            self.clock.after(
                0.0, lambda: self.tell(ev.LocalMissing(decl.name, "no such file")) if core is self.core else None
            )
        elif isinstance(action, ev.SendLocal):
            self._to_worker(
                action.key, msg.PutInline(decl.name, decl.level, decl.mode, decl.sha256, b"x" * max(0, decl.size))
            )

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
        hello = msg.WorkerHello(
            f"worker-{self.seed}-{key}",
            f"host{key}",
            "linux",
            "x86_64",
            "sim",
            features,
            resources,
            host,
            1000,
            0.0,
            900.0,
            "",
            "",
        )
        worker = SimWorker(self, key, hello)
        if self.chance("straggler"):
            worker.slowness = STRAGGLER_SLOWNESS
        self._connect(worker)
        return worker

    def _connect(self, worker: SimWorker) -> None:
        hello = worker.hello
        self.workers[worker.key] = worker
        self.by_address[f"{hello.transfer_host}:{hello.transfer_port}"] = worker
        self.tell(ev.WorkerJoined(worker.key, hello, hello.transfer_host, 1))

    def reconnect(self, worker: SimWorker, *, half_open: bool = False, after_s: float = 0.0) -> None:
        """The worker lost its link and comes back with its cache. ``half_open``: the old one stays open."""
        if self.workers.pop(worker.key, None) is None:
            return
        again = worker.reborn(next(self._keys))
        if half_open:
            self.clock.after(after_s + HALF_OPEN_S, lambda: self.tell(ev.WorkerGone(worker.key, "reset by peer")))
        else:
            self.tell(ev.WorkerGone(worker.key, "closed by the peer"))
        self.clock.after(after_s, lambda: self._connect(again))

    def restart_manager(self, manager_id: str) -> None:
        """The program dies and is started again: all is forgotten but ids, local files and what workers keep."""
        self.core = self._new_core(manager_id)
        self.unfinished.clear()
        self.outcomes.clear()
        self.expected.clear()
        self._to_manager.clear()
        self._tick_at = float("inf")
        for worker in list(self.workers.values()):
            self.reconnect(worker, after_s=self.rng.uniform(0.01, 1.0))

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
            self.declared_outputs(spec)
            self.unfinished.add(task_id)
            events.append(ev.Submit(task_id, spec))
        self.tell(*events)
        return [event.task_id for event in events]

    def declared_outputs(self, spec: TaskSpec) -> None:
        """What the outputs of a task will contain."""
        for mount in spec.outputs:
            self.contents[mount.name] = digest_of(spec.command, mount.name)

    # ------------------------------------------------------------------ running

    def run(self, until: Callable[[], bool], limit_s: float = STUCK_S) -> None:
        """Let things happen until ``until()``; SimulationError when they do not within ``limit_s`` of virtual time."""
        end = self.clock.now + limit_s
        while not until():
            if self.clock.next_time() > end:
                raise SimulationError(
                    f"seed {self.seed}: stuck with {len(self.unfinished)} tasks after {limit_s} s of "
                    f"virtual time, e.g. {sorted(self.unfinished)[:5]}"
                )
            self.clock.step()

    def run_to_end(self, limit_s: float = STUCK_S) -> None:
        """Until every submitted task has come back."""
        self.run(lambda: not self.unfinished, limit_s)

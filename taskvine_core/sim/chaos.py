"""Random workloads with random faults, from a seed: what the tests and `--chaos` run.

Owns the choice of graph, worker shapes and fault rates. One call is one complete story: workers join, a random graph of
tasks is submitted, things break, everything must come back exactly once and nothing may be left behind.
"""

from __future__ import annotations

from random import Random

from taskvine_core.constants import VINE_BUFFER, VINE_CACHE_LEVEL_WORKFLOW, VINE_RESULT_CANCELLED
from taskvine_core.manager import events as ev
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources
from taskvine_core.sim.worker import SimWorker
from taskvine_core.sim.world import Faults, SimulationError, World

SHAPES = (Resources(1, 1000, 10_000, 0), Resources(4, 8000, 50_000, 0), Resources(16, 64_000, 200_000, 2))
REQUESTS = (Resources(), Resources(1, -1, -1, -1), Resources(1, 500, 1000, 0), Resources(2, 1000, 1000, 0))
FAULT_PERIOD_S = 0.5


def random_faults(rng: Random) -> Faults:
    """A mix of faults; each is absent in about half of the seeds."""

    def some(most: float) -> float:
        return rng.choice((0.0, rng.uniform(0, most)))

    return Faults(disk_full=some(0.02), forsaken=some(0.05), bad_source=some(0.2), upload_breaks=some(0.1),
                  url_fails=some(0.3), unreachable_pair=some(0.3), kill_per_s=some(0.1), stop_per_s=some(0.05),
                  corrupt_per_s=some(0.1), leave_per_s=some(0.05), massacre_at_s=rng.choice((0.0, rng.uniform(1, 10))),
                  duplicate_message=some(0.05))


class Story:
    """One random run."""

    def __init__(self, seed: int, *, workers: int = 12, tasks: int = 120) -> None:
        rng = self.rng = Random(seed)
        slow = rng.choice((0.001, 0.2, 2.0))
        self.world = World(seed, faults=random_faults(rng), run_time=lambda r: r.uniform(0, slow),
                           large_outputs=rng.random() < 0.3)
        self.workers = workers
        self.tasks = tasks
        self.temps: list[str] = []
        self.declared: set[str] = set()
        self.over = False

    def run(self) -> World:
        """Play it; SimulationError when a rule is broken."""
        world, rng = self.world, self.rng
        tuning = world.core.tuning
        tuning.set("keepalive-interval", 5)
        tuning.set("keepalive-timeout", 5)
        tuning.set("temp-replica-count", rng.choice((1, 1, 2, 3)))
        tuning.set("immediate-recovery", rng.choice((0, 1)))
        for _ in range(rng.randint(1, self.workers)):
            self._join()
        world.build_walls()
        world.clock.after(FAULT_PERIOD_S, self._break_something)
        if world.faults.massacre_at_s:
            world.clock.after(world.faults.massacre_at_s, self._massacre)
        self._submit_all()
        world.run_to_end()
        self.over = True
        self._check_results()
        self._clean_up()
        return world

    def _join(self) -> SimWorker:
        return self.world.join(self.rng.choice(SHAPES))

    # ------------------------------------------------------------------ the program

    def _submit_all(self) -> None:
        """Spread over some seconds of virtual time, in between things happen."""
        world, rng = self.world, self.rng
        self._declare(FileDecl("buffer-rnd-shared", VINE_BUFFER, level=VINE_CACHE_LEVEL_WORKFLOW, size=5, data=b"hello"))
        world.declare_url("url-rnd-data")
        self.declared.add("url-rnd-data")
        for number in range(self.tasks):
            self._submit_one(number)
            if rng.random() < 0.2:
                end = world.clock.now + rng.uniform(0, 0.3)
                while world.clock.next_time() < end:
                    world.clock.step()

    def _declare(self, decl: FileDecl) -> None:
        self.declared.add(decl.name)
        self.world.declare(decl)

    def _submit_one(self, number: int) -> None:
        world, rng = self.world, self.rng
        inputs = [Mount(name, f"in-{at}") for at, name in enumerate(rng.sample(self.temps, min(len(self.temps), rng.randint(0, 3))))]
        if rng.random() < 0.3:
            inputs.append(Mount("buffer-rnd-shared", "buffer"))
        if rng.random() < 0.2:
            inputs.append(Mount("url-rnd-data", "data"))
        outputs = []
        if rng.random() < 0.7:
            name = f"temp-rnd-{number}"
            world.declare_temp(name)
            self.declared.add(name)
            self.temps.append(name)
            outputs.append(Mount(name, "out"))
        if rng.random() < 0.3:
            name = f"buffer-rnd-out{number}"
            self._declare(FileDecl(name, VINE_BUFFER))
            outputs.append(Mount(name, "result"))
        task_id = world.submit(TaskSpec(f"task {number}", inputs=tuple(inputs), outputs=tuple(outputs),
                                        resources=rng.choice(REQUESTS), category=rng.choice(("a", "b")),
                                        priority=rng.choice((0.0, 0.0, 1.0))))
        if rng.random() < 0.03:
            world.tell(ev.Cancel((task_id,)))
        if rng.random() < 0.03 and self.temps:
            world.tell(ev.Prune(rng.choice(self.temps)))
        if rng.random() < 0.1 and len(self.temps) > 5:
            name = self.temps.pop(rng.randrange(len(self.temps)))
            self.declared.discard(name)
            world.tell(ev.Undeclare(name))

    # ------------------------------------------------------------------ what goes wrong

    def _break_something(self) -> None:
        if self.over:
            return
        world, rng, faults = self.world, self.rng, self.world.faults
        for worker in list(world.workers.values()):
            if rng.random() < faults.kill_per_s * FAULT_PERIOD_S:
                world.kill(worker)
                world.clock.after(rng.uniform(0, 3), self._join)
            elif rng.random() < faults.stop_per_s * FAULT_PERIOD_S and not worker.stopped:
                worker.stop()
                world.clock.after(rng.uniform(0.1, 20), worker.resume)
            elif rng.random() < faults.corrupt_per_s * FAULT_PERIOD_S and worker.cache:
                worker.lose(rng.choice(sorted(worker.cache)))
            elif rng.random() < faults.leave_per_s * FAULT_PERIOD_S:
                worker.send(msg.LeaveRequest(rng.choice(("idle", "sigterm")), 0.0))
        self._keep_going()
        world.clock.after(FAULT_PERIOD_S, self._break_something)

    def _keep_going(self) -> None:
        """At least two workers, and one that can run the largest request: otherwise waiting for ever is right."""
        if len(self.world.workers) < 2:
            self._join()
        if not any(worker.resources.cores > 1 for worker in self.world.workers.values()):
            self.world.join(SHAPES[1])

    def _massacre(self) -> None:
        victims = sorted(self.world.workers)[::3]
        for key in victims:
            self.world.kill(self.world.workers[key])
            self._join()

    # ------------------------------------------------------------------ the end

    def _check_results(self) -> None:
        world = self.world
        for task_id, outcome in world.outcomes.items():
            fine = outcome.result == 0 or outcome.result == VINE_RESULT_CANCELLED
            broken = world.faults.upload_breaks and outcome.result == 72
            if not fine and not broken and outcome.result != 1:
                raise SimulationError(f"seed {world.seed}: task {task_id} ended with {outcome.result}: {outcome.error}")
            if outcome.result == 1 and not world.faults.upload_breaks and not world.outcomes_cancelled():
                raise SimulationError(f"seed {world.seed}: task {task_id} lost an input: {outcome.error}")

    def _clean_up(self) -> None:
        """After the program undeclared everything nothing may be left in the books or, in the end, at workers."""
        world = self.world
        for name in sorted(self.declared):
            world.tell(ev.Undeclare(name))
        world.run(lambda: not world.core.tasks and not world.core.books.transfers, 10_000)
        if world.core.files:
            raise SimulationError(f"seed {world.seed}: files left behind: {sorted(world.core.files)[:5]}")
        if world.core.lineage.blocked or world.core.books.ready.count:
            raise SimulationError(f"seed {world.seed}: the queue is not empty")


def play(seed: int, *, workers: int = 12, tasks: int = 120) -> World:
    """Run one random story."""
    return Story(seed, workers=workers, tasks=tasks).run()

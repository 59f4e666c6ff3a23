"""Random workloads with random faults, from a seed: what the tests and `--chaos` run.

Owns the choice of worker shapes and fault rates, and what happens when. One call is one complete story: workers join, a
random program runs, things break, every task must come back exactly once and nothing may be left behind.
"""

from __future__ import annotations

from random import Random

from taskvine_core.manager import events as ev
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources
from taskvine_core.sim.mischief import lie
from taskvine_core.sim.program import RandomProgram
from taskvine_core.sim.worker import SimWorker
from taskvine_core.sim.world import Faults, SimulationError, World

SHAPES = (Resources(1, 1000, 10_000, 0), Resources(4, 8000, 50_000, 0), Resources(16, 64_000, 200_000, 2))
FAULT_PERIOD_S = 0.5
#: How long what a person has blocked or drained stays so.
POLICY_S = 3.0
#: Virtual seconds within which everything must have gone after the program gave up all files.
CLEAN_UP_S = 10_000.0
FAST_ABORT = 5.0


def random_faults(rng: Random) -> Faults:
    """A mix of faults; each is absent in about half of the seeds."""

    def some(most: float) -> float:
        return rng.choice((0.0, rng.uniform(0, most)))

    return Faults(disk_full=some(0.02), forsaken=some(0.05), bad_source=some(0.2), upload_breaks=some(0.1),
                  url_fails=some(0.3), unreachable_pair=some(0.3), kill_per_s=some(0.1), stop_per_s=some(0.05),
                  corrupt_per_s=some(0.1), leave_per_s=some(0.05), massacre_at_s=rng.choice((0.0, rng.uniform(1, 10))),
                  duplicate_message=some(0.05), reconnect_per_s=some(0.1), policy_per_s=some(0.1),
                  mischief_per_s=some(1.0), straggler=some(0.2))


class Story:
    """One random run.

    Args:
        seed: everything follows from it.
        workers: at most so many at the beginning.
        tasks: how many the program submits (twice in a story in which the manager is started again).
        check: look at all invariants after every event.
    """

    def __init__(self, seed: int, *, workers: int = 12, tasks: int = 120, check: bool = True) -> None:
        rng = self.rng = Random(seed)
        slow = rng.choice((0.001, 0.2, 2.0))
        self.world = World(seed, faults=random_faults(rng), run_time=lambda r: r.uniform(0, slow), check=check,
                           large_outputs=rng.random() < 0.3, tiny_temps=rng.random() < 0.5)
        self.workers = workers
        self.tasks = tasks
        self.gpus = rng.random() < 0.5
        self.sizes = seed % 2 == 1
        self.restarts = rng.random() < 0.2
        self.over = False
        self.program = RandomProgram(self.world, rng, "a", gpus=self.gpus, sizes=self.sizes)

    def run(self) -> World:
        """Play it; SimulationError when a rule is broken."""
        world, rng = self.world, self.rng
        self._set_up_manager()
        for _ in range(rng.randint(1, self.workers)):
            self._join()
        self._keep_going()
        world.network.build_walls()
        world.clock.after(FAULT_PERIOD_S, self._break_something)
        if world.faults.massacre_at_s:
            world.clock.after(world.faults.massacre_at_s, self._massacre)
        self._submit_all()
        if self.restarts:
            self._restart()
        world.run_to_end()
        self.program.check_results()
        self._clean_up()
        self.over = True
        return world

    def _set_up_manager(self) -> None:
        core, rng = self.world.core, self.rng
        core.tuning.set("keepalive-interval", 5)
        core.tuning.set("keepalive-timeout", 5)
        core.tuning.set("temp-replica-count", rng.choice((1, 1, 2, 3)))
        core.tuning.set("task-groups", rng.choice((0, 1)))
        core.tuning.set("immediate-recovery", rng.choice((0, 1)))
        core.tuning.set("wait-for-workers", rng.choice((0, 0, 2)))
        if rng.random() < 0.3:
            core.categories.set_max_concurrent("b", rng.randint(1, 3))
        if self.world.faults.straggler:
            core.categories.get("a").fast_abort = FAST_ABORT

    def _restart(self) -> None:
        """The manager dies in the middle; the program is started again and submits everything anew."""
        world, rng = self.world, self.rng
        self._let_pass(rng.uniform(0, 5))
        world.restart_manager("second")
        self._set_up_manager()
        self.program = RandomProgram(world, rng, "b", gpus=self.gpus, sizes=self.sizes)
        self._submit_all()

    def _join(self) -> None:
        self.world.join(self.rng.choice(SHAPES))

    def _submit_all(self) -> None:
        """Spread over some seconds of virtual time, in between things happen."""
        self.program.declare_shared()
        for number in range(self.tasks):
            self.program.submit_one(number)
            if self.rng.random() < 0.2:
                self._let_pass(self.rng.uniform(0, 0.3))

    def _let_pass(self, seconds: float) -> None:
        clock = self.world.clock
        end = clock.now + seconds
        while clock.next_time() < end:
            clock.step()

    # ------------------------------------------------------------------ what goes wrong

    def _break_something(self) -> None:
        if self.over:
            return
        for worker in list(self.world.workers.values()):
            self._break_one(worker)
        self._keep_going()
        self.world.clock.after(FAULT_PERIOD_S, self._break_something)

    def _break_one(self, worker: SimWorker) -> None:
        world, rng, faults = self.world, self.rng, self.world.faults

        def now(per_s: float) -> bool:
            return rng.random() < per_s * FAULT_PERIOD_S

        if now(faults.kill_per_s):
            world.kill(worker)
            world.clock.after(rng.uniform(0, 3), self._join)
        elif now(faults.stop_per_s) and not worker.stopped:
            worker.stop()
            world.clock.after(rng.uniform(0.1, 20), worker.resume)
        elif now(faults.corrupt_per_s) and worker.cache:
            worker.lose(rng.choice(sorted(worker.cache)))
        elif now(faults.leave_per_s):
            worker.send(msg.LeaveRequest(rng.choice(("idle", "sigterm")), 0.0))
        elif now(faults.reconnect_per_s) and not worker.stopped:
            world.reconnect(worker, half_open=rng.random() < 0.5, after_s=rng.choice((0.0, rng.uniform(0, 2))))
        elif now(faults.policy_per_s):
            self._policy(worker)
        if now(faults.mischief_per_s):
            worker.send(lie(world.core, worker.key, rng))

    def _policy(self, worker: SimWorker) -> None:
        """The person running the program, or a factory, does not like this worker for a while."""
        world, rng, host = self.world, self.rng, worker.hello.hostname
        kind = rng.randrange(4)
        if kind == 0:
            world.tell(ev.BlockHost(host, world.clock.now + rng.uniform(0, POLICY_S)))
        elif kind == 1:
            world.tell(ev.DrainHost(host, True))
            world.clock.after(rng.uniform(0, POLICY_S), lambda: world.tell(ev.DrainHost(host, False)))
        elif kind == 2:
            world.tell(ev.RetireWorkers((worker.hello.worker_id, "worker-unheard-of"), "factory"))
        else:
            world.tell(ev.ShutdownIdle(1))

    def _keep_going(self) -> None:
        """At least two workers, and one that can run the largest request: otherwise waiting for ever is right."""
        world = self.world
        if len(world.workers) < 2:
            self._join()
        records = world.core.workers.values()
        wanted = SHAPES[2] if self.gpus else SHAPES[1]
        if not any(record.bucket >= 0 and wanted.fits_in(record.totals) for record in records):
            world.join(wanted)

    def _massacre(self) -> None:
        victims = sorted(self.world.workers)[::3]
        for key in victims:
            self.world.kill(self.world.workers[key])
            self._join()

    # ------------------------------------------------------------------ the end

    def _clean_up(self) -> None:
        """After the program undeclared everything nothing may be left in the books or, in the end, at workers."""
        world = self.world
        self.program.give_up_all()
        world.run(lambda: not world.core.tasks and not world.core.books.transfers, CLEAN_UP_S)
        if world.core.files:
            raise SimulationError(f"seed {world.seed}: files left behind: {sorted(world.core.files)[:5]}")
        if world.core.lineage.blocked or world.core.books.ready.count:
            raise SimulationError(f"seed {world.seed}: the queue is not empty")


def play(seed: int, *, workers: int = 12, tasks: int = 120, check: bool = True) -> World:
    """Run one random story."""
    return Story(seed, workers=workers, tasks=tasks, check=check).run()

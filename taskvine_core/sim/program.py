"""A random program: which files it declares, which tasks it submits, and which results each task may come back with.

Owns the choice of graph from a seed. Must not know faults beyond the results they allow.
"""

from __future__ import annotations

from random import Random

from taskvine_core.constants import (
    VINE_BUFFER,
    VINE_CACHE_LEVEL_FOREVER,
    VINE_CACHE_LEVEL_TASK,
    VINE_CACHE_LEVEL_WORKER,
    VINE_CACHE_LEVEL_WORKFLOW,
    VINE_FILE,
    VINE_FIXED_LOCATION,
    VINE_MINI_TASK,
    VINE_RESULT_CANCELLED,
    VINE_RESULT_FIXED_LOCATION_MISSING,
    VINE_RESULT_FORSAKEN,
    VINE_RESULT_INPUT_MISSING,
    VINE_RESULT_MAX_END_TIME,
    VINE_RESULT_OUTPUT_MISSING,
    VINE_RESULT_OUTPUT_TRANSFER_ERROR,
    VINE_RESULT_SUCCESS,
    VINE_TEMP,
    VINE_URL,
    VINE_WATCH,
)
from taskvine_core.manager import events as ev
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.resources import Resources
from taskvine_core.sim.worker import FAILING
from taskvine_core.sim.world import SimulationError, World

REQUESTS = (Resources(), Resources(1, -1, -1, -1), Resources(1, 500, 1000, 0), Resources(2, 1000, 1000, 0))
GPU_REQUEST = Resources(1, 500, 1000, 1)
BIG_BYTES = 2_000_000
#: A local file that tasks read and write back, one after the other.
LEDGER = "file-rnd-ledger"
#: Longest time an end time or start time lies in the future.
SOON_S = 20.0


class RandomProgram:
    """Submits random tasks to a world. ``prefix`` keeps the names of several programs apart, ``sizes``: nearly every
    task asks for other amounts."""

    def __init__(self, world: World, rng: Random, prefix: str, *, gpus: bool, sizes: bool) -> None:
        self.world = world
        self.rng = rng
        self.prefix = prefix
        self.requests = (*REQUESTS, GPU_REQUEST) if gpus else REQUESTS
        self.sizes = sizes
        self.declared: set[str] = set()
        self.shared: list[str] = []
        self.temps: list[str] = []
        self.files: list[str] = []
        self.allowed: dict[int, set[int]] = {}
        self.risky: set[str] = set()  # outputs that may never come to be

    # ------------------------------------------------------------------ files

    def _declare(self, decl: FileDecl) -> str:
        self.declared.add(decl.name)
        self.world.declare(decl)
        return decl.name

    def declare_shared(self) -> None:
        """Inputs that exist before any task: one of each kind."""
        world, declare = self.world, self._declare
        world.local_files.update(("/data/small", "/data/big", "/data/ledger"))
        declare(FileDecl("buffer-rnd-shared", VINE_BUFFER, level=VINE_CACHE_LEVEL_WORKFLOW, size=5, data=b"hello"))
        declare(FileDecl("buffer-rnd-brief", VINE_BUFFER, level=VINE_CACHE_LEVEL_TASK, size=5, data=b"brief"))
        declare(FileDecl("file-md5-small", VINE_FILE, source="/data/small", level=VINE_CACHE_LEVEL_TASK, size=1000))
        declare(FileDecl("file-md5-big", VINE_FILE, source="/data/big", level=VINE_CACHE_LEVEL_FOREVER, size=BIG_BYTES))
        declare(
            FileDecl(
                "url-md5-data", VINE_URL, source="http://origin/data", level=VINE_CACHE_LEVEL_WORKER, size=BIG_BYTES
            )
        )
        declare(
            FileDecl(
                "url-md5-private",
                VINE_URL,
                source="http://origin/p",
                level=VINE_CACHE_LEVEL_WORKFLOW,
                size=BIG_BYTES,
                peer_transfer=False,
            )
        )
        mini = TaskSpec(
            "unpack", inputs=(Mount("url-md5-data", "packed"),), outputs=(Mount("task-md5-unpacked", "tree"),)
        )
        world.declared_outputs(mini)
        declare(
            FileDecl(
                "task-md5-unpacked", VINE_MINI_TASK, level=VINE_CACHE_LEVEL_WORKFLOW, mini_task=mini, mini_source="tree"
            )
        )
        self.shared = sorted(self.declared)
        declare(FileDecl(LEDGER, VINE_FILE, source="/data/ledger", level=VINE_CACHE_LEVEL_WORKFLOW, size=1000))

    # ------------------------------------------------------------------ tasks

    def submit_one(self, number: int) -> int:
        """A random task; its id."""
        world, rng = self.world, self.rng
        allowed = {VINE_RESULT_SUCCESS}
        inputs = self._inputs(allowed)
        failing = rng.random() < 0.05
        command = f"{FAILING if failing else 'task'} {self.prefix} {number}"
        outputs = self._outputs(number, allowed)
        if rng.random() < 0.05:
            inputs.append(Mount(LEDGER, "ledger"))
            outputs.append(Mount(LEDGER, "ledger"))
            allowed.update((VINE_RESULT_OUTPUT_TRANSFER_ERROR,) if world.faults.upload_breaks else ())
        if failing and outputs:
            allowed.add(VINE_RESULT_OUTPUT_MISSING)
        spec = self._limited(
            TaskSpec(
                command,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                resources=self._request(),
                category=rng.choice(("a", "b")),
                priority=rng.choice((0.0, 0.0, 1.0)),
            ),
            allowed,
        )
        if failing or allowed - {VINE_RESULT_SUCCESS, VINE_RESULT_OUTPUT_TRANSFER_ERROR}:
            self.risky.update(mount.name for mount in outputs)
        task_id = world.submit(spec)
        world.contents.pop(LEDGER, None)  # which version a task reads follows from the order of the tasks
        self.allowed[task_id] = allowed
        self._change_mind(task_id, outputs)
        return task_id

    def _request(self) -> Resources:
        rng, request = self.rng, self.rng.choice(self.requests)
        if not self.sizes:
            return request
        return Resources(*(rng.randint(1, amount) if amount > 1 else amount for amount in request))

    def _inputs(self, allowed: set[int]) -> list[Mount]:
        rng = self.rng
        names = rng.sample(self.temps, min(len(self.temps), rng.randint(0, 3)))
        names += [name for name in self.shared if rng.random() < 0.12]
        if self.files and rng.random() < 0.1:
            names.append(rng.choice(self.files))
        if self.risky.intersection(names):
            allowed.add(VINE_RESULT_INPUT_MISSING)
        mounts = [Mount(name, f"in-{at}") for at, name in enumerate(names)]
        if self.temps and rng.random() < 0.03:
            allowed.update((VINE_RESULT_FIXED_LOCATION_MISSING, VINE_RESULT_INPUT_MISSING))
            name = rng.choice(self.temps)
            mounts = [mount for mount in mounts if mount.name != name]
            mounts.append(Mount(name, "strict", VINE_FIXED_LOCATION))
        return mounts

    def _outputs(self, number: int, allowed: set[int]) -> list[Mount]:
        rng, world = self.rng, self.world
        outputs = []
        if rng.random() < 0.7:
            name = self._declare(
                FileDecl(f"temp-rnd-{self.prefix}{number}", VINE_TEMP, level=VINE_CACHE_LEVEL_WORKFLOW)
            )
            self.temps.append(name)
            outputs.append(Mount(name, "out"))
        if rng.random() < 0.2:
            name = self._declare(FileDecl(f"buffer-rnd-{self.prefix}{number}", VINE_BUFFER))
            outputs.append(Mount(name, "result"))
        if rng.random() < 0.1:
            name = f"file-rnd-{self.prefix}{number}"
            level = rng.choice((VINE_CACHE_LEVEL_TASK, VINE_CACHE_LEVEL_WORKFLOW))
            self._declare(FileDecl(name, VINE_FILE, source=f"/out/{name}", level=level))
            self.files.append(name)
            outputs.append(Mount(name, "file", rng.choice((0, VINE_WATCH))))
        if world.faults.upload_breaks and any(not mount.name.startswith("temp") for mount in outputs):
            allowed.add(VINE_RESULT_OUTPUT_TRANSFER_ERROR)
            self.risky.update(mount.name for mount in outputs if mount.name.startswith("file"))
        return outputs

    def _limited(self, spec: TaskSpec, allowed: set[int]) -> TaskSpec:
        """Now and then a limit, which allows its own result."""
        rng, now = self.rng, self.world.clock.now
        if rng.random() < 0.05:
            spec = spec._replace(time_start_s=now + rng.uniform(0, SOON_S))
        if rng.random() < 0.03:
            spec = spec._replace(time_end_s=now + rng.uniform(0.1, SOON_S))
            allowed.update((VINE_RESULT_MAX_END_TIME, VINE_RESULT_INPUT_MISSING))
        if rng.random() < 0.05:
            spec = spec._replace(retries=rng.randint(1, 3))
            allowed.add(VINE_RESULT_FORSAKEN)
        if rng.random() < 0.05:
            spec = spec._replace(max_forsaken=rng.randint(0, 2))
            allowed.add(VINE_RESULT_FORSAKEN)
        return spec

    def _change_mind(self, task_id: int, outputs: list[Mount]) -> None:
        """Cancel, prune or give up something."""
        world, rng = self.world, self.rng
        if rng.random() < 0.03:
            self.allowed[task_id].add(VINE_RESULT_CANCELLED)
            self.risky.update(mount.name for mount in outputs)
            world.tell(ev.Cancel((task_id,)))
        if rng.random() < 0.03 and self.temps:
            world.tell(ev.Prune(rng.choice(self.temps)))
        if rng.random() < 0.1 and len(self.temps) > 5:
            name = self.temps.pop(rng.randrange(len(self.temps)))
            self.declared.discard(name)
            world.tell(ev.Undeclare(name))

    # ------------------------------------------------------------------ the end

    def check_results(self) -> None:
        """Every task came back with a result that something in its story explains."""
        world = self.world
        for task_id, outcome in world.outcomes.items():
            if outcome.result not in self.allowed[task_id]:
                raise SimulationError(f"seed {world.seed}: task {task_id} ended with {outcome.result}: {outcome.error}")

    def give_up_all(self) -> None:
        """Undeclare everything."""
        for name in sorted(self.declared):
            self.world.tell(ev.Undeclare(name))

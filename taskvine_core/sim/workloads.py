"""Workloads of the command line's large runs: no faults, many tasks, nothing remembered that is not needed.

Owns what is submitted and when. Must not know how the world works beyond its program side.
"""

from __future__ import annotations

from collections.abc import Callable

from taskvine_core.constants import VINE_BUFFER, VINE_FILE
from taskvine_core.manager import events as ev
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.resources import Resources
from taskvine_core.sim.world import World

#: Tasks submitted in one turn of the manager.
SUBMIT_BATCH = 1000
#: Partial results one accumulation task reads.
FAN_IN = 20
#: Columns of the dag; each node reads two of the row before.
DAG_WIDTH = 20
#: Data sets the map tasks share.
CHUNKS = 200
ONE_CORE = Resources(1, -1, -1, -1)
BROADCAST_BYTES = 1_000_000_000


def noop(world: World, tasks: int) -> None:
    """Independent tasks without files."""
    _submit(world, tasks, lambda number: TaskSpec(":", resources=ONE_CORE))


def broadcast(world: World, tasks: int) -> None:
    """Every task reads one large file of the manager."""
    world.local_files.add("/data/common")
    world.declare(FileDecl("file-rnd-common", VINE_FILE, source="/data/common", level=1, size=BROADCAST_BYTES))
    inputs = (Mount("file-rnd-common", "common"),)
    _submit(world, tasks, lambda number: TaskSpec(f"use {number}", inputs=inputs, resources=ONE_CORE))


def mapreduce(world: World, tasks: int) -> None:
    """Maps over shared data sets; partial results are temps, merged in a tree; the last one goes to the program."""
    for chunk in range(CHUNKS):
        world.declare_url(f"url-rnd-chunk{chunk}", size=20_000_000)
    maps = max(1, tasks * (FAN_IN - 1) // FAN_IN)

    def one_map(number: int) -> TaskSpec:
        world.declare_temp(f"temp-rnd-m{number}")
        return TaskSpec(f"map {number}", inputs=(Mount(f"url-rnd-chunk{number % CHUNKS}", "data"),),
                        outputs=(Mount(f"temp-rnd-m{number}", "out"),), resources=ONE_CORE, category="map")

    _submit(world, maps, one_map)
    parts, row = [f"temp-rnd-m{number}" for number in range(maps)], 0
    while len(parts) > 1:
        parts, row = _reduce_row(world, parts, row), row + 1
    world.declare(FileDecl("buffer-rnd-result", VINE_BUFFER))
    world.submit(TaskSpec("finish", inputs=(Mount(parts[0], "in"),), outputs=(Mount("buffer-rnd-result", "out"),)))
    world.tell(ev.Undeclare(parts[0]))


def _reduce_row(world: World, parts: list[str], row: int) -> list[str]:
    """One level of the tree; the program gives up each partial result once its reader is submitted."""
    made, specs = [], []
    for at in range(0, len(parts), FAN_IN):
        name = f"temp-rnd-r{row}-{at}"
        world.declare_temp(name)
        made.append(name)
        inputs = tuple(Mount(part, f"in{i}") for i, part in enumerate(parts[at:at + FAN_IN]))
        specs.append(TaskSpec(f"reduce {row} {at}", inputs=inputs, outputs=(Mount(name, "out"),), resources=ONE_CORE,
                              category="reduce"))
    for at in range(0, len(specs), SUBMIT_BATCH):
        world.submit_many(specs[at:at + SUBMIT_BATCH])
    for at in range(0, len(parts), SUBMIT_BATCH):
        world.tell(*(ev.Undeclare(part) for part in parts[at:at + SUBMIT_BATCH]))
    return made


def dag(world: World, tasks: int) -> None:
    """Rows of temps, each node reads two of the row before, each temp is used twice."""

    def name(row: int, column: int) -> str:
        return f"temp-rnd-{row}-{column % DAG_WIDTH}"

    def node(number: int) -> TaskSpec:
        row, column = divmod(number, DAG_WIDTH)
        world.declare_temp(name(row, column))
        inputs = (Mount(name(row - 1, column), "a"), Mount(name(row - 1, column + 1), "b")) if row else ()
        return TaskSpec(f"node {number}", inputs=inputs, outputs=(Mount(name(row, column), "out"),), resources=ONE_CORE)

    _submit(world, tasks, node)


def _submit(world: World, tasks: int, make: Callable[[int], TaskSpec]) -> None:
    for start in range(0, tasks, SUBMIT_BATCH):
        world.submit_many([make(number) for number in range(start, min(tasks, start + SUBMIT_BATCH))])


WORKLOADS: dict[str, Callable[[World, int], None]] = {
    "noop": noop, "mapreduce": mapreduce, "dag": dag, "broadcast": broadcast}

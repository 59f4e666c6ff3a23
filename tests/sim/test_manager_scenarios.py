"""What the manager promises about whole situations, played with simulated workers and no random faults."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from taskvine_core.constants import VINE_FILE, VINE_TEMP
from taskvine_core.manager import events as ev
from taskvine_core.manager.invariants import check_invariants
from taskvine_core.manager.staging import ORIGIN_COPIES
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources
from taskvine_core.sim.world import Faults, World

SMALL = Resources(1, 1000, 10_000, 0)
MEDIUM = Resources(4, 8000, 50_000, 0)
ONE_CORE = Resources(1, -1, -1, -1)


def world_of(workers: int, shape: Resources = MEDIUM, run_s: float = 1.0, **settings: object) -> World:
    world = World(5, run_time=lambda rng: run_s, **settings)  # type: ignore[arg-type]
    for _ in range(workers):
        world.join(shape)
    return world


def temp(world: World, name: str, inputs: tuple[str, ...] = ()) -> int:
    """A task that reads temps and makes one; its id."""
    world.declare_temp(f"temp-rnd-{name}")
    return world.submit(
        TaskSpec(
            f"make {name}",
            inputs=tuple(Mount(f"temp-rnd-{i}", i) for i in inputs),
            outputs=(Mount(f"temp-rnd-{name}", "out"),),
            resources=ONE_CORE,
        )
    )


def massacre(world: World) -> None:
    for worker in list(world.workers.values()):
        world.kill(worker)
    world.run(lambda: not world.workers)


def test_a_task_of_higher_priority_never_starts_after_one_of_lower() -> None:
    world = world_of(0)
    low = [world.submit(TaskSpec(f"low {n}", resources=ONE_CORE)) for n in range(20)]
    high = [world.submit(TaskSpec(f"high {n}", resources=ONE_CORE, priority=2.0)) for n in range(20)]
    world.join(SMALL)
    world.run_to_end()
    starts = {task_id: outcome.times.start for task_id, outcome in world.outcomes.items()}
    assert max(starts[i] for i in high) < min(starts[i] for i in low)
    assert sorted(high, key=starts.__getitem__) == high


def test_a_category_never_runs_more_than_its_limit() -> None:
    world = world_of(3)
    world.core.categories.set_max_concurrent("few", 2)
    running = {"now": 0, "most": 0}
    started = world.started

    def count(order: msg.Dispatch) -> None:
        running["most"] = max(running["most"], world.core.categories.get("few").running)
        started(order)

    world.started = count  # type: ignore[method-assign]
    for number in range(20):
        world.submit(TaskSpec(f"few {number}", category="few", resources=ONE_CORE))
    world.run_to_end()
    assert running["most"] == 2
    assert world.clock.now - 1e9 < 15.0, "the limit was used only in part"


def test_nothing_is_sent_before_enough_workers_have_come() -> None:
    world = world_of(2)
    world.core.tuning.set("wait-for-workers", 3)
    task = world.submit(TaskSpec("patient"))
    end = world.clock.now + 60
    while world.clock.next_time() < end:
        world.clock.step()
    assert not world.executions and task in world.unfinished
    world.join(MEDIUM)
    world.run_to_end()


def test_a_chain_whose_every_link_is_lost_is_made_again_from_the_start() -> None:
    world = world_of(3)
    temp(world, "0")
    for link in range(1, 6):
        temp(world, str(link), (str(link - 1),))
    world.run_to_end()
    massacre(world)
    world.join(MEDIUM)
    last = world.submit(TaskSpec("read", inputs=(Mount("temp-rnd-5", "in"),)))
    world.run_to_end()
    assert world.outcomes[last].result == 0
    assert world.core.books.stats.tasks_recovery == 6


def test_only_what_is_missing_of_a_chain_is_made_again() -> None:
    world = world_of(1)
    temp(world, "0")
    temp(world, "1", ("0",))
    world.run_to_end()
    (worker,) = world.workers.values()
    worker.lose("temp-rnd-1")
    world.submit(TaskSpec("read", inputs=(Mount("temp-rnd-1", "in"),)))
    world.run_to_end()
    assert world.core.books.stats.tasks_recovery == 1


@pytest.mark.timeout(60)
def test_a_chain_longer_than_the_stack_is_deep_is_made_again() -> None:
    world = world_of(2, run_s=0.0, check=False)
    temp(world, "0")
    for link in range(1, 1500):
        temp(world, str(link), (str(link - 1),))
    world.run_to_end()
    massacre(world)
    world.join(MEDIUM)
    world.submit(TaskSpec("read", inputs=(Mount("temp-rnd-1499", "in"),)))
    world.run_to_end()
    assert world.results == Counter({0: 1501})


def test_a_chain_that_can_never_be_made_is_given_up_after_few_attempts() -> None:
    world = world_of(1)
    world.declare_temp("temp-rnd-0")
    world.submit(TaskSpec("fail at the root", outputs=(Mount("temp-rnd-0", "out"),)))
    for link in range(1, 8):
        temp(world, str(link), (str(link - 1),))
    world.run_to_end()
    assert world.results == Counter({2: 1, 1: 7})
    assert sum(world.executions.values()) <= 1 + 3


def test_a_worker_retired_in_peace_costs_no_recovery() -> None:
    world = world_of(2)
    for number in range(8):
        temp(world, str(number))
    world.run_to_end()
    victim = next(iter(world.workers.values()))
    held = [name for name in victim.cache if name.startswith("temp")]
    assert held
    world.tell(ev.RetireWorkers((victim.hello.worker_id,), "factory"))
    world.run(lambda: victim.key not in world.workers)
    for number in range(8):
        world.submit(TaskSpec(f"read {number}", inputs=(Mount(f"temp-rnd-{number}", "in"),)))
    world.run_to_end()
    assert world.core.books.stats.tasks_recovery == 0
    assert all(task.result == 0 for task in world.outcomes.values())


def test_a_retired_worker_finishes_what_it_runs_and_hands_back_what_waits() -> None:
    world = world_of(1, SMALL, run_s=0.01)
    for number in range(50):
        world.submit(TaskSpec(f"task {number}", resources=ONE_CORE))
    world.run(lambda: len(world.outcomes) >= 20)
    victim = next(iter(world.workers.values()))
    assert world.core.workers[victim.key].queued, "nothing waits in the worker's own queue"
    world.tell(ev.RetireWorkers((victim.hello.worker_id,), "factory"))
    world.run(lambda: victim.key not in world.workers)
    assert all(outcome.result == 0 and outcome.dispatches == 1 for outcome in world.outcomes.values())
    world.join(SMALL)
    world.run_to_end()
    assert max(world.executions.values()) == 1


def test_temps_are_kept_in_as_many_copies_as_asked() -> None:
    world = world_of(5)
    world.core.tuning.set("temp-replica-count", 3)
    for number in range(20):
        temp(world, str(number))
    names = [f"temp-rnd-{number}" for number in range(20)]
    world.run(lambda: all(world.core.replica_count(name) == 3 for name in names))
    world.kill(next(iter(world.workers.values())))
    world.run(lambda: all(world.core.replica_count(name) == 3 for name in names), 60.0)
    assert world.core.books.stats.tasks_recovery == 0


def test_one_large_file_reaches_many_workers_as_a_tree() -> None:
    workers = 200
    world = world_of(0)
    world.local_files.add("/data/big")
    world.declare(FileDecl("file-rnd-big", VINE_FILE, source="/data/big", level=1, size=1_000_000_000))
    for number in range(workers):
        world.submit(TaskSpec(f"use {number}", inputs=(Mount("file-rnd-big", "big"),)))
    for _ in range(workers):
        world.join(SMALL)
    world.run_to_end()
    network = world.network
    assert len({key for key, name in network.depth if name == "file-rnd-big"}) == workers
    assert network.origin_served["file-rnd-big"] <= ORIGIN_COPIES * (math.log2(workers) + 1)
    assert max(network.depth.values()) <= math.log2(workers) + 1


def test_an_origin_without_sharing_serves_everybody() -> None:
    world = world_of(12, SMALL)
    world.local_files.add("/data/big")
    world.declare(
        FileDecl("file-rnd-big", VINE_FILE, source="/data/big", level=1, size=10_000_000, peer_transfer=False)
    )
    for number in range(12):
        world.submit(TaskSpec(f"use {number}", inputs=(Mount("file-rnd-big", "big"),)))
    world.run_to_end()
    assert world.network.origin_served["file-rnd-big"] == 12


def test_workers_that_come_back_bring_their_temps() -> None:
    world = world_of(3)
    for number in range(6):
        temp(world, str(number))
    world.run_to_end()
    for worker in list(world.workers.values()):
        world.reconnect(worker, half_open=worker.key == 2)
    world.run(
        lambda: len(world.core.workers) == 3 and all(world.core.replica_count(f"temp-rnd-{n}") for n in range(6)), 10
    )
    world.submit(TaskSpec("read", inputs=tuple(Mount(f"temp-rnd-{n}", f"in{n}") for n in range(6))))
    world.run_to_end()
    assert world.core.books.stats.tasks_recovery == 0


def test_after_a_restart_workers_offer_only_what_outlives_the_workflow() -> None:
    world = world_of(2)
    program = [
        FileDecl("url-md5-keep", 2, source="http://origin/keep", level=2, size=1000),
        FileDecl("url-md5-drop", 2, source="http://origin/drop", level=1, size=1000),
    ]

    def play() -> None:
        for decl in program:
            world.declare(decl)
        for number in range(4):
            world.submit(
                TaskSpec(
                    f"use {number}",
                    inputs=tuple(Mount(d.name, d.name) for d in program),
                    resources=Resources(4, -1, -1, -1),
                )
            )
        world.run_to_end()

    play()
    served = Counter(world.network.origin_served)
    world.restart_manager("second")
    world.run(lambda: len(world.core.workers) == 2 and all(w.bucket > 0 for w in world.core.workers.values()))
    play()
    assert world.network.origin_served["url-md5-keep"] == served["url-md5-keep"]
    assert world.network.origin_served["url-md5-drop"] > served["url-md5-drop"]


def test_a_straggler_loses_its_task_to_others() -> None:
    world = world_of(4, SMALL)
    world.core.categories.get("default").fast_abort = 3.0
    for number in range(30):
        world.submit(TaskSpec(f"warm up {number}", resources=ONE_CORE))
    world.run(lambda: len(world.outcomes) == 12)
    victim = next(iter(world.workers.values()))
    victim.slowness = 1000.0
    world.run_to_end(200.0)
    assert world.core.books.stats.workers_slow == 1
    assert victim.hello.hostname in world.core.fleet.blocked_hosts


def test_a_blocked_host_gets_nothing_until_its_time_is_over() -> None:
    world = world_of(1)
    host = next(iter(world.workers.values())).hello.hostname
    world.tell(ev.BlockHost(host, world.clock.now + 30.0))
    task = world.submit(TaskSpec("wait"))
    world.run_to_end()
    assert 30.0 <= world.outcomes[task].times.commit_start - 1e9 <= 32.0


def test_gpus_are_given_to_one_task_each() -> None:
    world = world_of(1, Resources(16, 64_000, 200_000, 2))
    together: list[set[str]] = []
    started = world.started

    def watch(order: msg.Dispatch) -> None:
        (worker,) = world.workers.values()
        given = [gpu for other in worker.running.values() for gpu in other.gpus]
        together.append(set(given))
        assert len(given) == len(set(given)) <= 2
        started(order)

    world.started = watch  # type: ignore[method-assign]
    for number in range(20):
        world.submit(TaskSpec(f"gpu {number}", resources=Resources(1, 100, 100, 1)))
    world.run_to_end()
    assert {"0", "1"} in together


def test_a_silent_worker_is_given_up_and_its_tasks_run_elsewhere() -> None:
    world = world_of(2, SMALL)
    world.core.tuning.set("keepalive-interval", 5)
    world.core.tuning.set("keepalive-timeout", 10)
    tasks = [world.submit(TaskSpec(f"task {n}", resources=ONE_CORE)) for n in range(2)]
    world.run(lambda: len(world.executions) == 2)
    next(iter(world.workers.values())).stop()
    world.run_to_end(60.0)
    assert 15.0 <= world.clock.now - 1e9 <= 20.0
    assert sorted(world.outcomes[task].dispatches for task in tasks) == [1, 2]


@pytest.mark.timeout(180)
def test_4500_workers_with_a_third_of_them_gone_at_once() -> None:
    world = World(7, check=False, faults=Faults(), run_time=lambda rng: rng.uniform(0.5, 1.5))
    for _ in range(4500):
        world.join(SMALL)
    for number in range(6000):
        name = f"temp-rnd-{number}"
        world.declare(FileDecl(name, VINE_TEMP, level=1))
        inputs = (Mount(f"temp-rnd-{number - 3000}", "in"),) if number >= 3000 else ()
        world.submit(TaskSpec(f"task {number}", inputs=inputs, outputs=(Mount(name, "out"),), resources=ONE_CORE))
    world.run(lambda: world.results[0] >= 2500)
    for key in sorted(world.workers)[::3]:
        world.kill(world.workers[key])
    world.run_to_end()
    check_invariants(world.core)
    assert world.results == Counter({0: 6000})
    assert world.core.books.stats.tasks_recovery > 0
    assert world.longest_turn_s < 10.0

"""Ten thousand kills: the factory dies at any action and in any call of the batch system, before or after its effect.

In every world: weather, two pools, jobs of two workers, walltimes, preemption, held jobs, jobs ended from outside. No
intent is submitted twice, nothing exceeds the maxima, no busy worker is cancelled (all asserted as it goes); in the end
the fleet is the wanted one, each of its jobs is known, and a clean end leaves nothing.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
from test_factory_sim import settings

from vine_factory.batch.simulated import SimulatedCluster, Weather
from vine_factory.config import Settings
from vine_factory.simulation import SimManager, World

SEEDS, KILLS = range(100), 100
PLAIN_MAXIMUM, DOUBLE_MAXIMUM = 5, 6        # workers of the two pools
CALM_S = 600


def two_pools(rng: random.Random) -> Settings:
    made = settings(min_workers=0, max_workers=PLAIN_MAXIMUM)
    plain = made.pools[0]._replace(name="plain", walltime_s=rng.choice([0.0, 400.0]))
    double = plain._replace(name="double", maximum=DOUBLE_MAXIMUM, workers_per_job=2, walltime_s=0.0)
    return dataclasses.replace(made, pools=(plain, double))


def bad_weather(rng: random.Random) -> Weather:
    return Weather(start_s=(0, rng.choice([0, 3, 20])), visible_s=(0, rng.choice([0, 2, 10])),
                   lose_answer=rng.choice([0, 0.3]), lose_call=rng.choice([0, 0.3]), poll_fails=rng.choice([0, 0.2]),
                   empty_listing=rng.choice([0, 0.2]), cancel_fails=rng.choice([0, 0.3]), hold=rng.choice([0, 0.2]))


def make_world(seed: int) -> World:
    rng = random.Random(seed)
    # Every fifth factory loses its journal each time: it has to find its jobs by what the batch system tells, which
    # must then be true and prompt.
    weather = Weather(start_s=(0, 10), cancel_fails=0.3, hold=0.2) if seed % 5 == 0 else bad_weather(rng)
    cluster = SimulatedCluster(lambda: 0.0, rng, weather)
    need = {"now": 4}
    managers = [SimManager(key, lambda now: need["now"], parts=(1.0, 1.0))
                for key in ("m:1", "m:2")[:rng.choice([1, 2])]]
    world = World(two_pools(rng), cluster, managers, rng)
    world.need = need  # type: ignore[attr-defined]
    return world


def disturb(world: World) -> None:
    rng = world.rng
    if rng.random() < 0.2:
        world.need["now"] = rng.randrange(9)  # type: ignore[attr-defined]
    live = world.cluster.live()
    if live and rng.random() < 0.1:
        world.cluster.preempt(rng.choice(live).tag.intent_id)
    if live and rng.random() < 0.1:
        world.cluster.end(rng.choice(live).tag.intent_id, rng.choice([0, 1, -9]))
    if rng.random() < 0.05:
        manager = rng.choice(list(world.managers.values()))
        manager.answers = not manager.answers
    if rng.random() < 0.02 and world.cluster.weather.lose_call + world.cluster.weather.lose_answer > 0:
        world.hang_until = world.now + rng.uniform(1, 20)


def step(world: World, dt: float = 1.0) -> None:
    world.step(dt)
    workers: dict[str, int] = {}
    for job in world.cluster.live():
        workers[job.tag.pool] = workers.get(job.tag.pool, 0) + job.request.copies
    assert workers.get("plain", 0) <= PLAIN_MAXIMUM and workers.get("double", 0) <= DOUBLE_MAXIMUM, world.notes[-9:]


def calm(world: World) -> None:
    world.kill_after, world.hang_until = None, world.now
    world.cluster.weather = Weather()
    for manager in world.managers.values():
        manager.answers = True
    for _ in range(CALM_S // 5):
        step(world, 5.0)


def check_fleet(world: World) -> None:
    need = world.need["now"] * len(world.managers)  # type: ignore[attr-defined]
    known = {job.intent_id for job in world.core.fleet.live()}
    assert {job.tag.intent_id for job in world.cluster.live()} == known, world.notes[-9:]
    assert not any(job.held for job in world.cluster.live()), world.notes[-9:]
    there = sum(job.request.copies for job in world.cluster.live())
    # An idle worker of a job whose other one works stays, and one near its walltime has its successor already.
    least, most = min(need, PLAIN_MAXIMUM + DOUBLE_MAXIMUM), PLAIN_MAXIMUM + DOUBLE_MAXIMUM
    assert least <= there <= most, world.notes[-9:]
    assert need or there == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hundred_kills_anywhere_leave_the_right_fleet_and_nothing_after_the_end(seed: int) -> None:
    world = make_world(seed)
    while world.runs <= KILLS:
        runs = world.runs
        if seed % 5 == 0:
            world.journal.clear()
        world.kill_after = world.rng.randrange(1, 14)
        while world.runs == runs:
            disturb(world)
            step(world)
    calm(world)
    check_fleet(world)
    if seed % 2:
        leave_and_adopt(world)
    world.stop()
    for _ in range(CALM_S):
        step(world)
        if world.finished:
            break
    assert world.finished and world.cluster.live() == [] and world.journal == {}, world.notes[-9:]


def leave_and_adopt(world: World) -> None:
    before = {job.tag.intent_id for job in world.cluster.live()}
    world.stop(keep=True)
    for _ in range(3):
        if not world.finished:
            step(world)
    assert world.finished and {job.tag.intent_id for job in world.cluster.live()} == before
    world.start_again()
    for _ in range(5):
        step(world)
    known = {job.intent_id for job in world.core.fleet.live()}
    assert known == {job.tag.intent_id for job in world.cluster.live()}
    assert len(before - known) <= 1     # one may have come to the end of its walltime meanwhile

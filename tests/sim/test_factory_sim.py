"""Worlds from seeds: whatever the weather and wherever the factory is killed, the fleet is right in the end.

In every world: no intent reaches the batch system twice, no more jobs than the maximum, no busy worker is cancelled
(asserted by the world itself or after each step), and a clean end leaves nothing behind.
"""

from __future__ import annotations

import random

import pytest

from taskvine_core.resources import Resources
from vine_factory import config
from vine_factory.batch.simulated import SimulatedCluster, Weather
from vine_factory.config import Sourced
from vine_factory.simulation import SimManager, World

MAXIMUM = 12
SEEDS = range(120)


def settings(**values: object) -> config.Settings:
    base = {"batch-type": "local", "min-workers": 0, "max-workers": MAXIMUM, "cores": 1, **values}
    given = {key.replace("_", "-"): Sourced(config.check_value(key.replace("_", "-"), value, "test"), "test")
             for key, value in base.items()}
    return config.build(given, config.FileValues(), host="m", port=1, machine=Resources(1, 1, 1, 0))


def make_world(seed: int, weather: Weather, need, **values: object) -> World:  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    cluster = SimulatedCluster(lambda: 0.0, rng, weather)
    return World(settings(**values), cluster, [SimManager("m:1", need)], rng)


def step(world: World, seconds: int, dt: int = 1) -> None:
    for _ in range(0, seconds, dt):
        world.step(dt)
        assert len(world.cluster.live()) <= MAXIMUM, world.notes


def end(world: World, seconds: int = 400) -> None:
    world.stop()
    for _ in range(seconds):
        step(world, 1)
        if world.finished:
            break
    assert world.finished, world.notes[-5:]
    assert world.cluster.live() == []
    assert world.journal == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_any_weather_and_kill_points_lead_to_the_right_fleet(seed: int) -> None:
    rng = random.Random(seed)
    weather = Weather(start_s=(0, rng.choice([0, 5, 60])), visible_s=(0, rng.choice([0, 2, 30])),
                      lose_answer=rng.choice([0, 0.3]), lose_call=rng.choice([0, 0.3]), poll_fails=rng.choice([0, 0.3]),
                      empty_listing=rng.choice([0, 0.3]), cancel_fails=rng.choice([0, 0.5]))
    final = rng.randrange(0, MAXIMUM + 6)
    changes = sorted((rng.uniform(0, 350), rng.randrange(0, 20)) for _ in range(6))
    world = make_world(seed, weather, lambda now: next((n for at, n in reversed(changes) if at <= now), 3)
                       if now < 400 else final, workers_per_cycle=rng.choice([0, 4]))
    manager = world.managers["m:1"]
    for _ in range(400):
        if rng.random() < 0.01:
            world.kill_after = rng.randrange(1, 12)
        if rng.random() < 0.02:
            manager.answers = not manager.answers
        if rng.random() < 0.01:
            world.hang_until = world.now + rng.uniform(1, 90)
        if rng.random() < 0.01 and world.cluster.live():
            world.cluster.end(rng.choice(world.cluster.live()).tag.intent_id, rng.choice([0, 1, -9]))
        world.cluster.down = "scheduler restarting" if rng.random() < 0.01 else \
            "" if rng.random() < 0.1 else world.cluster.down
        step(world, 1)
    manager.answers, world.cluster.down, world.kill_after = True, "", None
    world.cluster.weather = Weather()
    step(world, 900, dt=5)
    active = [job for job in world.core.fleet.live() if job.active]
    assert len(active) == min(final, MAXIMUM), "\n".join(world.notes[-10:])
    assert sorted(manager.workers) == sorted(job.intent_id for job in active)
    assert {job.tag.intent_id for job in world.cluster.live()} == {job.intent_id for job in active}
    end(world)


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_every_action_of_the_start_neither_loses_nor_doubles_a_worker(seed: int) -> None:
    world = make_world(seed, Weather(visible_s=(0, 20)), lambda now: 8)
    for point in range(1, 30):
        world.kill_after = point
        step(world, 3)
    world.kill_after = None
    step(world, 300)
    assert len(world.cluster.live()) == 8
    end(world)


def test_a_manager_that_is_away_for_less_than_the_set_time_finds_its_workers_again() -> None:
    world = make_world(1, Weather(), lambda now: 6)
    step(world, 30)
    before = {job.tag.intent_id for job in world.cluster.live()}
    world.managers["m:1"].answers = False
    step(world, 290)
    assert {job.tag.intent_id for job in world.cluster.live()} == before
    world.managers["m:1"].answers = True
    step(world, 100)
    assert {job.tag.intent_id for job in world.cluster.live()} == before


def test_a_manager_that_stays_away_is_given_up_after_the_set_time() -> None:
    world = make_world(1, Weather(), lambda now: 6)
    step(world, 30)
    world.managers["m:1"].answers = False
    step(world, 300 + 60 + 30)
    assert world.cluster.live() == []


def test_a_batch_system_that_hangs_neither_doubles_nor_shrinks_the_fleet() -> None:
    world = make_world(3, Weather(), lambda now: 6 if now < 100 else 0)
    step(world, 50)
    world.hang_until = world.now + 200
    step(world, 190)
    assert len(world.cluster.live()) == 6 or all(state != "busy" for state in world.managers["m:1"].workers.values())
    step(world, 200)
    assert world.cluster.live() == []


def test_zero_demand_for_a_moment_retires_nobody() -> None:
    world = make_world(4, Weather(), lambda now: 0 if 100 <= now < 150 else 6)
    step(world, 90)
    before = {job.tag.intent_id for job in world.cluster.live()}
    step(world, 110)
    assert {job.tag.intent_id for job in world.cluster.live()} == before


def test_refused_submissions_are_repeated_ever_more_slowly_and_recover() -> None:
    world = make_world(5, Weather(), lambda now: 6)
    world.cluster.rejects = "account has no allocation"
    step(world, 120)
    refused = sum("account has no allocation" in note for note in world.notes)
    assert 4 <= refused <= 9
    world.cluster.rejects = ""
    step(world, 200)
    assert len(world.cluster.live()) == 6

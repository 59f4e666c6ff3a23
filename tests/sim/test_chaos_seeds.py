"""Stories with random faults: every task comes back exactly once, nothing is left behind, all books agree."""

from __future__ import annotations

import pytest

from taskvine_core.manager.invariants import check_invariants
from taskvine_core.sim.chaos import Story, play

SEEDS = 220
#: Seeds per test: enough to keep pytest's output short, few enough to name the culprit soon.
BUNDLE = 10
LARGE_SEEDS = (9001, 9002, 9003)


@pytest.mark.parametrize("first", range(0, SEEDS, BUNDLE))
@pytest.mark.timeout(120)
def test_every_task_comes_back_once_whatever_breaks(first: int) -> None:
    for seed in range(first, first + BUNDLE):
        play(seed, tasks=40 + seed % 3 * 30)  # SimulationError names the seed


@pytest.mark.parametrize("seed", LARGE_SEEDS)
@pytest.mark.timeout(120)
def test_hundreds_of_workers_survive_the_same(seed: int) -> None:
    story = Story(seed, tasks=400, check=False)
    for _ in range(300):
        story._join()
    world = story.run()
    check_invariants(world.core)
    assert len(world.by_address) >= 300


@pytest.mark.parametrize("seed", [3, 14, 15])
@pytest.mark.timeout(60)
def test_the_same_seed_is_the_same_story(seed: int) -> None:
    one, other = play(seed, tasks=60), play(seed, tasks=60)
    assert one.events == other.events
    assert one.clock.now == other.clock.now
    assert list(one.outcomes.values()) == list(other.outcomes.values())
    assert one.executions == other.executions

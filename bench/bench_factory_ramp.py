"""From no job to 4,500 connected workers, with the latencies that were measured on a real batch system; virtual time.

The factory's core in its simulator. The batch system takes 0.32 ms per job for a submission, looks at its queue once
per cycle and starts so many jobs per second; workers connect after a while. Value: seconds until all are connected.
Limit: the same batch system given all jobs in its first moment. Ratio 1 = limited by the batch system alone.

    python bench/bench_factory_ramp.py [--jobs 4500] [--cycle 5] [--rate 100] [--connect 2]
"""

from __future__ import annotations

import random
import sys
import time

from bench_support import ROOT, Report, parser

sys.path.insert(0, str(ROOT / "factory"))

from taskvine_core.resources import Resources
from vine_factory import config
from vine_factory.batch.simulated import SimulatedCluster, Weather
from vine_factory.config import Settings, Sourced
from vine_factory.simulation import SimManager, World

SUBMIT_S = 1.6 / 5000
STEP_S = 0.5
PATIENCE_S = 3600.0


def make_settings(jobs: int) -> Settings:
    given: dict[str, object] = {"batch-type": "local", "min-workers": 0, "max-workers": jobs, "cores": 1}
    return config.build({key: Sourced(config.check_value(key, value, "bench"), "bench")
                         for key, value in given.items()}, config.FileValues(), host="m", port=1,
                        machine=Resources(1, 1, 1, 0))


def ramp(jobs: int, weather: Weather, connect_s: float) -> tuple[dict[str, float], int]:
    """Seconds until shares of the jobs were connected, and passes."""
    rng = random.Random(1)
    cluster = SimulatedCluster(lambda: 0.0, rng, weather)
    manager = SimManager("m:1", lambda now: jobs, connect_s)
    world = World(make_settings(jobs), cluster, [manager], rng)
    world.submit_s = SUBMIT_S
    figures: dict[str, float] = {}
    passes = 0
    while "all_s" not in figures and world.now < PATIENCE_S:
        world.step(STEP_S)
        passes += 1
        for name, share in (("tenth_s", 0.1), ("half_s", 0.5), ("all_s", 1.0)):
            if len(manager.workers) >= share * jobs:
                figures.setdefault(name, world.now)
    return figures, passes


def main() -> None:
    options = parser(__doc__, repeat=1)
    options.add_argument("--jobs", type=int, default=4500)
    options.add_argument("--cycle", type=float, default=5.0, help="seconds between looks at the queue")
    options.add_argument("--rate", type=float, default=100.0, help="jobs started per second")
    options.add_argument("--connect", type=float, default=2.0, help="seconds from start to connection")
    given = options.parse_args()
    report = Report("factory_ramp", "s", "limited by the batch system only")
    start = time.perf_counter()
    figures, passes = ramp(given.jobs, Weather(cycle_s=given.cycle, start_rate=given.rate), given.connect)
    ideal_s = given.cycle + (given.jobs - 1) / given.rate + given.connect
    report.emit(figures["all_s"], ideal_s, figures["all_s"] / ideal_s,
                {**figures, "jobs": given.jobs, "passes": passes, "real_s": time.perf_counter() - start})


if __name__ == "__main__":
    main()

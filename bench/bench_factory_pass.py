"""One pass of the factory's core with a full fleet: every job listed by the batch system and by its manager.

Value: milliseconds of one `handle` with new readings of everything, and the state file's snapshot. Target: 250 ms and
60 MB with 4,500 jobs and 10,000 waiting tasks of several kinds. The second figure is the pass in which all jobs are
submitted, the third one in which a tenth of them ends.

    python bench/bench_factory_pass.py [--jobs 4500] [--tasks 10000] [--kinds 20] [--rounds 10]
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import tracemalloc

from bench_support import ROOT, Figures, Report, parser, rss_bytes

sys.path.insert(0, str(ROOT / "factory"))

from taskvine_core.resources import Resources
from vine_factory import config, statefile
from vine_factory.batch.base import BatchState, JobStatus, JobTag
from vine_factory.config import Settings, Sourced
from vine_factory.core import FactoryCore
from vine_factory.demand import Demand, Group, WorkerFacts
from vine_factory.events import Accepted, Action, Observed, SubmitJobs
from vine_factory.readings import Known

TARGET_MS, TARGET_MB = 250.0, 60.0
PERIOD_S = 30.0
HOSTS = 1000
OFFERS = Resources(4, 8000, 8000, 0)


def make_settings(jobs: int) -> Settings:
    given: dict[str, object] = {"batch-type": "local", "min-workers": 0, "max-workers": jobs, "cores": 4,
                                "memory": 8000, "disk": 8000, "factory-period": PERIOD_S}
    return config.build({key: Sourced(config.check_value(key, value, "bench"), "bench")
                         for key, value in given.items()}, config.FileValues(), host="m", port=1, machine=OFFERS)


class Cluster:
    """What batch system and managers would say of a core's jobs."""

    def __init__(self, jobs: int, tasks: int, kinds: int) -> None:
        numbers = itertools.count(1)
        self.core = FactoryCore(make_settings(jobs), {"local": 0.0}, lambda: f"0a1b2c3d-{next(numbers)}")
        self.groups = tuple(Group(f"kind-{kind}", tasks / kinds, 10.0 + kind, (0.25 * (1 + kind % 4),),
                                  Resources(1 + kind % 4, 1000, 1000, 0)) for kind in range(kinds))
        self.names: list[str] = []
        self.ended: set[str] = set()
        self.now = 1_000_000.0

    def observed(self) -> Observed:
        """Fresh objects, as decoding makes them."""
        statuses = tuple(JobStatus(JobTag("bench", "local", name), f"{number}.0",
                                   BatchState.ENDED if name in self.ended else BatchState.RUNNING,
                                   f"node{number % HOSTS}", 1_000_000.0, self.now if name in self.ended else 0.0, 0)
                         for number, name in enumerate(self.names))
        readings = {}
        for half in (0, 1):
            workers = tuple(WorkerFacts(f"w-{name}", name, f"node{number % HOSTS}", "busy", 0.0, 4, 1000, 10, OFFERS,
                                        1.0)
                            for number, name in enumerate(self.names) if number % 2 == half and name not in self.ended)
            groups = self.groups[half::2]
            waiting = int(sum(group.tasks for group in groups))
            readings[f"m:{half}"] = Known(Demand(f"m{half}", "bench", waiting, len(workers) * 4, waiting, groups,
                                                 workers, ()), self.now)
        return Observed(readings, Known(2, self.now), {"local": Known(statuses, self.now)})

    def one_pass(self) -> tuple[float, list[Action]]:
        """Returns milliseconds and what is to be done."""
        self.now += PERIOD_S
        observed = self.observed()
        start = time.perf_counter()
        actions = self.core.handle(observed, self.now)
        statefile.snapshot(self.core, self.now)
        self.core.standings(self.now)
        took_ms = (time.perf_counter() - start) * 1e3
        for action in actions:
            if isinstance(action, SubmitJobs):
                self.names += action.intent_ids
                self.core.handle(Accepted("local", tuple((name, f"{number}.0") for number, name
                                                         in enumerate(action.intent_ids))), self.now)
        return took_ms, actions


def run(jobs: int, tasks: int, kinds: int, rounds: int) -> Figures:
    cluster = Cluster(jobs, tasks, kinds)
    figures: Figures = {"submit_ms": cluster.one_pass()[0]}
    if len(cluster.names) != jobs:
        raise SystemExit(f"{len(cluster.names)} of {jobs} jobs were submitted")
    cluster.one_pass()
    figures["value"] = statistics.median(cluster.one_pass()[0] for _ in range(rounds))
    cluster.ended = set(cluster.names[::10])
    figures["tenth_ends_ms"] = cluster.one_pass()[0]
    return figures


def held_mb(jobs: int, tasks: int, kinds: int) -> float:
    """What the core and one set of readings hold, in MB."""
    tracemalloc.start()
    cluster = Cluster(jobs, tasks, kinds)
    for _ in range(3):
        cluster.one_pass()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def main() -> None:
    options = parser(__doc__, repeat=1)
    options.add_argument("--jobs", type=int, default=4500)
    options.add_argument("--tasks", type=int, default=10_000)
    options.add_argument("--kinds", type=int, default=20)
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    report = Report("factory_pass", "ms", f"<= {TARGET_MS:.0f} ms, <= {TARGET_MB:.0f} MB")
    detail = run(given.jobs, given.tasks, given.kinds, given.rounds)
    detail["rss_mb"] = rss_bytes() / 1e6
    detail["peak_mb"] = held_mb(given.jobs, given.tasks, given.kinds)
    report.emit(detail["value"], TARGET_MS, detail["value"] / TARGET_MS, {**detail, "jobs": given.jobs})


if __name__ == "__main__":
    main()

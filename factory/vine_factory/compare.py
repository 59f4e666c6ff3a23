"""A day of work under several ways to scale: `vine_factory simulate`.

Owns the stand-in between the real core and a simulated day, and the report. Deterministic: a seed is a day.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory import config, defaults
from vine_factory.batch.base import BatchState, JobStatus, JobTag
from vine_factory.config import Settings, Sourced
from vine_factory.core import FactoryCore
from vine_factory.dayworld import PERIOD_S, Day, DayJob, Site, Totals
from vine_factory.demand import BUSY, IDLE, Demand, Group, WorkerFacts
from vine_factory.events import Accepted, Action, CancelJobs, Observed, RetireAnswered, RetireWorkers, SubmitJobs
from vine_factory.looks import Looks
from vine_factory.published import all_there, published
from vine_factory.readings import Known
from vine_factory.trace import Work, bursty_day, parse

MANAGER, POOL = "m:1", "local"
_HOUR_S = 3600.0
_MB = 1000
_HIGH = 0.95


class Row(NamedTuple):
    """One way to scale. Waits and makespan in seconds; the latter from the first arrival to the last end."""

    policy: str
    makespan_s: float
    mean_wait_s: float
    high_wait_s: float
    core_hours: float
    idle_core_hours: float
    jobs: int
    peak: int


class Ours:
    """The real core as one who scales a day. ``period_s``: between passes; ``looks`` at the batch system and
    ``orders`` to it, so far."""

    def __init__(self, day: Day, manager_period_s: float = defaults.MANAGER_PERIOD_S) -> None:
        numbers = itertools.count(1)
        self._day = day
        self.looks = self.orders = 0
        self._schedule = Looks()
        self._listing: Known[tuple[JobStatus, ...]] = Known((), float("-inf"))
        self._offers = Resources(day.site.cores, _MB * day.site.cores, _MB * day.site.cores, 0)
        settings = _settings(day.site, self._offers, manager_period_s)
        self.period_s = settings.pass_s
        self._core = FactoryCore(settings, {POOL: 0.0}, lambda: f"sim-{next(numbers)}")

    def scale(self) -> None:
        """A pass, with the managers' answers of the moment and the last look at the batch system; then the looks that
        are due, each of which is followed by a pass when it has shown something new."""
        while self._pass():
            pass

    def _pass(self) -> bool:
        day = self._day
        while day.lately_ended and day.now - (day.lately_ended[0].ended_at or 0.0) > defaults.ENDED_KEPT_S:
            day.lately_ended.popleft()
        observed = Observed({MANAGER: Known(self._demand(), day.now)}, Known(1, day.now), {POOL: self._listing})
        self._act(self._core.handle(observed, day.now))
        return self._look()

    def _look(self) -> bool:
        day, before = self._day, self._listing
        if not self._schedule.due(day.now, PERIOD_S):
            return False
        self._schedule.asked(day.now)
        self.looks += 1
        listing = tuple(map(self._status, [*day.jobs.values(), *day.lately_ended]))
        self._listing = Known(listing, day.now)
        if before.at > float("-inf") and _states(listing) == _states(before.value):
            return False
        self._schedule.changed()
        return True

    def _act(self, actions: Sequence[Action]) -> None:
        day = self._day
        for action in actions:
            if isinstance(action, SubmitJobs | CancelJobs):
                self._schedule.want()
                self.orders += 1
            if isinstance(action, SubmitJobs):
                for name in action.intent_ids:
                    day.submit(name)
                self._core.handle(Accepted(POOL, tuple((name, name) for name in action.intent_ids)), day.now)
            elif isinstance(action, CancelJobs):
                for name, _ in action.jobs:
                    day.end(name)
            elif isinstance(action, RetireWorkers):
                idle = [name for name, _ in action.workers if name in day.jobs and not day.jobs[name].running]
                for name in idle:
                    day.end(name)
                kept = {name: "busy" for name, _ in action.workers if name not in idle}
                self._core.handle(RetireAnswered(MANAGER, tuple(idle), kept), day.now)

    def _status(self, job: DayJob) -> JobStatus:
        tag = JobTag("sim", POOL, job.name)
        if job.ended_at is not None:
            started_at = job.starts_at if job.started else 0.0
            return JobStatus(tag, job.name, BatchState.ENDED, "", started_at, job.ended_at, 0)
        return JobStatus(tag, job.name, BatchState.RUNNING, "", job.starts_at) if job.started \
            else JobStatus(tag, job.name, BatchState.QUEUED)

    def _demand(self) -> Demand:
        day, cores = self._day, self._day.site.cores
        groups = []
        for each, queue in day.waiting.items():
            count, seconds = day.done.get(each, (0, 0.0))
            if queue:
                groups.append(Group(f"{each}-core", len(queue), seconds / count if count else None, (each / cores,),
                                    Resources(each, -1, -1, 0)))
        workers = tuple(
            WorkerFacts(job.name, job.name, "", BUSY if job.running else IDLE,
                        0.0 if job.idle_since is None else day.now - job.idle_since, job.running, 0, 0, self._offers,
                        1 - job.free / cores) for job in day.jobs.values() if job.connected_at is not None)
        return Demand("m", "day", day.waiting_tasks, day.running_tasks, day.waiting_tasks, tuple(groups), workers, ())


def _states(listing: Sequence[JobStatus]) -> set[tuple[JobTag, BatchState]]:
    return {(status.tag, status.state) for status in listing}


def _settings(site: Site, offers: Resources, manager_period_s: float) -> Settings:
    given: dict[str, object] = {"batch-type": "local", "min-workers": 0, "max-workers": site.maximum,
                                "factory-period": PERIOD_S, "manager-period": manager_period_s, "cores": offers.cores,
                                "memory": offers.memory_mb, "disk": offers.disk_mb}
    return config.build({key: Sourced(config.check_value(key, value, "simulation"), "simulation")
                         for key, value in given.items()}, config.FileValues(), host="m", port=1, machine=offers)


def compare(works: Sequence[Work], site: Site, seed: int) -> list[Row]:
    """The same day under each way to scale; the last row is what nobody can do better."""
    per_worker = max(1, round(site.cores * len(works) / max(1, sum(work.cores for work in works))))
    policies: tuple[tuple[str, Callable[[Day], Totals]], ...] = (
        ("ours", _ours),
        ("published", lambda day: day.run(lambda: published(day))),
        ("published, tuned", lambda day: day.run(lambda: published(day, 0, per_worker))),
        ("knows the future", lambda day: day.run(lambda: all_there(day))))
    start_s = works[0].arrives_s if works else 0.0
    return [row(name, run(Day(works, site, seed)), start_s, exact=run is policies[-1][1]) for name, run in policies]


def _ours(day: Day) -> Totals:
    ours = Ours(day)
    return day.run(ours.scale, ours.period_s)


def row(policy: str, totals: Totals, start_s: float, *, exact: bool = False) -> Row:
    """The day's figures. ``exact``: paid is what was used."""
    waits = sorted(totals.waits_s) or [0.0]
    core_s = totals.busy_core_s if exact else totals.core_s
    return Row(policy, totals.makespan_s - start_s, sum(waits) / len(waits), waits[int(_HIGH * (len(waits) - 1))],
               core_s / _HOUR_S, (core_s - totals.busy_core_s) / _HOUR_S, totals.jobs, totals.peak)


def table(rows: Sequence[Row], works: Sequence[Work], site: Site) -> str:
    """For people."""
    hours = sum(work.cores * work.seconds for work in works) / _HOUR_S
    lines = [f"{len(works)} tasks, {hours:.0f} core-hours; up to {site.maximum} workers of {site.cores} cores",
             f"{'':18}{'makespan':>10}{'mean wait':>11}{'95 % wait':>11}{'core-hours':>12}{'idle':>8}{'jobs':>7}"
             f"{'peak':>6}"]
    lines += [f"{each.policy:18}{each.makespan_s:>8.0f} s{each.mean_wait_s:>9.1f} s{each.high_wait_s:>9.0f} s"
              f"{each.core_hours:>12.1f}{each.idle_core_hours:>8.1f}{each.jobs:>7}{each.peak:>6}" for each in rows]
    return "\n".join(lines)


def as_json(rows: Sequence[Row], works: Sequence[Work], site: Site, seed: int) -> str:
    """For programs."""
    return json.dumps({"seed": seed, "tasks": len(works), "site": site._asdict(),
                       "policies": [each._asdict() for each in rows]}, indent=2)


def main(words: Sequence[str]) -> int:
    """Read the options, simulate, print. Returns 0.

    Raises:
        ConfigError: the options or the trace are wrong.
    """
    given = parser().parse_args(list(words))
    if given.max < 1 or given.cores < 1 or not 0 <= given.queue[0] <= given.queue[1]:
        raise ConfigError("simulate: a site without workers, or a queue that ends before it begins",
                          hint="--max and --cores are at least 1, --queue LEAST MOST")
    site = Site(given.max, given.cores, (given.queue[0], given.queue[1]))
    works = bursty_day(given.seed) if given.trace is None else _trace(Path(given.trace))
    if any(work.cores > site.cores for work in works):
        raise ConfigError(f"simulate: a task needs more cores than a worker has ({site.cores})", hint="see --cores")
    rows = compare(works, site, given.seed)
    print(as_json(rows, works, site, given.seed) if given.json else table(rows, works, site))
    return 0


def parser() -> argparse.ArgumentParser:
    """Of `vine_factory simulate`."""
    usual = Site()
    made = argparse.ArgumentParser(
        prog="vine_factory simulate",
        description="Simulate a day of bursts of tasks, the same one under several ways to scale: this factory; the "
        "published algorithm, which starts 5 workers per 30 s (tuned: any number, and told how many tasks a worker "
        "takes); and all workers there for nothing whenever they are useful. A seed is a day.")
    made.add_argument("--seed", type=int, default=1, help="of the day (default: %(default)s)")
    made.add_argument("--trace", metavar="FILE", help="tasks, one per line: arrival in seconds, duration in seconds, "
                      "cores (default: bursts from the seed)")
    made.add_argument("--max", type=int, default=usual.maximum, help="workers (default: %(default)s)")
    made.add_argument("--cores", type=int, default=usual.cores, help="of each worker (default: %(default)s)")
    made.add_argument("--queue", type=float, nargs=2, default=usual.queue_s, metavar=("LEAST", "MOST"),
                      help="seconds for which a job waits in the queue")
    made.add_argument("--json", action="store_true", help="the figures as JSON")
    return made


def _trace(path: Path) -> list[Work]:
    try:
        return parse(path.read_text(encoding="utf-8").splitlines(), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"cannot read {path}: {problem}", hint="see --trace") from problem

"""One driver thread per pool: one that hangs delays nobody; submissions that need an address wait for one."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskvine_core.resources import Resources
from vine_factory import config
from vine_factory.batch.base import BatchSystem, JobRequest, JobStatus, SubmitResult
from vine_factory.batch.local import LocalBatch
from vine_factory.batch.place import Place
from vine_factory.command import Delivery
from vine_factory.config import FileValues, PoolSettings, PoolTable, Settings, Sourced
from vine_factory.events import Accepted, Event, Refused
from vine_factory.home import Home
from vine_factory.pools import Pools
from vine_factory.readings import Known, Reading

PATIENCE_S = 20.0
LOOP_S = 1.0
SLEEPER = Delivery((sys.executable, "-c", "import time; time.sleep(60)"))


class Hung(LocalBatch):
    """A batch system whose tools do not come back until ``freed``."""

    freed = threading.Event()

    def submit_many(self, requests: object) -> list[SubmitResult]:
        self.freed.wait(PATIENCE_S)
        return []

    def poll_many(self, factory_id: str) -> list[JobStatus]:
        self.freed.wait(PATIENCE_S)
        return []


class Bench:
    """Pools of local processes; pool "hung" hangs. What they were made with, and what they were last told."""

    def __init__(self, tmp_path: Path) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.listings: queue.Queue[tuple[str, Reading[tuple[JobStatus, ...]]]] = queue.Queue()
        self.systems: dict[str, BatchSystem] = {}
        self.home = Home("f", "f.0", tmp_path, None)
        self.commands: list[tuple[str, ...]] = []
        self.pools = Pools(self.home, lambda settings, pool: SLEEPER, self.events.put,
                           lambda pool, reading: self.listings.put((pool, reading)), time.time, self.create)

    def create(self, name: str, place: Place) -> BatchSystem:
        made = (Hung if place.pool == "hung" else LocalBatch)(f"{place.factory_id}.{id(self)}", place.directory)
        made.place = place
        submit = made.submit_many

        def remember(requests: list[JobRequest]) -> list[SubmitResult]:
            self.commands += [request.command for request in requests]
            return submit(requests)
        made.submit_many = remember  # type: ignore[method-assign, assignment]
        self.systems[place.pool] = made
        return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for system in made.systems.values():
        if isinstance(system, LocalBatch) and not isinstance(system, Hung):
            system._adopt()
            for job in system._jobs.values():
                if job.child is not None:
                    job.child.kill()
                    job.child.wait()
    Hung.freed.set()
    made.pools.close(PATIENCE_S)
    Hung.freed.clear()


def settings(*names: str, **values: object) -> Settings:
    tables = tuple(PoolTable(name, {"batch": Sourced("local", "t"), **{key: Sourced(value, "t")
                                                                      for key, value in values.items()}})
                   for name in names)
    return config.build({}, FileValues(pools=tables), host="", port=0, machine=Resources(1, 1, 1, 0))


def next_event(bench: Bench) -> Event:
    return bench.events.get(timeout=PATIENCE_S)


def test_a_batch_system_that_hangs_holds_up_neither_the_loop_nor_the_other_pools(bench: Bench) -> None:
    made = settings("hung", "good")
    started = time.monotonic()
    bench.pools.serve(made.pools, {})
    for pool in made.pools:
        bench.pools.submit(made, pool, (f"{pool.name}-1",), ())
    bench.pools.poll(time.time(), 30.0)
    bench.pools.cancel("hung", [("hung-1", "")], False)
    bench.pools.readings(time.time())
    assert time.monotonic() - started < LOOP_S
    event = next_event(bench)
    assert isinstance(event, Accepted) and event.pool == "good"
    pool, listing = bench.listings.get(timeout=PATIENCE_S)
    assert pool == "good" and isinstance(listing, Known)


def test_a_changed_option_reaches_the_driver_before_the_next_submission(bench: Bench) -> None:
    made = settings("good")
    bench.pools.serve(made.pools, {})
    bench.pools.submit(made, made.pools[0], ("r-1",), ())
    next_event(bench)
    bench.pools.serve([made.pools[0]._replace(blocks={"setup": "x\n"})], {"good": ["bad"]})
    bench.pools.submit(made, made.pools[0], ("r-2",), ())
    next_event(bench)
    place = bench.systems["good"].place
    assert place is not None
    assert (place.blocks, place.excluded_hosts) == ({"setup": "x\n"}, ("bad",))


def needs_address(name: str) -> tuple[Settings, PoolSettings]:
    made = settings(name, managers="addresses")
    return made, made.pools[0]


def test_workers_that_must_be_told_an_address_wait_for_one(bench: Bench) -> None:
    made, pool = needs_address("good")
    bench.pools.serve(made.pools, {})
    bench.pools.submit(made, pool, ("r-1",), ())
    bench.pools.submit_waiting(made, (), False)
    assert bench.commands == []
    bench.pools.submit_waiting(made, ("m:9123",), False)
    event = next_event(bench)
    assert isinstance(event, Accepted) and event.jobs[0][0] == "r-1"
    assert bench.commands[0][-1] == "m:9123"


def test_waiting_workers_are_given_up_when_cancelled_or_at_the_end(bench: Bench) -> None:
    made, pool = needs_address("good")
    bench.pools.serve(made.pools, {})
    bench.pools.submit(made, pool, ("r-1", "r-2"), ())
    bench.pools.cancel("good", [("r-1", "")], False)
    assert next_event(bench) == Refused("good", ("r-1",), "it was not needed any more")
    bench.pools.submit_waiting(made, (), True)
    event = next_event(bench)
    assert isinstance(event, Refused) and event.intent_ids == ("r-2",)
    assert bench.commands == []


def test_a_driver_that_cannot_be_made_is_an_unknown_listing_and_a_refusal(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = settings("good", directory=str(tmp_path / "file"))
    bench.pools.serve(made.pools, {})
    bench.pools.poll(time.time(), 30.0)
    _, listing = bench.listings.get(timeout=PATIENCE_S)
    assert not isinstance(listing, Known)


def test_a_pool_that_is_gone_has_no_driver_any_more(bench: Bench) -> None:
    made = settings("good", "other")
    bench.pools.serve(made.pools, {})
    bench.pools.poll(time.time(), 30.0)
    for _ in made.pools:
        bench.pools.take(*bench.listings.get(timeout=PATIENCE_S))
    bench.pools.serve(made.pools[:1], {})
    assert set(bench.pools.readings(time.time())) == {"good"}

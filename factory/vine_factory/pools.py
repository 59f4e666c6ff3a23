"""The pools of a running factory: one driver thread each.

Owns which drivers there are, what each was made with, submissions that wait until a manager's address is known, and the
listings.
Called from the loop only; everything that may block is done in the drivers' threads. Must not decide how many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from vine_factory import defaults
from vine_factory.batch import registry
from vine_factory.batch.base import BatchSystem, JobHandle, JobRequest, JobStatus, JobTag
from vine_factory.batch.driver import BatchDriver
from vine_factory.batch.local import LocalBatch
from vine_factory.batch.place import Place
from vine_factory.command import Delivery, job_request
from vine_factory.config import PoolSettings, Settings
from vine_factory.events import Event, Refused
from vine_factory.home import Home, plain_name
from vine_factory.looks import Looks
from vine_factory.readings import Reading, Unknown

Listing = Reading[tuple[JobStatus, ...]]


def place_of(home: Home, pool: PoolSettings, excluded: Sequence[str] = ()) -> Place:
    """What the driver of ``pool`` is made with. ``excluded``: hosts besides those that the pool excludes."""
    base = Path(pool.directory) / home.factory_id if pool.directory else home.directory / "jobs"
    return Place(home.factory_id, pool.name, base / plain_name(pool.name), pool.options, pool.blocks,
                 tuple(dict.fromkeys((*pool.blocked_hosts, *excluded))))


class Pools:
    """All drivers.

    Args:
        home: of the factory.
        delivery: how a pool's workers start; called in the driver's thread.
        post: takes events, from any thread.
        listed: takes readings of polls, from any thread.
        clock: seconds since the epoch.
        create: makes a batch system.
    """

    def __init__(self, home: Home, delivery: Callable[[Settings, PoolSettings], Delivery],
                 post: Callable[[Event], None], listed: Callable[[str, Listing], None], clock: Callable[[], float],
                 create: Callable[[str, Place], BatchSystem] = registry.create) -> None:
        self._home = home
        self._delivery = delivery
        self._post = post
        self._listed = listed
        self._clock = clock
        self._create = create
        self._drivers: dict[str, BatchDriver] = {}
        self._places: dict[str, Place] = {}
        self._batches: dict[str, str] = {}
        self._waiting: dict[str, list[str]] = {}  # pool -> intents that wait for an address
        self._listings: dict[str, Listing] = {}
        self._looks: dict[str, Looks] = {}

    def serve(self, pools: Sequence[PoolSettings], excluded: Mapping[str, Collection[str]]) -> None:
        """Have a driver for exactly these pools, each with its present options. ``excluded``: hosts, by pool."""
        for name in self._drivers.keys() - {pool.name for pool in pools}:
            self._drivers.pop(name).close(0)
            del self._batches[name]
            del self._places[name]
            del self._looks[name]
            self._listings.pop(name, None)
        for pool in pools:
            place = place_of(self._home, pool, sorted(excluded.get(pool.name, ())))
            if pool.name not in self._drivers:
                self._drivers[pool.name] = BatchDriver(pool.name, self._maker(pool, place), self._home.factory_id,
                                                       self._post, self._listed, self._clock)
                self._looks[pool.name] = Looks()
            elif place != self._places[pool.name]:
                # The directory stays: that of the jobs that are there.
                place = place._replace(directory=self._places[pool.name].directory)
                self._drivers[pool.name].reconfigure(place)
            self._places[pool.name] = place
            self._batches[pool.name] = pool.batch

    def _maker(self, pool: PoolSettings, place: Place) -> Callable[[], BatchSystem]:
        return lambda: self._create(pool.batch, self._places.get(pool.name, place))

    def submit(self, settings: Settings, pool: PoolSettings, intents: tuple[str, ...],
               managers: tuple[str, ...]) -> None:
        """Submit workers for ``managers`` ("host:port"); without any, those that must be told an address wait."""
        if pool.managers == "addresses" and not managers and not settings.target.host:
            self._waiting.setdefault(pool.name, []).extend(intents)
            return

        def compose() -> list[JobRequest]:
            delivery = self._delivery(settings, pool)
            return [job_request(settings, pool, JobTag(self._home.factory_id, pool.name, intent), delivery, managers)
                    for intent in intents]
        self._drivers[pool.name].submit(intents, compose)
        self._looks[pool.name].want()

    def submit_waiting(self, settings: Settings, managers: tuple[str, ...], stopping: bool) -> None:
        """Submit what waited for an address, or give it up at the end."""
        if not self._waiting or not (managers or stopping):
            return
        waiting, self._waiting = self._waiting, {}
        for name, intents in waiting.items():
            pool = settings.pool(name)
            if pool is None or stopping:
                self._post(Refused(name, tuple(intents), "no manager to name to the workers was found"))
            else:
                self.submit(settings, pool, tuple(intents), managers)

    def cancel(self, pool: str, jobs: Sequence[tuple[str, str]], force: bool) -> None:
        """Cancel jobs, (intent, batch id) each."""
        held = {intent for intent, _ in jobs} & set(self._waiting.get(pool, ()))
        if held:
            self._waiting[pool] = [intent for intent in self._waiting[pool] if intent not in held]
            self._post(Refused(pool, tuple(sorted(held)), "it was not needed any more"))
        handles = [JobHandle(JobTag(self._home.factory_id, pool, intent), batch) for intent, batch in jobs
                   if intent not in held]
        if handles and pool in self._drivers:
            self._drivers[pool].cancel(handles, force)
            self._looks[pool].want()

    def describe(self, pool: str, handle: JobHandle, reply: Callable[[Mapping[str, object]], None]) -> bool:
        """Have a job described: ``reply`` gets {"job": ...} or {"error": ...}. False when there is no such pool."""
        driver = self._drivers.get(pool)
        if driver is None:
            return False
        driver.describe(handle, reply)
        return True

    def poll(self, now: float, period_s: float, always: bool = False) -> None:
        """Ask those for a listing of which one is due; with ``always`` all, but those that are asked already."""
        for name, driver in self._drivers.items():
            if (always or self._looks[name].due(now, period_s)) and driver.poll():
                self._looks[name].asked(now)

    def look(self) -> None:
        """Have a listing of all that is not older than this."""
        for name, driver in self._drivers.items():
            self._looks[name].want()
            if driver.poll():
                self._looks[name].asked(self._clock())

    def changed(self, pool: str) -> None:
        """The last listing of a pool has shown something new."""
        if pool in self._looks:
            self._looks[pool].changed()

    def poll_children(self) -> None:
        """A process of ours has ended: ask those whose jobs are such processes. To the others it says nothing, for it
        may have been the tool that listed their jobs, and asking again would start the next one."""
        for name, driver in self._drivers.items():
            if self._batches[name] == LocalBatch.name:
                driver.poll()

    def take(self, pool: str, listing: Listing) -> Listing | None:
        """Remember a listing. Returns the one before."""
        before = self._listings.get(pool)
        if pool in self._drivers:
            self._listings[pool] = listing
        return before

    def readings(self, now: float) -> Mapping[str, Listing]:
        """The last listing of each pool; Unknown where one has been asked for too long ago."""
        found: dict[str, Listing] = {}
        for name, driver in self._drivers.items():
            asked = driver.silent_since()
            if asked is not None and now - asked > defaults.BATCH_SILENT_S:
                found[name] = Unknown(f"no answer for {now - asked:.0f} s", asked)
            elif name in self._listings:
                found[name] = self._listings[name]
        return found

    def close(self, timeout_s: float) -> None:
        """Let the threads end."""
        for driver in self._drivers.values():
            driver.close(timeout_s)


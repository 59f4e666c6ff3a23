"""Which managers there are to serve, and one link to each.

Owns the thread that looks at advertisements and the set of links. Must not know what links learn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskvine_core.catalog import local as catalog
from taskvine_core.catalog.record import NameMatch
from taskvine_core.errors import VineError
from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.classic import text
from vine_factory.classic_link import ClassicLink
from vine_factory.classic_link import catalog as catalog_client
from vine_factory.config import Target
from vine_factory.links import Address, ManagerLink
from vine_factory.readings import Known, Reading, Unknown


class Found(NamedTuple):
    """A manager to serve: its key ("host:port") and address. ``classic``: it is of the C implementation; ``record``:
    what a catalog says of it."""

    key: str
    address: Address
    classic: bool = False
    record: Mapping[str, Any] | None = None


def fixed(target: Target, use_tls: bool, classic: bool = False) -> list[Found]:
    """The one manager named by its address."""
    return [Found(f"{target.host}:{target.port}", Address((target.host,), target.port, "", use_tls), classic)]


def in_catalog(servers: str, regex: str, owner: str) -> list[Found]:
    """Managers of the C implementation that a catalog knows under a matching name; with ``owner`` only that user's.

    Raises:
        OSError, VineError: nothing is known.
    """
    matches = NameMatch(regex)
    found = {}
    for record in catalog_client(servers).managers():
        if matches(record["project"]) and owner in ("", record.get("owner")):
            hosts = tuple(dict.fromkeys(filter(None, (text(record, "name"), text(record, "address")))))
            key = f"{hosts[0]}:{record['port']}"
            found[key] = Found(key, Address(hosts, record["port"], "", bool(record.get("ssl"))), True, record)
    return list(found.values())


def advertised(regex: str) -> list[Found]:
    """Managers that advertise themselves now under a matching name.

    Raises:
        OSError, VineError: the advertisements cannot be read: nothing is known.
    """
    records = catalog.find_managers(regex)
    if not records:
        seen = catalog.scan()
        broken = [why for name, why in seen.ignored if name == str(seen.directory)]
        if broken:
            raise OSError(f"cannot look for managers in {seen.directory}: {broken[0]}")
    found = []
    for record in records:
        hosts = tuple(dict.fromkeys((*record.addresses, record.host)))
        address = Address(hosts, record.port, record.ssl_fingerprint, bool(record.ssl_fingerprint))
        found.append(Found(f"{record.host}:{record.port}", address))
    return found


class Discovery:
    """Looks for managers again and again, in a thread: a file server may hang.

    Args:
        look: what to call; raises when nothing is known.
        post: takes each reading; called from the thread.
        clock: seconds since the epoch.
    """

    def __init__(self, look: Callable[[], list[Found]], post: Callable[[Reading[list[Found]]], None],
                 clock: Callable[[], float]) -> None:
        self._look = look
        self._post = post
        self._clock = clock
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="discovery", daemon=True).start()

    def close(self) -> None:
        """Let the thread end; does not wait for it."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            now = self._clock()
            reading: Reading[list[Found]]
            try:
                reading = Known(self._look(), now)
            except (OSError, VineError) as problem:
                reading = Unknown(str(problem), now)
            self._post(reading)
            self._closed.wait(defaults.DISCOVERY_PERIOD_S)


Link = ManagerLink | ClassicLink


class Links:
    """One link per manager, made by ``make``."""

    def __init__(self, make: Callable[[Found], Link]) -> None:
        self._make = make
        self._links: dict[str, Link] = {}
        self._served: dict[str, Found] = {}

    def serve(self, managers: Sequence[Found]) -> None:
        """Have links to exactly these."""
        wanted = {manager.key: manager for manager in managers}
        for key, link in list(self._links.items()):
            before = self._served[key]
            if key not in wanted or wanted[key]._replace(record=None) != before._replace(record=None):
                link.close()
                del self._links[key]
        for key, manager in wanted.items():
            if key not in self._links:
                self._links[key] = self._make(manager)
            link = self._links[key]
            if isinstance(link, ClassicLink):
                link.record = manager.record
        self._served = wanted

    def get(self, key: str) -> Link | None:
        """The link of that key."""
        return self._links.get(key)

    def all(self) -> list[Link]:
        """All links."""
        return list(self._links.values())

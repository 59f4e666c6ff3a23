"""The simulated data plane: transfers between workers, from origins and to the manager, in virtual time.

Owns who can reach whom, how long bytes take, and what arrives. Must not know the manager core.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from taskvine_core.manager import events as ev
from taskvine_core.protocol import messages as msg
from taskvine_core.sim.worker import OUTPUT_BYTES, SimWorker

if TYPE_CHECKING:
    from taskvine_core.sim.world import World

WHO = {
    msg.SOURCE_MANAGER: "manager to workers",
    msg.SOURCE_PEER: "worker to worker",
    msg.SOURCE_URL: "origin to workers",
}
LATENCY_S = 0.001
BANDWIDTH_BYTES_S = 500e6


class Network:
    """Moves objects."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.moved: Counter[str] = Counter()  # bytes by whom
        self.origin_served: Counter[str] = Counter()  # copies sent by the manager or the URL's host, by name
        self.depth: dict[tuple[int, str], int] = {}  # hops from the origin, by worker and object
        self._walls: set[tuple[int, int]] = set()

    def transfer(self, dest: SimWorker, order: msg.Fetch) -> None:
        """Carry out a Fetch."""
        size = max(order.size_bytes, 0) or OUTPUT_BYTES
        self.world.clock.after(LATENCY_S + size / BANDWIDTH_BYTES_S, lambda: self._arrive(dest, order))

    def _arrive(self, dest: SimWorker, order: msg.Fetch) -> None:
        if order.where == msg.SOURCE_PEER:
            self._from_peer(dest, order)
        elif self.world.chance("disk_full"):
            dest.fetch_failed(order, msg.BLAME_SELF, "No space left on device")
        elif order.where == msg.SOURCE_URL and self.world.chance("url_fails"):
            dest.fetch_failed(order, msg.BLAME_OBJECT, "HTTP 503")
        else:
            size = max(order.size_bytes, 0) or OUTPUT_BYTES
            self.depth[dest.key, order.name] = 1
            self.origin_served[order.name] += 1
            self.moved[WHO[order.where]] += size
            dest.fetched(order, size, self.world.contents.get(order.name, b""))

    def _from_peer(self, dest: SimWorker, order: msg.Fetch) -> None:
        source = self.world.by_address.get(order.address)
        held = source.cache.get(order.name) if source is not None and source.alive and not source.stopped else None
        if source is None or held is None or self._walled(source, dest) or self.world.chance("bad_source"):
            dest.fetch_failed(order, msg.BLAME_SOURCE, "peer does not answer")
        elif order.sha256 and held[1] and order.sha256 != held[1]:
            dest.fetch_failed(order, msg.BLAME_SOURCE, "the content is not what was announced")
        else:
            self.depth[dest.key, order.name] = self.depth.get((source.key, order.name), 0) + 1
            self.moved[WHO[order.where]] += held[0]
            dest.fetched(order, held[0], held[1])

    def _walled(self, a: SimWorker, b: SimWorker) -> bool:
        return (min(a.key, b.key), max(a.key, b.key)) in self._walls

    def build_walls(self) -> None:
        """Some pairs of workers can never reach each other."""
        keys = sorted(self.world.workers)
        for one in keys:
            for other in keys:
                if one < other and self.world.chance("unreachable_pair"):
                    self._walls.add((one, other))

    def upload(self, source: SimWorker, order: msg.Upload, size: int, sha256: bytes) -> None:
        """A worker sends an object to the manager."""
        world, core = self.world, self.world.core

        def arrive() -> None:
            expected = world.expected.pop(order.transfer_id, None) if core is world.core else None
            if expected is None:
                return
            broken = not source.alive or world.chance("upload_breaks")
            if not broken:
                world.check_content(order.name, sha256)
                world.local_files.add(expected.path)
                self.moved["workers to manager"] += size
            world.tell(ev.UploadEnded(order.transfer_id, size, sha256, False, "connection lost" if broken else ""))

        world.clock.after(LATENCY_S + size / BANDWIDTH_BYTES_S, arrive)

"""Which manager to try next.

Owns the list of candidates: given addresses, or whatever advertises a matching name. Must not connect.
"""

from __future__ import annotations

from taskvine_core.errors import ConfigError, DiscoveryError
from taskvine_core.records import NamedTuple
from taskvine_core.worker.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    import ssl

    from taskvine_core.dataplane.channel import Tls

#: Advertisements are looked up at most this often: they are rewritten every five seconds.
QUERY_INTERVAL_S = 5.0


class Target(NamedTuple):
    """A manager to try. ``fingerprint`` is the hex digest of its certificate, "" when unknown or without TLS."""

    host: str
    port: int
    fingerprint: str = ""


class Finder:
    """Candidates in turn.

    Args:
        options: fixed addresses, or a name.
        rng: order among managers of one priority; None = a fresh one.
    """

    def __init__(self, options: Options, rng: random.Random | None = None) -> None:
        self._options = options
        self._rng = rng
        self._queue: list[Target] = [Target(*address) for address in options.addresses]
        self._queried_at = float("-inf")
        self._current: Target | None = None
        self._context: ssl.SSLContext | None = None

    def next_target(self, now: float) -> Target:
        """The next candidate.

        Raises:
            DiscoveryError: nobody advertises a matching name.
        """
        if self._options.addresses:
            target = self._queue.pop(0)
            self._queue.append(target)
            return target
        if not self._queue or now - self._queried_at >= QUERY_INTERVAL_S:
            self._query(now)
        if not self._queue:
            raise DiscoveryError(f"no manager with a name matching {self._options.manager_name!r} advertises itself",
                                 hint="is it running, as the same user, on this machine or a shared home?")
        return self._queue.pop(0)

    def _query(self, now: float) -> None:
        if now - self._queried_at < QUERY_INTERVAL_S:
            return
        from taskvine_core.catalog.local import find_managers

        self._queried_at = now
        records = find_managers(self._options.manager_name)
        if self._rng is None:
            import random

            self._rng = random.Random()
        self._rng.shuffle(records)
        records.sort(key=lambda record: -record.priority)
        self._queue = [Target(address, record.port, record.ssl_fingerprint)
                       for record in records for address in record.addresses]

    def tls_context(self, target: Target) -> ssl.SSLContext | None:
        """How to encrypt the connection to ``target``; None for plain TCP.

        Raises:
            ConfigError: the advertised fingerprint is broken.
        """
        self._current, self._context = target, None
        if not (self._options.ssl or target.fingerprint):
            return None
        from taskvine_core.tls import client_context

        try:
            self._context = client_context(bytes.fromhex(target.fingerprint) or None)
        except ValueError as error:
            raise ConfigError(f"{target.host}:{target.port} advertises a broken certificate fingerprint") from error
        return self._context

    def data_tls(self) -> Tls | None:
        """The same for data connections to the current manager."""
        if self._context is None or self._current is None:
            return None
        from taskvine_core.dataplane.channel import Tls

        return Tls(self._context, bytes.fromhex(self._current.fingerprint))

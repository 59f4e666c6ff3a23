"""``prometheus_port=``: a manager's statistics over HTTP, for Prometheus (reference, section 18.4).

Owns the server and the names of the metrics. Must not know the manager: it is given a function that reads the numbers.
Needs the package ``prometheus_client``, which is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from taskvine_core.errors import UsageError, UsageTypeError

MAX_PORT = 65535
PREFIX = "vine_"


def check_port(port: object) -> None:
    """Raises UsageError (a ValueError) or UsageTypeError (a TypeError) unless it is None or a port; ImportError when
    one is wanted and ``prometheus_client`` is not installed."""
    if port is None:
        return
    if not isinstance(port, int) or isinstance(port, bool):
        raise UsageTypeError(f"prometheus_port must be an integer or None, not {port!r}")
    if not 1 <= port <= MAX_PORT:
        raise UsageError(f"prometheus_port {port} is not between 1 and {MAX_PORT}")
    try:
        import prometheus_client  # noqa: F401 - only whether it is there
    except ImportError:
        raise ImportError("prometheus_port needs the Python package prometheus_client: pip install prometheus_client"
                          ) from None


class MetricsServer:
    """Serves ``/metrics`` from a thread of its own until ``close``.

    Args:
        port: to listen on.
        host: address to bind, "0.0.0.0" = all.
        read: gives the numbers by name; called in the server's thread at each question.

    Raises:
        RuntimeError: the port cannot be used.
    """

    def __init__(self, port: int, host: str, read: Callable[[], Mapping[str, float]]) -> None:
        import prometheus_client

        registry: Any = prometheus_client.CollectorRegistry()
        registry.register(_Collector(read))
        try:
            started: Any = prometheus_client.start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise RuntimeError(f"metrics cannot be served on port {port}: {error.strerror}") from error
        self._server, self._thread = started

    def close(self) -> None:
        """Stop, and wait for the answer that is being given."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    """One gauge per statistic, read when somebody asks: there is nothing to keep up to date."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def describe(self) -> list[Any]:
        """Nothing is asked at registration."""
        return []

    def collect(self) -> Iterator[Any]:
        """The numbers now."""
        from prometheus_client.core import GaugeMetricFamily

        for name, value in self._read().items():
            yield GaugeMetricFamily(PREFIX + name, f"manager statistic {name}", value=value)

"""The factory's numbers for Prometheus, on the loopback address.

Owns the names of the metrics and the server, in a thread of its own that reads the last state written. Needs the
package ``prometheus_client``, which is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory.jobs import JobState

AUTO = "auto"
_MAX_PORT = 65535
_JOB_STATES = tuple(state.value for state in JobState if state is not JobState.ENDED)


class Metric(NamedTuple):
    """One metric: its samples are (label values, value)."""

    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Iterator[tuple[tuple[str, ...], float]]]


def _of_pools(key: str) -> Callable[[Mapping[str, Any]], Iterator[tuple[tuple[str, ...], float]]]:
    return lambda state: (((pool["name"],), float(pool[key])) for pool in state.get("pools", ()))


def _jobs(state: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    return (((pool["name"], name), float(pool[name])) for pool in state.get("pools", ()) for name in _JOB_STATES)


def _faults(state: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    return (((pool["name"], kind), float(count)) for pool in state.get("pools", ())
            for kind, count in pool["faults"].items())


def _of_managers(key: str) -> Callable[[Mapping[str, Any]], Iterator[tuple[tuple[str, ...], float]]]:
    return lambda state: (((manager["address"], manager["project"]), float(manager[key]))
                          for manager in state.get("managers", ()))


METRICS: tuple[Metric, ...] = (
    Metric("vine_factory_jobs", "Jobs by state", ("pool", "state"), _jobs),
    Metric("vine_factory_jobs_idle", "Jobs whose workers have nothing to do", ("pool",), _of_pools("idle")),
    Metric("vine_factory_jobs_wanted", "Jobs that managers can use", ("pool",), _of_pools("wanted")),
    Metric("vine_factory_jobs_target", "Jobs that are to be there, within all limits", ("pool",), _of_pools("target")),
    Metric("vine_factory_faults", "Workers that failed, since the start", ("pool", "kind"), _faults),
    Metric("vine_factory_preempted", "Workers that were preempted, since the start", ("pool",), _of_pools("preempted")),
    Metric("vine_factory_manager_answers", "1 while the manager answers", ("address", "project"),
           _of_managers("answers")),
    Metric("vine_factory_manager_tasks_waiting", "Tasks that wait at the manager", ("address", "project"),
           _of_managers("tasks_waiting")),
    Metric("vine_factory_manager_tasks_running", "Tasks that run", ("address", "project"),
           _of_managers("tasks_running")),
    Metric("vine_factory_manager_workers", "Workers of the manager, ours and others'", ("address", "project"),
           _of_managers("workers")),
)


def port_number(text: str) -> int:
    """0 for "auto".

    Raises:
        ConfigError: it is no port.
    """
    if text == AUTO:
        return 0
    if not text.isdigit() or not 0 < int(text) <= _MAX_PORT:
        raise ConfigError(f"metrics-port = {text!r}", hint="expected a port, or auto for any free one")
    return int(text)


class MetricsServer:
    """Serves ``/metrics`` until it is closed. ``port``: where.

    Args:
        text: the port, or "auto".
        read: gives the factory's state, see statefile.py; called in the server's threads.

    Raises:
        ConfigError: no such port, it is taken, or ``prometheus_client`` is missing.
    """

    def __init__(self, text: str, read: Callable[[], Mapping[str, Any]]) -> None:
        number = port_number(text)
        try:
            import prometheus_client
        except ImportError:
            raise ConfigError("--metrics-port needs the Python package prometheus_client",
                              hint="pip install prometheus_client") from None
        registry: Any = prometheus_client.CollectorRegistry()
        registry.register(_Collector(read))
        try:
            started: Any = prometheus_client.start_http_server(number, addr="127.0.0.1", registry=registry)
        except OSError as problem:
            raise ConfigError(f"metrics cannot be served on port {text}: {problem.strerror}",
                              hint="--metrics-port auto takes any free one") from problem
        self._server, self._thread = started
        self.port = int(self._server.server_address[1])

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    def describe(self) -> list[Any]:
        """Nothing is asked at registration."""
        return []

    def collect(self) -> Iterator[Any]:
        """The numbers now."""
        from prometheus_client.core import GaugeMetricFamily

        state = self._read()
        for metric in METRICS:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in metric.read(state):
                family.add_metric(labels, value)
            yield family

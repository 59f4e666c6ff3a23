"""Statistics over HTTP for Prometheus."""

from __future__ import annotations

import socket
import sys
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from api_support import Cluster, drain

import taskvine_core as vine
from taskvine_core.manager.stats import FIELDS

pytestmark = pytest.mark.live


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _gauges(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def test_every_statistic_is_a_gauge_and_current_while_the_program_does_something_else(cluster: Cluster) -> None:
    pytest.importorskip("prometheus_client")
    port = _free_port()
    manager = cluster.manager(prometheus_port=port)
    assert manager.prometheus_port == port and cluster.manager().prometheus_port is None
    assert set(_gauges(port)) == {f"vine_{name}" for name in FIELDS}
    manager.submit(vine.Task(":"))
    assert _gauges(port)["vine_tasks_waiting"] == 1
    cluster.worker(manager)
    assert all(task.successful() for task in drain(manager, cluster.log))
    assert _gauges(port)["vine_workers_connected"] == 1
    manager.close()
    with pytest.raises(OSError, match="refused"):
        _gauges(port)


def test_a_metrics_port_that_is_taken_is_a_runtime_error_and_leaves_no_manager(cluster: Cluster) -> None:
    pytest.importorskip("prometheus_client")
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = _free_port()
        with pytest.raises(RuntimeError, match="metrics cannot be served"):
            cluster.manager(port=port, prometheus_port=taken.getsockname()[1])
    assert cluster.manager(port=port).port == port


@pytest.mark.parametrize(("port", "error"), [(0, ValueError), (65536, ValueError), (-1, ValueError), ("1", TypeError)])
def test_an_impossible_metrics_port_is_refused(cluster: Cluster, port: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="prometheus_port"):
        cluster.manager(prometheus_port=port)


def test_without_the_client_library_the_import_error_says_what_to_install(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match="pip install prometheus_client"):
        cluster.manager(prometheus_port=9999)

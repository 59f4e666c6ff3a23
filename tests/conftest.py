"""Fixtures for all tests: real batch systems, started once per session and only when a test wants one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from clusters import gridengine, htcondor, slurm

# Tests that wait for a batch system wait for its daemons, not for a processor: with `-n 4 --dist loadgroup` each system
# has a process of its own, and all other tests run one after another in the fourth, as they do without it.
GROUPS = {"htcondor_pool": "condor", "grid_engine": "gridengine", "slurm_cluster": "slurm",
          "slurm_accounting": "slurm"}
SYSTEMS = {"condor": "condor", "slurm": "slurm", "drmaa": "gridengine", "command": "gridengine", "sge": "gridengine"}


def pytest_configure() -> None:
    """SIGTERM ends the tests as Ctrl-C does: the batch systems' daemons must not outlive them."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's group."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    for fixture in getattr(item, "fixturenames", ()):
        if fixture in GROUPS:
            return GROUPS[fixture]
    words = getattr(item, "callspec", None)
    for word in words.id.split("-") if words is not None else ():
        if word in GROUPS:
            return GROUPS[word]
        if word in SYSTEMS and ("contract" in item.path.parts or item.path.name.startswith("test_factory")):
            return SYSTEMS[word]
    return "others"


@pytest.fixture(scope="session")
def htcondor_pool() -> Iterator[htcondor.Pool]:
    """A pool, and this process's environment set up as a client of it."""
    pool = htcondor.Pool()
    try:
        environment = pool.up()
    except htcondor.CannotStart as problem:
        pool.down()
        cannot(f"no HTCondor pool here: {problem}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield pool
    pool.down()


@pytest.fixture(scope="session")
def grid_engine() -> Iterator[gridengine.GridEngine]:
    """A Grid Engine, and this process's environment set up as a client of it."""
    cluster = gridengine.GridEngine()
    try:
        try:
            environment = cluster.up()
        except htcondor.CannotStart as problem:
            cannot(f"no Grid Engine here: {problem}")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def _slurm() -> Iterator[slurm.Cluster]:
    yield from _cluster(slurm.Cluster())


@pytest.fixture(scope="session")
def _slurm_accounting() -> Iterator[slurm.Cluster]:
    yield from _cluster(slurm.Cluster(accounting=True, forget_s=2))


def _cluster(cluster: slurm.Cluster) -> Iterator[slurm.Cluster]:
    try:
        try:
            cluster.up()
        except slurm.CannotStart as problem:
            cannot(f"no Slurm cluster here: {problem}")
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def slurm_cluster(_slurm: slurm.Cluster, monkeypatch: pytest.MonkeyPatch) -> slurm.Cluster:
    """A cluster, and this process's environment set up as a client of it."""
    monkeypatch.setenv("SLURM_CONF", _slurm.environment["SLURM_CONF"])
    return _slurm


@pytest.fixture
def slurm_accounting(_slurm_accounting: slurm.Cluster, monkeypatch: pytest.MonkeyPatch) -> slurm.Cluster:
    """A cluster that keeps accounts and forgets ended jobs quickly."""
    monkeypatch.setenv("SLURM_CONF", _slurm_accounting.environment["SLURM_CONF"])
    return _slurm_accounting


def cannot(reason: str) -> None:
    """Skip; where clusters are required, fail."""
    if os.environ.get("VINE_REQUIRE_CLUSTERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)

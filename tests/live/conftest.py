"""Fixtures of the live tests: managers and workers in a place of their own, and everything ended afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_support import Cluster
from factory_bed import Bed, StandInManager


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Managers and workers of one test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Managers and workers of all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cluster")
        patch.setenv("XDG_STATE_HOME", str(directory / "state"))
        made = Cluster(directory)
        yield made
        made.close()


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    """A place for the factories of one test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Bed(tmp_path)
    yield made
    made.end()


@pytest.fixture
def stand_in(bed: Bed) -> Iterator[StandInManager]:
    """A manager whose need the test decides."""
    made = StandInManager()
    yield made
    made.close()

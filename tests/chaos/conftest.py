"""Fixtures of the chaos tests: an own key, a cluster that ends with the test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_support import Cluster, directory_on_small_disk, may_mount


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Key file and records of running managers are the test's own."""
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    return state


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    with contextlib.ExitStack() as stack:
        def make(**options: Any) -> Cluster:
            cluster = Cluster(tmp_path, **options)
            stack.callback(cluster.close)
            return cluster

        yield make


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """``small_disk(name, mb)``: a directory on a file system of that size."""
    if not may_mount():
        if os.environ.get("VINE_REQUIRE_CLUSTERS") == "1":
            pytest.fail("needs root to mount a small tmpfs, and may not be skipped here")
        pytest.skip("needs root to mount a small tmpfs")
    with contextlib.ExitStack() as stack:
        def make(name: str, size_mb: int) -> Path:
            path = tmp_path / name
            stack.callback(directory_on_small_disk(path, size_mb))
            return path

        yield make

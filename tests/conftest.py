"""Fixtures for all tests: real batch systems, started once per session and only when a test wants one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from clusters import gridengine, htcondor


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


def cannot(reason: str) -> None:
    """Skip; where clusters are required, fail."""
    if os.environ.get("VINE_REQUIRE_CLUSTERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)

"""When a peer that moves something still counts as silent, and what a failed call waits for."""

from __future__ import annotations

import select
import ssl

import pytest

from taskvine_core.dataplane import channel
from taskvine_core.dataplane.channel import MIN_PROGRESS_BYTES, wanted_events
from taskvine_core.errors import SourceError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(channel.time, "monotonic", lambda: now[0])
    return now


def test_a_peer_may_be_slow_as_long_as_each_timeout_moves_enough(clock: list[float]) -> None:
    window = channel._Window(10.0)
    for _ in range(5):
        clock[0] += 10.0
        window.moved += MIN_PROGRESS_BYTES
        window.check("peer")


def test_a_trickle_counts_as_silence_after_one_timeout(clock: list[float]) -> None:
    window = channel._Window(10.0)
    clock[0] += 9.9
    window.moved += MIN_PROGRESS_BYTES - 1
    window.check("peer")
    clock[0] += 0.1
    with pytest.raises(SourceError, match="moved 65535 bytes"):
        window.check("peer")


@pytest.mark.parametrize(("error", "events"), [
    (BlockingIOError(), select.POLLOUT), (ssl.SSLWantReadError(), select.POLLIN),
    (ssl.SSLWantWriteError(), select.POLLOUT), (ConnectionResetError(), 0), (ssl.SSLEOFError(), 0),
])
def test_only_calls_that_would_block_are_waited_for(error: OSError, events: int) -> None:
    assert wanted_events(error, select.POLLOUT) == events

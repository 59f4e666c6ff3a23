"""A client library in a process of its own: what it does to that process, it does not do to the factory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskvine_core.errors import BatchRejected, BatchUnavailable
from vine_factory.batch.rpc import Helper


@pytest.fixture
def helper() -> Iterator[Helper]:
    made = Helper("rpc_helper", {"PYTHONPATH": str(Path(__file__).parent)}, timeout_s=20)
    yield made
    made.close()


def test_values_come_back_whatever_the_library_prints(helper: Helper) -> None:
    value = {"text": "ü\n", "list": [1, 2.5, None]}
    assert helper.call("echo", value=value) == value
    assert helper.call("echo", value="x" * (2 << 20)) == "x" * (2 << 20)


def test_errors_keep_their_kind_and_the_systems_words(helper: Helper) -> None:
    with pytest.raises(BatchRejected, match="no such queue") as caught:
        helper.call("refuse")
    assert caught.value.said == "no such queue"
    with pytest.raises(BatchUnavailable, match="ValueError: odd"):
        helper.call("fail")


def test_a_library_that_hangs_costs_one_deadline_and_the_next_call_works(helper: Helper) -> None:
    old, start = helper.call("pid"), time.monotonic()
    with pytest.raises(BatchUnavailable, match=r"no answer to 'hang' within 0.5 s"):
        helper.call("hang", 0.5)
    assert time.monotonic() - start < 5
    assert helper.call("pid") != old
    assert not Path(f"/proc/{old}").exists()


def test_a_library_that_ends_its_process_is_told_from_one_that_hangs(helper: Helper) -> None:
    with pytest.raises(BatchUnavailable, match="status 7"):
        helper.call("die")
    assert helper.call("echo", value=1) == 1


def test_a_helper_that_cannot_start_is_no_answer() -> None:
    with pytest.raises(BatchUnavailable, match="status 1"):
        Helper("vine_factory.no_such_module", timeout_s=20).call("echo")


def test_closing_ends_the_process(helper: Helper) -> None:
    pid = helper.call("pid")
    helper.close()
    assert not Path(f"/proc/{pid}").exists()

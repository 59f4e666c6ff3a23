"""`vine_factory` and managers of the C implementation, by a stand-in that speaks their documented text protocol."""

from __future__ import annotations

import getpass
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from classic_manager import CatalogServer, ClassicManager
from factory_bed import PATIENCE_S, Bed, wait

from taskvine_core.errors import RemoteProtocolError
from vine_factory import classic_link

pytestmark = pytest.mark.live


@pytest.fixture
def manager() -> Iterator[ClassicManager]:
    made = ClassicManager()
    yield made
    made.close()


def only(bed: Bed) -> dict[str, Any]:
    state: dict[str, Any] = bed.status()[0]
    return state


def test_a_manager_given_by_its_address_is_fed_when_it_is_said_to_be_classic(bed: Bed, manager: ClassicManager) -> None:
    manager.record |= {"tasks_waiting": 5}
    manager.workers = [{"factory_name": "of-somebody-else"}, {"factory_name": "of-somebody-else"}]
    factory = bed.factory("--max", 9, "--protocol", "classic", f"localhost:{manager.port}")
    wait(lambda: len(bed.workers()) == 3, "five, less two of others")
    started = bed.started(3)
    assert f"localhost {manager.port}" in started and f"--from-factory {bed.name}" in started
    manager.workers += [{"factory_name": bed.name}] * 3
    asked = len(manager.asked)
    wait(lambda: len(manager.asked) >= asked + 8, "four more looks")
    assert len(bed.workers()) == 3
    manager.record |= {"tasks_waiting": 0}
    asked = len(manager.asked)
    wait(lambda: len(manager.asked) >= asked + 8, "four more looks")
    assert len(bed.workers()) == 3  # they idle out by themselves; none is ended
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0


def test_without_being_told_a_classic_manager_is_not_spoken_to_in_plain_text(bed: Bed, manager: ClassicManager) -> None:
    manager.record |= {"tasks_waiting": 5}
    bed.factory("--max", 9, f"localhost:{manager.port}")
    wait(lambda: bed.status() and only(bed)["managers"] and not only(bed)["managers"][0]["answers"], "no answer")
    assert not {"manager_status", "worker_status"} & set(manager.asked)
    assert bed.workers() == {}


def test_managers_in_a_catalog_are_served_by_name_and_with_no_name_only_our_own(
        bed: Bed, manager: ClassicManager) -> None:
    manager.record |= {"tasks_waiting": 2, "project": "theirs", "owner": "somebody"}
    mine = ClassicManager(project="mine", owner=getpass.getuser(), tasks_waiting=1)
    catalog = CatalogServer([manager.record, mine.record, {"type": "vine_manager", "junk": 1}, 5])
    try:
        first = bed.factory("--max", 9, "--catalog", catalog.address)
        wait(lambda: len(bed.workers()) == 1, "a worker for our own")
        assert manager.asked == []
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0
        bed.factory("--max", 9, "--catalog", catalog.address, "-M", "theirs")
        wait(lambda: len(bed.workers()) == 2, "two for the named one")
        assert f"-C {catalog.address} -M theirs" in bed.started(3)
    finally:
        catalog.close()
        mine.close()


def test_a_manager_with_a_password_is_fed_from_its_catalog_record(bed: Bed, manager: ClassicManager) -> None:
    manager.silent = True
    manager.record |= {"tasks_waiting": 4, "workers": 1}
    catalog = CatalogServer([manager.record])
    try:
        bed.factory("--max", 9, "--catalog", catalog.address, "-M", "classic")
        wait(lambda: len(bed.workers()) == 3, "four, less the one that cannot be ours")
    finally:
        catalog.close()


def test_a_manager_that_falls_silent_is_unknown_and_costs_no_worker(bed: Bed, manager: ClassicManager) -> None:
    manager.record |= {"tasks_waiting": 2}
    bed.factory("--max", 9, "--retire-after", 0, "--protocol", "classic", f"localhost:{manager.port}")
    before = wait(lambda: len(found := bed.workers()) == 2 and found, "two workers")
    manager.raw = b'{"tasks_waiting": 0'
    wait(lambda: "does not answer" in bed.log(), "it is noticed")
    assert bed.workers() == before


@pytest.mark.parametrize("raw", [b"", b"hello", b"{}", b"[" * 200_000, b"\xff\xfe", b"null"])
def test_garbage_is_an_error_that_says_so(manager: ClassicManager, raw: bytes) -> None:
    manager.raw = raw
    with pytest.raises(RemoteProtocolError):
        classic_link.query("localhost", manager.port, "manager_status", False)

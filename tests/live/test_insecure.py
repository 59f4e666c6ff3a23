"""Insecure mode: no key, and nobody outside of this machine can connect."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from api_support import Cluster, run
from fake_manager import FakeManager, WorkerProcess

import taskvine_core as vine
from taskvine_core.secret import INSECURE_SECRET
from taskvine_core.tools import vine_status

pytestmark = pytest.mark.live

#: Also this machine, but not the address that insecure programs bind: stands for its address on the network.
ELSEWHERE = "127.0.0.2"


def _reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_an_insecure_manager_works_without_a_key_for_programs_that_say_so(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = cluster.manager(insecure=True, name="unguarded")
    warned = [line for line in capsys.readouterr().err.splitlines() if "insecure" in line]
    assert len(warned) == 1 and "everybody on this machine" in warned[0]
    cluster.worker(manager, "--insecure")
    assert run(manager, vine.Task("echo in"), cluster.log).std_output == "in\n"
    assert vine_status.main(["-W", "--insecure", "localhost", str(manager.port)]) == 0
    assert not (tmp_path / "state" / "taskvine" / "secret").exists()
    assert vine_status.main(["-W", "localhost", str(manager.port)]) != 0
    assert "does not have the same key" in capsys.readouterr().err


def test_insecure_managers_and_workers_bind_the_loopback_address_only(cluster: Cluster, tmp_path: Path) -> None:
    manager = cluster.manager(insecure=True)
    assert _reachable("127.0.0.1", manager.port) and not _reachable(ELSEWHERE, manager.port)
    assert _reachable(ELSEWHERE, cluster.manager().port)
    fake = FakeManager(secret=INSECURE_SECRET)
    worker = WorkerProcess(fake.port, "--insecure", cwd=tmp_path)
    try:
        port = fake.accept().transfer_port
        assert _reachable("127.0.0.1", port) and not _reachable(ELSEWHERE, port)
    finally:
        worker.close()
        fake.close()


def test_an_insecure_manager_advertises_the_address_it_binds(cluster: Cluster) -> None:
    from taskvine_core.catalog.local import find_managers

    cluster.manager(insecure=True, name="unguarded")
    cluster.manager(name="guarded")
    assert [record.addresses for record in find_managers("unguarded")] == [("127.0.0.1",)]
    assert find_managers("^guarded")[0].addresses == (socket.gethostname(),)

"""Rules of discovery without a server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskvine_core.catalog import local
from taskvine_core.catalog.local import Advertiser, find_managers, no_manager, scan
from taskvine_core.catalog.record import host_identity, process_start
from taskvine_core.errors import DiscoveryError

WAIT_S = 10.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.005)


def raw(**changes: object) -> dict[str, object]:
    """A record as a manager of this very process would write it."""
    base: dict[str, object] = {
        "project": "alpha", "port": 9123, "host": "node1", "addresses": ["node1"], "pid": os.getpid(),
        "pid_start": process_start(os.getpid()), "host_identity": host_identity(), "monotonic": time.monotonic()}
    return {**base, **changes}


def write(directory: Path, name: str, content: object, age_s: float = 0.0) -> Path:
    path = directory / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if age_s:
        os.utime(path, (time.time() - age_s,) * 2)
    return path


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait(WAIT_S)
    return child.pid


def test_published_manager_is_found_with_all_fields(tmp_path: Path) -> None:
    advertiser = Advertiser(tmp_path / "managers")
    advertiser.publish({"project": "alpha", "port": 9123, "addresses": ["10.0.0.1", "h"], "manager_id": "m1",
                        "priority": 3, "ssl_fingerprint": "ab" * 32, "tasks_waiting": 7})
    (found,) = find_managers(directory=tmp_path / "managers")
    assert found[:8] == ("alpha", os.uname().nodename, 9123, ("10.0.0.1", "h"), os.getpid(), "m1", 3, "ab" * 32)
    assert found.record["tasks_waiting"] == 7
    assert abs(found.updated_at - time.time()) < WAIT_S
    advertiser.withdraw()
    assert find_managers(directory=tmp_path / "managers") == []


def test_renewal_replaces_the_record_and_leaves_no_other_file(tmp_path: Path) -> None:
    advertiser = Advertiser(tmp_path)
    for waiting in (1, 2, 3):
        advertiser.publish({"project": "alpha", "port": 9123, "tasks_waiting": waiting})
    wait_for(lambda: find_managers(directory=tmp_path)[0].record["tasks_waiting"] == 3)
    assert len(list(tmp_path.iterdir())) == 1
    advertiser.withdraw()
    assert list(tmp_path.iterdir()) == []


def test_directory_and_record_are_private(tmp_path: Path) -> None:
    advertiser = Advertiser(tmp_path / "managers")
    advertiser.publish({"project": "alpha", "port": 9123})
    assert advertiser.path is not None
    assert advertiser.path.stat().st_mode & 0o077 == 0
    assert advertiser.path.parent.stat().st_mode & 0o077 == 0
    advertiser.withdraw()


def test_secrets_are_never_published(tmp_path: Path) -> None:
    advertiser = Advertiser(tmp_path)
    advertiser.publish({"project": "alpha", "port": 9123, "secret": "s3", "Password": "s3", "api_token": "s3"})
    assert advertiser.path is not None
    assert "s3" not in advertiser.path.read_text()
    advertiser.withdraw()


@pytest.mark.parametrize("record", [{"port": 9123}, {"project": "a"}, {"project": "a", "port": 0},
                                    {"project": "a\nb", "port": 1}, {"project": "a", "port": True}])
def test_unusable_record_is_refused_at_publish(tmp_path: Path, record: dict[str, object]) -> None:
    with pytest.raises(DiscoveryError, match=r"project|port"):
        Advertiser(tmp_path).publish(record)


def test_first_publish_reports_that_the_directory_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiscoveryError, match="cannot advertise"):
        Advertiser(tmp_path / "file" / "managers").publish({"project": "a", "port": 1})


def test_forked_child_neither_renews_nor_withdraws(tmp_path: Path) -> None:
    advertiser = Advertiser(tmp_path)
    advertiser.publish({"project": "alpha", "port": 9123})
    child = os.fork()
    if child == 0:
        advertiser.publish({"project": "beta", "port": 9124})
        advertiser.withdraw()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [m.project for m in find_managers(directory=tmp_path)] == ["alpha"]
    advertiser.withdraw()


def test_name_must_match_as_a_whole(tmp_path: Path) -> None:
    for number, name in enumerate(("alpha", "alpha-2", "beta", "c++(x")):
        write(tmp_path, f"{number}.json", raw(project=name))

    def names(pattern: str | None) -> list[str]:
        return [m.project for m in find_managers(pattern, tmp_path)]

    assert names(None) == ["alpha", "alpha-2", "beta", "c++(x"]
    assert names("alpha") == ["alpha"]
    assert names("alpha.*") == ["alpha", "alpha-2"]
    assert names("a|beta") == ["beta"]
    assert names("c++(x") == ["c++(x"]


def test_higher_priority_comes_first(tmp_path: Path) -> None:
    for number, priority in enumerate((0, 5, -1)):
        write(tmp_path, f"{number}.json", raw(project=f"p{priority}", priority=priority))
    assert [m.priority for m in find_managers(directory=tmp_path)] == [5, 0, -1]


def test_record_of_an_ended_process_of_this_machine_is_removed(tmp_path: Path) -> None:
    path = write(tmp_path, "1.json", raw(pid=dead_pid()))
    assert find_managers(directory=tmp_path) == []
    assert not path.exists()


def test_record_of_a_reused_pid_is_removed(tmp_path: Path) -> None:
    path = write(tmp_path, "1.json", raw(pid_start=1))
    assert find_managers(directory=tmp_path) == []
    assert not path.exists()


def test_live_process_that_stopped_renewing_is_not_listed_but_its_file_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "1.json", raw(monotonic=time.monotonic() - local.STALE_AFTER_S - 1))
    assert find_managers(directory=tmp_path) == []
    assert path.exists()


def test_other_host_is_judged_by_age_alone(tmp_path: Path) -> None:
    elsewhere = {"host_identity": "other/1", "pid": dead_pid(), "monotonic": 0.0}
    write(tmp_path, "fresh.json", raw(project="fresh", **elsewhere), local.STALE_AFTER_S - 10)
    late = write(tmp_path, "late.json", raw(project="late", **elsewhere), local.STALE_AFTER_S + 5)
    gone = write(tmp_path, "gone.json", raw(project="gone", **elsewhere), local.DELETE_AFTER_S + 5)
    assert [m.project for m in find_managers(directory=tmp_path)] == ["fresh"]
    assert late.exists(), "it may be live: its file server may be slow"
    assert not gone.exists()


def test_clock_of_the_file_server_decides_not_that_of_the_reader(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "1.json", raw(host_identity="other/1"))
    monkeypatch.setattr(time, "time", lambda: 1e10)  # this host is centuries ahead of the server
    assert len(find_managers(directory=tmp_path)) == 1


def test_no_probe_is_made_when_all_records_are_of_this_machine(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "1.json", raw())
    monkeypatch.setattr(local._ServerClock, "_touch", lambda self: pytest.fail("touched"))
    assert len(find_managers(directory=tmp_path)) == 1


HOSTILE = {
    "text": "hello", "empty": "", "list": "[1]", "deep": "[" * 100_000, "huge": " " * (local.MAX_RECORD_BYTES + 1),
    "number": "1" * 5000, "nul": "\0\0", "no project": raw(project=None), "port text": raw(port="9123"),
    "port range": raw(port=70000), "addresses text": raw(addresses="node"), "address number": raw(addresses=[1]),
    "no address": raw(addresses=[]), "many addresses": raw(addresses=["a"] * 1000), "pid huge": raw(pid=1 << 80),
    "pid negative": raw(pid=-1),
    "control characters": raw(project="a\x1b[2J"), "fingerprint": raw(ssl_fingerprint="xy"),
    "clock": raw(monotonic="now"),
    "clock nan": json.dumps(raw(monotonic=float("nan"))), "long name": raw(project="a" * 999),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_unusable_file_is_ignored_and_kept(tmp_path: Path, case: str) -> None:
    path = write(tmp_path, "bad.json", HOSTILE[case])
    write(tmp_path, "good.json", raw())
    result = scan(tmp_path)
    assert [m.project for m in result.managers] == ["alpha"]
    assert [name for name, _ in result.ignored] == ["bad.json"]
    assert path.exists()


def test_things_that_are_no_files_are_ignored_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "dir.json").mkdir()
    (tmp_path / "link.json").symlink_to(write(tmp_path, "elsewhere", raw()))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.json"))
        assert find_managers(directory=tmp_path) == []


def test_file_of_another_user_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "1.json", raw())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    result = scan(tmp_path)
    assert result.managers == []
    assert "belongs to" in result.ignored[0][1]


def test_missing_directory_means_no_managers(tmp_path: Path) -> None:
    assert find_managers(directory=tmp_path / "none") == []


def test_old_temporary_files_are_removed_and_new_ones_kept(tmp_path: Path) -> None:
    old = write(tmp_path, ".tmp-1.json", "x", local.DELETE_AFTER_S + 10)
    new = write(tmp_path, ".tmp-2.json", "x")
    assert find_managers(directory=tmp_path) == []
    assert not old.exists()
    assert new.exists()


def test_error_says_where_was_looked_and_what_was_seen(tmp_path: Path) -> None:
    write(tmp_path, "1.json", raw(project="beta"))
    write(tmp_path, "2.json", "junk")
    text = str(no_manager("alpha(", tmp_path))
    for part in ("alpha(", str(tmp_path), "'beta' on node1:9123", "2.json", "is not JSON", "no regular expression"):
        assert part in text
    assert "no live manager" in str(no_manager(None, tmp_path / "none"))


def test_import_loads_no_network_or_third_party_module() -> None:
    program = ("import sys; import taskvine_core.catalog.local; "
               "bad = ('socket', 'ssl', 'msgpack', 'logging', 'asyncio', 'subprocess'); "
               "print([m for m in bad if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stdout.strip() == "[]"

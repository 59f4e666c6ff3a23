"""The `vine_factory` command as a process: real workers or small stand-ins, a stand-in manager that can hang.

Everything that waits has a deadline; what a test starts it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from factory_bed import PATIENCE_S, Bed, StandInManager, wait

from taskvine_core.catalog.local import Advertiser

pytestmark = pytest.mark.live


@pytest.fixture
def manager(stand_in: StandInManager) -> StandInManager:
    return stand_in


def test_the_minimum_runs_without_a_manager_and_ends_with_the_factory(bed: Bed) -> None:
    factory = bed.factory("--min", 3, "--max", 3, "localhost", 1)
    wait(lambda: len(bed.workers()) == 3, "three workers")
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0
    assert bed.workers() == {}
    assert "removing 3 workers..." in bed.log()
    assert "all workers removed." in bed.log()


def test_a_worker_that_ignores_the_polite_signal_is_killed_after_the_grace(bed: Bed) -> None:
    bed.set_worker("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.05; done\n")
    factory = bed.factory("--min", 1, "--max", 1, "--drain-grace", 0.5, "localhost:1")
    wait(bed.workers, "a worker")
    factory.send_signal(signal.SIGINT)
    assert factory.wait(PATIENCE_S) == 0
    assert bed.workers() == {}


def test_one_wish_delivered_twice_still_lets_workers_end_themselves(bed: Bed) -> None:
    factory = bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait((bed.path / "started").exists, "a worker that has set its trap")
    factory.send_signal(signal.SIGTERM)
    factory.send_signal(signal.SIGINT)
    assert factory.wait(PATIENCE_S) == 0
    assert "ended with status 0" in bed.log()


def test_kill_nine_and_restart_adopts_the_same_workers_and_starts_no_other(bed: Bed, manager: StandInManager) -> None:
    manager.need = 4
    manager.jobs = lambda: list(bed.workers())
    arguments = ("--max", 4, f"localhost:{manager.port}")
    first = bed.factory(*arguments)
    before = wait(lambda: len(found := bed.workers()) == 4 and found, "four workers")
    first.kill()
    first.wait()
    second = bed.factory(*arguments)
    wait(lambda: bed.log().count("4 workers connected") + bed.log().count("4 workers adopted") > 0
         and [p["connected"] for s in bed.status() for p in s["pools"]] == [4], "the second factory knows its workers")
    asked = manager.questions
    wait(lambda: manager.questions >= asked + 2, "two more passes")
    assert bed.workers() == before
    assert len((bed.path / "started").read_text().splitlines()) == 4
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE_S) == 0
    assert bed.workers() == {}


def test_adoption_works_without_the_journal(bed: Bed) -> None:
    arguments = ("--min", 2, "--max", 2, "localhost:1")
    first = bed.factory(*arguments)
    before = wait(lambda: len(found := bed.workers()) == 2 and found, "two workers")
    first.kill()
    first.wait()
    for journal in bed.path.rglob("journal.sqlite*"):
        journal.unlink()
    bed.factory(*arguments)
    wait(lambda: "2 workers adopted" in bed.log(), "adoption")
    assert bed.workers() == before


def test_a_factory_told_to_leave_its_workers_ends_alone_and_the_next_one_adopts_and_ends_them(bed: Bed) -> None:
    arguments = ("--min", 2, "--max", 2, "localhost:1")
    first = bed.factory("--leave", *arguments)
    before = wait(lambda: len(found := bed.workers()) == 2 and found, "two workers")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) == 0
    assert "leaving 2 workers" in bed.log() and bed.workers() == before
    second = bed.factory(*arguments)
    wait(lambda: [p["running"] for s in bed.status() for p in s["pools"]] == [2], "both are known")
    assert bed.workers() == before
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE_S) == 0
    assert bed.workers() == {}


def test_demand_brings_workers_and_idle_ones_leave_through_the_manager(bed: Bed, manager: StandInManager) -> None:
    manager.need = 3
    manager.jobs = lambda: list(bed.workers())
    bed.factory("--max", 3, "--retire-after", 1, f"localhost:{manager.port}")
    jobs = wait(lambda: len(found := bed.workers()) == 3 and found, "three workers")
    wait(lambda: "3 workers connected" in bed.log() or bed.log().count("connected") >= 2, "connections")
    kept = sorted(jobs)[0]
    manager.busy = {kept}
    manager.need = 1
    wait(lambda: len(manager.retired) == 2, "two retirements")
    assert f"w-{kept}" not in manager.retired


def test_a_manager_that_hangs_neither_delays_the_loop_nor_shrinks_the_fleet(bed: Bed, manager: StandInManager) -> None:
    manager.need = 2
    manager.jobs = lambda: list(bed.workers())
    factory = bed.factory("--max", 2, "--retire-after", 0, f"localhost:{manager.port}")
    before = wait(lambda: len(found := bed.workers()) == 2 and found, "two workers")
    wait(lambda: "connected" in bed.log(), "connections")
    manager.hang = True
    asked = manager.questions
    wait(lambda: manager.questions > asked, "a question that is not answered")
    os.kill(before[sorted(before)[0]], signal.SIGKILL)
    started = time.monotonic()
    wait(lambda: "signal 9" in bed.log(), "the loop notices a death while the manager hangs")
    assert time.monotonic() - started < 2.0
    assert len(bed.workers()) >= 1
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0


def test_a_manager_restarted_on_its_port_is_served_again(bed: Bed, manager: StandInManager) -> None:
    manager.need = 1
    manager.jobs = lambda: list(bed.workers())
    bed.factory("--max", 3, f"localhost:{manager.port}")
    before = wait(bed.workers, "a worker")
    manager.close()
    wait(lambda: "does not answer" in bed.log(), "the loss is noticed")
    again = StandInManager(manager.port)
    try:
        again.jobs = lambda: list(bed.workers())
        again.need = 2
        wait(lambda: len(bed.workers()) == 2, "growth for the restarted manager")
        assert before.keys() <= bed.workers().keys()
    finally:
        again.close()


def test_workers_that_die_at_start_are_shown_and_not_started_again_and_again(bed: Bed, manager: StandInManager) -> None:
    bed.set_worker('#!/bin/sh\necho x >> "$(dirname "$0")/started"\necho "libmissing.so: no such file" >&2\nexit 127\n')
    manager.need = 5
    bed.factory("--max", 5, f"localhost:{manager.port}")
    wait(lambda: "libmissing.so: no such file" in bed.log() and "trying with one worker" in bed.log(), "the fault")
    asked = manager.questions
    wait(lambda: manager.questions >= asked + 3, "three more seconds of demand")
    assert len((bed.path / "started").read_text().splitlines()) <= 5 + 3


def test_with_no_manager_named_all_of_the_users_managers_are_served(bed: Bed, manager: StandInManager) -> None:
    manager.need = 2
    advertiser = Advertiser()
    advertiser.publish({"project": "physics", "host": "localhost", "port": manager.port, "pid": os.getpid(),
                        "manager_id": "m", "addresses": ["127.0.0.1"]})
    try:
        bed.factory("--max", 2)
        started = bed.path / "started"
        wait(lambda: started.exists() and started.read_text().count("-M .*\n") == 2, "two workers that look for any")
    finally:
        advertiser.withdraw()


def test_a_name_changed_in_the_configuration_changes_who_is_served(bed: Bed, manager: StandInManager) -> None:
    manager.need = 1
    advertiser = Advertiser()
    advertiser.publish({"project": "physics", "host": "localhost", "port": manager.port, "pid": os.getpid(),
                        "manager_id": "m", "addresses": ["127.0.0.1"]})
    config = bed.path / "c.json"
    config.write_text('{"manager-name": "chemistry"}')
    try:
        bed.factory("-C", config)
        wait(bed.status, "a factory that runs")
        assert bed.workers() == {}
        config.write_text('{"manager-name": "phys.*"}')
        wait(bed.workers, "a worker for the other manager")
    finally:
        advertiser.withdraw()


def test_a_hangup_that_was_ignored_on_purpose_does_not_end_the_factory(bed: Bed) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; a child inherits it
    try:
        factory = bed.factory("--min", 1, "--max", 1, "localhost:1")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait(bed.workers, "a worker")
    factory.send_signal(signal.SIGHUP)
    os.kill(next(iter(bed.workers().values())), signal.SIGKILL)
    wait(lambda: "signal 9" in bed.log(), "it goes on")
    assert "ending" not in bed.log()


def test_the_configuration_is_read_again_and_a_broken_edit_changes_nothing(bed: Bed) -> None:
    config = bed.path / "c.json"
    config.write_text('{"min-workers": 1, "max-workers": 2}')
    bed.factory("-C", config, "localhost:1")
    wait(lambda: len(bed.workers()) == 1, "one worker")
    config.write_text('{"min-workers": 2, "max-wrokers": 2}')
    wait(lambda: "max-workers" in bed.log(), "the problem is said")
    assert len(bed.workers()) == 1
    config.write_text('{"min-workers": 2, "max-workers": 1 + 1}')
    wait(lambda: len(bed.workers()) == 2, "two workers")


def test_pools_appear_and_disappear_while_running_and_the_removed_ones_workers_leave(
        bed: Bed, manager: StandInManager) -> None:
    manager.jobs = lambda: list(bed.workers())
    site = bed.path / "site.toml"
    site.write_text("retire-after = 0.5\n[pool.a]\nmin-workers = 2\nmax-workers = 2\n")
    factory = bed.factory("-C", site, f"localhost:{manager.port}")
    wait(lambda: len(bed.workers()) == 2, "the workers of the first pool")
    before = bed.workers()
    replacement = bed.path / "site.new"
    replacement.write_text("retire-after = 0.5\n[pool.b]\nmin-workers = 1\nmax-workers = 1\n")
    replacement.replace(site)
    wait(lambda: len(bed.workers()) == 1 and not before.keys() & bed.workers().keys(), "only the second pool's")
    wait(lambda: [pool["name"] for state in bed.status() for pool in state["pools"]] == ["b"], "the first is forgotten")
    factory.send_signal(signal.SIGTERM)
    assert factory.wait(PATIENCE_S) == 0
    assert bed.workers() == {}


def test_two_pools_of_a_site_file_get_workers_of_their_own_shape(bed: Bed) -> None:
    site = bed.path / "site.toml"
    site.write_text("[pool.small]\nmin-workers = 2\nmax-workers = 2\ncores = 1\nenv = { A = 'b c' }\n"
                    "[pool.big]\nmin-workers = 1\nmax-workers = 1\ncores = 8\nwalltime = '1h'\n")
    bed.factory("-C", site, "localhost:1")
    started = bed.path / "started"
    lines = wait(lambda: started.exists() and len(text := started.read_text().splitlines()) == 3 and text, "three")
    assert sorted("--cores 8 --wall-time 3" in line for line in lines) == [False, False, True]
    assert sorted("--cores 1 " in line for line in lines) == [False, True, True]


def test_a_journal_with_a_pool_that_is_no_longer_configured_is_no_obstacle(bed: Bed) -> None:
    site = bed.path / "site.toml"
    site.write_text("[pool.a]\nmin-workers = 1\nmax-workers = 1\n")
    first = bed.factory("-C", site, "localhost:1")
    wait(lambda: len(bed.workers()) == 1, "a worker")
    first.kill()
    first.wait()
    site.write_text("[pool.b]\nmin-workers = 1\nmax-workers = 1\n")
    bed.factory("-C", site, "localhost:1")
    wait(lambda: len(bed.workers()) == 2, "one more")
    assert "a: 1 workers of an earlier run are left alone" in bed.log()


def test_status_tells_what_runs_and_why(bed: Bed) -> None:
    bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait(lambda: len(bed.workers()) == 1, "a worker")
    state = wait(lambda: [s for s in bed.status() if s["pools"][0]["running"] == 1], "the state")[0]
    assert state["factory_name"] == bed.name
    assert "keeps at least 1" in state["pools"][0]["why"]


def test_parent_death_ends_factory_and_workers(bed: Bed) -> None:
    script = f"exec 3>&1; {sys.executable} -m vine_factory --batch local --min 1 --max 1 --parent-death " \
             f"--factory-name {bed.name} --worker-binary {bed.worker} localhost:1 2>{bed.path}/log & wait"
    parent = subprocess.Popen(["/bin/sh", "-c", script], env=bed.environment, cwd=bed.path)
    bed.processes.append(parent)
    wait(bed.workers, "a worker")
    parent.kill()
    parent.wait()
    wait(lambda: bed.workers() == {}, "the worker ends")
    wait(lambda: "all workers removed." in bed.log(), "the factory ends")


def test_a_second_factory_of_the_same_name_is_refused(bed: Bed) -> None:
    bed.factory("--min", 1, "--max", 1, "localhost:1")
    wait(bed.workers, "a worker")
    second = bed.factory("--min", 1, "--max", 1, "localhost:1")
    assert second.wait(PATIENCE_S) == 2
    assert "another factory is running" in bed.log()


def test_real_workers_connect_to_a_real_manager_and_work_is_done(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    import taskvine_core as vine

    monkeypatch.chdir(bed.path)
    manager = vine.Manager(port=0, name=bed.name)
    bed.factory("-M", bed.name, "--max", 2, "--cores", 1, "--memory", 200, "--disk", 200, binary=False)
    try:
        for number in range(20):
            manager.submit(vine.Task(f"echo {number}"))
        outputs = set()
        deadline = time.monotonic() + PATIENCE_S
        while not manager.empty() and time.monotonic() < deadline:
            task = manager.wait(1)
            if task is not None:
                outputs.add(task.output.strip())
        assert outputs == {str(number) for number in range(20)}
        assert 1 <= len(bed.workers()) <= 2
    finally:
        manager.close()


def test_the_factory_object_starts_steers_and_ends_a_factory(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskvine_core.factory_handle import Factory

    for key, value in bed.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(bed.path)
    factory = Factory("local", manager_host_port="localhost:1", worker_binary=str(bed.worker),
                      log_file=bed.path / "log")
    factory.min_workers = 1
    factory.factory_name = bed.name
    factory.max_workers = 3
    with factory:
        wait(lambda: len(bed.workers()) == 1, "one worker")
        factory.min_workers = 3
        wait(lambda: len(bed.workers()) == 3, "three workers")
        with pytest.raises(AttributeError):
            factory.ssl = True
    assert bed.workers() == {}
    assert list(bed.path.glob("vine-factory-*")) == []


def test_a_factory_object_with_a_site_file_starts_the_files_pools_for_the_manager_by_name(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskvine_core.factory_handle import Factory

    for key, value in bed.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(bed.path)
    site = bed.path / "site.toml"
    pool = f'[pool.mine]\nbatch = "local"\nworker-binary = "{bed.worker}"\nmax-workers = 4\nmin-workers = '
    site.write_text(f"{pool}2\n")
    manager = SimpleNamespace(port=1, name="by-name", using_ssl=False, staging_directory=str(bed.path / "x" / "y"))
    factory = Factory(manager=manager, log_file=bed.path / "log")
    factory.config_file = "site.toml"
    factory.factory_name = bed.name
    factory.min_workers = 4  # the file's word counts
    with factory:
        wait(lambda: len(bed.workers()) == 2, "two workers")
        assert "-M by-name" in bed.started(1)
        with pytest.raises(AttributeError, match=r"site\.toml"):
            factory.max_workers = 3
        site.write_text(f"{pool}3\n")
        wait(lambda: len(bed.workers()) == 3, "three workers")
        assert [[pool["name"] for pool in state["pools"]] for state in bed.status()] == [["mine"]]
    assert bed.workers() == {}


def test_a_factory_object_whose_program_ends_at_once_quotes_its_words(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskvine_core.factory_handle import Factory

    for key, value in bed.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(bed.path)
    factory = Factory("no-such-system", manager_host_port="localhost:1")
    with pytest.raises(RuntimeError, match="no-such-system"):
        factory.start()
    factory.stop()

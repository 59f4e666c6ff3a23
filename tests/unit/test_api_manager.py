"""Rules of Manager itself: creation, submit, wait, cancel, settings (reference, section 3)."""

from __future__ import annotations

import collections
import gc
import os
import sys
import time
import warnings
import weakref
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fake_runner import FakeRunner

import taskvine_core as vine
from taskvine_core.errors import StartError, VineError
from taskvine_core.manager import api, checks, setup
from taskvine_core.manager.events import BlockHost, Submit


@pytest.fixture
def make(monkeypatch, tmp_path):
    """A function that makes managers over fake runners and closes them afterwards."""
    monkeypatch.setattr(api, "ManagerRunner", FakeRunner)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = []

    def build(cls=vine.Manager, **values):
        manager = cls(**{"port": 0, "run_info_path": tmp_path / "info", **values})
        made.append(weakref.ref(manager))
        return manager

    yield build
    for reference in made:
        if (manager := reference()) is not None:
            manager.close()


# ---------------------------------------------------------------------- creation


@pytest.mark.parametrize(("port", "error"), [
    ((1, 2, 3), ValueError), ((9,), ValueError), ((9200, 9100), TypeError), ("9123", TypeError), (True, TypeError),
    (-1, ValueError), (70000, ValueError), ((1000, 70000), ValueError), (None, TypeError), (9.5, TypeError)])
def test_an_impossible_port_is_refused_with_the_published_type(make, port, error):
    with pytest.raises(error, match="port"):
        make(port=port)


@pytest.mark.parametrize(("port", "env", "expected"), [
    (0, {}, (0, 0)), (9200, {"VINE_PORT": "1"}, (9200, 9200)), ((9100, 9200), {}, (9100, 9200)),
    (0, {"VINE_PORT": "9300"}, (9300, 9300)), (0, {"TCP_LOW_PORT": "9000", "TCP_HIGH_PORT": "9010"}, (9000, 9010)),
    (0, {"VINE_LOW_PORT": "9000", "VINE_HIGH_PORT": "9010"}, (9000, 9010)),
    (0, {"TCP_LOW_PORT": "9000"}, (9000, 65535)),
    ([5000, 5000], {}, (5000, 5000))])
def test_ports_come_from_the_argument_then_from_the_environment(port, env, expected):
    assert setup.port_range(port, env) == expected


def test_a_port_in_the_environment_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="TCP_LOW_PORT"):
        setup.port_range(0, {"TCP_LOW_PORT": "many"})


@pytest.mark.parametrize(("ssl", "error"), [
    ("key.pem", TypeError), (("a", "b", "c"), TypeError), (("/nonexistent/k", "/nonexistent/c"), ValueError),
    ((None, "cert.pem"), ValueError), (("key.pem", None), ValueError)])
def test_an_impossible_ssl_argument_is_refused(make, ssl, error):
    with pytest.raises(error, match="ssl"):
        make(ssl=ssl)


@pytest.mark.parametrize("ssl", [None, False, (None, None)])
def test_no_key_and_no_certificate_mean_no_tls(make, ssl):
    assert make(ssl=ssl).using_ssl is False


def test_a_self_signed_pair_is_made_and_removed_at_the_end(make):
    manager = make(ssl=True)
    key, certificate = FakeRunner.made[-1].settings.tls
    assert manager.using_ssl and os.path.isfile(key) and os.path.isfile(certificate)
    manager.close()
    assert not os.path.exists(key) and not os.path.exists(certificate)


def test_what_the_runner_refuses_is_a_plain_exception_and_a_line_on_stderr(make, monkeypatch, capsys):
    def refuse(settings):
        raise VineError("port 9123 is in use")
    monkeypatch.setattr(api, "ManagerRunner", refuse)
    with pytest.raises(StartError, match="port 9123 is in use"):
        make()
    assert "port 9123 is in use" in capsys.readouterr().err


def test_a_run_directory_that_cannot_be_made_is_a_start_error(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="run directory"):
        make(run_info_path=tmp_path / "file")


def test_init_fn_sees_a_ready_manager(make):
    seen = []
    manager = make(init_fn=lambda m: seen.append((m, m.port, m.stats.tasks_done)))
    assert seen == [(manager, manager.port, 0)]


def test_directories_are_absolute_and_exist(make, tmp_path):
    manager = make(run_info_path=tmp_path / "x" / "info", run_info_template="run-a")
    run = tmp_path / "x" / "info" / "run-a"
    assert manager.runtime_directory == str(run)
    assert manager.logging_directory == str(run / "vine-logs")
    assert manager.staging_directory == str(run / "staging")
    assert manager.library_logging_directory == str(run / "library-logs")
    assert manager.cache_directory == str(tmp_path / "x" / "info" / "vine-cache")
    assert all(map(os.path.isdir, (manager.logging_directory, manager.staging_directory, manager.cache_directory)))


def test_leaving_the_block_closes_once_and_removes_staging(make):
    with make(shutdown=True) as manager:
        staging = manager.staging_directory
    manager.close()
    assert FakeRunner.made[-1].closed == [True] and not os.path.exists(staging)


def test_a_manager_nobody_refers_to_is_closed(make):
    make()
    gc.collect()
    assert FakeRunner.made[-1].closed == [False]


def test_a_forked_child_does_not_close_its_parents_manager(make, monkeypatch):
    manager = make()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    manager._shutdown()
    assert FakeRunner.made[-1].closed == []


# ---------------------------------------------------------------------- submit and wait


def test_ids_are_consecutive_from_one_and_set_min_task_id_never_lowers(make):
    manager = make()
    assert [manager.submit(vine.Task("a")), manager.submit(vine.Task("b"))] == [1, 2]
    assert manager.set_min_task_id(10) == 10
    assert manager.submit(vine.Task("c")) == 10
    assert manager.set_min_task_id(3) == 11


def test_a_task_is_submitted_once_in_its_life(make):
    manager, task = make(), vine.Task("a")
    manager.submit(task)
    with pytest.raises(ValueError, match="submitted before"):
        manager.submit(task)
    FakeRunner.made[-1].finish(1)
    assert manager.wait(5) is task
    with pytest.raises(ValueError, match="clone"):
        manager.submit(task)
    assert manager.submit(task.clone()) == 2


def test_only_tasks_can_be_submitted(make):
    with pytest.raises(TypeError, match="task must be a Task"):
        make().submit("sleep 1")


def test_inputs_added_in_submit_finalize_count_and_manager_is_known_there(make):
    class Late(vine.Task):
        def submit_finalize(self):
            super().submit_finalize()
            self.add_input(self.manager.declare_buffer("x"), "late.txt")

    manager = make()
    manager.submit(Late("cat late.txt"))
    [submit] = [e for e in FakeRunner.made[-1].events if isinstance(e, Submit)]
    assert [mount.remote for mount in submit.spec.inputs] == ["late.txt"]


def test_a_task_that_could_not_be_submitted_can_be_corrected(make):
    manager, task = make(), vine.Task("a")
    task.add_output(manager.declare_url("http://localhost/x"), "out")
    with pytest.raises(ValueError, match="output 'out'"):
        manager.submit(task)
    assert manager.empty() and task.id == 0


def test_wait_returns_the_very_object_even_when_it_is_false(make):
    class Empty(vine.Task):
        def __len__(self):
            return 0

    manager, task = make(), Empty("a")
    manager.submit(task)
    FakeRunner.made[-1].finish(1, exit_code=3, stdout=b"out")
    assert manager.wait(0) is task and task.exit_code == 3 and task.std_output == "out"
    assert manager.empty() and manager.wait(0) is None


def test_waits_by_tag_and_id_leave_the_others_for_later(make):
    manager = make()
    tasks = {tag: vine.Task("a", tag=tag) for tag in "abc"}
    for task in tasks.values():
        manager.submit(task)
    for task_id in (1, 2, 3):
        FakeRunner.made[-1].finish(task_id)
    assert manager.wait_for_tag("c", 1) is tasks["c"]
    assert manager.wait_for_tag("nobody", 0) is None
    assert manager.wait_for_task_id(2, 1) is tasks["b"]
    assert manager.wait_for_tag(None, 1) is tasks["a"]


def test_a_zero_timeout_does_no_work(make):
    manager = make()
    manager.submit(vine.Task("a"))
    assert manager.wait(0) is None and FakeRunner.made[-1].pumps == []


@pytest.mark.parametrize("forever", ["wait_forever", None, -1, vine.VINE_WAIT_FOREVER, float("inf")])
def test_these_timeouts_mean_for_ever(forever):
    assert checks.timeout(forever) is None


def test_other_negative_timeouts_become_five_seconds_with_a_warning():
    with pytest.warns(UserWarning, match="negative"):
        assert checks.timeout(-7) == 5


@pytest.mark.parametrize(("timeout", "error"), [("soon", ValueError), ([], TypeError), (float("nan"), ValueError),
                                                (True, TypeError)])
def test_what_is_no_timeout_is_refused(make, timeout, error):
    with pytest.raises(error, match="timeout"):
        make().wait(timeout)


def test_wait_for_ever_without_tasks_returns_at_once(make):
    manager = make()
    assert manager.wait() is None and len(FakeRunner.made[-1].pumps) == 1


def test_wait_comes_back_early_when_something_happened_and_nothing_is_left(make):
    manager = make()
    runner = FakeRunner.made[-1]
    runner.on_pump = lambda: setattr(runner.core.books.stats, "workers_joined", 1)
    assert manager.wait(60) is None and len(runner.pumps) == 1 and runner.pump_ended
    runner.on_pump = None
    assert manager.wait(60) is None and not runner.pump_ended  # nothing happened: until the timeout


def test_ctrl_c_in_wait_loses_nothing(make):
    manager, task = make(), vine.Task("a")
    runner = FakeRunner.made[-1]
    manager.submit(task)

    def interrupt():
        runner.finish(1)
        raise KeyboardInterrupt
    runner.on_pump = interrupt
    with pytest.raises(KeyboardInterrupt):
        manager.wait(5)
    runner.on_pump = None
    assert manager.wait(5) is task and manager.empty() and manager.wait(0) is None


def test_ctrl_c_while_an_outcome_is_taken_loses_nothing(make):
    class Interrupted(collections.deque):
        def popleft(self):
            super().popleft()
            raise KeyboardInterrupt

    manager, task = make(), vine.Task("a")
    manager.submit(task)
    runner = FakeRunner.made[-1]
    runner.completed = Interrupted(runner.completed)
    runner.finish(1)
    with pytest.raises(KeyboardInterrupt):
        manager.wait(5)
    assert manager.wait(5) is task and manager.empty()


def test_an_outcome_noted_twice_is_returned_once(make):
    manager = make()
    manager.submit(vine.Task("a"))
    runner = FakeRunner.made[-1]
    runner.finish(1)
    manager._note(runner.completed[0])  # interrupted between noting it and taking it off the queue
    assert manager.wait(0) is not None and manager.wait(0) is None and manager.wait_for_tag("x", 0) is None


def test_overridden_wait_and_submit_are_used_by_map(make):
    calls = []

    class Mine(vine.Manager):
        def submit(self, task):
            calls.append("submit")
            return super().submit(task)

        def wait(self, timeout=None):
            calls.append("wait")
            FakeRunner.made[-1].finish(calls.count("wait"), result=vine.VINE_RESULT_CANCELLED)
            return super().wait(timeout)

    manager = make(Mine)
    results = manager.map(abs, [1, 2, 3], chunksize=2)
    assert calls == ["submit", "submit", "wait", "wait"]
    assert [type(r) for r in results] == [vine.PythonTaskNoResult] * 3


def test_map_leaves_other_tasks_for_later_waits(make):
    manager, other = make(), vine.Task("other")
    manager.submit(other)
    runner = FakeRunner.made[-1]
    runner.on_pump = lambda: (runner.finish(1), runner.finish(2, result=32))
    manager.map(abs, [1])
    assert manager.wait(0) is other and manager.empty()


@pytest.mark.parametrize(("chunk", "error"), [(0, ValueError), ("2", TypeError), (1, ValueError)])
def test_tree_reduce_needs_chunks_of_two(make, chunk, error):
    with pytest.raises(error, match="chunksize"):
        make().tree_reduce(sum, [1, 2], chunksize=chunk)


def test_nothing_to_reduce_is_an_error(make):
    with pytest.raises(ValueError, match="seq is empty"):
        make().tree_reduce(sum, [])


# ---------------------------------------------------------------------- cancel and settings


def test_cancelled_tasks_come_back_and_counts_are_told(make):
    manager = make()
    for number, tag in enumerate("aab"):
        manager.submit(vine.Task("x", tag=tag, category=f"c{number}"))
    assert manager.cancel_by_task_tag("a") == 1
    assert manager.cancel_all_by_tag("a") == 1
    assert manager.cancel_by_category("c2") == 1
    assert manager.cancel_by_task_id(1) == 0 and manager.cancel_by_task_id(99) == 0 and manager.cancel_all() == 0
    assert sorted(manager.wait(1).id for _ in range(3)) == [1, 2, 3] and manager.empty()


def test_task_state_is_a_constant_in_the_manager_and_a_name_in_the_task(make):
    manager, task = make(), vine.Task("a")
    assert task.state == "INITIAL"
    manager.submit(task)
    assert manager.task_state(1) == vine.VINE_TASK_READY and task.state == "READY"
    FakeRunner.made[-1].finish(1)
    manager.wait(1)
    assert manager.task_state(1) == vine.VINE_TASK_DONE and task.state == "DONE"


def test_unknown_tuning_names_give_minus_one_and_a_notice(make, capsys):
    manager = make()
    assert manager.tune("hungry-minimum", 3) == 0 and manager.hungry() == 3
    assert manager.tune("wait-retrieve-many", 1) == -1 and "wait-retrieve-many" in capsys.readouterr().err
    with pytest.raises(TypeError, match="value of hungry-minimum"):
        manager.tune("hungry-minimum", "many")


def test_category_modes_by_name_or_number(make):
    manager = make()
    assert manager.set_category_mode("c", "Min_Waste") == 1 and manager.set_category_mode("c", 0) == 1
    assert manager.set_category_mode(None, 99) == 0
    with pytest.raises(AttributeError, match="allocation mode 'best'"):
        manager.set_category_mode("c", "best")


def test_limits_must_be_dictionaries_with_known_keys(make):
    manager = make()
    manager.set_category_resources_max("c", None)
    manager.set_category_resources_max("c", {})
    with pytest.raises(TypeError, match="rmd"):
        manager.set_resources_max(5)
    with pytest.raises(ValueError, match="corse"):
        manager.set_resources_min({"corse": 1})


def test_schedulers_by_name_or_constant(make):
    manager = make()
    manager.set_scheduler("worst")
    assert FakeRunner.made[-1].core.placement.default_scheduler == vine.VINE_SCHEDULE_WORST
    manager.set_scheduler(vine.VINE_SCHEDULE_FILES)
    with pytest.raises(ValueError, match="scheduler"):
        manager.set_scheduler("best")


def test_passwords_count_for_workers_from_now_on(make, tmp_path):
    manager = make()
    runner = FakeRunner.made[-1]
    before = runner.secret
    manager.set_password("hunter2")
    assert runner.secret != before
    by_text = runner.secret
    (tmp_path / "password").write_text("hunter2\n")
    assert manager.set_password_file(tmp_path / "password") is True and runner.secret == by_text
    with pytest.raises(ValueError, match="cannot be used"):
        manager.set_password_file(tmp_path / "missing")
    with pytest.raises(ValueError, match="password is empty"):
        manager.set_password("")


def test_hosts_are_blocked_for_a_time_or_for_ever(make):
    manager = make()
    manager.blacklist("a")
    manager.block_host_with_timeout("b", 100)
    first, second = [e for e in FakeRunner.made[-1].events if isinstance(e, BlockHost)]
    assert first.until == 0 and second.until > 0
    manager.unblock_host()
    assert manager.status("manager")[0]["workers_blocked"] == []


def test_status_answers_known_requests_only(make):
    manager = make(name="proj")
    manager.set_property("color", "blue")
    manager.tasks_left_count(7)
    [record] = manager.status("manager")
    assert record["project"] == "proj" and record["color"] == "blue" and record["tasks_left"] == 7
    manager.submit(vine.Task("a", tag="t"))
    assert manager.status("tasks")[0]["tag"] == "t"
    assert manager.status("workers") == [] and manager.status("nonsense") == []


def test_stats_is_one_live_object(make):
    manager = make()
    stats = manager.stats
    manager.submit(vine.Task("a"))
    assert stats.tasks_submitted == 0
    assert manager.stats is stats and stats.tasks_submitted == 1


def test_a_named_manager_is_found_and_vanishes_when_closed(make, monkeypatch):
    from taskvine_core.catalog.local import find_managers

    manager = make(name="proj")
    assert [m.project for m in find_managers("proj")] == ["proj"]
    monkeypatch.setenv("VINE_NAME", "")
    manager.set_name("other")
    deadline = time.monotonic() + 10
    while [m.project for m in find_managers()] != ["other"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.environ["VINE_NAME"] == "other"
    manager.close()
    assert find_managers() == []


def test_a_manager_that_cannot_advertise_says_so_once_and_works(make, tmp_path, monkeypatch, capsys):
    (tmp_path / "blocked").write_text("")
    manager = make()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "blocked"))
    monkeypatch.setenv("VINE_NAME", "")
    manager.set_name("proj")
    manager.update_catalog()
    assert capsys.readouterr().err.count("blocked") == 1 and manager.submit(vine.Task("a")) == 1


def test_preferred_connection_is_checked(make):
    make().set_manager_preferred_connection("by_hostname")
    with pytest.raises(ValueError, match="by_magic"):
        make().set_manager_preferred_connection("by_magic")


def test_workers_are_summarized_in_groups(make, monkeypatch):
    manager = make()
    rows = [{"cores_total": 4, "gpus_total": 0, "memory_total": m, "disk_total": 1000} for m in (1000, 1010, 5000)]
    monkeypatch.setattr(manager, "status", lambda what: rows)
    assert manager.summarize_workers() == [
        {"workers": 2, "cores": 4, "gpus": 0, "memory": 896, "disk": 896},
        {"workers": 1, "cores": 4, "gpus": 0, "memory": 4096, "disk": 896}]


def test_the_display_shows_counters_application_and_categories(make):
    import io

    class Mine(vine.Manager):
        def application_info(self):
            return {"application_info": {"values": {"events": 12}, "units": {"events": "k"}}}

    manager, stream = make(Mine, name="proj"), io.StringIO()
    display = vine.StatusDisplay(1000, stream)
    display.update(manager)
    display.update(manager)
    text = stream.getvalue()
    assert text.count("manager proj") == 1 and "tasks_waiting" in text and "events  12     k" in text
    display.update(manager, force=True)
    assert stream.getvalue().count("manager proj") == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(status_display_interval=0.5)._display is None

"""Workers joining, resting, draining, leaving, falling silent (reference, sections 12.2, 12.5-12.8, 13.2)."""

from __future__ import annotations

import manager_rig
import pytest
from manager_rig import FOUR_CORES, ONE, SHA, Rig

from taskvine_core.constants import VINE_TASK_READY
from taskvine_core.errors import StateError
from taskvine_core.manager import events as ev
from taskvine_core.manager.fleet import PATROL_S, SLOW_MIN_DONE
from taskvine_core.manager.records import FileRecord, WorkerRecord
from taskvine_core.manager.staging import BAD_DESTINATION
from taskvine_core.manager.states import WORKER_DRAINING, WORKER_SERVING
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources

ONE_CORE_WORKER = Resources(1, 1000, 10_000, 0)
WHOLE = Resources(4, 8000, 1000, 0)


def released(rig: Rig, key: int) -> bool:
    return bool(rig.sent(msg.Release, key))


def test_a_worker_gets_tasks_only_after_it_has_told_its_cache() -> None:
    rig = Rig()
    task = rig.submit()
    hello = msg.WorkerHello("w", "h", "linux", "x86_64", "1", (), FOUR_CORES, "", 1, 0.0, 900.0, "", "")
    rig.tell(ev.WorkerJoined(50, hello, "10.0.0.9", 1))
    assert rig.where(task) is None
    rig.say(50, msg.CacheOffer(()))
    assert rig.where(task) == 50


def test_a_worker_that_connects_again_replaces_its_half_open_self() -> None:
    rig = Rig()
    old = rig.join(worker_id="same")
    task = rig.submit()
    new = rig.join(worker_id="same")
    assert list(rig.core.workers) == [new]
    assert rig.where(task) == new
    rig.say(old, msg.TaskDone(task, 1, 0, 0, b"", 0, "", (), (), 0.0, 1.0, msg.NOT_MEASURED, ""))
    assert task not in rig.outcomes
    rig.gone(old)
    assert rig.where(task) == new


def test_a_silent_worker_is_asked_and_then_removed() -> None:
    rig = Rig()
    rig.core.tuning.set("keepalive-interval", 10)
    rig.core.tuning.set("keepalive-timeout", 20)
    key = rig.join()
    task = rig.submit()
    rig.wait(10)
    assert len(rig.sent(msg.Ping, key)) == 1
    rig.wait(19)
    assert key in rig.core.workers
    rig.wait(1)
    assert key not in rig.core.workers
    assert rig.core.task_state(task) == VINE_TASK_READY
    assert rig.core.stats.workers_lost == 1


def test_any_message_counts_as_a_sign_of_life() -> None:
    rig = Rig()
    rig.core.tuning.set("keepalive-interval", 10)
    rig.core.tuning.set("keepalive-timeout", 20)
    key = rig.join()
    for _ in range(10):
        rig.wait(10)
        rig.say(key, msg.Pong(0))
    assert key in rig.core.workers


def test_an_idle_worker_may_leave_and_is_counted() -> None:
    rig = Rig()
    key = rig.join()
    rig.say(key, msg.LeaveRequest("idle", 0.0))
    assert released(rig, key)
    rig.gone(key)
    assert rig.core.stats.workers_idled_out == 1


def test_an_idle_worker_with_tasks_may_not_leave() -> None:
    rig = Rig()
    key = rig.join()
    rig.submit()
    rig.say(key, msg.LeaveRequest("idle", 0.0))
    assert not released(rig, key)


def test_an_idle_worker_with_the_only_copy_of_a_temp_may_not_leave() -> None:
    rig = Rig()
    key = rig.join()
    name, _ = rig.make_temp("x")
    rig.say(key, msg.LeaveRequest("idle", 0.0))
    assert not released(rig, key)
    rig.tell(ev.Undeclare(name))
    rig.say(key, msg.LeaveRequest("idle", 0.0))
    assert released(rig, key)


def test_a_retired_worker_hands_on_sole_copies_before_it_goes() -> None:
    rig = Rig()
    key = rig.join()
    name, _ = rig.make_temp("x")
    other = rig.join()
    rig.tell(ev.RetireWorkers((f"w{key}",), "factory"))
    assert not released(rig, key)
    (fetch,) = rig.sent(msg.Fetch, other)
    rig.say(other, msg.CacheUpdate(name, fetch.transfer_id, 10, SHA, 1.0, 0.1))
    assert released(rig, key)
    rig.gone(key)
    assert rig.core.replica_count(name) == 1


def test_a_retired_worker_leaves_when_nobody_can_take_its_copies() -> None:
    rig = Rig()
    key = rig.join()
    rig.make_temp("x")
    rig.tell(ev.RetireWorkers((f"w{key}",), "factory"))
    assert released(rig, key)


def test_a_draining_worker_finishes_what_runs_and_gets_nothing_new() -> None:
    rig = Rig()
    key = rig.join()
    running = rig.submit()
    rig.tell(ev.RetireWorkers((f"w{key}",), "factory"))
    later = rig.submit()
    assert rig.where(later) is None and not released(rig, key)
    rig.finish(running)
    assert rig.outcomes[running].result == 0 and released(rig, key)


def test_retiring_somebody_unknown_is_refused_by_name() -> None:
    rig = Rig()
    rig.join()
    assert rig.core.retire_workers(["nobody"], "why") == {"nobody": "not connected"}


def test_a_drain_of_a_host_can_be_taken_back() -> None:
    rig = Rig()
    key = rig.join(host="h")
    task = rig.submit()
    assert rig.core.drain_host("h", True) == 1
    assert rig.core.workers[key].state == WORKER_DRAINING
    rig.tell(ev.DrainHost("h", False))
    assert rig.core.workers[key].state == WORKER_SERVING
    rig.finish(task)
    assert rig.where(rig.submit()) == key


def test_a_worker_that_was_told_to_leave_stays_told() -> None:
    rig = Rig()
    key = rig.join()
    rig.tell(ev.ShutdownIdle(0))
    assert released(rig, key)
    with pytest.raises(StateError, match="LEAVING"):
        rig.core.fleet._release(rig.core.workers[key])


def test_shutdown_asks_idle_workers_only_and_no_more_than_wanted() -> None:
    rig = Rig()
    busy = rig.join()
    rig.submit(resources=WHOLE)
    idle = [rig.join() for _ in range(3)]
    assert rig.core.shutdown_workers(2) == 2
    rig.tell()
    assert not released(rig, busy)
    assert sum(released(rig, key) for key in idle) == 2


def test_a_blocked_host_gets_no_new_tasks_until_the_block_expires() -> None:
    rig = Rig()
    key = rig.join(host="bad")
    running = rig.submit()
    rig.tell(ev.BlockHost("bad", rig.now + 30))
    task = rig.submit()
    assert rig.where(task) is None and rig.where(running) == key
    rig.wait(29)
    assert rig.where(task) is None
    rig.wait(1 + PATROL_S)
    assert rig.where(task) == key


def test_a_block_without_end_holds_for_workers_that_join_later_until_it_is_lifted() -> None:
    rig = Rig()
    rig.tell(ev.BlockHost("bad", 0.0))
    key = rig.join(host="bad")
    task = rig.submit()
    rig.wait(100_000)
    assert rig.where(task) is None
    rig.tell(ev.UnblockHost(""))
    assert rig.where(task) == key


def warm_up(rig: Rig, seconds: float = 1.0) -> None:
    """Enough finished tasks that the category knows how long they take."""
    for _ in range(SLOW_MIN_DONE):
        rig.finish(rig.submit(), took_s=seconds)


def test_a_slow_task_is_taken_off_and_the_second_alarm_removes_and_blocks_the_worker() -> None:
    rig = Rig()
    rig.core.categories.get("default").fast_abort = 3.0
    key = rig.join(host="slow")
    warm_up(rig)
    first = rig.submit()
    rig.wait(2.9)
    assert not rig.sent(msg.Kill)
    rig.wait(0.2 + PATROL_S)
    assert rig.sent(msg.Kill, key) == [msg.Kill((first,))]
    assert key in rig.core.workers
    assert rig.core.tasks[first].attempts <= 1, "an attempt taken off is not counted"
    rig.wait(3.1 + PATROL_S)
    assert key not in rig.core.workers
    assert "slow" in rig.core.fleet.blocked_hosts
    assert rig.core.stats.workers_slow == 1


def test_nobody_is_slow_before_enough_tasks_are_done() -> None:
    rig = Rig()
    rig.core.categories.get("default").fast_abort = 3.0
    rig.join()
    for _ in range(SLOW_MIN_DONE - 1):
        rig.finish(rig.submit(), took_s=1.0)
    rig.submit()
    rig.wait(1000)
    assert not rig.sent(msg.Kill)


def test_a_forsaking_worker_rests_longer_each_time() -> None:
    rig = Rig()
    key = rig.join()
    rests = []
    task = rig.submit()
    for _ in range(3):
        rig.finish(task, 40)
        rests.append(rig.core.workers[key].not_before - rig.now)
        other = rig.submit()
        assert rig.where(other) is None, "a resting worker gets nothing"
        rig.tell(ev.Cancel((other,)))
        rig.wait(20)
    assert rests[0] < rests[1] < rests[2]


def test_a_worker_whose_arrivals_keep_failing_is_removed() -> None:
    rig = Rig()
    key = rig.join()
    rig.submit(inputs=(rig.local("big"),))
    for _ in range(BAD_DESTINATION):
        if key not in rig.core.workers:
            break
        rig.wait(20)
        fetch = rig.sent(msg.Fetch, key)[-1]
        rig.say(key, msg.CacheInvalid(fetch.name, fetch.transfer_id, msg.BLAME_SELF, "disk full"))
    assert key not in rig.core.workers


def test_more_workers_than_allowed_are_sent_away() -> None:
    rig = Rig()
    rig.core.tuning.set("max-workers", 1)
    first, second = rig.join(), rig.join()
    assert not released(rig, first) and released(rig, second)


def test_messages_of_workers_that_are_gone_or_unknown_change_nothing() -> None:
    rig = Rig()
    key = rig.join()
    rig.gone(key)
    rig.forget_actions()
    rig.say(key, msg.Pong(1), msg.CacheGone(("temp-rnd-x",), ""), msg.LeaveRequest("idle", 0.0))
    rig.gone(key)
    rig.say(999, msg.Recalled((1,)))
    assert rig.actions == []


def test_lies_about_others_tasks_files_and_transfers_change_nothing_for_them() -> None:
    rig = Rig()
    honest = rig.join()
    name, home = rig.make_temp("x")
    big = rig.local("big")
    task = rig.submit(inputs=(big,), resources=WHOLE)
    (fetch,) = rig.sent(msg.Fetch, honest)
    liar = rig.join(ONE_CORE_WORKER)
    rig.say(liar, msg.TaskDone(task, 1, 0, 0, b"", 0, "", (), (), 0.0, 1.0, msg.NOT_MEASURED, ""),
            msg.Recalled((task,)), msg.CacheGone((name,), "lie"), msg.UploadFailed(fetch.transfer_id, "lie"),
            msg.CacheUpdate(big, fetch.transfer_id, 5, SHA, 0.0, 0.0),
            msg.CacheInvalid(big, fetch.transfer_id, msg.BLAME_OBJECT, "lie"),
            msg.WatchData(task, 1, big, 0, b"lie"),
            msg.ResourceReport(Resources(-5, -5, -5, -5), -1, -1))
    assert rig.where(task) == honest
    assert rig.core.files[name].ready_keys() == [home]
    assert fetch.transfer_id in rig.core.books.transfers
    assert not rig.done_actions(ev.AppendWatched)


def test_closing_tells_every_worker_whether_to_exit() -> None:
    rig = Rig()
    keys = [rig.join() for _ in range(2)]
    rig.tell(ev.CloseDown(True))
    assert all(rig.sent(msg.Release, key)[0].exit for key in keys)


def test_watched_bytes_are_appended_only_for_the_current_attempt_at_its_own_worker() -> None:
    rig = Rig()
    key = rig.join()
    out = rig.local("log", size=-1)
    task = rig.submit(outputs=(out,), resources=ONE)
    rig.say(rig.join(), msg.WatchData(task, 1, out, 0, b"not mine"))
    rig.say(key, msg.WatchData(task, 1, out, 0, b"new"), msg.WatchData(task, 2, out, 3, b"future"))
    assert rig.done_actions(ev.AppendWatched) == [ev.AppendWatched("/data/log", 0, b"new")]


def test_an_event_does_not_look_at_the_files_of_draining_workers_it_does_not_concern() -> None:
    rig = Rig()
    home = rig.join(Resources(1, 8000, 50_000, 0))
    for number in range(50):
        rig.make_temp(f"t{number}")
    busy = rig.submit("long")
    assert rig.where(busy) == home
    rig.tell(ev.DrainHost(f"host{home}", True))
    other = rig.join()
    looked_at: list[str] = []
    is_sole = rig.core.staging.copies.is_sole

    def counting(file: FileRecord, worker: WorkerRecord) -> bool:
        looked_at.append(file.name)
        return is_sole(file, worker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.core.staging.copies, "is_sole", counting)
        patch.setattr(manager_rig, "check_invariants", lambda core: None)
        for _ in range(20):
            rig.finish(rig.submit())
        assert not looked_at
        rig.finish(busy)
        assert len(looked_at) == 1, "one copy is ordered at a time"
    assert len(rig.sent(msg.Fetch, other)) == 1


def test_a_draining_worker_stays_while_others_are_only_too_busy_to_take_its_temps() -> None:
    rig = Rig()
    rig.core.tuning.set("worker-source-max-transfers", 3)
    homes = []
    for number in range(4):
        homes.append(rig.join(ONE_CORE_WORKER))
        task = rig.submit(outputs=(rig.temp(f"t{number}"),))
        rig.finish(task)
        assert rig.submit("keeps it busy") and rig.core.workers[homes[-1]].running
    for busy in list(rig.core.tasks):
        rig.finish(busy)
    target = rig.join()
    rig.tell(*(ev.DrainHost(f"host{key}", True) for key in homes))
    fetches = rig.sent(msg.Fetch, target)
    assert len(fetches) == 3, "worker-source-max-transfers"
    assert not rig.sent(msg.Release), "the fourth was let go with the only copy"
    rig.say(target, msg.CacheUpdate(fetches[0].name, fetches[0].transfer_id, 10, SHA, 1.0, 0.1))
    assert len(rig.sent(msg.Fetch, target)) == 4

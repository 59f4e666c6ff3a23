"""Which worker gets which task, and in which order (reference, sections 9.2-9.5, 10.3)."""

from __future__ import annotations

import pytest
from manager_rig import FOUR_CORES, ONE, Rig

from taskvine_core.constants import (
    VINE_FIXED_LOCATION,
    VINE_RESULT_FIXED_LOCATION_MISSING,
    VINE_SCHEDULE_DISK,
    VINE_SCHEDULE_FCFS,
    VINE_SCHEDULE_RAND,
    VINE_SCHEDULE_TIME,
    VINE_SCHEDULE_WORST,
    VINE_TASK_TYPE_STANDARD,
)
from taskvine_core.manager import events as ev
from taskvine_core.manager.dispatcher import QUEUE_AHEAD_MAX, QUEUE_STALE_S
from taskvine_core.manager.ready import ReadyQueue
from taskvine_core.manager.records import PRIORITY_RECOVERY, TaskRecord
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources

ONE_CORE_WORKER = Resources(1, 1000, 10_000, 0)
WHOLE = Resources(4, 8000, 1000, 0)


def ready_task(task_id: int, priority: float = 0.0, manager_priority: int = 0, **more: object) -> TaskRecord:
    task = TaskRecord(task_id, TaskSpec("x", priority=priority, **more), 0.0, VINE_TASK_TYPE_STANDARD)  # type: ignore[arg-type]
    task.to(1)
    task.manager_priority = manager_priority
    return task


def order(queue: ReadyQueue) -> list[int]:
    ids = []
    while families := queue.in_order():
        shape = families[0].best()
        assert shape is not None
        task = shape.head()
        assert task is not None
        ids.append(task.id)
        queue.take(shape)
    return ids


def test_recovery_goes_before_user_priority_and_user_priority_before_age() -> None:
    queue = ReadyQueue()
    for task in (
        ready_task(1),
        ready_task(2, 5.0),
        ready_task(3, 5.0),
        ready_task(4, 0.0, PRIORITY_RECOVERY),
        ready_task(5, 9.0),
    ):
        queue.push(task)
    assert order(queue) == [4, 5, 2, 3, 1]


def test_the_order_holds_across_shapes() -> None:
    queue = ReadyQueue()
    for task in (ready_task(1, category="a"), ready_task(2, 1.0, category="b"), ready_task(3, category="c")):
        queue.push(task)
    assert order(queue) == [2, 1, 3]


def test_a_dropped_task_is_never_met_again_and_counts_no_more() -> None:
    queue = ReadyQueue()
    first, second = ready_task(1), ready_task(2)
    queue.push(first)
    queue.push(second)
    queue.drop(first)
    assert queue.count == 1
    assert order(queue) == [2]


def test_a_task_dropped_and_queued_again_is_met_once() -> None:
    queue = ReadyQueue()
    task = ready_task(1)
    queue.push(task)
    queue.drop(task)
    queue.push(task)
    assert queue.count == 1
    assert order(queue) == [1]


def test_a_task_goes_where_most_of_its_input_bytes_are() -> None:
    rig = Rig()
    keys = [rig.join() for _ in range(3)]
    for key, size in zip(keys, (10, 1000, 100), strict=True):
        name = rig.temp(f"at{key}")
        rig.core.files[name]  # declared
        task = rig.submit(outputs=(name,), resources=WHOLE)
        rig.finish(task, key=rig.where(task), size=size)
    homes = {name: rig.core.files[name].ready_keys()[0] for name in ("temp-rnd-at1", "temp-rnd-at2", "temp-rnd-at3")}
    reader = rig.submit(inputs=tuple(homes))
    assert rig.where(reader) == homes["temp-rnd-at2"]


def test_of_waiting_tasks_a_freed_worker_takes_the_one_whose_data_it_has() -> None:
    rig = Rig()
    keys = [rig.join(ONE_CORE_WORKER) for _ in range(2)]
    busy = {}
    for key in keys:
        name = rig.temp(f"at{key}")
        task = rig.submit(outputs=(name,))
        busy[rig.where(task)] = (task, name)
    for task, _ in busy.values():
        rig.finish(task)
    blockers = {rig.where(task): task for task in (rig.submit(), rig.submit())}
    readers = {key: rig.submit(inputs=(busy[key][1],)) for key in keys}
    assert all(rig.where(task) is None for task in readers.values())
    for key in reversed(keys):
        rig.finish(blockers[key])
        assert rig.where(readers[key]) == key


def test_the_head_of_the_queue_is_not_lost_when_another_task_is_more_local() -> None:
    """A regression: the local task's position was kept for the next worker, which then got the wrong task."""
    rig = Rig()
    small, large = rig.join(Resources(1, 1000, 1000, 0)), rig.join(Resources(1, 1000, 90_000, 0))
    first, second = rig.submit(outputs=(rig.temp("a"),)), rig.submit(outputs=(rig.temp("b"),))
    at = {rig.where(first): "temp-rnd-a", rig.where(second): "temp-rnd-b"}
    for task in (first, second):
        rig.finish(task, size=5)
    blockers = [rig.submit(), rig.submit()]
    request = Resources(1, 100, 500, 0)
    plain = rig.submit(inputs=(rig.buffer("x"),), resources=request)
    local = rig.submit(inputs=(at[small], rig.buffer("y")), resources=request)
    rig.core.workers[small].totals = Resources(1, 10, 1000, 0)  # has grown, has the data, yet has no room
    rig.tell(
        *(
            ev.MessageArrived(
                rig.where(t) or 0, msg.TaskDone(t, 1, 0, 0, b"", 0, "", (), (), 1.0, 2.0, msg.NOT_MEASURED, "")
            )
            for t in blockers
        )
    )
    assert rig.where(plain) == large
    assert rig.where(local) is None
    rig.finish(plain)
    assert rig.where(local) == large


def test_worst_chooses_the_worker_with_most_free_cores() -> None:
    rig = Rig()
    rig.join(ONE_CORE_WORKER)
    many = rig.join(Resources(16, 8000, 10_000, 0))
    rig.join(FOUR_CORES)
    assert rig.where(rig.submit(scheduler=VINE_SCHEDULE_WORST)) == many


def test_disk_chooses_the_worker_with_most_free_disk() -> None:
    rig = Rig()
    rig.join(Resources(16, 8000, 10_000, 0))
    roomy = rig.join(Resources(1, 8000, 90_000, 0))
    assert rig.where(rig.submit(scheduler=VINE_SCHEDULE_DISK)) == roomy


def test_time_chooses_new_workers_first_and_then_the_fastest() -> None:
    rig = Rig()
    slow = rig.join()
    rig.finish(rig.submit(resources=WHOLE), took_s=50.0)
    fast = rig.join()
    task = rig.submit(scheduler=VINE_SCHEDULE_TIME, resources=WHOLE)
    assert rig.where(task) == fast
    rig.finish(task, took_s=1.0)
    assert rig.where(rig.submit(scheduler=VINE_SCHEDULE_TIME, resources=WHOLE)) == fast
    assert rig.where(rig.submit(scheduler=VINE_SCHEDULE_TIME, resources=WHOLE)) == slow


@pytest.mark.parametrize("scheduler", [VINE_SCHEDULE_RAND, VINE_SCHEDULE_FCFS])
def test_rand_uses_all_workers(scheduler: int) -> None:
    rig = Rig()
    keys = {rig.join(Resources(16, 8000, 10_000, 0)) for _ in range(4)}
    assert {rig.where(rig.submit(scheduler=scheduler, resources=Resources(1, 1, 1, 0))) for _ in range(40)} == keys


def test_a_task_goes_only_where_its_features_are() -> None:
    rig = Rig()
    rig.join(features=("a",))
    task = rig.submit(features=("a", "b"))
    assert rig.where(task) is None
    able = rig.join(features=("b", "a", "c"))
    assert rig.where(task) == able


def test_a_task_does_not_go_where_the_time_left_is_too_short() -> None:
    rig = Rig()
    rig.join(end_time=rig.now + 50)
    task = rig.submit(time_min_s=100)
    assert rig.where(task) is None
    assert rig.where(rig.submit(time_min_s=10)) is not None
    longer = rig.join(end_time=rig.now + 500)
    assert rig.where(task) == longer


def test_a_strict_input_sends_the_task_to_the_worker_that_has_it() -> None:
    rig = Rig()
    keys = [rig.join() for _ in range(3)]
    name, home = rig.make_temp("x")
    for key in keys:
        if key == home:
            rig.submit(resources=WHOLE)
    assert rig.where(rig.submit(inputs=(name,), flags=VINE_FIXED_LOCATION)) == home
    assert not rig.sent(msg.Fetch)


def test_a_strict_input_that_no_worker_has_fails_the_task_once_there_are_workers() -> None:
    rig = Rig()
    task = rig.submit(inputs=(rig.local("x"),), flags=VINE_FIXED_LOCATION)
    assert task not in rig.outcomes
    rig.join()
    assert rig.outcomes[task].result == VINE_RESULT_FIXED_LOCATION_MISSING


def test_a_category_at_its_limit_gives_way_to_others_and_resumes() -> None:
    rig = Rig()
    rig.join()
    rig.core.categories.set_max_concurrent("few", 1)
    first, second = rig.submit(category="few"), rig.submit(category="few")
    other = rig.submit(category="many")
    assert (rig.where(first), rig.where(second), rig.where(other)) == (1, None, 1)
    rig.finish(first)
    assert rig.where(second) == 1


def test_a_raised_category_limit_takes_effect_at_the_next_event() -> None:
    rig = Rig()
    rig.join()
    rig.core.categories.set_max_concurrent("few", 0)
    task = rig.submit(category="few")
    rig.core.categories.set_max_concurrent("few", 1)
    rig.tell()
    assert rig.where(task) == 1


def test_allocations_never_exceed_what_a_worker_has() -> None:
    rig = Rig()
    rig.join(Resources(4, 1000, 10_000, 0))
    tasks = [rig.submit(resources=Resources(1, 300, 10, 0)) for _ in range(5)]
    assert [rig.where(task) for task in tasks] == [1, 1, 1, None, None]


def test_a_worker_that_shrinks_gets_no_more_than_it_still_has() -> None:
    rig = Rig()
    key = rig.join()
    first = rig.submit(resources=Resources(2, 1, 1, 0))
    rig.say(key, msg.ResourceReport(Resources(2, 8000, 50_000, 0), 0, 0))
    assert rig.where(first) == key
    assert rig.where(rig.submit()) is None


def test_gpus_that_come_and_go_are_never_given_twice_nor_when_gone() -> None:
    rig = Rig()
    key = rig.join(Resources(8, 8000, 50_000, 2))
    first = rig.submit(resources=Resources(1, 1, 1, 1))
    rig.say(key, msg.ResourceReport(Resources(8, 8000, 50_000, 3), 0, 0))
    others = [rig.submit(resources=Resources(1, 1, 1, 1)) for _ in range(3)]
    given = [rig.core.tasks[t].run.gpus for t in (first, *others[:2])]  # type: ignore[union-attr]
    assert sorted(given) == [("0",), ("1",), ("2",)]
    assert rig.where(others[2]) is None


def test_a_worker_cannot_make_our_tables_as_large_as_its_claims() -> None:
    rig = Rig()
    key = rig.join(Resources(1 << 40, 1 << 60, 1 << 60, 1 << 40))
    assert rig.where(rig.submit()) == key
    rig.say(key, msg.ResourceReport(Resources(1 << 50, -5, -5, 1 << 50), -1, -1))


# ---------------------------------------------------------------------- a worker's own queue


def short_tasks(rig: Rig, key: int, number: int = 20) -> list[int]:
    """Tasks after one that took a millisecond."""
    rig.finish(rig.submit(), took_s=0.001)
    return [rig.submit() for _ in range(number)]


def test_short_tasks_queue_at_the_worker_beyond_its_room_but_not_too_many() -> None:
    rig = Rig()
    key = rig.join(ONE_CORE_WORKER)
    short_tasks(rig, key, 2 * QUEUE_AHEAD_MAX)
    record = rig.core.workers[key]
    rig.finish(next(iter(record.running)), took_s=0.001)
    assert len(record.running) == 1 and 1 < len(record.queued) <= QUEUE_AHEAD_MAX


def test_long_tasks_do_not_queue_at_the_worker() -> None:
    rig = Rig()
    key = rig.join(ONE_CORE_WORKER)
    rig.finish(rig.submit(), took_s=60.0)
    tasks = [rig.submit() for _ in range(5)]
    rig.finish(tasks[0], took_s=60.0)
    assert not rig.core.workers[key].queued


def test_queued_tasks_that_do_not_start_in_time_are_taken_back_without_an_attempt() -> None:
    rig = Rig()
    key = rig.join(ONE_CORE_WORKER)
    tasks = short_tasks(rig, key)
    rig.finish(tasks[0], took_s=0.001)
    queued = list(rig.core.workers[key].queued)
    assert queued
    rig.wait(QUEUE_STALE_S)
    assert set(rig.sent(msg.Recall, key)[0].task_ids) == set(queued)
    other = rig.join(Resources(64, 64_000, 640_000, 0))
    rig.say(key, msg.Recalled(tuple(queued)))
    assert {rig.where(task) for task in queued} == {other}
    assert {rig.core.tasks[task].attempts for task in queued} == {1}


def test_what_a_worker_does_not_hand_back_stays_with_it() -> None:
    rig = Rig()
    key = rig.join(ONE_CORE_WORKER)
    tasks = short_tasks(rig, key)
    rig.finish(tasks[0], took_s=0.001)
    queued = list(rig.core.workers[key].queued)
    rig.say(key, msg.Recalled(()))
    assert all(rig.where(task) == key for task in queued)


def test_over_commitment_gives_a_worker_more_than_it_has_but_never_disk() -> None:
    rig = Rig()
    rig.core.tuning.set("resource-submit-multiplier", 2)
    key = rig.join(Resources(2, 1000, 1000, 0))
    tasks = [rig.submit(resources=Resources(1, 100, 300, 0)) for _ in range(5)]
    assert [rig.where(task) for task in tasks] == [key, key, key, None, None]


def test_one_request_size_is_looked_at_once_however_many_wait() -> None:
    rig = Rig()
    rig.join()
    for _ in range(500):
        rig.submit(resources=Resources(64, 1, 1, 0))
    calls = []
    choose = rig.core.placement.choose
    rig.core.placement.choose = lambda *args: calls.append(1) or choose(*args)  # type: ignore[method-assign, func-returns-value]
    rig.join(Resources(2, 1000, 1000, 0))
    assert len(calls) <= 1
    assert rig.where(rig.submit(resources=ONE)) is not None

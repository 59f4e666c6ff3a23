"""Chains of tasks sent together (`task-groups`, reference section 12.10): who follows whom, and what becomes of it."""

from __future__ import annotations

import pytest
from manager_rig import FOUR_CORES, ONE, Rig

from taskvine_core.constants import VINE_FIXED_LOCATION, VINE_RESULT_CANCELLED, VINE_RESULT_FORSAKEN
from taskvine_core.manager import events as ev
from taskvine_core.manager.groups import FOLLOWING_MAX
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.core.tuning.set("task-groups", 1)
    return made


def chain(rig: Rig, length: int, **first: Resources) -> tuple[list[int], list[str]]:
    """Tasks of which each reads what the one before makes, and their temps."""
    temps = [rig.temp(f"t{n}") for n in range(length)]
    tasks = [rig.submit(inputs=(temps[n - 1],) if n else (), outputs=(temps[n],), **(first if not n else {}))
             for n in range(length)]
    return tasks, temps


def sent(rig: Rig, key: int | None = None) -> list[int]:
    return [order.task_id for order in rig.sent(msg.Dispatch, key)]


def test_a_chain_is_sent_at_once_and_in_order_and_takes_the_room_of_one_task(rig: Rig) -> None:
    tasks, _ = chain(rig, 5)
    key = rig.join()
    worker = rig.core.books.workers[key]
    assert sent(rig) == tasks
    assert list(worker.running) == tasks[:1] and worker.in_use == ONE and list(worker.following) == tasks[1:]
    assert not rig.sent(msg.Fetch)
    for task in tasks:
        assert worker.in_use == ONE
        rig.finish(task)
        assert rig.outcomes[task].result == 0
    assert sent(rig) == tasks and not worker.busy


def test_without_task_groups_a_task_is_sent_when_its_inputs_are_there() -> None:
    rig = Rig()
    tasks, _ = chain(rig, 3)
    rig.join()
    assert sent(rig) == tasks[:1]
    rig.finish(tasks[0])
    assert sent(rig) == tasks[:2]


def test_a_task_submitted_while_its_predecessor_runs_follows_it(rig: Rig) -> None:
    rig.join()
    tasks, _ = chain(rig, 3)
    assert sent(rig) == tasks


def test_what_many_read_is_followed_by_one_of_them_only(rig: Rig) -> None:
    temp = rig.temp("t")
    first = rig.submit(outputs=(temp,))
    readers = [rig.submit(inputs=(temp,)) for _ in range(4)]
    rig.join()
    assert sent(rig) == [first, readers[0]]
    rig.finish(first)
    assert sorted(sent(rig)) == [first, *readers]


def test_a_task_follows_when_all_it_reads_is_made_at_that_worker_and_else_waits(rig: Rig) -> None:
    one, two = rig.temp("one"), rig.temp("two")
    makers = [rig.submit(outputs=(temp,)) for temp in (one, two)]
    both = rig.submit(inputs=(one, two))
    rig.join()
    assert rig.where(both) is not None
    rig.finish(makers[0])
    assert both in rig.core.books.workers[rig.where(both) or 0].following
    rig.finish(makers[1])
    rig.finish(both)
    assert rig.outcomes[both].result == 0 and len(sent(rig)) == 3

    apart = Rig()
    apart.core.tuning.set("task-groups", 1)
    keys = [apart.join(resources=ONE), apart.join(resources=ONE)]
    one, two = apart.temp("one"), apart.temp("two")
    makers = [apart.submit(outputs=(temp,)) for temp in (one, two)]
    assert {apart.where(task) for task in makers} == set(keys)
    assert apart.where(apart.submit(inputs=(one, two))) is None


@pytest.mark.parametrize("more", [
    {"resources": Resources(2, 100, 100, 0)}, {"resources": Resources(1, 200, 100, 0)}, {"features": ("x",)},
    {"flags": VINE_FIXED_LOCATION}, {"time_end_s": 9e9}, {"time_start_s": 9e9}])
def test_what_cannot_take_its_place_does_not_follow(rig: Rig, more: dict[str, object]) -> None:
    rig.join()
    temp = rig.temp("t")
    rig.submit(outputs=(temp,))
    assert rig.where(rig.submit(inputs=(temp,), **more)) is None  # type: ignore[arg-type]


def test_no_more_follow_than_a_category_may_run(rig: Rig) -> None:
    rig.core.books.categories.get("few").max_concurrent = 2
    rig.join()
    temps = [rig.temp(f"t{n}") for n in range(3)]
    tasks = [rig.submit(inputs=temps[n - 1:n], outputs=(temps[n],), category="few")  # type: ignore[arg-type]
             for n in range(3)]
    assert sent(rig) == tasks[:2]


def test_a_long_chain_is_sent_on_as_it_moves(rig: Rig) -> None:
    rig.join()
    tasks, _ = chain(rig, 2 * FOLLOWING_MAX)
    assert sent(rig) == tasks[:FOLLOWING_MAX + 1]
    for count, task in enumerate(tasks[:10], 2):
        rig.finish(task)
        assert len(sent(rig)) == FOLLOWING_MAX + count


def test_when_a_task_does_not_make_what_the_next_reads_all_after_it_come_back_and_try_again(rig: Rig) -> None:
    key = rig.join()
    tasks, _ = chain(rig, 4)
    rig.finish(tasks[0], exit_code=1, missing=("o0",))
    assert {task for order in rig.sent(msg.Kill, key) for task in order.task_ids} == set(tasks[1:])
    recovery = next(task.id for task in rig.core.tasks.values() if task.id not in tasks)
    assert sent(rig) == [*tasks, recovery, *tasks[1:]], "they follow the one that makes it again"
    rig.finish(recovery)
    for task in tasks[1:]:
        rig.finish(task)
        assert rig.outcomes[task].result == 0 and rig.outcomes[task].dispatches == 1


def test_when_a_task_has_to_be_run_again_what_follows_it_comes_back_too(rig: Rig) -> None:
    rig.join()
    tasks, _ = chain(rig, 3)
    rig.say(rig.where(tasks[0]) or 0, msg.TaskDone(tasks[0], 1, VINE_RESULT_FORSAKEN, -1, b"", 0, "", (), (), 999.0,
                                                    1000.0, msg.NOT_MEASURED, "no room"))
    assert all(rig.where(task) is None for task in tasks)
    rig.wait(60)
    assert [rig.where(task) for task in tasks] == [1, 1, 1]


def test_a_drained_worker_hands_back_what_follows(rig: Rig) -> None:
    key = rig.join()
    tasks, _ = chain(rig, 3)
    rig.say(key, msg.LeaveRequest("walltime", 0.0))
    assert rig.sent(msg.Recall, key)[-1].task_ids == tuple(tasks[1:])
    rig.say(key, msg.Recalled(tuple(tasks[1:])))
    rig.finish(tasks[0])
    other = rig.join()
    assert rig.where(tasks[1]) == rig.where(tasks[2]) == other
    for task in tasks[1:]:
        assert rig.core.tasks[task].attempts == 1


def test_a_task_that_began_before_it_could_be_handed_back_ends_where_it_is(rig: Rig) -> None:
    key = rig.join()
    tasks, _ = chain(rig, 2)
    rig.say(key, msg.LeaveRequest("walltime", 0.0))
    rig.finish(tasks[0])  # the recall crosses the report: its successor has started
    rig.say(key, msg.Recalled(()))
    assert tasks[1] in rig.core.books.workers[key].running
    rig.finish(tasks[1])
    assert rig.outcomes[tasks[1]].result == 0


def test_the_tasks_of_a_lost_worker_come_back_once(rig: Rig) -> None:
    key = rig.join()
    tasks, _ = chain(rig, 3)
    rig.gone(key)
    other = rig.join()
    for task in tasks:
        assert rig.where(task) == other
        rig.finish(task)
    assert [rig.outcomes[task].dispatches for task in tasks] == [2, 1, 1]


def test_cancelling_a_task_takes_back_what_follows_it(rig: Rig) -> None:
    key = rig.join()
    tasks, _ = chain(rig, 3)
    rig.tell(ev.Cancel((tasks[1],)))
    assert rig.outcomes[tasks[1]].result == VINE_RESULT_CANCELLED
    assert rig.where(tasks[2]) is None and not rig.core.books.workers[key].following
    rig.finish(tasks[0])
    assert rig.outcomes[tasks[0]].result == 0


def test_an_end_that_comes_with_its_predecessors_counts_as_any_other(rig: Rig) -> None:
    key = rig.join(resources=FOUR_CORES)
    tasks, temps = chain(rig, 2)
    done = [msg.TaskDone(task, 1, 0, 0, b"", 0, "", (msg.OutputReport(temp, 10, b"\1" * 32, 0o644, False, None),), (),
                         999.0, 1000.0, msg.NOT_MEASURED, "") for task, temp in zip(tasks, temps, strict=True)]
    rig.say(key, *done)
    assert set(rig.outcomes) == set(tasks) and not rig.core.books.workers[key].busy

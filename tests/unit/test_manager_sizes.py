"""Very many different requests: what fits is found by size, in order of priority (reference, section 9.2)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from manager_rig import FOUR_CORES, ONE, Rig

from taskvine_core.constants import VINE_ALLOCATION_MODE_MAX, VINE_FIXED_LOCATION
from taskvine_core.manager import events as ev
from taskvine_core.manager.placement import Placement
from taskvine_core.manager.sizes import WIDTH, Rank, Size, SizeTree, covers
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources

MEMORY = FOUR_CORES.memory_mb


def of_memory(memory_mb: int, cores: int = 1) -> Resources:
    return Resources(cores, memory_mb, 1, 0)


# ---------------------------------------------------------------------- the tree


def naive_first(entries: dict[Rank, Size], room: Size, excluded: list[Size]) -> Rank | None:
    fitting = (
        rank
        for rank, size in entries.items()
        if all(a <= b for a, b in zip(size, room, strict=True)) and not covers(excluded, size)
    )
    return min(fitting, default=None)


@pytest.mark.parametrize("seed", range(6))
def test_the_tree_finds_what_a_look_at_everything_finds(seed: int) -> None:
    rng = Random(seed)
    tree: SizeTree[Rank] = SizeTree()
    entries: dict[Rank, Size] = {}

    def any_size() -> Size:
        return rng.randrange(4), rng.randrange(50), rng.randrange(10), rng.randrange(2)

    for _ in range(WIDTH * WIDTH * 3):
        if entries and rng.random() < (0.3 if len(entries) < WIDTH * WIDTH else 0.6):
            gone = rng.choice(list(entries)) if rng.random() < 0.5 else min(entries)
            tree.remove(gone)
            del entries[gone]
        else:
            rank = (-rng.randrange(2), float(-rng.randrange(3)), rng.randrange(10**9))
            entries[rank] = any_size()
            tree.insert(rank, entries[rank], rank)
        excluded = [any_size() for _ in range(rng.randrange(3))]
        room = any_size()
        assert tree.first(room, excluded) == naive_first(entries, room, excluded)
        assert tree.head() == min(entries, default=None)
        assert tree.count == len(entries)
        if entries:
            assert tree.lowest() == tuple(min(column) for column in zip(*entries.values(), strict=True))
    assert list(tree.items()) == sorted(entries)
    assert tree.largest() == tuple(max(column) for column in zip(*entries.values(), strict=True))
    for rank in list(entries):
        tree.remove(rank)
    assert tree.head() is None
    assert tree.largest() == (0, 0, 0, 0)


def test_the_tree_knows_what_it_does_not_have() -> None:
    tree: SizeTree[str] = SizeTree()
    tree.insert((0, 0.0, 1), (1, 1, 1, 0), "a")
    with pytest.raises(KeyError):
        tree.remove((0, 0.0, 2))


# ---------------------------------------------------------------------- order and room


def filled(rig: Rig, key_memory: int = MEMORY) -> int:
    """A task that holds all memory of the one worker."""
    task = rig.submit("fill", resources=of_memory(key_memory))
    assert rig.where(task) is not None
    return task


def test_of_those_that_fit_the_first_by_priority_then_by_age_goes() -> None:
    rig = Rig()
    rig.join()
    holder = filled(rig)
    too_large = rig.submit(resources=of_memory(MEMORY + 1), priority=9.0)
    old = rig.submit(resources=of_memory(5000))
    young = rig.submit(resources=of_memory(4900))
    urgent = rig.submit(resources=of_memory(4800), priority=1.0)
    small = rig.submit(resources=of_memory(3000))
    rig.finish(holder)
    at_work = [task for task in (too_large, old, young, urgent, small) if rig.where(task) is not None]
    assert at_work == [urgent, small]
    rig.finish(urgent)
    assert rig.where(old) is not None
    assert rig.where(young) is None


def test_a_task_of_lower_priority_does_not_go_before_one_of_another_category() -> None:
    rig = Rig()
    rig.join()
    holder = filled(rig)
    first = rig.submit(resources=of_memory(4000), category="a", priority=9.0)
    last = rig.submit(resources=of_memory(3999), category="a", priority=1.0)
    middle = rig.submit(resources=of_memory(3998), category="b", priority=5.0)
    rig.finish(holder)
    assert rig.where(first) is not None
    assert rig.where(middle) is not None
    assert rig.where(last) is None


def test_a_requeued_task_of_a_size_of_its_own_keeps_its_place() -> None:
    rig = Rig()
    key = rig.join()
    first = rig.submit(resources=of_memory(MEMORY))
    others = [rig.submit(resources=of_memory(MEMORY - n)) for n in range(1, 4)]
    rig.gone(key)
    rig.join()
    assert rig.where(first) is not None
    assert all(rig.where(task) is None for task in others)


def test_cancelled_tasks_of_many_sizes_leave_nothing_behind() -> None:
    rig = Rig()
    rig.join()
    filled(rig)
    tasks = [rig.submit(resources=of_memory(MEMORY - n)) for n in range(100)]
    rig.tell(ev.Cancel(tuple(tasks)))
    assert rig.core.books.ready.count == 0
    assert list(rig.core.books.ready.tasks()) == []
    rig.core.books.ready.in_order()
    assert not rig.core.books.ready.shapes
    assert not rig.core.books.ready.families


def test_one_size_that_is_used_up_does_not_hide_the_next() -> None:
    rig = Rig()
    first = rig.submit(resources=of_memory(100))
    rig.tell(ev.Cancel((first,)))
    second = rig.submit(resources=of_memory(200))
    rig.tell(ev.Cancel((second,)))
    third = rig.submit(resources=of_memory(100))
    rig.join()
    assert rig.where(third) is not None


def test_room_that_the_last_task_of_a_size_left_over_is_there_for_the_next_one() -> None:
    rig = Rig()
    rig.join()
    holder = filled(rig)
    first = rig.submit(resources=of_memory(100))
    rig.finish(holder)
    assert rig.where(first) is not None
    second = rig.submit(resources=of_memory(100))
    assert rig.where(second) is not None


def test_the_limit_of_a_category_holds_for_all_its_sizes() -> None:
    rig = Rig()
    rig.core.categories.set_max_concurrent("default", 2)
    rig.join(Resources(16, MEMORY, 50_000, 0))
    tasks = [rig.submit(resources=of_memory(100 + n)) for n in range(5)]
    running = [task for task in tasks if rig.where(task) is not None]
    assert running == tasks[:2]
    rig.finish(tasks[0])
    assert [task for task in tasks[1:] if rig.where(task) is not None] == tasks[1:3]


def test_a_larger_worker_that_joins_is_offered_what_fitted_nowhere() -> None:
    rig = Rig()
    rig.join()
    tasks = [rig.submit(resources=of_memory(MEMORY + n)) for n in range(1, 50)]
    key = rig.join(Resources(1, MEMORY + 30, 50_000, 0))
    assert [rig.where(task) for task in tasks] == [key] + [None] * 48


def test_strict_inputs_tie_a_task_to_their_holder_its_other_inputs_do_not() -> None:
    rig = Rig()
    rig.join()
    temp, holder = rig.make_temp("t")
    busy = rig.submit(resources=of_memory(MEMORY))
    assert rig.where(busy) == holder
    rig.join(Resources(1, 10, 10, 0))
    other = rig.local("other")
    waiting = rig.new_task_id()
    inputs = (Mount(temp, "a", VINE_FIXED_LOCATION), Mount(other, "b"))
    rig.tell(ev.Submit(waiting, TaskSpec("x", inputs=inputs, resources=ONE)))
    assert rig.where(waiting) is None
    rig.finish(busy)
    assert rig.where(waiting) == holder


def test_a_task_that_is_tied_to_a_busy_worker_does_not_go_to_another_one() -> None:
    rig = Rig()
    rig.join()
    temp, holder = rig.make_temp("t")
    busy = rig.submit(resources=of_memory(MEMORY))
    assert rig.where(busy) == holder
    other = rig.join()
    elsewhere = rig.submit(resources=of_memory(MEMORY))
    assert rig.where(elsewhere) == other
    tied = rig.submit(inputs=(temp,), flags=VINE_FIXED_LOCATION)
    rig.finish(elsewhere)
    assert rig.where(tied) is None


def test_tasks_that_fitted_nowhere_are_looked_at_again_when_a_limit_changes() -> None:
    rig = Rig()
    rig.join()
    filled(rig)
    tasks = [rig.submit(resources=of_memory(100 + number)) for number in range(3)]
    rig.core.tune("resource-submit-multiplier", 2.0)
    rig.tell(ev.Tick())
    assert all(rig.where(task) is not None for task in tasks)


def test_room_that_grew_without_a_core_more_is_found_by_who_comes_later() -> None:
    rig = Rig()
    key = rig.join()
    without_cores = rig.submit(resources=of_memory(MEMORY, cores=0))
    waiting = rig.submit(resources=of_memory(MEMORY + 1), category="other")
    in_vain = rig.submit(resources=of_memory(10), category="third")
    rig.tell(ev.Cancel((in_vain,)))
    rig.finish(without_cores)
    late = rig.submit(resources=of_memory(10), category="fourth")
    assert rig.where(waiting) is None
    assert rig.where(late) == key


# ---------------------------------------------------------------------- nothing that fits is left lying


def idle_fits(rig: Rig) -> Iterator[str]:
    """Ready tasks for which a worker has room at the moment."""
    core = rig.core
    for shape in core.books.ready.shapes.values():
        task = shape.head()
        for worker in core.workers.values():
            if task is not None and core.placement.room_at(task, shape, worker, rig.now) is not None:
                yield f"{task.id} ({shape.resources}) fits at {worker.id} ({core.placement.free_at(worker)})"


def any_request(rng: Random) -> Resources:
    """All, or only some of the amounts are named."""
    full = (rng.randint(1, 4), rng.randint(1, MEMORY), rng.randint(1, 40_000), rng.choice((0, 0, 0, 1)))
    named = rng.choice(((1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 0)))
    return Resources(*(amount if name else -1 for amount, name in zip(full, named, strict=True)))


@pytest.mark.parametrize("seed", range(8))
def test_no_task_waits_that_has_room(seed: int) -> None:
    rng, rig = Random(seed), Rig()
    rig.core.tune("attempt-schedule-depth", rng.choice((1, 3, 100)))
    rig.core.tune("resource-submit-multiplier", rng.choice((1.0, 1.0, 1.5)))
    rig.core.tune("transient-error-interval", 1.0)
    if seed % 3 == 2:
        rig.core.categories.set_mode("default", VINE_ALLOCATION_MODE_MAX)
    for _ in range(3):
        rig.join(Resources(rng.randint(1, 6), rng.randint(1, 2 * MEMORY), 50_000, rng.randint(0, 2)))
    for _ in range(150):
        working = [t.id for w in rig.core.workers.values() for t in w.running.values()]
        what = rng.random()
        if what < 0.5 or not working:
            rig.submit(resources=any_request(rng), priority=float(rng.randrange(2)))
        elif what < 0.55:
            rig.gone(rng.choice(list(rig.core.workers)))
            rig.join(Resources(rng.randint(1, 6), rng.randint(1, 2 * MEMORY), 50_000, rng.randint(0, 2)))
        else:
            peak = msg.NOT_MEASURED._replace(memory_mb=rng.randint(1, 500), disk_mb=rng.randint(1, 500))
            rig.finish(rng.choice(working), took_s=100.0, measured=peak)
        for _ in range(200):  # a bounded look goes on with the next event
            if not rig.core.books.ready.fresh:
                break
            rig.tell(ev.Tick())
        assert list(idle_fits(rig)) == []


# ---------------------------------------------------------------------- what it costs


class Counting(Placement):
    looks = 0

    def room_at(self, *args: object, **more: object) -> Resources | None:
        type(self).looks += 1
        return super().room_at(*args, **more)  # type: ignore[arg-type]


def test_the_looks_at_workers_do_not_grow_with_the_number_of_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.core.Placement", Counting)
    rig = Rig()
    for _ in range(20):
        rig.join(Resources(4, 4 * 3000, 50_000, 0))
    sizes = Random(5).sample(range(1, 6001), 3000)
    Counting.looks = 0
    specs = [TaskSpec("x", resources=of_memory(memory)) for memory in sizes]
    rig.tell(*(ev.Submit(rig.new_task_id(), spec) for spec in specs))
    assert Counting.looks < 2000
    Counting.looks = 0
    done = 0
    while done < 50:
        for worker in list(rig.core.workers.values()):
            rig.finish(next(iter(worker.running)), took_s=100.0)
            done += 1
    assert Counting.looks < 5 * done


def test_a_request_as_large_as_one_that_fits_nowhere_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.core.Placement", Counting)
    rig = Rig()
    for _ in range(50):
        rig.join()
        rig.submit(resources=of_memory(MEMORY - 10))
    rig.submit(resources=of_memory(MEMORY - 20))
    Counting.looks = 0
    for number in range(100):
        rig.submit(resources=of_memory(MEMORY - 20 + number))
    assert Counting.looks == 0


def test_larger_ones_than_one_that_fitted_nowhere_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.core.Placement", Counting)
    rig = Rig()
    rig.join(Resources(4, 10, 50_000, 0))
    rig.join(Resources(4, MEMORY, 10, 0))  # together they would have enough
    rig.submit(resources=Resources(1, 20, 20, 0))
    Counting.looks = 0
    for number in range(1, 50):
        rig.submit(resources=Resources(1, 20 + number, 20, 0))
    assert Counting.looks == 0


def test_a_look_in_vain_spares_the_next_smaller_ones_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.core.Placement", Counting)
    rig = Rig()
    for memory in (100, MEMORY):
        rig.join(Resources(4, memory, 50_000, 0))
    rig.submit(resources=of_memory(MEMORY))  # leaves the others with as many free cores and less memory
    rig.join(Resources(4, 200, 50_000, 0))
    Counting.looks = 0
    for number in range(50):
        rig.submit(resources=of_memory(MEMORY - 1 - number))
    assert Counting.looks < 5


def test_what_was_learned_does_not_make_every_size_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvine_core.manager.core.Placement", Counting)
    rig = Rig()
    rig.core.categories.set_mode("default", VINE_ALLOCATION_MODE_MAX)
    rig.join()
    holder = filled(rig)
    sizes = Random(5).sample(range(MEMORY // 2 + 1, MEMORY), 1000)
    for memory in sizes:
        rig.submit(resources=of_memory(memory))
    Counting.looks = 0
    rig.finish(holder, measured=msg.NOT_MEASURED._replace(memory_mb=1, disk_mb=1), took_s=100.0)
    assert Counting.looks < 100

"""Rules of the worker's decisions: no process, file, socket or clock here."""

from __future__ import annotations

import random
from typing import Any, TypeVar

import pytest

from taskvine_core import constants as c
from taskvine_core.errors import StateError
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol import messages as m
from taskvine_core.resources import Resources
from taskvine_core.worker import events as e
from taskvine_core.worker.core import CoreSettings, WorkerCore
from taskvine_core.worker.life import TERM_GRACE_S, LifeSettings
from taskvine_core.worker.machines import OBJECT_TABLE, RUN_TABLE, step

TOTAL = Resources(4, 4000, 100, 2)
ONE = Resources(1, 100, 1, 0)
MB = 1 << 20
HELLO = m.WorkerHello("worker-x", "h", "Linux", "x86_64", "0", (), TOTAL, "h", 1, 0.0, 900.0, "", "")
T = TypeVar("T")


class Bench:
    """A core with a clock; remembers what it asked for and checks its books after every event."""

    def __init__(self, kept: tuple[m.CacheEntry, ...] = (), manager: str | None = "m-1", **life: Any) -> None:
        self.now = 1000.0
        self.core = WorkerCore(CoreSettings(TOTAL, "tag", 3, LifeSettings(start_time=self.now, **life)), kept, self.now)
        self.actions: list[Any] = []
        if manager is not None:
            self.connect(manager)
            self.actions.clear()

    def connect(self, manager: str = "m-1") -> list[Any]:
        self.event(e.Connected(HELLO))
        return self.send(m.Welcome(manager, "n", 1, 60.0, 1 << 30))

    def event(self, event: e.Event) -> list[Any]:
        out = self.core.handle(event, self.now)
        self.core.check_invariants()
        self.actions += out
        return out

    def send(self, *messages: Any) -> list[Any]:
        return self.event(e.Received(list(messages)))

    def after(self, seconds: float) -> list[Any]:
        self.now += seconds
        return self.event(e.Tick())

    def run(self, task_id: int = 1, *inputs: str, outputs: tuple[Mount, ...] = (), **fields: Any) -> list[Any]:
        return self.send(dispatch(task_id, *inputs, outputs=outputs, **fields))

    def finish(self, run: int, exit_code: int = 0, outputs: tuple[m.OutputReport, ...] = ()) -> list[Any]:
        out = self.event(e.Exited(run, exit_code, 0.1, 5))
        return out + self.event(e.Collected(run, b"out", 3, "", False, outputs, (), ""))


def dispatch(
    task_id: int,
    *inputs: str,
    attempt: int = 0,
    allocation: Resources = ONE,
    outputs: tuple[Mount, ...] = (),
    command: str = "x",
    **fields: Any,
) -> m.Dispatch:
    spec = TaskSpec(command, inputs=tuple(Mount(name, name) for name in inputs), outputs=outputs, **fields)
    return m.Dispatch(task_id, attempt, spec, allocation, (), (), (1,) * len(outputs))


def put(name: str, size: int = 10, level: int = 1) -> m.PutInline:
    return m.PutInline(name, level, 0, b"h", b"x" * size)


def fetch(name: str, transfer_id: int = 7, size: int = 10, level: int = 1, address: str = "h:1") -> m.Fetch:
    return m.Fetch(name, transfer_id, level, 0, size, b"", m.SOURCE_PEER, address, 60.0)


def arrived(serial: int, size: int = 10) -> e.ObjectArrived:
    return e.ObjectArrived(serial, size, b"h", False, 0o644, 1.0, 2.0)


def of(actions: list[Any], kind: type[T]) -> list[T]:
    return [a for a in actions if isinstance(a, kind)]


def sent(actions: list[Any], kind: type[T]) -> list[T]:
    return [a.message for a in actions if isinstance(a, e.Send) and isinstance(a.message, kind)]


def started(actions: list[Any]) -> list[int]:
    return [a.run for a in actions if isinstance(a, e.StartRun)]


# ------------------------------------------------------------------------------------------- tables


def test_a_transition_that_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(StateError, match="no transition from READY on 'arrived'"):
        step(OBJECT_TABLE, "READY", "arrived", "x")
    with pytest.raises(StateError):
        step(RUN_TABLE, "DONE", "start", "x")


# ------------------------------------------------------------------------------------------- starting


def test_tasks_start_in_order_while_their_allocations_fit() -> None:
    bench = Bench()
    out = bench.send(*(dispatch(i) for i in range(6)))
    assert started(out) == [1, 2, 3, 4]
    bench.event(e.Started(1))
    assert started(bench.finish(1)) == [5]


def test_a_task_waiting_for_inputs_does_not_block_later_ones() -> None:
    bench = Bench()
    bench.send(fetch("file-a"))
    out = bench.send(dispatch(1, "file-a"), dispatch(2))
    assert [a.spec.inputs for a in of(out, e.StartRun)] == [()]


def test_a_task_that_waited_for_inputs_keeps_its_place_in_the_queue() -> None:
    bench = Bench()
    whole = TOTAL
    out = bench.send(fetch("file-a"), dispatch(9, allocation=whole), dispatch(1, "file-a"), dispatch(2))
    serial = of(out, e.StartFetch)[0].items[0].serial
    bench.event(e.Started(1))
    bench.event(arrived(serial))
    out = bench.finish(1)
    assert [a.spec.inputs for a in of(out, e.StartRun)] == [(Mount("file-a", "file-a"),), ()]


def test_a_large_task_is_not_starved_by_small_ones() -> None:
    bench = Bench()
    bench.run(1)
    assert not started(bench.send(dispatch(2, allocation=TOTAL), dispatch(3)))


def test_an_allocation_larger_than_the_worker_is_forsaken_at_once() -> None:
    done = sent(Bench().run(1, allocation=Resources(5, 1, 1, 0)), m.TaskDone)
    assert done[0].result == c.VINE_RESULT_FORSAKEN and "larger than the worker" in done[0].error


def test_a_task_waits_for_an_input_whose_order_comes_after_the_dispatch() -> None:
    bench = Bench()
    assert not sent(bench.send(dispatch(1, "file-a")), m.TaskDone)
    serial = of(bench.send(fetch("file-a")), e.StartFetch)[0].items[0].serial
    assert started(bench.event(arrived(serial)))


def test_an_expected_input_that_is_put_starts_its_tasks_without_a_report_nobody_asked_for() -> None:
    bench = Bench()
    bench.send(dispatch(1, "buffer-a"))
    out = bench.send(put("buffer-a"))
    assert started(out) and not sent(out, m.CacheUpdate)


def test_an_expected_input_is_forgotten_with_the_last_task_that_needed_it() -> None:
    bench = Bench()
    bench.send(dispatch(1, "file-a"), dispatch(2, "file-a"))
    bench.send(m.Recall((1,)))
    assert "file-a" in bench.core.cache.objects
    assert sent(bench.send(m.Kill((2,)), m.Recall(())), m.Recalled)
    assert "file-a" not in bench.core.cache.objects


def test_an_input_expected_again_after_its_unlink_does_not_take_what_was_still_arriving() -> None:
    bench = Bench()
    serial = of(bench.send(fetch("file-a")), e.StartFetch)[0].items[0].serial
    bench.send(m.Unlink(("file-a",)), dispatch(1, "file-a"))
    assert not started(bench.event(arrived(serial)))
    again = of(bench.send(fetch("file-a", transfer_id=8)), e.StartFetch)
    bench.event(e.FetchEnded(1))
    again += of(bench.event(e.Tick()), e.StartFetch)
    assert started(bench.event(arrived(again[0].items[0].serial)))


def test_an_input_put_before_the_dispatch_in_the_same_turn_is_there() -> None:
    out = Bench().send(put("buffer-a"), dispatch(1, "buffer-a"))
    assert [type(a) for a in out] == [e.StoreInline, e.StartRun]


def test_a_failed_arrival_forsakes_the_tasks_that_wait_for_it_and_names_the_fault() -> None:
    bench = Bench()
    out = bench.send(fetch("file-a"), dispatch(1, "file-a"), dispatch(2, "file-a"))
    out = bench.event(e.ObjectFailed(of(out, e.StartFetch)[0].items[0].serial, m.BLAME_SOURCE, "refused"))
    assert sent(out, m.CacheInvalid) == [m.CacheInvalid("file-a", 7, m.BLAME_SOURCE, "refused")]
    assert [d.result for d in sent(out, m.TaskDone)] == [c.VINE_RESULT_FORSAKEN] * 2


@pytest.mark.parametrize("name", ["", "../x", "a/b", "file-../x", "file-a.b", "x" * 300, "FILE-a"])
def test_unsafe_cache_names_are_refused_and_answered(name: str) -> None:
    bench = Bench()
    out = bench.send(put(name), fetch(name), dispatch(1, name))
    assert not of(out, e.StoreInline) and not of(out, e.StartFetch)
    assert len(sent(out, m.CacheInvalid)) == 2 and sent(out, m.TaskDone)[0].result == c.VINE_RESULT_FORSAKEN


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "a//b", "", "a\nb"])
def test_unsafe_sandbox_paths_are_refused_and_answered(path: str) -> None:
    out = Bench().run(1, outputs=(Mount("temp-a", path),))
    assert sent(out, m.TaskDone)[0].result == c.VINE_RESULT_FORSAKEN and not started(out)


# ------------------------------------------------------------------------------------------- reports


def test_every_task_that_ends_is_reported_once_with_what_it_used() -> None:
    bench = Bench()
    bench.run(1, outputs=(Mount("temp-o", "o"),))
    bench.event(e.Started(1))
    bench.now += 2
    report = m.OutputReport("temp-o", 5, b"h", 0o644, False, None)
    done = sent(bench.finish(1, 3, (report,)), m.TaskDone)
    assert len(done) == 1
    assert (done[0].exit_code, done[0].result, done[0].end - done[0].start) == (3, c.VINE_RESULT_SUCCESS, 2.0)
    assert done[0].measured.memory_mb == 5
    assert bench.core.cache.get("temp-o") is not None


def test_cut_stdout_is_stdout_missing() -> None:
    bench = Bench()
    bench.run(1)
    bench.event(e.Started(1))
    bench.event(e.Exited(1, 0, 0.0, 0))
    out = bench.event(e.Collected(1, b"", 70000, "stdout-rnd-a", True, (), (), ""))
    assert sent(out, m.TaskDone)[0].result == c.VINE_RESULT_STDOUT_MISSING
    assert bench.core.cache.get("stdout-rnd-a") is not None


def test_failure_only_and_success_only_outputs_follow_the_exit_code() -> None:
    outputs = (
        Mount("file-f", "f", c.VINE_FAILURE_ONLY),
        Mount("file-s", "s", c.VINE_SUCCESS_ONLY),
        Mount("file-a", "a"),
    )
    wanted = []
    for code in (0, 1):
        bench = Bench()
        bench.run(1, outputs=outputs)
        bench.event(e.Started(1))
        out = bench.event(e.Exited(1, code, 0.0, 0))
        wanted.append([o.name for o in of(out, e.Collect)[0].outputs])
    assert wanted == [["file-s", "file-a"], ["file-f", "file-a"]]


def test_a_dead_interpreter_makes_its_tasks_forsaken() -> None:
    bench = Bench()
    bench.run(1)
    bench.event(e.Started(1))
    bench.event(e.Exited(1, -1, -1.0, -1, "the interpreter died"))
    out = bench.event(e.Collected(1, b"", 0, "", False, (), (), ""))
    assert sent(out, m.TaskDone)[0].result == c.VINE_RESULT_FORSAKEN


def test_a_damaged_input_is_told_and_its_users_are_given_back() -> None:
    bench = Bench()
    out = bench.send(put("buffer-a"), dispatch(1, "buffer-a"), dispatch(2, "buffer-a", allocation=TOTAL))
    out = bench.event(e.StartFailed(started(out)[0], "damaged", ("buffer-a",)))
    assert sent(out, m.CacheGone) == [m.CacheGone(("buffer-a",), "damaged")]
    assert of(out, e.RemoveObjects) == [e.RemoveObjects(("buffer-a",))]
    assert sorted(d.task_id for d in sent(out, m.TaskDone)) == [1, 2]


# ------------------------------------------------------------------------------------------- kill and recall


@pytest.mark.parametrize("phase", ["starting", "running", "collecting"])
def test_a_killed_task_is_never_reported(phase: str) -> None:
    bench = Bench()
    bench.run(1, outputs=(Mount("temp-o", "o"),))
    if phase != "starting":
        bench.event(e.Started(1))
    if phase == "collecting":
        bench.event(e.Exited(1, 0, 0.0, 0))
    bench.actions.clear()
    bench.send(m.Kill((1,)))
    if phase == "starting":
        bench.event(e.Started(1))
    if phase == "collecting":
        report = m.OutputReport("temp-o", 5, b"h", 0o644, False, None)
        bench.event(e.Collected(1, b"", 0, "", False, (report,), (), ""))
        assert e.RemoveObjects(("temp-o",)) in bench.actions
    else:
        assert of(bench.actions, e.KillRun)
        bench.event(e.Exited(1, 9, 0.0, 0))
        assert of(bench.actions, e.DropRun)
    assert not sent(bench.actions, m.TaskDone) and not bench.core.runs.runs


def test_the_allocation_of_a_killed_task_is_free_only_when_it_is_dead() -> None:
    bench = Bench()
    bench.run(1, allocation=TOTAL)
    bench.event(e.Started(1))
    assert not started(bench.send(m.Kill((1,)), dispatch(1, attempt=1)))
    assert started(bench.event(e.Exited(1, 9, 0.0, 0)))


def test_the_next_task_starts_while_the_outputs_of_the_last_are_still_collected() -> None:
    bench = Bench()
    bench.send(dispatch(1, allocation=TOTAL), dispatch(2, allocation=TOTAL))
    bench.event(e.Started(1))
    assert started(bench.event(e.Exited(1, 0, 0.0, 0))) == [2]


def test_as_much_is_evicted_as_an_arrival_needs() -> None:
    bench = Bench()
    bench.send(*(put(f"file-{n}", 10 * MB) for n in range(10)))
    out = bench.send(put("file-large", 35 * MB))
    assert len(sent(out, m.CacheGone)[0].names) >= 4 and of(out, e.StoreInline)


def test_recall_hands_back_only_what_has_not_started() -> None:
    bench = Bench()
    bench.send(dispatch(1, allocation=TOTAL), dispatch(2), dispatch(3))
    assert sent(bench.send(m.Recall((1, 2, 99))), m.Recalled) == [m.Recalled((2,))]
    assert [r.task_id for r in bench.core.runs.runs.values()] == [1, 3]


def test_a_repeated_dispatch_is_ignored_and_a_newer_attempt_replaces_the_old() -> None:
    bench = Bench()
    bench.run(1)
    assert bench.run(1) == []
    out = bench.run(1, attempt=1)
    assert of(out, e.KillRun) and len(started(out)) == 1


# ------------------------------------------------------------------------------------------- objects


def test_an_unlinked_object_that_arrives_later_is_dropped_in_silence() -> None:
    bench = Bench()
    serial = of(bench.send(fetch("file-a")), e.StartFetch)[0].items[0].serial
    out = bench.send(m.Unlink(("file-a",)))
    assert of(out, e.CancelFetch)
    out = bench.event(arrived(serial))
    assert of(out, e.Discard) and not sent(out, m.CacheUpdate)
    bench.event(e.FetchEnded(1))
    assert not bench.core.cache.objects and not bench.core.busy


def test_an_object_asked_for_again_while_its_old_fetch_ends_comes_from_the_new_one() -> None:
    bench = Bench()
    old = of(bench.send(fetch("file-a")), e.StartFetch)[0].items[0].serial
    new = of(bench.send(m.Unlink(("file-a",)), fetch("file-a", 8)), e.StartFetch)[0].items[0].serial
    assert of(bench.event(arrived(old)), e.Discard)
    assert sent(bench.event(arrived(new)), m.CacheUpdate)[0].transfer_id == 8


def test_a_queued_task_loses_an_unlinked_input_and_a_running_one_does_not() -> None:
    bench = Bench()
    bench.send(put("buffer-a"), dispatch(1, "buffer-a", allocation=TOTAL), dispatch(2, "buffer-a"))
    bench.event(e.Started(1))
    out = bench.send(m.Unlink(("buffer-a",)))
    assert [d.task_id for d in sent(out, m.TaskDone)] == [2]
    assert sent(bench.finish(1), m.TaskDone)[0].result == c.VINE_RESULT_SUCCESS


def test_an_object_already_here_is_confirmed_without_a_transfer() -> None:
    bench = Bench()
    out = bench.send(put("buffer-a"), fetch("buffer-a", 9))
    assert not of(out, e.StartFetch) and sent(out, m.CacheUpdate)[0].transfer_id == 9


def test_at_most_so_many_fetch_jobs_run_and_small_objects_of_one_source_share_one() -> None:
    bench = Bench()
    out = bench.send(
        *(fetch(f"file-s{i}", i) for i in range(20)), *(fetch(f"file-l{i}", 100 + i, -1) for i in range(5))
    )
    jobs = of(out, e.StartFetch)
    assert [len(job.items) for job in jobs] == [20, 1, 1]
    bench.event(arrived(jobs[1].items[0].serial))
    assert len(of(bench.event(e.FetchEnded(jobs[1].job)), e.StartFetch)) == 1


def test_a_fetch_job_that_ends_without_a_word_about_an_object_fails_it() -> None:
    bench = Bench()
    bench.send(fetch("file-a"))
    assert sent(bench.event(e.FetchEnded(1)), m.CacheInvalid)[0].name == "file-a"


def test_an_output_made_here_answers_a_fetch_still_under_way() -> None:
    bench = Bench()
    bench.run(1, outputs=(Mount("temp-o", "o"),))
    bench.event(e.Started(1))
    bench.send(fetch("temp-o", 5))
    out = bench.finish(1, 0, (m.OutputReport("temp-o", 5, b"h", 0o644, False, None),))
    assert sent(out, m.CacheUpdate)[0].transfer_id == 5 and of(out, e.CancelFetch)


def test_a_full_cache_evicts_what_is_cheap_to_get_back_and_says_so() -> None:
    bench = Bench()
    bench.send(put("temp-t", 40 * MB), put("file-old", 30 * MB))
    bench.now += 1
    bench.send(put("file-new", 25 * MB))
    out = bench.send(put("file-more", 20 * MB))
    assert sent(out, m.CacheGone)[0].names == ("file-old",)
    assert of(out, e.StoreInline)


def test_nothing_in_use_is_evicted_and_an_arrival_without_room_is_refused() -> None:
    bench = Bench()
    bench.send(put("file-a", 60 * MB), dispatch(1, "file-a"))
    out = bench.send(put("file-b", 60 * MB))
    assert not sent(out, m.CacheGone) and sent(out, m.CacheInvalid)[0].blame == m.BLAME_SELF
    assert not of(out, e.StoreInline)


def test_outputs_beyond_the_disk_make_the_worker_ask_to_leave() -> None:
    bench = Bench()
    bench.send(put("file-a", 60 * MB), dispatch(1, "file-a", outputs=(Mount("temp-o", "o"),)))
    bench.event(e.Started(1))
    bench.event(e.Exited(1, 0, 0.0, 0))
    bench.send(dispatch(2, "file-a", allocation=TOTAL))
    report = m.OutputReport("temp-o", 70 * MB, b"h", 0o644, False, None)
    bench.event(e.Collected(1, b"", 0, "", False, (report,), (), ""))
    assert bench.core.cache.used_bytes <= 100 * MB or sent(bench.actions, m.LeaveRequest)


def small_output(bench: Bench, name: str, level: int) -> list[Any]:
    """What follows when task 1 has made an output whose bytes the manager wanted."""
    bench.send(dispatch(1, outputs=(Mount(name, "o"),))._replace(want_inline=(name,), output_levels=(level,)))
    bench.event(e.Started(1))
    bench.actions.clear()
    bench.finish(1, outputs=(m.OutputReport(name, 3, b"h", 0o644, False, b"new"),))
    assert sent(bench.actions, m.TaskDone)[0].outputs[0].inline == b"new"
    return bench.actions


def test_an_output_that_went_to_the_manager_is_only_kept_when_its_level_says_so_or_it_is_a_temp() -> None:
    for name, level, kept in (("buffer-o", 0, False), ("buffer-o", 1, True), ("temp-o", 0, True)):
        bench = Bench()
        small_output(bench, name, level)
        assert (name in bench.core.cache.objects) == kept


def test_an_output_that_went_to_the_manager_replaces_what_is_here_under_its_name() -> None:
    bench = Bench()
    bench.send(put("buffer-o", 8))
    assert of(small_output(bench, "buffer-o", 0), e.StoreInline)[0].data == b"new"
    assert bench.core.cache.objects["buffer-o"].size_bytes == 3


def test_an_upload_of_something_absent_fails_at_once() -> None:
    assert sent(Bench().send(m.Upload(4, "temp-x", 10.0)), m.UploadFailed)[0].transfer_id == 4


def test_an_object_being_uploaded_is_not_evicted() -> None:
    bench = Bench()
    bench.send(put("temp-a", 60 * MB), m.Upload(4, "temp-a", 10.0))
    assert sent(bench.send(put("file-b", 60 * MB)), m.CacheInvalid)
    bench.event(e.UploadEnded(4, "temp-a", ""))
    assert of(bench.send(put("file-b", 60 * MB)), e.StoreInline)


# ------------------------------------------------------------------------------------------- mini-tasks


def mini(name: str, *inputs: str) -> m.MiniTask:
    spec = TaskSpec("make", inputs=tuple(Mount(i, i) for i in inputs))
    return m.MiniTask(name, 11, 1, 0, spec, "out")


def test_a_mini_task_makes_its_object_ready_and_starts_who_waits_for_it() -> None:
    bench = Bench()
    out = bench.send(put("file-a"), mini("task-a", "file-a"), dispatch(1, "task-a"))
    assert [a.is_mini for a in of(out, e.StartRun)] == [True]
    bench.event(e.Started(1))
    out = bench.finish(1, 0, (m.OutputReport("task-a", 5, b"h", 0o644, False, None),))
    assert sent(out, m.CacheUpdate)[0].transfer_id == 11 and [a.is_mini for a in of(out, e.StartRun)] == [False]
    assert not sent(out, m.TaskDone)


@pytest.mark.parametrize(("code", "outputs"), [(1, True), (0, False)])
def test_a_mini_task_that_fails_blames_the_object_and_repeats_its_words(code: int, outputs: bool) -> None:
    bench = Bench()
    bench.send(mini("task-a"), dispatch(1, "task-a"))
    bench.event(e.Started(1))
    reports = (m.OutputReport("task-a", 5, b"h", 0o644, False, None),) if outputs else ()
    out = bench.finish(1, code, reports)
    invalid = sent(out, m.CacheInvalid)[0]
    assert invalid.blame == m.BLAME_OBJECT and "out" in invalid.reason
    assert sent(out, m.TaskDone)[0].result == c.VINE_RESULT_FORSAKEN


def test_unlinking_the_object_of_a_mini_task_ends_it() -> None:
    bench = Bench()
    bench.send(mini("task-a"))
    bench.event(e.Started(1))
    out = bench.send(m.Unlink(("task-a",)))
    assert of(out, e.KillRun)
    assert not sent(bench.event(e.Exited(1, 9, 0.0, 0)), m.CacheInvalid) and not bench.core.cache.objects


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limit", "result"),
    [({"time_max_s": 5.0}, c.VINE_RESULT_MAX_WALL_TIME), ({"time_end_s": 1005.0}, c.VINE_RESULT_MAX_END_TIME)],
)
def test_time_limits_kill_and_report_exit_code_nine(limit: dict[str, float], result: int) -> None:
    bench = Bench()
    bench.run(1, **limit)
    bench.event(e.Started(1))
    assert not of(bench.after(4.0), e.KillRun)
    assert of(bench.after(2.0), e.KillRun)
    done = sent(bench.finish(1, 137), m.TaskDone)[0]
    assert (done.result, done.exit_code) == (result, 9)


def test_a_sandbox_above_its_allocation_is_exhausted_and_scans_never_overlap() -> None:
    bench = Bench()
    bench.run(1, outputs=(Mount("temp-o", "o"), Mount("file-o", "p")))
    bench.event(e.Started(1))
    scans = sum(len(of(bench.after(1.0), e.MeasureDisk)) for _ in range(12))
    assert scans == 1
    bench.event(e.DiskMeasured(1, 1))
    assert not of(bench.actions, e.KillRun)
    assert of(bench.event(e.DiskMeasured(1, 2)), e.KillRun)
    out = bench.event(e.Exited(1, 9, 0.0, 0))
    assert [o.name for o in of(out, e.Collect)[0].outputs] == ["file-o"]  # a partial temp must not look complete
    out = bench.event(e.Collected(1, b"", 0, "", False, (), (), ""))
    assert sent(out, m.TaskDone)[0].result == c.VINE_RESULT_SANDBOX_EXHAUSTION


def over_memory(*tasks: tuple[int, int, int]) -> Bench:
    """Running tasks, given as (run, allocated MB, used MB), looked at a few times."""
    bench = Bench()
    for number, allocated, used in tasks:
        bench.run(number, allocation=Resources(1, allocated, 1, 0))
        bench.event(e.Started(number))
        bench.event(e.MemoryMeasured(number, used, 1))
    bench.after(0.5)
    return bench


def test_tasks_within_the_workers_memory_are_left_alone_even_above_their_own_allocation() -> None:
    bench = over_memory((1, 100, TOTAL.memory_mb - 100), (2, 100, 100))
    assert not of(bench.after(1.0), e.MeasureShares)


def test_above_the_workers_memory_the_task_furthest_above_its_allocation_is_forsaken_with_the_numbers() -> None:
    half = TOTAL.memory_mb // 2
    bench = over_memory((1, half, half), (2, 100, half + 50), (3, 50, 60))
    assert of(bench.after(1.0), e.MeasureShares)[0].runs == (1, 2, 3)
    out = bench.event(e.SharesMeasured(((1, half), (2, half + 50), (3, 60))))
    assert [kill.run for kill in of(out, e.KillRun)] == [2]
    done = sent(bench.finish(2, 9), m.TaskDone)[0]
    assert (done.task_id, done.result, done.exit_code) == (2, c.VINE_RESULT_FORSAKEN, -1)
    assert f"{2 * half + 110} MB" in done.error and f"{half + 50} MB of 100 MB" in done.error
    assert {run.state for run in bench.core.runs.active.values()} == {"RUNNING"}


def test_pages_that_tasks_share_do_not_count_twice_and_measuring_them_has_its_interval() -> None:
    bench = over_memory((1, 100, TOTAL.memory_mb), (2, 100, TOTAL.memory_mb))
    assert of(bench.after(1.0), e.MeasureShares)
    assert not of(bench.event(e.SharesMeasured(((1, 10), (2, 10)))), e.KillRun)
    asked = [len(of(bench.after(1.0), e.MeasureShares)) for _ in range(10)]
    assert asked == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_a_task_that_is_being_ended_or_just_began_is_not_held_against_the_others() -> None:
    bench = over_memory((1, 100, TOTAL.memory_mb), (2, 100, 500))
    bench.after(1.0)
    assert of(bench.event(e.SharesMeasured(((1, TOTAL.memory_mb), (2, 500)))), e.KillRun)[0].run == 1
    assert not [a for _ in range(12) for a in of(bench.after(1.0), e.MeasureShares)]


def test_watched_outputs_are_read_on_from_where_they_were_until_they_shrink() -> None:
    bench = Bench()
    bench.run(1, outputs=(Mount("file-w", "w", c.VINE_WATCH),))
    bench.event(e.Started(1))
    assert of(bench.after(1.0), e.ReadWatched)[0].offset == 0
    assert sent(bench.event(e.WatchRead(1, "file-w", 0, b"abc", False)), m.WatchData)[0].data == b"abc"
    assert of(bench.after(1.0), e.ReadWatched)[0].offset == 3
    bench.event(e.WatchRead(1, "file-w", 3, b"", True))
    assert not of(bench.after(1.0), e.ReadWatched)


# ------------------------------------------------------------------------------------------- coming and going


def test_the_same_manager_is_offered_everything_again_but_level_task() -> None:
    bench = Bench()
    bench.send(put("file-t", level=0), put("file-w", level=1), put("file-f", level=3))
    bench.event(e.Disconnected("gone"))
    offer = sent(bench.connect("m-1"), m.CacheOffer)[0]
    assert sorted(entry.name for entry in offer.entries) == ["file-f", "file-w"]


def test_another_manager_is_offered_only_what_outlives_the_workflow() -> None:
    bench = Bench()
    bench.send(put("file-w", level=1), put("file-k", level=2), put("file-f", level=3))
    bench.event(e.Disconnected("gone"))
    out = bench.connect("m-2")
    assert sorted(entry.name for entry in sent(out, m.CacheOffer)[0].entries) == ["file-f", "file-k"]
    assert of(out, e.RemoveObjects) == [e.RemoveObjects(("file-w",))]


def test_a_lost_manager_kills_every_task_and_fetch_without_a_report() -> None:
    bench = Bench()
    bench.send(fetch("file-a"), dispatch(1), dispatch(2, allocation=TOTAL))
    bench.event(e.Started(1))
    out = bench.event(e.Disconnected("gone"))
    assert len(of(out, e.KillRun)) == 1 and of(out, e.CancelFetch) and not of(out, e.Send)
    bench.event(e.Exited(1, 9, 0.0, 0))
    assert not bench.core.runs.runs


def test_connection_attempts_back_off_and_end_after_the_connect_timeout() -> None:
    bench = Bench(manager=None, connect_timeout_s=30.0)
    tries = 0
    while not of(bench.actions, e.Exit):
        due = bench.core.next_wakeup()
        assert due < float("inf")
        if of(bench.after(max(0.0, due - bench.now)), e.Connect):
            tries += 1
            bench.event(e.ConnectFailed("refused", False))
    assert 5 <= tries <= 7 and of(bench.actions, e.Exit)[0].status == 0 and bench.now >= 1030.0


def test_a_refused_key_ends_with_an_error_that_says_so() -> None:
    bench = Bench(manager=None, connect_timeout_s=0.5)
    bench.after(0.0)
    bench.now += 1
    leaving = of(bench.event(e.ConnectFailed("wrong key", True)), e.Exit)[0]
    assert leaving.status == 1 and "wrong key" in leaving.reason


def test_single_shot_ends_with_its_first_manager() -> None:
    assert of(Bench(single_shot=True).event(e.Disconnected("gone")), e.Exit)[0].status == 0


def test_sigterm_drains_running_tasks_go_on_queued_ones_do_not_start() -> None:
    bench = Bench()
    bench.send(dispatch(1, allocation=TOTAL), dispatch(2))
    bench.event(e.Started(1))
    out = bench.event(e.Terminate("sigterm", False))
    assert sent(out, m.LeaveRequest) == [m.LeaveRequest("sigterm", bench.now + TERM_GRACE_S)]
    out = bench.finish(1)
    assert sent(out, m.TaskDone) and not started(out)
    assert sent(bench.send(m.Recall((2,))), m.Recalled) == [m.Recalled((2,))]
    out = bench.send(m.Release(True, "bye"))
    assert of(out, e.Exit)[0].status == 0


def test_a_worker_that_is_not_released_leaves_at_its_deadline() -> None:
    bench = Bench()
    bench.run(1)
    bench.event(e.Started(1))
    bench.event(e.Terminate("sigterm", False))
    assert bench.core.next_wakeup() <= bench.now + TERM_GRACE_S
    out = bench.after(TERM_GRACE_S)
    assert of(out, e.KillRun) and of(out, e.Exit)


def test_a_worker_without_a_manager_leaves_at_once_on_sigterm() -> None:
    assert of(Bench(manager=None).event(e.Terminate("sigterm", False)), e.Exit)


def test_the_wall_time_makes_a_worker_drain_before_its_end_and_leave_at_it() -> None:
    bench = Bench(end_time=1000.0 + 3600, idle_timeout_s=1e6)
    assert not sent(bench.after(3539.0), m.LeaveRequest)
    assert sent(bench.after(2.0), m.LeaveRequest) == [m.LeaveRequest("walltime", 4600.0)]
    assert not started(bench.run(1))
    assert of(bench.after(60.0), e.Exit)


def test_a_drain_order_stops_new_starts() -> None:
    assert not started(Bench().send(m.Drain("retire"), dispatch(1)))


def test_an_idle_worker_asks_once_to_leave_and_again_after_more_work() -> None:
    bench = Bench(idle_timeout_s=60.0)
    assert bench.core.next_wakeup() == 1060.0
    assert sent(bench.after(60.0), m.LeaveRequest) == [m.LeaveRequest("idle", 0.0)]
    assert not sent(bench.after(60.0), m.LeaveRequest)
    out = bench.run(1)
    bench.event(e.Started(started(out)[0]))
    bench.finish(started(out)[0])
    assert not sent(bench.after(59.0), m.LeaveRequest)
    assert sent(bench.after(1.0), m.LeaveRequest)


def test_release_without_exit_looks_for_another_manager() -> None:
    bench = Bench()
    out = bench.send(m.Release(False, "blocked"))
    assert of(out, e.Disconnect) and not of(out, e.Exit)
    assert of(bench.after(2.0), e.Connect)


def test_a_message_only_workers_send_ends_the_connection() -> None:
    out = Bench().send(m.Pong(1))
    assert of(out, e.Disconnect)


def test_the_cache_size_is_reported_when_it_changed_at_most_every_thirty_seconds() -> None:
    bench = Bench()
    bench.send(put("file-a", 3 * MB))
    assert not of(bench.after(29.0), e.SendReport)
    assert of(bench.after(1.0), e.SendReport)[0].cache_mb == 3
    assert not of(bench.after(100.0), e.SendReport)


def test_kept_objects_are_offered_to_the_first_manager() -> None:
    bench = Bench((m.CacheEntry("file-k", 10, 3, b"h"),), manager=None)
    assert sent(bench.connect(), m.CacheOffer)[0].entries == (m.CacheEntry("file-k", 10, 3, b"h"),)


def test_a_store_that_failed_after_the_fact_is_answered_and_its_tasks_given_back() -> None:
    bench = Bench()
    bench.send(put("buffer-a"), dispatch(1, allocation=TOTAL), dispatch(2, "buffer-a"))
    out = bench.event(e.StoreFailed("buffer-a", m.BLAME_SELF, "disk full", True))
    assert sent(out, m.CacheInvalid) == [m.CacheInvalid("buffer-a", 0, m.BLAME_SELF, "disk full")]
    assert [d.task_id for d in sent(out, m.TaskDone)] == [2]


# ------------------------------------------------------------------------------------------- any order of things


class Chaos:
    """A manager and a runner that do random legal things; every dispatch must be answered exactly once."""

    NAMES = tuple(f"{kind}-{n}" for kind in ("file", "temp", "task") for n in range(4))

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bench = Bench()
        self.running: dict[int, e.StartRun] = {}
        self.collecting: dict[int, e.Collect] = {}
        self.jobs: dict[int, list[int]] = {}
        self.unanswered: dict[int, int] = {}
        self.next_id = 1
        self.stored: set[str] = set()

    def take(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case e.StartRun():
                    self.running[action.run] = action
                    self.take(self.bench.event(e.Started(action.run)))
                case e.Collect():
                    self.collecting[action.run] = action
                case e.StartFetch():
                    self.jobs[action.job] = [item.serial for item in action.items]
                case e.Send(m.TaskDone() as done):
                    assert self.unanswered.pop(done.task_id) == done.attempt
                case e.Send(m.Recalled() as back):
                    for task_id in back.task_ids:
                        del self.unanswered[task_id]
                case e.StoreInline() | e.Commit():
                    self.stored.add(action.name)
                case e.RemoveObjects():
                    for name in action.names:
                        self.stored.discard(name)
                case e.KillRun():
                    assert action.run in self.running

    def manager_step(self) -> None:
        rng, name = self.rng, self.rng.choice(self.NAMES)
        self.next_id += 1
        pick = rng.randrange(9)
        if pick == 0:
            self.take(self.bench.send(put(name, rng.choice((10, 30 * MB)))))
        elif pick == 1:
            self.take(self.bench.send(fetch(name, self.next_id, rng.choice((-1, 10, 20 * MB)))))
        elif pick == 2:
            self.take(self.bench.send(mini(name, *rng.sample(self.NAMES, 1))))
        elif pick == 3:
            self.take(self.bench.send(m.Unlink((name,))))
        elif pick == 4 and self.unanswered:
            task_id = rng.choice(list(self.unanswered))
            del self.unanswered[task_id]
            self.take(self.bench.send(m.Kill((task_id,))))
        elif pick == 5 and self.unanswered:
            self.take(self.bench.send(m.Recall(tuple(self.unanswered))))
        else:
            inputs = rng.sample(self.NAMES, rng.randrange(3))
            outputs = (Mount(rng.choice(self.NAMES), "o"),)
            self.unanswered[self.next_id] = 0
            allocation = rng.choice((ONE, TOTAL, Resources(2, 0, 0, 1)))
            self.take(self.bench.send(dispatch(self.next_id, *inputs, outputs=outputs, allocation=allocation)))

    def runner_step(self) -> None:
        rng, bench = self.rng, self.bench
        pick = rng.randrange(4)
        if pick == 0 and self.running:
            run = rng.choice(list(self.running))
            del self.running[run]
            self.take(bench.event(e.Exited(run, rng.choice((0, 1)), 0.1, 1, rng.choice(("", "", "died")))))
        elif pick == 1 and self.collecting:
            run, order = self.collecting.popitem()
            made = [o for o in order.outputs if rng.random() < 0.8]
            reports = tuple(m.OutputReport(o.name, rng.choice((1, 5 * MB)), b"h", 0o644, False, None) for o in made)
            self.take(bench.event(e.Collected(run, b"", 0, "", False, reports, (), "")))
        elif pick == 2 and self.jobs:
            job = rng.choice(list(self.jobs))
            if self.jobs[job]:
                serial = self.jobs[job].pop()
                ok = rng.random() < 0.7
                self.take(bench.event(arrived(serial, 20) if ok else e.ObjectFailed(serial, 0, "no")))
            else:
                del self.jobs[job]
                self.take(bench.event(e.FetchEnded(job)))
        else:
            self.take(bench.after(rng.random()))

    def finish(self) -> None:
        while self.running or self.collecting or self.jobs:
            self.runner_step()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_task_is_answered_once_and_the_books_are_right(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(120):
        chaos.manager_step()
        if chaos.rng.random() < 0.02:
            chaos.bench.event(e.Disconnected("gone"))
            chaos.unanswered.clear()
            chaos.take(chaos.bench.connect(chaos.rng.choice(("m-1", "m-2"))))
        for _ in range(chaos.rng.randrange(4)):
            chaos.runner_step()
    chaos.finish()
    left = [task for task in chaos.unanswered if task not in chaos.bench.core.runs.of_task]
    assert not left
    assert all(run.state == "QUEUED" for run in chaos.bench.core.runs.runs.values())

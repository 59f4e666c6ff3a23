"""What happens to a task after an attempt: results, retries, one return (reference, sections 2.5, 9.2, 12.1)."""

from __future__ import annotations

import pytest
from manager_rig import FOUR_CORES, ONE, Rig

from taskvine_core.constants import (
    VINE_FAILURE_ONLY,
    VINE_FILE,
    VINE_RESULT_CANCELLED,
    VINE_RESULT_FORSAKEN,
    VINE_RESULT_INPUT_MISSING,
    VINE_RESULT_MAX_END_TIME,
    VINE_RESULT_MAX_WALL_TIME,
    VINE_RESULT_OUTPUT_MISSING,
    VINE_RESULT_OUTPUT_TRANSFER_ERROR,
    VINE_RESULT_RESOURCE_EXHAUSTION,
    VINE_RESULT_SANDBOX_EXHAUSTION,
    VINE_RESULT_SIGNAL,
    VINE_RESULT_STDOUT_MISSING,
    VINE_RESULT_SUCCESS,
    VINE_SUCCESS_ONLY,
    VINE_TASK_READY,
    combine_results,
)
from taskvine_core.manager import events as ev
from taskvine_core.manager.completion import MAX_STRIKES, UPLOAD_TRIES
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources


@pytest.mark.parametrize(
    ("recorded", "new", "kept"),
    [
        (VINE_RESULT_SUCCESS, VINE_RESULT_OUTPUT_MISSING, VINE_RESULT_OUTPUT_MISSING),
        (VINE_RESULT_OUTPUT_MISSING, VINE_RESULT_STDOUT_MISSING, VINE_RESULT_STDOUT_MISSING),
        (VINE_RESULT_SIGNAL, VINE_RESULT_OUTPUT_MISSING, VINE_RESULT_SIGNAL),
        (VINE_RESULT_OUTPUT_MISSING, VINE_RESULT_SIGNAL, VINE_RESULT_SIGNAL),
        (VINE_RESULT_SIGNAL, VINE_RESULT_MAX_WALL_TIME, VINE_RESULT_MAX_WALL_TIME),
        (VINE_RESULT_SIGNAL, VINE_RESULT_SUCCESS, VINE_RESULT_SIGNAL),
    ],
)
def test_a_graver_result_stays(recorded: int, new: int, kept: int) -> None:
    assert combine_results(recorded, new) == kept


def test_a_failing_command_is_a_success_with_its_exit_code_and_is_not_retried() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(retries=5)
    rig.finish(task, exit_code=3)
    assert (rig.outcomes[task].result, rig.outcomes[task].exit_code, rig.outcomes[task].dispatches) == (0, 3, 1)


def finish_with_upload(rig: Rig) -> tuple[int, int, int, str]:
    """A task whose outputs, one large and one small file, are on their way: worker, task, transfer and temp."""
    key = rig.join()
    large = rig.declare("file-rnd-large", VINE_FILE, source="/out/large")
    temp = rig.temp("t")
    task = rig.submit(outputs=(large, temp))
    rig.finish(task, inline=False)
    (upload,) = rig.sent(msg.Upload, key)
    return key, task, upload.transfer_id, temp


def test_a_task_whose_outputs_are_all_at_the_manager_is_done_although_its_worker_died_meanwhile() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.declare("file-rnd-small", VINE_FILE, source="/out/small")
    task = rig.submit(outputs=(name,))
    rig.finish(task)
    (store,) = rig.done_actions(ev.StoreInline)
    rig.gone(key)
    other = rig.join()
    assert not rig.sent(msg.Dispatch, other), "it ran again"
    rig.tell(ev.Stored(task, store.store_id, ""))
    assert rig.outcomes[task].result == 0 and rig.outcomes[task].dispatches == 1


def test_an_upload_that_arrives_whole_ends_its_task_although_the_worker_died_meanwhile() -> None:
    rig = Rig()
    key, task, transfer, temp = finish_with_upload(rig)
    reader = rig.submit(inputs=(temp,))
    rig.finish(reader)
    rig.gone(key)
    assert rig.done_actions(ev.SenderGone) == [ev.SenderGone(transfer)]
    rig.join()
    rig.tell(ev.UploadEnded(transfer, 10, b"", False, ""))
    assert rig.outcomes[task].result == 0 and rig.outcomes[task].dispatches == 1


def test_a_lost_temp_of_a_task_whose_upload_still_arrived_is_made_again_for_its_reader() -> None:
    rig = Rig()
    key, task, transfer, temp = finish_with_upload(rig)
    rig.gone(key)
    rig.join()
    reader = rig.submit(inputs=(temp,))
    assert rig.where(reader) is None
    rig.tell(ev.UploadEnded(transfer, 10, b"", False, ""))
    assert task in rig.outcomes and rig.core.stats.tasks_recovery == 1


def test_a_task_whose_upload_breaks_off_with_its_worker_runs_again() -> None:
    rig = Rig()
    key, task, transfer, _ = finish_with_upload(rig)
    rig.gone(key)
    again = rig.join()
    rig.tell(ev.UploadEnded(transfer, 0, b"", False, "connection lost"))
    assert rig.where(task) == again and not rig.core.books.bereaved


def test_a_task_whose_worker_is_gone_can_be_cancelled_while_its_outputs_are_taken_in() -> None:
    rig = Rig()
    key, task, transfer, _ = finish_with_upload(rig)
    rig.gone(key)
    assert rig.core.cancel((task,)) == 1
    rig.tell(ev.UploadEnded(transfer, 10, b"", False, ""))
    assert rig.outcomes[task].result == VINE_RESULT_CANCELLED and not rig.core.books.transfers


def test_a_second_report_of_the_same_attempt_changes_nothing() -> None:
    rig = Rig()
    key = rig.join()
    task = rig.submit()
    report = msg.TaskDone(task, 1, 0, 0, b"", 0, "", (), (), 999.0, 1000.0, msg.NOT_MEASURED, "")
    rig.say(key, report, report)
    rig.say(key, report)
    assert rig.core.stats.tasks_done == 1  # Rig.tell raises on a second Complete


def test_a_report_of_an_earlier_attempt_is_ignored() -> None:
    rig = Rig()
    first = rig.join()
    task = rig.submit()
    rig.gone(first)
    second = rig.join()
    rig.finish(task, attempt=1, key=second)
    assert task not in rig.outcomes
    rig.finish(task)
    assert rig.outcomes[task].dispatches == 2


def test_a_report_from_a_worker_that_does_not_have_the_task_is_ignored() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit()
    stranger = rig.join()
    rig.finish(task, key=stranger)
    assert task not in rig.outcomes


def test_outputs_of_a_report_nobody_waits_for_are_deleted_at_the_worker() -> None:
    rig = Rig()
    key = rig.join()
    report = msg.OutputReport("temp-rnd-old", 5, b"", 0o644, False, None)
    rig.say(key, msg.TaskDone(77, 1, 0, 0, b"", 0, "", (report,), (), 0.0, 1.0, msg.NOT_MEASURED, ""))
    assert rig.sent(msg.Unlink) == [msg.Unlink(("temp-rnd-old",))]


def test_a_task_whose_worker_is_lost_runs_again_and_the_lost_attempt_counts() -> None:
    rig = Rig()
    first = rig.join()
    task = rig.submit()
    rig.gone(first)
    assert rig.core.task_state(task) == VINE_TASK_READY
    rig.join()
    assert rig.core.tasks[task].attempts == 2


def test_the_last_retry_lost_with_its_worker_returns_the_task_as_forsaken() -> None:
    rig = Rig()
    task = rig.submit(retries=1)
    for _ in range(2):
        rig.gone(rig.join())
    assert rig.outcomes[task].result == VINE_RESULT_FORSAKEN
    assert rig.outcomes[task].dispatches == 2


def test_a_forsaken_attempt_is_not_counted_and_rests_longer_each_time() -> None:
    rig = Rig()
    task = rig.submit()
    rests = []
    for _ in range(4):
        key = rig.join(FOUR_CORES)
        rig.finish(task, VINE_RESULT_FORSAKEN)
        rests.append(rig.core.tasks[task].not_before - rig.now)
        rig.gone(key)
        rig.wait(rests[-1])
    assert rests == sorted(rests) and rests[3] >= 4 * rests[0]
    assert rig.core.tasks[task].attempts == 0


def test_the_rest_of_a_forsaken_task_is_at_most_the_transient_error_interval() -> None:
    rig = Rig()
    rig.core.tuning.set("transient-error-interval", 2)
    task = rig.submit()
    for _ in range(12):
        key = rig.join()
        rig.finish(task, VINE_RESULT_FORSAKEN)
        assert rig.core.tasks[task].not_before - rig.now <= 2
        rig.gone(key)
        rig.wait(2.0)


@pytest.mark.parametrize("most", [0, 2])
def test_max_forsaken_bounds_how_often_a_task_may_be_forsaken(most: int) -> None:
    rig = Rig()
    task = rig.submit(max_forsaken=most)
    for _ in range(most + 1):
        assert task not in rig.outcomes
        key = rig.join()
        rig.finish(task, VINE_RESULT_FORSAKEN)
        rig.gone(key)
        rig.wait(20)
    assert (rig.outcomes[task].result, rig.outcomes[task].exit_code) == (VINE_RESULT_FORSAKEN, -1)


def test_a_worker_that_forsakes_everything_is_removed() -> None:
    rig = Rig()
    key = rig.join()
    task = rig.submit()
    for _ in range(MAX_STRIKES):
        assert rig.where(task) == key
        rig.finish(task, VINE_RESULT_FORSAKEN)
        rig.wait(20.0)
    assert key not in rig.core.workers
    assert any(isinstance(action, ev.Disconnect) and action.key == key for action in rig.actions)


def test_one_success_clears_a_workers_strikes() -> None:
    rig = Rig()
    key = rig.join()
    task = rig.submit()
    rig.finish(task, VINE_RESULT_FORSAKEN)
    rig.wait(5)
    rig.finish(task)
    assert rig.core.workers[key].strikes == 0


def test_exhaustion_with_an_explicit_limit_returns_the_task_with_the_limit_it_broke() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(resources=Resources(1, 100, 100, 0))
    rig.finish(task, VINE_RESULT_RESOURCE_EXHAUSTION)
    assert rig.outcomes[task].result == VINE_RESULT_RESOURCE_EXHAUSTION
    assert rig.outcomes[task].limits == Resources(1, 100, 100, 0)


def test_a_full_sandbox_is_tried_again_with_more_disk_until_the_retries_are_used() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(resources=Resources(1, 100, -1, 0), retries=1)
    before = rig.core.tasks[task].run.allocation.disk_mb  # type: ignore[union-attr]
    rig.core.categories.get("default")
    rig.finish(task, VINE_RESULT_SANDBOX_EXHAUSTION)
    run = rig.core.tasks[task].run
    assert run is not None and run.allocation.disk_mb > before
    rig.finish(task, VINE_RESULT_SANDBOX_EXHAUSTION)
    assert rig.outcomes[task].result == VINE_RESULT_SANDBOX_EXHAUSTION
    assert rig.outcomes[task].dispatches == 2


def test_a_missing_output_is_told_and_the_others_still_arrive() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(outputs=(rig.result_buffer("a"), rig.result_buffer("b")))
    rig.finish(task, missing=("o0",))
    assert rig.outcomes[task].result == VINE_RESULT_OUTPUT_MISSING
    assert [action.name for action in rig.done_actions(ev.StoreInline)] == ["buffer-rnd-b"]


@pytest.mark.parametrize(
    ("flag", "exit_code", "wanted"),
    [
        (VINE_FAILURE_ONLY, 0, False),
        (VINE_FAILURE_ONLY, 1, True),
        (VINE_SUCCESS_ONLY, 0, True),
        (VINE_SUCCESS_ONLY, 1, False),
    ],
)
def test_failure_only_and_success_only_outputs_come_when_they_should(flag: int, exit_code: int, wanted: bool) -> None:
    for inline in (True, False):
        rig = Rig()
        rig.join()
        task = rig.submit(outputs=(rig.result_buffer("log"),), flags=flag)
        rig.finish(task, exit_code=exit_code, inline=inline)
        assert len(rig.done_actions(ev.StoreInline if inline else ev.ExpectUpload)) == wanted


def test_a_failure_only_output_that_is_absent_after_success_is_not_missing() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(outputs=(rig.result_buffer("log"),), flags=VINE_FAILURE_ONLY)
    rig.finish(task, missing=("o0",))
    assert rig.outcomes[task].result == VINE_RESULT_SUCCESS


def test_an_output_that_cannot_be_fetched_is_a_transfer_error() -> None:
    rig = Rig()
    key = rig.join()
    task = rig.submit(outputs=(rig.result_buffer("big"),))
    rig.finish(task, inline=False)
    assert task not in rig.outcomes
    for tried in range(1, UPLOAD_TRIES + 1):
        assert task not in rig.outcomes
        uploads = rig.sent(msg.Upload)
        assert len(uploads) == tried
        rig.say(key, msg.UploadFailed(uploads[-1].transfer_id, "disk error"))
    assert rig.outcomes[task].result == VINE_RESULT_OUTPUT_TRANSFER_ERROR
    assert rig.outcomes[task].error == "disk error" and not rig.core.books.transfers


def test_an_output_that_has_no_room_here_is_a_transfer_error_at_once() -> None:
    rig = Rig()
    _, task, transfer, _ = finish_with_upload(rig)
    rig.tell(ev.UploadEnded(transfer, 0, b"", False, "no space", final=True))
    assert rig.outcomes[task].result == VINE_RESULT_OUTPUT_TRANSFER_ERROR


def test_a_task_runs_again_when_the_link_of_its_output_broke_before_its_workers_death_was_known() -> None:
    rig = Rig()
    key, task, transfer, _ = finish_with_upload(rig)
    rig.tell(ev.UploadEnded(transfer, 0, b"", False, "connection lost"))
    assert task not in rig.outcomes
    rig.gone(key)
    for asked in rig.done_actions(ev.SenderGone):
        rig.tell(ev.UploadEnded(asked.transfer_id, 0, b"", False, "its worker is lost"))
    again = rig.join()
    assert rig.where(task) == again


def test_an_output_whose_transfer_broke_off_comes_with_the_next_try() -> None:
    rig = Rig()
    key, task, transfer, _ = finish_with_upload(rig)
    rig.tell(ev.UploadEnded(transfer, 0, b"", False, "connection lost"))
    again = rig.sent(msg.Upload, key)[-1]
    rig.tell(ev.UploadEnded(again.transfer_id, 10, b"", False, ""))
    assert rig.outcomes[task].result == VINE_RESULT_SUCCESS and rig.outcomes[task].dispatches == 1


@pytest.mark.parametrize(
    ("error", "result"), [("", VINE_RESULT_SUCCESS), ("no space", VINE_RESULT_OUTPUT_TRANSFER_ERROR)]
)
def test_a_task_is_returned_when_its_small_file_is_stored_or_cannot_be(error: str, result: int) -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(outputs=(rig.local("small"),))
    rig.finish(task)
    assert task not in rig.outcomes
    (store,) = rig.done_actions(ev.StoreInline)
    rig.tell(ev.Stored(task, store.store_id, error))
    assert rig.outcomes[task].result == result and rig.outcomes[task].error == error
    rig.tell(ev.Stored(task, store.store_id, error))


def test_a_task_that_was_never_started_before_its_end_time_is_returned() -> None:
    rig = Rig()
    task = rig.submit(time_end_s=rig.now + 10)
    rig.wait(9)
    assert task not in rig.outcomes
    rig.wait(1)
    assert rig.outcomes[task].result == VINE_RESULT_MAX_END_TIME


def test_a_task_is_not_sent_before_its_start_time() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(time_start_s=rig.now + 10)
    rig.wait(9)
    assert rig.where(task) is None
    assert rig.core.next_deadline() <= rig.now + 1
    rig.wait(1)
    assert rig.where(task) is not None


def test_cancelling_returns_a_task_once_wherever_it_is() -> None:
    rig = Rig()
    waiting = rig.submit(resources=Resources(400, 1, 1, 0))
    key = rig.join()
    running = rig.submit()
    retrieving = rig.submit(outputs=(rig.result_buffer("big"),))
    rig.finish(retrieving, inline=False)
    done = rig.submit()
    rig.finish(done)
    rig.tell(ev.Cancel((waiting, running, retrieving, done, 999)))
    assert [rig.outcomes[t].result for t in (waiting, running, retrieving)] == [VINE_RESULT_CANCELLED] * 3
    assert rig.outcomes[done].result == 0
    assert rig.sent(msg.Kill, key) == [msg.Kill((running,))]
    assert len(rig.done_actions(ev.CancelUpload)) == 1
    assert rig.core.user_tasks == 0 and rig.core.idle_for_program()


def test_a_missing_local_input_fails_tasks_already_sent() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.local("gone")
    tasks = [rig.submit(inputs=(name,)) for _ in range(2)]
    rig.tell(ev.LocalMissing(name, "no such file"))
    assert [rig.outcomes[t].result for t in tasks] == [VINE_RESULT_INPUT_MISSING] * 2
    assert {k.task_ids[0] for k in rig.sent(msg.Kill, key)} == set(tasks)


def test_a_worker_cannot_make_time_run_wild() -> None:
    rig = Rig()
    key = rig.join()
    for start, end in ((float("-inf"), 0.0), (float("nan"), 1.0), (5.0, float("nan")), (0.0, 1e300)):
        task = rig.submit()
        rig.say(key, msg.TaskDone(task, 1, 0, 0, b"", 0, "", (), (), start, end, msg.NOT_MEASURED, ""))
        assert rig.outcomes[task].result == 0


def test_large_stdout_is_fetched_before_the_task_returns() -> None:
    rig = Rig()
    key = rig.join()
    task = rig.submit()
    rig.say(
        key, msg.TaskDone(task, 1, 0, 0, b"head", 1 << 20, "file-rnd-stdout", (), (), 1.0, 2.0, msg.NOT_MEASURED, "")
    )
    assert task not in rig.outcomes
    (expected,) = rig.done_actions(ev.ExpectUpload)
    rig.tell(ev.UploadEnded(expected.transfer_id, 1 << 20, b"", False, ""))
    assert rig.outcomes[task].stdout_path.endswith(str(expected.transfer_id))
    assert rig.sent(msg.Unlink, key) == [msg.Unlink(("file-rnd-stdout",))]


def test_one_core_request_is_given_exactly() -> None:
    rig = Rig()
    rig.join()
    task = rig.submit(resources=ONE)
    run = rig.core.tasks[task].run
    assert run is not None and run.allocation == ONE

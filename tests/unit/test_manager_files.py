"""Files: who has them, how they come, what happens when they are lost (reference, sections 11.1-11.7, 12.4)."""

from __future__ import annotations

import pytest
from manager_rig import FOUR_CORES, OTHER_SHA, SHA, Rig

from taskvine_core.constants import VINE_FILE, VINE_MINI_TASK, VINE_RESULT_INPUT_MISSING, VINE_URL
from taskvine_core.manager import events as ev
from taskvine_core.manager import staging
from taskvine_core.manager.invariants import check_invariants
from taskvine_core.manager.lineage import MAX_RECOVERIES
from taskvine_core.manager.records import TO_MANAGER
from taskvine_core.manager.staging import GIVE_UP_AFTER, ORIGIN_COPIES
from taskvine_core.model.files import TINY_TEMP_MAX_BYTES
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources

WHOLE = Resources(4, 8000, 1000, 0)


def arrive(rig: Rig, key: int, fetch: msg.Fetch, sha: bytes = SHA, size: int = 10) -> None:
    rig.say(key, msg.CacheUpdate(fetch.name, fetch.transfer_id, size, sha, 1.0, 0.1))


def fail(rig: Rig, key: int, fetch: msg.Fetch, blame: int = msg.BLAME_SOURCE) -> None:
    rig.say(key, msg.CacheInvalid(fetch.name, fetch.transfer_id, blame, "no luck"))


def last_fetch(rig: Rig, key: int | None = None) -> msg.Fetch:
    return rig.sent(msg.Fetch, key)[-1]


def read_elsewhere(rig: Rig, name: str, home: int, reader: int) -> int:
    """A task that reads a temp at a worker that does not have it, because its home is busy; the task's id."""
    assert rig.where(rig.submit(inputs=(name,), resources=WHOLE)) == home
    task = rig.submit(inputs=(name,), resources=WHOLE)
    assert rig.where(task) == reader
    return task


def recoveries(rig: Rig) -> list[int]:
    return [task.id for task in rig.core.tasks.values() if task.kind == 1]


# ---------------------------------------------------------------------- bringing


def test_a_small_buffer_is_sent_before_the_task_that_reads_it_and_only_once() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.buffer("x")
    rig.submit(inputs=(name,))
    rig.submit(inputs=(name,))
    kinds = [type(a.message) for a in rig.actions if isinstance(a, ev.Send) and a.key == key]
    assert kinds == [msg.Welcome, msg.PutInline, msg.Dispatch, msg.Dispatch]


def test_a_shared_file_leaves_the_manager_few_times_and_then_spreads_between_workers() -> None:
    rig = Rig()
    name = rig.local("big")
    keys = [rig.join() for _ in range(6)]
    for _ in keys:
        rig.submit(inputs=(name,), resources=WHOLE)
    assert len(rig.sent(msg.Fetch)) == ORIGIN_COPIES
    first = rig.sent(msg.Fetch)[0]
    (receiver,) = [a.key for a in rig.actions if isinstance(a, ev.Send) and a.message is first]
    arrive(rig, receiver, first)
    later = rig.sent(msg.Fetch)[ORIGIN_COPIES:]
    assert len(later) == 4 and {fetch.where for fetch in later} >= {msg.SOURCE_PEER}


def test_a_source_that_failed_rests_while_another_is_used() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    reader = rig.join()
    read_elsewhere(rig, name, home, reader)
    fetch = last_fetch(rig, reader)
    fail(rig, reader, fetch)
    assert last_fetch(rig, reader) is fetch, "the failed source is asked again at once"
    rig.wait(1.0)
    assert last_fetch(rig, reader).transfer_id > fetch.transfer_id
    assert rig.core.replica_count(name) == 1


def test_a_temp_that_cannot_be_reached_between_workers_comes_through_the_manager() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    reader = rig.join()
    read_elsewhere(rig, name, home, reader)
    while not rig.done_actions(ev.ExpectUpload):
        fail(rig, reader, last_fetch(rig, reader))
        rig.wait(20.0)
    (relay,) = rig.done_actions(ev.ExpectUpload)
    assert relay.purpose == "relay"
    rig.tell(ev.UploadEnded(relay.transfer_id, 10, SHA, False, ""))
    if last_fetch(rig, reader).where == msg.SOURCE_PEER:  # it has rested long enough for one more attempt
        fail(rig, reader, last_fetch(rig, reader))
    assert last_fetch(rig, reader).where == msg.SOURCE_MANAGER


@pytest.mark.parametrize("relay_answers", [True, False])
def test_readers_of_a_temp_whose_last_source_fails_come_back_and_it_is_made_again(relay_answers: bool) -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    reader = rig.join()
    task = read_elsewhere(rig, name, home, reader)
    for _ in range(3 * GIVE_UP_AFTER):
        if rig.core.replica_count(name) == 0:
            break
        fetches = [t for t in rig.core.books.transfers.values() if t.dest == reader and t.source >= 0]
        if fetches:
            rig.say(reader, msg.CacheInvalid(name, fetches[0].id, msg.BLAME_SOURCE, "no"))
        for upload in [t.id for t in rig.core.books.transfers.values() if t.source == TO_MANAGER and relay_answers]:
            rig.tell(ev.UploadEnded(upload, 0, b"", False, "no"))
        rig.wait(20.0)
    assert rig.core.replica_count(name) == 0
    assert task in {i for recall in rig.sent(msg.Recall, reader) for i in recall.task_ids}
    rig.say(reader, msg.Recalled((task,)))
    assert recoveries(rig)


def test_a_worker_that_has_no_room_for_an_input_passes_the_task_on() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.local("big")
    task = rig.submit(inputs=(name,))
    fail(rig, key, last_fetch(rig), msg.BLAME_SELF)
    assert rig.sent(msg.Kill, key) == [msg.Kill((task,))]
    other = rig.join()
    rig.wait(0.2)
    assert rig.where(task) == other


def test_a_url_that_cannot_be_had_is_tried_again_until_max_forsaken() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.declare("url-md5-x", VINE_URL, source="http://x", level=1, size=10)
    task = rig.submit(inputs=(name,), max_forsaken=1)
    for _ in range(2):
        fail(rig, key, last_fetch(rig), msg.BLAME_OBJECT)
        rig.wait(20)
    assert rig.outcomes[task].result == 40
    assert "http://x" in rig.outcomes[task].error


def test_an_invalid_report_is_about_the_file_of_its_transfer_whatever_name_it_gives() -> None:
    rig = Rig()
    key = rig.join()
    wanted, other = rig.local("wanted"), rig.local("other")
    rig.submit(inputs=(wanted,))
    fetch = last_fetch(rig)
    rig.say(key, msg.CacheInvalid(other, fetch.transfer_id, msg.BLAME_SOURCE, "odd"))
    assert not rig.core.books.transfers or rig.core.files[wanted].replicas.get(key) == 1
    rig.wait(1.0)
    assert last_fetch(rig).name == wanted and last_fetch(rig) is not fetch


def test_a_mini_task_gets_its_own_inputs_first() -> None:
    rig = Rig()
    key = rig.join()
    packed = rig.buffer("packed")
    mini = TaskSpec("untar", inputs=(Mount(packed, "p"),), outputs=(Mount("task-md5-x", "t"),))
    rig.declare("task-md5-x", VINE_MINI_TASK, level=1, mini_task=mini, mini_source="t")
    rig.submit(inputs=("task-md5-x",))
    kinds = [type(a.message) for a in rig.actions if isinstance(a, ev.Send) and a.key == key][1:]
    assert kinds == [msg.PutInline, msg.MiniTask, msg.Dispatch]


def test_a_mini_tasks_inputs_are_forgotten_with_it() -> None:
    rig = Rig()
    packed = rig.buffer("packed")
    mini = TaskSpec("untar", inputs=(Mount(packed, "p"),), outputs=(Mount("task-md5-x", "t"),))
    rig.declare("task-md5-x", VINE_MINI_TASK, level=1, mini_task=mini, mini_source="t")
    rig.tell(ev.Undeclare(packed))
    assert packed in rig.core.files
    rig.tell(ev.Undeclare("task-md5-x"))
    assert not rig.core.files


# ---------------------------------------------------------------------- levels and versions


def test_a_level_task_file_goes_with_its_only_task() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.buffer("x", level=0)
    task = rig.submit(inputs=(name,))
    rig.finish(task)
    assert rig.sent(msg.Unlink, key) == [msg.Unlink((name,))]


def test_a_level_task_file_that_two_tasks_use_lives_on_with_the_workflow() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.buffer("x", level=0)
    tasks = [rig.submit(inputs=(name,)) for _ in range(2)]
    assert rig.sent(msg.SetLevel, key) == [msg.SetLevel(name, 1)]
    for task in tasks:
        rig.finish(task)
    assert not rig.sent(msg.Unlink)
    assert rig.core.replica_count(name) == 1


def test_an_output_promoted_while_its_task_ran_is_booked_as_its_worker_treated_it() -> None:
    rig = Rig()
    rig.stores = True
    key = rig.join()
    name = rig.declare("file-rnd-out", VINE_FILE, source="/out", level=0)
    maker = rig.submit(outputs=(name,))
    rig.submit(inputs=(name,))
    rig.submit(inputs=(name,))
    rig.finish(maker)  # inlined at level task: the worker keeps nothing
    assert {action.key for action in rig.done_actions(ev.SendLocal)} == {key}


def test_a_new_version_of_a_file_replaces_the_old_one_everywhere() -> None:
    rig = Rig()
    rig.stores = True
    name = rig.declare("file-rnd-out", VINE_FILE, source="/out", level=1)
    keys = [rig.join() for _ in range(2)]
    first = rig.submit(outputs=(name,), resources=WHOLE)
    home = rig.where(first)
    rig.finish(first, sha=SHA)
    blocker = rig.submit(inputs=(name,), resources=WHOLE)
    assert rig.where(blocker) == home
    second = rig.submit(outputs=(name,), resources=WHOLE)
    (other,) = set(keys) - {home}
    assert rig.where(second) == other
    rig.finish(second, sha=OTHER_SHA)
    assert rig.core.files[name].ready_keys() == [other]
    assert rig.core.files[name].sha256 == OTHER_SHA
    assert msg.Unlink((name,)) in rig.sent(msg.Unlink, home)


# ---------------------------------------------------------------------- undeclare and prune


def test_undeclaring_a_file_in_use_waits_for_its_last_task() -> None:
    rig = Rig()
    key = rig.join()
    name = rig.buffer("x")
    task = rig.submit(inputs=(name,))
    rig.tell(ev.Undeclare(name))
    assert name in rig.core.files and not rig.sent(msg.Unlink)
    rig.finish(task)
    assert name not in rig.core.files
    assert rig.sent(msg.Unlink, key) == [msg.Unlink((name,))]


def test_pruning_drops_the_replicas_and_keeps_the_declaration() -> None:
    rig = Rig()
    rig.join()
    name, key = rig.make_temp("x")
    rig.tell(ev.Prune(name))
    assert rig.sent(msg.Unlink, key) == [msg.Unlink((name,))]
    reader = rig.submit(inputs=(name,))
    (recovery,) = recoveries(rig)
    rig.finish(recovery)
    assert rig.where(reader) == key


def test_level_forever_files_stay_at_workers_when_undeclared() -> None:
    rig = Rig()
    rig.join()
    name = rig.buffer("x", level=3)
    rig.finish(rig.submit(inputs=(name,)))
    rig.tell(ev.Undeclare(name))
    assert name not in rig.core.files and not rig.sent(msg.Unlink)


def test_lineage_is_kept_as_long_as_a_temp_is_declared_and_no_longer() -> None:
    rig = Rig()
    rig.join()
    first, _ = rig.make_temp("a")
    second = rig.temp("b")
    rig.finish(rig.submit(inputs=(first,), outputs=(second,)))
    rig.tell(ev.Undeclare(first))
    assert first in rig.core.files, "needed to make the second one again"
    assert rig.core.replica_count(first) == 0
    rig.tell(ev.Undeclare(second))
    assert not rig.core.files


def test_contents_nobody_has_are_answered_at_once() -> None:
    rig = Rig()
    rig.temp("x")
    rig.tell(ev.WantContents("temp-rnd-x"))
    (answer,) = rig.done_actions(ev.ContentsArrived)
    assert answer.error


def test_contents_of_a_lost_temp_are_made_again_and_brought() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    rig.gone(home)
    other = rig.join()
    rig.tell(ev.WantContents(name))
    (recovery,) = recoveries(rig)
    assert not rig.done_actions(ev.ContentsArrived)
    rig.finish(recovery)
    (upload,) = rig.sent(msg.Upload, other)
    rig.tell(ev.UploadEnded(upload.transfer_id, 3, b"", False, ""))
    (answer,) = rig.done_actions(ev.ContentsArrived)
    assert answer.name == name and not answer.error and answer.transfer_id == upload.transfer_id


def test_contents_whose_sender_dies_come_from_elsewhere_or_are_made_again() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    rig.tell(ev.WantContents(name))
    assert rig.sent(msg.Upload, home)
    rig.gone(home)
    assert not rig.done_actions(ev.ContentsArrived)
    other = rig.join()
    (recovery,) = recoveries(rig)
    rig.finish(recovery)
    assert rig.sent(msg.Upload, other)


def test_contents_that_cannot_be_made_again_are_answered_after_bounded_tries() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    rig.gone(home)
    rig.join()
    rig.tell(ev.WantContents(name))
    for _ in range(MAX_RECOVERIES):
        (recovery,) = recoveries(rig)
        rig.finish(recovery, exit_code=1, missing=(rig.core.tasks[recovery].spec.outputs[0].remote,))
    (answer,) = rig.done_actions(ev.ContentsArrived)
    assert "could not be made again" in answer.error


# ---------------------------------------------------------------------- recovery


def test_a_lost_temp_is_made_again_only_when_somebody_reads_it() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    rig.gone(home)
    rig.join()
    assert not recoveries(rig)
    reader = rig.submit(inputs=(name,))
    (recovery,) = recoveries(rig)
    assert rig.core.tasks[recovery].spec.command == "make x"
    rig.finish(recovery)
    rig.finish(reader)
    assert set(rig.outcomes) == {1, reader}, "recovery tasks are not the program's"
    assert rig.core.stats.tasks_recovery == 1


def test_immediate_recovery_does_not_wait_for_a_free_reader() -> None:
    rig = Rig()
    rig.core.tuning.set("immediate-recovery", 1)
    rig.join(Resources(1, 1000, 1000, 0))
    name, home = rig.make_temp("x")
    rig.submit()
    rig.submit(inputs=(name,))
    rig.say(home, msg.CacheGone((name,), "corrupt"))
    assert recoveries(rig)


def test_a_corrupt_replica_with_a_copy_elsewhere_needs_no_recovery() -> None:
    rig = Rig()
    rig.core.tuning.set("temp-replica-count", 2)
    keys = [rig.join() for _ in range(2)]
    name, home = rig.make_temp("x")
    (other,) = set(keys) - {home}
    arrive(rig, other, last_fetch(rig, other))
    rig.say(home, msg.CacheGone((name,), "corrupt"))
    rig.submit(inputs=(name,))
    assert not recoveries(rig) and rig.core.replica_count(name) >= 1


def test_recovery_is_bounded_and_then_the_reader_has_an_input_missing() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    rig.say(home, msg.CacheGone((name,), "corrupt"))
    reader = rig.submit(inputs=(name,))
    tries = 0
    while reader not in rig.outcomes:
        (recovery,) = recoveries(rig)
        rig.finish(recovery, exit_code=1, missing=("o0",))
        tries += 1
        assert tries <= MAX_RECOVERIES
    assert tries == MAX_RECOVERIES
    assert rig.outcomes[reader].result == VINE_RESULT_INPUT_MISSING
    assert name in rig.outcomes[reader].error


def test_recovery_leaves_alone_outputs_the_program_has_given_up() -> None:
    """A regression: the undeclared buffer raised KeyError when the producer was to run again."""
    rig = Rig()
    rig.join()
    temp, buffer = rig.temp("x"), rig.result_buffer("log")
    task = rig.submit(outputs=(temp, buffer))
    home = rig.where(task)
    rig.finish(task)
    rig.tell(ev.Undeclare(buffer))
    rig.gone(home or 0)
    rig.join()
    rig.submit(inputs=(temp,))
    (recovery,) = recoveries(rig)
    assert [mount.name for mount in rig.core.tasks[recovery].spec.outputs] == [temp]


def test_a_recovery_that_makes_something_else_does_not_replace_what_is_read_elsewhere() -> None:
    rig = Rig()
    for _ in range(2):
        rig.join()
    kept, lost = rig.temp("kept"), rig.temp("lost")
    task = rig.submit(outputs=(kept, lost))
    home = rig.where(task) or 0
    rig.finish(task, sha=SHA)
    rig.say(home, msg.CacheGone((lost,), "corrupt"))
    rig.submit(resources=Resources(3, 1, 1, 0))
    rig.submit(inputs=(lost,))
    (recovery,) = recoveries(rig)
    rig.finish(recovery, sha=OTHER_SHA)
    assert rig.core.files[kept].sha256 == SHA
    assert rig.core.files[kept].ready_keys() == [home]
    assert rig.core.files[lost].sha256 == OTHER_SHA


def test_two_lost_outputs_of_one_task_are_made_by_one_recovery() -> None:
    rig = Rig()
    home = rig.join()
    a, b = rig.temp("a"), rig.temp("b")
    rig.finish(rig.submit(outputs=(a, b)))
    rig.gone(home)
    rig.submit(inputs=(a,))
    rig.submit(inputs=(b,))
    assert len(recoveries(rig)) == 1


def chain_to_recover(rig: Rig) -> tuple[int, str]:
    """a -> b -> reader; both temps are lost, so both are to be made again. The reader and the name of b."""
    home = rig.join()
    a, b = rig.temp("a"), rig.temp("b")
    rig.finish(rig.submit("make a", outputs=(a,)))
    rig.finish(rig.submit("make b", inputs=(a,), outputs=(b,)))
    rig.gone(home)
    reader = rig.submit(inputs=(b,))
    assert len(recoveries(rig)) == 2
    return reader, b


def test_recoveries_that_wait_end_when_their_last_reader_is_cancelled() -> None:
    rig = Rig()
    reader, b = chain_to_recover(rig)
    other = rig.submit(inputs=(b,))
    before = recoveries(rig)
    rig.core.cancel((reader,))
    assert recoveries(rig) == before, "another task still reads it"
    rig.core.cancel((other,))
    check_invariants(rig.core)
    assert not rig.core.tasks and not rig.core.lineage.blocked
    rig.join()
    late = rig.submit(inputs=(b,))
    for command in ("make a", "make b"):
        (recovery,) = [t for t in recoveries(rig) if rig.where(t) is not None]
        assert rig.core.tasks[recovery].spec.command == command
        rig.finish(recovery)
    rig.finish(late)
    assert rig.outcomes[late].result == 0


def test_a_recovery_that_runs_goes_on_while_the_program_may_still_name_the_temp_and_is_killed_when_not() -> None:
    rig = Rig()
    reader, _ = chain_to_recover(rig)
    key = rig.join()
    (running,) = [t for t in recoveries(rig) if rig.where(t) is not None]
    rig.tell(ev.Cancel((reader,)))
    assert recoveries(rig) == [running], "the one that had not begun is called off"
    rig.tell(ev.Undeclare("temp-rnd-a"))
    assert not recoveries(rig) and rig.sent(msg.Kill, key) == [msg.Kill((running,))]


def test_recoveries_go_on_without_readers_when_copies_are_to_be_kept_or_the_program_reads_the_temp_itself() -> None:
    rig = Rig()
    rig.core.tuning.set("temp-replica-count", 2)
    reader, b = chain_to_recover(rig)
    rig.tell(ev.Cancel((reader,)))
    assert len(recoveries(rig)) == 2
    rig = Rig()
    reader, b = chain_to_recover(rig)
    rig.tell(ev.WantContents(b))
    before = recoveries(rig)
    rig.tell(ev.Cancel((reader,)))
    assert recoveries(rig) == before


def test_a_chain_of_a_thousand_recoveries_falls_when_its_reader_is_cancelled() -> None:
    rig = Rig()
    home = rig.join()
    names = [rig.temp(f"t{n}") for n in range(1000)]
    for before, name in zip([None, *names], names, strict=False):
        rig.core.handle_all((ev.Submit(rig.new_task_id(), TaskSpec(
            f"make {name}", inputs=(Mount(before, "in"),) if before else (), outputs=(Mount(name, "o0"),))),), rig.now)
        (task,) = rig.core.tasks
        rig.finish(task)
    rig.gone(home)
    reader = rig.submit(inputs=(names[-1],))
    assert len(recoveries(rig)) == 1000
    rig.tell(ev.Cancel((reader,)))
    assert not rig.core.tasks


def test_a_task_waits_for_a_local_file_that_another_task_is_making() -> None:
    rig = Rig()
    rig.stores = True
    rig.join()
    name = rig.declare("file-rnd-out", VINE_FILE, source="/out", level=1)
    maker = rig.submit(outputs=(name,))
    reader = rig.submit(inputs=(name,))
    assert rig.where(reader) is None
    rig.finish(maker)
    assert rig.where(reader) is not None


def test_a_task_may_read_a_local_file_and_write_it_back() -> None:
    rig = Rig()
    rig.stores = True
    rig.join()
    name = rig.local("ledger", 1000)
    task = rig.submit(inputs=(name,), outputs=(name,))
    assert rig.where(task) is not None
    rig.finish(task)
    assert rig.outcomes[task].result == 0


def test_tasks_that_update_one_file_run_one_after_the_other_in_order_of_arrival() -> None:
    rig = Rig()
    rig.stores = True
    rig.join()
    name = rig.local("ledger", 1000)
    tasks = [rig.submit(inputs=(name,), outputs=(name,)) for _ in range(4)]
    for position, task in enumerate(tasks):
        assert [rig.where(t) is not None for t in tasks[position:]] == [True] + [False] * (3 - position)
        rig.finish(task)
    assert all(rig.outcomes[t].result == 0 for t in tasks)


def test_a_reader_waits_for_the_writers_before_it_and_for_none_after_it() -> None:
    rig = Rig()
    rig.stores = True
    name = rig.local("ledger", 1000)
    early = rig.submit(inputs=(name,))
    first = rig.submit(inputs=(name,), outputs=(name,))
    between = rig.submit(inputs=(name,))
    second = rig.submit(inputs=(name,), outputs=(name,))
    rig.join()
    assert rig.where(early) is not None and rig.where(first) is not None
    assert rig.where(between) is None and rig.where(second) is None
    rig.finish(first)
    assert rig.where(between) is not None and rig.where(second) is not None


def test_a_reader_of_a_file_that_is_not_there_yet_waits_for_a_writer_submitted_after_it() -> None:
    rig = Rig()
    rig.stores = True
    name = rig.declare("file-rnd-out", VINE_FILE, source="/out", level=1)
    reader = rig.submit(inputs=(name,))
    maker = rig.submit(outputs=(name,))
    update = rig.submit(inputs=(name,), outputs=(name,))
    rig.join()
    assert rig.where(reader) is None and rig.where(update) is None
    rig.finish(maker)
    assert rig.where(reader) is not None and rig.where(update) is not None


def test_two_files_read_and_written_crosswise_do_not_block_each_other_when_a_worker_is_lost() -> None:
    rig = Rig()
    rig.stores = True
    home = rig.join()
    one, other = rig.local("one", 1000), rig.local("other", 1000)
    first = rig.submit(inputs=(one,), outputs=(other,))
    second = rig.submit(inputs=(other,), outputs=(one,))
    assert rig.where(first) == home and rig.where(second) is None
    rig.gone(home)
    again = rig.join()
    assert rig.where(first) == again
    rig.finish(first)
    assert rig.where(second) == again


# ---------------------------------------------------------------------- what workers bring with them


def test_an_offered_temp_counts_when_its_hash_is_the_one_we_know() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    rig.gone(home)
    key = rig.join(cache=(msg.CacheEntry(name, 10, 1, SHA),))
    assert rig.core.files[name].ready_keys() == [key]


def test_an_offered_temp_with_another_hash_or_none_known_is_refused() -> None:
    rig = Rig()
    rig.join()
    name, home = rig.make_temp("x")
    rig.gone(home)
    unmade = rig.temp("unmade")
    key = rig.join(cache=(msg.CacheEntry(name, 10, 1, OTHER_SHA), msg.CacheEntry(unmade, 10, 1, SHA)))
    assert rig.core.replica_count(name) == rig.core.replica_count(unmade) == 0
    assert rig.sent(msg.Unlink, key) == [msg.Unlink((name, unmade))]


def test_an_offer_made_before_the_declaration_counts_when_it_comes() -> None:
    rig = Rig()
    key = rig.join(cache=(msg.CacheEntry("url-md5-x", 10, 2, SHA), msg.CacheEntry("url-md5-y", 10, 2, OTHER_SHA)))
    rig.declare("url-md5-x", VINE_URL, source="http://x", level=2, size=10)
    rig.declare("url-md5-y", VINE_URL, source="http://y", level=2, size=10, sha256=SHA)
    assert rig.core.replica_count("url-md5-x") == 1
    assert rig.sent(msg.Unlink, key) == [msg.Unlink(("url-md5-y",))]


def test_a_replica_of_another_size_does_not_spoil_the_books() -> None:
    rig = Rig()
    for _ in range(2):
        rig.join()
    name, _ = rig.make_temp("x")
    rig.join(cache=(msg.CacheEntry(name, 999_999_999, 1, SHA),))
    assert rig.core.files[name].size == 10  # Rig.tell checks what caches add up to


def test_copies_go_to_the_worker_with_most_free_disk() -> None:
    rig = Rig()
    rig.core.tuning.set("temp-replica-count", 2)
    rig.join(FOUR_CORES)
    rig.join(Resources(4, 8000, 10_000, 0))
    roomy = rig.join(Resources(4, 8000, 90_000, 0))
    name, home = rig.make_temp("x")
    target = rig.join(Resources(4, 8000, 80_000, 0)) if home == roomy else roomy
    rig.tell()
    assert target == roomy or home == roomy
    (fetch,) = rig.sent(msg.Fetch)
    assert fetch.name == name


# ---------------------------------------------------------------------- tiny temps


def test_a_tiny_temp_reaches_another_worker_in_a_message_and_outlives_its_worker() -> None:
    rig = Rig()
    first = rig.join(FOUR_CORES)
    temp = rig.temp("t")
    rig.finish(rig.submit("make", outputs=(temp,)), tiny=True, size=7)
    rig.gone(first)
    second = rig.join(FOUR_CORES)
    reader = rig.submit("read", inputs=(temp,))
    assert rig.where(reader) == second
    (put,) = rig.sent(msg.PutInline, second)
    assert (put.name, put.data, put.sha256, put.mode) == (temp, b"y" * 7, SHA, 0o644)
    assert not rig.sent(msg.Fetch) and rig.core.stats.tasks_recovery == 0


def test_an_empty_temp_is_kept_like_any_tiny_one() -> None:
    rig = Rig()
    first = rig.join(FOUR_CORES)
    temp = rig.temp("t")
    rig.finish(rig.submit("make", outputs=(temp,)), tiny=True, size=0)
    rig.gone(first)
    rig.join(FOUR_CORES)
    assert rig.where(rig.submit("read", inputs=(temp,))) is not None


def test_a_temp_too_large_for_a_message_is_not_kept_whatever_a_worker_sends() -> None:
    rig = Rig()
    first = rig.join(FOUR_CORES)
    temp = rig.temp("t")
    rig.finish(rig.submit("make", outputs=(temp,)), tiny=True, size=TINY_TEMP_MAX_BYTES + 1)
    assert rig.core.files[temp].kept is None
    rig.join(FOUR_CORES)
    rig.gone(first)
    rig.submit("read", inputs=(temp,))
    assert rig.core.stats.tasks_recovery == 1


def test_kept_temps_are_bounded_and_their_room_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "KEPT_MAX_BYTES", 2 * (staging.KEPT_OVERHEAD_BYTES + 7))
    rig = Rig()
    rig.join(FOUR_CORES)
    temps = [rig.temp(f"t{n}") for n in range(4)]
    for temp in temps[:3]:
        rig.finish(rig.submit("make", outputs=(temp,)), tiny=True, size=7)
    assert [rig.core.files[temp].kept is not None for temp in temps[:3]] == [True, True, False]
    rig.tell(ev.Undeclare(temps[0]))
    rig.finish(rig.submit("make", outputs=(temps[3],)), tiny=True, size=7)
    assert rig.core.files[temps[3]].kept is not None


def test_a_pruned_tiny_temp_is_made_again() -> None:
    rig = Rig()
    rig.join(FOUR_CORES)
    temp = rig.temp("t")
    rig.finish(rig.submit("make", outputs=(temp,)), tiny=True)
    rig.tell(ev.Prune(temp))
    rig.submit("read", inputs=(temp,))
    assert rig.core.stats.tasks_recovery == 1


def test_contents_of_a_tiny_temp_are_answered_without_its_worker() -> None:
    rig = Rig()
    key = rig.join(FOUR_CORES)
    temp = rig.temp("t")
    rig.finish(rig.submit("make", outputs=(temp,)), tiny=True, size=7)
    rig.gone(key)
    rig.tell(ev.WantContents(temp))
    assert rig.done_actions(ev.ContentsArrived) == [ev.ContentsArrived(temp, 0, "", b"y" * 7)]


def test_a_draining_worker_need_not_hand_on_tiny_temps() -> None:
    rig = Rig()
    key = rig.join(FOUR_CORES)
    rig.join(FOUR_CORES)
    temp = rig.temp("t")
    rig.finish(rig.submit("make", outputs=(temp,)), tiny=True)
    rig.tell(ev.RetireWorkers(("w1",), "enough"))
    assert rig.sent(msg.Release, key) and not rig.sent(msg.Fetch)

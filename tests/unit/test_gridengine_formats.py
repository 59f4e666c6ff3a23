"""What qstat and qacct print, and what is concluded from listings: without a Grid Engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskvine_core.errors import BatchUnavailable
from vine_factory import defaults
from vine_factory.batch import drmaa_text, listed
from vine_factory.batch.base import BatchState, JobTag
from vine_factory.batch.job_numbers import FILE, JobNumbers
from vine_factory.batch.listed import Listed, Seen
from vine_factory.batch.parse import gridengine

TAG = JobTag("f", "p", "i-1")
ROW = """<job_list state="{kind}"><JB_job_number>7</JB_job_number><JB_name>short</JB_name><state>{state}</state>
<JAT_start_time>2026-11-24T16:07:37</JAT_start_time><queue_name>all.q@node1.site</queue_name>
<tasks>{tasks}</tasks><full_job_name>vine.p.{tail}</full_job_name></job_list>"""
ACCOUNTING = """==============================================================
qname        all.q
hostname     vm
jobnumber    {job}
taskid       {task}
start_time   {start}
end_time     {start}
failed       {failed}
exit_status  {status}
"""


def listing(*rows: str) -> str:
    return f"<?xml version='1.0'?><job_info><queue_info>{''.join(rows)}</queue_info><job_info></job_info></job_info>"


def row(state: str = "r", tasks: str = "3", tail: str = "x") -> str:
    return ROW.format(kind="running", state=state, tasks=tasks, tail=tail)


def test_pending_tasks_of_one_line_are_jobs_of_their_own() -> None:
    found = gridengine.listing(listing(row("qw", "1-5:2,9"), row("r", "")))
    assert [one.seen.batch_id for one in found] == ["7.1", "7.3", "7.5", "7.9", "7.1"]
    assert found[0].seen.state is BatchState.QUEUED
    assert (found[-1].seen.host, found[-1].name) == ("node1.site", "vine.p.x")
    assert found[-1].seen.started_at > 0


@pytest.mark.parametrize(("letters", "state"), [
    ("qw", "queued"), ("Rq", "queued"), ("dqw", "queued"), ("t", "running"), ("Rr", "running"), ("dr", "running"),
    ("hr", "running"), ("S", "running"), ("tS", "running"), ("hqw", "held"), ("Eqw", "held"), ("Ehqw", "held"),
])
def test_combinations_of_state_letters(letters: str, state: str) -> None:
    assert gridengine.meaning(letters)[0] is BatchState(state)


@pytest.mark.parametrize("letters", ["", "x", "r?"])
def test_a_state_that_is_not_known_has_no_meaning_and_is_told(letters: str) -> None:
    state, said = gridengine.meaning(letters)
    assert state is None
    assert repr(letters) in said


@pytest.mark.parametrize("text", ["", "garbage", "<job_info>", listing(row())[:-40], "<other/>",
                                  listing(row(tasks="1-99999999")), listing(row(tasks="x")),
                                  listing(row().replace("<JB_job_number>7", "<JB_job_number>"))])
def test_garbage_is_no_answer_and_not_an_empty_listing(text: str) -> None:
    with pytest.raises(BatchUnavailable):
        gridengine.listing(text)


def test_control_characters_in_the_name_of_a_job_do_not_hide_all_others() -> None:
    assert len(gridengine.listing(listing(row(tail="\x01\x1b"), row()))) == 2


def test_accounting_knows_signals_and_does_not_take_what_never_ran_for_good() -> None:
    begun = "Tue Nov 24 16:07:37 2026"
    found = {one.batch_id: one for one in gridengine.accounting("".join(ACCOUNTING.format(
        job=job, task=task, start=start, failed=failed, status=status) for job, task, start, failed, status in (
            (7, 2, begun, "0", "3"), (7, 3, begun, "100 : assumedly after job", "137                  (Killed)"),
            (8, "undefined", "-/-", "26  : opening input/output file", "0"))))}
    assert {name: one.exit_code for name, one in found.items()} == {"7.2": 3, "7.3": -9, "8.1": None}
    assert found["8.1"].said == "failed 26: opening input/output file"
    assert gridengine.accounting("error: job id 9 not found\n") == []


def test_a_context_of_another_pool_is_not_ours() -> None:
    context = {"VINE_FACTORY": "f", "VINE_POOL": "p", "VINE_INTENTS": "a+b"}
    assert drmaa_text.tags_of(context, "f", "p") == [JobTag("f", "p", "a"), JobTag("f", "p", "b")]
    assert drmaa_text.tags_of(context, "f", "q") == []
    assert drmaa_text.job_name("f", "p") != drmaa_text.job_name("f", "q") != drmaa_text.job_name("f0", "p")


@pytest.fixture
def jobs() -> Listed:
    made = Listed()
    made.submitted(TAG, "7.1")
    made.listing([Seen("7.1", BatchState.RUNNING, "n", 5.0)], 10.0)
    return made


def test_a_job_that_left_keeps_its_state_while_it_is_looked_up_and_then_is_in_no_answer(jobs: Listed) -> None:
    jobs.listing([], 11.0)
    now = 11.0
    for _ in range(listed.LOOKUPS):
        assert [status.state for status in jobs.statuses()] == [BatchState.RUNNING]
        jobs.explained(jobs.unexplained(now), [], now)
        assert jobs.unexplained(now + listed.LOOKUP_GAP_S / 2) == []
        now += listed.LOOKUP_GAP_S
    assert jobs.statuses() == []
    assert jobs.unexplained(now) == []


def test_a_job_that_comes_back_into_the_listing_is_there_again(jobs: Listed) -> None:
    for now in range(11, 20):
        jobs.listing([], now)
        jobs.explained(jobs.unexplained(now), [], now)
    jobs.listing([Seen("7.1", BatchState.RUNNING)], 20.0)
    assert [status.state for status in jobs.statuses()] == [BatchState.RUNNING]


def test_an_ended_job_is_remembered_and_then_forgotten(jobs: Listed) -> None:
    jobs.listing([], 11.0)
    end = Seen("7.1", BatchState.ENDED, exit_code=3)
    assert len(jobs.explained(jobs.unexplained(11.0), [end], 11.0)) == 1
    jobs.forget(11.0 + defaults.ENDED_KEPT_S)
    assert [status.exit_code for status in jobs.statuses()] == [3]
    jobs.forget(12.0 + defaults.ENDED_KEPT_S)
    assert jobs.statuses() == []


def test_a_status_that_comes_later_completes_an_end_and_is_not_a_second_end(jobs: Listed) -> None:
    jobs.listing([], 11.0)
    assert len(jobs.explained(jobs.unexplained(11.0), [Seen("7.1", BatchState.ENDED, final=False)], 11.0)) == 1
    assert [status.exit_code for status in jobs.statuses()] == [None]
    late = Seen("7.1", BatchState.ENDED, exit_code=0)
    assert jobs.explained(jobs.unexplained(13.0), [late], 13.0) == []
    assert [status.exit_code for status in jobs.statuses()] == [0]
    assert jobs.unexplained(15.0) == []


def test_job_numbers_outlive_the_process_and_a_torn_line(tmp_path: Path) -> None:
    JobNumbers(tmp_path).add([(TAG, "1", "a")])
    with open(tmp_path / FILE, "a") as file:
        file.write('["f/p/i-2", "2')
    second = JobTag("f", "p", "i-3")
    JobNumbers(tmp_path).add([(second, "3", "c")])
    assert JobNumbers(tmp_path).read() == [(TAG, "1", "a"), (second, "3", "c")]


def test_job_numbers_of_what_is_over_do_not_pile_up(tmp_path: Path) -> None:
    numbers = JobNumbers(tmp_path)
    for number in range(300):
        numbers.add([(TAG, str(number), "a")])
        numbers.keep_only({str(number)})
    assert len(JobNumbers(tmp_path).read()) < 150


def test_job_numbers_that_cannot_be_written_down_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BatchUnavailable, match="cannot write"):
        JobNumbers(tmp_path / "gone").add([(TAG, "1", "a")])

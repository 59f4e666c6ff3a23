"""HTCondor's log, listings and words, as recorded from real pools of two versions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from taskvine_core.errors import BatchUnavailable
from vine_factory.batch.base import BatchState
from vine_factory.batch.condor_book import JobBook
from vine_factory.batch.parse import condor_words
from vine_factory.batch.parse.condor_ads import entries, listing
from vine_factory.batch.parse.condor_log import JobEvent, Kind, complete, events
from vine_factory.batch.parse.condor_table import taken_apart

RECORDED = Path(__file__).parents[1] / "recorded" / "condor"
VERSIONS = ("23.9", "25.14")
NOW = 1795540000.0
# What happened to each job while it was recorded.
FAILED, FINE, KILLED, VACATED, RETIRED, STARTER_DIED, SCHEDD_DIED, NO_INPUT, REMOVED_IDLE = (
    f"{number}.0" for number in range(1, 10))


def of(version: str, batch_id: str) -> list[JobEvent]:
    data = (RECORDED / version / "events.log").read_bytes()
    return [event for event in events(data, NOW) if event.batch_id == batch_id]


def kinds(version: str, batch_id: str) -> list[Kind]:
    return [event.kind for event in of(version, batch_id)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_that_ended_has_its_status_in_the_log(version: str) -> None:
    assert kinds(version, FAILED) == [Kind.SUBMITTED, Kind.RUNNING, Kind.TERMINATED]
    submitted, started, ended = of(version, FAILED)
    assert submitted.tag == "fac/pool/i-1"
    assert started.host == "node1.example.org"
    assert ended.exit_code == 3
    assert submitted.at <= started.at <= ended.at
    assert of(version, FINE)[-1].exit_code == 0
    assert of(version, KILLED)[-1].exit_code == -9


@pytest.mark.parametrize("version", VERSIONS)
def test_a_preempted_job_is_back_in_the_queue_and_runs_again(version: str) -> None:
    assert kinds(version, VACATED)[:4] == [Kind.SUBMITTED, Kind.RUNNING, Kind.REQUEUED, Kind.RUNNING]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_removed_job_is_told_with_the_reason(version: str) -> None:
    for job in (RETIRED, REMOVED_IDLE):
        event = of(version, job)[-1]
        assert event.kind is Kind.REMOVED
        assert event.said.startswith("vine_factory: this worker is not needed any more (by user daemon)")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_held_job_is_told_with_reason_and_code(version: str) -> None:
    held = next(event for event in of(version, NO_INPUT) if event.kind is Kind.HELD)
    assert "/no/such/input" in held.said
    assert held.said.endswith("(hold code 13, subcode 2)")


@pytest.mark.parametrize("version", VERSIONS)
def test_lost_connections_are_told_from_lost_jobs(version: str) -> None:
    assert kinds(version, SCHEDD_DIED)[2:4] == [Kind.DISCONNECTED, Kind.RUNNING]
    gone = kinds(version, STARTER_DIED)
    assert gone[2:4] == [Kind.DISCONNECTED, Kind.REQUEUED]
    assert Kind.RUNNING in gone[4:]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_log_cut_anywhere_is_read_on_from_there(version: str) -> None:
    data = (RECORDED / version / "events.log").read_bytes()
    whole = events(data, NOW)
    for cut in random.Random(1).sample(range(len(data)), 200):
        first, length = complete(data[:cut])
        assert events(first, NOW) + events(data[length:], NOW) == whole


def test_what_is_no_event_costs_at_most_the_event_it_is_mixed_with() -> None:
    good = b"001 (007.000.000) 2026-11-24 16:07:49 Job executing on host: <192.0.2.1:9618?x>\n...\n"
    for torso in (b"\0\0\n", b"001 (006.000.000) 2026-11-24 16:07:49 Job exec", b"\xff" * 100, b"...\n...\n", b"000 ("):
        assert events(torso + good, NOW)[-1].batch_id == "7.0"
    assert events(b"001 (007.000.000) 2026-99-99 16:07:49 Job executing\n...\n", NOW) == []
    assert complete(b"no end") == (b"", 0)


def test_dates_without_a_year_are_the_last_such_day() -> None:
    text = b"001 (007.000.000) 12/31 16:07:49 Job executing on host: <192.0.2.1:9618>\n...\n"
    (event,) = events(text, NOW)
    assert NOW - 366 * 86400 < event.at < NOW
    assert event.host == "192.0.2.1"
    (utc,) = events(b"001 (007.000.000) 2026-11-24T16:07:49.123Z Job executing\n...\n", NOW)
    assert utc.at == 1795536469.0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_listing_has_all_states(version: str) -> None:
    found = {entry.batch_id: entry for entry in entries(listing((RECORDED / version / "queue.json").read_text()))}
    assert found[RETIRED].state is BatchState.RUNNING
    assert found[RETIRED].host == "node1.example.org"
    assert found[RETIRED].started_at > 0
    assert found[NO_INPUT].state is BatchState.HELD
    assert "hold code 13" in found[NO_INPUT].said
    assert found["9.1"].state is BatchState.QUEUED
    assert found["9.1"].said == "no match found"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_history_tells_how_a_retired_job_ended(version: str) -> None:
    found = {entry.batch_id: entry for entry in entries(listing((RECORDED / version / "history.json").read_text()))}
    assert (found[RETIRED].exit_code, found[RETIRED].leaving) == (0, True)
    assert (found[FAILED].exit_code, found[FAILED].state) == (3, BatchState.ENDED)
    assert found[KILLED].exit_code == -9


@pytest.mark.parametrize("text", ['[{"ClusterId": 1', "Error: no", "{}", "[1]", '[{"ClusterId": 1, "ProcId": 0}]'])
def test_half_a_listing_is_no_listing(text: str) -> None:
    with pytest.raises(BatchUnavailable):
        entries(listing(text))


def test_no_job_at_all_is_printed_as_nothing() -> None:
    assert listing("\n") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_log_and_queue_agree_on_every_job(version: str) -> None:
    """The book filled from the log alone, and from listing and history alone, has the same ends."""
    by_log, by_history = JobBook(), JobBook()
    for event in events((RECORDED / version / "events.log").read_bytes(), NOW):
        by_log.event(event, NOW)
    past = entries(json.loads((RECORDED / version / "history.json").read_text()))
    for entry in past:
        by_history.submitted(entry.tag, entry.batch_id)
    by_history.past(past, [], NOW)
    ends = {status.tag.intent_id: status for status in by_history.statuses()}
    assert len(ends) >= 9
    for status in by_log.statuses():
        if status.tag.intent_id in ends:
            other = ends[status.tag.intent_id]
            assert status.state is other.state is BatchState.ENDED
            assert abs(status.ended_at - other.ended_at) <= 2
            assert status.exit_code in (other.exit_code, None)


def test_refusals_are_told_from_silence() -> None:
    for said in ("ERROR: Failed to commit job submission into the queue.\nERROR: ask for less than 5000 MB here",
                 "Unable to commit transaction, SCHEDD:2:ask for less", "ERROR: I don't know about the 'x' universe.",
                 "ERROR: Failed to create proc\nNumber of submitted jobs would exceed MAX_JOBS_PER_OWNER"):
        assert condor_words.refused(said)
    for said in ("ERROR: Can't find address of local schedd", "Unable to locate local daemon.",
                 "CEDAR:6001:Failed to connect to <192.0.2.1:9618>", "SECMAN:2007:Failed to end classad message.",
                 "Unable to commit transaction, ", "ERROR: Failed to commit job submission into the queue."):
        assert not condor_words.refused(said)
    assert "MAX_JOBS_PER_OWNER" in condor_words.explained("expected next ProcId to be 2, but Schedd says -3")


def test_numbers_of_submitted_jobs() -> None:
    assert condor_words.submitted_ids("7.0 - 7.2\n8.0\n") == ["7.0", "7.1", "7.2", "8.0"]
    assert condor_words.submitted_ids("1 job(s) submitted to cluster 7.") == []


def test_jobs_that_are_not_there_are_no_complaint() -> None:
    assert condor_words.complaints("Job 5.0 not found\n\nCouldn't find/remove all jobs\n") == ""
    assert condor_words.complaints("Job 5.0 not found\nPermission denied to remove job 6.0") == \
        "Permission denied to remove job 6.0"


def test_a_description_is_taken_apart_at_its_queue_statement() -> None:
    text = "a = 1\nqueue is = not it\nqueue x, y, z from (\ni f/p/i 'a b' 'c'\nj f/p/j 'd'\n)\n"
    head, rows = taken_apart(text)
    assert head == "a = 1\nqueue is = not it\n"
    assert rows == [{"x": "i", "y": "f/p/i", "z": "'a b' 'c'"}, {"x": "j", "y": "f/p/j", "z": "'d'"}]
    with pytest.raises(ValueError, match="no queue statement"):
        taken_apart("a = 1\n")

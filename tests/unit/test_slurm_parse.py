"""Reading what Slurm prints: recorded from 22.05, and as other releases write it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vine_factory.batch.base import BatchState, JobTag
from vine_factory.batch.parse import slurm, slurm_words
from vine_factory.batch.parse.slurm import FIELD, RECORD
from vine_factory.batch.parse.slurm_version import release
from vine_factory.batch.slurm_tags import MAX_CHARS, Tags, decode, encode

RECORDED = Path(__file__).resolve().parents[1] / "recorded" / "slurm"
REAL = RECORDED / "22.05"


def row(number: str, state: str = "RUNNING", reason: str = "None", comment: str = "fac/pool/run-1") -> str:
    return FIELD.join((number, state, reason, "n1", "2026-11-24T16:38:40", "N/A", "name", comment)) + RECORD


@pytest.mark.parametrize("name", ["squeue.txt", "squeue-array.txt"])
def test_a_real_listing_gives_every_job_its_tag(name: str) -> None:
    jobs = slurm.listing((REAL / name).read_text(encoding="utf-8"))
    found = {}
    for job in jobs:
        tags = decode(job.comment)
        tag = tags.of(job.element) if tags else None
        if tag is not None:
            found[tag.intent_id] = (job.number, job.state)
    assert found["run-1"] == ("1_0", "CANCELLED")
    assert found["run-5"] == ("2", "FAILED")
    assert found["run-11"] == ("5", "PENDING")
    assert [found[f"run-{n}"][0] for n in (6, 7, 8)] == ["3_0", "3_1", "3_2"]
    assert {slurm_words.state_of(job.state, job.reason) for job in jobs} == set(BatchState)
    held = {job.number for job in jobs if slurm_words.state_of(job.state, job.reason) is BatchState.HELD}
    assert held == {"5", "3_0", "3_1", "3_2", "3_7"}
    (strange,) = [job for job in jobs if job.name == "a|b"]
    assert strange.comment == "somebody|else\nin two lines"


def test_real_exit_codes_are_read_from_the_listing_and_the_accounting() -> None:
    codes = slurm.exits((REAL / "squeue-exits.txt").read_text())
    assert [codes[number] for number in ("2", "4", "1_0", "7")] == [3, -9, -15, None]
    past = {one.number: one for one in slurm.accounting((REAL / "sacct.txt").read_text())}
    assert (past["2"].exit_code, past["4"].exit_code, past["7"].exit_code) == (3, -9, None)
    assert slurm_words.state_of(past["1_0"].state, "") is BatchState.ENDED
    assert past["1_0"].ended_at - past["1_0"].started_at == 2
    assert past["6"].ended_at == 0


def test_a_real_job_record_is_taken_apart() -> None:
    (facts,) = slurm.shown_job((REAL / "scontrol-job.txt").read_text())
    assert facts["JobName"] == "vine pool"
    assert facts["ArrayTaskId"] == "2"
    assert facts["ExitCode"] == "0:0"
    assert facts["TimeLimit"] == "01:00:00"
    assert slurm.shown_job("slurm_load_jobs error: Invalid job id specified\n") == []


def real_words() -> list[tuple[str, str]]:
    lines = (REAL / "words.txt").read_text().splitlines()
    return [(command, ast.literal_eval(said)) for command, _, said in (line.split("\t") for line in lines)]


@pytest.mark.parametrize(("command", "said"), real_words())
def test_a_controller_that_does_not_answer_is_told_from_a_refusal(command: str, said: str) -> None:
    assert slurm_words.unanswered(said) is ("no controller" in command)


@pytest.mark.parametrize("said", [
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "squeue: error: slurm_receive_msg: Zero Bytes were transmitted or received",
    "slurm_load_jobs error: Slurm backup controller in standby mode",
    "sbatch: fatal: Unable to process configuration file",
    "error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\"",
    "sbatch: error: Batch job submission failed: Unexpected message received: Connection refused",
    "sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job, sleeping and retrying"])
def test_words_of_other_releases_that_mean_no_answer(said: str) -> None:
    assert slurm_words.unanswered(said)


@pytest.mark.parametrize("said", [
    "sbatch: error: Batch job submission failed: Invalid qos specification",
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    "and/or time limits)",
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS "
    "policy"])
def test_words_that_mean_no(said: str) -> None:
    assert not slurm_words.unanswered(said)


@pytest.mark.parametrize(("printed", "number"), [
    ("7\n", "7"), ("7;cluster-1\n", "7"),
    ("sbatch: lua: you have 1e6 hours left\n\n  Welcome to the site\n7;c\n", "7")])
def test_the_number_of_a_submitted_job_is_found_behind_notices(printed: str, number: str) -> None:
    assert slurm.submitted(printed) == number


@pytest.mark.parametrize("printed", ["", "\n", "Submitted batch job\n", "-1\n", "7_1\n", "7 jobs\n"])
def test_what_names_no_job_is_no_answer(printed: str) -> None:
    with pytest.raises(ValueError, match="no job number"):
        slurm.submitted(printed)


@pytest.mark.parametrize(("text", "elements"), [
    ("7", [None]), ("7_3", [3]), ("7_[3]", [3]), ("7_[6-9%5]", [6, 7, 8, 9]), ("7_[1,3-4,9%2]", [1, 3, 4, 9]),
    ("7+1", [None])])
def test_job_numbers_of_all_kinds(text: str, elements: list[int | None]) -> None:
    assert [element for _, element in slurm.numbers(text)] == elements


@pytest.mark.parametrize("text", ["", "x", "7_", "7_[1,3,...]", "7_[4-2]", "7_[0-99999999999]", "-7", "7_[1-2"])
def test_what_squeue_cut_or_never_said_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no job number|no array of jobs"):
        slurm.numbers(text)


@pytest.mark.parametrize("text", [row("7")[:-9], row("7") + row("8")[:20], "slurm_load_jobs error: x\n",
                                  FIELD.join("abc") + RECORD, row("8\n") .replace("n1", f"n{FIELD}1")])
def test_half_a_listing_is_no_listing(text: str) -> None:
    with pytest.raises(ValueError, match="squeue"):
        slurm.listing(text)


def test_an_empty_listing_is_one() -> None:
    assert slurm.listing("") == slurm.listing("\n") == []


def test_notices_and_names_of_clusters_before_a_record_do_no_harm() -> None:
    text = f"squeue: warning: the site is closed\nCLUSTER: c1\n{row('7_[0-1%1]', 'PENDING')}\n{row('9')}"
    assert [(job.number, job.state) for job in slurm.listing(text)] == \
        [("7_0", "PENDING"), ("7_1", "PENDING"), ("9", "RUNNING")]


@pytest.mark.parametrize(("state", "reason", "meaning"), [
    ("PENDING", "Priority", "queued"), ("PENDING", "Resources", "queued"), ("PENDING", "BeginTime", "queued"),
    ("PENDING", "AssocGrpCpuLimit", "queued"), ("PENDING", "QOSMaxJobsPerUserLimit", "queued"),
    ("PENDING", "AssocMaxJobsLimit", "queued"), ("PENDING", "Dependency", "queued"), ("PENDING", "Licenses", "queued"),
    ("PENDING", "ReqNodeNotAvail, Reserved for maintenance", "queued"), ("CONFIGURING", "None", "queued"),
    ("REQUEUED", "None", "queued"), ("SUSPENDED", "None", "queued"),
    ("PENDING", "PartitionDown", "held"), ("PENDING", "PartitionInactive", "held"),
    ("PENDING", "BadConstraints", "held"), ("PENDING", "InvalidQOS", "held"), ("PENDING", "InvalidAccount", "held"),
    ("PENDING", "AccountNotAllowed", "held"), ("PENDING", "PartitionTimeLimit", "held"),
    ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "held"), ("PENDING", "ReqNodeNotAvail(Unavailable:n1)", "held"),
    ("PENDING", "JobHeldAdmin", "held"), ("PENDING", "JobHeldUser", "held"),
    ("PENDING", "launch failed requeued held", "held"), ("PENDING", "job requeued in held state", "held"),
    ("PENDING", "user env retrieval failed requeued held", "held"), ("PENDING", "QOSMinGRES", "held"),
    ("PENDING", "DependencyNeverSatisfied", "held"), ("PENDING", "QOSMaxCpuPerJobLimit", "held"),
    ("PENDING", "AssocMaxMemPerJob", "held"), ("SPECIAL_EXIT", "None", "held"), ("REQUEUE_HOLD", "None", "held"),
    ("RUNNING", "None", "running"), ("COMPLETING", "None", "running"), ("STAGE_OUT", "None", "running"),
    ("COMPLETED", "None", "ended"), ("CANCELLED by 1000", "None", "ended"), ("CANCELLED+", "None", "ended"),
    ("OUT_OF_MEMORY", "None", "ended"), ("NODE_FAIL", "None", "ended"), ("PREEMPTED", "None", "ended"),
    ("TIMEOUT", "TimeLimit", "ended"), ("DEADLINE", "None", "ended"), ("BOOT_FAIL", "None", "ended")])
def test_every_state_and_reason_has_a_meaning(state: str, reason: str, meaning: str) -> None:
    found = slurm_words.state_of(state, reason)
    assert found is not None
    assert found.value == meaning


def test_a_state_nobody_knows_has_none() -> None:
    assert slurm_words.state_of("QUANTUM", "") is None
    assert slurm_words.state_of("", "") is None


def test_of_a_cancellation_only_true_problems_are_told() -> None:
    said = ("scancel: error: Kill job error on job id 9: Invalid job id specified\n"
            "scancel: error: Kill job error on job id 8: Job/step already completing or completed\n"
            "scancel: error: Kill job error on job id 7: Access/permission denied\n")
    assert slurm_words.complaints(said) == \
        "scancel: error: Kill job error on job id 7: Access/permission denied"


@pytest.mark.parametrize("said", ["Slurm accounting storage is disabled\n",
                                  "sacct: error: Slurm accounting storage is disabled"])
def test_it_is_known_when_there_is_no_accounting(said: str) -> None:
    assert slurm_words.accounting_off(said)


@pytest.mark.parametrize(("text", "found"), [
    ("slurm-wlm 22.05.8", (22, 5)), ("slurm 23.11.4", (23, 11)), ("slurm 20.11.9-1.el7", (20, 11)), ("22.5.1", (22, 5)),
    ("25.11.2", (25, 11)), ("", None), ("slurm", None)])
def test_releases(text: str, found: tuple[int, int] | None) -> None:
    assert release(text) == found


def tags(*names: str) -> list[JobTag]:
    return [JobTag("fac", "pool", name) for name in names]


@pytest.mark.parametrize(("names", "text"), [
    (["run-1"], "run-1"), (["run-1", "run-2", "run-3", "run-7"], "run-[1-3,7]"), (["a-1", "b-2"], "a-1,b-2"),
    (["run-007", "run-008"], "run-007,run-008"), (["x", "x5", "x6"], "x,x[5-6]"), (["5", "6"], "5,6"),
    (["run-3", "run-2"], "run-[3,2]"), (["a.b-0", "a.b-1"], "a.b-[0-1]")])
def test_tags_of_an_array_are_written_shortly(names: list[str], text: str) -> None:
    assert encode(tags(*names)) == f"fac/pool/{text}"
    assert decode(f"fac/pool/{text}") == Tags("fac", "pool", tuple(names))


@given(st.lists(st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True) | st.builds("run-{}".format, st.integers(0, 99)),
                min_size=1, max_size=30))
def test_any_tags_come_back_as_they_were(names: list[str]) -> None:
    made = encode(tags(*names))
    found = decode(made)
    assert found == Tags("fac", "pool", tuple(names))
    assert [found.of(index) for index in range(len(names))] == tags(*names)
    assert found.of(len(names)) is None


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c/d", "a/b/c d", "a/b/c,", "a/b/c[1-2", "a/b/[]", "a/b/r[9-1]",
                                  "a/b/r[1-999999999]", "a/b/c\n", "a//c", "a/b/,c", "a/b/c[1]d"])
def test_a_comment_that_is_not_ours_is_no_tag(text: str) -> None:
    assert decode(text) is None


def test_five_hundred_ordinary_tags_fit_into_a_comment() -> None:
    assert len(encode(tags(*(f"20261124T163840-{n}" for n in range(500))))) < MAX_CHARS

"""A submission in several calls: each request gets exactly what its call came to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from taskvine_core.errors import BatchRejected, BatchUnavailable
from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory.batch.base import JobRequest, JobTag
from vine_factory.batch.portions import submit_portions


class Call(NamedTuple):
    """A portion and what the batch system makes of it."""

    requests: tuple[JobRequest, ...]
    error: Exception | None


def call(names: str, error: Exception | None = None) -> Call:
    tags = [JobTag("f", "p", name) for name in names]
    return Call(tuple(JobRequest(tag, ("true",), {}, Resources(1, 1, 1, 0)) for tag in tags), error)


def outcome(*calls: Call) -> tuple[dict[str, object], list[str]]:
    """What became of each request, and which calls were made."""
    made = []

    def submit(portion: Call) -> Sequence[str]:
        made.append("".join(request.tag.intent_id for request in portion.requests))
        if portion.error is not None:
            raise portion.error
        return [request.tag.intent_id.upper() for request in portion.requests]

    requests = sorted((request for each in calls for request in each.requests), key=lambda one: one.tag.intent_id)
    results = submit_portions(requests, calls, submit)
    assert [result.intent_id for result in results] == [request.tag.intent_id for request in requests]
    return {result.intent_id: result.batch_id or result.error for result in results}, made


def test_results_are_in_the_order_of_the_requests() -> None:
    assert outcome(call("bd"), call("ac"))[0] == {"a": "A", "b": "B", "c": "C", "d": "D"}


def test_a_refusal_concerns_the_requests_of_its_call_only() -> None:
    no = BatchRejected("no")
    assert outcome(call("a"), call("b", no), call("c")) == ({"a": "A", "b": no, "c": "C"}, ["a", "b", "c"])


def test_after_a_call_without_an_answer_the_rest_is_not_tried_and_unclear() -> None:
    silence = BatchUnavailable("no answer")
    assert outcome(call("a"), call("b", silence), call("c")) == ({"a": "A", "b": silence, "c": silence}, ["a", "b"])


def test_with_nothing_taken_before_it_the_silence_is_the_whole_answer() -> None:
    with pytest.raises(BatchUnavailable):
        outcome(call("a", BatchRejected("no")), call("b", BatchUnavailable("no answer")), call("c"))

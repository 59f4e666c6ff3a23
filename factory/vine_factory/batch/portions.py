"""One submission in several calls: what became of each request when one of the calls fails.

Owns that rule. Must not know any batch system. A refusal concerns the requests of its call; after a call without an
answer the rest is not tried, and is as unclear as that call, for who asked cannot tell what is his.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable
from vine_factory.batch.base import JobRequest, SubmitResult


class Portion(Protocol):
    """Requests that go to the batch system in one call."""

    @property
    def requests(self) -> Sequence[JobRequest]:
        """Which they are."""
        ...


P = TypeVar("P", bound=Portion)


def submit_portions(requests: Sequence[JobRequest], portions: Iterable[P],
                    submit: Callable[[P], Sequence[str]]) -> list[SubmitResult]:
    """Results in the order of ``requests``. ``submit`` gives a portion's batch ids in the order of its requests.

    Raises:
        BatchUnavailable: a call was not answered, and none before it had succeeded.
    """
    results: dict[str, SubmitResult] = {}
    unclear: BatchError | None = None
    for portion in portions:
        ids: Sequence[str] = [""] * len(portion.requests)
        error = unclear
        if error is None:
            try:
                ids = submit(portion)
            except BatchRejected as problem:
                error = problem
            except BatchUnavailable as problem:
                if not any(result.error is None for result in results.values()):
                    raise
                error = unclear = problem
        for request, batch_id in zip(portion.requests, ids, strict=True):
            results[request.tag.intent_id] = SubmitResult(request.tag.intent_id, batch_id, error)
    return [results[request.tag.intent_id] for request in requests]

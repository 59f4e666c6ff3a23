"""What is known of the outside world, and since when.

Owns the difference between "the answer is nothing" and "there was no answer". Everything read from a manager or a
batch system is one of these two; a policy has to say what it does with each. Must not know where readings come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, Union

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """An answer. ``at``: when the question was asked (seconds), so that what happened later is not judged by it."""

    value: T
    at: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer. ``since``: when the last answer was lost (seconds). Never a reason to shrink."""

    reason: str
    since: float


Reading = Union[Known[T], Unknown]  # noqa: UP007 - a generic alias needs Union on Python 3.10

"""A decision in words.

Owns the record of one pool's decision and how it reads. Pure: the same record gives the same words, now and years
later from a log.
"""

from __future__ import annotations

from taskvine_core.records import NamedTuple
from taskvine_core.resources import Resources
from vine_factory.limits import Situation, Step


class Share(NamedTuple):
    """Waiting tasks that are alike: what one takes of a worker of this pool (0 = it cannot run there), and how many of
    them the packing gave to this pool."""

    manager: str
    category: str
    tasks: float
    seconds: float | None
    part: float
    asks: Resources
    placed: float


class Decision(NamedTuple):
    """One pool's decision in one pass. ``needs``: (manager, workers it can use of ours, known now). The other numbers
    count jobs, of ``per_job`` workers each. ``unfit``: (category, tasks that can run in no pool).
    ``situation`` and ``demand``: what it was decided from."""

    pool: str
    needs: tuple[tuple[str, int, bool], ...]
    wanted: int
    active: int
    leaving: int
    target: int
    steps: tuple[Step, ...]
    per_job: int = 1
    unfit: tuple[tuple[str, int], ...] = ()
    situation: Situation | None = None
    demand: tuple[Share, ...] = ()

    def binding(self) -> Step | None:
        """The step that had the last word, None when the target is what was wanted."""
        return self.steps[-1] if self.steps else None


def sentence(decision: Decision) -> str:
    """One line: what is wanted, by whom, what it became and why."""
    asked = ", ".join(f"{manager} can use {need}" + ("" if known else " (last known)")
                      for manager, need, known in decision.needs if need) or "no manager can use workers"
    jobs = f" jobs of {decision.per_job} workers" if decision.per_job > 1 else ""
    text = f"{asked}; have {decision.active}{jobs}"
    if decision.leaving:
        text += f" (+{decision.leaving} leaving)"
    for step in decision.steps:
        text += f"; {step.limit}: {step.before} -> {step.after} because {step.reason}"
    text += f"; target {decision.target}"
    for category, tasks in decision.unfit:
        text += f"; {tasks} waiting tasks of category {category!r} ask for more than a worker of any pool has"
    return text


def as_record(decision: Decision) -> dict[str, object]:
    """The decision as JSON-able data."""
    return {"pool": decision.pool, "needs": [list(need) for need in decision.needs], "wanted": decision.wanted,
            "active": decision.active, "leaving": decision.leaving, "target": decision.target,
            "steps": [list(step) for step in decision.steps], "per_job": decision.per_job,
            "unfit": [list(entry) for entry in decision.unfit]}

"""A decision in words.

Owns the record of one pool's decision and how it reads. Pure: the same record gives the same words, now and years
later from a log.
"""

from __future__ import annotations

from taskvine_core.records import NamedTuple
from vine_factory.limits import Step


class Decision(NamedTuple):
    """One pool's decision in one pass. ``needs``: (manager, workers it can use of ours, known now)."""

    pool: str
    needs: tuple[tuple[str, int, bool], ...]
    wanted: int
    active: int
    leaving: int
    target: int
    steps: tuple[Step, ...]

    def binding(self) -> Step | None:
        """The step that had the last word, None when the target is what was wanted."""
        return self.steps[-1] if self.steps else None


def sentence(decision: Decision) -> str:
    """One line: what is wanted, by whom, what it became and why."""
    asked = ", ".join(f"{manager} can use {need}" + ("" if known else " (last known)")
                      for manager, need, known in decision.needs if need) or "no manager can use workers"
    text = f"{asked}; have {decision.active}"
    if decision.leaving:
        text += f" (+{decision.leaving} leaving)"
    for step in decision.steps:
        text += f"; {step.limit}: {step.before} -> {step.after} because {step.reason}"
    return f"{text}; target {decision.target}"


def as_record(decision: Decision) -> dict[str, object]:
    """The decision as JSON-able data."""
    return {"pool": decision.pool, "needs": [list(need) for need in decision.needs], "wanted": decision.wanted,
            "active": decision.active, "leaving": decision.leaving, "target": decision.target,
            "steps": [list(step) for step in decision.steps]}

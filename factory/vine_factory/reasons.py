"""Why a pool has the workers it has, in plain words, from the record of one pass alone.

Owns the order in which causes matter to a person. The limits are run again on the recorded situation, by the code that
decided; nothing else is looked at. Pure: an old record gives the old answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory import limits
from vine_factory.passes import FORMAT

_ORDERS = {limits.PAUSED: "the pool is paused: nothing new is started",
           limits.DRAINING: "the pool is being drained: its workers leave when they have no task, none is started"}
_LAST_LINES = 5
_LATE_LIMITS = {"per-cycle", "max-idle", "worthwhile", "hysteresis", "disruption"}


class Answer(NamedTuple):
    """``causes``: what keeps the pool from having more workers at work, most important first; () = nothing does.
    ``agrees``: the limits of today, run on the recorded situation, give the recorded steps."""

    headline: str
    needs: tuple[str, ...]
    steps: tuple[str, ...]
    causes: tuple[str, ...]
    agrees: bool

    def text(self) -> str:
        """For people."""
        lines = [self.headline, *(f"  {need}" for need in self.needs)]
        lines += ["  limits, in order:", *(f"    {step}" for step in self.steps)] if self.steps else \
            ["  no limit changes that"]
        if self.causes:
            lines += ["  what stands in the way, most important first:", *(f"    - {cause}" for cause in self.causes)]
        if not self.agrees:
            lines.append("  note: the limits of this version would have decided otherwise; shown is what was recorded")
        return "\n".join(lines)


def replay(record: Mapping[str, Any]) -> tuple[int, tuple[limits.Step, ...]]:
    """Run the limits on a recorded situation.

    Raises:
        ConfigError: this is no record, or one of another version.
    """
    try:
        if record["format"] != FORMAT:
            raise ConfigError(f"the record is of format {record['format']!r}, this version reads {FORMAT}")
        return limits.apply(limits.Situation(**record["situation"]))
    except (KeyError, TypeError) as problem:
        raise ConfigError(f"not the record of a decision: {problem!r}",
                          hint="expected a line of a factory's decisions.jsonl") from problem


def answer(record: Mapping[str, Any]) -> Answer:
    """Explain one record.

    Raises:
        ConfigError: as `replay`, or a part is missing.
    """
    target, steps = replay(record)
    try:
        recorded = tuple(limits.Step(*step) for step in record["steps"])
        agrees = (target, steps) == (record["target"], recorded)
        return Answer(_headline(record), tuple(_needs(record)),
                      tuple(f"{s.limit}: {s.before} -> {s.after} because {s.reason}" for s in recorded),
                      tuple(dict.fromkeys(_causes(record, recorded))), agrees)
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise ConfigError(f"the record of a decision is damaged: {problem!r}") from problem


def _headline(record: Mapping[str, Any]) -> str:
    jobs, situation = record["jobs"], record["situation"]
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["at"]))
    unit = f"jobs of {record['per_job']} workers" if record["per_job"] > 1 else "workers"
    there = ", ".join(f"{count} {name}" for name, count in jobs.items() if count) or "none"
    why = f" and not {situation['wanted']}" if record["target"] != situation["wanted"] else ""
    return f"{record['pool']} at {at}: {record['target']}{why} {unit} are to be there; now: {there}"


def _needs(record: Mapping[str, Any]) -> Iterator[str]:
    if not any(need for _, need, _ in record["needs"]):
        yield "no manager can use workers of this pool"
    for manager, need, known in record["needs"]:
        if need:
            yield f"{manager} can use {need}" + ("" if known else " (it said so before it fell silent)")
    for group in record["groups"]:
        if group["placed"] > 0:
            each = f", about {group['seconds']:.0f} s each" if group["seconds"] else ""
            yield (f"{group['manager']}: {group['placed']:g} of {group['tasks']:g} waiting tasks of category "
                   f"{group['category']!r} go to this pool, {group['part']:.4g} of a worker each{each}")
    if record["groups_left_out"]:
        yield f"and {record['groups_left_out']} more kinds of tasks"


def _causes(record: Mapping[str, Any], steps: tuple[limits.Step, ...]) -> Iterator[str]:
    if record["stopping"]:
        yield f"the factory is ending: {record['stopping']}"
    if record["order"]:
        yield _ORDERS[record["order"]] + "; vine_factory resume takes it back"
    yield from _about_managers(record)
    if record["listing"]:
        yield f"{record['listing']}: nothing is started or ended on a guess"
    yield from _about_health(record)
    situation = record["situation"]
    if situation["affordable"] is not None and any(step.limit == "budget" for step in steps):
        yield situation["budget_reason"]
    yield from _about_tasks(record)
    if any(step.limit == "max" and step.after < step.before for step in steps):
        yield f"the pool holds at most {situation['maximum']}: max-workers"
    yield from _about_jobs(record)
    yield from (f"{step.limit}: {step.reason}" for step in steps
                if step.limit in _LATE_LIMITS and step.after < step.before)


def _about_managers(record: Mapping[str, Any]) -> Iterator[str]:
    if record["discovery"]:
        yield f"which managers there are is not known: {record['discovery']}"
    elif not record["managers"]:
        yield f"no manager is found ({record['target_of']}): is it running, has it a name, is its home this one?"
    for manager in record["managers"]:
        if not manager["answers"]:
            yield f"manager {manager['address']} does not answer: {manager['why']}"


def _about_health(record: Mapping[str, Any]) -> Iterator[str]:
    health = record["health"]
    for kind, breaker in health["kinds"].items():
        if breaker["tripped"]:
            left = max(0.0, breaker["retry_at"] - record["at"])
            yield (f"the pool is tripped ({kind}), next try in {left:.0f} s or with vine_factory resume; last words: "
                   f"{_last_lines(breaker['last_words'])}")
    if health["last_words"] and not health["tripped"] and not record["jobs"]["connected"]:
        yield f"workers have failed before; last words: {_last_lines(health['last_words'])}"
    if record["excluded_hosts"]:
        hosts = ", ".join(record["excluded_hosts"])
        # A record of before this was told has no such key.
        yield f"workers end at once on these hosts, which get none for a while: {hosts}" \
            if record.get("excludes_hosts", True) else \
            f"workers end at once on these hosts, and the batch system cannot be told to avoid them: {hosts}"


def _about_tasks(record: Mapping[str, Any]) -> Iterator[str]:
    for category, tasks in record["unfit"]:
        yield f"{tasks} waiting tasks of category {category!r} ask for more than a worker of any pool has"
    alive = [manager for manager in record["managers"] if manager["answers"]]
    if alive and not any(need for _, need, _ in record["needs"]):
        waiting = sum(manager["tasks_waiting"] or 0 for manager in alive)
        if not waiting:
            yield "no task waits at any manager"
        elif not record["unfit"]:
            yield f"{waiting} tasks wait, but workers that are not ours, or other pools, can take them"


def _about_jobs(record: Mapping[str, Any]) -> Iterator[str]:
    for state, said, count in sorted(record["waits"], key=lambda wait: wait[0] != "held"):
        jobs = "1 job is" if count == 1 else f"{count} jobs are"
        yield f"{jobs} {state} in the batch system" + (f": {said}" if said else ", which gives no reason")
    running = record["jobs"]["running"]
    if running:
        yield (f"{running} running but not connected to a manager yet: still starting, or its port cannot be reached "
               "from there (vine_factory logs JOB)")
    late = record["health"]["kinds"].get("never connected")
    if late and not late["tripped"]:
        yield f"{late['total']} never connected and were replaced; last words: {_last_lines(late['last_words'])}"


def _last_lines(words: str) -> str:
    return " | ".join(line.strip() for line in words.strip().splitlines()[-_LAST_LINES:]) or "(none)"

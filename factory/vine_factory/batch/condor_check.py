"""What can be known of an HTCondor job before it is submitted.

Owns two questions that nobody answers by itself: whether the description is sound, and whether any machine could ever
run the job (one that no machine can run waits for ever without an error). Must not submit anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from taskvine_core.errors import BatchRejected
from taskvine_core.resources import Resources
from vine_factory.batch.condor_calls import Calls, Tools, Where
from vine_factory.batch.condor_text import requirements
from vine_factory.batch.place import Place

_WHOLE = 'SlotType =!= "Dynamic"'
_SIZES = ("TotalSlotCpus", "TotalSlotMemory", "TotalSlotDisk", "TotalSlotGPUs")
_UNITS = ("cpus", "MB of memory", "MB of disk", "gpus")
_KB_PER_MB = 1024
_TARGET = re.compile(r"\bTARGET\.", re.IGNORECASE)
_OWN = re.compile(r"\bMY\.", re.IGNORECASE)


def dry_run(text: str, into: Path, timeout_s: float) -> list[str]:
    """What condor_submit says when it reads the description without submitting; [] when there is no condor_submit.

    Raises:
        BatchRejected: it would not submit this.
    """
    try:
        said = Tools(Where(), timeout_s).dry_run(text, str(into))
    except BatchRejected as problem:
        if not problem.message.startswith("cannot run"):
            raise
        return ["condor_submit is not installed here: the submit description was not tried"]
    finally:
        into.unlink(missing_ok=True)
    return [said] if said else []


def fitting_slots(calls: Calls, place: Place, asked: Resources) -> str:
    """How many whole slots of the pool are large enough and satisfy the requirements.

    Raises:
        BatchRejected: there are machines, but none could ever run this.
        BatchUnavailable: the collector does not answer.
    """
    slots = calls.slots(_WHOLE, ("Machine", *_SIZES))
    if not slots:
        return "the pool has no machine at the moment"
    wish = requirements(place)
    if _OWN.search(wish):  # refers to the job, which the collector does not know
        wish = ""
    terms = [_WHOLE, *(f"({wish})" for _ in range(bool(wish)))]
    sizes = (asked.cores, asked.memory_mb, asked.disk_mb * _KB_PER_MB, asked.gpus)
    terms += [f"{name} >= {size}" for name, size in zip(_SIZES, sizes, strict=True) if size > 0]
    fitting = calls.slots(_TARGET.sub("", " && ".join(terms)), ("Machine",))
    if fitting:
        return f"{len(fitting)} of the pool's {len(slots)} slots can run this"
    largest = ", ".join(f"{_largest(slots, name)} {unit}" for name, unit in zip(_SIZES, _UNITS, strict=True))
    raise BatchRejected(f"no slot of the pool's {len(slots)} can ever run this", said=f"the largest have {largest}",
                        hint="ask for less, or correct the requirements")


def _largest(slots: list[dict[str, object]], name: str) -> int:
    numbers = [value for value in (slot.get(name) for slot in slots) if isinstance(value, int | float)]
    return int(max(numbers, default=0)) // (_KB_PER_MB if name == "TotalSlotDisk" else 1)

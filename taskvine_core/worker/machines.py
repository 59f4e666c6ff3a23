"""The two transition tables of a worker: cached objects and runs.

Owns which state may follow which. Must not know why anything happens.
"""

from __future__ import annotations

from taskvine_core.errors import StateError

# Cached object (reference, section 11.3).
CREATING = "CREATING"
READY = "READY"
DELETING = "DELETING"
DELETED = "DELETED"

OBJECT_TABLE: dict[tuple[str, str], str] = {
    (CREATING, "arrived"): READY,
    (CREATING, "produced"): READY,      # a task here wrote it while a copy was still under way
    (CREATING, "failed"): DELETED,
    (CREATING, "unlinked"): DELETING,   # the arrival cannot be stopped at once; it must not resurrect the object
    (CREATING, "asked again"): CREATING,
    (READY, "produced"): READY,         # a producer was run again
    (READY, "unlinked"): DELETED,
    (READY, "lost"): DELETED,
    (READY, "evicted"): DELETED,
    (DELETING, "arrived"): DELETED,
    (DELETING, "failed"): DELETED,
    (DELETING, "asked again"): CREATING,
    (DELETING, "produced"): READY,
}

# Run: one attempt of a task, or one mini-task.
QUEUED = "QUEUED"
STARTING = "STARTING"
RUNNING = "RUNNING"
COLLECTING = "COLLECTING"
DONE = "DONE"
KILLED = "KILLED"

RUN_TABLE: dict[tuple[str, str], str] = {
    (QUEUED, "start"): STARTING,
    (QUEUED, "refuse"): DONE,
    (QUEUED, "recall"): DONE,
    (QUEUED, "kill"): DONE,             # nothing runs yet: gone at once
    (STARTING, "started"): RUNNING,
    (STARTING, "failed"): DONE,
    (STARTING, "kill"): KILLED,
    (RUNNING, "exited"): COLLECTING,
    (RUNNING, "kill"): KILLED,
    (COLLECTING, "collected"): DONE,
    (COLLECTING, "kill"): KILLED,
    (KILLED, "started"): KILLED,
    (KILLED, "failed"): DONE,
    (KILLED, "exited"): DONE,
    (KILLED, "collected"): DONE,
}


def step(table: dict[tuple[str, str], str], state: str, event: str, what: str) -> str:
    """The state that follows ``state`` on ``event``.

    Raises:
        StateError: the table has no such pair; ``what`` names the object in the text.
    """
    try:
        return table[state, event]
    except KeyError:
        raise StateError(f"{what}: no transition from {state} on {event!r}", hint="a defect: please report") from None

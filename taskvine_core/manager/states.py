"""Transition tables of the manager: task and worker; the two states of a file replica.

Every allowed change is listed here and nowhere else; the check_* functions refuse the others. The diagrams in the
docs are drawn from these tables (tools/draw_states.py). Knows nothing but numbers and names.
"""

from __future__ import annotations

from collections.abc import Mapping

from taskvine_core.constants import (
    TASK_STATE_NAMES,
    VINE_TASK_DONE,
    VINE_TASK_INITIAL,
    VINE_TASK_READY,
    VINE_TASK_RETRIEVED,
    VINE_TASK_RUNNING,
    VINE_TASK_WAITING_RETRIEVAL,
)
from taskvine_core.errors import StateError

#: READY covers "waiting for its inputs" too: to the program both are tasks not yet given to a worker.
TASK_TRANSITIONS: Mapping[int, frozenset[int]] = {
    VINE_TASK_INITIAL: frozenset({VINE_TASK_READY}),
    VINE_TASK_READY: frozenset({VINE_TASK_RUNNING, VINE_TASK_RETRIEVED}),  # RETRIEVED: cancelled or can never run
    VINE_TASK_RUNNING: frozenset({VINE_TASK_WAITING_RETRIEVAL, VINE_TASK_READY, VINE_TASK_RETRIEVED}),
    VINE_TASK_WAITING_RETRIEVAL: frozenset({VINE_TASK_RETRIEVED, VINE_TASK_READY}),
    VINE_TASK_RETRIEVED: frozenset({VINE_TASK_DONE}),
    VINE_TASK_DONE: frozenset(),
}

REPLICA_CREATING = 1
REPLICA_READY = 2

WORKER_SERVING = 0
WORKER_DRAINING = 1
WORKER_LEAVING = 2

WORKER_NAMES = ("SERVING", "DRAINING", "LEAVING")
WORKER_TRANSITIONS: Mapping[int, frozenset[int]] = {
    WORKER_SERVING: frozenset({WORKER_DRAINING, WORKER_LEAVING}),
    WORKER_DRAINING: frozenset({WORKER_SERVING, WORKER_LEAVING}),  # SERVING: the program took a host's drain back
    WORKER_LEAVING: frozenset(),
}


def check_task_transition(task_id: int, old: int, new: int) -> None:
    """Raise StateError when a task may not go from ``old`` to ``new``."""
    if new not in TASK_TRANSITIONS[old]:
        raise StateError(f"task {task_id} cannot go from {TASK_STATE_NAMES[old]} to {TASK_STATE_NAMES[new]}",
                         hint="this is a defect of the manager; please report it with the debug log")


def check_worker_transition(worker_id: str, old: int, new: int) -> None:
    """Raise StateError when a worker may not go from ``old`` to ``new``."""
    if new not in WORKER_TRANSITIONS[old]:
        raise StateError(f"worker {worker_id} cannot go from {WORKER_NAMES[old]} to {WORKER_NAMES[new]}",
                         hint="this is a defect of the manager; please report it with the debug log")

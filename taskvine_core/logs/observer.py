"""The facts that the manager tells its logs, one method each.

Owns the ``Observer`` interface between manager core and logs, and an observer that forgets. Must not know
files or formats (logbook.py does).

Rules for the caller (manager core and runner):

- Calls come in the order of the facts and one at a time (inside the manager's turn); ``now`` never decreases.
- ``now`` and all other times are seconds since the epoch, ``*_s`` are durations in seconds.
- ``worker`` is any int that names one connection of one worker; it is never used again by this manager.
- Arguments are immutable and are kept until the next flush: nothing is copied or formatted in the call. A
  call costs one tuple and one append. Give what you have; work nothing out for the log.
- The life of a task is told by ``task_ready`` (again for each new attempt), ``task_running``,
  ``task_waiting_retrieval``, ``task_retrieved``, ``task_done``; states in between may be missing (a
  cancelled task goes from ready to retrieved, a library instance starts with ``task_running``). Previous
  states need not be given.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskvine_core.model.tasks import TaskSpec
from taskvine_core.protocol.messages import Measured, WorkerHello
from taskvine_core.resources import Resources

#: Why a worker was removed, as logs print it.
REMOVED_UNKNOWN = "UNKNOWN"
REMOVED_EXPLICIT = "EXPLICIT"
REMOVED_IDLE_OUT = "IDLE_OUT"
REMOVED_FAST_ABORT = "FAST_ABORT"
REMOVED_FAILURE = "FAILURE"
REMOVED_XFER_ERRORS = "XFER_ERRORS"

#: Which category values changed.
CATEGORY_MAX = "MAX"
CATEGORY_MIN = "MIN"
CATEGORY_FIRST = "FIRST"


class Observer:
    """Receives facts; every method here forgets. Implementations: ``NullObserver`` here, ``LogBook`` in logbook.py."""

    # ------------------------------------------------------------------ manager

    def manager_start(self, now: float, pid: int, requested_port: int, port: int) -> None:
        """The manager listens on ``port``; the program had asked for ``requested_port`` (0 = any)."""

    def manager_end(self, now: float) -> None:
        """The last fact of a manager."""

    def performance(self, now: float, stats: object) -> None:
        """A row of the performance log: once at start, at most once per ``perf-log-interval``, once at the
        end.

        ``stats`` has the attributes of reference section 7.1 as numbers. It is read in the call (not kept).
        """

    def application(self, now: float, text: str) -> None:
        """``Manager.log_txn_app``: a line of the program for the transactions log."""

    def application_debug(self, now: float, text: str) -> None:
        """``Manager.log_debug_app``: a line of the program for the debug log."""

    def note(self, now: float, text: str) -> None:
        """Free text for the debug log. Not for the hot path."""

    # ------------------------------------------------------------------ workers

    def worker_connected(self, now: float, worker: int, address: str, hello: WorkerHello) -> None:
        """A worker was accepted. ``address`` is "ip:port" of its connection. Includes its first resources."""

    def worker_resources(self, now: float, worker: int, total: Resources) -> None:
        """The resources a worker offers changed."""

    def worker_removed(self, now: float, worker: int, reason: str) -> None:
        """A worker is gone; ``reason`` is one of the REMOVED_* above."""

    # ------------------------------------------------------------------ tasks

    def task_ready(self, now: float, task_id: int, attempt: int, spec: TaskSpec, use_max: bool,
                   requested: Resources) -> None:
        """Queued (attempt 1), or queued again. ``use_max``: with the category's maximum after an exhaustion.
        ``requested``: what the task asks for in this attempt, -1 where it does not say."""

    def task_running(self, now: float, task_id: int, worker: int, attempt: int, spec: TaskSpec, use_max: bool,
                     allocation: Resources, commit_start: float, input_s: float, input_bytes: int) -> None:
        """Dispatched. ``attempt`` as in ``task_ready``, 0 for a library instance (which is never queued).
        ``commit_start``: when its sending began (it ends ``now``); ``input_s``,
        ``input_bytes``: time and bytes that the manager itself sent for its inputs."""

    def task_waiting_retrieval(self, now: float, task_id: int, worker: int, result: int, exit_code: int,
                               stdout_bytes: int, start: float, end: float, sandbox_mb: int) -> None:
        """The worker announced the end of the attempt; ``start`` and ``end`` on the worker's clock."""

    def task_retrieved(self, now: float, task_id: int, result: int, exit_code: int, measured: Measured,
                       limits: Resources | None, output_s: float, output_bytes: int) -> None:
        """Its outputs are where they belong, or it failed or was cancelled. ``limits``: for a resource
        exhaustion the limits that were exceeded (-1 the others), else None. ``output_s``, ``output_bytes``:
        what the manager itself received for it."""

    def task_done(self, now: float, task_id: int, result: int, exit_code: int) -> None:
        """Returned to the program (recovery tasks and libraries: forgotten by the manager)."""

    def task_kill(self, now: float, task_id: int, worker: int) -> None:
        """The worker was told to end a running or queued attempt. Not called for attempts that ended by
        themselves."""

    def task_send_failed(self, now: float, task_id: int, worker: int) -> None:
        """A task could not be dispatched to a worker."""

    def recovery_submitted(self, now: float, task_id: int, command: str, name: str) -> None:
        """A recovery task was made to rebuild the lost file ``name``. Call after its ``task_ready``."""

    def library_state(self, now: float, task_id: int, worker: int, state: str) -> None:
        """Library instance ``task_id`` is now WAITING, SENT, STARTED or FAILURE."""

    def category_changed(self, now: float, category: str, which: str, mode: int,
                         resources: Resources) -> None:
        """Category limits were set or learnt. ``which``: CATEGORY_MAX, _MIN or _FIRST; ``mode``:
        VINE_ALLOCATION_MODE_*, used with CATEGORY_FIRST."""

    # ------------------------------------------------------------------ files

    def file_declared(self, now: float, name: str, source: str, size_bytes: int) -> None:
        """A file was declared; ``source`` as in FileDecl."""

    def mini_task_used(self, now: float, name: str, spec: TaskSpec) -> None:
        """Mini-task for object ``name`` is used the first time."""

    def put(self, now: float, worker: int, name: str, level: int, size_bytes: int, mode: int) -> None:
        """A small object was sent inside a message (PutInline); it counts as arrived."""

    def fetch_ordered(self, now: float, worker: int, name: str, level: int, size_bytes: int, mode: int,
                      transfer_id: int, where: int, address: str) -> None:
        """A worker was told to fetch; ``where`` and ``address`` as in the Fetch message."""

    def mini_task_ordered(self, now: float, worker: int, name: str, level: int, size_bytes: int, mode: int,
                          transfer_id: int) -> None:
        """A worker was told to produce ``name`` by its mini-task."""

    def cache_update(self, now: float, worker: int, name: str, kind: int, level: int, size_bytes: int,
                     wall_s: float, start: float, transfer_id: int) -> None:
        """An object is in a worker's cache. ``kind``: VINE_FILE, VINE_URL, ... ``transfer_id`` 0 when it was
        not ordered (output of a task, kept from before)."""

    def cache_invalid(self, now: float, worker: int, name: str, transfer_id: int, reason: str) -> None:
        """An object did not arrive, or a worker lost one (``transfer_id`` 0)."""

    def transfer_input(self, now: float, worker: int, name: str, size_bytes: int, wall_s: float,
                       start: float) -> None:
        """The manager's own data plane has sent an object to a worker."""

    def transfer_output(self, now: float, worker: int, name: str, size_bytes: int, wall_s: float,
                        start: float) -> None:
        """An object has come from a worker to the manager (data plane, or inside a message)."""

    def unlink(self, now: float, worker: int, names: Sequence[str]) -> None:
        """A worker was told to drop objects."""

    # ------------------------------------------------------------------ for the runner, never for the core

    def flush(self, now: float, limit: int | None = None) -> int:
        """Format and write what was told, oldest first, at most ``limit`` facts; returns how many are left.

        Call it when the manager idles, and at the latest once a second.
        """
        return 0

    def close(self) -> None:
        """Write everything and close; call once, after ``manager_end``."""


class NullObserver(Observer):
    """Forgets everything: for simulations and measurements of the core alone."""

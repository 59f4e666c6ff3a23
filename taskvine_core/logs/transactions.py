"""Lines of the ``transactions`` log (reference, section 21.3).

Owns their format. Must not know files, debug lines or when a fact is told. One method makes one line and
appends it to ``lines``; ``stamp`` is set to the time of the fact before.
"""

from __future__ import annotations

from taskvine_core.constants import ALLOCATION_MODE_NAMES, RESULT_NAMES
from taskvine_core.logs.text import (
    Stamp,
    megabytes,
    microseconds,
    one_line,
    resource_fields,
    seconds,
    word,
)
from taskvine_core.logs.tracking import TaskTrack, WorkerTrack
from taskvine_core.protocol.messages import Measured
from taskvine_core.resources import Resources

_MODE_TEXT = {value: name.upper().replace(" ", "_") for name, value in ALLOCATION_MODE_NAMES.items()}

HEADER = """\
# time manager_pid MANAGER manager_pid START 0
# time manager_pid MANAGER manager_pid END microseconds_since_start
# time manager_pid WORKER worker_id CONNECTION ip:port
# time manager_pid WORKER worker_id DISCONNECTION (UNKNOWN|IDLE_OUT|FAST_ABORT|FAILURE|EXPLICIT|XFER_ERRORS)
# time manager_pid WORKER worker_id RESOURCES {resources}
# time manager_pid WORKER worker_id CACHE_UPDATE cache_name size_bytes wall_us start_us
# time manager_pid WORKER worker_id TRANSFER (INPUT|OUTPUT) cache_name size_bytes wall_us start_us
# time manager_pid CATEGORY name (MAX|MIN) {resources}
# time manager_pid CATEGORY name FIRST (FIXED|MAX|MIN_WASTE|MAX_THROUGHPUT|...) {resources}
# time manager_pid TASK task_id WAITING category (FIRST_RESOURCES|MAX_RESOURCES) attempt {requested}
# time manager_pid TASK task_id RUNNING worker_id (FIRST_RESOURCES|MAX_RESOURCES) {allocated}
# time manager_pid TASK task_id WAITING_RETRIEVAL worker_id
# time manager_pid TASK task_id RETRIEVED result exit_code {limits_exceeded} {measured}
# time manager_pid TASK task_id DONE result exit_code
# time manager_pid LIBRARY task_id (WAITING|SENT|STARTED|FAILURE|UNKNOWN) worker_id
# time manager_pid APPLICATION text
"""


def commit_fields(commit_start: float, commit_end: float, input_s: float, input_bytes: int) -> str:
    """JSON fields of a dispatch, used in RUNNING and again in RETRIEVED."""
    return (f'"time_commit_start":[{commit_start:.6f},"s"],"time_commit_end":[{commit_end:.6f},"s"],'
            f'"time_input_mgr":[{seconds(input_s) if input_s else 0},"s"],'
            f'"size_input_mgr":[{megabytes(input_bytes) if input_bytes else 0},"MB"]')


class TransactionLines:
    """Collects lines.

    Args:
        stamp: shared clock text.
    """

    def __init__(self, stamp: Stamp) -> None:
        self.lines: list[str] = [HEADER]
        self._stamp = stamp
        self._pid = 0
        self._start = 0.0

    def manager_start(self, now: float, pid: int) -> None:
        self._pid = pid
        self._start = now
        self._add(f"MANAGER {pid} START 0")

    def manager_end(self, now: float) -> None:
        self._add(f"MANAGER {self._pid} END {microseconds(now) - microseconds(self._start)}")

    def connection(self, worker: WorkerTrack) -> None:
        self._add(f"WORKER {worker.worker_id} CONNECTION {worker.address}")

    def disconnection(self, worker: WorkerTrack, reason: str) -> None:
        self._add(f"WORKER {worker.worker_id} DISCONNECTION {reason}")

    def resources(self, worker: WorkerTrack, total: Resources) -> None:
        shown = total if total.gpus > 0 else total._replace(gpus=-1)
        self._add(f"WORKER {worker.worker_id} RESOURCES {{{resource_fields(shown)}}}")

    def cache_update(self, worker: WorkerTrack, name: str, size_bytes: int, wall_s: float, start: float) -> None:
        self._add(f"WORKER {worker.worker_id} CACHE_UPDATE {name} {size_bytes} {microseconds(wall_s)} "
                  f"{microseconds(start)}")

    def transfer(self, worker: WorkerTrack, direction: str, name: str, size_bytes: int, wall_s: float,
                 start: float) -> None:
        self._add(f"WORKER {worker.worker_id} TRANSFER {direction} {name} {size_bytes} {microseconds(wall_s)} "
                  f"{microseconds(start)}")

    def category(self, name: str, which: str, mode: int, resources: Resources) -> None:
        shown = f"{which} {_MODE_TEXT.get(mode, 'FIXED')}" if which == "FIRST" else which
        self._add(f"CATEGORY {word(name)} {shown} {{{resource_fields(resources)}}}")

    def ready(self, task_id: int, category: str, use_max: bool, attempt: int, requested: Resources) -> None:
        kind = "MAX_RESOURCES" if use_max else "FIRST_RESOURCES"
        self.lines.append(f"{self._stamp.us} {self._pid} TASK {task_id} READY {word(category)} {kind} {attempt} "
                          f"{{{resource_fields(requested)}}}\n")

    def running(self, task_id: int, track: TaskTrack, use_max: bool) -> None:
        kind = "MAX_RESOURCES" if use_max else "FIRST_RESOURCES"
        worker = track.worker.worker_id if track.worker is not None else "worker-unknown"
        self.lines.append(f"{self._stamp.us} {self._pid} TASK {task_id} RUNNING {worker}  {kind} "
                          f"{{{track.io},{resource_fields(track.allocation)}}}\n")

    def waiting_retrieval(self, task_id: int, worker: WorkerTrack | None) -> None:
        name = worker.worker_id if worker is not None else "worker-unknown"
        self.lines.append(f"{self._stamp.us} {self._pid} TASK {task_id} WAITING_RETRIEVAL {name} \n")

    def retrieved(self, task_id: int, track: TaskTrack | None, result: int, exit_code: int, measured: Measured,
                  limits: Resources | None, output_s: float, output_bytes: int) -> None:
        shown = "  {}" if limits is None else f" {{{resource_fields(limits)}}}"
        if track is None:
            used = ""
        else:
            ran = ""
            if track.end:  # else it never reported back: zeros would be read as times
                ran = f'"time_worker_start":[{track.start:.6f},"s"],"time_worker_end":[{track.end:.6f},"s"],'
            used = (f'{ran}"time_output_mgr":[{seconds(output_s) if output_s else 0},"s"],'
                    f'"size_output_mgr":[{megabytes(output_bytes) if output_bytes else 0},"MB"],{track.io},'
                    f'"wall_time":[{seconds(track.end - track.start)},"s"]{_used_fields(measured, track)}')
        self.lines.append(f"{self._stamp.us} {self._pid} TASK {task_id} RETRIEVED "
                          f"{RESULT_NAMES.get(result, 'UNKNOWN')}  {exit_code}{shown} {{{used}}}\n")

    def done(self, task_id: int, result: int, exit_code: int) -> None:
        self.lines.append(f"{self._stamp.us} {self._pid} TASK {task_id} DONE "
                          f"{RESULT_NAMES.get(result, 'UNKNOWN')}  {exit_code} \n")

    def library(self, task_id: int, state: str, worker: WorkerTrack | None) -> None:
        self._add(f"LIBRARY {task_id} {state} {worker.worker_id if worker is not None else 'worker-unknown'}")

    def application(self, text: str) -> None:
        self._add(f"APPLICATION {one_line(text)}")

    def _add(self, text: str) -> None:
        self.lines.append(f"{self._stamp.us} {self._pid} {text}\n")


def _used_fields(measured: Measured, track: TaskTrack) -> str:
    """What the attempt used where it was measured, else what it was given."""
    cpu_s, memory_mb, disk_mb, bytes_read, bytes_written, _processes = measured
    text = f',"cpu_time":[{seconds(cpu_s)},"s"]' if cpu_s >= 0 else ""
    if bytes_read >= 0:
        text += f',"bytes_read":[{megabytes(bytes_read)},"MB"]'
    if bytes_written >= 0:
        text += f',"bytes_written":[{megabytes(bytes_written)},"MB"]'
    given = track.allocation
    if memory_mb < 0:
        memory_mb = given.memory_mb
    if disk_mb < 0:
        disk_mb = given.disk_mb
    return (f'{text},"memory":[{memory_mb},"MB"],"disk":[{disk_mb},"MB"],"gpus":[{given.gpus},"gpus"],'
            f'"cores":[{given.cores},"cores"]')

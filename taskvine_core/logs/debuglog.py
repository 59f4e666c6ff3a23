"""Lines of the ``debug`` log that log readers use (reference, sections 21.6 and 21.7).

Owns their format, and the order in which a reader can take them. Must not know files or when a fact is told. The
published report tool ends at the first line it does not understand, hence: free text is tamed, transfer ids appear
only when their order did, an object is unlinked only where it was shown, a state change is written only when it is
one of those allowed, worker clocks that run ahead are set back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from taskvine_core.constants import (
    TASK_STATE_NAMES,
    VINE_TASK_DONE,
    VINE_TASK_INITIAL,
    VINE_TASK_READY,
    VINE_TASK_RETRIEVED,
    VINE_TASK_RUNNING,
    VINE_TASK_WAITING_RETRIEVAL,
)
from taskvine_core.logs.text import Stamp, microseconds, one_line, tame, word
from taskvine_core.logs.tracking import TaskTrack, WorkerTrack
from taskvine_core.model.tasks import KIND_PYTHON, TaskSpec
from taskvine_core.protocol.messages import (
    PROTOCOL_VERSION,
    SOURCE_MANAGER,
    SOURCE_PEER,
    WorkerHello,
)
from taskvine_core.resources import Resources

PROGRAM = "vine_manager"
_DEFAULT_MODE = 0o644

#: URL schemes the published report tool accepts in ``puturl`` lines; others are written as ``geturl``.
_READER_SCHEMES = ("https://", "file://")


def _change(old: int, new: int) -> str:
    return f" state change: {TASK_STATE_NAMES[old]} ({old}) to {TASK_STATE_NAMES[new]} ({new})\n"


_INITIAL_READY = _change(VINE_TASK_INITIAL, VINE_TASK_READY)
_INITIAL_RUNNING = _change(VINE_TASK_INITIAL, VINE_TASK_RUNNING)
_READY_RUNNING = _change(VINE_TASK_READY, VINE_TASK_RUNNING)
_RUNNING_READY = _change(VINE_TASK_RUNNING, VINE_TASK_READY)
_RUNNING_WAITING = _change(VINE_TASK_RUNNING, VINE_TASK_WAITING_RETRIEVAL)
_RUNNING_RETRIEVED = _change(VINE_TASK_RUNNING, VINE_TASK_RETRIEVED)
_WAITING_READY = _change(VINE_TASK_WAITING_RETRIEVAL, VINE_TASK_READY)
_WAITING_RETRIEVED = _change(VINE_TASK_WAITING_RETRIEVAL, VINE_TASK_RETRIEVED)
_RETRIEVED_DONE = _change(VINE_TASK_RETRIEVED, VINE_TASK_DONE)


class DebugLines:
    """Collects lines.

    Args:
        stamp: shared clock text, set to the time of the fact before each call.
    """

    def __init__(self, stamp: Stamp) -> None:
        self.lines: list[str] = []
        self._stamp = stamp
        self._program = f" {PROGRAM}[{os.getpid()}]"
        self._vine = f"{self._program}vine: "
        self._workers = 0
        #: "host:port" of a worker's transfer server -> the "ip:port" by which readers know it.
        self._peers: dict[str, str] = {}
        self._announced: set[int] = set()

    # ------------------------------------------------------------------ manager

    def manager_start(self, now: float, pid: int, requested_port: int, port: int) -> None:
        self._program = f" {PROGRAM}[{pid}]"
        self._vine = f"{self._program}vine: "
        self.lines.append(f"{self._stamp.local}{self._program}tcp: listening on port {requested_port}\n")
        local = time.localtime(now)
        self._add("manager start")
        self._add(f"manager timezone at startup: local_time={time.strftime('%Y-%m-%dT%H:%M:%S', local)} "
                  f"tz_abbr={local.tm_zone} tz_offset={local.tm_gmtoff}")
        self._add(f"Manager is listening on port {port}.")

    def manager_end(self) -> None:
        self._add("manager end")

    def application(self, text: str) -> None:
        self._add(f"APPLICATION {tame(text)}")

    def note(self, text: str) -> None:
        self._add(tame(text))

    # ------------------------------------------------------------------ workers

    def connected(self, worker: WorkerTrack, hello: WorkerHello) -> None:
        self._workers += 1
        self._add(f"worker {worker.address} connected")
        self._add(f"{self._workers} workers connected in total now")
        self._rx(worker, f"taskvine {PROTOCOL_VERSION} {word(hello.hostname)} {word(hello.os)} {word(hello.arch)} "
                         f"{word(hello.version)}")
        self._rx(worker, f"info worker-id {worker.worker_id}")
        if hello.end_time > 0:
            self._rx(worker, f"info worker-end-time {int(hello.end_time)}")
        if hello.factory_name:
            self._rx(worker, f"info from-factory {word(hello.factory_name)}")
        for feature in hello.features:
            self._rx(worker, f"feature {word(feature)}")
        if hello.transfer_port:
            known = f"{worker.ip}:{hello.transfer_port}"
            self._peers[known] = known
            self._peers[f"{hello.transfer_host}:{hello.transfer_port}"] = known
            self._rx(worker, f"transfer-port {hello.transfer_port}")
        self.resources(worker, hello.resources)

    def resources(self, worker: WorkerTrack, total: Resources) -> None:
        self._rx(worker, "resources")
        for name, value in (("cores", total.cores), ("memory", total.memory_mb), ("disk", total.disk_mb),
                            ("gpus", total.gpus), ("workers", 1)):
            self._add(f"{name} {max(0, value):.6f}")
        self._add("tag 0")
        self._add("end")

    def removed(self, worker: WorkerTrack) -> None:
        self._workers -= 1
        self._add(f"worker {worker.label} removed")
        self._add(f"{self._workers} workers connected in total now")

    # ------------------------------------------------------------------ tasks

    def ready(self, task_id: int, attempt: int, track: TaskTrack | None) -> None:
        head = f"{self._stamp.local}{self._vine}"
        if track is None:
            if attempt <= 1:
                self.lines.append(f"{head}Task {task_id}{_INITIAL_READY}")
            return
        if track.state == VINE_TASK_RUNNING:
            # The tool frees the cores of an attempt at this line only.
            kill = f"{head}tx to {track.worker.label}: kill {task_id}\n" if track.worker is not None else ""
            self.lines.append(f"{kill}{head}Task {task_id}{_RUNNING_READY}")
        else:
            # A retrieval that turns out not to be the end is left out: readers know no way back from there.
            track.held = ""
            self.lines.append(f"{head}Task {task_id}{_WAITING_READY}")

    def running(self, task_id: int, track: TaskTrack, spec: TaskSpec, from_queue: bool) -> None:
        worker = track.worker
        if worker is None:
            return
        head = f"{self._stamp.local}{self._vine}"
        tx = f"{head}tx to {worker.label}: "
        command = one_line(command_text(spec))
        tamed = tame(command)
        if "tx to" in command:  # the one phrase that would break the block
            command = tamed
        cores, memory_mb, disk_mb, gpus = track.allocation
        files = ""
        for name, remote, flags in spec.inputs:
            files += f"{tx}infile {name} {word(remote)} {flags}\n"
        for name, remote, flags in spec.outputs:
            files += f"{tx}outfile {name} {word(remote)} {flags}\n"
        self.lines.append(
            f"{tx}task {task_id}\n{tx}cmd {len(command)}\n{head}{command}\n{tx}category {word(spec.category)}\n"
            f"{tx}cores {cores}\n{tx}gpus {gpus}\n{tx}memory {memory_mb}\n{tx}disk {disk_mb}\n{files}{tx}end\n"
            f"{head}{worker.label} busy on '{tamed}'\n"
            f"{head}Task {task_id}{_READY_RUNNING if from_queue else _INITIAL_RUNNING}")

    def waiting_retrieval(self, now: float, task_id: int, track: TaskTrack, result: int, exit_code: int,
                          stdout_bytes: int, sandbox_mb: int) -> None:
        worker = track.worker
        if worker is None:
            return
        start, end = track.start, track.end
        if end > now:  # the worker's clock runs ahead
            start, end = start - (end - now), now
        head = f"{self._stamp.local}{self._vine}"
        rx = f"{head}rx from {worker.label}: "
        self.lines.append(
            f"{rx}complete {result} {exit_code} {stdout_bytes} {stdout_bytes} {microseconds(start)} "
            f"{microseconds(max(start, end))} {max(0, sandbox_mb)} {task_id}\n"
            f"{head}Task {task_id}{_RUNNING_WAITING}"
            f"{rx}stdout {task_id} {stdout_bytes}\n"
            f"{head}tx to {worker.label}: kill {task_id}\n")

    def retrieved(self, task_id: int, track: TaskTrack | None, result_name: str, final: bool) -> None:
        head = f"{self._stamp.local}{self._vine}"
        if track is None or track.worker is None:
            self.lines.append(f"{head}Task {task_id} returns without having run: {result_name}\n")
        elif track.state == VINE_TASK_RUNNING:
            self.lines.append(f"{head}Task {task_id}{_RUNNING_RETRIEVED}")
        else:
            worker = track.worker
            text = (f"{head}{worker.label} done in {track.end - track.start:.6f}s total tasks {worker.tasks_done} "
                    f"average {worker.busy_s / max(1, worker.tasks_done):.6f}s\n"
                    f"{head}Task {task_id}{_WAITING_RETRIEVED}")
            if final:
                self.lines.append(text)
            else:
                track.held = text

    def done(self, task_id: int, track: TaskTrack | None) -> None:
        if track is None or track.worker is None or track.state != VINE_TASK_RETRIEVED:
            return
        self.lines.append(f"{track.held}{self._stamp.local}{self._vine}Task {task_id}{_RETRIEVED_DONE}")

    def kill(self, worker: WorkerTrack, task_id: int) -> None:
        self._tx(worker, f"kill {task_id}")

    def send_failed(self, worker: WorkerTrack, task_id: int) -> None:
        self._add(f"Failed to send task {task_id} to worker {worker.label}.")

    def recovery(self, task_id: int, command: str, name: str) -> None:
        self._add(f"Submitted recovery task {task_id} ({tame(command)}) to re-create lost temporary file {name}.")

    def library(self, task_id: int, state: int, worker: WorkerTrack) -> None:
        self._rx(worker, f"info library-update {task_id} {state}")

    # ------------------------------------------------------------------ files

    def put(self, worker: WorkerTrack, name: str, level: int, size_bytes: int, mode: int) -> None:
        size_bytes = max(0, size_bytes)
        worker.names.add(name)
        self._tx(worker, f"put {name} {level} {size_bytes}")
        self._tx(worker, f"file {name} {size_bytes} 0{mode or _DEFAULT_MODE:o} {int(time.time())}")

    def fetch(self, worker: WorkerTrack, name: str, level: int, size_bytes: int, mode: int, transfer_id: int,
              where: int, address: str) -> None:
        if where == SOURCE_MANAGER:
            self.put(worker, name, level, size_bytes, mode)
            return
        if where == SOURCE_PEER:
            known = self._peers.get(address)
            source = f"workerip://{known or address}/{name}"
        else:
            known = address if address.startswith(_READER_SCHEMES) else None
            source = one_line(address).replace(" ", "%20")
        order = "geturl"
        if known is not None:
            order = "puturl_now"
            self._announced.add(transfer_id)
            worker.names.add(name)
        self._tx(worker, f"{order} {source} {name} {level} {max(0, size_bytes)} 0{mode or _DEFAULT_MODE:o} "
                         f"{transfer_id}")

    def mini_task(self, worker: WorkerTrack, name: str, level: int, size_bytes: int, mode: int) -> None:
        self._tx(worker, f"mini_task {name} {name} {level} {max(0, size_bytes)} 0{mode or _DEFAULT_MODE:o}")

    def cache_update(self, worker: WorkerTrack, name: str, kind: int, level: int, size_bytes: int, wall_s: float,
                     start: float, transfer_id: int) -> None:
        worker.names.add(name)
        self._rx(worker, f"cache-update {name} {kind} {level} {max(0, size_bytes)} {int(start)} "
                         f"{microseconds(wall_s)} {microseconds(start)} {self._known_id(transfer_id) or 'X'}")

    def cache_invalid(self, worker: WorkerTrack, name: str, transfer_id: int, reason: str) -> None:
        known = self._known_id(transfer_id)
        self._rx(worker, f"cache-invalid {name} {len(reason)}{f' {known}' if known else ''}")
        self._add(f"{worker.label} invalidated {name} with error: {tame(reason)}")

    def unlink(self, worker: WorkerTrack, names: Sequence[str]) -> None:
        for name in names:
            if name in worker.names:  # else it was there before this run, or never arrived
                worker.names.discard(name)
                self._tx(worker, f"unlink {name}")

    def _known_id(self, transfer_id: int) -> str:
        if transfer_id in self._announced:
            self._announced.discard(transfer_id)
            return str(transfer_id)
        return ""

    # ------------------------------------------------------------------ line ends

    def _add(self, text: str) -> None:
        self.lines.append(f"{self._stamp.local}{self._vine}{text}\n")

    def _tx(self, worker: WorkerTrack, text: str) -> None:
        self.lines.append(f"{self._stamp.local}{self._vine}tx to {worker.label}: {text}\n")

    def _rx(self, worker: WorkerTrack, text: str) -> None:
        self.lines.append(f"{self._stamp.local}{self._vine}rx from {worker.label}: {text}\n")


def command_text(spec: TaskSpec) -> str:
    """What to show as a task's command."""
    if spec.command:
        return spec.command
    return f"python {spec.function}" if spec.kind == KIND_PYTHON else "-"

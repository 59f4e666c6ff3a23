"""Starting, killing and reaping processes, so that nothing a run started outlives it.

Owns every child of the worker process: nothing else may call wait(). Must not know tasks.

Each run's main process leads its own session and group. When it ends, the group is killed while the unreaped leader
still keeps the group's number from being used again. Processes that left the group (setsid) come to us when their
parents die, because the worker is a child subreaper; ``sweep`` finds and kills those that belong to no live run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from taskvine_core.errors import SandboxError
from taskvine_core.records import NamedTuple
from taskvine_core.worker.encoded import encode_environment
from taskvine_core.worker.spawn import Spawner

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHELL = "/bin/sh"
#: Linux refuses one argument of 128 KiB or more: longer commands are run from a file.
MAX_COMMAND_BYTES = 100_000
COMMAND_NAME = ".taskvine.command"
_CHILDREN_READ_BYTES = 1 << 16
FINISH_POLL_S = 0.005
#: Plain numbers: what the enumerations of ``signal`` cost at every call shows.
_SIGKILL = int(signal.SIGKILL)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Ended(NamedTuple):
    """A child that is gone. ``exit_code`` is the signal number when a signal ended it."""

    pid: int
    exit_code: int
    cpu_s: float
    max_rss_mb: int


def prctl(option: int, value: int) -> None:
    """One prctl(2) call; a kernel that does not know it is no reason to stop."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(option, value, 0, 0, 0)


class Children:
    """All child processes of this worker."""

    def __init__(self) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._spawner = Spawner()
        self._mine: set[int] = set()
        self._session = os.getsid(0)
        self._children_fd = -1
        with suppress(OSError):     # old kernel: all of /proc is read instead
            self._children_fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)

    def start(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], stdout_fd: int,
              keep: tuple[int, ...] = ()) -> int:
        """Start a process in its own session with stdin empty and stdout and stderr going to ``stdout_fd``.

        Args:
            keep: descriptors the child inherits under the same number.

        Returns: its pid, which is also its process group.

        Raises:
            SandboxError: it cannot be started.
        """
        try:
            encoded = encode_environment(env)
        except ValueError as error:
            raise SandboxError(f"cannot start {argv[0]}: {error}", hint="see set_env_var() of its task") from error
        return self._start(argv, cwd, encoded, stdout_fd, keep)

    def _start(self, argv: Sequence[str], cwd: str, env: Sequence[bytes], stdout_fd: int,
               keep: tuple[int, ...] = ()) -> int:
        try:
            pid = self._spawner.start(argv, cwd, env, stdout_fd, keep)
        except (OSError, ValueError) as error:
            raise SandboxError(f"cannot start {argv[0]}: {error}", hint="see the worker's machine") from error
        self._mine.add(pid)
        return pid

    def start_command(self, command: str, cwd: str, env: Sequence[bytes], stdout_fd: int) -> int:
        """Run a shell command with an environment of ``encode_environment``; see ``start``."""
        if len(command) < MAX_COMMAND_BYTES // 4 or len(os.fsencode(command)) < MAX_COMMAND_BYTES:
            return self._start((SHELL, "-c", command), cwd, env, stdout_fd)
        with open(f"{cwd}/{COMMAND_NAME}", "wb") as file:
            file.write(os.fsencode(command))
        return self._start((SHELL, COMMAND_NAME), cwd, env, stdout_fd)

    @staticmethod
    def kill_group(pid: int) -> None:
        """SIGKILL a whole process group; no error when it is already gone."""
        try:  # noqa: SIM105 - once per task: suppress() costs as much as the call
            os.killpg(pid, _SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def reap(self) -> list[Ended]:
        """Every child that has ended, killed with its group; those nobody started here are reaped and left out."""
        ended: list[Ended] = []
        while True:
            try:
                waiting = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return ended
            if waiting is None:
                return ended
            if self._in_our_session(waiting.si_pid):
                break           # a thread's own child (curl): leave it, it hides others from this way of asking
            self._bury(waiting.si_pid, ended)
        for pid in self._child_pids():
            if not self._in_our_session(pid) and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self._bury(pid, ended)
        return ended

    def _bury(self, pid: int, ended: list[Ended]) -> None:
        """Reap one ended process; its group dies while the zombie still keeps the number from being used again."""
        mine = pid in self._mine
        if mine:
            self.kill_group(pid)
        _, status, usage = os.wait4(pid, 0)
        if mine:
            self._mine.discard(pid)
            ended.append(Ended(pid, abs(os.waitstatus_to_exitcode(status)), usage.ru_utime + usage.ru_stime,
                               usage.ru_maxrss >> 10))

    def _in_our_session(self, pid: int) -> bool:
        """Every run is a session of its own, which nothing in it can come back from: others are not from runs."""
        if pid in self._mine:
            return False
        try:
            return os.getsid(pid) == self._session
        except OSError:
            return True

    def sweep(self, belongs: Callable[[int], bool]) -> int:
        """Kill children that came to us from dead parents unless ``belongs(pid)``; returns how many were killed."""
        killed = 0
        for pid in self._child_pids():
            if pid not in self._mine and not self._in_our_session(pid) and not belongs(pid):
                killed += 1
                try:
                    group = os.getpgid(pid)
                    if group == pid:
                        os.killpg(pid, signal.SIGKILL)
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
        return killed

    def finish(self, patience_s: float) -> None:
        """Kill and reap everything; gives up on what does not die in time (it is stuck in the kernel)."""
        end = time.monotonic() + patience_s
        for pid in self._mine:
            self.kill_group(pid)
        while self._mine or self.sweep(lambda pid: False):
            self.reap()
            if time.monotonic() > end:
                return
            time.sleep(FINISH_POLL_S)

    def _child_pids(self) -> list[int]:
        if self._children_fd < 0:
            return _children_from_proc()
        return [int(pid) for pid in os.pread(self._children_fd, _CHILDREN_READ_BYTES, 0).split()]


def _children_from_proc() -> list[int]:
    """Children of this process on a kernel without /proc/*/children."""
    found = []
    me = str(os.getpid())
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[1].decode() == me:
            found.append(int(name))
    return found


def sandbox_of(pid: int) -> str:
    """The VINE_SANDBOX a process was started with, else its working directory, else ""."""
    try:
        return _given_sandbox(pid) or os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _given_sandbox(pid: int) -> str:
    with open(f"/proc/{pid}/environ", "rb") as file:
        for entry in file.read().split(b"\0"):
            if entry.startswith(b"VINE_SANDBOX="):
                return os.fsdecode(entry[len(b"VINE_SANDBOX="):])
    return ""


def kill_left_in(root: str) -> int:
    """SIGKILL what a killed worker left running in the sandboxes of ``root``; returns how many processes.

    Only what was started for a sandbox directly below counts: a shell that happens to stand there is somebody's.
    """
    killed = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if _given_sandbox(int(name)).startswith((f"{root}/task.", f"{root}/mini.")):
                os.kill(int(name), signal.SIGKILL)
                killed += 1
    return killed


def memory_of(pid: int) -> tuple[int, int]:
    """Resident MB and number of processes of ``pid`` and all its descendants (0, 0 when gone)."""
    sizes = [size for one in _family(pid) if (size := _resident_bytes(one)) >= 0]
    return sum(sizes) >> 20, len(sizes)


def share_mb(pid: int) -> int:
    """MB of ``pid`` and its descendants where a page counts only in part for each process that has it."""
    return sum(_proportional_bytes(one) for one in _family(pid)) >> 20


def _family(pid: int) -> list[int]:
    """A process and all its descendants, as far as they still have their parents."""
    found = [pid]
    for one in found:
        with suppress(OSError, ValueError):     # it ended while we looked
            for thread in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{thread}/children", "rb") as file:
                    found.extend(int(child) for child in file.read().split())
    return found


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return -1


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass                    # it ended, is somebody else's, or the kernel is old
    return max(0, _resident_bytes(pid))

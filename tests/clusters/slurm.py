"""A real Slurm cluster for tests, started by slurm.sh: one per test process, on ports of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

SCRIPT = Path(__file__).with_name("slurm.sh")
UP_S, DOWN_S, TOOL_S = 400.0, 60.0, 30.0
_PORTS = 20


class CannotStart(Exception):
    """No cluster can be had on this machine; the text says why."""


class Cluster:
    """The cluster. ``environment`` is what a client needs besides its own.

    Args:
        accounting: with slurmdbd; without, Slurm forgets jobs a while after their end.
        forget_s: that while.
    """

    def __init__(self, *, accounting: bool = False, forget_s: int = 300) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vine-slurm-"))
        self.prefix = f"v{os.getpid() % 100_000}{'a' if accounting else 'n'}"
        self._settings = {**os.environ, "SLURM_DIR": str(self.directory), "SLURM_PREFIX": self.prefix,
                          "SLURM_DBD": "yes" if accounting else "", "SLURM_NODES": "1" if accounting else "3",
                          "SLURM_MINJOBAGE": str(forget_s), "SLURM_PORT": str(_free_ports()),
                          "SLURM_OWNER": str(os.getpid())}
        self.environment: dict[str, str] = {}

    def up(self) -> Mapping[str, str]:
        """Start it; as root, installs what is missing.

        Raises:
            CannotStart: with the script's words.
        """
        self._script("up", timeout_s=UP_S)
        self.environment = dict(line.split("=", 1) for line in self._script("env").splitlines())
        return self.environment

    def down(self) -> None:
        """Stop it, and make sure that nothing of it is left."""
        with contextlib.suppress(CannotStart):
            self._script("down", timeout_s=DOWN_S)
        subprocess.run(["rm", "-rf", str(self.directory)], check=False, timeout=DOWN_S)

    def tool(self, *argv: str) -> str:
        """Run a tool of the cluster; returns what it printed."""
        done = subprocess.run(argv, env={**os.environ, **self.environment}, capture_output=True, text=True,
                              timeout=TOOL_S, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
        return done.stdout

    def answers(self) -> bool:
        """The controller answers."""
        done = subprocess.run(["scontrol", "ping"], env={**os.environ, **self.environment}, capture_output=True,
                              timeout=TOOL_S, check=False)
        return done.returncode == 0

    @contextlib.contextmanager
    def controller_off(self) -> Iterator[None]:
        """Without slurmctld; jobs go on."""
        self._script("ctl-stop")
        try:
            yield
        finally:
            self._script("ctl-start")
            _wait(self.answers, "the controller is back")

    @contextlib.contextmanager
    def controller_frozen(self) -> Iterator[None]:
        """With a slurmctld that takes connections and says nothing."""
        pid = int((self.directory / "run" / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            _wait(self.answers, "the controller answers again")

    @contextlib.contextmanager
    def node_drained(self, name: str) -> Iterator[None]:
        """With a node that takes no new jobs."""
        self.tool("scontrol", "update", f"nodename={name}", "state=drain", "reason=test")
        try:
            yield
        finally:
            self.tool("scontrol", "update", f"nodename={name}", "state=resume")

    def _script(self, verb: str, *more: str, timeout_s: float = TOOL_S) -> str:
        # Files, not pipes: the daemons would hold a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            try:
                status = subprocess.run([str(SCRIPT), verb, *more], env=self._settings, stdout=out, stderr=err,
                                        stdin=subprocess.DEVNULL, timeout=timeout_s, check=False).returncode
            except (OSError, subprocess.TimeoutExpired) as problem:
                raise CannotStart(f"{SCRIPT.name} {verb}: {problem}") from problem
            out.seek(0)
            err.seek(0)
            if status != 0:
                raise CannotStart(f"{SCRIPT.name} {verb}: {err.read().strip()[-500:]}")
            return out.read()


def _free_ports() -> int:
    """First of a row of ports that nobody uses now; where the search begins depends on the process."""
    for attempt in range(100):
        first = 20_000 + (os.getpid() * 37 + attempt * 211) % 480 * _PORTS
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + _PORTS):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise CannotStart("no free ports")


def _wait(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.05)

"""A real Grid Engine for tests, started by gridengine.sh: one per test process, on ports of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from clusters.htcondor import CannotStart, _free_port, _wait, python_path

SCRIPT = Path(__file__).with_name("gridengine.sh")
CACHE = Path(tempfile.gettempdir()) / f"vine-gridengine-cache-{os.getuid()}"
UP_S, DOWN_S, TOOL_S = 300.0, 40.0, 30.0
BINDINGS = "drmaa>=0.7.9"


class GridEngine:
    """The cluster. ``environment`` is what a client needs besides its own."""

    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="vine-gridengine-"))
        self.state.chmod(0o755)
        self._settings = {**os.environ, "GE_TEST_ROOT": str(self.state / "ge"), "GE_TEST_PORT": str(_two_free_ports())}
        self.environment: dict[str, str] = {}

    def up(self) -> Mapping[str, str]:
        """Start it; installs Debian's packages where they are missing.

        Raises:
            CannotStart: with the script's words.
        """
        CACHE.mkdir(mode=0o700, exist_ok=True)
        with open(CACHE / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._script("up", UP_S)
            bindings = _bindings()
        self.environment = dict(line.split("=", 1) for line in self._script("env", TOOL_S).splitlines())
        self.environment["PYTHONPATH"] = python_path(bindings)
        return self.environment

    def down(self) -> None:
        """Stop it, and make sure that nothing of it is left."""
        with contextlib.suppress(CannotStart):
            self._script("down", DOWN_S)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", str(self.state)], check=False, timeout=DOWN_S)

    def tool(self, *argv: str, check: bool = True) -> str:
        """Run a tool of it; returns what it printed."""
        done = subprocess.run(argv, env={**os.environ, **self.environment}, capture_output=True, text=True,
                              timeout=TOOL_S, check=False)
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
        return done.stdout

    def processes(self, name: str = "") -> list[int]:
        """Processes of it: daemons, shepherds, jobs; or those with this command name."""
        needle = f"SGE_ROOT={self.state}/ge/root".encode()
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and int(entry) != os.getpid():
                    environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                    comm = Path(f"/proc/{entry}/comm").read_text().strip()
                    if needle in environ and (comm == name if name else comm.startswith("sge_")
                                              or any(item.startswith(b"JOB_ID=") for item in environ)):
                        found.append(int(entry))
        return found

    def answers(self) -> bool:
        """The qmaster answers."""
        done = subprocess.run(["qstat"], env={**os.environ, **self.environment}, capture_output=True, timeout=TOOL_S,
                              check=False)
        return done.returncode == 0

    @contextlib.contextmanager
    def master_off(self) -> Iterator[None]:
        """Without a qmaster: it died."""
        self._script("master-kill", TOOL_S)
        try:
            yield
        finally:
            self._script("master-start", TOOL_S)
            _wait(self.answers, "the qmaster is back")

    @contextlib.contextmanager
    def master_frozen(self) -> Iterator[None]:
        """With a qmaster that takes connections and says nothing."""
        (pid,) = self.processes("sge_qmaster")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            _wait(self.answers, "the qmaster answers again")

    def _script(self, verb: str, timeout_s: float) -> str:
        try:
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
                # Files, not pipes: the daemons keep what they are started with.
                done = subprocess.run([str(SCRIPT), verb], env=self._settings, stdin=subprocess.DEVNULL, stdout=out,
                                      stderr=err, timeout=timeout_s, check=False)
                out.seek(0), err.seek(0)
                text, words = out.read(), err.read()
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise CannotStart(f"{SCRIPT.name} {verb}: {problem}") from problem
        if done.returncode != 0:
            raise CannotStart(f"{SCRIPT.name} {verb}: {words.strip()[-500:]}")
        return text


def _bindings() -> Path:
    """The package drmaa, in a directory of its own. Called under the lock."""
    target = CACHE / "bindings"
    if not target.exists():
        made = target.with_suffix(".new")
        subprocess.run(["rm", "-rf", str(made)], check=True, timeout=DOWN_S)
        done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(made), BINDINGS],
                              capture_output=True, text=True, timeout=UP_S, check=False)
        if done.returncode != 0:
            raise CannotStart(f"pip install {BINDINGS}: {done.stderr.strip()[-500:]}")
        made.rename(target)
    return target


def _two_free_ports() -> int:
    """Execd's is the one after qmaster's."""
    for _ in range(100):
        port = _free_port()
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port + 1))
            return port
    raise CannotStart("no two free ports in a row")

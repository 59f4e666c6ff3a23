"""A real HTCondor pool for tests, started by htcondor.sh: one per test process, on a port of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SCRIPT = Path(__file__).with_name("htcondor.sh")
CACHE = Path(tempfile.gettempdir()) / f"vine-htcondor-cache-{os.getuid()}"
UP_S, DOWN_S, TOOL_S = 240.0, 30.0, 30.0
BINDINGS = "htcondor>=25"


class CannotStart(Exception):
    """No pool can be had on this machine; the text says why."""


class Pool:
    """The pool. ``environment`` is what a client needs besides its own."""

    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="vine-htcondor-"))
        self.port = _free_port()
        self._settings = {**os.environ, "HTC_STATE": str(self.state / "pool"), "HTC_CACHE": str(CACHE),
                          "HTC_PORT": str(self.port)}
        self.environment: dict[str, str] = {}

    def up(self) -> Mapping[str, str]:
        """Start it; installs what is missing below CACHE, nothing on the machine.

        Raises:
            CannotStart: with the script's words.
        """
        CACHE.mkdir(mode=0o700, exist_ok=True)
        self._script("up", UP_S)
        lines = self._script("env", TOOL_S).splitlines()
        self.environment = dict(line.split("=", 1) for line in lines)
        self.environment["PYTHONPATH"] = python_path(_bindings())
        return self.environment

    def down(self) -> None:
        """Stop it, and make sure that nothing of it is left."""
        with contextlib.suppress(CannotStart):
            self._script("down", DOWN_S)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", str(self.state)], check=False, timeout=DOWN_S)

    def tool(self, *argv: str) -> str:
        """Run a tool of the pool; returns what it printed."""
        done = subprocess.run(argv, env={**os.environ, **self.environment}, capture_output=True, text=True,
                              timeout=TOOL_S, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
        return done.stdout

    def processes(self, name: str = "") -> list[int]:
        """Processes of the pool: daemons (one kind with ``name``, as in "condor_schedd") and jobs."""
        needle = f"CONDOR_CONFIG={self.state}/pool/condor_config".encode()
        scratch = f"_CONDOR_SCRATCH_DIR={self.state}/".encode()
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                environ = Path(f"/proc/{int(entry)}/environ").read_bytes() if entry.isdigit() else b""
                comm = Path(f"/proc/{entry}/comm").read_text().strip() if environ else ""
                is_daemon = needle in environ.split(b"\0") and comm.startswith("condor_")
                if (is_daemon and comm.startswith(name)) or (not name and scratch in environ):
                    found.append(int(entry))
        return found

    def answers(self) -> bool:
        """The schedd answers a query."""
        done = subprocess.run(["condor_q", "-limit", "1"], env={**os.environ, **self.environment},
                              capture_output=True, timeout=TOOL_S, check=False)
        return done.returncode == 0

    @contextlib.contextmanager
    def schedd_off(self) -> Iterator[None]:
        """Without a schedd, as an administrator does it."""
        self.tool("condor_off", "-schedd", "-fast")
        _wait(lambda: not self.answers(), "the schedd is gone")
        try:
            yield
        finally:
            self.tool("condor_on", "-schedd")
            _wait(self.answers, "the schedd is back")

    @contextlib.contextmanager
    def schedd_frozen(self) -> Iterator[None]:
        """With a schedd that takes connections and says nothing."""
        (pid,) = self.processes("condor_schedd")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            _wait(self.answers, "the schedd answers again")

    def _script(self, verb: str, timeout_s: float) -> str:
        try:
            done = subprocess.run([str(SCRIPT), verb], env=self._settings, capture_output=True, text=True,
                                  timeout=timeout_s, check=False)
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise CannotStart(f"{SCRIPT.name} {verb}: {problem}") from problem
        if done.returncode != 0:
            raise CannotStart(f"{SCRIPT.name} {verb}: {done.stderr.strip()[-500:]}")
        return done.stdout


def python_path(bindings: Path) -> str:
    """A helper process sees the bindings, what we see, and the bindings of batch systems started before."""
    paths = [str(bindings), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    return os.pathsep.join(dict.fromkeys(path for path in paths if path))


def _bindings() -> Path:
    """HTCondor's Python bindings for this Python, in a directory of their own."""
    target = CACHE / f"bindings-{sys.version_info[0]}.{sys.version_info[1]}"
    with open(CACHE / ".bindings.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            made = target.with_suffix(".new")
            subprocess.run(["rm", "-rf", str(made)], check=True, timeout=DOWN_S)
            done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(made), BINDINGS],
                                  capture_output=True, text=True, timeout=UP_S, check=False)
            if done.returncode != 0:
                raise CannotStart(f"pip install {BINDINGS}: {done.stderr.strip()[-500:]}")
            made.rename(target)
    return target


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(condition: object, what: str, timeout_s: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.05)

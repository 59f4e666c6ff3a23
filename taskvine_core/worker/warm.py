"""The worker's side of warm interpreters: starting them, feeding them, noticing that they died.

Owns which interpreter serves which task. Must not know user code (never unpickles) nor sandboxes beyond their path.
"""

from __future__ import annotations

import marshal
import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping

from taskvine_core.errors import SandboxError
from taskvine_core.model.tasks import RESULT_REMOTE, TaskSpec
from taskvine_core.records import NamedTuple
from taskvine_core.worker.children import Children
from taskvine_core.worker.environment import ALWAYS_SET, THREAD_LIMITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REPLY = struct.Struct("<iqqqq")
READY, STARTED, ENDED, NO_FORK = 0, 1, 2, 3
_HEADER = struct.Struct("<IIq")
#: Distinct interpreters kept warm: each costs some 10 MB, with numerical libraries 100 and more.
MAX_INTERPRETERS = 4
REQUEST_NAME = ".taskvine.request"
#: Variables an interpreter reads only when it starts: tasks that set them need an interpreter of their own.
_START_PREFIXES = ("PYTHON", "LD_")
_LOG_TAIL_BYTES = 2000

#: In the same order always: equal variables are recognized by their bytes.
_SHARED = tuple(sorted(ALWAYS_SET))
#: Modules are imported with these set to 1: threads that a library starts then would not survive the forks.
_ONE_THREAD = dict.fromkeys(THREAD_LIMITS, "1")
#: Has the C library's functions bound at the start, not in every fork; the interpreter's program removes it again.
_BIND = "LD_BIND_NOW"


class Key(NamedTuple):
    """Tasks with equal keys share an interpreter: program, variables it is started with, modules it has loaded."""

    program: str
    starting: tuple[tuple[str, str | None], ...] = ()
    preload: tuple[str, ...] = ()


class Reply(NamedTuple):
    """One answer: run number, and pid, exit code or errno by ``kind``."""

    kind: int
    run: int
    value: int
    cpu_s: float
    max_rss_mb: int


class Interpreter:
    """One warm process and its socket (non-blocking on our side)."""

    def __init__(self, key: Key, pid: int, link: socket.socket, log_path: str, env: dict[str, str]) -> None:
        self.key = key
        self.env = env                  # what it was started with
        self.pid = pid
        self.link = link
        self.log_path = log_path
        self.ready = False
        self.runs: set[int] = set()
        self.pids: dict[int, int] = {}
        self.unsent = bytearray()
        self._received = bytearray()

    def send_run(self, run: int, shared: dict[bytes, bytes], request: dict[str, Any]) -> None:
        """Queue a task: variables most tasks have in common, and what only its process reads."""
        variables, body = marshal.dumps(shared, 2), marshal.dumps(request, 2)
        self.unsent += _HEADER.pack(len(variables), len(body), run) + variables + body
        self.flush()

    def send_kill(self, run: int) -> None:
        self.unsent += _HEADER.pack(0, 0, run)
        self.flush()

    def flush(self) -> None:
        try:
            while self.unsent:
                del self.unsent[:self.link.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent.clear()         # it died: reading tells, and its runs are given back

    def receive(self) -> list[Reply] | None:
        """Answers that came; None when the process is gone."""
        try:
            data = self.link.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self._received += data
        replies = []
        whole = len(self._received) // REPLY.size * REPLY.size
        for kind, run, value, cpu_us, rss_kb in REPLY.iter_unpack(self._received[:whole]):
            if kind == STARTED:
                self.pids[run] = value
            elif kind == READY:
                self.ready = True
            elif kind in (ENDED, NO_FORK):
                self.runs.discard(run)
                self.pids.pop(run, None)
            replies.append(Reply(kind, run, value, cpu_us / 1e6, rss_kb >> 10))
        del self._received[:whole]
        return replies

    def last_words(self) -> str:
        """The end of what the process printed, for an error text."""
        try:
            with open(self.log_path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""


class Warm:
    """All warm interpreters of a worker.

    Args:
        children: starts and reaps the processes.
        root: workspace; the program and logs go to its temp/.
        base: environment of the worker's tasks.
        watch: called with (descriptor, interpreter) to have the loop look at a new socket.
        forget: called with a descriptor that is closed.
    """

    def __init__(self, children: Children, root: str, base: Mapping[str, str],
                 watch: Callable[[int, Interpreter], None], forget: Callable[[int], None]) -> None:
        self._children = children
        self._root = root
        self._base = base
        self._watch = watch
        self._forget = forget
        self._by_key: dict[Key, Interpreter] = {}   # the one used last is last
        self._deadly: set[Key] = set()              # importing their modules ended the interpreter
        self._program = ""
        self._fallback = ""

    def submit(self, run: int, spec: TaskSpec, sandbox: str, env: dict[str, str],
               path_of: Callable[[str], str]) -> Interpreter:
        """Give a task to a warm interpreter, starting one when needed.

        Raises:
            SandboxError: it cannot be started.
        """
        starting = tuple(sorted((k, v) for k, v in spec.env if k.startswith(_START_PREFIXES)))
        key = Key(default_interpreter(self._base), starting, spec.preload)
        interpreter = self._by_key.pop(key, None) or self._start(key)
        self._by_key[key] = interpreter
        interpreter.runs.add(run)
        request = self._request(spec, sandbox, path_of)
        started_with = interpreter.env.get
        encode = os.fsencode
        changes: dict[bytes, bytes | None] = {encode(k): encode(v) for k, v in env.items()
                                              if started_with(k) != v and k not in ALWAYS_SET}
        changes.update((encode(name), None) for name, value in spec.env if value is None and name not in env)
        request.update(sandbox=sandbox, env=changes, arguments=spec.arguments)
        interpreter.send_run(run, {encode(name): encode(env[name]) for name in _SHARED}, request)
        return interpreter

    def once_command(self, spec: TaskSpec, sandbox: str, path_of: Callable[[str], str]) -> str:
        """The shell command that runs a Python task in an interpreter of its own."""
        import base64
        import json
        from shlex import quote

        self._unpack_program()
        request = self._request(spec, sandbox, path_of)
        request["arguments"] = base64.b64encode(spec.arguments).decode()
        with open(f"{sandbox}/{REQUEST_NAME}", "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(request, file)
        interpreter = spec.interpreter or ("python3" if spec.command else default_interpreter(self._base))
        return f"{spec.command} {interpreter} {quote(self._program)} once {REQUEST_NAME} {quote(self._fallback)}"

    @staticmethod
    def _request(spec: TaskSpec, sandbox: str, path_of: Callable[[str], str]) -> dict[str, Any]:
        return {"function": path_of(spec.function), "serialize": spec.serialize_output,
                "modules": spec.preload, "arguments_file": path_of(spec.arguments_file) if spec.arguments_file else "",
                "result": f"{sandbox}/{RESULT_REMOTE}"}

    def kill(self, interpreter: Interpreter, run: int) -> None:
        """SIGKILL one task; the interpreter reports its end. With the interpreter gone, its end is reported anyway."""
        interpreter.send_kill(run)

    def died(self, interpreter: Interpreter) -> list[int]:
        """Clean up after a dead interpreter; returns the runs it takes with it."""
        if self._by_key.get(interpreter.key) is interpreter:
            del self._by_key[interpreter.key]
            if not interpreter.ready and interpreter.key.preload:
                self._deadly.add(interpreter.key)
        self._forget(interpreter.link.fileno())
        interpreter.link.close()
        Children.kill_group(interpreter.pid)
        for pid in interpreter.pids.values():
            Children.kill_group(pid)
        runs = sorted(interpreter.runs)
        interpreter.runs.clear()
        return runs

    def interpreters(self) -> list[Interpreter]:
        return list(self._by_key.values())

    def close(self) -> None:
        for interpreter in self.interpreters():
            self.died(interpreter)

    def _start(self, key: Key) -> Interpreter:
        self._unpack_program()
        self._retire_idle()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        env = {**self._base, **_ONE_THREAD} if key.preload else dict(self._base)
        for name, value in key.starting:
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
        log_path = f"{self._root}/temp/python.{theirs.fileno()}.log"
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            argv = [key.program, self._program, "serve", str(theirs.fileno()), self._fallback,
                    "each" if key in self._deadly else "fork", *key.preload]
            env.pop(_BIND, None)
            pid = self._children.start(argv, self._root, {**env, _BIND: "1"}, log, keep=(theirs.fileno(),))
        except SandboxError:
            ours.close()
            raise
        finally:
            os.close(log)
            theirs.close()
        interpreter = Interpreter(key, pid, ours, log_path, env)
        self._watch(ours.fileno(), interpreter)
        return interpreter

    def _retire_idle(self) -> None:
        """Make place for one more by ending those that have nothing to do, the longest unused first."""
        for interpreter in self.interpreters():
            if len(self._by_key) < MAX_INTERPRETERS:
                return
            if not interpreter.runs:
                interpreter.ready = True    # it is not its modules' fault
                self.died(interpreter)

    def _unpack_program(self) -> None:
        """Put the interpreter's program into the workspace: inside a zipapp it is not a file."""
        if self._program:
            return
        import importlib.util

        here: Any = __spec__.loader     # get_data() reads from a directory and from a zip alike
        source = here.get_data(os.path.join(os.path.dirname(__file__), "pyserver.py"))
        path = f"{self._root}/temp/taskvine_pyserver.py"
        with open(path, "wb") as file:
            file.write(source)
        found = importlib.util.find_spec("cloudpickle")
        self._fallback = os.path.dirname(os.path.dirname(found.origin)) if found and found.origin else self._root
        self._program = path


def default_interpreter(environ: Mapping[str, str]) -> str:
    """The environment's interpreter when the worker runs inside one (reference, section 4.5), else the worker's own."""
    prefix = environ.get("PONCHO_PREFIX", "")
    if prefix and os.access(f"{prefix}/bin/python3", os.X_OK):
        return f"{prefix}/bin/python3"
    return sys.executable or "/usr/bin/python3"

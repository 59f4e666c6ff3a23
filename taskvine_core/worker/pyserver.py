"""The program inside a task's Python interpreter: a warm one that forks per task, or one run once.

Owns loading and calling user code. Runs under interpreters that have neither this package nor msgpack, so it uses
nothing but the standard library (Python >= 3.8) and cloudpickle. The warm process itself never unpickles anything:
only its children, one per task, do.

Every page that a fresh child or, after a fork, its parent touches costs a fault: that is why the code between fork and
call avoids Python code and objects it can do without.

Modules it is told to preload it imports by name, before it serves; what it could not import (or not in a way that
allows forking) each child imports itself, and fails there with the real traceback.

    pyserver.py serve <socket fd> <fallback dir of cloudpickle> <fork|each> <module>...
    pyserver.py once <request file> <fallback dir of cloudpickle>

Requests on the socket: a HEADER struct (length of the variables, length of the request, id), then both, marshalled;
an empty request kills. The variables are those most tasks have in common: they are set in the parent when they change,
which spares each child the work. The request only its child looks into.
Answers: REPLY structs (kind, id, pid or exit code, cpu microseconds, peak memory KB).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps in enums
import _socket  # without what `socket` brings along
import atexit
import marshal
import os
import pickle
import select
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable  # noqa: UP035

    Request = dict[str, Any]

REPLY = struct.Struct("<iqqqq")
READY, STARTED, ENDED, NO_FORK = 0, 1, 2, 3
HEADER = struct.Struct("<IIq")
RECEIVE_BYTES = 1 << 16     # more, and the C library maps and unmaps it each time
PR_SET_PDEATHSIG = 1
#: An import that takes longer (it hangs) is left to the tasks, which have time limits of their own.
PRELOAD_LIMIT_S = 300
#: How long the news of a fork may wait: it only matters for tasks that run longer.
HOLD_BACK_MS = 50
STDOUT_NAME = ".taskvine.stdout"
#: Each task has its own: here already, so that a child only replaces them.
OWN_VARIABLES = ("VINE_SANDBOX", "TMPDIR", "TEMP", "TMP")
#: Set by the worker: functions of the C library are bound when it starts instead of anew in every child.
BIND_VARIABLE = "LD_BIND_NOW"
#: How often a piece of code runs until the interpreter has adapted it and no longer writes to it.
WARM_UP_CALLS = 20
#: Results of these types need no cloudpickle: the C pickler gives the same bytes.
PLAIN = frozenset((type(None), bool, int, float, str, bytes))
PICKLE_PROTOCOL = 5
#: Modules with handlers for forks that the server's own forks do not need.
RESTING = frozenset(("threading", "logging"))
#: Not empty in a child of the server: what runs is a task.
IN_TASK: list[bool] = []


def load_cloudpickle(fallback: str) -> Any:
    """Import cloudpickle from the interpreter's own packages, else from where the worker has it."""
    try:
        import cloudpickle
    except ImportError:
        sys.path.append(fallback)
        try:
            import cloudpickle
        finally:
            sys.path.remove(fallback)
    return cloudpickle


def load_for_forking(fallback: str) -> Any:
    """``load_cloudpickle`` with what it registers for forks and for the end kept out of the way of the children.

    What threading and logging do in each child of ours is for nothing: this process has one thread, which holds no
    lock when it forks. In children that a task forks itself they do it.
    """
    real = os.register_at_fork

    def register(**handlers: Callable[[], object]) -> None:
        real(**{when: resting(handler) if getattr(handler, "__module__", "") in RESTING else handler
                for when, handler in handlers.items()})

    os.register_at_fork = register  # type: ignore[assignment]
    try:
        cloudpickle = load_cloudpickle(fallback)
    finally:
        os.register_at_fork = real
    import logging

    atexit.unregister(logging.shutdown)     # finish() calls it when there is something to shut down
    return cloudpickle


def resting(handler: Callable[[], object]) -> Callable[[], None]:
    """The handler of a fork, idle until this process is a task."""
    def run() -> None:
        if IN_TASK:
            handler()
    return run


def call(request: Request, cloudpickle: Any) -> None:
    """Run one task's function in this process; returns the exit code. The result goes to ``request["result"]``."""
    for name in request["modules"]:
        __import__(name)
    function = cloudpickle.loads(read_file(request["function"]))
    if request["arguments_file"]:
        args, kwargs = cloudpickle.loads(read_file(request["arguments_file"]))
    else:
        args, kwargs = cloudpickle.loads(request["arguments"]) if request["arguments"] else ((), {})
    value = function(*args, **kwargs)
    if request["serialize"]:
        data = pickle.dumps(value, PICKLE_PROTOCOL) if type(value) in PLAIN else cloudpickle.dumps(value)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        data = value
    else:
        raise TypeError("output serialization is disabled for this task, so its function must return bytes, not "
                        + type(value).__name__)
    write_file(request["result"], data)


def read_file(path: str) -> bytes:
    """A whole file; ``open`` costs a fresh child three times as much in copied pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        data = os.read(fd, size)
        while len(data) < size:
            more = os.read(fd, size - len(data))
            if not more:
                break
            data += more
    finally:
        os.close(fd)
    return data


def write_file(path: str, data: Any) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(fd, view):]
    finally:
        os.close(fd)


def change_environment(changes: dict[bytes, bytes | None]) -> None:
    """Set variables, and remove those given as None. What ``os.environ`` does, without its Python code."""
    known = os.environ._data  # type: ignore[attr-defined]
    for name, value in changes.items():
        if value is not None:
            os.putenv(name, value)
            known[name] = value
        elif name in known:
            os.unsetenv(name)
            del known[name]


def guarded(request: Request, cloudpickle: Any) -> int:
    """``call`` with what an interpreter does around a script: tracebacks, SystemExit, exit handlers."""
    code = 0
    try:
        call(request, cloudpickle)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            code = (leaving.code or 0) & 0xFF
        else:
            print(leaving.code, file=sys.stderr)
            code = 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finish()
    return code


def finish(exit_handlers: bool = True) -> None:
    """Wait for threads, run exit handlers, write what is buffered."""
    try:
        threading = sys.modules.get("threading")
        if threading is not None and len(threading._active) > 1:
            threading._shutdown()
        if exit_handlers and atexit._ncallbacks():
            atexit._run_exitfuncs()
        logging = sys.modules.get("logging")
        if logging is not None and logging._handlerList:
            logging.shutdown()
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - contextlib is Python code, more pages to touch
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


class Server:
    """The warm interpreter: reads requests, forks, waits, answers."""

    def __init__(self, link: _socket.socket, cloudpickle: Any, unloaded: list[str]) -> None:
        self.link = link
        self.unloaded = unloaded
        self.cloudpickle = cloudpickle
        self.pids: dict[int, int] = {}          # id -> pid
        self.ids: dict[int, int] = {}           # pid -> id
        self.buffer = b""
        self.unsent = b""
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        self.prctl = load_prctl()
        self.own_fds = (link.fileno(), self.wake_read, self.wake_write)
        self.shared = b""                   # the variables last set in this process

    def run(self) -> None:
        _signal.signal(_signal.SIGCHLD, "".format)      # nothing to do, and no Python code to do it
        _signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        poll.register(self.wake_read, select.POLLIN)
        self.answer(READY, 0, os.getpid())
        while True:
            ready = poll.poll(HOLD_BACK_MS if self.unsent else None)
            for fd, _ in ready:
                if fd == self.wake_read:
                    self.reap()
                elif not self.read():
                    return
            if not ready:
                self.flush()

    def answer(self, kind: int, number: int, value: int, cpu_us: int = 0, rss_kb: int = 0) -> None:
        """Tell the worker. STARTED waits a little for company: waking the worker costs more than a short task."""
        self.unsent += REPLY.pack(kind, number, value, cpu_us, rss_kb)
        if kind != STARTED:
            self.flush()

    def flush(self) -> None:
        self.link.sendall(self.unsent)
        self.unsent = b""

    def read(self) -> bool:
        """Take requests; False when the worker is gone."""
        data = self.link.recv(RECEIVE_BYTES)
        if not data:
            return False
        if self.buffer:
            data = self.buffer + data
        start = 0
        while len(data) - start >= HEADER.size:
            shared, size, number = HEADER.unpack_from(data, start)
            middle = start + HEADER.size + shared
            if len(data) < middle + size:
                break
            if size:
                self.share_environment(data[middle - shared:middle])
                self.fork(number, data[middle:middle + size])
            elif number in self.pids:
                kill_group(self.pids[number])
                os.kill(self.pids[number], _signal.SIGKILL)  # a child that has no group of its own yet
            start = middle + size
        self.buffer = data[start:]
        return True

    def share_environment(self, changes: bytes) -> None:
        """Set here what the next tasks are likely to have, too."""
        if changes != self.shared:
            change_environment(marshal.loads(changes))
            self.shared = changes

    def fork(self, number: int, body: bytes) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.answer(NO_FORK, number, error.errno or 0)
            return
        if pid == 0:
            code = 1
            try:
                request = marshal.loads(body)
                self.become_task(parent, request)
                request["modules"] = self.unloaded
                code = guarded(request, self.cloudpickle)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        self.pids[number] = pid
        self.ids[pid] = number
        self.answer(STARTED, number, pid)

    def become_task(self, parent: int, request: Request) -> None:
        """In the child: own session, no descriptor of the server, the task's directory, streams and environment."""
        IN_TASK.append(True)
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        self.prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()
        for fd in self.own_fds:
            os.close(fd)
        sandbox = request["sandbox"]
        os.chdir(sandbox)
        out = os.open(STDOUT_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        change_environment(request["env"])
        sys.path.insert(0, sandbox)
        forget_what_children_must_not_share()

    def reap(self) -> None:
        try:  # noqa: SIM105 - see finish()
            os.read(self.wake_read, 4096)
        except BlockingIOError:
            pass
        while self.ids:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            kill_group(pid)             # while the zombie still keeps the number
            _, status, usage = os.wait4(pid, 0)
            number = self.ids.pop(pid, None)
            if number is None:
                continue
            del self.pids[number]
            code = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            self.answer(ENDED, number, code, int((usage.ru_utime + usage.ru_stime) * 1e6), usage.ru_maxrss)


def forget_what_children_must_not_share() -> None:
    """Undo what a preloaded module worked out for the parent: the directory for temporary files, random numbers."""
    modules = sys.modules
    if "tempfile" in modules:
        modules["tempfile"].__dict__["tempdir"] = None
    if "numpy.random" in modules:
        modules["numpy.random"].seed()      # the standard library does this by itself


def kill_group(pid: int) -> None:
    try:  # noqa: SIM105 - see finish()
        os.killpg(pid, _signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def load_prctl() -> Callable[[int, int], Any]:
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda *_: 0
    return lambda option, value: prctl(option, value, 0, 0, 0)


def give_back_memory() -> None:
    """Return what is free: every page of this process is looked at by each fork and each end of a child."""
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        pass                            # not the GNU C library


def preload(modules: list[str]) -> list[str]:
    """Import modules; returns those that could not be."""
    def give_up(*_: object) -> None:
        raise TimeoutError("the import takes too long")

    unloaded = []
    _signal.signal(_signal.SIGALRM, give_up)
    _signal.alarm(PRELOAD_LIMIT_S)
    for name in modules:
        try:
            __import__(name)
        except BaseException:       # a child will say why
            unloaded.append(name)
    _signal.alarm(0)
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    return unloaded


def warm_up(cloudpickle: Any) -> None:
    """Use once in the parent what every child uses: what is allocated, cached or adapted by that, no child repeats."""
    function = cloudpickle.dumps(eval("lambda: None", {}))
    arguments = pickle.dumps([(), {}], PICKLE_PROTOCOL)
    for _ in range(WARM_UP_CALLS):
        args, kwargs = cloudpickle.loads(arguments)
        value = cloudpickle.loads(function)(*args, **kwargs)
        cloudpickle.dumps(value)
        pickle.dumps(value, PICKLE_PROTOCOL)
        change_environment({})
        finish(exit_handlers=False)


def has_threads() -> bool:
    """Did an import start threads? A child has none of them, but the locks they held at the fork."""
    try:
        return len(os.listdir("/proc/self/task")) > 1
    except OSError:
        return False


def serve(fd: int, fallback: str, mode: str, modules: list[str]) -> None:
    import gc
    import traceback  # noqa: F401  (loaded once here instead of in every failing task)

    os.environ.pop(BIND_VARIABLE, None)
    cloudpickle = load_for_forking(fallback)
    unloaded = preload(modules) if mode == "fork" else modules
    if mode == "fork" and has_threads():
        os.execv(sys.executable, [sys.executable, __file__, "serve", str(fd), fallback, "each", *modules])
    change_environment(dict.fromkeys(map(os.fsencode, OWN_VARIABLES), b""))
    link = _socket.socket(fileno=fd)
    link.setblocking(True)
    os.set_inheritable(fd, False)
    warm_up(cloudpickle)
    gc.collect()
    give_back_memory()
    gc.freeze()                         # children do not copy pages only because their collector looked at them
    Server(link, cloudpickle, unloaded).run()


def once(path: str, fallback: str) -> int:
    import base64
    import json

    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        request = json.load(file)
    request["arguments"] = base64.b64decode(request["arguments"])
    sys.path.insert(0, os.getcwd())
    return guarded(request, load_cloudpickle(fallback))


def main(argv: list[str]) -> None:
    del sys.path[0]                     # the directory of this file is nobody's business
    mode, what, fallback = argv[1], argv[2], argv[3]
    sys.argv = [""]
    if mode == "serve":
        serve(int(what), fallback, argv[4], argv[5:])
        os._exit(0)
    code = once(what, fallback)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv)

"""The worker's loop: sockets, children, timers and threads become events; the core's actions are carried out.

Owns all I/O of the loop's thread. Holds no policy: every decision is the core's. Everything the loop waits for is in
one epoll set: the control connection, SIGCHLD's pipe, the mailbox of the threads, the sockets of warm interpreters.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping

from taskvine_core.errors import DiskFullError, IntegrityError, SandboxError, VineError
from taskvine_core.model.tasks import KIND_PYTHON
from taskvine_core.protocol import messages as m
from taskvine_core.protocol.messages import WorkerHello
from taskvine_core.records import NamedTuple
from taskvine_core.worker import events as e
from taskvine_core.worker.children import Children, memory_of, sandbox_of, share_mb
from taskvine_core.worker.core import WorkerCore
from taskvine_core.worker.detect import disk_free_mb
from taskvine_core.worker.encoded import Environments
from taskvine_core.worker.environment import device_names, task_environment
from taskvine_core.worker.finder import Finder
from taskvine_core.worker.jobs import DISK_MARGIN_MB, Jobs
from taskvine_core.worker.line import Line, LineSettings
from taskvine_core.worker.link import Wire
from taskvine_core.worker.pool import Mailbox, Pool
from taskvine_core.worker.sandbox import InputLost, Sandbox, Sandboxes
from taskvine_core.worker.sources import Sources
from taskvine_core.worker.store import Store, tree_size
from taskvine_core.worker.warm import ENDED, NO_FORK, Interpreter, Warm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: One scan of a sandbox may take this long (reference, section 13.6); its partial sum still counts.
DISK_SCAN_S = 3.0
#: Bytes of a watched output read per look.
WATCH_BYTES = 1 << 20
#: Longest time the loop sleeps: bounds the damage of any wake-up that should have come and did not.
MAX_SLEEP_S = 30.0
WAKE_BYTES = 4096
#: A disk with so much room is not asked before every task, but after this time.
DISK_PLENTY_MB = 1024
DISK_CHECK_S = 0.1
#: How long the last messages may take to leave when the worker goes.
LAST_WORDS_S = 2.0
#: How Grid Engine says that an end is near, up to three times each: a second one is no second wish.
NOTICES = (signal.SIGUSR1, signal.SIGUSR2)


class RunnerSettings(NamedTuple):
    """What the loop needs to know besides the core's settings."""

    secret: bytes
    hello: WorkerHello              # with transfer host "" when it is to be our own address
    base_env: Mapping[str, str]
    task_wrapper: str = ""
    gpu_devices: tuple[str, ...] = ()   # what CUDA calls GPU 0, 1, ... of this worker
    wire: Wire = Wire()
    parent_pid: int = 0             # leave when this process is gone; 0 = do not care
    debug: Callable[[object], None] | None = None


class Active(NamedTuple):
    """A run with a sandbox. ``pid`` 0: it runs in ``interpreter``."""

    box: Sandbox
    pid: int
    interpreter: Interpreter | None
    start: e.StartRun


class Runner:
    """Carries out what one WorkerCore decides until it says Exit.

    Args:
        core: decides.
        settings: see RunnerSettings.
        root: workspace directory.
        store: the cache in it (``delete_later`` must be given ``trash``).
        jobs: transfer threads.
        mailbox: results of threads.
        finder: which manager to try next.
        clock: seconds since the epoch.
        say: prints a line for the user.
    """

    def __init__(self, core: WorkerCore, settings: RunnerSettings, root: str, store: Store, jobs: Jobs,
                 mailbox: Mailbox, finder: Finder, clock: Callable[[], float], say: Callable[[str], None]) -> None:
        self._core = core
        self._settings = settings
        self._root = root
        self._store = store
        self._jobs = jobs
        self._mailbox = mailbox
        self._now = clock
        self._say = say
        self._children = Children()
        self._boxes = Sandboxes(root, store)
        self._environments = Environments(settings.base_env)
        self._disk_pool = Pool("disk", 2)
        self._active: dict[int, Active] = {}
        self._run_of_pid: dict[int, int] = {}
        self._live_paths: set[str] = set()
        self._events: deque[e.Event] = deque()
        self._to_collect: deque[e.Collect] = deque()
        self._exit: e.Exit | None = None
        self._sources = Sources()
        line = LineSettings(settings.secret, settings.hello, settings.wire, root)
        self._line = Line(line, finder, jobs, self._sources, self._events, clock, say, self._is_busy)
        self._disk_check_at = 0.0
        self._warm = Warm(self._children, root, settings.base_env, self._watch_interpreter, self._sources.forget)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals: deque[int] = deque()
        self._noticed = False
        self._actions: dict[type, Callable[[Any], None]] = {
            e.Send: self._line.send, e.SendReport: self._line.send_report, e.Connect: self._line.connect,
            e.Disconnect: self._line.disconnect, e.StartRun: self._start_run, e.KillRun: self._kill_run,
            e.Collect: self._collect_later, e.DropRun: self._drop_run, e.StoreInline: self._store_inline,
            e.StartFetch: jobs.start_fetch, e.CancelFetch: lambda a: jobs.cancel_fetch(a.job), e.Commit: self._commit,
            e.Discard: lambda a: store.discard(store.transfer_path(a.serial)), e.RemoveObjects: self._remove_objects,
            e.Relevel: lambda a: store.relevel(a.name, a.level), e.StartUpload: jobs.start_upload,
            e.MeasureDisk: self._measure_disk, e.MeasureMemory: self._measure_memory,
            e.MeasureShares: self._measure_shares, e.ReadWatched: self._read_watched,
            e.Exit: self._leave,
        }

    # ------------------------------------------------------------------------------------------- the loop

    def run(self) -> e.Exit:
        """Serve until the core says Exit; returns that action."""
        self._prepare_signals()
        self._sources.watch(self._wake_read, lambda mask: self._on_wake())
        self._sources.watch(self._mailbox.fd, lambda mask: self._on_mail())
        if self._jobs.listener is not None:
            self._sources.watch(self._jobs.listener.fileno(), lambda mask: self._on_first_peer())
        self._events.append(e.Tick())
        try:
            while self._exit is None:
                self._turn()
            return self._exit
        finally:
            self._shut_down()

    def _turn(self) -> None:
        self._digest()
        self._line.flush()
        if self._events or self._exit is not None:
            return
        now = self._now()
        due = self._line.due(self._core.next_wakeup())
        self._sources.poll(max(0.0, min(due - now, MAX_SLEEP_S)))
        now = self._now()
        if now >= due:
            self._events.append(e.Tick())
        self._line.look_at_deadline(now)

    def _is_busy(self) -> bool:
        """More tasks wait here than run, and the worker stays."""
        runs = self._core.runs
        return runs.waiting > len(runs.active) and self._exit is None

    def _digest(self) -> None:
        handle, actions, events, debug = self._core.handle, self._actions, self._events, self._settings.debug
        while self._exit is None:
            if not events:
                if not self._to_collect:
                    return
                self._collect_next()
                continue
            event = events.popleft()
            if debug is not None:
                debug(event)
            for action in handle(event, self._now()):
                if debug is not None:
                    debug(action)
                actions[type(action)](action)

    def _prepare_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *NOTICES):
            signal.signal(number, lambda got, frame: self._signals.append(got))

    def _on_first_peer(self) -> None:
        """Somebody wants to fetch from here: most workers never see that and never load what answers."""
        if self._jobs.listener is not None:
            self._sources.forget(self._jobs.listener.fileno())
            self._jobs.serve_peers()

    def _on_mail(self) -> None:
        for event in self._mailbox.drain():
            if type(event) is e.Collected:
                self._finish_run(event.run)
            elif type(event) is e.FetchEnded:
                self._jobs.fetch_ended(event.job)
            self._events.append(event)

    def _on_wake(self) -> None:
        """A signal came: which one does not matter, everything is looked at."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, WAKE_BYTES)
        orphaned = self._settings.parent_pid and os.getppid() != self._settings.parent_pid
        while self._signals:
            number = self._signals.popleft()
            if number in NOTICES:
                if self._noticed:
                    continue
                self._noticed = True
            why = "the parent process is gone" if orphaned else "sigterm"
            self._events.append(e.Terminate(why, number == signal.SIGINT))
        self._reap()

    # ------------------------------------------------------------------------------------------- runs

    def _start_run(self, action: e.StartRun) -> None:
        box = None
        try:
            self._check_disk()
            box = self._boxes.make("mini" if action.is_mini else "task")
            self._boxes.fill(box, action.spec)
            active = self._spawn(action, box)
        except InputLost as error:
            self._start_failed(action.run, box, str(error), (error.name,))
        except (VineError, OSError, ValueError) as error:      # ValueError: text no system call takes (NUL)
            self._start_failed(action.run, box, str(error), ())
        else:
            self._active[action.run] = active
            self._live_paths.add(active.box.path)
            self._events.append(e.Started(action.run))

    def _check_disk(self) -> None:
        """On a full disk what a task writes is lost, often without a failure: it should run elsewhere, or later."""
        now = self._now()
        if now < self._disk_check_at:
            return
        free_mb = disk_free_mb(self._root)
        if free_mb > DISK_PLENTY_MB:
            self._disk_check_at = now + DISK_CHECK_S
        if free_mb < DISK_MARGIN_MB:
            raise DiskFullError(f"only {free_mb} MB are free on the worker's disk, a task needs {DISK_MARGIN_MB}",
                                hint="free space where the worker's workspace is")

    def _start_failed(self, run: int, box: Sandbox | None, reason: str, lost: tuple[str, ...]) -> None:
        if box is not None:
            box.reusable = False
            self._boxes.drop(box)
        self._events.append(e.StartFailed(run, reason, lost))

    def _spawn(self, action: e.StartRun, box: Sandbox) -> Active:
        spec = action.spec
        devices = device_names(action.gpus, self._settings.gpu_devices)
        command = spec.command
        if spec.kind == KIND_PYTHON:
            if not (spec.interpreter or spec.command or self._settings.task_wrapper):
                env = task_environment(self._settings.base_env, spec, action.allocation, devices, box.path)
                interpreter = self._warm.submit(action.run, spec, box.path, env, self._store.path_of)
                return Active(box, 0, interpreter, action)
            command = self._warm.once_command(spec, box.path, self._store.path_of)
        if self._settings.task_wrapper:
            command = f"{self._settings.task_wrapper} {command}"
        encoded = self._environments.encoded(spec, action.allocation, devices, box.path)
        pid = self._children.start_command(command, box.path, encoded, box.stdout_fd)
        self._run_of_pid[pid] = action.run
        return Active(box, pid, None, action)

    def _kill_run(self, action: e.KillRun) -> None:
        active = self._active.get(action.run)
        if active is None:
            return
        if active.interpreter is not None:
            self._warm.kill(active.interpreter, action.run)
        else:
            self._children.kill_group(active.pid)

    def _reap(self) -> None:
        ended = self._children.reap()
        over = [(self._run_of_pid.pop(one.pid), one) for one in ended if one.pid in self._run_of_pid]
        self._end_runs([run for run, _ in over])
        for run, one in over:
            self._events.append(e.Exited(run, one.exit_code, one.cpu_s, one.max_rss_mb))

    def _end_runs(self, runs: list[int]) -> None:
        """The main processes of these runs are dead: so must be everything they started."""
        boxes = [self._active[run].box for run in runs]
        for box in boxes:
            self._live_paths.discard(box.path)
        if self._sweep():
            for box in boxes:
                box.reusable = False    # its last process may still be dying

    def _sweep(self) -> bool:
        """Kill what finished runs left behind; True when there was something."""
        return self._children.sweep(self._belongs_to_live_run) > 0

    def _belongs_to_live_run(self, pid: int) -> bool:
        path = sandbox_of(pid)
        if path.startswith(self._root + "/"):
            return any(path == live or path.startswith(live + "/") for live in self._live_paths)
        return bool(self._live_paths)      # it hides where it comes from: it goes when nothing runs any more

    def _watch_interpreter(self, fd: int, interpreter: Interpreter) -> None:
        self._sources.watch(fd, lambda mask: self._on_interpreter(interpreter))

    def _on_interpreter(self, interpreter: Interpreter) -> None:
        replies = interpreter.receive()
        if replies is None:
            self._on_interpreter_died(interpreter)
            return
        over = [reply for reply in replies if reply.kind in (ENDED, NO_FORK)]
        if over:
            self._end_runs([reply.run for reply in over])
        for reply in over:
            if reply.kind == ENDED:
                self._events.append(e.Exited(reply.run, reply.value, reply.cpu_s, reply.max_rss_mb))
            else:
                why = f"the Python interpreter cannot fork: {os.strerror(reply.value)}"
                self._events.append(e.Exited(reply.run, -1, -1.0, -1, why))

    def _on_interpreter_died(self, interpreter: Interpreter) -> None:
        said = interpreter.last_words()
        runs = self._warm.died(interpreter)
        self._end_runs(runs)
        why = f"the worker's Python interpreter {interpreter.key[0]} died" + (f": {said}" if said else "")
        for run in runs:
            self._events.append(e.Exited(run, -1, -1.0, -1, why))

    # ------------------------------------------------------------------------------------------- outputs

    def _collect_later(self, action: e.Collect) -> None:
        """Outputs wait until nothing can be started any more: what is started runs meanwhile."""
        self._to_collect.append(action)

    def _collect_next(self) -> None:
        action = self._to_collect.popleft()
        active = self._active[action.run]
        if self._boxes.is_large(active.box, action.outputs):
            self._disk_pool.submit(lambda: self._collect_in_thread(action, active.box))
        else:
            self._events.append(self._collected(action, active.box))
            self._finish_run(action.run)

    def _finish_run(self, run: int) -> None:
        active = self._active.pop(run)
        self._boxes.drop(active.box)

    def _collect_in_thread(self, action: e.Collect, box: Sandbox) -> None:
        try:
            event = self._collected(action, box)
        except Exception as error:      # in a thread: whatever goes wrong, the task must be answered
            missing = tuple(order.remote for order in action.outputs)
            event = e.Collected(action.run, b"", 0, "", True, (), missing, f"{type(error).__name__}: {error}")
        self._mailbox.post(event)

    def _collected(self, action: e.Collect, box: Sandbox) -> e.Collected:
        """Move stdout and outputs into the cache. Runs in a thread when they are large."""
        problems, reports, missing = [], [], []
        out = None
        try:
            out = self._boxes.collect_stdout(box, action.stdout_name, action.max_stdout_bytes)
        except (VineError, OSError) as error:
            problems.append(f"stdout: {error}")
        for order in action.outputs:
            report = None
            try:
                report = self._boxes.collect_output(box, order)
            except (VineError, OSError) as error:
                problems.append(f"output {order.remote}: {error}")
            if report is None:
                missing.append(order.remote)
            else:
                reports.append(report)
        head, size, name, cut = out or (b"", 0, "", True)
        return e.Collected(action.run, head, size, name, cut, tuple(reports), tuple(missing), "; ".join(problems))

    def _drop_run(self, action: e.DropRun) -> None:
        active = self._active.pop(action.run, None)
        if active is not None:
            self._boxes.drop(active.box)

    # ------------------------------------------------------------------------------------------- objects

    def _store_inline(self, action: e.StoreInline) -> None:
        try:
            self._store.put(*action)
        except (IntegrityError, DiskFullError, SandboxError) as error:
            blame = m.BLAME_SOURCE if isinstance(error, IntegrityError) else m.BLAME_SELF
            self._events.appendleft(e.StoreFailed(action.name, blame, str(error), True))

    def _commit(self, action: e.Commit) -> None:
        try:
            self._store.adopt(self._store.transfer_path(action.serial), action.name, action.level, action.mode,
                              action.sha256)
        except VineError as error:
            self._events.appendleft(e.StoreFailed(action.name, m.BLAME_SELF, str(error), False))

    def _remove_objects(self, action: e.RemoveObjects) -> None:
        for name in action.names:
            self._store.remove(name)

    # ------------------------------------------------------------------------------------------- measuring

    def _measure_disk(self, action: e.MeasureDisk) -> None:
        box = self._active[action.run].box
        end = self._now() + DISK_SCAN_S

        def scan() -> None:
            size, _ = tree_size(box.path, lambda: self._now() > end, skip_links=True)
            self._mailbox.post(e.DiskMeasured(action.run, max(0, size - box.copied_bytes) >> 20))

        self._disk_pool.submit(scan)

    def _measure_memory(self, action: e.MeasureMemory) -> None:
        pid = self._pid_of(action.run)
        if pid:
            self._events.append(e.MemoryMeasured(action.run, *memory_of(pid)))

    def _measure_shares(self, action: e.MeasureShares) -> None:
        pids = [(run, self._pid_of(run)) for run in action.runs]
        self._events.append(e.SharesMeasured(tuple([(run, share_mb(pid)) for run, pid in pids if pid])))

    def _pid_of(self, run: int) -> int:
        """The main process of a run; 0 while its interpreter has not said which."""
        active = self._active[run]
        return active.pid or (active.interpreter.pids.get(run, 0) if active.interpreter else 0)

    def _read_watched(self, action: e.ReadWatched) -> None:
        path = f"{self._active[action.run].box.path}/{action.remote}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return                  # not written yet
        try:
            ended = os.fstat(fd).st_size < action.offset
            data = b"" if ended else os.pread(fd, WATCH_BYTES, action.offset)
        finally:
            os.close(fd)
        if data or ended:
            self._events.append(e.WatchRead(action.run, action.name, action.offset, data, ended))

    # ------------------------------------------------------------------------------------------- the end

    def _leave(self, action: e.Exit) -> None:
        if self._exit is None:
            self._exit = action

    def _shut_down(self) -> None:
        """Say what is left to say, end every process."""
        signal.set_wakeup_fd(-1)
        self._line.last_words()
        self._warm.close()
        for active in self._active.values():
            if active.pid:
                self._children.kill_group(active.pid)
        self._live_paths.clear()
        self._children.finish(LAST_WORDS_S)
        self._jobs.close()

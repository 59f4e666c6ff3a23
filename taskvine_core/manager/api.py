"""``Manager``: the public face of a manager (reference, section 3).

Owns creation and closing; the calls themselves are in the mixins. Must not hold policy: that is the core's.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskvine_core.constants import VINE_DEFAULT_PORT
from taskvine_core.errors import StartError, UsageError, UsageTypeError, VineError
from taskvine_core.logs.logbook import LogBook
from taskvine_core.logs.rundir import create_run_directory
from taskvine_core.manager import checks, metrics, setup
from taskvine_core.manager.advert import LOOPBACK, Advert
from taskvine_core.manager.conveniences import ConveniencesMixin
from taskvine_core.manager.declare import FileTable
from taskvine_core.manager.events import TaskOutcome
from taskvine_core.manager.file import FileHome
from taskvine_core.manager.mini_tasks import MiniTaskMixin
from taskvine_core.manager.policy import PolicyMixin
from taskvine_core.manager.python_files import PythonFiles
from taskvine_core.manager.runner import ManagerRunner, RunnerSettings
from taskvine_core.manager.stats import FIELDS, ManagerStats
from taskvine_core.manager.task import Task
from taskvine_core.secret import INSECURE_SECRET, load_secret
from taskvine_core.tls import fingerprint

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskvine_core.manager.cached_result import CachedTaskResult
    from taskvine_core.manager.caching import ResultCache
    from taskvine_core.manager.core import ManagerCore
    from taskvine_core.manager.display import StatusDisplay


class Manager(PolicyMixin, MiniTaskMixin, ConveniencesMixin):
    """Runs tasks on the workers that connect to it.

    Args:
        port: number, 0 for any free one, or (low, high) for the first free one of a closed range.
        name: project name under which workers, factories and status tools find it; None: not advertised.
        shutdown: tell workers to exit, not only to disconnect, when the manager is closed.
        run_info_path: directory with one sub-directory per run.
        run_info_template: strftime pattern of the sub-directory; an absolute path is used as it is.
        staging_path: where temporary files of the manager go instead of the run's directory.
        ssl: (key_file, cert_file), True for a self-signed pair, None for none. Without it links are authenticated
            and protected against change, but can be read.
        init_fn: called with the manager once it is ready.
        status_display_interval: show a status table at most so often (s) during wait; None or < 1: never.
        prometheus_port: serve the statistics at ``/metrics`` of this port, to everybody who can reach it; None: not.
        insecure: no secret: workers and status tools of anybody on this machine may connect with ``--insecure``. Binds
            the loopback address only. For containers and tests without a home.

    Raises:
        StartError: (an Exception) it cannot be created: port in use, directory not writable, ...
        ImportError: ``prometheus_port`` without the package prometheus_client. RuntimeError: that port is in use.
        UsageError, UsageTypeError: an argument is wrong.
    """

    def __init__(self, port: int | Sequence[int] = VINE_DEFAULT_PORT, name: str | None = None, shutdown: bool = False,
                 run_info_path: str | os.PathLike[str] = "vine-run-info", run_info_template: str | None = None,
                 staging_path: str | os.PathLike[str] | None = None,
                 ssl: tuple[str | None, str | None] | bool | None = None,
                 init_fn: Callable[[Self], Any] | None = None,
                 status_display_interval: float | None = None, prometheus_port: int | None = None, *,
                 insecure: bool = False) -> None:
        ports = setup.port_range(port)
        if name is not None:
            checks.text(name, "name")
        if init_fn is not None and not callable(init_fn):
            raise UsageTypeError(f"init_fn must be callable, not {init_fn!r}")
        display = _display(status_display_interval)
        metrics.check_port(prometheus_port)
        self._tasks: dict[int, Task] = {}
        self._finished: dict[int, TaskOutcome] = {}
        self._stats = ManagerStats()
        self._stats_due = 0.0
        self._peer_transfers = True
        self._results: ResultCache | None = None
        self._hits: list[CachedTaskResult] = []
        self._table = FileTable()
        self._display = display
        try:
            self._start(ports, name, bool(shutdown), run_info_path, run_info_template, staging_path, ssl,
                        bool(insecure))
        except (UsageError, UsageTypeError):
            raise
        except (VineError, OSError) as error:
            text = f"the manager could not be created: {error}"
            sys.stderr.write(f"taskvine: {text}\n")
            raise StartError(text) from error
        setup.relax_collector()
        self._home = FileHome(self._runner, str(self._run.staging))
        self._python = PythonFiles(self._home)
        self._refresh_stats()
        self._metrics_port = prometheus_port
        if prometheus_port is not None:
            self._serve_metrics(prometheus_port)
        if name is not None:
            self.update_catalog()
        if init_fn is not None:
            init_fn(self)

    def _start(self, ports: tuple[int, int], name: str | None, shutdown: bool,
               run_info_path: str | os.PathLike[str], run_info_template: str | None,
               staging_path: str | os.PathLike[str] | None, ssl: object, insecure: bool) -> None:
        """Make the run's directory, start the runner, arrange for the end."""
        run = self._run = create_run_directory(os.fspath(run_info_path), run_info_template,
                                               None if staging_path is None else os.fspath(staging_path))
        tls = self._tls = setup.tls_files(ssl, run.runtime)
        peer_key = None if tls is None else setup.peer_key(run.runtime)
        self._peers_possible = tls is None or peer_key is not None
        self._advert = advert = Advert(name, "" if tls is None else fingerprint(tls[1]).hex(), loopback=insecure)
        self._settings = RunnerSettings(
            secret=INSECURE_SECRET if insecure else load_secret(), insecure=insecure, staging=run.staging, ports=ports,
            name=name, tls=tls, peer_key=peer_key, observer=LogBook(run.logs), advertise=advert.publish)
        self._runner = ManagerRunner(self._settings)
        advert.port, advert.manager_id = self._runner.port, self._runner.manager_id
        self._shutdown = setup.Shutdown(self._runner, run, advert, shutdown)
        if ssl is True and tls is not None:
            self._shutdown.own_files.extend(tls)
        self._finalizer = weakref.finalize(self, self._shutdown)
        if insecure:
            sys.stderr.write("taskvine: insecure: everybody on this machine can give this manager workers\n")
        if not self._peers_possible:
            self._set_peers(False)

    def _serve_metrics(self, port: int) -> None:
        runner = self._runner   # not self: the server must not keep a manager alive that nobody refers to

        def read(core: ManagerCore, now: float) -> dict[str, float]:
            core.refresh_stats()
            return {name: float(getattr(core.books.stats, name)) for name in FIELDS}

        host = LOOPBACK if self._settings.insecure else "0.0.0.0"
        try:
            self._shutdown.metrics = metrics.MetricsServer(port, host, lambda: runner.call(read))
        except RuntimeError:
            self.close()
            raise

    # ------------------------------------------------------------------ end

    def close(self) -> None:
        """Tell workers to disconnect (or exit), close the logs, remove the staging directory. Harmless when closed."""
        self._finalizer()
        for file in list(self._table.by_name.values()):
            file._end_declaration()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if "_finalizer" in self.__dict__:  # the constructor came that far
            self.close()

    # ------------------------------------------------------------------ properties

    @property
    def name(self) -> str | None:
        """Project name or None."""
        return self._advert.name

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._runner.port

    @property
    def prometheus_port(self) -> int | None:
        """Where the statistics are served, or None."""
        return self._metrics_port

    @property
    def using_ssl(self) -> bool:
        """Are links encrypted?"""
        return self._tls is not None

    @property
    def runtime_directory(self) -> str:
        """Absolute path of this run's directory."""
        return str(self._run.runtime)

    @property
    def logging_directory(self) -> str:
        """Absolute path of this run's logs."""
        return str(self._run.logs)

    @property
    def staging_directory(self) -> str:
        """Absolute path for temporary files of the manager."""
        return str(self._run.staging)

    @property
    def library_logging_directory(self) -> str:
        """Absolute path for logs of libraries."""
        return str(self._run.library_logs)

    @property
    def cache_directory(self) -> str:
        """Absolute path shared by runs with the same run_info_path."""
        return str(self._run.cache)

    @property
    def stats(self) -> ManagerStats:
        """Statistics (section 7.1): one object, brought up to date by this property and by wait."""
        self._refresh_stats()
        return self._stats

    # ------------------------------------------------------------------ Python tasks

    def preload_modules(self, *names: str) -> None:
        """``PythonTask.preload_modules`` for every PythonTask submitted from now on that does not call its own.

        Raises:
            UsageTypeError: (a TypeError) a name is no str.
            UsageError: (a ValueError) it cannot be the name of a module.
        """
        self._python.preload = checks.module_names(names)

    # ------------------------------------------------------------------ results of earlier runs

    def enable_tasks_cache(self, cache_dir: str | os.PathLike[str] = "vine-cache-outputs",
                           log_file: str | os.PathLike[str] = "vine-cache.txlog") -> None:
        """Do not run a task again that has succeeded before: ``wait`` returns a ``CachedTaskResult`` at once.

        Tasks are the same when command or function (with what it uses of the program's own code), arguments,
        environment variables and the content of inputs are. What is kept may be deleted at any time. While this is on,
        ``declare_temp`` gives local files. See the user guide for what is not recognised.

        Args:
            cache_dir: outputs, created when missing.
            log_file: what is known, one JSON object per line.

        Raises:
            UsageTypeError: (a TypeError) one of them is no path.
            UsageError: (a ValueError) one of them cannot be used, or others may write to it.
        """
        from taskvine_core.manager.caching import ResultCache
        from taskvine_core.manager.task_cache import TasksCache

        if not isinstance(cache_dir, str | os.PathLike) or not isinstance(log_file, str | os.PathLike):
            raise UsageTypeError(f"cache_dir and log_file must be paths, not {cache_dir!r} and {log_file!r}")
        self._results = ResultCache(TasksCache(cache_dir, log_file), self._home, list(self._tasks.values()))

    # ------------------------------------------------------------------ logs and display

    def log_txn_app(self, entry: str) -> None:
        """Write an APPLICATION line to the transactions log."""
        text = checks.text(entry, "entry")
        self._runner.call(lambda core, now: core.books.observer.application(now, text))

    def log_debug_app(self, entry: str) -> None:
        """Write an APPLICATION line to the debug log."""
        text = checks.text(entry, "entry")
        self._runner.call(lambda core, now: core.books.observer.application_debug(now, text))

    def application_info(self) -> dict[str, Any] | None:
        """To override: ``{"application_info": {"values": {...}, "units": {...}}}`` for the status display."""
        return None

    def _wait(self, wanted: Callable[[Task], bool] | None, timeout_s: float | None) -> Task | None:
        if self._display is None:
            return super()._wait(wanted, timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            piece_s = self._display.interval if left_s is None else min(left_s, self._display.interval)
            task = super()._wait(wanted, piece_s)
            self._display.update(self)
            if task is not None or self.empty() or (deadline is not None and time.monotonic() >= deadline):
                return task


def _display(interval: float | None) -> StatusDisplay | None:
    if interval is None or checks.number(interval, "status_display_interval") < 1:
        return None
    from taskvine_core.manager.display import StatusDisplay

    return StatusDisplay(interval)

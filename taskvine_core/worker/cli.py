"""``vine_worker``: from a command line to a running worker and an exit status.

Owns the wiring of the parts. Must not decide anything at run time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import sys
from collections.abc import Callable

from taskvine_core.errors import DiscoveryError, VineError
from taskvine_core.protocol.messages import WorkerHello
from taskvine_core.resources import Resources
from taskvine_core.worker import detect
from taskvine_core.worker.children import PR_SET_PDEATHSIG, prctl
from taskvine_core.worker.core import CoreSettings, WorkerCore
from taskvine_core.worker.environment import base_environment
from taskvine_core.worker.finder import Finder
from taskvine_core.worker.guard import Guard
from taskvine_core.worker.jobs import Jobs, monotonic_epoch
from taskvine_core.worker.life import LifeSettings
from taskvine_core.worker.link import Wire
from taskvine_core.worker.options import Options, parse, usage
from taskvine_core.worker.pool import Mailbox, Pool
from taskvine_core.worker.runner import Runner, RunnerSettings
from taskvine_core.worker.store import Store
from taskvine_core.worker.workspace import Workspace, open_workspace

VERSION = "0.1.0"


def say(text: str) -> None:
    """One line for whoever reads the worker's output; a closed pipe is no reason to die."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run a worker; returns the exit status: 0 for an orderly end, 1 for an error."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options = parse(words, os.environ)
        if options.show:
            say(usage() if options.show == "help" else f"vine_worker {VERSION}")
            return 0
        return _in_package(options, words) if options.poncho_env else _serve(options)
    except VineError as error:
        print(f"vine_worker: {error}", file=sys.stderr)
        return 1


def _in_package(options: Options, words: list[str]) -> int:
    """Serve inside the environment package: as the process that is there already, or by becoming it."""
    from taskvine_core.worker import package

    held = package.inside(os.environ)
    if held is None:
        say(f"vine_worker: unpacking {options.poncho_env}")
        package.enter(options.poncho_env, words, os.environ)
    try:
        return _serve(options)
    finally:
        held.leave()


def _serve(options: Options) -> int:
    parent_pid = 0
    if options.parent_death:
        parent_pid = os.getppid()
        prctl(PR_SET_PDEATHSIG, signal.SIGUSR2)
        if os.getppid() != parent_pid:
            raise DiscoveryError("the parent process is gone already", hint="start without --parent-death")
    workspace = open_workspace(options.workspace, options.keep_workspace, os.environ)
    say(f"vine_worker: creating workspace {workspace.path}")
    guard = Guard(workspace.path)
    try:
        leaving = _build(options, workspace, parent_pid).run()
    finally:
        guard.dismiss()
        os.chdir("/")
        workspace.close()
    if leaving.status:
        print(f"vine_worker: {leaving.reason}", file=sys.stderr)
    else:
        say(f"vine_worker: leaving: {leaving.reason}")
    return leaving.status


def _secret(options: Options) -> bytes:
    from taskvine_core import secret

    return secret.INSECURE_SECRET if options.insecure else secret.load_secret(options.password or None)


def _build(options: Options, workspace: Workspace, parent_pid: int) -> Runner:
    clock = monotonic_epoch()
    now = clock()
    secret = _secret(options)
    trash = Pool("trash", 1)
    store = Store(workspace.path, lambda path: trash.submit(_remover(path)))
    kept = store.load() if workspace.adopted else ()
    total, gpus = _offer(options, workspace.path)
    models = sorted({gpu.model for gpu in gpus if gpu.model})
    mailbox = Mailbox()
    jobs = Jobs(store, mailbox, secret, options.max_transfers, clock)
    end_time = now + options.wall_time_s if options.wall_time_s else 0.0
    worker_id = "worker-" + hashlib.md5(os.urandom(16), usedforsecurity=False).hexdigest()
    life = LifeSettings(options.idle_timeout_s, options.connect_timeout_s, options.min_backoff_s,
                        options.max_backoff_s, now, end_time, options.single_shot)
    core = WorkerCore(CoreSettings(total, worker_id[7:19], options.max_transfers, life), kept, now)
    hello = _hello(options, worker_id, total, models, end_time, _listen(options, jobs))
    base = base_environment(os.environ, f"{workspace.path}/temp")
    wire = Wire(options.tcp_window_size, options.tls_sni)
    devices = detect.device_list(total.gpus, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    settings = RunnerSettings(secret, hello, base, options.task_wrapper, devices, wire, parent_pid, _debug(options))
    finder = Finder(options)
    return Runner(core, settings, workspace.path, store, jobs, mailbox, finder, clock, say)


def _debug(options: Options) -> Callable[[object], None] | None:
    if not options.debug:
        return None
    from taskvine_core.worker.debug import DebugLog

    return DebugLog(options.debug_file, options.debug_rotate_max)


def _remover(path: str) -> Callable[[], None]:
    def remove() -> None:
        from taskvine_core.dataplane.objects import remove_object

        try:
            remove_object(path)
        except OSError as error:
            say(f"vine_worker: cannot delete {path}: {error}")

    return remove


def _offer(options: Options, path: str) -> tuple[Resources, list[detect.Gpu]]:
    """What the worker offers, and the GPUs that were found and are among that."""
    found = detect.gpus(os.environ) if options.gpus else []
    cores = options.cores if options.cores >= 0 else detect.cores()
    memory = options.memory_mb if options.memory_mb >= 0 else detect.memory_mb()
    disk = options.disk_mb if options.disk_mb >= 0 else int(detect.disk_free_mb(path) * options.disk_percent / 100)
    gpus = options.gpus if options.gpus >= 0 else len(found)
    say(f"vine_worker: using {cores} cores, {memory} MB memory, {disk} MB disk, {gpus} gpus")
    for name in sorted({gpu.model for gpu in found[:gpus] if gpu.model}):
        say(f'vine_worker: gpu is called feature "{name}"')
    return Resources(cores, memory, disk, gpus), found[:gpus]


def _listen(options: Options, jobs: Jobs) -> int:
    """The port peers fetch from; 0 when none could be opened: the worker works all the same."""
    low, high = options.transfer_ports
    host = "127.0.0.1" if options.insecure else ""
    try:
        return jobs.listen(host, range(low, high + 1) if high > low else low)
    except (VineError, OSError) as error:
        print(f"vine_worker: other workers cannot fetch from here: {error}", file=sys.stderr)
        return 0


def _hello(options: Options, worker_id: str, total: Resources, models: list[str], end_time: float,
           port: int) -> WorkerHello:
    system = os.uname()
    hostname = socket.gethostname()
    host, colon, contact_port = options.contact.rpartition(":") if ":" in options.contact else (options.contact, "", "")
    if not host and options.connection_mode == "by_hostname":
        host = hostname
    return WorkerHello(worker_id, hostname, options.os or system.sysname, options.arch or system.machine, VERSION,
                       tuple(dict.fromkeys((*options.features, *models))), total, host,
                       int(contact_port) if colon and port else port, end_time, options.idle_timeout_s,
                       options.from_factory, options.factory_job)


if __name__ == "__main__":
    sys.exit(main())

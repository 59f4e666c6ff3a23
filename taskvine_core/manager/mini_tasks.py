"""Mini-tasks: files made where they are needed, by running a command (reference, section 3.4).

Owns the command lines of the ready-made ones. Must not know how files reach workers.
"""

from __future__ import annotations

import shlex

from taskvine_core.constants import VINE_CACHE_LEVEL_WORKER, VINE_MINI_TASK
from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager import checks, naming
from taskvine_core.manager.declare import DeclareMixin
from taskvine_core.manager.file import File
from taskvine_core.manager.python_task import PythonTask
from taskvine_core.manager.task import Task
from taskvine_core.model.files import FileDecl

_Cache = bool | str | None


class MiniTaskMixin(DeclareMixin):
    """Declarations of files that a command makes."""

    def declare_minitask(self, minitask: Task, source: str, cache: _Cache = False, peer_transfer: bool = True) -> File:
        """A file made where it is needed, by running ``minitask``.

        Args:
            minitask: a Task with inputs and without outputs.
            source: the name, in its sandbox, of the file or directory it leaves.
        """
        if not isinstance(minitask, Task) or not minitask.command or isinstance(minitask, PythonTask):
            raise UsageTypeError(f"minitask must be a Task with a shell command, not {minitask!r}")
        checks.remote_name(source, "mini-task product (source)")
        if minitask._outputs:
            raise UsageError("minitask must not have outputs", hint="name what it leaves as source instead")
        level = checks.cache_level(cache)
        needs = tuple(file for file, _, _ in minitask._inputs or ())
        spec = minitask.freeze()
        name = naming.mini_task_name(spec, source, level)
        known = self._known(name)
        if known is not None:
            return known
        return self._keep(File(self._home, FileDecl(
            name, VINE_MINI_TASK, "", level, peer_transfer=bool(peer_transfer), mini_task=spec, mini_source=source),
            label=source, auto=level < VINE_CACHE_LEVEL_WORKER, needs=needs))

    def declare_mini_task(self, minitask: Task, source: str, cache: _Cache = False, peer_transfer: bool = True) -> File:
        """Other spelling of ``declare_minitask``."""
        return self.declare_minitask(minitask, source, cache, peer_transfer)

    def declare_untar(self, tarball: File, cache: _Cache = False, peer_transfer: bool = True) -> File:
        """The directory a tar file (any compression) unpacks to."""
        return self._unpacked(tarball, "mkdir output && tar xf input -C output", "input", cache, peer_transfer)

    def declare_poncho(self, package: File | str, cache: _Cache = False, peer_transfer: bool = True) -> File:
        """An unpacked Poncho environment; ``package`` is a File or the path of the tarball."""
        if not isinstance(package, File):
            package = self.declare_file(package, cache=True)
        return self._unpacked(package, "mkdir output && tar xf package.tar.gz -C output && output/bin/run_in_env true",
                              "package.tar.gz", cache, peer_transfer)

    def declare_starch(self, starch: File | str, cache: _Cache = False, peer_transfer: bool = True) -> File:
        """An unpacked self-extracting starch package."""
        if not isinstance(starch, File):
            starch = self.declare_file(starch, cache=True)
        command = "SFX_DIR=output SFX_EXTRACT_ONLY=1 SFX_EXTRACT_FORCE=1 SFX_UNIQUE=1 sh ./package.sfx"
        return self._unpacked(starch, command, "package.sfx", cache, peer_transfer)

    def declare_xrootd(self, source: str, proxy: File | None = None, env: File | None = None, cache: _Cache = False,
                       peer_transfer: bool = True) -> File:
        """A ``root://`` file that a worker copies with ``xrdcp``.

        Args:
            proxy: a File with an X.509 proxy.
            env: an unpacked environment that has ``xrdcp``.
        """
        checks.text(source, "source")
        task = Task(f"xrdcp {shlex.quote(source)} output.root")
        if proxy is not None:
            task.add_input(proxy, "proxy509.pem")
            task.set_env_var("X509_USER_PROXY", "proxy509.pem")
        return self._fetched(task, env, "output.root", cache, peer_transfer)

    def declare_chirp(self, server: str, source: str, ticket: File | None = None, env: File | None = None,
                      cache: _Cache = False, peer_transfer: bool = True) -> File:
        """A file of a Chirp server that a worker copies with ``chirp_get``.

        Args:
            ticket: a File with a Chirp ticket.
            env: an unpacked environment that has ``chirp_get``.
        """
        checks.text(server, "server")
        checks.text(source, "source")
        login = "--auth=ticket --tickets=ticket.chirp " if ticket is not None else ""
        task = Task(f"chirp_get {login}{shlex.quote(server)} {shlex.quote(source)} output.chirp")
        if ticket is not None:
            task.add_input(ticket, "ticket.chirp")
        return self._fetched(task, env, "output.chirp", cache, peer_transfer)

    def _unpacked(self, packed: File, command: str, name: str, cache: _Cache, peer_transfer: bool) -> File:
        task = Task(command)
        task.add_input(packed, name)
        return self.declare_minitask(task, "output", cache, peer_transfer)

    def _fetched(self, task: Task, env: File | None, name: str, cache: _Cache, peer_transfer: bool) -> File:
        if env is not None:
            task.add_environment(env)
        return self.declare_minitask(task, name, cache, peer_transfer)

"""`Factory`: a factory started, steered and ended from a Python program.

Owns the process of the `vine_factory` command, its configuration file and the names of its options. Must not import
`vine_factory`: the command line and the file are the whole interface.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from taskvine_core.errors import FactoryStartError, UsageError, UsageNameError

_AT_CREATION = frozenset({"batch-type", "manager-name"})
_COMMAND_LINE = frozenset((
    "amazon-config", "autosize", "batch-options", "batch-type", "capacity", "catalog", "condor-requirements",
    "config-file", "cores", "debug", "debug-file", "debug-file-size", "disk", "env", "extra-options",
    "factory-name", "factory-period", "factory-timeout", "feature", "foremen-name", "gpus", "k8s-image",
    "k8s-worker-image", "manager-name", "max-workers", "memory", "mesos-master", "mesos-path", "mesos-preload",
    "min-workers", "password", "python-env", "python-package", "run-factory-as-manager", "runos", "scratch-dir",
    "single-shot", "ssl", "tasks-per-worker", "timeout", "transfer-port", "worker-binary", "workers-per-cycle",
    "wrapper", "wrapper-input",
))
_DYNAMIC = frozenset((
    "autosize", "capacity", "condor-requirements", "cores", "disk", "factory-timeout", "foremen-name",
    "manager-name", "max-workers", "memory", "min-workers", "tasks-per-worker", "timeout", "workers-per-cycle",
))
_OPTIONS = _COMMAND_LINE | _DYNAMIC
_OWN = frozenset({"scratch_dir", "log_file"})  # attributes with a meaning of their own here

START_WAIT_S = 1.0
"""A factory that is wrongly called has said so within this (published value)."""
STOP_WAIT_S = 60.0
"""Workers get 30 s to leave and the factory some more to see it; after this it is killed."""
_QUOTED_BYTES = 4000
_CONFIG = "config.json"
_SITE = "config-file"


class Factory:
    """Keeps workers running for a manager, from `start` (or ``with``) to `stop`.

    Options are attributes, ``-`` and ``_`` are the same: ``factory.max_workers = 100``. Those of a pool's size can
    be changed while it runs. ``factory.config_file = "site.toml"`` describes the workers in a site file; options then
    are what that file does not say, and changes are made in the file, which is read again while the factory runs.

    Args:
        batch_type: batch system that runs the workers.
        manager: a Manager to serve. With batch_type "local" by its port on this machine, otherwise by its name.
        manager_host_port: "host:port" of the manager to serve.
        manager_name: name (regular expression) of the managers to serve.
        factory_binary: the `vine_factory` program; default: in PATH, or the installed module.
        worker_binary: the worker program; default: the factory's own.
        log_file: where the factory's log goes.

    Raises:
        ValueError: no manager is named, or host:port is malformed.
        OSError: a program does not exist (ENOENT) or may not be executed (EPERM).
    """

    def __init__(self, batch_type: str = "local", manager: Any = None, manager_host_port: str | None = None,
                 manager_name: str | None = None, factory_binary: str | None = None,
                 worker_binary: str | None = None, log_file: str | os.PathLike[str] = os.devnull) -> None:
        put = self.__dict__.__setitem__
        put("_process", None)
        put("_options", {"batch-type": batch_type})
        put("_log_file", os.fspath(log_file))
        put("_error_file", None)
        put("_own_scratch", False)
        put("_command", _program(factory_binary, "vine_factory"))
        put("_name", manager_name or getattr(manager, "name", None))
        put("_target", self._find_target(batch_type, manager, manager_host_port, self._name))
        if worker_binary is not None:
            self._options["worker-binary"] = _program(worker_binary, "vine_worker")[0]
        if manager is not None and getattr(manager, "using_ssl", False):
            self._options["ssl"] = True
        put("scratch_dir", None)
        put("_base", Path(manager.staging_directory).parent if manager is not None else Path.cwd())

    def _find_target(self, batch_type: str, manager: Any, host_port: str | None, name: str | None) -> list[str]:
        if manager is not None and batch_type == "local":
            return [f"localhost:{manager.port}"]
        if host_port is not None:
            host, separator, port = str(host_port).rpartition(":")
            if not separator or not host or not port.isdigit():
                raise UsageError(f"manager_host_port = {host_port!r}", hint="expected 'host:port'")
            return [host_port]
        if not name:
            raise UsageError("no manager to serve is named",
                             hint="give manager=, manager_host_port= or manager_name=")
        self._options["manager-name"] = name
        return []

    # -------------------------------------------------------------------------------------------- options

    def __getattr__(self, name: str) -> Any:
        key = _key(name)
        if name.startswith("__") or key not in _OPTIONS:
            raise UsageNameError(f"a factory has no option {name!r}", hint=_allowed())
        return self.__dict__["_options"][key]  # KeyError for a known option that is not set: as published

    def __setattr__(self, name: str, value: Any) -> None:
        key = _key(name)
        if name in _OWN or key == "scratch-dir":
            if self._process is not None:
                raise UsageNameError(f"{name} cannot be changed while the factory runs", hint="stop it first")
            self.__dict__["scratch_dir" if key == "scratch-dir" else "_log_file"] = value
            return
        if key not in _OPTIONS:
            raise UsageNameError(f"a factory has no option {name!r}", hint=_allowed())
        if key in _AT_CREATION:
            raise UsageNameError(f"{name} can only be given when the factory is created")
        if self._process is not None and _SITE in self._options:
            raise UsageNameError(f"{name} cannot be changed while the factory runs with a site file",
                                 hint=f"change {self._options[_SITE]}: it is read again when it changes")
        if self._process is not None and key not in _DYNAMIC:
            raise UsageNameError(f"{name} cannot be changed while the factory runs",
                                 hint="changeable: " + ", ".join(sorted(_DYNAMIC - _AT_CREATION)))
        self._options[key] = value
        if self._process is not None:
            self._write_config()

    # ------------------------------------------------------------------------------------------- the process

    def start(self) -> Factory:
        """Start the factory; while it runs, only write its configuration again.

        Raises:
            RuntimeError: it ended at once; the text has its last words.
        """
        if self._process is not None:
            self._write_config()
            return self
        directory = self._make_scratch()
        self._write_config()
        error_file = Path(self._log_file) if self._log_file != os.devnull else directory / "error.log"
        with open(error_file, "ab") as log:
            start = log.tell()
            arguments = self._arguments(directory)
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            status = process.wait(START_WAIT_S)
        except subprocess.TimeoutExpired:
            self.__dict__["_process"] = process
            return self
        with open(error_file, "rb") as log:
            log.seek(start)
            words = log.read(_QUOTED_BYTES).decode(errors="replace").strip()
        raise FactoryStartError(f"the factory ended at once with status {status}: {words}",
                                hint="check the options; " + " ".join(arguments))

    def stop(self) -> None:
        """End the factory and, with it, its workers. Harmless when it does not run."""
        process: subprocess.Popen[bytes] | None = self._process
        if process is None:
            return
        self.__dict__["_process"] = None
        process.terminate()
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._own_scratch:
            shutil.rmtree(self.scratch_dir, ignore_errors=True)
            with contextlib.suppress(OSError):  # another factory's directory is beside ours
                Path(self.scratch_dir).parent.rmdir()
            self.__dict__.update(scratch_dir=None, _own_scratch=False)

    def __enter__(self) -> Factory:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def set_environment(self, env: str) -> None:
        """Accepted for programs written against older versions; changes nothing, as published."""

    def _make_scratch(self) -> Path:
        if self.scratch_dir is None:
            parent = self._base / f"vine-factory-{os.getuid()}"
            parent.mkdir(parents=True, exist_ok=True)
            self.__dict__.update(scratch_dir=tempfile.mkdtemp(prefix="vine-factory-", dir=parent), _own_scratch=True)
        directory = Path(self.scratch_dir).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _write_config(self) -> None:
        """Replace the configuration in one step: the factory may be reading it. A site file is the user's own."""
        if _SITE in self._options:
            return
        values = {key: value for key, value in self._options.items() if key in _DYNAMIC}
        path = Path(self.scratch_dir).absolute() / _CONFIG
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(path)

    def _arguments(self, directory: Path) -> list[str]:
        site = self._options.get(_SITE)
        config = os.path.abspath(site) if site else str(directory / _CONFIG)
        arguments: list[str] = [*self._command, "--parent-death", "--scratch-dir", str(directory),
                                f"--{_SITE}", config]
        options = {key: value for key, value in self._options.items()
                   if key != _SITE and (site or key not in _DYNAMIC)}
        target = self._target
        if site and target and self._name:  # the file's pools may run on other machines, where "localhost" is another
            options["manager-name"], target = self._name, []
        for key, value in options.items():
            for each in value if isinstance(value, list | tuple) else [value]:
                if each is True:
                    arguments.append(f"--{key}")
                elif each is not False and each is not None:
                    arguments.append(f"--{key}={each}")
        return [*arguments, *target]


def _key(name: str) -> str:
    return name.replace("_", "-")


def _allowed() -> str:
    return "options: " + ", ".join(sorted(_OPTIONS))


def _program(given: str | None, name: str) -> list[str]:
    """Arguments that start a program.

    Raises:
        OSError: ENOENT or EPERM, as published.
    """
    if given is not None:
        path = given if os.sep in given else shutil.which(given) or given
        if not os.path.isfile(path):
            raise OSError(errno.ENOENT, f"{name} not found", path)
        if not os.access(path, os.X_OK):
            raise OSError(errno.EPERM, f"{name} is not executable", path)
        return [os.path.abspath(path)]
    if importlib.util.find_spec(name) is not None:  # ours, by the interpreter that runs this program
        return [sys.executable, "-m", name]
    found = shutil.which(name)
    if found is None:
        raise OSError(errno.ENOENT, f"{name} is neither installed here nor in PATH", name)
    return [found]

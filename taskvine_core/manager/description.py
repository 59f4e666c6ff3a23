"""The description of a task: what the program sets before submit (reference, sections 4.1 and 4.2).

Owns the setters and their checks; ``freeze`` makes the immutable TaskSpec. Must not know workers or scheduling, nor how
the task went (task.py). Lean: a million waiting tasks are a million of these, so settings that are rarely used are
allocated when they are set.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from taskvine_core.constants import (
    VINE_FAILURE_ONLY,
    VINE_FIXED_LOCATION,
    VINE_MOUNT_SYMLINK,
    VINE_SUCCESS_ONLY,
    VINE_TEMP,
    VINE_WATCH,
)
from taskvine_core.errors import UsageError
from taskvine_core.manager import checks
from taskvine_core.manager.events import TaskOutcome
from taskvine_core.manager.file import Claims, File
from taskvine_core.manager.mounting import (
    Mounted,
    apply_keywords,
    check_file,
    freeze_mounts,
    links_for_outputs,
    mounted,
)
from taskvine_core.model.tasks import KIND_COMMAND, TaskSpec
from taskvine_core.resources import NOTHING_SET

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskvine_core.manager.api import Manager

_MICROSECONDS = 1e6


class Settings:
    """The rarely used settings of a task."""

    __slots__ = ("max_forsaken", "retries", "scheduler", "time_end_s", "time_max_s", "time_min_s", "time_start_s")

    def __init__(self) -> None:
        self.retries = 0
        self.max_forsaken = -1
        self.scheduler = 0
        self.time_start_s = self.time_end_s = self.time_max_s = self.time_min_s = 0.0


class Description:
    """A shell command run in a fresh directory at a worker: everything that can be said about it before it runs.

    Args:
        command: run by ``/bin/sh -c``.
        task_info: any of tag, category, scheduler, snapshot_file, monitor_output, cores, memory, disk, gpus, retries,
            max_forsaken, priority, time_start, time_end, time_max, time_min, features, env, inputs, outputs; each is
            given to the setter of the same meaning. Other keywords are ignored.

    Raises:
        UsageTypeError: (a TypeError) the command is no str, or an argument has the wrong type.
        UsageError: (a ValueError) an argument has the right type and no meaning.
    """

    __slots__ = ("__dict__", "__weakref__", "_category", "_command", "_env", "_features", "_id", "_inputs", "_manager",
                 "_outcome", "_outputs", "_priority", "_resources", "_settings", "_tag")

    def __init__(self, command: str, **task_info: Any) -> None:
        self._command = command if type(command) is str else checks.text(command, "command")
        self._id = 0
        self._manager: Manager | None = None
        self._outcome: TaskOutcome | None = None
        self._inputs: list[Mounted] | None = None
        self._outputs: list[Mounted] | None = None
        self._env: dict[str, str | None] | None = None
        self._features: list[str] | None = None
        self._settings: Settings | None = None
        self._resources = NOTHING_SET
        self._category = "default"
        self._tag: str | None = None
        self._priority = 0.0
        if task_info:
            apply_keywords(self, task_info)

    # ------------------------------------------------------------------ description

    def set_command(self, command: str) -> None:
        """Replace the command line."""
        self._command = checks.text(command, "command")

    def add_input(self, file: File, remote_name: str, strict_input: bool = False, mount_symlink: bool = False) -> None:
        """Put ``file`` into the sandbox under the relative path ``remote_name``.

        Args:
            strict_input: run only at a worker that already holds the file.
            mount_symlink: a symbolic link instead of a hard link (for big directories).
        """
        flags = (VINE_FIXED_LOCATION if strict_input else 0) | (VINE_MOUNT_SYMLINK if mount_symlink else 0)
        mount = mounted(file, remote_name, flags, "input")
        if self._inputs is None:
            self._inputs = [mount]  # room for one, not for four as append makes: most tasks have few
        else:
            self._inputs.append(mount)

    def add_output(self, file: File, remote_name: str, watch: bool = False, failure_only: bool | None = None,
                   success_only: bool | None = None) -> None:
        """Take ``remote_name`` from the sandbox into ``file`` when the command has ended.

        Args:
            watch: bring appended data back while the task runs.
            failure_only, success_only: bring it back only then.
        """
        flags = ((VINE_WATCH if watch else 0) | (VINE_FAILURE_ONLY if failure_only else 0)
                 | (VINE_SUCCESS_ONLY if success_only else 0))
        mount = mounted(file, remote_name, flags, "output")
        if self._outputs is None:
            self._outputs = [mount]
        else:
            self._outputs.append(mount)

    def add_environment(self, file: File) -> None:
        """Run the command inside an unpacked environment; the last one added is the outermost."""
        name = f"__vine_env_{check_file(file, 'environment').cached_name}"
        self.add_input(file, name, mount_symlink=True)
        self._command = f"{name}/bin/run_in_env {self._command}"

    def add_poncho_package(self, file: File) -> None:
        """Older name of ``add_environment``."""
        self.add_environment(file)

    def add_starch_package(self, file: File) -> None:
        """Older name of ``add_environment``."""
        self.add_environment(file)

    def add_execution_context(self, file: File) -> None:
        """Older name of ``add_environment``."""
        self.add_environment(file)

    def add_feature(self, name: str) -> None:
        """Only workers that advertise this feature may run the task."""
        if self._features is None:
            self._features = []
        self._features.append(checks.text(name, "feature"))

    def set_tag(self, tag: str) -> None:
        """A free label, for ``wait_for_tag`` and ``cancel_by_task_tag``."""
        self._tag = None if tag is None else checks.text(tag, "tag")

    def set_category(self, category: str | None) -> None:
        """Tasks of one category share limits and statistics; None means "default"."""
        self._category = "default" if category is None else checks.text(category, "category")

    def set_cores(self, cores: float) -> None:
        """Cores, rounded up to a whole number; negative: not set."""
        self._resources = self._resources._replace(cores=checks.amount(cores, "cores"))

    def set_memory(self, memory: float) -> None:
        """MB of memory; negative: not set."""
        self._resources = self._resources._replace(memory_mb=checks.amount(memory, "memory"))

    def set_disk(self, disk: float) -> None:
        """MB of disk for the sandbox; negative: not set."""
        self._resources = self._resources._replace(disk_mb=checks.amount(disk, "disk"))

    def set_gpus(self, gpus: float) -> None:
        """GPUs; negative: not set."""
        self._resources = self._resources._replace(gpus=checks.amount(gpus, "gpus"))

    def set_priority(self, priority: float) -> None:
        """Larger runs earlier; 0 by default."""
        self._priority = checks.number(priority, "priority")

    def set_retries(self, retries: int) -> None:
        """At most so many automatic retries; < 1: no limit."""
        self._setting("retries", max(0, checks.whole(retries, "retries")))

    def set_max_forsaken(self, max_forsaken: int) -> None:
        """Give up when workers could not run it more often than this; negative: never."""
        self._setting("max_forsaken", max(-1, checks.whole(max_forsaken, "max_forsaken")))

    def set_time_start(self, useconds: float) -> None:
        """Do not dispatch before this time (µs since the epoch)."""
        self._setting("time_start_s", max(0.0, checks.number(useconds, "time_start")) / _MICROSECONDS)

    def set_time_end(self, useconds: float) -> None:
        """Do not run after this time (µs since the epoch)."""
        self._setting("time_end_s", max(0.0, checks.number(useconds, "time_end")) / _MICROSECONDS)

    def set_time_max(self, seconds: float) -> None:
        """Kill it when it has run so long (s)."""
        self._setting("time_max_s", max(0.0, checks.number(seconds, "time_max")))

    def set_time_min(self, seconds: float) -> None:
        """Only workers that stay at least so long (s)."""
        self._setting("time_min_s", max(0.0, checks.number(seconds, "time_min")))

    def set_scheduler(self, scheduler: str | int) -> None:
        """How a worker is chosen for this task: a name of section 2.4 or a VINE_SCHEDULE_* constant."""
        self._setting("scheduler", checks.scheduler(scheduler))

    def set_env_var(self, name: str, value: str | None = None) -> None:
        """Set an environment variable of the command; None unsets it."""
        if not checks.text(name, "environment variable name") or "=" in name or "\0" in name:
            raise UsageError(f"environment variable name {name!r} is empty or has '=' or NUL in it")
        if self._env is None:
            self._env = {}
        self._env[name] = None if value is None else str(value)

    def _setting(self, name: str, value: float) -> None:
        if self._settings is None:
            self._settings = Settings()
        setattr(self._settings, name, value)

    # ------------------------------------------------------------------ submit

    def submit_finalize(self) -> None:
        """Called by ``Manager.submit`` before the description is frozen; subclasses add inputs and outputs here."""

    def freeze(self) -> TaskSpec:
        """The immutable description; after a submit, declares the mounted files to the manager core.

        Raises:
            UsageError: an output that is a URL or a mini-task, or two inputs under one name.
        """
        home = None if self._manager is None else self._manager._home
        inputs = freeze_mounts(self._inputs, home, "input") if self._inputs else ()
        outputs = freeze_mounts(self._outputs, home, "output") if self._outputs else ()
        if home is not None:
            for mounts in (self._inputs, self._outputs):
                for mount in mounts or ():
                    if not mount[0]._announced:
                        mount[0].announce()
        if self._outputs:
            self._claim_for_temps()
            inputs = links_for_outputs(inputs, outputs)
        env = tuple(self._env.items()) if self._env else ()
        features = tuple(self._features) if self._features else ()
        settings = self._settings
        if settings is None:
            return TaskSpec(self._command, KIND_COMMAND, inputs, outputs, env, self._resources, self._category,
                            features, self._priority, self._tag)
        return TaskSpec(
            self._command, KIND_COMMAND, inputs, outputs, env, self._resources, self._category, features,
            self._priority, self._tag, scheduler=settings.scheduler, retries=settings.retries,
            max_forsaken=settings.max_forsaken, time_start_s=settings.time_start_s, time_end_s=settings.time_end_s,
            time_max_s=settings.time_max_s, time_min_s=settings.time_min_s)

    def _claim_for_temps(self) -> None:
        """A temp that is lost is made again: what its producer reads must stay at the manager as long as the temp."""
        temps = [file for file, _, _ in self._outputs or () if file._decl.kind == VINE_TEMP]
        if temps:
            claims = self._claims()
            for file in temps:
                file._claims = claims

    def _claims(self) -> Claims:
        """Bytes at the manager that a second run of this task would need."""
        inputs = self._inputs
        if not inputs:
            return ()
        own = [file._bytes for file, _, _ in inputs if file._bytes is not None]
        return (*own, *[file._claims for file, _, _ in inputs if file._claims])

    def clone(self) -> Self:
        """A copy that was not submitted yet."""
        new = copy.copy(self)
        new._id, new._manager, new._outcome = 0, None, None
        for name in ("_inputs", "_outputs", "_env", "_features", "_settings"):
            setattr(new, name, copy.copy(getattr(self, name)))
        return new



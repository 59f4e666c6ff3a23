"""Mounts and keyword arguments of a task description.

Owns their checks: at the call what can be known there, at submit the rest. Must not know anything else of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from taskvine_core.constants import VINE_MINI_TASK, VINE_MOUNT_SYMLINK, VINE_URL
from taskvine_core.errors import UsageError, UsageTypeError
from taskvine_core.manager import checks
from taskvine_core.manager.file import File, FileHome, Hold
from taskvine_core.model.tasks import Mount

if TYPE_CHECKING:
    from taskvine_core.manager.description import Description

#: One mount as the program gave it: file, the mount as the task's description will have it, claim on a file to be
#: unlinked. The mount comes in a tuple of its own, which is all the inputs (or outputs) of most tasks.
Mounted = tuple[File, tuple[Mount], "Hold | None"]

_SETTERS = frozenset(("tag", "category", "scheduler", "cores", "memory", "disk", "gpus", "retries", "max_forsaken",
                      "priority", "time_start", "time_end", "time_max", "time_min"))


def check_file(file: object, kind: str) -> File:
    """A file argument of a mount, as it is; UsageTypeError names the ``kind`` when it is something else."""
    if not isinstance(file, File):
        raise UsageTypeError(f"the {kind} must be a File from one of the declare_* methods, not {file!r}")
    return file


def mounted(file: File, remote_name: str, flags: int, kind: str) -> Mounted:
    """Check one mount at the call that made it."""
    check_file(file, kind)
    return file, file.mount(checks.remote_name(remote_name, kind), flags), Hold(file) if file._unlink else None


def freeze_mounts(mounts: list[Mounted], home: FileHome | None, kind: str) -> tuple[Mount, ...]:
    """Check what can only be known at submit; give the plain values."""
    for file, (mount,), _ in mounts:
        if home is not None and file._home is not home:
            raise UsageError(f"{kind} {mount.remote!r} was declared to another manager", hint="declare it to this one")
        if kind == "output" and file._decl.kind in (VINE_URL, VINE_MINI_TASK):
            raise UsageError(f"output {mount.remote!r} is a URL or a mini-task's product: nothing can be written to it",
                             hint="use declare_file, declare_temp or declare_buffer for outputs")
    if len(mounts) == 1:
        return mounts[0][1]
    names = [mount.remote for _, (mount,), _ in mounts]
    if len(set(names)) < len(names):
        twice = next(remote for remote in names if names.count(remote) > 1)
        if len({file for file, (mount,), _ in mounts if mount.remote == twice}) > 1 or kind == "output":
            raise UsageError(f"two {kind}s have the same remote_name {twice!r}", hint="give each its own name")
    return tuple([mount for _, (mount,), _ in mounts])


def links_for_outputs(inputs: tuple[Mount, ...], outputs: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Inputs with those mounted as a symbolic link to a directory that an output is written into made hard links.

    Through the link the command would write into the worker's cache, where others see it.
    """
    if not any(mount.flags & VINE_MOUNT_SYMLINK for mount in inputs):
        return inputs
    return tuple([
        mount._replace(flags=mount.flags & ~VINE_MOUNT_SYMLINK)
        if any(out.remote.startswith(f"{mount.remote.rstrip('/')}/") for out in outputs) else mount
        for mount in inputs])


def apply_keywords(task: Description, task_info: Mapping[str, Any]) -> None:
    """Give each keyword argument to the setter of the same meaning."""
    for key, value in task_info.items():
        if value is None:
            continue
        if key in _SETTERS:
            getattr(task, f"set_{key}")(value)
        elif key == "features":
            for name in [value] if isinstance(value, str) else value:
                task.add_feature(name)
        elif key == "env":
            for name, setting in _mapping(value, "env").items():
                task.set_env_var(name, setting)
        elif key in ("inputs", "input_files"):
            _attach(_mapping(value, key), task.add_input)
        elif key in ("outputs", "output_files"):
            _attach(_mapping(value, key), task.add_output)


def _mapping(value: object, key: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise UsageTypeError(f"{key} must be a dict, not {value!r}")
    return value


def _attach(mounts: Mapping[Any, Any], add: Callable[..., None]) -> None:
    for file, how in mounts.items():
        if isinstance(how, str):
            add(file, how)
        elif isinstance(how, Mapping):
            if "remote_name" not in how:
                raise UsageError(f"the description {how!r} of {file!r} lacks 'remote_name'")
            add(file, **how)
        else:
            raise UsageTypeError(f"the sandbox name of {file!r} must be a str or a dict, not {how!r}")

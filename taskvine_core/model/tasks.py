"""What a task asks for, frozen at submit.

Owns TaskSpec and Mount. Must not know states, workers or results.
"""

from __future__ import annotations

from taskvine_core.records import NamedTuple
from taskvine_core.resources import NOTHING_SET, Resources

KIND_COMMAND = 0
KIND_PYTHON = 1


class Mount(NamedTuple):
    """One file in a task's sandbox: cached name, relative path, VINE_* mount flags."""

    name: str
    remote: str
    flags: int = 0


class TaskSpec(NamedTuple):
    """An immutable task description. Times are seconds since the epoch (0 = unset) or seconds.

    A Python task (``kind == KIND_PYTHON``) runs ``function(*args, **kwargs)``: ``function`` is the cached name of
    the buffer with the cloudpickled callable (also listed in ``inputs`` with remote name ""), ``arguments`` the
    cloudpickled ``[args, kwargs]`` when they are small, else b"" and ``arguments_file`` names an input. Its result
    is an output mounted with remote name RESULT_REMOTE. ``preload`` names modules that a warm interpreter imports once,
    before it forks a process for the task.
    """

    command: str
    kind: int = KIND_COMMAND
    inputs: tuple[Mount, ...] = ()
    outputs: tuple[Mount, ...] = ()
    env: tuple[tuple[str, str | None], ...] = ()
    resources: Resources = NOTHING_SET
    category: str = "default"
    features: tuple[str, ...] = ()
    priority: float = 0.0
    tag: str | None = None
    scheduler: int = 0
    retries: int = 0
    max_forsaken: int = -1
    time_start_s: float = 0.0
    time_end_s: float = 0.0
    time_max_s: float = 0.0
    time_min_s: float = 0.0
    function: str = ""
    arguments: bytes = b""
    arguments_file: str = ""
    serialize_output: bool = True
    interpreter: str = ""
    preload: tuple[str, ...] = ()


#: Remote name under which a Python task's interpreter leaves the pickled result.
RESULT_REMOTE = ".taskvine.result"

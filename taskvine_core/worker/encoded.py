"""Environments as system calls take them, made once for all tasks that have the same.

Owns the encoding. Must not decide what is in an environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from taskvine_core.model.tasks import TaskSpec
from taskvine_core.resources import Resources
from taskvine_core.worker.environment import task_environment

#: Encoded environments kept: tasks of a kind have all but the sandbox in common, and sandboxes are used again.
ENCODED_MAX = 256


def encode_environment(env: Mapping[str, str]) -> list[bytes]:
    """Variables as the system takes them.

    Raises:
        ValueError: a name that no variable can have, text that cannot be encoded.
    """
    encode = os.fsencode
    encoded = []
    for name, value in env.items():
        if "=" in name or not name:
            raise ValueError(f"{name!r} is not a name of an environment variable")
        encoded.append(encode(name) + b"=" + encode(value))
    return encoded


class Environments:
    """The environments of commands, encoded once for all tasks that have the same.

    Args:
        base: what every task inherits.
    """

    def __init__(self, base: Mapping[str, str]) -> None:
        self._base = base
        self._encoded: dict[tuple[object, ...], list[bytes]] = {}

    def encoded(self, spec: TaskSpec, allocation: Resources, gpus: tuple[str, ...], sandbox: str) -> list[bytes]:
        """See ``task_environment``; as ``encode_environment`` gives it, not to be changed.

        Raises:
            ValueError: a variable has a name or value that cannot be.
        """
        key = (sandbox, allocation, gpus, spec.env)
        known = self._encoded.get(key)
        if known is None:
            known = encode_environment(task_environment(self._base, spec, allocation, gpus, sandbox))
            if len(self._encoded) >= ENCODED_MAX:
                self._encoded.clear()
            self._encoded[key] = known
        return known

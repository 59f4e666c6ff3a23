"""The command line of one worker.

Owns how settings become arguments. Pure. A secret never appears here: the worker is given the name of a file, or
finds the user's own key by itself.
"""

from __future__ import annotations

import shlex

from taskvine_core.errors import ConfigError
from vine_factory.config import PoolSettings, Settings

WORKER_MODULE = "taskvine_core.worker.cli"


def worker_command(settings: Settings, pool: PoolSettings, intent_id: str, python: str) -> tuple[str, ...]:
    """Arguments, program first.

    Args:
        python: interpreter that runs the worker when no worker program is given.

    Raises:
        ConfigError: the extra options are not well quoted.
    """
    command = [settings.worker_binary] if settings.worker_binary else [python, "-m", WORKER_MODULE]
    command += ["-t", str(pool.worker_timeout_s), "--from-factory", settings.factory_name, "--factory-job", intent_id]
    for option, value in zip(("--cores", "--memory", "--disk", "--gpus"), pool.asked, strict=True):
        if value >= 0:
            command += [option, str(value)]
    for feature in pool.shape.features:
        command += ["--feature", feature]
    if settings.password:
        command += ["--password", settings.password]
    if settings.transfer_port:
        command += ["--transfer-port", settings.transfer_port]
    command += [flag for flag, on in (("--ssl", settings.ssl), ("--single-shot", settings.single_shot),
                                      ("--parent-death", settings.parent_death)) if on]
    try:
        command += shlex.split(pool.extra_options)
    except ValueError as problem:
        raise ConfigError(f"worker-extra-options = {pool.extra_options!r}: {problem}",
                          hint="check the quotes") from None
    target = settings.target
    command += [target.host, str(target.port)] if target.host else ["-M", target.regex]
    return tuple(command)


def environment(settings: Settings) -> dict[str, str]:
    """The ``--env`` settings as a mapping.

    Raises:
        ConfigError: one has no ``=``.
    """
    result = {}
    for item in settings.env:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise ConfigError(f"env = {item!r}", hint="expected VARIABLE=value")
        result[name] = value
    return result

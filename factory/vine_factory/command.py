"""The command line of one worker, and the job that runs it.

Owns how settings become arguments. Pure. A secret never appears here: the worker is given the name of a file, or
finds the user's own key by itself.
"""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskvine_core.errors import ConfigError
from taskvine_core.records import NamedTuple
from vine_factory.batch.base import JobRequest, JobTag
from vine_factory.config import PoolSettings, Settings
from vine_factory.walltime import lifetime_s

WORKER_MODULE = "taskvine_core.worker.cli"
_LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")


class Delivery(NamedTuple):
    """How a worker starts where its job runs.

    Args:
        start: program and its first arguments.
        password: the key file there, "" = the worker finds its user's own.
        ship: files sent with the job.
        environment: what the worker needs besides the pool's own variables.
        package: the environment package there, "" = none.
        published_only: the worker program takes published options and none of ours.
    """

    start: tuple[str, ...]
    password: str = ""
    ship: tuple[Path, ...] = ()
    environment: Mapping[str, str] = {}
    package: str = ""
    published_only: bool = False


def job_request(settings: Settings, pool: PoolSettings, tag: JobTag, delivery: Delivery,
                managers: Sequence[str]) -> JobRequest:
    """One job. ``managers``: as for `worker_command`. Raises as that."""
    return JobRequest(tag, worker_command(settings, pool, tag.intent_id, delivery, managers),
                      {**delivery.environment, **pool.env}, pool.asked, pool.walltime_s, delivery.ship,
                      pool.workers_per_job)


def worker_command(settings: Settings, pool: PoolSettings, intent_id: str, delivery: Delivery,
                   managers: Sequence[str] = ()) -> tuple[str, ...]:
    """Arguments, program first.

    Args:
        managers: "host:port" of the managers to name, for pools whose workers cannot look for them.

    Raises:
        ConfigError: the extra options or the wrapper are not well quoted.
    """
    command = [*_words("wrapper", pool.wrapper), *delivery.start, "-t", str(pool.worker_timeout_s)]
    command += ["--from-factory", settings.factory_name]
    command += [] if delivery.published_only else ["--factory-job", intent_id]
    for option, value in zip(("--cores", "--memory", "--disk", "--gpus"), pool.asked, strict=True):
        if value >= 0:
            command += [option, str(value)]
    for feature in pool.shape.features:
        command += ["--feature", feature]
    wall_time_s = lifetime_s(pool.walltime_s, intent_id)
    for option, text in (("--password", delivery.password), ("--poncho-env", delivery.package),
                         ("--transfer-port", settings.transfer_port),
                         ("--task-wrapper", pool.task_wrapper), ("-d", "all" if settings.debug_workers else ""),
                         ("--wall-time", f"{wall_time_s:.0f}" if wall_time_s else "")):
        if text:
            command += [option, text]
    command += [flag for flag, on in (("--ssl", settings.ssl), ("--single-shot", settings.single_shot),
                                      ("--parent-death", settings.parent_death and pool.batch == "local")) if on]
    command += _words("worker-extra-options", pool.extra_options)
    return (*command, *_target(settings, pool, intent_id, managers))


def _target(settings: Settings, pool: PoolSettings, intent_id: str, managers: Sequence[str]) -> list[str]:
    if pool.managers == "addresses" and managers:
        # Workers take the first manager that answers: each begins with another one.
        first = zlib.crc32(intent_id.encode()) % len(managers)
        return [";".join([*managers[first:], *managers[:first]])]
    target = settings.target
    if target.host:
        return [target.host, str(target.port)]
    return [*(["-C", settings.catalog] if settings.catalog else []), "-M", target.regex]


def address(hosts: Sequence[str], port: int, own_name: str) -> str:
    """How a worker on another machine reaches a manager: the first of ``hosts`` that is no loopback name, and
    ``own_name`` (of this machine) when there is none."""
    host = next((host for host in hosts if not host.startswith(_LOOPBACK)), own_name)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _words(key: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as problem:
        raise ConfigError(f"{key} = {text!r}: {problem}", hint="check the quotes") from None

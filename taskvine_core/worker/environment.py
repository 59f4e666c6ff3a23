"""The environment a task sees (reference, section 13.5).

Owns which variables are set, overridden or removed. Must not know processes or files.
"""

from __future__ import annotations

from collections.abc import Mapping

from taskvine_core.model.tasks import TaskSpec
from taskvine_core.resources import Resources

#: Set by whoever starts a worker to say what it offers; meaningless, or wrong, inside a task.
CONSUMED = ("CORES", "MEMORY", "DISK", "GPUS", "VINE_SANDBOX")
#: A task has no terminal and no screen.
REMOVED = ("DISPLAY",)
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "MKL_NUM_THREADS",
                 "NUMEXPR_NUM_THREADS")
#: Every task has these, whatever the worker was started with.
ALWAYS_SET = frozenset(("CORES", "MEMORY", "DISK", "GPUS", *THREAD_LIMITS))
TMP_NAME = ".taskvine.tmp"


def device_names(gpus: tuple[str, ...], devices: tuple[str, ...]) -> tuple[str, ...]:
    """What a task's GPUs are called on this machine.

    Args:
        gpus: the manager's numbers, from 0.
        devices: names of the worker's devices, as CUDA_VISIBLE_DEVICES has them; a number beyond them stays as it is.
    """
    return tuple(devices[int(gpu)] if gpu.isdigit() and int(gpu) < len(devices) else gpu for gpu in gpus)


def base_environment(environ: Mapping[str, str], worker_tmp: str) -> dict[str, str]:
    """What every task inherits from the worker."""
    base = {key: value for key, value in environ.items() if key not in CONSUMED + REMOVED}
    base["WORKER_TMPDIR"] = worker_tmp
    return base


def task_environment(base: Mapping[str, str], spec: TaskSpec, allocation: Resources, gpus: tuple[str, ...],
                     sandbox: str) -> dict[str, str]:
    """User variables first (None removes one), then what the worker decides, which wins."""
    env = dict(base)
    for key, value in spec.env:
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    cores = str(allocation.cores)
    env["CORES"] = cores
    env["MEMORY"] = str(allocation.memory_mb)
    env["DISK"] = str(allocation.disk_mb)
    env["GPUS"] = str(allocation.gpus)
    threads = cores if allocation.cores > 0 else "1"
    for name in THREAD_LIMITS:
        env[name] = threads
    if gpus:
        env["GPUS_LIST"] = env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    env["TMPDIR"] = env["TEMP"] = env["TMP"] = f"{sandbox}/{TMP_NAME}"
    env["VINE_SANDBOX"] = sandbox
    return env

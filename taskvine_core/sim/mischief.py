"""A worker that knows the key and still talks nonsense: random valid messages about what is not its own.

Owns the choice of lies. They are about other workers' tasks, files and transfers; a worker that lies about its own only
hurts itself.
"""

from __future__ import annotations

from random import Random
from typing import Any

from taskvine_core.manager.core import ManagerCore
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources

WRONG = b"\x66" * 32
HUGE = 1 << 60


def lie(core: ManagerCore, key: int, rng: Random) -> Any:
    """A message for the worker with connection ``key`` to send."""
    own = core.workers.get(key)
    tasks = [t for t in core.tasks.values() if t.run is None or t.run.worker is not own]
    task = rng.choice(tasks) if tasks and rng.random() < 0.9 else None
    task_id, attempt = (task.id, task.sent) if task is not None else (rng.randrange(HUGE), rng.randrange(5))
    names = [name for name in core.files if own is None or name not in own.files]
    name = rng.choice(names) if names and rng.random() < 0.9 else "temp-rnd-unheard-of"
    transfers = [t.id for t in core.books.transfers.values() if t.dest != key]
    transfer = rng.choice(transfers) if transfers else rng.randrange(HUGE)
    outputs = tuple(
        msg.OutputReport(m.name, 7, WRONG, 0o644, False, rng.choice((None, b"bad")))
        for m in (task.spec.outputs if task is not None else ())
    )
    kind = rng.randrange(12)
    if kind < 3:
        return msg.TaskDone(
            task_id,
            attempt,
            rng.choice((0, 16, 40, 104, HUGE)),
            -1,
            b"",
            HUGE,
            rng.choice(("", "file-rnd-x")),
            outputs,
            ("out",),
            rng.choice((0.0, float("-inf"), float("nan"))),
            rng.choice((0.0, 1e300, float("nan"))),
            msg.NOT_MEASURED,
            "",
        )
    return (
        lambda: msg.CacheUpdate(name, transfer, -5, WRONG, 0.0, float("nan")),
        lambda: msg.CacheInvalid(name, transfer, rng.randrange(5), "a lie"),
        lambda: msg.CacheGone((name, "temp-rnd-unheard-of"), "a lie"),
        lambda: msg.CacheOffer((msg.CacheEntry(_hashed(core, name), HUGE, 3, WRONG),)),
        lambda: msg.Recalled((task_id, rng.randrange(HUGE))),
        lambda: msg.WatchData(task_id, attempt, name, rng.randrange(HUGE), b"junk"),
        lambda: msg.UploadFailed(transfer, "a lie"),
        lambda: msg.ResourceReport(Resources(rng.choice((-1, 1)), -HUGE, 1, 0), -HUGE, -HUGE),
        lambda: msg.Pong(HUGE),
    )[kind - 3]()


def _hashed(core: ManagerCore, name: str) -> str:
    """Only an object whose content is known: of others (a URL without a hash) any content must be believed."""
    file = core.files.get(name)
    return name if file is not None and (file.sha256 or name.startswith("temp")) else "temp-rnd-unheard-of"

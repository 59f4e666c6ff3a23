"""A manager core with hand-made workers: the test plays every worker's part, one message at a time."""

from __future__ import annotations

from itertools import count
from random import Random
from typing import Any, TypeVar

from taskvine_core.constants import VINE_BUFFER, VINE_FILE, VINE_TEMP
from taskvine_core.manager import events as ev
from taskvine_core.manager.core import ManagerCore
from taskvine_core.manager.invariants import check_invariants
from taskvine_core.model.files import FileDecl
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import Resources

FOUR_CORES = Resources(4, 8000, 50_000, 0)
ONE = Resources(1, 100, 100, 0)
SHA = b"\x01" * 32
OTHER_SHA = b"\x02" * 32

M = TypeVar("M")


class Rig:
    """Every ``tell`` checks the invariants; what the core ordered since the last ``take`` is in ``actions``."""

    def __init__(self) -> None:
        ids = count(1)
        self.core = ManagerCore(manager_id="m", rng=Random(1), new_task_id=lambda: next(ids), data_port=9)
        self.new_task_id = lambda: next(ids)
        self.now = 1000.0
        self.actions: list[Any] = []
        self.outcomes: dict[int, ev.TaskOutcome] = {}
        self.stores = False  # answer for the runner that small output files are written
        self._keys = count(1)

    def tell(self, *events: ev.Event) -> list[Any]:
        """Events, now; the actions they caused."""
        actions = self.core.handle_all(events, self.now)
        check_invariants(self.core)
        self.actions += actions
        for action in actions:
            if isinstance(action, ev.Complete):
                assert action.outcome.task_id not in self.outcomes, "a task came back twice"
                self.outcomes[action.outcome.task_id] = action.outcome
        for action in actions:
            if isinstance(action, ev.StoreInline) and action.store_id and self.stores:
                self.tell(ev.Stored(action.task_id, action.store_id, ""))
        return actions

    def wait(self, seconds: float) -> None:
        """Time passes, with a tick at the end."""
        self.now += seconds
        self.tell(ev.Tick())

    # ------------------------------------------------------------------ workers

    def join(
        self,
        resources: Resources = FOUR_CORES,
        *,
        host: str = "",
        features: tuple[str, ...] = (),
        worker_id: str = "",
        end_time: float = 0.0,
        cache: tuple[msg.CacheEntry, ...] = (),
        transfer_port: int = 1000,
    ) -> int:
        """A worker joins and tells its cache; its key."""
        key = next(self._keys)
        host = host or f"host{key}"
        hello = msg.WorkerHello(
            worker_id or f"w{key}",
            host,
            "linux",
            "x86_64",
            "1",
            features,
            resources,
            "",
            transfer_port,
            end_time,
            900.0,
            "",
            "",
        )
        self.tell(ev.WorkerJoined(key, hello, f"10.0.0.{key}", 1))
        self.say(key, msg.CacheOffer(cache))
        return key

    def say(self, key: int, *messages: Any) -> None:
        """A worker's messages arrive."""
        self.tell(*(ev.MessageArrived(key, message) for message in messages))

    def gone(self, key: int) -> None:
        self.tell(ev.WorkerGone(key, "reset"))

    def sent(self, kind: type[M], key: int | None = None) -> list[M]:
        """Messages of a kind sent so far (to one worker)."""
        return [
            a.message
            for a in self.actions
            if isinstance(a, ev.Send) and isinstance(a.message, kind) and key in (None, a.key)
        ]

    def done_actions(self, kind: type[M]) -> list[M]:
        return [action for action in self.actions if isinstance(action, kind)]

    def forget_actions(self) -> None:
        self.actions.clear()

    # ------------------------------------------------------------------ the program

    def submit(
        self,
        command: str = "true",
        inputs: tuple[str, ...] = (),
        outputs: tuple[str, ...] = (),
        *,
        resources: Resources = ONE,
        flags: int = 0,
        **more: Any,
    ) -> int:
        """A task whose mounts all have ``flags``; its id."""
        task_id = self.new_task_id()
        spec = TaskSpec(
            command,
            inputs=tuple(Mount(name, f"i{n}", flags) for n, name in enumerate(inputs)),
            outputs=tuple(Mount(name, f"o{n}", flags) for n, name in enumerate(outputs)),
            resources=resources,
            **more,
        )
        self.tell(ev.Submit(task_id, spec))
        return task_id

    def declare(self, name: str, kind: int, **more: Any) -> str:
        self.tell(ev.Declare(FileDecl(name, kind, **more)))
        return name

    def temp(self, name: str) -> str:
        return self.declare(f"temp-rnd-{name}", VINE_TEMP, level=1)

    def buffer(self, name: str, data: bytes = b"x", level: int = 1) -> str:
        return self.declare(f"buffer-rnd-{name}", VINE_BUFFER, level=level, size=len(data), data=data)

    def result_buffer(self, name: str) -> str:
        return self.declare(f"buffer-rnd-{name}", VINE_BUFFER)

    def local(self, name: str, size: int = 1_000_000, **more: Any) -> str:
        more.setdefault("level", 1)
        return self.declare(f"file-rnd-{name}", VINE_FILE, source=f"/data/{name}", size=size, **more)

    # ------------------------------------------------------------------ what a worker does with a task

    def where(self, task_id: int) -> int | None:
        """Key of the worker the task was sent to, None when it is at none."""
        task = self.core.tasks.get(task_id)
        return task.run.worker.key if task is not None and task.run is not None else None

    def finish(
        self,
        task_id: int,
        result: int = 0,
        exit_code: int = 0,
        *,
        took_s: float = 1.0,
        missing: tuple[str, ...] = (),
        attempt: int | None = None,
        key: int | None = None,
        sha: bytes = SHA,
        size: int = 10,
        measured: msg.Measured = msg.NOT_MEASURED,
        inline: bool = True,
        tiny: bool = False,
    ) -> None:
        """The worker reports the end of a task with all its outputs but ``missing`` (remote names)."""
        task = self.core.tasks[task_id]
        key = key if key is not None else self.where(task_id)
        assert key is not None
        wanted = self.core.dispatcher._outputs(task)[0] if inline else ()
        if not tiny:
            wanted = tuple(name for name in wanted if not name.startswith("temp"))
        reports = tuple(
            msg.OutputReport(m.name, size, sha, 0o644, False, b"y" * size if m.name in wanted else None)
            for m in task.spec.outputs
            if m.remote not in missing and result not in (40,)
        )
        self.say(
            key,
            msg.TaskDone(
                task_id,
                attempt or task.sent,
                result,
                exit_code,
                b"",
                0,
                "",
                reports,
                missing,
                self.now - took_s,
                self.now,
                measured,
                "",
            ),
        )

    def make_temp(self, name: str) -> tuple[str, int]:
        """A temp made by a task; its name and the worker that has it."""
        temp = self.temp(name)
        task = self.submit(f"make {name}", outputs=(temp,))
        key = self.where(task)
        assert key is not None
        self.finish(task)
        return temp, key

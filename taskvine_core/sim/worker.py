"""A simulated worker: answers the manager's messages as a real one would, in virtual time, with faults.

Owns the model of one worker (cache, queue, allocations). Must not know the manager core: it speaks messages only.
Content is simulated by digests: a temp's digest is a function of its producer, so a wrong or partial input is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskvine_core.constants import (
    VINE_CACHE_LEVEL_TASK,
    VINE_CACHE_LEVEL_WORKFLOW,
    VINE_RESULT_FORSAKEN,
    VINE_RESULT_SUCCESS,
    VINE_WATCH,
)
from taskvine_core.protocol import messages as msg
from taskvine_core.resources import ZERO, Resources

if TYPE_CHECKING:
    from taskvine_core.sim.world import World

#: Size of a simulated output.
OUTPUT_BYTES = 3_000_000
#: Commands that begin so end with exit code 1 and leave no output.
FAILING = "fail"


def digest_of(command: str, name: str) -> bytes:
    """What a task's output contains, in the simulated world."""
    return hashlib.sha256(f"{command}\0{name}".encode()).digest()


class SimWorker:
    """One worker process."""

    def __init__(self, world: World, key: int, hello: msg.WorkerHello) -> None:
        self.world = world
        self.key = key
        self.hello = hello
        self.alive = True
        self.manager_id = ""
        self.slowness = 1.0
        self.stopped = False
        self.cache: dict[str, tuple[int, bytes, int]] = {}  # size, digest, level
        self.unlinked_fetches: set[int] = set()
        self.fetching: dict[str, int] = {}
        self.queue: list[msg.Dispatch] = []
        self.running: dict[int, msg.Dispatch] = {}
        self.in_use = ZERO
        self._inbox: list[Any] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            msg.Welcome: self._welcome,
            msg.PutInline: self._put,
            msg.Fetch: self._fetch,
            msg.MiniTask: self._mini_task,
            msg.Unlink: self._unlink,
            msg.Dispatch: self._dispatch,
            msg.Kill: self._kill,
            msg.Recall: self._recall,
            msg.Upload: self._upload,
            msg.Ping: self._ping,
            msg.Release: self._release,
            msg.SetLevel: self._set_level,
            msg.Drain: lambda message: None,
        }

    # ------------------------------------------------------------------ life

    def send(self, message: Any) -> None:
        """To the manager, unless we are dead; a stopped worker sends when it continues."""
        if not self.alive:
            return
        if self.stopped:
            self._inbox.append(lambda: self.send(message))
            return
        self.world.to_manager(self, message)

    def receive(self, message: Any) -> None:
        """From the manager."""
        if not self.alive:
            return
        if self.stopped:
            self._inbox.append(lambda: self.receive(message))
            return
        self._handlers[type(message)](message)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def resume(self) -> None:
        """SIGCONT: what was held up happens now, in order."""
        self.stopped = False
        held, self._inbox = self._inbox, []
        for item in held:
            item()

    def die(self) -> None:
        """SIGKILL."""
        self.alive = False

    def reborn(self, key: int) -> SimWorker:
        """The same process with a new connection: tasks and transfers are gone, the cache is there."""
        self.die()
        again = type(self)(self.world, key, self.hello)
        again.cache, again.manager_id, again.slowness = self.cache, self.manager_id, self.slowness
        return again

    # ------------------------------------------------------------------ cache

    def _welcome(self, message: msg.Welcome) -> None:
        if self.manager_id not in ("", message.manager_id):
            self.cache = {name: held for name, held in self.cache.items() if held[2] > VINE_CACHE_LEVEL_WORKFLOW}
        self.manager_id = message.manager_id
        entries = tuple(msg.CacheEntry(name, size, level, sha) for name, (size, sha, level) in self.cache.items())
        self.send(msg.CacheOffer(entries))

    def _put(self, message: msg.PutInline) -> None:
        if self.world.chance("disk_full"):
            self.send(msg.CacheInvalid(message.name, 0, msg.BLAME_SELF, "No space left on device"))
            return
        self.cache[message.name] = (len(message.data), message.sha256, message.level)
        self._start_what_can()

    def _set_level(self, message: msg.SetLevel) -> None:
        held = self.cache.get(message.name)
        if held is not None:
            self.cache[message.name] = (held[0], held[1], message.level)

    def _fetch(self, message: msg.Fetch) -> None:
        self.fetching[message.name] = message.transfer_id
        self.world.network.transfer(self, message)

    def fetched(self, message: msg.Fetch, size: int, sha256: bytes) -> None:
        """The world delivered an object."""
        if self.fetching.get(message.name) != message.transfer_id or not self.alive:
            return
        if self.stopped:
            self._inbox.append(lambda: self.fetched(message, size, sha256))
            return
        del self.fetching[message.name]
        self.cache[message.name] = (size, sha256, message.level)
        self.send(msg.CacheUpdate(message.name, message.transfer_id, size, sha256, self.world.clock.now, 0.01))
        self._start_what_can()

    def fetch_failed(self, message: msg.Fetch | msg.MiniTask, blame: int, reason: str) -> None:
        """The world did not deliver it."""
        if self.alive and self.fetching.pop(message.name, None) is not None:
            self.send(msg.CacheInvalid(message.name, message.transfer_id, blame, reason))

    def _mini_task(self, message: msg.MiniTask) -> None:
        self.fetching[message.name] = message.transfer_id

        def done() -> None:
            if self.alive and self.fetching.get(message.name) == message.transfer_id:
                del self.fetching[message.name]
                sha = digest_of(message.spec.command, message.name)
                self.cache[message.name] = (OUTPUT_BYTES, sha, message.level)
                self.send(
                    msg.CacheUpdate(message.name, message.transfer_id, OUTPUT_BYTES, sha, self.world.clock.now, 0.05)
                )
                self._start_what_can()

        self.world.clock.after(0.05, done)

    def _unlink(self, message: msg.Unlink) -> None:
        for name in message.names:
            self.cache.pop(name, None)
            self.fetching.pop(name, None)

    def lose(self, name: str) -> None:
        """A cached object is found corrupt."""
        if self.cache.pop(name, None) is not None:
            self.send(msg.CacheGone((name,), "size does not match"))

    # ------------------------------------------------------------------ tasks

    def _dispatch(self, message: msg.Dispatch) -> None:
        self.queue.append(message)
        self._start_what_can()

    def _start_what_can(self) -> None:
        for order in list(self.queue):
            if self.in_use.cores >= self.hello.resources.cores and not order.allocation.gpus:
                continue
            if not all(mount.name in self.cache for mount in order.spec.inputs):
                continue
            if not self.in_use.plus(order.allocation).fits_in(self.hello.resources):
                continue
            self.queue.remove(order)
            self._start(order)

    def _start(self, order: msg.Dispatch) -> None:
        for mount in order.spec.inputs:
            self.world.check_content(mount.name, self.cache[mount.name][1])
        self.running[order.task_id] = order
        self.in_use = self.in_use.plus(order.allocation)
        start = self.world.clock.now
        self.world.started(order)
        self.world.clock.after(self.world.run_time_s() * self.slowness, lambda: self._ended(order, start))
        self._watch(order)

    def _watch(self, order: msg.Dispatch) -> None:
        """Watched outputs show their first bytes at once."""
        for mount in order.spec.outputs:
            if mount.flags & VINE_WATCH:
                self.send(msg.WatchData(order.task_id, order.attempt, mount.name, 0, b"begin"))

    def _ended(self, order: msg.Dispatch, start: float) -> None:
        if not self.alive or self.running.get(order.task_id) is not order:
            return
        if self.stopped:
            self._inbox.append(lambda: self._ended(order, start))
            return
        del self.running[order.task_id]
        self.in_use = self.in_use.minus(order.allocation)
        forsaken = self.world.chance("forsaken")
        failed = order.spec.command.startswith(FAILING)
        outputs = order.spec.outputs
        reports = () if forsaken or failed else tuple(self._output(order, at) for at in range(len(outputs)))
        missing = tuple(mount.remote for mount in outputs) if failed else ()
        result = VINE_RESULT_FORSAKEN if forsaken else VINE_RESULT_SUCCESS
        self.send(
            msg.TaskDone(
                order.task_id,
                order.attempt,
                result,
                int(failed),
                b"",
                0,
                "",
                reports,
                missing,
                start,
                self.world.clock.now,
                msg.NOT_MEASURED,
                "simulated trouble" if forsaken else "",
            )
        )
        self._start_what_can()

    def _output(self, order: msg.Dispatch, at: int) -> msg.OutputReport:
        mount, level = order.spec.outputs[at], order.output_levels[at]
        sha = digest_of(order.spec.command, mount.name)
        temp = mount.name.startswith("temp-")
        small = self.world.tiny_temps and bool(sha[0] & 1) if temp else not self.world.large_outputs
        if mount.name in order.want_inline and small:
            if level > VINE_CACHE_LEVEL_TASK:
                self.cache[mount.name] = (len(sha), sha, level)
            return msg.OutputReport(mount.name, len(sha), sha, 0o644, False, sha)
        self.cache[mount.name] = (OUTPUT_BYTES, sha, level)
        return msg.OutputReport(mount.name, OUTPUT_BYTES, sha, 0o644, False, None)

    def _kill(self, message: msg.Kill) -> None:
        self._recall_ids(set(message.task_ids))
        for task_id in message.task_ids:
            order = self.running.pop(task_id, None)
            if order is not None:
                self.in_use = self.in_use.minus(order.allocation)
        self._start_what_can()

    def _recall(self, message: msg.Recall) -> None:
        self.send(msg.Recalled(tuple(self._recall_ids(set(message.task_ids)))))

    def _recall_ids(self, ids: set[int]) -> list[int]:
        taken = [order.task_id for order in self.queue if order.task_id in ids]
        self.queue = [order for order in self.queue if order.task_id not in ids]
        return taken

    # ------------------------------------------------------------------ the rest

    def _upload(self, message: msg.Upload) -> None:
        held = self.cache.get(message.name)
        if held is None:
            self.send(msg.UploadFailed(message.transfer_id, "not in the cache"))
        else:
            self.world.network.upload(self, message, held[0], held[1])

    def _ping(self, message: msg.Ping) -> None:
        self.send(msg.Pong(message.nonce))

    def _release(self, message: msg.Release) -> None:
        self.alive = False
        self.world.released(self)

    @property
    def resources(self) -> Resources:
        """What it offers."""
        return self.hello.resources

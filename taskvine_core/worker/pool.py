"""Threads for work that would hold up the loop, and the way their results come back.

Owns the threads. Must not know what the work is. A job is a callable; whatever it returns is handed to the loop
through ``drain`` after the wake-up descriptor became readable.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@contextlib.contextmanager
def spared_from_child_signals() -> Iterator[None]:
    """Threads started inside never take a SIGCHLD.

    The loop's thread has it blocked while it starts a process: each child that ends meanwhile would wake another
    thread for nothing, which then wants the interpreter.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Mailbox:
    """Results from any thread to the loop; ``fd`` becomes readable when there are some."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._items: deque[Any] = deque()

    def post(self, item: Any) -> None:
        """Called in any thread."""
        self._items.append(item)
        os.eventfd_write(self.fd, 1)

    def drain(self) -> list[Any]:
        """Everything posted so far; called in the loop."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items


class Pool:
    """At most ``max_threads`` daemon threads, started when there is work and none is free."""

    def __init__(self, name: str, max_threads: int) -> None:
        self._name = name
        self._max_threads = max_threads
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Condition()
        self._threads = 0
        self._free = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job`` in a thread; it must not raise."""
        with self._lock:
            self._jobs.append(job)
            if self._free < len(self._jobs) and self._threads < self._max_threads:
                self._threads += 1
                with spared_from_child_signals():
                    threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
            self._lock.notify()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._free += 1
                while not self._jobs:
                    self._lock.wait()
                self._free -= 1
                job = self._jobs.popleft()
            try:
                job()
            except Exception:       # a defect; the thread must stay, others depend on it
                import traceback

                traceback.print_exc()

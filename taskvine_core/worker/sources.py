"""File descriptors that the loop waits for, and who is told.

Owns the epoll set. Must not know what any of them is.
"""

from __future__ import annotations

import select
from collections.abc import Callable

READ, WRITE, BROKEN = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP
_EVENTS_PER_POLL = 64


class Sources:
    """One epoll set. Handlers get the mask of what happened."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}

    def watch(self, fd: int, handler: Callable[[int], None], mask: int = READ) -> None:
        """From now on tell ``handler``; called again for a changed ``mask``."""
        known = self._masks.get(fd)
        if known is None:
            self._epoll.register(fd, mask)
        elif known != mask:
            self._epoll.modify(fd, mask)
        self._handlers[fd], self._masks[fd] = handler, mask

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            del self._masks[fd]
            self._epoll.unregister(fd)

    def poll(self, timeout_s: float) -> None:
        """Wait for something to happen and tell whom it concerns."""
        for fd, mask in self._epoll.poll(timeout_s, _EVENTS_PER_POLL):
            handler = self._handlers.get(fd)  # one told before may have forgotten it
            if handler is not None:
                handler(mask)

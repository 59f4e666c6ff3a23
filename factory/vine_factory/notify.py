"""Telling systemd how the factory is, where systemd started it (Type=notify).

Owns the few words of that protocol. Without NOTIFY_SOCKET nothing happens; a message that cannot be sent is lost and
matters to nobody but systemd.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

_MICROSECONDS = 1e-6
_ASKED_FOR = 3  # messages per watchdog period: one may be late


class Notifier:
    """Takes its socket from ``environment`` and from there only."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        period = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._alive_every_s = float(period) * _MICROSECONDS / _ASKED_FOR if period.isdigit() and mine else 0.0
        self._alive_at = float("-inf")
        self._ready = False
        self._status = ""

    def passed(self, status: str) -> None:
        """A pass is complete: with the first one the factory is ready. ``status``: one line for `systemctl status`."""
        words = [] if self._ready else ["READY=1"]
        if status != self._status:
            words.append("STATUS=" + status.replace("\n", " "))
        self._ready, self._status = True, status
        self._send(words)

    def alive(self, now: float) -> None:
        """The loop goes round (seconds)."""
        if self._alive_every_s > 0 and now - self._alive_at >= self._alive_every_s:
            self._alive_at = now
            self._send(["WATCHDOG=1"])

    def stopping(self) -> None:
        """The end has begun."""
        self._send(["STOPPING=1"])

    def _send(self, words: list[str]) -> None:
        if not self._path or not words:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK  # systemd that does not read must not hold up the loop
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as out:
            out.sendto("\n".join(words).encode(), self._path)

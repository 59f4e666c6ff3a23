"""How a child process comes to be: its own session, a directory, an environment, stdin empty, one file for its output.

Owns the ways to start one and which of them this interpreter has. Must not know who waits for it or why it runs.

``_posixsubprocess`` is what ``subprocess`` itself stands on: vfork on the caller's own stack, the directory changed in
the child. ``os.posix_spawn`` makes and unmaps a stack per child, which interrupts the other processors, cannot change
the directory, and encodes the environment anew each time: 20 us more. It takes over where the other is missing or
takes other arguments.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Ignored by Python; a task expects the defaults.
_RESTORED = tuple(s for s in (signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)) if s is not None)
_ERROR_BYTES = 4096
#: What follows the streams and the error pipe: restore signals, new session, [group], no change of user; [vfork].
_TAIL: tuple[object, ...] = ((True, True, None, None, None, -1, None) if sys.version_info < (3, 11) else
                             (True, True, -1, None, None, None, -1, None, True))


class Spawner:
    """Starts processes. Each leads its own session and group.

    Args:
        plain: use ``os.posix_spawn`` even where there is something faster.
    """

    def __init__(self, plain: bool = False) -> None:
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._fork_exec = None if plain else _find_fork_exec()
        self._error_read, self._error_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._failures = select.poll()
        self._failures.register(self._error_read, select.POLLIN)

    def start(self, argv: Sequence[str], cwd: str, env: Sequence[bytes], stdout_fd: int,
              keep: tuple[int, ...] = ()) -> int:
        """Start ``argv`` in ``cwd`` with the variables ``env`` (``NAME=value`` each); returns its pid.

        Args:
            keep: descriptors the child inherits under the same number.

        Raises:
            OSError: it cannot be started. ValueError: text no system call takes.
        """
        if self._fork_exec is not None:
            try:
                pid: int = self._fork_exec(argv, (os.fsencode(argv[0]),), False, keep, cwd, env, self._null, -1, -1,
                                           stdout_fd, -1, stdout_fd, self._error_read, self._error_write, *_TAIL)
            except TypeError:
                self._fork_exec = None      # an interpreter whose subprocess calls it differently
            else:
                if self._failures.poll(0):  # the child has called exec, or failed to, when vfork returns
                    os.waitpid(pid, 0)
                    raise self._failure()
                return pid
        return self._start_plainly(argv, cwd, env, stdout_fd, keep)

    def _failure(self) -> OSError:
        """What the child said: name of the exception, errno in hexadecimal, what it was doing."""
        _, code, doing = os.read(self._error_read, _ERROR_BYTES).split(b":", 2)
        number = int(code, 16)
        return OSError(number, os.strerror(number) + (f" ({doing.decode()})" if doing else ""))

    def _start_plainly(self, argv: Sequence[str], cwd: str, env: Sequence[bytes], stdout_fd: int,
                       keep: tuple[int, ...]) -> int:
        variables = dict(entry.split(b"=", 1) for entry in env)
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, self._null, 0),
                                          (os.POSIX_SPAWN_DUP2, stdout_fd, 1), (os.POSIX_SPAWN_DUP2, stdout_fd, 2)]
        actions.extend((os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep)
        os.chdir(cwd)           # posix_spawn cannot; every path of the worker is absolute, so moving about is harmless
        try:
            return os.posix_spawn(argv[0], list(argv), variables, file_actions=actions, setsid=True,
                                  setsigdef=_RESTORED)
        except NotImplementedError:
            return self._start_slowly(argv, cwd, variables, stdout_fd, keep)

    def _start_slowly(self, argv: Sequence[str], cwd: str, env: dict[bytes, bytes], stdout_fd: int,
                      keep: tuple[int, ...]) -> int:
        """For a C library whose posix_spawn knows no sessions."""
        import subprocess

        process = subprocess.Popen(argv, cwd=cwd, env=env, stdin=self._null, stdout=stdout_fd, stderr=stdout_fd,
                                   start_new_session=True, pass_fds=keep)
        process.returncode = 0      # Popen must not wait for it: the owner of all children does
        return process.pid


def _find_fork_exec() -> Callable[..., Any] | None:
    try:
        from _posixsubprocess import fork_exec
    except ImportError:             # not CPython
        return None
    return fork_exec

"""Running one command of a batch system: a deadline, bounded output, nothing left behind.

Owns the child process and what its failure to answer means. Must not know any batch system, nor read meaning into
an exit status: that differs from tool to tool.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

from taskvine_core.errors import BatchRejected, BatchUnavailable
from taskvine_core.records import NamedTuple
from vine_factory import defaults

_READ_BYTES = 1 << 16
_REAP_S = 2.0  # a killed process is gone at once, unless it is stuck in the kernel: then nobody can wait for it


class Finished(NamedTuple):
    """A command that ended. ``status`` negative: the signal that ended it."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """Its own words: what it complained of, else what it printed, cut to what a person reads."""
        text = self.stderr.strip() or self.stdout.strip() or f"exit status {self.status} and not a word"
        return text[-defaults.SAID_CHARS:]


def run(argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = defaults.TOOL_TIMEOUT_S,
        environment: Mapping[str, str] | None = None, whole: bool = False,
        max_bytes: int = defaults.TOOL_MAX_BYTES) -> Finished:
    """Run a command to its end.

    Args:
        argv: program and arguments; never a shell line.
        stdin: what it reads.
        timeout_s: after this it is killed with everything it started.
        environment: added to ours. Messages are always in English, so that they can be recognised.
        whole: ``environment`` is all it gets, nothing of ours.
        max_bytes: of standard output, and of standard error.

    Raises:
        BatchRejected: the program is not there or cannot be run.
        BatchUnavailable: no end in time, or more output than can be true. It may have had its effect.
    """
    words = tuple(argv)
    try:
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 env={**({} if whole else os.environ), **(environment or {}), "LC_ALL": "C"},
                                 start_new_session=True)
    except OSError as problem:
        raise BatchRejected(f"cannot run {words[0]!r}", said=problem.strerror or str(problem),
                            hint="is the batch system's client installed and on PATH?") from problem
    try:
        out, err = _converse(child, stdin, time.monotonic() + timeout_s, timeout_s, max_bytes)
        status = child.wait(_REAP_S)
    except (BatchUnavailable, subprocess.TimeoutExpired) as problem:
        _kill(child)
        if isinstance(problem, BatchUnavailable):
            raise
        raise BatchUnavailable(f"{words[0]} closed its output and did not end") from problem
    except BaseException:
        _kill(child)
        raise
    finally:
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None and not stream.closed:
                stream.close()
    return Finished(words, status, out.decode(errors="replace"), err.decode(errors="replace"))


def _converse(child: subprocess.Popen[bytes], stdin: bytes, deadline: float, timeout_s: float,
              max_bytes: int) -> tuple[bytes, bytes]:
    """Feed and read until both outputs are closed."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    taken: dict[IO[bytes], bytearray] = {child.stdout: bytearray(), child.stderr: bytearray()}
    rest = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for stream in taken:
            selector.register(stream, selectors.EVENT_READ)
        os.set_blocking(child.stdin.fileno(), False)
        selector.register(child.stdin, selectors.EVENT_WRITE)
        while any(stream in selector.get_map() for stream in taken):
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready and deadline - time.monotonic() <= 0:
                raise BatchUnavailable(f"{child.args[0]!r} did not end within {timeout_s:g} s",  # type: ignore[index]
                                       said=bytes(taken[child.stderr])[-defaults.SAID_CHARS:].decode(errors="replace"))
            for key, _ in ready:
                if key.fileobj is child.stdin:
                    rest = _feed(child.stdin, rest)
                    if not rest:
                        selector.unregister(child.stdin)
                        child.stdin.close()
                    continue
                stream = child.stdout if key.fileobj is child.stdout else child.stderr
                data = os.read(stream.fileno(), _READ_BYTES)
                taken[stream] += data
                if not data:
                    selector.unregister(stream)
                if len(taken[stream]) > max_bytes:
                    raise BatchUnavailable(f"{child.args[0]!r} printed more than {max_bytes} bytes")  # type: ignore[index]
    return bytes(taken[child.stdout]), bytes(taken[child.stderr])


def _feed(stream: IO[bytes], rest: memoryview) -> memoryview:
    """Write what fits; a child that does not want to read is no error."""
    try:
        return rest[os.write(stream.fileno(), rest[:_READ_BYTES]):] if rest else rest
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        return  # in the kernel, on a dead file server: it goes when it can

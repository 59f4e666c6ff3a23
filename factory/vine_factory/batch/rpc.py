"""A helper process for a client library that freezes, crashes or needs an environment of its own.

Owns starting, asking, and ending the helper, and what its silence means; and the loop inside it. HTCondor's bindings
hold the interpreter for 20 s when a schedd hangs, libslurm ends the process it is loaded in, libdrmaa must find its
tunables before Python starts: none of that may happen to the factory. One JSON object per line in both directions.
Must not know any batch system. Used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable
from vine_factory import defaults

_READ_BYTES = 1 << 16
_END_S = 2.0


class Helper:
    """Client side: one helper process, started when needed, replaced when it hangs or dies.

    Args:
        module: run as ``python -m module``; it calls `serve`.
        environment: added to ours, present before its Python starts.
        timeout_s: for an answer, when a call says nothing else.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None,
                 timeout_s: float = defaults.TOOL_TIMEOUT_S) -> None:
        self._module = module
        self._environment = dict(environment or {})
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._asked = 0

    def call(self, method: str, timeout_s: float | None = None, /, **arguments: Any) -> Any:
        """Ask; returns the answer.

        Raises:
            BatchRejected, BatchUnavailable: as the helper's function raised it, or BatchUnavailable when there was no
                answer in time (the helper is killed then) or it died. The call may have had its effect.
        """
        self._asked += 1
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        line = json.dumps({"id": self._asked, "method": method, "arguments": arguments}).encode() + b"\n"
        process = self._started()
        try:
            self._write(process, line, deadline)
            answer = self._answer(process, deadline)
        except _NoAnswer as problem:
            words = f"no answer to {method!r} within {limit_s:g} s" if problem.late else \
                f"the helper process ended with status {self._end()}"
            self._end()
            raise BatchUnavailable(f"{self._module}: {words}") from None
        except BaseException:
            self._end()  # half a conversation must not be taken for the answer to the next question
            raise
        if "error" in answer:
            kind = BatchRejected if answer.get("kind") == "rejected" else BatchUnavailable
            raise kind(str(answer["error"]), said=str(answer.get("said", "")), hint=str(answer.get("hint", "")))
        return answer.get("result")

    def close(self) -> None:
        """End the helper."""
        self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._buffer.clear()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None,
                env={**os.environ, **self._environment}, start_new_session=True)
        except OSError as problem:
            raise BatchUnavailable(f"cannot start {self._module}", said=str(problem)) from problem
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        return self._process

    def _write(self, process: subprocess.Popen[bytes], line: bytes, deadline: float) -> None:
        assert process.stdin is not None
        rest = memoryview(line)
        while rest:
            _wait(process.stdin.fileno(), select.POLLOUT, deadline)
            try:
                rest = rest[os.write(process.stdin.fileno(), rest):]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _NoAnswer(late=False) from None

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                answer = _decoded(line)
                if answer is not None and answer.get("id") == self._asked:
                    return answer
                continue  # a library that prints to standard output: not ours
            if len(self._buffer) > defaults.TOOL_MAX_BYTES:
                raise BatchUnavailable(f"{self._module} answered with more than {defaults.TOOL_MAX_BYTES} bytes")
            _wait(process.stdout.fileno(), select.POLLIN, deadline)
            try:
                data = os.read(process.stdout.fileno(), _READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                raise _NoAnswer(late=False)
            self._buffer += data

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            return process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return None


class _NoAnswer(Exception):
    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self.late = late


def _wait(fd: int, events: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, events)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise _NoAnswer(late=True)


def _decoded(line: bytes | bytearray) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Inside the helper: answer questions on standard input until it closes.

    ``functions`` by method name, called with the question's arguments as keywords; they return JSON-able values or
    raise BatchError. Whatever a library prints to standard output goes to standard error instead.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        try:
            reply: dict[str, Any] = {"result": functions[question["method"]](**question["arguments"])}
        except BatchError as problem:
            kind = "rejected" if isinstance(problem, BatchRejected) else "unavailable"
            reply = {"error": problem.message, "kind": kind, "said": problem.said, "hint": problem.hint}
        except Exception as problem:  # a library's own error that nobody translated: nothing is known then
            reply = {"error": f"{type(problem).__name__}: {problem}", "kind": "unavailable"}
        rest = memoryview(json.dumps({"id": question["id"], **reply}).encode() + b"\n")
        while rest:
            rest = rest[answers.write(rest):]

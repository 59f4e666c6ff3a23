"""The connection to a manager of the C implementation: a question in plain text, a JSON answer, again and again.

Owns the thread, the sockets and the HTTP query of a catalog. Orders to retire are answered with no: such managers have
no word for it, their workers leave by their idle timeout. Must not know what the numbers mean.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from taskvine_core import tls
from taskvine_core.errors import ConfigError, RemoteProtocolError, VineError
from vine_factory import classic, defaults
from vine_factory.demand import Demand, Shape, Standing
from vine_factory.events import RetireAnswered, RetireWorkers
from vine_factory.readings import Known, Reading, Unknown

_READ_BYTES = 256 * 1024
_NO_RETIRE = "managers of the C implementation cannot be asked to; its idle timeout ends the worker"


def query(host: str, port: int, what: str, use_tls: bool) -> list[object]:
    """Ask a manager in plain text.

    Raises:
        OSError: no connection, or silence.
        RemoteProtocolError: the answer is no JSON list, or larger than anything true.
    """
    deadline = time.monotonic() + defaults.ANSWER_TIMEOUT_S
    with socket.create_connection((host, port), defaults.CONNECT_TIMEOUT_S) as plain:
        link = tls.client_context(None).wrap_socket(plain, server_hostname=host) if use_tls else plain
        link.sendall(what.encode() + b"\n")
        data = bytearray()
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no whole answer to {what} in {defaults.ANSWER_TIMEOUT_S:g} s")
            link.settimeout(left)
            chunk = link.recv(_READ_BYTES)
            if not chunk:
                break
            data += chunk
            if len(data) > defaults.MAX_ANSWER_BYTES:
                raise RemoteProtocolError(f"the manager's answer to {what} has more than {len(data)} bytes")
    if not data:
        raise RemoteProtocolError(f"the manager does not answer {what}: it is none of the C implementation, or has a "
                                  "password (then only a catalog tells of it)")
    return _list(bytes(data), f"the manager's answer to {what}")


def _list(data: bytes, what: str) -> list[object]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise RemoteProtocolError(f"{what} is not JSON: {problem}") from problem
    if not isinstance(body, list):
        raise RemoteProtocolError(f"{what} is {type(body).__name__}, expected a list")
    return body


class Catalog:
    """Servers "host:port", the first that answers counts. Asked at most every CATALOG_PERIOD_S."""

    def __init__(self, servers: str) -> None:
        self._servers = [server.strip() for server in servers.split(",") if server.strip()]
        self._asked_at = float("-inf")
        self._found: list[Mapping[str, Any]] = []

    def managers(self) -> list[Mapping[str, Any]]:
        """Records of managers.

        Raises:
            OSError, VineError: no server answers well: nothing is known.
        """
        if time.monotonic() - self._asked_at < defaults.CATALOG_PERIOD_S:
            return self._found
        failure: Exception = ConfigError("no catalog server is given")
        for server in self._servers:
            try:
                self._found = classic.managers(self._query(server))
                self._asked_at = time.monotonic()
                return self._found
            except (OSError, VineError) as problem:
                failure = problem
        raise failure

    @staticmethod
    def _query(server: str) -> list[object]:
        host, _, port = server.rpartition(":") if ":" in server else (server, "", str(defaults.CATALOG_PORT))
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/query.json",
                                        timeout=defaults.ANSWER_TIMEOUT_S) as answer:
                data = answer.read(defaults.MAX_ANSWER_BYTES + 1)
        except ValueError as problem:
            raise ConfigError(f"catalog {server!r}: {problem}", hint="expected host:port") from problem
        except urllib.error.URLError as problem:
            raise OSError(f"the catalog {server} does not answer: {problem.reason}") from problem
        if len(data) > defaults.MAX_ANSWER_BYTES:
            raise RemoteProtocolError(f"the answer of the catalog {server} has more than "
                                      f"{defaults.MAX_ANSWER_BYTES} bytes")
        return _list(data, f"the answer of the catalog {server}")


@lru_cache(maxsize=8)
def catalog(servers: str) -> Catalog:
    """The one client of these servers, so that what it heard is kept."""
    return Catalog(servers)


class ClassicLink:
    """The thread of one such manager. Takes the same calls as `links.ManagerLink`.

    Args:
        key: its name in readings and events.
        hosts, port, use_tls: where it is.
        shapes: of the pools.
        rules: how need is worked out; replaced as a whole when settings change.
        factory_name: ours.
        period_s: pause between questions, at least.
        reading: takes each reading; called from the thread.
        answered: takes answers to retirements; called from the caller's thread.
        clock: seconds since the epoch.

    ``record`` is what a catalog says now, with the time it was heard; it counts while the manager itself says nothing.
    """

    def __init__(self, key: str, hosts: Sequence[str], port: int, use_tls: bool, shapes: Sequence[Shape],
                 rules: classic.Rules, factory_name: str, period_s: float,
                 reading: Callable[[str, Reading[Demand]], None], answered: Callable[[RetireAnswered], None],
                 clock: Callable[[], float]) -> None:
        self.key = key
        self.shapes = tuple(shapes)
        self.rules = rules
        self.standings: tuple[Standing, ...] = ()
        self.record: Mapping[str, Any] | None = None
        self._hosts, self._port, self._use_tls = tuple(hosts), port, use_tls
        self._factory_name = factory_name
        self._period_s = period_s
        self._reading = reading
        self._answered = answered
        self._clock = clock
        self._lost_at: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._run, name=f"classic-{key}", daemon=True).start()

    def retire(self, order: RetireWorkers) -> None:
        """Answers with no for each."""
        self._answered(RetireAnswered(self.key, (), {job: _NO_RETIRE for job, _ in order.workers}))

    def close(self) -> None:
        """Let the thread end; does not wait for it."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            started = self._clock()
            try:
                found: Reading[Demand] = Known(self._look(), started)
                self._lost_at = None
            except (OSError, VineError) as problem:
                self._lost_at = started if self._lost_at is None else self._lost_at
                found = Unknown(str(problem) or type(problem).__name__, self._lost_at)
            if not self._closed.is_set():
                self._reading(self.key, found)
            self._closed.wait(max(self._period_s, (self._clock() - started) / defaults.ASKING_SHARE))

    def _look(self) -> Demand:
        record, workers = self._ask()
        shapes, rules = self.shapes, self.rules
        if len(rules.asked) != len(shapes):
            raise RemoteProtocolError("the pools are changing")
        # All of ours that run count as not connected, because no job id is told.
        submitted = sum(standing.pending for standing in self.standings)
        return classic.demand(record, workers, shapes, rules, self._factory_name, submitted)

    def _ask(self) -> tuple[Mapping[str, Any], list[object] | None]:
        failure: Exception = OSError("the manager has no address")
        for host in self._hosts:
            try:
                found = query(host, self._port, "manager_status", self._use_tls)
                if not found or not isinstance(found[0], dict):
                    raise RemoteProtocolError("the manager's answer to manager_status has no record")
                return found[0], query(host, self._port, "worker_status", self._use_tls)
            except (OSError, VineError) as problem:
                failure = problem
        if self.record is None:
            raise failure
        return self.record, None

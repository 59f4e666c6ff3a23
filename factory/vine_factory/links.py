"""Connections to managers: each in a thread of its own, so that a manager that hangs delays nobody.

Owns connecting, the handshake, asking "demand" again and again and "retire" when told. Turns every outcome into a
reading or an event. Must not know what the numbers are used for.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence

from taskvine_core import tls
from taskvine_core.errors import RemoteProtocolError, VineError
from taskvine_core.protocol.messages import Query, Reply
from taskvine_core.protocol.session import Session
from taskvine_core.records import NamedTuple
from vine_factory import defaults
from vine_factory.demand import Demand, Shape, Standing, parse_demand, question
from vine_factory.events import RetireAnswered, RetireWorkers
from vine_factory.readings import Known, Reading, Unknown

_READ_BYTES = 256 * 1024
_NONCE_BYTES = 32


class Address(NamedTuple):
    """Where a manager is: hosts to try in order, its port, and its certificate's fingerprint (hex) when known."""

    hosts: tuple[str, ...]
    port: int
    fingerprint: str
    use_tls: bool


class ManagerConnection:
    """One authenticated connection in the role "factory". Blocking, with timeouts; for one thread."""

    def __init__(self, address: Address, secret: bytes) -> None:
        self._socket: socket.socket = _connect(address)
        try:
            binding = b""
            if address.use_tls:
                context = tls.client_context(bytes.fromhex(address.fingerprint) if address.fingerprint else None)
                secure = context.wrap_socket(self._socket, server_hostname=address.hosts[0])
                self._socket = secure
                binding = tls.peer_fingerprint(secure)
            self._session = Session(secret=secret, role="factory", initiator=True, nonce=os.urandom(_NONCE_BYTES),
                                    binding=binding, mac=not address.use_tls)
            self._pending: list[Reply] = []
            self._number = 0
            self._socket.sendall(self._session.start())
            while not self._session.established:
                self._read()
            self._socket.settimeout(defaults.ANSWER_TIMEOUT_S)
        except BaseException:
            self._socket.close()
            raise

    def ask(self, what: str, body: object) -> object:
        """One question, one answer.

        Raises:
            RemoteProtocolError: the manager refused it or sent garbage.
            OSError: the connection broke or was silent for too long.
        """
        self._number += 1
        self._socket.sendall(self._session.encode([Query(self._number, what, json.dumps(body).encode())]))
        while True:
            for reply in self._pending:
                if reply.query_id == self._number:
                    self._pending = []
                    return _decode(reply, what)
            self._read()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self) -> None:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the manager closed the connection")
        messages, answer = self._session.receive(data)
        if answer:
            self._socket.sendall(answer)
        self._pending += [message for message in messages if isinstance(message, Reply)]


def _connect(address: Address) -> socket.socket:
    failure: OSError | None = None
    for host in address.hosts:
        try:
            return socket.create_connection((host, address.port), defaults.CONNECT_TIMEOUT_S)
        except OSError as problem:
            failure = problem
    raise failure or OSError("the manager has no address")


def _decode(reply: Reply, what: str) -> object:
    if reply.error:
        raise RemoteProtocolError(f"the manager refused {what!r}: {reply.error}")
    if len(reply.body) > defaults.MAX_ANSWER_BYTES:
        raise RemoteProtocolError(f"the manager's answer to {what!r} has {len(reply.body)} bytes")
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError) as problem:
        raise RemoteProtocolError(f"the manager's answer to {what!r} is not JSON: {problem}") from problem


class ManagerLink:
    """The thread of one manager.

    Args:
        key: its name in readings and events.
        address: where it is.
        secret: the shared key.
        factory_name: told to the manager.
        factory_id: tells this factory from others.
        standings: of the pools, for the first question.
        period_s: pause between questions, at least.
        reading: takes each reading; called from the thread.
        answered: takes answers to retirements; called from the thread.
        clock: seconds since the epoch.
    """

    def __init__(self, key: str, address: Address, secret: bytes, shapes: Sequence[Shape], factory_name: str,
                 factory_id: str, standings: Sequence[Standing], period_s: float,
                 reading: Callable[[str, Reading[Demand]], None], answered: Callable[[RetireAnswered], None],
                 clock: Callable[[], float]) -> None:
        self.key = key
        self.address = address
        self.shapes = tuple(shapes)  # replaced as a whole when settings change
        self._secret = secret
        self.standings = tuple(standings)  # replaced as a whole after each pass
        self._factory_name = factory_name
        self._factory_id = factory_id
        self._period_s = period_s
        self._reading = reading
        self._answered = answered
        self._clock = clock
        self._orders: queue.SimpleQueue[RetireWorkers | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._connection: ManagerConnection | None = None
        self._lost_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"manager-{key}", daemon=True)
        self._thread.start()

    def retire(self, order: RetireWorkers) -> None:
        """Ask the manager to let workers go; the outcome comes to ``answered``, also when it fails."""
        self._orders.put(order)

    def close(self) -> None:
        """Let the thread end; does not wait for it."""
        self._closed.set()
        self._orders.put(None)

    def _run(self) -> None:
        pause = 0.0
        backoff = defaults.RECONNECT_FIRST_S
        while not self._closed.is_set():
            order = self._next_order(pause)
            if self._closed.is_set():
                break
            started = self._clock()
            try:
                if order is not None:
                    self._retire(order)
                self._ask_demand(started)
                backoff = defaults.RECONNECT_FIRST_S
                pause = max(self._period_s, (self._clock() - started) / defaults.ASKING_SHARE)
            except (OSError, VineError) as problem:
                if order is not None:
                    self._refused(order, str(problem))
                self._lose(problem)
                pause, backoff = backoff, min(defaults.RECONNECT_MAX_S, 2 * backoff)
        if self._connection is not None:
            self._connection.close()

    def _next_order(self, pause: float) -> RetireWorkers | None:
        try:
            return self._orders.get(timeout=pause) if pause > 0 else self._orders.get_nowait()
        except queue.Empty:
            return None

    def _open(self) -> ManagerConnection:
        if self._connection is None:
            self._connection = ManagerConnection(self.address, self._secret)
        return self._connection

    def _ask_demand(self, started: float) -> None:
        shapes = self.shapes
        standings = self.standings if len(self.standings) == len(shapes) else (Standing(0, 0),) * len(shapes)
        asked = question(shapes, standings, self._factory_name, self._factory_id, self._period_s)
        demand = parse_demand(self._open().ask("demand", asked), len(shapes))
        self._lost_at = None
        self._reading(self.key, Known(demand, started))

    def _retire(self, order: RetireWorkers) -> None:
        jobs = {worker: job for job, worker in order.workers}
        answer = self._open().ask("retire", {"worker_ids": list(jobs), "reason": order.reason})
        if not isinstance(answer, dict) or not isinstance(answer.get("accepted"), list) \
                or not isinstance(answer.get("refused"), dict):
            raise RemoteProtocolError("the manager's answer to 'retire' has no accepted and refused workers")
        refused = answer["refused"]
        # A job of several workers leaves as a whole, when all of them may.
        kept = {job: str(refused.get(worker, "not answered")) for worker, job in jobs.items()
                if worker not in answer["accepted"]}
        accepted = tuple(job for job in dict.fromkeys(jobs.values()) if job not in kept)
        self._answered(RetireAnswered(self.key, accepted, kept))

    def _refused(self, order: RetireWorkers, reason: str) -> None:
        self._answered(RetireAnswered(self.key, (), {job: reason for job, _ in order.workers}))

    def _lose(self, problem: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lost_at is None:
            self._lost_at = self._clock()
        if not self._closed.is_set():
            self._reading(self.key, Unknown(str(problem) or type(problem).__name__, self._lost_at))

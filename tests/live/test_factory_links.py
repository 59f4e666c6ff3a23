"""Links to managers: every way in which a manager can fail becomes an Unknown reading with its reason."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from taskvine_core.protocol.messages import Query, Reply
from taskvine_core.protocol.session import Session
from taskvine_core.resources import Resources
from vine_factory import defaults
from vine_factory.demand import Demand, Shape
from vine_factory.events import RetireAnswered, RetireWorkers
from vine_factory.links import Address, ManagerLink
from vine_factory.readings import Known, Reading, Unknown

pytestmark = pytest.mark.live
SECRET = b"s" * 32
PATIENCE_S = 10.0
GOOD = (b'{"manager_id": "m", "project": "p", "tasks_waiting": 1, "tasks_running": 0, "tasks_left": 1, '
        b'"groups": [{"category": "c", "tasks": 1, "seconds": null, "parts": [1.0], '
        b'"asks": {"cores": 1, "memory_mb": -1, "disk_mb": -1, "gpus": -1}}], "workers": [], "blocked_hosts": []}')


class Peer:
    """A listener that answers each question with what ``answer`` gives; None is silence, an error ends the link."""

    def __init__(self, answer: Callable[[Query], Reply | None], secret: bytes = SECRET, raw: bytes = b"") -> None:
        self.answer, self.secret, self.raw = answer, secret, raw
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections = 0
        self.readings: queue.Queue[Reading[Demand]] = queue.Queue()
        self.answers: queue.Queue[RetireAnswered] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()
        self.link = ManagerLink("m:1", Address(("127.0.0.1",), self.port, "", False), SECRET,
                                [Shape(Resources(1, 1, 1, 0))], "f", "f.1", (), 0.05,
                                lambda key, reading: self.readings.put(reading), self.answers.put, lambda: 1.0)

    def _run(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link:
            session = Session(secret=self.secret, role="manager", initiator=False, nonce=os.urandom(32))
            try:
                if self.raw:
                    link.sendall(self.raw)
                while data := link.recv(65536):
                    messages, greeting = session.receive(data)
                    link.sendall(greeting)
                    for message in messages:
                        reply = self.answer(message)
                        if reply is not None:
                            link.sendall(session.encode([reply]))
            except Exception:  # what the test is about is what the link makes of the end of the connection
                return

    def end(self) -> None:
        self.link.close()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Peer]]:
    monkeypatch.setattr(defaults, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(defaults, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(defaults, "RECONNECT_FIRST_S", 0.05)
    made: list[Peer] = []

    def make(*arguments: object, **options: object) -> Peer:
        made.append(Peer(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]
    yield make
    for peer in made:
        peer.end()


def good(query: Query) -> Reply:
    return Reply(query.query_id, GOOD, "")


def broken(query: Query) -> Reply:
    raise ConnectionError


def test_a_good_answer_is_known_and_asked_for_again_on_the_same_connection(peers: Callable[..., Peer]) -> None:
    peer = peers(good)
    for _ in range(3):
        reading = peer.readings.get(timeout=PATIENCE_S)
        assert isinstance(reading, Known) and reading.value.groups[0].tasks == 1
    assert peer.connections == 1


@pytest.mark.parametrize(("answer", "options", "words"), [
    (lambda q: Reply(q.query_id, b"{", ""), {}, "not JSON"),
    (lambda q: Reply(q.query_id, b"[" * 100_000, ""), {}, "not JSON"),
    (lambda q: Reply(q.query_id, b"{}", ""), {}, "no text 'manager_id'"),
    (lambda q: Reply(q.query_id, b"", "not your factory"), {}, "not your factory"),
    (lambda q: Reply(q.query_id + 7, GOOD, ""), {}, "timed out"),
    (lambda q: None, {}, "timed out"),
    (broken, {}, "closed the connection"),
    (good, {"secret": b"x" * 32}, ""),
    (good, {"raw": b"HTTP/1.1 400 Bad Request\r\n\r\n" * 40}, ""),
])
def test_whatever_goes_wrong_is_unknown_with_its_reason_and_tried_again(
        peers: Callable[..., Peer], answer: Callable[[Query], Reply | None], options: dict[str, bytes],
        words: str) -> None:
    peer = peers(answer, **options)
    for _ in range(2):
        reading = peer.readings.get(timeout=PATIENCE_S)
        assert isinstance(reading, Unknown)
        assert reading.reason and words in reading.reason
    assert peer.connections >= 2


def test_a_manager_that_comes_back_is_known_again(peers: Callable[..., Peer]) -> None:
    peer = peers(broken)
    assert isinstance(peer.readings.get(timeout=PATIENCE_S), Unknown)
    peer.answer = good
    while isinstance(peer.readings.get(timeout=PATIENCE_S), Unknown):
        pass


def test_a_retirement_is_answered_worker_by_worker(peers: Callable[..., Peer]) -> None:
    body = b'{"accepted": ["w1", "stranger"], "refused": {"w2": "busy"}}'
    peer = peers(lambda q: good(q) if q.what == "demand" else Reply(q.query_id, body, ""))
    peer.link.retire(RetireWorkers("m:1", (("j1", "w1"), ("j2", "w2"), ("j3", "w3")), "why", 1))
    assert peer.answers.get(timeout=PATIENCE_S) == RetireAnswered("m:1", ("j1",), {"j2": "busy", "j3": "not answered"})


def test_a_job_of_several_workers_leaves_when_all_of_them_may(peers: Callable[..., Peer]) -> None:
    body = b'{"accepted": ["w1", "w2", "w3"], "refused": {"w4": "busy"}}'
    peer = peers(lambda q: good(q) if q.what == "demand" else Reply(q.query_id, body, ""))
    peer.link.retire(RetireWorkers("m:1", (("j1", "w1"), ("j1", "w2"), ("j2", "w3"), ("j2", "w4")), "why", 1))
    assert peer.answers.get(timeout=PATIENCE_S) == RetireAnswered("m:1", ("j1",), {"j2": "busy"})


def test_a_retirement_that_fails_refuses_every_worker(peers: Callable[..., Peer]) -> None:
    peer = peers(broken)
    peer.link.retire(RetireWorkers("m:1", (("j1", "w1"),), "why", 1))
    answer = peer.answers.get(timeout=PATIENCE_S)
    assert answer.accepted == () and set(answer.refused) == {"j1"}

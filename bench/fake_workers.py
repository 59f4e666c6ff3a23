"""Many workers in one process, for benches of the manager: real handshakes and frames, tasks that end at once.

Every worker is one socket in one epoll set. It says hello, has an empty cache, answers each Dispatch with the TaskDone
of a no-op and each Ping with a Pong, and nothing else: it cannot take files. Bounded: connects in waves, buffers what a
slow manager does not read, ends when its standard input does.

    python bench/fake_workers.py HOST PORT --workers 4500 --cores 4      (the key file is found as by a worker)
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import time

from bench_support import raise_file_limit

from taskvine_core.constants import VINE_RESULT_SUCCESS
from taskvine_core.protocol import messages as msg
from taskvine_core.protocol.session import Session
from taskvine_core.resources import Resources
from taskvine_core.secret import load_secret

#: Connections under way at a time.
WAVE = 256
READ_BYTES = 1 << 18
NONCE_BYTES = 32
MEMORY_MB, DISK_MB = 64_000, 200_000


class FakeWorker:
    """One connection."""

    __slots__ = ("fd", "mask", "number", "session", "sock", "unsent", "welcome")

    def __init__(self, number: int, address: tuple[str, int], secret: bytes) -> None:
        self.number = number
        self.sock = socket.create_connection(address)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.sock.fileno()
        self.mask = select.EPOLLIN
        self.unsent = b""
        self.welcome = False
        self.session = Session(secret=secret, role="worker", initiator=True, nonce=os.urandom(NONCE_BYTES))
        self.send(self.session.start())

    def send(self, data: bytes) -> None:
        """As much as the kernel takes now; the rest waits for ``writable``."""
        if self.unsent:
            self.unsent += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self.unsent = data[sent:]

    def writable(self) -> None:
        data, self.unsent = self.unsent, b""
        self.send(data)

    def hello(self, cores: int) -> bytes:
        resources = Resources(cores, MEMORY_MB, DISK_MB, 0)
        name = f"fake-{self.number}"
        return self.session.encode([msg.WorkerHello(name, name, "linux", "x86_64", "bench", (), resources, "127.0.0.1",
                                                    0, 0.0, 0.0, "", "")])


class Herd:
    """All of them."""

    def __init__(self, address: tuple[str, int], cores: int) -> None:
        self.address = address
        self.cores = cores
        self.poll = select.epoll()
        self.by_fd: dict[int, FakeWorker] = {}
        self.secret = load_secret()
        self.welcomed = 0
        self.tasks = 0

    def connect(self, count: int) -> None:
        """Connect ``count`` more and wait until the manager has accepted them."""
        wanted = self.welcomed + count
        for number in range(self.welcomed, wanted):
            worker = FakeWorker(number, self.address, self.secret)
            self.by_fd[worker.fd] = worker
            self.poll.register(worker.fd, select.EPOLLIN)
        while self.welcomed < wanted:
            if not self.turn(10.0):
                sys.exit(f"fake workers: {self.welcomed} of {wanted} accepted, then silence")

    def turn(self, timeout_s: float) -> bool:
        """Serve what is there; False when the time passed in silence."""
        ready = self.poll.poll(timeout_s, 1024)
        for fd, mask in ready:
            if fd in self.by_fd:
                self.serve(self.by_fd[fd], mask)
            else:
                raise EOFError                   # standard input: whoever started us is gone
        return bool(ready)

    def serve(self, worker: FakeWorker, mask: int) -> None:
        if mask & select.EPOLLOUT:
            worker.writable()
        if mask & ~select.EPOLLOUT:
            try:
                data = worker.sock.recv(READ_BYTES)
            except OSError:
                data = b""
            if not data:
                self.poll.unregister(worker.fd)
                del self.by_fd[worker.fd]
                worker.sock.close()
                return
            self.take(worker, data)
        mask = select.EPOLLIN | (select.EPOLLOUT if worker.unsent else 0)
        if mask != worker.mask:
            worker.mask = mask
            self.poll.modify(worker.fd, mask)

    def take(self, worker: FakeWorker, data: bytes) -> None:
        session = worker.session
        fresh = not session.established
        messages, reply = session.receive(data)
        if reply:
            worker.send(reply)
        if fresh and session.established:
            worker.send(worker.hello(self.cores))
        answers: list[msg.FromWorker] = []
        now = time.time()
        for message in messages:
            kind = type(message)
            if kind is msg.Dispatch:
                self.tasks += 1
                answers.append(msg.TaskDone(message.task_id, message.attempt, VINE_RESULT_SUCCESS, 0, b"", 0, "", (),
                                            (), now, now, msg.NOT_MEASURED, ""))
            elif kind is msg.Ping:
                answers.append(msg.Pong(message.nonce))
            elif kind is msg.Recall:
                answers.append(msg.Recalled(()))
            elif kind is msg.Welcome and not worker.welcome:
                worker.welcome = True
                self.welcomed += 1
                answers.append(msg.CacheOffer(()))      # it gets tasks from now on
        if answers:
            worker.send(session.encode(answers))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("host")
    options.add_argument("port", type=int)
    options.add_argument("--workers", type=int, default=4500)
    options.add_argument("--cores", type=int, default=4)
    given = options.parse_args()
    raise_file_limit()
    herd = Herd((given.host, given.port), given.cores)
    left = given.workers
    while left:
        herd.connect(min(WAVE, left))
        left -= min(WAVE, left)
    print("connected", flush=True)
    herd.poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    try:
        while herd.by_fd:
            herd.turn(60.0)
    except EOFError:
        pass
    print(f"{herd.tasks} {time.process_time()}", flush=True)


if __name__ == "__main__":
    main()

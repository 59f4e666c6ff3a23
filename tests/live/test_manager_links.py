"""The manager's control connections over real sockets: when what is queued is written."""

from __future__ import annotations

import os
import socket
import time

from taskvine_core.manager.connections import BULK_BYTES, NONCE_BYTES, Connections, Listener
from taskvine_core.protocol.messages import PutInline, WorkerHello
from taskvine_core.protocol.session import Session
from taskvine_core.resources import Resources

SECRET = b"s" * 32
PATIENCE_S = 20.0
CONTENT_BYTES = 10_000
HELLO = WorkerHello("w", "h", "Linux", "x86_64", "1", (), Resources(1, 1, 1, 0), "", 0, 0.0, 0.0, "", "")


def test_contents_of_many_small_files_are_written_before_the_turn_ends() -> None:
    """The worker stores the first ones while the manager reads the next; and they are never all in memory."""
    keys: list[int] = []
    net = Connections(host="127.0.0.1", ports=(0, 0), secret=SECRET, tls=None, listener=Listener(
        established=lambda connection, messages: not keys.append(connection.key),
        messages=lambda connection, messages: None, closed=lambda connection, reason: None, note=lambda text: None))
    try:
        with socket.create_connection(("127.0.0.1", net.port), PATIENCE_S) as sock:
            session = Session(secret=SECRET, role="worker", initiator=True, nonce=os.urandom(NONCE_BYTES), binding=b"",
                              mac=True)
            sock.sendall(session.start())
            deadline = time.monotonic() + PATIENCE_S
            sock.settimeout(0.01)
            while not keys:
                assert time.monotonic() < deadline
                net.poll(0.01, time.time())
                net.flush()
                if not session.established:
                    try:
                        sock.sendall(session.receive(sock.recv(1 << 16))[1])
                    except TimeoutError:
                        continue
                    if session.established:
                        sock.sendall(session.encode([HELLO]))
            sock.settimeout(PATIENCE_S)
            for number in range(2 * BULK_BYTES // CONTENT_BYTES):
                net.send_bulk(keys[0], PutInline(f"file-rnd-{number}", 1, 0o644, b"", bytes(CONTENT_BYTES)),
                              CONTENT_BYTES)
            found: list[object] = []
            while not found:
                found += session.receive(sock.recv(1 << 20))[0]
            assert len(found) * CONTENT_BYTES >= BULK_BYTES
    finally:
        net.close()

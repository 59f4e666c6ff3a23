"""Stand-in for a manager of the C implementation: answers status queries in plain text, one per connection; and a
catalog server that lists it. The formats are the published ones."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ClassicManager:
    """``record`` and ``workers`` are what it answers; ``silent``: it closes each connection without a word, as one with
    a password does; ``raw``: it answers these bytes."""

    def __init__(self, **record: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.record: dict[str, Any] = {
            "type": "vine_manager", "project": "classic", "owner": "somebody", "port": self.port, "name": "localhost",
            "address": "127.0.0.1", "tasks_waiting": 0, "tasks_left": 0, "tasks_on_workers": 0, "tasks_running": 0,
            "workers": 0, "workers_blocked": [], **record}
        self.workers: list[dict[str, Any]] = []
        self.silent = False
        self.raw: bytes | None = None
        self.asked: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                with link, contextlib.suppress(OSError):
                    link.settimeout(5)
                    words = link.makefile("rb").readline().decode(errors="replace").strip()
                    self.asked.append(words)
                    answers = {"manager_status": [self.record], "worker_status": self.workers}
                    if self.raw is not None:
                        link.sendall(self.raw)
                    elif not self.silent and words in answers:
                        link.sendall(json.dumps(answers[words]).encode())


class CatalogServer:
    """Answers GET /query.json with ``records``."""

    def __init__(self, records: list[Any]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(records).encode() if self.path == "/query.json" else b""
                self.send_response(200 if body else 404)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

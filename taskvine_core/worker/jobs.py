"""Moving objects in threads: fetches, uploads, and serving other workers.

Owns the glue between the data plane and the worker's loop. Must not decide anything: results become events.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from taskvine_core.dataplane.listening import bind
from taskvine_core.errors import DiskFullError, SecurityError, SourceError, TransferError, VineError
from taskvine_core.protocol.messages import (
    BLAME_OBJECT,
    BLAME_SELF,
    BLAME_SOURCE,
    SOURCE_MANAGER,
    SOURCE_PEER,
    SOURCE_URL,
    PeerKey,
)
from taskvine_core.worker import events as e
from taskvine_core.worker.detect import disk_free_mb
from taskvine_core.worker.pool import Mailbox, Pool, spared_from_child_signals
from taskvine_core.worker.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from taskvine_core.dataplane.channel import Tls
    from taskvine_core.dataplane.objects import ObjectInfo
    from taskvine_core.dataplane.server import DataServer, ServedObject

#: Left free on the file system whatever arrives: logs and sandboxes need some.
DISK_MARGIN_MB = 16
#: Peers served at the same time (reference, section 11.5: worker-source-max-transfers).
SERVE_THREADS = 10
UPLOAD_THREADS = 10
#: Longest silence of a peer that fetches from us.
SERVE_TIMEOUT_S = 60.0


class Jobs:
    """Threads that move objects of one worker.

    Args:
        store: where objects are.
        mailbox: takes the events.
        secret: shared key.
        max_fetches: fetches at the same time.
        now: seconds since the epoch.
    """

    def __init__(self, store: Store, mailbox: Mailbox, secret: bytes, max_fetches: int,
                 now: Callable[[], float]) -> None:
        self.manager: tuple[str, int] = ("", 0)
        self.tls: Tls | None = None
        self._peer_tls: Tls | None = None
        self._no_peers = "no manager has said yet how to protect it"
        self._store = store
        self._mailbox = mailbox
        self._secret = secret
        self._now = now
        self._fetches = Pool("fetch", max_fetches)
        self._uploads = Pool("upload", UPLOAD_THREADS)
        self._cancelled: dict[int, threading.Event] = {}
        self._server: DataServer | None = None
        self._served_tls: Tls | None = None
        self.listener: socket.socket | None = None     # open, with nobody to answer yet

    def listen(self, host: str, ports: range | int) -> int:
        """Open the port for peers; returns it. Who watches ``listener`` calls ``serve_peers`` when the first comes.

        Args:
            host: address to bind, "" = all.
            ports: one, 0 for any free one, or a range to try.

        Raises:
            VineError, OSError: no port can be opened.
        """
        self.listener, port = bind(host, ports)
        return port

    def serve_peers(self) -> None:
        """The first peer knocks at ``listener``: threads answer from now on."""
        from taskvine_core.dataplane.server import DataServer

        if self.listener is None:
            return
        self._server = DataServer(secret=self._secret, role="worker", provider=self, max_threads=SERVE_THREADS,
                                  timeout_s=SERVE_TIMEOUT_S)
        self._server.protect(self._served_tls, self._no_peers)
        with spared_from_child_signals():
            self._server.accept_from(self.listener)
        self.listener = None

    def protect(self, key: PeerKey | None) -> None:
        """How peers are served and asked from now on. ``manager`` and ``tls`` are those of the current manager.

        Args:
            key: what the manager gave; None: it gave none. With a TLS manager there are then no peer transfers:
                what is encrypted on its way to one worker must not be readable on its way to the next.
        """
        served: Tls | None = None
        self._peer_tls, self._no_peers = None, ""
        if self.tls is not None:
            try:
                served, self._peer_tls = self._peer_contexts(key)
            except VineError as error:
                self._no_peers = str(error)
        if self._server is not None:
            self._server.protect(served, self._no_peers)
        self._served_tls = served

    def _peer_contexts(self, key: PeerKey | None) -> tuple[Tls, Tls]:
        """TLS for serving peers and for asking them."""
        from taskvine_core import tls
        from taskvine_core.dataplane.channel import Tls

        if key is None:
            raise SecurityError("the manager uses TLS and gave no certificate for transfers between workers",
                                hint="these transfers are off: everything goes through the manager")
        fingerprint = tls.fingerprint_of(key.certificate)
        return (Tls(tls.server_context_of(key.certificate, key.key, self._store.transfer), fingerprint),
                Tls(tls.client_context(fingerprint), fingerprint))

    def close(self) -> None:
        for cancelled in self._cancelled.values():
            cancelled.set()
        if self._server is not None:
            self._server.close()
        if self.listener is not None:
            self.listener.close()

    # --------------------------------------------------------------------------------------- fetching

    def start_fetch(self, order: e.StartFetch) -> None:
        cancelled = self._cancelled[order.job] = threading.Event()
        manager, tls = (self.manager, self.tls) if order.where == SOURCE_MANAGER else (("", 0), self._peer_tls)
        refusal = self._no_peers if order.where == SOURCE_PEER else ""
        self._fetches.submit(lambda: self._run_fetch(order, cancelled, manager, tls, refusal))

    def cancel_fetch(self, job: int) -> None:
        cancelled = self._cancelled.get(job)
        if cancelled is not None:
            cancelled.set()

    def fetch_ended(self, job: int) -> None:
        self._cancelled.pop(job, None)

    def _run_fetch(self, order: e.StartFetch, cancelled: threading.Event, manager: tuple[str, int],
                   tls: Tls | None, refusal: str) -> None:
        try:
            if refusal:
                raise SecurityError(refusal)
            if order.where == SOURCE_URL:
                self._fetch_url(order, cancelled)
            else:
                address = manager if order.where == SOURCE_MANAGER else split_address(order.address)
                self._fetch_objects(order, cancelled, address, tls)
        except Exception as error:      # a thread must always report, or its tasks would wait for ever
            for item in order.items:
                self._mailbox.post(e.ObjectFailed(item.serial, BLAME_SELF, f"{type(error).__name__}: {error}"))
        finally:
            self._mailbox.post(e.FetchEnded(order.job))

    def _fetch_url(self, order: e.StartFetch, cancelled: threading.Event) -> None:
        from taskvine_core.dataplane.urls import fetch_url

        item = order.items[0]
        start = self._now()
        try:
            info = fetch_url(order.address, _path(self._store.transfer_path(item.serial)), timeout_s=order.timeout_s,
                             cancel=cancelled.is_set, room=self._room)
        except VineError as error:
            blame = BLAME_OBJECT if isinstance(error, SourceError) else BLAME_SELF
            self._mailbox.post(e.ObjectFailed(item.serial, blame, str(error)))
        else:
            self._arrived(item, info, start)

    def _fetch_objects(self, order: e.StartFetch, cancelled: threading.Event, address: tuple[str, int],
                       tls: Tls | None) -> None:
        from taskvine_core.dataplane.client import fetch

        # A manager may call an object differently from how it is called here: one address, one object.
        renamed = order.address if order.where == SOURCE_MANAGER else ""
        by_name = {renamed or item.name: item for item in order.items}
        start = self._now()
        for result in fetch(address, list(by_name), lambda name: _path(self._store.transfer_path(by_name[name].serial)),
                            secret=self._secret, expected={name: i.sha256 for name, i in by_name.items() if i.sha256},
                            sizes={name: i.size_bytes for name, i in by_name.items() if i.size_bytes >= 0},
                            timeout_s=order.timeout_s, cancel=cancelled.is_set, room=self._room, tls=tls):
            item = by_name[result.name]
            if result.info is not None:
                self._arrived(item, result.info, start)
            else:
                self._failed(item, result.error)
            start = self._now()

    def _arrived(self, item: e.FetchItem, info: ObjectInfo, start: float) -> None:
        self._mailbox.post(e.ObjectArrived(item.serial, info.size_bytes, info.sha256, info.is_dir, info.mode, start,
                                           self._now() - start))

    def _failed(self, item: e.FetchItem, error: TransferError | None) -> None:
        ours = isinstance(error, DiskFullError) or type(error) is TransferError
        self._mailbox.post(e.ObjectFailed(item.serial, BLAME_SELF if ours else BLAME_SOURCE, str(error)))

    def _room(self, size: int) -> bool:
        return disk_free_mb(self._store.transfer) > (size >> 20) + DISK_MARGIN_MB

    # --------------------------------------------------------------------------------------- sending

    def start_upload(self, order: e.StartUpload) -> None:
        manager, tls = self.manager, self.tls
        self._uploads.submit(lambda: self._run_upload(order, manager, tls))

    def _run_upload(self, order: e.StartUpload, manager: tuple[str, int], tls: Tls | None) -> None:
        from taskvine_core.dataplane.client import upload

        error = ""
        try:
            if not self._store.is_intact(order.name):
                self._lost(order.name)
                raise SourceError(f"{order.name} was damaged on this worker's disk and is dropped")
            upload(manager, order.transfer_id, order.name, _path(self._store.path_of(order.name)), secret=self._secret,
                   timeout_s=order.timeout_s, tls=tls, sha256=self._store.sha256_of(order.name))
        except Exception as failure:    # as above: always report
            error = str(failure)
        self._mailbox.post(e.UploadEnded(order.transfer_id, order.name, error))

    def _lost(self, name: str) -> None:
        self._mailbox.post(e.StoreFailed(name, BLAME_SELF, "it is missing or was changed on disk", False))

    # --------------------------------------------------------------------------------------- Provider (server threads)

    def open_object(self, name: str) -> ServedObject | None:
        """See dataplane.server.Provider."""
        from taskvine_core.dataplane.server import ServedObject

        if not self._store.is_intact(name):
            if self._store.knows(name):
                self._lost(name)
            return None
        return ServedObject(_path(self._store.path_of(name)), self._store.sha256_of(name), lambda ok, sent: None)

    def begin_upload(self, transfer_id: int, name: str) -> Path | None:
        """Nobody uploads to a worker."""
        return None

    def end_upload(self, transfer_id: int, info: ObjectInfo | None, error: str) -> None:
        """Never called: no upload begins."""


def _path(text: str) -> Path:
    """What the data plane takes; loaded with it, at the first transfer."""
    from pathlib import Path

    return Path(text)


def split_address(address: str) -> tuple[str, int]:
    """"host:port" as a pair.

    Raises:
        SourceError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SourceError(f"{address!r} is not host:port", hint="the manager gave a broken address")
    return host.strip("[]"), int(port)


def monotonic_epoch() -> Callable[[], float]:
    """A clock that counts seconds since the epoch and never jumps."""
    offset = time.time() - time.monotonic()
    monotonic = time.monotonic
    return lambda: monotonic() + offset

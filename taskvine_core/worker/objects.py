"""Objects: arrivals, losses, levels, uploads.

Owns what becomes of a cached object from the order to get it to its end. Must not know how runs proceed: it tells
runs that wait for an object when it is READY, or that it will never be.
"""

from __future__ import annotations

import hashlib

from taskvine_core.errors import SecurityError
from taskvine_core.model.names import check_cache_name
from taskvine_core.protocol import messages as m
from taskvine_core.worker import events as e
from taskvine_core.worker.base import CoreBase
from taskvine_core.worker.cache import CachedObject
from taskvine_core.worker.machines import CREATING, DELETING, QUEUED, READY


class Objects(CoreBase):
    """The part of the core that handles orders and events about objects."""

    def _refused(self, name: str, transfer_id: int) -> bool:
        """Answer an order about an unsafe name."""
        try:
            check_cache_name(name)
        except SecurityError as error:
            self._send(m.CacheInvalid(name, transfer_id, m.BLAME_SELF, str(error)))
            return True
        return False

    def _put_inline(self, order: m.PutInline, now: float) -> None:
        if self._refused(order.name, 0):
            return
        size = len(order.data)
        if not self._make_room(size):
            self._send(m.CacheInvalid(order.name, 0, m.BLAME_SELF, self._no_room(order.name, size)))
            return
        sha256 = order.sha256 or hashlib.sha256(order.data).digest()
        self._out.append(e.StoreInline(order.name, order.level, order.mode, sha256, order.data, bool(order.sha256)))
        self._object_here(order.name, order.level, size, sha256, now)

    def _object_here(self, name: str, level: int, size: int, sha256: bytes, now: float) -> CachedObject:
        """An object was put or produced here, whatever was known of it; answers a fetch of it still under way."""
        old = self.cache.get(name)
        waiting = old is not None and old.state == CREATING
        ordered = waiting and old is not None and old.serial != 0
        if old is not None:
            self._stop_arrival(old)
        obj = self.cache.store(name, level, size, sha256, now)
        if ordered:
            self._send(m.CacheUpdate(name, obj.transfer_id, size, sha256, now, 0.0))
        if waiting:
            self._tell_waiting(obj)
        return obj

    def _stop_arrival(self, obj: CachedObject) -> None:
        serial = obj.serial
        if not serial:
            return
        obj.serial = 0
        if self._fetch_of.pop(serial, None) is None:
            self._kill_maker(serial)
            return
        job = self.fetches.drop(serial)
        if job is not None:
            self._out.append(e.CancelFetch(job))

    def _kill_maker(self, serial: int) -> None:
        for run in list(self.runs.runs.values()):
            if run.makes and run.serial == serial:
                self._kill_run(run)

    def _begin_object(self, name: str, transfer_id: int, level: int, mode: int, now: float) -> CachedObject | None:
        """Prepare the arrival of an object; None when the order is already answered."""
        if self._refused(name, transfer_id):
            return None
        obj = self.cache.get(name)
        if obj is not None and obj.state == READY:
            obj.level = max(obj.level, level)
            self._send(m.CacheUpdate(name, transfer_id, obj.size_bytes, obj.sha256, now, 0.0))
            return None
        if obj is not None:
            self._stop_arrival(obj)
        obj = self.cache.create(name, level, mode, now)
        obj.transfer_id = transfer_id
        obj.serial = self._serial()
        return obj

    def _fetch(self, order: m.Fetch, now: float) -> None:
        obj = self._begin_object(order.name, order.transfer_id, order.level, order.mode, now)
        if obj is None:
            return
        size = max(0, order.size_bytes)
        if not self._make_room(size - obj.size_bytes):
            self._fail_object(obj, m.BLAME_SELF, self._no_room(order.name, size))
            return
        self.cache.announce(obj, size)
        self._fetch_of[obj.serial] = obj
        self.fetches.add(obj.serial, order)

    def _on_arrived(self, event: e.ObjectArrived, now: float) -> None:
        obj = self._fetch_of.pop(event.serial, None)
        self.fetches.reported(event.serial)
        if obj is None or obj.serial != event.serial:
            self._out.append(e.Discard(event.serial))
            return
        if obj.state == DELETING:
            self.cache.move(obj, "arrived")
            self._out.append(e.Discard(event.serial))
            return
        if not self._make_room(event.size_bytes - obj.size_bytes):
            self._out.append(e.Discard(event.serial))
            self._fail_object(obj, m.BLAME_SELF, self._no_room(obj.name, event.size_bytes))
            return
        self._out.append(e.Commit(event.serial, obj.name, obj.level, obj.mode or event.mode, event.size_bytes,
                                  event.sha256, event.is_dir))
        self.cache.finish(obj, "arrived", event.size_bytes, event.sha256, now)
        self._send(m.CacheUpdate(obj.name, obj.transfer_id, event.size_bytes, event.sha256, event.start, event.wall_s))
        self._tell_waiting(obj)

    def _on_object_failed(self, event: e.ObjectFailed, now: float) -> None:
        obj = self._fetch_of.pop(event.serial, None)
        self.fetches.reported(event.serial)
        self._out.append(e.Discard(event.serial))
        if obj is not None and obj.serial == event.serial:
            self._fail_object(obj, event.blame, event.reason)

    def _on_fetch_ended(self, event: e.FetchEnded, now: float) -> None:
        for serial in self.fetches.ended(event.job):
            self._on_object_failed(e.ObjectFailed(serial, m.BLAME_SELF, "the transfer ended without a result"), now)

    def _fail_object(self, obj: CachedObject, blame: int, reason: str) -> None:
        """An arrival failed: tell the manager unless it unlinked the object, and give back the tasks that need it."""
        unlinked = obj.state == DELETING
        obj.serial = 0
        self.cache.move(obj, "failed")
        if not unlinked:
            self._send(m.CacheInvalid(obj.name, obj.transfer_id, blame, reason))
        self._forsake_users(obj, f"input {obj.name} did not arrive: {reason}")

    def _tell_waiting(self, obj: CachedObject) -> None:
        for number in obj.needed_by:
            run = self.runs.runs.get(number)
            if run is not None and run.state == QUEUED and run.missing_inputs:
                for mount in run.spec.inputs:
                    if mount.name == obj.name:
                        self.runs.input_ready(run)

    def _forsake_users(self, obj: CachedObject, reason: str) -> None:
        """Queued runs lose this input; started ones keep their hard links."""
        for number in list(obj.needed_by):
            run = self.runs.runs.get(number)
            if run is not None and run.state == QUEUED:
                self._refuse(run, reason)

    def _set_level(self, order: m.SetLevel, now: float) -> None:
        obj = self.cache.get(order.name)
        if obj is not None:
            obj.level = order.level
            if obj.state == READY:
                self._out.append(e.Relevel(order.name, order.level))

    def _unlink(self, order: m.Unlink, now: float) -> None:
        gone: list[str] = []
        for name in order.names:
            obj = self.cache.get(name)
            if obj is not None:
                self._unlink_object(obj, gone)
        if gone:
            self._out.append(e.RemoveObjects(tuple(gone)))

    def _unlink_object(self, obj: CachedObject, gone: list[str] | None) -> None:
        """Drop one object. A fetch under way ends it as DELETING until its thread has noticed."""
        if obj.state == DELETING:
            return
        if obj.state == READY:
            self.cache.move(obj, "unlinked")
            if gone is not None:
                gone.append(obj.name)
        else:
            serial, under_way = obj.serial, obj.serial in self._fetch_of and not self.fetches.waits(obj.serial)
            self.cache.move(obj, "unlinked")
            self._stop_arrival(obj)
            if under_way:
                obj.serial = serial
                self._fetch_of[serial] = obj
            else:
                self.cache.move(obj, "failed")
        self._forsake_users(obj, f"input {obj.name} was unlinked before the task started")

    def _on_store_failed(self, event: e.StoreFailed, now: float) -> None:
        obj = self.cache.get(event.name)
        if obj is None or obj.state != READY:
            return
        self._lose(obj, event.reason, tell=not event.asked)
        if event.asked:
            self._send(m.CacheInvalid(event.name, obj.transfer_id, event.blame, event.reason))

    def _lose(self, obj: CachedObject, reason: str, *, tell: bool = True) -> None:
        """A READY object turned out to be damaged or missing."""
        self.cache.move(obj, "lost")
        self._out.append(e.RemoveObjects((obj.name,)))
        if tell:
            self._send(m.CacheGone((obj.name,), reason))
        self._forsake_users(obj, f"input {obj.name} was lost: {reason}")

    def _upload(self, order: m.Upload, now: float) -> None:
        obj = self.cache.get(order.name)
        if obj is None or obj.state != READY:
            self._send(m.UploadFailed(order.transfer_id, f"{order.name} is not in this worker's cache"))
            return
        obj.serving += 1
        obj.last_used = now
        self._uploads += 1
        self._out.append(e.StartUpload(order.transfer_id, order.name, order.timeout_s))

    def _on_upload_ended(self, event: e.UploadEnded, now: float) -> None:
        self._uploads = max(0, self._uploads - 1)
        obj = self.cache.get(event.name)
        if obj is not None:
            obj.serving = max(0, obj.serving - 1)
        if event.error and self.life.connected:
            self._send(m.UploadFailed(event.transfer_id, event.error))
        self._note_idle()

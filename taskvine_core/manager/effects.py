"""Carrying out the core's actions that touch files, and serving the data plane.

Owns the manager's side of objects: local inputs, staging, outputs that arrive, contents of buffers. Runs in the
runner's thread except where the data server's threads call the Provider methods, which only touch the locked
tables and post events. Must hold no policy.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from taskvine_core.dataplane.objects import ObjectInfo
from taskvine_core.dataplane.server import ServedObject
from taskvine_core.manager import events as ev
from taskvine_core.model.files import DEFAULT_MODE, INLINE_MAX_BYTES, FileDecl
from taskvine_core.model.platforms import path_for, split_variant
from taskvine_core.protocol.messages import PutInline

#: Disk the manager keeps free (reference, section 11.8).
DISK_MARGIN_BYTES = 100 * (1 << 20)

Contents = bytes | Path


class _Upload:
    __slots__ = ("begun", "final", "mode", "name", "purpose", "temp")

    def __init__(self, name: str, final: Path, temp: Path, purpose: str, mode: int) -> None:
        self.name = name
        self.final = final
        self.temp = temp
        self.purpose = purpose
        self.mode = mode
        self.begun = False


class Effects:
    """Files of one manager.

    Args:
        staging: directory for large buffers, relayed copies and stdout; made when first needed.
        post: takes an event from any thread and wakes the runner.
        decl_of: the declaration of a cached name, None when unknown; called in any thread.
        sha256_of: the digest of a cached name as far as known, else b""; called in any thread.
    """

    def __init__(self, staging: Path, post: Callable[[ev.Event], None],
                 decl_of: Callable[[str], FileDecl | None], sha256_of: Callable[[str], bytes]) -> None:
        self._staging = staging
        self._post = post
        self._decl_of = decl_of
        self._lock = threading.Lock()
        self._uploads: dict[int, _Upload] = {}
        self._arrived: dict[int, Path] = {}
        self._relayed: dict[str, Path] = {}
        self._served: dict[str, tuple[int, int]] = {}
        self._sha256_of = sha256_of
        self.contents: dict[str, Contents] = {}

    # ------------------------------------------------------------------ actions

    def read_local(self, decl: FileDecl) -> PutInline | ev.LocalMissing | None:
        """A small local file as a message; None when it has grown and must go over the data plane."""
        path: str | Path = decl.source
        if not path:  # an output buffer that became an input
            held = self.contents.get(decl.name)
            if isinstance(held, bytes):
                return PutInline(decl.name, decl.level, decl.mode or DEFAULT_MODE, b"", held)
            if held is None:
                return ev.LocalMissing(decl.name, f"input {decl.name}: its contents were forgotten")
            path = held
        try:
            data, mode = _read_file(path)
        except OSError as error:
            return ev.LocalMissing(decl.name, f"input {path}: {error.strerror}")
        if len(data) > INLINE_MAX_BYTES:
            return None
        return PutInline(decl.name, decl.level, decl.mode or mode, b"", data)

    def check_local(self, decl: FileDecl) -> ev.LocalMissing | None:
        """Does a large local input exist?"""
        if os.access(decl.source, os.R_OK):
            return None
        why = "not readable" if os.path.exists(decl.source) else "No such file or directory"
        return ev.LocalMissing(decl.name, f"input {decl.source}: {why}",
                               decl.source if decl.per_platform else "")

    def store(self, action: ev.StoreInline) -> ev.Stored | None:
        """Put a small output where the program wants it; None when nobody waits for the answer."""
        if not action.path:
            self.contents[action.name] = action.data
            return None
        path = action.path
        temp = f"{path}.vine-part-{action.task_id}"
        try:
            mode = (action.mode or DEFAULT_MODE) | 0o600
            try:
                _write_file(temp, action.data, mode)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                _write_file(temp, action.data, mode)
            os.replace(temp, path)
        except OSError as error:
            _remove_part(temp)
            return ev.Stored(action.task_id, action.store_id, f"output {path} cannot be written: {error.strerror}")
        return ev.Stored(action.task_id, action.store_id, "")

    def append(self, action: ev.AppendWatched) -> None:
        """Write a piece of a watched output; a failure shows when the whole file is stored."""
        if not action.path:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if action.offset == 0 else 0)
            fd = os.open(action.path, flags, 0o644)
            try:
                os.pwrite(fd, action.data, action.offset)
            finally:
                os.close(fd)
        except OSError:
            return

    def expect(self, action: ev.ExpectUpload) -> None:
        """An object will arrive for this path."""
        if action.path:
            final = Path(action.path)
        else:
            self._staging.mkdir(parents=True, exist_ok=True)
            final = self._staging / f"{action.purpose}-{action.transfer_id}"
        temp = final.with_name(f"{final.name}.vine-part-{action.transfer_id}")
        with self._lock:
            self._uploads[action.transfer_id] = _Upload(action.name, final, temp, action.purpose, action.mode)

    def cancel(self, transfer_id: int) -> None:
        """Nobody waits for it: what arrives is dropped."""
        with self._lock:
            self._uploads.pop(transfer_id, None)

    def sender_gone(self, transfer_id: int) -> ev.UploadEnded | None:
        """The worker is lost. None when the upload is over or arriving: whoever receives it tells how it ends."""
        with self._lock:
            upload = self._uploads.get(transfer_id)
            if upload is None or upload.begun:
                return None
            del self._uploads[transfer_id]
        return ev.UploadEnded(transfer_id, 0, b"", False, f"{upload.name}: its worker is lost")

    def forget_contents(self, name: str) -> None:
        """The program does not want a buffer's contents any more."""
        held = self.contents.pop(name, None)
        if isinstance(held, Path):
            _remove(held)

    def arrived(self, transfer_id: int) -> Path | None:
        """Where a "stdout" or "contents" upload lies; the caller owns it from now on."""
        with self._lock:
            return self._arrived.pop(transfer_id, None)

    # ------------------------------------------------------------------ Provider (data server threads)

    def open_object(self, name: str) -> ServedObject | None:
        """A declared local file, large buffer, or a relayed copy."""
        if (variant := split_variant(name)) is not None:
            return self._open_variant(*variant)
        with self._lock:
            relayed = self._relayed.get(name)
        decl = self._decl_of(name)
        if relayed is None and (decl is None or not decl.source):
            held = self.contents.get(name)
            if not isinstance(held, Path):
                return None
            relayed = held  # an output buffer that became an input
        path = relayed if relayed is not None else Path(decl.source if decl is not None else "")
        try:
            status = path.stat()
        except OSError:
            return None
        digest = b"" if decl is None or relayed is not None else decl.sha256
        if not digest and relayed is None:
            signature = (status.st_size, status.st_mtime_ns)
            if self._served.get(name) == signature:
                digest = self._sha256_of(name)  # as the first receiver found it; the file has not changed since
            self._served[name] = signature
        return ServedObject(path, digest, lambda ok, sent: None)

    def _open_variant(self, name: str, os_name: str, arch: str) -> ServedObject | None:
        """The local file that stands for a declared one on workers of this kind."""
        decl = self._decl_of(name)
        if decl is None or not decl.per_platform:
            return None
        path = Path(path_for(decl.source, os_name, arch))
        return ServedObject(path, b"", lambda ok, sent: None) if path.exists() else None

    def begin_upload(self, transfer_id: int, name: str) -> Path | None:
        """Where to receive an expected upload; None refuses it."""
        with self._lock:
            upload = self._uploads.get(transfer_id)
            if upload is None or upload.name != name:
                return None
            upload.begun = True
        try:
            upload.temp.parent.mkdir(parents=True, exist_ok=True)
            _remove(upload.temp)
        except OSError as problem:  # the worker will hear no more than a refusal
            reason = f"output {upload.final} cannot be written: {problem.strerror}"
            self._post(ev.UploadEnded(transfer_id, 0, b"", False, reason, final=True))
            return None
        return upload.temp

    def end_upload(self, transfer_id: int, info: ObjectInfo | None, error: str) -> None:
        """An upload is complete or failed."""
        with self._lock:
            upload = self._uploads.pop(transfer_id, None)
        if upload is None:
            return
        if info is None:
            self._post(ev.UploadEnded(transfer_id, 0, b"", False, f"{upload.name}: {error}"))
            return
        try:
            self._place(transfer_id, upload, info)
        except OSError as problem:
            _remove(upload.temp)
            self._post(ev.UploadEnded(transfer_id, 0, b"", False,
                                      f"{upload.final} cannot be written: {problem.strerror}", final=True))
            return
        self._post(ev.UploadEnded(transfer_id, info.size_bytes, info.sha256, info.is_dir, ""))

    def _place(self, transfer_id: int, upload: _Upload, info: ObjectInfo) -> None:
        if not info.is_dir:
            os.chmod(upload.temp, (info.mode or upload.mode or DEFAULT_MODE) & 0o777 | 0o600)
        if info.is_dir and upload.final.is_dir() and not upload.final.is_symlink():
            _remove(upload.final)  # a directory replaces the one of an earlier run; a file never deletes one
        os.replace(upload.temp, upload.final)
        with self._lock:
            if upload.purpose == "relay":
                self._relayed[upload.name] = upload.final
            elif upload.purpose in ("stdout", "contents"):
                self._arrived[transfer_id] = upload.final
        decl = self._decl_of(upload.name)
        if upload.purpose == "output" and decl is not None and not decl.source:
            self.contents[upload.name] = upload.final

    def room(self, path: Path) -> int:
        """Bytes that may be received on the file system of a path."""
        try:
            return max(0, shutil.disk_usage(path).free - DISK_MARGIN_BYTES)
        except OSError:
            return 0


def _remove_part(path: str) -> None:
    """What was written before the disk was full."""
    try:
        os.unlink(path)
    except OSError:
        return  # it was not even made


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _read_file(path: str | Path) -> tuple[bytes, int]:
    """What a message may hold of a file and one byte more, and its permission bits; a third of what open() costs."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        data = os.read(fd, INLINE_MAX_BYTES + 1)
        wanted = min(status.st_size, INLINE_MAX_BYTES + 1)
        while len(data) < wanted and (more := os.read(fd, wanted - len(data))):
            data += more  # a file system may give less than there is
        return data, status.st_mode & 0o777
    finally:
        os.close(fd)


def _write_file(path: str, data: bytes, mode: int) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        os.fchmod(stream.fileno(), mode)

"""One directory per run: made, filled with inputs, emptied of outputs, deleted or used again.

Owns the layout of a sandbox and the rule that nothing is read or written outside of it. Must not know processes.

Small files are copied, so that a task may write to what it was given; large ones are read-only hard links to the cache.

A directory that a run left as clean as it was made serves the next one: making and deleting the inodes costs ten
times more than looking (ext4). Where nothing was made, renamed or removed since the last look, the directory's time of
change says so; only otherwise its entries are read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK, VINE_MOUNT_MKDIR, VINE_MOUNT_SYMLINK
from taskvine_core.dataplane.objects import ObjectInfo, hash_object
from taskvine_core.errors import SandboxError
from taskvine_core.model.files import INLINE_MAX_BYTES, TINY_TEMP_MAX_BYTES
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.protocol.messages import OutputReport
from taskvine_core.records import NamedTuple
from taskvine_core.worker.environment import TMP_NAME
from taskvine_core.worker.events import OutputOrder
from taskvine_core.worker.store import Store

STDOUT_NAME = ".taskvine.stdout"
#: Larger outputs and stdouts are collected in a thread: hashing them would hold up the loop.
COLLECT_INLINE_BYTES = 1 << 20
#: Sandboxes kept for use by the next runs.
SPARE_MAX = 64
#: A sandbox with more inputs goes to the thread that deletes: emptying it would hold up the report of its task.
CLEAN_MAX_INPUTS = 64
#: An input file up to this size is a copy: 64 KiB cost some 50 us, 1 MiB 300 us, a process 1000 us and more.
COPY_MAX_BYTES = 1 << 20
#: What the copies in one sandbox may come to; further inputs are links however small.
COPIES_MAX_BYTES = 16 << 20
COPIES_MAX_FILES = 1000
#: What a task may do with its copy whatever the mode of the original says (reference: owner may read and write).
OWNER_MODE = 0o600
#: Once a directory was found clean so long after its time of change, every later change shows in that time: kernels
#: count it in steps of up to 10 ms.
CHANGE_STEP_S = 0.02
#: A time of change that is a multiple of this comes from a file system that counts in coarser steps.
COARSE_STEP_NS = 1_000_000
CUT_NOTICE = b"\n[taskvine: standard output was cut here: %d of %d bytes kept]\n"
_STDOUT_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
_UNLINKABLE = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)


class InputLost(SandboxError):
    """An input in the cache is not what was stored there. ``name`` is its cached name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cached object {name} is missing or was changed on disk", hint="it will be sent again")
        self.name = name


class Sandbox:
    """A directory, its open stdout, and what was put into it."""

    __slots__ = ("changed_at", "changed_ns", "copied_bytes", "copied_files", "inode", "linked", "mode", "path",
                 "reusable", "settled", "stdout_fd", "stdout_inode", "tmp")

    def __init__(self, path: str) -> None:
        self.path = path
        self.tmp = f"{path}/{TMP_NAME}"
        self.changed_ns = (0, 0)        # times of change of the two directories, when they were last seen to differ
        self.changed_at = 0.0           # when that was
        self.settled = False            # clean as long as these times stay
        self.linked: list[str] = []     # inputs, links and copies, to be removed
        self.copied_bytes = 0
        self.copied_files = 0
        self.reusable = True
        os.mkdir(path)
        os.mkdir(self.tmp)
        self.stdout_fd = os.open(f"{path}/{STDOUT_NAME}", _STDOUT_FLAGS, 0o644)
        self.stdout_inode = os.fstat(self.stdout_fd).st_ino
        status = os.stat(path)
        self.inode, self.mode = status.st_ino, status.st_mode

    def takes_copy(self, size: int) -> bool:
        """May one more input of this size be a copy? Counts it when it may."""
        if (size > COPY_MAX_BYTES or self.copied_bytes + size > COPIES_MAX_BYTES
                or self.copied_files >= COPIES_MAX_FILES):
            return False
        self.copied_bytes += size
        self.copied_files += 1
        return True


    @property
    def stdout_bytes(self) -> int:
        """How much was written. The descriptor appends and is read by offset: its position is nobody's."""
        return os.lseek(self.stdout_fd, 0, os.SEEK_END)

    def clean(self) -> bool:
        """Remove the inputs and empty the standard output; False when anything else is not as it was made."""
        for path in self.linked:
            os.unlink(path)
        status, tmp = os.lstat(self.path), os.lstat(self.tmp)
        if status.st_ino != self.inode or status.st_mode != self.mode or tmp.st_mode != self.mode:
            return False
        now = time.monotonic()
        changed_ns = (status.st_ctime_ns, tmp.st_ctime_ns)
        if changed_ns != self.changed_ns:
            self.changed_ns, self.changed_at, self.settled = changed_ns, now, False
        if not self.settled:
            if not self._looks_clean():
                return False
            fine = all(ns % COARSE_STEP_NS for ns in changed_ns)
            self.settled = fine and now - self.changed_at > CHANGE_STEP_S
        if self.stdout_bytes:
            os.ftruncate(self.stdout_fd, 0)
        self.linked.clear()
        self.copied_bytes = self.copied_files = 0
        return True

    def _looks_clean(self) -> bool:
        if len(os.listdir(self.path)) != 2 or os.listdir(self.tmp):
            return False
        out = os.lstat(f"{self.path}/{STDOUT_NAME}")
        return out.st_ino == self.stdout_inode and stat.S_ISREG(out.st_mode)


class Stdout(NamedTuple):
    head: bytes
    size: int
    name: str
    cut: bool


NO_STDOUT = Stdout(b"", 0, "", False)


class Sandboxes:
    """Makes and empties sandboxes below ``root``, with inputs from and outputs to ``store``."""

    def __init__(self, root: str, store: Store) -> None:
        self._root = root
        self._store = store
        self._spare: list[Sandbox] = []
        self._made = 0

    def make(self, kind: str) -> Sandbox:
        """An empty sandbox; ``kind`` is the prefix of its name.

        Raises:
            SandboxError: the file system refuses.
        """
        if self._spare and kind == "task":
            return self._spare.pop()
        self._made += 1
        try:
            return Sandbox(f"{self._root}/{kind}.{self._made}")
        except OSError as error:
            raise SandboxError(f"cannot make a sandbox in {self._root}: {error}",
                               hint="is the worker's disk full?") from error

    def fill(self, box: Sandbox, spec: TaskSpec) -> None:
        """Put the inputs in place.

        Raises:
            InputLost: an input is damaged. SandboxError: it cannot be placed.
        """
        for mount in spec.inputs:
            if not self._store.is_intact(mount.name):
                raise InputLost(mount.name)
            if mount.remote:
                self._place(box, mount)
        for mount in spec.outputs:
            target = mount.remote if mount.flags & VINE_MOUNT_MKDIR else os.path.dirname(mount.remote)
            if target:
                box.reusable = False
                try:
                    make_directories(box, target)
                except SandboxError:
                    continue        # it will be missing: what lies beyond a link that leads out is not this task's
                except OSError as error:
                    raise SandboxError(f"cannot make directory {target!r} in the sandbox: {error}",
                                       hint="do two mounts have the same name?") from error

    def _place(self, box: Sandbox, mount: Mount) -> None:
        remote = mount.remote.rstrip("/")
        source, target = self._store.path_of(mount.name), f"{box.path}/{remote}"
        try:
            if "/" in remote:
                box.reusable = False
                make_directories(box, os.path.dirname(remote))
            if mount.flags & VINE_MOUNT_SYMLINK:
                os.symlink(source, target)
            elif self._store.is_dir(mount.name):
                box.reusable = False
                make_directories(box, remote)
                if not self._store.matches_tree(mount.name, place_tree(box, source, target)):
                    raise InputLost(mount.name)
            elif box.takes_copy(size := self._store.size_of(mount.name)):
                if copy_file(source, target, OWNER_MODE) != size:
                    raise InputLost(mount.name)
            else:
                link(source, target)
        except OSError as error:
            raise SandboxError(f"cannot put input {mount.name} at {mount.remote!r}: {error}",
                               hint="do two mounts have the same name?") from error
        if box.reusable:
            box.linked.append(target)

    # ------------------------------------------------------------------------------------------------ outputs

    def is_large(self, box: Sandbox, orders: tuple[OutputOrder, ...]) -> bool:
        """Would collecting these take so long that a thread should do it?"""
        if box.stdout_bytes > COLLECT_INLINE_BYTES:
            return True
        total = 0
        for order in orders:
            try:
                status = os.stat(f"{box.path}/{order.remote}")
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                return True
            total += status.st_size
        return total > COLLECT_INLINE_BYTES

    def collect_output(self, box: Sandbox, order: OutputOrder) -> OutputReport | None:
        """Move one output into the cache; None when it was not produced (or leads out of the sandbox).

        Raises:
            VineError: it is there but cannot be stored.
        """
        path = self._real_path(box, order.remote)
        if path is None:
            return None
        status = os.lstat(path)
        mode = order.mode or status.st_mode & 0o777
        if stat.S_ISREG(status.st_mode):
            # What only goes to the manager and then away is hashed while it is sent, not once more before.
            leaves = order.level == VINE_CACHE_LEVEL_TASK and status.st_size > INLINE_MAX_BYTES
            inline, info = _hash_file(path, status.st_size, mode) if not leaves else (
                None, ObjectInfo(status.st_size, b"", False, mode))
        else:
            inline, info = None, hash_object(path)
        if not order.inline or (info.size_bytes > TINY_TEMP_MAX_BYTES and order.is_temp):
            inline = None
        if inline is None or order.kept:
            self._store.adopt(path, order.name, order.level, order.mode, info.sha256)
        else:
            os.unlink(path)
        return OutputReport(order.name, info.size_bytes, info.sha256, mode, info.is_dir, inline)

    def _real_path(self, box: Sandbox, remote: str) -> str | None:
        """Where an output really is, when that is inside the sandbox and a file or directory."""
        path = f"{box.path}/{remote.rstrip('/')}"
        try:
            status = os.lstat(path)
        except (OSError, ValueError):
            return None
        if "/" in remote or stat.S_ISLNK(status.st_mode):
            path = os.path.realpath(path)
            if not path.startswith(os.path.realpath(box.path) + "/") or not os.path.exists(path):
                return None
            status = os.lstat(path)
        return path if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) else None

    def collect_stdout(self, box: Sandbox, name: str, max_bytes: int) -> Stdout:
        """The first part of stdout; all of it goes to the cache as ``name`` when it is larger than that.

        Raises:
            VineError: it cannot be stored.
        """
        fd = box.stdout_fd
        size = box.stdout_bytes
        if not size:
            return NO_STDOUT
        cut = size > max_bytes
        if cut:
            os.ftruncate(fd, max_bytes)
            os.write(fd, CUT_NOTICE % (max_bytes, size))
            size = box.stdout_bytes
        if size <= INLINE_MAX_BYTES:
            return Stdout(os.pread(fd, size, 0), size, "", cut)
        box.reusable = False
        head = os.pread(fd, INLINE_MAX_BYTES, 0)
        path = f"{self._store.transfer}/{name}"
        with open(path, "wb") as copy:
            done = 0
            while done < size and (count := os.sendfile(copy.fileno(), fd, done, size - done)):
                done += count
        self._store.adopt(path, name, 0, 0, b"")
        return Stdout(head, size, name, cut)

    # ------------------------------------------------------------------------------------------------ the end

    def drop(self, box: Sandbox) -> None:
        """Use the directory again when it is clean, else delete it in the background."""
        few = len(box.linked) <= CLEAN_MAX_INPUTS
        if box.reusable and few and len(self._spare) < SPARE_MAX:
            try:
                if box.clean():
                    self._spare.append(box)
                    return
            except OSError:
                pass                # the task moved things about
        os.close(box.stdout_fd)
        self._store.discard(box.path)


def make_directories(box: Sandbox, relative: str) -> None:
    """A directory in the sandbox, with those above it, also where an input has brought them already.

    Raises:
        SandboxError: a link of another input on the way leads out of the sandbox, or nowhere.
    """
    path = box.path
    for part in relative.split("/"):
        path = f"{path}/{part}"
        try:
            os.mkdir(path)
        except FileExistsError:
            if stat.S_ISLNK(os.lstat(path).st_mode):
                real = os.path.realpath(path)
                if not (real.startswith(os.path.realpath(box.path) + "/") and os.path.isdir(real)):
                    raise SandboxError(f"{relative!r} leads out of the sandbox: {part!r} is a link of an input",
                                       hint="mount the two at places of their own") from None


def link(source: str, target: str) -> None:
    """Hard link, or a symbolic one where that is impossible (other device, too many links)."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _UNLINKABLE:
            raise
        os.symlink(source, target)


def copy_file(source: str, target: str, extra_mode: int = 0) -> int:
    """A small file as a new one with the same mode and ``extra_mode``; returns its size."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        data = os.read(fd, status.st_size + 1)
    finally:
        os.close(fd)
    mode = status.st_mode & 0o777 | extra_mode
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if os.fstat(fd).st_mode & 0o777 != mode:
            os.fchmod(fd, mode)         # the umask took something away
    finally:
        os.close(fd)
    return len(data)


def place_tree(box: Sandbox, source: str, target: str) -> int:
    """A directory as a tree of copies and links: the task may add to it without changing the cache.

    ``target`` is there already. Nothing is placed through a link: neither one of this directory nor of another input.

    Returns:
        a number that changes when path, size or modification time of any of the files does.
    """
    signature = 0
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), f"{target}/{entry.name}")
            elif entry.is_dir():
                inner = f"{target}/{entry.name}"
                try:
                    os.mkdir(inner)
                except FileExistsError:     # of another input at the same place
                    if not stat.S_ISDIR(os.lstat(inner).st_mode):
                        raise
                signature ^= place_tree(box, entry.path, inner)
            else:
                status = entry.stat(follow_symlinks=False)
                if box.takes_copy(status.st_size):
                    copy_file(entry.path, f"{target}/{entry.name}")
                else:
                    link(entry.path, f"{target}/{entry.name}")
                signature ^= hash((entry.path, status.st_size, status.st_mtime_ns))
    return signature


def _hash_file(path: str, size: int, mode: int) -> tuple[bytes | None, ObjectInfo]:
    """Digest of an output, with its bytes when they are few."""
    if size > INLINE_MAX_BYTES:
        return None, hash_object(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        data = os.read(fd, size + 1)
    finally:
        os.close(fd)
    return data, ObjectInfo(len(data), hashlib.sha256(data).digest(), False, mode)

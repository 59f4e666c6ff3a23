"""A worker inside an environment package: unpacks it once per machine, then becomes a worker inside of it.

Owns the unpacked directory: its lock, its activation, its removal by the last worker that leaves. Must not know tasks
or managers. A package is a tar file of a relocatable environment, as `conda pack` and `poncho_package_create` make
them. The process is replaced and not kept as a parent, so that batch systems' signals reach the worker itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from taskvine_core.errors import ConfigError
from taskvine_core.worker.workspace import temporary_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Set for the worker inside: the lock's descriptor and the directory.
INSIDE = "VINE_WORKER_PACKAGE"
#: Written last: a directory without it is what a killed worker left half unpacked.
MARKER = ".vine-unpacked"
_ACTIVATION_TIMEOUT_S = 300.0
_DIGEST_CHARS = 16
_BLOCK_BYTES = 1 << 20
#: Poncho's own script, else conda-pack's, prints the environment after activation.
_ACTIVATE = ('if [ -x "$1/bin/run_in_env" ]; then exec "$1/bin/run_in_env" env -0; fi; '
             'if [ -r "$1/bin/activate" ]; then . "$1/bin/activate" "$1"; fi; exec env -0')
#: They belong to the Python outside.
_REMOVED = ("PYTHONPATH", "PYTHONHOME")


class Package:
    """The package this worker runs in, held until `leave`."""

    def __init__(self, directory: str, lock: int) -> None:
        self.directory = directory
        self._lock = lock

    def leave(self) -> None:
        """Give it up; the last worker of this machine deletes it."""
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(self.directory)
            os.unlink(f"{self.directory}.lock")
        os.close(self._lock)


def inside(environ: Mapping[str, str]) -> Package | None:
    """The package this process was started in by `enter`, None when it was not. Its variable is taken away, so that
    workers started by tasks enter their own."""
    word, _, directory = environ.get(INSIDE, "").partition(" ")
    if not directory or not word.isdigit():
        return None
    os.environ.pop(INSIDE, None)
    try:
        os.set_inheritable(int(word), False)
    except OSError:
        return None  # the variable came from somewhere else
    return Package(directory, int(word))


def enter(archive: str, words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by a worker inside the package ``archive``, with the arguments ``words``. Does not return.

    Raises:
        ConfigError: the package cannot be read, unpacked or activated, or has no Python.
    """
    try:
        directory = f"{temporary_place(environ)}/vine-environment-{os.getuid()}-{_digest(archive)}"
        lock = _shared(directory, archive)
        python = f"{directory}/bin/python"
        if not os.access(python, os.X_OK):
            raise ConfigError(f"{archive} has no bin/python: a worker cannot run in it",
                              hint="pack a whole environment: conda pack, or poncho_package_create with python in it")
        activated = _activated(directory, archive)
        activated[INSIDE] = f"{lock} {directory}"
        os.set_inheritable(lock, True)
        os.execve(python, [python, *_program(directory), *words], activated)
    except OSError as error:
        raise ConfigError(f"environment package {archive}: {error.strerror or error}",
                          hint="is it there, and is there room for it in the temporary directory?") from error


def _digest(archive: str) -> str:
    """Packages are kept by content: one that was replaced under its name is not taken for the old one."""
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()[:_DIGEST_CHARS]


def _shared(directory: str, archive: str) -> int:
    """Unpack unless that was done already; returns the descriptor of a shared lock on the result."""
    how = fcntl.LOCK_SH
    while True:
        lock = os.open(f"{directory}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.fstat(lock).st_uid != os.getuid():
            raise ConfigError(f"{directory}.lock belongs to somebody else",
                              hint="set TMPDIR to a directory of your own")
        fcntl.flock(lock, how)  # waits for whoever unpacks or removes
        if how == fcntl.LOCK_EX and _is_named(lock, f"{directory}.lock"):
            if not os.path.exists(f"{directory}/{MARKER}"):
                _unpack(archive, directory)
            fcntl.flock(lock, fcntl.LOCK_SH)  # not atomic: who leaves just now may delete it
        if _is_named(lock, f"{directory}.lock") and os.path.exists(f"{directory}/{MARKER}"):
            return lock
        os.close(lock)
        how = fcntl.LOCK_EX


def _is_named(lock: int, path: str) -> bool:
    """The lock file was not deleted by the last worker while we waited for it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(lock))
    except FileNotFoundError:
        return False


def _unpack(archive: str, directory: str) -> None:
    import tarfile

    _remove(directory)
    os.mkdir(directory, 0o700)
    # The filter keeps everything inside of the directory; the oldest interpreters do not have it, and the package is
    # of the user who runs this worker.
    filtered = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    try:
        with tarfile.open(archive, "r:*") as members:
            members.extractall(directory, **filtered)  # type: ignore[arg-type]
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ConfigError(f"environment package {archive} cannot be unpacked: {error}",
                          hint="it has to be a tar file, compressed or not") from error
    unpack = f"{directory}/bin/conda-unpack"
    if os.access(unpack, os.X_OK):
        _run([f"{directory}/bin/python", unpack], archive)
    os.close(os.open(f"{directory}/{MARKER}", os.O_WRONLY | os.O_CREAT, 0o600))


def _activated(directory: str, archive: str) -> dict[str, str]:
    """The environment of a process inside."""
    shell = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), "/bin/sh")
    pairs = (item.partition("=") for item in _run([shell, "-c", _ACTIVATE, shell, directory], archive).split("\0"))
    activated = {name: value for name, equals, value in pairs if equals and name not in _REMOVED}
    paths = activated.get("PATH", os.defpath).split(os.pathsep)
    if paths[0] != f"{directory}/bin":
        activated["PATH"] = os.pathsep.join([f"{directory}/bin", *paths])
    return activated


def _run(command: Sequence[str], archive: str) -> str:
    import subprocess

    environment = {name: value for name, value in os.environ.items() if name not in _REMOVED}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ACTIVATION_TIMEOUT_S,
                              check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"environment package {archive}: {command[0]} took longer than "
                          f"{_ACTIVATION_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(f"environment package {archive} cannot be activated: "
                          f"{said[-1] if said else f'exit status {done.returncode}'}")
    return os.fsdecode(done.stdout)


def _program(directory: str) -> list[str]:
    """What the Python inside runs: the one-file worker, because nothing of ours is installed there."""
    archive = str(getattr(globals().get("__loader__"), "archive", ""))
    if archive:
        return [os.path.abspath(archive)]
    from taskvine_core.worker import zipapp  # only outside of one

    return [str(zipapp.build(f"{directory}.pyz"))]


def _remove(directory: str) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        os.unlink(f"{directory}.pyz")

"""What a job needs to become a worker: the worker program, the key, and where they are on the execution host.

Owns the files below the factory's directory that are sent with jobs or named by them. They are kept by content: a
queued job finds what it was submitted with. Must not know batch systems; calls may take a second, so they are made
in the drivers' threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import threading
from pathlib import Path

from taskvine_core.errors import ConfigError, VineError
from taskvine_core.secret import SECRET_FILE
from vine_factory import defaults
from vine_factory.batch.registry import TRANSFER
from vine_factory.batch.tool import run
from vine_factory.command import WORKER_MODULE, Delivery
from vine_factory.config import PoolSettings, Settings

WORKER_FILE = "vine_worker.pyz"
KEY_FILE = "vine_worker.key"
_BUILDER = "taskvine_core.worker.zipapp"
_DIGEST_CHARS = 16
_ELF = b"\x7fELF"


class Payload:
    """Worker programs and key of one factory.

    Args:
        directory: of the factory; files go below ``payload/``.
        state: the user's state directory, where the own key is.
        secret: the key in use; a copy is sent where the job cannot read its file.
    """

    def __init__(self, directory: Path, state: Path, secret: bytes) -> None:
        self._directory = directory / "payload"
        self._state = state
        self._secret = secret
        self._lock = threading.Lock()
        self._worker: Path | None = None

    def delivery(self, settings: Settings, pool: PoolSettings) -> Delivery:
        """How workers of ``pool`` start.

        Raises:
            ConfigError: a file cannot be made or read.
        """
        binary = pool.worker_binary
        compiled = bool(binary) and _is_compiled(binary)
        if compiled and pool.poncho_env:
            raise ConfigError(f"poncho-env: the worker {binary} cannot enter an environment package by itself",
                              hint='use wrapper = "poncho_package_run -e FILE --", or our own worker')
        if pool.deliver == TRANSFER:
            return self._sent(settings, pool, compiled)
        environment: dict[str, str] = {}
        password = settings.password
        start: tuple[str, ...]
        if pool.batch == "local" and not pool.poncho_env:  # same machine, same user, same environment
            start = (binary,) if binary else (pool.python or sys.executable, "-m", WORKER_MODULE)
        else:
            start = (binary,) if binary else (pool.python or sys.executable, str(self._built()))
            password = password or ("" if pool.batch == "local" else str(self._state / SECRET_FILE))
            if os.environ.get("XDG_STATE_HOME"):
                environment["XDG_STATE_HOME"] = os.environ["XDG_STATE_HOME"]
        return Delivery(start, "" if compiled else password, (), environment, pool.poncho_env, compiled)

    def _sent(self, settings: Settings, pool: PoolSettings, compiled: bool) -> Delivery:
        if compiled:
            keys = [Path(settings.password)] if settings.password else []
        else:
            keys = [self._key()]
        worker = Path(pool.worker_binary) if pool.worker_binary else self._built()
        start = (f"./{worker.name}",) if pool.worker_binary else (pool.python or "python3", worker.name)
        package = [Path(pool.poncho_env)] if pool.poncho_env else []
        files = (worker, *keys, *package, *pool.wrapper_input)
        for file in files:
            if not file.is_file():
                raise ConfigError(f"{file} cannot be sent with jobs: there is no such file",
                                  hint="check worker-binary, wrapper-input, poncho-env and password")
        if len({file.name for file in files}) < len(files):
            raise ConfigError(f"two files sent with jobs have the same name: {', '.join(file.name for file in files)}",
                              hint="rename one of them")
        return Delivery(start, keys[0].name if keys else "", files, {}, package[0].name if package else "", compiled)

    def _built(self) -> Path:
        """The one-file worker, made once per process and kept under its content's name."""
        with self._lock:
            if self._worker is None or not self._worker.is_file():
                self._worker = self._build()
            return self._worker

    def _build(self) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._directory / f".{os.getpid()}.pyz"
        try:
            done = run([sys.executable, "-m", _BUILDER, str(fresh)], timeout_s=defaults.TOOL_TIMEOUT_S)
            if done.status != 0:
                raise ConfigError(done.said)
            digest = hashlib.sha256(fresh.read_bytes()).hexdigest()[:_DIGEST_CHARS]
            place = self._directory / digest
            place.mkdir(exist_ok=True, mode=0o700)
            fresh.replace(place / WORKER_FILE)
            os.utime(place)  # the newest ones are kept
        except (OSError, VineError) as problem:
            raise ConfigError(f"the one-file worker cannot be made in {self._directory}: {problem}") from problem
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()
        self._drop_old()
        return place / WORKER_FILE

    def _drop_old(self) -> None:
        places = sorted((path for path in self._directory.iterdir() if path.is_dir()),
                        key=lambda path: path.stat().st_mtime, reverse=True)
        for old in places[defaults.KEPT_PAYLOADS:]:
            shutil.rmtree(old, ignore_errors=True)

    def _key(self) -> Path:
        """A copy of the key in use, for this user only."""
        path = self._directory / KEY_FILE
        content = self._secret.hex() + "\n"
        with self._lock:
            try:
                if path.is_file() and path.read_text(encoding="ascii") == content:
                    path.chmod(0o600)
                    return path
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                part = path.with_name(f".{KEY_FILE}.{os.getpid()}")
                with contextlib.suppress(FileNotFoundError):
                    part.unlink()
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(content)
                part.replace(path)
            except (OSError, UnicodeDecodeError) as problem:
                raise ConfigError(f"the key cannot be copied to {path}: {problem}") from problem
        return path


def _is_compiled(binary: str) -> bool:
    """The C implementation's worker is an ELF program and knows published options only; ours are scripts."""
    path = shutil.which(binary) or binary
    try:
        with open(path, "rb") as file:
            return file.read(len(_ELF)) == _ELF
    except OSError:
        return False  # it may exist only where the jobs run

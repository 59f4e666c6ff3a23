"""Where the shared key comes from: the user's own key file, or a password.

Owns the key file, its permissions and the state directory it lives in. Must not know the protocol; never prints
or logs a key.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from functools import lru_cache

from taskvine_core.errors import ConfigError, SecurityError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

#: Key of ``--insecure``: known to everybody, so the listener that uses it binds loopback only.
INSECURE_SECRET = hashlib.sha256(b"taskvine_core: no secret, loopback only").digest()

SECRET_BYTES = 32
SECRET_FILE = "secret"

#: A password is stretched so that guessing it from a recorded handshake is slow. PBKDF2 because every Python has
#: it (scrypt is missing where FIPS mode is on, and both sides must agree); the count costs a start about 0.1 s.
_STRETCH_ROUNDS = 200_000
_STRETCH_SALT = b"taskvine_core password 1"

#: Longest password file that is read: more is a mistake in the path.
_MAX_PASSWORD_FILE_BYTES = 64 * 1024

#: How long another process may take between creating and filling a key file, where hard links do not exist.
_FILL_TIMEOUT_S = 5.0
_FILL_POLL_S = 0.01

_PRIVATE_DIR_MODE = 0o700
_PRIVATE_FILE_MODE = 0o600
_OTHERS = 0o077
_OTHERS_WRITE = 0o022
_KEY_DIGITS = b"0123456789abcdef"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EACCES)


def state_directory() -> Path:
    """``taskvine`` in $XDG_STATE_HOME or ~/.local/state; made, for this user only, when missing.

    Raises:
        SecurityError: others can write in it.
        ConfigError: it cannot be made.
    """
    from pathlib import Path

    return Path(_state_directory())


def _state_directory() -> str:
    """``state_directory`` as text: a worker's start loads no pathlib."""
    base = os.environ.get("XDG_STATE_HOME", "")
    path = os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.local/state"), "taskvine")
    if path.startswith("~"):
        raise ConfigError("this user has no home directory", hint="set HOME, or XDG_STATE_HOME, to one you can write")
    try:
        if not os.path.isdir(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.makedirs(path, mode=_PRIVATE_DIR_MODE, exist_ok=True)
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(f"the state directory {path} cannot be made: {error.strerror}",
                          hint="set XDG_STATE_HOME to a directory you can write") from error
    if mode & _OTHERS_WRITE:
        raise SecurityError(f"other users can write in {path}", hint=f"chmod 700 {path}")
    return path


def secret_from_password(password: str) -> bytes:
    """The key a password stands for; the same everywhere. Takes about 0.1 s.

    Raises:
        ConfigError: an empty password.
    """
    if not password:
        raise ConfigError("the password is empty", hint="give a longer one")
    return _stretch(password.encode("utf-8", "surrogateescape"))


@lru_cache(maxsize=8)
def _stretch(password: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password, _STRETCH_SALT, _STRETCH_ROUNDS, SECRET_BYTES)


def load_secret(password_file: str | None = None) -> bytes:
    """The key to use.

    Args:
        password_file: a file with a password (newlines at its end do not count) or a copy of a key file.
            None: this user's key file in ``state_directory()``, made at its first use.

    Returns:
        32 bytes.

    Raises:
        ConfigError: the file is missing, unreadable, empty or not a password file.
        SecurityError: the user's own key file can be read by others, or is damaged.
    """
    if password_file is None:
        return _own_secret(f"{_state_directory()}/{SECRET_FILE}")
    try:
        with open(password_file, "rb") as file:
            content = file.read(_MAX_PASSWORD_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the password file {password_file} cannot be read: {error.strerror}",
                          hint="check the path and its permissions") from error
    if len(content) > _MAX_PASSWORD_FILE_BYTES:
        raise ConfigError(f"the password file {password_file} is larger than {_MAX_PASSWORD_FILE_BYTES} bytes",
                          hint="give a file that holds only a password")
    if _is_key(content):
        return bytes.fromhex(content.decode("ascii"))
    password = content.rstrip(b"\r\n")
    if not password:
        raise ConfigError(f"the password file {password_file} is empty", hint="write a password into it")
    return _stretch(password)


def _is_key(content: bytes) -> bool:
    """64 hexadecimal digits, perhaps with a newline."""
    digits = content.removesuffix(b"\n")
    return len(digits) == 2 * SECRET_BYTES and not digits.strip(_KEY_DIGITS)


def _own_secret(path: str) -> bytes:
    content = _read_private(path)
    if content is None:
        _create(path)
        content = _read_private(path)
    deadline = time.monotonic() + _FILL_TIMEOUT_S
    while content == b"" and time.monotonic() < deadline:
        time.sleep(_FILL_POLL_S)  # another process made it and is about to fill it
        content = _read_private(path)
    if content is None or not _is_key(content):
        raise SecurityError(f"the key file {path} is damaged", hint="delete it; a new one is made at the next start")
    return bytes.fromhex(content.decode("ascii"))


def _read_private(path: str) -> bytes | None:
    """Content of our key file, None when there is none.

    The permissions are those of the file that was opened, not of what the name points to a moment later.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SecurityError(f"the key file {path} cannot be read: {error.strerror}",
                            hint="it must belong to you, with mode 600") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecurityError(f"the key file {path} is not a regular file", hint="delete it")
        if status.st_mode & _OTHERS:
            raise SecurityError(f"the key file {path} is open to other users (mode {status.st_mode & 0o777:o})",
                                hint="delete it and start again: somebody may have read the key")
        return file.read(_MAX_PASSWORD_FILE_BYTES)


def _create(path: str) -> None:
    """Make the key file unless another process did; never leaves a partial one under its name."""
    text = os.urandom(SECRET_BYTES).hex().encode("ascii") + b"\n"
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        _write_new(temporary, text)
        try:
            os.link(temporary, path)  # unlike a rename, this never replaces the file of a faster process
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write_new(path, text)  # readers wait while it is empty
    except FileExistsError:
        pass  # another process was faster: its key counts
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be made: {error.strerror}",
                          hint="free some space, or set XDG_STATE_HOME to a directory you can write") from error
    finally:
        _remove(temporary)


def _write_new(path: str, content: bytes) -> None:
    """Create a file that did not exist, readable by us only, and fill it with one write; whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(content)
            os.fsync(descriptor)
    except OSError:
        _remove(path)
        raise


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)

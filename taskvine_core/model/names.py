"""Which names are safe: cache names and paths inside a sandbox.

Owns the two checks that keep a peer (or a typing mistake) from writing outside its directory.
Must not touch the file system: these are rules about text.
"""

from __future__ import annotations

from taskvine_core.errors import SecurityError

MAX_CACHE_NAME = 200
MAX_SANDBOX_PATH = 1024


def check_cache_name(name: str) -> str:
    """Return ``name`` when it is ``<kind>-<how>-<value>`` of letters, digits and dashes.

    Raises:
        SecurityError: anything else, in particular dots, slashes and empty or huge names.
    """
    kind, _, rest = name.partition("-")
    good = kind.isalpha() and kind.islower() and rest[:1].isalnum() and rest.replace("-", "").isalnum()
    if len(name) > MAX_CACHE_NAME or not name.isascii() or not good:
        raise SecurityError(f"unsafe cache name {name[:80]!r}", hint="expected <kind>-<how>-<value>")
    return name


def check_sandbox_path(path: str) -> str:
    """Return ``path`` when it is relative, stays inside the sandbox and has no odd parts.

    Raises:
        SecurityError: absolute, empty, with ``..``, with a NUL or newline, or too long.
    """
    if not path or len(path) > MAX_SANDBOX_PATH or "\0" in path or "\n" in path:
        raise SecurityError(f"unsafe sandbox path {path[:80]!r}", hint="give a short relative path")
    if path.startswith("/"):
        raise SecurityError(f"sandbox path {path!r} is absolute", hint="give a path relative to the sandbox")
    parts = path.rstrip("/").split("/")
    if ".." in parts or "" in parts or parts in ([], ["."]):
        raise SecurityError(f"sandbox path {path!r} leaves the sandbox or has empty parts",
                            hint="remove '..' and doubled slashes")
    return path

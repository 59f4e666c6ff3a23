"""``$OS`` and ``$ARCH`` in the path of a local input: one declared file, another local file for each kind of worker.

Owns the replacing, and the names under which workers ask the manager for the file that is theirs. Must not know who
asks or whether a file exists.
"""

from __future__ import annotations

OS, ARCH = "$OS", "$ARCH"
_MARK = "-on-"


def varies(path: str) -> bool:
    """Does the path depend on the worker?"""
    return OS in path or ARCH in path


def path_for(path: str, os_name: str, arch: str) -> str:
    """The path for workers of this kind. What a worker says of itself stays within one component."""
    return path.replace(OS, os_name.replace("/", "_")).replace(ARCH, arch.replace("/", "_"))


def variant_name(name: str, os_name: str, arch: str) -> str:
    """What a worker of this kind asks the manager for to get the file of cached name ``name``; a cached name itself."""
    return f"{name}{_MARK}{os_name.encode().hex()}-{arch.encode().hex()}"


def split_variant(name: str) -> tuple[str, str, str] | None:
    """Cached name, operating system and architecture of a ``variant_name``; None for any other name."""
    plain, mark, kind = name.rpartition(_MARK)
    os_hex, dash, arch_hex = kind.partition("-")
    if not (plain and mark and dash):
        return None
    try:
        return plain, bytes.fromhex(os_hex).decode(), bytes.fromhex(arch_hex).decode()
    except ValueError:
        return None

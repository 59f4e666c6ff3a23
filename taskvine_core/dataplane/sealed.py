"""When raw bytes need no proof of their own: nobody else can change them on their way.

Owns the question whether both ends of a channel are on one machine. Must not know objects.

The digest in a trailer is there because raw bytes carry no MAC. With TLS every record has one; and between two
processes under one kernel nobody can change bytes who could not as well change the files. The receiver hashes in any
case and compares with what is known; only the sender's hash of an object that nobody has hashed yet is left out.
So a client whose server has its own address says the boot id of its kernel and what the kernel calls the two ends of
the connection, under the MAC of its frame. Through a tunnel the boot id differs, through a proxy the ports do.
"""

from __future__ import annotations

from functools import cache

from taskvine_core.dataplane.channel import Channel
from taskvine_core.dataplane.messages import Local

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@cache
def boot_id() -> bytes:
    """What tells this boot of this machine from all others; b"" where the kernel does not say."""
    try:
        with open(_BOOT_ID, "rb") as file:
            return file.read().strip()
    except OSError:
        return b""


def introduction(channel: Channel) -> tuple[Local, ...]:
    """What a client says before its request: nothing, unless the server may be on its machine."""
    here, there = channel.ends()
    may_be = not channel.sealed and bool(boot_id()) and here.partition(" ")[0] == there.partition(" ")[0]
    return (Local(boot_id(), here, there),) if may_be else ()


def is_direct(channel: Channel, said: Local) -> bool:
    """At the server: is that client on our machine, and nobody between us?"""
    return bool(said.boot_id) and said == Local(boot_id(), *reversed(channel.ends()))

"""Strangers on a port: connections that say nothing, garbage, or an oversize length. For bench_attack.py.

    python bench/strangers.py HOST PORT [--per-second 50] [--held 200]        (ends when its standard input does)
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import struct
import sys
from collections import deque

OVERSIZE = struct.pack(">I", 0xFFFFFFF0)
GARBAGE_BYTES = 4096


def attack(address: tuple[str, int], per_second: float, held_max: int) -> int:
    """Connect and misbehave until standard input ends; how many connections were made."""
    held: deque[socket.socket] = deque()
    made = 0
    print("attacking", flush=True)
    while not select.select([sys.stdin], [], [], 1 / per_second)[0]:
        try:
            sock = socket.create_connection(address, timeout=5)
            sock.setblocking(False)
            if made % 3:
                sock.send(os.urandom(GARBAGE_BYTES) if made % 3 == 1 else OVERSIZE + os.urandom(64))
        except OSError:
            continue
        finally:
            made += 1
        held.append(sock)
        if len(held) > held_max:
            held.popleft().close()
    return made


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("host")
    options.add_argument("port", type=int)
    options.add_argument("--per-second", type=float, default=50)
    options.add_argument("--held", type=int, default=200)
    given = options.parse_args()
    print(attack((given.host, given.port), given.per_second, given.held), flush=True)


if __name__ == "__main__":
    main()

"""Opening the port of the data plane.

Owns bind and listen. Must not know who connects: a worker opens its port when it starts and loads what answers
there (acceptor, server) when the first peer knocks, which for most workers is never.
"""

from __future__ import annotations

import socket

from taskvine_core.errors import ConfigError

#: Thousands of workers may connect in one moment.
LISTEN_BACKLOG = 1024


def bind(host: str, ports: range | int) -> tuple[socket.socket, int]:
    """A socket that listens, without blocking, and its port.

    Args:
        host: address to bind, "" for all.
        ports: one port, 0 for any free one, or a range to try in order.

    Raises:
        ConfigError: no port of these can be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = "the range is empty"
    for port in (ports,) if isinstance(ports, int) else ports:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(LISTEN_BACKLOG)
        except OSError as error:
            sock.close()
            reason = error.strerror or str(error)
            continue
        sock.setblocking(False)
        return sock, int(sock.getsockname()[1])
    raise ConfigError(f"cannot listen for data connections on {host or '*'} port {ports}: {reason}",
                      hint="choose another port or range")

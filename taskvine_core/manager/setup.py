"""From constructor arguments to what a runner needs: ports, TLS, the shutdown of everything a manager started.

Owns the reading of the environment at creation and the order of closing. Must not refer to the Manager object: closing
also has to work when that is being collected, and at the end of the program.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from taskvine_core.errors import ConfigError, UsageError, UsageTypeError
from taskvine_core.logs.rundir import RunDirectory
from taskvine_core.protocol.messages import PeerKey

if TYPE_CHECKING:
    from taskvine_core.manager.advert import Advert
    from taskvine_core.manager.metrics import MetricsServer
    from taskvine_core.manager.runner import ManagerRunner

MAX_PORT = 65535

_LOW_NAMES = ("TCP_LOW_PORT", "VINE_LOW_PORT")
_HIGH_NAMES = ("TCP_HIGH_PORT", "VINE_HIGH_PORT")
#: Where a range begins and ends when only the other end is given.
_FIRST_USER_PORT = 1024


def port_range(port: object, environment: dict[str, str] | None = None) -> tuple[int, int]:
    """The closed range of ports to try; (0, 0) = any free one.

    Args:
        port: a number, or a sequence of two.
        environment: of the process; consulted when ``port`` is 0: VINE_PORT, then TCP_LOW_PORT and TCP_HIGH_PORT
            (or VINE_LOW_PORT and VINE_HIGH_PORT).

    Raises:
        UsageError: (a ValueError) a sequence of another length, or a number that is no port.
        UsageTypeError: (a TypeError) no number, or the low end above the high one.
    """
    if isinstance(port, (tuple, list)):
        if len(port) != 2:
            raise UsageError(f"port {port!r} must be a number or two, the lowest and the highest")
        low, high = _port(port[0], "port"), _port(port[1], "port")
        return _ordered(low, high, "port")
    number = _port(port, "port")
    if number:
        return number, number
    env = os.environ if environment is None else environment
    if fixed := _env_port(env, ("VINE_PORT",)):
        return fixed, fixed
    low, high = _env_port(env, _LOW_NAMES), _env_port(env, _HIGH_NAMES)
    if not low and not high:
        return 0, 0
    return _ordered(low or _FIRST_USER_PORT, high or MAX_PORT, "TCP_LOW_PORT")


def _port(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageTypeError(f"{what} must be an integer, not {value!r}")
    if not 0 <= value <= MAX_PORT:
        raise UsageError(f"{what} {value} is not between 0 and {MAX_PORT}")
    return value


def _env_port(environment: object, names: tuple[str, ...]) -> int:
    for name in names:
        text = environment.get(name)  # type: ignore[attr-defined]
        if text:
            if not text.strip().isdigit():
                raise UsageError(f"the environment variable {name}={text!r} is not a port number")
            return _port(int(text), name)
    return 0


def _ordered(low: int, high: int, what: str) -> tuple[int, int]:
    if low > high:
        raise UsageTypeError(f"{what}: the low end {low} is above the high end {high}")
    return low, high


def tls_files(ssl: object, directory: Path) -> tuple[str, str] | None:
    """Key and certificate of an ``ssl=`` argument; None: no TLS.

    Args:
        directory: where a self-signed pair is made when ``ssl`` is True.

    Raises:
        UsageTypeError: neither None, a bool, nor a pair of paths.
        UsageError: only one of the pair, or a file that is not there.
    """
    if ssl is None or ssl is False:
        return None
    if ssl is True:
        from taskvine_core.tls import make_self_signed

        key, certificate = make_self_signed(directory)
        return str(key), str(certificate)
    if not isinstance(ssl, (tuple, list)) or len(ssl) != 2:
        raise UsageTypeError(f"ssl must be None, True or (key_file, cert_file), not {ssl!r}")
    if ssl[0] is None and ssl[1] is None:
        return None
    for path, what in zip(ssl, ("key", "certificate"), strict=True):
        if not isinstance(path, (str, os.PathLike)):
            raise UsageError(f"ssl: the {what} is missing: {ssl!r}")
        if not os.path.isfile(path):
            raise UsageError(f"ssl: the {what} file {os.fspath(path)!r} does not exist")
    return os.fspath(ssl[0]), os.fspath(ssl[1])


def peer_key(directory: Path) -> PeerKey | None:
    """What the workers of a manager with TLS encrypt their transfers with; None, with a warning, when nothing here can
    make it: then these transfers are off. One pair for all workers of a run, made in memory's reach only: whoever has
    the shared key may be any worker anyway, and TLS's session keys do not depend on the pair once they are agreed.

    Args:
        directory: of this run.
    """
    from taskvine_core.tls import make_pair

    try:
        certificate, key = make_pair(directory)
    except ConfigError as error:
        sys.stderr.write(f"taskvine: workers cannot encrypt transfers between each other, so these are off: {error}\n")
        return None
    return PeerKey(certificate, key)


#: New objects between two looks of the garbage collector at the young ones. Python's 700 or 2,000 cost a manager a
#: quarter of its time: a million waiting tasks are many objects, and none of them is in a cycle.
YOUNG_OBJECTS = 50_000


def relax_collector() -> None:
    """Have the garbage collector look less often, unless the program has set it up itself or switched it off."""
    young, *older = gc.get_threshold()
    if young in (700, 2000) and gc.isenabled():
        gc.set_threshold(YOUNG_OBJECTS, *older)


class Shutdown:
    """Closes everything of one manager, once, in the process that made it."""

    def __init__(self, runner: ManagerRunner, run: RunDirectory, advert: Advert, exit_workers: bool) -> None:
        self._runner = runner
        self._run = run
        self._advert = advert
        self.exit_workers = exit_workers
        self.own_files: list[str] = []
        self.metrics: MetricsServer | None = None
        self._pid = os.getpid()

    def __call__(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child ends: the manager is its parent's
        if self.metrics is not None:
            self.metrics.close()        # before the runner, which it asks
        try:
            self._runner.close(exit_workers=self.exit_workers)
        finally:
            self._advert.withdraw()  # after the runner, which would publish again
        self._run.remove_staging()
        for path in self.own_files:
            Path(path).unlink(missing_ok=True)

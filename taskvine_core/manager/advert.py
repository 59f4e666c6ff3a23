"""How a manager is found: the record it publishes, and when.

Owns the fields beside the status record. Must not refer to the Manager object, so that a manager nobody refers to can
be collected while its runner still publishes.
"""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Mapping

from taskvine_core import __version__
from taskvine_core.catalog.local import Advertiser
from taskvine_core.errors import VineError

_CONNECTION_MODES = ("by_ip", "by_hostname", "by_apparent_ip")
LOOPBACK = "127.0.0.1"


class Advert:
    """The advertisement of one manager. Nothing is published while it has no name.

    Args:
        name: project name or None.
        ssl_fingerprint: hexadecimal digest of the certificate, "" without TLS.
        loopback: it can be reached from this machine only.
    """

    def __init__(self, name: str | None, ssl_fingerprint: str, *, loopback: bool = False) -> None:
        self.name = name
        self._addresses = {"addresses": [LOOPBACK]} if loopback else {}
        self.ssl_fingerprint = ssl_fingerprint
        self.port = 0
        self.manager_id = ""
        self.priority = 0
        self.connection = _CONNECTION_MODES[0]
        self._advertiser: Advertiser | None = None
        self._complained = False
        self._start = int(time.time())
        self._working_dir = _working_directory()
        self._owner = _user_name()

    def publish(self, status: Mapping[str, object]) -> None:
        """Write the record; called by the runner between turns.

        Args:
            status: the manager's own status record (section 20.4).
        """
        if not self.name or not self.port:
            return  # the runner's first turn may come before the API has told the port here
        record = {
            **status, **self._addresses, "type": "vine_manager", "project": self.name, "port": self.port,
            "manager_id": self.manager_id, "taskvine_uuid": self.manager_id, "priority": self.priority,
            "working_dir": self._working_dir, "owner": self._owner, "version": __version__, "starttime": self._start,
            "manager_preferred_connection": self.connection, "ssl": bool(self.ssl_fingerprint),
            "ssl_fingerprint": self.ssl_fingerprint, "pid": os.getpid()}
        try:
            if self._advertiser is None:
                self._advertiser = Advertiser()
            self._advertiser.publish(record)
        except VineError as error:
            if not self._complained:  # it works for workers that are told host and port: say it once, go on
                sys.stderr.write(f"taskvine: {error}\n")
            self._complained = True

    def withdraw(self) -> None:
        """Take the record away."""
        if self._advertiser is not None:
            self._advertiser.withdraw()
            self._advertiser = None

    def prefer(self, mode: str) -> bool:
        """Which address workers should try first; False for an unknown mode."""
        if mode not in _CONNECTION_MODES:
            return False
        self.connection = mode
        return True


def _working_directory() -> str:
    """Where the program was started; read once, because it may be deleted under a running manager."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _user_name() -> str:
    """Login name, or the number of a user without one (containers)."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())

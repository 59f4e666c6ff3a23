"""Workers, hosts, tuning, advertisement: what the program may decide (reference, section 3.7).

Owns the argument checks of these calls; the decisions are the core's, to which everything is handed between its turns.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import Any

from taskvine_core.errors import ConfigError, UsageError, VineError
from taskvine_core.manager import checks
from taskvine_core.manager.category_calls import CategoryMixin
from taskvine_core.manager.events import BlockHost, UnblockHost
from taskvine_core.secret import load_secret, secret_from_password

#: Memory and disk of workers are alike when equal after rounding to this part of the enclosing power of two.
_ALIKE_PARTS = 8


class PolicyMixin(CategoryMixin):
    """Settings."""

    # ------------------------------------------------------------------ scheduling and transfers

    def set_scheduler(self, scheduler: str | int) -> None:
        """How workers are chosen: "files" (default), "time", "rand", "worst", "disk"."""
        number = checks.scheduler(scheduler)
        self._runner.call(lambda core, now: setattr(core.placement, "default_scheduler", number))

    def tune(self, name: str, value: float) -> int:
        """Change a tuning parameter (section 8): 0, or -1 with a notice for an unknown name."""
        checks.text(name, "name")
        number = checks.number(value, f"value of {name}") if not isinstance(value, bool) else float(value)

        def change(core: Any, now: float) -> int:
            code: int = core.tune(name, number)
            core.books.categories.invalidate()
            return code

        code = self._runner.call(change)
        if code:
            sys.stderr.write(f"taskvine: tune: {name}={value} was not accepted: unknown name or impossible value\n")
        return code

    def enable_peer_transfers(self) -> None:
        """Workers may copy files from each other (the default).

        Raises:
            ConfigError: the manager uses TLS and could make no certificate for these transfers; in the clear they
                are not done.
        """
        if not self._peers_possible:
            raise ConfigError("workers cannot encrypt transfers between each other: no certificate could be made",
                              hint="install the Python package cryptography or the command openssl")
        self._set_peers(True)

    def disable_peer_transfers(self) -> None:
        """Everything goes through the manager; declare_temp then gives local files."""
        sys.stderr.write("taskvine: peer transfers are off: temporary files go through the manager\n")
        self._set_peers(False)

    def _set_peers(self, on: bool) -> None:
        self._peer_transfers = on
        self._runner.call(lambda core, now: setattr(core.staging, "peers_enabled", on))

    def enable_proportional_resources(self) -> int:
        """Unspecified resources are given in proportion (the default)."""
        return self.tune("proportional-resources", 1)

    def disable_proportional_resources(self) -> int:
        """Unspecified resources are given whole."""
        return self.tune("proportional-resources", 0)

    def enable_disconnect_slow_workers(self, multiplier: float) -> None:
        """Remove workers whose tasks take more than ``multiplier`` times the average; < 1: never."""
        factor = checks.number(multiplier, "multiplier")
        self._categories(lambda c: c.set_fast_abort(None, factor if factor >= 1 else 0))

    def enable_disconnect_slow_workers_category(self, name: str, multiplier: float) -> None:
        """The same for one category: 0 never, negative or below 1: as the default category."""
        factor = checks.number(multiplier, "multiplier")
        self._categories(lambda c: c.set_fast_abort(name, factor))

    def activate_fast_abort(self, multiplier: float) -> None:
        """Older name of ``enable_disconnect_slow_workers``."""
        self.enable_disconnect_slow_workers(multiplier)

    def activate_fast_abort_category(self, name: str, multiplier: float) -> None:
        """Older name of ``enable_disconnect_slow_workers_category``."""
        self.enable_disconnect_slow_workers_category(name, multiplier)

    # ------------------------------------------------------------------ workers and hosts

    def set_draining_by_hostname(self, hostname: str, drain_mode: bool = True) -> int:
        """Stop (or resume) giving tasks to the workers of a host; returns how many workers that concerns."""
        checks.text(hostname, "hostname")
        return self._runner.call(lambda core, now: core.fleet.drain_host(hostname, bool(drain_mode)))

    def block_host(self, host: str) -> None:
        """No more tasks for workers of this host."""
        self.block_host_with_timeout(host, 0)

    def block_host_with_timeout(self, host: str, timeout: float) -> None:
        """The same for ``timeout`` seconds; < 1: for ever."""
        seconds = checks.number(timeout, "timeout")
        self._runner.do(BlockHost(checks.text(host, "host"), time.time() + seconds if seconds >= 1 else 0.0))

    def unblock_host(self, host: str | None = None) -> None:
        """Unblock one host, or (None) all."""
        self._runner.do(UnblockHost("" if host is None else checks.text(host, "host")))

    def blacklist(self, host: str) -> None:
        """Older name of ``block_host``."""
        self.block_host(host)

    def blacklist_with_timeout(self, host: str, timeout: float) -> None:
        """Older name of ``block_host_with_timeout``."""
        self.block_host_with_timeout(host, timeout)

    def blacklist_clear(self, host: str | None = None) -> None:
        """Older name of ``unblock_host``."""
        self.unblock_host(host)

    def workers_shutdown(self, n: int = 0) -> int:
        """Ask ``n`` (0 = all) idle workers to exit; returns how many were asked."""
        count = checks.whole(n, "n")
        return self._runner.call(lambda core, now: core.fleet.shutdown_idle(max(0, count)))

    def set_keepalive_interval(self, interval: float) -> int:
        """Seconds of silence after which a worker is checked."""
        return self.tune("keepalive-interval", interval)

    def set_keepalive_timeout(self, timeout: float) -> int:
        """Seconds a checked worker may stay silent."""
        return self.tune("keepalive-timeout", timeout)

    def summarize_workers(self) -> list[dict[str, int]]:
        """Connected workers grouped by alike resources: workers, cores, gpus, memory, disk; largest groups first."""
        groups = Counter(
            (w["cores_total"], w["gpus_total"], _rounded(w["memory_total"]), _rounded(w["disk_total"]))
            for w in self.status("workers"))
        rows = sorted(((count, *key) for key, count in groups.items()), reverse=True)
        return [dict(zip(("workers", "cores", "gpus", "memory", "disk"), row, strict=True)) for row in rows]

    def status(self, request: str) -> list[dict[str, Any]]:
        """Records of section 20.4; ``request``: manager, tasks, workers, categories; [] for anything else."""
        return self._runner.call(lambda core, now: core.status(request))

    # ------------------------------------------------------------------ identity and advertisement

    def set_name(self, name: str) -> None:
        """Change the project name; also exported as VINE_NAME."""
        self._advert.name = checks.text(name, "name")
        os.environ["VINE_NAME"] = name
        self._settings.name = name
        self._runner.call(lambda core, now: setattr(core.fleet, "name", name))
        self.update_catalog()

    def set_priority(self, priority: float) -> None:
        """Workers prefer the manager with the larger one."""
        self._advert.priority = checks.whole(priority, "priority")

    def set_property(self, name: str, value: str) -> None:
        """An extra string in the advertised record."""
        key, text = checks.text(name, "name"), str(value)
        self._runner.call(lambda core, now: core.properties.__setitem__(key, text))

    def tasks_left_count(self, ntasks: int) -> None:
        """Tell factories how many tasks are still to be submitted."""
        count = max(0, checks.whole(ntasks, "ntasks"))
        self._runner.call(lambda core, now: setattr(core, "tasks_left", count))

    def set_manager_preferred_connection(self, mode: str) -> None:
        """Which address workers try first: "by_ip", "by_hostname", "by_apparent_ip"."""
        if not self._advert.prefer(mode):
            raise UsageError(f"mode {mode!r} is unknown", hint="use by_ip, by_hostname or by_apparent_ip")

    def set_catalog_servers(self, servers: str) -> None:
        """``host:port,host:port``; exported as CATALOG_HOST for the processes this program starts."""
        os.environ["CATALOG_HOST"] = checks.text(servers, "servers")

    def update_catalog(self) -> None:
        """Advertise now."""
        advert = self._advert
        self._runner.call(lambda core, now: advert.publish(core.status("manager")[0]))

    def set_password(self, password: str) -> None:
        """Workers that connect from now on must know this password instead of the user's key file."""
        if not checks.text(password, "password"):
            raise UsageError("password is empty")
        self._runner.set_secret(secret_from_password(password))

    def set_password_file(self, path: str | os.PathLike[str]) -> bool:
        """The same, read from a file (a trailing newline does not count).

        Raises:
            UsageError: the file cannot be read.
        """
        try:
            secret = load_secret(os.fspath(path))
        except (OSError, VineError) as error:
            raise UsageError(f"password file {os.fspath(path)!r} cannot be used: {error}") from error
        self._runner.set_secret(secret)
        return True


def _rounded(amount: int) -> int:
    """Down to 1/8 of the enclosing power of two."""
    if amount <= 0:
        return amount
    enclosing = 1 << (amount - 1).bit_length()
    part = max(1, enclosing // _ALIKE_PARTS)
    return amount // part * part


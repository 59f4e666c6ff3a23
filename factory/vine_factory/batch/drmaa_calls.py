"""Everything asked of a DRMAA library and of Grid Engine's tools, each with a deadline.

Owns the helper process and the arguments of qstat, qacct and qsub. Whether they mean anything, the driver decides.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskvine_core.errors import BatchRejected, BatchUnavailable
from vine_factory.batch.base import BatchState
from vine_factory.batch.drmaa_options import AUTO, GRID_ENGINE, OTHER
from vine_factory.batch.listed import Seen
from vine_factory.batch.parse import gridengine
from vine_factory.batch.rpc import Helper
from vine_factory.batch.tool import run

MODULE = "vine_factory.batch.drmaa_helper"
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=16384"}
"""Grid Engine's library needs jemalloc, which wants more thread-local storage than a running process has to give."""
CONTACT_FILE = "drmaa-session"
_STATES = {"queued_active": BatchState.QUEUED, "system_on_hold": BatchState.HELD, "user_on_hold": BatchState.HELD,
           "user_system_on_hold": BatchState.HELD, "running": BatchState.RUNNING,
           "system_suspended": BatchState.RUNNING, "user_suspended": BatchState.RUNNING,
           "user_system_suspended": BatchState.RUNNING, "done": BatchState.ENDED, "failed": BatchState.ENDED}
_GRID_ENGINES = ("SGE", "GE ", "UGE", "OGE", "GRID ENGINE", "GRIDENGINE")
_SIGNAL_BASE = 128


class DrmaaCalls:
    """One library and the tools beside it.

    Args:
        directory: where the session's contact is kept, so that the next process goes on with it.
        library: path of libdrmaa.so, "" = the environment says.
        system: option ``system``.
        timeout_s: for one call.
    """

    def __init__(self, directory: Path, library: str, system: str, timeout_s: float) -> None:
        self._contact = directory / CONTACT_FILE
        self._system = system
        self._timeout_s = timeout_s
        tunables = os.environ.get("GLIBC_TUNABLES", "")
        environment = {**ENVIRONMENT, **({"DRMAA_LIBRARY_PATH": library} if library else {})}
        if tunables:
            environment["GLIBC_TUNABLES"] = f"{tunables}:{environment['GLIBC_TUNABLES']}"
        self._helper = Helper(MODULE, environment, timeout_s)
        self.words = ""

    def system(self) -> str:
        """What is behind the library: "gridengine" or "other".

        Raises:
            BatchRejected: there is no library. BatchUnavailable: the batch system does not answer.
        """
        if self._system == AUTO:
            about = self._connect()
            names = f"{about['system']} ".upper()
            self._system = GRID_ENGINE if any(name in names for name in _GRID_ENGINES) else OTHER
        return self._system

    def submit(self, script: Path, native: str, name: str, count: int, directory: Path, *, bulk: bool) -> list[str]:
        """Submit; returns the jobs' numbers. Grid Engine takes the places of outputs from the script."""
        out, err = ("", "") if self.system() == GRID_ENGINE else (
            f"{directory}/{script.stem}.$INDEX.out", f"{directory}/{script.stem}.$INDEX.err")
        ids: list[str] = self._call("submit", script=str(script), native=native, name=name, count=count, bulk=bulk,
                                    directory=str(directory), out=out, err=err)
        if len(ids) != count:
            raise BatchUnavailable("submit", said=f"{len(ids)} of {count} jobs were submitted")
        # What is no array has one task for qstat, too.
        return [one if "." in one or self._system != GRID_ENGINE else f"{one}.1" for one in ids]

    def states(self, ids: Sequence[str]) -> list[Seen]:
        """Jobs by DRMAA's own states, where there is no listing."""
        found: dict[str, str] = self._call("states", ids=list(ids))
        return [Seen(batch_id, _STATES.get(word), said="" if word in _STATES else f"unknown state {word!r}",
                     final=False) for batch_id, word in found.items()]

    def reap(self, ids: Sequence[str]) -> list[Seen]:
        """How jobs of this session ended, told once for each. Of one that was deleted the status is not known."""
        found: dict[str, dict[str, Any]] = self._call("reap", ids=list(ids))
        return [Seen(batch_id, BatchState.ENDED, "", end["started"], end["ended"], _exit_code(end),
                     "aborted" if end["aborted"] else "", _exit_code(end) is not None)
                for batch_id, end in found.items()]

    def terminate(self, ids: Sequence[str]) -> None:
        """Delete jobs. Those that are gone do not matter."""
        self._call("terminate", ids=list(ids))

    def listing(self) -> list[gridengine.Listing]:
        """All tasks of this user, by qstat."""
        return gridengine.listing(self._qstat("-xml", "-g", "d", "-r", "-s", "prsh", "-u", _user()))

    def details(self, jobs: Sequence[str]) -> dict[str, gridengine.Details]:
        """Context and messages of whole jobs, by qstat."""
        return gridengine.details(self._qstat("-xml", "-j", ",".join(jobs))) if jobs else {}

    def facts(self, job: str) -> dict[str, object]:
        """All that qstat says of a whole job, {} when it is gone."""
        done = self._run("qstat", "-j", job)
        lines = (line.partition(":") for line in done.splitlines())
        return {name.strip(): value.strip() for name, colon, value in lines if colon and value.strip()} \
            if "job_number" in done else {}

    def accounting(self, job: str) -> list[Seen]:
        """Ended tasks of a whole job, by qacct; [] when it does not know it."""
        if shutil.which("qacct") is None:
            return []
        return gridengine.accounting(run(["qacct", "-j", job], timeout_s=self._timeout_s).stdout)

    def verify(self, script: Path) -> str:
        """Whether there is a place for these jobs, by ``qsub -w v``; its words.

        Raises:
            BatchRejected: there is none.
        """
        if self.system() != GRID_ENGINE or shutil.which("qsub") is None:
            return f"{self._connect()['system']}: DRMAA has no dry run"
        done = run(["qsub", "-w", "v", str(script)], timeout_s=self._timeout_s)
        if done.status != 0:
            kind = BatchUnavailable if "qmaster" in done.said else BatchRejected
            raise kind("qsub -w v", said=done.said)
        return done.stdout.strip()

    def close(self) -> None:
        """End the helper."""
        self._helper.close()

    def _call(self, method: str, **arguments: object) -> Any:
        self._connect()
        return self._helper.call(method, self._timeout_s, **arguments)

    def _connect(self) -> dict[str, str]:
        """Every time: a helper that was replaced has no session, and one that has answers at once."""
        try:
            known = self._contact.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            known = ""
        about: dict[str, str] = self._helper.call("connect", self._timeout_s, contact=known)
        self.words = f"{about['system']} through DRMAA {about['version']}"
        if about["contact"] != known:
            part = self._contact.with_suffix(".new")
            try:
                part.write_text(about["contact"] + "\n", encoding="utf-8")
                part.replace(self._contact)
            except OSError as problem:
                raise BatchUnavailable(f"cannot write {self._contact}", said=str(problem)) from problem
        return about

    def _qstat(self, *words: str) -> str:
        return self._run("qstat", *words)

    def _run(self, *argv: str) -> str:
        done = run(argv, timeout_s=self._timeout_s)
        # For a job that is gone qstat -j ends with 0 or 1, depending on the release, and says so.
        if done.status != 0 and "do not exist" not in done.stderr and "unknown_jobs" not in done.stdout:
            raise BatchUnavailable(" ".join(argv[:3]), said=done.said)
        return done.stdout


def has_listing() -> bool:
    """Is there a qstat?"""
    return shutil.which("qstat") is not None


def _exit_code(end: dict[str, Any]) -> int | None:
    """The status; of a job that was deleted DRMAA tells none, but Grid Engine's usage record has it."""
    if end["signal"]:
        number = getattr(signal, str(end["signal"]), None)
        return -int(number) if isinstance(number, signal.Signals) else None
    if end["aborted"]:
        known = end["started"] > 0 and re.fullmatch(r"\d+(\.0*)?", end["used"], re.ASCII)
        code = int(float(end["used"])) if known else None
    else:
        code = int(end["status"]) if end["exited"] else None
    return _SIGNAL_BASE - code if code is not None and code > _SIGNAL_BASE else code


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())

"""A DRMAA library, in a process of its own: run as ``python -m``, spoken to over `rpc`.

Owns the session and what the library's errors mean. libdrmaa crashes, prints, and has to find its tunables before
Python starts (see `ENVIRONMENT` in drmaa_calls): none of that may happen to the factory. Must not know jobs' meaning.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from taskvine_core.errors import BatchRejected, BatchUnavailable
from vine_factory.batch.rpc import serve

_REFUSED = (3, 4, 13, 14, 15, 17)
"""DRMAA's numbers for what will not get better by itself: a wrong value, a missing right, denied by the system."""
_GONE = 18
"""...for a job that is not there."""
_NO_USAGE = 24
"""...for one that never ran."""
_LATE = 23
_CODE = re.compile(r"code (\d+): ?(.*)", re.DOTALL)

_session: Any = None
_library: Any = None


def connect(contact: str) -> dict[str, str]:
    """Open the session ``contact``, or a new one when that is over or "". Returns its contact and what the library
    says of itself."""
    global _session, _library
    if _session is None:
        try:
            import drmaa
        except (ImportError, OSError, RuntimeError) as problem:
            raise BatchRejected("the DRMAA library cannot be loaded", said=str(problem), hint="pip install drmaa, and "
                                "set the option 'library' to the site's libdrmaa.so") from problem
        _library = drmaa
        session = drmaa.Session()
        try:
            session.initialize(contact or None)
        except Exception as problem:
            if not contact:
                raise _translated("cannot open a DRMAA session", problem) from problem
            session = drmaa.Session()
            _ask("cannot open a DRMAA session", session.initialize)
        _session = session
    text = {"contact": lambda: _session.contact, "system": lambda: _session.drmsInfo,
            "implementation": lambda: _session.drmaaImplementation, "version": lambda: str(_session.version)}
    return {name: str(_ask(name, get)) for name, get in text.items()}


def submit(script: str, native: str, name: str, count: int, bulk: bool, directory: str, out: str,
           err: str) -> list[str]:
    """Submit ``count`` jobs of one script; returns their numbers in order."""
    index = _library.JobTemplate.PARAMETRIC_INDEX
    template = _ask("submit", _session.createJobTemplate)
    try:
        template.remoteCommand, template.jobName, template.workingDirectory = script, name, directory
        template.joinFiles = False
        if native:
            template.nativeSpecification = native
        if out:
            template.outputPath, template.errorPath = (
                ":" + path.replace("$INDEX", index if bulk else "1") for path in (out, err))
        if bulk:
            return [str(one) for one in _ask("submit", lambda: _session.runBulkJobs(template, 1, count, 1))]
        return [str(_ask("submit", lambda: _session.runJob(template)))]
    finally:
        with contextlib.suppress(Exception):
            _session.deleteJobTemplate(template)


def states(ids: list[str]) -> dict[str, str]:
    """DRMAA's word for the state of each job that it knows."""
    found = {}
    for batch_id in ids:
        try:
            found[batch_id] = str(_ask("status", lambda one=batch_id: _session.jobStatus(one)))
        except _Gone:
            continue
    return found


def reap(ids: list[str]) -> dict[str, dict[str, Any]]:
    """How jobs of this session ended: those that have, and that nobody was told of before."""
    found = {}
    for batch_id in ids:
        try:
            info = _ask("wait", lambda one=batch_id: _session.wait(one, _library.Session.TIMEOUT_NO_WAIT))
        except (_Gone, _Late):
            continue
        except _NeverRan:
            found[batch_id] = {"exited": False, "status": 0, "signal": "", "aborted": True, "used": "",
                               "started": 0.0, "ended": 0.0}
            continue
        usage = dict(info.resourceUsage or {})
        found[batch_id] = {
            "exited": bool(info.hasExited), "status": int(info.exitStatus), "aborted": bool(info.wasAborted),
            "signal": str(info.terminatedSignal) if info.hasSignal else "", "used": str(usage.get("exit_status", "")),
            "started": _number(usage.get("start_time")), "ended": _number(usage.get("end_time"))}
    return found


def terminate(ids: list[str]) -> int:
    """End jobs; returns how many there were."""
    count = 0
    for batch_id in ids:
        with contextlib.suppress(_Gone):
            _ask("terminate", lambda one=batch_id: _session.control(one, _library.JobControlAction.TERMINATE))
            count += 1
    return count


class _Gone(Exception):
    pass


class _Late(Exception):
    pass


class _NeverRan(Exception):
    pass


def _ask(what: str, call: Any) -> Any:
    try:
        return call()
    except Exception as problem:  # the module has a class per number, and none for numbers it does not know
        raise _translated(what, problem) from problem


def _translated(what: str, problem: Exception) -> Exception:
    said = str(problem).strip() or type(problem).__name__
    found = _CODE.match(said)
    number = int(found[1]) if found else -1
    said = (found[2].strip() or said) if found else said
    if number == _GONE:
        return _Gone()
    if number == _NO_USAGE:
        return _NeverRan()
    if number == _LATE:
        return _Late()
    return (BatchRejected if number in _REFUSED else BatchUnavailable)(what, said=said)


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return 0.0


if __name__ == "__main__":
    serve({"connect": connect, "submit": submit, "states": states, "reap": reap, "terminate": terminate})

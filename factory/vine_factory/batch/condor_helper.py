"""HTCondor's Python bindings, in a process of their own: run as ``python -m``, spoken to over `rpc`.

Owns the choice of the module and everything that differs between its versions. The bindings hold the interpreter for
20 s and more when a schedd hangs; here that harms nobody. Must not know jobs' meaning.
"""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any

from taskvine_core.errors import BatchRejected, BatchUnavailable
from vine_factory.batch.parse.condor_table import taken_apart
from vine_factory.batch.parse.condor_words import explained, refused
from vine_factory.batch.rpc import serve

_FIRST_SOUND_V2 = 25
"""``htcondor2`` of 24 exists but cannot submit a table of jobs; the same wheel has ``htcondor``, which can."""
_VERSION = re.compile(r"\$CondorVersion: (\S+)")
_REASON_CODE = 0


def _load() -> tuple[Any, str]:
    """The module, None when there is none, and its version or why not."""
    warnings.simplefilter("ignore")  # where there is no configuration, the call that needs one says so
    problems = []
    second: tuple[Any, str] | None = None
    for name in ("htcondor2", "htcondor"):
        try:
            module = importlib.import_module(name)
            version = str(module.version())
        except Exception as problem:  # a wheel for another libc, a version without it: whatever it is, not usable
            problems.append(f"{name}: {problem}")
            continue
        found = _VERSION.match(version)
        number = found[1] if found else version
        if name == "htcondor2" and int(number.split(".")[0]) < _FIRST_SOUND_V2:
            second = module, f"{name} {number}"
            continue
        return module, f"{name} {number}"
    return second or (None, "; ".join(problems))


_module, _words = _load()


def hello() -> dict[str, object]:
    """Which bindings there are."""
    return {"usable": _module is not None, "words": _words}


def submit(text: str, where: dict[str, str], spool: bool) -> list[str]:
    """Submit a description; returns the jobs' numbers in the order of its table."""
    head, rows = taken_apart(text)
    try:
        description = _module.Submit(head)
    except Exception as problem:
        raise BatchRejected("submit", said=str(problem).strip()) from problem
    schedd = _schedd(where)
    try:
        result = schedd.submit(description, itemdata=iter(rows), spool=spool)
    except Exception as problem:
        said = str(problem).strip()
        kind = BatchRejected if refused(said) else BatchUnavailable
        raise kind("submit", said=explained(said)) from problem
    if spool:
        _ask("spool", lambda: schedd.spool(result if _module.__name__ == "htcondor2" else list(
            description.jobs(clusterid=result.cluster(), itemdata=iter(rows)))))
    return [f"{result.cluster()}.{result.first_proc() + index}" for index in range(result.num_procs())]


def query(constraint: str, projection: list[str], where: dict[str, str]) -> list[dict[str, object]]:
    """Ads of this user's jobs."""
    option = _module.QueryOpts.DefaultMyJobsOnly
    return [_plain(ad) for ad in _ask("query", lambda: _schedd(where).query(
        constraint=constraint, projection=projection, opts=option))]


def history(constraint: str, projection: list[str], match: int, since: str,
            where: dict[str, str]) -> list[dict[str, object]]:
    """Ads of jobs that have left the queue, newest first."""
    return [_plain(ad) for ad in _ask("history", lambda: list(
        _schedd(where).history(constraint, projection, match, since)))]


def act(action: str, ids: list[str], constraint: str, reason: str, where: dict[str, str]) -> dict[str, int]:
    """Remove or RemoveX, by numbers or by constraint; returns the counts."""
    target: object = constraint or ids
    kind = getattr(_module.JobAction, action)

    def call() -> object:
        schedd = _schedd(where)
        try:
            return schedd.act(kind, target, reason=(reason, _REASON_CODE))  # a plain text is lost in 25.14
        except TypeError:
            return schedd.act(kind, target, reason=reason)
    counts: Any = _ask(action, call)
    return {str(name): int(counts[name]) for name in counts if str(name).startswith("Total")}


def slots(constraint: str, projection: list[str], where: dict[str, str]) -> list[dict[str, object]]:
    """Ads of machines."""
    kind = _module.AdTypes.Startd if hasattr(_module, "AdTypes") else _module.AdType.Startd
    return [_plain(ad) for ad in _ask("slots", lambda: _collector(where).query(
        kind, constraint=constraint or "true", projection=projection))]


def _collector(where: dict[str, str]) -> Any:
    return _module.Collector(where["collector"]) if where["collector"] else _module.Collector()


def _schedd(where: dict[str, str]) -> Any:
    """Made anew for each call: one that was located before a restart may point to nowhere."""
    if not where["schedd"] and not where["collector"]:
        return _ask("locate", _module.Schedd)
    kind = _module.DaemonTypes.Schedd if hasattr(_module, "DaemonTypes") else _module.DaemonType.Schedd
    ad = _ask("locate", lambda: _collector(where).locate(kind, where["schedd"]) if where["schedd"]
              else _collector(where).locate(kind))
    if ad is None:
        raise BatchUnavailable("locate", said=f"no schedd {where['schedd']!r} in the collector")
    return _module.Schedd(ad)


def _ask(what: str, call: Any) -> Any:
    try:
        return call()
    except BatchUnavailable:
        raise
    except Exception as problem:  # version 1 has a dozen classes, version 2 one; their words are all there is
        raise BatchUnavailable(what, said=str(problem).strip() or type(problem).__name__) from problem


def _plain(ad: Any) -> dict[str, object]:
    """An ad as JSON can hold it; an expression becomes its text, an undefined value is left out."""
    found: dict[str, object] = {}
    for name in ad:
        value = ad[name]
        if isinstance(value, bool | int | float | str):
            found[str(name)] = value
        elif str(value).lower().rpartition(".")[2] not in ("undefined", "error"):
            found[str(name)] = str(value)
    return found


if __name__ == "__main__":
    serve({"hello": hello, "submit": submit, "query": query, "history": history, "act": act, "slots": slots})

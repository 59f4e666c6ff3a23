"""The calls an HTCondor pool is used through: by its Python bindings or by its command-line tools, same results.

Owns both ways and the choice between them. Must not know what the answers mean for a job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable
from taskvine_core.records import NamedTuple
from vine_factory.batch import tool
from vine_factory.batch.parse import condor_words
from vine_factory.batch.parse.condor_ads import listing
from vine_factory.batch.rpc import Helper

HELPER_MODULE = "vine_factory.batch.condor_helper"
REMOVE, REMOVE_AT_ONCE = "Remove", "RemoveX"
_IDS_PER_CALL = 1000
"""Of a tool's arguments: far below the kernel's limit, and the schedd is free for others between two calls."""


class Where(NamedTuple):
    """Which schedd; "" = this machine's."""

    schedd: str = ""
    collector: str = ""


class Calls(ABC):
    """One way to talk to HTCondor. All calls raise BatchUnavailable when there is no answer."""

    words: str

    @abstractmethod
    def submit(self, text: str, spool: bool) -> list[str]:
        """Numbers of the jobs, in the order of the table. Raises BatchRejected when it is refused."""

    @abstractmethod
    def queue(self, constraint: str, projection: Sequence[str]) -> list[dict[str, object]]:
        """Ads of this user's jobs in the queue; all attributes when ``projection`` is empty."""

    @abstractmethod
    def history(self, constraint: str, projection: Sequence[str], match: int, since: str) -> list[dict[str, object]]:
        """Ads of at most ``match`` jobs that have left the queue, newest first; the search ends at the first job
        that satisfies ``since``, for a schedd's history may be gigabytes."""

    @abstractmethod
    def act(self, action: str, *, ids: Sequence[str] = (), constraint: str = "", reason: str = "") -> None:
        """Remove jobs. Those that are over, or never were, are no error."""

    @abstractmethod
    def slots(self, constraint: str, projection: Sequence[str]) -> list[dict[str, object]]:
        """Ads of machines that satisfy ``constraint``. Raises BatchRejected when that is no expression."""

    def close(self) -> None:
        """Let go of what this way holds."""
        return


class Bindings(Calls):
    """The Python bindings, in a helper process that is replaced when it hangs."""

    def __init__(self, where: Where, timeout_s: float) -> None:
        self._where = where._asdict()
        self._helper = Helper(HELPER_MODULE, timeout_s=timeout_s)
        self.words = "Python bindings"

    def hello(self) -> str:
        """Load the bindings.

        Raises:
            BatchRejected: there are none, or none that can be loaded.
        """
        answer = self._helper.call("hello")
        if not answer["usable"]:
            raise BatchRejected("cannot load HTCondor's Python bindings", said=str(answer["words"]))
        self.words = f"Python bindings {answer['words']}"
        return self.words

    def submit(self, text: str, spool: bool) -> list[str]:
        """See `Calls`."""
        return [str(number) for number in self._call("submit", text=text, spool=spool)]

    def queue(self, constraint: str, projection: Sequence[str]) -> list[dict[str, object]]:
        """See `Calls`."""
        return self._ads("query", constraint=constraint, projection=list(projection))

    def history(self, constraint: str, projection: Sequence[str], match: int, since: str) -> list[dict[str, object]]:
        """See `Calls`."""
        return self._ads("history", constraint=constraint, projection=list(projection), match=match,
                         since=since)

    def act(self, action: str, *, ids: Sequence[str] = (), constraint: str = "", reason: str = "") -> None:
        """See `Calls`."""
        for part in _parts(ids, constraint):
            counts = self._call("act", action=action, ids=part, constraint=constraint, reason=reason)
            denied, failed = counts.get("TotalPermissionDenied", 0), counts.get("TotalError", 0)
            if denied or failed:
                raise BatchUnavailable(f"{action} of {len(part) or 'some'} jobs",
                                       said=f"permission denied for {denied}, error for {failed}")

    def slots(self, constraint: str, projection: Sequence[str]) -> list[dict[str, object]]:
        """See `Calls`."""
        return self._ads("slots", constraint=constraint, projection=list(projection))

    def close(self) -> None:
        """See `Calls`."""
        self._helper.close()

    def _ads(self, method: str, **arguments: object) -> list[dict[str, object]]:
        ads = self._call(method, **arguments)
        if not isinstance(ads, list):
            raise BatchUnavailable(method, said=f"no list of ads: {ads!r:.80}")
        return ads

    def _call(self, method: str, **arguments: object) -> Any:
        try:
            return self._helper.call(method, where=self._where, **arguments)
        except BatchUnavailable as problem:
            if not condor_words.stale_session(problem.said):
                raise
        self._helper.close()  # the daemon was restarted and did not even read the question: sessions go with it
        return self._helper.call(method, where=self._where, **arguments)


class Tools(Calls):
    """condor_submit, condor_q, condor_rm, condor_history, condor_status."""

    def __init__(self, where: Where, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._schedd = (["-name", where.schedd] if where.schedd else []) + _pool(where)
        self._pool = _pool(where)
        self.words = "command-line tools"

    def submit(self, text: str, spool: bool) -> list[str]:
        """See `Calls`."""
        done = self._run(submit_command(self._schedd, spool), stdin=text)
        if done.status != 0:
            kind = BatchRejected if condor_words.refused(done.said) else BatchUnavailable
            raise kind("submit", said=condor_words.explained(done.said))
        ids = condor_words.submitted_ids(done.stdout)
        if not ids:
            raise BatchUnavailable("submit", said=f"cannot read its answer: {done.stdout[:80]!r}")
        return ids

    def queue(self, constraint: str, projection: Sequence[str]) -> list[dict[str, object]]:
        """See `Calls`."""
        return self._ads("condor_q", self._schedd, constraint, projection)

    def history(self, constraint: str, projection: Sequence[str], match: int, since: str) -> list[dict[str, object]]:
        """See `Calls`."""
        return self._ads("condor_history", self._schedd, constraint, projection, "-limit", str(match),
                         "-since", since)

    def act(self, action: str, *, ids: Sequence[str] = (), constraint: str = "", reason: str = "") -> None:
        """See `Calls`."""
        how = ["-forcex"] if action == REMOVE_AT_ONCE else []
        why = ["-reason", reason] if reason else []
        for part in _parts(ids, constraint):
            which = ["-constraint", constraint] if constraint else part
            done = self._run(["condor_rm", *self._schedd, *how, *why, *which])
            problem = condor_words.complaints(done.stderr)
            if done.status != 0 and (problem or not done.stderr.strip()):
                raise BatchUnavailable(f"{action} of {len(part) or 'some'} jobs", said=problem or done.said)

    def slots(self, constraint: str, projection: Sequence[str]) -> list[dict[str, object]]:
        """See `Calls`."""
        return self._ads("condor_status", self._pool, constraint, projection)

    def dry_run(self, text: str, into: str) -> str:
        """What condor_submit would hand over; its complaints when it would not.

        Raises:
            BatchRejected: the description is wrong.
        """
        done = self._run(["condor_submit", "-dry-run", into, "-"], stdin=text)
        if done.status != 0:
            raise BatchRejected("the job would be refused", said=done.said)
        return done.stderr.strip()

    def _ads(self, program: str, target: list[str], constraint: str, projection: Sequence[str],
             *more: str) -> list[dict[str, object]]:
        wanted = ["-attributes", ",".join(projection)] if projection else []
        done = self._run([program, *target, "-json", *wanted, *more, *(["-constraint", constraint] if constraint
                                                                         else [])])
        if done.status != 0:
            raise BatchUnavailable(program, said=done.said)
        return listing(done.stdout)

    def _run(self, argv: Sequence[str], stdin: str = "") -> tool.Finished:
        return tool.run(argv, stdin=stdin.encode(), timeout_s=self._timeout_s)


def submit_command(target: Sequence[str], spool: bool) -> list[str]:
    """The command line that takes a submit description on its standard input."""
    return ["condor_submit", "-terse", *target, *(["-spool"] if spool else []), "-"]


def choose(client: str, where: Where, timeout_s: float) -> Calls:
    """The way that works, and in its ``words`` why it is this one.

    Args:
        client: "bindings", "tools", or "auto": bindings unless they are missing or do not get an answer that the
            tools do get, as when their version and the pool's do not understand each other.

    Raises:
        BatchRejected: the wanted way does not exist here.
        BatchUnavailable: no way gets an answer.
    """
    if client == "tools":
        return _named(Tools(where, timeout_s), "as configured")
    bindings = Bindings(where, timeout_s)
    try:
        bindings.hello()
        if client == "auto":
            bindings.queue("false", ["ClusterId"])
        return _named(bindings, "as configured" if client == "bindings" else "they work")
    except BatchError as problem:
        bindings.close()
        if client == "bindings":
            raise
        return _instead(Tools(where, timeout_s), problem)


def _instead(tools: Tools, problem: BatchError) -> Calls:
    try:
        tools.queue("false", ["ClusterId"])
    except BatchError as second:
        if isinstance(second, BatchRejected) and isinstance(problem, BatchRejected):
            raise BatchRejected("no way to talk to HTCondor", said=f"{problem}; {second}",
                                hint="install HTCondor's tools, or its bindings: pip install htcondor") from second
        raise problem if isinstance(second, BatchRejected) else second from problem
    return _named(tools, f"{problem}")


def _named(calls: Calls, why: str) -> Calls:
    calls.words = f"{calls.words} ({why})"
    return calls


def _pool(where: Where) -> list[str]:
    return ["-pool", where.collector] if where.collector else []


def _parts(ids: Sequence[str], constraint: str) -> list[list[str]]:
    """Numbers in bites; one empty bite for a constraint."""
    if constraint:
        return [[]]
    return [list(ids[start:start + _IDS_PER_CALL]) for start in range(0, len(ids), _IDS_PER_CALL)]

"""pyslurm as a faster way to list jobs, where it is installed and made for this cluster's Slurm.

Owns the choice between it and squeue. pyslurm lives in a helper process: its library ends the process it is loaded
in when it dislikes something. Submission and cancellation stay with Slurm's tools, which parse what sites write. Must
not know what the answers mean for a job.
"""

from __future__ import annotations

from typing import Any

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable
from vine_factory.batch.parse.slurm import Listed
from vine_factory.batch.parse.slurm_version import release
from vine_factory.batch.rpc import Helper
from vine_factory.batch.slurm_calls import Queue, Tools

HELPER_MODULE = "vine_factory.batch.slurm_helper"


def choose(client: str, tools: Tools, timeout_s: float, other_cluster: bool) -> Queue:
    """A way to list jobs.

    Args:
        client: "tools", "pyslurm", or "auto": pyslurm when its version is the cluster's and it answers.
        other_cluster: the jobs are not in this machine's cluster, which pyslurm alone knows.

    Raises:
        BatchRejected: pyslurm is wanted and cannot be used.
        BatchUnavailable: no answer.
    """
    if client == "tools":
        return Queue(tools.queue, "its command-line tools (as configured)", _nothing)
    if other_cluster:
        if client == "pyslurm":
            raise BatchRejected("cannot use pyslurm", said="it does not reach other clusters")
        return Queue(tools.queue, "its command-line tools (pyslurm does not reach other clusters)", _nothing)
    helper = Helper(HELPER_MODULE, timeout_s=timeout_s)
    try:
        words = _hello(helper, tools)
        return Queue(lambda: _listing(helper), f"pyslurm {words}", helper.close)
    except BatchError as problem:
        helper.close()
        if client == "pyslurm":
            raise
        return Queue(tools.queue, f"its command-line tools ({problem})", _nothing)


def _hello(helper: Helper, tools: Tools) -> str:
    """See that the helper can be used.

    Raises:
        BatchRejected: there is no pyslurm, or one of another release.
    """
    installed = str(helper.call("installed"))
    if not installed:
        raise BatchRejected("pyslurm is not installed")
    cluster = release(tools.version())
    if release(installed) != cluster or cluster is None:
        wanted = "" if cluster is None else f'pip install "pyslurm=={cluster[0]}.{cluster[1]}.*"'
        raise BatchRejected(f"pyslurm {installed} is not made for {tools.version()}", hint=wanted)
    return f"{installed} ({helper.call('hello')})"


def _listing(helper: Helper) -> list[Listed]:
    rows: Any = helper.call("listing")
    try:
        return [Listed(str(number), element, str(state), str(reason), str(host), float(start), float(end), str(name),
                       str(comment)) for number, element, state, reason, host, start, end, name, comment in rows]
    except (TypeError, ValueError) as problem:
        raise BatchUnavailable("pyslurm", said=f"a strange listing: {problem}") from problem


def _nothing() -> None:
    return

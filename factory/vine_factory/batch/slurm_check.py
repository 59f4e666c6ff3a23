"""What can be known of a Slurm job before it is submitted.

Owns the questions that sbatch does not ask: it takes jobs for partitions that are down and, on many clusters, for
accounts that do not exist. Must not submit anything.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable
from vine_factory.batch.slurm_calls import Tools


def check(tools: Tools, script: str, options: Mapping[str, object]) -> list[str]:
    """What Slurm says of a job, a line each.

    Raises:
        BatchRejected: it would be refused, or wait for ever.
        BatchUnavailable: no answer.
    """
    said = tools.submit(script, options, test_only=True)
    return [line for line in (said, _partitions(tools, options), _array(tools, options), _account(tools, options))
            if line]


def _partitions(tools: Tools, options: Mapping[str, object]) -> str:
    wanted = [name for name in str(options["partition"]).split(",") if name]
    if not wanted:
        return ""
    state = {row[0]: row[1] for row in tools.table("sinfo", "--noheader", f"--partition={','.join(wanted)}",
                                                   "--format=%R|%a") if len(row) > 1}
    down = [f"{name} is {state.get(name, 'not there')}" for name in wanted if state.get(name) != "up"]
    if len(down) == len(wanted):
        raise BatchRejected("the job would wait for ever", said="partition " + ", ".join(down),
                            hint="name another partition, or wait until this one is up")
    return "partition " + ", ".join(down) if down else ""


def _array(tools: Tools, options: Mapping[str, object]) -> str:
    wanted = int(str(options["max-array"]))
    for row in tools.table("scontrol", "show", "config"):
        name, _, value = row[0].partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit() and int(value) < wanted:
            raise BatchRejected(f"max-array = {wanted} is more than this cluster takes", said=row[0].strip(),
                                hint=f"set max-array = {max(1, int(value))} or less")
    return ""


def _account(tools: Tools, options: Mapping[str, object]) -> str:
    """A note, no refusal: only some clusters care, and those refuse by themselves."""
    account = str(options["account"])
    if not account:
        return ""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
        rows = tools.table("sacctmgr", "--noheader", "--parsable2", "list", "associations", f"user={user}",
                           "format=account")
    except (BatchError, BatchUnavailable, KeyError):
        return ""  # no accounting here, or none that we may read: then nothing is known
    names = sorted({row[0] for row in rows})
    return "" if account in names else f"the accounting knows no account {account!r} of yours, only: {', '.join(names)}"

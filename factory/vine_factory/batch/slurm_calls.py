"""The commands of Slurm that the factory uses.

Owns their arguments, their environment and what their failure means: refused, or no answer. Must not know what the
answers mean for a job.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from taskvine_core.errors import BatchError, BatchRejected, BatchUnavailable
from taskvine_core.records import NamedTuple
from vine_factory.batch import tool
from vine_factory.batch.parse import slurm, slurm_words
from vine_factory.batch.parse.slurm import Listed, Past
from vine_factory.batch.slurm_tags import compact

_PASSED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "SLURM_CONF")
"""What sbatch, and with it the job, is given of our environment. Nothing of a surrounding Slurm job, and none of the
SBATCH_ variables, which would overrule the script."""
_DEFAULTED = {"SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos",
              "SBATCH_RESERVATION": "reservation", "SBATCH_CONSTRAINT": "constraint"}
"""...but those by which a user has named what the site file leaves open."""
_QUERYING = ("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SLURM_BITSTR_LEN", "SLURM_JOB", "SLURM_CLUSTERS")
"""These would filter listings, or make scancel ask back."""
_IDS_PER_CALL = 500
"""Of scancel's and sacct's arguments: far below the kernel's limit, and slurmctld is free for others in between."""
_ELEMENTS_PER_ID = 200
"""Elements of one array that one argument names."""


class Queue(NamedTuple):
    """A way to list jobs, and in ``words`` which it is and why."""

    listing: Callable[[], list[Listed]]
    words: str
    close: Callable[[], None]


class Tools:
    """sbatch, squeue, scancel, sacct, scontrol, sinfo.

    Args:
        cluster: name for ``--clusters``, "" = this machine's.
        timeout_s: for one command.
    """

    def __init__(self, cluster: str, timeout_s: float) -> None:
        self._cluster = [f"--clusters={cluster}"] if cluster else []
        self._timeout_s = timeout_s

    def submit(self, script: str, options: Mapping[str, object], *, test_only: bool = False) -> str:
        """Number of the job or array; with ``test_only`` what Slurm says of it.

        Raises:
            BatchRejected: it is refused; ``said`` has the reason.
            BatchUnavailable: no answer.
        """
        argv = self.submit_command() if not test_only else ["sbatch", *self._cluster, "--test-only"]
        done = tool.run(argv, stdin=script.encode(), timeout_s=self._timeout_s, whole=True,
                        environment=submit_environment(options, os.environ))
        if done.status != 0:
            raise _problem("sbatch", done, BatchRejected)
        if test_only:
            return done.said
        try:
            return slurm.submitted(done.stdout)
        except ValueError as problem:
            raise BatchUnavailable("sbatch", said=str(problem)) from problem

    def submit_command(self) -> list[str]:
        """The command line that takes a script on its standard input."""
        return ["sbatch", "--parsable", *self._cluster]

    def queue(self) -> list[Listed]:
        """This user's jobs, those that ended a short while ago included."""
        done = self._query(["squeue", *self._all_mine(), f"--format={slurm.SQUEUE_FORMAT}"])
        try:
            return slurm.listing(done.stdout)
        except ValueError as problem:
            raise BatchUnavailable("squeue", said=str(problem)) from problem

    def exits(self) -> dict[str, int | None]:
        """Exit codes of this user's jobs by number, of those that squeue still has."""
        return slurm.exits(self._query(["squeue", *self._all_mine(), f"--Format={slurm.SQUEUE_EXITS}"]).stdout)

    def accounting(self, numbers: Sequence[str]) -> list[Past] | None:
        """What is kept of jobs; None when this cluster keeps nothing."""
        found: list[Past] = []
        for part in _parts(numbers):
            done = self._run(["sacct", *self._cluster, "--allocations", "--noheader", "--parsable2",
                              f"--format={slurm.SACCT_FORMAT}", f"--jobs={','.join(part)}"])
            if done.status != 0:
                if slurm_words.accounting_off(done.said):
                    return None
                raise BatchUnavailable("sacct", said=done.said)
            found += slurm.accounting(done.stdout)
        return found

    def cancel(self, numbers: Sequence[str], *, politely: bool) -> None:
        """Cancel jobs. ``politely``: SIGTERM to the batch process of running ones, and nothing else.

        Never with a filter as ``--state``: scancel then takes one waiting element for its whole array.
        """
        how = ["--batch", "--signal=TERM"] if politely else []
        for part in _parts(grouped(numbers)):
            done = self._run(["scancel", *self._cluster, *how, *part])
            problem = slurm_words.complaints(done.stderr)
            if done.status != 0 and (problem or not done.stderr.strip()):
                raise BatchUnavailable("scancel", said=problem or done.said)

    def show(self, number: str) -> dict[str, str]:
        """All of one job; {} when it is gone."""
        done = self._run(["scontrol", *self._cluster, "--oneliner", "show", "job", number])
        if done.status != 0 and not slurm_words.no_such_job(done.said):
            raise BatchUnavailable("scontrol", said=done.said)
        return next(iter(slurm.shown_job(done.stdout)), {})

    def version(self) -> str:
        """What the tools say they are: "slurm-wlm 22.05.8"."""
        return self._query(["squeue", "--version"]).stdout.strip()

    def table(self, *argv: str) -> list[list[str]]:
        """Rows of what a command prints with ``|`` between its columns.

        Raises:
            BatchUnavailable: no answer.
        """
        done = self._query([argv[0], *self._cluster, *argv[1:]])
        return [line.split("|") for line in done.stdout.splitlines() if line.strip()]

    def _all_mine(self) -> list[str]:
        return [*self._cluster, "--noheader", "--all", "--states=all", "--array", f"--user={os.geteuid()}"]

    def _query(self, argv: Sequence[str]) -> tool.Finished:
        done = self._run(argv)
        if done.status != 0:
            raise BatchUnavailable(argv[0], said=done.said)
        return done

    def _run(self, argv: Sequence[str]) -> tool.Finished:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(_QUERYING)}
        return tool.run(argv, timeout_s=self._timeout_s, whole=True, environment={**ours, **slurm.QUERY_ENVIRONMENT})


def submit_environment(options: Mapping[str, object], ours: Mapping[str, str]) -> dict[str, str]:
    """What sbatch and the job get of ``ours``."""
    wished = options["export"]
    patterns = [*_PASSED, *(wished if isinstance(wished, list | tuple) else ())]
    patterns += [name for name, key in _DEFAULTED.items() if not options[key]]
    return {name: value for name, value in ours.items() if any(_matches(name, pattern) for pattern in patterns)}


def shell_line(command: Sequence[str], environment: Iterable[str]) -> str:
    """A command as a person would type it to have the same effect."""
    given = " ".join(f'{name}="${name}"' for name in sorted(environment))
    return f"env -i {given} {shlex.join(command)}"


def grouped(numbers: Sequence[str]) -> list[str]:
    """The same jobs in fewer words: "7_[0-3,8]"."""
    arrays: dict[str, list[int]] = {}
    words = []
    for number in numbers:
        base, _, element = number.partition("_")
        if element.isdigit():
            arrays.setdefault(base, []).append(int(element))
        else:
            words.append(number)
    for base, elements in arrays.items():
        chosen = sorted(set(elements))
        for start in range(0, len(chosen), _ELEMENTS_PER_ID):
            part = chosen[start:start + _ELEMENTS_PER_ID]
            words.append(f"{base}_{part[0]}" if len(part) == 1 else f"{base}_[{compact(part)}]")
    return words


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _parts(words: Sequence[str]) -> list[list[str]]:
    return [list(words[start:start + _IDS_PER_CALL]) for start in range(0, len(words), _IDS_PER_CALL)]


def _problem(what: str, done: tool.Finished, refused: type[BatchError]) -> BatchError:
    said = re.sub(r"(?m)^(sbatch|allocation failure): (error: )?", "", done.said)
    return (BatchUnavailable if slurm_words.unanswered(said) else refused)(what, said=said)

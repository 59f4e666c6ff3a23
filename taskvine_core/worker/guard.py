"""Ends the tasks of a worker that was itself killed.

Owns one small shell that sleeps until the worker's end of a pipe closes. Batch systems and the kernel's memory killer
send SIGKILL, which the worker cannot answer; its tasks are sessions of their own and would go on, beside the second
attempt that the manager starts elsewhere. Must not know what tasks are beyond the VINE_SANDBOX they were started with.
"""

from __future__ import annotations

import os
from contextlib import suppress

SHELL = "/bin/sh"
#: "read" fails when the worker died and succeeds when it took its leave. A dying family may fork once more while it is
#: looked for, hence several rounds.
SCRIPT = """\
trap '' INT TERM HUP
read -r bye && exit
for round in 1 2 3; do
    for found in $(grep -lsaF -e "VINE_SANDBOX=$1/task." -e "VINE_SANDBOX=$1/mini." /proc/[0-9]*/environ); do
        pid=${found#/proc/}
        kill -KILL "${pid%/environ}" 2>/dev/null
    done
done
"""


class Guard:
    """Watches over this process from now on.

    Args:
        root: workspace; processes that were started for a sandbox in it are ended when this process is killed.
    """

    def __init__(self, root: str) -> None:
        theirs, self._ours = os.pipe2(os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 0), (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                   (os.POSIX_SPAWN_DUP2, 1, 2)]
        try:
            # Our session, so that it is not taken for a run; its own group, so that it survives a kill of ours.
            path = {"PATH": os.environ.get("PATH", os.defpath)}
            os.posix_spawn(SHELL, [SHELL, "-c", SCRIPT, "vine-guard", root], path, file_actions=actions, setpgroup=0)
        except OSError:
            self.dismiss()  # no more processes allowed here: we work without it
        finally:
            os.close(theirs)

    def dismiss(self) -> None:
        """This process ends in peace, having ended its tasks."""
        if self._ours >= 0:
            with suppress(OSError):
                os.write(self._ours, b"bye\n")
            os.close(self._ours)
            self._ours = -1

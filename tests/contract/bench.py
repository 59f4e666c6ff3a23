"""What the contract suite needs to know of a batch system to test it, and the jobs it is tested with.

To add a system, write bench_SYSTEM.py with a subclass of `Bench` and name it in test_batch_contract.py. Real daemons
are started once per session through tests/clusters and given to the bench by a fixture.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from taskvine_core.resources import Resources
from vine_factory.batch.base import (
    TAG_VARIABLE,
    BatchState,
    BatchSystem,
    JobHandle,
    JobRequest,
    JobStatus,
    JobTag,
)
from vine_factory.batch.place import Place
from vine_factory.batch.schema import SiteOption, check_options

# Grid Engine says it with SIGUSR2: workers take both signals alike.
LONG = ("/bin/sh", "-c", "trap 'exit 0' TERM USR2; while :; do sleep 0.05; done")
STUBBORN = ("/bin/sh", "-c", "trap '' TERM USR2; while :; do sleep 0.05; done")
FAILING = ("/bin/sh", "-c", "echo good >&1; echo bad news >&2; exit 3")
SHOUTS = ("/bin/sh", "-c", 'echo "it is $COLOUR"; exit 1')

FROZEN_TIMEOUT_S = 2.0

_numbers = itertools.count(1)
Client = TypeVar("Client", bound=BatchSystem)


class Bench(ABC):
    """One batch system. ``patience_s``: how long it may take to start or end a job."""

    patience_s = 10.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.factory_id = f"contract{os.getpid()}.{random.randrange(1 << 30)}"

    @abstractmethod
    def client(self) -> BatchSystem:
        """A new client, as a new factory process makes one."""

    @abstractmethod
    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        """Jobs of LONG or STUBBORN run, and are past the shell's trap command."""

    @abstractmethod
    def kill_from_outside(self, status: JobStatus) -> None:
        """Kill a running job's process behind the batch system's back."""

    @abstractmethod
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> contextlib.AbstractContextManager[BatchSystem]:
        """While the batch system does not answer; gives a client."""

    @abstractmethod
    def impossible(self) -> tuple[str, ...]:
        """A command that the batch system refuses from now on."""

    @abstractmethod
    def end(self) -> None:
        """End all jobs."""

    def polite(self) -> tuple[str, ...]:
        """A job like LONG that leaves a mark when it ends because it was asked to."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return ("/bin/sh", "-c", f"trap 'sleep 0.2; echo > \"{self._mark}\"; exit 0' TERM USR2; "
                                 "while :; do sleep 0.05; done")

    def left_by_itself(self, status: JobStatus) -> bool:
        """The ended job of `polite` was asked, and had time to do as it wished."""
        return self._mark.exists()

    @property
    def _mark(self) -> Path:
        return self.directory / "ended-by-itself"

    def nothing_left(self, job: JobHandle) -> bool:
        """No process of the job is there."""
        return True

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until ``condition``."""
        deadline = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < deadline, "condition not met in time"
            time.sleep(0.01)


class DaemonBench(Bench, Generic[Client]):
    """A real batch system on this machine: its jobs are processes that all carry their tag.

    Args:
        options: as in a site file.
    """

    patience_s = 30.0
    make: Callable[..., Client]
    table: tuple[SiteOption, ...]

    def __init__(self, directory: Path, **options: object) -> None:
        super().__init__(directory)
        self.options = options
        self.clients: list[Client] = []

    def place(self) -> Place:
        """With the bench's options."""
        return Place(self.factory_id, "pool", self.directory, check_options(self.options, self.table, "bench"))

    def client(self, timeout_s: float = 60.0, directory: Path | None = None) -> Client:
        place = self.place() if directory is None else self.place()._replace(directory=directory)
        self.clients.append(type(self).make(place, timeout_s=timeout_s))
        return self.clients[-1]

    @abstractmethod
    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """While the daemon takes connections and says nothing."""

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        client = self.client(FROZEN_TIMEOUT_S)
        with self.frozen():
            yield client

    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        return all(any(not first for _, first in processes_with(TAG_VARIABLE, job.tag.text())) for job in jobs)

    def kill_from_outside(self, status: JobStatus) -> None:
        # A job may be "running" from when its files are on their way.
        self.wait(lambda: any(first for _, first in processes_with(TAG_VARIABLE, status.tag.text())))
        for pid, first in processes_with(TAG_VARIABLE, status.tag.text()):
            if first:
                os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """Every process of a job of this factory, at once: batch systems give stubborn ones some seconds."""
        prefix = f"{TAG_VARIABLE}={self.factory_id}/".encode()
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if b"\0" + prefix in b"\0" + Path(f"/proc/{entry}/environ").read_bytes():
                        os.kill(int(entry), signal.SIGKILL)

    def nothing_left(self, job: JobHandle) -> bool:
        return not list(processes_with(TAG_VARIABLE, job.tag.text()))


def requests(bench: Bench, command: tuple[str, ...], count: int = 1, **environment: str) -> list[JobRequest]:
    """Requests for ``count`` jobs."""
    return [JobRequest(JobTag(bench.factory_id, "pool", f"i-{next(_numbers)}"), command, environment,
                       Resources(1, 100, 100, 0)) for _ in range(count)]


def submit(bench: Bench, client: BatchSystem, command: tuple[str, ...], count: int = 1, **env: str) -> list[JobHandle]:
    """Submit; all are taken."""
    return submit_requests(client, requests(bench, command, count, **env))


def submit_requests(client: BatchSystem, wanted: list[JobRequest]) -> list[JobHandle]:
    """Submit; all are taken."""
    results = client.submit_many(wanted)
    assert [result.intent_id for result in results] == [request.tag.intent_id for request in wanted]
    assert all(result.error is None and result.batch_id for result in results), results
    return [JobHandle(request.tag, result.batch_id) for request, result in zip(wanted, results, strict=True)]


def states(bench: Bench, client: BatchSystem) -> dict[str, JobStatus]:
    """A listing, by intent."""
    return {status.tag.intent_id: status for status in client.poll_many(bench.factory_id)}


def ended(bench: Bench, client: BatchSystem, jobs: list[JobHandle]) -> bool:
    """All have ended."""
    found = states(bench, client)
    return all(found[job.tag.intent_id].state is BatchState.ENDED for job in jobs)


def running(bench: Bench, client: BatchSystem, jobs: list[JobHandle]) -> bool:
    """All run."""
    found = states(bench, client)
    return all(job.tag.intent_id in found and found[job.tag.intent_id].state is BatchState.RUNNING for job in jobs)


def processes_with(variable: str, value: str) -> Iterator[tuple[int, bool]]:
    """Processes whose environment has this, and whether their parent does not: then it is the job's first one."""
    needle = f"{variable}={value}".encode()
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if needle in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.add(int(entry))
    for pid in found:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/stat").read_text()
            yield pid, int(text[text.rindex(")") + 2:].split()[1]) not in found

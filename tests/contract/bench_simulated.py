"""The simulated cluster under the contract suite."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.bench import FAILING, LONG, SHOUTS, STUBBORN, Bench, running
from vine_factory.batch.base import BatchSystem, JobHandle, JobRequest, JobStatus
from vine_factory.batch.simulated import Program, SimulatedBatch, SimulatedCluster


class SimulatedBench(Bench):
    """A cluster in memory whose clock moves when somebody waits."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.now = 1.0
        self.cluster = SimulatedCluster(lambda: self.now, random.Random(1), programs=self._program)

    def _program(self, request: JobRequest) -> Program:
        colour = request.environment.get("COLOUR", "")
        return {LONG: Program(), STUBBORN: Program(on_term_s=None),
                FAILING: Program(runtime_s=0.1, exit_code=3, stdout="good", stderr="bad news"),
                SHOUTS: Program(runtime_s=0.1, exit_code=1, stdout=f"it is {colour}")}[request.command]

    def client(self) -> BatchSystem:
        return SimulatedBatch(self.cluster)

    def trap_is_set(self, client: BatchSystem, jobs: list[JobHandle]) -> bool:
        return running(self, client, jobs)

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = self.now + self.patience_s
        while not condition():
            assert self.now < deadline, "condition not met in time"
            self.now += 0.1

    def kill_from_outside(self, status: JobStatus) -> None:
        self.cluster.end(status.tag.intent_id, -9)

    @contextlib.contextmanager
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchSystem]:
        self.cluster.down = "no route to host"
        yield self.client()
        self.cluster.down = ""

    def polite(self) -> tuple[str, ...]:
        return LONG

    def left_by_itself(self, status: JobStatus) -> bool:
        return status.exit_code == 0  # one that is killed ends with -9

    def impossible(self) -> tuple[str, ...]:
        self.cluster.rejects = "invalid account"
        return LONG

    def end(self) -> None:
        self.cluster.jobs.clear()

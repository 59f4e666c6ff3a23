"""A manager runner without sockets and threads: the real core, and outcomes that the test decides."""

from __future__ import annotations

import itertools
from collections import deque
from random import Random

from taskvine_core.manager.core import ManagerCore
from taskvine_core.manager.events import TaskOutcome, TaskTimes
from taskvine_core.protocol.messages import NOT_MEASURED
from taskvine_core.resources import Resources

NOW = 1_700_000_000.0


def outcome(task_id, **values):
    """A TaskOutcome that went well, except for what ``values`` say."""
    given = {
        "task_id": task_id, "result": 0, "exit_code": 0, "stdout": b"", "stdout_path": "", "hostname": "host",
        "addrport": "10.0.0.1:2000", "allocated": Resources(1, 100, 200, 0), "measured": NOT_MEASURED, "limits": None,
        "times": TaskTimes(), "bytes_sent": 0, "bytes_received": 0, "dispatches": 1, "error": "",
    }
    return TaskOutcome(**{**given, **values})


class FakeRunner:
    """The interface of ManagerRunner. ``events`` is everything posted; ``finish`` ends a task."""

    made: list[FakeRunner] = []

    def __init__(self, settings):
        self.settings = settings
        self.port = settings.ports[0] or 50_000
        self.manager_id = "fake"
        self._ids = itertools.count(1)
        self._least = 1
        self.core = ManagerCore(manager_id="fake", name=settings.name or "", rng=Random(1),
                                new_task_id=self.new_task_id)
        self.completed = deque()
        self.events = []
        self.stored = {}
        self.fetched = {}
        self.secret = settings.secret
        self.closed = []
        self.on_pump = None
        self.pumps = []
        self.pump_ended = False
        FakeRunner.made.append(self)

    def new_task_id(self):
        return next(self._ids)

    def set_min_task_id(self, least):
        current = next(self._ids)
        self._ids = itertools.count(max(current, least))
        return max(current, least)

    def keep_pace(self):
        """Nothing is ever behind here."""

    def set_secret(self, secret):
        self.secret = secret

    def post(self, event):
        self.events.append(event)
        self.carry_out(self.core.handle(event, NOW))

    do = post

    def call(self, fn):
        value = fn(self.core, NOW)
        self.carry_out(self.core.handle_all((), NOW))
        return value

    def carry_out(self, actions):
        for action in actions:
            if type(action).__name__ == "Complete":
                self.completed.append(action.outcome)

    def pump(self, until, timeout_s):
        self.pumps.append(timeout_s)
        if self.on_pump is not None:
            self.on_pump()
        self.pump_ended = until()
        return self.pump_ended

    def finish(self, task_id, **values):
        """The task ended; as the core would, forget it."""
        self.core.books.tasks.pop(task_id, None)
        self.completed.append(outcome(task_id, **values))

    def contents(self, name):
        return self.stored.get(name)

    def forget_contents(self, name):
        self.stored.pop(name, None)

    def fetch_contents(self, name, timeout_s):
        return self.fetched.get(name)

    def stdout_of(self, done):
        return done.stdout

    def close(self, *, exit_workers):
        self.closed.append(exit_workers)


__all__ = ["FakeRunner", "outcome"]

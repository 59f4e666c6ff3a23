"""A helper process for test_batch_rpc.py: well-behaved and otherwise."""

from __future__ import annotations

import os
import time

from taskvine_core.errors import BatchRejected
from vine_factory.batch.rpc import serve


def echo(value: object) -> object:
    print("a library that chatters")
    return value


def refuse() -> None:
    raise BatchRejected("submit", said="no such queue", hint="choose another")


def fail() -> None:
    raise ValueError("odd")


def hang() -> None:
    time.sleep(100)


def die() -> None:
    os._exit(7)


if __name__ == "__main__":
    serve({"echo": echo, "refuse": refuse, "fail": fail, "hang": hang, "die": die, "pid": os.getpid})

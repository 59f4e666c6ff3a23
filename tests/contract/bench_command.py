"""A real Grid Engine under the contract suite, by its commands as a shipped definition describes them."""

from __future__ import annotations

from contract.bench_drmaa import DrmaaBench
from vine_factory.batch.command import CommandBatch
from vine_factory.batch.command_options import OPTIONS


class CommandBench(DrmaaBench):
    """One pool of jobs. ``options`` as in a site file."""

    make = CommandBatch
    table = OPTIONS

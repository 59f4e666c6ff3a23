"""Objects the program wants to read that only workers hold (reference, section 3.4, fetch_file).

Owns the open wishes. A wish ends in exactly one ContentsArrived: with the transfer that brought the bytes, or with the
reason why they cannot be had. A temp that was lost meanwhile is made again first: the program asked for it, so it is
needed. (The published manager answers "nothing" then and leaves the program to ask for ever.)
"""

from __future__ import annotations

from taskvine_core.constants import VINE_TASK_DONE, VINE_TASK_RETRIEVED, VINE_TEMP
from taskvine_core.manager.books import Books
from taskvine_core.manager.events import ContentsArrived
from taskvine_core.manager.lineage import MAX_RECOVERIES, Lineage
from taskvine_core.manager.records import FileRecord, Transfer
from taskvine_core.manager.staging import Staging

_OVER = (VINE_TASK_DONE, VINE_TASK_RETRIEVED)


class Contents:
    """Brings objects to the program."""

    def __init__(self, books: Books, staging: Staging, lineage: Lineage) -> None:
        self.books = books
        self.staging = staging
        self.lineage = lineage
        self.wanted = books.wanted

    def want(self, name: str) -> None:
        """The program asks for an object."""
        file = self.books.files.get(name)
        if file is None:
            self._refuse(name, "no file of this name is declared")
        elif file.ready or file.kept is not None:
            self._bring(file)
        elif self._can_be_made(file):
            self.wanted.add(name)
            self.lineage.recover(file)
        else:
            self._refuse(name, "no worker holds it")

    def _can_be_made(self, file: FileRecord) -> bool:
        """Was it there before? One that is not yet written is no loss: the program waits for its task."""
        return (file.decl.kind == VINE_TEMP and not file.at_manager
                and file.producer is not None and file.producer.state in _OVER)

    def _bring(self, file: FileRecord) -> None:
        if file.kept is not None:
            self.books.out.append(ContentsArrived(file.name, 0, "", file.kept[0]))
            return
        source = min((self.books.workers[key] for key in file.ready_keys()), key=lambda worker: worker.outgoing)
        self.staging.upload(source, file.name, "", "contents")

    def _refuse(self, name: str, reason: str) -> None:
        self.books.out.append(ContentsArrived(name, 0, reason))

    def available(self, file: FileRecord) -> None:
        """A first replica is ready."""
        if file.name in self.wanted and file.ready:
            self.wanted.discard(file.name)
            self._bring(file)

    def upload_lost(self, transfer: Transfer) -> None:
        """The worker that was sending it is gone: another one, or make it again."""
        self.want(transfer.name)

    def settle(self) -> None:
        """Look at what is still wanted after an event: is it being made?"""
        for name in list(self.wanted):
            file = self.books.files.get(name)
            if file is None:
                self._give_up(name, "it was undeclared meanwhile")
            elif file.recovery is None or file.recovery.state in _OVER:
                if file.recoveries >= MAX_RECOVERIES or not self._can_be_made(file):
                    self._give_up(name, "it was lost and could not be made again")
                else:
                    self.lineage.recover(file)

    def _give_up(self, name: str, reason: str) -> None:
        self.wanted.discard(name)
        self._refuse(name, reason)

"""The line to the manager: connecting, what arrives, and what waits to be said.

Owns the control connection of the loop and the outbox. Holds no policy: when to connect and what to say is the core's.
Must not know runs beyond being told whether there is work enough for reports to wait a little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from taskvine_core.constants import VINE_RESULT_FORSAKEN
from taskvine_core.errors import LocalProtocolError, VineError
from taskvine_core.protocol import messages as m
from taskvine_core.protocol.messages import Message, WorkerHello
from taskvine_core.records import NamedTuple
from taskvine_core.worker import events as e
from taskvine_core.worker.detect import disk_free_mb
from taskvine_core.worker.finder import Finder
from taskvine_core.worker.jobs import Jobs
from taskvine_core.worker.link import CONNECT_TIMEOUT_S, Link, LinkLost, Wire
from taskvine_core.worker.sources import BROKEN, READ, WRITE, Sources

#: While more tasks wait here than run, nobody is held up when the ends of short ones are told together: a report costs
#: manager and worker a system call, a wake-up and a frame each. Held no longer than this, and never the last ones.
HOLD_REPORTS_S = 0.005
HOLD_REPORTS_MAX = 32


class LineSettings(NamedTuple):
    """How to reach and greet a manager. ``root``: the workspace, whose disk is reported."""

    secret: bytes
    hello: WorkerHello
    wire: Wire
    root: str


class Line:
    """The connection to one manager after another.

    Args:
        settings: see LineSettings.
        finder: which manager to try next.
        jobs: told where the manager's data are.
        sources: the loop's.
        events: what happens here is appended.
        clock: seconds since the epoch.
        say: prints a line for the user.
        busy: is there work enough to go on with while reports wait?
    """

    def __init__(self, settings: LineSettings, finder: Finder, jobs: Jobs, sources: Sources, events: deque[e.Event],
                 clock: Callable[[], float], say: Callable[[str], None], busy: Callable[[], bool]) -> None:
        self._settings = settings
        self._finder = finder
        self._jobs = jobs
        self._sources = sources
        self._events = events
        self._now = clock
        self._say = say
        self._busy = busy
        self._link: Link | None = None
        self._outbox: list[Message] = []
        self._held_since = 0.0
        self._urgent = False                # the outbox holds more than ends of tasks
        self._last_trouble = ""

    # ------------------------------------------------------------------------------------------- time

    def due(self, core_due: float) -> float:
        """When the loop must turn again, given when the core wants it to."""
        if self._held_since:
            core_due = min(core_due, self._held_since + HOLD_REPORTS_S)
        if self._link is not None and not self._link.welcomed:
            core_due = min(core_due, self._link.deadline)
        return core_due

    def look_at_deadline(self, now: float) -> None:
        """Give up a manager that does not answer."""
        if self._link is not None and not self._link.welcomed and now >= self._link.deadline:
            self._lose("the manager does not answer", False)

    # ------------------------------------------------------------------------------------------- connection

    def connect(self, action: e.Connect) -> None:
        """Try the next manager."""
        try:
            target = self._finder.next_target(self._now())
            tls = self._finder.tls_context(target)
            deadline = self._now() + CONNECT_TIMEOUT_S
            self._link = Link(target.host, target.port, self._settings.secret, tls, deadline, self._settings.wire)
        except VineError as error:
            self._link = None
            self._not_connected(str(error), isinstance(error, LinkLost) and error.denied)
            return
        self._watch()

    def _watch(self) -> None:
        """(Re-)register the control connection for what it waits for; TLS may have replaced the socket object."""
        link = self._link
        if link is None:
            return
        self._sources.watch(link.fileno(), self._on_link, READ | (WRITE if link.wants_write else 0))

    def _on_link(self, mask: int) -> None:
        link = self._link
        if link is None:
            return
        try:
            messages, fresh = link.on_ready(bool(mask & (READ | BROKEN)), bool(mask & WRITE))
        except LinkLost as error:
            self._lose(str(error), error.denied)
            return
        if fresh:
            self._introduce(link)
        if messages:
            if not link.welcomed:
                messages = [message for message in messages if not self._on_greeting(link, message)]
            self._events.append(e.Received(messages))
        self._watch()

    def _introduce(self, link: Link) -> None:
        host, port = link.local_address
        hello = self._settings.hello
        if not hello.transfer_host:
            hello = hello._replace(transfer_host=host)
        self._events.append(e.Connected(hello))
        self._last_trouble = ""
        self._say(f"connected to manager {link.address[0]}:{link.address[1]} via local address {host}:{port}")

    def _on_greeting(self, link: Link, message: Message) -> bool:
        """What a manager says first. True for what stays here: a key goes neither to the core nor into its log."""
        if type(message) is m.PeerKey:
            link.peer_key = message
            return True
        if type(message) is m.Welcome:
            link.welcomed = True
            self._jobs.manager = (link.address[0], message.data_port)
            self._jobs.tls = self._finder.data_tls()
            self._jobs.protect(link.peer_key)
        return False

    def _lose(self, reason: str, denied: bool) -> None:
        link = self._link
        if link is None:
            return
        established = link.was_established
        self.close()
        if established:
            self._say(f"disconnected from manager {link.address[0]}:{link.address[1]}: {reason}")
            self._events.append(e.Disconnected(reason))
        else:
            self._not_connected(f"{link.address[0]}:{link.address[1]}: {reason}", denied)

    def _not_connected(self, reason: str, denied: bool) -> None:
        """Whoever started the worker reads at once why it waits, and each reason once."""
        if reason != self._last_trouble:
            self._last_trouble = reason
            self._say(f"vine_worker: no manager yet, trying again: {reason}")
        self._events.append(e.ConnectFailed(reason, denied))

    def close(self) -> None:
        """Give up the connection and what waits to be said."""
        if self._link is not None:
            self._sources.forget(self._link.fileno())
            self._link.close()
            self._link = None
        self._outbox.clear()
        self._held_since, self._urgent = 0.0, False

    def disconnect(self, action: e.Disconnect) -> None:
        """Leave this manager, having said all."""
        self.flush()
        if self._link is not None:
            host, port = self._link.address
            self.close()
            self._say(f"disconnected from manager {host}:{port}: {action.reason}")

    def send(self, action: e.Send) -> None:
        """Say it at the end of the turn."""
        message = action.message
        self._outbox.append(message)
        if type(message) is not m.TaskDone:
            self._urgent = True

    def send_report(self, action: e.SendReport) -> None:
        """What the worker has, with the room on its disk as it is now."""
        self._outbox.append(m.ResourceReport(action.total, action.cache_mb, disk_free_mb(self._settings.root)))
        self._urgent = True

    def flush(self) -> None:
        """One write for everything this turn had to say."""
        if not self._outbox or self._hold_reports():
            return
        messages, self._outbox = self._outbox, []
        self._held_since, self._urgent = 0.0, False
        link = self._link
        if link is None or not link.established:
            return                  # about a manager that is gone
        try:
            self._send_all(link, messages)
        except LinkLost as error:
            self._lose(str(error), error.denied)
            return
        if link.wants_write:
            self._watch()

    def _hold_reports(self) -> bool:
        """Is what waits to be sent only ends of tasks, and is there work enough to go on meanwhile?"""
        if self._urgent or len(self._outbox) >= HOLD_REPORTS_MAX or not self._busy():
            return False
        now = self._now()
        if not self._held_since:
            self._held_since = now
        return now < self._held_since + HOLD_REPORTS_S

    def _send_all(self, link: Link, messages: list[Message]) -> None:
        try:
            link.send(messages)
        except LocalProtocolError:
            for message in messages:
                try:
                    link.send([message])
                except LocalProtocolError as error:
                    link.send([_in_brief(message, str(error))])

    def last_words(self) -> None:
        """Say what is left to say, and hang up."""
        if self._link is not None and self._link.established:
            self.flush()
        self.close()


def _in_brief(message: Message, why: str) -> Message:
    """What to send instead of a message that is larger than a frame."""
    if isinstance(message, m.CacheOffer):
        return m.CacheOffer(message.entries[:len(message.entries) // 16])
    if isinstance(message, m.TaskDone):
        return message._replace(result=VINE_RESULT_FORSAKEN, exit_code=-1, outputs=(), missing=(), stdout=b"",
                                error=why)
    raise LinkLost(f"a message cannot be sent: {why}")

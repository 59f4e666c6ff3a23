"""Workers: joining, resources, draining, leaving, silence (reference, sections 3.7, 12.2, 12.5-12.8, 13.2).

Owns every change of a worker's state. A worker leaves in peace when it runs nothing and no temp that is still needed
lies only there. Must not place tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from taskvine_core.constants import VINE_CACHE_LEVEL_TASK, VINE_TEMP
from taskvine_core.logs.observer import (
    REMOVED_EXPLICIT,
    REMOVED_FAILURE,
    REMOVED_FAST_ABORT,
    REMOVED_IDLE_OUT,
    REMOVED_XFER_ERRORS,
)
from taskvine_core.manager.books import Books
from taskvine_core.manager.dispatcher import Dispatcher
from taskvine_core.manager.events import Disconnect, Notice, WorkerJoined
from taskvine_core.manager.placement import Placement
from taskvine_core.manager.records import TaskRecord, Transfer, WorkerRecord, gpu_names
from taskvine_core.manager.staging import Staging
from taskvine_core.manager.states import WORKER_DRAINING, WORKER_LEAVING, WORKER_SERVING, check_worker_transition
from taskvine_core.protocol.messages import (
    CacheEntry,
    CacheOffer,
    LeaveRequest,
    Ping,
    Recall,
    Release,
    ResourceReport,
    Unlink,
    Welcome,
)
from taskvine_core.resources import ZERO, Resources

#: How often silent and slow workers are looked for.
PATROL_S = 1.0
#: Tasks of a category that must be done before one can be called slow (section 12.5).
SLOW_MIN_DONE = 10


class Fleet:
    """All connected workers."""

    def __init__(self, books: Books, dispatcher: Dispatcher, placement: Placement, staging: Staging,
                 manager_id: str, name: str, lost_uploads: Callable[[list[Transfer]], None]) -> None:
        self.books = books
        self.lost_uploads = lost_uploads
        self.dispatcher = dispatcher
        self.placement = placement
        self.staging = staging
        self.manager_id = manager_id
        self.name = name
        self.data_port = 0
        self.blocked_hosts: dict[str, float] = {}
        self.draining: dict[int, WorkerRecord] = {}
        self._kinds: Counter[Resources] = Counter()
        self._patrol = 0.0
        self._last_eviction = self._next_large_check = 0.0

    # ------------------------------------------------------------------ joining

    def join(self, event: WorkerJoined) -> None:
        """A worker said hello. It gets tasks once it has told what its cache holds."""
        books, hello = self.books, event.hello
        old = books.by_worker_id.get(hello.worker_id)
        if old is not None:  # its old connection is half open: the worker knows better
            self.remove(old, REMOVED_FAILURE)
            books.out.append(Disconnect(old.key, "the same worker connected again"))
        worker = WorkerRecord(event.key, hello, event.host, event.port, books.now)
        worker.blocked = self._is_blocked(worker)
        books.workers[worker.key] = worker
        books.by_worker_id[worker.id] = worker
        books.stats.workers_joined += 1
        self._kinds[worker.totals] += 1
        self._update_largest()
        books.observer.worker_connected(books.now, worker.key, worker.addrport, hello)
        books.send(worker, Welcome(self.manager_id, self.name, self.data_port, books.tuning.keepalive_interval_s,
                                   books.tuning.max_task_stdout_storage_bytes))
        if 0 <= books.tuning.max_workers < len(books.workers):
            self.drain(worker, "more workers than max-workers")

    def on_offer(self, worker: WorkerRecord, offer: CacheOffer) -> None:
        """What the worker still holds counts as replicas, when we know the file and the content agrees."""
        unwanted = []
        for entry in offer.entries:
            if not self.adopt(worker, entry):
                unwanted.append(entry.name)
        if unwanted:
            self.books.send(worker, Unlink(tuple(unwanted)))
        worker.pinged = 0.0
        self.books.index.update(worker, self.books.now, grown=True)

    def adopt(self, worker: WorkerRecord, entry: CacheEntry) -> bool:
        """Take an offered object into the books; False when it contradicts what we know and must go."""
        file = self.books.files.get(entry.name)
        if file is None:
            worker.offered[entry.name] = entry
            self.books.offered.setdefault(entry.name, set()).add(worker.key)
            return entry.level > VINE_CACHE_LEVEL_TASK
        if file.sha256 and entry.sha256 and file.sha256 != entry.sha256:
            return False
        if file.decl.kind == VINE_TEMP and not file.sha256:
            return False  # no attempt that we know of has made it: what the worker holds may be anything
        self.staging.mark_ready(file, worker, entry.size_bytes, entry.sha256)
        self.books.observer.cache_update(self.books.now, worker.key, entry.name, file.decl.kind, file.level,
                                         entry.size_bytes,
                                         0.0, self.books.now, 0)
        return True

    def declared(self, name: str) -> None:
        """A file was declared that some workers may have offered."""
        for key in self.books.offered.pop(name, ()):
            worker = self.books.workers.get(key)
            if worker is not None:
                entry = worker.offered.pop(name)
                if not self.adopt(worker, entry):
                    self.books.send(worker, Unlink((name,)))

    def on_report(self, worker: WorkerRecord, report: ResourceReport) -> None:
        """Totals changed."""
        worker.disk_free_mb = report.disk_free_mb
        if report.total != worker.totals:
            self._kinds[worker.totals] -= 1
            worker.totals = report.total.at_least(ZERO)
            worker.most = worker.most.at_least(worker.totals)
            self._kinds[worker.totals] += 1
            given = {gpu for task in worker.running.values() if task.run is not None for gpu in task.run.gpus}
            worker.free_gpus = [gpu for gpu in gpu_names(worker.totals.gpus) if gpu not in given]
            self._update_largest()
            self.books.observer.worker_resources(self.books.now, worker.key, report.total)
            self.books.index.update(worker, self.books.now, grown=True)

    def _update_largest(self) -> None:
        kinds = [kind for kind, count in self._kinds.items() if count > 0]
        largest = Resources(*(max(column) for column in zip(*kinds, strict=True))) if kinds else None
        if largest != self.placement.largest:
            self.placement.largest = largest
            self.books.ready.unsaturate()

    # ------------------------------------------------------------------ leaving

    def remove(self, worker: WorkerRecord, reason: str) -> None:
        """The connection is gone: its tasks go back, its replicas are forgotten, lost temps are noticed."""
        books = self.books
        if books.workers.pop(worker.key, None) is None:
            return
        if books.by_worker_id.get(worker.id) is worker:
            del books.by_worker_id[worker.id]
        was_leaving = worker.state == WORKER_LEAVING
        if not was_leaving:
            self._to(worker, WORKER_LEAVING)
        self._drains_no_more(worker)
        books.index.remove(worker)
        self._kinds[worker.totals] -= 1
        if not self._kinds[worker.totals]:
            del self._kinds[worker.totals]
            self._update_largest()
        self._count_removal(worker, reason, was_leaving)
        books.observer.worker_removed(books.now, worker.key, self._removal_reason(worker, reason, was_leaving))
        self.lost_uploads(self.staging.worker_gone(worker))
        for task in [*worker.queued.values(), *worker.following.values()]:
            self.dispatcher.take_back(task)
        for task in list(worker.running.values()):
            self.dispatcher.lose(task)
        books.bereaved.update(worker.retrieving)  # over and reported: only what does not arrive is lost

    def _removal_reason(self, worker: WorkerRecord, reason: str, was_leaving: bool) -> str:
        if not was_leaving:
            return reason
        return REMOVED_IDLE_OUT if worker.leave_reason == "idle" else REMOVED_EXPLICIT

    def _count_removal(self, worker: WorkerRecord, reason: str, was_leaving: bool) -> None:
        stats = self.books.stats
        stats.workers_removed += 1
        if was_leaving and worker.leave_reason == "idle":
            stats.workers_idled_out += 1
        elif was_leaving:
            stats.workers_released += 1
        elif reason == REMOVED_FAST_ABORT:
            stats.workers_slow += 1
        else:
            stats.workers_lost += 1

    def on_leave_request(self, worker: WorkerRecord, request: LeaveRequest) -> None:
        """Idle workers may be refused (section 12.7); one that must go is drained."""
        if request.reason == "idle":
            if not worker.busy and not self._holds_sole(worker) and worker.state == WORKER_SERVING:
                worker.leave_reason = "idle"
                self._release(worker)
            return
        self.drain(worker, request.reason)

    def _holds_sole(self, worker: WorkerRecord) -> bool:
        return any(self.staging.copies.is_sole(file, worker) for file in worker.files.values())

    def drain(self, worker: WorkerRecord, reason: str, *, leave: bool = True) -> None:
        """No new tasks; what waits in its queue comes back; it leaves when it may."""
        if worker.state != WORKER_SERVING:
            return
        self._to(worker, WORKER_DRAINING)
        worker.leave_reason = reason
        worker.leave_exit = leave
        self.books.index.remove(worker)
        self.draining[worker.key] = worker
        self.staging.copies.drains(worker)
        if worker.queued or worker.following:
            self.books.send(worker, Recall((*worker.queued, *worker.following)))

    def undrain(self, worker: WorkerRecord) -> None:
        """Take a drain back."""
        if worker.state == WORKER_DRAINING:
            self._to(worker, WORKER_SERVING)
            self._drains_no_more(worker)
            self.books.index.update(worker, self.books.now, grown=True)

    def check_draining(self) -> None:
        """Release the draining workers that may leave, of those something changed for: they run nothing, and what only
        they hold is copied first."""
        leaving, self.books.leaving = self.books.leaving, {}
        for worker in leaving:
            held_up = worker.sole is None or worker.busy or worker.outgoing
            if not held_up and not self.staging.copies.save_one(worker):
                self._release(worker)

    def _drains_no_more(self, worker: WorkerRecord) -> None:
        self.draining.pop(worker.key, None)
        self.staging.copies.drains_no_more(worker)

    def _release(self, worker: WorkerRecord) -> None:
        self._to(worker, WORKER_LEAVING)
        self._drains_no_more(worker)
        self.books.index.remove(worker)
        self.books.send(worker, Release(worker.leave_exit, worker.leave_reason))
        self.books.out.append(Disconnect(worker.key, f"released: {worker.leave_reason}"))

    def _to(self, worker: WorkerRecord, state: int) -> None:
        check_worker_transition(worker.id, worker.state, state)
        worker.state = state

    def shutdown_idle(self, count: int) -> int:
        """Ask idle workers to exit; 0 = all of them. Returns how many were asked."""
        idle = [w for w in self.books.workers.values() if w.state == WORKER_SERVING and not w.busy]
        chosen = idle if count < 1 else idle[:count]
        for worker in chosen:
            worker.leave_reason = "shutdown"
            self._release(worker)
        return len(chosen)

    def close_down(self, exit_workers: bool) -> None:
        """The manager ends."""
        for worker in self.books.workers.values():
            self.books.send(worker, Release(exit_workers, "manager closed"))

    # ------------------------------------------------------------------ hosts

    def _is_blocked(self, worker: WorkerRecord) -> bool:
        until = max((self.blocked_hosts.get(name, -1.0) for name in (worker.hello.hostname, worker.host)), default=-1.0)
        return until == 0.0 or until > self.books.now

    def block(self, host: str, until: float) -> None:
        """No new tasks for the host; ``until`` 0 = for ever."""
        self.blocked_hosts[host] = until
        self.books.stats.workers_blocked += 1
        self._refresh_blocks()

    def unblock(self, host: str) -> None:
        """Take one block back, or all ("")."""
        if host:
            self.blocked_hosts.pop(host, None)
        else:
            self.blocked_hosts.clear()
        self._refresh_blocks()

    def _refresh_blocks(self) -> None:
        for worker in self.books.workers.values():
            blocked = self._is_blocked(worker)
            if blocked != worker.blocked:
                worker.blocked = blocked
                self.books.index.update(worker, self.books.now, grown=not blocked)

    def drain_host(self, host: str, drain: bool) -> int:
        """Drain (or not) every worker of a host; how many that concerned."""
        chosen = [w for w in self.books.workers.values() if host in (w.hello.hostname, w.host)]
        for worker in chosen:
            if drain:
                self.drain(worker, "host is drained by the program")
            else:
                self.undrain(worker)
        return len(chosen)

    # ------------------------------------------------------------------ patrol

    def next_patrol(self) -> float:
        """When patrol() is due."""
        return self._patrol if self.books.workers else float("inf")

    def patrol(self) -> None:
        """Silent workers, slow tasks, expired blocks."""
        books = self.books
        if books.now < self._patrol:
            return
        self._patrol = books.now + PATROL_S
        for worker in list(books.workers.values()):
            self._check_silence(worker)
        expired = [host for host, until in self.blocked_hosts.items() if 0 < until <= books.now]
        for host in expired:
            del self.blocked_hosts[host]
        if expired:
            self._refresh_blocks()
        for worker in self.draining.values():
            books.look_at_leaving(worker)  # room has come elsewhere, perhaps
        self._check_slow()
        self._check_large()
        self.staging.end_outliers()
        self._evict_one()

    def _check_silence(self, worker: WorkerRecord) -> None:
        tuning, now = self.books.tuning, self.books.now
        if worker.pinged and worker.pinged > worker.last_heard:
            if now - worker.pinged >= tuning.keepalive_timeout_s:
                self.remove(worker, REMOVED_FAILURE)
                self.books.out.append(Disconnect(worker.key, "silent for too long"))
        elif now - worker.last_heard >= tuning.keepalive_interval_s:
            worker.pinged = now
            self.books.send(worker, Ping(int(now)))

    def _check_large(self) -> None:
        """Tell about waiting tasks that ask for more than any connected worker has (section 9.6); nothing fails."""
        books, largest = self.books, self.placement.largest
        if largest is None or books.now < self._next_large_check:
            return
        self._next_large_check = books.now + books.tuning.large_task_check_interval_s
        names = ("cores", "MB of memory", "MB of disk", "gpus")
        for name, most, available in zip(names, books.ready.most_asked(), largest, strict=True):
            if most > available:
                books.out.append(Notice(f"there are tasks that need {most} {name}; the largest connected worker has "
                                        f"{available}: they wait until a larger one joins"))

    def _check_slow(self) -> None:
        """Tasks far slower than their category's mean are taken off; a second alarm in a row removes the worker."""
        for name, mean_s, multiplier in self.books.categories.slow_limits(SLOW_MIN_DONE):
            limit = mean_s * (multiplier + self.books.stats.workers_slow)
            for worker in list(self.books.workers.values()):
                slow = [t for t in worker.running.values() if t.spec.category == name and t.run is not None
                        and self.books.now - t.run.commit_end > limit]
                for task in slow:
                    self._slow_alarm(worker, task)

    def _slow_alarm(self, worker: WorkerRecord, task: TaskRecord) -> None:
        books = self.books
        if worker.key not in books.workers or task.run is None or task.run.worker is not worker:
            return
        self.dispatcher.withdraw(task)
        worker.slow_alarms += 1
        if worker.slow_alarms >= 2:
            books.out.append(Notice(f"worker {worker.hello.hostname} is removed: twice far slower than others"))
            self.block(worker.hello.hostname, books.now + books.tuning.option_blocklist_slow_workers_timeout_s)
            self.remove(worker, REMOVED_FAST_ABORT)
            books.out.append(Disconnect(worker.key, "too slow"))

    def _evict_one(self) -> None:
        interval = self.books.tuning.enforce_worker_eviction_interval_s
        if interval > 0 and self.books.workers and self.books.now - self._last_eviction >= interval:
            self._last_eviction = self.books.now
            worker = self.books.rng.choice(list(self.books.workers.values()))
            self.remove(worker, REMOVED_EXPLICIT)
            self.books.out.append(Disconnect(worker.key, "evicted for a test"))

    def remove_bad(self, worker: WorkerRecord) -> None:
        """Its transfers keep failing (section 11.5)."""
        if worker.key in self.books.workers:
            self.books.out.append(Notice(f"worker {worker.hello.hostname} is removed: its transfers keep failing"))
            self.remove(worker, REMOVED_XFER_ERRORS)
            self.books.out.append(Disconnect(worker.key, "too many failed transfers"))

"""A task's way through the manager: queued, placed, sent, ended, tried again or returned (reference, sections 9, 12).

Owns every change of a task's state. Placement says where, staging moves files, lineage says what exists. Two things
start a look at the queue: something became ready, or some worker's room grew. So a pass costs what can change, not what
is waiting.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from taskvine_core.constants import (
    VINE_RESULT_CANCELLED,
    VINE_RESULT_FIXED_LOCATION_MISSING,
    VINE_RESULT_FORSAKEN,
    VINE_RESULT_INPUT_MISSING,
    VINE_RESULT_MAX_END_TIME,
    VINE_TASK_DONE,
    VINE_TASK_READY,
    VINE_TASK_RETRIEVED,
    VINE_TASK_RUNNING,
    VINE_TASK_TYPE_STANDARD,
    VINE_TASK_WAITING_RETRIEVAL,
    VINE_TEMP,
)
from taskvine_core.manager.books import Books
from taskvine_core.manager.events import CancelUpload, Complete, TaskOutcome, TaskTimes
from taskvine_core.manager.groups import Groups
from taskvine_core.manager.lineage import Lineage
from taskvine_core.manager.placement import Placement
from taskvine_core.manager.ready import Family, Level, Shape
from taskvine_core.manager.records import PRIORITY_NORMAL, FileRecord, Run, TaskRecord, Totals, WorkerRecord
from taskvine_core.manager.staging import Staging
from taskvine_core.manager.turns import Turn
from taskvine_core.protocol.messages import NOT_MEASURED, Dispatch, Kill, Recall
from taskvine_core.resources import ZERO, Resources

#: Seconds of work a worker may hold beyond its free room, so that short tasks do not wait for a round trip.
QUEUE_AHEAD_S = 0.1
#: Tasks it may hold that way at most: they are taken back one by one when a worker drains.
QUEUE_AHEAD_MAX = 64
#: A queued task that has not started after this long is taken back: the estimate was wrong.
QUEUE_STALE_S = 1.0
#: Weight of the newest task in a category's running mean of execution time.
PACE_WEIGHT = 0.1
#: No task is taken for shorter than this.
SHORTEST_S = 1e-4
#: First rest of a forsaken task or worker; doubles up to transient-error-interval.
FIRST_REST_S = 0.1

NOT_RUN = -1


class Dispatcher:
    """The task state machine."""

    def __init__(self, books: Books, placement: Placement, lineage: Lineage, staging: Staging) -> None:
        self.books = books
        self.placement = placement
        self.lineage = lineage
        self.staging = staging
        self.user_tasks = 0
        self._had_workers = 0  # most workers that were waited for and came
        self.pace: dict[str, float] = {}
        self._later: list[tuple[float, int]] = []
        self._ends: list[tuple[float, int]] = []
        self._stale: deque[tuple[float, int, int]] = deque()
        self._held_back = False  # by max-concurrent, in the last pass
        self.groups = Groups(books, self, placement, staging)

    # ------------------------------------------------------------------ into the queue

    def submit(self, task: TaskRecord) -> None:
        """A new user task."""
        books = self.books
        books.tasks[task.id] = task
        books.stats.tasks_submitted += 1
        self.user_tasks += 1
        task.to(VINE_TASK_READY)
        books.observer.task_ready(books.now, task.id, 1, task.spec, False, task.spec.resources)
        if task.spec.time_end_s:
            heappush(self._ends, (task.spec.time_end_s, task.id))
        if self.lineage.admit(task):
            self.enqueue(task, front=False)
        elif books.tuning.task_groups:
            self.groups.join(task)

    def enqueue(self, task: TaskRecord, *, front: bool) -> None:
        """Its inputs exist: queue it, or note when it may be queued."""
        when = max(task.not_before, task.spec.time_start_s)
        if when > self.books.now:
            heappush(self._later, (when, task.id))
        else:
            self.books.ready.push(task, front)

    def _requeue(self, task: TaskRecord) -> None:
        """Back to READY after an attempt that does not count as the program's."""
        books = self.books
        task.run = None
        task.to(VINE_TASK_READY)
        books.observer.task_ready(books.now, task.id, task.attempts + 1, task.spec, task.exhausted, task.spec.resources)
        if self.lineage.all_available(task):
            self.enqueue(task, front=True)

    def due(self) -> None:
        """Handle what time brings: tasks whose rest or start time is over, end times, stale queued tasks."""
        now, tasks = self.books.now, self.books.tasks
        while self._later and self._later[0][0] <= now:
            task = tasks.get(heappop(self._later)[1])
            if task is not None and task.state == VINE_TASK_READY and not task.blocked and task.shape is None:
                self.enqueue(task, front=True)
        while self._ends and self._ends[0][0] <= now:
            task = tasks.get(heappop(self._ends)[1])
            if task is not None and task.state == VINE_TASK_READY:
                self.fail(task, VINE_RESULT_MAX_END_TIME, "its end time passed before it could be started")
        self._recall_stale()

    def next_due(self) -> float:
        """When due() has something to do, seconds since the epoch; infinity for never."""
        times = [queue[0][0] for queue in (self._later, self._ends) if queue]
        if self._stale:
            times.append(self._stale[0][0])
        return min(times, default=float("inf"))

    def _recall_stale(self) -> None:
        by_worker: dict[WorkerRecord, list[int]] = {}
        while self._stale and self._stale[0][0] <= self.books.now:
            _, task_id, sent = self._stale.popleft()
            task = self.books.tasks.get(task_id)
            if task is not None and task.run is not None and task.run.queued and task.sent == sent:
                by_worker.setdefault(task.run.worker, []).append(task_id)
        for worker, ids in by_worker.items():
            self.books.send(worker, Recall(tuple(ids)))

    # ------------------------------------------------------------------ placing

    def dispatch(self) -> None:
        """Place what can be placed now."""
        books = self.books
        ready, index = books.ready, books.index
        if not books.workers or not (ready.fresh or index.grown):
            return
        wanted = books.tuning.wait_for_workers
        if wanted > self._had_workers:
            if len(books.workers) < wanted:
                return
            self._had_workers = wanted
        self._held_back = False
        while ready.fresh or index.grown:  # placing may itself bring up recovery tasks or free room
            grown = list(index.grown)
            index.grown.clear()
            ready.fresh = False
            self._pass(grown)
        ready.fresh = self._held_back

    def _pass(self, grown: list[WorkerRecord]) -> None:
        """Every family has its turn, and a further one after those that had tasks of higher priority than its next."""
        placement = self.placement
        turns = [(rank, Turn(family, grown, placement, self._may_queue))
                 for family in self.books.ready.in_order() if (rank := family.rank()) is not None]
        while turns:
            _, turn = heappop(turns)
            self._take_turn(turn, turns[0][0][:2] if turns else None)
            if turn.postponed is not None:
                heappush(turns, (turn.postponed, turn))
            elif turn.family.unfinished:
                self._held_back = True

    def _take_turn(self, turn: Turn, until: Level | None) -> None:
        """Place tasks of a family, of this priority or a higher one."""
        family = turn.family
        category = self.books.categories.get(family.category)
        turn.postponed = None
        while (choice := turn.next(self.books.now)) is not None:
            shape, anywhere = choice
            task = shape.head()
            if task is None:
                return
            level = (-task.manager_priority, -task.spec.priority)
            if until is not None and level > until:
                turn.postponed = (*level, task.id)
                return
            if 0 <= category.max_concurrent <= category.running:
                family.look_again()  # room that grows meanwhile is not offered to it: look everywhere afterwards
                self._held_back = True
                return
            if not self._still_possible(task, family):
                continue
            if anywhere:
                if not self._place_anywhere(task, shape):
                    family.file(shape)
            elif not self._place_grown(task, shape, turn.workers):
                turn.too_large(shape)

    def _still_possible(self, task: TaskRecord, family: Family) -> bool:
        """Look at a head task's inputs once more; when one is gone the task leaves the queue."""
        if not task.spec.inputs:
            return True
        if family.fixed and self.placement.fixed_is_nowhere(task):
            self.fail(task, VINE_RESULT_FIXED_LOCATION_MISSING, "no connected worker holds its strict inputs")
            return False
        files = self.books.files
        for mount in task.spec.inputs:
            if not files[mount.name].available_to(task):
                self.books.ready.drop(task)
                self.lineage.all_available(task)
                return False
        return True

    def _place_anywhere(self, task: TaskRecord, shape: Shape) -> bool:
        """Place the head of a shape where it is best; False when no worker has room."""
        found = self.placement.choose(task, shape, self.books.now)
        if found is None:
            return False
        self.books.ready.take(shape)
        self._commit(task, *found, queued=False)
        return True

    def _place_grown(self, task: TaskRecord, shape: Shape, workers: deque[WorkerRecord]) -> bool:
        """Place the head of a shape, or a better one of it for the worker at hand, which is the first."""
        books, placement = self.books, self.placement
        if shape.any_inputs:
            found = placement.by_locality_among(task, shape, workers, books.now)
            if found is not None:
                books.ready.take(shape)
                self._commit(task, *found, queued=False)
                return True
        position = placement.most_local(shape, workers[0])
        return self._place_on(shape.at(position) if position else task, shape, position, workers[0])

    def _place_on(self, task: TaskRecord, shape: Shape, position: int, worker: WorkerRecord) -> bool:
        """Give a task to this worker if it has room, or may hold it in its own queue."""
        books, placement = self.books, self.placement
        allocation = placement.room_at(task, shape, worker, books.now)
        if allocation is not None and not worker.queued:
            books.ready.take(shape, position)
            self._commit(task, worker, allocation, queued=False)
            return True
        allocation = self._ahead(task, shape, worker)
        if allocation is None:
            return False
        books.ready.take(shape, position)
        self._commit(task, worker, allocation, queued=True)
        return True

    def _ahead(self, task: TaskRecord, shape: Shape, worker: WorkerRecord) -> Resources | None:
        """The allocation if the worker may hold the task beyond its room."""
        family = shape.family
        if not self._may_queue(family, worker) or not self.placement.eligible(family, worker, self.books.now):
            return None
        allocation = self.placement.allocation(task, shape, worker)
        if allocation.gpus > 0 or not self.placement.fits_empty(allocation, worker):
            return None
        return allocation

    def _may_queue(self, family: Family, worker: WorkerRecord) -> bool:
        """May the worker hold one more task beyond its room? Only short, ordinary ones, and not many."""
        pace = self.pace.get(family.category)
        if pace is None or family.exhausted:
            return False
        depth = min(QUEUE_AHEAD_MAX, int(QUEUE_AHEAD_S * max(1, len(worker.running)) / max(pace, SHORTEST_S)))
        return len(worker.queued) < depth

    def send_after(self, task: TaskRecord, worker: WorkerRecord, allocation: Resources) -> None:
        """Send a task to a worker where tasks that it was sent before make what this one reads."""
        self.lineage.wait_no_more(task)
        self._commit(task, worker, allocation, queued=True, following=True)

    def _commit(self, task: TaskRecord, worker: WorkerRecord, allocation: Resources, *, queued: bool,
                following: bool = False) -> None:
        """Send a task to a worker."""
        books, spec = self.books, task.spec
        task.to(VINE_TASK_RUNNING)
        task.attempts += 1
        task.sent += 1
        gpus: tuple[str, ...] = ()
        if allocation.gpus > 0:
            gpus = tuple(worker.free_gpus[: allocation.gpus])
            del worker.free_gpus[: allocation.gpus]
        run = task.run = Run(worker, allocation, gpus, queued, books.now)
        books.categories.get(spec.category).running += 1
        if following:
            worker.following[task.id] = task
        elif queued:
            worker.queued[task.id] = task
            self._stale.append((books.now + QUEUE_STALE_S, task.id, task.sent))
        else:
            worker.running[task.id] = task
            worker.in_use = worker.in_use.plus(allocation)
            books.index.update(worker, books.now)
        for mount in spec.inputs:
            file = books.files[mount.name]
            if worker.key not in file.replicas and (file.available or not following):
                self.staging.bring(file, worker)
        want_inline, levels = self._outputs(task)
        run.levels = levels
        books.send(worker, Dispatch(task.id, task.sent, spec, allocation, gpus, want_inline, levels))
        stats = books.stats
        stats.tasks_dispatched += 1
        books.observer.task_running(books.now, task.id, worker.key, task.attempts, spec, task.exhausted, allocation,
                                    run.commit_start, 0.0, 0)
        if books.tuning.task_groups and not following:
            self.groups.extend(task)

    def _outputs(self, task: TaskRecord) -> tuple[tuple[str, ...], tuple[int, ...]]:
        outputs = task.spec.outputs
        if not outputs:
            return (), ()
        files = self.books.files
        standard = task.kind == VINE_TASK_TYPE_STANDARD
        inline = tuple([m.name for m in outputs if standard or files[m.name].decl.kind == VINE_TEMP])
        return inline, tuple([files[m.name].level for m in outputs])

    # ------------------------------------------------------------------ off a worker

    def release(self, task: TaskRecord) -> WorkerRecord:
        """Take a task off its worker's books; what waited in the worker's queue moves up."""
        run = task.run
        assert run is not None
        worker, books = run.worker, self.books
        books.categories.get(task.spec.category).running -= 1
        if run.successor is not None:
            self.groups.loose.append(run.successor)
            run.successor = None
        if worker.queued.pop(task.id, None) is None and worker.following.pop(task.id, None) is None:
            worker.running.pop(task.id, None)
            worker.in_use = worker.in_use.minus(run.allocation)
            worker.free_gpus.extend(gpu for gpu in run.gpus if int(gpu) < worker.totals.gpus)
            self._move_up(worker)
        if not worker.running:
            worker.idle_since = books.now
            books.look_at_leaving(worker)
        books.index.update(worker, books.now, grown=True)
        return worker

    def _move_up(self, worker: WorkerRecord) -> None:
        """The worker starts its queue in order as room allows; follow it in the books."""
        books = self.books
        while worker.queued:
            task = next(iter(worker.queued.values()))
            run = task.run
            assert run is not None
            if not self.placement.fits(run.allocation, worker):
                return
            del worker.queued[task.id]
            run.queued = False
            worker.running[task.id] = task
            worker.in_use = worker.in_use.plus(run.allocation)
            if books.tuning.task_groups:
                self.groups.extend(task)

    def move_in(self, task: TaskRecord) -> None:
        """What a task that was sent along waited for is there: it stands in the worker's queue now."""
        run = task.run
        assert run is not None
        worker = run.worker
        del worker.following[task.id]
        worker.queued[task.id] = task
        self._stale.append((self.books.now + QUEUE_STALE_S, task.id, task.sent))
        self._move_up(worker)
        self.books.index.update(worker, self.books.now)

    def note_pace(self, category: str, execute_s: float) -> None:
        """Learn how long tasks of a category run."""
        old = self.pace.get(category)
        self.pace[category] = execute_s if old is None else old + PACE_WEIGHT * (execute_s - old)

    def lose(self, task: TaskRecord) -> None:
        """A task's worker is gone, with what it had not delivered yet: again, unless its retries are used up."""
        run = task.run
        assert run is not None
        earlier = self._earlier(task)
        lost_s = max(0.0, self.books.now - run.commit_end)
        earlier.execute_failure_s += lost_s
        earlier.execute_all_s += lost_s
        self.release(task) if task.state == VINE_TASK_RUNNING else self._stop_retrieving(task, run)
        if self._retries_used(task):
            run.result = run.result or VINE_RESULT_FORSAKEN
            run.error = "its worker was lost and no retry is left"
            self.finish(task)
        else:
            self._requeue(task)

    def take_back(self, task: TaskRecord) -> None:
        """The worker handed a task back unstarted, or was told to forget it: not an attempt."""
        self.release(task)
        task.attempts -= 1
        self._requeue(task)

    def withdraw(self, task: TaskRecord) -> None:
        """Take a sent task from its worker because an input vanished on the way; it is nobody's failure."""
        assert task.run is not None
        worker = task.run.worker
        self.books.send(worker, Kill((task.id,)))
        self.books.observer.task_kill(self.books.now, task.id, worker.key)
        self.take_back(task)

    def forsake(self, task: TaskRecord, reason: str, *, counted: bool = True, tell_worker: bool = False) -> None:
        """A worker could not run the task (section 12.1, point 1): again elsewhere after a rest, or give up."""
        run = task.run
        assert run is not None
        worker = run.worker
        if tell_worker:
            self.books.send(worker, Kill((task.id,)))
            self.books.observer.task_kill(self.books.now, task.id, worker.key)
        self.release(task)
        task.forsaken += counted
        task.attempts -= 1
        if 0 <= task.spec.max_forsaken < task.forsaken:
            run.result, run.exit_code, run.error = VINE_RESULT_FORSAKEN, NOT_RUN, reason
            self.finish(task)
            return
        rest = FIRST_REST_S * 2 ** min(10, max(0, task.forsaken - 1))
        task.not_before = self.books.now + min(self.books.tuning.transient_error_interval_s, rest)
        self._requeue(task)

    def _earlier(self, task: TaskRecord) -> Totals:
        if task.earlier is None:
            task.earlier = Totals()
        return task.earlier

    def _retries_used(self, task: TaskRecord) -> bool:
        return 1 <= task.spec.retries < task.attempts

    # ------------------------------------------------------------------ the end

    def again_or_finish(self, task: TaskRecord, *, again: bool, priority: int = PRIORITY_NORMAL) -> None:
        """An attempt ended; ``again``: the rules for its result want another one."""
        run = task.run
        assert run is not None
        if again and not self._retries_used(task):
            earlier = self._earlier(task)
            spent = max(0.0, run.end - run.start)
            earlier.execute_all_s += spent
            earlier.execute_exhaustion_s += spent
            task.manager_priority = max(priority, task.manager_priority)
            self._requeue(task)
        else:
            self.finish(task)

    def fail(self, task: TaskRecord, result: int, reason: str) -> None:
        """Return a task that stands in the queue or waits for inputs."""
        self.books.ready.drop(task)
        outcome = self._outcome(task, result, NOT_RUN, reason)
        self._return(task, outcome)

    def fail_unplaced(self, task: TaskRecord, reason: str) -> None:
        """An input can never be had."""
        self.fail(task, VINE_RESULT_INPUT_MISSING, reason)

    def finish(self, task: TaskRecord) -> None:
        """The last attempt is over and its outputs are where they belong."""
        run = task.run
        assert run is not None
        self._return(task, self._outcome(task, run.result, run.exit_code, run.error))

    def _return(self, task: TaskRecord, outcome: TaskOutcome) -> None:
        books, now = self.books, self.books.now
        task.to(VINE_TASK_RETRIEVED)
        books.observer.task_retrieved(now, task.id, outcome.result, outcome.exit_code, outcome.measured, outcome.limits,
                                      0.0, outcome.bytes_received)
        task.to(VINE_TASK_DONE)
        del books.tasks[task.id]
        task.run = None
        self.lineage.retire(task)
        if task.kind == VINE_TASK_TYPE_STANDARD:
            self._count(task, outcome)
            books.out.append(Complete(outcome))
        books.observer.task_done(now, task.id, outcome.result, outcome.exit_code)

    def _count(self, task: TaskRecord, outcome: TaskOutcome) -> None:
        category = self.books.categories.get(task.spec.category)
        self.user_tasks -= 1
        for stats in (self.books.stats, category.stats):
            if outcome.result == VINE_RESULT_CANCELLED:
                stats.tasks_cancelled += 1
                continue
            stats.tasks_done += 1
            if outcome.result == 0 and outcome.exit_code == 0:
                stats.tasks_successful += 1
            else:
                stats.tasks_failed += 1
        if outcome.result:
            category.forget(task.id)

    def _outcome(self, task: TaskRecord, result: int, exit_code: int, error: str) -> TaskOutcome:
        run, earlier = task.run, task.earlier
        now = self.books.now
        if run is None:
            times = TaskTimes(submitted=task.submitted, done=now)
            return TaskOutcome(task.id, result, exit_code, b"", "", "", "", ZERO, NOT_MEASURED, None, times, 0, 0,
                               task.attempts, error)
        last = max(0.0, run.end - run.start)
        if earlier is None:
            times = TaskTimes(task.submitted, run.commit_start, run.commit_end, run.retrieval, now, last, last, 0.0,
                              0.0,
                              run.start, run.end)
        else:
            times = TaskTimes(task.submitted, run.commit_start, run.commit_end, run.retrieval, now, last,
                              last + earlier.execute_all_s, earlier.execute_exhaustion_s, earlier.execute_failure_s,
                              run.start, run.end)
        return TaskOutcome(task.id, result, exit_code, run.stdout, run.stdout_path, run.hostname, run.addrport,
                           run.allocation, run.measured, run.limits, times, run.bytes_sent, run.bytes_received,
                           task.attempts, error)

    def cancel(self, task: TaskRecord) -> bool:
        """Stop a user task; it comes back as cancelled. False when it is too late."""
        return task.kind == VINE_TASK_TYPE_STANDARD and self.stop(task, "cancelled by the program")

    def stop(self, task: TaskRecord, reason: str) -> bool:
        """End a task wherever it is, as cancelled. False when it is too late."""
        if task.state == VINE_TASK_READY:
            self.fail(task, VINE_RESULT_CANCELLED, reason)
            return True
        run = task.run
        if run is None:
            return False
        if task.state == VINE_TASK_RUNNING:
            self.books.send(run.worker, Kill((task.id,)))
            self.books.observer.task_kill(self.books.now, task.id, run.worker.key)
            self.release(task)
        elif task.state == VINE_TASK_WAITING_RETRIEVAL:
            self._stop_retrieving(task, run)
        run.result, run.error = VINE_RESULT_CANCELLED, reason
        self.finish(task)
        return True

    def _stop_retrieving(self, task: TaskRecord, run: Run) -> None:
        run.worker.retrieving.pop(task.id, None)
        self.books.look_at_leaving(run.worker)
        self.books.bereaved.pop(task.id, None)
        for transfer_id in run.uploads or ():
            self.staging.end_upload(transfer_id)
            self.books.out.append(CancelUpload(transfer_id))

    # ------------------------------------------------------------------ inputs that do not come

    def tasks_at(self, worker: WorkerRecord, file: FileRecord) -> list[TaskRecord]:
        """Tasks sent to a worker that read the file."""
        return [task for task in worker.tasks() if any(mount.name == file.name for mount in task.spec.inputs)]

    def rest_worker(self, worker: WorkerRecord) -> None:
        """Give a worker that could not run something a rest, longer each time."""
        worker.strikes += 1
        rest = FIRST_REST_S * 2 ** min(10, worker.strikes)
        worker.not_before = self.books.now + min(self.books.tuning.transient_error_interval_s, rest)
        self.books.index.update(worker, self.books.now)

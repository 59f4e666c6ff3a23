"""What a worker's report of an ended attempt means (reference, sections 6, 10.4, 11.8, 12.1).

Owns the judgement of a TaskDone: which outputs to keep or fetch, which result it is, whether another attempt follows.
"""

from __future__ import annotations

from taskvine_core.constants import (
    VINE_BUFFER,
    VINE_CACHE_LEVEL_TASK,
    VINE_FAILURE_ONLY,
    VINE_FILE,
    VINE_RESULT_FORSAKEN,
    VINE_RESULT_OUTPUT_MISSING,
    VINE_RESULT_OUTPUT_TRANSFER_ERROR,
    VINE_RESULT_RESOURCE_EXHAUSTION,
    VINE_RESULT_SANDBOX_EXHAUSTION,
    VINE_RESULT_SUCCESS,
    VINE_SUCCESS_ONLY,
    VINE_TASK_RUNNING,
    VINE_TASK_TYPE_STANDARD,
    VINE_TASK_WAITING_RETRIEVAL,
    VINE_TEMP,
    combine_results,
)
from taskvine_core.manager.balance import Balance
from taskvine_core.manager.books import Books
from taskvine_core.manager.categories import RETRY_MAX
from taskvine_core.manager.dispatcher import Dispatcher
from taskvine_core.manager.events import Stored, StoreInline, UploadEnded
from taskvine_core.manager.records import PRIORITY_EXHAUSTION, FileRecord, Run, TaskRecord, Transfer, WorkerRecord
from taskvine_core.manager.staging import Staging
from taskvine_core.manager.stats import CapacityEstimator
from taskvine_core.model.tasks import Mount
from taskvine_core.protocol.messages import OutputReport, SetLevel, TaskDone, Unlink
from taskvine_core.resources import Resources

#: Attempts forsaken in a row by one worker before it is removed: it runs nothing.
MAX_STRIKES = 10
#: Times an output is asked for when its transfer breaks off. That says nothing about the worker: when it died, the next
#: try ends with the news of its death.
UPLOAD_TRIES = 3

#: No attempt counts for longer than ten years: a worker's clock may say anything.
LONGEST_S = 10 * 365 * 86_400.0
#: TaskOutcome.stdout_path of a large stdout: this and the transfer id; the runner knows the real path.
STDOUT_AT_RUNNER = "transfer:"


class Completion:
    """Ends attempts."""

    def __init__(self, books: Books, dispatcher: Dispatcher, staging: Staging, balance: Balance) -> None:
        self.books = books
        self.balance = balance
        self.capacity = CapacityEstimator()
        self.dispatcher = dispatcher
        self.staging = staging

    def on_done(self, worker: WorkerRecord, message: TaskDone) -> None:
        """An attempt ended at a worker. Reports of attempts we no longer wait for are ignored."""
        books = self.books
        task = books.tasks.get(message.task_id)
        if task is None or task.state != VINE_TASK_RUNNING or task.sent != message.attempt:
            self._drop_outputs(worker, message)
            return
        run = task.run
        assert run is not None
        if run.worker is not worker:
            return
        if message.result == VINE_RESULT_FORSAKEN:
            self.dispatcher.rest_worker(worker)
            self.dispatcher.forsake(task, message.error)
            return
        worker.strikes = 0
        self._record_run(task, message)
        task.to(VINE_TASK_WAITING_RETRIEVAL)
        books.observer.task_waiting_retrieval(books.now, task.id, worker.key, message.result, message.exit_code,
                                              message.stdout_bytes, message.start, message.end,
                                              message.measured.disk_mb)
        self.dispatcher.release(task)
        self._take_outputs(task, worker, message)
        if run.uploads:
            worker.retrieving[task.id] = task
        else:
            self.settle(task)

    def _record_run(self, task: TaskRecord, message: TaskDone) -> None:
        run = task.run
        assert run is not None
        worker, books = run.worker, self.books
        run.result, run.exit_code, run.stdout = message.result, message.exit_code, message.stdout
        run.start, run.end, run.measured, run.error = message.start, message.end, message.measured, message.error
        run.retrieval = books.now
        spent = min(LONGEST_S, max(0.0, message.end - message.start))
        worker.done += 1
        worker.done_s += spent
        self.dispatcher.note_pace(task.spec.category, spent)
        stats = books.stats
        micros = int(spent * 1e6)
        stats.time_workers_execute += micros
        self.capacity.report(micros, 0, books.own_us_per_task, run.allocation)
        if not message.result and not message.exit_code:
            stats.time_workers_execute_good += micros
        elif message.result in (VINE_RESULT_RESOURCE_EXHAUSTION, VINE_RESULT_SANDBOX_EXHAUSTION):
            stats.time_workers_execute_exhaustion += micros

    def _drop_outputs(self, worker: WorkerRecord, message: TaskDone) -> None:
        """Objects of an attempt nobody waits for must not stay at the worker, unless they are replicas we know."""
        names = tuple(report.name for report in message.outputs if report.name not in worker.files)
        if message.stdout_name:
            names += (message.stdout_name,)
        if names:
            self.books.send(worker, Unlink(names))

    # ------------------------------------------------------------------ outputs

    def _take_outputs(self, task: TaskRecord, worker: WorkerRecord, message: TaskDone) -> None:
        run = task.run
        assert run is not None
        mounts = {mount.name: mount for mount in task.spec.outputs} if message.outputs or message.missing else {}
        for report in message.outputs:
            mount, file = mounts.get(report.name), self.books.files.get(report.name)
            if mount is None or file is None:
                self.books.send(worker, Unlink((report.name,)))
            elif file.decl.kind == VINE_TEMP:
                self._keep(file, worker, report, recovering=task.kind != VINE_TASK_TYPE_STANDARD)
            else:
                self._retrieve(task, worker, file, mount, report)
        for remote in message.missing:
            if any(m.remote == remote and self._wanted(m, message) for m in task.spec.outputs):
                run.result = combine_results(run.result, VINE_RESULT_OUTPUT_MISSING)
                run.error = run.error or f"output {remote!r} was not produced"
        if message.stdout_name:
            self._upload(task, worker, message.stdout_name, "", "stdout", 0)

    def _wanted(self, mount: Mount, message: TaskDone) -> bool:
        """failure-only and success-only outputs (section 11.8)."""
        good = message.result == VINE_RESULT_SUCCESS and message.exit_code == 0
        return not ((mount.flags & VINE_FAILURE_ONLY and good) or (mount.flags & VINE_SUCCESS_ONLY and not good))

    def _replace(self, file: FileRecord, worker: WorkerRecord) -> None:
        """The worker made a new version: nobody may read the old one any more."""
        for key in list(file.replicas):
            if key != worker.key:
                self.staging.unlink(file, self.books.workers[key])
        self.staging.let_go(file)
        self.staging.forget(file, worker)

    def _keep(self, file: FileRecord, worker: WorkerRecord, report: OutputReport, *, recovering: bool) -> None:
        books = self.books
        if not file.needed:
            books.send(worker, Unlink((file.name,)))
            return
        if _differs(file, report):
            if recovering:  # what others may have read already counts
                if worker.key not in file.replicas:
                    books.send(worker, Unlink((file.name,)))
                return
            self._replace(file, worker)
        books.observer.cache_update(books.now, worker.key, file.name, file.decl.kind, file.level, report.size_bytes,
                                    0.0,
                                    books.now, 0)
        if report.inline is not None:
            self.staging.keep(file, report.inline, report.mode)
        self.staging.mark_ready(file, worker, report.size_bytes, report.sha256)
        self.balance.arrived(file, worker)

    def _retrieve(self, task: TaskRecord, worker: WorkerRecord, file: FileRecord, mount: Mount,
                  report: OutputReport) -> None:
        """Bring an output of a file or buffer to the program, and account for the copy that stays at the worker."""
        run, decl = task.run, file.decl
        assert run is not None
        inlined = report.inline is not None
        if _differs(file, report):
            self._replace(file, worker)
        told = run.levels[task.spec.outputs.index(mount)]
        if not inlined or told > VINE_CACHE_LEVEL_TASK:
            self.staging.mark_ready(file, worker, report.size_bytes, report.sha256)
            if told < file.level:  # another task has come to use it meanwhile
                self.books.send(worker, SetLevel(file.name, file.level))
        good = run.result == VINE_RESULT_SUCCESS and run.exit_code == 0
        unwanted = (mount.flags & VINE_FAILURE_ONLY and good) or (mount.flags & VINE_SUCCESS_ONLY and not good)
        if unwanted or task.kind != VINE_TASK_TYPE_STANDARD or decl.kind not in (VINE_FILE, VINE_BUFFER):
            return
        path = decl.source if decl.kind == VINE_FILE else ""
        if report.inline is not None:
            run.bytes_received += len(report.inline)
            self.books.stats.bytes_received += len(report.inline)
            store_id = self._awaited_store(run) if path else 0  # memory is never full
            self.books.out.append(StoreInline(task.id, file.name, path, report.inline, report.mode, store_id))
            file.size = report.size_bytes
        else:
            self._upload(task, worker, file.name, path, "output", report.mode)

    def _awaited_store(self, run: Run) -> int:
        """A negative number among the run's uploads: no transfer, but to be waited for all the same."""
        if run.uploads is None:
            run.uploads = set()
        store_id = -self.books.new_transfer_id()
        run.uploads.add(store_id)
        return store_id

    def _upload(self, task: TaskRecord, worker: WorkerRecord, name: str, path: str, purpose: str, mode: int) -> None:
        run = task.run
        assert run is not None
        if run.uploads is None:
            run.uploads = set()
        run.uploads.add(self.staging.upload(worker, name, path, purpose, task_id=task.id, mode=mode))

    def _upload_again(self, run: Run, worker: WorkerRecord, broken: Transfer) -> None:
        assert run.uploads is not None
        run.uploads.discard(broken.id)
        run.uploads.add(self.staging.upload(worker, broken.name, broken.path, broken.purpose, task_id=broken.task_id,
                                            mode=broken.mode, tries=broken.tries + 1))

    def on_upload_ended(self, transfer: Transfer, event: UploadEnded) -> None:
        """An output or a large stdout has arrived, or will not."""
        books = self.books
        task = books.tasks.get(transfer.task_id)
        run = task.run if task is not None else None
        if run is not None and (run.uploads is None or transfer.id not in run.uploads):
            run = None  # an earlier attempt's
        worker = books.workers.get(transfer.dest)
        if run is not None and worker is not None and _try_again(transfer, event):
            self._upload_again(run, worker, transfer)
            return
        if transfer.purpose == "stdout" and worker is not None and transfer.file is None:
            books.send(worker, Unlink((transfer.name,)))
        if task is None or run is None or run.uploads is None:
            return
        run.uploads.discard(transfer.id)
        if event.error and worker is None:
            self.dispatcher.lose(task)
            return
        if event.error:
            run.result = combine_results(run.result, VINE_RESULT_OUTPUT_TRANSFER_ERROR)
            run.error = run.error or event.error
        else:
            run.bytes_received += event.size_bytes
            books.stats.bytes_received += event.size_bytes
            books.observer.transfer_output(books.now, transfer.dest, transfer.name, event.size_bytes,
                                           books.now - transfer.started, transfer.started)
            if transfer.purpose == "stdout":
                run.stdout_path = STDOUT_AT_RUNNER + str(transfer.id)
        self._settle_when_here(task, run)

    def on_stored(self, event: Stored) -> None:
        """A small output was, or could not be, written where the program wants it."""
        task = self.books.tasks.get(event.task_id)
        run = task.run if task is not None else None
        if task is None or run is None or run.uploads is None or event.store_id not in run.uploads:
            return
        run.uploads.discard(event.store_id)
        if event.error:
            run.result = combine_results(run.result, VINE_RESULT_OUTPUT_TRANSFER_ERROR)
            run.error = run.error or event.error
        self._settle_when_here(task, run)

    def _settle_when_here(self, task: TaskRecord, run: Run) -> None:
        if not run.uploads:
            run.worker.retrieving.pop(task.id, None)
            self.books.look_at_leaving(run.worker)
            self.books.bereaved.pop(task.id, None)
            if not run.worker.busy:
                run.worker.idle_since = self.books.now
            self.settle(task)

    # ------------------------------------------------------------------ judgement

    def settle(self, task: TaskRecord) -> None:
        """Everything of the attempt is here: learn from it, then return the task or try again."""
        run, books = task.run, self.books
        assert run is not None
        category = books.categories.get(task.spec.category)
        largest = self.dispatcher.placement.largest
        if run.result == VINE_RESULT_RESOURCE_EXHAUSTION:
            peak = Resources(-1, run.measured.memory_mb, run.measured.disk_mb, -1)
            run.limits = run.allocation
            decision = category.on_exhaustion(task.spec.resources, peak, task_id=task.id, allocated=run.allocation,
                                              exhausted=task.exhausted, largest_worker=largest)
            self._exhausted(task, decision == RETRY_MAX, label_max=True)
        elif run.result == VINE_RESULT_SANDBOX_EXHAUSTION:
            decision = category.on_sandbox_exhaustion(run.allocation.disk_mb, books.tuning.sandbox_grow_factor,
                                                      task.spec.resources, task_id=task.id, exhausted=task.exhausted,
                                                      largest_worker=largest)
            run.limits = Resources(-1, -1, run.allocation.disk_mb, -1)
            self._exhausted(task, decision == RETRY_MAX, label_max=False)
        else:
            self._learn(task)
            self.balance.released(task)
            self.dispatcher.finish(task)

    def _exhausted(self, task: TaskRecord, again: bool, *, label_max: bool) -> None:
        """Run out of something: again with more, or back to the program."""
        task.exhausted = task.exhausted or (again and label_max)
        self.books.stats.tasks_exhausted_attempts += 1
        self.books.ready.unsaturate()
        self.dispatcher.again_or_finish(task, again=again, priority=PRIORITY_EXHAUSTION)

    def _learn(self, task: TaskRecord) -> None:
        """Feed the category's statistics; new allocations may let waiting tasks fit."""
        run = task.run
        assert run is not None
        if run.result != VINE_RESULT_SUCCESS:
            return
        category = self.books.categories.get(task.spec.category)
        measured = run.measured
        peak = Resources(-1, measured.memory_mb, measured.disk_mb, -1)
        if category.record(task.id, peak, max(0.0, run.end - run.start),
                           largest_worker=self.dispatcher.placement.largest):
            self.books.ready.unsaturate()


def _try_again(transfer: Transfer, event: UploadEnded) -> bool:
    return bool(event.error) and not event.final and transfer.tries < UPLOAD_TRIES


def _differs(file: FileRecord, report: OutputReport) -> bool:
    """Is what was reported another version than the replicas we know?"""
    return file.ready > 0 and (file.size != report.size_bytes or file.sha256 != report.sha256)

"""Runs: tasks and mini-tasks from their order to their report.

Owns when a run starts, which limit ends it, what of it is collected and what the manager is told.
"""

from __future__ import annotations

from taskvine_core.constants import (
    VINE_CACHE_LEVEL_TASK,
    VINE_FAILURE_ONLY,
    VINE_RESULT_FORSAKEN,
    VINE_RESULT_MAX_END_TIME,
    VINE_RESULT_MAX_WALL_TIME,
    VINE_RESULT_SANDBOX_EXHAUSTION,
    VINE_RESULT_STDOUT_MISSING,
    VINE_RESULT_SUCCESS,
    VINE_SUCCESS_ONLY,
    VINE_WATCH,
    combine_results,
)
from taskvine_core.errors import SecurityError
from taskvine_core.model.names import check_cache_name, check_sandbox_path
from taskvine_core.model.tasks import KIND_PYTHON, TaskSpec
from taskvine_core.protocol import messages as m
from taskvine_core.resources import ZERO
from taskvine_core.worker import events as e
from taskvine_core.worker.machines import COLLECTING, KILLED, QUEUED, READY, RUNNING, STARTING
from taskvine_core.worker.objects import Objects
from taskvine_core.worker.runs import Run

#: How often running tasks are looked at for limits, watched outputs and memory.
LOOK_INTERVAL_S = 1.0
#: A sandbox is measured at most this often: a scan reads every directory (reference, section 13.6).
DISK_INTERVAL_S = 5.0
#: The memory of all tasks together is looked at at most this often, and that of tasks that run at least so long.
MEMORY_INTERVAL_S = 5.0
MEMORY_AGE_S = 1.0
#: Exit code reported for a task killed at a limit (reference, section 6).
LIMIT_EXIT_CODE = 9
#: How much of a failed mini-task's output is repeated in the reason.
SAID_BYTES = 1000


class Running(Objects):
    """The part of the core that handles orders and events about runs."""

    def _mini_task(self, order: m.MiniTask, now: float) -> None:
        obj = self._begin_object(order.name, order.transfer_id, order.level, order.mode, now)
        if obj is None:
            return
        outputs = (e.OutputOrder(order.name, order.source, order.level, False, order.mode),)
        run = Run(self._next_run, -1, 0, order.spec, ZERO, (), outputs, order.name, obj.serial)
        self._next_run += 1
        problem = _unsafe(order.spec, outputs)
        if problem:
            self._fail_object(obj, m.BLAME_OBJECT, f"cannot make {order.name}: {problem}")
            return
        self._attach_inputs(run)
        self.runs.add(run)

    def _dispatch(self, order: m.Dispatch, now: float) -> None:
        old = self.runs.of_task.get(order.task_id)
        if old is not None:
            if old.attempt == order.attempt:
                return          # said twice: it is already here
            self._kill_run(old)
        spec = order.spec
        levels, inline = order.output_levels, order.want_inline
        outputs = tuple([e.OutputOrder(out.name, out.remote, levels[i] if i < len(levels) else VINE_CACHE_LEVEL_TASK,
                                       out.name in inline) for i, out in enumerate(spec.outputs)])
        run = Run(self._next_run, order.task_id, order.attempt, spec, order.allocation, order.gpus, outputs)
        self._next_run += 1
        if self.life.asked_to_leave == "idle":
            self.life.asked_to_leave = ""
        problem = _unsafe(spec, outputs)
        if not problem and not order.allocation.fits_in(self.settings.total):
            problem = f"its allocation {tuple(order.allocation)} is larger than the worker {tuple(self.settings.total)}"
        if not problem and min(order.allocation) < 0:
            problem = f"its allocation {tuple(order.allocation)} is not complete"
        if problem:
            run.error = problem
            self._answer_failure(run)
        else:
            self._attach_inputs(run)
            self.runs.add(run)

    def _attach_inputs(self, run: Run) -> None:
        """Note who needs what. What is not here yet is on its way: the order to get it may come after this one, when
        all its sources are busy now."""
        for mount in run.spec.inputs:
            obj = self.cache.expect(mount.name, self._now)
            if obj.state != READY:
                run.missing_inputs += 1
            obj.needed_by.add(run.number)

    def _start_ready(self, now: float) -> None:
        if self.fetches.busy:
            self._out.extend(self.fetches.start_ready())
        if self.life.draining or not self.life.connected:
            return
        runs = self.runs
        while (run := runs.next_to_start()) is not None:
            runs.move(run, "start")
            runs.hold(run)
            for mount in run.spec.inputs:
                self.cache.objects[mount.name].last_used = now
            self._out.append(e.StartRun(run.number, run.spec, run.allocation, run.gpus, bool(run.makes)))

    def _on_started(self, event: e.Started, now: float) -> None:
        run = self.runs.runs[event.run]
        self.runs.move(run, "started")
        run.started_at = now
        run.disk_asked_at = now
        if self._look_at > now + LOOK_INTERVAL_S:
            self._look_at = now + LOOK_INTERVAL_S

    def _on_start_failed(self, event: e.StartFailed, now: float) -> None:
        run = self.runs.runs[event.run]
        killed = run.state == KILLED
        self.runs.move(run, "failed")
        for name in event.lost:
            obj = self.cache.get(name)
            if obj is not None and obj.state == READY:
                self._lose(obj, event.reason)
        if not killed:
            run.error = event.reason
            self._answer_failure(run)
        self._end(run)

    def _refuse(self, run: Run, reason: str) -> None:
        """A queued run cannot start any more."""
        self.runs.move(run, "refuse")
        run.error = reason
        self._answer_failure(run)
        self._end(run)

    def _answer_failure(self, run: Run) -> None:
        """Say that a run never ran: a task is forsaken, a mini-task's object invalid."""
        if run.makes:
            obj = self.cache.get(run.makes)
            if obj is not None and obj.serial == run.serial:
                self._fail_object(obj, m.BLAME_OBJECT, f"the mini-task could not run: {run.error}")
            return
        self._send(m.TaskDone(run.task_id, run.attempt, VINE_RESULT_FORSAKEN, -1, b"", 0, "", (), (), self._now,
                              self._now, m.NOT_MEASURED, run.error))

    def _end(self, run: Run) -> None:
        """Forget a run that is DONE."""
        self.cache.release([mount.name for mount in run.spec.inputs], run.number)
        self.runs.forget(run)
        self._note_idle()

    def _on_exited(self, event: e.Exited, now: float) -> None:
        run = self.runs.runs[event.run]
        killed = run.state == KILLED
        self.runs.move(run, "exited")
        self.runs.unhold(run)
        if killed:
            self._out.append(e.DropRun(run.number))
            self._end(run)
            return
        run.ended_at = now
        run.cpu_s = event.cpu_s
        run.memory_mb = max(run.memory_mb, event.memory_mb)
        run.exit_code = LIMIT_EXIT_CODE if run.result else event.exit_code
        if run.result == VINE_RESULT_FORSAKEN:
            run.exit_code = -1
        if event.error:
            run.result, run.exit_code, run.error = VINE_RESULT_FORSAKEN, -1, event.error
        stdout_name = f"stdout-rnd-{self.settings.tag}-{run.number}"
        self._out.append(e.Collect(run.number, self._wanted_outputs(run), stdout_name, self.max_stdout_bytes))

    def _wanted_outputs(self, run: Run) -> tuple[e.OutputOrder, ...]:
        """Outputs to take: by success or failure; an attempt killed at a limit leaves no temps (they are partial)."""
        if run.makes or not run.outputs:
            return run.outputs
        if run.result == VINE_RESULT_FORSAKEN:
            return ()
        good = run.exit_code == 0 and run.result == VINE_RESULT_SUCCESS
        unwanted = VINE_FAILURE_ONLY if good else VINE_SUCCESS_ONLY
        flags = [out.flags for out in run.spec.outputs]
        return tuple([out for out, flag in zip(run.outputs, flags, strict=True)
                      if not flag & unwanted and not (run.result and out.name.startswith("temp-"))])

    def _on_collected(self, event: e.Collected, now: float) -> None:
        run = self.runs.runs[event.run]
        killed = run.state == KILLED
        self.runs.move(run, "collected")
        if killed:
            self._drop_outputs(event)
        elif run.makes:
            self._finish_mini(run, event, now)
        else:
            self._finish_task(run, event, now)
        self._end(run)

    def _drop_outputs(self, event: e.Collected) -> None:
        names = [out.name for out in event.outputs] + ([event.stdout_name] if event.stdout_name else [])
        orphans = tuple(name for name in names if (obj := self.cache.get(name)) is None or obj.state != READY)
        if orphans:
            self._out.append(e.RemoveObjects(orphans))

    def _finish_task(self, run: Run, event: e.Collected, now: float) -> None:
        orders = {order.name: order for order in run.outputs}
        for out in event.outputs:
            order = orders[out.name]
            if out.inline is not None and not order.kept:
                if self.cache.get(out.name) is None:
                    continue
                self._out.append(e.StoreInline(out.name, order.level, out.mode, out.sha256, out.inline, False))
            self._object_here(out.name, order.level, out.size_bytes, out.sha256, now)
        if event.stdout_name:
            self._object_here(event.stdout_name, VINE_CACHE_LEVEL_TASK, event.stdout_bytes, b"", now)
        if event.stdout_cut:
            run.result = combine_results(run.result, VINE_RESULT_STDOUT_MISSING)
        measured = m.Measured(run.cpu_s, run.memory_mb, run.disk_mb, -1, -1, run.processes)
        self._send(m.TaskDone(run.task_id, run.attempt, run.result, run.exit_code, event.stdout, event.stdout_bytes,
                              event.stdout_name, event.outputs, event.missing, run.started_at, run.ended_at, measured,
                              run.error or event.error))
        if event.outputs or event.stdout_name:
            self._shrink_after_output(now)

    def _finish_mini(self, run: Run, event: e.Collected, now: float) -> None:
        obj = self.cache.get(run.makes)
        if event.stdout_name:
            self._out.append(e.RemoveObjects((event.stdout_name,)))
        if obj is None or obj.serial != run.serial:
            self._drop_outputs(event._replace(stdout_name=""))
            return
        if run.exit_code != 0 or not event.outputs:
            self._drop_outputs(event._replace(stdout_name=""))
            said = event.stdout[-SAID_BYTES:].decode("utf-8", "replace").strip()
            why = run.error or event.error or f"exit code {run.exit_code}, no output {run.outputs[0].remote!r}"
            self._fail_object(obj, m.BLAME_OBJECT, f"the mini-task failed: {why}: {said}")
            return
        out = event.outputs[0]
        self.cache.finish(obj, "arrived", out.size_bytes, out.sha256, now)
        self._send(m.CacheUpdate(obj.name, obj.transfer_id, out.size_bytes, out.sha256, run.started_at,
                                 run.ended_at - run.started_at))
        self._tell_waiting(obj)
        self._shrink_after_output(now)

    def _kill(self, order: m.Kill, now: float) -> None:
        for task_id in order.task_ids:
            run = self.runs.of_task.get(task_id)
            if run is not None:
                self._kill_run(run)
        self._note_idle()

    def _kill_run(self, run: Run) -> None:
        """End a run in silence; its allocation is free when its processes are dead."""
        if run.state == KILLED:
            return
        was = run.state
        self.runs.move(run, "kill")
        if was == QUEUED:
            self._end(run)
            return
        self.runs.unname(run)
        if was in (STARTING, RUNNING):
            self._out.append(e.KillRun(run.number))

    def _recall(self, order: m.Recall, now: float) -> None:
        back = []
        for task_id in order.task_ids:
            run = self.runs.of_task.get(task_id)
            if run is not None and run.state == QUEUED:
                self.runs.move(run, "recall")
                self._end(run)
                back.append(task_id)
        self._send(m.Recalled(tuple(back)))
        self._note_idle()

    def _look_after(self, run: Run, now: float) -> None:
        spec = run.spec
        if spec.time_max_s and now - run.started_at > spec.time_max_s:
            return self._stop_at_limit(run, VINE_RESULT_MAX_WALL_TIME, f"ran longer than {spec.time_max_s:g} s")
        if spec.time_end_s and now > spec.time_end_s:
            return self._stop_at_limit(run, VINE_RESULT_MAX_END_TIME, "its end time passed")
        self._out.append(e.MeasureMemory(run.number))
        if now - run.disk_asked_at >= DISK_INTERVAL_S and run.disk_asked_at >= 0:
            run.disk_asked_at = -1.0      # one scan at a time: the next is timed from its answer
            self._out.append(e.MeasureDisk(run.number))
        for mount in spec.outputs:
            if mount.flags & VINE_WATCH:
                if run.watched is None:
                    run.watched = {}
                offset = run.watched.setdefault(mount.name, 0)
                if offset >= 0:
                    self._out.append(e.ReadWatched(run.number, mount.name, mount.remote, offset))

    def _stop_at_limit(self, run: Run, result: int, why: str) -> None:
        if not run.result:
            run.result, run.error = result, why
            self._out.append(e.KillRun(run.number))

    def _on_disk(self, event: e.DiskMeasured, now: float) -> None:
        run = self.runs.runs.get(event.run)
        if run is None or run.state != RUNNING:
            return
        run.disk_asked_at = now
        run.disk_mb = max(run.disk_mb, event.disk_mb)
        if run.allocation.disk_mb > 0 and event.disk_mb > run.allocation.disk_mb:
            self._stop_at_limit(run, VINE_RESULT_SANDBOX_EXHAUSTION,
                                f"its sandbox holds {event.disk_mb} MB, allocated were {run.allocation.disk_mb} MB")

    def _on_memory(self, event: e.MemoryMeasured, now: float) -> None:
        run = self.runs.runs.get(event.run)
        if run is not None:
            run.memory_now_mb = event.memory_mb
            run.memory_mb = max(run.memory_mb, event.memory_mb)
            run.processes = max(run.processes, event.processes)

    def _look_after_memory(self, now: float) -> None:
        """Is all that runs here larger than what the worker offers? The sum counts shared pages more than once, so it
        is only a reason to measure exactly."""
        if now < self._memory_at:
            return
        old = [run for run in self.runs.active.values() if run.state == RUNNING and not run.result
               and now - run.started_at >= MEMORY_AGE_S]
        if sum(run.memory_now_mb for run in old) > self.settings.total.memory_mb:
            self._memory_at = now + MEMORY_INTERVAL_S
            self._out.append(e.MeasureShares(tuple([run.number for run in old])))

    def _on_shares(self, event: e.SharesMeasured, now: float) -> None:
        """Give back the task that is furthest above its own allocation before the machine ends just any process.

        Nobody asked for that task to be watched, so it did not exhaust a limit: it may run again where there is more.
        """
        total = sum(mb for _, mb in event.shares)
        offered = self.settings.total.memory_mb
        running = [(mb - run.allocation.memory_mb, mb, run) for number, mb in event.shares
                   if (run := self.runs.runs.get(number)) is not None and run.state == RUNNING and not run.result]
        if total <= offered or not running:
            return
        _, mb, run = max(running, key=lambda one: one[0])
        self._stop_at_limit(run, VINE_RESULT_FORSAKEN,
                            f"the worker's tasks use {total} MB of memory together, it offers {offered} MB: this one "
                            f"was ended because it is furthest above its allocation, {mb} MB of "
                            f"{run.allocation.memory_mb} MB; set_memory() with what it needs")

    def _on_watch_read(self, event: e.WatchRead, now: float) -> None:
        run = self.runs.runs.get(event.run)
        if run is None or run.state not in (RUNNING, COLLECTING) or run.watched is None:
            return
        if event.data and self.life.connected:
            self._send(m.WatchData(run.task_id, run.attempt, event.name, event.offset, event.data))
        run.watched[event.name] = -1 if event.ended else event.offset + len(event.data)


def _unsafe(spec: TaskSpec, outputs: tuple[e.OutputOrder, ...]) -> str:
    """Why a task's names must not be used here, or ""."""
    try:
        for mount in spec.inputs:
            check_cache_name(mount.name)
            if mount.remote:
                check_sandbox_path(mount.remote)
        for out in outputs:
            check_cache_name(out.name)
            check_sandbox_path(out.remote)
        if spec.kind == KIND_PYTHON and spec.function:
            check_cache_name(spec.function)
        for name in spec.preload:
            if not all(part.isidentifier() for part in name.split(".")):
                return f"{name!r} is not the name of a module"
    except SecurityError as error:
        return str(error)
    return ""

"""Categories of tasks: limits, allocation modes, what was learned, and what to do after an exhaustion.

Owns reference sections 10.4 and 10.5 and point 4 of 12.1. Must not know task objects, workers or the clock: it is
told what an attempt used and what the largest connected worker offers, and answers with limits and decisions.

The label of an attempt (FIRST, MAX) is the flag ``exhausted``: False for FIRST. All limits depend on the arguments and
on ``version`` only (in bucketing modes on the task id too), so callers may remember answers until ``version`` changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal

from taskvine_core.constants import (
    ALLOCATION_MODE_NAMES,
    VINE_ALLOCATION_MODE_FIXED,
    VINE_ALLOCATION_MODE_MAX,
)
from taskvine_core.errors import UsageError
from taskvine_core.manager.bucketing import BUCKETING_MODES, Bucketing
from taskvine_core.manager.learning import LEARNING_MODES, PeakRecords
from taskvine_core.manager.limits import LIMIT_KEYS, NO_LIMITS, RESOURCE_KEYS, check_resource_key, update_limits
from taskvine_core.manager.stats import CategoryStats
from taskvine_core.manager.summaries import read_summaries
from taskvine_core.manager.tuning import OFF, Tuning
from taskvine_core.resources import NOTHING_SET, UNSET, Resources

if TYPE_CHECKING:
    from random import Random

DEFAULT_CATEGORY = "default"
NO_LIMIT = -1

Decision = Literal["retry max", "fail"]
#: Run the task again, labelled MAX.
RETRY_MAX: Final = "retry max"
#: Return the task to the program with the result it has.
FAIL: Final = "fail"

#: Taken to have run out when no measurement tells: cores and gpus cannot be overdrawn without being measured.
_SUSPECTED = (False, True, True, False)


class Category:
    """One category. ``running`` and ``stats`` are kept by the caller; change everything else through the methods."""

    __slots__ = ("_bucketing", "_completions", "_first", "_good_s", "_guess_open", "_learns", "_rng", "_since_rise",
                 "_tuning", "autolabel", "done", "fast_abort", "first_allocation_guess", "max", "max_concurrent", "min",
                 "mode", "name", "records", "running", "sandbox_min_disk_mb", "stats", "steady", "version")

    def __init__(self, name: str, tuning: Tuning, rng: Random) -> None:
        self.name = name
        self.mode = VINE_ALLOCATION_MODE_FIXED
        self.max = NO_LIMITS
        self.min = NO_LIMITS
        self.first_allocation_guess = NOTHING_SET
        self.autolabel = dict.fromkeys(LIMIT_KEYS, True)
        self.max_concurrent = NO_LIMIT
        #: >= 1: multiplier of 12.5; 0: off; OFF (-1): that of the default category.
        self.fast_abort = OFF
        self.sandbox_min_disk_mb = UNSET
        self.running = 0
        self.done = 0
        self.stats = CategoryStats()
        self.records = PeakRecords()
        #: As many completions as a recomputation takes have passed since the largest peak last rose.
        self.steady = False
        self.version = 0
        self._tuning = tuning
        self._rng = rng
        self._bucketing: Bucketing | None = None
        self._learns = False
        self._first = NOTHING_SET
        self._guess_open = True
        self._completions = 0
        self._since_rise = 0
        self._good_s = 0.0

    # ------------------------------------------------------------------ settings

    def set_mode(self, mode: int) -> None:
        """Change the allocation mode; what was measured so far is kept and counts for the new mode."""
        self.mode = mode
        self._learns = mode in LEARNING_MODES
        self._bucketing = None
        if mode in BUCKETING_MODES:
            self._bucketing = Bucketing(mode, self._rng, [h.counts() for h in self.records.histograms])
        self._relearn(None)
        self.version += 1

    def set_max(self, description: Mapping[str, float] | None) -> None:
        """Explicit maximum; see ``update_limits``."""
        self.max = update_limits(self.max, description, f"maximum resources of category {self.name!r}")
        self.version += 1

    def set_min(self, description: Mapping[str, float] | None) -> None:
        """Explicit minimum; see ``update_limits``."""
        self.min = update_limits(self.min, description, f"minimum resources of category {self.name!r}")
        self.version += 1

    def set_first_guess(self, description: Mapping[str, float] | None) -> None:
        """What to try before anything was learned."""
        what = f"first allocation of category {self.name!r}"
        guess = update_limits(NO_LIMITS, description, what).resources
        self.first_allocation_guess = self.first_allocation_guess.overridden_by(guess)
        self.version += 1

    def set_autolabel(self, resource: str, on: bool) -> None:
        """Whether this resource may be learned; off: only explicit values count."""
        self.autolabel[check_resource_key(resource, f"autolabel of category {self.name!r}")] = bool(on)
        self._relearn(None)
        self.version += 1

    # ------------------------------------------------------------------ limits

    def effective_max(self, request: Resources, task_id: int, exhausted: bool,
                      largest_worker: Resources | None = None) -> Resources:
        """The maximum of section 10.4, -1 where nothing says.

        Args:
            request: explicit values of the task.
            task_id: the task; matters in bucketing modes only.
            exhausted: its label is MAX.
            largest_worker: largest value of each resource of any worker. Values that were *learned* are not taken
                above it, as they would keep the task from running anywhere.
        """
        if self._bucketing is not None:
            learned = self._labelled(self._bucketing.predict(task_id))
            learned = self._clipped(learned, largest_worker)
        elif self._learns and self.steady and self.mode != VINE_ALLOCATION_MODE_MAX:
            learned = self._labelled(self.records.seen).at_least(self._first)
            learned = learned if exhausted else self._clipped(learned, largest_worker)
        else:
            learned = NOTHING_SET
        result = self.max.resources if learned is NOTHING_SET else learned.overridden_by(self.max.resources)
        if self._learns and not exhausted:
            result = result.overridden_by(self._clipped(self.first_allocation(), largest_worker))
        return result if request == NOTHING_SET else result.overridden_by(request)

    def effective_min(self, request: Resources, task_id: int, exhausted: bool,
                      largest_worker: Resources | None = None) -> Resources:
        """The minimum of section 10.4, -1 where nothing says; arguments as for ``effective_max``.

        For label FIRST a value that was learned and exceeds the largest worker is replaced by that worker's: one
        outlier must not keep new tasks from running. Explicit values stand: such tasks wait for a larger worker.
        """
        low = self._minimum(request, task_id, exhausted, largest_worker)
        if exhausted or largest_worker is None or low.fits_in(largest_worker):
            return low
        open_values = Resources(*(
            value if own < 0 and limit < 0 else UNSET
            for own, limit, value in zip(request, self.max.resources, low, strict=True)))
        clipped = Resources(*(
            own if value == clip else clip
            for own, value, clip in zip(request, open_values, self._clipped(open_values, largest_worker), strict=True)))
        return low if clipped == request else self._minimum(clipped, task_id, exhausted, largest_worker)

    def first_allocation(self) -> Resources:
        """First allocation in force in the learning modes: learned, or the guess until something was learned."""
        if self.steady:
            return self._first
        return self.first_allocation_guess if self._guess_open else NOTHING_SET

    def learned(self, exhausted: bool) -> bool:
        """Does ``effective_max`` rest on a learned first allocation? To be given to ``allocate``."""
        return self._learns and self.steady and not exhausted

    def _minimum(self, request: Resources, task_id: int, exhausted: bool, largest: Resources | None) -> Resources:
        low = self.effective_max(request, task_id, exhausted, largest)
        if self.mode != VINE_ALLOCATION_MODE_FIXED:
            low = self._labelled(self.records.seen).overridden_by(low)
        if self.min is not NO_LIMITS:
            low = low.at_least(self.min.resources)
        if request.disk_mb < 0 and self.sandbox_min_disk_mb > low.disk_mb and self.mode == VINE_ALLOCATION_MODE_FIXED:
            low = low._replace(disk_mb=self.sandbox_min_disk_mb)
        return low

    def _labelled(self, values: Resources) -> Resources:
        """``values`` without the resources that may not be learned."""
        if all(self.autolabel.values()):
            return values
        return Resources(*(
            value if self.autolabel[key] else UNSET for key, value in zip(RESOURCE_KEYS, values, strict=True)))

    def _roof(self, largest: Resources) -> Resources:
        """What stands in for a value no worker has: of the disk the part that is for sandboxes, the rest is cache."""
        return largest._replace(disk_mb=int(largest.disk_mb * self._tuning.disk_proportion_available_to_task))

    def _clipped(self, learned: Resources, largest: Resources | None) -> Resources:
        if largest is None or learned.fits_in(largest):
            return learned
        return Resources(*(
            roof if 0 < most < value else value
            for value, most, roof in zip(learned, largest, self._roof(largest), strict=True)))

    # ------------------------------------------------------------------ learning

    def record(self, task_id: int, measured: Resources, wall_s: float, *, transfer_s: float = 0.0,
               largest_worker: Resources | None = None) -> bool:
        """Learn from an attempt that ended normally.

        Args:
            task_id: the task; its prediction is dropped.
            measured: peaks, -1 for what was not measured. Never the allocation: it would teach what was given.
            wall_s: run time.
            transfer_s: time to send its inputs and receive its outputs.
            largest_worker: first allocations are not taken above it.

        Returns:
            True when limits changed, so that whatever was derived from them must be computed again.
        """
        self.done += 1
        self._good_s += wall_s + transfer_s
        before = self.version
        self.records.add(measured, wall_s)
        rose = self._raise_seen(measured)
        if self._bucketing is not None:
            self._bucketing.record(task_id, measured)
        self._completions += 1
        if not rose:
            self._since_rise += 1
        every = self._tuning.category_steady_n_tasks
        if self._completions % every == 0:
            self._relearn(largest_worker)
        if not self.steady and self._since_rise >= every:
            self.steady, self._guess_open = True, False
            self._changed()
        return self.version != before

    def adopt(self, largest_worker: Resources | None) -> None:
        """Take what ``records`` holds as known: the program vouches for it, so it counts as a steady state."""
        self._guess_open = False
        self.steady = True
        self._since_rise = self._tuning.category_steady_n_tasks
        self.set_mode(self.mode)
        self._relearn(largest_worker)

    def forget(self, task_id: int) -> None:
        """The task left without completing (cancelled, failed): drop its prediction."""
        if self._bucketing is not None:
            self._bucketing.forget(task_id)

    def mean_good_s(self) -> float:
        """Mean run and transfer time of the good attempts, seconds; 0 before the first."""
        return self._good_s / self.done if self.done else 0.0

    def _changed(self) -> None:
        """Something learned changed; in mode fixed nobody uses it."""
        if self.mode != VINE_ALLOCATION_MODE_FIXED:
            self.version += 1

    def _raise_seen(self, peaks: Resources) -> bool:
        """A new largest peak makes the first allocation obsolete until a new steady state."""
        if not self.records.raise_seen(peaks):
            return False
        self._since_rise = 0
        self.steady = False
        self._changed()
        return True

    def _relearn(self, largest: Resources | None) -> None:
        if not self._learns:
            return
        bound = Resources(*(
            limit if limit >= 0 else most or UNSET
            for limit, most in zip(self.max.resources, largest or NOTHING_SET, strict=True)))
        first = self._labelled(self.records.first_allocation(self.mode, bound))
        if first != self._first:
            self._first = first
            self.version += 1

    # ------------------------------------------------------------------ exhaustion

    def on_exhaustion(self, request: Resources, measured: Resources, *, task_id: int = 0,
                      allocated: Resources = NOTHING_SET, exhausted: bool = False,
                      largest_worker: Resources | None = None) -> Decision:
        """What becomes of a task whose attempt ran out of something.

        Args:
            request: explicit values of the task.
            measured: peaks of the attempt, -1 where not measured.
            task_id: the task.
            allocated: what the attempt was given.
            exhausted: the attempt had label MAX already.
            largest_worker: largest value of each resource of any worker, None when there is no worker.
        """
        explicit = self.max.resources.overridden_by(request)
        if self.mode == VINE_ALLOCATION_MODE_FIXED:
            return FAIL
        if any(0 <= limit < peak for limit, peak in zip(explicit, measured, strict=True)):
            return FAIL
        exceeded = tuple(peak > had for peak, had in zip(measured, allocated, strict=True))
        if allocated == NOTHING_SET or not any(exceeded):
            exceeded = _SUSPECTED
        rose = self._raise_seen(measured)
        bound = exhausted or self._bucketing is not None
        if bound and largest_worker is not None and self._had_all(exceeded, allocated, largest_worker):
            return FAIL
        if self._bucketing is not None:
            self._bucketing.exhausted(task_id, allocated, measured, exceeded)
            return RETRY_MAX
        # MAX is given the whole worker or the largest peak seen. One that is not beyond all seen before would be
        # given the same again, for ever.
        return FAIL if exhausted and not rose else RETRY_MAX

    def on_sandbox_exhaustion(self, allocated_disk_mb: int, grow_factor: float, request: Resources, *,
                              task_id: int = 0, exhausted: bool = False,
                              largest_worker: Resources | None = None) -> Decision:
        """What becomes of a task whose sandbox outgrew its disk: raise the category's sandbox minimum and run again,
        unless an explicit maximum of task or category forbids it, or no worker has more to give.

        Args:
            allocated_disk_mb: what the attempt was given.
            grow_factor: tune sandbox-grow-factor.
            request, task_id, exhausted, largest_worker: as for ``on_exhaustion``.
        """
        limit = self.max.resources.overridden_by(request).disk_mb
        grown = math.ceil(allocated_disk_mb * grow_factor)
        if 0 <= limit < grown:
            return FAIL
        if largest_worker is not None:
            roof = self._roof(largest_worker).disk_mb
            if 0 < roof <= allocated_disk_mb:
                return FAIL
            grown = min(grown, roof) if roof > 0 else grown
        if grown > self.sandbox_min_disk_mb:
            self.sandbox_min_disk_mb = grown
            self.version += 1
        if self.mode == VINE_ALLOCATION_MODE_FIXED:
            return RETRY_MAX
        allocated = Resources(disk_mb=allocated_disk_mb)
        # How much it wanted is not known: counting what it gets next as seen makes the following attempt get it.
        return self.on_exhaustion(request, Resources(disk_mb=grown), task_id=task_id, allocated=allocated,
                                  exhausted=exhausted, largest_worker=largest_worker)

    def _had_all(self, exceeded: tuple[bool, ...], allocated: Resources, largest: Resources) -> bool:
        """Did the attempt already have as much of everything it ran out of as any worker can give?"""
        return all(
            had >= most for ran_out, had, most in zip(exceeded, allocated, self._roof(largest), strict=True) if ran_out)


class Categories:
    """All categories by name. A new one starts with mode and limits of "default".

    Args:
        tuning: the manager's, read at every use.
        rng: for the predictions of the bucketing modes.
    """

    __slots__ = ("_by_name", "_rng", "_tuning")

    def __init__(self, tuning: Tuning, rng: Random) -> None:
        self._tuning = tuning
        self._rng = rng
        self._by_name = {DEFAULT_CATEGORY: Category(DEFAULT_CATEGORY, tuning, rng)}

    def __iter__(self) -> Iterator[Category]:
        return iter(self._by_name.values())

    def get(self, name: str | None) -> Category:
        """The category of that name (None: "default"), made when new."""
        found = self._by_name.get(name or DEFAULT_CATEGORY)
        if found is not None:
            return found
        default = self._by_name[DEFAULT_CATEGORY]
        made = self._by_name[name or DEFAULT_CATEGORY] = Category(name or DEFAULT_CATEGORY, self._tuning, self._rng)
        made.max, made.min = default.max, default.min
        made.first_allocation_guess = default.first_allocation_guess
        made.autolabel = dict(default.autolabel)
        made.set_mode(default.mode)
        return made

    def set_max(self, name: str | None, description: Mapping[str, float] | None) -> None:
        """Explicit maximum of a category; None: of those made from now on."""
        self.get(name).set_max(description)

    def set_min(self, name: str | None, description: Mapping[str, float] | None) -> None:
        """Explicit minimum of a category; None: of those made from now on."""
        self.get(name).set_min(description)

    def set_first_guess(self, name: str | None, description: Mapping[str, float] | None) -> None:
        """First allocation to try."""
        self.get(name).set_first_guess(description)

    def set_mode(self, name: str | None, mode: str | int) -> bool:
        """Set the allocation mode; False when the number is not one.

        Raises:
            UsageError: unknown name of a mode.
        """
        number = parse_mode(mode)
        if number is None:
            return False
        self.get(name).set_mode(number)
        return True

    def set_autolabel(self, name: str | None, resource: str, on: bool) -> None:
        """Let one resource be learned, or not."""
        self.get(name).set_autolabel(resource, on)

    def set_max_concurrent(self, name: str | None, most: int) -> None:
        """At most so many tasks of the category run at once; negative: no limit."""
        self.get(name).max_concurrent = max(NO_LIMIT, int(most))

    def set_fast_abort(self, name: str | None, multiplier: float) -> None:
        """Multiplier of section 12.5: >= 1 on, 0 off, anything else: that of the default category."""
        self.get(name).fast_abort = multiplier if multiplier >= 1 or multiplier == 0 else OFF

    def slow_limits(self, min_done: int) -> list[tuple[str, float, float]]:
        """(name, mean seconds of a good task, multiplier) where slow workers are looked for and enough is known."""
        default = self._by_name[DEFAULT_CATEGORY].fast_abort
        found = []
        for category in self:
            multiplier = default if category.fast_abort == OFF else category.fast_abort
            if multiplier >= 1 and category.done >= min_done:
                found.append((category.name, category.mean_good_s(), multiplier))
        return found

    def invalidate(self) -> None:
        """Raise all versions: a tuning parameter changed that allocations depend on."""
        for category in self:
            category.version += 1

    def initialize(self, text: str, largest_worker: Mapping[str, float] | None) -> int:
        """Seed the statistics from the content of a file of resource summaries; returns how many were used.

        Args:
            text: JSON objects one after the other (reference, section 22.2).
            largest_worker: description of the largest worker to expect.

        Raises:
            UsageError: text or description cannot be read.
        """
        largest = update_limits(NO_LIMITS, largest_worker, "largest worker of initialize_categories").resources
        bound = None if largest.unset else largest
        touched: dict[str, Category] = {}
        count = 0
        for name, peaks, wall_s in read_summaries(text):
            category = touched[name] = self.get(name)
            category.records.add(peaks, wall_s)
            category.records.raise_seen(peaks)
            count += 1
        for category in touched.values():
            category.adopt(bound)
        return count


def parse_mode(mode: str | int) -> int | None:
    """Number of an allocation mode given by name (any case, "_" or " ") or number; None for an unknown number.

    Raises:
        UsageError: unknown name.
    """
    if isinstance(mode, str):
        number = ALLOCATION_MODE_NAMES.get(mode.strip().lower().replace("_", " "))
        if number is None:
            raise UsageError(f"unknown allocation mode {mode!r}", hint="known are " + ", ".join(ALLOCATION_MODE_NAMES))
        return number
    return mode if mode in ALLOCATION_MODE_NAMES.values() else None

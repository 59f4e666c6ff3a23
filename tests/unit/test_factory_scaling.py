"""Packing, limits, the hysteresis window, retirement and health: pure rules, compared with brute force where small."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from taskvine_core.errors import StateError
from taskvine_core.resources import Resources
from vine_factory import defaults, limits
from vine_factory.demand import Group, WorkerFacts
from vine_factory.explain import Decision, sentence
from vine_factory.health import BUDGET, Fault, PoolHealth, backoff_s
from vine_factory.hosts import Hosts, excluded_s
from vine_factory.jobs import TABLE, Fact, Job, JobState, Listed, advance
from vine_factory.packing import EPSILON, load, pack, whole, work_s
from vine_factory.retire import RecentHigh, choose_idle, choose_queued

CALM = limits.Situation(wanted=5, active=5, leaving=0, waiting=0, minimum=0, maximum=100, per_cycle=0, unknown="",
                        recent_high=0, window_s=60, health_new=None, health_reason="")


def target(**fields: object) -> int:
    return limits.apply(CALM._replace(**fields))[0]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ packing


def group(tasks: float, *parts: float, seconds: float | None = None) -> Group:
    return Group("c", tasks, seconds, parts, Resources(1, 1, 1, 0))


def served(groups: list[Group], workers: tuple[int, ...]) -> tuple[int, list[int]]:
    """The most tasks that whole workers can run at once, and how many of each kind, by trying everything."""
    best = (0, [0] * len(groups))
    rows = [list(itertools.product(range(int(g.tasks) + 1), repeat=len(g.parts))) for g in groups]
    for choice in itertools.product(*rows):
        if any(sum(row) > g.tasks or any(n and not part for n, part in zip(row, g.parts, strict=True))
               for row, g in zip(choice, groups, strict=True)):
            continue
        loads = [sum(row[p] * g.parts[p] for row, g in zip(choice, groups, strict=True)) for p in range(len(workers))]
        if all(load <= count + EPSILON for load, count in zip(loads, workers, strict=True)):
            total = sum(map(sum, choice))
            if total > best[0]:
                best = (total, [sum(row) for row in choice])
    return best


def packed(groups: list[Group], room: tuple[int, ...]) -> tuple[int, ...]:
    rows = pack(groups, room)
    return tuple(whole(load(groups, rows, pool)) for pool in range(len(room)))


@pytest.mark.parametrize("seed", range(150))
def test_packing_serves_as_many_tasks_as_trying_everything_with_at_most_one_worker_more(seed: int) -> None:
    rng = random.Random(seed)
    groups = [group(rng.randrange(1, 4), rng.choice([0, 0.25, 0.5, 1]), rng.choice([0, 0.5, 1])) for _ in range(2)]
    room = (rng.randrange(4), rng.randrange(1, 4))
    wanted = packed(groups, room)
    within = tuple(map(min, wanted, room))
    assert served(groups, within)[0] == served(groups, room)[0], (groups, room, wanted)
    least = min(sum(counts) for counts in itertools.product(*(range(most + 1) for most in room))
                if served(groups, counts)[0] == served(groups, room)[0])
    assert sum(within) <= least + 1, (groups, room, wanted)


def test_tasks_that_run_in_one_pool_only_are_not_lost_behind_those_that_run_anywhere() -> None:
    anywhere, gpu = group(100, 1, 1), group(10, 0, 1)
    assert packed([anywhere, gpu], (100, 20)) == (100, 10)
    assert packed([anywhere, gpu], (50, 60)) == (50, 60)


def test_earlier_pools_are_filled_first_and_only_the_last_exceeds_its_room() -> None:
    assert packed([group(20, 0.5, 0.25)], (4, 100)) == (4, 3)
    assert packed([group(20, 0.5, 0.25)], (4, 1)) == (4, 3)
    assert packed([group(20, 0.5, 0)], (4, 9)) == (10, 0)


def test_a_task_that_fits_nowhere_asks_for_no_worker() -> None:
    assert packed([group(7, 0, 0), group(3, 1, 0)], (10, 10)) == (3, 0)


def test_tenths_of_workers_add_up_to_whole_ones() -> None:
    assert packed([group(10, 0.3333), group(1, 0.1)], (100,)) == (4,)
    assert packed([group(9, 0.3333)], (100,)) == (3,)


def test_the_work_is_known_only_when_every_kinds_duration_is() -> None:
    groups = [group(4, 0.5, seconds=10), group(2, 1, seconds=3)]
    assert work_s(groups, pack(groups, (9,)), 0) == 26
    groups.append(group(1, 1))
    assert work_s(groups, pack(groups, (9,)), 0) is None


# ------------------------------------------------------------------------------------------------- limits


def test_nothing_to_say_leaves_the_number_and_no_step() -> None:
    assert limits.apply(CALM) == (5, ())


def test_the_order_of_the_limits_is_this() -> None:
    assert [name for name, _ in limits.CHAIN] == ["min", "max", "drained", "unknown", "hysteresis", "disruption",
                                                  "paused", "worthwhile", "budget", "health", "max-idle", "per-cycle"]


def test_max_beats_min() -> None:
    assert target(wanted=0, minimum=9, maximum=7, active=0) == 7


def test_leaving_workers_keep_their_places() -> None:
    assert target(wanted=50, maximum=10, leaving=4, active=6) == 6


def test_never_shrink_on_unknown() -> None:
    assert target(wanted=0, active=8, unknown="m does not answer") == 8


def test_unknown_does_not_hinder_growth() -> None:
    assert target(wanted=12, active=8, unknown="m does not answer") == 12


def test_no_shrinking_while_the_window_is_incomplete() -> None:
    assert target(wanted=0, active=8, recent_high=None) == 8


def test_shrinking_stops_at_what_was_needed_lately() -> None:
    assert target(wanted=0, active=8, recent_high=3) == 3


def test_a_tripped_pool_grows_by_what_health_allows() -> None:
    assert target(wanted=20, active=8, health_new=1, health_reason="x") == 9
    assert target(wanted=20, active=8, health_new=0, health_reason="x") == 8


def test_per_cycle_bounds_the_unconnected() -> None:
    assert target(wanted=20, active=8, per_cycle=5, waiting=3) == 10
    assert target(wanted=20, active=8, per_cycle=5, waiting=7) == 8


def test_a_disruption_budget_bounds_what_leaves() -> None:
    assert target(wanted=0, active=8, may_leave=2) == 6
    assert target(wanted=0, active=8, may_leave=0) == 8
    assert target(wanted=9, active=8, may_leave=0) == 9


def test_nothing_is_started_that_comes_when_the_work_is_over() -> None:
    assert target(wanted=20, active=8, worthwhile=11) == 11
    assert target(wanted=20, active=8, worthwhile=0) == 8
    assert target(wanted=20, active=0, worthwhile=0, minimum=3) == 3


def test_a_used_up_budget_starts_nothing_and_keeps_what_works() -> None:
    assert target(wanted=20, active=8, busy=5, affordable=5) == 5
    assert target(wanted=20, active=8, affordable=10) == 10


def test_the_queue_is_bounded_when_the_pool_says_so() -> None:
    assert target(wanted=20, active=8, max_idle=5, queued=3) == 10
    assert target(wanted=20, active=8, max_idle=5, queued=9) == 8


def test_every_limit_that_acts_gives_its_reason_and_they_join_up() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        situation = CALM._replace(
            wanted=rng.randrange(30), active=rng.randrange(30), leaving=rng.randrange(5), waiting=rng.randrange(9),
            minimum=rng.randrange(6), maximum=rng.randrange(1, 20), per_cycle=rng.choice([0, 5]),
            unknown=rng.choice(["", "x"]), recent_high=rng.choice([None, rng.randrange(30)]),
            health_new=rng.choice([None, 0, 1]))
        number, steps = limits.apply(situation)
        before = situation.wanted
        for step in steps:
            assert step.before == before != step.after
            assert step.reason or step.limit == "health"
            before = step.after
        assert before == number
        assert number >= situation.active or not situation.unknown
        assert number <= max(situation.active, situation.maximum - situation.leaving, 0)


def test_the_sentence_has_every_step_and_its_reason() -> None:
    number, steps = limits.apply(CALM._replace(wanted=900, active=400, maximum=500, per_cycle=12, waiting=0))
    text = sentence(Decision("p", (("m:1", 900, True),), 900, 400, 0, number, steps))
    assert "m:1 can use 900" in text
    assert "max: 900 -> 500 because the pool holds at most 500" in text
    assert "per-cycle: 500 -> 412" in text
    assert text.endswith("target 412")


# ----------------------------------------------------------------------------------------- the window, retire


@pytest.mark.parametrize("seed", range(30))
def test_the_window_agrees_with_a_rescan_of_all_readings(seed: int) -> None:
    rng = random.Random(seed)
    window, history, now = RecentHigh(10.0), [], 0.0
    for _ in range(300):
        now += rng.choice([0.1, 1.0, 4.0])
        value = rng.randrange(6)
        window.note(value, now)
        history.append((now, value))
        expected = None
        if now - history[0][0] >= 10.0:  # a reading holds until the next one
            ends = [at for at, _ in history[1:]] + [math.inf]
            expected = max(value for (_, value), end in zip(history, ends, strict=True) if end > now - 10.0)
        assert window.value(now) == expected


def test_something_unknown_starts_the_window_anew() -> None:
    window = RecentHigh(10.0)
    window.note(0, 0.0)
    window.forget()
    window.note(0, 9.0)
    assert window.value(12.0) is None
    assert window.value(19.0) == 0


def connected(name: str, state: str = "idle", sole: int = 0, cache: int = 0, idle_s: float = 1.0) -> Job:
    facts = WorkerFacts("w" + name, name, "h", state, idle_s, int(state == "busy"), cache, sole, Resources(1, 1, 1, 0))
    return Job(name, "p", 0.0, JobState.CONNECTED, workers=(Listed("m:1", facts),))


def test_cheapest_data_leaves_first_and_busy_workers_never() -> None:
    jobs = [connected("sole", sole=5), connected("cache", cache=9), connected("long", idle_s=99), connected("short"),
            connected("busy", "busy"), connected("leaving", "draining")]
    assert [job.intent_id for job in choose_idle(jobs, 9, 0.0, 30.0)] == ["long", "short", "cache", "sole"]
    assert [job.intent_id for job in choose_idle(jobs, 1, 0.0, 30.0)] == ["long"]
    assert choose_idle(jobs, -3, 0.0, 30.0) == []


def test_a_worker_that_was_refused_or_asked_is_left_alone() -> None:
    asked, refused = connected("a"), connected("r")
    asked.retire_asked_at, refused.retire_refused_at = 90.0, 90.0
    assert choose_idle([asked, refused], 9, 100.0, 30.0) == []
    assert choose_idle([asked, refused], 9, 121.0, 30.0) == [refused]


def test_of_the_queue_the_newest_leave_first() -> None:
    jobs = [Job(str(n), "p", float(n), JobState.QUEUED) for n in range(4)] + [Job("r", "p", 9.0, JobState.RUNNING)]
    assert [job.intent_id for job in choose_queued(jobs, 2)] == ["3", "2"]


# ------------------------------------------------------------------------------------------------- health


def test_two_deaths_are_hosts_three_are_the_pool() -> None:
    health = PoolHealth()
    assert [health.fault(Fault.DIED_AT_START, 0.0, "x", 1.0) for _ in range(3)] == [False, False, True]
    assert health.gate(1.0, ())[0] == 0


def test_a_wave_of_deaths_is_one_step_of_backoff() -> None:
    health = PoolHealth()
    for _ in range(100):
        health.fault(Fault.DIED_AT_START, 0.0, "x", 1.0)
    assert health.kinds[Fault.DIED_AT_START].level == 1
    assert health.gate(1.0 + defaults.BACKOFF_FIRST_S, ()) == (1, "100 x died at start: trying with one worker")


def test_only_one_probe_at_a_time_and_a_failed_one_doubles_the_pause() -> None:
    health = PoolHealth()
    health.fault(Fault.REJECTED, 0.0, "no", 1.0)
    assert health.gate(3.0, (2.5,))[0] == 0
    assert health.gate(3.0, (0.5,))[0] == 1     # of before the trip, so no probe
    assert health.fault(Fault.REJECTED, 3.0, "no", 3.0)
    assert health.gate(4.5, ())[0] == 0
    assert health.gate(5.0, ())[0] == 1


def test_each_kind_has_its_own_backoff_and_the_tightest_holds() -> None:
    health = PoolHealth()
    for at in (1.0, 2.0, 3.0, 4.0):
        health.fault(Fault.REJECTED, at, "no account", at)
    for _ in range(3):
        health.fault(Fault.DIED_AT_START, 4.0, "ImportError", 4.0)
    assert health.kinds[Fault.REJECTED].level == 4 and health.kinds[Fault.DIED_AT_START].level == 1
    assert health.gate(5.5, ()) == (0, "4 x submission refused: next try with one worker in 6 s")
    health.accepted(5.5)                        # cures what it disproves and no more
    assert health.gate(5.5, ()) == (1, "3 x died at start: trying with one worker")
    assert health.kinds[Fault.REJECTED].last_words == "no account"


@pytest.mark.parametrize("kind", list(Fault))
def test_every_kind_trips_at_its_own_budget_and_is_cured_by_a_connection(kind: Fault) -> None:
    health = PoolHealth()
    trips = [health.fault(kind, 0.0, "x", 1.0) for _ in range(BUDGET[kind])]
    assert trips == [False] * (BUDGET[kind] - 1) + [True]
    health.connected(0.5)                       # an old worker says nothing about new ones
    assert health.gate(1.0, ())[0] == 0
    health.connected(1.5)
    assert health.gate(1.5, ()) == (None, "")
    assert health.total == {kind: BUDGET[kind]}


def test_faults_are_counted_by_reason_without_the_numbers_of_jobs_and_bounded() -> None:
    health = PoolHealth()
    for job in range(50):
        health.fault(Fault.HELD, 0.0, f"job {job}.0: Transfer input files failure\nmore", 1.0)
    for word in range(100):
        health.fault(Fault.HELD, 0.0, chr(97 + word % 26) * (1 + word // 26), 1.0)
    reasons = health.kinds[Fault.HELD].reasons
    assert reasons["job #.#: Transfer input files failure"] == 50
    assert len(reasons) == defaults.KEPT_REASONS


def test_the_pause_doubles_up_to_its_cap() -> None:
    assert [backoff_s(n) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert backoff_s(500) == defaults.BACKOFF_MAX_S


# -------------------------------------------------------------------------------------------------- hosts


def test_a_host_that_ruins_workers_while_others_do_well_is_avoided_ever_longer() -> None:
    hosts = Hosts()
    hosts.good("fine", 0.0)
    assert [hosts.bad("hole", 0.4, float(at)) for at in range(3)] == [None, None, 2 + defaults.HOST_EXCLUDED_FIRST_S]
    assert hosts.excluded(3.0) == ("hole",)
    again = 2 + defaults.HOST_EXCLUDED_FIRST_S
    assert hosts.excluded(again) == ()
    hosts.good("fine", again)
    assert hosts.bad("hole", 0.4, again) == again + 2 * defaults.HOST_EXCLUDED_FIRST_S  # trust is used up
    assert excluded_s(99) == defaults.HOST_EXCLUDED_MAX_S


def test_when_all_hosts_are_bad_it_is_the_pool() -> None:
    hosts = Hosts()
    assert [hosts.bad(name, 1.0, 0.0) for name in "abcdef"] == [None] * 6
    hosts.good("fine", 1.0)
    assert sum(hosts.bad(name, 1.0, 2.0) is not None for name in "abcdef") == 1  # never more than do well


def test_a_good_worker_clears_its_host_and_old_faults_are_forgotten() -> None:
    hosts = Hosts()
    hosts.good("fine", 0.0)
    assert hosts.bad("h", 0.6, 0.0) is None
    assert hosts.good("h", 1.0) is False
    assert hosts.bad("h", 0.6, 2.0) is None
    hosts.good("fine", defaults.HOST_MEMORY_S + 2)
    assert hosts.bad("h", 0.6, defaults.HOST_MEMORY_S + 3) is None
    assert hosts.bad("h", 0.6, defaults.HOST_MEMORY_S + 4) is not None
    assert hosts.good("h", defaults.HOST_MEMORY_S + 5) is True
    assert hosts.excluded(defaults.HOST_MEMORY_S + 5) == ()


def test_an_exclusion_survives_as_a_row_and_the_book_of_hosts_is_bounded() -> None:
    hosts = Hosts()
    hosts.good("fine", 0.0)
    hosts.bad("hole", 1.0, 0.0)
    again = Hosts(hosts.rows("p", ["hole"]))
    assert again.excluded(1.0) == ("hole",)
    for number in range(defaults.KEPT_HOSTS + 10):
        again.good(f"n{number}", 1.0)
    assert len(again._hosts) <= defaults.KEPT_HOSTS
    assert again.excluded(1.0) == ("hole",)


# --------------------------------------------------------------------------------------- the table of a job


def test_what_the_table_does_not_have_is_an_error() -> None:
    for state in JobState:
        for fact in Fact:
            job = Job("j", "p", 0.0, state)
            if fact in TABLE[state]:
                advance(job, fact)
                assert job.state is TABLE[state][fact]
            else:
                with pytest.raises(StateError):
                    advance(job, fact)


def test_every_state_can_be_reached_and_can_end() -> None:
    reached, edge = {JobState.INTENDED}, [JobState.INTENDED]
    while edge:
        for state in TABLE[edge.pop()].values():
            if state not in reached:
                reached.add(state)
                edge.append(state)
    assert reached == set(JobState)
    assert all(TABLE[state].get(Fact.OVER) is JobState.ENDED for state in JobState if state is not JobState.ENDED)

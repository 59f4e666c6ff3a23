"""A simulated day under several ways to scale: ours beats the published one, and the day itself keeps its books."""

from __future__ import annotations

import json
from collections import deque

import pytest

from taskvine_core.errors import ConfigError
from vine_factory import defaults
from vine_factory.cli import main
from vine_factory.compare import Ours, compare
from vine_factory.dayworld import PERIOD_S, Day, Site
from vine_factory.published import all_there, published
from vine_factory.trace import Work, bursty_day, parse, text

SEEDS = range(1, 6)


@pytest.mark.parametrize("seed", SEEDS)
def test_ours_makes_tasks_wait_half_as_long_as_the_published_one_and_pays_no_more(seed: int) -> None:
    ours, theirs, tuned, best = compare(bursty_day(seed), Site(), seed)
    assert ours.mean_wait_s < theirs.mean_wait_s / 2
    assert ours.core_hours < theirs.core_hours
    assert ours.idle_core_hours < tuned.idle_core_hours / 3
    assert ours.mean_wait_s < tuned.mean_wait_s + PERIOD_S / 2     # which keeps five times as much idle for it
    assert best.mean_wait_s <= ours.mean_wait_s and best.core_hours < ours.core_hours
    assert ours.peak <= Site().maximum


@pytest.mark.parametrize("seed", SEEDS)
def test_managers_that_are_asked_more_often_make_tasks_start_earlier_and_the_batch_system_is_not_asked_more_often(
        seed: int) -> None:
    waits, looks = {}, {}
    for period_s in (PERIOD_S, defaults.MANAGER_PERIOD_S):
        day = Day(bursty_day(seed), Site(), seed)
        ours = Ours(day, period_s)
        totals = day.run(ours.scale, ours.period_s)
        waits[period_s], looks[period_s] = sum(totals.waits_s) / len(totals.waits_s), ours.looks
        assert ours.looks <= totals.makespan_s / PERIOD_S * (1 + defaults.LOOKS_AGAIN) + ours.orders
    assert waits[defaults.MANAGER_PERIOD_S] < 0.95 * waits[PERIOD_S]
    # But for the looks after own submissions, which come in smaller portions.
    assert looks[defaults.MANAGER_PERIOD_S] < 1.2 * looks[PERIOD_S]


def test_the_same_seed_is_the_same_day_and_another_one_is_not() -> None:
    works = bursty_day(7, bursts=5)
    assert compare(works, Site(), 7) == compare(bursty_day(7, bursts=5), Site(), 7)
    assert works != bursty_day(8, bursts=5)


def test_every_task_runs_once_and_what_is_paid_is_what_was_used_and_idle() -> None:
    works = bursty_day(3, bursts=8)
    day = Day(works, Site(), 3)
    totals = day.run(lambda: published(day))
    assert len(totals.waits_s) == len(works) and not day.jobs
    assert totals.busy_core_s == pytest.approx(sum(work.seconds * work.cores for work in works))
    assert totals.core_s >= totals.busy_core_s


def test_who_knows_the_future_makes_nobody_wait_while_there_is_room() -> None:
    works = [Work(10.0 * n, 5.0, 4) for n in range(20)]
    day = Day(works, Site(), 1)
    assert max(day.run(lambda: all_there(day)).waits_s) == 0.0


def test_the_published_one_starts_five_per_cycle_until_they_are_connected() -> None:
    day = Day([], Site(), 1)
    published(day)
    assert len(day.jobs) == 0
    day.waiting = {1: deque([Work(0.0, 1.0, 1)] * 100)}
    published(day)
    published(day)
    assert len(day.jobs) == 5


def test_a_trace_is_read_as_it_was_written_and_a_wrong_line_is_named() -> None:
    works = bursty_day(2, bursts=2)
    lines = text(works).splitlines()
    assert parse(lines, "t") == parse(["# a comment", "", *lines], "t")
    assert len(parse(lines, "t")) == len(works)
    for line in ("1 2", "1 2 0", "-1 2 1", "1 inf 1", "nan 2 1", "1 0 1", "x y z"):
        with pytest.raises(ConfigError, match="t:2"):
            parse(["1 2 1", line], "t")


def test_simulate_prints_a_table_or_json(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trace"
    path.write_text("0 60 1\n0 60 1\n100 30 4\n")
    assert main(["simulate", "--trace", str(path), "--max", "3"]) == 0
    assert "3 tasks" in capsys.readouterr().out
    assert main(["simulate", "--trace", str(path), "--max", "3", "--json"]) == 0
    policies = [row["policy"] for row in json.loads(capsys.readouterr().out)["policies"]]
    assert policies == ["ours", "published", "published, tuned", "knows the future"]
    assert main(["simulate", "--trace", str(path), "--cores", "2"]) == 2
    assert "more cores than a worker has" in capsys.readouterr().err

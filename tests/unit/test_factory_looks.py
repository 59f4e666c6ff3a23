"""How often a batch system is looked at, whatever happens around it."""

from __future__ import annotations

import pytest

from vine_factory import defaults
from vine_factory.looks import Looks

PERIOD_S, HOUR_S = 30.0, 3600.0


def count(pass_s: float, *, new: bool = False, order_s: float = 0.0) -> int:
    """Looks in an hour with a pass every ``pass_s``; ``new``: each look shows something new; an order so often."""
    looks, made, now, next_order = Looks(), 0, 0.0, order_s
    while now < HOUR_S:
        if order_s and now >= next_order:
            looks.want()
            next_order += order_s
        if looks.due(now, PERIOD_S):
            looks.asked(now)
            made += 1
            if new:
                looks.changed()
        now += pass_s
    return made


@pytest.mark.parametrize("pass_s", [0.5, 10.0, 30.0])
def test_passes_and_managers_that_are_asked_often_do_not_make_looks_more_frequent(pass_s: float) -> None:
    assert count(pass_s) == HOUR_S / PERIOD_S


def test_a_fleet_in_which_something_happens_all_the_time_is_not_looked_at_all_the_time() -> None:
    assert count(0.5, new=True) <= (1 + defaults.LOOKS_AGAIN) * HOUR_S / PERIOD_S
    assert count(0.5, new=True) > HOUR_S / PERIOD_S


def test_each_order_is_followed_by_one_look_at_once() -> None:
    looks = Looks()
    assert looks.due(0.0, PERIOD_S)
    looks.asked(0.0)
    assert not looks.due(1.0, PERIOD_S)
    looks.want()
    assert looks.due(1.0, PERIOD_S)
    looks.asked(1.0)
    assert not looks.due(1.0, PERIOD_S) and not looks.due(30.0, PERIOD_S) and looks.due(31.0, PERIOD_S)
    assert count(0.5, order_s=100.0) <= HOUR_S / PERIOD_S + HOUR_S / 100.0

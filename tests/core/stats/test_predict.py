"""What is expected of the next interval: from the past alone, and never sure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd.stats.predict import FADE, GRID, alternatives, stable_rate


def rate(quick_x: float, quick_n: float, long_x: float, long_n: float) -> float:
    return float(stable_rate(*(np.array(v) for v in (quick_x, quick_n, long_x, long_n))))


def test_the_rate_is_the_recent_one_drawn_towards_the_long_run() -> None:
    assert rate(30, 800, 99.5, 9999) == pytest.approx((30 + 200 * 100 / 10000) / 1000)
    assert rate(0, 0, 99.5, 9999) == pytest.approx(0.01)


def test_an_interval_counts_half_after_four() -> None:
    assert pytest.approx(0.5) == FADE**4


def test_with_no_past_at_all_nothing_is_assumed() -> None:
    assert rate(0, 0, 0, 0) == 0.5


def test_no_failure_in_a_million_is_still_not_impossible() -> None:
    assert 1e-7 <= rate(0, 1e6, 0, 1e6) < 1e-6
    assert rate(0, 1e12, 0, 1e12) == 1e-7
    assert rate(1e12, 1e12, 1e12, 1e12) == 1 - 1e-6


def test_the_bets_are_multiples_of_the_odds_at_the_edge_of_the_tolerance() -> None:
    bets = alternatives(np.array([0.01]), np.array([0.05]), np.array([0.0002]))[0]
    edge = 1.05 * 0.01 + 0.0002
    ratios = np.array([1.15, 1.35, 1.7, 2.3, 3.5, 6, 12, 30, 100, 1000])
    assert bets / (1 - bets) == pytest.approx(ratios * edge / (1 - edge))


@given(p=st.floats(1e-7, 1 - 1e-6), r=st.floats(0, 100), d=st.floats(0, 100))
def test_every_bet_is_a_share_below_one_and_they_rise(p: float, r: float, d: float) -> None:
    bets = alternatives(np.array(p), np.array(r), np.array(d))
    assert bets.shape == GRID.shape
    assert ((bets > 0) & (bets < 1)).all()
    assert (np.diff(bets) >= 0).all()

"""The interval that people see: true as often as it says, at every look, whatever the split does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from canaryd.model import Floats
from canaryd.stats.difference import interval, radius, stable_share

LOOKS, ROLLOUTS, HISTORY = 80, 600, 10


def steps(t: int) -> float:
    return (0.05, 0.1, 0.25, 0.5)[t // 20]


@pytest.mark.parametrize(
    ("p_s", "worse", "n"),
    [
        pytest.param(lambda t: 0.05, 0.0, 1000, id="common-no-difference"),
        pytest.param(lambda t: 0.05, 0.01, 1000, id="common-worse"),
        pytest.param(lambda t: 0.0005, 0.0, 1000, id="rare"),
        pytest.param(lambda t: 0.0001, 0.0, 2000, id="very-rare"),
        pytest.param(lambda t: 0.0005, 0.01, 1000, id="rare-but-the-canary-fails"),
        pytest.param(lambda t: 0.001, 0.0, 100, id="hardly-any-traffic"),
        pytest.param(lambda t: 0.95, 0.01, 1000, id="nearly-all-slow"),
        pytest.param(lambda t: 0.02 * (1 + 0.9 * np.sin(t / 9)), 0.0, 1000, id="daily-wave"),
        pytest.param(lambda t: (0.005, 0.02, 0.05, 0.1)[t // 20], 0.0, 1000, id="stable-rises-with-the-weight"),
        pytest.param(lambda t: (0.1, 0.05, 0.02, 0.002)[t // 20], 0.0, 1000, id="stable-falls-with-the-weight"),
        pytest.param(lambda t: 0.5 if 20 <= t < 25 else 0.001, 0.0, 1000, id="after-a-shared-outage"),
    ],
)
def test_it_covers_the_true_difference_at_every_look_in_95_of_100_rollouts(
    p_s: Callable[[int], float], worse: float, n: int
) -> None:
    random = np.random.default_rng(3)
    total, requests, leverage, bad, true = np.zeros((5, ROLLOUTS))
    missed = np.zeros(ROLLOUTS, dtype=bool)
    long_x = random.binomial(HISTORY * n, p_s(0), ROLLOUTS).astype(float)
    long_n = np.full(ROLLOUTS, HISTORY * n, float)
    for t in range(LOOKS):
        n_c = random.binomial(n, steps(t), ROLLOUTS)
        x_c, x_s = random.binomial(n_c, p_s(t) + worse), random.binomial(n - n_c, p_s(t))
        ratio = n_c / (n - n_c)
        total += x_c - ratio * x_s
        requests, leverage, bad, true = requests + n_c, leverage + ratio * n_c, bad + x_c, true + n_c * worse
        long_x, long_n = long_x + x_s, long_n + n - n_c
        share = stable_share(total, requests, bad, long_x, long_n)
        _, low, high = interval(total, requests, leverage, share)
        actual = true / np.maximum(requests, 1)
        missed |= (requests > 0) & ((actual < low) | (actual > high))
    assert binomtest(int(missed.sum()), ROLLOUTS, 0.05, alternative="greater").pvalue > 0.001


def test_a_split_that_follows_an_outage_does_not_turn_the_sign() -> None:
    """Simpson: the canary is better in both intervals, yet has the larger share of failures over both."""
    n_c, n_s = np.array([100.0, 900.0]), np.array([900.0, 100.0])
    x_c, x_s = np.array([0.0, 360.0]), np.array([9.0, 50.0])
    assert x_c.sum() / n_c.sum() > x_s.sum() / n_s.sum()
    sums = [np.array([v.sum()]) for v in (x_c - n_c * x_s / n_s, n_c, n_c**2 / n_s)]
    middle, _, high = interval(*sums, np.array([0.06]))
    assert middle[0] == pytest.approx((-0.01 * 100 - 0.1 * 900) / 1000)
    assert middle[0] < high[0]


def test_without_requests_there_is_no_number() -> None:
    zero = np.zeros(1)
    for value in interval(zero, zero, zero, np.array([0.01])):
        assert np.isnan(value).all()


sums = st.tuples(st.integers(1, 10**6), st.floats(0, 1), st.floats(1e-3, 100), st.floats(1e-7, 1 - 1e-6))


@settings(max_examples=40)
@given(sums)
def test_it_contains_the_difference_and_stays_within_minus_one_and_one(case: tuple[int, float, float, float]) -> None:
    n, share, ratio, rate_s = case
    requests = np.array([float(n)])
    middle, low, high = interval(requests * (share - rate_s), requests, requests * ratio, np.array([rate_s]))
    assert -1 <= low[0] <= middle[0] <= high[0] <= 1


@settings(max_examples=40)
@given(sums, st.floats(0.01, 0.99))
def test_it_is_never_narrower_with_less_data(case: tuple[int, float, float, float], part: float) -> None:
    n, share, ratio, rate_s = case
    width = []
    for scale in (1.0, part):
        requests = np.array([n * scale])
        _, low, high = interval(requests * (share - rate_s), requests, requests * ratio, np.array([rate_s]))
        width.append(high[0] - low[0])
    assert width[1] >= width[0] - 1e-7


def test_no_failures_at_all_still_leave_room_for_some() -> None:
    few, many = (interval(*(np.array([v]) for v in (0.0, n, n / 9)), np.array([1e-7])) for n in (100.0, 1e5))
    assert few[2][0] > 0.02
    assert 1e-5 < many[2][0] < few[2][0] / 100
    assert few[1][0] < 0


def test_the_boundary_is_the_published_one() -> None:
    alpha, tuned = 0.05, 10.0
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / tuned
    v = 1000 * 0.03 * 0.97 + 300 * 0.01 * 0.99
    expected = np.sqrt(2 * (v * rho2 + 1) / rho2 * np.log(np.sqrt(v * rho2 + 1) / alpha))
    plain, noisy = (
        radius(np.array([1000.0]), np.array([300.0]), np.array([0.01]), phi, np.array([0.02]), alpha)
        for phi in (1.0, np.array([2.5]))
    )
    assert plain[0] == pytest.approx(expected, rel=1e-12)
    wider = np.sqrt(2 * (2.5 * v * rho2 + 1) / rho2 * np.log(np.sqrt(2.5 * v * rho2 + 1) / alpha))
    assert noisy[0] == pytest.approx(wider, rel=1e-12)


@pytest.mark.parametrize(
    ("total", "requests", "bad", "long_x", "long_n", "expected"),
    [
        pytest.param(0, 0, 0, 9.5, 999, 0.01, id="nothing-compared-the-past"),
        pytest.param(0, 1000, 50, 9.5, 999, 0.05, id="the-larger-of-two-small"),
        pytest.param(0, 1000, 5, 9.5, 999, 0.01, id="the-past-when-larger"),
        pytest.param(0, 1000, 950, 989.5, 999, 0.95, id="the-smaller-of-two-large"),
        pytest.param(0, 0, 0, 0, 0, 0.5, id="nothing-at-all"),
        pytest.param(60, 1000, 50, -0.5, 999, 1e-7, id="never-below-zero"),
    ],
)
def test_stables_share_for_the_variance(
    total: float, requests: float, bad: float, long_x: float, long_n: float, expected: float
) -> None:
    found: Floats = stable_share(*(np.array([float(v)]) for v in (total, requests, bad, long_x, long_n)))
    assert found[0] == pytest.approx(expected)

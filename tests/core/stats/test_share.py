"""Is the weight what users get? Confirmed by requests, contradicted by requests, and otherwise open."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from canaryd.stats.share import decide, limits, log_e_steps

ALPHA, BETA = 0.01, 0.05


@pytest.mark.parametrize(
    ("weight", "low", "high"), [(0.05, 0.025, 0.1), (0.5, 0.25, 0.75), (0.9, 0.45, 0.95), (0.01, 0.005, 0.02)]
)
def test_a_weight_means_within_a_factor_of_two(weight: float, low: float, high: float) -> None:
    assert limits(np.array(weight)) == pytest.approx((low, high))


@pytest.mark.parametrize("weight", [0.01, 0.05, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("n", [1, 6, 12])
def test_none_of_the_four_gains_on_average_under_its_own_null(n: int, weight: float) -> None:
    x = np.arange(n + 1.0)
    e = np.exp(log_e_steps(x, np.array(float(n)), np.array(weight)))
    low, high = (float(v) for v in limits(np.array(weight)))
    nulls = [(0, low), (high, 1), (low, 1), (0, high)]
    for k, (a, b) in enumerate(nulls):
        for share in np.linspace(a, b, 9):
            assert e[:, k] @ binom.pmf(x, n, share) <= 1 + 1e-9


def total(n_c: float, n: float, weight: float) -> tuple[bool, bool]:
    return decide(log_e_steps(np.array(float(n_c)), np.array(float(n)), np.array(weight)), weight, ALPHA, BETA)


@pytest.mark.parametrize(
    ("n_c", "n", "weight", "confirmed", "mismatch"),
    [
        pytest.param(0, 0, 0.05, False, False, id="nothing-served"),
        pytest.param(2, 20, 0.05, False, False, id="too-few-to-say"),
        pytest.param(100, 2000, 0.05, True, False, id="as-it-should-be"),
        pytest.param(0, 2000, 0.05, False, True, id="none-arrives"),
        pytest.param(20, 2000, 0.05, False, True, id="a-fifth-arrives"),
        pytest.param(1000, 2000, 0.05, False, True, id="far-too-many"),
        pytest.param(500, 1000, 0.5, True, False, id="half"),
        pytest.param(950, 1000, 0.5, False, True, id="nearly-all-instead-of-half"),
        pytest.param(1000, 1000, 1.0, True, False, id="all-of-it"),
        pytest.param(995, 1000, 1.0, True, False, id="all-with-stragglers"),
        pytest.param(100, 1000, 1.0, False, True, id="ten-percent-instead-of-all"),
    ],
)
def test_the_split_is_confirmed_or_contradicted_by_enough_requests(
    n_c: float, n: float, weight: float, confirmed: bool, mismatch: bool
) -> None:
    assert total(n_c, n, weight) == (confirmed, mismatch)


@pytest.mark.parametrize("weight", [0.02, 0.25, 0.5, 1.0])
def test_a_weight_that_holds_is_hardly_ever_called_a_mismatch_however_often_one_looks(weight: float) -> None:
    random, rollouts = np.random.default_rng(5), 3000
    split, ever = np.zeros((rollouts, 4)), np.zeros(rollouts, dtype=bool)
    for _ in range(100):
        split += log_e_steps(random.binomial(60, weight, rollouts).astype(float), np.array(60.0), np.array(weight))
        ever |= split[:, 2:].max(1) >= -np.log(ALPHA)
    assert binomtest(int(ever.sum()), rollouts, 2 * ALPHA, alternative="greater").pvalue > 0.001
    assert (split[:, 0] >= -np.log(BETA)).mean() > 0.99


def test_a_wrong_split_is_hardly_ever_confirmed() -> None:
    random, rollouts = np.random.default_rng(6), 3000
    for actual in (0.05, 0.2):  # at the limits of what 10 % may mean
        split, ever = np.zeros((rollouts, 4)), np.zeros(rollouts, dtype=bool)
        for _ in range(100):
            split += log_e_steps(random.binomial(60, actual, rollouts).astype(float), np.array(60.0), np.array(0.1))
            ever |= (split[:, :2] >= -np.log(BETA)).all(1)
        assert binomtest(int(ever.sum()), rollouts, BETA, alternative="greater").pvalue > 0.001

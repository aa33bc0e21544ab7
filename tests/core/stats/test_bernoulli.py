"""The exact e-value: never more than 1 on average under the null, more and more under the alternative."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest

from canaryd.model import Floats
from canaryd.stats.bernoulli import log_e_above, log_e_below, log_e_fine, log_e_worse

SIZES = [(1, 1), (1, 12), (12, 1), (3, 7), (12, 12)]
MARGINS = [(0.0, 0.0), (0.05, 0.0002), (0.25, 0.01), (0.0, 0.1), (1.0, 0.0)]
SHARES = np.array([0.0, 1e-4, 0.003, 0.02, 0.1, 0.25, 0.4, 0.6, 0.85, 1.0])
ALTERNATIVES = [(1e-4, 1e-5), (0.02, 0.001), (0.1, 0.02), (0.5, 0.02), (0.9, 0.3), (0.999, 0.1), (0.5, 0.49)]
ROUNDING = 1e-9


def expectations(log_e: Floats, n_c: int, n_s: int, p_c: Floats, p_s: Floats) -> Floats:
    """E[e] for each pair of shares, exactly: a sum over all counts. log_e: (n_c + 1, n_s + 1)."""
    canary = binom.pmf(np.arange(n_c + 1)[:, None], n_c, p_c)
    stable = binom.pmf(np.arange(n_s + 1)[:, None], n_s, p_s)
    return np.asarray(np.einsum("ik,ij,jk->k", canary, np.exp(log_e), stable))


def all_counts(n_c: int, n_s: int) -> tuple[Floats, Floats]:
    x_c, x_s = np.meshgrid(np.arange(n_c + 1.0), np.arange(n_s + 1.0), indexing="ij")
    return x_c, x_s


@pytest.mark.parametrize(("r", "d"), MARGINS)
@pytest.mark.parametrize(("n_c", "n_s"), SIZES)
def test_a_tolerable_canary_gains_nothing_on_average_whatever_stable_does(
    n_c: int, n_s: int, r: float, d: float
) -> None:
    x_c, x_s = all_counts(n_c, n_s)
    limits = np.minimum((1 + r) * SHARES + d, 1.0)
    p_s = np.concatenate([SHARES, np.repeat(SHARES, 3)])  # the boundary, and points inside
    p_c = np.concatenate([limits, np.outer(limits, [0.0, 0.5, 0.99]).ravel()])
    for a_c, a_s in ALTERNATIVES:
        log_e = log_e_worse(x_c, n_c, x_s, n_s, a_c, a_s, r, d)
        assert np.isfinite(log_e).all()
        assert expectations(log_e, n_c, n_s, p_c, p_s).max() <= 1 + ROUNDING, (a_c, a_s)


@pytest.mark.parametrize(("r", "d"), [*MARGINS, (0.25, 0.25), (0.25, 0.9)])
@pytest.mark.parametrize(("n_c", "n_s"), SIZES)
def test_an_unacceptable_canary_gains_no_proof_of_being_fine_on_average(n_c: int, n_s: int, r: float, d: float) -> None:
    x_c, x_s = all_counts(n_c, n_s)
    limits = (1 + r) * SHARES + d
    possible = limits <= 1
    limits, shares = limits[possible], SHARES[possible]
    p_s = np.concatenate([shares, shares, shares])
    p_c = np.concatenate([limits, (limits + 1) / 2, np.ones(len(limits))])
    for a_c, a_s in [(0.001, 0.001), (0.05, 0.05), (0.3, 0.3), (0.02, 0.4), (1e-7, 1e-7), (0.8, 0.8)]:
        log_e = log_e_fine(x_c, n_c, x_s, n_s, a_c, a_s, r, d)
        assert np.isfinite(log_e).all()
        assert expectations(log_e, n_c, n_s, p_c, p_s).max() <= 1 + ROUNDING, (a_c, a_s)


@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize(("a", "p"), [(0.02, 0.001), (0.5, 0.1), (0.9, 0.89), (0.999, 0.01)])
def test_with_one_sample_the_average_is_at_most_one_and_exactly_one_at_the_limit(n: int, a: float, p: float) -> None:
    x = np.arange(n + 1.0)
    for direction in (1, -1):
        if direction == 1:
            log_e, limit, inside = log_e_above(x, n, a, p), p, p * np.array([0.0, 0.3, 0.9])
        else:
            log_e, limit, inside = log_e_below(x, n, p, a), a, a + (1 - a) * np.array([0.1, 0.7, 1.0])
        assert np.exp(log_e) @ binom.pmf(x, n, limit) == pytest.approx(1, abs=1e-9)
        for share in inside:
            assert np.exp(log_e) @ binom.pmf(x, n, share) <= 1 + ROUNDING


def test_the_average_is_exactly_one_at_the_projection_itself() -> None:
    # r = 0, d = 0 and equal arms: the projection is the mean of both shares, where both likelihoods integrate to one
    x_c, x_s = all_counts(8, 8)
    log_e = log_e_worse(x_c, 8, x_s, 8, 0.4, 0.2, 0.0, 0.0)
    at = expectations(log_e, 8, 8, np.array([0.3, 0.25]), np.array([0.3, 0.25]))
    assert at[0] == pytest.approx(1, abs=1e-9)
    assert at[1] < 1


# ── the projection ───────────────────────────────────────────────────────────────────────────────────────────


def divergence(a: float, b: float) -> float:
    return float(a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b)))


@pytest.mark.parametrize("worse", [True, False], ids=["worse", "fine"])
@pytest.mark.parametrize(("n_c", "n_s"), [(100.0, 100.0), (50.0, 5000.0), (9000.0, 20.0)])
@pytest.mark.parametrize(("r", "d"), MARGINS)
def test_the_expected_gain_under_the_alternative_is_its_least_divergence_from_the_null(
    worse: bool, n_c: float, n_s: float, r: float, d: float
) -> None:
    for a_c, a_s in [(0.3, 0.05), (0.9, 0.3), (0.05, 0.01)] if worse else [(0.01, 0.01), (0.3, 0.4), (0.05, 0.05)]:
        if (a_c <= (1 + r) * a_s + d) if worse else (a_c >= (1 + r) * a_s + d):
            continue
        top = (1 - d) / (1 + r)

        def cost(p: float, a_c: float = a_c, a_s: float = a_s) -> float:
            return n_c * divergence(a_c, (1 + r) * p + d) + n_s * divergence(a_s, p)

        best = minimize_scalar(cost, bounds=(1e-9, top - 1e-9), method="bounded", options={"xatol": 1e-13})
        function = log_e_worse if worse else log_e_fine
        gain = float(function(n_c * a_c, n_c, n_s * a_s, n_s, a_c, a_s, r, d))
        assert gain == pytest.approx(best.fun, rel=1e-6, abs=1e-6)
        assert gain > 0


def test_evidence_grows_under_the_alternative_and_shrinks_under_the_null() -> None:
    random = np.random.default_rng(7)
    n_c, n_s, looks = 400, 3600, 200
    x_s = random.binomial(n_s, 0.002, looks)
    bad, good = random.binomial(n_c, 0.02, looks), random.binomial(n_c, 0.002, looks)
    for x_c, grows in ((bad, True), (good, False)):
        total = log_e_worse(x_c, n_c, x_s, n_s, 0.02, 0.002, 0.05, 0.0002).cumsum()
        fine = log_e_fine(x_c, n_c, x_s, n_s, 0.002, 0.002, 0.25, 0.01).cumsum()
        assert bool(total[-1] > 100) is grows
        assert bool(total[-1] < -100) is not grows
        assert bool(fine[-1] > 100) is not grows


# ── nothing from nothing ─────────────────────────────────────────────────────────────────────────────────────

counts = st.integers(0, 10**6)
shares = st.floats(1e-6, 1 - 1e-6)


@settings(max_examples=50)
@given(n=counts, share=shares, a_c=shares, a_s=shares, r=st.floats(0, 3), d=st.floats(0, 0.5))
def test_an_arm_that_served_nothing_is_no_evidence(
    n: int, share: float, a_c: float, a_s: float, r: float, d: float
) -> None:
    x = round(n * share)
    for function in (log_e_worse, log_e_fine):
        assert function(x, n, 0, 0, a_c, a_s, r, d) == 0
        assert function(0, 0, x, n, a_c, a_s, r, d) == 0
    assert log_e_above(0, 0, a_c, a_s) == log_e_below(0, 0, a_c, a_s) == 0


@settings(max_examples=50)
@given(n_c=counts, n_s=counts, u=shares, v=shares, a_c=shares, a_s=shares, r=st.floats(0, 3), d=st.floats(0, 0.5))
def test_a_bet_inside_the_null_is_no_bet_and_every_other_is_finite(
    n_c: int, n_s: int, u: float, v: float, a_c: float, a_s: float, r: float, d: float
) -> None:
    x_c, x_s = round(n_c * u), round(n_s * v)
    worse = log_e_worse(x_c, n_c, x_s, n_s, a_c, a_s, r, d)
    fine = log_e_fine(x_c, n_c, x_s, n_s, a_c, a_s, r, d)
    limit = (1 + r) * a_s + d
    if a_c <= limit:
        assert worse == 0
    if a_c >= limit:
        assert fine == 0
    assert np.isfinite(worse)
    assert np.isfinite(fine)


@pytest.mark.parametrize(("a_s", "r", "d"), [(0.5, 1.0, 0.0), (0.5, 0.0, 0.5), (0.5, 3.0, 0.5), (0.9, 100.0, 100.0)])
def test_a_tolerance_that_allows_every_share_leaves_nothing_to_bet_on(a_s: float, r: float, d: float) -> None:
    for a_c in (0.1, 0.5, 1 - 1e-7):
        assert log_e_worse(50, 100, 1, 100, a_c, a_s, r, d) == 0
        assert log_e_worse(0, 0, 0, 0, a_c, a_s, r, d) == 0


@pytest.mark.parametrize(("a_c", "a_s"), ALTERNATIVES)
@pytest.mark.parametrize(("r", "d"), MARGINS)
def test_more_canary_failures_never_speak_for_the_canary(a_c: float, a_s: float, r: float, d: float) -> None:
    x_c = np.arange(201.0)
    for x_s in (0, 3, 2000):
        assert (np.diff(log_e_worse(x_c, 200, x_s, 2000, a_c, a_s, r, d)) >= 0).all()
        assert (np.diff(log_e_fine(x_c, 200, x_s, 2000, a_s, a_s, r, d)) <= 0).all()


@pytest.mark.parametrize(("a_c", "a_s"), ALTERNATIVES)
def test_more_stable_failures_never_speak_against_the_canary(a_c: float, a_s: float) -> None:
    x_s = np.arange(201.0)
    assert (np.diff(log_e_worse(5, 50, x_s, 200, a_c, a_s, 0.05, 0.0002)) <= 0).all()


def test_shapes_broadcast_and_each_element_is_what_it_is_alone() -> None:
    x_c, a_c = np.array([[0.0], [3.0], [9.0]]), np.array([0.01, 0.1, 0.4, 0.8])
    together = log_e_worse(x_c, 100, 5, 1000, a_c, 0.005, 0.05, 0.0002)
    assert together.shape == (3, 4)
    for i, j in product(range(3), range(4)):
        assert together[i, j] == log_e_worse(x_c[i, 0], 100, 5, 1000, a_c[j], 0.005, 0.05, 0.0002)


# ── over a whole rollout ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize(
    "p_s",
    [lambda t: 0.02 + 0 * t, lambda t: 0.02 * (1 + 0.9 * np.sin(t / 9)), lambda t: np.where(t % 50 < 5, 0.4, 0.01)],
    ids=["steady", "daily-wave", "shared-outages"],
)
def test_looking_after_every_interval_crosses_no_more_often_than_alpha(p_s: object, alpha: float) -> None:
    """At the edge of what is tolerated, with steps of the weight and bets chosen from the past."""
    assert callable(p_s)
    random, rollouts, looks = np.random.default_rng(11), 2000, 150
    r, d = 0.05, 0.0002
    total, crossed = np.zeros(rollouts), np.zeros(rollouts, dtype=bool)
    seen_x, seen_n = np.full(rollouts, 2.0), np.full(rollouts, 100.0)
    for t in range(looks):
        share = p_s(np.float64(t))
        weight = (0.05, 0.25, 0.5)[t // 50]
        n_c = random.binomial(200, weight, rollouts)
        x_c, x_s = random.binomial(n_c, (1 + r) * share + d), random.binomial(200 - n_c, share)
        a_s = seen_x / seen_n
        total += log_e_worse(x_c, n_c, x_s, 200 - n_c, np.minimum(2 * a_s + d, 0.9), a_s, r, d)
        crossed |= total >= -np.log(alpha)
        seen_x, seen_n = 0.9 * seen_x + 0.1 * 2 + x_s, 0.9 * seen_n + 0.1 * 100 + 200 - n_c
    assert binomtest(int(crossed.sum()), rollouts, alpha, alternative="greater").pvalue > 0.001


@pytest.mark.parametrize("direction", ["worse", "fine"])
def test_the_projection_comes_to_rest_for_rates_and_counts_of_any_size(direction: str) -> None:
    draw, n = np.random.default_rng(5), 20_000
    a_s = 10 ** draw.uniform(-7, -0.05, n)
    r, d = draw.choice([0.0, 0.05, 0.25], n), 10 ** draw.uniform(-5, -0.7, n)
    n_c, n_s = np.ceil(10 ** draw.uniform(0, 6, n)), np.ceil(10 ** draw.uniform(0, 7, n))
    edge = np.clip((1 + r) * a_s + d, 0, 1 - 1e-6)
    odds = draw.choice([1.15, 3.5, 30.0, 1000.0], n) * edge / (1 - edge)
    a_c = np.minimum(odds / (1 + odds), 1 - 1e-7) if direction == "worse" else a_s
    x_c, x_s = draw.binomial(n_c.astype(int), a_c), draw.binomial(n_s.astype(int), a_s)
    low = a_s if direction == "worse" else np.minimum(np.maximum((a_s - d) / (1 + r), 1e-12), a_s)
    high = np.minimum((a_c - d) / (1 + r), (1 - d) / (1 + r) - 1e-12) if direction == "worse" else a_s
    good = (a_c > edge) & (high > low) if direction == "worse" else edge > a_s
    for _ in range(200):  # a plain bisection, to the last bit
        p = (low + high) / 2
        q = np.minimum((1 + r) * p + d, 1 - 1e-12)
        below = n_c * (1 + r) * (q - a_c) / (q * (1 - q)) + n_s * (p - a_s) / (p * (1 - p)) < 0
        low, high = np.where(below, p, low), np.where(below, high, p)
    q = np.minimum((1 + r) * p + d, 1 - 1e-12)
    wanted = x_c * np.log(a_c / q) + (n_c - x_c) * np.log((1 - a_c) / (1 - q))
    wanted += x_s * np.log(a_s / p) + (n_s - x_s) * np.log((1 - a_s) / (1 - p))
    test = log_e_worse if direction == "worse" else log_e_fine
    got = test(x_c, n_c, x_s, n_s, a_c, a_s, r, d)
    assert good.mean() > 0.9
    np.testing.assert_allclose(got[good], wanted[good], rtol=1e-7, atol=1e-7)

"""Gauges: the tail of Student's t is right, the error probability is kept, and pods are the unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from canaryd.model import Floats
from canaryd.stats.gauge import LOOKS, Comparison, compare, toward, upper_tail


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 11, 20, 62, 200])
def test_the_tail_is_that_of_scipy(freedom: float) -> None:
    t = np.concatenate([np.linspace(-30, 30, 601), [1e-9, -1e-9, 0, 100, 1000]])
    assert upper_tail(t, np.array(float(freedom))) == pytest.approx(stats.t.sf(t, freedom), rel=1e-8, abs=1e-300)


@given(st.floats(-50, 50), st.floats(1, 500))
def test_the_tail_falls_and_mirrors(t: float, freedom: float) -> None:
    here, there, further = upper_tail(np.array([t, -t, t + 0.01]), np.array(freedom))
    assert here + there == pytest.approx(1, abs=1e-12)
    assert further <= here
    assert 0 <= here <= 1


def sums(*pods: tuple[float, ...]) -> Floats:
    """The values of each pod as the sums that are kept."""
    return np.array([[np.log(values).sum(), len(values)] for values in pods])


def test_t_is_that_of_the_formula() -> None:
    stable, canary = [(1.0, 1.2), (1.1,), (0.9, 0.8, 1.0)], [(1.5, 1.4), (1.7,)]
    got = compare(sums(*stable), sums(*canary), np.array(0.1))
    s, c = ([np.log(values).mean() for values in arm] for arm in (stable, canary))
    squares = 2 * 0.05**2 + sum((v - np.mean(s)) ** 2 for v in s) + sum((v - np.mean(c)) ** 2 for v in c)
    expected = (np.mean(c) - np.mean(s) - np.log(1.1)) / np.sqrt(squares / (2 + 3) * (1 / 2 + 1 / 3))
    assert (got.t, got.freedom) == (pytest.approx(expected), 3)
    assert (got.stable, got.canary) == (pytest.approx(np.exp(np.mean(s))), pytest.approx(np.exp(np.mean(c))))
    assert (got.pods_s, got.pods_c) == (3, 2)


def test_pods_without_values_are_not_there() -> None:
    few, padded = ([(1.0, 1.2), (1.1,)], [(1.0, 1.2), (), (1.1,), ()])
    a, b = (compare(sums(*arm), sums((2.0,)), np.array(0.1)) for arm in (few, padded))
    assert (a.t, a.pods_s) == (b.t, b.pods_s)


@pytest.mark.parametrize(
    ("stable", "canary"), [([], [(1.0,)]), ([(1.0,)], []), ([(1.0,)], [(9.0,)]), ([], [])],
    ids=["no-stable", "no-canary", "one-pod-each", "nobody"],
)  # fmt: skip
def test_where_pods_and_version_cannot_be_told_apart_nothing_is_shown(stable: list[tuple[float]], canary: Any) -> None:
    arms = [np.array(sums(*arm)).reshape(-1, 2) for arm in (stable, canary)]
    got = compare(*arms, np.array(0.1))
    assert np.isnan(got.t)
    assert toward(got, np.array(4.0), np.array(0.01)) == 0


def test_it_is_looked_at_five_times_and_the_first_look_may_cost_most() -> None:
    seen = Comparison(*np.ones(4), t=np.array(4.0), freedom=np.array(11.0))
    shown = {i: float(toward(seen, np.array(float(i)), np.array(0.01))) for i in range(1, 200)}
    assert tuple(i for i, v in shown.items() if v) == LOOKS
    assert sorted(shown[i] for i in LOOKS) == [shown[i] for i in LOOKS[::-1]]
    assert shown[4] == pytest.approx(np.log(stats.t.sf(4.0, 11)) / np.log(0.06 / np.pi**2))


def simulated(m: int, k: int, ratio: float, spread: float, rollouts: int = 4000, alpha: float = 0.01) -> float:
    """How often the canary is shown to be higher within 64 intervals; each sample wanders 10 % around its pod's."""
    random = np.random.default_rng(1)
    pods = [random.normal(np.log(r), spread, (rollouts, n)) for r, n in ((1.0, m), (ratio, k))]
    kept = [np.zeros((rollouts, n, 2)) for n in (m, k)]
    found = np.zeros(rollouts, dtype=bool)
    for i in range(1, 65):
        for level, sums_of in zip(pods, kept, strict=True):
            sums_of += np.stack([level + random.normal(0, 0.1, level.shape), np.ones(level.shape)], axis=-1)
        if i in LOOKS:
            seen = compare(*kept, np.full(rollouts, 0.1))
            found |= toward(seen, np.full(rollouts, float(i)), np.full(rollouts, alpha)) >= 1
    return float(found.mean())


@pytest.mark.parametrize(
    ("m", "k", "spread"), [(10, 1, 0.05), (10, 1, 0.1), (10, 5, 0.1), (3, 1, 0.1), (3, 3, 0.2)], ids=str
)
def test_a_canary_at_the_tolerance_is_rarely_shown_to_be_higher(m: int, k: int, spread: float) -> None:
    allowed = 0.01 + 3 * (0.01 * 0.99 / 4000) ** 0.5
    assert simulated(m, k, 1.1, spread) <= allowed
    assert simulated(m, k, 1.0, spread) <= 0.004


def test_what_is_much_higher_is_found_with_ten_stable_pods_and_hardly_with_three() -> None:
    assert simulated(10, 1, 2.0, 0.1, 1000) > 0.95
    assert simulated(10, 5, 1.5, 0.1, 1000) > 0.97
    assert 0.2 < simulated(3, 1, 2.0, 0.1, 1000) < 0.4

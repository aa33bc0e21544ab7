"""Latency as shares at bucket edges: the tolerance that a slowdown means, and which edges say something."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from canaryd.stats.edges import LEAST_TOLERANCE, informative, nearest, share_tolerance


def test_the_tolerance_is_the_density_around_the_edge_times_the_slowdown() -> None:
    mass = np.array([10.0, 40.0, 30.0, 20.0])
    edges = np.array([10.0, 100.0, 1000.0])
    wide = np.log(10)
    density = np.array([0.1 / 1, 0.4 / wide, 0.3 / wide, 0.2 / 1])
    expected = np.sqrt(density[:-1] * density[1:]) * np.log(1.05)
    assert share_tolerance(mass, edges, np.array([0.05])) == pytest.approx(expected)


def test_five_percent_slower_is_about_what_five_percent_slower_does() -> None:
    """A lognormal service with fine buckets: the tolerance is the rise of the exceedance, to a tenth."""
    edges = np.geomspace(5, 500, 60)
    shares = norm.sf(np.log(edges / 50) / 0.5)
    mass = 1e6 * -np.diff(np.concatenate([[1.0], shares, [0.0]]))
    slower = norm.sf(np.log(edges / (50 * 1.05)) / 0.5)
    middle = (shares > 0.02) & (shares < 0.98)
    tolerance = share_tolerance(mass, edges, np.array([0.05]))
    assert tolerance[middle] == pytest.approx((slower - shares)[middle], rel=0.15)


@pytest.mark.parametrize(
    "mass", [[0, 0, 0], [100, 0, 0], [0, 0, 100], [100, 0, 100]], ids=["nothing", "all-fast", "all-slow", "a-gap"]
)
def test_an_edge_beside_an_empty_bucket_gets_the_least_tolerance(mass: list[float]) -> None:
    assert share_tolerance(np.array(mass, float), np.array([10.0, 20.0]), np.array([0.05])) == pytest.approx(
        LEAST_TOLERANCE
    )


def test_only_the_shape_of_the_past_matters_not_its_amount() -> None:
    mass, edges, five = np.array([10.0, 40, 30, 20]), np.array([10.0, 100, 1000]), np.array([0.05])
    assert share_tolerance(mass * 1e6, edges, five) == pytest.approx(share_tolerance(mass, edges, five), rel=1e-12)


@pytest.mark.parametrize(
    ("rates", "judged"),
    [
        pytest.param([0.99, 0.5, 0.1, 1e-3, 1e-5, 1e-6], [0, 1, 1, 1, 1, 0], id="and-the-one-above-the-last"),
        pytest.param([2e-4, 1.9e-4], [1, 1], id="lower-limit"),
        pytest.param([0.98, 1e-5], [1, 1], id="upper-limit"),
        pytest.param([0.981, 1e-5, 1e-5], [0, 0, 0], id="none"),
        pytest.param([], [], id="no-edges"),
    ],
)
def test_edges_with_enough_on_both_sides_are_judged(rates: list[float], judged: list[int]) -> None:
    assert informative(np.array(rates)).astype(int).tolist() == judged


def test_the_edges_that_must_be_fine_are_those_nearest_the_quantiles() -> None:
    rates = np.array([0.9, 0.45, 0.2, 0.09, 0.03, 0.008, 1e-4])
    assert nearest(rates, np.ones(7, dtype=bool)) == [1, 3, 5]


def test_an_edge_that_is_not_judged_is_never_one_that_must_be_fine() -> None:
    rates = np.array([0.9, 0.45, 0.2, 0.09, 0.03, 0.008, 1e-4])
    assert nearest(rates, np.array([False, False, True, False, False, True, False])) == [2, 5]
    assert nearest(rates, np.zeros(7, dtype=bool)) == []


@given(st.lists(st.floats(1e-7, 1 - 1e-6), min_size=1, max_size=19))
def test_there_are_one_to_three_of_them(rates: list[float]) -> None:
    falling = np.array(sorted(rates, reverse=True))
    judged = informative(falling)
    must = nearest(falling, judged)
    assert all(judged[b] for b in must)
    assert len(must) in ({1, 2, 3} if judged.any() else {0})

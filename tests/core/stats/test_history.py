"""Pods of the past: the formulas against plain loops, and that they make up for the pods that are lacking now."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd.model import Floats
from canaryd.stats import dispersion, history

M = 3


def served(
    seed: int, eras: int, at_once: int, differ: float = 0.0, hours: int = 4, rate: float = 0.01, requests: float = 1e5
) -> tuple[Floats, Floats]:
    """x and n, (T, P, M): `eras` generations of `at_once` pods, each there for some hours."""
    draw = np.random.default_rng(seed)
    x, n = np.zeros((2, eras * hours, eras * at_once, M))
    own = np.minimum(rate * np.exp(differ * draw.normal(size=(eras * at_once, M))), 0.5)
    for era in range(eras):
        t, p = slice(era * hours, (era + 1) * hours), slice(era * at_once, (era + 1) * at_once)
        n[t, p] = draw.poisson(requests, size=(hours, at_once, 1))
        x[t, p] = draw.binomial(n[t, p].astype(int), own[p])
    return x, n


def by_loops(x: Floats, n: Floats, together: bool) -> tuple[float, float]:
    """(tau^2, degrees of freedom) of row 0, one number at a time."""
    hours, pods, _ = x.shape
    everything = n[..., 0].sum()

    def pool(t: int) -> tuple[float, float]:
        if together:
            return x[t, :, 0].sum(), max(n[t, :, 0].sum(), 1.0)
        return x[..., 0].sum(), everything

    residual, events, variance, kept = ([0.0] * pods for _ in range(4))
    for j in range(pods):
        for t in range(hours):
            bad, whole = pool(t)
            p, mine = bad / whole, n[t, j, 0]
            residual[j] += x[t, j, 0] - mine * p
            events[j] += mine * p
            variance[j] += mine * p * (1 - p) * (1 - mine / whole)
            kept[j] += mine * p * (1 - mine / whole if mine > 0 else 0.0)
    rest = spread = 0.0
    for j in range(pods):
        for t in range(hours):
            bad, whole = pool(t)
            p, mine = bad / whole, n[t, j, 0]
            rest += (x[t, j, 0] - mine * p - residual[j] / max(events[j], 1e-9) * mine * p) ** 2
            spread += mine * p * (1 - p) * (1 - mine / whole)
    phi = max(1.0, rest / max(spread, 1e-9))
    shrink = [k / max(e, 1e-9) for k, e in zip(kept, events, strict=True)]
    below = sum((e * s) ** 2 for e, s in zip(events, shrink, strict=True)) / max(sum(shrink) / pods, 1e-9)
    tau2 = max((sum(r * r for r in residual) - phi * sum(variance)) / max(below, 1e-9), 0.0)
    ran = [sum(n[t, :, 0] > 0) for t in range(hours)]
    at_once = sum(ran) / max(sum(k > 0 for k in ran), 1)
    here = sum(n[:, j, 0].sum() > 0 for j in range(pods))
    degrees = here * (1 - 1 / (at_once if together else here))
    typical = sum(events) / max(sum(e > 0 for e in events), 1)
    return tau2, degrees * (0.2**2 / (0.2**2 + phi / typical)) ** 2


@given(st.integers(0, 1000), st.integers(2, 4), st.floats(0, 0.5))
def test_pods_that_ran_together_are_compared_with_each_other(seed: int, at_once: int, differ: float) -> None:
    x, n = served(seed, 2, at_once, differ, hours=2, requests=1000.0)
    tau2, freedom = by_loops(x, n, together=True)
    assert history.learn(x, n)[:, 0] == pytest.approx([tau2, freedom], rel=1e-9, abs=1e-12)


@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0, 0.5))
def test_lone_pods_are_compared_with_the_whole_past(seed: int, eras: int, differ: float) -> None:
    x, n = served(seed, eras, 1, differ, hours=2, requests=1000.0)
    tau2, freedom = by_loops(x, n, together=False)
    assert history.learn(x, n)[:, 0] == pytest.approx([tau2, freedom], rel=1e-9, abs=1e-12)


@given(st.integers(0, 1000), st.permutations(range(6)), st.permutations(range(6)))
def test_neither_the_order_of_the_pods_nor_of_the_hours_matters(seed: int, pods: list[int], hours: list[int]) -> None:
    x, n = served(seed, 2, 3, 0.2, hours=3, requests=1000.0)
    again = history.learn(x[hours][:, pods], n[hours][:, pods])
    assert history.learn(x, n) == pytest.approx(again, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("at_once", [1, 3])
def test_hours_without_pods_and_pods_without_hours_change_nothing(at_once: int) -> None:
    x, n = served(1, 4, at_once, 0.2)
    wide = [np.pad(v, ((2, 3), (0, 0), (0, 0))) for v in (x, n)]
    assert history.learn(*wide) == pytest.approx(history.learn(x, n), rel=1e-12)
    if at_once > 1:  # lone pods are compared with the mean pod, so an idle one would count; there is never one
        wide = [np.pad(v, ((0, 0), (0, 2), (0, 0))) for v in (x, n)]
        assert history.learn(*wide)[1] == pytest.approx(history.learn(x, n)[1], rel=1e-12)


def test_many_services_at_once_get_the_same_as_one_by_one() -> None:
    some = [served(seed, 3, 2, 0.2) for seed in range(3)]
    together = history.learn(*(np.stack(v) for v in zip(*some, strict=True)))
    for i, (x, n) in enumerate(some):
        assert together[:, i] == pytest.approx(history.learn(x, n), rel=1e-12)


def test_no_past_teaches_nothing() -> None:
    tau2, freedom = history.learn(np.zeros((3, 2, M)), np.zeros((3, 2, M)))
    assert not tau2.any()
    assert not freedom.any()


def test_pods_without_bad_events_teach_next_to_nothing() -> None:
    x, n = served(1, 10, 2, requests=10.0)
    assert history.learn(x, n)[1].max() < 0.1
    x, n = served(1, 10, 2, requests=1e5)
    assert history.learn(x, n)[1].min() > 9


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("differ", [0.1, 0.3])
def test_the_more_pods_of_the_past_the_nearer_to_the_truth(at_once: int, differ: float) -> None:
    wrong, freedom = [], []
    for eras in (2, 8, 32):
        learnt = np.array([history.learn(*served(seed, eras, at_once, differ, hours=2)) for seed in range(12)])
        wrong.append(float(np.abs(np.sqrt(learnt[:, 0]) - differ).mean()))
        freedom.append(float(learnt[:, 1].mean()))
    assert wrong[0] > wrong[1] > wrong[2]
    assert wrong[2] < 0.3 * differ
    assert freedom[0] < freedom[1] < freedom[2]


@pytest.mark.parametrize("pods", [1, 2, 3])
def test_with_a_past_one_to_three_pods_are_judged_as_ten_are(pods: int) -> None:
    """What remains unsure about pods that differ by 0.1 comes to what ten stable pods leave unsure, and below."""
    own, none = np.full((1, M), 0.01), np.zeros((1, M))

    def left(past: Floats, freedom: Floats, stable: int) -> tuple[Floats, Floats]:
        tau2 = dispersion.pooled(own if stable > 1 else none, np.array([float(stable)]), past, freedom)
        return tau2[0], (stable - 1 + freedom)[0]

    ten, ten_known = left(none, none, 10)
    before, before_known = left(none, none, pods)
    learnt = history.learn(*served(2, -(-20 // pods), pods, 0.1))[:, None]
    after, after_known = left(learnt[0], learnt[1], pods)
    assert np.abs(np.sqrt(after) - np.sqrt(ten)).max() < 0.06
    assert abs(np.sqrt(after[0]) - np.sqrt(ten[0])) < abs(np.sqrt(before[0]) - np.sqrt(ten[0])) + 1e-9
    assert before_known.max() < 3
    assert after_known.min() > ten_known.min() - 1


def test_a_pod_that_never_served_changes_nothing() -> None:
    draw = np.random.default_rng(11)
    n = draw.poisson(4000, (24, 5, 1)).astype(float)
    x = draw.binomial(n.astype(int), 0.01 * np.exp(0.3 * draw.normal(size=(1, 5, 1)))).astype(float)
    idle = np.zeros((24, 2, 1))
    np.testing.assert_allclose(
        history.learn(np.concatenate([x, idle], axis=1), np.concatenate([n, idle], axis=1)),
        history.learn(x, n),
        rtol=1e-12,
    )
    assert np.isfinite(history.learn(np.zeros((24, 0, 1)), np.zeros((24, 0, 1)))).all()

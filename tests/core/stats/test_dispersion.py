"""How noisy traffic and pods are: the formulas against plain loops, and what never changes anything."""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service import RULES

from canaryd.model import Floats
from canaryd.stats import dispersion, evidence
from canaryd.stats.assess import assess
from canaryd.stats.evidence import Batch, Counts, advance, noise

EDGES = np.array([100.0, 500.0])
M = 3


def counted(
    seed: int, pods: int, differ: float = 0.0, intervals: int = 30, rate: float = 0.02
) -> tuple[Floats, Floats]:
    """x and n, (T, P, M), of pods whose rates differ by a factor of exp(differ * normal)."""
    draw = np.random.default_rng(seed)
    own = np.minimum(rate * np.exp(differ * draw.normal(size=(pods, M))), 0.5)
    n = np.repeat(draw.poisson(500, size=(intervals, pods, 1)), M, axis=2)
    return draw.binomial(n, own[None]).astype(float), n.astype(float)


def learnt(x: Floats, n: Floats, room: int = 0, others: int = 0) -> Batch:
    """A batch whose first canary has seen these pods; `room`: pod slots never used; `others`: canaries beside it."""
    pods = x.shape[1]
    sizes = [pods + room, *[2 + i for i in range(others)]]
    batch = Batch([evidence.empty(EDGES, 2, p, 1) for p in sizes], [EDGES] * len(sizes), [RULES] * len(sizes))
    for t in range(len(x)):
        counts = Counts.nothing(batch)
        counts.stable_present, counts.seconds = np.ones(len(sizes), dtype=bool), np.full(len(sizes), 10.0)
        counts.x_pods, counts.n_pods = np.zeros_like(counts.x_pods), np.zeros_like(counts.n_pods)
        counts.x_pods[0, :pods], counts.n_pods[0, :pods] = x[t], n[t]
        counts.x_s, counts.n_s = counts.x_pods.sum(1), counts.n_pods.sum(1)
        advance(batch, counts)
    return batch


# ── formulas ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 1000), st.integers(1, 5))
def test_residuals_are_what_plain_loops_give(seed: int, pods: int) -> None:
    x, n = counted(seed, pods, intervals=3)
    n[0, 0] = x[0, 0] = 0.0  # a pod that did not run
    r, v = dispersion.residuals(x, n)
    for t in range(3):
        for m in range(M):
            whole = max(sum(n[t, j, m] for j in range(pods)), 1.0)
            p = sum(x[t, j, m] for j in range(pods)) / whole
            for j in range(pods):
                assert r[t, j, m] == pytest.approx(x[t, j, m] - n[t, j, m] * p, abs=1e-9)
                assert v[t, j, m] == pytest.approx(n[t, j, m] * p * (1 - p) * (1 - n[t, j, m] / whole), abs=1e-9)
    assert r.sum(1) == pytest.approx(0, abs=1e-8)  # what hits all pods alike is gone


@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0, 0.5))
def test_the_learnt_noise_is_what_plain_loops_give(seed: int, pods: int, differ: float) -> None:
    x, n = counted(seed, pods, differ, intervals=6)
    phi0, tau2, known = noise(learnt(x, n))
    for m in range(M):
        squares = variance = 0.0
        sums, served = [0.0] * pods, [0.0] * pods
        for t in range(len(x)):
            p = sum(x[t, :, m]) / sum(n[t, :, m])
            for j in range(pods):
                r = x[t, j, m] - n[t, j, m] * p
                squares, sums[j], served[j] = squares + r * r, sums[j] + r, served[j] + n[t, j, m]
                variance += n[t, j, m] * p * (1 - p) * (1 - n[t, j, m] / sum(n[t, :, m]))
        phi = max(1.0, (squares + 20) / (variance + 20))
        mean = x[:, :, m].sum() / n[:, :, m].sum()
        expected2 = sum((mean * s) ** 2 for s in served)
        hat = max(0.0, (sum(s * s for s in sums) - phi * variance) / (expected2 * (1 - 1 / pods)))
        usual = 0.02 if pods >= 5 else 0.10 if pods >= 3 or m > 0 else 0.20
        assert phi0[0, m] == pytest.approx(phi)
        assert tau2[0, m] == pytest.approx((2 * usual**2 + (pods - 1) * hat) / (2 + pods - 1), abs=1e-12)
        assert known[0, m] == pods - 1


def test_the_inflation_is_ruled_by_the_arm_with_fewer_requests() -> None:
    def inflation(n_c: float, n_s: float) -> float:
        ten, thousand = np.array([10.0]), np.array([1000.0])
        args = (np.ones(1), np.full(1, 0.04), np.full(1, 0.5), ten, thousand, np.array([n_c]), np.array([n_s]))
        return float(dispersion.inflation(*args)[0])

    assert inflation(1.0, 1e9) == pytest.approx(1 + 0.04 * 10 / 0.5)
    assert inflation(1e9, 1.0) == pytest.approx(1 + 0.04 * 1000 / 0.5)
    assert inflation(5.0, 5.0) == pytest.approx(1 + 0.04 * 505 / 0.5)


def test_what_is_known_for_sure_needs_no_softening() -> None:
    assert dispersion.freedom(np.array([1.0]), np.array([1.0]), np.array([3.0]))[0] > dispersion.HARD_TO_TELL
    assert dispersion.freedom(np.array([4.0]), np.array([2.0]), np.array([3.0]))[0] == pytest.approx(3 * (4 / 2) ** 2)
    assert dispersion.freedom(np.array([4.0]), np.array([2.0]), np.array([0.0]))[0] == pytest.approx(4)


# ── evidence ─────────────────────────────────────────────────────────────────────────────────────────────────

log_es = st.floats(-1e6, 1e6)
degrees = st.one_of(st.floats(0.5, 1e9), st.just(inf))


@given(log_es, degrees)
def test_softening_never_raises_evidence_and_leaves_the_evidence_against_alone(log_e: float, nu: float) -> None:
    soft = float(dispersion.soften(np.array([log_e]), np.array([nu]))[0])
    assert soft <= log_e
    assert soft == log_e or log_e > 0
    assert soft >= min(log_e, 0)


@given(st.floats(3, 1e4), st.floats(1e-3, 1e4), st.floats(1, 1e5), st.floats(1.0, 10.0))
def test_more_evidence_or_more_pods_never_count_for_less(log_e: float, more: float, nu: float, times: float) -> None:
    def soft(value: float, known: float) -> float:
        return float(dispersion.soften(np.array([value]), np.array([known]))[0])

    assert soft(log_e + more, nu) >= soft(log_e, nu)
    assert soft(log_e, nu * times) >= soft(log_e, nu) - 1e-9 * (1 + log_e)


@given(st.floats(0.1, 20), st.floats(1, 50), st.floats(1, 1e5))
def test_what_is_still_needed_is_what_softening_takes_away(target: float, phi: float, nu: float) -> None:
    raw = dispersion.needed_for(target, np.array([phi]), np.array([nu]))
    assert float(dispersion.soften(raw / phi, np.array([nu]))[0]) == pytest.approx(target, rel=1e-9)


# ── what changes nothing ─────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 1000), st.permutations(range(5)))
def test_the_order_of_the_pods_changes_nothing(seed: int, order: list[int]) -> None:
    x, n = counted(seed, 5, 0.2, intervals=5)
    for one, other in zip(noise(learnt(x, n)), noise(learnt(x[:, order], n[:, order])), strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(0, 3))
def test_room_for_pods_that_never_come_changes_nothing(seed: int, room: int, others: int) -> None:
    x, n = counted(seed, 3, 0.2, intervals=5)
    alone, padded = learnt(x, n), learnt(x, n, room, others)
    for one, other in zip(noise(alone), noise(padded), strict=True):
        assert np.array_equal(one[0], other[0])
    wider = evidence.with_pods(alone.unstack()[0], 3 + room, 1 + room)
    again = Batch([wider], [EDGES], [RULES])
    assert np.array_equal(noise(alone)[1], noise(again)[1])
    assert assess(alone, [0], [0.1]).log_e == assess(again, [0], [0.1]).log_e


# ── what it finds ────────────────────────────────────────────────────────────────────────────────────────────


def test_pods_that_are_alike_and_requests_that_are_independent_are_found_to_be_so() -> None:
    x, n = counted(1, 20, intervals=200)
    phi0, tau2, _ = noise(learnt(x, n))
    assert phi0[0] == pytest.approx(1, abs=0.05)
    assert np.sqrt(tau2[0]).max() < 0.02


@pytest.mark.parametrize("differ", [0.1, 0.2, 0.3])
def test_pods_that_differ_are_found_to_differ_as_much_as_they_do(differ: float) -> None:
    x, n = counted(3, 32, differ, intervals=200)
    _, tau2, _ = noise(learnt(x, n))
    assert np.sqrt(tau2[0]) == pytest.approx(differ, rel=0.45)


def test_failures_in_clusters_are_found_to_be() -> None:
    draw = np.random.default_rng(5)
    n = np.full((200, 10, M), 5000.0)
    x = 5.0 * draw.poisson(2, size=n.shape)  # fives: the variance is five times as large
    phi0, _, _ = noise(learnt(x, n))
    assert phi0[0] == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize(("pods", "errors", "latency"), [(1, 0.2, 0.1), (2, 0.2, 0.1), (3, 0.1, 0.1), (5, 0.02, 0.02)])
def test_the_fewer_the_pods_the_more_they_are_taken_to_differ(pods: int, errors: float, latency: float) -> None:
    x, n = counted(1, pods, intervals=1)
    _, tau2, _ = noise(learnt(np.zeros_like(x), n))
    share = 2 / (2 + pods - 1)
    assert tau2[0] == pytest.approx([share * errors**2, share * latency**2, share * latency**2])


def test_evidence_saturates_where_pods_differ_and_grows_where_they_do_not() -> None:
    def evidence_after(requests: float, tau2: float) -> float:
        events = np.array([requests * 0.02])
        phi = dispersion.inflation(
            np.ones(1), np.full(1, tau2), np.full(1, 0.02), events, 10 * events, np.array([requests]), np.array([1e9])
        )
        return float((requests * 0.02 * log(2)) / phi[0])

    assert evidence_after(1e7, 0.04) < 1.01 * evidence_after(1e6, 0.04)
    assert evidence_after(1e7, 0.0) > 9 * evidence_after(1e6, 0.0)

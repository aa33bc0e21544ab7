"""Spans by operation: exact in the mean, powerful enough, and refused where the arms are not sampled alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import exp, log
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from canaryd.model import Floats
from canaryd.stats import traces
from canaryd.stats.traces import Batch, Counts, Item, Noise, assess, empty, update

EDGES = np.array([10.0, 25.0, 50.0, 100.0, 250.0, 1000.0])
R, D = 0.05, 0.001
ALPHA, BETA = 0.01, 0.05
STABLE, CANARY = 0, 1


def quiet(count: int) -> Noise:
    """No clusters, and pods that do not differ."""
    return Noise(np.ones((count, 2)), np.zeros((count, 2)), np.full((count, 2), 1e9), np.full((count, 2), 5.0))


def seen(arrays: Sequence[Mapping[str, Floats]], noise: Noise | None = None) -> traces.Assessment:
    count = len(arrays)
    batch = Batch([(a, EDGES) for a in arrays])
    return assess(batch, noise or quiet(count), np.full(count, ALPHA), np.full(count, BETA))


def item(arrays: Mapping[str, Floats], spans: Floats, durations: Floats, *, scored: bool = True, **more: Any) -> Item:
    n = spans[..., 0].sum(0)
    given = {"sampled": tuple(n), "requests": tuple(n), **more}
    return Item(arrays, EDGES, R, D, spans, durations, scored, **given)


class Traffic:
    """Operations with shares of failed spans and of durations per bucket, drawn for both arms."""

    def __init__(self, operations: int, seed: int = 1) -> None:
        self.random = np.random.default_rng(seed)
        self.k = operations
        self.failing = np.full((operations, 2), 0.01)
        self.buckets = np.tile([0.2, 0.3, 0.3, 0.12, 0.05, 0.02, 0.01], (operations, 2, 1))

    def interval(self, per_operation: float, weight: float) -> tuple[Floats, Floats]:
        """Spans and durations of K operations and an empty slot for others."""
        total = self.random.poisson(per_operation, self.k)
        canary = self.random.binomial(total, weight)
        n = np.stack([total - canary, canary], axis=-1)
        spans, durations = np.zeros((self.k + 1, 2, 2)), np.zeros((self.k + 1, 2, len(EDGES) + 1))
        spans[:-1] = np.stack([n, self.random.binomial(n, self.failing)], axis=-1)
        durations[:-1] = self.random.multinomial(n, self.buckets)
        return spans, durations


class Rollouts:
    """Many at once, 20 intervals of stable's past first; `log_e` after each scored interval, (intervals, count)."""

    def __init__(self, traffic: Traffic, count: int, spans: float, weights: Sequence[float]) -> None:
        self.traffic, self.count, self.per_operation = traffic, count, spans
        self.batch = Batch([(empty(traffic.k + 1, EDGES), EDGES)] * count)
        self.log_e: list[Floats] = []
        for _ in range(20):
            self.advance(0.0, scored=False)
        for weight in weights:
            self.advance(weight)

    def advance(self, weight: float, *, scored: bool = True) -> None:
        drawn = [self.traffic.interval(self.per_operation, weight) for _ in range(self.count)]
        spans, durations = (np.stack([one[k] for one in drawn]) for k in (0, 1))
        n, c = spans[..., 0].sum(1), self.count
        near = np.zeros((2, c, *spans.shape[1:2], 2)), np.zeros((2, c, *durations.shape[1:2], len(EDGES) + 1))
        counts = Counts(
            np.full(c, R),
            np.full(c, D),
            spans,
            durations,
            np.full(c, scored),
            n,
            n,
            *near,
            np.zeros((2, c), dtype=bool),
        )
        traces.advance(self.batch, counts)
        if scored:
            self.log_e.append(self.seen().log_e)

    def seen(self) -> traces.Assessment:
        return assess(self.batch, quiet(self.count), np.full(self.count, ALPHA), np.full(self.count, BETA))


PLAN = [w for w in (0.05, 0.10, 0.25, 0.50) for _ in range(20)]


# ── the guarantee ────────────────────────────────────────────────────────────────────────────────────────────


def learnt(operations: int = 1) -> traces.Arrays:
    """Stable's past of 40 spans per operation, one failed, four in the last bucket but one."""
    arrays = empty(operations + 1, EDGES)
    spans, durations = np.zeros((operations + 1, 2, 2)), np.zeros((operations + 1, 2, 7))
    spans[:-1, STABLE] = 40, 1
    durations[:-1, STABLE, 1], durations[:-1, STABLE, 5] = 36, 4
    (arrays,) = update([item(arrays, spans, durations, scored=False)])
    return arrays


def one(counts: tuple[int, int, int, int], n: tuple[int, int]) -> tuple[Floats, Floats]:
    """One operation's spans: failed and slow ones of stable and canary, of n each."""
    spans, durations = np.zeros((2, 2, 2)), np.zeros((2, 2, 7))
    for arm in (STABLE, CANARY):
        spans[0, arm] = n[arm], counts[2 * arm]
        durations[0, arm, 1], durations[0, arm, 5] = n[arm] - counts[2 * arm + 1], counts[2 * arm + 1]
    return spans, durations


@pytest.mark.parametrize("kind", [traces.FAILED, traces.SLOW], ids=["failed", "slow"])
@pytest.mark.parametrize("p_s", [(0.02, 0.02), (0.6, 0.001)], ids=["as-before", "an-outage-first"])
def test_under_the_null_the_e_value_is_at_most_one_in_the_mean(kind: int, p_s: tuple[float, float]) -> None:
    """Every outcome of two intervals, the canary exactly at the edge of the tolerance, stable free to change."""
    n, paths = (5, 4), [(1.0, learnt())]
    for share in p_s:
        limit = (1 + R) * share + D
        outcomes = list(product(range(n[STABLE] + 1), range(n[CANARY] + 1)))
        odds = [binom.pmf(s, n[STABLE], share) * binom.pmf(c, n[CANARY], limit) for s, c in outcomes]
        bad = [(s, 0, c, 0) if kind == traces.FAILED else (0, s, 0, c) for s, c in outcomes]
        grown = update([item(a, *one(x, n)) for _, a in paths for x in bad])
        paths = [(path[0] * q, a) for (path, q), a in zip(product(paths, odds), grown, strict=True)]
    chance = np.array([p for p, _ in paths])
    stake = np.exp([np.logaddexp.reduce(a["stake"][0, kind]) for _, a in paths])
    assert chance.sum() == pytest.approx(1)
    assert 0.2 < float(chance @ stake) <= 1


def test_the_weights_of_operations_never_add_up_to_more_than_one_and_never_change() -> None:
    arrays = learnt(3)
    wide = {**empty(9, EDGES), **{}}
    for name in ("known", "mass"):
        wide[name][: len(arrays[name])] = arrays[name]
    before = wide
    fixed: dict[int, float] = {}
    for step in range(8):
        spans, durations = np.zeros((9, 2, 2)), np.zeros((9, 2, 7))
        spans[: 4 + step, :, 0], durations[: 4 + step, :, 1] = 30, 30
        (before,) = update([item(before, spans, durations)])
        now = {i: float(w) for i, w in enumerate(before["weight"]) if w}
        assert now.items() >= fixed.items()
        assert sum(now.values()) <= 1 + 1e-12
        fixed = now
    assert len(fixed) == 9


def test_what_is_only_learnt_from_is_not_bet_on_beside_one_that_is() -> None:
    bad = one((0, 0, 10, 10), (30, 10))
    learning, _ = update([item(learnt(), *bad, scored=False), item(learnt(), *bad)])
    for name in ("stake", "total", "sampling", "weight", "clock"):
        np.testing.assert_array_equal(learning[name], learnt()[name], err_msg=name)


def test_padding_beside_a_larger_rollout_changes_nothing() -> None:
    small, large = learnt(1), learnt(12)
    few, many = one((0, 1, 2, 2), (20, 10)), (np.zeros((13, 2, 2)), np.zeros((13, 2, 7)))
    (alone,) = update([item(small, *few)])
    beside = update([item(small, *few), item(large, *many)])[0]
    for name, value in alone.items():
        np.testing.assert_array_equal(beside[name], value, err_msg=name)
    short = EDGES[2:]
    spans, durations = few[0], few[1][:, :, 2:]
    arrays = empty(2, short)
    start = Item(arrays, short, R, D, spans, durations, False, (20, 0), (20, 0))
    (narrow,) = update([start])
    again, _ = update([start, item(large, *many)])
    for name, value in narrow.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


# ── what counts as slow ──────────────────────────────────────────────────────────────────────────────────────


def test_the_edge_is_learnt_from_stables_past_alone() -> None:
    """Two intervals that differ in their durations are judged at the same edge; the next one has learnt."""
    quick, slow = one((0, 0, 0, 0), (30, 30)), one((0, 30, 0, 30), (30, 30))
    after = update([item(learnt(), *quick), item(learnt(), *slow)])
    assert [a["total"][0, traces.SLOW].tolist() for a in after] == [[0, 30, 0, 30], [30, 30, 30, 30]]
    assert seen(after).edge[:, 0].tolist() == [25.0, 1000.0]


def test_the_edge_is_the_nearest_above_the_ninetieth_percentile() -> None:
    arrays = empty(2, EDGES)
    spans, durations = np.zeros((2, 2, 2)), np.zeros((2, 2, 7))
    spans[0, STABLE, 0] = 100
    durations[0, STABLE] = [20, 30, 39, 2, 4, 3, 2]  # 11 above 50 ms, 9 above 100 ms
    (arrays,) = update([item(arrays, spans, durations, scored=False)])
    rates, at, ready = Batch([(arrays, EDGES)]).rates()
    assert EDGES[at[0, 0]] == 100.0
    assert rates[0, 0, traces.SLOW] == pytest.approx(9.5 / 101)
    assert ready[0].tolist() == [[True, True], [False, False]]


def test_an_operation_whose_durations_lie_above_all_edges_is_judged_by_its_failures_alone() -> None:
    arrays = empty(2, EDGES)
    spans, durations = np.zeros((2, 2, 2)), np.zeros((2, 2, 7))
    spans[0, STABLE, 0], durations[0, STABLE, 6] = 100, 100
    (arrays,) = update([item(arrays, spans, durations, scored=False)])
    assert Batch([(arrays, EDGES)]).rates()[2][0, 0].tolist() == [True, False]


def test_an_operation_is_not_bet_on_before_twenty_spans_of_stable() -> None:
    arrays = empty(2, EDGES)
    spans, durations = one((0, 0, 0, 0), (19, 0))
    (arrays,) = update([item(arrays, spans, durations, scored=False)])
    (arrays,) = update([item(arrays, *one((0, 0, 10, 10), (1, 10)))])
    assert not arrays["total"].any()
    (arrays,) = update([item(arrays, *one((0, 0, 10, 10), (1, 10)))])
    assert arrays["total"][0, traces.FAILED].tolist() == [10, 10, 0, 1]
    assert np.exp(arrays["stake"][0, traces.FAILED]).sum() > 1.5


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_evidence_from_arms_that_are_sampled_differently_is_refused() -> None:
    """1 % of stable's requests have spans, 10 % of the canary's; half of the canary's fail."""
    arrays = learnt()
    for _ in range(20):
        spans = one((0, 3, 15, 3), (27, 30))
        (arrays,) = update([item(arrays, *spans, sampled=(27, 30), requests=(2700, 300))])
    found = seen([arrays])
    assert found.unlike[0]
    assert not found.alike[0]
    assert found.each[0, 0, traces.FAILED] > 20
    assert found.log_e[0] <= 0
    assert not found.named.any()


def test_sampling_that_is_not_yet_known_to_be_alike_is_no_evidence_against_the_canary() -> None:
    (arrays,) = update([item(learnt(), *one((0, 0, 8, 8), (72, 8)), requests=(7200, 800))])
    found = seen([arrays])
    assert not found.alike[0]
    assert not found.unlike[0]
    assert found.each[0, 0].max() > 5
    assert found.log_e[0] <= 0


def test_arms_that_are_sampled_alike_are_found_to_be() -> None:
    arrays = learnt()
    for _ in range(10):
        (arrays,) = update([item(arrays, *one((0, 2, 0, 0), (27, 3)), requests=(2700, 300))])
    assert seen([arrays]).alike[0]


def test_sampling_that_changes_during_the_rollout_is_refused_from_then_on() -> None:
    arrays = learnt()
    for _ in range(10):
        (arrays,) = update([item(arrays, *one((0, 2, 0, 0), (27, 3)), requests=(2700, 300))])
    assert seen([arrays]).alike[0]
    for _ in range(120):
        (arrays,) = update([item(arrays, *one((0, 2, 9, 2), (27, 30)), sampled=(27, 30), requests=(2700, 300))])
    found = seen([arrays])
    assert found.unlike[0]
    assert not found.alike[0]
    assert found.log_e[0] <= 0


def test_a_worse_neighbour_of_stable_stands_in_for_it() -> None:
    """A collector per arm, read out of phase: an outage shows in the canary's spans first."""
    hit = one((0, 0, 20, 0), (100, 50))
    beside = (np.array([[100.0, 40.0], [0.0, 0.0]]), hit[1][:, STABLE])
    plain, guarded = update([item(learnt(), *hit), item(learnt(), *hit, near=(None, beside))])
    assert plain["stake"][0, traces.FAILED].max() > 10
    assert guarded["stake"][0, traces.FAILED].max() < 0


# ── how often, how soon ──────────────────────────────────────────────────────────────────────────────────────


def test_a_good_canary_with_thirty_operations_is_hardly_ever_suspected() -> None:
    """60 rollouts of 80 looks: the share of the e-value that decides, 5 %, never reaches 1/alpha."""
    values = np.array(Rollouts(Traffic(30), 60, 20, PLAN).log_e)
    assert values.max() < log(1 / ALPHA)  # 20 times less than what a rollback needs
    assert np.exp(values[-1]).mean() < 1.3


def test_one_bad_operation_of_thirty_is_found_and_named() -> None:
    """1 % to 20 % of 20 spans in each interval, 40 rollouts."""
    traffic = Traffic(30, seed=2)
    traffic.failing[7, CANARY] = 0.20
    trials = Rollouts(traffic, 40, 20, PLAN)
    values = np.array(trials.log_e)
    crossed = (values >= log(1 / 0.05 / ALPHA)).argmax(0)
    assert (values[-1] >= log(1 / 0.05 / ALPHA)).all()
    assert np.median(crossed) <= 45
    named = trials.seen().named
    assert named[:, 7, traces.FAILED].all()
    assert named.sum() - 40 <= 2


def test_a_regression_that_comes_late_is_found_though_much_good_evidence_went_before() -> None:
    traffic = Traffic(5, seed=3)
    trials = Rollouts(traffic, 20, 40, [0.25] * 120)
    traffic.failing[2, CANARY] = 0.30
    for _ in range(12):
        trials.advance(0.25)
    assert (trials.log_e[-1] >= log(1 / 0.05 / ALPHA)).mean() > 0.9


def test_slow_spans_of_one_operation_are_found() -> None:
    traffic = Traffic(10, seed=4)
    traffic.buckets[3, CANARY] = [0.1, 0.2, 0.2, 0.1, 0.1, 0.2, 0.1]
    trials = Rollouts(traffic, 20, 40, [0.25] * 40)
    assert (trials.log_e[-1] >= log(1 / 0.05 / ALPHA)).all()
    assert trials.seen().named[:, 3, traces.SLOW].all()


def test_noise_between_pods_takes_the_evidence_down() -> None:
    arrays = learnt()
    for _ in range(10):
        (arrays,) = update([item(arrays, *one((5, 5, 12, 9), (100, 100)))])
    loud = Noise(np.full((1, 2), 2.0), np.full((1, 2), 0.04), np.full((1, 2), 2.0), np.full((1, 2), 1.0))
    assert 0 < seen([arrays], loud).each[0, 0, 0] < seen([arrays]).each[0, 0, 0] / 2


def test_padding_and_slots_without_an_operation_are_cash() -> None:
    found = seen([learnt(1), learnt(9)])
    assert abs(found.log_e).max() < 0.01
    assert exp(found.log_e[0]) <= 1

"""The state of the tests: what the formulas say, the same alone and among others, the same after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from service import FOUR_EDGES, RULES, START, TEN, Service, history, rules, run, simulated

from canaryd.adapters.memory import EDGES_MS
from canaryd.codec import decode, encode
from canaryd.kube.packed import pack_state
from canaryd.model import ArmCounts, Evidence, Floats, RolloutState, Stretch
from canaryd.stats.assess import Assessment, assess
from canaryd.stats.evidence import (
    CLOCK,
    EPOCH_INTERVALS,
    EPOCHS,
    Arrays,
    Batch,
    Item,
    Rules,
    clock,
    empty,
    noise,
    short,
    update,
)


def whole_rollout(seed: int = 1, edges: Floats = FOUR_EDGES, p_c: float = 0.006) -> list[tuple[Stretch, float, bool]]:
    """A past, three weights, warming pods, a pause that is not scored, a long stretch, and the end without stable."""
    service = Service(edges, seed)
    plan = history(service)
    plan += [(service.stretch(0.05, p_c, 1.1, young=0.4), 0.05, True) for _ in range(15)]
    plan += [(service.stretch(0.05, p_c), 0.05, False) for _ in range(3)]
    plan += [(service.stretch(0.25, p_c, 1.1, seconds=40.0 if i == 4 else 10.0), 0.25, True) for i in range(14)]
    plan += [(service.stretch(1.0, p_c), 1.0, True) for _ in range(4)]
    return plan


def numbers(arrays: Arrays, edges: Floats = FOUR_EDGES, by: Rules = RULES, gate: int = 0) -> Assessment:
    return assess(Batch([arrays], [edges], [by]), [gate], [0.25])


def same(a: Arrays, b: Arrays, tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape
        if tolerance:
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), name
        else:
            assert a[name].tobytes() == b[name].tobytes(), name


# ── the formulas once more, one number at a time ─────────────────────────────────────────────────────────────


def root(slope: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(100):  # to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def two_samples(
    x_c: float, n_c: float, x_s: float, n_s: float, a_c: float, a_s: float, r: float, d: float, worse: bool
) -> float:
    limit = (1 + r) * a_s + d
    if n_c == 0 or n_s == 0 or (a_c <= limit if worse else a_c >= limit):
        return 0.0

    def slope(p: float) -> float:
        q = min((1 + r) * p + d, 1 - 1e-12)
        return n_c * (1 + r) * (q - a_c) / (q * (1 - q)) + n_s * (p - a_s) / (p * (1 - p))

    touch = (a_c - d) / (1 + r)
    p = root(slope, a_s, touch) if worse else root(slope, max(touch, 1e-12), a_s)
    q = (1 + r) * p + d
    canary = x_c * log(a_c / q) + (n_c - x_c) * log((1 - a_c) / (1 - q))
    return canary + x_s * log(a_s / p) + (n_s - x_s) * log((1 - a_s) / (1 - p))


def one_sample(x: float, n: float, a: float, p: float) -> float:
    return x * log(a / p) + (n - x) * log((1 - a) / (1 - p)) if n and a > p else 0.0


def mean_of_exp(logs: list[float]) -> float:
    top = max(logs)
    return top + log(sum(exp(v - top) for v in logs) / len(logs))


class Slow:
    """STATISTICS 2, 4.2, 4.3, 4.6 and 4.10 in loops over rows, epochs, alternatives and gates."""

    def __init__(self, edges: Floats, by: Rules) -> None:
        m = 1 + len(edges)
        self.edges, self.by, self.m = [float(e) for e in edges], by, m
        self.past: list[list[tuple[float, float]]] = [[] for _ in range(m)]  # stable's x, n, oldest first
        self.mass = [0.0] * m
        self.judged: list[bool] | None = None
        self.worse = [[[0.0] * 10 for _ in range(m)] for _ in range(5)]
        self.fine = [[0.0] * len(by.gates) for _ in range(m)]
        self.hard, self.alone, self.split = [0.0] * 10, [0.0] * 10, [0.0] * 4
        self.intervals = self.begun = 0
        self.requests = self.seconds = 0.0
        self.weight = -1.0

    def rate(self, row: int) -> float:
        fade = 0.5 ** (1 / 4)
        age = range(len(self.past[row]) - 1, -1, -1)
        x = sum(fade**a * v for a, (v, _) in zip(age, self.past[row], strict=True))
        n = sum(fade**a * v for a, (_, v) in zip(age, self.past[row], strict=True))
        return min(max((x + 200 * self.long_run(row)) / (n + 200), 1e-7), 1 - 1e-6)

    def long_run(self, row: int) -> float:
        return (sum(x for x, _ in self.past[row]) + 0.5) / (sum(n for _, n in self.past[row]) + 1)

    def bets(self, rate: float, r: float, d: float) -> list[float]:
        edge = min((1 + r) * rate + d, 1 - 1e-6)
        odds = [g * edge / (1 - edge) for g in (1.15, 1.35, 1.7, 2.3, 3.5, 6, 12, 30, 100, 1000)]
        return [min(o / (1 + o), 1 - 1e-7) for o in odds]

    def slowdown(self, row: int, factor: float) -> float:
        """The difference at an edge that being slower by a factor makes."""
        whole = max(sum(self.mass), 1.0)
        logs = [log(self.edges[0]) - 1, *(log(e) for e in self.edges), log(self.edges[-1]) + 1]
        density = [max(self.mass[b] / whole / (logs[b + 1] - logs[b]), 1e-9) for b in range(self.m)]
        return max(sqrt(density[row - 1] * density[row]) * log(1 + factor), 1e-4)

    def tolerated(self, row: int) -> tuple[float, float]:
        if row == 0:
            return self.by.relative, self.by.absolute
        return 0.0, self.slowdown(row, self.by.slower)

    def unacceptable(self, row: int, gate: int) -> tuple[float, float]:
        per_second = self.requests / self.seconds if self.seconds else 0.0
        per_hour = self.by.budget_per_hour / (3600 * per_second) if per_second else 0.0
        budget = min(max(self.by.budget_share, per_hour) / self.by.gates[gate], 0.25)
        if row == 0:
            return self.by.margin_relative, self.by.margin_absolute + budget
        return 0.0, max(self.slowdown(row, self.by.margin_slower), budget)

    def take(self, stretch: Stretch, weight: float, scored: bool) -> None:
        c, s = stretch.canary, stretch.stable
        canary = [(c.failures - c.young_failures, c.requests - c.young_requests)]
        stable = [(s.failures - s.young_failures, s.requests - s.young_requests)]
        canary += [(float(x), c.timed) for x in c.slower]
        stable += [(float(x), s.timed) for x in s.slower]
        if scored:
            self.begin()
            for row in range(self.m):
                self.score(row, *canary[row], *stable[row])
            self.score_all_pods(c.failures, c.requests, *stable[0], weight)
            self.score_split(c.requests, c.requests + s.requests, weight)
            self.intervals += 1
        for row in range(self.m):
            self.past[row].append(stable[row])
        slower = [s.timed, *s.slower, 0.0]
        self.mass = [0.99 * self.mass[b] + slower[b] - slower[b + 1] for b in range(self.m)]
        if stretch.seconds <= 2.5 * self.by.interval:
            self.requests += s.requests + c.requests
            self.seconds += stretch.seconds

    def begin(self) -> None:
        if self.judged is None:
            rates = [self.rate(row) for row in range(self.m)]
            inside = [row > 0 and 2e-4 <= rates[row] <= 0.98 for row in range(self.m)]
            self.judged = [row == 0 or inside[row] or inside[row - 1] for row in range(self.m)]
        if self.intervals % 20 == 0 and self.begun < 5:
            self.begun += 1

    def score(self, row: int, x_c: float, n_c: float, x_s: float, n_s: float) -> None:
        rate, (r, d) = self.rate(row), self.tolerated(row)
        assert self.judged is not None
        for j, a_c in enumerate(self.bets(rate, r, d) if self.judged[row] else []):
            gain = two_samples(x_c, n_c, x_s, n_s, a_c, rate, r, d, True)
            for epoch in range(self.begun):
                self.worse[epoch][row][j] += gain
        for gate in range(len(self.by.gates)):
            r, d = self.unacceptable(row, gate)
            self.fine[row][gate] += two_samples(x_c, n_c, x_s, n_s, rate, rate, r, d, False)

    def score_all_pods(self, x: float, n: float, x_s: float, n_s: float, weight: float) -> None:
        r, rate, past = self.by.relative, self.rate(0), self.long_run(0)
        for j, a_c in enumerate(self.bets(rate, r, 0.02)):
            self.hard[j] += two_samples(x, n, x_s, n_s, a_c, rate, r, 0.02, True)
        if weight == 1.0 and n_s == 0:
            for j, a_c in enumerate(self.bets(past, r, 0.02)):
                self.alone[j] += one_sample(x, n, a_c, (1 + r) * past + 0.02)

    def score_split(self, n_c: float, n: float, weight: float) -> None:
        if weight != self.weight:
            self.weight, self.split = weight, [0.0] * 4
        w = min(weight, 0.999)
        low, high = w / 2, min(2 * w, (1 + w) / 2)
        self.split[0] += one_sample(n_c, n, w, low)
        self.split[2] += one_sample(n - n_c, n, 1 - low / 2, 1 - low)
        if weight < 1:
            self.split[1] += one_sample(n - n_c, n, 1 - w, 1 - high)
            self.split[3] += one_sample(n_c, n, (1 + high) / 2, high)

    def row_evidence(self, row: int) -> float:
        per_epoch = [mean_of_exp(self.worse[s][row]) for s in range(5)]
        return mean_of_exp([per_epoch[0]] * 4 + per_epoch[1:])  # half, and an eighth for each of the others

    def combined(self) -> float:
        assert self.judged is not None
        latency = [row for row in range(1, self.m) if self.judged[row]]
        parts = [log(0.4 if latency else 0.8) + self.row_evidence(0)]
        parts += [log(0.4 / len(latency)) + self.row_evidence(row) for row in latency]
        parts += [log(0.1) + mean_of_exp(self.hard), log(0.05) + mean_of_exp(self.alone), log(0.05)]
        return mean_of_exp(parts) + log(len(parts))


@pytest.mark.parametrize(
    ("edges", "by", "p_c"),
    [
        pytest.param(FOUR_EDGES, RULES, 0.006, id="four-edges"),
        pytest.param(np.zeros(0), RULES, 0.006, id="no-latency"),
        pytest.param(np.array([50.0]), RULES, 0.05, id="one-edge-clearly-worse"),
        pytest.param(
            FOUR_EDGES,
            rules(
                metrics=[
                    {"name": "errors", "kind": "errors", "tolerance": "20% + 0.1pp", "margin": "50% + 1pp"},
                    {"name": "latency", "kind": "latency", "tolerance": "10%", "margin": "50%"},
                ],
                budget={"share": "0.01%", "perHour": 5000},
                steps=[50],
            ),
            0.004,
            id="other-tolerances-and-a-budget-per-hour",
        ),
    ],
)
def test_all_rows_at_once_are_what_the_formulas_give_one_by_one(edges: Floats, by: Rules, p_c: float) -> None:
    slow, plan = Slow(edges, by), whole_rollout(3, edges, p_c)
    for stretch, weight, scored in plan:
        slow.take(stretch, weight, scored)
    fast = run(plan, edges, by)
    close = {"rel": 1e-9, "abs": 1e-9}
    assert fast["usable"].tolist() == slow.judged
    assert fast["worse"] == pytest.approx(np.array(slow.worse), **close)
    assert fast["fine"] == pytest.approx(np.array(slow.fine), **close)
    assert fast["hard"] == pytest.approx(np.array(slow.hard), **close)
    assert fast["alone"] == pytest.approx(np.array(slow.alone), **close)
    assert fast["share"] == pytest.approx(np.array(slow.split), **close)
    assert fast["mass"] == pytest.approx(np.array(slow.mass), **close)
    seen = numbers(fast, edges, by)
    assert seen.log_e[0] == pytest.approx(slow.combined(), **close)
    for row in np.flatnonzero(fast["usable"])[1:]:
        assert seen.row_log_e[0, row] == pytest.approx(slow.row_evidence(row), **close)
    best = max(slow.row_evidence(0), mean_of_exp(slow.hard), mean_of_exp(slow.alone))
    assert seen.row_log_e[0, 0] == pytest.approx(best, **close)


def test_the_numbers_shown_are_those_of_the_formulas() -> None:
    plan = whole_rollout(4)
    both = [s for s, _, scored in plan if scored and s.stable.requests > 0]
    n_c = [s.canary.requests - s.canary.young_requests for s in both]
    x_c = [s.canary.failures - s.canary.young_failures for s in both]
    expected_c = sum(x_c) / sum(n_c)
    expected_s = sum(n * s.stable.failures / s.stable.requests for n, s in zip(n_c, both, strict=True)) / sum(n_c)
    seen = numbers(run(plan))
    assert seen.rate_c[0, 0] == pytest.approx(expected_c)
    assert seen.rate_s[0, 0] == pytest.approx(expected_s)
    assert seen.difference[0, 0] == pytest.approx(expected_c - expected_s)
    assert seen.low[0, 0] < expected_c - expected_s < seen.high[0, 0]
    scored = [s for s, _, yes in plan if yes]
    assert seen.n_c[0, 0] == sum(s.canary.requests - s.canary.young_requests for s in scored)
    assert seen.n_s[0, 0] == sum(s.stable.requests for s in scored)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_stables_share_is_a_share_whatever_the_rounding(share: float) -> None:
    edges, now = np.zeros(0), empty(np.zeros(0), 3)
    for i in range(10):
        n_c, n_s = 7.0, 25.0 + 16 * i  # 7 / 25 * 25 > 7
        stretch = Stretch(START, START + TEN, ArmCounts(True, n_s, share * n_s), ArmCounts(True, n_c, 0.0))
        now = run([(stretch, 0.3, True)], edges, arrays=now)
        assert numbers(now, edges).rate_s[0, 0] == pytest.approx(share)
        assert 0 <= numbers(now, edges).rate_s[0, 0] <= 1


# ── many canaries at once ────────────────────────────────────────────────────────────────────────────────────

ISTIO = np.array(EDGES_MS[:-1])
KINDS: list[tuple[Floats, Rules]] = [
    (FOUR_EDGES, RULES),
    (ISTIO, rules(steps=[1, 2, 5, 10, 25, 50])),
    (np.zeros(0), rules(steps=[50])),
    (np.array([100.0]), rules(steps=[10, 100], metrics=[{"name": "latency", "kind": "latency"}])),
    (ISTIO[3:9], rules(metrics=[{"name": "errors", "kind": "errors"}])),
]


def run_together(chosen: Sequence[int]) -> list[Arrays]:
    plans = [whole_rollout(seed, KINDS[seed][0]) for seed in chosen]
    now = [empty(KINDS[i][0], len(KINDS[i][1].gates)) for i in chosen]
    for tick in zip(*plans, strict=True):
        items = [
            Item(arrays, *KINDS[i], stretch, weight, scored)
            for i, arrays, (stretch, weight, scored) in zip(chosen, now, tick, strict=True)
        ]
        now = update(items)
    return now


def test_a_canary_gets_the_same_numbers_alone_and_among_others_in_any_order() -> None:
    together = run_together([0, 1, 2, 3, 4])
    backwards = run_together([4, 3, 2, 1, 0])[::-1]
    batch = assess(Batch(together, *map(list, zip(*KINDS, strict=True))), [0] * 5, [0.25] * 5)  # type: ignore[arg-type]
    for i, (edges, by) in enumerate(KINDS):
        alone = run(whole_rollout(i, edges), edges, by)
        same(together[i], alone, 1e-12)
        same(together[i], backwards[i], 1e-12)
        seen, m = numbers(alone, edges, by), 1 + len(edges)
        assert batch.log_e[i] == pytest.approx(seen.log_e[0], rel=1e-12)
        assert batch.critical[i] == seen.critical[0]
        for name in ("row_log_e", "named", "usable", "fine", "missing", "low", "high", "tolerated", "margin"):
            found, wanted = getattr(batch, name)[i, :m], getattr(seen, name)[0]
            assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12, nan_ok=True), name


def test_padding_gathers_no_evidence() -> None:
    items = [Item(empty(e, len(r.gates)), e, r, *whole_rollout(i, e)[6]) for i, (e, r) in enumerate(KINDS)]
    batch = Batch(update(items), [e for e, _ in KINDS], [r for _, r in KINDS])
    seen = assess(batch, [0] * 5, [0.25] * 5)
    for i, (edges, by) in enumerate(KINDS):
        m, gates = 1 + len(edges), len(by.gates)
        assert not batch.a["worse"][i, :, m:].any()
        assert not batch.a["fine"][i, m:].any()
        assert not batch.a["fine"][i, :, gates:].any()
        assert not seen.usable[i, m:].any()
        assert not seen.named[i, m:].any()
        assert not seen.row_log_e[i, m:].any()


def test_nobody_at_all_is_no_trouble() -> None:
    assert update([]) == []


def test_the_arrays_that_come_in_are_left_alone() -> None:
    before = run(whole_rollout()[:12])
    kept = {k: v.copy() for k, v in before.items()}
    update([Item(before, FOUR_EDGES, RULES, *whole_rollout()[12])])
    same(before, kept)


# ── kept and continued ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cut", [0, 7, 22, 41])
def test_a_daemon_that_was_restarted_goes_on_bit_by_bit(cut: int) -> None:
    plan = whole_rollout(5)
    held = Evidence(through=START, edges=FOUR_EDGES, arrays=run(plan[:cut]))
    back = decode(Evidence, json.loads(json.dumps(encode(held))))
    arrays = {k: np.asarray(v) for k, v in back.arrays.items()}
    same(arrays, dict(held.arrays))
    same(run(plan[cut:], back.edges, RULES, arrays), run(plan))


def test_the_state_of_a_rollout_with_19_edges_5_gates_and_20_pods_fits_in_16_kilobytes() -> None:
    by = rules(steps=[5, 10, 25, 50, 100], interval="30s")
    arrays = run(simulated(), ISTIO, by)
    pods = {f"api-{arm}-6d4cf56db6-x{i:04d}": START for arm in "sc" for i in range(10)}
    stable, canary = (tuple(p for p in pods if f"-{arm}-" in p) for arm in "sc")
    held = Evidence(
        START, ISTIO, arrays, intervals=100, pods=pods, stable_pods=stable, canary_pods=canary, ahead=START + TEN
    )
    text = json.dumps(encode(held))
    assert clock(arrays, "intervals") == 100
    assert (arrays["served"] > 0).sum() == 10
    assert (arrays["pods_c"][0] > 0).sum() == 10
    assert len(text) <= 16 * 1024
    same({k: np.asarray(v) for k, v in decode(Evidence, json.loads(text)).arrays.items()}, arrays)


# ── what counts and when ─────────────────────────────────────────────────────────────────────────────────────

TESTS = ("worse", "hard", "alone", "fine", "share", "total", "spread", "usable")


@pytest.mark.parametrize("begun", [False, True], ids=["before-the-first", "in-the-middle"])
def test_a_stretch_that_is_only_learnt_from_changes_no_e_value(begun: bool) -> None:
    before = run(whole_rollout()[:20] if begun else [])
    after = run([(Service(FOUR_EDGES, 9).stretch(0.5, 0.5), 0.5, False)] * 3, arrays=before)
    for name in TESTS:
        assert after[name].tobytes() == before[name].tobytes(), name
    assert clock(after, "intervals") == clock(before, "intervals")
    assert clock(after, "weight") == clock(before, "weight")
    assert (after["long"][1] > before["long"][1]).all()


def test_a_bet_never_knows_the_stretch_it_is_made_on() -> None:
    """Two stretches that differ in stable's failures alone gain what the same bets pay, not what better bets would."""
    before = run(whole_rollout()[:20])
    quiet = Service(FOUR_EDGES, 9).stretch(0.25)
    loud = replace(quiet, stable=replace(quiet.stable, failures=quiet.stable.failures + 1))
    gains = [run([(s, 0.25, True)], arrays=before)["hard"] - before["hard"] for s in (quiet, loud)]
    again = replace(loud, stable=replace(loud.stable, failures=loud.stable.failures + 1))
    third = run([(again, 0.25, True)], arrays=before)["hard"] - before["hard"]
    assert third - gains[1] == pytest.approx(gains[1] - gains[0], rel=1e-6)  # linear in x_s: the bets are fixed


def test_a_new_weight_starts_the_split_over_and_nothing_else() -> None:
    service = Service(FOUR_EDGES)
    plan = history(service) + [(service.stretch(0.05), 0.05, True) for _ in range(8)]
    before, nxt = run(plan), service.stretch(0.05)
    stayed, moved = (run([(nxt, w, True)], arrays=before) for w in (0.05, 0.25))
    differ = {name for name in stayed if stayed[name].tobytes() != moved[name].tobytes()}
    assert differ == {"share", "clock"}
    clocks = [name for name in CLOCK if clock(stayed, name) != clock(moved, name)]
    assert clocks == ["weight", "share_c", "share_n"]
    assert clock(moved, "share_n") == nxt.canary.requests + nxt.stable.requests
    fresh = run([(nxt, 0.25, True)])
    assert moved["share"].tobytes() == fresh["share"].tobytes()


def test_an_epoch_begins_every_20_scored_intervals_until_there_are_five() -> None:
    service, edges = Service(np.zeros(0), rps=20), np.zeros(0)
    now = run(history(service), edges)
    begun = []
    for _ in range(EPOCH_INTERVALS * EPOCHS + 5):
        now = run([(service.stretch(0.0), 0.0, False), (service.stretch(0.3), 0.3, True)], edges, arrays=now)
        begun.append(int(now["worse"][:, 0].any(1).sum()))
    assert begun == [min(1 + t // 20, 5) for t in range(105)]
    assert clock(now, "epochs") == EPOCHS


def test_a_late_regression_does_not_pay_back_the_good_hours_before_it() -> None:
    service, edges = Service(np.zeros(0), rps=200), np.zeros(0)
    good = history(service) + [(service.stretch(0.25, 0.004), 0.25, True) for _ in range(60)]
    bad = [(service.stretch(0.25, 0.02), 0.25, True) for _ in range(6)]
    seen = run([*good, *bad], edges)
    per_epoch = seen["worse"][:, 0].max(1)
    assert per_epoch[3] > per_epoch[0] + 5
    assert numbers(seen, edges).log_e[0] > log(100)


@pytest.mark.parametrize(
    ("weight", "stable", "scored", "used"),
    [
        pytest.param(1.0, False, True, True, id="at-100-without-stable"),
        pytest.param(1.0, True, True, False, id="at-100-with-some-stable"),
        pytest.param(0.99, False, True, False, id="below-100-stable-is-missing"),
        pytest.param(1.0, False, False, False, id="not-scored"),
    ],
)
def test_only_at_100_percent_stables_past_is_the_yardstick(
    weight: float, stable: bool, scored: bool, used: bool
) -> None:
    service = Service(FOUR_EDGES)
    before = run(history(service))
    stretch = service.stretch(0.99 if stable else 1.0, 0.2)
    assert (stretch.stable.requests > 0) is stable
    after = run([(stretch, weight, scored)], arrays=before)
    assert bool(after["alone"].any()) is used
    if used:
        assert numbers(after).log_e[0] > log(100)
        assert numbers(after).row_log_e[0, 0] == pytest.approx(mean_of_exp(after["alone"].tolist()))


def test_without_any_past_of_stable_a_canary_alone_is_not_judged() -> None:
    stretch = Service(FOUR_EDGES).stretch(1.0, 0.9)
    assert not run([(stretch, 1.0, True)])["alone"].any()


def test_warming_pods_are_in_the_hard_channel_alone() -> None:
    service = Service(FOUR_EDGES)
    before = run(history(service))
    after = run([(service.stretch(0.25, 0.5, young=1.0), 0.25, True)], arrays=before)
    assert after["hard"].max() > 10
    assert not after["worse"].any()
    assert not after["fine"].any()
    assert not after["total"][:, :2].any()
    assert clock(after, "failures") > 0


def test_errors_that_are_not_a_metric_are_not_judged_anywhere() -> None:
    by = rules(metrics=[{"name": "latency", "kind": "latency"}])
    service = Service(FOUR_EDGES)
    after = run(
        [*history(service), (service.stretch(0.25, 0.9), 0.25, True), (service.stretch(1.0, 0.9), 1.0, True)], by=by
    )
    assert not after["worse"][:, 0].any()
    assert not after["hard"].any()
    assert not after["alone"].any()
    assert after["usable"][0] == 0


def test_the_judged_edges_are_chosen_once_from_stables_past() -> None:
    service = Service(FOUR_EDGES)
    now = run([*history(service), (service.stretch(0.25), 0.25, True)])
    chosen = now["usable"].copy()
    later = [(replace(s, stable=replace(s.stable, slower=np.zeros(4))), w, y) for s, w, y in whole_rollout(8)[6:]]
    assert run(later, arrays=now)["usable"].tolist() == chosen.tolist()
    assert chosen.sum() > 2


def test_an_edge_that_stable_was_never_timed_at_is_not_judged() -> None:
    service = Service(np.zeros(0))
    timed = Service(FOUR_EDGES)
    now = run([(s, w, y) for s, w, y in [*history(service), (timed.stretch(0.25), 0.25, True)]])
    assert now["usable"].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("kept", [[1, 2, 3], [0, 2, 3], [0, 1, 2], []], ids=["first", "middle", "last", "all"])
def test_an_edge_that_goes_missing_costs_evidence_at_that_edge_and_bends_no_tolerance(kept: list[int]) -> None:
    service = Service(FOUR_EDGES)
    before = run([*history(service), (service.stretch(0.25), 0.25, True)])
    whole = service.stretch(0.25)
    arms = {
        name: replace(arm, slower=arm.slower[kept], timed=arm.timed if kept else 0.0)
        for name, arm in (("stable", whole.stable), ("canary", whole.canary))
    }
    part = replace(whole, edges=FOUR_EDGES[kept], **arms)
    after, full = (run([(s, 0.25, True)], arrays=before) for s in (part, whole))
    rows = [0, *(1 + b for b in kept)]
    gone = [row for row in range(5) if row not in rows]
    assert after["worse"][:, rows].tobytes() == full["worse"][:, rows].tobytes()
    assert after["worse"][:, gone].tobytes() == before["worse"][:, gone].tobytes()
    assert after["mass"] / after["mass"].sum() == pytest.approx(before["mass"] / before["mass"].sum())


def test_an_arm_without_series_is_unknown_and_fades_nothing() -> None:
    before = run(whole_rollout()[:12])
    missing = Stretch(START, START + TEN, ArmCounts(present=False), ArmCounts(present=False))
    after = run([(missing, 0.05, True)], arrays=before)
    for name in ("quick", "long", "mass", *TESTS):
        assert after[name].tobytes() == before[name].tobytes(), name


def test_a_jumping_clock_does_not_make_the_service_look_idle() -> None:
    service = Service(FOUR_EDGES)
    before = run(history(service))
    long = replace(service.stretch(0.0), end=START + timedelta(hours=9))
    after = run([(long, 0.0, False)], arrays=before)
    assert clock(after, "seconds") == clock(before, "seconds") == 60
    assert clock(after, "requests") == clock(before, "requests")


def test_little_traffic_gets_its_budget_in_requests_and_never_more_than_a_quarter() -> None:
    for rps, expected in ((1000.0, 0.004), (10.0, 100 / 36000 / 0.25), (0.1, 0.25)):
        arrays = empty(np.zeros(0), 3)
        arrays["clock"][CLOCK.index("seconds")], arrays["clock"][CLOCK.index("requests")] = 100.0, 100 * rps
        _, d = Batch([arrays], [np.zeros(0)], [RULES]).margin()
        assert d[0, 0, 0] == pytest.approx(expected)
    _, unknown = Batch([empty(np.zeros(0), 3)], [np.zeros(0)], [RULES]).margin()
    assert unknown[0, 0].tolist() == pytest.approx([0.004, 0.001, 0.001])


# ── naming the culprit ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("p_c", "slower", "errors", "latency"),
    [
        pytest.param(0.04, 1.0, True, False, id="errors"),
        pytest.param(0.004, 1.6, False, True, id="latency"),
        pytest.param(0.04, 1.6, True, True, id="both"),
        pytest.param(0.004, 1.0, False, False, id="neither"),
    ],
)
def test_the_culprit_is_named_and_not_the_innocent(p_c: float, slower: float, errors: bool, latency: bool) -> None:
    service = Service(FOUR_EDGES, rps=200)
    plan = history(service) + [(service.stretch(0.25, p_c, slower), 0.25, True) for _ in range(15)]
    named = numbers(run(plan)).named[0]
    assert (bool(named[0]), bool(named[1:].any())) == (errors, latency)


def test_the_more_metrics_are_looked_at_the_more_a_lone_one_must_show() -> None:
    """e-BH at 5 %: one row among K needs K / 0.05; of two at once each needs half of that."""
    arrays = run(whole_rollout()[:7])
    arrays["usable"][:] = 1  # K = 5
    for log_e, rows, named in ((log(99), [1], 0), (log(101), [1], 1), (log(51), [1, 2], 2), (log(49), [1, 2], 0)):
        arrays["worse"][:], arrays["hard"][:] = -50.0, -50.0
        arrays["worse"][:, rows] = log_e
        assert numbers(arrays).named[0].sum() == named


# ── nothing breaks it ────────────────────────────────────────────────────────────────────────────────────────

sizes = st.sampled_from([0, 1, 7, 1000, 10**9, 10**12])


@st.composite
def stretches(draw: st.DrawFn) -> tuple[Stretch, float, bool]:
    arms = []
    for _ in range(2):
        n, timed = draw(sizes), draw(sizes)
        parts = sorted((draw(st.floats(0, 1)) for _ in range(4)), reverse=True)
        bad, young = round(n * draw(st.floats(0, 1))), draw(st.floats(0, 1))
        arms.append(
            ArmCounts(
                present=True,
                requests=float(n),
                failures=float(bad),
                young_requests=float(round((n - bad) * young) + round(bad * young)),
                young_failures=float(round(bad * young)),
                timed=float(timed),
                slower=np.array([float(round(timed * p)) for p in parts]),
            )
        )
    weight = draw(st.sampled_from([0.01, 0.5, 1.0]))
    stretch = Stretch(START, START + TEN, arms[0], arms[1], FOUR_EDGES)
    return stretch, weight, draw(st.booleans())


@settings(max_examples=25)
@given(st.lists(stretches(), min_size=1, max_size=6))
def test_whatever_was_counted_every_number_stays_finite(plan: list[tuple[Stretch, float, bool]]) -> None:
    arrays = run(plan)
    for name, values in arrays.items():
        known = np.isfinite(values) | (name == "nu") & (values > 0)  # inf: nothing that is uncertain has been used
        assert known.all(), name
    seen = numbers(arrays)
    for values in (seen.log_e, seen.row_log_e, seen.fine, seen.phi, seen.tolerated, seen.margin, seen.stable_worse):
        assert np.isfinite(values).all()
    assert (seen.missing >= 0).all()  # inf: never, at these rates


# ── an operator's own queries ────────────────────────────────────────────────────────────────────────────────

ORDERS = {
    "name": "orders",
    "kind": "query",
    "failures": {"stable": "f", "canary": "f"},
    "total": {"stable": "t", "canary": "t"},
    "tolerance": "5% + 1pp",
}
ERRORS_ONLY = {"name": "errors", "kind": "errors", "tolerance": "5% + 1pp"}
WITH_ORDERS = rules(metrics=[ERRORS_ONLY, ORDERS])


def counted_orders(n: float, x: float, orders: float, failed: float) -> ArmCounts:
    return ArmCounts(True, n, x, queries=np.array([[failed, orders]]))


def test_the_expectation_of_the_evidence_is_at_most_one_with_a_query_beside_errors() -> None:
    """Every outcome of one interval, weighted by its probability at the edge of what is tolerated."""
    before = empty(np.zeros(0), 3, queries=1)
    past = Stretch(START, START + TEN, counted_orders(200, 20, 80, 16), counted_orders(0, 0, 0, 0))
    (before,) = update([Item(before, np.zeros(0), WITH_ORDERS, past, 0.0, False)])
    n_c, n_s, o_c, o_s = 5, 7, 3, 4
    outcomes = [(a, b, c, d) for a in range(6) for b in range(8) for c in range(4) for d in range(5)]
    items = [
        Item(
            before,
            np.zeros(0),
            WITH_ORDERS,
            Stretch(START, START + TEN, counted_orders(n_s, b, o_s, d), counted_orders(n_c, a, o_c, c)),
            0.4,
            True,
        )
        for a, b, c, d in outcomes
    ]
    after = update(items)
    seen = assess(
        Batch(after, [np.zeros(0)] * len(items), [WITH_ORDERS] * len(items)), [0] * len(items), [0.4] * len(items)
    )
    assert (seen.usable == 1).all()
    a, b, c, d = np.array(outcomes).T
    for p, q in ((0.02, 0.3), (0.1, 0.2), (0.4, 0.01)):
        chance = binom.pmf(b, n_s, p) * binom.pmf(a, n_c, 1.05 * p + 0.01)
        chance = chance * binom.pmf(d, o_s, q) * binom.pmf(c, o_c, 1.05 * q + 0.01)
        assert chance.sum() == pytest.approx(1)
        assert (chance * np.exp(seen.log_e)).sum() <= 1 + 1e-9
        assert (chance * np.exp(seen.row_log_e[:, 1])).sum() <= 1 + 1e-9
    assert seen.row_log_e[:, 1].max() > 0.5


def test_queries_share_the_weight_of_errors_and_their_names_no_order() -> None:
    """A canary whose orders fail is found with half the weight of errors, whatever stands beside it."""
    arrays = empty(np.zeros(0), 3, queries=1)
    arrays["usable"][:] = 1
    arrays["worse"][:, 1] = 4.0
    alone = {**arrays, "usable": np.array([0.0, 1.0])}
    both, one = (numbers(a, np.zeros(0), WITH_ORDERS).log_e[0] for a in (arrays, alone))
    assert exp(both) == pytest.approx(0.4 * exp(4) + 0.4 + 0.2)
    assert exp(one) == pytest.approx(0.8 * exp(4) + 0.2)


def test_a_query_with_few_events_gets_the_budget_of_its_own_traffic() -> None:
    arrays = empty(np.zeros(0), 3, queries=1)
    arrays["clock"][CLOCK.index("seconds")], arrays["clock"][CLOCK.index("requests")] = 100.0, 100 * 1000.0
    arrays["long"][1] = [50_000.0, 500.0]  # one order for 100 requests: 10 a second
    r, d = Batch([arrays], [np.zeros(0)], [WITH_ORDERS]).margin()
    assert d[0, :, 0].tolist() == pytest.approx([0.004, 100 / 36000 / 0.25])
    assert r[0, :, 0].tolist() == [0.25, 0.25]


def test_each_query_has_a_tolerance_of_its_own() -> None:
    strict = {**ORDERS, "name": "zebra", "tolerance": "1% + 0.5pp", "margin": "10% + 2pp"}
    by = rules(metrics=[strict, ERRORS_ONLY, ORDERS], budget={"share": "1%", "perHour": 0})
    batch = Batch([empty(FOUR_EDGES, 3, queries=2)], [FOUR_EDGES], [by])
    (r, d), (margin_r, margin_d) = batch.tolerance(), batch.margin()
    assert (r[0, [0, 5, 6]].tolist(), d[0, [0, 5, 6]].tolist()) == ([0.05, 0.05, 0.01], [0.01, 0.01, 0.005])
    assert margin_r[0, [0, 5, 6], 0].tolist() == [0.25, 0.25, 0.1]
    assert margin_d[0, [0, 5, 6], 2].tolist() == pytest.approx([0.01, 0.01, 0.03])


def test_rollouts_with_and_without_queries_keep_apart() -> None:
    service = Service(FOUR_EDGES)
    plan = [*history(service), *((service.stretch(0.25, 0.03), 0.25, True) for _ in range(5))]
    by = rules(metrics=[ERRORS_ONLY, {"name": "latency", "kind": "latency"}, ORDERS])

    def ordered(arm: ArmCounts, failed: float, orders: float) -> ArmCounts:
        return replace(arm, queries=np.array([[failed, orders]]))

    with_orders = [
        (replace(s, stable=ordered(s.stable, 3, 90), canary=ordered(s.canary, 9, 30)), w, y) for s, w, y in plan
    ]
    alone, plain = empty(FOUR_EDGES, 3, queries=1), empty(FOUR_EDGES, 3)
    one, two, bare = alone, alone, plain
    for (s, w, y), (bare_s, _, _) in zip(with_orders, plan, strict=True):
        (one,) = update([Item(one, FOUR_EDGES, by, s, w, y)])
        bare, two = update([Item(bare, FOUR_EDGES, RULES, bare_s, w, y), Item(two, FOUR_EDGES, by, s, w, y)])
    same(one, two, 1e-12)
    assert one["worse"][:, 5].any()
    assert one["usable"][5] == 1
    expected = run(plan)
    same(bare, expected, 1e-12)
    assert one["worse"][:, 1:5] == pytest.approx(expected["worse"][:, 1:5])  # latency is what it is without the query
    assert one["mass"] == pytest.approx(expected["mass"])
    batch = Batch([bare, one], [FOUR_EDGES, FOUR_EDGES], [RULES, by])
    together, apart = assess(batch, [0, 0], [0.25, 0.25]), numbers(one, FOUR_EDGES, by)
    assert together.log_e[1] == pytest.approx(apart.log_e[0])
    assert together.critical == [numbers(bare).critical[0], apart.critical[0]]
    assert apart.critical[0][-1] == 5
    assert together.usable[0, 5] == 0


def test_a_query_that_counts_all_pods_in_one_says_nothing_about_how_pods_differ() -> None:
    arrays = empty(np.zeros(0), 3, stable_pods=5, queries=1)
    arrays["served"][:] = 1000.0
    arrays["long"][:] = [[20.0, 10.0], [5000.0, 500.0]]
    arrays["noise"][:, 0] = 20.0
    _, tau2, freedom = noise(Batch([arrays], [np.zeros(0)], [WITH_ORDERS]))
    assert freedom[0].tolist() == [4, 0]
    assert tau2[0, 1] == pytest.approx(0.02**2)  # the prior alone
    arrays["noise"][:, 1] = 20.0
    assert noise(Batch([arrays], [np.zeros(0)], [WITH_ORDERS]))[2][0].tolist() == [4, 4]


def test_what_a_query_still_needs_is_said_in_requests() -> None:
    """Orders are a tenth of the requests, so that as many more orders are ten times as many more requests."""
    arrays = empty(np.zeros(0), 3, queries=1)
    arrays["usable"][:] = 1
    arrays["long"][:] = [[40.0, 40.0], [10_000.0, 10_000.0]]
    arrays["clock"][[CLOCK.index("seconds"), CLOCK.index("requests")]] = 100.0, 10_000.0
    by = rules(metrics=[ERRORS_ONLY, ORDERS], budget={"share": "0.5%", "perHour": 0})
    alike = numbers(arrays, np.zeros(0), by).missing[0]
    assert alike[0] == pytest.approx(alike[1])
    arrays["long"][:, 1] /= 10
    fewer = numbers(arrays, np.zeros(0), by).missing[0]
    assert fewer[1] == pytest.approx(10 * alike[1], rel=0.05)


def with_orders(arm: ArmCounts, metrics: int, random: np.random.Generator) -> ArmCounts:
    """As many queries, each of which counts what the pods served, and 1 % of it as failed."""
    total = np.repeat(arm.pod_requests[:, None], metrics, axis=1)
    by_pod = np.stack([random.binomial(total.astype(int), 0.01).astype(float), total], axis=-1)
    return replace(arm, queries=by_pod.sum(0), pod_queries=by_pod)


def test_the_packed_state_of_20_metrics_and_20_pods_fits_in_16_kilobytes() -> None:
    queries, random = [{**ORDERS, "name": f"orders-{i:02d}"} for i in range(18)], np.random.default_rng(1)
    latency = {"name": "latency", "kind": "latency"}
    by = rules(steps=[5, 10, 25, 50, 75], metrics=[ERRORS_ONLY, latency, *queries])
    plan = simulated()
    pods = [tuple(sorted({p for s, *_ in plan for p in getattr(s, arm).pods})) for arm in ("stable", "canary")]
    arrays = empty(ISTIO, len(by.gates), *map(len, pods), queries=18)
    for stretch, weight, scored in plan:
        arms = {arm: with_orders(getattr(stretch, arm), 18, random) for arm in ("stable", "canary")}
        (arrays,) = update([Item(arrays, ISTIO, by, replace(stretch, **arms), weight, scored, (None, None), *pods)])
        arrays = short(arrays)
    stable, canary = ([f"api{arm}-6d4cf56db6-x{i:04d}" for i in range(10)] for arm in ("-stable", ""))
    held = Evidence(START, ISTIO, arrays, 100, tuple(q["name"] for q in queries), stable_pods=tuple(stable))
    state = RolloutState(evidence=replace(held, canary_pods=tuple(canary), pods=dict.fromkeys(canary, START)))
    assert (arrays["pods_c"] > 0).sum() == 10 * EPOCHS, "every test of every pod is under way"
    assert len(pack_state(state, 999)) <= 16 * 1024
    back = decode(RolloutState, json.loads(json.dumps(encode(state)))).evidence
    assert back is not None
    same({k: np.asarray(v) for k, v in back.arrays.items()}, arrays)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────


def test_evidence_kept_short_says_the_same_and_loses_nothing_that_was_counted() -> None:
    plan, exact, kept = whole_rollout(), run([]), run([])
    for one in plan:
        exact, kept = run([one], arrays=exact), short(run([one], arrays=kept))
    assert any(exact[name].tobytes() != kept[name].tobytes() for name in exact)
    same(kept, exact, 1e-5)
    for name in ("total", "served", "pods_c", "pods_s", "clock", "long", "mass"):
        assert kept[name].tobytes() == exact[name].tobytes(), name
    counted = exact["events"][:, 2:]
    assert kept["events"][:, 2:].tobytes() == counted.tobytes()
    for a, b in zip(vars_of(numbers(kept)), vars_of(numbers(exact)), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4, nan_ok=True)


def vars_of(assessment: Assessment) -> list[Floats]:
    return [v for f in fields(assessment) if isinstance(v := getattr(assessment, f.name), np.ndarray)]


def test_numbers_that_need_all_their_bits_are_kept_as_they_are() -> None:
    arrays = run(whole_rollout()[:12])
    arrays["events"][0, 3] = 2.0**40 + 1  # requests
    arrays["worse"][0, 0, 0], arrays["worse"][0, 0, 1] = -np.inf, np.nan
    found = short(arrays)
    assert found["events"][0, 3].tolist() == arrays["events"][0, 3].tolist()
    assert found["worse"][0, 0, 0] == -np.inf
    assert np.isnan(found["worse"][0, 0, 1])

"""The state of the tests of many rollouts side by side, and how one more interval changes it.

Shapes: C canaries, M = 1 + E rows (row 0: failed requests; row 1 + b: slower than edge b), S = 5 start epochs,
J = 10 alternatives, G gates (one for each step). Canaries with fewer edges or gates are padded; padding gathers no
evidence. Kept per rollout as plain arrays (11 kB for Istio's 19 edges and five steps), restored bit by bit.

    quick (2, M)     faded bad events and requests of stable          long (2, M)   the same, not faded
    mass (E + 1,)    faded stable durations per bucket                usable (M,)   rows that are judged, 0 or 1
    worse (S, M, J)  log e-values against "at most tolerably worse"   hard (J,)     the same, all pods, wide margin
    alone (J,)       the same where no stable is beside it         fine (M, G)   log e-values against "unacceptable"
    share (4,)       log e-values about the split, at `clock.weight`  total (M, 4)  x_c, n_c, x_s, n_s
    spread (M, 4)    sums for the interval of the difference          clock (9,)    see CLOCK

An epoch starts a fresh test every 20 intervals, so that a regression that comes late does not have to pay back the
good evidence before it; epochs that have not started are cash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canaryd.model import Floats, Stretch
from canaryd.policy import ErrorsMetric, LatencyMetric, Spec
from canaryd.stats import bernoulli, edges, predict, share

EPOCHS = 5
EPOCH_INTERVALS = 20
HARD_MARGIN = 0.02  # two percentage points: what no warm-up excuses
LONGEST_USUAL = 2.5  # intervals
LARGEST_MARGIN = 0.25  # the budget in requests never excuses more than this, however little traffic there is
CLOCK = ("intervals", "epochs", "seconds", "requests", "weight", "share_c", "share_n", "harmed", "failures")
_AT = {name: i for i, name in enumerate(CLOCK)}
J = len(predict.GRID)

Arrays = dict[str, Floats]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the tests need of a policy, as plain numbers. Shares are 0..1."""

    alpha: float
    beta: float
    errors: bool
    latency: bool
    relative: float  # tolerated: p_c <= (1 + relative) p_s + absolute
    absolute: float
    slower: float  # tolerated slowdown
    margin_relative: float  # must be ruled out before a step
    margin_absolute: float
    margin_slower: float
    budget_share: float
    budget_per_hour: float
    interval: float  # seconds
    gates: tuple[float, ...]  # share that passing each step leads to

    @classmethod
    def of(cls, spec: Spec) -> Rules:
        errors = next((m for m in spec.metrics if isinstance(m, ErrorsMetric)), None)
        latency = next((m for m in spec.metrics if isinstance(m, LatencyMetric)), None)
        e = errors or ErrorsMetric(name="errors", kind="errors")
        t = latency or LatencyMetric(name="latency", kind="latency")
        return cls(
            alpha=spec.alpha,
            beta=spec.beta,
            errors=errors is not None,
            latency=latency is not None,
            relative=e.tolerance.relative,
            absolute=e.tolerance.absolute,
            slower=t.tolerance,
            margin_relative=e.margin.relative,
            margin_absolute=e.margin.absolute,
            margin_slower=t.margin,
            budget_share=spec.budget.share,
            budget_per_hour=float(spec.budget.per_hour),
            interval=spec.interval.total_seconds(),
            gates=tuple(spec.next_weight(i) / 100 for i in range(len(spec.steps))),
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One rollout and one stretch. `scored`: it counts as evidence; else only stable's rates are learnt from it.

    `past`: it lies before the rollout, so what the canary's workload served (perhaps as stable) is no harm done by it.
    """

    arrays: Arrays
    edges: Floats  # (E,), the rollout's own, fixed when it began
    rules: Rules
    stretch: Stretch
    weight: float  # share 0..1 that the route had during the stretch
    scored: bool
    past: bool = False


def empty(latency_edges: Floats, gates: int) -> Arrays:
    """The state before any evidence."""
    m = 1 + len(latency_edges)
    shapes: dict[str, tuple[int, ...]] = {
        "quick": (2, m),
        "long": (2, m),
        "mass": (m,),
        "usable": (m,),
        "worse": (EPOCHS, m, J),
        "hard": (J,),
        "alone": (J,),
        "fine": (m, gates),
        "share": (4,),
        "total": (m, 4),
        "spread": (m, 4),
        "clock": (len(CLOCK),),
    }
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def clock(arrays: Mapping[str, Floats], name: str) -> float:
    """One number of the clock by its name."""
    return float(arrays["clock"][_AT[name]])


def seen_by(item: Item) -> tuple[Floats, Floats, Floats, Floats]:
    """x_c, n_c, x_s, n_s of one stretch over the rollout's rows, shape (M,); rows without data have n = 0."""
    arms = []
    for arm in (item.stretch.canary, item.stretch.stable):
        x, n = np.zeros(1 + len(item.edges)), np.zeros(1 + len(item.edges))
        x[0], n[0] = arm.failures - arm.young_failures, arm.requests - arm.young_requests
        common, mine, theirs = np.intersect1d(item.edges, item.stretch.edges, return_indices=True)
        if len(common):
            x[1 + mine], n[1 + mine] = arm.slower[theirs], arm.timed
        arms += [x, n]
    x_c, n_c, x_s, n_s = arms
    return x_c, n_c, x_s, n_s


class Batch:
    """Many rollouts' arrays, padded and stacked: every array has the canaries as its first axis."""

    def __init__(self, arrays: Sequence[Mapping[str, Floats]], all_edges: Sequence[Floats], rules: Sequence[Rules]):
        self.sizes = [(len(e), len(r.gates)) for e, r in zip(all_edges, rules, strict=True)]
        self.rules = rules
        e_max, g_max = (max(size) for size in zip(*self.sizes, strict=True))
        self.m = 1 + e_max
        self.edges = np.array([_padded_edges(e, e_max) for e in all_edges]).reshape(len(rules), e_max)
        self.real = np.array([np.arange(self.m) <= e for e, _ in self.sizes])
        wide = empty(np.zeros(e_max), g_max)
        self.a: Arrays = {k: np.zeros((len(rules), *v.shape)) for k, v in wide.items()}
        for i, one in enumerate(arrays):
            for k, v in one.items():
                _corner(self.a[k][i], v.shape)[...] = v
        gates = [[*r.gates, *[1.0] * (g_max - len(r.gates))] for r in rules]
        self.gates = np.array(gates)

    def unstack(self) -> list[Arrays]:
        """Back to one set of arrays per rollout, without the padding."""
        out = []
        for i, (e, g) in enumerate(self.sizes):
            like = empty(np.zeros(e), g)
            out.append({k: _corner(self.a[k][i], v.shape).copy() for k, v in like.items()})
        return out

    def per(self, name: str) -> Floats:
        """One number of every rule set, shape (C,)."""
        return np.array([float(getattr(r, name)) for r in self.rules])

    def clock(self, name: str) -> Floats:
        return self.a["clock"][:, _AT[name]]

    def rates(self) -> Floats:
        """Predicted stable shares of bad events, (C, M)."""
        return predict.stable_rate(
            self.a["quick"][:, 0], self.a["quick"][:, 1], self.a["long"][:, 0], self.a["long"][:, 1]
        )

    def tolerance(self) -> tuple[Floats, Floats]:
        """(r, d) of "at most tolerably worse", each (C, M)."""
        r = np.zeros((len(self.rules), self.m))
        d = np.full((len(self.rules), self.m), edges.LEAST_TOLERANCE)
        r[:, 0], d[:, 0] = self.per("relative"), self.per("absolute")
        if self.m > 1:
            d[:, 1:] = edges.share_tolerance(self.a["mass"], self.edges, self.per("slower")[:, None])
        return r, d

    def margin(self) -> tuple[Floats, Floats]:
        """(r, d) of "unacceptable" at each gate, (C, M, 1) and (C, M, G).

        d grows by the budget: max(share, failed requests per hour / requests per hour) / next weight (STATISTICS 4.10).
        """
        rate = self.clock("requests") / np.maximum(self.clock("seconds"), 1e-9)
        per_hour = np.where(rate > 0, self.per("budget_per_hour") / np.maximum(3600 * rate, 1e-9), 0.0)
        budget = np.maximum(self.per("budget_share"), per_hour)[:, None] / self.gates
        budget = np.minimum(budget, LARGEST_MARGIN)[:, None, :]
        r = np.zeros((len(self.rules), self.m, 1))
        r[:, 0, 0] = self.per("margin_relative")
        d = np.broadcast_to(budget, (len(self.rules), self.m, self.gates.shape[1])).copy()
        d[:, 0] += self.per("margin_absolute")[:, None]
        if self.m > 1:
            slow = edges.share_tolerance(self.a["mass"], self.edges, self.per("margin_slower")[:, None])
            d[:, 1:] = np.maximum(slow[..., None], d[:, 1:])
        return r, d


def _corner(whole: Floats, shape: tuple[int, ...]) -> Floats:
    return whole[tuple(slice(0, n) for n in shape)]


def _padded_edges(own: Floats, size: int) -> Floats:
    last = own[-1] if len(own) else 1.0
    return np.concatenate([own, last * np.exp(np.arange(1.0, size - len(own) + 1))])


def update(items: Sequence[Item]) -> list[Arrays]:
    """One stretch for each of many rollouts; returns their new arrays. The old ones are not changed."""
    if not items:
        return []
    batch = Batch([i.arrays for i in items], [i.edges for i in items], [i.rules for i in items])
    counts = np.zeros((4, len(items), batch.m))
    for i, item in enumerate(items):
        for row, values in zip(counts, seen_by(item), strict=True):
            row[i, : len(values)] = values
    scored = np.array([i.scored for i in items])
    _score(batch, items, counts, scored)
    _learn(batch, items, counts)
    return batch.unstack()


def _score(batch: Batch, items: Sequence[Item], counts: Floats, scored: Mask) -> None:
    """Bet on this stretch with what was known before it."""
    a, rates = batch.a, batch.rates()
    _begin(batch, rates, scored)
    x_c, n_c, x_s, n_s = (np.where(scored[:, None], c, 0.0) for c in counts)
    r, d = batch.tolerance()
    bets = predict.alternatives(rates, r, d)
    x_c3, n_c3, x_s3, n_s3, rates3 = (v[..., None] for v in (x_c, n_c, x_s, n_s, rates))
    gained = bernoulli.log_e_worse(x_c3, n_c3, x_s3, n_s3, bets, rates3, r[..., None], d[..., None])
    gained *= a["usable"][..., None]
    begun = np.arange(EPOCHS)[None, :] < batch.clock("epochs")[:, None]
    a["worse"] += gained[:, None] * begun[..., None, None]
    margin_r, margin_d = batch.margin()
    a["fine"] += bernoulli.log_e_fine(x_c3, n_c3, x_s3, n_s3, rates3, rates3, margin_r, margin_d)
    _score_all_pods(batch, items, x_s[:, 0], n_s[:, 0], rates[:, 0], scored)
    _score_split(batch, items, scored)
    _sum_up(batch, x_c, n_c, x_s, n_s)
    a["clock"][:, _AT["intervals"]] += scored


def _begin(batch: Batch, rates: Floats, scored: Mask) -> None:
    """Choose the judged rows before the first scored interval; start a new epoch every 20 intervals."""
    a, t = batch.a, batch.clock("intervals")
    first = scored & (t == 0) & (a["usable"].sum(1) == 0)
    usable = np.zeros_like(a["usable"])
    usable[:, 0] = batch.per("errors")
    if batch.m > 1:
        known = a["long"][:, 1, 1:] > 0
        usable[:, 1:] = edges.informative(rates[:, 1:]) & known & batch.real[:, 1:]
        usable[:, 1:] *= batch.per("latency")[:, None]
    a["usable"] = np.where(first[:, None], usable, a["usable"])
    due = scored & (t % EPOCH_INTERVALS == 0) & (batch.clock("epochs") < EPOCHS)
    a["clock"][:, _AT["epochs"]] += due


def _score_all_pods(batch: Batch, items: Sequence[Item], x_s: Floats, n_s: Floats, rate: Floats, scored: Mask) -> None:
    """Errors of all pods, warming ones too, beyond two points; and a canary that has no stable beside it."""
    x = np.array([i.stretch.canary.failures for i in items]) * scored
    n = np.array([i.stretch.canary.requests for i in items]) * scored
    judged = batch.per("errors")[:, None]
    relative, margin = batch.per("relative"), np.full(len(items), HARD_MARGIN)
    bets = predict.alternatives(rate, relative, margin)
    x2, n2, x_s2, n_s2, rate2, relative2 = (v[:, None] for v in (x, n, x_s, n_s, rate, relative))
    batch.a["hard"] += judged * bernoulli.log_e_worse(x2, n2, x_s2, n_s2, bets, rate2, relative2, HARD_MARGIN)
    # Without stable traffic the only yardstick is stable's own past; a shared outage would look like a regression,
    # so this is used at 100 % only, where stable cannot have traffic.
    long_x, long_n = batch.a["long"][:, 0, 0], batch.a["long"][:, 1, 0]
    past = (long_x + 0.5) / (long_n + 1)
    limit = np.clip((1 + relative) * past + margin, 0, 1 - 1e-6)
    lonely = np.array([i.weight >= 1.0 for i in items]) & (n_s == 0) & (long_n > 0)
    bets = predict.alternatives(past, relative, margin)
    batch.a["alone"] += judged * np.where(lonely[:, None], bernoulli.log_e_above(x2, n2, bets, limit[:, None]), 0.0)


def _score_split(batch: Batch, items: Sequence[Item], scored: Mask) -> None:
    """Requests of both arms against the weight; starts over when the weight changed."""
    weight = np.array([i.weight for i in items])
    n_c = np.array([i.stretch.canary.requests for i in items]) * scored
    n = n_c + np.array([i.stretch.stable.requests for i in items]) * scored
    a = batch.a
    changed = scored & (a["clock"][:, _AT["weight"]] != weight)
    a["share"][changed] = 0.0
    for name in ("share_c", "share_n"):
        a["clock"][changed, _AT[name]] = 0.0
    a["clock"][:, _AT["weight"]] = np.where(scored, weight, a["clock"][:, _AT["weight"]])
    a["share"] += share.log_e_steps(n_c, n, weight)
    a["clock"][:, _AT["share_c"]] += n_c
    a["clock"][:, _AT["share_n"]] += n


def _sum_up(batch: Batch, x_c: Floats, n_c: Floats, x_s: Floats, n_s: Floats) -> None:
    """Totals, and the sums of canaryd.stats.difference over the intervals in which both arms served."""
    batch.a["total"] += np.stack([x_c, n_c, x_s, n_s], axis=-1)
    both = (n_c > 0) & (n_s > 0)
    ratio = np.where(both, n_c / np.maximum(n_s, 1.0), 0.0)
    bad, served = np.where(both, x_c, 0.0), np.where(both, n_c, 0.0)
    batch.a["spread"] += np.stack([bad - ratio * x_s, served, ratio * n_c, bad], axis=-1)


def _learn(batch: Batch, items: Sequence[Item], counts: Floats) -> None:
    """What stable did becomes part of the past; after the bets, never before."""
    _, _, x_s, n_s = counts
    a = batch.a
    seen = np.array([i.stretch.stable.present for i in items])[:, None]
    a["quick"] = np.where(seen[..., None], predict.FADE * a["quick"] + np.stack([x_s, n_s], axis=1), a["quick"])
    a["long"] += np.stack([x_s, n_s], axis=1)
    if batch.m > 1:
        timed, slower = n_s[:, 1], x_s[:, 1:]
        buckets = -np.diff(np.concatenate([timed[:, None], slower, np.zeros((len(items), 1))], axis=1), axis=1)
        buckets = np.where(batch.real, buckets, 0.0)
        # Where some edges are missing, the buckets between the others are unknown (and would come out negative).
        whole = np.all((n_s[:, 1:] == timed[:, None]) | ~batch.real[:, 1:], axis=1)[:, None]
        a["mass"] = np.where(seen & whole, edges.HISTOGRAM_FADE * a["mass"] + buckets, a["mass"])
    a["clock"][:, _AT["harmed"]] += [0.0 if i.past else i.stretch.canary.requests for i in items]
    a["clock"][:, _AT["failures"]] += [0.0 if i.past else i.stretch.canary.failures for i in items]
    # The rate of requests is learnt from ordinary stretches only: one that a jumping clock made long would make it
    # look small, and with it the budget per request large.
    usual = np.array([i.stretch.seconds <= LONGEST_USUAL * i.rules.interval for i in items])
    requests = np.array([i.stretch.stable.requests + i.stretch.canary.requests for i in items])
    a["clock"][:, _AT["requests"]] += usual * requests
    a["clock"][:, _AT["seconds"]] += usual * np.array([i.stretch.seconds for i in items])

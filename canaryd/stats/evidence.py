"""The state of the tests of many rollouts side by side, and how one more interval changes it.

Shapes: C canaries, M = 1 + E + Q rows (row 0: failed requests; row 1 + b: slower than edge b; the last Q: failures of
the operator's own queries, by name), S = 5 start epochs, J = 10 alternatives, G gates (one for each step), P and K pods
of stable and of the canary. Whatever is shorter is padded, and padding gathers no evidence. Kept per rollout as plain
arrays, restored bit by bit; what is large in them and no count is kept `short`.

    quick (2, M)     faded bad events and requests of stable          long (2, M)   the same, not faded
    mass (E + 1,)    faded stable durations per bucket                usable (M,)   rows that are judged, 0 or 1
    worse (S, M, J)  log e-values against "at most tolerably worse"   hard (J,)     the same, all pods, wide margin
    alone (J,)       the same where no stable is beside it            fine (M, G)   log e-values against "unacceptable"
    share (4,)       log e-values about the split, at `clock.weight`  total (M, 4)  x_c, n_c, x_s, n_s
    spread (M, 4)    sums for the interval of the difference          clock (11,)   see CLOCK
    noise (2, M)     sums of r^2 and of its variance v                residual (P, M)  sums of r of each stable pod
    served (P,)      requests of each stable pod                      past (2, M)   tau^2 of past pods, its freedom
    pods_c (S, K)    requests of each canary pod since each epoch     pods_s (S, P) the same of stable's
    events (S, 4, M) expected events c, s and requests c, s           phi, nu (S, M) inflation when last scored
    gauge_c (A, K, 2) sum of ln(value), and how many, of each gauge   gauge_s (A, P, 2) the same of stable's pods
    gauge (A, 2)     intervals, and the most that a look has shown: see canaryd.stats.gauge

An epoch starts a fresh test every 20 intervals, so that a regression that comes late does not have to pay back the
good evidence before it; epochs that have not started are cash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canaryd.model import ArmCounts, Floats, Stretch
from canaryd.policy import ErrorsMetric, LatencyMetric, QueryMetric, Spec
from canaryd.stats import bernoulli, dispersion, edges, gauge, guard, predict, share

EPOCHS = 5
EPOCH_INTERVALS = 20
HARD_MARGIN = 0.02  # two percentage points: what no warm-up excuses
LONGEST_USUAL = 2.5  # intervals
OUTAGE_Z = 6.0  # stable failing so much more than its past is an outage; nothing is promoted into one
MOST_PODS = 32  # of each arm that are told apart; more teach nothing new about how pods differ
LARGEST_MARGIN = 0.25  # the budget in requests never excuses more than this, however little traffic there is
CLOCK = (
    "intervals",
    "epochs",
    "seconds",
    "requests",
    "weight",
    "share_c",
    "share_n",
    "harmed",
    "failures",
    "outage",
    "phi0",
)
_AT = {name: i for i, name in enumerate(CLOCK)}
J = len(predict.GRID)
_KNOWLEDGE = ("quick", "long", "mass", "noise", "residual", "served", "past", "clock")

_LARGE = ("worse", "fine", "events", "phi", "nu", "noise", "residual")

Arrays = dict[str, Floats]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is tolerated and what must be ruled out of a share of failures: p_c <= (1 + relative) p_s + absolute."""

    relative: float
    absolute: float
    margin_relative: float
    margin_absolute: float

    @classmethod
    def of(cls, metric: ErrorsMetric | QueryMetric) -> Bounds:
        t, m = metric.tolerance, metric.margin
        return cls(t.relative, t.absolute, m.relative, m.absolute)


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
    queries: tuple[Bounds, ...] = ()  # of the metrics of kind query, by name
    gauges: tuple[tuple[str, float], ...] = ()  # metrics of kind gauge, by name, and how much higher is tolerated

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
            queries=tuple(Bounds.of(metric) for metric in spec.queries()),
            gauges=tuple((metric.name, metric.tolerance) for metric in spec.gauges()),
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
    around: tuple[Stretch | None, Stretch | None] = (None, None)  # the neighbours in time, for the scrape-phase guard
    stable_pods: tuple[str, ...] = ()  # names behind the pod axes of the arrays
    canary_pods: tuple[str, ...] = ()
    past: bool = False  # before the rollout began: what the canary's workload served then is no harm done by it


def empty(
    latency_edges: Floats, gates: int, stable_pods: int = 0, canary_pods: int = 0, queries: int = 0, gauges: int = 0
) -> Arrays:
    """The state before any evidence. Without room for `queries` and `gauges` those of the rules are not judged."""
    m, p, k = 1 + len(latency_edges) + queries, stable_pods, canary_pods
    shapes: dict[str, tuple[int, ...]] = {
        "quick": (2, m),
        "long": (2, m),
        "mass": (1 + len(latency_edges),),
        "usable": (m,),
        "worse": (EPOCHS, m, J),
        "hard": (J,),
        "alone": (J,),
        "fine": (m, gates),
        "share": (4,),
        "total": (m, 4),
        "spread": (m, 4),
        "clock": (len(CLOCK),),
        "noise": (2, m),
        "residual": (p, m),
        "served": (p,),
        "past": (2, m),
        "pods_c": (EPOCHS, k),
        "pods_s": (EPOCHS, p),
        "events": (EPOCHS, 4, m),
        "phi": (EPOCHS, m),
        "nu": (EPOCHS, m),
        "gauge_c": (gauges, k, 2),
        "gauge_s": (gauges, p, 2),
        "gauge": (gauges, 2),
    }
    arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
    arrays["phi"][:], arrays["nu"][:] = 1.0, np.inf
    return arrays


def with_pods(arrays: Mapping[str, Floats], stable_pods: int, canary_pods: int) -> Arrays:
    """The same state with room for pods that have appeared since; never fewer."""
    edges, gates = len(arrays["mass"]) - 1, arrays["fine"].shape[1]
    wide = empty(np.zeros(edges), gates, stable_pods, canary_pods, queries_in(arrays), gauges_in(arrays))
    for name, value in arrays.items():
        _corner(wide[name], value.shape)[...] = value
    return wide


def forget(arrays: Mapping[str, Floats]) -> Arrays:
    """The same state with nothing proven yet: what is known of stable, of its pods and of the traffic stays."""
    stable, canary = (arrays[k].shape[1] for k in ("pods_s", "pods_c"))
    more = queries_in(arrays), gauges_in(arrays)
    fresh = empty(arrays["mass"][1:], arrays["fine"].shape[1], stable, canary, *more)
    for name in _KNOWLEDGE:
        fresh[name][...] = arrays[name]
    fresh["clock"][[_AT[n] for n in ("intervals", "epochs", "weight", "share_c", "share_n", "phi0")]] = 0.0
    return fresh


def short(arrays: Mapping[str, Floats]) -> Arrays:
    """The same state with the large arrays in 24 bits, so that it takes half the room: a relative 6e-8 at most.

    Whole numbers stay exact, so that nothing counted is lost. To be applied after each stretch, so that it makes no
    difference where a process ended and another went on.
    """
    out = dict(arrays)
    for name in _LARGE:
        value = arrays[name]
        with np.errstate(under="ignore"):  # what is too small for 24 bits is nothing
            out[name] = np.where(value == np.rint(value), value, value.astype(np.float32).astype(np.float64))
    return out


def renewed(arrays: Mapping[str, Floats], latency_edges: Floats, gates: int, queries: int, gauges: int) -> Arrays:
    """Room for another plan or for edges that turned up late; what is known of stable's errors and edges stays.

    Nothing is proven any more. `latency_edges` are those so far, or the first there are. What is known of query rows
    is forgotten, since they may be others.
    """
    rows = len(arrays["mass"])  # errors and edges so far
    stable, canary = (arrays[k].shape[1] for k in ("pods_s", "pods_c"))
    fresh = empty(latency_edges, gates, stable, canary, queries, gauges)
    for name in ("quick", "long", "noise", "residual", "past"):
        fresh[name][:, :rows] = arrays[name][:, :rows]
    fresh["mass"][:rows], fresh["served"][:], fresh["clock"][:] = arrays["mass"], arrays["served"], arrays["clock"]
    fresh["clock"][[_AT[n] for n in ("intervals", "epochs")]] = 0.0
    return fresh


def fits(arrays: Mapping[str, Floats], edges: Floats, gates: int, *room: int) -> bool:
    """The arrays are those of `empty` with the same arguments."""
    wanted = empty(edges, gates, *room)
    return {k: v.shape for k, v in arrays.items()} == {k: v.shape for k, v in wanted.items()}


def queries_in(arrays: Mapping[str, Floats]) -> int:
    """How many metrics of kind query the arrays have room for."""
    return len(arrays["usable"]) - len(arrays["mass"])


def gauges_in(arrays: Mapping[str, Floats]) -> int:
    """How many metrics of kind gauge the arrays have room for."""
    return len(arrays.get("gauge", ()))


def clock(arrays: Mapping[str, Floats], name: str) -> float:
    """One number of the clock by its name."""
    return float(arrays["clock"][_AT[name]])


def seen_by(item: Item) -> tuple[Floats, Floats, Floats, Floats]:
    """x_c, n_c, x_s, n_s of one stretch over the rollout's rows, shape (M,); rows without data have n = 0."""
    stretch, queries = item.stretch, queries_in(item.arrays)
    canary, stable = (rows_of(arm, stretch.edges, item.edges, queries) for arm in (stretch.canary, stretch.stable))
    return (*canary, *stable)


def rows_of(arm: ArmCounts, theirs: Floats, mine: Floats, queries: int = 0) -> tuple[Floats, Floats]:
    """Bad events and requests of one arm over the rows of the edges `mine` and of queries, warming pods left out."""
    x, n = np.zeros((2, 1 + len(mine) + queries))
    x[0], n[0] = arm.failures - arm.young_failures, arm.requests - arm.young_requests
    at, of = _shared(mine, theirs)
    if len(at):
        x[1 + at], n[1 + at] = arm.slower[of], arm.timed
    if queries and len(arm.queries) == queries:
        x[-queries:], n[-queries:] = arm.queries.T
    return x, n


def pods_of(stretch: Stretch, mine: Floats, names: tuple[str, ...], queries: int = 0) -> tuple[Floats, Floats]:
    """Bad events and requests of each named stable pod over the rows of the edges `mine` and of queries, (P, M)."""
    arm = stretch.stable
    x, n = np.zeros((2, len(names), 1 + len(mine) + queries))
    slots = _slots(names, arm.pods)
    known = slots >= 0
    x[slots[known], 0], n[slots[known], 0] = arm.pod_failures[known], arm.pod_requests[known]
    at, of = _shared(mine, stretch.edges)
    if len(at):
        x[np.ix_(slots[known], 1 + at)] = arm.pod_slower[np.ix_(known, of)]
        n[np.ix_(slots[known], 1 + at)] = arm.pod_timed[known][:, None]
    if queries and arm.pod_queries.shape[1] == queries:
        x[slots[known], -queries:], n[slots[known], -queries:] = np.moveaxis(arm.pod_queries[known], -1, 0)
    return x, n


def _slots(names: tuple[str, ...], pods: tuple[str, ...]) -> NDArray[np.intp]:
    """Index of each pod among the names; -1 for those that are not told apart."""
    at = {name: i for i, name in enumerate(names)}
    return np.array([at.get(pod, -1) for pod in pods], dtype=np.intp)


def _shared(mine: Floats, theirs: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the edges that both have."""
    if mine is theirs or np.array_equal(mine, theirs):
        every = np.arange(len(mine))
        return every, every
    _, a, b = np.intersect1d(mine, theirs, return_indices=True)
    return a, b


class Batch:
    """Many rollouts' arrays, padded and stacked: every array has the canaries as its first axis."""

    def __init__(self, arrays: Sequence[Mapping[str, Floats]], all_edges: Sequence[Floats], rules: Sequence[Rules]):
        self.sizes = [
            (len(e), len(r.gates), one["pods_s"].shape[1], one["pods_c"].shape[1], gauges_in(one), queries_in(one))
            for e, r, one in zip(all_edges, rules, arrays, strict=True)
        ]
        self.rules = rules
        _, g_max, p_max, k_max, a_max, _ = (max(size) for size in zip(*self.sizes, strict=True))
        self.m = 1 + max(e + q for e, *_, q in self.sizes)
        self.edges = np.array([_padded_edges(e, self.m - 1) for e in all_edges]).reshape(len(rules), self.m - 1)
        row = np.arange(self.m)
        self.real = np.array([row <= e for e, *_ in self.sizes])  # errors and edges; also: buckets
        self.query = np.array([(row > e) & (row <= e + q) for e, *_, q in self.sizes])
        self.bounds = self._bounds()
        wide = empty(np.zeros(self.m - 1), g_max, p_max, k_max, gauges=a_max)
        self.a: Arrays = {k: np.repeat(v[None], len(rules), axis=0) for k, v in wide.items()}
        for i, one in enumerate(arrays):
            for k, v in one.items():
                _corner(self.a[k][i], v.shape)[...] = v
        gates = [[*r.gates, *[1.0] * (g_max - len(r.gates))] for r in rules]
        self.gates = np.array(gates)

    def unstack(self) -> list[Arrays]:
        """Back to one set of arrays per rollout, without the padding."""
        out = []
        for i, (e, g, p, k, a, q) in enumerate(self.sizes):
            like = empty(np.zeros(e), g, p, k, q, a)
            out.append({k: _corner(self.a[k][i], v.shape).copy() for k, v in like.items()})
        return out

    def _bounds(self) -> Floats:
        """(4, C, M): the four numbers of `Bounds` where a row is a query's, else 0."""
        out = np.zeros((4, len(self.rules), self.m))
        for i, (rules, (e, *_, q)) in enumerate(zip(self.rules, self.sizes, strict=True)):
            for k, b in enumerate(rules.queries[:q]):
                out[:, i, 1 + e + k] = b.relative, b.absolute, b.margin_relative, b.margin_absolute
        return out

    def gauge_tolerance(self) -> Floats:
        """(C, A) how much higher is tolerated, as a share."""
        out = np.ones(self.a["gauge"].shape[:2])
        for i, (rules, (*_, a, _)) in enumerate(zip(self.rules, self.sizes, strict=True)):
            out[i, :a] = [tolerance for _, tolerance in rules.gauges[:a]]
        return out

    def per_request(self) -> Floats:
        """(C, M) how much of what a row counts there is for one request of stable; 1 but for queries."""
        counted = self.a["long"][:, 1]
        return np.asarray(np.where(self.query, counted / np.maximum(counted[:, :1], 1.0), 1.0))

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
        return np.where(self.query, self.bounds[0], r), np.where(self.query, self.bounds[1], d)

    def margin(self) -> tuple[Floats, Floats]:
        """(r, d) of "unacceptable" at each gate, (C, M, 1) and (C, M, G).

        d grows by the budget: max(share, failed requests per hour / requests per hour) / next weight (STATISTICS 4.10);
        for a query, what it counts stands for requests.
        """
        rate = (self.clock("requests") / np.maximum(self.clock("seconds"), 1e-9))[:, None] * self.per_request()
        per_hour = np.where(rate > 0, self.per("budget_per_hour")[:, None] / np.maximum(3600 * rate, 1e-9), 0.0)
        budget = np.maximum(self.per("budget_share")[:, None], per_hour)[..., None] / self.gates[:, None]
        d = np.minimum(budget, LARGEST_MARGIN)
        r = self.bounds[2][..., None].copy()
        r[:, 0, 0] = self.per("margin_relative")
        d[:, 0] += self.per("margin_absolute")[:, None]
        d += self.bounds[3][..., None]
        if self.m > 1:
            slow = edges.share_tolerance(self.a["mass"], self.edges, self.per("margin_slower")[:, None])
            d[:, 1:] = np.where(self.query[:, 1:, None], d[:, 1:], np.maximum(slow[..., None], d[:, 1:]))
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
    advance(batch, counted(batch, items))
    return batch.unstack()


def advance(batch: Batch, counts: Counts) -> None:
    """One interval for every canary of the batch, in place; no loop over canaries."""
    if counts.scored.any():
        _score(batch, counts)
    _learn(batch, counts)


@dataclass(slots=True)
class Counts:
    """One stretch of every canary: rows (C, M), stable pods (C, P, M), neighbours (2, C, M), the rest (C,)."""

    scored: Mask
    weight: Floats  # share 0..1
    seconds: Floats
    stable_present: Mask
    x_c: Floats
    n_c: Floats
    x_s: Floats
    n_s: Floats
    all_x_c: Floats  # (C,) failures and requests of all pods, warming ones too
    all_n_c: Floats
    all_n_s: Floats
    x_pods: Floats
    n_pods: Floats
    pods_c: Floats  # (C, K) requests of each canary pod
    x_near: Floats
    n_near: Floats
    near: Mask  # (2, C)
    past: Mask  # (C,) before the rollout began
    gauge_c: Floats  # (C, A, K) values, nan where there is none
    gauge_s: Floats  # (C, A, P)

    @classmethod
    def nothing(cls, batch: Batch) -> Counts:
        """Zeros of the right shapes."""
        c, m, p = len(batch.rules), batch.m, batch.a["served"].shape[1]
        row, one, no = np.zeros((c, m)), np.zeros(c), np.zeros(c, dtype=bool)
        return cls(
            scored=no,
            weight=one,
            seconds=one,
            stable_present=no,
            x_c=row,
            n_c=row,
            x_s=row,
            n_s=row,
            all_x_c=one,
            all_n_c=one,
            all_n_s=one,
            x_pods=np.zeros((c, p, m)),
            n_pods=np.zeros((c, p, m)),
            pods_c=np.zeros((c, batch.a["pods_c"].shape[2])),
            x_near=np.zeros((2, c, m)),
            n_near=np.zeros((2, c, m)),
            near=np.zeros((2, c), dtype=bool),
            past=no,
            gauge_c=np.full(batch.a["gauge_c"].shape[:3], np.nan),
            gauge_s=np.full(batch.a["gauge_s"].shape[:3], np.nan),
        )

    def guarded(self, *, worse: bool) -> tuple[Floats, Floats]:
        """(x_s, n_s) with that of a neighbouring interval where stable was significantly worse in it, or better."""
        return guard.stand_in(self.x_s, self.n_s, self.x_near, self.n_near, self.near[..., None], worse=worse)


def counted(batch: Batch, items: Sequence[Item]) -> Counts:
    """The items' stretches laid out for `advance`."""
    counts = Counts.nothing(batch)
    stretches = [i.stretch for i in items]
    counts.scored = np.array([i.scored for i in items])
    counts.weight = np.array([i.weight for i in items])
    counts.past = np.array([i.past for i in items])
    counts.seconds = np.array([s.seconds for s in stretches])
    counts.stable_present = np.array([s.stable.present for s in stretches])
    counts.all_x_c = np.array([s.canary.failures for s in stretches])
    counts.all_n_c = np.array([s.canary.requests for s in stretches])
    counts.all_n_s = np.array([s.stable.requests for s in stretches])
    counts.x_c, counts.n_c, counts.x_s, counts.n_s = np.zeros((4, len(items), batch.m))
    for i, item in enumerate(items):
        _take(counts, i, item)
    return counts


def _take(counts: Counts, i: int, item: Item) -> None:
    m, p, queries = len(item.arrays["usable"]), len(item.stable_pods), queries_in(item.arrays)
    for row, values in zip((counts.x_c, counts.n_c, counts.x_s, counts.n_s), seen_by(item), strict=True):
        row[i, :m] = values
    if p:
        pods = pods_of(item.stretch, item.edges, item.stable_pods, queries)
        counts.x_pods[i, :p, :m], counts.n_pods[i, :p, :m] = pods
    slots = _slots(item.canary_pods, item.stretch.canary.pods)
    known = slots >= 0
    counts.pods_c[i, slots[known]] = item.stretch.canary.pod_requests[known]
    for j, (gauge_name, _) in enumerate(item.rules.gauges[: gauges_in(item.arrays)]):
        for cells, arm, names in (
            (counts.gauge_c, item.stretch.canary, item.canary_pods),
            (counts.gauge_s, item.stretch.stable, item.stable_pods),
        ):
            found = arm.gauges.get(gauge_name, {})
            cells[i, j, : len(names)] = [found.get(pod, np.nan) for pod in names]
    for side, near in enumerate(item.around):
        if near is not None and near.stable.present:
            both = rows_of(near.stable, near.edges, item.edges, queries)
            counts.x_near[side, i, :m], counts.n_near[side, i, :m] = both
            counts.near[side, i] = True


def _score(batch: Batch, counts: Counts) -> None:
    """Bet on this stretch with what was known before it."""
    a, rates, scored = batch.a, batch.rates(), counts.scored
    _begin(batch, rates, scored)
    against, favour = counts.guarded(worse=True), counts.guarded(worse=False)
    x_c, n_c, x_s, n_s = (np.where(scored[:, None], v, 0.0) for v in (counts.x_c, counts.n_c, *against))
    best_x, best_n = (np.where(scored[:, None], v, 0.0)[..., None] for v in favour)
    r, d = batch.tolerance()
    bets = predict.alternatives(rates, r, d)
    x_c3, n_c3, x_s3, n_s3, rates3 = (v[..., None] for v in (x_c, n_c, x_s, n_s, rates))
    gained = bernoulli.log_e_worse(x_c3, n_c3, x_s3, n_s3, bets, rates3, r[..., None], d[..., None])
    gained *= a["usable"][..., None]
    begun = np.arange(EPOCHS)[None, :] < batch.clock("epochs")[:, None]
    a["worse"] += gained[:, None] * begun[..., None, None]
    margin_r, margin_d = batch.margin()
    a["fine"] += bernoulli.log_e_fine(x_c3, n_c3, best_x, best_n, rates3, rates3, margin_r, margin_d)
    _score_all_pods(batch, counts, x_s[:, 0], n_s[:, 0], rates[:, 0], scored)
    _score_split(batch, counts, scored)
    _sum_up(batch, x_c, n_c, x_s, n_s)
    compared = scored & (n_c[:, 0] > 0) & (n_s[:, 0] > 0)  # alone, the canary grows but nothing is learnt of it
    known = noise(batch)
    _inflate(batch, counts, known, rates, n_c, n_s, begun & compared[:, None])
    # The hard channel bets on warming pods, too, so clustering counts from the first interval on.
    a["clock"][:, _AT["phi0"]] = np.where(scored, known[0][:, 0], a["clock"][:, _AT["phi0"]])
    _notice_outage(batch, counts, scored)
    _read_gauges(batch, counts, scored)
    a["clock"][:, _AT["intervals"]] += scored


def _inflate(
    batch: Batch,
    counts: Counts,
    known: tuple[Floats, Floats, Floats],
    rates: Floats,
    n_c: Floats,
    n_s: Floats,
    begun: Mask,
) -> None:
    """How much the evidence of each epoch is to be divided by, from what was known of the pods before this stretch.

    Pods' expected events since an epoch began are taken as their requests times the mean rate: pods share the load in
    nearly constant proportions, and one number per pod keeps the state small. `known`: what `noise` says.
    """
    a = batch.a
    on = begun[..., None]
    a["pods_c"] += np.where(on, counts.pods_c[:, None], 0.0)
    a["pods_s"] += np.where(on, counts.n_pods[:, None, :, 0], 0.0)
    a["events"] += np.where(on[..., None], np.stack([n_c * rates, n_s * rates, n_c, n_s], axis=1)[:, None], 0.0)
    phi0, tau2, freedom = known
    events_c, events_s, sum_c, sum_s = np.moveaxis(a["events"], 2, 0)
    typical_c = _typical(a["pods_c"])[..., None] * events_c / np.maximum(sum_c[..., :1], 1.0)
    typical_s = _typical(a["pods_s"])[..., None] * events_s / np.maximum(sum_s[..., :1], 1.0)
    phi = dispersion.inflation(phi0[:, None], tau2[:, None], rates[:, None], typical_c, typical_s, sum_c, sum_s)
    nu = dispersion.freedom(phi, phi0[:, None], freedom[:, None])
    a["phi"], a["nu"] = np.where(on, phi, a["phi"]), np.where(on, nu, a["nu"])


def _typical(requests: Floats) -> Floats:
    """Requests of the typical pod, sum n^2 / sum n over the last axis."""
    return np.asarray((requests**2).sum(-1) / np.maximum(requests.sum(-1), 1e-9))


def noise(batch: Batch) -> tuple[Floats, Floats, Floats]:
    """phi0, tau^2 and its degrees of freedom, each (C, M), from what has been seen of stable's pods."""
    a = batch.a
    squares, variance = np.moveaxis(a["noise"], 1, 0)
    phi0 = dispersion.clustering(squares, variance)
    pods = (a["served"] > 0).sum(1).astype(np.float64)
    mean = a["long"][:, 0] / np.maximum(a["long"][:, 1, :1], 1.0)  # for one request, since `served` counts requests
    expected2 = mean**2 * (a["served"] ** 2).sum(1)[:, None]
    between = dispersion.between_pods(a["residual"], variance, expected2, phi0, pods)
    untold = batch.query & (variance <= 0)  # a query may count all pods in one: nothing is known of differences then
    own = np.where(untold, 0.0, np.maximum(pods - 1, 0.0)[:, None])
    failing = batch.query | (np.arange(batch.m) == 0)
    tau2 = dispersion.pooled(between, pods, a["past"][:, 0], a["past"][:, 1], own=own, failing=failing)
    return phi0, tau2, own + a["past"][:, 1]


def _notice_outage(batch: Batch, counts: Counts, scored: Mask) -> None:
    """z of stable's own failures against its past: a shared outage stops promotions, not the tests."""
    rate, n = batch.rates()[:, 0], counts.n_s[:, 0]
    phi0 = dispersion.clustering(batch.a["noise"][:, 0, 0], batch.a["noise"][:, 1, 0])
    z = (counts.x_s[:, 0] - n * rate) / np.sqrt(np.maximum(n * rate * (1 - rate) * phi0, 1e-9))
    at = _AT["outage"]
    batch.a["clock"][:, at] = np.where(scored, np.where(n > 0, z, 0.0), batch.a["clock"][:, at])


def _read_gauges(batch: Batch, counts: Counts, scored: Mask) -> None:
    """Add one value of each pod, and look where a look is due; alpha is shared by the gauges of a canary."""
    a = batch.a
    if not a["gauge"].size:
        return
    both = scored[:, None] & (counts.gauge_c > 0).any(-1) & (counts.gauge_s > 0).any(-1)  # nan > 0 is False
    for name in ("gauge_c", "gauge_s"):
        values = getattr(counts, name)
        there = both[..., None] & (values > 0)
        a[name] += np.stack([np.log(np.where(there, values, 1.0)), there], axis=-1)
    a["gauge"][..., 0] += both
    alpha = batch.per("alpha") / np.array([max(len(r.gauges), 1) for r in batch.rules])
    seen = gauge.compare(a["gauge_s"], a["gauge_c"], batch.gauge_tolerance())
    shown = gauge.toward(seen, np.where(both, a["gauge"][..., 0], 0.0), alpha[:, None])
    a["gauge"][..., 1] = np.maximum(a["gauge"][..., 1], shown)


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
        usable += batch.query
    a["usable"] = np.where(first[:, None], usable, a["usable"])
    due = scored & (t % EPOCH_INTERVALS == 0) & (batch.clock("epochs") < EPOCHS)
    a["clock"][:, _AT["epochs"]] += due


def _score_all_pods(batch: Batch, counts: Counts, x_s: Floats, n_s: Floats, rate: Floats, scored: Mask) -> None:
    """Errors of all pods, warming ones too, beyond two points; and a canary that has no stable beside it."""
    x, n = counts.all_x_c * scored, counts.all_n_c * scored
    judged = batch.per("errors")[:, None]
    relative, margin = batch.per("relative"), np.full(len(x), HARD_MARGIN)
    bets = predict.alternatives(rate, relative, margin)
    x2, n2, x_s2, n_s2, rate2, relative2 = (v[:, None] for v in (x, n, x_s, n_s, rate, relative))
    batch.a["hard"] += judged * bernoulli.log_e_worse(x2, n2, x_s2, n_s2, bets, rate2, relative2, HARD_MARGIN)
    # Without stable traffic the only yardstick is stable's own past; a shared outage would look like a regression,
    # so this is used at 100 % only, where stable cannot have traffic.
    long_x, long_n = batch.a["long"][:, 0, 0], batch.a["long"][:, 1, 0]
    past = (long_x + 0.5) / (long_n + 1)
    limit = np.clip((1 + relative) * past + margin, 0, 1 - 1e-6)
    lonely = (counts.weight >= 1.0) & (n_s == 0) & (long_n > 0)
    bets = predict.alternatives(past, relative, margin)
    batch.a["alone"] += judged * np.where(lonely[:, None], bernoulli.log_e_above(x2, n2, bets, limit[:, None]), 0.0)


def _score_split(batch: Batch, counts: Counts, scored: Mask) -> None:
    """Requests of both arms against the weight; starts over when the weight changed."""
    weight = counts.weight
    n_c = counts.all_n_c * scored
    n = n_c + counts.all_n_s * scored
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


def _learn(batch: Batch, counts: Counts) -> None:
    """What stable did becomes part of the past; after the bets, never before."""
    a, x_s, n_s = batch.a, counts.x_s, counts.n_s
    seen = counts.stable_present[:, None]
    a["quick"] = np.where(seen[..., None], predict.FADE * a["quick"] + np.stack([x_s, n_s], axis=1), a["quick"])
    a["long"] += np.stack([x_s, n_s], axis=1)
    if batch.m > 1:
        timed, slower = n_s[:, 1] * batch.real[:, 1], x_s[:, 1:] * batch.real[:, 1:]
        buckets = -np.diff(np.concatenate([timed[:, None], slower, np.zeros((len(x_s), 1))], axis=1), axis=1)
        buckets = np.where(batch.real, buckets, 0.0)
        # Where some edges are missing, the buckets between the others are unknown (and would come out negative).
        whole = np.all((n_s[:, 1:] == timed[:, None]) | ~batch.real[:, 1:], axis=1)[:, None]
        a["mass"] = np.where(seen & whole, edges.HISTOGRAM_FADE * a["mass"] + buckets, a["mass"])
    r, v = dispersion.residuals(counts.x_pods, counts.n_pods)
    a["noise"] += np.stack([(r**2).sum(1), v.sum(1)], axis=1)
    a["residual"] += r
    a["served"] += counts.n_pods[..., 0]
    a["clock"][:, _AT["harmed"]] += np.where(counts.past, 0.0, counts.all_n_c)
    a["clock"][:, _AT["failures"]] += np.where(counts.past, 0.0, counts.all_x_c)
    # The rate of requests is learnt from ordinary stretches only: one that a jumping clock made long would make it
    # look small, and with it the budget per request large.
    usual = counts.seconds <= LONGEST_USUAL * batch.per("interval")
    a["clock"][:, _AT["requests"]] += usual * (counts.all_n_s + counts.all_n_c)
    a["clock"][:, _AT["seconds"]] += usual * counts.seconds

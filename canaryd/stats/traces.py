"""Spans by operation: does an operation fail more often, or take longer, in the canary than is tolerated?

Shapes: C canaries, K slots of operations (the last one is all others together), B duration edges, 2 kinds of bad spans:
failed ones, and those slower than an edge. The edge is the first that at most a tenth of stable's *past* spans of the
operation exceed, its p90 or the edge nearest above; so whether a span is bad is fixed before it is seen, and a span is
a Bernoulli event in the same exact e-value as a request (canaryd.stats.bernoulli). Kept per rollout as plain arrays:

    stake (K, 2, 5)   ln of the capital in cash and on each of the odds   total (K, 2, 4)   x_c, n_c, x_s, n_s
    known (K, 2)      stable's spans and failed ones, fading              weight (K,)       share of the stake
    mass (K, B + 1)   stable's durations per bucket, fading               clock (6,)        see CLOCK
    sampling (4,)     log e-values about it, see canaryd.stats.share

Instead of epochs every bet gives a hundredth of its capital back to be shared evenly again (Herbster and Warmuth,
"Tracking the best expert", Machine Learning 32, 1998): what shares is predictable and the sum does not change, so it
stays a test martingale, and a regression that comes late is found late by little. Sums are rounded down to 1/128,
which only makes an e-value smaller, and the state as well. Operations are combined by a weighted mean with weights that
are fixed before the first bet on each; what they leave is cash. STATISTICS of the project, sections 4.6 and 4.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canaryd.model import Floats, SpanCounts
from canaryd.stats import bernoulli, dispersion, share
from canaryd.stats.discovery import e_bh
from canaryd.stats.guard import stand_in

ODDS = np.array([1.5, 3.0, 10.0, 50.0])  # odds ratios of the alternatives, beyond the tolerance
STRATEGIES = 1 + len(ODDS)  # cash first
SWITCH = 0.01  # of the capital is shared evenly again after each bet
SLOW_SHARE = 0.1  # of stable's spans that the edge may leave above it
LEAST_PAST = 20.0  # spans of stable before an operation is bet on
EARLY = 0.8  # of the stake is for operations that are known when the first bet is made; the rest for later ones
GRAIN = 128.0
MOST_PAST = 500.0  # spans of an operation, from which on what is known of it is halved: the past fades
FAILED, SLOW = 0, 1
CLOCK = ("intervals", "first", "spans_s", "spans_c", "requests_s", "requests_c")
_AT = {name: i for i, name in enumerate(CLOCK)}

Arrays = dict[str, Floats]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Item:
    """One rollout and the spans of one interval. `near`: those of the intervals beside it, where that is known."""

    arrays: Mapping[str, Floats]
    edges: Floats  # (B,)
    relative: float  # tolerated: p_c <= (1 + relative) p_s + absolute
    absolute: float
    spans: Floats  # (K, 2, 2), see `slotted`
    durations: Floats  # (K, 2, B + 1)
    scored: bool
    sampled: tuple[float, float]  # all served spans of stable and canary, also of operations without a slot
    requests: tuple[float, float]  # all requests
    near: tuple[tuple[Floats, Floats] | None, tuple[Floats, Floats] | None] = (None, None)


def empty(slots: int, edges: Floats) -> Arrays:
    """The state before any span. slots: operations that are told apart, and one for all others."""
    return {
        "stake": np.full((slots, 2, STRATEGIES), _round_down(np.full(1, -np.log(STRATEGIES)))[0]),
        "known": np.zeros((slots, 2)),
        "mass": np.zeros((slots, len(edges) + 1)),
        "weight": np.zeros(slots),
        "total": np.zeros((slots, 2, 4)),
        "sampling": np.zeros(4),
        "clock": np.zeros(len(CLOCK)),
    }


def fits(arrays: Mapping[str, Floats], slots: int, edges: Floats) -> bool:
    """The arrays are those of `empty` with the same arguments."""
    return {k: v.shape for k, v in arrays.items()} == {k: v.shape for k, v in empty(slots, edges).items()}


def forget(arrays: Mapping[str, Floats]) -> Arrays:
    """The same state with nothing proven yet: what is known of stable stays."""
    fresh = empty(len(arrays["weight"]), arrays["mass"][0, 1:])
    return {**fresh, "known": arrays["known"].copy(), "mass": arrays["mass"].copy()}


def clock(arrays: Mapping[str, Floats], name: str) -> float:
    """One number of the clock by its name."""
    return float(arrays["clock"][_AT[name]])


def slotted(counts: SpanCounts, operations: Sequence[str], slots: int) -> tuple[Floats, Floats]:
    """(slots, 2, 2) spans and (slots, 2, B + 1) durations: each known operation in its slot, others in the last.

    Of the others only those that stable has in this interval: what the canary alone has is compared with nothing.
    """
    spans, durations = np.zeros((slots, 2, 2)), np.zeros((slots, 2, len(counts.edges) + 1))
    at = {name: i for i, name in enumerate(operations)}
    full = len(operations) >= slots - 1
    for i, name in enumerate(counts.operations):
        slot = at.get(name, slots - 1 if full and counts.spans[i, 0, 0] > 0 else -1)
        if slot >= 0:
            spans[slot] += counts.spans[i]
            durations[slot] += counts.durations[i]
    return spans, durations


class Batch:
    """Many rollouts' arrays stacked; shorter ones are padded, slots at the end and buckets at the beginning."""

    def __init__(self, items: Sequence[tuple[Mapping[str, Floats], Floats]]) -> None:
        """items: arrays and edges of each."""
        self.sizes = [(len(a["weight"]), len(e)) for a, e in items]
        slots, buckets = (max(size) for size in zip(*self.sizes, strict=True))
        wide = empty(slots, np.zeros(buckets))
        self.a: Arrays = {k: np.repeat(v[None], len(items), axis=0) for k, v in wide.items()}
        self.edges = np.zeros((len(items), buckets))
        for i, (arrays, edges) in enumerate(items):
            self.edges[i, buckets - len(edges) :] = edges
            for name, value in arrays.items():
                self._place(name, i, value.shape)[...] = value

    def _place(self, name: str, i: int, shape: tuple[int, ...]) -> Floats:
        whole: Floats = self.a[name][i]
        if name == "mass":
            return whole[: shape[0], whole.shape[1] - shape[1] :]
        return whole[tuple(slice(0, n) for n in shape)] if name not in ("sampling", "clock") else whole

    def unstack(self) -> list[Arrays]:
        """Back to one set of arrays per rollout, without the padding."""
        like = [empty(slots, np.zeros(buckets)) for slots, buckets in self.sizes]
        return [{k: self._place(k, i, v.shape).copy() for k, v in one.items()} for i, one in enumerate(like)]

    def padded(self, spans: Floats, durations: Floats) -> tuple[Floats, Floats]:
        """Counts of one rollout in the shape of all, any axes between slots and buckets."""
        slots, buckets = self.a["mass"].shape[1:]
        wide = np.zeros((slots, *spans.shape[1:])), np.zeros((slots, *durations.shape[1:-1], buckets))
        wide[0][: len(spans)] = spans
        wide[1][: len(durations), ..., buckets - durations.shape[-1] :] = durations
        return wide

    def rates(self) -> tuple[Floats, Index, Mask]:
        """(C, K, 2) predicted shares of bad spans of stable, (C, K) the edge's index, (C, K, 2) where there are any."""
        known, mass = self.a["known"], self.a["mass"]
        timed = mass.sum(-1)
        above = timed[..., None] - np.cumsum(mass, axis=-1)  # (C, K, B + 1) slower than each edge; than all: none
        rare = above <= SLOW_SHARE * timed[..., None]
        at: Index = np.argmax(rare, axis=-1)
        slower = np.take_along_axis(above, at[..., None], axis=-1)[..., 0]
        counted = np.stack([known[..., 0], timed], axis=-1)
        bad = np.stack([known[..., 1], slower], axis=-1)
        beyond = at == mass.shape[-1] - 1  # no edge is rarely exceeded
        ready: Mask = (counted >= LEAST_PAST) & ~np.stack([np.zeros_like(beyond), beyond], axis=-1)
        return np.asarray((bad + 0.5) / (counted + 1)), at, ready


def update(items: Sequence[Item]) -> list[Arrays]:
    """The spans of one interval for each of many rollouts; returns their new arrays. The old ones are not changed."""
    if not items:
        return []
    batch = Batch([(i.arrays, i.edges) for i in items])
    advance(batch, Counts.of(batch, items))
    return batch.unstack()


@dataclass(slots=True)
class Counts:
    """The spans of one interval of every rollout."""

    relative: Floats  # (C,)
    absolute: Floats  # (C,)
    spans: Floats  # (C, K, 2 arms, 2)
    durations: Floats  # (C, K, 2 arms, B + 1)
    scored: Mask  # (C,)
    sampled: Floats  # (C, 2)
    requests: Floats  # (C, 2)
    near_spans: Floats  # (2, C, K, 2) of stable before and after
    near_durations: Floats  # (2, C, K, B + 1)
    near: Mask  # (2, C)

    @classmethod
    def of(cls, batch: Batch, items: Sequence[Item]) -> Counts:
        """Laid out in the shapes of the batch."""
        c, (slots, buckets) = len(items), batch.a["mass"].shape[1:]
        out = cls(
            relative=np.array([i.relative for i in items]),
            absolute=np.array([i.absolute for i in items]),
            spans=np.zeros((c, slots, 2, 2)),
            durations=np.zeros((c, slots, 2, buckets)),
            scored=np.array([i.scored for i in items]),
            sampled=np.array([i.sampled for i in items], dtype=np.float64),
            requests=np.array([i.requests for i in items], dtype=np.float64),
            near_spans=np.zeros((2, c, slots, 2)),
            near_durations=np.zeros((2, c, slots, buckets)),
            near=np.array([[i.near[side] is not None for i in items] for side in (0, 1)]),
        )
        for i, item in enumerate(items):
            out.spans[i], out.durations[i] = batch.padded(item.spans, item.durations)
            for side, found in enumerate(item.near):
                if found is not None:
                    out.near_spans[side, i], out.near_durations[side, i] = batch.padded(*found)
        return out


def advance(batch: Batch, counts: Counts) -> None:
    """One interval for every rollout of the batch, in place; no loop over rollouts."""
    if counts.scored.any():
        _score(batch, counts)
    _watch_sampling(batch, counts)
    for name, seen in (("known", counts.spans[:, :, 0]), ("mass", counts.durations[:, :, 0])):
        known = batch.a[name] + seen
        many = (known[..., 0] if name == "known" else known.sum(-1)) > MOST_PAST
        batch.a[name] = np.where(many[..., None], np.floor(known / 2), known)


def _score(batch: Batch, counts: Counts) -> None:
    """Bet on this interval with what was known before it."""
    a, scored = batch.a, counts.scored
    rates, at, ready = batch.rates()
    _share_out(batch, np.asarray(ready.any(-1)), scored)
    x, n = _bad(counts.spans, counts.durations, at)  # (C, K, 2 arms, 2 kinds)
    near = [_bad(counts.near_spans[side], counts.near_durations[side], at) for side in (0, 1)]
    x_near, n_near = (np.stack([one[k] for one in near]) for k in (0, 1))
    x_s, n_s = stand_in(x[:, :, 0], n[:, :, 0], x_near, n_near, counts.near[..., None, None], worse=True)
    x_c, n_c = x[:, :, 1], n[:, :, 1]
    on = ready & (a["weight"] > 0)[..., None] & scored[:, None, None] & (n_c > 0) & (n_s > 0)
    r, d = counts.relative[:, None, None], counts.absolute[:, None, None]
    bets = alternatives(rates, r, d)
    x_c4, n_c4, x_s4, n_s4 = (np.where(on, v, 0.0)[..., None] for v in (x_c, n_c, x_s, n_s))
    gained = bernoulli.log_e_worse(x_c4, n_c4, x_s4, n_s4, bets, rates[..., None], r[..., None], d[..., None])
    stake = a["stake"].copy()
    stake[..., 1:] += gained
    whole = _log_sum(stake)[..., None]
    shared = np.logaddexp(stake + np.log1p(-SWITCH), whole + np.log(SWITCH / STRATEGIES))
    a["stake"] = np.where(on[..., None], _round_down(shared), a["stake"])
    judged = ready & (a["weight"] > 0)[..., None] & scored[:, None, None]
    a["total"] += np.where(judged[..., None], np.stack([x_c, n_c, x_s, n_s], axis=-1), 0.0)
    a["clock"][:, _AT["intervals"]] += scored


def _share_out(batch: Batch, ready: Mask, scored: Mask) -> None:
    """Give operations their share of the stake before the first bet on them; it never changes afterwards."""
    a, slots = batch.a, np.array([size[0] for size in batch.sizes], dtype=np.float64)
    first = batch.a["clock"][:, _AT["first"]]
    begins = scored & (first == 0) & ready.any(-1)
    count = ready.sum(-1).astype(np.float64)
    early = np.where(count >= slots, 1.0, EARLY) / np.maximum(count, 1.0)
    late = (1 - EARLY) / np.maximum(slots - first, 1.0)
    a["weight"] = np.where(begins[:, None] & ready, early[:, None], a["weight"])
    joins = (scored & (first > 0))[:, None] & ready & (a["weight"] == 0)
    a["weight"] = np.where(joins, late[:, None], a["weight"])
    a["clock"][:, _AT["first"]] = np.where(begins, count, first)


def _bad(spans: Floats, durations: Floats, at: Index) -> tuple[Floats, Floats]:
    """(bad, all) of both kinds, (C, K, ..., 2), from (C, K, ..., 2) spans and (C, K, ..., B + 1) durations."""
    timed = durations.sum(-1)
    above = timed[..., None] - np.cumsum(durations, axis=-1)
    index = at.reshape(*at.shape, *([1] * (above.ndim - at.ndim)))
    slower = np.take_along_axis(above, np.broadcast_to(index, (*above.shape[:-1], 1)), axis=-1)[..., 0]
    return np.stack([spans[..., 1], slower], axis=-1), np.stack([spans[..., 0], timed], axis=-1)


def _watch_sampling(batch: Batch, counts: Counts) -> None:
    """Do as many requests of the canary have spans as of stable? As for the split, with the requests as the weight."""
    requests = counts.requests
    usable = counts.scored & (requests > 0).all(-1)
    weight = np.where(usable, requests[:, 1] / np.maximum(requests.sum(-1), 1.0), 0.5)
    seen = np.where(usable[:, None], counts.sampled, 0.0)
    batch.a["sampling"] += share.log_e_steps(seen[:, 1], seen.sum(-1), weight)
    batch.a["clock"][:, 2:4] += seen
    batch.a["clock"][:, 4:6] += np.where(usable[:, None], requests, 0.0)


def alternatives(rates: Floats, r: Floats, d: Floats) -> Floats:
    """Canary shares to bet on, (..., 4): the odds at the edge of the tolerance times ODDS; below 1."""
    limit = np.clip((1 + r) * rates + d, 0, 1 - 1e-6)
    odds = ODDS * (limit / (1 - limit))[..., None]
    return np.asarray(np.minimum(odds / (1 + odds), 1 - 1e-7))


def _round_down(values: Floats) -> Floats:
    return np.asarray(np.floor(values * GRAIN) / GRAIN)


def _log_sum(values: Floats) -> Floats:
    """ln(sum(exp(values))) over the last axis."""
    top = values.max(-1, keepdims=True)
    return np.asarray((np.log(np.exp(values - top).sum(-1, keepdims=True)) + top)[..., 0])


# ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Noise:
    """What is known of the noise of failures and of durations, (C, 2) each, and (C, 2) pods of stable and canary."""

    phi0: Floats
    tau2: Floats
    freedom: Floats
    pods: Floats


@dataclass(frozen=True, slots=True)
class Assessment:
    """C rollouts, K slots, 2 kinds, padded."""

    log_e: Floats  # (C,) all operations together; never above 0 where the arms are not known to be sampled alike
    each: Floats  # (C, K, 2) of each operation and kind alone
    named: Mask  # (C, K, 2) where e-BH names it as worse
    alike: Mask  # (C,) proven: the arms' shares of requests with spans differ by less than a factor of about two
    unlike: Mask  # (C,) proven: they differ by more
    rates: Floats  # (C, K, 2) predicted for stable
    edge: Floats  # (C, K) what is slow now, in milliseconds; inf where every edge is often exceeded


def assess(batch: Batch, noise: Noise, alpha: Floats, beta: Floats) -> Assessment:
    """alpha, beta: (C,) error probabilities of the rollouts."""
    rates, at, _ = batch.rates()
    edges = np.concatenate([batch.edges, np.full((len(rates), 1), np.inf)], axis=-1)
    edge = np.take_along_axis(edges, at, axis=-1)
    x = np.moveaxis(batch.a["total"], -1, 0)  # (4, C, K, 2)
    n_c, n_s = x[1], x[3]
    phi0, tau2, known = (v[:, None] for v in (noise.phi0, noise.tau2, noise.freedom))
    per_pod = [rates * n / np.maximum(noise.pods[:, i, None, None], 1.0) for i, n in ((1, n_c), (0, n_s))]
    phi = dispersion.inflation(phi0, tau2, rates, per_pod[0], per_pod[1], n_c, n_s)
    each = dispersion.soften(_log_sum(batch.a["stake"]) / phi, dispersion.freedom(phi, phi0, known))
    weight = batch.a["weight"]
    inside = (weight[..., None] / 2 * np.exp(np.minimum(each, 600.0))).sum((-1, -2))
    log_e = np.log(inside + np.maximum(1 - weight.sum(-1), 0.0))
    needed = -np.log(beta)
    split = batch.a["sampling"]
    alike, unlike = (split[:, :2] >= needed[:, None]).all(-1), split[:, 2:].max(-1) >= -np.log(alpha)
    alike &= ~unlike
    # Where sampling is not known to be alike the evidence is not used. What is against the canary no longer counts,
    # what is for it still does: so it never exceeds the e-value.
    flat = each.reshape(len(each), -1)
    tested = np.repeat((weight > 0)[..., None], 2, axis=-1).reshape(flat.shape)
    named = e_bh(flat, tested).reshape(each.shape) & alike[:, None, None]
    return Assessment(np.where(alike, log_e, np.minimum(log_e, 0.0)), each, named, alike, unlike, rates, edge)

"""From the state of the tests to the numbers that are judged and shown, for many canaries at once.

The evidence of one canary is one e-value: the weighted mean over its rows, start epochs and alternatives. A weighted
mean of e-values is an e-value under any dependence, so nothing is paid for looking at many metrics beyond the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from canaryd.model import Floats
from canaryd.stats import bernoulli, difference, edges, gauge, traces
from canaryd.stats.discovery import e_bh
from canaryd.stats.dispersion import needed_for, soften
from canaryd.stats.evidence import EPOCHS, Batch, J, Mask, noise

WEIGHT_ERRORS, WEIGHT_LATENCY, WEIGHT_HARD, WEIGHT_ALONE = 0.40, 0.40, 0.10, 0.05
WEIGHT_TRACES = 0.05  # cash where there are none, or where they are not known to be sampled alike
_LOG_EPOCHS = np.log([0.5] + [0.5 / (EPOCHS - 1)] * (EPOCHS - 1))


@dataclass(frozen=True, slots=True)
class Assessment:
    """C canaries, M rows, padded. Rates and differences are shares."""

    log_e: Floats  # (C,) combined
    row_log_e: Floats  # (C, M) of each row alone; the row of errors includes the hard channel
    named: Floats  # (C, M) 1 where e-BH names the row as worse
    usable: Floats  # (C, M) 1 where the row is judged and both arms have it
    fine: Floats  # (C, M) log e against "unacceptable" at the present gate
    missing: Floats  # (C, M) canary requests until `fine` proves it, if the canary is as good as stable; inf: never
    phi: Floats  # (C, M) inflation of the variance, of which
    phi0: Floats  # (C, M) is clustering and the rest differences between pods
    pods: Floats  # (C, 2) pods told apart, stable and canary
    past_freedom: Floats  # (C, M) what past pods add, in degrees of freedom
    outage: Floats  # (C,) z of stable's failures against its own past
    critical: list[list[int]]  # rows that must be fine before a step
    rate_c: Floats  # (C, M) canary
    rate_s: Floats  # (C, M) stable, weighted as the canary's requests were
    n_c: Floats  # (C, M)
    n_s: Floats  # (C, M)
    difference: Floats  # (C, M) with `low` and `high`
    low: Floats
    high: Floats
    tolerated: Floats  # (C, M) at the predicted stable rate
    margin: Floats  # (C, M) what must be ruled out at the present gate, as a difference
    split: Floats  # (C, 4) see canaryd.stats.share
    gauges: Floats  # (C, A, 6) stable's mean and the canary's, pods of both, intervals, the most that a look has shown
    stable_worse: Floats  # (C,) z of "stable fails more than the canary" over the totals


def log_sum(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """ln(sum(exp(values))) without overflow; -inf stands for nothing."""
    top = np.max(values, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        out = np.log(np.sum(np.exp(values - top), axis=axis, keepdims=True)) + top
    return np.asarray(np.squeeze(out, axis=axis))


def assess(batch: Batch, gates: Sequence[int], weights: Sequence[float], spans: Floats | None = None) -> Assessment:
    """gates: index of the present step of each canary; weights: its present share 0..1.

    spans: (C,) ln of the e-value of each canary's spans, 0 without any; see canaryd.stats.traces.
    """
    a = batch.a
    rates = batch.rates()
    rows = row_evidence(batch)
    log_w = row_weights(batch)
    phi0 = np.maximum(batch.clock("phi0"), 1.0)[:, None]
    hard, alone = (log_sum(a[name] / phi0, -1) - np.log(J) for name in ("hard", "alone"))
    parts = [log_sum(log_w + rows, -1), np.log(WEIGHT_HARD) + hard, np.log(WEIGHT_ALONE) + alone]
    by_operation = np.zeros(len(hard)) if spans is None else spans
    combined = log_sum(np.stack([*parts, np.log(WEIGHT_TRACES) + by_operation], -1), -1)
    rows = rows.copy()
    rows[:, 0] = np.maximum(rows[:, 0], np.maximum(hard, alone))
    at = np.arange(len(batch.rules)), slice(None), np.clip(gates, 0, None)
    margin_r, margin_d = batch.margin()
    gain = _gain(rates, margin_r[..., 0], margin_d[at], np.asarray(weights))
    raw_needed = needed_for(-np.log(batch.per("beta"))[:, None], a["phi"][:, 0], a["nu"][:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        per_canary_request = gain * batch.per_request()
        left = np.maximum(raw_needed - a["fine"][at], 0.0)
        missing = np.where(per_canary_request > 0, left / per_canary_request, np.inf)
    r, d = batch.tolerance()
    comparable = _comparable(batch)
    rate_c, rate_s, shown = _shown(batch)
    return Assessment(
        log_e=combined,
        row_log_e=rows,
        named=e_bh(rows, a["usable"] > 0).astype(np.float64),
        usable=comparable,
        fine=soften(a["fine"][at] / a["phi"][:, 0], a["nu"][:, 0]),
        missing=missing,
        phi=a["phi"][:, 0],
        phi0=noise(batch)[0],
        pods=np.stack([(a["served"] > 0).sum(1), (a["pods_c"][:, 0] > 0).sum(1)], axis=1).astype(np.float64),
        past_freedom=a["past"][:, 1],
        outage=batch.clock("outage"),
        critical=[_critical(rates[i], comparable[i] > 0, batch.query[i]) for i in range(len(rates))],
        rate_c=rate_c,
        rate_s=rate_s,
        n_c=a["total"][..., 1],
        n_s=a["total"][..., 3],
        difference=shown[0],
        low=shown[1],
        high=shown[2],
        tolerated=r * rates + d,
        margin=margin_r[..., 0] * rates + margin_d[at],
        split=a["share"],
        gauges=_gauges(batch),
        stable_worse=_stable_worse(a["total"][:, 0]),
    )


def span_noise(batch: Batch, of: Sequence[int]) -> traces.Noise:
    """What is known of the noise of requests, which stands for that of their spans, of the canaries `of`.

    Of latency, the most that pods differ in at any judged edge; where none is judged, that of errors.
    """
    phi0, tau2, freedom = noise(batch)
    timed = ~batch.query & (np.arange(batch.m) > 0) & (batch.a["usable"] > 0)
    worst = np.where(timed.any(-1), np.argmax(np.where(timed, tau2, -1.0), axis=-1), 0)
    rows = np.stack([np.zeros_like(worst), worst], axis=-1)
    pods = np.stack([(batch.a["served"] > 0).sum(1), (batch.a["pods_c"][:, 0] > 0).sum(1)], axis=1).astype(np.float64)
    at = list(of)
    clusters, between, known = (np.take_along_axis(values, rows, axis=-1)[at] for values in (phi0, tau2, freedom))
    return traces.Noise(clusters, between, known, pods[at])


def row_evidence(batch: Batch) -> Floats:
    """(C, M) log e-value of each row: mean over alternatives and epochs; epochs not begun are cash.

    Each log e-value is divided by the inflation of its variance first, and softened where that is uncertain.
    """
    a = batch.a
    inflated = soften(a["worse"] / a["phi"][..., None], a["nu"][..., None])
    per_epoch = log_sum(inflated, -1) - np.log(J)  # zeros, so cash, where nothing was bet
    return log_sum(per_epoch + _LOG_EPOCHS[None, :, None], 1)


def row_weights(batch: Batch) -> Floats:
    """(C, M) log weights; a family that is not judged leaves its weight to the other, as does one without rows.

    Failures counted by the operator's own queries are of the family of errors; rows of a family share alike.
    """
    usable = batch.a["usable"] > 0
    failing = batch.query | (np.arange(batch.m) == 0)
    n_failing, n_edges = (usable & failing).sum(1), (usable & ~failing).sum(1)
    errors, latency = n_failing > 0, n_edges > 0
    whole = WEIGHT_ERRORS + WEIGHT_LATENCY
    each_failing = np.where(latency, WEIGHT_ERRORS, whole) / np.maximum(n_failing, 1)
    each_edge = np.where(errors, WEIGHT_LATENCY, whole) / np.maximum(n_edges, 1)
    w = usable * np.where(failing, each_failing[:, None], each_edge[:, None])
    w[~errors & ~latency, 0] = whole  # nothing judged yet: the whole weight lies on a row without evidence, as cash
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(w))


def _comparable(batch: Batch) -> Floats:
    """(C, M) the judged rows that the canary has, too: its histograms are not known when the rows are chosen.

    An edge that only stable has can never be proven, and would hold the step for ever. One that the canary had at
    first and no longer has (fewer than half the requests of the best-known edge) is left out as well.
    """
    served = batch.a["total"][..., 1]
    edge = ~batch.query & (np.arange(batch.m) > 0)
    most = np.where(edge, served, 0.0).max(1, keepdims=True)
    lacking = edge & (served[:, :1] > 0) & ((served == 0) | (2 * served < most))
    return np.where(lacking, 0.0, batch.a["usable"])


def _critical(rate: Floats, usable: Mask, query: Mask) -> list[int]:
    """Errors, the edges nearest p50, p90 and p99, and every query."""
    rows = [0] if usable[0] else []
    rows += [1 + b for b in edges.nearest(rate[1:], usable[1:] & ~query[1:])]
    return rows + [int(row) for row in np.flatnonzero(usable & query)]


def _gain(rates: Floats, r: Floats, d: Floats, weight: Floats) -> Floats:
    """Expected log e against "unacceptable" per canary request, if the canary is as good as stable."""
    n_c = np.full(rates.shape, 1000.0)
    ratio = (1 - weight) / np.maximum(weight, 1e-6)
    n_s = n_c * ratio[:, None]
    return bernoulli.log_e_fine(n_c * rates, n_c, n_s * rates, n_s, rates, rates, r, d) / 1000.0


def _shown(batch: Batch) -> tuple[Floats, Floats, tuple[Floats, Floats, Floats]]:
    """Rates of both arms and the interval of their difference, over the intervals in which both served.

    Stable's rate is weighted as the canary's requests were, so that the two rates differ by the difference shown.
    """
    x_c, n_c, _, _ = np.moveaxis(batch.a["total"], -1, 0)
    total, requests, leverage, bad = np.moveaxis(batch.a["spread"], -1, 0)
    share = difference.stable_share(total, requests, bad, batch.a["long"][:, 0], batch.a["long"][:, 1])
    middle, low, high = difference.interval(total, requests, leverage, share, inflation=batch.a["phi"][:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        rate_c = np.where(requests > 0, bad / requests, x_c / n_c)
    rate_s = np.where(requests > 0, np.clip(rate_c - middle, 0.0, 1.0), np.nan)  # clip: rounding
    return rate_c, rate_s, (middle, low, high)


def _gauges(batch: Batch) -> Floats:
    seen = gauge.compare(batch.a["gauge_s"], batch.a["gauge_c"], batch.gauge_tolerance())
    parts = [seen.stable, seen.canary, seen.pods_s, seen.pods_c, batch.a["gauge"][..., 0], batch.a["gauge"][..., 1]]
    return np.stack(parts, axis=-1)


def _stable_worse(errors: Floats) -> Floats:
    """z-score of "stable fails more" over all scored requests, shape (C,); a plain warning, not a test."""
    x_c, n_c, x_s, n_s = np.moveaxis(errors, -1, 0)
    p = (x_c + x_s + 0.5) / (n_c + n_s + 1)
    scale = np.sqrt(p * (1 - p) * (1 / np.maximum(n_c, 1) + 1 / np.maximum(n_s, 1)))
    return np.asarray((x_s / np.maximum(n_s, 1) - x_c / np.maximum(n_c, 1)) / scale)

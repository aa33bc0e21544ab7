"""Gauges, such as memory or processor seconds per request: is their level higher in the canary's pods?

The unit is the pod, since samples of one pod are not independent: each pod counts with the mean of the logarithms of
its values since its warm-up. With k canary and m stable pods,

    D = mean_c - mean_s - ln(1 + tolerance),    t = D / sqrt(v (1/k + 1/m)),    v = (2 s0^2 + SS_s + SS_c) / (2 + df),

SS being the sums of squares around each arm's mean, df = (m - 1) + (k - 1) also the degrees of freedom of t, and
s0 = 0.05 a prior for the spread of pods that weighs as much as two. t is looked at after 4, 8, 16, 32 and 64 intervals,
and what look k may cost falls as 6 alpha / (pi^2 k^2), which adds up to less than alpha. STATISTICS of the project,
section 4.7. Assumes log-normal pods of one spread in both arms; measured, not proven. With few pods the power is small,
and nothing is said to be fine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log

import numpy as np

from canaryd.model import Floats

LOOKS = (4, 8, 16, 32, 64)  # intervals in which both arms had a value
PRIOR_SPREAD, PRIOR_FREEDOM = 0.05, 2.0
_TERMS = 200  # of the continued fraction, far more than it needs for the degrees of freedom of pods


@dataclass(frozen=True, slots=True)
class Comparison:
    """For each gauge, any shape."""

    stable: Floats  # geometric mean over pods, in the gauge's own unit; nan without a pod
    canary: Floats
    pods_s: Floats
    pods_c: Floats
    t: Floats  # nan where an arm has no pod, or each has one: pod and version cannot be told apart then
    freedom: Floats


def compare(stable: Floats, canary: Floats, tolerance: Floats) -> Comparison:
    """stable, canary: (..., pods, 2) sum of the logarithms of a pod's values, how many; tolerance: (...) a share."""
    mean_s, ss_s, m = _pods(stable)
    mean_c, ss_c, k = _pods(canary)
    df = np.maximum(m - 1, 0.0) + np.maximum(k - 1, 0.0)
    v = (PRIOR_FREEDOM * PRIOR_SPREAD**2 + ss_s + ss_c) / (PRIOR_FREEDOM + df)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean_c - mean_s - np.log1p(tolerance)) / np.sqrt(v * (1 / k + 1 / m))
    comparable = (m > 0) & (k > 0) & (df > 0)
    return Comparison(np.exp(mean_s), np.exp(mean_c), m, k, np.where(comparable, t, np.nan), np.maximum(df, 1.0))


def _pods(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """(mean over pods, sum of squares around it, pods) of one arm; the mean is nan without a pod."""
    total, n = sums[..., 0], sums[..., 1]
    there = n > 0
    level = np.where(there, total / np.maximum(n, 1.0), 0.0)
    pods = there.sum(-1).astype(np.float64)
    mean = np.where(pods > 0, level.sum(-1) / np.maximum(pods, 1.0), np.nan)
    away = np.where(there, level - mean[..., None], 0.0)
    return mean, np.asarray((away**2).sum(-1)), pods


def toward(comparison: Comparison, intervals: Floats, alpha: Floats) -> Floats:
    """How far a look shows the canary above tolerance: ln p / ln alpha_k, 1 and more where it does; 0 between looks.

    intervals: how many there have been, the newest included; alpha: error probability of all looks together.
    """
    out = np.zeros(np.broadcast_shapes(intervals.shape, comparison.t.shape))
    for k, at in enumerate(LOOKS, start=1):
        due = (intervals == at) & np.isfinite(comparison.t)
        if due.any():
            p = upper_tail(np.where(due, comparison.t, 0.0), comparison.freedom)
            share = np.log(np.maximum(p, 1e-300)) / np.log(6 * alpha / (np.pi**2 * k**2))
            out = np.where(due, share, out)
    return np.asarray(out)


def upper_tail(t: Floats, freedom: Floats) -> Floats:
    """P(T > t) of Student's t with `freedom` > 0 degrees: I_(f / (f + t^2))(f/2, 1/2) / 2 for t > 0, mirrored below."""
    t, freedom = np.broadcast_arrays(np.asarray(t, dtype=np.float64), np.asarray(freedom, dtype=np.float64))
    half = 0.5 * _incomplete_beta(freedom / 2, freedom / (freedom + t * t))
    return np.asarray(np.where(t > 0, half, 1 - half))


def _incomplete_beta(a: Floats, x: Floats) -> Floats:
    """Regularised I_x(a, 1/2) by its continued fraction, from whichever side it converges quickly.

    Abramowitz and Stegun 26.5.8, evaluated by Lentz's method. x in (0, 1].
    """
    b = np.full_like(a, 0.5)
    mirrored = x > (a + 1) / (a + b + 2)
    p, q, y = np.where(mirrored, b, a), np.where(mirrored, a, b), np.where(mirrored, 1 - x, x)
    with np.errstate(divide="ignore"):
        log_beta = np.vectorize(lambda u: lgamma(u) + log(np.pi) / 2 - lgamma(u + 0.5), otypes=[float])(a)
        front = np.exp(p * np.log(y) + q * np.log1p(-y) - log_beta) / p
    value = front * _fraction(p, q, y)
    return np.asarray(np.where(mirrored, 1 - value, value))


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    c, d = np.ones_like(x), 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    out = d.copy()
    for i in range(1, _TERMS):
        for term in (
            i * (b - i) * x / ((a + 2 * i - 1) * (a + 2 * i)),
            -(a + i) * (a + b + i) * x / ((a + 2 * i) * (a + 2 * i + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            out = out * c * d
        if np.all(np.abs(c * d - 1) < 1e-15):
            break
    return np.asarray(out)


def _away_from_zero(x: Floats) -> Floats:
    return np.asarray(np.where(np.abs(x) < 1e-300, 1e-300, x))

"""An interval for the difference canary minus stable that may be looked at as often as one likes.

Stratified: within every interval the canary is compared with stable in that interval, weighted by the canary's
requests, so that a changing traffic split cannot turn the sign (Simpson). The construction is the asymptotic confidence
sequence of Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", Annals of Statistics 52(6), 2024 (arXiv:2103.06476), with binomial plug-in variances. It is for showing; the
decisions are made by the e-values of canaryd.stats.bernoulli, which are exact.
"""

from __future__ import annotations

import numpy as np

from canaryd.model import Floats

LEVEL = 0.95
_TUNED_FOR = 10.0  # variance of the sum, in squared bad events, at which the interval is tightest
_STEPS = 30  # bisection steps for each end: to 1e-9 of a share


def interval(
    total: Floats,
    requests: Floats,
    leverage: Floats,
    rate_s: Floats,
    level: float = LEVEL,
    *,
    inflation: Floats | float = 1.0,
) -> tuple[Floats, Floats, Floats]:
    """(difference, low, high), each of the shape of the arguments; NaN where there were no requests.

    total: sum over intervals of x_c - n_c x_s / n_s; requests: sum of n_c; leverage: sum of n_c^2 / n_s;
    rate_s: stable's share 0..1; inflation: how much larger than binomial the variance is, >= 1. An end D of the
    interval is where |total - D requests| equals the boundary at the variance that D itself implies,
    n_c p (1 - p) + (n_c^2 / n_s) p_s (1 - p_s) with p = p_s + D: a score interval, which does not call the few errors
    of a rare kind certain, nor their absence.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = total / requests
    low, high = (
        _end(total, requests, leverage, rate_s, inflation, 1 - level, middle, np.full_like(middle, end))
        for end in (-1.0, 1.0)
    )
    return middle, np.where(np.isfinite(middle), low, np.nan), np.where(np.isfinite(middle), high, np.nan)


def stable_share(total: Floats, requests: Floats, bad: Floats, long_x: Floats, long_n: Floats) -> Floats:
    """Stable's share 0..1 for the variance of `interval`, as the mean over the past and not as the next interval's.

    Of two means, over the compared intervals weighted as the canary's requests were and over all of stable's past,
    the one nearer to one half, where the variance is largest. The share predicted for the next interval will not do:
    with few failures of late, or after an outage, it covers in 84 % of rollouts what this covers in 96 %.
    bad: sum of x_c; long_x bad events among long_n requests of stable; the rest as in `interval`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        compared = (bad - total) / requests
    past = (long_x + 0.5) / (long_n + 1)
    nearer = np.abs(compared - 0.5) < np.abs(past - 0.5)  # False where nothing was compared
    return np.asarray(np.clip(np.where(nearer, compared, past), 1e-7, 1 - 1e-6))


def _end(
    total: Floats,
    requests: Floats,
    leverage: Floats,
    rate_s: Floats,
    inflation: Floats | float,
    alpha: float,
    inside: Floats,
    outside: Floats,
) -> Floats:
    """The furthest difference from `inside` towards `outside` that the boundary does not exclude."""
    inside = np.where(np.isfinite(inside), inside, 0.0)
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        kept = np.abs(total - middle * requests) <= radius(requests, leverage, rate_s, inflation, middle, alpha)
        inside, outside = np.where(kept, middle, inside), np.where(kept, outside, middle)
    return np.asarray(inside)


def radius(
    requests: Floats, leverage: Floats, rate_s: Floats, inflation: Floats | float, difference: Floats, alpha: float
) -> Floats:
    """Boundary of the normal mixture, sqrt(2 (V rho^2 + 1) / rho^2 ln(sqrt(V rho^2 + 1) / alpha)), in bad events."""
    rate_c = np.clip(rate_s + difference, 0.0, 1.0)
    variance = inflation * (requests * rate_c * (1 - rate_c) + leverage * rate_s * (1 - rate_s))
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / _TUNED_FOR
    grown = variance * rho2 + 1
    return np.asarray(np.sqrt(2 * grown / rho2 * np.log(np.sqrt(grown) / alpha)))

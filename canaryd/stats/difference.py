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
_TUNED_FOR = 25.0  # variance of the sum, in squared bad events, at which the interval is tightest


def interval(
    total: Floats, requests: Floats, leverage: Floats, rate_c: Floats, rate_s: Floats, level: float = LEVEL
) -> tuple[Floats, Floats, Floats]:
    """(difference, low, high), each of the shape of the arguments; NaN where there were no requests.

    total: sum over intervals of x_c - n_c x_s / n_s; requests: sum of n_c; leverage: sum of n_c^2 / n_s;
    rate_c, rate_s: shares 0..1 used in the variance n_c p_c (1 - p_c) + (n_c^2 / n_s) p_s (1 - p_s).
    """
    alpha = 1 - level
    variance = requests * rate_c * (1 - rate_c) + leverage * rate_s * (1 - rate_s)
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / _TUNED_FOR
    grown = variance * rho2 + 1
    radius = np.sqrt(2 * grown / rho2 * np.log(np.sqrt(grown) / alpha))
    with np.errstate(divide="ignore", invalid="ignore"):
        middle, half = total / requests, radius / requests
    return middle, np.maximum(middle - half, -1.0), np.minimum(middle + half, 1.0)

"""What is expected of the next interval, from past intervals only: that is what makes betting on it valid."""

from __future__ import annotations

import numpy as np

from canaryd.model import Floats

HALF_LIFE = 4.0  # intervals until an interval counts half in the quick part
FADE = 0.5 ** (1 / HALF_LIFE)
PRIOR_REQUESTS = 200.0  # how many requests the long-run rate weighs against the quick part
GRID = np.array([1.15, 1.35, 1.7, 2.3, 3.5, 6.0, 12.0, 30.0, 100.0, 1000.0])  # odds ratios of the alternatives


def stable_rate(quick_x: Floats, quick_n: Floats, long_x: Floats, long_n: Floats) -> Floats:
    """Predicted share of bad events of the stable arm, in (0, 1): quick part shrunk towards the long-run rate.

    (sum(f^age x) + k m) / (sum(f^age n) + k), with the long-run mean m = (X + 1/2) / (N + 1) and k = 200 requests.
    """
    mean = (long_x + 0.5) / (long_n + 1)
    rate = (quick_x + PRIOR_REQUESTS * mean) / (quick_n + PRIOR_REQUESTS)
    return np.asarray(np.clip(rate, 1e-7, 1 - 1e-6))


def alternatives(rate: Floats, r: Floats, d: Floats) -> Floats:
    """Canary shares to bet on, shape (..., 10): the odds at the edge of the tolerance times GRID; below 1."""
    edge = np.clip((1 + r) * rate + d, 0, 1 - 1e-6)
    odds = GRID * (edge / (1 - edge))[..., None]
    return np.asarray(np.minimum(odds / (1 + odds), 1 - 1e-7))

"""Latency as shares: "slower than this bucket edge", for the edges that say something about this service.

Judging every informative edge is non-inferiority of all quantiles near an edge and stochastic dominance at once;
no quantile is ever interpolated for a decision. "5 % slower" becomes a difference in shares through the density of
stable's own durations around the edge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from canaryd.model import Floats

HISTOGRAM_FADE = 0.99  # per interval
LEAST_SHARE, MOST_SHARE = 2e-4, 0.98  # edges with stable's share of slower requests in here are informative
LEAST_TOLERANCE = 1e-4
QUANTILES = (0.5, 0.1, 0.01)  # p50, p90, p99 as shares of slower requests


def share_tolerance(mass: Floats, edges: Floats, slowdown: Floats) -> Floats:
    """Difference in "slower than the edge" that a slowdown by the factor 1 + `slowdown` causes at each edge.

    mass: (..., edges + 1) stable requests per bucket, the last one above all edges; edges: (..., edges) ms ascending;
    slowdown: (..., 1) > 0. Returns (..., edges) = max(1e-4, sqrt(f_b f_(b+1)) ln(1 + slowdown)), f being mass per
    unit of ln(duration) in the bucket below and above the edge (a geometric mean, so that an edge beside an empty
    bucket gets the least tolerance). STATISTICS of the project, section 4.3.
    """
    share = mass / np.maximum(mass.sum(-1, keepdims=True), 1.0)
    logs = np.log(edges)
    outer = np.concatenate([logs[..., :1] - 1, logs, logs[..., -1:] + 1], axis=-1)  # the open buckets: one e-fold
    density = share / np.maximum(np.diff(outer, axis=-1), 1e-9)
    below, above = np.maximum(density[..., :-1], 1e-9), np.maximum(density[..., 1:], 1e-9)
    return np.asarray(np.maximum(np.sqrt(below * above) * np.log1p(slowdown), LEAST_TOLERANCE))


def informative(rate: Floats) -> NDArray[np.bool_]:
    """Which edges are judged: (..., edges) stable's predicted shares of slower requests → mask.

    Those with a share in [2e-4, 0.98] and the next edge above each of them, where a new tail would appear.
    """
    inside = (rate >= LEAST_SHARE) & (rate <= MOST_SHARE)
    out = inside.copy()
    out[..., 1:] |= inside[..., :-1]
    return np.asarray(out)


def nearest(rate: Floats, usable: NDArray[np.bool_]) -> list[int]:
    """Indices of the usable edges nearest stable's p50, p90 and p99 on the log scale; empty when none is usable."""
    if not usable.any():
        return []
    logs = np.where(usable, np.log(rate), -np.inf)
    return sorted({int(np.argmin(np.abs(logs - np.log(q)))) for q in QUANTILES})


NO_EDGES: Floats = np.zeros(0)

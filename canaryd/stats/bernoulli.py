"""The exact two-sample e-value for shares of bad events, in both directions.

In an interval the arms c (canary) and s (stable) serve n_c, n_s requests of which x_c, x_s are bad. The null is convex,

    H0: p_c <= (1 + r) p_s + d        with p_s arbitrary and free to differ in every interval.

For an alternative (a_c, a_s) outside H0, chosen before the interval, let (q, p) be its Kullback-Leibler projection on
H0's boundary q = (1 + r) p + d, that is the root in p of

    n_c (1 + r) (q - a_c) / (q (1 - q)) + n_s (p - a_s) / (p (1 - p)) = 0.

Then exp(x_c ln(a_c/q) + (n_c - x_c) ln((1-a_c)/(1-q)) + x_s ln(a_s/p) + (n_s - x_s) ln((1-a_s)/(1-p))) has an
expectation of at most 1 for every (p_c, p_s) in H0, and products over intervals are test supermartingales: by Ville's
inequality the chance that they ever reach 1/alpha is at most alpha, however often one looks.

Source: Turner, Ly, Gruenwald, "Generic E-variables for exact sequential k-sample tests that allow for optional
stopping" (2024, arXiv:2106.02693), extended with the margin (r, d); the proof is the first-order optimality of the
projection on a convex set. Assumes that, given the past, the requests of an interval are independent, with means that
average to p_c and p_s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from canaryd.model import Floats

NDBool = NDArray[np.bool_]
TINY = 1e-12
_STEPS = 7  # of Newton's method, see _project
_REST = 1e-9  # relative step below which it has come to rest
_HALVINGS = 60


def log_e_worse(
    x_c: ArrayLike,
    n_c: ArrayLike,
    x_s: ArrayLike,
    n_s: ArrayLike,
    a_c: ArrayLike,
    a_s: ArrayLike,
    r: ArrayLike,
    d: ArrayLike,
) -> Floats:
    """Log e-value against "the canary is at most tolerably worse": p_c <= (1 + r) p_s + d.

    All arguments broadcast against each other. Counts >= 0; a_c, a_s in (0, 1); r >= 0; d >= 0. Zero where the
    alternative lies inside the null, or an arm served nothing: no evidence.
    """
    x_c, n_c, x_s, n_s, a_c, a_s, r, d = _arrays(x_c, n_c, x_s, n_s, a_c, a_s, r, d)
    inside = a_c <= (1 + r) * a_s + d
    p = projected(n_c, n_s, a_c, a_s, r, d)
    return _log_ratio(x_c, n_c, x_s, n_s, a_c, a_s, p, r, d, inside)


def projected(n_c: Floats, n_s: Floats, a_c: Floats, a_s: Floats, r: Floats, d: Floats) -> Floats:
    """Stable's share p at the point of "at most tolerably worse" nearest to the alternative; q = (1 + r) p + d."""
    high = np.maximum(np.minimum((a_c - d) / (1 + r), (1 - d) / (1 + r) - TINY), a_s)
    return _project(n_c, n_s, a_c, a_s, r, d, a_s, high)


def log_e_fine(
    x_c: ArrayLike,
    n_c: ArrayLike,
    x_s: ArrayLike,
    n_s: ArrayLike,
    a_c: ArrayLike,
    a_s: ArrayLike,
    r: ArrayLike,
    d: ArrayLike,
) -> Floats:
    """Log e-value against "the canary is unacceptable": p_c >= (1 + r) p_s + d. Arguments as in `log_e_worse`."""
    x_c, n_c, x_s, n_s, a_c, a_s, r, d = _arrays(x_c, n_c, x_s, n_s, a_c, a_s, r, d)
    inside = a_c >= (1 + r) * a_s + d
    high = a_s
    low = np.minimum(np.maximum((a_c - d) / (1 + r), TINY), high)
    p = _project(n_c, n_s, a_c, a_s, r, d, low, high)
    return _log_ratio(x_c, n_c, x_s, n_s, a_c, a_s, p, r, d, inside)


def log_e_above(x: ArrayLike, n: ArrayLike, a: ArrayLike, p: ArrayLike) -> Floats:
    """One sample: log e-value against a share of at most p, for the alternative a > p; zero where a <= p.

    The likelihood ratio of two points; a supermartingale for every share up to p, because it rises with x.
    """
    x, n, a, p = _arrays(x, n, a, p)
    ratio = x * np.log(a / p) + (n - x) * np.log((1 - a) / (1 - p))
    return np.asarray(np.where((a > p) & (n > 0), ratio, 0.0))


def log_e_below(x: ArrayLike, n: ArrayLike, a: ArrayLike, p: ArrayLike) -> Floats:
    """One sample: log e-value against a share of at least p, for the alternative a < p; zero where a >= p."""
    x, n, a, p = _arrays(x, n, a, p)
    return log_e_above(n - x, n, 1 - a, 1 - p)


def _arrays(*values: ArrayLike) -> tuple[Floats, ...]:
    return tuple(np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in values)))


def _project(
    n_c: Floats, n_s: Floats, a_c: Floats, a_s: Floats, r: Floats, d: Floats, low: Floats, high: Floats
) -> Floats:
    """Root in p, between `low` and `high`, of the projection's derivative times p (1 - p) q (1 - q), which is a cubic.

    It starts from the root of the quadratic that the cubic is for rare events and goes on with Newton's method, halving
    the bracket where a step would leave it. The few elements that have not come to rest then are bisected to the end:
    away from the root the result would not be an e-value.
    """
    k = 1 + r
    with np.errstate(all="ignore"):  # an arm without requests has no root; the caller leaves such elements out
        a, b, c = (n_c * k + n_s) * k, n_c * k * (d - a_c) + n_s * (d - k * a_s), -n_s * a_s * d
        root = np.sqrt(b * b - 4 * a * c)
        p = np.clip(np.where(b > 0, -2 * c / (b + root), (root - b) / (2 * a)), low, high)
        for _ in range(_STEPS):
            slope, rise = _cubic(p, n_c, n_s, a_c, a_s, k, d)
            below = slope < 0
            low, high = np.where(below, p, low), np.where(below, high, p)
            before, step = p, p - slope / rise
            p = np.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        moving = np.abs(p - before) > _REST * p
    if moving.any():
        rest = (v[moving] for v in (n_c, n_s, a_c, a_s, k, d, low, high))
        p[moving] = _bisected(*rest)
    return np.asarray(p)


def _cubic(
    p: Floats, n_c: Floats, n_s: Floats, a_c: Floats, a_s: Floats, k: Floats, d: Floats
) -> tuple[Floats, Floats]:
    """The cubic of `_project` and its derivative."""
    q = k * p + d
    q_var, p_var = q * (1 - q), p * (1 - p)
    slope = n_c * k * (q - a_c) * p_var + n_s * (p - a_s) * q_var
    rise = n_c * k * (k * p_var + (q - a_c) * (1 - 2 * p)) + n_s * (q_var + (p - a_s) * k * (1 - 2 * q))
    return slope, rise


def _bisected(
    n_c: Floats, n_s: Floats, a_c: Floats, a_s: Floats, k: Floats, d: Floats, low: Floats, high: Floats
) -> Floats:
    """The same root by halving the bracket, on the logarithmic scale, because it may span many orders of magnitude."""
    for _ in range(_HALVINGS):
        p = np.sqrt(np.maximum(low, TINY**2) * high)
        below = _cubic(p, n_c, n_s, a_c, a_s, k, d)[0] < 0
        low, high = np.where(below, p, low), np.where(below, high, p)
    return np.asarray(np.sqrt(np.maximum(low, TINY**2) * high))


def _log_ratio(
    x_c: Floats,
    n_c: Floats,
    x_s: Floats,
    n_s: Floats,
    a_c: Floats,
    a_s: Floats,
    p: Floats,
    r: Floats,
    d: Floats,
    inside: NDBool,
) -> Floats:
    q = np.minimum((1 + r) * p + d, 1 - TINY)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (
            x_c * np.log(a_c / q)
            + (n_c - x_c) * np.log((1 - a_c) / (1 - q))
            + x_s * np.log(a_s / p)
            + (n_s - x_s) * np.log((1 - a_s) / (1 - p))
        )
    return np.asarray(np.where(inside | (n_c <= 0) | (n_s <= 0), 0.0, ratio))

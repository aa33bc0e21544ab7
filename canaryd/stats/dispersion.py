"""How much noisier than independent requests the traffic is, learnt from stable's pods.

Two sources: requests of an interval are not independent (errors come in clusters: phi0), and pods differ from each
other for as long as they live (a pod on a busy node: tau^2, relative). More time does not help against the second, more
pods do. Evidence is divided by the inflation of the variance, and softened where that is itself known from few pods.
Measured, not proven: STATISTICS of the project, section 4.5 and its list of guarantees.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from canaryd.model import Floats

PRIOR_PODS = 2.0  # weight of the prior for tau^2, in pods
PRIOR_EVENTS = 20.0  # weight of "no clustering" in phi0, in squared events
MANY_PODS = 5  # from so many pods on, past ones included, they speak for themselves
FEW_PODS_ERRORS, FEWEST_PODS_ERRORS = 0.10, 0.20  # relative sd assumed with 3 or 4, with 1 or 2 pods
FEW_PODS_LATENCY = 0.10
USUAL = 0.02
HARD_TO_TELL = 1e6  # degrees of freedom above which nothing is softened


def residuals(x: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Each pod against all pods of the same interval: (r, v), shape (..., P, M).

    x: bad events, n: requests, both (..., P, M). r = x - n p with p pooled over the pods, so that what hits all of them
    cancels; v = n p (1 - p) (1 - n / sum n), the variance of r if requests were independent.
    """
    total = np.maximum(n.sum(-2, keepdims=True), 1.0)
    p = x.sum(-2, keepdims=True) / total
    return x - n * p, n * p * (1 - p) * (1 - n / total)


def clustering(squares: Floats, variance: Floats) -> Floats:
    """phi0 >= 1, from the sums of r^2 and v over pods and intervals."""
    return np.asarray(np.maximum(1.0, (squares + PRIOR_EVENTS) / (variance + PRIOR_EVENTS)))


def between_pods(residual: Floats, variance: Floats, expected2: Floats, phi0: Floats, pods: Floats) -> Floats:
    """tau^2 hat, relative variance between pods, >= 0, shape (C, M).

    residual: (C, P, M) sums of r over time; variance: (C, M) sum of all v; expected2: (C, M) sum over pods of the
    squared expected events; pods: (C,) how many. Method of moments: E[sum R^2] = phi0 sum V + tau^2 (1 - 1/m) sum U^2.
    """
    shrink = 1 - 1 / np.maximum(pods, 1.0)[:, None]
    excess = (residual**2).sum(1) - phi0 * variance
    return np.asarray(np.maximum(excess / np.maximum(expected2 * shrink, 1e-9), 0.0))


def prior(pods: Floats, rows: int, failing: NDArray[np.bool_] | None = None) -> Floats:
    """Relative sd assumed before any pod has been seen, (C, rows).

    failing: (C, rows) which rows count failures and not slowness; by default row 0 alone.
    """
    errors = np.where(pods >= MANY_PODS, USUAL, np.where(pods >= 3, FEW_PODS_ERRORS, FEWEST_PODS_ERRORS))
    latency = np.where(pods >= MANY_PODS, USUAL, FEW_PODS_LATENCY)
    if failing is None:
        failing = np.arange(rows)[None] == 0
    return np.asarray(np.where(failing, errors[:, None], latency[:, None]))


def pooled(
    between: Floats,
    pods: Floats,
    past: Floats,
    past_freedom: Floats,
    *,
    own: Floats | None = None,
    failing: NDArray[np.bool_] | None = None,
) -> Floats:
    """tau^2, (C, M): the prior, this rollout's stable pods, and pods of the past, weighted by degrees of freedom.

    own: those of `between`, (C, M), by default one less than pods; failing: as in `prior`.
    """
    own = np.maximum(pods - 1, 0.0)[:, None] if own is None else own
    assumed = prior(pods + past_freedom.max(1, initial=0.0), between.shape[1], failing)
    return np.asarray(
        (PRIOR_PODS * assumed**2 + own * between + past_freedom * past) / (PRIOR_PODS + own + past_freedom)
    )


def inflation(
    phi0: Floats, tau2: Floats, rate: Floats, events_c: Floats, events_s: Floats, n_c: Floats, n_s: Floats
) -> Floats:
    """phi >= 1 of the contrast canary - stable, for arrays that broadcast.

    events_c, events_s: expected bad events of the typical pod of each arm, sum u^2 / sum u; n_c, n_s: requests.
    Each arm's variance grows by phi0 + tau^2 u_eff / (1 - p), and the arm with fewer requests rules the contrast.
    """
    phi_c = phi0 + tau2 * events_c / (1 - rate)
    phi_s = phi0 + tau2 * events_s / (1 - rate)
    return np.asarray(np.maximum(1.0, (phi_c * n_s + phi_s * n_c) / np.maximum(n_c + n_s, 1.0)))


def freedom(phi: Floats, phi0: Floats, known: Floats) -> Floats:
    """Degrees of freedom of phi (Satterthwaite): only its part above phi0 is uncertain. `known`: those of tau^2."""
    return np.asarray(np.maximum(known, 1.0) * (phi / np.maximum(phi - phi0, 1e-9)) ** 2)


def soften(log_e: Floats, degrees: Floats) -> Floats:
    """Evidence when the variance is known with so many degrees of freedom: never more, a Student tail for a normal one.

    (nu + 1) / 2 ln(1 + 2 l / nu) for l > 0; evidence against the alternative (l <= 0) stays as it is.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        student = (degrees + 1) / 2 * np.log1p(2 * np.maximum(log_e, 0.0) / degrees)
    apply = (log_e > 0) & (degrees < HARD_TO_TELL)
    return np.asarray(np.where(apply, np.minimum(student, log_e), log_e))


def needed_for(target: Floats | float, phi: Floats, degrees: Floats) -> Floats:
    """The raw log e-value whose inflated, softened form is `target` > 0: the inverse of soften(l / phi, degrees)."""
    with np.errstate(over="ignore", invalid="ignore"):
        plain = degrees / 2 * np.expm1(2 * target / (degrees + 1))
    return np.asarray(phi * np.where(degrees < HARD_TO_TELL, np.maximum(plain, target), target))

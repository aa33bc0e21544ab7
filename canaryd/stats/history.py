"""How pods of one service have differed from each other in the past, when there are too few now to tell.

Pods of earlier ReplicaSets and earlier days count. Where several ran at a time they are compared with each other in the
same interval, so that what hit all of them cancels; where there was only ever one, it is compared with the whole past,
which takes slow changes of the service for differences between pods and so errs towards caution.
"""

from __future__ import annotations

import numpy as np

from canaryd.model import Floats
from canaryd.stats import dispersion

MOST_PODS = 100  # of the past that are looked at
ALONE = 1.5  # pods at a time below which there is nobody to be compared with


def learn(x: Floats, n: Floats) -> Floats:
    """(2, ..., M): tau^2 between past pods, relative to the rate, and the degrees of freedom it is worth.

    x: bad events, n: requests, both (..., T, P, M) over T intervals and P pods; zeros where a pod did not run. Method
    of moments as in canaryd.stats.dispersion; pods with few events tell little and count for little: the freedom is
    scaled by (tau0^2 / (tau0^2 + phi / u))^2, tau0 being the prior and u the mean expected events of a pod.
    """
    ran = (n[..., 0] > 0).astype(np.float64)  # (..., T, P)
    at_once = ran.sum((-1, -2)) / np.maximum((ran.sum(-1) > 0).sum(-1), 1)
    together, apart = _moments(x, n, axis=(-2,)), _moments(x, n, axis=(-3, -2))
    alone = (at_once < ALONE)[..., None]
    tau2, events, phi = (np.where(alone, a, t) for a, t in zip(apart, together, strict=True))
    pods = (ran.sum(-2) > 0).sum(-1)
    peers = np.where(at_once < ALONE, pods, np.maximum(at_once, 1.0))
    degrees = np.maximum(pods * (1 - 1 / np.maximum(peers, 1.0)), 0.0)[..., None]
    assumed = dispersion.prior(np.zeros(1), x.shape[-1])[0] ** 2
    worth = (assumed / (assumed + phi / np.maximum(events, 1e-9))) ** 2
    return np.stack([tau2, degrees * worth])


def _moments(x: Floats, n: Floats, axis: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    """(tau^2, mean expected events per pod, phi), each (..., M), against the rate pooled over `axis`."""
    total = np.maximum(n.sum(axis, keepdims=True), 1.0)
    p = x.sum(axis, keepdims=True) / total
    expected = n * p
    v = expected * (1 - p) * (1 - n / total)
    r = x - expected
    residual, events, variance = r.sum(-3), expected.sum(-3), v.sum(-3)  # (..., P, M)
    effect = residual / np.maximum(events, 1e-9)
    rest = ((r - effect[..., None, :, :] * expected) ** 2).sum((-3, -2))
    phi = np.maximum(1.0, rest / np.maximum(v.sum((-3, -2)), 1e-9))
    own = np.where(n > 0, 1 - n / total, 0.0)
    shrink = (expected * own).sum(-3) / np.maximum(events, 1e-9)  # (..., P, M): how much of its own effect a pod shows
    pods = np.maximum((events > 0).sum(-2), 1)
    typical = shrink.sum(-2) / pods  # a pod that served nothing shows nothing
    excess = (residual**2).sum(-2) - phi * variance.sum(-2)
    shown = ((events * shrink) ** 2).sum(-2) / np.maximum(typical, 1e-9)
    return np.maximum(excess / np.maximum(shown, 1e-9), 0.0), events.sum(-2) / pods, phi

"""Is the configured weight what users get? One-sample e-values on "this request reached the canary".

Envoy draws every request independently, so the number of canary requests among n is binomial. The weight w is
*confirmed* when shares outside (w/2, min(2w, (1+w)/2)) are ruled out, and *mismatched* when shares inside are.
"""

from __future__ import annotations

import numpy as np

from canaryd.model import Floats
from canaryd.stats.bernoulli import log_e_above, log_e_below

_EDGE = 1e-3  # a weight of 100 % is treated as 99.9 %, or one stray request would be impossible rather than unlikely


def limits(weight: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest share that still counts as this weight (both shares 0..1)."""
    w = np.clip(weight, _EDGE, 1 - _EDGE)
    return w / 2, np.minimum(2 * w, (1 + w) / 2)


def log_e_steps(n_c: Floats, n: Floats, weight: Floats) -> Floats:
    """Log e-values gained, shape (..., 4): against too low, against too high, against not too low, not too high.

    The first two confirm the weight when both are large; one of the last two, when large, proves a mismatch.
    n_c canary requests among n of both arms; weight is a share 0..1.
    """
    w = np.clip(weight, _EDGE, 1 - _EDGE)
    low, high = limits(weight)
    whole = weight >= 1 - _EDGE
    return np.stack(
        [
            log_e_above(n_c, n, w, low),
            np.where(whole, 0.0, log_e_below(n_c, n, w, high)),
            log_e_below(n_c, n, low / 2, low),
            np.where(whole, 0.0, log_e_above(n_c, n, (1 + high) / 2, high)),
        ],
        axis=-1,
    )


def decide(split: Floats, weight: float, alpha: float, beta: float) -> tuple[bool, bool]:
    """(confirmed, mismatch) from the four log e-values; at 100 % no share can be too high."""
    too_low, too_high, not_low, not_high = (float(v) for v in split)
    need = -np.log(beta)
    confirmed = too_low >= need and (too_high >= need or weight >= 1 - _EDGE)
    return bool(confirmed), bool(max(not_low, not_high) >= -np.log(alpha))

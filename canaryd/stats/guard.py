"""The guard against arms that are read at different moments: a worse (or better) neighbour stands in for stable.

An outage that hits both arms may then show in one of them an interval before it shows in the other. Against the
canary, stable's worse neighbour is taken, for it, the better one: either way the evidence becomes less; it costs power,
never validity (with about as many requests; with fewer ones that is simulated, not proven).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from canaryd.model import Floats

GUARD_Z = 3.0  # a neighbouring interval in which stable is so much worse takes the place of the scored one


def stand_in(
    x_s: Floats, n_s: Floats, x_near: Floats, n_near: Floats, near: NDArray[np.bool_], *, worse: bool
) -> tuple[Floats, Floats]:
    """(x, n) of stable, with that of a neighbour where stable was significantly worse in it, or better.

    x_s, n_s: (...) bad events and all; x_near, n_near: (2, ...) of the intervals before and after; near: (2, ...)
    whether they are known, as far as it broadcasts.
    """
    x, n, sign = x_s, n_s, 1.0 if worse else -1.0
    for side in (0, 1):
        x_q, n_q = x_near[side], n_near[side]
        p = (x_q + x_s + 0.5) / (n_q + n_s + 1)
        many, some = np.maximum(n_q, 1.0), np.maximum(n_s, 1.0)
        z = (x_q / many - x_s / some) / np.sqrt(p * (1 - p) * (1 / many + 1 / some))
        further = sign * x_q / many > sign * x / np.maximum(n, 1.0)
        take = near[side] & (n_q > 0) & (sign * z > GUARD_Z) & further
        x, n = np.where(take, x_q, x), np.where(take, n_q, n)
    return x, n

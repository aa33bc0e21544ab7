"""Which of many alarms stand: the e-value form of the Benjamini-Hochberg procedure (e-BH).

Wang and Ramdas, "False discovery rate control with e-values", JRSS B 84(3), 2022. Among the hypotheses that it rejects
the expected share of true ones is at most `rate`, whatever the dependence between the e-values. Used for the rows of
one canary (which metrics to name) and for the releases of a fleet (which rollbacks stand); alpha itself is per release.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from canaryd.model import Floats

RATE = 0.05


def e_bh(log_e: Floats, tested: NDArray[np.bool_], rate: float = RATE) -> NDArray[np.bool_]:
    """Rejected hypotheses along the last axis, shape as `log_e`.

    Those with an e-value of at least K / (rate k), K hypotheses being tested and k the largest count for which that
    many are. log_e: natural logs of e-values; tested: which of them count; rate in (0, 1).
    """
    values = np.where(tested, log_e, -np.inf)
    order = np.sort(values, axis=-1)[..., ::-1]
    tries = np.maximum(tested.sum(-1), 1)
    k = np.arange(1, log_e.shape[-1] + 1)
    passed = np.where(order >= np.log(tries)[..., None] - np.log(rate * k), k, 0).max(-1, initial=0)
    bar = np.log(tries) - np.log(rate * np.maximum(passed, 1))
    return np.asarray((values >= bar[..., None]) & (passed > 0)[..., None])

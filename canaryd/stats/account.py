"""The arithmetic behind one row's e-value, as few plain numbers that recombine to it. Pure.

For a person who checks a decision by hand: what the latest stretch counted, what was bet on it, what that gained, the
sums so far, by what they are divided, how they are softened, mixed and weighed. Decides nothing. The numbers are those
of canaryd.stats.evidence and canaryd.stats.assess, rounded so that the result is still right to three digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from canaryd.model import Floats
from canaryd.stats import assess, evidence, predict
from canaryd.stats.dispersion import HARD_TO_TELL
from canaryd.stats.edges import share_tolerance
from canaryd.stats.evidence import Batch, J, Rules

DIGITS = 5  # decimals of log e-values
HALF = 0.5  # counts are whole numbers


def account(
    rules: Rules,
    arrays: Mapping[str, Floats],
    edges: Floats,
    rows: Sequence[int],
    gate: int,
    before: Mapping[str, Floats] | None,
    spans: float = 0.0,
) -> dict[str, Any]:
    """JSON values about the first of `rows`, indices into the arrays' rows; `gate`: the present step.

    `spans`: ln of the e-value of all operations together, 0 without traces.

    {} where nothing was scored. `before`: the arrays of the look before; "stretches" says for each of the rows what the
    stretch in between counted and what was expected, where there was a single one.
    """
    row = rows[0]
    begun = int(evidence.clock(arrays, "epochs"))
    if not (0 <= row < len(arrays["usable"])) or begun == 0:
        return {}
    batch = Batch([arrays], [edges], [rules])
    sums = batch.a["worse"][0, :begun, row]
    phi, nu = batch.a["phi"][0, :begun, row], batch.a["nu"][0, :begun, row]
    log_w = assess.row_weights(batch)[0]
    log_e = assess.row_evidence(batch)[0]
    phi0 = max(evidence.clock(arrays, "phi0"), 1.0)
    others = np.delete(log_w + log_e, row)
    hard, alone = (float(assess.log_sum(batch.a[k][0] / phi0, -1) - np.log(J)) for k in ("hard", "alone"))
    return {
        "row": row,
        "epochs": [[_rounded(v) for v in one] for one in sums],
        "phi": [_rounded(v, 7) for v in phi],
        "nu": [_rounded(v, 3) if v < HARD_TO_TELL else None for v in nu],
        "rowLogE": _rounded(log_e[row]),
        "weight": _rounded(np.exp(log_w[row]), 7),
        "others": _rounded(float(assess.log_sum(others, -1)) if len(others) else -np.inf),
        "hard": _rounded(hard),
        "alone": _rounded(alone),
        "spans": _rounded(spans),
        "fine": _rounded(batch.a["fine"][0, row, min(max(gate, 0), len(rules.gates) - 1)]),
        "alpha": rules.alpha,
        "beta": rules.beta,
        "stretches": list(_stretches(rules, arrays, edges, rows, before)),
    }


def _stretches(
    rules: Rules,
    arrays: Mapping[str, Floats],
    edges: Floats,
    rows: Sequence[int],
    before: Mapping[str, Floats] | None,
) -> Iterator[dict[str, Any]]:
    if before is None or any(before[k].shape != arrays[k].shape for k in ("worse", "total", "usable")):
        return
    if evidence.clock(arrays, "intervals") != evidence.clock(before, "intervals") + 1:
        return
    for row in dict.fromkeys(row for row in rows if row >= 0):
        told = _stretch(arrays, before, row, *_bounds(rules, before, edges, row))
        if told is not None:
            yield told


def _bounds(rules: Rules, arrays: Mapping[str, Floats], edges: Floats, row: int) -> tuple[float, float]:
    """(r, d) of "at most tolerably worse" in one row, as canaryd.stats.evidence.Batch.tolerance has them."""
    if row == 0:
        return rules.relative, rules.absolute
    if row <= len(edges):
        return 0.0, float(share_tolerance(arrays["mass"], edges, np.array([rules.slower]))[row - 1])
    query = rules.queries[row - 1 - len(edges)]
    return query.relative, query.absolute


def _stretch(
    arrays: Mapping[str, Floats], before: Mapping[str, Floats], row: int, r: float, d: float
) -> dict[str, Any] | None:
    """What the one stretch since `before` counted; None where more was learnt of stable than was compared.

    That is so where a stretch lay between that was not scored, so that another rate was expected, and where a
    neighbour took the place of a stretch.
    """
    x_c, n_c, x_s, n_s = (float(v) for v in arrays["total"][row] - before["total"][row])
    x_long, n_long = (float(v) for v in arrays["long"][:, row] - before["long"][:, row])
    if not arrays["usable"][row] or abs(x_long - x_s) > HALF or abs(n_long - n_s) > HALF:
        return None
    rate = float(predict.stable_rate(*before["quick"][:, row], *before["long"][:, row]))
    return {
        "row": row,
        "canaryBad": x_c,
        "canaryN": n_c,
        "stableBad": x_s,
        "stableN": n_s,
        "pHat": float(f"{rate:.8g}"),
        "relative": r,
        "absolute": float(f"{d:.8g}"),
    }


def _rounded(value: float, digits: int = DIGITS) -> float | None:
    """None for minus infinity, which JSON has not."""
    return round(float(value), digits) if np.isfinite(value) else None

"""The arithmetic of a decision as lines of text, so that a statistician can check it by hand. Pure.

Everything printed is taken from the records, or computed from what is printed: counts of each look, the bets, what they
gained, the sums, the division by the inflation, the softening, the mixture, the thresholds. Never decides anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from canaryd import wording
from canaryd.bodies import Body, number, part, parts
from canaryd.model import Floats
from canaryd.stats import bernoulli, predict
from canaryd.stats.assess import WEIGHT_ALONE, WEIGHT_HARD, WEIGHT_TRACES
from canaryd.stats.dispersion import soften
from canaryd.stats.evidence import EPOCHS
from canaryd.stats.predict import GRID

MOST_LOOKS = 12  # whose counts are printed
NEAR = 1e-3  # how well sums agree that were rounded to five decimals


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The sums of the bets since one start, and what becomes of them; arrays of one number for each bet."""

    sums: Floats
    phi: float
    nu: float  # degrees of freedom of phi; inf: phi is known

    @property
    def divided(self) -> Floats:
        return self.sums / self.phi

    @property
    def softened(self) -> Floats:
        return soften(self.divided, np.array(self.nu))

    @property
    def log_e(self) -> float:
        """ln of the mean of exp(softened)."""
        return _log_sum([float(v) - math.log(len(self.sums)) for v in self.softened])


def workings(body: Body, earlier: Sequence[Body] = ()) -> list[str]:
    """Lines about the decisive metric of `body`; `earlier`: bodies of the same rollout, for the counts of their looks.

    [] where the record holds no arithmetic: nothing was counted, or an older canaryd wrote it.
    """
    account = part(body, "account")
    epochs = _epochs(account)
    if not epochs:
        return []
    metric = wording.clean(body.get("decisive"), 63)
    finding = next((f for f in parts(body, "findings") if f.get("metric") == body.get("decisive")), {})
    event = wording.clean(finding.get("event"), 100)
    lines = [f"the arithmetic of {metric}" + (f" ({event})" if event not in ("", metric) else "")]
    looks, row = _before(body, earlier), account.get("row")
    lines += ["", *_looks(looks, row), *_added(looks, row, epochs), "", *_null(_stretch(body, row)), ""]
    lines += _bet(_stretch(body, row))
    lines += ["softened:   l where l <= 0, else the lesser of l and (nu + 1)/2 ln(1 + 2 l/nu)", ""]
    for i, epoch in enumerate(epochs):
        lines += [*_table(epoch, i, _stretch(body, row)), ""]
    return [*lines, *_whole(body, account, epochs), "", *_step(account, finding)]


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────


def _before(body: Body, earlier: Sequence[Body]) -> list[Body]:
    """Bodies of all looks of the rollout that counted something, up to this one, oldest first."""
    found = {
        str(b.get("at")): b
        for b in (*earlier, body)
        if b.get("rollout") == body.get("rollout") and part(b, "account") and part(b, "look")  # else carried along
    }
    return [found[at] for at in sorted(found) if at <= str(body.get("at"))]


def _stretch(look: Body, row: object) -> Body:
    """What the stretch of a look counted in a row; {} where it was not a single one."""
    return next((s for s in parts(part(look, "account"), "stretches") if s.get("row") == row), {})


def _looks(looks: Sequence[Body], row: object) -> list[str]:
    lines = [
        "counts of each look:  time      canary bad / n      stable bad / n      p-hat of stable   best bet gained"
    ]
    if len(looks) > MOST_LOOKS:
        lines.append(f"{'':22}({len(looks) - MOST_LOOKS} earlier ones: canaryd explain NAME --at TIME --verbose)")
    return [*lines, *(_counts(look, row) for look in looks[-MOST_LOOKS:])]


def _counts(look: Body, row: object) -> str:
    stretch, at = _stretch(look, row), _clock(look.get("at"))
    if not stretch:
        return f"{'':22}{at}  not kept alone (another edge told more, or several stretches): in the sums below"
    canary, stable = (
        f"{wording.count(number(stretch.get(f'{arm}Bad')))} / {wording.count(number(stretch.get(f'{arm}N')))}"
        for arm in ("canary", "stable")
    )
    return f"{'':22}{at}  {canary:<18}  {stable:<18}  {_value(stretch, 'pHat'):<16.8g}  {_signed(max(gains(stretch)))}"


def _added(looks: Sequence[Body], row: object, epochs: Sequence[_Epoch]) -> list[str]:
    """Whether the looks' gains make up the whole sum of the best bet, where all of them are at hand."""
    best = int(np.argmax(epochs[0].sums))
    total = sum(float(gains(s)[best]) for look in looks if (s := _stretch(look, row)))
    if abs(total - epochs[0].sums[best]) > NEAR * max(1.0, abs(total)):
        return []
    return [f"{'':22}all of them together gained {_signed(total)} for the bet with g = {GRID[best]:g}: the sum below"]


def _clock(value: object) -> str:
    try:
        return f"{datetime.fromisoformat(str(value)):%H:%M:%S}"
    except ValueError:
        return "–       "


# ── bets ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _null(stretch: Body) -> list[str]:
    if not stretch:
        return ["tolerated:  p_c <= (1 + r) p_s + d, with r and d as in the last look that has counts above"]
    r, d = _value(stretch, "relative"), _value(stretch, "absolute")
    limit = (1 + r) * _value(stretch, "pHat") + d
    return [
        f"tolerated:  p_c <= {1 + r:g} p_s + {d:.8g}, whatever p_s is; at p_s = p-hat that is {limit:.8g}",
        "bets:       a_s = p-hat, and a_c with g times the odds of that edge",
    ]


def gains(stretch: Body) -> Floats:
    """What each bet gained in one stretch."""
    rate, r, d = (_value(stretch, key) for key in ("pHat", "relative", "absolute"))
    bets = predict.alternatives(np.array(rate), np.array(r), np.array(d))
    x_c, n_c, x_s, n_s = (_value(stretch, key) for key in ("canaryBad", "canaryN", "stableBad", "stableN"))
    return bernoulli.log_e_worse(x_c, n_c, x_s, n_s, bets, rate, r, d)


def _bet(stretch: Body) -> list[str]:
    """One bet of the latest stretch from its counts to its gain."""
    if not stretch or not _value(stretch, "canaryN") or not _value(stretch, "stableN"):
        return []
    gained = gains(stretch)
    best = int(np.argmax(gained))
    rate, r, d = (_value(stretch, key) for key in ("pHat", "relative", "absolute"))
    a_c = float(predict.alternatives(np.array(rate), np.array(r), np.array(d))[best])
    n_c, n_s = (np.array([_value(stretch, key)]) for key in ("canaryN", "stableN"))
    p = float(bernoulli.projected(n_c, n_s, *(np.array([v]) for v in (a_c, rate, r, d)))[0])
    q = (1 + r) * p + d
    return [
        f"the bet with g = {GRID[best]:g}:  a_c = {a_c:.8g}, a_s = {rate:.8g}; "
        f"nearest tolerated point q = {q:.8g}, p = {p:.8g}",
        "    x_c ln(a_c/q) + (n_c - x_c) ln((1-a_c)/(1-q)) + x_s ln(a_s/p) + (n_s - x_s) ln((1-a_s)/(1-p)) = "
        f"{_signed(gained[best])}",
        "",
    ]


def _table(epoch: _Epoch, index: int, stretch: Body) -> list[str]:
    """A line for each bet of one start."""
    gained = gains(stretch) if stretch else np.full(len(epoch.sums), np.nan)
    nu = f"{epoch.nu:.3f}" if math.isfinite(epoch.nu) else "infinite"
    lines = [
        f"start {index + 1}:  phi = {epoch.phi:.7f}, nu = {nu}",
        f"    {'g':>6}  {'this look':>12}  {'sum':>12}  {'l = sum / phi':>13}  {'softened':>12}",
    ]
    for g, gain, total, divided, soft in zip(GRID, gained, epoch.sums, epoch.divided, epoch.softened, strict=True):
        this = _signed(gain) if math.isfinite(gain) else "–"
        lines.append(f"    {g:>6g}  {this:>12}  {_signed(total):>12}  {_signed(divided):>13}  {_signed(soft):>12}")
    lines.append(f"    ln(mean of exp(softened)) = {_signed(epoch.log_e)}")
    return lines


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────


def row_of(epochs: Sequence[float]) -> float:
    """ln e-value of a row from those of its starts: 1/2 for the first, 1/8 for each later one, cash where not begun."""
    weights = [0.5, *[0.5 / (EPOCHS - 1)] * (EPOCHS - 1)]
    all_of_them = [*epochs, *[0.0] * (EPOCHS - len(epochs))]
    return _log_sum([math.log(w) + e for w, e in zip(weights, all_of_them, strict=True)])


def whole_of(row: float, weight: float, others: float | None, hard: float, alone: float, spans: float) -> float:
    """ln e-value of everything together; `others`: ln of the other rows' weighted sum, None without any."""
    terms = [math.log(weight) + row] if weight > 0 else []
    terms += [others] if others is not None else []
    terms += [math.log(WEIGHT_HARD) + hard, math.log(WEIGHT_ALONE) + alone, math.log(WEIGHT_TRACES) + spans]
    return _log_sum(terms)


def _whole(body: Body, account: Body, epochs: Sequence[_Epoch]) -> list[str]:
    row = row_of([e.log_e for e in epochs])
    weight, others = _value(account, "weight"), number(account.get("others"))
    hard, alone, spans = (_value(account, name) for name in ("hard", "alone", "spans"))
    whole = whole_of(row, weight, others, hard, alone, spans)
    recorded = number(part(body, "evidence").get("logE"))
    alpha = _value(account, "alpha")
    parts_ = " + ".join(f"1/{2 if i == 0 else 8} e^{_signed(e.log_e)}" for i, e in enumerate(epochs))
    cash = 0.5 / (EPOCHS - 1) * (EPOCHS - len(epochs))
    sum_others = f" + e^{_signed(others)}" if others is not None else ""
    lines = [
        f"this row:      ln({parts_}{f' + {cash:g}' if cash else ''}) = {_signed(row)}"
        + ("   (starts that have not begun are cash)" if cash else ""),
        f"all together:  ln({weight:g} e^{_signed(row)}{sum_others} + {WEIGHT_HARD:g} e^{_signed(hard)} + "
        f"{WEIGHT_ALONE:g} e^{_signed(alone)} + {WEIGHT_TRACES:g} e^{_signed(spans)}) = {_signed(whole)}",
        "               (this row, the other rows, all pods beyond two points, a canary alone, spans: 0 is cash)",
    ]
    if recorded is not None:
        agree = "agrees" if abs(recorded - whole) < NEAR * max(1.0, abs(recorded)) else "DOES NOT AGREE"
        lines.append(f"recorded:      {_signed(recorded)}   {agree}")
    need = -math.log(alpha) if 0 < alpha < 1 else math.nan
    reached = "reached: regressed" if whole >= need else "not reached"
    lines.append(f"rollback at:   ln(1/alpha) = ln(1/{alpha:g}) = {_signed(need)}   {reached}")
    return lines


def _step(account: Body, finding: Body) -> list[str]:
    """The same for "acceptable at the next step", of this row."""
    fine, beta = number(account.get("fine")), _value(account, "beta")
    first = _epochs(account)[0]
    if fine is None or not 0 < beta < 1:
        return []
    soft = float(soften(np.array(fine / first.phi), np.array(first.nu)))
    need = -math.log(beta)
    ruled = number(finding.get("ruledOut"))
    what = f"to rule out {wording.points(ruled)}: " if ruled is not None else ""
    reached = "reached" if soft >= need else f"{_signed(soft)} / {_signed(need)} = {max(soft / need, 0.0):.1%}"
    return [
        f"next step:     {what}sum {_signed(fine)}, / phi = {_signed(fine / first.phi)}, softened {_signed(soft)}",
        f"step at:       ln(1/beta) = ln(1/{beta:g}) = {_signed(need)}   {reached}",
    ]


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────


def _epochs(account: Body) -> list[_Epoch]:
    sums, phi, nu = account.get("epochs"), account.get("phi"), account.get("nu")
    if not (isinstance(sums, list) and isinstance(phi, list) and isinstance(nu, list)):
        return []
    out = []
    for one, p, n in zip(sums, phi, nu, strict=False):
        known = [number(v) for v in one] if isinstance(one, list) else []
        if len(known) != len(GRID) or None in known or not number(p):
            return []
        out.append(_Epoch(np.array(known, dtype=np.float64), number(p) or 1.0, number(n) or math.inf))
    return out


def _value(body: Body, key: str) -> float:
    return number(body.get(key)) or 0.0


def _signed(value: float) -> str:
    return f"{float(value):+.4f}"


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))

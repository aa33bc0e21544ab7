"""Pictures as small as a word, for tables: a sparkline of a difference, the steps done. Pure; see the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from canaryd import wording
from canaryd.bodies import number
from canaryd.charts.axes import Scale, extent
from canaryd.charts.frame import path, range_of
from canaryd.charts.marks import el, label, picture
from canaryd.charts.thin import thinned
from canaryd.story import Metric


def sparkline(metric: Metric, *, width: int = 120, height: int = 24, uid: str = "") -> str:
    """The difference over the looks with what is tolerated as a line; times without numbers are left open."""
    points = thinned(metric.points, width, lambda p: p.difference)
    found = extent([0.0, *(p.difference for p in points), *(p.tolerated for p in points)])
    name, uid = f"{metric.name}: difference so far", uid or f"s{abs(hash_of(metric.name))}"
    if found is None or not any(not p.is_blind for p in points):
        line = el("line", "cd-grid", x1=2, x2=width - 2, y1=height / 2, y2=height / 2)
        return picture(width, height, line, name, "nothing compared yet", uid, "cd-small")
    x = Scale(0, max(len(points) - 1, 1), 2, width - 4)
    y = Scale(*(found if found[0] < found[1] else (-1e-4, 1e-4)), height - 3, 3)
    out = [el("line", "cd-zero", x1=2, x2=width - 2, y1=y(0.0), y2=y(0.0))]
    if (allowed := next((p.tolerated for p in reversed(points) if p.tolerated is not None), None)) is not None:
        out.append(el("line", "cd-tolerated", x1=2, x2=width - 2, y1=y.inside(allowed), y2=y.inside(allowed)))
    run: list[tuple[float, float]] = []
    for i, p in enumerate([*points, None]):
        if p is not None and not p.is_blind:
            run.append((x(i), y(p.difference or 0.0)))
            continue
        if run:
            out.append(el("path", "cd-canary", d=path([*run, (run[-1][0] + 1, run[-1][1])])))
        run = []
    last = metric.last
    return picture(width, height, "".join(out), name, wording.points(last.difference) if last else "", uid, "cd-small")


def ruler(finding: Mapping[str, Any], *, width: int = 320, uid: str) -> str:
    """One difference with its interval on a line, beside stable (0) and what is tolerated; "" without a difference."""
    keys = ("difference", "low", "high", "tolerated")
    middle, low, high, allowed = (number(finding.get(key)) for key in keys)
    if middle is None:
        return ""
    found = extent([0.0, middle, low, high, allowed])
    assert found is not None
    x, y = Scale(*range_of(*found, 0.04), 8, width - 8), 34
    out = [el("line", "cd-grid", x1=8, x2=width - 8, y1=y, y2=y)]
    if low is not None and high is not None:
        left, right = x(low), x(high)
        out.append(el("rect", "cd-interval", x=left, y=y - 8, width=max(right - left, 1), height=16))
    out.append(el("line", "cd-zero", x1=x(0.0), x2=x(0.0), y1=y - 13, y2=y + 13))
    if allowed is not None:
        out.append(el("line", "cd-tolerated", x1=x(allowed), x2=x(allowed), y1=y - 13, y2=y + 13))
    out.append(el("circle", "cd-canary-dot", cx=x(middle), cy=y, r=5))
    words = wording.interval(middle, low, high)
    out.append(label(min(max(x(middle), 70), width - 70), 14, words, "cd-strong", "middle"))
    below = f"0 = stable; tolerated {wording.points(allowed)}" if allowed is not None else "0 = stable"
    near_left = x(0.0) < width / 2
    out.append(label(8 if near_left else width - 8, 60, below, anchor="start" if near_left else "end"))
    told = f"{words}, tolerated {wording.points(allowed)}"
    return picture(width, 66, "".join(out), "difference of the decisive metric", told, uid, "cd-small")


def hash_of(text: str) -> int:
    """The same number for the same text in every process."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(text))


def step_bar(
    weights: Sequence[float], step: int, toward: float = 0.0, *, width: int = 120, height: int = 12, uid: str
) -> str:
    """A box for each step: done ones full, the present one (index `step`, -1 before the first) as far as `toward`."""
    total = max(len(weights), 1)
    box = width / total
    out = []
    for i in range(total):
        out.append(el("rect", "cd-open", x=i * box + 0.5, y=0.5, width=max(box - 2, 1), height=height - 1))
        full = 1.0 if i < step else min(max(toward, 0.0), 1.0) if i == step else 0.0
        if full > 0:
            out.append(el("rect", "cd-done", x=i * box + 0.5, y=0.5, width=max((box - 2) * full, 1), height=height - 1))
    at = f", {weights[step]:g} %" if 0 <= step < len(weights) else ""
    return picture(
        width, height, "".join(out), "steps", f"step {max(step + 1, 0)} of {len(weights)}{at}", uid, "cd-small"
    )

"""Numbers as people read them. Pure text, no layout: every place that shows a decision uses these.

Numbers carry units; spaces inside a number and before a unit are plain spaces, the minus is a real minus sign.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta

MINUS = "−"


def _significant(value: float, digits: int) -> str:
    """`value` >= 0 with so many significant digits, without an exponent and without needless zeros."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(value)))
    text = f"{value:.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float | None) -> str:
    """0.0009 → `0.09 %`; None or NaN → `–`."""
    if share is None or not math.isfinite(share * 100):
        return "–"
    value = _significant(abs(share) * 100, 2 if abs(share) < 0.1 else 3)
    sign = MINUS if share < 0 and value != "0" else ""
    return f"{sign}{value} %"


def points(difference: float | None, *, unit: bool = True) -> str:
    """0.018 → `+1.8 pt`: a difference of two shares in percentage points, always signed."""
    if difference is None or not math.isfinite(difference * 100):
        return "–"
    value = _significant(abs(difference) * 100, 2)
    sign = "" if value == "0" else MINUS if difference < 0 else "+"
    return f"{sign}{value} pt" if unit else f"{sign}{value}"


def interval(difference: float | None, low: float | None, high: float | None) -> str:
    """`+1.8 pt (+1.1..+2.6)`."""
    if difference is None:
        return "–"
    if low is None or high is None:
        return points(difference)
    return f"{points(difference)} ({points(low, unit=False)}..{points(high, unit=False)})"


def relative(difference: float) -> str:
    """0.18 → `18 % higher`, −0.05 → `5 % lower`."""
    return f"{percent(abs(difference))} {'lower' if difference < 0 else 'higher'}"


def amount(value: float) -> str:
    """A value in a unit of its own, with three digits: 0.0123, 512, 1.34 G."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if size <= abs(value) < 1e15:
            return f"{_significant(abs(value) / (1e3 if unit == ' k' else size), 3)}{unit}"
    if not math.isfinite(value) or abs(value) >= 1e15:
        return "–"
    return _significant(abs(value), 3)


def count(n: float | None) -> str:
    """43870 → `43 870`."""
    if n is None or not math.isfinite(n):
        return "–"
    return f"{round(n):,}".replace(",", " ")


def span(time: timedelta | float | None) -> str:
    """130 s → `2 min 10 s`; at most two units; a float is seconds."""
    if time is None:
        return "–"
    seconds = time.total_seconds() if isinstance(time, timedelta) else time
    if not math.isfinite(seconds):
        return "–"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    left, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        n, left = divmod(left, size)
        if n:
            parts.append(f"{n} {unit}")
    return " ".join(parts[:2]) or "0 s"


def milliseconds(edge: float) -> str:
    """250.0 → `250 ms`, 2500.0 → `2.5 s`."""
    return f"{edge / 1000:g} s" if edge >= 1000 else f"{edge:g} ms"


def plural(n: float, one: str, many: str = "") -> str:
    """`1 request`, `2 requests`."""
    return f"{count(n)} {one if count(n) == '1' else many or one + 's'}"


def bar(share: float, width: int = 10) -> str:
    """0.3 → `▇▇▇░░░░░░░`."""
    full = round(min(max(share, 0.0), 1.0) * width) if math.isfinite(share) else 0
    return "▇" * full + "░" * (width - full)


# ── text from outside ────────────────────────────────────────────────────────────────────────────────────────

HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def clean(value: object, limit: int = 400) -> str:
    """Text from outside on one line: control, direction and invisible characters as their escapes, cut at `limit`.

    None becomes "". Nothing in the result moves the cursor, changes a colour or reverses the reading direction.
    """
    if value is None:
        return ""
    text = str(value)[: limit + 1]
    shown = HIDDEN.sub(lambda m: " " if m.group() in "\n\t" else f"\\x{ord(m.group()):02x}", text[:limit])
    return shown + "…" if len(text) > limit else shown

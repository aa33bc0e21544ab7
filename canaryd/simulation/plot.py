"""The answer of canaryd.simulation.power as a picture: an SVG of two panels, made of nothing but text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import isfinite, log10

from canaryd import wording
from canaryd.simulation.power import Power

WIDTH, HEIGHT = 960, 420
_PANEL_W, _PANEL_H, _TOP = 350, 290, 64
_COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#b91c1c", "#0f766e", "#a16207", "#475569")  # by step
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_TIMES = (10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)  # s, lines across


def svg(answer: Power, interval: float, title: str) -> str:
    """`interval` in seconds. Both axes are logarithmic: size of the regression, time until 8 of 10 are found."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="20" y="26" font-size="15">{escape(title)}</text>',
        '<text x="20" y="44" fill="#555">time until eight of ten such regressions are rolled back</text>',
    ]
    times = [t * interval for s in answer.steps for t in s.found.values() if isfinite(t)]
    low, high = min([*times, 60.0]), max([*times, 600.0])
    for left, kind, name in ((70, "errors", "failures, times"), (510, "latency", "durations, times")):
        parts += _panel(answer, kind, name, left, interval, (low, high))
    parts += [*_legend(answer), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(answer: Power, kind: str, name: str, left: int, interval: float, across: tuple[float, float]) -> list[str]:
    sizes = sorted({e.times for s in answer.steps for e in s.found if e.kind == kind})
    if not sizes:
        return []
    x = _scale(sizes[0], sizes[-1], left, left + _PANEL_W)
    y = _scale(*across, _TOP + _PANEL_H, _TOP)
    out = [f'<rect x="{left}" y="{_TOP}" width="{_PANEL_W}" height="{_PANEL_H}" fill="none" stroke="#999"/>']
    for t in _TIMES:
        if across[0] <= t <= across[1]:
            out.append(f'<path d="M{left} {y(t):.1f}h{_PANEL_W}" stroke="#ddd"/>')
            out.append(_text(left - 6, y(t) + 4, wording.span(float(t)), "end"))
    out += [_text(x(size), _TOP + _PANEL_H + 18, f"{size:g}", "middle") for size in _spread(sizes, x)]
    out.append(_text(left + _PANEL_W / 2, _TOP + _PANEL_H + 38, name, "middle"))
    for i, step in enumerate(answer.steps):
        points = sorted((e.times, t * interval) for e, t in step.found.items() if e.kind == kind and isfinite(t))
        if points:
            path = " ".join(f"{x(size):.1f},{y(t):.1f}" for size, t in points)
            out.append(f'<polyline points="{path}" fill="none" stroke-width="2" {_stroke(i)}/>')
    return out


def _legend(answer: Power) -> list[str]:
    out = []
    for i, step in enumerate(answer.steps[:8]):
        at = 70 + i * 90
        out.append(f'<path d="M{at} {HEIGHT - 14}h28" stroke-width="2" {_stroke(i)}/>')
        out.append(_text(at + 34, HEIGHT - 10, f"{step.weight} %", "start"))
    return out


def _stroke(i: int) -> str:
    dash = _DASHES[i % len(_DASHES)]
    return f'stroke="{_COLOURS[i % len(_COLOURS)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{escape(text)}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Logarithmic, low > 0."""
    span = max(log10(high / low), 1e-9)
    return lambda value: start + (end - start) * log10(value / low) / span


def _spread(sizes: Sequence[float], x: Callable[[float], float]) -> list[float]:
    """Those whose labels do not touch."""
    out: list[float] = []
    for size in sizes:
        if not out or x(size) - x(out[-1]) > 26:
            out.append(size)
    return out

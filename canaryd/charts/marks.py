"""Elements of a picture: escaped text, classes with their looks, and the shapes of decisions. Pure.

Okabe and Ito's colours: the canary is orange, stable is blue, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from canaryd import wording

Number = float | int

# class -> its look as attributes; colours by the names below
_LOOKS: Mapping[str, Mapping[str, str]] = {
    "cd-frame": {"fill": "none", "stroke": "rule"},
    "cd-grid": {"stroke": "rule", "stroke-width": "1"},
    "cd-zero": {"stroke": "ink", "stroke-width": "1"},
    "cd-text": {"fill": "quiet", "font-size": "11", "font-family": "sans"},
    "cd-halo": {
        "fill": "quiet",
        "font-size": "11",
        "font-family": "sans",
        "stroke": "paper",
        "stroke-width": "4",
        "stroke-linejoin": "round",
        "paint-order": "stroke",
    },
    "cd-word": {"fill": "ink", "font-size": "11", "font-family": "sans"},
    "cd-strong": {"fill": "ink", "font-size": "12", "font-family": "sans", "font-weight": "600"},
    "cd-band": {"fill": "shade"},
    "cd-inside": {"fill": "stable", "fill-opacity": "0.14"},
    "cd-edge": {"stroke": "quiet", "stroke-width": "1", "stroke-dasharray": "1 3"},
    "cd-hatch": {"stroke": "quiet", "stroke-width": "1"},
    "cd-paper": {"fill": "paper"},
    "cd-interval": {"fill": "canary", "fill-opacity": "0.18"},
    "cd-canary": {"fill": "none", "stroke": "canary", "stroke-width": "2", "stroke-linejoin": "round"},
    "cd-canary-dot": {"fill": "canary"},
    "cd-stable": {"fill": "none", "stroke": "stable", "stroke-width": "2", "stroke-dasharray": "6 3"},
    "cd-wanted": {"fill": "none", "stroke": "ink", "stroke-width": "1.5"},
    "cd-set": {"fill": "none", "stroke": "stable", "stroke-width": "3", "stroke-dasharray": "5 4"},
    "cd-tolerated": {"fill": "none", "stroke": "bad", "stroke-width": "1.5", "stroke-dasharray": "8 3 2 3"},
    "cd-step": {"fill": "none", "stroke": "good", "stroke-width": "2", "stroke-dasharray": "6 3"},
    "cd-rollback": {"fill": "none", "stroke": "bad", "stroke-width": "2"},
    "cd-mark": {"fill": "ink"},
    "cd-mark-bad": {"fill": "bad"},
    "cd-mark-good": {"fill": "good"},
    "cd-stem": {"stroke": "ink", "stroke-width": "1", "stroke-opacity": "0.45"},
    "cd-done": {"fill": "canary"},
    "cd-open": {"fill": "none", "stroke": "quiet", "stroke-width": "1"},
    "cd-good": {"fill": "good"},
    "cd-bad": {"fill": "bad"},
}
_LIGHT = {
    "canary": "#D55E00",
    "stable": "#0072B2",
    "good": "#007A5A",
    "bad": "#B00040",
    "ink": "#1c2126",
    "quiet": "#59636e",
    "rule": "#d9dee3",
    "shade": "#f1f3f5",
    "paper": "#ffffff",
}
_DARK = {
    "canary": "#ff8f3a",
    "stable": "#56b4e9",
    "good": "#2fc393",
    "bad": "#ff6b9a",
    "ink": "#e8ecf0",
    "quiet": "#a5b0bb",
    "rule": "#39424b",
    "shade": "#20272e",
    "paper": "#14191e",
}
_SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"


def _value(name: str) -> str:
    return _SANS if name == "sans" else _LIGHT.get(name, name)


def _css() -> str:
    """Custom properties for light, dark and print, and a rule for each class."""

    def variables(colours: Mapping[str, str]) -> str:
        return "".join(f"--cd-{name}:{colour};" for name, colour in colours.items())

    def rule(look: Mapping[str, str]) -> str:
        pairs = (
            (k, f"var(--cd-{v})" if v in _LIGHT else f"{v}px" if k == "font-size" else _value(v))
            for k, v in look.items()
        )
        return ";".join(f"{k}:{v}" for k, v in pairs)

    lines = [
        f":root{{color-scheme:light dark;{variables(_LIGHT)}}}",
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{variables(_DARK)}}}}}",
        f":root[data-theme=dark]{{{variables(_DARK)}}}",
        f"@media print{{:root:root:root{{{variables(_LIGHT)}color-scheme:light}}}}",
        ".cd-chart{display:block;width:100%;height:auto}",
        ".cd-small{display:inline-block;vertical-align:middle;max-width:100%;height:auto}",
        *(f".{name}{{{rule(look)}}}" for name, look in _LOOKS.items()),
    ]
    return "\n".join(lines)


CSS = _css()


def text_of(value: object, limit: int = 300) -> str:
    """Text from outside, made harmless and visible."""
    return escape(wording.clean(value, limit), quote=True)


def number(value: Number) -> str:
    """Coordinates with one decimal, without needless zeros."""
    return (
        f"{value:.1f}".rstrip("0").rstrip(".").replace("-0", "0")
        if abs(value) < 0.05
        else f"{value:.1f}".removesuffix(".0")
    )


def el(name: str, look: str = "", inside: str = "", **attributes: Number | str) -> str:
    """One element. `look`: its class; attribute names with _ for -, numbers are rounded to a tenth."""
    pairs = dict(_LOOKS.get(look, {}))
    out = [f'class="{look}"'] if look else []
    out += [f'{key}="{escape(_value(value))}"' for key, value in pairs.items()]
    for key, value in attributes.items():
        shown = escape(value, quote=True) if isinstance(value, str) else number(value)
        out.append(f'{key.rstrip("_").replace("_", "-")}="{shown}"')
    return f"<{name} {' '.join(out)}>{inside}</{name}>" if inside else f"<{name} {' '.join(out)}/>"


def title(text: object, limit: int = 600) -> str:
    """What a pointer or a screen reader is told."""
    return f"<title>{text_of(text, limit)}</title>"


def label(x: Number, y: Number, text: object, look: str = "cd-text", anchor: str = "start") -> str:
    return el("text", look, text_of(text, 120), x=x, y=y, text_anchor=anchor)


def picture(width: int, height: int, inside: str, name: str, told: str, uid: str, look: str = "cd-chart") -> str:
    """The whole picture with its text alternative."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{look}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="{uid}-t {uid}-d">'
        f'<title id="{uid}-t">{text_of(name)}</title><desc id="{uid}-d">{text_of(told, 900)}</desc>{inside}</svg>'
    )


# ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────

# kind -> shape, class, word; kinds that are not here are not marked
SHAPES = {
    "start": ("right", "cd-mark", "starts"),
    "restart": ("right", "cd-mark", "starts anew"),
    "advance": ("up", "cd-mark-good", "next step"),
    "promote": ("up", "cd-mark-good", "promotion"),
    "succeed": ("square", "cd-mark-good", "promoted"),
    "rollback": ("down", "cd-mark-bad", "rollback"),
    "rolled-back": ("cross", "cd-mark-bad", "rolled back"),
    "blind": ("ring", "cd-mark", "blind"),
    "blind-deadline": ("ring", "cd-mark-bad", "blind too long"),
    "resumed": ("dot", "cd-mark", "sees again"),
    "inconclusive": ("half", "cd-mark", "inconclusive"),
    "drift": ("diamond", "cd-mark-bad", "weight changed by hand"),
    "contested": ("diamond", "cd-mark-bad", "weight contested"),
    "override": ("star", "cd-mark", "a person's word"),
    "refused": ("cross", "cd-mark", "refused"),
    "revert": ("down", "cd-mark", "taken back"),
}


def shape(kind: str, x: Number, y: Number, told: str = "") -> str:
    """The mark of a decision about (x, y), 10 wide; "" for kinds without one."""
    form, look, _ = SHAPES.get(kind, ("", "", ""))
    if not form:
        return ""
    inside = title(told) if told else ""
    if form in ("ring", "dot"):
        if form == "dot":
            return el("circle", look, inside, cx=x, cy=y, r=4.5)
        return el("path", look, inside, d=f"{_circle(x, y, 5)}{_circle(x, y, 2.6)}", fill_rule="evenodd")
    corners = {
        "up": ((0, -5), (5, 4), (-5, 4)),
        "down": ((0, 5), (5, -4), (-5, -4)),
        "right": ((5, 0), (-4, 5), (-4, -5)),
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
        "half": ((-4, -4), (4, -4), (-4, 4)),
        "star": ((0, -6), (1.5, -1.5), (6, 0), (1.5, 1.5), (0, 6), (-1.5, 1.5), (-6, 0), (-1.5, -1.5)),
        "cross": (
            (-5, -3),
            (-3, -5),
            (0, -2),
            (3, -5),
            (5, -3),
            (2, 0),
            (5, 3),
            (3, 5),
            (0, 2),
            (-3, 5),
            (-5, 3),
            (-2, 0),
        ),
    }[form]
    d = "M" + "L".join(f"{number(x + dx)},{number(y + dy)}" for dx, dy in corners) + "Z"
    return el("path", look, inside, d=d)


def _circle(x: Number, y: Number, r: Number) -> str:
    return f"M{number(x - r)},{number(y)}a{r},{r} 0 1 0 {2 * r},0a{r},{r} 0 1 0 {-2 * r},0Z"

"""What all charts over time share: the frame with its axes, the steps as bands, gaps, decisions as marks. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from canaryd import wording
from canaryd.charts.axes import Clock, Scale, nice_ticks
from canaryd.charts.marks import SHAPES, el, label, number, picture, shape, title
from canaryd.charts.thin import thinned
from canaryd.story import Band, Gap, Moment, Story

T = TypeVar("T")

LEFT, RIGHT, TOP, BOTTOM = 58, 20, 44, 40
WORDS = 18  # px under the top, for the weights' labels
NARROW = 480  # px below which fewer ticks are drawn
MOST_MARKS = 60
MOST_BANDS = 80
MOST_GAPS = 80
_MARK_ROOM = 11  # px that a mark takes

Place = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A chart's place, and what is drawn in all of them."""

    story: Story
    width: int
    height: int
    y: Scale
    clock: Clock
    uid: str

    @classmethod
    def of(cls, story: Story, low: float, high: float, width: int, height: int, name: str) -> Frame:
        """`low`, `high`: what the y axis spans."""
        start = story.bands[0].start if story.bands else story.started
        end = story.until
        assert start is not None
        assert end is not None
        y = Scale(low, high, height - BOTTOM, TOP + WORDS)
        return cls(story, width, height, y, Clock.of(start, end, LEFT, width - RIGHT), uid_of(story, name))

    @property
    def bottom(self) -> float:
        return self.height - BOTTOM

    def picture(self, inside: str, name: str, told: str, unit: str, form: Callable[[float], str]) -> str:
        """Everything around `inside`; `form` writes the y axis' numbers."""
        clip = el(
            "clipPath", "", el("rect", "", x=LEFT, y=TOP, width=self.width - LEFT - RIGHT, height=self.bottom - TOP),
            id=f"{self.uid}-c",
        )  # fmt: skip
        drawn = el("g", "", inside, clip_path=f"url(#{self.uid}-c)") if inside else ""
        back = self._bands() + self._y_axis(unit, form) + self._gaps()
        front = self._x_axis() + self._marks()
        return picture(self.width, self.height, f"<defs>{clip}</defs>{back}{drawn}{front}", name, told, self.uid)

    # ── behind ───────────────────────────────────────────────────────────────────────────────────────────────

    def _bands(self) -> str:
        """The weight's steps: every other one is shaded, each says its percent where there is room."""
        out, free = [], 0.0
        bands = _coarse(self.story.bands, MOST_BANDS)
        for i, band in enumerate(bands):
            x, right = self.clock(band.start), self.clock(band.end if band is not bands[-1] else self.clock.end)
            told = f"{band.weight:g} % from {band.start:%H:%M:%S} UTC"
            if i % 2 == 0:
                out.append(self._area("cd-band", x, right, title(told)))
            out.append(el("line", "cd-edge", x1=x, x2=x, y1=TOP, y2=self.bottom))
            if right - x >= 30 and x >= free:
                out.append(label(x + 4, TOP + 12, f"{band.weight:g} %"))
                free = x + 32
        return "".join(out)

    def _area(self, look: str, x: float, right: float, inside: str = "", **more: str) -> str:
        """A rectangle over the whole height of the plot."""
        return el("rect", look, inside, x=x, y=TOP, width=max(right - x, 2), height=self.bottom - TOP, **more)

    def _y_axis(self, unit: str, form: Callable[[float], str]) -> str:
        out = [label(4, 12, unit, "cd-text")]
        for value in nice_ticks(self.y.low, self.y.high, 6):
            y = self.y(value)
            out.append(el("line", "cd-zero" if value == 0 else "cd-grid", x1=LEFT, x2=self.width - RIGHT, y1=y, y2=y))
            out.append(label(LEFT - 6, y + 4, form(value), anchor="end"))
        return "".join(out)

    def _gaps(self) -> str:
        """Times without numbers: hatched, with their word."""
        pattern = el(
            "pattern", "", el("line", "cd-hatch", x1=0, y1=0, x2=0, y2=6), id=f"{self.uid}-h", width=6, height=6,
            patternUnits="userSpaceOnUse", patternTransform="rotate(45)",
        )  # fmt: skip
        out, free = [], 0.0
        for gap in self.story.gaps[:MOST_GAPS]:
            x, right = self.clock(gap.start), self.clock(gap.end)
            told = f"{gap.word}, {gap.start:%H:%M:%S} to {gap.end:%H:%M:%S} UTC: {gap.why}"
            out.append(self._area("cd-paper", x, right))
            out.append(self._area("", x, right, title(told), fill=f"url(#{self.uid}-h)"))
            if x >= free:
                middle = min(max((x + right) / 2, LEFT + 22), self.width - RIGHT - 22)
                room = 6.2 * len(gap.word) + 8
                out.append(el("rect", "cd-paper", x=middle - room / 2, y=self.bottom - 24, width=room, height=16))
                out.append(label(middle, self.bottom - 12, gap.word, "cd-word", "middle"))
                free = middle + room / 2
        return f"<defs>{pattern}</defs>{''.join(out)}" if out else ""

    # ── in front ─────────────────────────────────────────────────────────────────────────────────────────────

    def _x_axis(self) -> str:
        out = [el("line", "cd-zero", x1=LEFT, x2=self.width - RIGHT, y1=self.bottom, y2=self.bottom)]
        for at, text in self.clock.ticks(4 if self.width < NARROW else 7):
            x = self.clock(at)
            out.append(el("line", "cd-zero", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4))
            anchor = "start" if x < LEFT + 14 else "end" if x > self.width - RIGHT - 14 else "middle"
            out.append(label(x, self.bottom + 16, text, anchor=anchor))
        out.append(label(self.width - RIGHT, self.height - 6, self.clock.caption(), anchor="end"))
        return "".join(out)

    def _marks(self) -> str:
        """Decisions as marks above the plot, with a stem through it; those too close to the last one lose theirs."""
        out, free = [], 0.0
        for moment in marked(self.story.moments):
            x = self.clock(moment.at)
            crowded, x_mark = x < free, max(x, free)
            told = f"{moment.at:%H:%M:%S} UTC, {SHAPES[moment.kind][2]}: {moment.sentence}"
            if not crowded:
                out.append(el("line", "cd-stem", x1=x, x2=x, y1=TOP - 8, y2=self.bottom))
            if x_mark <= self.width - 4:
                out.append(shape(moment.kind, x_mark, TOP - 12, told))
                free = x_mark + _MARK_ROOM
        return "".join(out)

    # ── lines ────────────────────────────────────────────────────────────────────────────────────────────────

    def runs(
        self, points: Sequence[T], at: Callable[[T], datetime], value: Callable[[T], float | None]
    ) -> list[list[T]]:
        """The points between gaps; those without a value end a run."""
        out: list[list[T]] = [[]]
        for point in points:
            if value(point) is None:
                out.append([])
                continue
            if out[-1] and any(at(out[-1][-1]) <= gap.start and gap.end <= at(point) for gap in self.story.gaps):
                out.append([])
            out[-1].append(point)
        return [run for run in out if run]

    def line(self, look: str, places: Sequence[Place], told: str = "") -> str:
        """A line through the places; a single one is a dot."""
        inside = title(told) if told else ""
        if len(places) == 1:
            return el("circle", look, inside, cx=places[0][0], cy=places[0][1], r=2)
        return el("path", look, inside, d=path(places))

    def steps(self, look: str, places: Sequence[Place], until: float, told: str = "") -> str:
        """A line that stays level until the next place, and on to `until`."""
        out: list[Place] = []
        for x, y in places:
            if out:
                out.append((x, out[-1][1]))
            out.append((x, y))
        out.append((max(until, out[-1][0] + 1), out[-1][1]))
        return el("path", look, title(told) if told else "", d=path(out))


def path(places: Iterable[Place]) -> str:
    return "M" + "L".join(f"{number(x)},{number(y)}" for x, y in places)


def marked(moments: Sequence[Moment]) -> list[Moment]:
    """The decisions that get a mark; of very many the first, the last, and some between them, the grave ones first."""
    known = [m for m in moments if m.kind in SHAPES]
    if len(known) <= MOST_MARKS:
        return known
    grave = [m for m in known if m.severity != "info"][: MOST_MARKS // 2]
    rest = [m for m in known if m not in grave]
    step = len(rest) / (MOST_MARKS - len(grave))
    chosen = [rest[int(i * step)] for i in range(MOST_MARKS - len(grave) - 1)] + rest[-1:]
    return sorted({m.id: m for m in (*grave, *chosen)}.values(), key=lambda m: m.at)


def legend(entries: Sequence[tuple[str, str, str]], x: float = LEFT, y: float = 14.0) -> str:
    """ "— canary   --- stable": (class, kind of sample: line, area or dot; word), from left to right."""
    out = []
    for look, kind, word in entries:
        if kind == "area":
            out.append(el("rect", look, x=x, y=y - 8, width=18, height=9))
        elif kind == "dot":
            out.append(el("circle", look, cx=x + 9, cy=y - 4, r=3))
        else:
            out.append(el("line", look, x1=x, x2=x + 18, y1=y - 4, y2=y - 4))
        out.append(label(x + 23, y, word))
        x += 23 + 6.0 * len(word) + 16
    return "".join(out)


def nothing(story: Story, width: int, height: int, name: str, words: str, uid: str) -> str:
    """A chart of which nothing can be drawn yet says so in its place."""
    frame = el("rect", "cd-frame", x=1, y=1, width=width - 2, height=height - 2, rx=4)
    lines = [
        label(width / 2, height / 2 - 4 + 18 * i, line, "cd-word", "middle") for i, line in enumerate(words.split("\n"))
    ]
    return picture(width, height, frame + "".join(lines), name, words.replace("\n", ". "), uid)


def uid_of(story: Story, name: str) -> str:
    """Letters for ids that differ between the charts of one page."""
    return "c" + hashlib.sha256(f"{story.namespace}/{story.rollout}/{name}".encode()).hexdigest()[:10]


def range_of(low: float, high: float, room: float = 0.08) -> tuple[float, float]:
    """A little more than from `low` to `high`, never empty."""
    span = high - low
    pad = span * room if span > 0 else max(abs(high) * 0.5, 1e-4)
    return low - pad, high + pad


def during(gap: Gap) -> str:
    return f"{gap.word} for {wording.span(gap.end - gap.start)}"


def _coarse(bands: Sequence[Band], most: int) -> list[Band]:
    """At most so many; of very many the shortest are left out."""
    if len(bands) <= most:
        return list(bands)
    longest = sorted(bands[:-1], key=lambda b: b.end - b.start, reverse=True)[: most - 1]
    return sorted([*longest, bands[-1]], key=lambda b: b.start)


def fewer(points: Sequence[T], width: int, *values: Callable[[T], float | None]) -> list[T]:
    """No more points than can be told apart in so many pixels."""
    return thinned(points, max(width, 200), *values)

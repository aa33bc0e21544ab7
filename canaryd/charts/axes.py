"""Scales with few round ticks: numbers with their unit, times in UTC. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_TIMES = [
    timedelta(seconds=s)
    for s in (1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)
]
SHORTEST = timedelta(seconds=30)  # of a time axis, so that the first look has room


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value between `low` and `high` to a coordinate between `at_low` and `at_high`."""

    low: float
    high: float
    at_low: float
    at_high: float

    def __call__(self, value: float) -> float:
        """Values beyond the ends lie beyond the ends."""
        span = self.high - self.low
        return self.at_low + (value - self.low) / span * (self.at_high - self.at_low) if span else self.at_low

    def inside(self, value: float) -> float:
        """The same, kept within the ends."""
        return self(min(max(value, self.low), self.high))


@dataclass(frozen=True, slots=True)
class Clock:
    """From a time to an x coordinate."""

    start: datetime
    end: datetime
    scale: Scale

    @classmethod
    def of(cls, start: datetime, end: datetime, left: float, right: float) -> Clock:
        end = max(end, start + SHORTEST)
        return cls(start, end, Scale(0.0, (end - start).total_seconds(), left, right))

    def __call__(self, at: datetime) -> float:
        return self.scale.inside((at - self.start).total_seconds())

    def ticks(self, most: int) -> list[tuple[datetime, str]]:
        """Round times with their labels: seconds only where they matter, the day where it changes."""
        length = self.end - self.start
        step = next((s for s in _TIMES if length / s <= most), _TIMES[-1] * math.ceil(length / _TIMES[-1] / most))
        zero = datetime(2000, 1, 3, tzinfo=UTC)  # a Monday
        first = zero + math.ceil((self.start - zero) / step) * step
        count = int((self.end - first) / step) + 1 if first <= self.end else 0
        times = [first + i * step for i in range(count)]
        form = "%H:%M:%S" if step < timedelta(minutes=1) else "%H:%M" if length < timedelta(days=2) else "%d %b %H:%M"
        return [(t, t.strftime("%d %b" if step >= timedelta(days=1) else form)) for t in times]

    def caption(self) -> str:
        """ "UTC, 1 March 2026", or both days."""
        days = [f"{t.day} {t:%B %Y}" for t in (self.start, self.end)]
        return "time in UTC, " + (days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}")


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most so many."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 2.5, 5, 10, 20) if span / (power * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def extent(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Least and largest of the finite ones; None when there are none."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return (min(known), max(known)) if known else None

"""Fewer points that look like all of them: the first, the last and the extremes of each stretch of time stay. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def thinned(points: Sequence[T], most: int, *values: Callable[[T], float | None]) -> list[T]:
    """At most about `most` of the points in their order; in each bucket the least and largest of every value stay."""
    if len(points) <= most:
        return list(points)
    kept: set[int] = {0, len(points) - 1}
    buckets = max(1, most // (2 * len(values) + 2))
    for b in range(buckets):
        i, j = b * len(points) // buckets, (b + 1) * len(points) // buckets
        kept |= {i, j - 1}
        for value in values:
            known = [(v, k) for k in range(i, j) if (v := value(points[k])) is not None]
            if known:
                kept |= {min(known)[1], max(known)[1]}
    return [points[i] for i in sorted(kept)]

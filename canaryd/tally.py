"""Spans counted by operation and arm, from traces or from the counters of a collector. Pure.

What is counted are requests that the service itself served: spans of kind server or consumer, or of no kind. Of one
trace, operation and arm at most one is counted, the worst: repeated calls of one request are not independent of each
other. A collector's counters cannot say what belongs to one request; there every such span counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import numpy as np

from canaryd.model import Arm, CounterKey, Floats, Reading, SpanCounts
from canaryd.spans import Span, cut, nanoseconds

SERVED = ("server", "consumer", "")
MOST_OPERATIONS = 200  # of one interval that are told apart; the rarer ones of stable are OTHERS then
LONGEST = 100  # characters of an operation
OTHERS = "(others)"
EDGES: Floats = np.round(10 ** (np.arange(30) / 6), 3)  # ms, 1 ms to 68 s, each 1.5 times the one before
_ARMS = tuple(Arm)


def of_spans(
    spans: Iterable[Span], service: str, start: datetime, end: datetime, *, complete: bool = True, note: str = ""
) -> SpanCounts:
    """The service's own spans that began in (start, end]; those that are of neither arm are left out and said."""
    first, last = nanoseconds(start), nanoseconds(end)
    worst: dict[tuple[str, str, int], tuple[bool, float]] = {}
    sampled = [0.0, 0.0]
    unknown = 0
    for span in spans:
        if span.service != service or span.kind not in SERVED or not first < span.start <= last:
            continue
        if span.arm is None:
            unknown += 1
            continue
        arm = _ARMS.index(span.arm)
        sampled[arm] += 1.0  # every one: a trace may have asked both arms
        key = cut(span.operation, LONGEST), span.trace, arm
        failed, took = worst.get(key, (False, 0.0))
        worst[key] = failed or span.error, max(took, span.duration)
    names = sorted({operation for operation, _, _ in worst})
    at = {name: i for i, name in enumerate(names)}
    counted, durations = np.zeros((len(names), 2, 2)), np.zeros((len(names), 2, len(EDGES) + 1))
    for (operation, _, arm), (failed, took) in worst.items():
        counted[at[operation], arm] += 1.0, float(failed)
        durations[at[operation], arm, int(np.searchsorted(EDGES, took))] += 1.0
    seen, said = (sampled[0], sampled[1]), _said(note, unknown, names)
    found = SpanCounts(start, end, tuple(names), counted, durations, EDGES, seen, complete, said)
    return bounded(found)


def _said(note: str, unknown: int, names: Sequence[str]) -> str:
    """What a person should know of an answer."""
    if unknown and not names:
        return "; ".join(filter(None, (note, "no tag of the spans tells the arms apart")))
    return note


def bounded(counts: SpanCounts, most: int = MOST_OPERATIONS) -> SpanCounts:
    """The `most` busiest operations; what stable has of the rest is OTHERS."""
    if len(counts.operations) <= most:
        return counts
    order = sorted(range(len(counts.operations)), key=lambda i: (-counts.spans[i, :, 0].sum(), counts.operations[i]))
    kept, rest = sorted(order[:most]), [i for i in order[most:] if counts.spans[i, 0, 0] > 0]
    names = (*(counts.operations[i] for i in kept), OTHERS)
    spans, durations = (
        np.concatenate([values[kept], values[rest].sum(0, keepdims=True)])
        for values in (counts.spans, counts.durations)
    )
    return SpanCounts(
        counts.start, counts.end, names, spans, durations, counts.edges, counts.sampled, counts.complete, counts.note
    )


# ── from counters ────────────────────────────────────────────────────────────────────────────────────────────


def of_counters(before: Reading, after: Reading) -> SpanCounts | None:
    """Spans between two readings of a collector's counters; None where either has none.

    As canaryd.counts does with requests: a counter that rose counts its difference; one that is new counts whole where
    its exporter was there before; where any counter of an exporter fell, the exporter has restarted, and all of its
    counters count what they are now.
    """
    if not before.spans or not after.spans:
        return None
    grown = _increments(before.spans, after.spans)
    edges = _edges(grown)
    names = sorted({key.pod for key in grown})
    at = {name: i for i, name in enumerate(names)}
    spans, within = np.zeros((len(names), 2, 2)), np.zeros((len(names), 2, len(edges) + 1))
    columns = {le: i for i, le in enumerate([*edges, np.inf])}
    for key, n in grown.items():
        place = at[key.pod], _ARMS.index(key.arm)
        if key.name == "calls":
            spans[place] += n, n if key.code else 0.0
        elif key.le in columns:
            within[(*place, columns[key.le])] += n
    cumulative = np.minimum(np.maximum.accumulate(within, axis=-1), within[..., -1:])
    durations = np.diff(cumulative, axis=-1, prepend=0.0)
    spans[..., 1] = np.minimum(spans[..., 1], spans[..., 0])
    sampled = float(spans[:, 0, 0].sum()), float(spans[:, 1, 0].sum())
    found = SpanCounts(before.at, after.at, tuple(names), spans, durations, np.array(edges, dtype=np.float64), sampled)
    return bounded(found)


def _increments(before: Mapping[CounterKey, float], after: Mapping[CounterKey, float]) -> dict[CounterKey, float]:
    there = {key.exporter for key in before}
    restarted = {key.exporter for key, value in after.items() if value < before.get(key, 0.0)}
    out: dict[CounterKey, float] = {}
    for key, value in after.items():
        old = before.get(key)
        if key.exporter in restarted:
            out[key] = value
        elif old is not None:
            out[key] = value - old
        elif key.exporter in there:
            out[key] = value
    return out


def _edges(grown: Mapping[CounterKey, float]) -> list[float]:
    """Finite bucket edges that every histogram has; empty when there are none."""
    histograms: defaultdict[tuple[object, ...], set[float]] = defaultdict(set)
    for key in grown:
        if key.name == "took":
            histograms[key[:-1]].add(key.le)
    sets = [les for les in histograms.values() if np.inf in les]
    return sorted(set.intersection(*sets) - {np.inf}) if sets else []


# ── which operations are told apart ──────────────────────────────────────────────────────────────────────────


def told_apart(known: Sequence[str], counts: SpanCounts, most: int) -> tuple[str, ...]:
    """The operations known so far, then new ones that stable has, the busiest first, while there is room."""
    new = [
        (-counts.spans[i, 0, 0], name)
        for i, name in enumerate(counts.operations)
        if counts.spans[i, 0, 0] > 0 and name not in known and name != OTHERS
    ]
    return (*known, *(name for _, name in sorted(new)[: max(most - len(known), 0)]))


MOST_STRANGERS = 8
Stranger = tuple[str, float, float]  # an operation that only the canary has, its spans, failed ones


def strangers(known: Sequence[Stranger], counts: SpanCounts, operations: Sequence[str]) -> tuple[Stranger, ...]:
    """Operations that only the canary has, the busiest first; one that stable turns out to have is none any more."""
    found = {name: (n, failed) for name, n, failed in known}
    for i, name in enumerate(counts.operations):
        if counts.spans[i, 0, 0] > 0 or name in operations:
            found.pop(name, None)
        elif (n := float(counts.spans[i, 1, 0])) > 0:
            before = found.get(name, (0.0, 0.0))
            found[name] = before[0] + n, before[1] + float(counts.spans[i, 1, 1])
    order = sorted(((name, n, failed) for name, (n, failed) in found.items()), key=lambda s: (-s[1], s[0]))
    return tuple(order[:MOST_STRANGERS])

"""The report for machines: one JSON document whose shape has a version; docs/report.md describes it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, TypeVar

import canaryd
from canaryd.charts.thin import thinned
from canaryd.report.contents import shown_document
from canaryd.story import Story

FORMAT = "canaryd.io/report/v1"
MOST_POINTS = 2000  # of each series
MOST_MOMENTS = 2000

T = TypeVar("T")


def document(story: Story, at: datetime) -> dict[str, Any]:
    """JSON values; times ISO 8601 in UTC, durations in seconds, rates 0..1, weights percent, None: not known.

    Fields are only ever added within a version. Of very long rollouts the series keep their extremes, and "thinned"
    says so.
    """
    counts = [len(m.points) for m in story.metrics] + [len(story.weights), len(story.evidence)]
    moments = story.moments
    if len(moments) > MOST_MOMENTS:
        loud = story.key_moments
        moments = loud if len(loud) <= MOST_MOMENTS else loud[: MOST_MOMENTS // 2] + loud[-MOST_MOMENTS // 2 :]
    requests, failures = story.harmed
    return {
        "format": FORMAT,
        "canaryd": canaryd.__version__,
        "madeAt": at.isoformat(),
        "canary": story.canary,
        "namespace": story.namespace,
        "rollout": story.rollout,
        "revision": story.revision,
        "stableRevision": story.stable_revision,
        "outcome": str(story.outcome),
        "what": story.what,
        "why": story.why,
        "now": story.now,
        "started": _json(story.started),
        "ended": _json(story.ended),
        "until": _json(story.until),
        "intervalSeconds": _json(story.interval),
        "complete": story.complete,
        "thinned": max(counts, default=0) > MOST_POINTS or len(moments) < len(story.moments),
        "harmed": {"requests": requests, "failures": failures},
        "decisions": [_keys(m) for m in moments],
        "metrics": [
            {
                "name": m.name,
                "relative": m.is_relative,
                "decisive": m.is_decisive,
                "points": _series(m.points, lambda p: p.difference, lambda p: p.low, lambda p: p.high),
            }
            for m in story.metrics
        ],
        "weights": _series(story.weights, lambda w: w.desired, lambda w: w.observed),
        "evidence": _series(story.evidence, lambda e: e.toward_step, lambda e: e.toward_rollback),
        "steps": [_keys(b) for b in story.bands],
        "gaps": [_keys(g) for g in story.gaps],
        "findings": [dict(f) for f in story.findings],
        "overrides": [{"at": _json(m.at), **(m.override or {})} for m in story.overrides],
        "traces": dict(story.traces),
        "account": story.decided.get("account"),
        "document": shown_document(story),
        "documentNote": story.document_note,
    }


def _series(points: Sequence[T], *values: Callable[[T], float | None]) -> list[dict[str, Any]]:
    return [_keys(p) for p in thinned(points, MOST_POINTS, *values)]


def _keys(value: Any) -> dict[str, Any]:
    """A dataclass as JSON values under names in camelCase."""
    out = {}
    for name, item in asdict(value).items():
        head, *tail = name.split("_")
        out[head + "".join(t.capitalize() for t in tail)] = _json(item)
    return out


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else value

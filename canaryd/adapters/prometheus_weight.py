"""What canaryd itself told Prometheus about a canary's weight. Reads nothing else and never writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from canaryd.adapters.exchange import Connection, Deadline, basic_authorization, checked_url
from canaryd.errors import SourceError

MAX_BYTES = 16 * 1024 * 1024
MOST_POINTS = 10_000  # of one answer; Prometheus itself allows 11 000


def configured_weights(
    url: str,
    canary: str,
    start: datetime,
    end: datetime,
    step: timedelta,
    *,
    timeout: timedelta = timedelta(seconds=30),
    headers: Mapping[str, str] | None = None,
    ca_file: str | None = None,
) -> tuple[tuple[datetime, int], ...]:
    """(instant, percent) wherever `canaryd_weight{kind="configured"}` has a value; the largest of several series.

    Instants are `start`, `start + step`, … and the last may lie after `end`. Raises SourceError.
    """
    parts = checked_url(url.rstrip("/"))
    step = max(step, (end - start) / MOST_POINTS, timedelta(milliseconds=1))
    asked = {
        "query": f'canaryd_weight{{canary={json.dumps(canary)},kind="configured"}}',
        "start": f"{start.timestamp():.3f}",
        "end": f"{end.timestamp():.3f}",
        "step": f"{step.total_seconds():.3f}",
    }
    own = {"Content-Type": "application/x-www-form-urlencoded", **basic_authorization(parts), **(headers or {})}
    with Connection(parts, Deadline.after(timeout), MAX_BYTES, ca_file) as connection:
        answer = connection.ask("POST", f"{parts.path}/api/v1/query_range", own, urlencode(asked).encode())
        name = connection.name
    if answer.status != 200:
        raise SourceError(f"{name}: HTTP {answer.status} {answer.reason[:100]}".rstrip())
    try:
        return _weights(json.loads(answer.body))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as e:
        raise SourceError(f"{name}: an answer that is not understood ({type(e).__name__})") from e


def _weights(document: Any) -> tuple[tuple[datetime, int], ...]:
    found: dict[float, float] = {}
    if document["status"] != "success":
        raise ValueError("no success")
    for series in document["data"]["result"]:
        for at, text in series["values"]:
            value = float(text)
            if math.isfinite(value):
                found[float(at)] = max(value, found.get(float(at), 0.0))
    return tuple((datetime.fromtimestamp(at, UTC), min(max(round(v), 0), 100)) for at, v in sorted(found.items()))

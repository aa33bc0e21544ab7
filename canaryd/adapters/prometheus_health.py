"""What a Prometheus says of itself and of how it scrapes: its clock, and how far apart the samples are. Reads only."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any
from urllib.parse import urlencode

from canaryd.adapters.exchange import Connection, Deadline, basic_authorization, checked_url
from canaryd.errors import SourceError

MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Health:
    """`ahead`: how much its clock is ahead of this machine's, at least; 0 where the round trip could explain it."""

    ahead: timedelta
    spacing: timedelta | None  # between two samples of the slowest series; None: fewer than three samples


def health(
    url: str,
    metric: str,
    workloads: tuple[str, ...],
    namespace: str,
    *,
    over: timedelta,
    timeout: timedelta = timedelta(seconds=10),
    headers: Mapping[str, str] | None = None,
    ca_file: str | None = None,
    public_only: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Health:
    """Asks for the server's time, and for the raw samples of `metric` of these workloads in the last `over`.

    Samples that carry no namespace count as well. `public_only`: see `exchange.Connection`. Raises SourceError.
    """
    parts = checked_url(url.rstrip("/"))
    own = {"Content-Type": "application/x-www-form-urlencoded", **basic_authorization(parts), **(headers or {})}
    with Connection(parts, Deadline.after(timeout), MAX_BYTES, ca_file, public_only=public_only) as connection:

        def ask(query: str) -> Any:
            body = urlencode({"query": query}).encode()
            answer = connection.ask("POST", f"{parts.path}/api/v1/query", own, body)
            if answer.status != 200:
                raise SourceError(f"{connection.name}: HTTP {answer.status} {answer.reason[:100]}".rstrip())
            return json.loads(answer.body)["data"]["result"]

        try:
            before, began = clock(), time.monotonic()
            theirs = datetime.fromtimestamp(float(ask("time()")[1]), UTC)
            took = timedelta(seconds=time.monotonic() - began)
            names = "|".join(workloads)
            selector = (
                f"{metric}{{destination_workload=~{json.dumps(names)},"
                f'destination_workload_namespace=~{json.dumps(f"|{namespace}")},reporter="destination"}}'
            )
            series = ask(f"{selector}[{max(1, math.ceil(over.total_seconds()))}s]")
            return Health(_ahead(theirs, before, took), _spacing(series))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError) as e:
            raise SourceError(f"{connection.name}: an answer that is not understood ({type(e).__name__})") from e


def _ahead(theirs: datetime, before: datetime, took: timedelta) -> timedelta:
    """Zero while their time lies between our asking and our hearing; else how far it lies outside, signed."""
    if theirs < before:
        return theirs - before
    return max(theirs - (before + took), timedelta(0))


def _spacing(series: list[Mapping[str, Any]]) -> timedelta | None:
    """Of the slowest series, the usual time between two samples."""
    usual = []
    for one in series:
        times = [float(at) for at, _ in one["values"]]
        if len(times) >= 3:
            usual.append(median(b - a for a, b in pairwise(times)))
    return timedelta(seconds=max(usual)) if usual else None

"""Whether the counters of both versions are there now; asked exactly as the daemon asks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from canaryd.doctor.findings import Finding, error, fine, warning
from canaryd.errors import SourceError
from canaryd.measure import grid_floor
from canaryd.model import Arm
from canaryd.policy import Canary
from canaryd.ports import CountsQuery, MetricSource


def series(
    canary: Canary, source: MetricSource, stable: str, workload: str, at: datetime, *, canary_expected: bool
) -> Iterator[Finding]:
    """Looks at the two latest instants of the canary's grid. `canary_expected`: requests go to the canary now."""
    end = grid_floor(at - source.lag, canary.spec.interval) if source.remembers else at
    points = (end - canary.spec.interval, end) if source.remembers else (end,)
    query = CountsQuery(
        canary=canary.key,
        namespace=canary.metadata.namespace,
        stable=stable,
        canary_workload=workload,
        points=points,
        step=canary.spec.interval,
        source=canary.spec.source,
        durations=any(metric.kind == "latency" for metric in canary.spec.metrics),
    )
    try:
        answer = source.read([query])[canary.key]
    except SourceError as reason:
        yield error(
            str(reason), "a release is held as long as its numbers cannot be seen", "see to the metrics", canary.key
        )
        return
    there = {
        (key.arm, key.name)
        for reading in answer.readings
        for key in reading.counters
        if key.name in ("requests", "bucket")
    }
    for arm, name, expected in ((Arm.STABLE, stable, True), (Arm.CANARY, workload, canary_expected)):
        if (arm, "requests") in there:
            if query.durations and (arm, "bucket") not in there:
                yield warning(
                    f"{name} has counters of requests but no buckets of durations",
                    "latency cannot be judged",
                    f"let the metrics system keep {canary.spec.source.durations}",
                    canary.key,
                )
            else:
                yield fine(f"{name} has counters", canary.key)
        elif expected:
            yield error(
                f"there are no counters of {name}",
                "a release of it could not be judged, and would be held",
                f"look for {canary.spec.source.requests} with destination_workload={name}: "
                "is the pod in the mesh, and does it get requests?",
                canary.key,
            )
        else:
            yield fine(f"{name} has no counters: no release is under way", canary.key)
    if answer.note:
        yield warning(answer.note, "what is judged may be incomplete", "see to the metrics", canary.key)

"""Series with Istio's labels → raw counters of canaries; what the metric sources have in common.

It never reads anything itself and never takes a difference: resets are found later, per exporter.

What becomes one counter. A series belongs to an arm by `destination_workload` (and by `destination_workload_namespace`
where that label is not empty). Labels that canaryd does not need (`source_workload`, `connection_security_policy`, …)
split one counter of one process into several series; they are added up, which is safe, because a process loses all of
them in the same instant. Copies of one series from two replicas of Prometheus are not added up but taken once, the
larger value. A part that is NaN, infinite or negative makes the sum unknown, and it is left out.

Durations of requests that were not served (code 0: the client left; 429: rate limited) are left out, as the errors of
such requests are, and as they are in the recorded metrics.

Only what the serving side reports counts (`reporter` destination or waypoint, or no such label, as in recorded
metrics): the client's report of the same request would count it twice. The exception are requests of which the client
(`reporter` source) says that they got no answer from a pod: they belong to the arm in front of which stands the Service
that they were sent to (`destination_service_name`), and to no pod; their counter is the client's own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import datetime

from canaryd.counts import UNREACHED
from canaryd.model import Arm, CounterKey, Reading
from canaryd.policy import ErrorSource
from canaryd.ports import CountsQuery

REPORTERS = ("destination", "waypoint", "")
CLIENT = "source"  # the reporter of requests as they were sent
# Envoy's flags of a request that got no answer from a pod: the connection failed, no healthy endpoint, too many
# connections, no route, timed out, retries used up, the connection broke.
UNREACHED_FLAGS = ("UF", "UH", "UO", "NR", "UT", "URX", "UC")
UNSERVED = ("0", "429")  # response codes whose durations say nothing about the version
REPLICA_LABELS = frozenset({"prometheus_replica", "replica", "__replica__"})

Labels = Mapping[str, str]


class Claims:
    """Which canary and arm a series belongs to."""

    def __init__(self, queries: Sequence[CountsQuery]) -> None:
        self._workloads, self._services = _Owners(), _Owners()
        for query in queries:
            for arm, workload, service in (
                (Arm.STABLE, query.stable, query.stable_service),
                (Arm.CANARY, query.canary_workload, query.canary_service),
            ):
                self._workloads.add(query.namespace, workload, (query.canary, arm))
                if service:
                    self._services.add(query.namespace, service, (query.canary, arm))

    @property
    def ambiguous(self) -> set[str]:
        """Workloads met without a namespace that canaries of several namespaces claim."""
        return self._workloads.ambiguous

    def of(self, labels: Labels) -> Sequence[tuple[str, Arm]]:
        """Empty for a series of nobody, of a client's report, or of nobody in particular (see `ambiguous`)."""
        if labels.get("reporter", "") not in REPORTERS:
            return ()
        return self._workloads.of(
            labels.get("destination_workload_namespace", ""), labels.get("destination_workload", "")
        )

    def sent_to(self, labels: Labels) -> Sequence[tuple[str, Arm]]:
        """The same of a client's report of requests that never reached a pod, by the Service they were sent to."""
        return self._services.of(
            labels.get("destination_service_namespace", ""), labels.get("destination_service_name", "")
        )

    def note(self, query: CountsQuery) -> str:
        """What a person should know about series that could not be given to anybody; "" when there are none."""
        unclear = sorted(self.ambiguous & {query.stable, query.canary_workload})
        if not unclear:
            return ""
        return f"series of {' and '.join(unclear)} name no namespace, but canaries in several namespaces claim them"


class _Owners:
    """Whose name it is, in which namespace."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], list[tuple[str, Arm]]] = defaultdict(list)
        self._namespaces: dict[str, set[str]] = defaultdict(set)
        self.ambiguous: set[str] = set()

    def add(self, namespace: str, name: str, owner: tuple[str, Arm]) -> None:
        self._owners[namespace, name].append(owner)
        self._namespaces[name].add(namespace)

    def of(self, namespace: str, name: str) -> Sequence[tuple[str, Arm]]:
        namespaces = self._namespaces.get(name, ())
        if not namespaces:
            return ()
        if not namespace:
            if len(namespaces) > 1:
                self.ambiguous.add(name)
                return ()
            (namespace,) = namespaces
        return self._owners.get((namespace, name), ())


def is_counted(labels: Labels, name: str, source: ErrorSource) -> bool:
    """False for the durations of requests that were not served."""
    return name == source.requests or labels.get("response_code", "") not in UNSERVED


def counter_key(labels: Labels, name: str, source: ErrorSource, arm: Arm, exporter: str, pod: str) -> CounterKey:
    """The identity of a series called `name`. Raises ValueError when a bucket has no usable bound."""
    if name == source.requests:
        return CounterKey(
            arm,
            exporter,
            pod,
            "requests",
            labels.get("response_code", ""),
            labels.get("response_flags", ""),
            labels.get("grpc_response_status", ""),
            0.0,
        )
    bound = float(labels.get("le", "nan"))  # "500" from Prometheus 2, "500.0" from Prometheus 3
    if math.isnan(bound):
        raise ValueError(f"{name} without a bound le={labels.get('le')!r:.40}")
    return CounterKey(arm, exporter, pod, "bucket", "", "", "", bound)


def unreached_key(labels: Labels, arm: Arm) -> CounterKey | None:
    """The identity of what a client reports of requests that got nowhere; None for those that were answered.

    A series without any flags stands for the client itself.
    """
    flags = labels.get("response_flags", "")
    if flags and not set(flags.split(",")) & set(UNREACHED_FLAGS):
        return None
    pod = labels.get("pod", "")
    exporter = labels.get("instance") or (f"{labels.get('namespace', '')}/{pod}" if pod else "")
    code, grpc = labels.get("response_code", ""), labels.get("grpc_response_status", "")
    return CounterKey(arm, exporter, "", UNREACHED, code, flags, grpc, 0.0)


class Tally:
    """Collects parts of counters, instant by instant, and adds them up."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[CounterKey, dict[Hashable, dict[datetime, float]]]] = defaultdict(dict)
        self.names: dict[str, set[str]] = defaultdict(set)  # by canary: "requests", "bucket"

    def add(self, canary: str, key: CounterKey, part: Hashable, samples: Iterable[tuple[datetime, float]]) -> None:
        """Samples of one series. The same `part` of the same key again is a copy of it: the larger value is kept."""
        kept = self._parts[canary].setdefault(key, {}).setdefault(part, {})
        for at, value in samples:
            usable = math.isfinite(value) and value >= 0
            if at not in kept or (usable and not kept[at] >= value):
                kept[at] = value if usable else math.nan
        self.names[canary].add(key.name)

    def readings(self, canary: str) -> tuple[Reading, ...]:
        """Ascending; only instants that have at least one counter, and not only of requests that got nowhere."""
        counters: dict[datetime, dict[CounterKey, float]] = defaultdict(dict)
        for key, parts in self._parts.get(canary, {}).items():
            totals: dict[datetime, float] = {}
            for part in parts.values():
                for at, value in part.items():
                    totals[at] = totals.get(at, 0.0) + value
            for at, total in totals.items():
                if math.isfinite(total):
                    counters[at][key] = total
        told = {at for at, found in counters.items() if any(key.name != UNREACHED for key in found)}
        return tuple(Reading(at, counters[at]) for at in sorted(told))

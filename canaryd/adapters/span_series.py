"""What a series of span counters means: its service, arm and operation. Pure; for whoever reads them from a server.

The spanmetrics connector makes `calls_total` and `duration_*_bucket` of spans, with the labels service_name, span_name,
span_kind, status_code and those that its configuration adds, dots and dashes written as underscores. A series keeps a
key of its own, whatever further labels it has, so that one that expires or starts again is not taken for the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from canaryd.adapters.series import REPLICA_LABELS, Labels
from canaryd.model import CounterKey
from canaryd.ports import CountsQuery, SpanQuery
from canaryd.spans import DEFAULT_TAGS, kind_of, normal_operation, pod_of
from canaryd.tally import SERVED

KINDS = ("", *(f"SPAN_KIND_{kind.upper()}" for kind in SERVED if kind))
ERROR = "STATUS_CODE_ERROR"
EXPORTERS = ("instance", "pod", "namespace", "job")


def label_of(tag: str) -> str:
    """The label that the connector makes of a tag: `istio.canonical_revision` → `istio_canonical_revision`."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", tag)


class SpanClaims:
    """Which canaries a series of spans belongs to, and as what counter."""

    def __init__(self, queries: Sequence[CountsQuery]) -> None:
        self._of: dict[tuple[str, str], list[tuple[str, SpanQuery]]] = {}
        for query in queries:
            if query.spans is not None:
                for name in (query.spans.calls, query.spans.durations):
                    self._of.setdefault((name, query.spans.service), []).append((query.canary, query.spans))

    def of(self, labels: Labels) -> list[tuple[str, CounterKey]]:
        """Empty for a series of nobody, of neither arm, or of spans that the service did not serve.

        Raises ValueError when a bucket has no usable bound.
        """
        name = labels.get("__name__", "")
        if kind_of(labels.get("span_kind", "")) not in SERVED:
            return []
        found = []
        for canary, spans in self._of.get((name, labels.get("service_name", "")), ()):
            if (key := _key(labels, name, spans)) is not None:
                found.append((canary, key))
        return found


def _key(labels: Labels, name: str, spans: SpanQuery) -> CounterKey | None:
    tags = {tag: labels.get(label_of(tag), "") for tag in ((spans.arms.tag,) if spans.arms.tag else DEFAULT_TAGS)}
    pod = pod_of({"node_id": labels.get("node_id", ""), "k8s.pod.name": labels.get("k8s_pod_name", "")}, {})
    arm, _ = spans.arms.arm(tags, pod)
    if arm is None:
        return None
    operation = normal_operation(labels.get("span_name", ""), spans.aliases)
    exporter = "/".join(labels.get(label, "") for label in EXPORTERS)
    code = "error" if labels.get("status_code", "").upper() in (ERROR, "ERROR") else ""
    if name == spans.calls:
        return CounterKey(arm, exporter, operation, "calls", code, _rest(labels), "", 0.0)
    bound = float(labels.get("le", "nan"))
    if bound != bound:
        raise ValueError(f"{name} without a bound le={labels.get('le')!r:.40}")
    scale = 1000.0 if "_seconds" in name else 1.0
    return CounterKey(arm, exporter, operation, "took", code, _rest(labels), "", bound * scale)


def _rest(labels: Mapping[str, str]) -> str:
    """Tells a series from the others of its operation; the same for copies from two replicas and for all buckets."""
    rest = sorted((k, v) for k, v in labels.items() if k not in REPLICA_LABELS and k not in ("le", "__name__"))
    return hashlib.blake2b(json.dumps(rest).encode(), digest_size=6).hexdigest()

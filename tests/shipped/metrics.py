"""Names of metrics in PromQL, and which part each of those in rules and dashboards is from. Tests ask the parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser as promql

# name → what brings it. "envoy", "istiod" and "canaryd" are asked by tests; the others are named as their projects do.
KNOWN = {
    "ALERTS": "prometheus",
    "up": "prometheus",
    "canaryd_blind_seconds": "canaryd",
    "canaryd_decisions_total": "canaryd",
    "canaryd_evidence_ratio": "canaryd",
    "canaryd_last_tick_timestamp_seconds": "canaryd",
    "canaryd_leader": "canaryd",
    "canaryd_phase": "canaryd",
    "canaryd_placebo_draws": "canaryd",
    "canaryd_placebo_rollbacks": "canaryd",
    "canaryd_tick_seconds_bucket": "canaryd",
    "canaryd_verdict": "canaryd",
    "canaryd_weight": "canaryd",
    "envoy_http_local_rate_limiter_http_local_rate_limit_enabled": "envoy",
    "envoy_http_local_rate_limiter_http_local_rate_limit_enforced": "envoy",
    "envoy_http_local_rate_limiter_http_local_rate_limit_rate_limited": "envoy",
    "envoy_server_uptime": "envoy",
    "istio_request_duration_milliseconds_bucket": "Istio's own Envoy filter",
    "istio_requests_total": "Istio's own Envoy filter",
    "kube_cronjob_status_last_successful_time": "kube-state-metrics",
    "otelcol_exporter_send_failed_spans_total": "jaeger",
    "otelcol_receiver_accepted_spans_total": "jaeger",
    "otelcol_receiver_refused_spans_total": "jaeger",
    "pilot_proxy_convergence_time_bucket": "istiod",
    "pilot_total_xds_rejects": "istiod",
    "redis_instance_info": "redis_exporter",
    "redis_keyspace_hits_total": "redis_exporter",
    "redis_keyspace_misses_total": "redis_exporter",
    "traces_span_metrics_calls_total": "jaeger",
}


def of(part: str) -> set[str]:
    """Names that this part must bring."""
    return {name for name, source in KNOWN.items() if source == part}


def names(expression: str) -> set[str]:
    """Metrics that a PromQL expression reads, with an interval where Grafana puts one. ValueError when it is none."""
    filled = re.sub(r"\$__(rate_)?interval|\$__range", "5m", expression)
    return set(_walk(promql.parse(filled)))


def _walk(node: Any) -> Iterator[str]:
    if isinstance(node, promql.VectorSelector):
        if node.name is None:
            raise ValueError("a selector without the name of a metric reads everything")
        yield node.name
        return
    for part in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        found = getattr(node, part, None)
        for each in found if isinstance(found, list | tuple) else [found]:
            if each is not None and not isinstance(each, str | float | int):
                yield from _walk(each)

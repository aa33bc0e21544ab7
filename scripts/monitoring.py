"""Writes what the manifests need from one source: PrometheusRules out of rule files, and Grafana's dashboards.

python scripts/monitoring.py            writes them
python scripts/monitoring.py --check    exits with 1 when a file is not what would be written

Rule files are plain ones, so that promtool checks and tests what is shipped. A dashboard is a list of panels below.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from canaryd import yamlout

HOME = Path(__file__).resolve().parent.parent / "manifests"
HEAD = "# Written by scripts/monitoring.py from rules/; a test compares.\n"
# folder → namespace of its PrometheusRules
RULES = {"base/20-monitoring": "monitoring", "base/70-data": "shop", "components/redis-cache": "shop"}
PART_OF = {"base/20-monitoring": "monitoring", "base/70-data": "data", "components/redis-cache": "cache"}
WIDTH, HEIGHT = 8, 7  # of a panel; Grafana's page is 24 wide


@dataclass(frozen=True)
class Panel:
    """One panel: PromQL → legend, the unit that Grafana knows, and what one should see in it."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    says: str = ""
    kind: str = "timeseries"
    most: float | None = None  # upper end of the scale


DESTINATION = 'destination_workload_namespace=~"$namespace",destination_workload=~"$workload"'
MESH = (
    Panel(
        "Requests",
        {f"sum by (destination_workload) (mesh:requests:rate1m{{{DESTINATION}}})": "{{destination_workload}}"},
        "reqps",
        "As the serving side counts them; retries count each time.",
    ),
    Panel(
        "Failed requests",
        {
            f"sum by (destination_workload) (mesh:failures:rate1m{{{DESTINATION}}})"
            f" / sum by (destination_workload) (mesh:requests:rate1m{{{DESTINATION}}})": "{{destination_workload}}"
        },
        "percentunit",
        "HTTP 5xx, without what the rate limit refused.",
    ),
    Panel(
        "Latency",
        {
            f"histogram_quantile({q}, sum by (destination_workload, le)"
            f" (mesh:request_duration_ms_bucket:rate1m{{{DESTINATION}}}))": f"p{q * 100:g} {{{{destination_workload}}}}"
            for q in (0.5, 0.95, 0.99)
        },
        "ms",
        "Interpolated inside the histogram's buckets: read it against their edges.",
    ),
    Panel(
        "Requests that reached no pod",
        {
            "sum by (destination_service_name, response_flags)"
            ' (rate(canaryd:unreached_total:pod{destination_service_namespace=~"$namespace",response_flags!=""}'
            "[$__rate_interval]))": "{{destination_service_name}} {{response_flags}}"
        },
        "reqps",
        "As clients report them: UF no connection, UH no healthy pod, UO overflow, NR no route, UT timeout.",
    ),
    Panel(
        "Share of requests with mutual TLS",
        {
            'sum by (destination_workload) (rate(istio_requests_total{reporter=~"destination|waypoint",'
            f'connection_security_policy="mutual_tls",{DESTINATION}}}[$__rate_interval]))'
            ' / sum by (destination_workload) (rate(istio_requests_total{reporter=~"destination|waypoint",'
            f"{DESTINATION}}}[$__rate_interval]))": "{{destination_workload}}"
        },
        "percentunit",
        "1 everywhere before PeerAuthentication is made STRICT.",
        most=1,
    ),
    Panel(
        "Rate limit",
        {
            "sum by (pod) (rate(envoy_http_local_rate_limiter_http_local_rate_limit_rate_limited"
            '{namespace=~"$namespace"}[$__rate_interval]))': "over the limit {{pod}}",
            "sum by (pod) (rate(envoy_http_local_rate_limiter_http_local_rate_limit_enforced"
            '{namespace=~"$namespace"}[$__rate_interval]))': "refused {{pod}}",
        },
        "reqps",
        "Over the limit and not refused: it runs in shadow.",
    ),
    Panel(
        "Routes on their way to proxies",
        {
            f"histogram_quantile({q}, sum by (le) (rate(pilot_proxy_convergence_time_bucket[$__rate_interval])))": name
            for q, name in ((0.5, "p50"), (0.99, "p99"))
        },
        "s",
        "From a change in the API server to all proxies, as istiod sees it.",
    ),
    Panel(
        "Refused configuration",
        {"sum by (type) (increase(pilot_total_xds_rejects[$__rate_interval]))": "{{type}}"},
        says="Proxies keep what they had. Mostly an EnvoyFilter.",
    ),
    Panel(
        "Targets that cannot be scraped",
        {"count by (job, namespace) (up == 0)": "{{job}} {{namespace}}"},
        says="Without counters no release goes on.",
    ),
    Panel(
        "Spans",
        {
            "sum(rate(otelcol_receiver_accepted_spans_total[$__rate_interval]))": "taken",
            "sum(rate(otelcol_receiver_refused_spans_total[$__rate_interval]))": "refused",
            "sum(rate(otelcol_exporter_send_failed_spans_total[$__rate_interval]))": "not stored",
        },
        "cps",
    ),
    Panel(
        "Age of the proxies",
        {'min by (namespace, pod) (envoy_server_uptime{namespace=~"$namespace"})': "{{pod}}"},
        "s",
        "A fall to 0 is a restart.",
    ),
)

CANARY = '{canary="$canary_namespace/$name"'
ARM = 'destination_workload_namespace="$canary_namespace",destination_workload=~"$name(-stable)?"'
CANARIES = (
    Panel(
        "Weight",
        {f"canaryd_weight{CANARY}}}": "{{kind}}"},
        "percent",
        "Desired: decided. Configured: in the route. Observed: the share of requests that arrived.",
        most=100,
    ),
    Panel(
        "Evidence",
        {f"canaryd_evidence_ratio{CANARY}}}": "toward {{toward}}"},
        "percentunit",
        "At 1 canaryd acts: a step, or the way back.",
        most=1,
    ),
    Panel(
        "Phase",
        {f"canaryd_phase{CANARY}}} == 1": "{{phase}}"},
        kind="state-timeline",
    ),
    Panel(
        "Failed requests of both arms",
        {
            f"sum by (destination_workload) (mesh:failures:rate1m{{{ARM}}})"
            f" / sum by (destination_workload) (mesh:requests:rate1m{{{ARM}}})": "{{destination_workload}}"
        },
        "percentunit",
        "A view. canaryd compares raw counters, pod by pod.",
    ),
    Panel(
        "Latency of both arms",
        {
            f"histogram_quantile({q}, sum by (destination_workload, le)"
            f" (mesh:request_duration_ms_bucket:rate1m{{{ARM}}}))": f"p{q * 100:g} {{{{destination_workload}}}}"
            for q in (0.5, 0.95)
        },
        "ms",
    ),
    Panel(
        "Requests of both arms",
        {f"sum by (destination_workload) (mesh:requests:rate1m{{{ARM}}})": "{{destination_workload}}"},
        "reqps",
    ),
    Panel(
        "Verdict",
        {f"canaryd_verdict{CANARY}}} == 1": "{{verdict}}"},
        kind="state-timeline",
    ),
    Panel(
        "Without sight",
        {f"canaryd_blind_seconds{CANARY}}}": "blind"},
        "s",
        "How long the counters have not been seen. A release is held meanwhile.",
    ),
    Panel(
        "Decisions",
        {f"sum by (kind) (increase(canaryd_decisions_total{CANARY}}}[$__rate_interval]))": "{{kind}}"},
    ),
    Panel(
        "Requests for an arm that reached no pod",
        {
            "sum by (destination_service_name, response_flags) (rate(canaryd:unreached_total:pod"
            '{destination_service_namespace="$canary_namespace",destination_service_name=~"$name-(stable|canary)",'
            'response_flags!=""}[$__rate_interval]))': "{{destination_service_name}} {{response_flags}}"
        },
        "reqps",
    ),
    Panel(
        "Failed spans by revision",
        {
            "sum by (istio_canonical_revision) (rate(traces_span_metrics_calls_total"
            '{service_name="$name.$canary_namespace",status_code="STATUS_CODE_ERROR"}[$__rate_interval]))'
            " / sum by (istio_canonical_revision) (rate(traces_span_metrics_calls_total"
            '{service_name="$name.$canary_namespace"}[$__rate_interval]))': "{{istio_canonical_revision}}"
        },
        "percentunit",
        "Of what was traced: evidence to look at, not a rate.",
    ),
    Panel(
        "False alarms among placebos",
        {f"canaryd_placebo_rollbacks{CANARY}}} / (canaryd_placebo_draws{CANARY}}} > 0)": "rolled back"},
        "percentunit",
        "Stable pods judged as if they were the canary.",
    ),
    Panel(
        "canaryd",
        {
            "histogram_quantile(0.99, sum by (le) (rate(canaryd_tick_seconds_bucket[$__rate_interval])))": "tick, p99",
            "time() - max(canaryd_last_tick_timestamp_seconds)": "since the last tick",
        },
        "s",
    ),
    Panel(
        "Who leads",
        {"canaryd_leader": "{{pod}}"},
        says="Exactly one.",
    ),
)


def rules(folder: str) -> str:
    """The PrometheusRules of one folder, one for each rule file."""
    objects = []
    for file in sorted((HOME / folder / "rules").glob("*.yaml")):
        groups = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["groups"]
        labels = {"app.kubernetes.io/part-of": PART_OF[folder], "prometheus": "mesh", "role": "alert-rules"}
        metadata = {"name": file.stem, "namespace": RULES[folder], "labels": labels}
        objects.append(
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "PrometheusRule",
                "metadata": metadata,
                "spec": {"groups": groups},
            }
        )
    return HEAD + yamlout.documents(objects)


def dashboard(uid: str, title: str, panels: tuple[Panel, ...], variables: list[dict[str, Any]]) -> str:
    """Grafana's JSON; its data source is a variable, so that any Prometheus will do."""
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "options": [],
    }
    whole = {
        "uid": uid,
        "title": title,
        "tags": ["canaryd"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [source, *variables]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def variable(name: str, label: str, query: str, regex: str = "", *, several: bool = False) -> dict[str, Any]:
    """A choice that Grafana offers from a query."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "regex": regex,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": several,
        "includeAll": several,
        "allValue": ".*" if several else None,
        "current": {"text": "All", "value": "$__all"} if several else {},
        "options": [],
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": {}}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False}
    options: dict[str, Any] = {
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "state-timeline": {"showValue": "never", "mergeValues": True, "rowHeight": 0.8, "alignValue": "left"},
    }[panel.kind]
    per_row = 24 // WIDTH
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _SOURCE,
        "gridPos": {"x": number % per_row * WIDTH, "y": number // per_row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": expr,
                "legendFormat": legend,
                "range": True,
            }
            for place, (expr, legend) in enumerate(panel.queries.items())
        ],
    }


def files() -> dict[str, str]:
    """Every file below manifests/ that is written here, with its text."""
    mesh = [
        variable(
            "namespace", "Namespace", "label_values(mesh:requests:rate1m, destination_workload_namespace)", several=True
        ),
        variable(
            "workload",
            "Workload",
            'label_values(mesh:requests:rate1m{destination_workload_namespace=~"$namespace"}, destination_workload)',
            several=True,
        ),
    ]
    canary = [
        variable("canary_namespace", "Namespace", "label_values(canaryd_weight, canary)", "/(.*)\\/.*/"),
        variable(
            "name", "Canary", 'label_values(canaryd_weight{canary=~"$canary_namespace/.*"}, canary)', "/.*\\/(.*)/"
        ),
    ]
    home = "base/20-monitoring/dashboards"
    return {
        **{f"{folder}/prometheus-rules.yaml": rules(folder) for folder in RULES},
        f"{home}/mesh.json": dashboard("canaryd-mesh", "Mesh", MESH, mesh),
        f"{home}/canary.json": dashboard("canaryd-canary", "Canary", CANARIES, canary),
    }


def main(arguments: list[str]) -> int:
    """Exit status."""
    stale = []
    for name, text in files().items():
        file = HOME / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, encoding="utf-8")
    print(f"monitoring: {'stale' if '--check' in arguments else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

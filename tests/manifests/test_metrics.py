"""Every PromQL that is shipped can be read, and every metric in it is one of a real part, or of a shipped rule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from shipped import metrics
from shipped.render import MANIFESTS, combinations, render
from shipped.tree import Tree

from canaryd.telemetry import Telemetry

RULES = [
    rule
    for file in sorted(MANIFESTS.glob("*/*/rules/*.yaml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARDS = {
    file.stem: json.loads(file.read_text()) for file in sorted(MANIFESTS.glob("base/20-monitoring/dashboards/*.json"))
}
LABELS = re.compile(r"label_values\((.+), *(\w+)\)")


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of rules, panels, and variables of dashboards."""
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for name, board in DASHBOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{name}/{panel['title']}", target["expr"]
        for variable in board["templating"]["list"]:
            if found := LABELS.fullmatch(variable["query"]["query"] if variable["type"] == "query" else ""):
                yield f"{name}/${variable['name']}", found[1]


def test_every_expression_is_promql_over_metrics_that_are_known() -> None:
    unknown = {
        (where, name)
        for where, expression in expressions()
        for name in metrics.names(expression)
        if name not in metrics.KNOWN and name not in RECORDED
    }
    assert unknown == set()


def test_nothing_is_known_that_nobody_reads() -> None:
    read = {name for _, expression in expressions() for name in metrics.names(expression)}
    assert set(metrics.KNOWN) - read == {"ALERTS"}  # sent on by components/remote-write
    assert RECORDED - read <= {
        "canaryd:requests_total:pod",
        "canaryd:request_duration_ms_bucket:pod",
        "cache:hit_ratio:rate15m",
    }


@pytest.mark.parametrize("broken", ["sum(rate(up[5m])", 'up{job="a"', "rate(up)", "sum by up", '{job="a"}'])
def test_what_is_no_promql_or_reads_everything_is_found(broken: str) -> None:
    with pytest.raises(Exception, match=r"."):
        metrics.names(broken)


def test_names_are_found_inside_everything() -> None:
    nested = "histogram_quantile(0.9, sum by (le) (rate(a_bucket[5m]))) / on () (b offset 1m) > -c"
    nested += " or max_over_time(d[1h:1m])"
    assert metrics.names(nested) == {"a_bucket", "b", "c", "d"}


def test_canaryds_metrics_are_those_of_its_page() -> None:
    telemetry = Telemetry()
    telemetry.decisions.labels("shop/api", "step").inc()
    telemetry.placebo("shop/api", 20, 0)
    there = {sample.name for family in telemetry.registry.collect() for sample in family.samples}
    there |= {family.name for family in telemetry.registry.collect()}  # gauges of canaries: families without any
    assert metrics.of("canaryd") <= there


def test_what_is_sent_on_and_federated_is_recorded_or_canaryds() -> None:
    tree = Tree(render("overlays/us-east-1", "federation"))
    prometheus = tree.find("Prometheus", "monitoring", "mesh")
    scrape = tree.find("ScrapeConfig", "monitoring", "federation")
    assert prometheus
    assert scrape
    ((keep,),) = [[r["regex"] for r in w["writeRelabelConfigs"]] for w in prometheus["spec"]["remoteWrite"]]
    sent = {name for name in {*metrics.KNOWN, *RECORDED} if re.fullmatch(keep, name)}
    assert {name for name in sent if name.startswith("mesh:")} == {n for n in RECORDED if n.startswith("mesh:")}
    assert not {name for name in sent if name.startswith(("istio_", "envoy_", "canaryd:"))}, (
        "raw series of each pod leave"
    )
    for match in scrape["spec"]["params"]["match[]"]:
        selector = promql_parser.parse(match)
        assert selector is not None
        assert "mesh:" in match or "canaryd_" in match


def test_the_pod_monitor_keeps_what_rules_and_dashboards_read_of_envoy() -> None:
    tree = Tree(render("overlays/us-east-1"))
    monitor = tree.find("PodMonitor", "istio-system", "envoy-stats")
    assert monitor
    (keep,) = monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]
    wanted = metrics.of("envoy") | metrics.of("Istio's own Envoy filter")
    assert [name for name in sorted(wanted) if not re.fullmatch(keep["regex"], name)] == []


# ── dashboards ───────────────────────────────────────────────────────────────────────────────────

boards = pytest.mark.parametrize("name", DASHBOARDS)


@boards
def test_a_dashboard_has_what_grafana_needs(name: str) -> None:
    board: dict[str, Any] = DASHBOARDS[name]
    assert board["uid"] == f"canaryd-{name}"
    panels = board["panels"]
    assert len(panels) >= 8
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panels))) - {"__rate_interval"}
    assert used <= variables
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    spots = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(spots)) == len(spots)


def test_the_canary_dashboard_shows_weight_arms_and_evidence() -> None:
    read = {n for w, e in expressions() if w.startswith("canary/") for n in metrics.names(e)}
    assert {
        "canaryd_weight",
        "canaryd_evidence_ratio",
        "mesh:failures:rate1m",
        "mesh:request_duration_ms_bucket:rate1m",
    } <= read


def test_dashboards_are_mounted_both_ways() -> None:
    """By label, for the sidecar of kube-prometheus-stack; by name, for kube-prometheus' own Grafana."""
    patch = yaml.safe_load((MANIFESTS / "base/20-monitoring/dashboards/grafana-volumes.patch.yaml").read_text())
    pod = patch["spec"]["template"]["spec"]
    by_name = {volume["configMap"]["name"] for volume in pod["volumes"]}
    for combination in combinations():
        maps = [
            each
            for each in Tree(render(combination.root, *combination.components)).of("ConfigMap")
            if (each["metadata"].get("labels") or {}).get("grafana_dashboard") == "1"
        ]
        assert {each["metadata"]["name"] for each in maps} == by_name
        assert {name for each in maps for name in each["data"]} == {f"{name}.json" for name in DASHBOARDS}
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}

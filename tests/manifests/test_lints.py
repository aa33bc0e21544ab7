"""What is shipped fits together, in every combination; and each lint finds what it is for, planted one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from shipped import lints
from shipped.network import admitted, let_out
from shipped.render import REGIONS, Combination, Object, combinations, render
from shipped.tree import Tree

US = f"overlays/{REGIONS[0]}"


@pytest.mark.parametrize("combination", combinations(), ids=str)
def test_nothing_is_found(combination: Combination) -> None:
    tree = Tree(render(combination.root, *combination.components))
    assert [finding for lint in lints.ALL.values() for finding in lint(tree)] == []


# ── planted violations ───────────────────────────────────────────────────────────────────────────


def at(kind: str, namespace: str | None, name: str, *path: str | int, value: Any) -> Callable[[Tree], None]:
    """Set this value in the object of this name."""

    def plant(tree: Tree) -> None:
        each = tree.find(kind, namespace, name)
        assert each is not None, f"{kind} {namespace}/{name}"
        inner: Any = each
        for step in path[:-1]:
            inner = inner[step]
        if value is GONE:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value

    return plant


def without(kind: str, namespace: str | None, name: str) -> Callable[[Tree], None]:
    def plant(tree: Tree) -> None:
        gone = tree.find(kind, namespace, name)
        assert gone is not None, f"{kind} {namespace}/{name}"
        tree.objects.remove(gone)

    return plant


def with_all_of(*rendering: str, kind: str) -> Callable[[Tree], None]:
    """Objects of this kind from another rendering as well."""

    def plant(tree: Tree) -> None:
        added = Tree(render(*rendering)).of(kind)
        assert added
        tree.objects.extend(added)

    return plant


def adding(each: Object) -> Callable[[Tree], None]:
    def plant(tree: Tree) -> None:
        tree.objects.append(each)

    return plant


GONE = object()
API = ("Deployment", "shop", "api-stable")
CONTAINER = ("spec", "template", "spec", "containers", 0)
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis-auth", "namespace": "shop"}, "data": {}}
FLAGGER = ("base", "jaeger-dev", "redis-cache", "flagger")
PLANTED: list[tuple[str, Callable[[Tree], None]]] = [
    ("images_are_pinned", at(*API, *CONTAINER, "image", value="ghcr.io/stefanprodan/podinfo:latest")),
    ("images_are_pinned", at(*API, *CONTAINER, "image", value="ghcr.io/stefanprodan/podinfo")),
    ("labels_are_the_standard_ones", at(*API, "metadata", "labels", value={})),
    (
        "labels_are_the_standard_ones",
        at(*API, "spec", "template", "metadata", "labels", "app.kubernetes.io/version", value=GONE),
    ),
    ("namespaces_are_shipped", at("Service", "shop", "api", "metadata", "namespace", value="store")),
    (
        "namespaces_are_shipped",
        at("Namespace", None, "shop", "metadata", "labels", "pod-security.kubernetes.io/enforce", value="baseline"),
    ),
    ("names_are_found", at(*API, "spec", "template", "spec", "serviceAccountName", value="default")),
    (
        "names_are_found",
        at(
            "Deployment",
            "istio-system",
            "kiali",
            "spec",
            "template",
            "spec",
            "volumes",
            1,
            "secret",
            "secretName",
            value="kiali-key",
        ),
    ),
    (
        "names_are_found",
        at(
            "Deployment",
            "observability",
            "jaeger-query",
            "spec",
            "template",
            "spec",
            "volumes",
            0,
            "configMap",
            "name",
            value="jaeger",
        ),
    ),
    ("names_are_found", without("PersistentVolumeClaim", "shop", "models")),
    ("no_secret_is_shipped", adding(SECRET)),
    ("pods_are_harmless", at(*API, *CONTAINER, "securityContext", "readOnlyRootFilesystem", value=False)),
    ("pods_are_harmless", at(*API, "spec", "template", "spec", "securityContext", "runAsNonRoot", value=False)),
    ("pods_are_harmless", at(*API, "spec", "template", "spec", "automountServiceAccountToken", value=True)),
    ("pods_end_and_begin_well", at(*API, *CONTAINER, "resources", "limits", value=GONE)),
    ("pods_end_and_begin_well", at(*API, *CONTAINER, "readinessProbe", value=GONE)),
    ("pods_end_and_begin_well", at(*API, *CONTAINER, "lifecycle", value=GONE)),
    ("pods_end_and_begin_well", at(*API, "spec", "strategy", "rollingUpdate", "maxUnavailable", value=1)),
    ("pods_end_and_begin_well", at(*API, "spec", "template", "spec", "topologySpreadConstraints", value=[])),
    ("pods_end_and_begin_well", at("CronJob", "shop", "model-sync", "spec", "concurrencyPolicy", value="Allow")),
    ("budgets_can_be_kept", at("PodDisruptionBudget", "istio-system", "kiali", "spec", "maxUnavailable", value=0)),
    (
        "budgets_can_be_kept",
        at(
            "PodDisruptionBudget",
            "shop",
            "api-stable",
            "spec",
            "selector",
            value={"matchLabels": {"app.kubernetes.io/name": "api"}},
        ),
    ),
    ("budgets_can_be_kept", at("Deployment", "istio-system", "kiali", "spec", "replicas", value=1)),
    ("budgets_can_be_kept", without("PodDisruptionBudget", "shop", "redis")),
    ("autoscalers_own_their_number", at(*API, "spec", "replicas", value=3)),
    (
        "autoscalers_own_their_number",
        at("HorizontalPodAutoscaler", "shop", "api", "spec", "scaleTargetRef", "name", value="api-main"),
    ),
    (
        "services_find_their_pods",
        at("Service", "shop", "api-canary", "spec", "selector", "app.kubernetes.io/component", value="green"),
    ),
    ("services_find_their_pods", at("Service", "shop", "api", "spec", "ports", 0, "targetPort", value="web")),
    ("services_find_their_pods", at("Service", "shop", "api", "spec", "ports", 0, "name", value="web")),
    (
        "monitors_find_a_port",
        at("ServiceMonitor", "istio-system", "kiali", "spec", "endpoints", 0, "port", value="metrics"),
    ),
    (
        "monitors_find_a_port",
        at("ServiceMonitor", "observability", "jaeger", "spec", "selector", value={"matchLabels": {"app": "jaeger"}}),
    ),
    ("monitors_find_a_port", without("RoleBinding", "observability", "prometheus-mesh")),
    (
        "monitors_find_a_port",
        at("NetworkPolicy", "observability", "jaeger-collector", "spec", "ingress", 1, "ports", value=[{"port": 8888}]),
    ),
    ("routes_lead_somewhere", at("VirtualService", "shop", "api", "spec", "http", 1, "route", 0, "weight", value=90)),
    (
        "routes_lead_somewhere",
        at("VirtualService", "shop", "api", "spec", "http", 1, "route", 1, "destination", "host", value="api-green"),
    ),
    (
        "routes_lead_somewhere",
        at("VirtualService", "shop", "api", "spec", "gateways", value=["mesh", "istio-system/public"]),
    ),
    ("routes_lead_somewhere", at("VirtualService", "shop", "api", "spec", "http", 2, "name", value=GONE)),
    ("destination_rules_have_a_host", at("DestinationRule", "shop", "api-canary", "spec", "host", value="api-green")),
    (
        "destination_rules_have_a_host",
        at("DestinationRule", "shop", "api-canary", "spec", "trafficPolicy", "outlierDetection", value=GONE),
    ),
    ("one_controller_for_each_host", with_all_of(US, "traffic-gateway-api", kind="HTTPRoute")),
    ("one_controller_for_each_host", with_all_of(*FLAGGER, kind="Canary")),
    ("canaries_name_what_is_there", at("VirtualService", "shop", "api", "spec", "http", 1, "name", value="write")),
    ("canaries_name_what_is_there", without("Role", "shop", "canaryd-watched")),
    (
        "telemetry_has_its_providers",
        at("Telemetry", "istio-system", "mesh-default", "spec", "tracing", 0, "providers", 0, "name", value="jaeger"),
    ),
    (
        "telemetry_has_its_providers",
        at("Telemetry", "istio-system", "mesh-default", "spec", "accessLogging", 0, "filter", value=GONE),
    ),
    (
        "mesh_addresses_are_services",
        at("Service", "observability", "jaeger-collector", "spec", "ports", 0, "port", value=14250),
    ),
    (
        "rate_limits_apply",
        at(
            "EnvoyFilter",
            "shop",
            "api-rate-limit",
            "spec",
            "configPatches",
            1,
            "match",
            "routeConfiguration",
            "vhost",
            "name",
            value="inbound|http|9898",
        ),
    ),
    ("rate_limits_apply", at(*API, "spec", "template", "metadata", "annotations", value={})),
    (
        "rate_limits_apply",
        at("Namespace", None, "shop", "metadata", "labels", "istio.io/dataplane-mode", value="ambient"),
    ),
    (
        "policies_let_in_whom_they_name",
        at(
            "AuthorizationPolicy",
            "observability",
            "queries",
            "spec",
            "rules",
            0,
            "from",
            0,
            "source",
            "principals",
            value=["cluster.local/ns/kiali/sa/kiali"],
        ),
    ),
    (
        "policies_let_in_whom_they_name",
        at(
            "AuthorizationPolicy",
            "observability",
            "queries",
            "spec",
            "rules",
            1,
            "to",
            0,
            "operation",
            "ports",
            value=["16687"],
        ),
    ),
    (
        "policies_let_in_whom_they_name",
        at("AuthorizationPolicy", "shop", "api", "spec", "selector", "matchLabels", value={"app": "api"}),
    ),
    ("policies_let_in_whom_they_name", without("AuthorizationPolicy", "shop", "deny-all")),
    ("tokens_are_required", without("AuthorizationPolicy", "shop", "token-from-outside")),
    ("addresses_resolve", without("Service", "observability", "opensearch")),
    ("addresses_resolve", at("Service", "monitoring", "prometheus", "spec", "ports", 0, "port", value=9091)),
    (
        "alerts_have_runbooks",
        at(
            "PrometheusRule",
            "monitoring",
            "alerts-mesh",
            "spec",
            "groups",
            0,
            "rules",
            0,
            "annotations",
            "runbook_url",
            value="https://example.com/",
        ),
    ),
    (
        "alerts_have_runbooks",
        at("PrometheusRule", "monitoring", "alerts-mesh", "spec", "groups", 0, "rules", 0, "alert", value="Unknown"),
    ),
    ("rights_are_narrow", at("ClusterRole", None, "kiali-viewer", "rules", 0, "verbs", value=["*"])),
    ("rights_are_narrow", at("Role", "istio-system", "kiali-signing-key", "rules", 0, "resourceNames", value=GONE)),
    ("rights_are_narrow", at("RoleBinding", "shop", "cache-watcher", "subjects", 0, "name", value="watcher")),
    (
        "names_in_rights_are_those_asked_for",
        at("Role", "canaryd", "canaryd", "rules", 1, "resourceNames", value=["canaryd-ghdgm99h4b"]),
    ),
    ("nothing_is_there_twice", with_all_of("base", "redis-cache", kind="HorizontalPodAutoscaler")),
]


@pytest.mark.parametrize(("name", "plant"), PLANTED, ids=[f"{name}-{n}" for n, (name, _) in enumerate(PLANTED)])
def test_a_planted_violation_is_found(name: str, plant: Callable[[Tree], None]) -> None:
    tree = Tree(render(US))
    plant(tree)
    assert list(lints.ALL[name](Tree(tree.objects))) != []


def test_every_lint_has_a_planted_violation() -> None:
    assert {name for name, _ in PLANTED} == set(lints.ALL)


# ── who reaches whom ─────────────────────────────────────────────────────────────────────────────

NAMES = "app.kubernetes.io/name"
GATEWAY = ("istio-ingress", {"istio": "ingress"})
NEEDED = [
    # from (namespace, labels), to (namespace, name), port
    (GATEWAY, ("shop", "api"), 9898),
    (("shop", {NAMES: "api"}), ("observability", "jaeger-collector"), 4317),
    (("istio-system", {NAMES: "kiali"}), ("observability", "jaeger-query"), 16685),
    (("canaryd", {NAMES: "canaryd"}), ("observability", "jaeger-query"), 16686),
    (("observability", {NAMES: "jaeger-collector"}), ("observability", "opensearch"), 9200),
    (("observability", {NAMES: "jaeger-query"}), ("observability", "opensearch"), 9200),
    (("observability", {NAMES: "opensearch-retention"}), ("observability", "opensearch"), 9200),
    (("observability", {NAMES: "opensearch"}), ("observability", "opensearch"), 9300),
    (("shop", {NAMES: "api"}), ("shop", "redis"), 6379),
    (("shop", {NAMES: "cache-watcher"}), ("shop", "redis"), 26379),
    (("shop", {NAMES: "cache-invalidate"}), ("shop", "redis"), 26379),
    (("shop", {NAMES: "redis"}), ("shop", "redis"), 6379),
    (("monitoring", lints.PROMETHEUS), ("canaryd", "canaryd"), 9095),
    (("monitoring", lints.PROMETHEUS), ("shop", "api"), 15020),
]
REFUSED = [
    (("shop", {NAMES: "api"}), ("observability", "opensearch"), 9200),
    (("shop", {NAMES: "api"}), ("observability", "jaeger-query"), 16686),
    (GATEWAY, ("shop", "redis"), 6379),
    (("shop", {NAMES: "model-sync"}), ("shop", "redis"), 6379),
    (("default", {}), ("shop", "api"), 9898),
    (("monitoring", lints.PROMETHEUS), ("shop", "redis"), 6379),
    (("istio-system", {NAMES: "kiali"}), ("canaryd", "canaryd"), 9095),
]


def passes(tree: Tree, source: tuple[str, dict[str, str]], target: tuple[str, str], port: int) -> bool:
    (to,) = [w for w in tree.workloads if w.namespace == target[0] and w.labels[NAMES] == target[1]][:1]
    senders = [w for w in tree.workloads if w.namespace == source[0] and source[1].items() <= w.labels.items()]
    return admitted(tree, to, port, *source) and all(let_out(tree, w, port, to.namespace, to.labels) for w in senders)


@pytest.mark.parametrize(("source", "target", "port"), NEEDED, ids=lambda value: str(value)[:40])
def test_network_policies_let_through_what_is_needed(source: Any, target: Any, port: int) -> None:
    assert passes(Tree(render(US)), source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), REFUSED, ids=lambda value: str(value)[:40])
def test_network_policies_let_nothing_else_through(source: Any, target: Any, port: int) -> None:
    assert not passes(Tree(render(US)), source, target, port)


# ── regions ──────────────────────────────────────────────────────────────────────────────────────

# (kind, name) → the one place in it where regions differ, besides their name
DIFFERENT = {
    ("ConfigMap", "region"): ("data",),
    ("Prometheus", "mesh"): ("spec", "externalLabels"),
    ("HorizontalPodAutoscaler", "api"): ("spec",),
    ("DestinationRule", "api-stable"): ("spec", "trafficPolicy", "loadBalancer"),
    ("DestinationRule", "api-canary"): ("spec", "trafficPolicy", "loadBalancer"),
    ("Certificate", "api"): ("spec", "dnsNames"),
    ("Gateway", "public"): ("spec", "servers"),
    ("VirtualService", "api"): ("spec", "hosts"),
    ("AuthorizationPolicy", "public"): ("spec", "rules"),
}
BOUNDS = {"us-east-1": (5, 20), "eu-west-1": (3, 15), "ap-southeast-1": (2, 10)}


def comparable(region: str) -> dict[tuple[str, str, str], Object]:
    """Objects by kind and name, without what may differ."""
    found = {}
    for each in render(f"overlays/{region}"):
        meta = each["metadata"]
        assert meta["labels"].pop("topology.kubernetes.io/region") == region
        path = DIFFERENT.get((each["kind"], meta["name"]))
        if path:
            inner: Any = each
            for step in path[:-1]:
                inner = inner[step]
            assert inner.pop(path[-1])
        found[each["kind"], meta.get("namespace", ""), meta["name"]] = each
    return found


@pytest.mark.parametrize("region", REGIONS[1:])
def test_regions_differ_only_where_they_may(region: str) -> None:
    assert comparable(region) == comparable(REGIONS[0])


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_is_named_once_and_known_everywhere(region: str) -> None:
    tree = Tree(render(f"overlays/{region}"))
    host = f"api.{region}.example.com"
    hpa = tree.find("HorizontalPodAutoscaler", "shop", "api")
    assert hpa
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == BOUNDS[region]
    prometheus, certificate = (
        tree.find("Prometheus", "monitoring", "mesh"),
        tree.find("Certificate", "istio-ingress", "api"),
    )
    gateway, route = tree.find("Gateway", "istio-ingress", "public"), tree.find("VirtualService", "shop", "api")
    policy = tree.find("AuthorizationPolicy", "istio-ingress", "public")
    assert prometheus
    assert certificate
    assert gateway
    assert route
    assert policy
    assert prometheus["spec"]["externalLabels"] == {"cluster": f"{region}-a", "region": region}
    assert certificate["spec"]["dnsNames"] == [host]
    assert [server["hosts"] for server in gateway["spec"]["servers"]] == [[f"shop/{host}"]] * 2
    assert host in route["spec"]["hosts"]
    assert policy["spec"]["rules"][0]["to"][0]["operation"]["hosts"] == [host, f"{host}:*"]


def test_canaryd_asks_the_prometheus_of_its_own_region() -> None:
    (settings,) = [
        each
        for each in Tree(render(US)).of("ConfigMap")
        if each["metadata"]["namespace"] == "canaryd" and "canaryd.yaml" in each["data"]
    ]
    assert "http://prometheus.monitoring:9090" in settings["data"]["canaryd.yaml"]

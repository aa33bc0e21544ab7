"""Every overlay and every combination of components, judged by a real API server with the real definitions.

Strictly: unknown fields, wrong types and the definitions' own rules are errors; planted mistakes show that they are.
"""

from __future__ import annotations

import base64
import copy
import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import yaml
from bench import Bench
from bench.client import PATCHES, ApiError
from shipped.lints import SECRETS
from shipped.render import MANIFESTS, ROOT, Combination, Object, combinations, render
from shipped.tree import Tree

from canaryd.demo.processes import LabError, wait_until

FOLDERS = ("prometheus-operator", "cert-manager", "flagger", "external-secrets", "sealed-secrets")
APPLY = ("apply", "--server-side", "--validate=strict", "--dry-run=server", "--force-conflicts", "-f", "-")
US = "overlays/us-east-1"
GATEWAY_API = (US, "traffic-gateway-api")


@pytest.fixture(scope="module")
def server(control_plane: Bench) -> Bench:
    """A control plane that knows every kind that is shipped, with the shipped namespaces."""
    objects = Tree(render(US))
    for folder in FOLDERS:
        control_plane.kubectl("create", "-f", str(control_plane.tools["crds"] / folder))
    for each in objects.of("CustomResourceDefinition", "Namespace"):
        control_plane.client().apply(each)
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    return control_plane


@pytest.fixture(scope="module")
def judged() -> set[str]:
    """What the server has accepted already, as JSON: combinations differ in few objects."""
    return set()


def mark(each: Object) -> str:
    """The object but for the name of its region, which every label of an overlay has."""
    same = copy.deepcopy(each)
    (same["metadata"].get("labels") or {}).pop("topology.kubernetes.io/region", None)
    return json.dumps(same)


def stream(objects: list[Object]) -> str:
    return "---\n".join(json.dumps(each) + "\n" for each in objects)


@pytest.mark.parametrize("combination", combinations(), ids=str)
def test_the_server_accepts(server: Bench, judged: set[str], combination: Combination) -> None:
    objects = render(combination.root, *combination.components)
    new = [each for each in objects if mark(each) not in judged]
    if not new:
        return  # each of them was accepted in another combination
    done = server.kubectl(*APPLY, stdin=stream(new), check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(new)
    assert "Warning" not in done.stderr
    judged.update(mark(each) for each in new)


def test_pods_are_admitted_where_they_are_to_run(server: Bench) -> None:
    """The namespaces demand restricted pods, and templates are not judged: so a pod is made of each."""
    trees = [Tree(render(*c)) for c in ((US,), ("base", "jaeger-dev", "jaeger-opensearch", "redis-cache"))]
    seen = set()
    for workload in [w for tree in trees for w in tree.workloads]:
        if str(workload) in seen:
            continue
        seen.add(str(workload))
        metadata = {"name": f"{workload.name}-x", "namespace": workload.namespace, "labels": dict(workload.labels)}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(workload.pod)}
        pod["spec"].pop("serviceAccountName")  # accounts are not made here
        for claim in workload.whole["spec"].get("volumeClaimTemplates") or []:
            pod["spec"]["volumes"].append({"name": claim["metadata"]["name"], "emptyDir": {}})
        pod["spec"]["automountServiceAccountToken"] = False
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": workload.namespace},
        }
        server.client().apply(account)
        done = server.kubectl(*APPLY, stdin=json.dumps(pod), check=False)
        assert done.returncode == 0, f"{workload}: {done.stderr}"
        pod["spec"]["hostNetwork"] = True
        refused = server.kubectl(*APPLY, stdin=json.dumps(pod), check=False)
        assert "violates PodSecurity" in refused.stderr, f"{workload}: {refused.stderr}"
    assert len(seen) >= 10


def test_the_secrets_are_those_that_pods_name(server: Bench) -> None:
    """scripts/secrets makes what nobody else does, with new values each time."""
    made = [
        subprocess.run([ROOT / "scripts" / "secrets"], capture_output=True, text=True, check=True).stdout for _ in "ab"
    ]
    assert made[0] != made[1]
    assert server.kubectl(*APPLY, stdin=made[0], check=False).returncode == 0
    found = {(e["metadata"]["namespace"], e["metadata"]["name"]): e["data"] for e in yaml.safe_load_all(made[0])}
    assert found.keys() == SECRETS - {("istio-ingress", "api-tls"), ("istio-ingress", "letsencrypt-account")}
    signing = base64.b64decode(found["istio-system", "kiali-signing-key"]["key"])
    assert len(signing) in (16, 24, 32)
    refused = subprocess.run([ROOT / "scripts" / "secrets", "--seal"], capture_output=True, text=True, check=False)
    assert refused.returncode == 64
    assert "certificate" in refused.stderr


# ── rights ───────────────────────────────────────────────────────────────────────────────────────

CANARYD, KIALI = ("canaryd", "canaryd"), ("istio-system", "kiali")
PROMETHEUS, WATCHER, SYNC = ("monitoring", "prometheus-mesh"), ("shop", "cache-watcher"), ("shop", "model-sync")
ISTIO, APPS = "networking.istio.io", "apps"
MAY = [
    (CANARYD, "patch", ISTIO, "virtualservices", "shop", "api"),
    (CANARYD, "patch", "gateway.networking.k8s.io", "httproutes", "shop", "api"),
    (CANARYD, "patch", APPS, "deployments", "shop", "api"),
    (CANARYD, "patch", "canaryd.io", "canaries/status", "shop", "api"),
    (CANARYD, "update", "coordination.k8s.io", "leases", "canaryd", "canaryd"),
    (KIALI, "list", ISTIO, "virtualservices", "shop", ""),
    (KIALI, "get", "", "pods/log", "shop", "api-0"),
    (KIALI, "create", "authentication.k8s.io", "tokenreviews", "", ""),
    (KIALI, "get", "", "secrets", "istio-system", "kiali-signing-key"),
    *((PROMETHEUS, "list", "", "pods", place, "") for place in ("istio-system", "observability", "canaryd", "shop")),
    (PROMETHEUS, "watch", "discovery.k8s.io", "endpointslices", "observability", ""),
    (WATCHER, "watch", "canaryd.io", "canaries", "shop", ""),
    (WATCHER, "update", "coordination.k8s.io", "leases", "shop", "cache-watcher"),
]
MAY_NOT = [
    (CANARYD, "get", "", "secrets", "shop", "redis-auth"),
    (CANARYD, "patch", ISTIO, "virtualservices", "istio-system", "api"),
    (CANARYD, "patch", APPS, "deployments", "observability", "jaeger-query"),
    (CANARYD, "update", "coordination.k8s.io", "leases", "canaryd", "another"),
    (CANARYD, "create", "rbac.authorization.k8s.io", "rolebindings", "shop", ""),
    (CANARYD, "create", "", "pods/exec", "shop", "api-0"),
    (KIALI, "patch", ISTIO, "virtualservices", "shop", "api"),
    (KIALI, "delete", "", "pods", "shop", "api-0"),
    (KIALI, "get", "", "secrets", "istio-system", "cacerts"),
    (KIALI, "list", "", "secrets", "istio-system", ""),
    (PROMETHEUS, "list", "", "secrets", "monitoring", ""),
    (PROMETHEUS, "list", "", "pods", "kube-system", ""),
    (PROMETHEUS, "delete", "", "pods", "shop", "api-0"),
    (WATCHER, "patch", "canaryd.io", "canaries", "shop", "api"),
    (WATCHER, "update", "coordination.k8s.io", "leases", "shop", "another"),
    (WATCHER, "get", "", "secrets", "shop", "redis-auth"),
    (SYNC, "list", "", "pods", "shop", ""),
    (SYNC, "get", "", "configmaps", "shop", "data"),
]
Ask = tuple[tuple[str, str], str, str, str, str, str]


@pytest.fixture(scope="module")
def rights(server: Bench) -> Bench:
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=stream(Tree(render(US)).of(*kinds)))
    return server


def allowed(server: Bench, ask: Ask) -> bool:
    """What the server's own authorizer says of this ServiceAccount."""
    (place, account), verb, group, resource, namespace, name = ask
    kind, _, part = resource.partition("/")
    what = {"verb": verb, "group": group, "resource": kind, "subresource": part, "namespace": namespace, "name": name}
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{place}", "system:authenticated"]
    spec = {"user": f"system:serviceaccount:{place}:{account}", "groups": groups, "resourceAttributes": what}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    answer = server.client().request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def test_accounts_may_do_what_they_must(rights: Bench) -> None:
    missing = list(MAY)

    def none_is_missing() -> bool:
        missing[:] = [
            ask for ask in missing if not allowed(rights, ask)
        ]  # the authorizer learns of a Role a moment later
        return not missing

    with suppress(LabError):
        wait_until(none_is_missing, "the rights", timeout=20, every=0.5)
    assert missing == []


def test_accounts_may_do_nothing_of_what_they_must_not(rights: Bench) -> None:
    assert [ask for ask in MAY_NOT if allowed(rights, ask)] == []


# ── planted mistakes ─────────────────────────────────────────────────────────────────────────────

Path = tuple[str | int, ...]


def put(*path: str | int, value: Any) -> Callable[[Object], None]:
    """A change: this value at this place, whether it was there or not."""

    def change(each: Object) -> None:
        inner: Any = each
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


Mistake = tuple[str, tuple[str, ...], tuple[str, str, str], Callable[[Object], None], str]
MISTAKES: list[Mistake] = [
    # (what, rendering, (kind, namespace, name), change, a word of the server's answer)
    (
        "retries misspelt",
        (US,),
        ("VirtualService", "shop", "api"),
        put("spec", "http", 0, "retrys", value={}),
        "retrys",
    ),
    (
        "weight misspelt",
        (US,),
        ("VirtualService", "shop", "api"),
        put("spec", "http", 1, "route", 0, "wieght", value=5),
        "wieght",
    ),
    (
        "weight as text",
        (US,),
        ("VirtualService", "shop", "api"),
        put("spec", "http", 1, "route", 0, "weight", value="95"),
        "expected numeric",
    ),
    (
        "a timeout below a millisecond",
        (US,),
        ("VirtualService", "shop", "api"),
        put("spec", "http", 1, "timeout", value="0.1ms"),
        "1ms",
    ),
    (
        "a duration without unit",
        (US,),
        ("DestinationRule", "shop", "api-stable"),
        put("spec", "trafficPolicy", "outlierDetection", "interval", value="ten"),
        "duration",
    ),
    (
        "an unknown TLS mode",
        (US,),
        ("DestinationRule", "shop", "api-stable"),
        put("spec", "trafficPolicy", "tls", value={"mode": "MTLS"}),
        "MTLS",
    ),
    (
        "failover and distribute",
        (US,),
        ("DestinationRule", "shop", "api-stable"),
        put("spec", "trafficPolicy", "loadBalancer", "simple", value="FASTEST"),
        "FASTEST",
    ),
    (
        "an unknown mTLS mode",
        (US,),
        ("PeerAuthentication", "istio-system", "default"),
        put("spec", "mtls", "mode", value="ON"),
        "ON",
    ),
    (
        "ports without a selector",
        (US,),
        ("PeerAuthentication", "istio-system", "default"),
        put("spec", "portLevelMtls", value={"8080": {"mode": "DISABLE"}}),
        "portLevelMtls",
    ),
    (
        "targetRefs and selector",
        (US,),
        ("AuthorizationPolicy", "shop", "api"),
        put("spec", "targetRefs", value=[{"kind": "Service", "group": "", "name": "api"}]),
        "targetRefs",
    ),
    (
        "an unknown action",
        (US,),
        ("AuthorizationPolicy", "shop", "api"),
        put("spec", "action", value="PERMIT"),
        "PERMIT",
    ),
    (
        "sampling above 100",
        (US,),
        ("Telemetry", "istio-system", "mesh-default"),
        put("spec", "tracing", 0, "randomSamplingPercentage", value=150),
        "randomSamplingPercentage",
    ),
    (
        "an endpoint for endpoints",
        (US,),
        ("ServiceMonitor", "canaryd", "canaryd"),
        put("spec", "endpoint", value=[]),
        "endpoint",
    ),
    (
        "an interval that is none",
        (US,),
        ("ServiceMonitor", "canaryd", "canaryd"),
        put("spec", "endpoints", 0, "interval", value="15 s"),
        "interval",
    ),
    (
        "a relabelling that does not exist",
        (US,),
        ("PodMonitor", "istio-system", "envoy-stats"),
        put("spec", "podMetricsEndpoints", 0, "relabelings", 0, "action", value="retain"),
        "retain",
    ),
    (
        "an alert that waits for nothing",
        (US,),
        ("PrometheusRule", "monitoring", "alerts-mesh"),
        put("spec", "groups", 0, "rules", 0, "for", value="soon"),
        "for",
    ),
    (
        "a rule with an unknown key",
        (US,),
        ("PrometheusRule", "monitoring", "alerts-mesh"),
        put("spec", "groups", 0, "rules", 0, "runbook", value="x"),
        "runbook",
    ),
    (
        "remote write with a version that is none",
        (US,),
        ("Prometheus", "monitoring", "mesh"),
        put("spec", "remoteWrite", 0, "messageVersion", value="V3"),
        "messageVersion",
    ),
    (
        "a budget with both bounds",
        (US,),
        ("PodDisruptionBudget", "istio-system", "kiali"),
        put("spec", "minAvailable", value=1),
        "minAvailable",
    ),
    (
        "fewest above most",
        (US,),
        ("HorizontalPodAutoscaler", "shop", "api"),
        put("spec", "maxReplicas", value=1),
        "maxReplicas",
    ),
    (
        "a limit below the request",
        (US,),
        ("Deployment", "istio-system", "kiali"),
        put("spec", "template", "spec", "containers", 0, "resources", "limits", "cpu", value="1m"),
        "less than or equal",
    ),
    (
        "a probe misspelt",
        (US,),
        ("Deployment", "istio-system", "kiali"),
        put("spec", "template", "spec", "containers", 0, "readynessProbe", value={}),
        "readynessProbe",
    ),
    (
        "a selector that does not fit",
        (US,),
        ("Deployment", "shop", "api-stable"),
        put("spec", "selector", "matchLabels", value={"app": "other"}),
        "selector",
    ),
    (
        "a volume that is not there",
        (US,),
        ("Deployment", "shop", "api-stable"),
        put("spec", "template", "spec", "containers", 0, "volumeMounts", 0, "name", value="gone"),
        "gone",
    ),
    (
        "a schedule that is none",
        (US,),
        ("CronJob", "shop", "model-sync"),
        put("spec", "schedule", value="every five minutes"),
        "schedule",
    ),
    (
        "concurrency that does not exist",
        (US,),
        ("CronJob", "shop", "model-sync"),
        put("spec", "concurrencyPolicy", value="Never"),
        "concurrencyPolicy",
    ),
    (
        "a policy port beyond all",
        (US,),
        ("NetworkPolicy", "shop", "api"),
        put("spec", "ingress", 0, "ports", 0, "port", value=99898),
        "65535",
    ),
    (
        "a Canary whose weights fall",
        (US,),
        ("Canary", "shop", "api"),
        put("spec", "steps", 0, "weight", value=60),
        "rise",
    ),
    (
        "a Canary with two kinds of route",
        (US,),
        ("Canary", "shop", "api"),
        put("spec", "route", "gatewayApi", value={"httpRoutes": [{"name": "api"}]}),
        "exactly one",
    ),
    (
        "a certificate for nobody",
        (US,),
        ("Certificate", "istio-ingress", "api"),
        put("spec", "issuerRef", value={"kind": "Issuer"}),
        "name",
    ),
    (
        "a key that rotates sometimes",
        (US,),
        ("Certificate", "istio-ingress", "api"),
        put("spec", "privateKey", "rotationPolicy", value="Sometimes"),
        "rotationPolicy",
    ),
    (
        "backend slower than the request",
        GATEWAY_API,
        ("HTTPRoute", "shop", "api"),
        put("spec", "rules", 0, "timeouts", value={"request": "1s", "backendRequest": "2s"}),
        "backendRequest",
    ),
    (
        "a path that is none",
        GATEWAY_API,
        ("HTTPRoute", "shop", "api"),
        put("spec", "rules", 1, "matches", 0, "path", "value", value="api/echo"),
        "path",
    ),
    (
        "TLS without a certificate",
        GATEWAY_API,
        ("Gateway", "istio-ingress", "public"),
        put("spec", "listeners", 0, "tls", value={"mode": "Terminate"}),
        "certificateRefs",
    ),
    (
        "a Flagger Canary without a target",
        ("base", "jaeger-dev", "redis-cache", "flagger"),
        ("Canary", "shop", "api"),
        put("spec", "targetRef", value={}),
        "targetRef",
    ),
    (
        "a secret without a store",
        (US, "external-secrets"),
        ("ExternalSecret", "shop", "redis-auth"),
        put("spec", "refreshIntervall", value="1h"),
        "refreshIntervall",
    ),
]


@pytest.mark.parametrize(
    ("rendering", "key", "change", "word"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_the_server_refuses(
    server: Bench, rendering: tuple[str, ...], key: tuple[str, str, str], change: Callable[[Object], None], word: str
) -> None:
    kind, namespace, name = key
    each = Tree(render(*rendering)).find(kind, namespace, name)
    assert each is not None, f"{key} is not in {rendering}"
    change(each)
    with pytest.raises(ApiError) as refused:
        strictly_applied(server, each)
    assert refused.value.status in (400, 422, 500), refused.value  # 500: server-side apply cannot type it
    assert word in refused.value.message


def strictly_applied(server: Bench, each: Object) -> None:
    """What `kubectl apply --server-side --validate=strict --dry-run=server` asks for. ApiError when it is refused."""
    client = server.client()
    mapping = resource_of(server, each)
    query = {"fieldManager": "test", "force": "true", "dryRun": "All", "fieldValidation": "Strict"}
    client.request("PATCH", f"{mapping}/{each['metadata']['name']}", each, PATCHES["apply"], **query)


def resource_of(server: Bench, each: Object) -> str:
    """The path that objects of this kind have, as the server says."""
    version, place = each["apiVersion"], each["metadata"]["namespace"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    found = [r for r in server.client().request("GET", root)["resources"] if r["kind"] == each["kind"]]
    return f"{root}/namespaces/{place}/{found[0]['name']}"


def test_versions_are_those_of_the_definitions() -> None:
    """versions.yaml and what the server was given."""
    listed = yaml.safe_load((MANIFESTS / "versions.yaml").read_text())["definitions"]
    module = (ROOT / "tests/cluster/tools/crds/go.mod").read_text()
    assert {line.split()[0]: line.split()[1] for line in module.splitlines() if line.startswith("\t")} == listed

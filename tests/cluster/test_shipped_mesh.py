"""The shipped routes, rate limit and policies as a real istiod renders them, obeyed by a real Envoy.

Two things differ from a cluster: the gateway is the bench's, and the proxy beside a pod is reached at a port of its own
(nothing is redirected here), which a Sidecar resource gives it. There are no certificates, so callers have no identity.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import time
from collections import Counter
from typing import Any

import pytest
from bench import Bench
from bench.apps import create_or_apply, is_rolled_out
from bench.mesh import GATEWAY_PORT, bootstrap
from scipy.stats import binomtest
from shipped import metrics
from shipped.pressure import pressed
from shipped.render import Object, render
from shipped.tree import Tree

from canaryd.demo import envoy
from canaryd.demo.processes import await_ready, fetch, wait_until

HOST = "api.shop.svc.cluster.local"
US = "overlays/us-east-1"
POD_PORT, ADMIN = 80, 19100  # the Service's port, which names the virtual host
SECRET = b"a key that only this test knows, long enough"
NAME = {"app.kubernetes.io/name": "api"}


def shipped(kind: str, name: str, *components: str) -> Object:
    found = Tree(render(US, *components)).find(kind, "shop", name)
    assert found, f"{kind} {name}"
    return found


def ask(port: int, path: str = "/", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request("GET", path, headers={"Host": HOST, **named})
        answer = connection.getresponse()
        answer.read()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}
    finally:
        connection.close()


def answered_by(headers: dict[str, str]) -> str:
    return headers.get("x-answered-by", "").partition(" ")[0]


@pytest.fixture(scope="module")
def shop(mesh: Bench) -> Bench:
    """Services, rules, the route and both Deployments as shipped, with pods of the bench."""
    admin = mesh.client()
    for name in ("api", "api-stable", "api-canary"):
        create_or_apply(admin, shipped("Service", name))
    for name, count in (("api-stable", 2), ("api", 1)):
        create_or_apply(admin, with_pods_of_the_bench(shipped("Deployment", name), count))
    for name in ("api-stable", "api-canary"):
        create_or_apply(admin, shipped("DestinationRule", name))
    route = shipped("VirtualService", "api")
    route["spec"]["gateways"] = ["shop/gw", "mesh"]
    route["spec"]["http"][0]["match"][0]["gateways"] = [
        "shop/gw"
    ]  # else only callers inside the mesh may force a canary
    create_or_apply(admin, route)
    for name in ("api-stable", "api"):
        wait_until(lambda n=name: is_rolled_out(admin.get("deployments", n)), f"pods of {name}", 120, every=0.2)
    wait_until(lambda: ask(GATEWAY_PORT)[0] == 200, "the first answer", timeout=120)
    return mesh


def with_pods_of_the_bench(deployment: Object, replicas: int) -> Object:
    spec = deployment["spec"]
    tag = spec["template"]["spec"]["containers"][0]["image"].rpartition(":")[2]
    container = {"name": "api", "image": f"demo/app:{tag}", "ports": [{"name": "http", "containerPort": 9898}]}
    spec["template"]["spec"] = {"containers": [container]}
    return {**deployment, "spec": {**spec, "replicas": replicas}}


def test_five_in_a_hundred_requests_go_to_the_canary(shop: Bench) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", GATEWAY_PORT, timeout=20)
    seen = Counter[str]()
    for _ in range(2000):  # the draw is anew for each request, also on one connection
        connection.request("GET", "/", headers={"Host": HOST})
        answer = connection.getresponse()
        answer.read()
        seen[answered_by({key.lower(): value for key, value in answer.getheaders()})] += 1
    connection.close()
    assert set(seen) == {"api", "api-stable"}
    assert binomtest(seen["api"], 2000, 0.05).pvalue > 1e-4, seen


def test_the_header_forces_the_canary_and_any_other_value_does_not(shop: Bench) -> None:
    assert {answered_by(ask(GATEWAY_PORT, x_canary="true")[1]) for _ in range(50)} == {"api"}
    assert "api-stable" in {answered_by(ask(GATEWAY_PORT, x_canary="yes")[1]) for _ in range(50)}


def test_routes_carry_what_is_shipped(shop: Bench) -> None:
    """Timeouts, retries, the header that is taken off, and the one that is given."""
    _, page = fetch("http://127.0.0.1:19000/config_dump?resource=dynamic_route_configs", timeout=20)
    routes = {
        route["name"]: route
        for config in json.loads(page)["configs"]
        for host in config["route_config"].get("virtual_hosts", [])
        for route in host.get("routes", [])
        if route.get("name") in ("forced-canary", "echo", "default") and HOST in host["domains"]
    }
    assert set(routes) == {"forced-canary", "echo", "default"}
    assert {name: route["route"]["timeout"] for name, route in routes.items()} == {
        "forced-canary": "2s",
        "echo": "5s",
        "default": "2s",
    }
    assert routes["default"]["route"]["retry_policy"]["num_retries"] == 1
    assert "retry_policy" not in routes["echo"]["route"]
    for name in ("echo", "default"):
        assert "x-canary" in routes[name]["request_headers_to_remove"]
    assert ask(GATEWAY_PORT)[1]["strict-transport-security"].startswith("max-age=31536000")


# ── beside a pod ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def sidecar(shop: Bench) -> int:
    """The port of a proxy beside a pod of api-stable; istiod knows it by the pod's address and labels."""
    admin = shop.client()
    pod = admin.list("pods", "shop", "app.kubernetes.io/component=stable")[0]
    listener = {
        "port": {"number": POD_PORT, "protocol": "HTTP", "name": "http"},
        "bind": "127.0.0.1",
        "defaultEndpoint": "0.0.0.0:9898",
    }
    own = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "api", "namespace": "shop"},
        "spec": {"workloadSelector": {"labels": NAME}, "ingress": [listener], "egress": [{"hosts": ["~/*"]}]},
    }
    create_or_apply(admin, own)
    create_or_apply(admin, shipped("EnvoyFilter", "api-rate-limit"))
    address = pod["status"]["podIP"]
    config = bootstrap()
    config["node"] = {
        "id": f"sidecar~{address}~{pod['metadata']['name']}.shop~shop.svc.cluster.local",
        "cluster": "api.shop",
        "metadata": {
            "LABELS": pod["metadata"]["labels"],
            "NAMESPACE": "shop",
            "CLUSTER_ID": "Kubernetes",
            "ISTIO_VERSION": "1.32.0",
            "INTERCEPTION_MODE": "NONE",
        },
    }
    config["admin"]["address"]["socket_address"]["port_value"] = ADMIN
    config["stats_config"]["use_all_default_tags"] = False
    file = shop.directory / "sidecar.json"
    file.write_text(json.dumps(config))
    argv = [str(envoy.find()), "-c", str(file), "--concurrency", "1", "-l", "warning", "--disable-hot-restart"]
    await_ready(shop.nursery.start("sidecar", argv), f"http://127.0.0.1:{ADMIN}/ready", 120)
    wait_until(lambda: ask(POD_PORT)[0] == 200, "an answer through the sidecar", timeout=60)
    return POD_PORT


def test_the_rate_limit_is_in_the_route_that_istiod_renders(sidecar: int) -> None:
    status, headers = ask(sidecar)
    assert status == 200
    assert headers["x-ratelimit-limit"].split(",")[0] == "100"
    seen, took = pressed(sidecar, "/api/echo", 1.0, HOST)
    assert seen[429], f"{seen} in {took:.1f} s: the bucket of /api/echo is not there"
    _, page = fetch(f"http://127.0.0.1:{ADMIN}/stats/prometheus?usedonly", timeout=20)
    assert b"envoy_http_local_rate_limiter_http_local_rate_limit_rate_limited" in page


def test_a_caller_without_an_identity_is_refused(shop: Bench, sidecar: int) -> None:
    """deny-all, and the policy that names who may: plain text has no principal."""
    admin = shop.client()
    for name in ("deny-all", "api"):
        create_or_apply(admin, shipped("AuthorizationPolicy", name))
    wait_until(lambda: ask(sidecar)[0] == 403, "the refusal", timeout=60)
    for name in ("deny-all", "api"):
        admin.request("DELETE", f"/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/{name}")
    wait_until(lambda: ask(sidecar)[0] == 200, "the end of the refusal", timeout=60)


def test_a_token_is_asked_for_and_looked_at(shop: Bench, sidecar: int) -> None:
    """No token: 403. A bad one: 401. One of the issuer and for this audience: 200. The key is this test's own."""
    admin = shop.client()
    authentication = shipped("RequestAuthentication", "jwt")
    rule = authentication["spec"]["jwtRules"][0]
    del rule["jwksUri"]
    key = {"kty": "oct", "alg": "HS256", "kid": "test", "k": coded(SECRET)}
    rule["jwks"] = json.dumps({"keys": [key]})
    create_or_apply(admin, authentication)
    create_or_apply(admin, shipped("AuthorizationPolicy", "token-required", "jwt-required"))
    wait_until(lambda: ask(sidecar)[0] == 403, "the refusal without a token", timeout=60)
    good = {"iss": "https://idp.example.com", "aud": "api", "sub": "anna", "exp": int(time.time()) + 3600}
    assert ask(sidecar, authorization=f"Bearer {token(good)}")[0] == 200
    assert ask(sidecar, authorization=f"Bearer {token(good)[:-4]}AAAA")[0] == 401
    assert ask(sidecar, authorization=f"Bearer {token({**good, 'iss': 'https://elsewhere.example.com'})}")[0] == 401
    assert ask(sidecar, authorization=f"Bearer {token({**good, 'aud': 'shop'})}")[0] == 403
    assert ask(sidecar, authorization=f"Bearer {token({**good, 'exp': 1})}")[0] == 401


def coded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(claims: dict[str, Any]) -> str:
    head = {"alg": "HS256", "typ": "JWT", "kid": "test"}
    body = f"{coded(json.dumps(head).encode())}.{coded(json.dumps(claims).encode())}"
    return f"{body}.{coded(hmac.new(SECRET, body.encode(), hashlib.sha256).digest())}"


def test_istiod_has_the_metrics_that_rules_read(shop: Bench) -> None:
    _, page = fetch("http://127.0.0.1:15014/metrics", timeout=20)
    there = {
        line.partition("{")[0].partition(" ")[0] for line in page.decode().splitlines() if not line.startswith("#")
    }
    assert metrics.of("istiod") - there <= {"pilot_total_xds_rejects"}  # it has no series before the first refusal

"""Requests that never reach a pod, as a real Envoy counts them and a real Prometheus remembers them.

One Envoy plays a gateway (reporter source) and the sidecars of the pods (reporter destination). Three services: the
canary of one has no endpoint (UH), that of another refuses connections (UF), that of the third is well.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from canaryd.adapters.prometheus import PrometheusSource
from canaryd.demo import envoy
from canaryd.demo.processes import Nursery, await_ready, fetch, free_port, wait_until
from canaryd.demo.prometheus import Prometheus
from canaryd.hindsight.analysis import Interval, analyze
from canaryd.hindsight.past import Weights
from canaryd.model import Verdict
from canaryd.policy import Canary, parse_canary

pytestmark = [pytest.mark.envoy, pytest.mark.prometheus]

SECOND = timedelta(seconds=1)
SCRAPE = 0.5 * SECOND
WEIGHT = 20
ALONE, SPLIT = 6.0, 8.0  # seconds of stable alone, and of the split
SERVICES = {"uh": None, "uf": "refused", "ok": "sidecar"}  # what stands behind the canary's Service


def counter(reporter: str, **labels: str) -> str:
    """The access log that counts requests under Istio's name."""
    tags = {"reporter": reporter, "response_code": "%RESPONSE_CODE%", "response_flags": "%RESPONSE_FLAGS%", **labels}
    rows = "".join(f"              - {{name: {k}, value_format: {json.dumps(v)}}}\n" for k, v in tags.items())
    return f"""\
          access_log:
          - name: istio-stats
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config
              stats_scope: {{prefix: istio}}
              counters:
              - stat:
                  name: requests_total
                  tags:
{rows.replace("              -", "                  -")}                value_fixed: 1
"""


def listener(name: str, port: int, log: str, routes: str) -> str:
    kind = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    return f"""\
  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {kind}
          stat_prefix: {name}
{log}          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
{routes}          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": {router}}}
"""


def cluster(service: str, port: int | None) -> str:
    address = f"{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}"
    endpoints = f"[{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]" if port else "[]"
    return f"""\
  - name: {service}
    type: STATIC
    connect_timeout: 1s
    metadata: {{filter_metadata: {{istio: {{service: {service}}}}}}}
    load_assignment: {{cluster_name: {service}, endpoints: {endpoints}}}
"""


def bootstrap(gateway: int, admin: int) -> str:
    """The whole configuration; the gateway's path says the arm, so that the load decides the split."""
    listeners, clusters, routes = "", "", ""
    for name, canary in SERVICES.items():
        for service, workload, kind in (
            (f"{name}-stable", f"{name}-stable", "sidecar"),
            (f"{name}-canary", name, canary),
        ):
            port = free_port() if kind else None
            clusters += cluster(service, port)
            route = f'{{match: {{prefix: "/{service}"}}, route: {{cluster: {service}}}}}'
            routes += f"              - {route}\n"
            if kind == "sidecar":
                log = counter("destination", destination_workload=workload, pod=f"{workload}-0")
                answer = '              - {match: {prefix: "/"}, direct_response: {status: 200}}\n'
                listeners += listener(workload, port or 0, log, answer)
    place = "%METADATA(CLUSTER:istio:service)%"
    log = counter("source", destination_service_name=place, destination_service_namespace="default", pod="gateway-0")
    listeners += listener("gateway", gateway, log, routes)
    return f"""\
node: {{id: canaryd-test, cluster: canaryd-test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
stats_flush_on_admin: true
static_resources:
  listeners:
{listeners}  clusters:
{clusters}"""


@dataclass
class Load:
    """Requests to one service at about 60 a second, so many percent of them to the canary."""

    port: int
    service: str
    weight: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        random, client = np.random.default_rng(1), http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        while not self.over.wait(0.015):
            arm = "canary" if random.random() < self.weight / 100 else "stable"
            client.request("GET", f"/{self.service}-{arm}")
            client.getresponse().read()
            self.sent[arm] = self.sent.get(arm, 0) + 1
        client.close()


@dataclass(frozen=True)
class Past:
    """What was sent, and the Prometheus that knows it."""

    url: str
    start: datetime
    split: datetime
    end: datetime
    sent: Mapping[str, Mapping[str, int]]

    def looks(self, service: str, interval: timedelta = SECOND) -> list[Interval]:
        source = PrometheusSource(self.url, timeout=10 * SECOND, lag=0 * SECOND, settle=SCRAPE)
        weights = Weights.of([(self.split, WEIGHT)])
        return list(analyze(canary(service, interval), source, weights, self.start, self.end))


def canary(service: str, interval: timedelta) -> Canary:
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": service},
            "spec": {
                "workloads": {"deployment": {"name": service}},
                "route": {"istio": {"virtualServices": [service]}},
                "metrics": [{"name": "errors", "kind": "errors"}],
                "interval": f"{interval.total_seconds():g}s",
                "warmUp": "0s",
                "history": "0s",
            },
        }
    )


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory, prometheus_binary: Path) -> Iterator[Past]:
    binary = envoy.find()
    if binary is None:
        pytest.skip(envoy.HOW_TO_GET_IT)
    directory, gateway, admin = tmp_path_factory.mktemp("unreached"), free_port(), free_port()
    file = directory / "envoy.yaml"
    file.write_text(bootstrap(gateway, admin))
    with Nursery(directory / "log") as nursery:
        argv = [str(binary), "-c", str(file), "--base-id", str(gateway), "--concurrency", "1", "--log-level", "error"]
        await_ready(nursery.start("envoy", argv), f"http://127.0.0.1:{admin}/ready", 20)
        page = f"http://127.0.0.1:{admin}{envoy.METRICS_PATH}"
        scrape = f"{SCRAPE // timedelta(milliseconds=1)}ms"
        prometheus = Prometheus(nursery, directory / "prometheus", page, scrape, binary=prometheus_binary)
        prometheus.start()
        up = f"{prometheus.url}/api/v1/query?query=up"
        wait_until(lambda: b'"1"' in fetch(up)[1], "the first scrape", timeout=20)
        loads = [Load(gateway, service) for service in SERVICES]
        threads = [threading.Thread(target=load.run) for load in loads]
        start = datetime.now(UTC)
        for thread in threads:
            thread.start()
        time.sleep(ALONE)
        for load in loads:
            load.weight = WEIGHT
        split = datetime.now(UTC)
        time.sleep(SPLIT)
        end = datetime.now(UTC)
        for load in loads:
            load.over.set()
        for thread in threads:
            thread.join(10)
        time.sleep(2)
        yield Past(prometheus.url, start, split, end, {load.service: load.sent for load in loads})


@pytest.mark.parametrize("service", ["uh", "uf"])
def test_a_canary_that_answers_nothing_is_rolled_back_at_the_first_or_second_scored_interval(
    past: Past, service: str
) -> None:
    looks = past.looks(service)
    rollback = next(look for look in looks if look.decision == "rollback")
    scored = next(look for look in looks if look.time - SECOND >= past.split + SCRAPE)  # the first whole one
    # An interval is judged when stable's next one is known: the first scored one at the second look.
    assert rollback.time <= scored.time + 2 * SECOND
    assert rollback.judgement.verdict is Verdict.REGRESSED
    assert rollback.judgement.decisive == "errors"
    assert rollback.judgement.findings[0].canary == pytest.approx(1.0)
    assert rollback.judgement.findings[0].stable == 0
    assert "100 % canary" in rollback.judgement.sentence


def test_a_canary_that_is_well_is_not(past: Past) -> None:
    looks = past.looks("ok")
    assert {look.judgement.verdict for look in looks} <= {Verdict.INCONCLUSIVE, Verdict.HEALTHY}
    finding = looks[-1].judgement.findings[0]
    assert (finding.canary, finding.stable) == (0, 0)
    assert finding.canary_n > 20


def test_every_lost_request_is_counted_once(past: Past) -> None:
    """From the first look on, over the whole split but its last interval: what Envoy counted is what was sent."""
    for service in ("uh", "uf"):
        looks = past.looks(service)
        n = looks[-1].judgement.findings[0].canary_n
        sent, share = past.sent[service]["canary"], (SPLIT - 3) / SPLIT
        assert share * sent * 0.7 < n <= sent
        assert looks[-1].judgement.findings[0].pods == (1, 0), "lost requests are of no pod"

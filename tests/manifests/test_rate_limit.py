"""The shipped EnvoyFilter's own words in a real Envoy: what is limited, told to clients, counted, and logged.

istiod puts the first patch before the router and merges the second into the inbound route; so does this file, by hand
(tests/cluster lets a real istiod do it).
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shipped import metrics
from shipped.pressure import pressed, request
from shipped.render import render
from shipped.tree import Tree

from canaryd.demo import envoy
from canaryd.demo.processes import Nursery, await_ready, fetch, free_port

pytestmark = pytest.mark.envoy

FILTER = "envoy.filters.http.local_ratelimit"
SECONDS = 5.0


class Limited:
    """An Envoy that answers everything itself, behind the shipped limit."""

    def __init__(self, nursery: Nursery, directory: Path, *components: str) -> None:
        self.port, self.admin = free_port(), free_port()
        self.log = directory / "access.log"
        file = directory / "envoy.json"
        file.write_text(json.dumps(self._bootstrap(*patches(*components))))
        binary = envoy.find()
        assert binary is not None
        argv = [str(binary), "-c", str(file), "--concurrency", "1", "-l", "warning", "--disable-hot-restart"]
        argv += ["--base-id", str(self.admin)]
        await_ready(nursery.start(f"envoy-{self.port}", argv), f"http://127.0.0.1:{self.admin}/ready", 60)

    def _bootstrap(self, inserted: dict[str, Any], merged: dict[str, Any]) -> dict[str, Any]:
        extensions = "type.googleapis.com/envoy.extensions.filters"
        route = {
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}},
            **merged,
        }
        manager = {
            "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound",
            "access_log": [
                {
                    "name": "file",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                        "path": str(self.log),
                        "log_format": {"text_format_source": {"inline_string": "%RESPONSE_CODE% %RESPONSE_FLAGS%\n"}},
                    },
                }
            ],
            "route_config": {"virtual_hosts": [{"name": "inbound|http|80", "domains": ["*"], "routes": [route]}]},
            "http_filters": [
                inserted,
                {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{extensions}.http.router.v3.Router"}},
            ],
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        return {
            "admin": {"address": address(self.admin)},
            "stats_config": {"use_all_default_tags": False},  # as Istio has it; names of metrics depend on it
            "static_resources": {"listeners": [{"address": address(self.port), "filter_chains": [chain]}]},
        }

    def metrics(self) -> dict[str, float]:
        """Name → sum over its series."""
        _, page = fetch(f"http://127.0.0.1:{self.admin}/stats/prometheus", timeout=20)
        found: Counter[str] = Counter()
        for line in page.decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name.partition("{")[0]] += float(value)  # type: ignore[assignment]
        return dict(found)

    def once(self, path: str) -> tuple[int, dict[str, str]]:
        """Status and headers of one answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request(path, close=True))
            head = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[0].decode()
        first, *lines = head.split("\r\n")
        return int(first.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def patches(*components: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The filter that is inserted, and what is merged into each route."""
    shipped = Tree(render("overlays/us-east-1", *components)).find("EnvoyFilter", "shop", "api-rate-limit")
    assert shipped
    first, second = shipped["spec"]["configPatches"]
    return first["patch"]["value"], second["patch"]["value"]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("logs")) as whole:
        yield whole


@pytest.fixture(scope="module")
def limited(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Limited:
    return Limited(nursery, tmp_path_factory.mktemp("limited"))


def test_it_holds_1000_requests_per_second_within_5_percent(limited: Limited) -> None:
    counts, took = pressed(limited.port, "/", SECONDS)
    assert sum(counts.values()) > 1.2 * 1000 * took, f"only {counts} in {took:.1f} s: nothing was limited"
    assert counts[200] == pytest.approx(1000 * took, rel=0.05)
    assert set(counts) == {200, 429}


def test_a_route_has_a_bucket_of_its_own(limited: Limited) -> None:
    counts, took = pressed(limited.port, "/api/echo", 2.0)
    assert counts[429] > 0
    assert counts[200] == pytest.approx(200 * took, rel=0.10)  # 2 s: one fill is 5 % of it
    assert limited.once("/")[0] == 200, "another route has nothing to do with it"


def test_clients_are_told_what_is_left_and_that_they_were_limited(limited: Limited) -> None:
    time.sleep(0.3)
    status, headers = limited.once("/")
    assert status == 200
    assert headers["x-ratelimit-limit"].split(",")[0] == "100"  # in each tenth of a second
    assert 0 <= int(headers["x-ratelimit-remaining"]) < 100
    assert "x-ratelimit-reset" in headers
    assert "x-local-rate-limit" not in headers
    answers = [limited.once("/api/echo") for _ in range(60)]
    refused = [headers for status, headers in answers if status == 429]
    assert refused or pressed(limited.port, "/api/echo", 0.3)[0][429]
    assert all(headers["x-local-rate-limit"] == "true" for headers in refused)


def test_a_refusal_carries_the_flag_that_is_left_out_of_a_releases_errors(limited: Limited) -> None:
    pressed(limited.port, "/", 0.5)
    time.sleep(1.5)  # Envoy writes its log every second
    lines = Counter(limited.log.read_text().split("\n"))
    assert lines["429 RL"] > 0
    assert {line.split()[1] for line in lines if line.startswith("429")} == {"RL"}


def test_metrics_have_the_names_that_rules_and_dashboards_read(limited: Limited) -> None:
    pressed(limited.port, "/", 0.3)
    there = limited.metrics()
    assert metrics.of("envoy") <= set(there)
    prefix = "envoy_http_local_rate_limiter_http_local_rate_limit_"
    assert there[f"{prefix}rate_limited"] == there[f"{prefix}enforced"] > 0
    assert there[f"{prefix}enabled"] == there[f"{prefix}ok"] + there[f"{prefix}rate_limited"]


def test_in_shadow_it_counts_and_refuses_nobody(nursery: Nursery, tmp_path: Path) -> None:
    shadow = Limited(nursery, tmp_path, "rate-limit-shadow")
    counts, _ = pressed(shadow.port, "/", 0.5)
    assert set(counts) == {200}
    there = shadow.metrics()
    prefix = "envoy_http_local_rate_limiter_http_local_rate_limit_"
    assert there[f"{prefix}rate_limited"] > 0
    assert there.get(f"{prefix}enforced", 0) == 0

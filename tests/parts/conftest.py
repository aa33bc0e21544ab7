"""A laboratory for tests that need real parts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from canaryd.demo import jaeger, prometheus
from canaryd.demo.lab import Lab, PoolSpec, ServiceSpec

SERVICES = tuple(
    ServiceSpec(
        name,
        (
            PoolSpec(f"{name}-blue", "v1", errors=0.0, latency_ms=2, latency_sigma=0.2),
            PoolSpec(f"{name}-green", "v2", errors=0.0, latency_ms=2, latency_sigma=0.2),
        ),
    )
    for name in ("checkout", "search")
)


def prometheus_3() -> Path | None:
    """A Prometheus 3: that of CANARYD_PROMETHEUS3, else one that the bench of the cluster tests has built."""
    if named := os.environ.get("CANARYD_PROMETHEUS3"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canaryd" / "tools"
    return next((file for file in sorted(cache.glob("prometheus-*/prometheus")) if os.access(file, os.X_OK)), None)


@pytest.fixture(scope="module", params=["2", "3"])
def prometheus_binary(request: pytest.FixtureRequest) -> Path:
    """Both generations of Prometheus, as far as they are on this machine."""
    binary = prometheus.find() if request.param == "2" else prometheus_3()
    if binary is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # never skipped there
        missing(f"no Prometheus {request.param} on this machine")
    said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=20, check=True)
    if f"version {request.param}." not in said.stdout:
        pytest.skip(f"{binary} is no Prometheus {request.param}")  # such as a newer one on PATH
    return binary


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), SERVICES, rps=150) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    """Two services, blue (v1) with all traffic and green (v2), both without errors; no load, no Prometheus.

    One laboratory per file, put in order before each test; its counters go on, so tests compare differences.
    """
    for service in shared_lab.services:
        for pool in service.pools:
            if pool.name not in shared_lab.pids():
                shared_lab.restart(pool.name)
            shared_lab.behave(pool.name, errors=0.0, latency_ms=2, latency_sigma=0.2, healthy=True)
        blue, green = service.pools
        shared_lab.set_weights(service.name, {blue.name: 100, green.name: 0}, version="0")
    return shared_lab


@pytest.fixture
def lab_with_prometheus(tmp_path: Path) -> Iterator[Lab]:
    """The same with a Prometheus of its own that scrapes every 200 ms."""
    with Lab(tmp_path / "lab", SERVICES, rps=150, prometheus=True, scrape="200ms") as lab:
        yield lab


def jaeger_2() -> Path | None:
    """A Jaeger v2: that of CANARYD_JAEGER, else one that `scripts/cluster-tools jaeger` has built, else on PATH."""
    if named := os.environ.get("CANARYD_JAEGER"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canaryd" / "tools"
    built = (file for file in sorted(cache.glob("jaeger-*/jaeger")) if os.access(file, os.X_OK))
    return next(built, None) or jaeger.find()


@pytest.fixture(scope="session")
def jaeger_binary() -> Path:
    binary = jaeger_2()
    if binary is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # never skipped there
        missing("no Jaeger on this machine: scripts/cluster-tools jaeger builds one (5 min)")
    return binary

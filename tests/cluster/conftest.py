"""Fixtures of the bench, and the network namespace this whole pytest process moves into.

These tests are a pytest invocation of their own (`make test-cluster`): once inside the namespace, this process has no
network but the bench's.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, BenchPrometheus, netns
from bench.bench import obstacle
from bench.prometheus import BUILT, DEBIAN
from deployments_rig import eyes, rig  # noqa: F401  # fixtures
from kill_scenes import victim  # noqa: F401  # fixture

HERE = Path(__file__).resolve().parent
ALONE = "tests/cluster is a run of its own: `make test-cluster`, or pytest with nothing but paths inside tests/cluster"


def pytest_configure(config: pytest.Config) -> None:
    """Enter the namespace before any test, thread or socket; where that cannot be, every test here says why."""
    if _obstacle(config) is not None:
        return
    if netns.needs_new_process():
        capture = config.pluginmanager.getplugin("capturemanager")
        capture.stop_global_capturing()
        argv = netns.command([sys.executable, "-m", "pytest", *config.invocation_params.args])
        os.execvp(argv[0], argv)
    netns.enter()


@functools.cache
def _obstacle(config: pytest.Config) -> str | None:
    """Why these tests cannot run here, or None."""
    paths = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    if not all(path == HERE or HERE in path.parents for path in paths):
        return ALONE
    return obstacle()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: skip, or fail where CI=true."""
    if (reason := _obstacle(item.config)) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One loud line when the bench could not be used."""
    if (reason := _obstacle(config)) is not None:
        verdict = "FAILED" if os.environ.get("CI") == "true" else "DID NOT RUN"
        terminalreporter.write_line(f"!!! the tests of the cluster {verdict}: {reason}", red=True, bold=True)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The bench of this session, with nothing started; its logs are in `bench.directory / "logs"`."""
    with Bench(tmp_path_factory.mktemp("bench")) as whole:
        yield whole


@pytest.fixture(scope="session")
def control_plane(bench: Bench) -> Bench:
    """etcd and kube-apiserver with the definitions of Istio and the Gateway API."""
    bench.start_control_plane()
    return bench


@pytest.fixture(scope="session")
def cluster(control_plane: Bench) -> Bench:
    """The control plane with controllers, a scheduler, a node, and pods that answer on their addresses."""
    control_plane.start_cluster()
    return control_plane


@pytest.fixture(scope="session")
def mesh(cluster: Bench) -> Bench:
    """The cluster with istiod, and Envoy as its gateway on 127.0.0.1:18080."""
    cluster.start_mesh()
    return cluster


@pytest.fixture(scope="session")
def prometheus(mesh: Bench) -> BenchPrometheus:
    """Prometheus 3.16, which scrapes the mesh every 2 s."""
    return mesh.start_prometheus(BUILT)


@pytest.fixture(scope="session")
def old_prometheus(mesh: Bench) -> BenchPrometheus:
    """Debian's Prometheus 2.42, beside the other."""
    return mesh.start_prometheus(DEBIAN)

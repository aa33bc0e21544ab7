"""`canaryd power --prometheus` on a real Prometheus that holds an hour of a service's counters."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from backfill import Story, document, scenario

from canaryd.cli.app import run
from canaryd.cli.exits import Exit
from canaryd.demo.processes import Nursery
from canaryd.demo.prometheus import Prometheus

pytestmark = pytest.mark.prometheus

STORY = Story(
    name="calm",
    scenario=scenario(rps=60.0, failures=0.01, stable_pods=4),
    weights=((0, 0),),
    seconds=3600,
    tells_weight=True,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A directory with calm.yaml and idle.yaml, and the URL of a Prometheus that knows calm's last hour."""
    directory = tmp_path_factory.mktemp("hour")
    start = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 15 * 15 - STORY.seconds, UTC)
    with (directory / "history.om").open("w") as file:
        file.writelines(document([STORY], start))
    argv = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history.om", "prometheus/data"]
    assert shutil.which("promtool") is not None
    subprocess.run(argv, cwd=directory, check=True, capture_output=True, timeout=120)
    for name in ("calm", "idle"):
        pools = {"pools": [f"{name}-a", f"{name}-b"]}
        spec = {"workloads": pools, "route": {"envoyFile": {"path": "/etc/envoy/route.yaml"}}}
        body = {"apiVersion": "canaryd.io/v1alpha1", "kind": "Canary", "metadata": {"name": name}, "spec": spec}
        (directory / f"{name}.yaml").write_text(json.dumps(body))
    with Nursery(directory / "log") as nursery:
        prometheus = Prometheus(nursery, directory / "prometheus", "http://127.0.0.1:9/metrics", "1m")
        prometheus.start()
        yield directory, prometheus.url


def test_traffic_pods_and_failures_are_those_of_the_last_hour(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, url = place
    code = run(["power", str(directory / "calm.yaml"), "--prometheus", url, "-o", "json"])
    told = capsys.readouterr()
    assert told.err == ""
    body = json.loads(told.out)
    assert code == (Exit.OK if all(step["decides"] for step in body["steps"]) else Exit.UNDECIDED)
    assert body["requestsPerSecond"] == pytest.approx(60, rel=0.1)
    assert body["stablePods"] == 4
    assert body["failures"] == pytest.approx(0.01, rel=0.15)
    assert "the last" in body["source"]
    assert {found["kind"] for found in body["steps"][0]["found"]} == {"errors", "latency"}


def test_a_service_without_an_hour_of_its_own_is_refused_in_a_sentence(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, url = place
    assert run(["power", str(directory / "idle.yaml"), "--prometheus", url]) == Exit.UNAVAILABLE
    assert "0 intervals with requests to stable in the past" in capsys.readouterr().err

"""Whole releases on a real mesh under live load: adopted, stepped, promoted, rolled back, without a lost request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import Bench, BenchPrometheus
from release_scenes import ACCOUNT, Canaryd, canaryd, install, now, service, settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def looked_after(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Canaryd]:
    install(mesh)
    with canaryd(mesh, tmp_path_factory.mktemp("releases"), settings(prometheus), replicas=2) as running:
        yield running


def test_a_good_release_is_adopted_stepped_and_promoted_without_a_lost_request(
    mesh: Bench, looked_after: Canaryd
) -> None:
    api = service(mesh, "api", rps=150)
    api.adopted()
    began = now()
    api.app.set_image("demo/app:v2")
    api.until("Succeeded", patience=180)
    assert api.load is not None
    totals = api.load.stop()
    assert totals.failures == []
    written = api.weights(began)
    first = written.index(5)
    assert set(written[:first]) <= {0}, "the stamp of the new state, before any traffic"
    assert written[first:] == [5, 10, 25, 50, 100, 50, 0]
    assert api.images("api-stable") == {"demo/app:v2"}
    print(mesh.audit.counts(ACCOUNT, since=began))


@pytest.mark.parametrize(
    ("name", "tag", "because"),
    [
        pytest.param("pay", "v2-err5", "errors", id="failing"),
        pytest.param("search", "v2-slow30", "latency", id="slow"),
    ],
)
def test_a_worse_release_is_rolled_back_with_the_reason_and_little_harm(
    mesh: Bench, looked_after: Canaryd, name: str, tag: str, because: str
) -> None:
    one = service(mesh, name, rps=100)
    one.adopted()
    one.app.set_image(f"demo/app:{tag}")
    status = one.until("RolledBack", patience=150)
    assert one.load is not None
    totals = one.load.stop()
    (rollback,) = one.events("RollbackStarted", patience=10)
    print(rollback["message"], dict(totals.by_status), dict(totals.by_workload))
    assert status["decisive"] == because
    assert one.images(f"{name}-stable") == {"demo/app:v1"}
    assert totals.by_status[500] <= 40
    assert totals.lost == []

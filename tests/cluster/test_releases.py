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
    assert totals.lost == 0
    assert api.weights(began) == [5, 10, 25, 50, 100, 50, 25, 10, 5, 0]
    assert api.images("api-stable") == {"demo/app:v2"}
    print(mesh.audit.counts(ACCOUNT, since=began))

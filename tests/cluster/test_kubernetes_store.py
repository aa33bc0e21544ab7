"""The state store on a real API server: the suite that every store passes, and what only a cluster can do to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bench import Bench

sys.path.append(str(Path(__file__).parents[1] / "contract"))
pytest.register_assert_rewrite("state_store_suite")

from state_store_suite import *  # noqa: E402, F403
from state_store_suite import API, CART, NOW, WEB, Ability  # noqa: E402

from canaryd.adapters.kubernetes_store import KubernetesStore  # noqa: E402
from canaryd.kube.client import KubeClient  # noqa: E402
from canaryd.kube.informer import Informer  # noqa: E402
from canaryd.kube.kinds import CANARIES  # noqa: E402

LEADER = ("canaryd-7", NOW)
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "canaries.canaryd.io"},
    "spec": {
        "group": "canaryd.io",
        "scope": "Namespaced",
        "names": {"plural": "canaries", "singular": "canary", "kind": "Canary", "listKind": "CanaryList"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


def canary(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": name, "namespace": "shop", **metadata},
        "spec": {},
    }


@pytest.fixture(scope="module")
def plane(control_plane: Bench) -> Bench:
    admin = control_plane.client()
    admin.apply(DEFINITION)
    control_plane.plane.await_definitions({"canaries.canaryd.io"})
    return control_plane


@pytest.fixture
def canaries(plane: Bench) -> Iterator[None]:
    """Fresh Canaries of the names that the suite uses."""
    admin = plane.client()
    for key in (API, WEB, CART):
        admin.create(canary(key.partition("/")[2]))
    yield
    for found in admin.list("canaries"):
        admin.delete("canaries", found["metadata"]["name"])
    for found in admin.list("configmaps"):
        admin.delete("configmaps", found["metadata"]["name"])


@pytest.fixture
def client(plane: Bench) -> Iterator[KubeClient]:
    made = KubeClient.connect(kubeconfig=str(plane.kubeconfig("admin")))
    yield made
    made.close()


@pytest.fixture
def informer(client: KubeClient, canaries: None) -> Iterator[Informer]:
    made = Informer(client, CANARIES, namespaces=("shop",))
    made.start()
    assert made.wait_synced(timedelta(seconds=10))
    yield made
    made.stop()


@pytest.fixture
def store(client: KubeClient, informer: Informer) -> Iterator[KubernetesStore]:
    made = KubernetesStore(client, informer, heartbeat=lambda: LEADER)
    yield made
    made.close()


@pytest.fixture
def ability() -> Ability:
    return Ability(
        releases=False,
        any_name=False,
        counts_words=False,
        writes_told=False,
        forgets_by_age=False,
        keeps_heartbeat=False,
        heartbeat=LEADER,
    )

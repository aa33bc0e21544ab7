"""Canary objects on the bench, and the parts of canaryd that read and write them: fixtures for whoever names this file
in `pytest_plugins`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from bench import Bench, Client

from canaryd import crd
from canaryd.demo.processes import wait_until
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Informer
from canaryd.kube.kinds import CANARIES

NAMES = ("api", "cart", "web")


def document(name: str, **metadata: Any) -> dict[str, Any]:
    """A valid Canary of the namespace shop."""
    return {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": name, "namespace": "shop", **metadata},
        "spec": {
            "workloads": {"deployment": {"name": name}},
            "route": {"istio": {"virtualServices": [{"name": name}]}},
        },
    }


@pytest.fixture(scope="session")
def canary_plane(control_plane: Bench) -> Bench:
    """The control plane with the definition of the Canary resource."""
    control_plane.client().apply(crd.definition())
    control_plane.plane.await_definitions({"canaries.canaryd.io"})
    return control_plane


@pytest.fixture
def admin(canary_plane: Bench) -> Client:
    return canary_plane.client()


@pytest.fixture
def canaries(admin: Client) -> Iterator[None]:
    """Fresh Canaries, and nothing of them afterwards."""
    for name in NAMES:
        admin.create(document(name))
    yield
    for resource in ("canaries", "configmaps", "events"):
        for found in admin.list(resource):
            admin.delete(resource, found["metadata"]["name"])


@pytest.fixture
def kube(canary_plane: Bench) -> Iterator[KubeClient]:
    """canaryd's client, with every right."""
    made = connect(canary_plane)
    yield made
    made.close()


@pytest.fixture
def informer(kube: KubeClient, canaries: None) -> Iterator[Informer]:
    """The Canaries as canaryd sees them."""
    with watching(kube) as made:
        yield made


@pytest.fixture
def client_of(canary_plane: Bench) -> Iterator[Callable[[str], KubeClient]]:
    """canaryd's client as another identity; closed afterwards."""
    with ExitStack() as opened:
        yield lambda identity: opened.enter_context(closing(connect(canary_plane, identity)))


def connect(plane: Bench, identity: str = "admin") -> KubeClient:
    return KubeClient.connect(kubeconfig=str(plane.kubeconfig(identity)))


@contextmanager
def watching(kube: KubeClient) -> Iterator[Informer]:
    """An informer of the Canaries in shop."""
    made = Informer(kube, CANARIES, namespaces=("shop",))
    made.start()
    assert made.wait_synced(timedelta(seconds=10))
    try:
        yield made
    finally:
        made.stop()


def caught_up(informer: Informer, admin: Client, name: str = "api") -> None:
    """Wait until the informer shows the Canary as it is now."""
    version = admin.get("canaries", name)["metadata"]["resourceVersion"]

    def seen() -> bool:
        held = informer.get("shop", name)
        return held is not None and int(held["metadata"]["resourceVersion"]) >= int(version)

    wait_until(seen, f"the informer to see {name} at {version}")


@contextmanager
def storm(admin: Client, name: str = "api", *, every: float = 0.02) -> Iterator[list[int]]:
    """Somebody changes a label fifty times a second; yields a list that holds how often so far."""
    over, count = threading.Event(), [0]

    def blow() -> None:
        due = time.monotonic()
        while not over.is_set():
            count[0] += 1
            admin.patch("canaries", name, {"metadata": {"labels": {"storm": str(count[0])}}})
            due += every
            over.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=blow, name="storm")
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()

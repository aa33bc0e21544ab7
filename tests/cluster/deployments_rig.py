"""One Canary's Deployments on the bench, driven by hand as the daemon would: shape, look, decide, shape again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bench import Bench
from bench.apps import App

from canaryd.adapters.deployments import DeploymentWorkloads
from canaryd.demo.processes import LabError, wait_until
from canaryd.errors import WorkloadError
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Informer
from canaryd.kube.kinds import DEPLOYMENTS, HPAS, PODS, SERVICES
from canaryd.model import HookState, HookStatus, Phase, RolloutState, WorkloadView
from canaryd.plan import initial
from canaryd.policy import Canary, parse_canary
from canaryd.watched import outline

NAMESPACE = "shop"
ROLE = (  # what the module's docstring says; Secrets and ConfigMaps only where a test names them
    ("apps", "deployments", "get,list,watch,patch,create,delete"),
    ("", "pods", "list,watch"),
    ("", "services", "list,watch,create,patch,delete"),
    ("autoscaling", "horizontalpodautoscalers", "list,watch,patch"),
    ("apps", "controllerrevisions", "list,create,delete"),
    ("discovery.k8s.io", "endpointslices", "list"),
)


def grant(bench: Bench) -> None:
    """Exactly the rights that the adapter says it needs."""
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": verbs.split(",")} for group, resource, verbs in ROLE
    ]
    admin = bench.client()
    meta = {"name": "deployment-workloads", "namespace": NAMESPACE}
    rbac = "rbac.authorization.k8s.io"
    admin.apply({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "canaryd", "namespace": "canaryd"}
    admin.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": meta["name"]},
            "subjects": [subject],
        }
    )
    canaryd = bench.client("canaryd")
    wait_until(lambda: canaryd.can("list", "pods"), "the role to be bound", timeout=30)


class Eyes:
    """A client and the informers of one daemon, of the namespace of all these tests."""

    def __init__(self, bench: Bench) -> None:
        self.client = KubeClient.connect(kubeconfig=str(bench.kubeconfig("canaryd")), timeout=timedelta(seconds=20))
        kinds = (DEPLOYMENTS, PODS, SERVICES, HPAS)
        self.deployments, self.pods, self.services, self.autoscalers = self.informers = [
            Informer(self.client, kind, namespaces=(NAMESPACE,), keep=outline if kind is PODS else None)
            for kind in kinds
        ]
        for informer in self.informers:
            informer.start()
        for informer in self.informers:
            assert informer.wait_synced(timedelta(seconds=30)), informer.trouble()

    def workloads(self, client: Any = None, **options: Any) -> DeploymentWorkloads:
        return DeploymentWorkloads(
            client or self.client,
            deployments=self.deployments,
            pods=self.pods,
            services=self.services,
            autoscalers=self.autoscalers,
            **{"steady": timedelta(0), **options},
        )

    def close(self) -> None:
        for informer in self.informers:
            informer.stop()
        self.client.close()


def document(bench: Bench, name: str, **deployment: Any) -> Canary:
    """The Canary of an app of this name; its uid is that of a ConfigMap, so that what it owns is not collected."""
    admin = bench.client()
    anchor = admin.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}})
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": anchor["metadata"]["uid"]},
            "spec": {
                "workloads": {"deployment": {"name": name, **deployment}},
                "route": {"istio": {"virtualServices": [name]}},
            },
        }
    )


class Rig:
    """One Canary and its state; `workloads` may be replaced by those of another daemon."""

    def __init__(self, bench: Bench, eyes: Eyes, app: App, **deployment: Any) -> None:
        self.bench, self.eyes, self.app = bench, eyes, app
        self.admin = bench.client()
        self.canary = document(bench, app.name, **deployment)
        self.workloads = eyes.workloads()
        self.state: RolloutState = initial(self.canary)
        self.version = 1
        self.said: list[str] = []

    # ── the daemon's part ────────────────────────────────────────────────────────────────────────

    def become(self, **changes: Any) -> None:
        """The next saved state."""
        self.version += 1
        self.state = replace(self.state, **changes)

    def shape(self, ahead: float = 0.0) -> tuple[str, ...]:
        """As if it were so many seconds later."""
        now = datetime.now(UTC) + timedelta(seconds=ahead)
        said = self.workloads.shape(self.canary, self.state, version=self.version, now=now)
        self.said += said
        return said

    def view(self) -> WorkloadView:
        return self.workloads.view(self.canary, self.state)

    def revision(self) -> str:
        found = self.workloads.release(self.canary)
        assert found is not None
        return found.revision

    def settle(self, until: Callable[[], Any], what: str, ahead: float = 0.0, timeout: float = 60) -> Any:
        """Shape again and again, as ticks do, until something is so."""

        def probe() -> Any:
            try:
                self.shape(ahead)
                return until()
            except WorkloadError as e:  # a tick that found somebody else's hand on the object
                if "meanwhile" not in str(e):
                    raise
                return None

        try:
            return wait_until(probe, what, timeout, every=0.1)
        except LabError as e:
            raise LabError(f"{e}; seen: {self.view().detail}; done: {self.said}") from e

    def adopt(self) -> None:
        """Up to an idle service with the canary at 0."""
        view = self.settle(lambda: (v := self.view()).ready and v, "stable to be ready")
        self.become(stable_revision=view.stable_revision, phase=Phase.IDLE, routed=datetime.now(UTC))
        self.settle(lambda: self.wanted(self.app.name) == 0, "the canary to be scaled down", ahead=11)

    def begin(self) -> str:
        """A rollout of whatever the canary's Deployment asks for."""
        revision = self.wait_for_release()
        number = self.state.number + 1
        now = datetime.now(UTC)
        self.become(
            number=number,
            rollout=f"{self.canary.name}-{number}",
            revision=revision,
            phase=Phase.WAITING,
            step=-1,
            weight=0,
            started=now,
            step_started=now,
            routed=now,
            held=timedelta(0),
        )
        return revision

    def wait_for_release(self) -> str:
        known = (self.state.revision, self.state.stable_revision)
        return str(wait_until(lambda: (r := self.revision()) not in known and r, "a new revision"))

    def bring_up(self) -> None:
        self.settle(lambda: self.view().ready, "the canary to be ready")

    def roll_out(self) -> str:
        """Up to the canary at some weight."""
        revision = self.begin()
        self.bring_up()
        self.become(phase=Phase.PROGRESSING, step=0, weight=5, routed=datetime.now(UTC))
        self.shape()
        return revision

    def promote(self, number: int = 1) -> HookState:
        """Stable gets the canary's template."""
        self.become(phase=Phase.PROMOTING, weight=100)
        hook = HookState(f"{self.state.rollout}-{number}")

        def over() -> HookState | None:
            found = self.workloads.upgrade(self.canary, self.state, hook, version=self.version)
            return found if found.status is not HookStatus.OWED else None

        return wait_until(over, "the upgrade to be over", 60, every=0.1)

    def succeed(self) -> None:
        self.become(
            phase=Phase.SUCCEEDED, stable_revision=self.state.revision, weight=0, step=0, routed=datetime.now(UTC)
        )
        self.settle(lambda: self.wanted(self.app.name) == 0, "the canary to be scaled down", ahead=11)

    def restore(self, *, rerouted: bool) -> str:
        return self.workloads.restore(
            self.canary, self.state, version=self.version, now=datetime.now(UTC), rerouted=rerouted
        )

    # ── the cluster's part ───────────────────────────────────────────────────────────────────────

    @property
    def stable(self) -> str:
        return self.state.stable

    def deployment(self, name: str = "") -> dict[str, Any]:
        return self.admin.get("deployments", name or self.app.name)

    def wanted(self, name: str) -> int:
        return int(self.deployment(name)["spec"]["replicas"])

    def image(self, name: str) -> str:
        return str(self.deployment(name)["spec"]["template"]["spec"]["containers"][0]["image"])

    def images(self, name: str) -> set[str]:
        """Of its pods, as they run."""
        found = self.admin.list("pods", NAMESPACE, f"app={self.app.name}")
        return {
            str(pod["spec"]["containers"][0]["image"])
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and pod["metadata"]["ownerReferences"][0]["name"]
            == f"{name}-{pod['metadata']['labels']['pod-template-hash']}"
        }

    def caught_up(self) -> None:
        """The informers have seen what the server has."""

        def same() -> bool:
            for name in (self.app.name, self.stable):
                there, seen = self.admin.find("deployments", name), self.eyes.deployments.get(NAMESPACE, name)
                if (there and there["metadata"]["resourceVersion"]) != (seen and seen["metadata"]["resourceVersion"]):
                    return False
            return True

        wait_until(same, "the caches", 20)

    def writes(self, since: datetime) -> list[str]:
        """What this daemon has written: "patch deployments/api"."""
        time.sleep(0.3)  # the log is written a moment later
        return [
            f"{r.verb} {r.resource}/{r.name}"
            for r in self.bench.audit.requests("system:serviceaccount:canaryd:canaryd", since)
            if r.is_write
        ]


def with_deployment(one: Rig, **deployment: Any) -> Canary:
    """Its Canary with other values in spec.workloads.deployment."""
    workloads = one.canary.spec.workloads
    assert workloads.deployment is not None
    changed = workloads.model_copy(update={"deployment": workloads.deployment.model_copy(update=deployment)})
    return one.canary.model_copy(update={"spec": one.canary.spec.model_copy(update={"workloads": changed})})


Made = Callable[..., Rig]


@pytest.fixture(scope="module")
def eyes(cluster: Bench) -> Iterator[Eyes]:
    grant(cluster)
    made = Eyes(cluster)
    yield made
    made.close()


@pytest.fixture
def rig(cluster: Bench, eyes: Eyes) -> Iterator[Made]:
    made: list[Rig] = []

    def make(name: str, image: str = "demo/app:v1", replicas: int = 2, **deployment: Any) -> Rig:
        rig = Rig(cluster, eyes, cluster.app(name, image, replicas), **deployment)
        made.append(rig)
        return rig

    yield make
    for one in made:
        for name in (one.stable, one.app.name):
            one.admin.delete("deployments", name)
        for name in (one.app.name, f"{one.app.name}-stable", f"{one.app.name}-canary"):
            one.admin.delete("services", name)
        one.admin.delete("horizontalpodautoscalers", one.app.name)

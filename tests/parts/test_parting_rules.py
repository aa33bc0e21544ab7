"""When a deleted Canary is let go: its plain service is back, its namespace goes, or a deadline of trying is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_script import Heard, Said, refused, scripted

from canaryd.errors import RouteError
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Direct
from canaryd.kube.kinds import CANARIES
from canaryd.model import Observation, Phase, Pods, Record, RolloutState, WorkloadView
from canaryd.parting import FINALIZER, Parting, Shell
from canaryd.policy import Canary
from canaryd.reconcile import Outcome

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DEADLINE = timedelta(minutes=10)


class Scene:
    """One Canary on a server that says what it is told to, and the parts of the daemon that parting speaks to."""

    def __init__(self, client: KubeClient) -> None:
        self.canary: dict[str, Any] | None = None
        self.namespace: dict[str, Any] | None = {"metadata": {"name": "shop"}}
        self.waits: str | Exception = ""  # what bringing back waits for
        self.tried = 0
        self.told: list[str] = []
        self.held: list[str] = []
        self.client = client
        self.parting = self.made_anew()

    def made_anew(self) -> Parting:
        shell = Shell(self.remove, lambda _, why: self.held.append(why), self.tell)
        self.parting = Parting(self.client, Direct(self.client, CANARIES, namespaces=("shop",)), shell, DEADLINE)
        return self.parting

    def remove(self, canary: Canary, at: datetime) -> str:
        self.tried += 1
        if isinstance(self.waits, Exception):
            raise self.waits
        return self.waits

    def tell(self, record: Record) -> None:
        self.told.append(record.sentence)

    def put(self, *, deleted: bool = True, **annotations: str) -> None:
        metadata: dict[str, Any] = {"name": "api", "namespace": "shop", "uid": "u1", "resourceVersion": "7"}
        metadata |= {"finalizers": [FINALIZER, "another/one"], "annotations": annotations}
        if deleted:
            metadata["deletionTimestamp"] = (T0 - timedelta(days=1)).isoformat()
        workloads = {"deployment": {"name": "api"}}
        spec = {"workloads": workloads, "route": {"istio": {"virtualServices": [{"name": "api"}]}}}
        self.canary = {"apiVersion": "canaryd.io/v1alpha1", "kind": "Canary", "metadata": metadata, "spec": spec}

    def answer(self, heard: Heard) -> Said:
        if heard.path.startswith("/api/v1/namespaces/"):
            return Said(self.namespace) if self.namespace else refused(403, "Forbidden", "no")
        if heard.method == "PATCH":
            assert self.canary is not None
            self.canary["metadata"]["finalizers"] = json.loads(heard.body)["metadata"]["finalizers"]
            return Said(self.canary)
        return Said({"metadata": {"resourceVersion": "9"}, "items": [self.canary] if self.canary else []})

    @property
    def is_let_go(self) -> bool:
        assert self.canary is not None
        return bool(self.canary["metadata"]["finalizers"] == ["another/one"])

    def look(self, after: timedelta = timedelta(0)) -> bool:
        """Whether it has been let go."""
        self.parting.look(T0 + after)
        return self.is_let_go


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made: list[Scene] = []
    with scripted(tmp_path, lambda heard: made[0].answer(heard)) as (_, client):
        made.append(Scene(client))
        yield made[0]


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def test_it_is_let_go_when_nothing_is_left_to_bring_back_and_others_finalizers_stay(scene: Scene) -> None:
    scene.put()
    scene.waits = "api has 1 of 2 pods ready"
    assert not scene.look()
    scene.waits = ""
    assert scene.look(minutes(0.1))
    assert scene.told == []


def test_one_that_is_not_deleted_is_left_alone(scene: Scene) -> None:
    scene.put(deleted=False)
    assert not scene.look()
    assert scene.tried == 0


def test_an_orphan_is_let_go_untouched(scene: Scene) -> None:
    scene.put(**{"canaryd.io/on-delete": "orphan"})
    assert scene.look()
    assert scene.tried == 0


def test_the_deadline_is_of_trying_so_that_one_deleted_yesterday_is_brought_back_all_the_same(scene: Scene) -> None:
    scene.put()
    scene.waits = "the last requests leave api"
    assert not scene.look()
    assert not scene.look(DEADLINE)
    scene.made_anew()  # another leader
    assert not scene.look(DEADLINE + minutes(1))
    assert not scene.look(2 * DEADLINE)
    assert scene.look(2 * DEADLINE + minutes(2))
    assert scene.told[-1] == (
        "shop/api is let go as it is, for its plain service could not be brought back in time: the last requests leave"
        " api"
    )


def test_a_refusal_is_told_where_people_look_and_once(scene: Scene) -> None:
    scene.put()
    scene.waits = RouteError("forbidden: patch virtualservices")
    for seconds in range(0, 50, 5):
        assert not scene.look(timedelta(seconds=seconds))
    assert scene.told == scene.held == ["being deleted: forbidden: patch virtualservices"]


def test_what_is_only_slow_is_told_when_it_lasts(scene: Scene) -> None:
    scene.put()
    scene.waits = "api has 1 of 2 pods ready: ImagePullBackOff"
    for seconds in range(0, 20, 2):
        scene.look(timedelta(seconds=seconds))
    assert scene.held == []
    for seconds in range(20, 40, 2):
        scene.look(timedelta(seconds=seconds))
    assert scene.held == ["being deleted: api has 1 of 2 pods ready: ImagePullBackOff"]


def test_in_a_namespace_that_goes_it_is_let_go_at_once(scene: Scene) -> None:
    scene.put()
    scene.namespace = {"metadata": {"name": "shop", "deletionTimestamp": T0.isoformat()}}
    assert scene.look()
    assert scene.tried == 0


def _outcome(*, ready: int = 2, wanted: int = 2, trouble: str = "") -> Outcome:
    pods = Pods(wanted=wanted, ready=ready)
    view = WorkloadView(ready=bool(ready), stable=pods)
    seen = Observation(at=T0, release=None, route=None, workloads=view, trouble=(trouble,) if trouble else ())
    return Outcome("shop/api", RolloutState(phase=Phase.IDLE), seen=seen)


GOING = {"metadata": {"name": "shop", "deletionTimestamp": T0.isoformat()}}


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(_outcome(ready=0), id="stable-has-no-pod-left"),
        pytest.param(_outcome(trouble="forbidden: list services in shop"), id="a-right-is-gone"),
    ],
)
def test_it_is_let_go_before_it_is_deleted_when_its_namespace_is_seen_to_go(scene: Scene, sign: Outcome) -> None:
    scene.put(deleted=False)
    scene.namespace = GOING
    scene.parting.looked([_outcome()])
    assert not scene.look()
    scene.parting.looked([sign])
    assert scene.look()
    assert not scene.parting.may_guard("shop")


def test_an_outage_of_stable_in_a_namespace_that_stays_lets_nothing_go_and_asks_once(scene: Scene) -> None:
    scene.put(deleted=False)
    for _ in range(5):
        scene.parting.looked([_outcome(ready=0)])
        assert not scene.look()
    assert scene.client.requests["get", "namespaces"] == 1
    assert scene.parting.may_guard("shop")


def test_a_namespace_made_anew_is_looked_after_again(scene: Scene) -> None:
    scene.put(deleted=False)
    scene.namespace = GOING
    scene.parting.looked([_outcome(ready=0)])
    scene.namespace = {"metadata": {"name": "shop"}}
    assert not scene.look(), "it is asked once more before anything is let go"
    assert scene.parting.may_guard("shop")

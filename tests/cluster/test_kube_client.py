"""The client against a real API server: every refusal by its name, every page, nothing past its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from bench import ApiError, Bench, Client

from canaryd.demo.processes import wait_until
from canaryd.errors import (
    KubeConflictError,
    KubeError,
    KubeExistsError,
    KubeForbiddenError,
    KubeGoneError,
    KubeInvalidError,
    KubeNotFoundError,
    KubeUnauthorizedError,
    KubeUnreachableError,
)
from canaryd.kube.client import JSON, SILENCE_S, KubeClient
from canaryd.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, HPAS, NAMESPACES, PODS, VIRTUAL_SERVICES, Kind

UNSERVED = Kind("nobody.example", "v1", "things", "Thing")


@pytest.fixture
def client(control_plane: Bench) -> Iterator[KubeClient]:
    made = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig()))
    yield made
    made.close()


@pytest.fixture
def anna(control_plane: Bench) -> Iterator[KubeClient]:
    """Somebody without any right."""
    made = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig("anna")))
    yield made
    made.close()


def config_map(name: str, value: str = "1") -> JSON:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": value}}


def virtual_service(name: str) -> JSON:
    route = [{"destination": {"host": name}, "weight": 100}]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name},
        "spec": {"hosts": [name], "http": [{"name": "primary", "route": route}]},
    }


def test_the_namespace_and_the_server_are_those_of_the_context(client: KubeClient) -> None:
    assert (client.namespace, client.server) == ("shop", "https://127.0.0.1:6443")
    assert not client.requests  # connecting sends nothing


def test_an_object_is_made_read_replaced_and_deleted_as_plain_json(client: KubeClient) -> None:
    made = client.create(CONFIG_MAPS, "shop", config_map("whole"))
    assert client.get(CONFIG_MAPS, "shop", "whole") == made
    made["data"]["x"] = "2"
    assert client.replace(CONFIG_MAPS, "shop", "whole", made)["data"] == {"x": "2"}
    client.delete(CONFIG_MAPS, "shop", "whole", uid=made["metadata"]["uid"])
    with pytest.raises(KubeNotFoundError, match="not found: get configmaps whole in shop") as refused:
        client.get(CONFIG_MAPS, "shop", "whole")
    assert (refused.value.status, refused.value.reason) == (404, "NotFound")
    sent = {("create", "configmaps"): 1, ("update", "configmaps"): 1, ("delete", "configmaps"): 1}
    assert client.requests == {**sent, ("get", "configmaps"): 2}


def test_each_refusal_has_a_kind_of_its_own_and_says_what_was_asked(client: KubeClient) -> None:
    old = client.create(CONFIG_MAPS, "shop", config_map("refused"))
    new = client.patch(CONFIG_MAPS, "shop", "refused", {"data": {"x": "2"}}, how="merge")

    def refused(kind: type[KubeError], text: str, call: Callable[[], object]) -> None:
        with pytest.raises(KubeError, match=text) as caught:
            call()
        assert type(caught.value) is kind

    refused(
        KubeExistsError,
        "exists already: create configmaps in shop",
        lambda: client.create(CONFIG_MAPS, "shop", config_map("refused")),
    )
    refused(
        KubeConflictError,
        "conflict: update configmaps refused in shop",
        lambda: client.replace(CONFIG_MAPS, "shop", "refused", old),
    )
    refused(
        KubeConflictError,
        "conflict: patch configmaps refused",
        lambda: client.patch(
            CONFIG_MAPS, "shop", "refused", {"metadata": {"resourceVersion": "1"}, "data": {"x": "3"}}, how="merge"
        ),
    )
    refused(
        KubeConflictError,
        "conflict: delete configmaps refused",
        lambda: client.delete(CONFIG_MAPS, "shop", "refused", uid="another"),
    )
    refused(KubeNotFoundError, "not found: delete", lambda: client.delete(CONFIG_MAPS, "shop", "nobody"))
    refused(
        KubeNotFoundError,
        'namespaces "nowhere" not found',
        lambda: client.create(CONFIG_MAPS, "nowhere", config_map("a")),
    )
    refused(KubeNotFoundError, "not served: list things.nobody.example in shop", lambda: client.list(UNSERVED, "shop"))
    refused(KubeInvalidError, "metadata.name", lambda: client.create(CONFIG_MAPS, "shop", config_map("Not_A_Name")))
    assert client.get(CONFIG_MAPS, "shop", "refused") == new  # none of them changed anything
    client.delete(CONFIG_MAPS, "shop", "refused")


@pytest.mark.parametrize(
    ("kind", "body", "path", "is_now", "expected"),
    [
        pytest.param(CONFIG_MAPS, config_map("tested"), "/data/x", "1", "7", id="built-in"),
        pytest.param(
            VIRTUAL_SERVICES, virtual_service("tested"), "/spec/http/0/route/0/weight", 100, 50, id="custom-resource"
        ),
    ],
)
def test_a_test_of_a_json_patch_that_does_not_hold_is_a_conflict_and_changes_nothing(
    client: KubeClient, kind: Kind, body: JSON, path: str, is_now: Any, expected: Any
) -> None:
    made = client.create(kind, "shop", body)
    write = {"op": "replace", "path": path, "value": expected}
    for test in (
        {"op": "test", "path": path, "value": expected},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
        {"op": "test", "path": "/metadata/annotations/nobody", "value": "1"},
    ):
        with pytest.raises(KubeConflictError, match="a test did not hold"):
            client.patch(kind, "shop", "tested", [test, write], how="json")
    assert client.get(kind, "shop", "tested") == made
    with pytest.raises(KubeInvalidError):  # nothing was tested: the patch itself is wrong
        client.patch(kind, "shop", "tested", [{"op": "remove", "path": "/nowhere"}], how="json")
    holds = [{"op": "test", "path": path, "value": is_now}, write]
    done = client.patch(kind, "shop", "tested", holds, how="json")
    assert int(done["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    client.delete(kind, "shop", "tested")


def test_an_applied_field_of_another_manager_is_a_conflict_unless_forced(
    client: KubeClient, control_plane: Bench
) -> None:
    body = config_map("owned")
    control_plane.client().apply({**body, "metadata": {"name": "owned", "namespace": "shop"}})
    ours = config_map("owned", "ours")
    with pytest.raises(KubeConflictError, match=r"data\.x"):
        client.patch(CONFIG_MAPS, "shop", "owned", ours, how="apply")
    forced = client.patch(CONFIG_MAPS, "shop", "owned", ours, how="apply", force=True)
    assert forced["data"] == {"x": "ours"}
    assert "canaryd" in {entry["manager"] for entry in forced["metadata"]["managedFields"]}
    client.delete(CONFIG_MAPS, "shop", "owned")


def test_a_list_of_1200_objects_comes_whole_in_pages_of_one_snapshot(client: KubeClient) -> None:
    client.create(NAMESPACES, "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "crowd"}})
    names = [f"n{number:04}" for number in range(1200)]
    with ThreadPoolExecutor(max_workers=4) as threads:
        list(threads.map(lambda name: client.create(CONFIG_MAPS, "crowd", config_map(name)), names))
    client.requests.clear()
    items, version = client.list(CONFIG_MAPS, "crowd")
    assert [item["metadata"]["name"] for item in items] == names
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}
    assert int(version) >= max(int(item["metadata"]["resourceVersion"]) for item in items)
    assert client.requests == {("list", "configmaps"): 3}
    only, _ = client.list(CONFIG_MAPS, "crowd", fields="metadata.name=n0007")
    assert [item["metadata"]["name"] for item in only] == ["n0007"]


def test_a_watch_tells_what_happened_after_the_list_until_the_server_ends_it(client: KubeClient) -> None:
    _, version = client.list(CONFIG_MAPS, "shop", labels="watch=me")
    made = client.create(
        CONFIG_MAPS, "shop", {**config_map("seen"), "metadata": {"name": "seen", "labels": {"watch": "me"}}}
    )
    client.create(CONFIG_MAPS, "shop", config_map("unseen"))
    changed = client.patch(CONFIG_MAPS, "shop", "seen", {"data": {"x": "2"}}, how="merge")
    client.delete(CONFIG_MAPS, "shop", "seen")
    began = time.monotonic()
    with client.watch(CONFIG_MAPS, "shop", resource_version=version, labels="watch=me", seconds=2) as watch:
        events = [event for event in watch if event[0] != "BOOKMARK"]
    assert 1 < time.monotonic() - began < 4
    assert [what for what, _ in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert [events[0][1], events[1][1]] == [made, changed]
    assert int(events[2][1]["metadata"]["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])
    client.delete(CONFIG_MAPS, "shop", "unseen")


@pytest.mark.slow
def test_a_watch_without_events_has_a_bookmark_every_minute(client: KubeClient) -> None:
    """So a watch that is silent for longer than SILENCE_S is dead."""
    made = client.create(CONFIG_MAPS, "canaryd", config_map("elsewhere"))
    _, version = client.list(CONFIG_MAPS, "shop")
    moved = client.patch(CONFIG_MAPS, "canaryd", "elsewhere", {"data": {"x": "2"}}, how="merge")
    with client.watch(CONFIG_MAPS, "shop", resource_version=version, seconds=SILENCE_S) as watch:
        what, bookmark = next(watch)
    assert what == "BOOKMARK"
    assert int(bookmark["metadata"]["resourceVersion"]) >= int(moved["metadata"]["resourceVersion"])
    client.delete(CONFIG_MAPS, "canaryd", "elsewhere", uid=made["metadata"]["uid"])


def test_a_watch_from_a_version_that_is_no_longer_kept_is_gone(client: KubeClient, control_plane: Bench) -> None:
    _, version = client.list(CONFIG_MAPS, "shop")
    client.create(CONFIG_MAPS, "shop", config_map("later"))
    control_plane.plane.expire_watches()
    with (
        pytest.raises(KubeGoneError, match="watch configmaps in shop"),
        client.watch(CONFIG_MAPS, "shop", resource_version=version) as watch,
    ):
        next(watch)
    client.delete(CONFIG_MAPS, "shop", "later")


def test_a_watch_that_another_thread_closes_ends_at_once(client: KubeClient) -> None:
    _, version = client.list(CONFIG_MAPS, "shop")
    with ThreadPoolExecutor(max_workers=1) as thread:
        with client.watch(CONFIG_MAPS, "shop", resource_version=version) as watch:
            reading = thread.submit(list, watch)
            time.sleep(0.3)
            began = time.monotonic()
            watch.close()
            watch.close()
            assert reading.result(timeout=5) == []
        assert time.monotonic() - began < 0.5


def test_rights_and_served_kinds_can_be_asked_for(client: KubeClient, anna: KubeClient) -> None:
    assert client.allowed("patch", DEPLOYMENTS, "shop", subresource="scale")
    assert not anna.allowed("list", PODS, "shop")
    assert [client.discover(kind) for kind in (PODS, HPAS, VIRTUAL_SERVICES, UNSERVED)] == [True, True, True, False]
    client.requests.clear()
    assert client.discover(VIRTUAL_SERVICES)
    assert not client.requests  # known for a minute


@pytest.mark.parametrize(
    ("call", "text"),
    [
        pytest.param(lambda c: c.list(PODS, "shop"), "forbidden: list pods in shop, as anna", id="list"),
        pytest.param(
            lambda c: c.list(VIRTUAL_SERVICES),
            "forbidden: list virtualservices.networking.istio.io in all namespaces, as anna",
            id="all-namespaces",
        ),
        pytest.param(
            lambda c: c.replace(DEPLOYMENTS, "shop", "api", {"kind": "Deployment"}, subresource="status"),
            "forbidden: update deployments.apps/status api in shop, as anna",
            id="subresource",
        ),
        pytest.param(
            lambda c: c.get(NAMESPACES, "", "shop"), "forbidden: get namespaces shop, as anna", id="no-namespace"
        ),
    ],
)
def test_what_is_forbidden_is_told_as_verb_resource_and_namespace(
    anna: KubeClient, call: Callable[[KubeClient], object], text: str
) -> None:
    with pytest.raises(KubeForbiddenError) as caught:
        call(anna)
    assert str(caught.value) == text


def test_a_rotated_token_is_read_anew_when_the_old_one_is_refused(control_plane: Bench) -> None:
    rotating = control_plane.plane.rotating_token("canaryd", "canaryd")
    client = KubeClient.connect(kubeconfig=str(rotating.kubeconfig))
    assert client.allowed("list", PODS, "shop") in (True, False)  # it is known
    old = rotating.file.read_text()
    rotating.rotate()
    former = control_plane.plane.client_of(old)
    wait_until(lambda: _refused(former), "the revoked token to be refused", timeout=60, every=0.5)
    former.close()
    client.requests.clear()
    client.allowed("list", PODS, "shop")
    assert client.requests["create", "selfsubjectaccessreviews"] == 2  # refused once, and again with the new token
    client.allowed("list", PODS, "shop")
    assert client.requests["create", "selfsubjectaccessreviews"] == 3
    client.close()


def _refused(client: Client) -> bool:
    try:
        client.list("configmaps")
    except ApiError as e:
        return e.status == 401
    return False


def test_a_token_that_nobody_knows_is_told_without_being_shown(control_plane: Bench, tmp_path: Any) -> None:
    token = "guessed-by-somebody"
    text = control_plane.kubeconfig().read_text()
    admin = control_plane.plane.identities["admin"].token
    (tmp_path / "kubeconfig").write_text(text.replace(admin, token))
    client = KubeClient.connect(kubeconfig=str(tmp_path / "kubeconfig"))
    with pytest.raises(KubeUnauthorizedError, match="unauthorized") as caught:
        client.list(PODS, "shop")
    assert token not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert client.requests == {("list", "pods"): 2}
    client.close()


def test_a_server_that_hangs_costs_no_more_than_the_timeout_and_a_write_is_in_doubt(control_plane: Bench) -> None:
    client = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig()), timeout=timedelta(seconds=1))
    client.list(PODS, "shop")
    control_plane.plane.apiserver.freeze()
    try:
        for call, doubt in (
            (lambda: client.list(PODS, "shop"), ""),
            (lambda: client.create(CONFIG_MAPS, "shop", config_map("doubtful")), "whether it was done is not known"),
        ):
            began = time.monotonic()
            with pytest.raises(KubeUnreachableError, match=f"no complete answer within 1 s.*{doubt}"):
                call()
            assert time.monotonic() - began < 1.5
    finally:
        control_plane.plane.apiserver.thaw()
    assert "has not answered for" in client.reach.trouble()
    client.list(PODS, "shop")
    assert client.reach.trouble() == ""
    assert client.requests["create", "configmaps"] == 1  # a write is sent once
    client.close()


def test_a_server_that_is_away_is_told_and_a_write_was_never_sent(control_plane: Bench, client: KubeClient) -> None:
    client.list(PODS, "shop")
    control_plane.plane.kill_apiserver()
    try:
        with pytest.raises(
            KubeUnreachableError, match=r"list pods in shop: https://127.0.0.1:6443: connection refused$"
        ):
            client.list(PODS, "shop")
        with pytest.raises(KubeUnreachableError, match="connection refused; nothing was sent"):
            client.create(CONFIG_MAPS, "shop", config_map("unsent"))
    finally:
        control_plane.plane.start_apiserver()
    client.create(CONFIG_MAPS, "shop", config_map("unsent"))
    client.delete(CONFIG_MAPS, "shop", "unsent")

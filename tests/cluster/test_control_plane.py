"""The bench's own promises about its control plane: tests of canaryd may lean on them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from bench import ApiError, Bench, Client

from canaryd.demo.processes import wait_until


def config_map(name: str, text: str = "") -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "shop"},
        "data": {"k": text},
    }


def test_the_real_kubectl_speaks_to_the_real_server(control_plane: Bench) -> None:
    version = control_plane.kubectl("version", "-o", "json").stdout
    assert version.count('"gitVersion": "v1.37.2"') == 2  # client and server


def test_a_person_without_rights_is_refused_and_a_bound_one_is_not(control_plane: Bench) -> None:
    anna = control_plane.client("anna")
    with pytest.raises(ApiError) as refused:
        anna.list("configmaps")
    assert refused.value.status == 403
    assert 'User "anna" cannot list resource "configmaps"' in refused.value.message
    control_plane.kubectl("create", "role", "read-maps", "--verb=list", "--resource=configmaps", "-n", "shop")
    control_plane.kubectl("create", "rolebinding", "read-maps", "--role=read-maps", "--user=anna", "-n", "shop")
    wait_until(lambda: anna.can("list", "configmaps"), "the new binding to be heard of")
    anna.list("configmaps")
    with pytest.raises(ApiError):
        anna.list("configmaps", "canaryd")


def test_a_stranger_is_not_let_in(control_plane: Bench) -> None:
    stranger = control_plane.plane.client_of("guessed")
    with pytest.raises(ApiError) as refused:
        stranger.list("configmaps")
    stranger.close()
    assert refused.value.status == 401


def test_the_definitions_of_istio_refuse_an_unknown_field(control_plane: Bench) -> None:
    wrong = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "typo", "namespace": "shop"},
        "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}, "wieght": 5}]}]},
    }
    path = "/apis/networking.istio.io/v1/namespaces/shop/virtualservices"
    with pytest.raises(ApiError, match="wieght"):
        control_plane.client().request("POST", path, wrong, fieldValidation="Strict")


def test_a_killed_server_comes_back_with_every_object_and_answers_old_watches_with_gone(control_plane: Bench) -> None:
    admin = control_plane.client()
    before = admin.apply(config_map("kept", "here"))
    old = before["metadata"]["resourceVersion"]
    admin.apply(config_map("kept", "there"))
    control_plane.plane.expire_watches()
    after = admin.get("configmaps", "kept")
    assert after["data"] == {"k": "there"}
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    first = next(iter(admin.watch("configmaps", version=old, seconds=5)))
    assert (first["type"], first["object"]["code"]) == ("ERROR", 410)


def test_a_frozen_etcd_stops_writes_and_lets_them_through_afterwards(control_plane: Bench) -> None:
    impatient = control_plane.plane.new_client("admin", timeout=1.0)
    with control_plane.plane.etcd_frozen(), pytest.raises(OSError, match="timed out"):
        impatient.apply(config_map("slow"))
    impatient.close()
    control_plane.client().apply(config_map("slow", "now"))
    assert control_plane.client().get("configmaps", "slow")["data"] == {"k": "now"}


def test_the_audit_log_counts_each_identitys_requests_and_keeps_what_was_written(control_plane: Bench) -> None:
    control_plane.kubectl("create", "clusterrolebinding", "gitops", "--clusterrole=cluster-admin", "--user=gitops")
    gitops = control_plane.client("gitops")
    wait_until(lambda: gitops.can("create", "virtualservices"), "the new binding to be heard of")
    started = datetime.now(UTC)
    service = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "audited", "namespace": "shop"},
        "spec": {"hosts": ["audited"], "http": [{"route": [{"destination": {"host": "audited"}}]}]},
    }
    gitops.create(service)
    for _ in range(3):
        gitops.get("virtualservices", "audited")
    control_plane.client().get("virtualservices", "audited")  # somebody else's request
    counts = control_plane.audit.counts("gitops", since=started)
    assert counts == {("create", "virtualservices"): 1, ("get", "virtualservices"): 3}
    (write,) = [request for request in control_plane.audit.requests("gitops", started) if request.is_write]
    assert (write.name, write.status, write.body["spec"]) == ("audited", 201, service["spec"])
    assert control_plane.plane.request_totals()["GET", "virtualservices"] >= 4


def test_a_rotated_token_works_at_once_and_the_one_before_ends(control_plane: Bench) -> None:
    rotating = control_plane.plane.rotating_token("canaryd", "canaryd")
    who = ("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", "--kubeconfig", str(rotating.kubeconfig))
    assert control_plane.kubectl(*who).stdout == "system:serviceaccount:canaryd:canaryd"
    old = rotating.file.read_text()
    rotating.rotate()
    assert rotating.file.read_text() != old
    assert control_plane.kubectl(*who).stdout == "system:serviceaccount:canaryd:canaryd"
    former = control_plane.plane.client_of(old)
    wait_until(lambda: _is_refused(former), "the revoked token to be refused", timeout=60, every=0.5)
    former.close()


def _is_refused(client: Client) -> bool:
    try:
        client.list("configmaps")
    except ApiError as e:
        return e.status == 401  # 403 would mean: known, and without rights
    return False

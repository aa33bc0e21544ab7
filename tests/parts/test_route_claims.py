"""Canaries that must not run because of what else is routed; documents in, sentences out."""

from __future__ import annotations

from typing import Any

import pytest

from canaryd.adapters.route_claims import conflicts
from canaryd.adapters.route_stamps import STAMP, Stamp
from canaryd.policy import Canary, parse_canary

Object = dict[str, Any]


def canary(name: str, route: Object, *, deployment: str = "", namespace: str = "shop") -> Canary:
    document = {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
        "spec": {"workloads": {"deployment": {"name": deployment or name}}, "route": route},
    }
    return parse_canary(document)


def istio(*names: str, **more: Any) -> Object:
    return {"istio": {"virtualServices": list(names), **more}}


def gateway_api(*names: str) -> Object:
    return {"gatewayApi": {"httpRoutes": list(names)}}


def virtual_service(name: str, *hosts: str, namespace: str = "shop", **spec: Any) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"kind": "VirtualService", "metadata": metadata, "spec": {"hosts": list(hosts), **spec}}


def http_route(name: str, *parents: Object, hostnames: tuple[str, ...] = (), namespace: str = "shop") -> Object:
    spec = {"parentRefs": list(parents), "hostnames": list(hostnames)}
    return {"kind": "HTTPRoute", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def service(name: str) -> Object:
    return {"group": "", "kind": "Service", "name": name}


GATE = {"name": "gate"}
API = canary("api", istio("api"))


def stamped(obj: Object, by: Canary) -> Object:
    text = str(Stamp(by.key, by.metadata.uid, 1, 0, by.name))
    return {**obj, "metadata": {**obj["metadata"], "annotations": {STAMP: text}}}


@pytest.mark.parametrize(
    ("mesh", "route"),
    [
        (virtual_service("api", "api"), http_route("api", service("api"))),
        (virtual_service("api", "api.shop.svc.cluster.local"), http_route("x", service("api"))),
        (virtual_service("api", "api", gateways=["mesh", "g"]), http_route("api", service("other"), service("api"))),
        (
            virtual_service("api", "a.example.com", gateways=["g"]),
            http_route("api", GATE, hostnames=("a.example.com",)),
        ),
        (
            virtual_service("api", "a.example.com", gateways=["g"]),
            http_route("api", GATE, hostnames=("*.example.com",)),
        ),
        (
            virtual_service("api", "*.example.com", gateways=["g"]),
            http_route("api", GATE, hostnames=("a.example.com",)),
        ),
    ],
    ids=["short", "in-full", "one-of-two", "at-gateways", "wildcard-there", "wildcard-here"],
)
def test_two_kinds_of_route_for_one_host_stop_the_canary_of_either(mesh: Object, route: Object) -> None:
    name = route["metadata"]["name"]
    for one in (API, canary("api", gateway_api(name))):
        (told,) = conflicts([one], [mesh], [route])[one.key]
        assert "VirtualService shop/api" in told
        assert f"HTTPRoute shop/{name}" in told
        assert "one must go" in told


@pytest.mark.parametrize(
    ("mesh", "route"),
    [
        (virtual_service("api", "api"), http_route("web", service("web"))),
        (virtual_service("api", "api"), http_route("api", service("api"), namespace="other")),
        (virtual_service("api", "api", gateways=["g"]), http_route("api", service("api"))),
        (virtual_service("api", "*", gateways=["g"]), http_route("api", GATE, hostnames=("a.example.com",))),
        (virtual_service("api", "a.example.com", gateways=["g"]), http_route("api", GATE)),
        (
            virtual_service("api", "b.example.com", gateways=["g"]),
            http_route("api", GATE, hostnames=("a.example.com",)),
        ),
        (virtual_service("api"), http_route("api", service("api"))),
    ],
    ids=["other-host", "other-namespace", "gateway-and-mesh", "all-here", "all-there", "siblings", "delegate"],
)
def test_routes_that_do_not_meet_are_no_conflict(mesh: Object, route: Object) -> None:
    assert conflicts([API], [mesh], [route]) == {}


def test_two_canaries_for_one_virtual_service_are_both_told_before_either_has_begun() -> None:
    other = canary("other", istio("api"))
    found = conflicts([API, other], [virtual_service("api", "api", gateways=["g"])], [])
    told = "VirtualService shop/api is routed by canary {}, too; one Canary must have it alone"
    assert found == {"shop/api": (told.format("other"),), "shop/other": (told.format("api"),)}


def test_a_second_canary_cannot_stop_the_one_that_already_routes() -> None:
    other = canary("other", istio("api"))
    found = conflicts([API, other], [stamped(virtual_service("api", "api"), API)], [])
    assert set(found) == {"shop/other"}


def test_the_stamp_of_a_canary_that_was_made_anew_gives_no_precedence() -> None:
    other = canary("other", istio("api"))
    old = API.model_copy(update={"metadata": API.metadata.model_copy(update={"uid": "before"})})
    assert set(conflicts([API, other], [stamped(virtual_service("api", "api"), old)], [])) == {"shop/api", "shop/other"}


def test_two_canaries_of_one_host_in_the_mesh_or_of_the_same_services_are_refused() -> None:
    one = canary("one", istio("one"))
    two = canary("two", istio("two"))
    mesh = [virtual_service("one", "api"), virtual_service("two", "api.shop")]
    (told,) = conflicts([one, two], mesh, [])["shop/one"]
    assert told.startswith("the host api.shop.svc.cluster.local is routed by canary two")
    same = canary("two", gateway_api("two"), deployment="one")
    assert "the destination one-stable" in conflicts([one, same], [], [])["shop/two"][0]


def test_canaries_that_share_a_gateway_host_by_different_paths_may_run() -> None:
    cart = canary("cart", istio("cart"))
    pay = canary("pay", istio("pay"))
    objects = [virtual_service(name, "shop.example.com", gateways=["g"]) for name in ("cart", "pay")]
    assert conflicts([cart, pay], objects, []) == {}


def test_two_pairs_of_subsets_of_one_service_may_belong_to_two_canaries() -> None:
    def of(name: str) -> Canary:
        old, new = ({"host": "api", "subset": f"{name}-{age}"} for age in ("old", "new"))
        return canary(name, istio(name, stable=old, canary=new))

    assert conflicts([of("a"), of("b")], [], []) == {}
    same = of("a").model_copy(update={"metadata": of("b").metadata})
    assert "the destination api.shop.svc.cluster.local, subset a-old" in conflicts([of("a"), same], [], [])["shop/b"][1]


def test_canaries_of_two_namespaces_never_meet() -> None:
    far = canary("api", istio("api"), namespace="other")
    objects = [virtual_service("api", "api"), virtual_service("api", "api", namespace="other")]
    assert conflicts([API, far], objects, []) == {}


def test_a_thousand_canaries_are_compared_in_a_moment() -> None:
    many = [canary(f"c{i}", istio(f"c{i}")) for i in range(1000)]
    objects = [virtual_service(f"c{i}", f"c{i}") for i in range(1000)]
    assert conflicts(many, objects, []) == {}

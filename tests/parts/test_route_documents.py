"""What canaryd reads in VirtualServices and HTTPRoutes, and what its patches change; no server is needed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_patch import TestFailedError, patched
from random_routes import plain_routes, split_routes, virtual_services
from ruamel.yaml import YAML

from canaryd.adapters.http_route import HttpRouteForm, gateway_api_arms, refusal
from canaryd.adapters.route_patches import adopting, remedy, restoring, with_weight
from canaryd.adapters.route_splits import Split, read
from canaryd.adapters.route_stamps import (
    ADOPTED,
    STAMP,
    Stamp,
    check_fence,
    editor,
    own_stamp,
    without_details,
)
from canaryd.adapters.virtual_service import VirtualServiceForm, full_host, istio_arms
from canaryd.errors import FenceError, RouteError
from canaryd.policy import Destination, GatewayApi, Istio

Object = dict[str, Any]
ISTIO = VirtualServiceForm()
GATEWAY = HttpRouteForm()
REF = ({"name": "api"},)
ARMS = istio_arms(Istio(virtual_services=REF), "shop", "api-stable", "api")
SERVICES = gateway_api_arms(GatewayApi(http_routes=REF), "shop", "api-stable", "api")
UID = "u-1"


def stamp(weight: int = 0, version: int = 1) -> Stamp:
    return Stamp("shop/api", UID, version, weight, "api")


def to(host: str, weight: int | None = None, **destination: Any) -> Object:
    entry: Object = {"destination": {"host": host, **destination}}
    return entry if weight is None else {**entry, "weight": weight}


def service(*routes: Object, **spec: Any) -> Object:
    return {
        "kind": "VirtualService",
        "metadata": {"name": "api", "namespace": "shop"},
        "spec": {"hosts": ["api"], "http": list(routes), **spec},
    }


SPLIT = {"name": "primary", "route": [to("api-stable", 90), to("api-canary", 10)]}


def stripped(obj: Object) -> Object:
    """Without all that canaryd may change: weights of the two, and its annotations."""
    obj = copy.deepcopy(obj)
    notes = obj["metadata"].get("annotations") or {}
    obj["metadata"]["annotations"] = {k: v for k, v in notes.items() if k not in (STAMP, ADOPTED)}
    for place in ISTIO.places(obj):
        if {ARMS.stable, ARMS.canary} <= {ISTIO.target(e, "shop") for e in place.entries}:
            for entry in obj["spec"]["http"][place.index]["route"]:
                entry.pop("weight", None)
    return obj


# ── which routes are meant, and what they say ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    ["api", "api.shop", "api.shop.svc", "api.shop.svc.cluster.local", "API.shop.svc.cluster.local."],
)
def test_every_spelling_of_a_service_is_the_same_service(host: str) -> None:
    assert full_host(host, "shop") == "api.shop.svc.cluster.local"


@pytest.mark.parametrize("host", ["api.other", "api.other.svc", "api.shop.example.com", "example.com", "*", "*.shop"])
def test_what_is_another_host_stays_one(host: str) -> None:
    assert full_host(host, "shop") != "api.shop.svc.cluster.local"


@pytest.mark.parametrize("host", ["api.other", "api.other.svc", "api.other.svc.cluster.local"])
def test_a_destination_in_another_namespace_is_refused(host: str) -> None:
    with pytest.raises(RouteError, match=r'canary\.host: "api\.other.*" is in namespace other'):
        istio_arms(Istio(virtual_services=REF, canary=Destination(host=host)), "shop", "api-stable", "api")


def test_a_host_outside_the_cluster_may_be_a_destination() -> None:
    given = Istio(virtual_services=REF, canary=Destination(host="canary.api.example.com"))
    obj = service({"route": [to("api-stable", 70), to("canary.api.example.com", 30)]})
    assert read(ISTIO, obj, (), istio_arms(given, "shop", "api-stable", "api")).percent(None) == 30


def test_two_subsets_of_the_service_itself_are_a_split() -> None:
    given = Istio(virtual_services=REF, stable=Destination(subset="old"), canary=Destination(subset="new"))
    arms = istio_arms(given, "shop", "api-stable", "api")
    obj = service({"route": [to("api", 80, subset="old"), to("api.shop", 20, subset="new")]})
    assert read(ISTIO, obj, (), arms).percent(None) == 20
    plain = service({"route": [to("api")]})
    made = patched(plain, adopting(ISTIO, plain, read(ISTIO, plain, (), arms), arms, stamp()))
    assert made["spec"]["http"][0]["route"] == [to("api", 100, subset="old"), to("api", 0, subset="new")]


def test_stable_and_canary_that_are_the_same_destination_are_refused() -> None:
    given = Istio(virtual_services=REF, canary=Destination(host="api-stable.shop"))
    with pytest.raises(RouteError, match="both api-stable"):
        istio_arms(given, "shop", "api-stable", "api")


@pytest.mark.parametrize(
    ("weights", "percent"),
    [((90, 10), 10), ((None, 10), 100), ((10, None), 0), ((3, 1), 25), ((999, 1), 1), ((1, 999), 100), ((2, 1), 34)],
)
def test_weights_are_relative_and_a_missing_one_is_zero_among_several(
    weights: tuple[int | None, int | None], percent: int
) -> None:
    obj = service({"route": [to("api-stable", weights[0]), to("api-canary", weights[1])]})
    assert read(ISTIO, obj, (), ARMS).percent(None) == percent


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 100))
def test_only_a_split_that_is_exactly_the_expected_one_is_reported_as_it(stable: int, canary: int, wanted: int) -> None:
    if stable + canary == 0:
        return
    obj = service({"route": [to("api-stable", stable), to("api-canary", canary)]})
    seen = read(ISTIO, obj, (), ARMS).percent(wanted)
    assert seen is not None
    assert (seen == wanted) == (100 * canary == wanted * (stable + canary))
    assert abs(seen - 100 * canary / (stable + canary)) < 1


def test_of_routes_that_disagree_the_largest_that_is_not_expected_is_told() -> None:
    obj = service(*({"route": [to("api-stable", 100 - w), to("api-canary", w)]} for w in (10, 30, 20)))
    assert read(ISTIO, obj, (), ARMS).percent(30) == 20
    assert read(ISTIO, obj, (), ARMS).percent(10) == 30


def test_a_named_route_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(RouteError, match=r'there is no route "secondary"; there is "primary"'):
        read(ISTIO, service(SPLIT), ("secondary",), ARMS)


def test_a_named_route_without_our_destinations_is_refused_and_says_where_it_sends() -> None:
    with pytest.raises(RouteError, match='route "web" does not send to api-stable, only to web; add it with weight 0'):
        read(ISTIO, service(SPLIT, {"name": "web", "route": [to("web")]}), ("web",), ARMS)


def test_named_routes_alone_are_meant() -> None:
    other = {"name": "other", "route": [to("api-stable", 40), to("api-canary", 60)]}
    layout = read(ISTIO, service(SPLIT, other), ("primary",), ARMS)
    assert [split.place.name for split in layout.splits] == ["primary"]


def test_a_third_destination_is_refused_with_its_share() -> None:
    obj = service({"name": "primary", "route": [to("api-stable", 80), to("api-canary", 10), to("x", 10)]})
    with pytest.raises(RouteError, match='route "primary" also sends 10 % to x; canaryd splits between two'):
        read(ISTIO, obj, (), ARMS)


def test_the_same_destination_twice_is_ambiguous() -> None:
    with pytest.raises(RouteError, match="names api-canary twice"):
        read(ISTIO, service({"route": [to("api-stable", 80), to("api-canary", 10), to("api-canary", 10)]}), (), ARMS)


def test_nobody_is_served_by_two_zeros_and_a_write_ends_that() -> None:
    obj = service({"route": [to("api-stable", 0), to("api-canary", 0)]})
    layout = read(ISTIO, obj, (), ARMS)
    with pytest.raises(RouteError, match=r"http\[0\]: both weights are 0"):
        layout.percent(None)
    healed = patched(obj, with_weight(obj, layout, 0, stamp()))
    assert read(ISTIO, healed, (), ARMS).percent(None) == 0


@pytest.mark.parametrize("section", ["tcp", "tls"])
def test_connections_to_our_destinations_are_refused_with_the_reason(section: str) -> None:
    obj = service(SPLIT, **{section: [{"route": [to("api-canary.shop")]}]})
    with pytest.raises(RouteError, match=rf"connections to api-canary\.shop in spec\.{section}"):
        read(ISTIO, obj, (), ARMS)


def test_connections_to_somebody_else_are_none_of_our_business() -> None:
    assert read(ISTIO, service(SPLIT, tcp=[{"route": [to("api")]}]), (), ARMS).percent(None) == 10


@pytest.mark.parametrize(
    ("namespace", "advice"),
    [
        ("", r"VirtualService shop/inner; name that one in spec\.route\.istio"),
        ("web", "only in its own namespace, shop"),
    ],
)
@pytest.mark.parametrize("names", [(), ("out",)])
def test_a_root_that_only_delegates_says_what_to_name(namespace: str, advice: str, names: tuple[str, ...]) -> None:
    delegate = {"name": "inner", **({"namespace": namespace} if namespace else {})}
    with pytest.raises(RouteError, match=rf'route "out" delegates to .*{advice}'):
        read(ISTIO, service({"name": "out", "delegate": delegate}), names, ARMS)


def test_a_delegate_without_hosts_is_split_like_any_other() -> None:
    obj = service(SPLIT)
    del obj["spec"]["hosts"]
    assert read(ISTIO, obj, (), ARMS).percent(None) == 10


@pytest.mark.parametrize(
    "spec", [{}, {"http": None}, {"http": "x"}, {"http": [None, {"route": None}, {"route": [{}]}]}]
)
def test_an_object_of_any_shape_is_an_error_and_no_crash(spec: Object) -> None:
    with pytest.raises(RouteError, match="no route sends to both api-stable and api-canary, or to api alone"):
        read(ISTIO, {"metadata": {}, "spec": spec}, (), ARMS)


# ── what patches change ──────────────────────────────────────────────────────────────────────────────────────


@given(virtual_services(split_routes()), st.integers(0, 100))
def test_a_new_weight_changes_weights_and_the_stamp_and_nothing_else(obj: Object, weight: int) -> None:
    before = copy.deepcopy(obj)
    after = patched(obj, with_weight(obj, read(ISTIO, obj, (), ARMS), weight, stamp(weight)))
    assert obj == before
    assert stripped(after) == stripped(before)
    layout = read(ISTIO, after, (), ARMS)
    assert {split.percent(None) for split in layout.splits} == {weight}
    assert {sum(split.weights) for split in layout.splits} == {100}
    assert own_stamp(after, "shop/api", UID) == stamp(weight)
    assert with_weight(after, layout, weight, stamp(weight)) == []  # nothing is left to be written


@given(virtual_services(st.one_of(plain_routes)), st.integers(0, 100))
def test_what_was_adopted_is_restored_to_the_letter(obj: Object, weight: int) -> None:
    adopted = patched(obj, adopting(ISTIO, obj, read(ISTIO, obj, (), ARMS), ARMS, stamp()))
    layout = read(ISTIO, adopted, (), ARMS)
    assert not layout.plains
    assert {split.percent(None) for split in layout.splits} == {0}
    weighted = patched(adopted, with_weight(adopted, layout, weight, stamp(weight, 2)))
    operations, was_adopted = restoring(ISTIO, weighted, ARMS, "shop/api")
    restored = patched(weighted, operations)
    assert was_adopted
    assert restored["spec"] == obj["spec"]
    assert restored["metadata"].pop("annotations", {}) == obj["metadata"].pop("annotations", {})
    assert restored["metadata"] == obj["metadata"]


@pytest.mark.parametrize("since", ["its spec was changed", "it was made anew", "it was stamped", "its stamp is gone"])
@pytest.mark.parametrize("before", [None, {}, {"team": "shop"}, {STAMP: str(stamp(5))}])
def test_what_happened_to_the_object_since_it_was_read_makes_the_patch_fail(since: str, before: Any) -> None:
    obj = service(SPLIT)
    obj["metadata"] |= {"uid": "1", "generation": 7, **({} if before is None else {"annotations": before})}
    operations = with_weight(obj, read(ISTIO, obj, (), ARMS), 50, stamp(50, 2))
    patched(obj, operations)
    metadata = copy.deepcopy(obj["metadata"])
    if since == "its spec was changed":
        metadata["generation"] = 8
    elif since == "it was made anew":
        metadata["uid"] = "2"
    elif since == "it was stamped":
        metadata["annotations"] = {**(before or {}), STAMP: str(stamp(5, 9))}
    elif STAMP in (before or {}):
        metadata["annotations"] = {}
    else:
        return
    with pytest.raises(TestFailedError):
        patched({**obj, "metadata": metadata}, operations)


def test_a_stamp_that_people_wrote_is_not_compared_and_does_not_hinder() -> None:
    obj = service(SPLIT)
    obj["metadata"]["annotations"] = {STAMP: "für <alle>"}
    operations = with_weight(obj, read(ISTIO, obj, (), ARMS), 50, stamp(50, 2))
    assert not any(o["op"] == "test" for o in operations)
    assert own_stamp(patched(obj, operations), "shop/api", UID) == stamp(50, 2)


def test_port_and_headers_of_an_adopted_destination_are_kept_for_both() -> None:
    entry = {**to("api.shop.svc", port={"number": 8080}), "headers": {"request": {"set": {"a": "b"}}}}
    obj = service({"route": [entry]})
    made = patched(obj, adopting(ISTIO, obj, read(ISTIO, obj, (), ARMS), ARMS, stamp()))
    stable, canary = made["spec"]["http"][0]["route"]
    assert stable == {**entry, "destination": {"host": "api-stable.shop.svc", "port": {"number": 8080}}, "weight": 100}
    assert canary == {**entry, "destination": {"host": "api-canary.shop.svc", "port": {"number": 8080}}, "weight": 0}


def adopted_service() -> Object:
    obj = service({"name": "primary", "route": [to("api", port={"number": 80})]}, {"route": [to("api")]})
    return patched(obj, adopting(ISTIO, obj, read(ISTIO, obj, (), ARMS), ARMS, stamp()))


def test_what_others_changed_in_an_adopted_route_survives_its_restoration() -> None:
    obj = adopted_service()
    first = obj["spec"]["http"][0]
    first["timeout"] = "3s"
    for entry in first["route"]:
        entry["destination"]["port"] = {"number": 8080}
    obj["metadata"]["annotations"]["team"] = "shop"
    operations, _ = restoring(ISTIO, obj, ARMS, "shop/api")
    restored = patched(obj, operations)
    assert restored["spec"]["http"] == [
        {"name": "primary", "timeout": "3s", "route": [to("api", port={"number": 8080})]},
        {"route": [to("api")]},
    ]
    assert restored["metadata"]["annotations"] == {"team": "shop"}


def test_a_route_that_moved_since_it_was_adopted_is_restored_where_it_is() -> None:
    obj = adopted_service()
    obj["spec"]["http"] = [{"route": [to("web")]}, {"route": [to("web")]}, *reversed(obj["spec"]["http"])]
    operations, _ = restoring(ISTIO, obj, ARMS, "shop/api")
    hosts = [[e["destination"]["host"] for e in r["route"]] for r in patched(obj, operations)["spec"]["http"]]
    assert hosts == [["web"], ["web"], ["api"], ["api"]]


def test_a_route_that_is_gone_or_sends_elsewhere_now_does_not_hinder_the_restoration() -> None:
    obj = adopted_service()
    obj["spec"]["http"] = [{"name": "primary", "route": [to("web")]}]
    operations, was_adopted = restoring(ISTIO, obj, ARMS, "shop/api")
    restored = patched(obj, operations)
    assert was_adopted
    assert restored["spec"] == obj["spec"]
    assert restored["metadata"]["annotations"] == {}


def test_a_destination_that_was_added_since_keeps_its_share_when_the_route_is_restored() -> None:
    obj = adopted_service()
    obj["spec"]["http"][0]["route"] = [to("api-canary", 20), to("x", 50), to("api-stable", 30)]
    operations, _ = restoring(ISTIO, obj, ARMS, "shop/api")
    assert patched(obj, operations)["spec"]["http"][0]["route"] == [to("x", 50), to("api", 50)]


def test_a_tool_that_put_an_adopted_route_back_makes_it_adoptable_again_beside_the_others() -> None:
    obj = adopted_service()
    obj["spec"]["http"][0]["route"] = [to("api", port={"number": 80})]
    layout = read(ISTIO, obj, (), ARMS)
    assert [place.name for place in layout.plains] == ["primary"]
    again = patched(obj, adopting(ISTIO, obj, layout, ARMS, stamp(0, 5)))
    assert not read(ISTIO, again, (), ARMS).plains
    operations, _ = restoring(ISTIO, again, ARMS, "shop/api")
    assert all(len(r["route"]) == 1 for r in patched(again, operations)["spec"]["http"])


def test_a_plain_route_beside_a_split_that_people_wrote_is_left_alone() -> None:
    layout = read(ISTIO, service(SPLIT, {"route": [to("api")]}), (), ARMS)
    assert (len(layout.splits), layout.plains) == (1, ())


# ── stamps, editors, remedies ────────────────────────────────────────────────────────────────────────────────


def stamped(text: str) -> Object:
    return {"metadata": {"namespace": "shop", "name": "api", "annotations": {STAMP: text}}}


def test_a_stamp_is_compact_json_and_comes_back() -> None:
    text = str(stamp(25, 17))
    assert text == '{"canary":"shop/api","uid":"u-1","version":17,"weight":25,"workload":"api"}'
    assert own_stamp(stamped(text), "shop/api", UID) == stamp(25, 17)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "[]", "null", "{}", "[" * 5000, "x" * 100_000,
        '{"canary":"shop/api","uid":"u-1","version":"17","weight":25,"workload":"api"}',
        '{"canary":"shop/api","uid":"u-1","version":true,"weight":25,"workload":"api"}',
        '{"canary":"shop/api","uid":"u-1","version":-1,"weight":25,"workload":"api"}',
        '{"canary":"shop/api","uid":"u-1","version":1,"weight":101,"workload":"api"}',
        '{"canary":"shop/api","uid":7,"version":1,"weight":1,"workload":"api"}',
    ],
)  # fmt: skip
def test_an_annotation_that_canaryd_did_not_write_is_no_stamp(text: str) -> None:
    assert own_stamp(stamped(text), "shop/api", UID) is None


def test_the_stamp_of_an_earlier_canary_of_that_name_is_no_fence() -> None:
    assert own_stamp(stamped(str(stamp(25, 17))), "shop/api", "u-2") is None


def test_an_object_that_another_canary_stamped_is_told_with_what_to_do() -> None:
    with pytest.raises(RouteError, match=r"belongs to canary shop/api; .* remove the annotation canaryd\.io/stamp"):
        own_stamp(stamped(str(stamp())), "shop/other", UID)


def test_a_stamp_that_was_copied_from_another_namespace_counts_as_none() -> None:
    assert own_stamp(stamped(str(stamp())), "web/api", UID) is None


def test_a_newer_stamp_shuts_out_an_older_version_only() -> None:
    check_fence(None, 0)
    check_fence(stamp(5, 7), 7)
    with pytest.raises(FenceError, match=r"state version 7 has already routed \(5 % to api\)"):
        check_fence(stamp(5, 7), 6)


def managed(manager: str, time: str, field: str = "f:http", **more: Any) -> Object:
    return {"manager": manager, "time": time, "fieldsV1": {"f:spec": {field: {}}}, **more}


def test_the_editor_is_the_last_other_one_that_wrote_routes() -> None:
    fields = [
        managed("helm", "2026-11-24T14:00:00Z", "f:hosts"),
        managed("kubectl-edit", "2026-11-24T14:02:11Z"),
        managed("argocd", "2026-11-24T14:01:00Z"),
        managed("canaryd", "2026-11-24T14:05:00Z"),
        managed("istiod", "2026-11-24T14:06:00Z", subresource="status"),
        managed("labeller", "2026-11-24T14:07:00Z", "f:hosts"),
        {"manager": "kubectl-label", "time": "2026-11-24T14:08:00Z", "fieldsV1": {"f:metadata": {}}},
        managed("odd", "yesterday"),
    ]
    obj = {"metadata": {"managedFields": fields}}
    assert editor(obj, "http", "canaryd") == "kubectl-edit, 14:02:11 UTC"
    assert editor(without_details(obj), "http", "canaryd") == "kubectl-edit, 14:02:11 UTC"
    assert editor({"metadata": {"managedFields": fields[:1]}}, "http", "canaryd") == "helm, 14:00:00 UTC"
    assert editor({"metadata": {}}, "http", "canaryd") == ""


def told(text: str) -> Object:
    """The ignoreDifferences of a remedy, as Argo CD would read them."""
    start, end = text.index("ignoreDifferences:"), text.index(" and the sync option")
    rules: list[Object] = YAML(typ="safe").load(text[start:end])["ignoreDifferences"]
    return rules[0]


def test_the_remedy_names_the_weights_of_exactly_the_meant_routes() -> None:
    obj = service({"route": [to("web")]}, {"name": 'it\'s "it"', "route": SPLIT["route"]}, {"route": SPLIT["route"]})
    rule = told(remedy("networking.istio.io", "VirtualService", obj, read(ISTIO, obj, (), ARMS)))
    assert rule == {
        "group": "networking.istio.io",
        "kind": "VirtualService",
        "namespace": "shop",
        "name": "api",
        "jqPathExpressions": [
            '.spec.http[] | select(.name == "it\'s \\"it\\"") | .route[].weight',
            ".spec.http[2].route[].weight",
        ],
    }


def test_the_remedy_of_an_adopted_route_names_its_destinations() -> None:
    obj = adopted_service()
    rule = told(remedy("networking.istio.io", "VirtualService", obj, read(ISTIO, obj, (), ARMS)))
    assert rule["jqPathExpressions"] == ['.spec.http[] | select(.name == "primary") | .route', ".spec.http[1].route"]


# ── HTTPRoutes ───────────────────────────────────────────────────────────────────────────────────────────────


def ref(name: str, weight: int | None = None, **more: Any) -> Object:
    entry = {"name": name, "port": 80, **more}
    return entry if weight is None else {**entry, "weight": weight}


def rules(*entries: list[Object]) -> Object:
    return {
        "kind": "HTTPRoute",
        "metadata": {"name": "api", "namespace": "shop", "generation": 3},
        "spec": {"rules": [{"name": f"r{i}", "backendRefs": e} for i, e in enumerate(entries)]},
    }


@pytest.mark.parametrize(
    ("weights", "percent"), [((90, 10), 10), ((None, None), 50), ((None, 0), 0), ((0, None), 100), ((999_999, 1), 1)]
)
def test_a_backend_without_a_weight_has_one(weights: tuple[int | None, int | None], percent: int) -> None:
    obj = rules([ref("api-stable", weights[0]), ref("api-canary", weights[1])])
    assert read(GATEWAY, obj, (), SERVICES).percent(None) == percent


@pytest.mark.parametrize(
    "other", [{"kind": "ServiceImport", "group": "multicluster.x-k8s.io"}, {"namespace": "web"}, {"group": "x"}]
)
def test_a_backend_that_is_no_service_of_the_namespace_is_not_ours(other: Object) -> None:
    with pytest.raises(RouteError, match="no route sends to both"):
        read(GATEWAY, rules([ref("api-stable", 1), ref("api-canary", 1, **other)]), (), SERVICES)


def test_a_backend_with_everything_written_out_is_ours() -> None:
    obj = rules([ref("api-stable", 1, kind="Service", group="", namespace="shop"), ref("api-canary", 1)])
    assert read(GATEWAY, obj, ("r0",), SERVICES).percent(None) == 50


def test_filters_and_weight_of_an_adopted_backend_come_back() -> None:
    entry = ref("api", 7, filters=[{"type": "RequestHeaderModifier"}])
    obj = rules([entry], [ref("web")])
    adopted = patched(obj, adopting(GATEWAY, obj, read(GATEWAY, obj, (), SERVICES), SERVICES, stamp()))
    pair = adopted["spec"]["rules"][0]["backendRefs"]
    assert pair == [{**entry, "name": "api-stable", "weight": 100}, {**entry, "name": "api-canary", "weight": 0}]
    operations, _ = restoring(GATEWAY, adopted, SERVICES, "shop/api")
    assert patched(adopted, operations)["spec"] == obj["spec"]


def with_status(*parents: list[tuple[str, str, int]]) -> Object:
    """(type, status, observedGeneration) of the conditions of each parent."""
    obj = rules([ref("api-stable", 1), ref("api-canary", 1)])
    words = {"reason": "Why", "message": "because"}
    obj["status"] = {
        "parents": [
            {
                "parentRef": {"name": f"p{i}"},
                "conditions": [{"type": t, "status": s, "observedGeneration": g, **words} for t, s, g in conditions],
            }
            for i, conditions in enumerate(parents)
        ]
    }
    return obj


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ([], None),
        ([[("Accepted", "True", 3), ("ResolvedRefs", "True", 3)]], None),
        ([[("Accepted", "False", 2)]], None),
        ([[("Accepted", "Unknown", 3)]], None),
        ([[("Accepted", "False", 3)]], "is not accepted by Gateway p0: Why: because"),
        ([[("Accepted", "False", 3)], [("Accepted", "True", 3)]], None),
        ([[("Accepted", "False", 3)], [("Accepted", "True", 2)]], "is not accepted by Gateway p0: Why: because"),
        (
            [[("Accepted", "True", 3)], [("Accepted", "True", 3), ("ResolvedRefs", "False", 3)]],
            "has references that are not resolved by Gateway p1: Why: because",
        ),
    ],
    ids=["none", "fine", "stale", "unknown", "refused", "by-one-of-two", "the-other-is-stale", "unresolved"],
)
def test_only_what_is_said_of_this_generation_refuses_a_route(parents: Any, said: str | None) -> None:
    found = refusal(with_status(*parents))
    assert (found.text if found else None) == said


def test_a_split_speaks_of_its_rule() -> None:
    layout = read(GATEWAY, rules([ref("api-stable", 1), ref("api-canary", 1)]), (), SERVICES)
    assert isinstance(layout.splits[0], Split)
    assert str(layout.splits[0].place) == 'rule "r0"'

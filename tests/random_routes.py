"""Random VirtualServices full of what canaryd must leave alone, as Istio's schema allows them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Object = dict[str, Any]
STABLE, CANARY, SERVICE = "api-stable", "api-canary", "api"

words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)
durations = st.integers(1, 90).map(lambda s: f"{s}s")
percentages = st.floats(0, 100, allow_nan=False).map(lambda value: {"value": value})
spellings = st.sampled_from(["{}", "{}.shop", "{}.shop.svc", "{}.shop.svc.cluster.local"])
header_changes = st.fixed_dictionaries(
    {}, optional={"set": st.dictionaries(words, texts, max_size=2), "remove": st.lists(words, max_size=2)}
)
headers = st.fixed_dictionaries({}, optional={"request": header_changes, "response": header_changes})
strings = st.one_of(*(st.builds(lambda v, k=kind: {k: v}, texts) for kind in ("exact", "prefix")))
matches = st.fixed_dictionaries(
    {},
    optional={
        "name": words,
        "uri": strings,
        "headers": st.dictionaries(words, strings, max_size=2),
        "queryParams": st.dictionaries(words, strings, max_size=2),
        "ignoreUriCase": st.booleans(),
        "port": st.integers(1, 65535),
        "sourceLabels": st.dictionaries(words, words, max_size=1),
    },
)


def _optional(**fields: Any) -> Any:
    return st.fixed_dictionaries({}, optional=fields)


def destination(host: str) -> Any:
    return st.fixed_dictionaries(
        {"host": spellings.map(lambda spelling: spelling.format(host))},
        optional={"port": st.integers(1, 65535).map(lambda number: {"number": number})},
    )


def entry(host: str, weights: Any) -> Any:
    return st.fixed_dictionaries({"destination": destination(host)}, optional={"weight": weights, "headers": headers})


foreign_entry = st.sampled_from(["web", "admin", "example.org"]).flatmap(lambda host: entry(host, st.integers(0, 100)))
extras = _optional(
    match=st.lists(matches, min_size=1, max_size=3),
    timeout=durations,
    retries=st.fixed_dictionaries(
        {"attempts": st.integers(0, 5)}, optional={"perTryTimeout": durations, "retryOn": words, "backoff": durations}
    ),
    fault=_optional(abort=st.fixed_dictionaries({"httpStatus": st.just(503), "percentage": percentages})),
    mirror=destination("shadow"),
    mirrorPercentage=percentages,
    mirrors=st.lists(
        st.fixed_dictionaries({"destination": destination("shadow"), "percentage": percentages}), max_size=2
    ),
    corsPolicy=_optional(allowOrigins=st.lists(strings, max_size=2), maxAge=durations, allowCredentials=st.booleans()),
    headers=headers,
    rewrite=_optional(authority=words),
)
foreign_routes = st.one_of(
    st.builds(lambda e, r: {**e, "route": r}, extras, st.lists(foreign_entry, min_size=1, max_size=3)),
    st.builds(lambda uri: {"redirect": {"uri": uri}}, texts),
    st.builds(lambda status: {"directResponse": {"status": status}}, st.integers(200, 599)),
)


@st.composite
def split_routes(draw: st.DrawFn) -> Object:
    """A route of our two, in either order, with the weights that people write."""
    share = draw(st.integers(0, 100))
    pair = [draw(entry(STABLE, st.just(100 - share))), draw(entry(CANARY, st.just(share)))]
    if not any(e.get("weight") for e in pair):
        pair[0]["weight"] = 1
    return {**draw(extras), "route": pair if draw(st.booleans()) else pair[::-1]}


plain_routes = st.builds(lambda e, r: {**e, "route": [r]}, extras, entry(SERVICE, st.integers(1, 100)))


@st.composite
def virtual_services(draw: st.DrawFn, ours: Any) -> Object:
    """One to three routes of `ours` among up to four foreign ones, some of them named."""
    mine = draw(st.lists(ours, min_size=1, max_size=3))
    routes = draw(st.permutations([*mine, *draw(st.lists(foreign_routes, max_size=4))]))
    names = draw(st.lists(st.one_of(st.none(), words), min_size=len(routes), max_size=len(routes), unique=False))
    seen: set[str] = set()
    for route, name in zip(routes, names, strict=True):
        if name and name not in seen:
            route["name"] = name
            seen.add(name)
    spec = {
        "hosts": draw(st.lists(words, min_size=1, max_size=2, unique=True)),
        "http": routes,
        **draw(_optional(gateways=st.just(["mesh", "shop/public"]), exportTo=st.just(["."]))),
    }
    if draw(st.booleans()):
        spec["tcp"] = [{"match": [{"port": 9000}], "route": [{"destination": {"host": "database"}}]}]
    metadata: Object = {"name": "api", "namespace": "shop", "labels": draw(st.dictionaries(words, words, max_size=2))}
    if draw(st.booleans()):
        metadata["annotations"] = draw(st.dictionaries(words, texts, max_size=2))
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": metadata,
        "spec": spec,
    }

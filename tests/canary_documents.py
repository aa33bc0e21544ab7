"""Canary documents as a cluster can hold them: right ones, drawn at random, and a right one broken in many ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from canaryd.policy import format_duration, format_share

Path = tuple[str | int, ...]
TEMPLATES = (
    'sum by (pod) (failed{workload="{{workload}}"})',
    'requests{ns=~"{{ namespace }}"}',
    "x{{{workload}}}",
    "sum(rates{a='b'}) + delta_total",
    "up",
)


# ── right ones ───────────────────────────────────────────────────────────────────────────────────────────────

names = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?\Z")
services = st.from_regex(r"\A[a-z]([-a-z0-9]{0,50}[a-z0-9])?\Z")


def durations(least: int, most: int) -> st.SearchStrategy[str]:
    """Texts of so many milliseconds, as people and programs write them."""
    canonical = st.integers(least, most).map(lambda ms: format_duration(timedelta(milliseconds=ms)))
    plain = st.integers(-(-least // 1000), most // 1000).map(lambda s: f"{s}s")
    halves = st.integers(-(-least // 30_000), most // 30_000).map(lambda n: f"{n / 2}m")
    return st.one_of(canonical, plain, halves)


def percents(least: float, most: float) -> st.SearchStrategy[str]:
    """Texts of shares of so many percent, both ends included."""
    floats = st.floats(least / 100, most / 100, allow_subnormal=False).map(format_share)
    return st.one_of(floats, st.integers(max(1, int(least)), int(most)).map(lambda n: f"{n} %"))


tolerances = st.one_of(
    percents(0, 100),
    st.integers(0, 500).map(lambda n: f"{n / 100}pp"),
    st.tuples(percents(0, 100), st.integers(0, 99)).map(lambda two: f"{two[0]} + 0.{two[1]}pp"),
    st.integers(0, 99).map(lambda n: f"0.{n}pp+{n}%"),
)
arms = st.fixed_dictionaries({"stable": st.sampled_from(TEMPLATES), "canary": st.sampled_from(TEMPLATES)})


def given(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


def _latency(name: str) -> st.SearchStrategy[dict[str, Any]]:
    kind = {"name": st.just(name), "kind": st.just("latency")}
    apart = given(kind, tolerance=percents(0.001, 20), margin=percents(40, 1000))
    same = percents(0.001, 1000).flatmap(lambda p: given({**kind, "tolerance": st.just(p), "margin": st.just(p)}))
    return st.one_of(apart, same)


def _metric(kind: str, name: str) -> st.SearchStrategy[dict[str, Any]]:
    known = {"name": st.just(name), "kind": st.just(kind)}
    if kind == "latency":
        return _latency(name)
    if kind == "gauge":
        return given({**known, "query": arms}, tolerance=percents(0.001, 1000))
    if kind == "query":
        return given({**known, "failures": arms, "total": arms}, tolerance=tolerances, margin=tolerances)
    if kind == "traces":
        return given(
            {**known, "required": st.booleans()},
            service=st.sampled_from(["api", "api.shop"]),
            tag=st.sampled_from(["version", "service.version"]),
            arms=st.just({"stable": ["v1", "v2"], "canary": ["v3"]}),
            source=st.sampled_from(["auto", "spanmetrics", "traces"]),
            spanmetrics=given({}, calls=st.just("calls_total"), durations=st.just("a:b_bucket")),
            operations=st.integers(1, 50),
            tolerance=tolerances,
        )
    return given(
        known,
        tolerance=tolerances,
        margin=tolerances,
        httpFailures=st.lists(st.sampled_from(["5xx", "4xx", "429", "0"]), max_size=5),
        ignoreFlags=st.lists(st.sampled_from(["DC", "RL", "URX"]), max_size=5),
        grpcFailures=st.lists(st.integers(0, 16).map(str), max_size=5),
    )


@st.composite
def _metrics(draw: st.DrawFn) -> list[dict[str, Any]]:
    kinds = draw(st.lists(st.sampled_from(["gauge", "query"]), max_size=4))
    kinds += draw(st.lists(st.sampled_from(["errors", "latency"]), unique=True, min_size=0 if "query" in kinds else 1))
    kinds += draw(st.lists(st.just("traces"), max_size=1))
    called = draw(st.lists(names, min_size=len(kinds), max_size=len(kinds), unique=True))
    return [draw(_metric(kind, name)) for kind, name in zip(kinds, called, strict=True)]


@st.composite
def _steps(draw: st.DrawFn, interval_ms: int) -> list[dict[str, Any]]:
    steps = []
    for weight in sorted(draw(st.sets(st.integers(1, 100), min_size=1, max_size=50))):
        bake = draw(st.one_of(st.none(), st.integers(0, 10_000_000)))
        least = 4 * interval_ms if bake is None else bake
        timeout = draw(st.one_of(st.none(), st.integers(least, least + 10_000_000)))
        spans = {"bake": bake, "timeout": timeout}
        texts = {k: format_duration(timedelta(milliseconds=ms)) for k, ms in spans.items() if ms is not None}
        steps.append({"weight": weight, **texts})
    return steps


def _route() -> st.SearchStrategy[dict[str, Any]]:
    refs = st.lists(
        given({"name": names}, routes=st.lists(st.text(min_size=1, max_size=20, alphabet="abc-Ü"), max_size=3)),
        min_size=1,
        max_size=5,
        unique_by=lambda ref: str(ref["name"]),
    )
    stable = st.sampled_from([{}, {"host": "api"}, {"host": "api-stable", "subset": "v1"}, {"subset": "old"}])
    canary = st.sampled_from([{}, {"host": "api", "subset": "v2"}, {"host": "api-canary.shop.svc.cluster.local"}])
    istio = given({"virtualServices": refs}, stable=stable, canary=canary)
    gateway = given(
        {"httpRoutes": refs}, stable=services.map(lambda s: f"s{s}"), canary=services.map(lambda s: f"c{s}")
    )
    return st.one_of(given({"istio": istio}), given({"gatewayApi": gateway}))


def _deployment() -> st.SearchStrategy[dict[str, Any]]:
    config = st.one_of(given({"configMap": names}), given({"secret": names}))
    return given(
        {"name": names},
        stable=names.map(lambda name: f"stable-{name}"),
        replicas=st.integers(1, 10_000),
        readyTimeout=durations(0, 10**9),
        keepFailed=st.booleans(),
        config=st.lists(config, max_size=20),
        onDelete=st.sampled_from(["restore", "orphan"]),
    )


@st.composite
def right_documents(draw: st.DrawFn) -> dict[str, Any]:
    """Documents in the form of the resource that have nothing wrong."""
    interval = draw(st.integers(500, 3_600_000))
    deadline = draw(st.integers(max(interval, 1), 10**10))
    spec = draw(
        given(
            {"workloads": given({"deployment": _deployment()}), "route": _route()},
            steps=_steps(interval),
            metrics=_metrics(),
            alpha=percents(0.0001, 50),
            beta=percents(0.0001, 50),
            budget=given({}, share=percents(0.0001, 50), perHour=st.integers(0, 10_000_000)),
            warmUp=durations(0, 366 * 86_400_000),
            history=durations(0, 366 * 86_400_000),
            maxHold=durations(0, 366 * 86_400_000),
            onInconclusive=st.sampled_from(["hold", "rollback", "promote"]),
            onBlind=st.sampled_from(["hold", "rollback"]),
            source=given({}, requests=st.sampled_from(["a:b_c", "requests_total"])),
            prometheus=given({"url": st.sampled_from(["http://a", "https://b.c:9/d"])}),
        )
    )
    spans = {"interval": interval, "blindDeadline": deadline}
    spec |= {key: format_duration(timedelta(milliseconds=ms)) for key, ms in spans.items()}
    name = draw(names)
    return {"apiVersion": "canaryd.io/v1alpha1", "kind": "Canary", "metadata": {"name": name}, "spec": spec}


# ── wrong ones ───────────────────────────────────────────────────────────────────────────────────────────────


def full(route: str = "istio") -> dict[str, Any]:
    """A right document that has every key."""
    arms = {"stable": 'a{w="{{workload}}"}', "canary": 'b{w="{{workload}}"}'}
    istio = {
        "virtualServices": [{"name": "api", "routes": ["primary"]}, {"name": "api-internal"}],
        "stable": {"host": "api", "subset": "stable"},
        "canary": {"host": "api", "subset": "canary"},
    }
    gateway = {"httpRoutes": [{"name": "api", "routes": ["r"]}], "stable": "api-stable", "canary": "api-canary"}
    spec = {
        "workloads": {
            "deployment": {
                "name": "api",
                "stable": "api-stable",
                "replicas": 3,
                "readyTimeout": "10m",
                "keepFailed": True,
                "config": [{"configMap": "api"}, {"secret": "api"}],
                "onDelete": "restore",
            }
        },
        "route": {"istio": istio} if route == "istio" else {"gatewayApi": gateway},
        "steps": [{"weight": 5, "bake": "5m", "timeout": "1h"}, {"weight": 25}, {"weight": 100}],
        "metrics": [
            {
                "name": "errors",
                "kind": "errors",
                "tolerance": "5% + 0.02pp",
                "margin": "25%",
                "httpFailures": ["5xx", "429"],
                "ignoreFlags": ["DC"],
                "grpcFailures": ["14"],
            },
            {"name": "latency", "kind": "latency", "tolerance": "5%", "margin": "30%"},
            {"name": "memory", "kind": "gauge", "query": arms, "tolerance": "10%"},
            {"name": "orders", "kind": "query", "failures": arms, "total": arms, "tolerance": "5%", "margin": "25%"},
            {
                "name": "spans",
                "kind": "traces",
                "service": "api.shop",
                "tag": "istio.canonical_revision",
                "arms": {"stable": ["v1"], "canary": ["v2"]},
                "source": "auto",
                "spanmetrics": {"calls": "a_total", "durations": "a_bucket"},
                "operations": 30,
                "tolerance": "5% + 0.1pp",
                "required": False,
            },
        ],
        "alpha": "1%",
        "beta": "5%",
        "budget": {"share": "0.1%", "perHour": 100},
        "interval": "30s",
        "warmUp": "2m",
        "history": "7d",
        "maxHold": "4h",
        "onInconclusive": "hold",
        "onBlind": "hold",
        "blindDeadline": "5m",
        "source": {
            "requests": "a_total",
            "durations": "a_bucket",
            "recordedRequests": "b:c",
            "recordedDurations": "b:d",
            "recordedUnreached": "b:e",
        },
        "prometheus": {"url": "http://prometheus.monitoring:9090"},
    }
    return {"apiVersion": "canaryd.io/v1alpha1", "kind": "Canary", "metadata": {"name": "api"}, "spec": spec}


@dataclass(frozen=True)
class Wrong:
    """One document with one thing wrong."""

    name: str
    document: dict[str, Any]
    field: str  # a key that must be named in what is said


_ABSENT = object()
# what no name, host, metric's name or code may be
HOSTILE = (
    "$(reboot)",
    "a; DROP TABLE canaries",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "{{ .Release.Name }}",
    "аpi",  # its first letter is Cyrillic
    "api\n  admin: true",
    "api\u202egnp",
    "🐤",
)
_TEXTS = ("name", "stable", "configMap", "secret", "host", "subset", "httpFailures", "ignoreFlags", "grpcFailures")
_TEXTS += ("requests", "durations", "recordedRequests", "recordedDurations", "url")
_SPANS = ("readyTimeout", "bake", "timeout", "interval", "warmUp", "history", "maxHold", "blindDeadline")
_SHARES = ("alpha", "beta", "share", "tolerance", "margin")


def wrong_documents() -> Iterator[Wrong]:
    """Hundreds, one by one, in a fixed order."""
    for route in ("istio", "gatewayApi"):
        whole = full("istio" if route == "istio" else "gateway")
        for path, value in _places(whole["spec"], ("spec",)):
            if route == "gatewayApi" and "gatewayApi" not in path:
                continue
            yield from _broken_at(whole, path, value)
    yield from _misfits()


def _places(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    yield path, value
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in below:
        yield from _places(item, (*path, key))


def _broken_at(whole: dict[str, Any], path: Path, value: Any) -> Iterator[Wrong]:
    place = ".".join(map(str, path))
    key = next(str(part) for part in reversed(path) if isinstance(part, str))

    def made(what: str, instead: Any, field: str = key) -> Wrong:
        return Wrong(f"{place}: {what}", changed(whole, path, instead), field)

    for what, instead in _other_types(value):
        yield made(what, instead)
    yield made("null", None)
    if isinstance(value, dict):
        yield made("unknown key", {**value, "wieght": 1}, "wieght")
    if isinstance(value, str):
        yield made("too long", "a" * 5000)
        yield (
            made("empty", "")
            if key in (*_SPANS, *_SHARES, "kind", "onBlind", "onInconclusive", "onDelete")
            else made("huge", "9" * 50_000)
        )
    is_template = "metrics" in path and key == "stable"
    if key in _TEXTS and isinstance(value, str) and not is_template:
        for hostile in HOSTILE:
            if key != "url" or hostile != "🐤":
                yield made(f"hostile {hostile!r}", hostile)
    for what, instead in _bad_units(key, value):
        yield made(what, instead)


def _other_types(value: Any) -> Iterator[tuple[str, Any]]:
    others = {"a number": 7, "a text": "seven", "a truth": True, "a list": [1], "a mapping": {"a": 1}, "a float": 1.5}
    mine = {int: "a number", str: "a text", bool: "a truth", list: "a list", dict: "a mapping"}[type(value)]
    for what, instead in others.items():
        if what != mine:
            yield what, instead


def _bad_units(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if key in _SPANS:
        for text in ("30", "s", "-5s", "5 parsecs", "1e3s", "30S", "٣s", "999999h", "5m,", "1.s"):
            yield f"{text!r}", text
    if key in _SHARES:
        for text in ("5", "0.05", "-5%", "5%%", "5 percent", "NaN%", "inf%", "9999999%", "٥%", "5% - 1pp"):
            yield f"{text!r}", text
    for name, texts in {
        "replicas": (0, -1, 10_001, 10**12),
        "weight": (0, 101, -5, 10**12),
        "perHour": (-1, 10**9),
    }.items():
        for number in texts if key == name else ():
            yield f"{number}", number


def changed(whole: dict[str, Any], path: Path, instead: Any) -> dict[str, Any]:
    """A copy in which something else stands at a place, or nothing."""
    copied = json.loads(json.dumps(whole))
    at: Any = copied
    for part in path[:-1]:
        at = at[part]
    if instead is _ABSENT:
        del at[path[-1]]
    else:
        at[path[-1]] = instead
    return copied


def _misfits() -> Iterator[Wrong]:
    """What is wrong only together, missing, or too many."""
    whole = full()
    spec = ("spec",)
    metrics: list[dict[str, Any]] = whole["spec"]["metrics"]
    errors, latency, gauge, query, _ = metrics
    other: dict[str, Any] = full("gateway")["spec"]["route"]
    both = {**whole["spec"]["route"], **other}
    deployment = ("spec", "workloads", "deployment")

    def made(name: str, path: Path, instead: Any, field: str) -> Wrong:
        return Wrong(name, changed(whole, path, instead), field)

    for path, field in (
        ((*spec, "workloads"), "workloads"),
        ((*spec, "route"), "route"),
        ((*deployment, "name"), "name"),
        ((*spec, "route", "istio", "virtualServices"), "virtualServices"),
        ((*spec, "route", "istio", "virtualServices", 0, "name"), "name"),
        ((*spec, "steps", 0, "weight"), "weight"),
        ((*spec, "metrics", 0, "name"), "name"),
        ((*spec, "metrics", 0, "kind"), "kind"),
        ((*spec, "metrics", 2, "query"), "query"),
        ((*spec, "metrics", 2, "query", "stable"), "stable"),
        ((*spec, "metrics", 3, "total"), "total"),
        ((*spec, "metrics", 3, "failures", "canary"), "canary"),
        ((*spec, "prometheus", "url"), "url"),
        ((*deployment, "config", 0, "configMap"), "config"),
        (("spec",), "spec"),
    ):
        yield made(f"{'.'.join(map(str, path))}: missing", path, _ABSENT, field)
    yield made("two kinds of route", (*spec, "route"), both, "route")
    yield made("no kind of route", (*spec, "route"), {}, "route")
    yield made("pools", (*spec, "workloads"), {"pools": ["a", "b"]}, "pools")
    yield made("pools beside", (*spec, "workloads", "pools"), ["a", "b"], "pools")
    yield made("a file of Envoy", (*spec, "route"), {"envoyFile": {"path": "/etc/shadow"}}, "route")
    yield made("a command", (*spec, "afterPromotion"), {"command": ["/bin/sh", "-c", "id"]}, "afterPromotion")
    yield made("a webhook", (*spec, "afterPromotion"), {"webhook": "http://169.254.169.254/"}, "afterPromotion")
    yield made("another namespace", (*spec, "route", "istio", "virtualServices", 0, "namespace"), "b", "namespace")
    yield made("stable is canary", (*deployment, "stable"), "api", "stable")
    yield made("stable by default too long", deployment, {"name": "a" * 60}, "name")
    yield made("both references", (*deployment, "config", 0), {"configMap": "a", "secret": "b"}, "config")
    yield made("many references", (*deployment, "config"), [{"configMap": f"c{i}"} for i in range(21)], "config")
    same = {"host": "api", "subset": "canary"}
    yield made("one destination", (*spec, "route", "istio", "stable"), same, "canary")
    yield Wrong(
        "one Service", changed(full("gateway"), (*spec, "route", "gatewayApi", "stable"), "api-canary"), "canary"
    )
    refs = (*spec, "route", "istio", "virtualServices")
    yield made("no VirtualService", refs, [], "virtualServices")
    yield made("21 VirtualServices", refs, [{"name": f"v{i}"} for i in range(21)], "virtualServices")
    yield made("one VirtualService twice", refs, [{"name": "a"}, {"name": "a", "routes": ["b"]}], "virtualServices")
    yield made("plain name", refs, ["api"], "virtualServices")
    yield made("51 routes", (*refs, 0, "routes"), ["r"] * 51, "routes")
    yield made("an empty route", (*refs, 0, "routes"), [""], "routes")
    steps = (*spec, "steps")
    for name, weights in {
        "descending": [25, 5],
        "level": [5, 5],
        "a late descent": [1, 2, 3, 90, 89, 100],
        "none": [],
        "51": list(range(1, 52)),
        "5000": list(range(1, 5001)),
    }.items():
        yield made(f"weights: {name}", steps, [{"weight": weight} for weight in weights], "steps")
    yield made("plain weights", steps, [5, 25, 100], "steps")
    yield made("a linear plan", steps, {"from": 10, "to": 100, "by": 10}, "steps")
    yield made("timeout below bake", steps, [{"weight": 5, "bake": "10m", "timeout": "5m"}], "steps")
    yield made("timeout below four intervals", steps, [{"weight": 5, "timeout": "1m59s"}], "steps")
    yield made("deadline below interval", (*spec, "blindDeadline"), "29s", "blindDeadline")
    for text in ("499ms", "0s", "1h1ms", "2d"):
        yield made(f"interval {text}", (*spec, "interval"), text, "interval")
    for text in ("0%", "51%", "0.00009%"):
        yield made(f"alpha {text}", (*spec, "alpha"), text, "alpha")
        yield made(f"beta {text}", (*spec, "beta"), text, "beta")
    for text in ("0%", "50.1%"):
        yield made(f"budget {text}", (*spec, "budget", "share"), text, "share")
    for index, kind in ((1, "latency"), (2, "gauge")):
        for text in ("0%", "1000.1%", "0.02pp", "5% + 0.02pp"):
            yield made(f"{kind} {text}", (*spec, "metrics", index, "tolerance"), text, "tolerance")
    yield made("margin below tolerance", (*spec, "metrics", 1, "margin"), "4.9%", "margin")
    yield made(
        "default margin below", (*spec, "metrics", 1), {**latency, "tolerance": "31%"} | {"margin": "5%"}, "margin"
    )
    plain = {"name": "latency", "kind": "latency", "tolerance": "31%"}
    yield made("tolerance above the default margin", (*spec, "metrics", 1), plain, "margin")
    yield made("two percent", (*spec, "metrics", 0, "tolerance"), "5% + 5%", "tolerance")
    yield made("three parts", (*spec, "metrics", 0, "margin"), "5% + 1pp + 1%", "margin")
    for key, value in {"query": gauge["query"], "failures": query["failures"], "total": query["total"]}.items():
        yield made(f"errors with {key}", (*spec, "metrics", 0, key), value, "metrics")
        yield made(f"latency with {key}", (*spec, "metrics", 1, key), value, "metrics")
    for key in ("httpFailures", "ignoreFlags", "grpcFailures"):
        for index, kind in ((1, "latency"), (2, "gauge"), (3, "query")):
            yield made(f"{kind} with {key}", (*spec, "metrics", index, key), errors[key], "metrics")
    spans = (*spec, "metrics", 4)
    for key, value in {
        "service": "x" * 254,
        "tag": "x" * 254,
        "source": "jaeger",
        "required": "yes",
    }.items():
        yield made(f"traces with a wrong {key}", (*spans, key), value, key)
    yield made("a name of counters", (*spans, "spanmetrics", "calls"), "9 calls", "calls")
    yield made("one value for both arms", (*spans, "arms"), {"stable": ["v1"], "canary": ["v1", "v2"]}, "canary")
    yield made("no value", (*spans, "arms", "canary"), [], "canary")
    yield made("an empty value", (*spans, "arms", "canary"), [""], "canary")
    yield made("traces with margin", (*spans, "margin"), "25%", "metrics")
    yield made("errors with operations", (*spec, "metrics", 0, "operations"), 30, "metrics")
    yield made("gauge with margin", (*spec, "metrics", 2, "margin"), "5%", "metrics")
    yield made("query with query", (*spec, "metrics", 3, "query"), gauge["query"], "metrics")
    yield made("codes under the former name", (*spec, "metrics", 0, "failures"), ["5xx"], "failures")
    yield made("unknown kind", (*spec, "metrics", 0, "kind"), "latence", "kind")
    yield made("no metrics", (*spec, "metrics"), [], "metrics")
    yield made("only a gauge", (*spec, "metrics"), [gauge], "metrics")
    yield made("two of errors", (*spec, "metrics"), [errors, {**errors, "name": "e2"}], "metrics")
    yield made("two of latency", (*spec, "metrics"), [latency, {**latency, "name": "l2"}], "metrics")
    yield made(
        "two of traces", (*spec, "metrics"), [errors, *({"name": n, "kind": "traces"} for n in ("t1", "t2"))], "metrics"
    )
    yield made("one name twice", (*spec, "metrics"), [errors, {**query, "name": "errors"}], "metrics")
    yield made("21 metrics", (*spec, "metrics"), [{**query, "name": f"q{i}"} for i in range(21)], "metrics")
    yield made("101 codes", (*spec, "metrics", 0, "httpFailures"), ["500"] * 101, "httpFailures")
    for code in ("5xxx", "xxx", "5XX", "50", "-1", "2000", "٥xx"):
        if code != "50":
            yield made(f"code {code}", (*spec, "metrics", 0, "httpFailures"), [code], "httpFailures")
    for template in (
        "{{workloads}}",
        "{{workload",
        "{{}}",
        "a{{ .Values.x }}",
        "{{workload}} {{$labels.pod}}",
        "{{window}",
    ):
        yield made(f"template {template}", (*spec, "metrics", 2, "query", "stable"), template, "stable")
    for function in ("rate(a[1m])", "sum(increase (a[5m]))", "irate(a[1m])", "delta(a[1m])", "idelta(a[1m])"):
        for part in ("failures", "total"):
            yield made(f"{part} {function}", (*spec, "metrics", 3, part, "canary"), function, part)
    for url in (
        "ftp://a",
        "http://",
        "http://user:word@a",
        "prometheus:9090",
        "http://a b",
        "javascript:alert(1)",
        "http://a/?b=c",
        "http://a#b",
    ):
        yield made(f"url {url}", (*spec, "prometheus", "url"), url, "url")
    for name in ("a.b", "a" * 64):
        yield Wrong(f"named {name}", changed(whole, ("metadata", "name"), name), "name")
    yield Wrong("spec is a text", changed(whole, ("spec",), "everything"), "spec")
    yield Wrong("another key beside spec", {**whole, "specs": {}}, "specs")

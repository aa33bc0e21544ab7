"""The Canary schema: quantities read back exactly, defaults, and what does not fit together is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from canaryd.policy import (
    DEFAULT_WEIGHTS,
    Canary,
    EnvoyFile,
    ErrorsMetric,
    Hook,
    LatencyMetric,
    MisfitError,
    Pool,
    Route,
    Share,
    Spec,
    Step,
    Tolerance,
    Workloads,
    dump_canary,
    format_duration,
    format_share,
    parse_canary,
    parse_duration,
    parse_share,
    parse_tolerance,
    said,
)


def document(**spec: Any) -> dict[str, Any]:
    """The smallest Canary, with these keys of the spec besides."""
    return {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": "api"},
        "spec": {
            "workloads": {"pools": ["api-v1", "api-v2"]},
            "route": {"envoyFile": {"path": "/tmp/api.yaml"}},
            **spec,
        },
    }


def query(stable: str = "x", **more: Any) -> dict[str, Any]:
    """A metric of kind query."""
    arms = {"stable": stable, "canary": "x"}
    return {"name": "q", "kind": "query", "failures": arms, "total": {"stable": "y", "canary": "y"}, **more}


def wrong(**spec: Any) -> str:
    """Everything that is said about a document that must be refused."""
    with pytest.raises(ValidationError) as e:
        parse_canary(document(**spec))
    return str(e.value)


# ── quantities ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1h30m", 5400), ("500ms", 0.5), ("2.5m", 150), (" 5m ", 300), ("0s", 0), ("366d", 366 * 86400)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value",
    [
        30,
        0.5,
        "30",
        "",
        "s",
        "5 m",
        "-5s",
        "1h-5m",
        "5y",
        "٣s",
        "1e3s",
        "367d",
        "9" * 38 + "d",
        "1" * 41,
        None,
        True,
        [],
    ],
)
def test_a_duration_without_a_unit_or_beyond_a_year_is_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(ValueError, match="such as"):
        parse_duration(value)


@given(st.integers(0, 366 * 86_400_000))
def test_every_duration_is_read_back_as_it_was_written(milliseconds: int) -> None:
    span = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(span)) == span
    assert parse_duration(span) is span


@given(st.from_regex(r"[0-9]{1,8}(\.[0-9]{1,8})?(ms|s|m|h)", fullmatch=True))
def test_a_duration_is_the_same_after_writing_it_out(text: str) -> None:
    try:
        span = parse_duration(text)
    except ValueError:
        return
    assert parse_duration(format_duration(span)) == span


@given(st.floats(0, 100, allow_nan=False) | st.floats(0, 1e-6))
def test_every_share_is_read_back_exactly(share: float) -> None:
    assert parse_share(format_share(share)) == share
    assert parse_tolerance(str(Tolerance(relative=share))) == Tolerance(relative=share)


@given(st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,12})?(e-?[0-9]{1,2})?", fullmatch=True))
def test_a_percentage_is_the_same_after_writing_it_out(number: str) -> None:
    try:
        share = parse_share(f"{number}%")
    except ValueError:
        return
    assert parse_share(format_share(share)) == share


@given(st.floats(0, 100), st.floats(0, 100))
def test_every_tolerance_is_read_back_exactly(relative: float, absolute: float) -> None:
    tolerance = Tolerance(relative=relative, absolute=absolute)
    assert parse_tolerance(str(tolerance)) == tolerance
    assert parse_tolerance(tolerance) is tolerance


@pytest.mark.parametrize(
    ("text", "relative", "absolute"),
    [("5%", 0.05, 0), ("0.02pp", 0, 0.0002), ("5% + 0.02pp", 0.05, 0.0002), ("0.02pp+5 %", 0.05, 0.0002), ("0%", 0, 0)],
)
def test_a_tolerance_is_relative_or_in_points_or_both(text: str, relative: float, absolute: float) -> None:
    assert parse_tolerance(text) == Tolerance(relative=relative, absolute=absolute)


@pytest.mark.parametrize(
    "value",
    [5, 0.05, "5", "", "5% + 5%", "5pp + 1pp + 5%", "-5%", "1e9%", "5% + ", "x", f"5%{' ' * 100}", None, True, []],
)
def test_a_tolerance_without_a_unit_is_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(ValueError, match='write "5%"'):
        parse_tolerance(value)


@pytest.mark.parametrize("value", [5, 0.05, "5", "1e5"])
def test_a_number_without_a_percent_sign_has_no_unit(value: object) -> None:
    with pytest.raises(ValueError, match='has no unit; write a percentage such as "5%"'):
        parse_share(value)


@pytest.mark.parametrize("value", ["five", "", "%", "nan%", "inf%", "1e999%", "5%%", None, True, [], "1" * 50 + "%"])
def test_what_is_no_percentage_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="percentage"):
        parse_share(value)


def test_a_share_that_was_read_is_not_read_twice() -> None:
    assert parse_share(Share(0.05)) == 0.05


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "an empty value"),
        (True, "true"),
        ("ten", '"ten"'),
        ("a\x1b[31m\u202eb", '"a\\x1b[31m\\u202eb"'),
        ("x" * 100, '"' + "x" * 57 + '…"'),
        (150, "150"),
        (10**30, "a number of more than 18 digits"),
        (0.5, "0.5"),
        ([1], "a list"),
        ({"a": 1}, "a mapping"),
        (object(), "this"),
    ],
)
def test_a_wrong_value_is_said_as_its_writer_knows_it_and_cannot_play_with_the_terminal(
    value: object, text: str
) -> None:
    assert said(value) == text


# ── defaults and short forms ─────────────────────────────────────────────────────────────────────────────────


def test_the_smallest_document_gets_every_default() -> None:
    canary = parse_canary(document())
    spec = canary.spec
    assert canary.name == "api"
    assert canary.metadata.namespace == "default"
    assert tuple(step.weight for step in spec.steps) == DEFAULT_WEIGHTS == (5, 10, 25, 50, 100)
    assert [m.kind for m in spec.metrics] == ["errors", "latency"]
    assert spec.interval == timedelta(seconds=30)
    assert spec.bake(0) == timedelta(minutes=2)
    assert spec.timeout(0) == spec.max_hold == timedelta(hours=4)
    assert [spec.next_weight(i) for i in range(5)] == [10, 25, 50, 100, 100]


def test_a_document_with_every_default_written_out_is_the_same_canary() -> None:
    canary = parse_canary(document(steps=[5, {"weight": 50, "bake": "1m", "timeout": "2h"}], alpha="0.3%"))
    assert parse_canary(dump_canary(canary)) == canary
    assert canary.spec.bake(1) == timedelta(minutes=1)
    assert canary.spec.timeout(1) == timedelta(hours=2)


@pytest.mark.parametrize(
    ("steps", "weights"),
    [
        ([5, 25, 100], (5, 25, 100)),
        ([{"weight": 5}, 50], (5, 50)),
        ({"from": 10, "to": 100, "by": 30}, (10, 40, 70, 100)),
        ({"from": 10, "to": 95, "by": 50}, (10, 60, 95)),
        ({"from": 7, "to": 7, "by": 1, "bake": "5m", "timeout": None}, (7,)),
    ],
)
def test_steps_may_be_weights_mappings_or_a_linear_plan_that_ends_at_its_goal(steps: Any, weights: Any) -> None:
    assert tuple(step.weight for step in parse_canary(document(steps=steps)).spec.steps) == weights


def test_a_spec_can_be_built_by_names_too() -> None:
    spec = Spec(
        workloads=Workloads(pools=(Pool(name="a"), Pool(name="b"))),
        route=Route(envoy_file=EnvoyFile(path="x", clusters={"a": "c1"})),
        steps=(Step(weight=50),),
        max_hold=timedelta(hours=1),
    )
    assert spec.timeout(0) == timedelta(hours=1)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"steps": [0]}, "0 is not a percentage"),
        ({"steps": [101]}, "101 is not a percentage"),
        ({"steps": [10, 10]}, "10 after 10; weights must rise"),
        ({"steps": []}, "0 steps"),
        ({"steps": list(range(1, 52))}, "51 steps"),
        ({"steps": {"from": 10, "to": 5, "by": 1}}, "is no plan"),
        ({"steps": {"from": 10, "to": 50, "by": 0}}, "is no plan"),
        ({"steps": {"from": True, "to": 50, "by": 1}}, "true is not a whole number"),
        ({"steps": {"from": 1, "to": 50}}, "is missing"),
        ({"steps": {"from": 1, "to": 50, "by": 1, "wieght": 1}}, "unknown key"),
        ({"steps": [{"weight": 5, "bake": "1h", "timeout": "1m"}]}, "could never pass"),
        ({"interval": "100ms"}, "100ms is out of range"),
        ({"interval": "2h"}, "2h is out of range"),
        ({"interval": "10m"}, "5m is shorter than the interval 10m"),
        ({"alpha": "0%"}, "0% is no usable error probability"),
        ({"beta": "51%"}, "51% is no usable error probability"),
        ({"budget": {"share": "0%"}}, "0% is out of range"),
        ({"budget": {"share": "60%"}}, "60% is out of range"),
        ({"metrics": []}, "0 metrics"),
        ({"metrics": [{"name": "m", "kind": "latency", "tolerance": "0%"}]}, "0% is out of range"),
        ({"metrics": [{"name": "m", "kind": "latency", "margin": "1%"}]}, "margin 1% is below tolerance 5%"),
        ({"metrics": [{"name": "m", "kind": "errors", "failures": ["5xx", "6x", "x"]}]}, '"6x" is neither'),
        (
            {"metrics": [{"name": "m", "kind": "gauge", "query": {"stable": "a", "canary": "b"}}]},
            "nothing would ever be proven",
        ),
        (
            {"metrics": [{"name": "m", "kind": "gauge", "tolerance": "-1%", "query": {"stable": "a", "canary": "b"}}]},
            "-1% is out of range",
        ),
        ({"metrics": [{"name": "a", "kind": "errors"}, {"name": "a", "kind": "latency"}]}, "names must be unique"),
        ({"metrics": [query(stable="x{a='{{pod}}'}")]}, '"{{pod" cannot be filled in; use {{workload}}'),
        ({"metrics": [query(stable="x{{")]}, '"{{" cannot be filled in'),
        ({"metrics": [query(stable="sum by (pod) (rate(x[5m]))")]}, "rate() is a difference; give the raw counters"),
        ({"metrics": [{"name": "a", "kind": "errors"}, {"name": "b", "kind": "errors"}]}, "a second metric of kind"),
        ({"workloads": {"pools": ["a"]}}, "1 pool; name exactly two"),
        ({"workloads": {"pools": ["a", "b", "c"]}}, "3 pools; name exactly two"),
        ({"workloads": {"pools": ["a", "a"]}}, "must be two workloads"),
        ({"workloads": {"pools": ["a", "-b"]}}, "is not a workload name"),
        ({"workloads": {"pools": ["a", "b" * 254]}}, "too long with 254 characters"),
        ({"workloads": {"pools": ["a", {"name": "b", "health": "ftp://x"}]}}, "is not a URL"),
        ({"afterPromotion": {}}, "neither is given"),
        ({"afterPromotion": {"command": ["x"], "webhook": "http://x"}}, "both are given"),
        ({"afterPromotion": {"command": [""]}}, "first word of a command"),
        ({"afterPromotion": {"webhook": "http://" + "x" * 2048}}, "too long"),
        ({"source": {"requests": "1x"}}, "is not the name of a metric"),
        ({"route": {"envoyFile": {"path": "x", "clusters": {"api-v3": "c"}}}}, "there is no such pool"),
        ({"route": {"envoyFile": {"path": "x", "clusters": {"api-v1": "api-v2"}}}}, "both pools use the cluster"),
        ({"warm_up": "2m"}, "warm_up"),
    ],
)
def test_what_cannot_be_meant_is_refused(spec: dict[str, Any], words: str) -> None:
    assert words in wrong(**spec)


def test_a_query_alone_can_prove_a_canary_and_its_place_in_the_document_means_nothing() -> None:
    metrics = [
        query(name=n, stable="sum by (pod) (x{ns='{{ namespace }}',w='{{workload}}'}[{{window}}])") for n in "ba"
    ]
    spec = parse_canary(document(metrics=metrics)).spec
    assert [q.name for q in spec.queries()] == ["a", "b"]
    assert spec.gauges() == ()


def test_everything_that_does_not_fit_is_said_at_once() -> None:
    said_so = wrong(
        steps=[{"weight": 5, "bake": "1h", "timeout": "1m"}, {"weight": 9, "bake": "2h", "timeout": "2m"}],
        interval="10m",
        route={"envoyFile": {"path": "x", "clusters": {"v3": "c", "v4": "d"}}},
    )
    assert said_so.count("could never pass") == 2
    assert said_so.count("no such pool") == 2
    assert "shorter than the interval" in said_so


@pytest.mark.parametrize("key", ["tolerance", "margin"])
@pytest.mark.parametrize("amount", ["1001%", "1e4%"])
def test_a_latency_bound_beyond_ten_times_is_a_mistake(key: str, amount: str) -> None:
    assert "out of range" in wrong(metrics=[{"name": "m", "kind": "latency", key: amount}])


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@host/", "https://hunter2@host", "htps://host/hunter2", "http://ho st/hunter2"]
)
def test_a_wrong_url_is_refused_without_telling_its_secret(url: str) -> None:
    with pytest.raises(ValidationError) as e:
        Hook.model_validate_json(f'{{"webhook": "{url}"}}')
    (error,) = e.value.errors(include_input=False)
    assert "hunter2" not in error["msg"]
    assert ("must not carry a user" in error["msg"]) == ("@" in url)


def test_a_misfit_reads_as_one_text() -> None:
    assert str(MisfitError((("a",), "one"), ((), "two"))) == "one; two"


def test_metrics_that_are_built_in_code_are_held_to_the_same_rules() -> None:
    with pytest.raises(ValidationError, match="below tolerance"):
        LatencyMetric(name="latency", kind="latency", tolerance=Share(0.2), margin=Share(0.1))
    assert str(ErrorsMetric(name="errors", kind="errors").tolerance) == "5% + 0.02pp"
    assert str(Tolerance()) == "0%"


def test_a_canary_cannot_be_changed() -> None:
    canary: Canary = parse_canary(document())
    with pytest.raises(ValidationError):
        canary.spec.interval = timedelta(seconds=1)  # type: ignore[misc]

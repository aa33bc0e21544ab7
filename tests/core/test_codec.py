"""State survives being written and read, by this version and by others; damage is named, never guessed away."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import tracemalloc
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from canaryd import model
from canaryd.codec import MOST_ARRAYS, decode, decode_state, encode, encode_state
from canaryd.errors import StoreError
from canaryd.model import (
    Action,
    Answer,
    Arm,
    CounterKey,
    Decision,
    DecisionKind,
    Evidence,
    Finding,
    HookState,
    HookStatus,
    Judgement,
    Override,
    Phase,
    Reading,
    Record,
    RolloutState,
    Transition,
    Verdict,
)

AT = "2026-03-01T12:00:00+00:00"
NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)

texts = st.text(max_size=12)
times = st.integers(-(10**15), 10**16).map(lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))
spans = st.timedeltas(timedelta(0), timedelta(days=36500))
whole = st.integers(-(2**53), 2**53)
plain = st.recursive(
    st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
arrays = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
keys = st.builds(
    CounterKey, st.sampled_from(Arm), texts, texts, st.sampled_from(["requests", "bucket"]), texts, texts, texts,
    st.floats(allow_nan=False),
)  # fmt: skip
readings = st.builds(Reading, times, st.dictionaries(keys, st.floats(0, allow_infinity=False), max_size=8))
evidences = st.builds(
    Evidence,
    through=times,
    edges=arrays,
    arrays=st.dictionaries(texts, arrays, max_size=3),
    intervals=whole,
    pods=st.dictionaries(texts, times, max_size=3),
    ahead=st.none() | times,
    stable_pods=st.lists(texts, max_size=3).map(tuple),
    last=st.lists(readings, max_size=2).map(tuple),
)
answers = st.builds(Answer, texts, st.sampled_from(Action), st.booleans(), texts, times)
transitions = st.builds(Transition, times, st.sampled_from(Phase), whole, whole, texts)
BY_NAME: Mapping[str, st.SearchStrategy[Any]] = {
    "phase": st.sampled_from(Phase),
    "resume_to": st.none() | st.sampled_from(Phase),
    "evidence": st.none() | evidences,
    "hook": st.none() | st.builds(HookState, texts, st.sampled_from(HookStatus), texts),
    "answered": st.lists(answers, max_size=3).map(tuple),
    "drifts": st.lists(times, max_size=3).map(tuple),
    "history": st.lists(transitions, max_size=3).map(tuple),
    "verdict": st.none() | st.sampled_from(Verdict),
    "latest": st.dictionaries(texts, plain, max_size=3),
}
BY_TYPE: Mapping[str, st.SearchStrategy[Any]] = {
    "str": texts,
    "int": whole,
    "bool": st.booleans(),
    "timedelta": spans,
    "datetime | None": st.none() | times,
}
states = st.builds(
    RolloutState,
    **{
        f.name: BY_NAME[f.name] if f.name in BY_NAME else BY_TYPE[str(f.type)] for f in dataclasses.fields(RolloutState)
    },
)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit: arrays too, which `==` of dataclasses cannot compare."""
    if isinstance(a, np.ndarray):
        return bool(
            isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        )
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def test_arrays_keep_every_bit_of_nan_infinity_and_negative_zero() -> None:
    odd = np.array([[np.nan, -np.nan, np.inf], [-np.inf, -0.0, 5e-324]])
    evidence = Evidence(
        NOW, arrays={"odd": odd, "strided": odd[:, ::2], "none": np.zeros((0, 3)), "one": np.array(1.5)}
    )
    back = decode(Evidence, through_json(encode(evidence)))
    assert same(back, evidence)
    back.arrays["odd"][0, 0] = 1.0  # an array that was read can be worked on like any other


def test_arrays_are_written_little_endian_so_that_any_machine_reads_them() -> None:
    assert base64.b64decode(encode(Evidence(NOW, edges=np.array([1.0])))["edges"]["f4"]) == b"\x00\x00\x80\x3f"
    assert base64.b64decode(encode(Evidence(NOW, edges=np.array([0.1])))["edges"]["f8"])[-2:] == b"\xb9\x3f"


def test_an_array_is_compressed_where_that_is_shorter_and_read_in_either_form() -> None:
    zeros, noise = np.zeros((5, 20, 10)), np.random.default_rng(1).normal(size=40)
    written = through_json(encode(Evidence(NOW, arrays={"zeros": zeros, "noise": noise})))["arrays"]
    assert set(written["zeros"]) == {"shape", "z4"}
    assert len(written["zeros"]["z4"]) < 100
    assert set(written["noise"]) == {"shape", "f8"}
    plain = {"shape": [5, 20, 10], "f8": base64.b64encode(zeros.tobytes()).decode()}
    packed = {"shape": [5, 20, 10], "z": base64.b64encode(zlib.compress(zeros.tobytes())).decode()}
    for form in (written["zeros"], plain, packed):
        assert same(decode(Evidence, {"through": AT, "arrays": {"a": form}}).arrays["a"], zeros)


def test_an_array_takes_half_the_room_where_float32_says_the_same_and_comes_back_to_the_bit() -> None:
    random = np.random.default_rng(1)
    short = random.normal(size=40).astype(np.float32).astype(np.float64)
    logs = np.log(1 + np.arange(600)).astype(np.float32).astype(np.float64).reshape(20, 30)
    arrays = {"short": short, "logs": logs, "mixed": np.append(short, 2.0**24 + 1), "huge": np.array([1e300, 0.5])}
    written = through_json(encode(Evidence(NOW, arrays=arrays)))
    forms = {name: set(form) - {"shape"} for name, form in written["arrays"].items()}
    assert forms == {"short": {"f4"}, "logs": {"z4"}, "mixed": {"z"}, "huge": {"f8"}}
    back = decode(Evidence, written).arrays
    assert all(same(back[name], arrays[name]) for name in arrays)


def packed(data: bytes, *shape: int) -> dict[str, Any]:
    return {"shape": list(shape), "z": base64.b64encode(zlib.compress(data, 9)).decode()}


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(packed(b"\0" * 10**7, 1), id="more-than-its-shape-says"),
        pytest.param(packed(b"\0" * 10**7, 1_250_000), id="more-than-any-array-has"),
        pytest.param(packed(b"\0" * 8, 2), id="less-than-its-shape-says"),
        pytest.param(packed(b"\0" * 8, 2**70), id="impossible-shape"),
        pytest.param({"shape": [1], "z": packed(b"\0" * 8, 1)["z"][:-8]}, id="cut-short"),
        pytest.param({"shape": [1], "z": base64.b64encode(zlib.compress(b"\0" * 8) + b"more").decode()}, id="appendix"),
        pytest.param({"shape": [1], "z": "AAAA"}, id="no-zlib"),
        pytest.param({"shape": [2], "z4": packed(b"\0" * 12, 1)["z"]}, id="another-size"),
        pytest.param({"shape": [2], "f4": "AAAA"}, id="half-a-number"),
        pytest.param({"shape": [1], "z": 3}, id="no-text"),
    ],
)
def test_a_compressed_array_never_grows_beyond_what_it_says(hostile: dict[str, Any]) -> None:
    tracemalloc.start()
    with pytest.raises(StoreError, match=r"evidence\.arrays\.a"):
        decode_state({"evidence": {"through": AT, "arrays": {"a": hostile}}})
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_many_small_arrays_do_not_add_up_to_a_large_state() -> None:
    arrays = {str(i): packed(b"\0" * 8, 1) for i in range(MOST_ARRAYS + 1)}
    with pytest.raises(StoreError, match=r"evidence\.arrays: expected at most 64 arrays"):
        decode_state({"evidence": {"through": AT, "arrays": arrays}})


def test_a_fresh_state_is_written_as_nothing_at_all() -> None:
    assert encode_state(RolloutState()) == {}
    assert same(decode_state({}), RolloutState())


def test_times_are_written_in_utc_with_microseconds_whatever_zone_they_came_in() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert encode_state(RolloutState(started=there)) == {"started": "2026-03-01T12:00:00.123456+00:00"}
    assert decode_state({"started": "2026-03-01T13:00:00+01:00"}).started == NOW.replace(microsecond=0)


def test_state_of_a_newer_version_is_read_without_the_fields_nobody_here_knows() -> None:
    saved = {"weight": 25, "mood": "sunny", "hook": {"id": "h", "colour": 3}}
    assert same(decode_state(saved), RolloutState(weight=25, hook=HookState("h")))


def test_state_of_an_older_version_takes_the_defaults_of_what_it_lacks() -> None:
    assert decode_state({"rollout": "api-3", "phase": "Paused"}) == RolloutState(rollout="api-3", phase=Phase.PAUSED)


def test_a_reading_is_kept_compactly() -> None:
    edges = [float(e) for e in range(19)] + [float("inf")]
    counters = {
        CounterKey(arm, "envoy-7d9f", f"pod-{i}", "bucket", "", "", "", le): float(i * 1000)
        for arm in Arm
        for i in range(3)
        for le in edges
    }
    reading = Reading(NOW, counters)
    text = json.dumps(encode(reading), allow_nan=False)
    assert same(decode(Reading, json.loads(text)), reading)
    assert len(text) < 20 * len(counters)


@pytest.mark.parametrize(
    ("saved", "field"),
    [
        pytest.param({"weight": "25"}, "weight", id="text-for-a-number"),
        pytest.param({"weight": 25.0}, "weight", id="float-for-a-whole-number"),
        pytest.param({"weight": True}, "weight", id="bool-for-a-whole-number"),
        pytest.param({"weight": None}, "weight", id="null-for-a-number"),
        pytest.param({"skip_analysis": 1}, "skip_analysis", id="number-for-a-bool"),
        pytest.param({"revision": 7}, "revision", id="number-for-a-text"),
        pytest.param({"phase": "Dancing"}, "phase", id="unknown-phase"),
        pytest.param({"phase": ["Idle"]}, "phase", id="list-for-a-phase"),
        pytest.param({"started": "2026-03-01T12:00:00"}, "started", id="time-without-zone"),
        pytest.param({"started": "yesterday"}, "started", id="no-time"),
        pytest.param({"started": 12}, "started", id="number-for-a-time"),
        pytest.param({"started": "0001-01-01T00:00:00+23:00"}, "started", id="time-before-all-times"),
        pytest.param({"baked": "4s"}, "baked", id="text-for-a-span"),
        pytest.param({"baked": "nan"}, "baked", id="nan-for-a-span"),
        pytest.param({"baked": 1e300}, "baked", id="endless-span"),
        pytest.param({"evidence": {}}, "evidence.through", id="required-field-missing"),
        pytest.param({"evidence": []}, "evidence", id="list-for-a-noun"),
        pytest.param({"evidence": {"through": AT, "edges": [1.0]}}, "evidence.edges", id="list-for-an-array"),
        pytest.param(
            {"evidence": {"through": AT, "arrays": {"e": {"shape": [2], "f8": "AAAA"}}}},
            "evidence.arrays.e",
            id="array-cut-short",
        ),
        pytest.param(
            {"evidence": {"through": AT, "edges": {"shape": [0, 10**30], "f8": ""}}},
            "evidence.edges",
            id="array-of-an-impossible-shape",
        ),
        pytest.param(
            {"evidence": {"through": AT, "last": [{"at": AT, "counters": [["stable"]]}]}},
            "evidence.last.0.counters",
            id="torn-counters",
        ),
        pytest.param({"evidence": {"through": AT, "pods": {"a": 3}}}, "evidence.pods.a", id="wrong-in-a-mapping"),
        pytest.param({"answered": {}}, "answered", id="mapping-for-a-list"),
        pytest.param({"answered": [{"id": "x"}]}, "answered.0.action", id="incomplete-item-of-a-list"),
        pytest.param({"latest": []}, "latest", id="list-for-the-latest-record"),
        pytest.param([], "", id="no-state-at-all"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_store_error_that_names_the_field(saved: Any, field: str) -> None:
    with pytest.raises(StoreError) as caught:
        decode_state(saved)
    assert f": {field}: " in str(caught.value) if field else "RolloutState" in str(caught.value)


FLOAT32: Any = np.zeros(2, np.float32)
WRONG_KEY: Any = Reading(NOW, {"n": 1.0})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("state", "field"),
    [
        pytest.param(RolloutState(weight=np.int64(5)), "weight", id="numpy-integer"),  # type: ignore[arg-type]
        pytest.param(RolloutState(started=datetime(2026, 1, 1)), "started", id="naive-time"),  # noqa: DTZ001
        pytest.param(RolloutState(evidence=Evidence(NOW, edges=FLOAT32)), "evidence.edges", id="float32"),
        pytest.param(RolloutState(latest={"n": {"at": NOW}}), "latest.n.at", id="time-in-a-body"),
        pytest.param(RolloutState(latest={"rows": [np.bool_(True)]}), "latest.rows.0", id="numpy-bool-in-a-body"),
        pytest.param(RolloutState(baked=4.0), "baked", id="number-for-a-span"),  # type: ignore[arg-type]
        pytest.param(RolloutState(answered=["a"]), "answered", id="list-for-a-tuple"),  # type: ignore[arg-type]
        pytest.param(RolloutState(latest=[]), "latest", id="list-for-a-body"),  # type: ignore[arg-type]
        pytest.param(RolloutState(hook=Evidence(NOW)), "hook", id="another-noun"),  # type: ignore[arg-type]
        pytest.param(RolloutState(evidence=Evidence(NOW, last=(WRONG_KEY,))), "last.0.counters", id="key"),
        pytest.param(RolloutState(evidence=Evidence(NOW, last=(Reading(NOW, []),))), "last.0.counters", id="counters"),  # type: ignore[arg-type]
        pytest.param(RolloutState(latest={3: 4}), "latest", id="number-as-a-key"),  # type: ignore[dict-item]
        pytest.param(RolloutState(phase="Idle"), "phase", id="text-for-an-enum"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_not_written(state: RolloutState, field: str) -> None:
    with pytest.raises(StoreError, match=field):
        encode_state(state)


def test_a_long_wrong_value_is_not_repeated_in_full() -> None:
    with pytest.raises(StoreError) as caught:
        decode_state({"weight": "x" * 10_000})
    assert len(str(caught.value)) < 200


def test_a_number_in_a_body_that_is_not_finite_is_written_as_unknown() -> None:
    body = {"canary": float("nan"), "log_e": np.float64("inf"), "n": np.float64(2.5)}
    assert through_json(encode_state(RolloutState(latest=body)))["latest"] == {"canary": None, "log_e": None, "n": 2.5}


def test_what_is_written_of_a_body_is_a_copy_that_later_changes_do_not_reach() -> None:
    body = {"rows": [{"n": 1}]}
    written = encode_state(RolloutState(latest=body))
    body["rows"][0]["n"] = 2
    assert written == {"latest": {"rows": [{"n": 1}]}}


@pytest.mark.parametrize("noun", [n for _, n in inspect.getmembers(model, dataclasses.is_dataclass)])
def test_every_noun_of_the_model_can_be_written(noun: type) -> None:
    with pytest.raises(StoreError, match=noun.__name__):
        decode(noun, [])


def test_nested_nouns_and_pairs_come_back() -> None:
    finding = Finding("errors", Verdict.REGRESSED, "errors", canary=0.5, low=float("-inf"), log_e=float("inf"))
    judgement = Judgement(Verdict.REGRESSED, (finding,), "errors are worse")
    decision = Decision(RolloutState(weight=5), DecisionKind.HOLD, "…", extra=((DecisionKind.DRIFT, "was 30 %"),))
    override = Override("o1", Action.PROMOTE, "r2", "anna", "demo", NOW, full=True)
    record = Record("api/1", "api", NOW, DecisionKind.HOLD, "…", {"n": [1, 2.5, None, "x"]})
    for noun in (judgement, decision, override, record):
        assert same(decode(type(noun), through_json(encode(noun))), noun)
    assert encode((replace(override, full=False),), tuple[Override, ...])[0]["id"] == "o1"
    with pytest.raises(StoreError, match="canary"):
        encode(replace(finding, canary="many"))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"extra\.0"):
        decode(Decision, {"state": {}, "kind": "hold", "sentence": "", "extra": [["drift"]]})


def test_a_type_that_no_noun_uses_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="bytes"):
        encode(b"x")


# ── whatever comes (last, so that a plain case speaks first) ─────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states)
def test_every_state_comes_back_as_it_was_to_the_bit(state: RolloutState) -> None:
    assert same(decode_state(through_json(encode_state(state))), state)


junk: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 2.5, 10**400, "", "x", [], {}, [[]], {"shape": 3}, {"at": []}, ["a"] * 9]
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states, st.data())
def test_a_state_with_junk_in_any_place_is_read_or_refused_with_a_store_error(state: RolloutState, data: Any) -> None:
    saved: Any = through_json(encode_state(state))
    place = saved
    while place:
        step = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[step], dict | list) or data.draw(st.booleans()):
            place[step] = data.draw(junk)
            break
        place = place[step]
    with suppress(StoreError):
        decode_state(saved)

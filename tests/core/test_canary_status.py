"""What stands in a Canary's status and annotation: read and written without a cluster."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd.errors import StoreError
from canaryd.kube import status, words
from canaryd.kube.asking import written
from canaryd.kube.packed import Chest, pack_chest, pack_state, unpack_chest, unpack_state
from canaryd.model import Action, Answer, DecisionKind, Override, Phase, Record, RolloutState, Verdict

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NEARLY_WORDS = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from([*Action, "explode", "", None, 7]),
        "revision": st.text(max_size=250) | st.none() | st.integers(),
        "reason": st.text(max_size=30) | ANY_JSON,
        "by": st.text(max_size=30) | ANY_JSON,
        "id": st.text(max_size=30) | ANY_JSON,
        "at": st.sampled_from(["2026-01-31T12:00:00Z", "2026-01-31", "9999-99-99", 5, "0001-01-01T00:00:00+14:00"]),
        "full": st.booleans() | ANY_JSON,
        "revison": st.text(max_size=3),
    },
)
WORDS = st.builds(
    Override,
    st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40),
    st.sampled_from(Action),
    st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
    st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40),
    st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=80),
    st.datetimes(timezones=st.just(UTC), min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1)),  # noqa: DTZ001
    st.booleans(),
)


# ── what people say ──────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(max_size=200) | ANY_JSON.map(json.dumps) | st.lists(NEARLY_WORDS | ANY_JSON, max_size=5).map(json.dumps))
def test_whatever_stands_in_the_annotation_is_a_word_or_a_refusal_with_a_sentence(text: str) -> None:
    heard = words.heard(text, NOW)
    assert heard == words.heard(text, NOW)
    for word in heard.overrides:
        assert word.id
        assert word.revision or word.action in (Action.ABORT, Action.PAUSE)
        assert word.at.tzinfo is not None
        assert len(word.by) <= 200
        assert (word.by + word.reason + word.id).isprintable()
    for refusal in heard.refusals:
        assert refusal.id
        assert "refused" in refusal.sentence
        last = status.last_override(refusal, None, NOW)
        assert (last["accepted"], len(last["message"]) <= status.LONGEST) == (False, True)
    assert len(set(heard.ids)) == len(heard.ids)
    assert heard.without([words.mark(id_) for id_ in heard.ids]) == words.Heard()


@given(st.lists(WORDS, max_size=5, unique_by=lambda w: w.id.strip()), WORDS)
def test_a_word_that_is_added_is_read_back_after_those_that_wait(waiting: list[Override], new: Override) -> None:
    text: str | None = None
    for word in waiting:
        text = words.added(text, word, (), NOW)
    if new.id in {w.id for w in waiting}:
        return
    text = words.added(text, new, [words.mark(w.id) for w in waiting[:2]], NOW)
    assert words.heard(text, NOW).overrides == (*waiting[2:], new)
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_a_word_without_an_id_is_known_by_what_it_says() -> None:
    one, same, other = (
        words.heard(text, NOW).overrides[0].id
        for text in (
            '{"action": "abort", "reason": "slow"}',
            '[{"reason":"slow","action":"abort"}]',
            '{"action": "abort", "reason": "slow "}',
        )
    )
    assert one == same != other


def test_a_refused_word_is_named_by_its_own_id_so_that_whoever_said_it_finds_the_answer() -> None:
    heard = words.heard('{"action": "promote", "id": "mine", "by": "anna"}', NOW)
    assert heard.ids == ("mine",)
    assert heard.refusals[0].by == "anna"


def test_marks_of_words_that_still_stand_outlive_any_number_of_others() -> None:
    marks: tuple[str, ...] = ()
    for n in range(500):
        marks = words.remembered(marks, ["standing" if n == 0 else f"o{n}"], ["standing", f"o{n}"])
    assert words.mark("standing") in marks
    assert words.mark("o450") in marks
    assert len(marks) <= words.REMEMBERED + words.MOST_WORDS
    assert words.mark("standing") not in words.remembered(marks, [f"p{n}" for n in range(200)], [])


# ── what is packed ───────────────────────────────────────────────────────────────────────────────────────────


def record(n: int, body: dict[str, Any] | None = None, *, tell: bool = False) -> Record:
    return Record(f"shop/api/{n}", "shop/api", NOW, DecisionKind.HOLD, f"decision {n}", body or {"n": n}, tell)


def test_a_state_whose_latest_record_says_the_same_is_written_once() -> None:
    body = {"noise": list(range(500))}
    state = RolloutState(weight=5, latest=body)
    short = pack_state(state, 3, record(1, body))
    assert len(short) < len(pack_state(state, 3)) / 2
    assert unpack_state(short, 3, Chest((record(1, body),))) == state
    assert unpack_state(pack_state(state, 3, record(1, {"other": 1})), 3, Chest()) == state
    with pytest.raises(StoreError, match=r"status\.records"):
        unpack_state(short, 3, Chest())


def test_a_chest_comes_back_as_it_was() -> None:
    word = Override("o1", Action.PAUSE, "r2", "anna", "looks odd", NOW)
    reply = Answer("o1", Action.PAUSE, True, "paused", NOW)
    chest = (
        Chest()
        .plus([record(1, tell=True), record(2)])
        .answered([word], [reply, Answer("x", Action.SKIP, True, "", NOW)])
    )
    assert unpack_chest(pack_chest(chest)) == chest
    assert chest.answered([word], [Answer("o1", Action.PAUSE, False, "other", NOW)]) == chest  # the first counts
    assert chest.owed == ("shop/api/1",)
    assert chest.told({"shop/api/1", "unknown"}).owed == ()


@given(st.binary(max_size=60) | st.text(max_size=60) | ANY_JSON)
def test_a_text_that_is_none_of_ours_is_an_error_and_never_a_crash(text: Any) -> None:
    for unpack in (unpack_chest, lambda t: unpack_state(t, 1, Chest())):
        with pytest.raises(StoreError):
            unpack(text)


def test_a_text_that_would_fill_the_memory_is_refused() -> None:
    import zlib
    from base64 import b64encode

    bomb = b64encode(zlib.compress(b'{"form": 1, "records": "' + b"x" * 50_000_000 + b'"}')).decode()
    with pytest.raises(StoreError, match="too large"):
        unpack_chest(bomb)


# ── what people read ─────────────────────────────────────────────────────────────────────────────────────────


def shown(state: RolloutState, base: dict[str, Any] | None = None, generation: int = 1) -> dict[str, tuple[str, str]]:
    rendered = status.rendered(base, state, generation, NOW)
    return {c["type"]: (c["status"], c["reason"]) for c in rendered["conditions"]}


@pytest.mark.parametrize(
    ("state", "promoted", "progressing"),
    [
        (RolloutState(), ("False", "NothingToRollOut"), ("False", "NothingToRollOut")),
        (RolloutState(number=1), ("False", "Reverted"), ("False", "Reverted")),
        (RolloutState(number=1, phase=Phase.WAITING), ("Unknown", "UnderWay"), ("True", "WaitingForWorkloads")),
        (RolloutState(number=1, phase=Phase.PAUSED), ("Unknown", "UnderWay"), ("Unknown", "Paused")),
        (RolloutState(number=1, phase=Phase.PROMOTING), ("Unknown", "UnderWay"), ("True", "Promoting")),
        (RolloutState(number=1, phase=Phase.ROLLING_BACK), ("Unknown", "UnderWay"), ("True", "RollingBack")),
        (RolloutState(number=1, phase=Phase.ROLLED_BACK), ("False", "RolledBack"), ("False", "RolledBack")),
        (RolloutState(number=1, phase=Phase.SUCCEEDED), ("True", "Succeeded"), ("False", "Succeeded")),
    ],
)
def test_each_situation_has_its_conditions(
    state: RolloutState, promoted: tuple[str, str], progressing: tuple[str, str]
) -> None:
    found = shown(state)
    assert (found["Promoted"], found["Progressing"]) == (promoted, progressing)
    assert found["Healthy"] == ("Unknown", "NotJudged")


def test_every_verdict_has_its_reason_and_only_two_of_them_are_certain() -> None:
    found = {
        verdict: shown(RolloutState(number=1, phase=Phase.PROGRESSING, verdict=verdict))["Healthy"]
        for verdict in Verdict
    }
    assert found == {
        Verdict.HEALTHY: ("True", "Healthy"),
        Verdict.REGRESSED: ("False", "Regressed"),
        Verdict.INCONCLUSIVE: ("Unknown", "Inconclusive"),
        Verdict.BLIND: ("Unknown", "Blind"),
    }


def test_a_condition_that_is_not_about_the_document_is_left_to_whoever_set_it() -> None:
    forbidden = status.with_condition([], status.Condition("Ready", "False", "Forbidden", "…"), 1, NOW)
    assert shown(RolloutState(), {"conditions": forbidden})["Ready"] == ("False", "Forbidden")
    wrong = status.with_condition([], status.invalid(["spec.x: is wrong"]), 1, NOW)
    assert status.is_refused({"conditions": wrong})
    assert shown(RolloutState(), {"conditions": wrong})["Ready"] == ("True", "Valid")


def test_long_texts_are_cut_to_what_the_definition_allows() -> None:
    long = "ä" * 5000
    state = RolloutState(rollout=long, revision=long, stable_revision=long, sentence=long, latest={"decisive": long})
    out = status.rendered(None, state, 1, NOW)
    longest = {key: len(out[key]) for key in ("rollout", "revision", "stableRevision", "message", "decisive")}
    assert longest == {"rollout": 300, "revision": 256, "stableRevision": 256, "message": 1024, "decisive": 253}
    assert all(len(c["message"]) <= 1024 for c in out["conditions"])


@given(
    st.dictionaries(st.sampled_from(["stepWeights", "weight", "evidence", "decisive", "next", "nextLook"]), ANY_JSON)
)
def test_a_body_of_any_shape_is_rendered(latest: dict[str, Any]) -> None:
    state = RolloutState(number=1, phase=Phase.PROGRESSING, step=0, latest=latest, ticked=NOW)
    out = status.rendered(None, state, 1, NOW + timedelta(seconds=1))
    assert json.loads(json.dumps(out, allow_nan=False)) == out


@given(ANY_JSON)
def test_the_client_writes_json_that_says_the_same(value: Any) -> None:
    text = written(value)
    assert json.loads(text) == json.loads(json.dumps(value)) or "nan" in repr(value)
    assert not set("<>&\u2028\u2029") & set(text.decode())


def test_the_client_escapes_as_the_servers_do() -> None:
    assert (
        written({"a": 'ö<&>\u2028"\\\n\x01\x7f'})
        == '{"a":"ö\\u003c\\u0026\\u003e\\u2028\\"\\\\\\n\\u0001\x7f"}'.encode()
    )


# ── a server that drops what it does not know ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", ["version", "state"])
def test_a_status_from_which_a_server_dropped_something_is_never_taken_for_a_new_one(lost: str) -> None:
    state = RolloutState(phase=Phase.SUCCEEDED, stable_revision="r1")
    whole = {**status.rendered(None, state, 1, NOW), "version": 3, "state": pack_state(state, 3, None)}
    assert status.held(whole).state == state
    del whole[lost]
    assert status.pruned(whole).startswith(f"status.{lost}: ")
    with pytest.raises(StoreError, match=f"status.{lost}"):
        status.held(whole)


def test_a_status_with_nothing_but_conditions_is_that_of_a_canary_that_was_never_looked_at() -> None:
    refused = {"conditions": status.with_condition(None, status.invalid(["spec.steps: …"]), 1, NOW)}
    assert status.pruned(refused) == ""
    assert status.held(refused).state is None

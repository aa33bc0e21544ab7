"""What is kept of each decision: one body of plain values, numbered without gaps, about this rollout only."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from test_plan import API, PASSED, TICK, at, judged, known, see, tick, word
from world import START, World, canary

from canaryd import plan, records
from canaryd.model import (
    Action,
    Decision,
    DecisionKind,
    Evidence,
    Finding,
    Judgement,
    Observation,
    Phase,
    Record,
    RolloutState,
    Verdict,
)

FINDING = Finding("errors", Verdict.INCONCLUSIVE, "errors", canary=0.02, stable=0.01, canary_n=500.0, needed=1150.0)
MEASURED = replace(judged(Verdict.INCONCLUSIVE), findings=(FINDING,), decisive="errors", toward_step=0.6, log_e=0.5)


def kept(state: RolloutState | None, decision: Decision, seen: Observation) -> tuple[Record, ...]:
    return records.records(API, state, decision, seen)


def look(
    state: RolloutState, verdict: Verdict | Judgement | None = None, *words: Any, **more: Any
) -> tuple[Decision, Observation]:
    seen = see(state, verdict, *words, **more)
    return plan.decide(API, state, seen), seen


# ── what is worth keeping ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("state", "verdict", "more", "n"),
    [
        pytest.param(at(Phase.PROGRESSING, verdict=Verdict.HEALTHY), None, {}, 0, id="nothing-happened"),
        pytest.param(
            at(Phase.PROGRESSING, verdict=Verdict.HEALTHY), Verdict.HEALTHY, {"scored": TICK}, 1, id="evidence-counted"
        ),
        pytest.param(PASSED, Verdict.HEALTHY, {}, 1, id="a-step"),
        pytest.param(at(Phase.PROGRESSING, verdict=Verdict.HEALTHY), Verdict.BLIND, {}, 1, id="verdict-changed"),
        pytest.param(at(Phase.PROGRESSING, verdict=Verdict.BLIND), Verdict.BLIND, {}, 0, id="verdict-as-before"),
        pytest.param(at(Phase.ROLLED_BACK), None, {}, 0, id="settled"),
        pytest.param(at(Phase.SUCCEEDED), None, {"weight": 40}, 1, id="a-hand-on-the-weight"),
        pytest.param(at(Phase.ROLLING_BACK), None, {}, 1, id="rolled-back"),
    ],
)
def test_what_says_something_is_kept_and_nothing_else(
    state: RolloutState, verdict: Verdict | None, more: dict[str, Any], n: int
) -> None:
    decision, seen = look(state, verdict, **more)
    assert len(kept(state, decision, seen)) == n


def test_a_canary_that_nobody_ever_started_leaves_no_record() -> None:
    seen = see(plan.initial(API), None, wanted=None)
    assert kept(None, plan.decide(API, None, seen), seen) == ()
    begun = see(plan.initial(API), None)
    assert len(kept(None, plan.decide(API, None, begun), begun)) == 1
    silent = Decision(plan.initial(API), DecisionKind.WAIT, "x")
    assert len(kept(None, silent, begun)) == 1


def test_numbers_go_on_from_the_last_one_and_extras_come_first() -> None:
    state = replace(PASSED, decisions=41, blind=timedelta(minutes=1), blind_told=True)
    decision, seen = look(state, Verdict.HEALTHY)
    resumed, advanced = kept(state, decision, seen)
    assert (resumed.id, resumed.kind, resumed.tell) == ("api/42", DecisionKind.RESUMED, True)
    assert (advanced.id, advanced.kind, advanced.tell) == ("api/43", DecisionKind.ADVANCE, True)
    assert resumed.body["sentence"] == resumed.sentence != advanced.sentence
    assert (resumed.body["kind"], resumed.body["severity"]) == ("resumed", "info")
    assert (resumed.canary, resumed.at) == ("api", seen.at)
    first = kept(None, decision, seen)
    assert [r.id for r in first] == ["api/1", "api/2"]


def test_drift_and_blindness_are_warnings() -> None:
    state = replace(at(Phase.PROGRESSING), blind=TICK)
    decision, seen = look(state, Verdict.BLIND, weight=60)
    kinds = {r.kind: r.body["severity"] for r in kept(state, decision, seen)}
    assert kinds[DecisionKind.BLIND] == kinds[DecisionKind.DRIFT] == "warning"


# ── the body ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_body_is_plain_json_with_the_numbers_behind_the_decision() -> None:
    state = replace(at(Phase.PROGRESSING, 2), evidence=known(failures=7), held=timedelta(minutes=1), verdict=None)
    state.evidence.arrays["clock"][7] = 900.0  # type: ignore[union-attr]
    decision, seen = look(state, MEASURED, scored=TICK, trouble=("slow",), evidence=state.evidence)
    body = records.body(API, state, decision, seen)
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert body["canary"] == "api"
    assert (body["phase"], body["step"], body["stepWeights"]) == ("Progressing", 2, [5, 10, 25, 50, 100])
    assert body["weight"] == {
        "before": 25,
        "desired": 25,
        "configured": 25,
        "observed": 0.1,
        "requests": 500.0,
        "confirmed": True,
    }
    assert body["evidence"]["baked"] == 10.0
    assert body["evidence"]["bake"] == 40.0
    assert body["evidence"]["towardStep"] == 0.6
    assert body["evidence"]["intervals"] == 3
    assert body["findings"][0]["canaryN"] == 500.0
    assert body["findings"][0]["verdict"] == "inconclusive"
    assert body["decisive"] == "errors"
    assert body["harmed"] == {"requests": 900.0, "failures": 7.0}
    assert body["at"] == "2026-03-01T12:00:10+00:00"
    assert body["nextLook"] == "2026-03-01T12:00:20+00:00"
    assert body["trouble"] == ["slow"]
    assert body["workloads"] == {"stable": "api-a", "canary": "api-b"}


def test_a_tick_without_a_look_repeats_the_last_numbers() -> None:
    state = at(Phase.PROGRESSING)
    decision, seen = look(state, MEASURED, scored=TICK, evidence=Evidence(START))
    first = records.body(API, state, decision, seen)
    state = replace(decision.state, latest=first)
    decision, seen = look(state, None, word(Action.PAUSE))
    second = records.body(API, state, decision, seen)
    for key in ("findings", "evidence", "decisive", "harmed"):
        assert second[key] == first[key]


def test_a_new_rollout_carries_nothing_of_the_old_one() -> None:
    state = at(Phase.PROGRESSING, 3)
    decision, seen = look(state, MEASURED, scored=TICK, evidence=state.evidence)
    state = replace(decision.state, latest=records.body(API, state, decision, seen))
    restart, seen = look(state, MEASURED, wanted="r3", scored=TICK, evidence=state.evidence)
    body = records.body(API, state, restart, seen)
    assert restart.kind is DecisionKind.RESTART
    assert (body["revision"], body["rollout"], body["verdict"]) == ("r3", "api-2", None)
    assert (body["findings"], body["decisive"]) == ([], None)
    assert body["weight"]["observed"] is None
    assert body["weight"]["before"] == 50
    assert (body["evidence"]["through"], body["evidence"]["towardStep"]) == (None, 0.0)
    assert body["harmed"] == {"requests": 0.0, "failures": 0.0}
    again, seen = look(restart.state, None)
    assert records.body(API, restart.state, again, seen)["findings"] == []


def test_an_answer_is_in_the_body_of_its_own_tick_only() -> None:
    state = at(Phase.PROGRESSING)
    decision, seen = look(state, None, word(Action.PAUSE))
    body = records.body(API, state, decision, seen)
    assert body["override"] == {"id": "w1", "action": "pause", "accepted": True, "by": "anna", "reason": "hotfix"}
    later, seen = look(decision.state, None)
    assert records.body(API, decision.state, later, seen)["override"] is None
    unheard = replace(seen, at=decision.state.answered[-1].at)  # the answer is of this instant, the word is not at hand
    assert records.body(API, decision.state, later, unheard)["override"]["by"] == ""


def test_history_is_in_the_body_in_order() -> None:
    state = waited = replace(at(Phase.WAITING, -1))
    decision, seen = look(waited, Verdict.INCONCLUSIVE)
    history = records.body(API, state, decision, seen)["history"]
    assert [(h["phase"], h["weight"]) for h in history] == [("Progressing", 5)]
    assert history[0]["at"] == "2026-03-01T12:00:10+00:00"


@pytest.mark.parametrize(
    ("state", "verdict", "says"),
    [
        pytest.param(at(Phase.PAUSED), None, "a person: resume", id="paused"),
        pytest.param(at(Phase.WAITING, -1, evidence=None), None, "ready pods, stable's rates", id="waiting"),
        pytest.param(at(Phase.ROLLED_BACK), None, "retry, or a new revision", id="rolled-back"),
        pytest.param(at(Phase.SUCCEEDED), None, "a new revision", id="succeeded"),
        pytest.param(replace(at(Phase.ROLLING_BACK), routed=None), None, "the route", id="rolling-back"),
        pytest.param(at(Phase.PROGRESSING), None, "the next interval", id="nothing-read"),
        pytest.param(at(Phase.PROGRESSING), Verdict.BLIND, "sight", id="blind"),
        pytest.param(at(Phase.PROGRESSING), Verdict.HEALTHY, "bake time, 40 s", id="baking"),
        pytest.param(
            replace(PASSED, baked=timedelta(minutes=1)),
            judged(Verdict.HEALTHY, confirmed=False),
            "a confirmed split",
            id="split",
        ),
        pytest.param(at(Phase.PROGRESSING), MEASURED, "1 150 canary requests", id="requests"),
        pytest.param(at(Phase.PROGRESSING), Verdict.INCONCLUSIVE, "more requests", id="unknown-number"),
    ],
)
def test_the_body_says_what_comes_next(state: RolloutState, verdict: Any, says: str) -> None:
    weight = -1 if state.routed else 25
    decision, seen = look(state, verdict, weight=weight)
    body = records.body(API, state, decision, seen)
    assert body["next"] == says
    assert (body["nextLook"] is None) is state.phase.is_settled


@pytest.mark.parametrize(
    ("phase", "verdict", "shown"),
    [
        (Phase.PROGRESSING, Verdict.HEALTHY, "healthy"),
        (Phase.PROGRESSING, None, None),
        (Phase.ROLLED_BACK, Verdict.REGRESSED, "regressed"),
        (Phase.SUCCEEDED, Verdict.HEALTHY, "healthy"),
        (Phase.IDLE, Verdict.HEALTHY, None),
    ],
)
def test_a_verdict_is_shown_while_it_means_something(phase: Phase, verdict: Verdict | None, shown: str | None) -> None:
    state = at(phase, verdict=verdict)
    decision = tick(API, state)
    assert records.body(API, state, decision, see(state))["verdict"] == shown


def test_outside_of_the_steps_there_is_no_bake_time_to_show() -> None:
    state = at(Phase.WAITING, -1)
    decision, seen = look(state, None, workloads=None)
    assert records.body(API, state, decision, seen)["evidence"]["bake"] == 0.0
    unread = replace(seen, route=None)
    assert records.body(API, state, decision, unread)["weight"]["configured"] is None


def test_nothing_that_json_does_not_know_gets_in() -> None:
    odd = replace(FINDING, canary=None, difference=None, needed=None)
    for verdict in Verdict:
        state = at(Phase.PROGRESSING)
        decision, seen = look(state, replace(judged(verdict), findings=(odd,)), scored=TICK, evidence=known())
        body = records.body(API, state, decision, seen)
        assert json.loads(json.dumps(body, allow_nan=False)) == body
        assert not any(isinstance(v, np.generic) for f in body["findings"] for v in f.values())


def test_the_first_record_of_a_rollout_holds_its_document_without_what_may_be_secret() -> None:
    world = World(
        canary(steps=[{"weight": 20, "bake": "60s"}], afterPromotion={"webhook": "https://a.example/x?t=s3cret"})
    )
    world.turn(6)
    world.start("r2")
    world.turn(3)
    found = world.store.records(world.canaries[0].key, limit=100)
    assert [bool(r.body.get("document")) for r in found] == [False] * (len(found) - 1) + [True]
    document = found[-1].body["document"]
    assert document["spec"]["steps"][0]["weight"] == 20
    assert document["spec"]["afterPromotion"]["webhook"] == "https://a.example/x?…"


def test_the_labels_by_which_people_choose_are_in_the_body_and_bounded() -> None:
    state = at(Phase.PROGRESSING)
    decision, seen = look(state, None)
    assert "labels" not in records.body(API, state, decision, seen)
    labels = {f"label-{n:02}": "x" * 100 for n in range(40)}
    labelled = API.model_copy(update={"metadata": API.metadata.model_copy(update={"labels": labels})})
    told = records.body(labelled, state, decision, seen)["labels"]
    assert told == {f"label-{n:02}": "x" * 63 for n in range(records.MOST_LABELS)}

"""The state machine, rule by rule: what is seen goes in, the desired state and one sentence come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from world import START, canary

from canaryd import plan
from canaryd.model import (
    Action,
    Decision,
    DecisionKind,
    Evidence,
    HookState,
    HookStatus,
    Judgement,
    Observation,
    Override,
    Phase,
    Release,
    RolloutState,
    RouteView,
    Share,
    Verdict,
    WorkloadView,
)
from canaryd.policy import Canary
from canaryd.stats import evidence as tests

API = canary(blindDeadline="1m", maxHold="10m")  # steps 5, 10, 25, 50, 100; interval 10 s; bake 40 s
HOOKED = canary(afterPromotion={"command": ["upgrade"]})
TICK = timedelta(seconds=10)
BAKED = timedelta(seconds=40)
READY = WorkloadView(ready=True)
NEVER = plan.initial(API)


def known(through: datetime = START, failures: float = 0.0) -> Evidence:
    """Evidence in which stable's rates are known."""
    arrays = tests.empty(np.array([50.0, 100.0]), 5)
    arrays["long"][1] = 1000.0
    arrays["quick"][1] = 300.0
    arrays["clock"][tests.CLOCK.index("failures")] = failures
    arrays["worse"] += 1.0
    return Evidence(through=through, edges=np.array([50.0, 100.0]), arrays=arrays, intervals=3)


def at(phase: Phase, step: int = 1, c: Canary = API, **more: Any) -> RolloutState:
    """A rollout of r2 over r1 in this phase, with the weight that belongs to it, in place since START."""
    weight = c.spec.steps[step].weight if step >= 0 else 0
    if phase is Phase.PROMOTING:
        weight = 100
    if phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.SUCCEEDED, Phase.IDLE, Phase.WAITING):
        weight = 0
    base: dict[str, Any] = {
        "rollout": "api-1",
        "number": 1,
        "revision": "r2",
        "stable_revision": "r1",
        "stable": "api-a",
        "canary": "api-b",
        "phase": phase,
        "resume_to": Phase.PROGRESSING if phase is Phase.PAUSED else None,
        "step": -1 if phase in (Phase.WAITING, Phase.IDLE) else step,
        "weight": weight,
        "started": START - timedelta(minutes=5),
        "step_started": START - timedelta(minutes=1),
        "routed": START - timedelta(minutes=1),
        "evidence": known(),
        "ticked": START,
    }
    return RolloutState(**{**base, **more})


def judged(verdict: Verdict, *, confirmed: bool = True, stable_worse: bool = False, says: str = "") -> Judgement:
    share = Share(observed=0.1, requests=500.0, confirmed=confirmed, mismatch=False)
    return Judgement(verdict, (), says or f"it is {verdict}", share=share, stable_worse=stable_worse)


def see(
    state: RolloutState,
    verdict: Verdict | Judgement | None = None,
    *said: Override,
    wanted: str | None = "r2",
    weight: int | None = -1,
    after: timedelta = TICK,
    scored: timedelta = timedelta(0),
    **more: Any,
) -> Observation:
    """One tick after the last: the route has the desired weight unless said otherwise (None: it cannot be read)."""
    found = state.weight if weight == -1 else weight
    route = None if found is None else RouteView(weight=found, version=7, stamped_weight=state.weight)
    return Observation(
        at=(state.ticked or START) + after,
        release=None if wanted is None else Release(wanted, by="anna"),
        **{"route": route, "workloads": READY, "scored": scored, **more},
        judgement=judged(verdict) if isinstance(verdict, Verdict) else verdict,
        overrides=said,
    )


def word(action: Action, revision: str = "r2", id_: str = "w1", **more: Any) -> Override:
    return Override(id=id_, action=action, revision=revision, by="anna", reason="hotfix", at=START, **more)


def tick(c: Canary, state: RolloutState, verdict: Verdict | Judgement | None = None, **more: Any) -> Decision:
    return plan.decide(c, state, see(state, verdict, **more))


def told(decision: Decision) -> list[DecisionKind]:
    """Everything that people are told of in this tick."""
    return [kind for kind, _ in decision.extra] + ([decision.kind] if decision.tell else [])


# ── the order of danger ──────────────────────────────────────────────────────────────────────────────────────

PASSED = replace(at(Phase.PROGRESSING), baked=BAKED, held=timedelta(minutes=20))
BLIND_LONG = replace(at(Phase.PROGRESSING), blind=timedelta(minutes=2), blind_told=True)
BETTER_HOOKED = at(Phase.PROMOTING, 4, HOOKED, hook=HookState("api-1-1", HookStatus.DONE))

ORDER = [
    pytest.param(PASSED, Verdict.REGRESSED, "r3", (), DecisionKind.RESTART, id="new-revision-beats-regressed"),
    pytest.param(
        PASSED, Verdict.REGRESSED, "r2", (word(Action.PROMOTE),), DecisionKind.ROLLBACK, id="regressed-beats-override"
    ),
    pytest.param(
        replace(at(Phase.PAUSED), held=timedelta(hours=1)),
        Verdict.REGRESSED,
        "r2",
        (),
        DecisionKind.ROLLBACK,
        id="regressed-beats-paused",
    ),
    pytest.param(
        at(Phase.PROMOTING, 4), Verdict.REGRESSED, "r2", (), DecisionKind.ROLLBACK, id="regressed-beats-promoting"
    ),
    pytest.param(
        BLIND_LONG, Verdict.BLIND, "r2", (word(Action.PROMOTE),), DecisionKind.OVERRIDE, id="override-beats-blind"
    ),
    pytest.param(
        PASSED, Verdict.HEALTHY, "r2", (word(Action.PAUSE),), DecisionKind.OVERRIDE, id="override-beats-advance"
    ),
    pytest.param(
        at(Phase.ROLLING_BACK), None, "r2", (word(Action.PAUSE),), DecisionKind.REFUSED, id="word-heard-rolling-back"
    ),
    pytest.param(
        replace(at(Phase.PAUSED), blind=timedelta(minutes=2)),
        Verdict.BLIND,
        "r2",
        (),
        DecisionKind.BLIND_DEADLINE,
        id="blind-beats-paused",
    ),
    pytest.param(
        replace(PASSED, phase=Phase.PAUSED), Verdict.HEALTHY, "r2", (), DecisionKind.HOLD, id="paused-beats-advance"
    ),
    pytest.param(BLIND_LONG, Verdict.BLIND, "r2", (), DecisionKind.BLIND_DEADLINE, id="blind-beats-timeout"),
    pytest.param(PASSED, Verdict.HEALTHY, "r2", (), DecisionKind.ADVANCE, id="advance-beats-timeout"),
    pytest.param(PASSED, Verdict.INCONCLUSIVE, "r2", (), DecisionKind.INCONCLUSIVE, id="timeout-beats-hold"),
    pytest.param(at(Phase.PROGRESSING), Verdict.INCONCLUSIVE, "r2", (), DecisionKind.HOLD, id="else-hold"),
]


@pytest.mark.parametrize(("state", "verdict", "wanted", "words", "kind"), ORDER)
def test_danger_comes_before_progress(
    state: RolloutState, verdict: Verdict | None, wanted: str, words: tuple[Override, ...], kind: DecisionKind
) -> None:
    decision = plan.decide(API, state, see(state, verdict, *words, wanted=wanted))
    assert decision.kind is kind
    assert decision.sentence == decision.state.sentence
    assert "api" in decision.sentence


def test_a_regression_takes_all_traffic_away_and_says_how_many_were_harmed() -> None:
    state = replace(at(Phase.PROGRESSING, 2), evidence=known(failures=31))
    rolled = tick(API, state, judged(Verdict.REGRESSED, says="errors 1.9 % canary vs 0.1 % stable"))
    assert rolled.sentence == "api 25 % → 0 %: errors 1.9 % canary vs 0.1 % stable. 31 canary requests failed"
    assert (rolled.state.phase, rolled.state.weight, rolled.severity) == (Phase.ROLLING_BACK, 0, "critical")
    waits = tick(API, rolled.state, weight=25, trouble=("the file cannot be written",))
    assert waits.kind is DecisionKind.HOLD
    unread = tick(API, waits.state, weight=None, trouble=("the file cannot be read",))
    assert "the file cannot be read" in unread.sentence
    done = tick(API, unread.state)
    assert (done.kind, done.state.phase) == (DecisionKind.ROLLED_BACK, Phase.ROLLED_BACK)
    assert "canaryd retry api" in done.sentence


def test_without_a_release_nothing_ever_moves() -> None:
    state = NEVER
    for verdict in (None, *Verdict):
        decision = plan.decide(API, state, see(state, verdict, wanted=None))
        assert decision.kind is DecisionKind.IDLE
        state = decision.state
    assert (state.phase, state.weight, state.number) == (Phase.IDLE, 0, 0)


@pytest.mark.parametrize("action", list(Action))
def test_a_word_before_the_first_release_is_refused_and_not_left_without_an_answer(action: Action) -> None:
    decision = plan.decide(API, None, see(NEVER, None, word(action, revision=""), wanted=None))
    assert decision.kind is DecisionKind.REFUSED
    assert not decision.state.answered[-1].accepted
    assert decision.state.phase is Phase.IDLE


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────

ACCEPTED: dict[Phase, dict[Action, Phase]] = {
    Phase.IDLE: {Action.RETRY: Phase.WAITING},
    Phase.WAITING: {Action.ABORT: Phase.ROLLING_BACK, Action.PAUSE: Phase.PAUSED, Action.SKIP: Phase.WAITING},
    Phase.PROGRESSING: {
        Action.ABORT: Phase.ROLLING_BACK,
        Action.PAUSE: Phase.PAUSED,
        Action.SKIP: Phase.PROGRESSING,
        Action.PROMOTE: Phase.PROGRESSING,
    },
    Phase.PAUSED: {
        Action.ABORT: Phase.ROLLING_BACK,
        Action.RESUME: Phase.PROGRESSING,
        Action.SKIP: Phase.PAUSED,
        Action.PROMOTE: Phase.PROGRESSING,
    },
    Phase.PROMOTING: {Action.ABORT: Phase.ROLLING_BACK},
    Phase.SUCCEEDED: {},
    Phase.ROLLING_BACK: {},
    Phase.ROLLED_BACK: {Action.RETRY: Phase.WAITING},
}


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("phase", list(Phase))
def test_every_word_in_every_phase_is_carried_out_or_refused_with_the_reason(phase: Phase, action: Action) -> None:
    state = at(phase)
    decision = plan.decide(API, state, see(state, Verdict.INCONCLUSIVE, word(action)))
    (answer,) = decision.state.answered
    expected = ACCEPTED[phase].get(action)
    assert answer.accepted is (expected is not None)
    assert answer.sentence == decision.sentence
    assert decision.tell
    assert "anna" in decision.sentence
    assert decision.state.phase is (expected or phase)
    if expected is None:
        assert decision.kind is DecisionKind.REFUSED
        assert phase in decision.sentence or (phase, action) == (Phase.PROMOTING, Action.RETRY)  # no hook has failed
        assert (decision.state.step, decision.state.weight) == (state.step, state.weight)
    else:
        assert decision.kind is DecisionKind.OVERRIDE
        assert "hotfix" in decision.sentence


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("action", list(Action))
def test_a_word_for_another_revision_is_refused(phase: Phase, action: Action) -> None:
    state = at(phase)
    decision = plan.decide(API, state, see(state, None, word(action, revision="r1")))
    assert decision.kind is DecisionKind.REFUSED
    assert "it was said for revision r1, but r2 is being rolled out" in decision.sentence
    assert decision.state.phase is phase


def test_a_word_for_no_revision_means_the_present_one() -> None:
    state = at(Phase.PROGRESSING)
    assert plan.decide(API, state, see(state, None, word(Action.PAUSE, revision=""))).state.phase is Phase.PAUSED


def test_the_same_word_twice_is_carried_out_once() -> None:
    state = at(Phase.PROGRESSING, 0)
    first = plan.decide(API, state, see(state, Verdict.INCONCLUSIVE, word(Action.PROMOTE)))
    assert first.state.weight == 10
    again = plan.decide(API, first.state, see(first.state, Verdict.INCONCLUSIVE, word(Action.PROMOTE)))
    assert (again.kind, again.state.weight, len(again.state.answered)) == (DecisionKind.HOLD, 10, 1)


def test_words_are_carried_out_in_the_order_they_were_said() -> None:
    state = at(Phase.PROGRESSING, 0)
    words = (word(Action.PAUSE, id_="1"), word(Action.PROMOTE, id_="2"), word(Action.ABORT, id_="3"))
    for expected in (Phase.PAUSED, Phase.PROGRESSING, Phase.ROLLING_BACK):
        state = plan.decide(API, state, see(state, None, *words)).state
        assert state.phase is expected
    assert [a.id for a in state.answered] == ["1", "2", "3"]


def test_answers_are_kept_within_bounds() -> None:
    state = at(Phase.PROGRESSING)
    for i in range(plan.ANSWERS + 5):
        state = plan.decide(API, state, see(state, None, word(Action.RESUME, id_=f"w{i}"))).state
    assert [a.id for a in state.answered] == [f"w{i}" for i in range(5, plan.ANSWERS + 5)]


def test_history_is_kept_within_bounds() -> None:
    state = at(Phase.PROGRESSING)
    for i in range(plan.HISTORY):
        state = plan.decide(API, state, see(state, None, word(Action.PAUSE, id_=f"p{i}"))).state
        state = plan.decide(API, state, see(state, None, word(Action.RESUME, id_=f"r{i}"))).state
    assert len(state.history) == plan.HISTORY
    assert "resumed" in state.history[-1].sentence


def test_promote_in_full_goes_straight_to_promotion() -> None:
    state = replace(at(Phase.PROGRESSING, 0), latest={"evidence": {"towardRollback": 0.71, "towardStep": 0.2}})
    decision = plan.decide(API, state, see(state, None, word(Action.PROMOTE, full=True)))
    assert (decision.state.phase, decision.state.step, decision.state.weight) == (Phase.PROMOTING, 4, 100)
    assert "against 71 % of the evidence needed to roll back" in decision.sentence
    assert decision.severity == "warning"


def test_promote_says_how_much_evidence_was_there() -> None:
    state = replace(at(Phase.PROGRESSING, 0), latest={"evidence": {"towardRollback": 0.0, "towardStep": 0.2}})
    decision = plan.decide(API, state, see(state, None, word(Action.PROMOTE)))
    assert "with 20 % of the evidence needed for the step" in decision.sentence
    aborted = plan.decide(API, state, see(state, None, word(Action.ABORT)))
    assert "with 20 % of the evidence for the next step" in aborted.sentence


def test_promote_needs_traffic_on_the_canary_first() -> None:
    state = replace(at(Phase.PAUSED, -1), resume_to=Phase.WAITING)
    refused = plan.decide(API, state, see(state, None, word(Action.PROMOTE)))
    assert "no traffic yet; resume first" in refused.sentence
    resumed = plan.decide(API, state, see(state, None, word(Action.RESUME)))
    assert resumed.state.phase is Phase.WAITING


def test_skip_needs_no_proof_but_bake_time_and_a_confirmed_split() -> None:
    state = at(Phase.PROGRESSING)
    state = plan.decide(API, state, see(state, None, word(Action.SKIP))).state
    assert state.skip_analysis
    assert tick(API, state, Verdict.INCONCLUSIVE).kind is DecisionKind.HOLD  # not baked
    baked = replace(state, baked=BAKED)
    assert tick(API, baked, judged(Verdict.INCONCLUSIVE, confirmed=False)).kind is DecisionKind.HOLD
    assert tick(API, baked, Verdict.BLIND).kind is DecisionKind.HOLD
    moved = tick(API, baked, Verdict.INCONCLUSIVE)
    assert (moved.kind, moved.state.weight) == (DecisionKind.ADVANCE, 25)
    assert "skipped by a person" in moved.sentence


def test_skip_keeps_the_safety_net() -> None:
    state = replace(at(Phase.PROGRESSING), skip_analysis=True, baked=BAKED)
    assert tick(API, state, Verdict.REGRESSED).kind is DecisionKind.ROLLBACK


def test_skip_holds_for_one_rollout_only() -> None:
    state = replace(at(Phase.PROGRESSING), skip_analysis=True, baked=BAKED)
    assert not tick(API, state, None, wanted="r3").state.skip_analysis


def test_retry_after_a_rollback_begins_with_fresh_evidence() -> None:
    state = replace(at(Phase.ROLLED_BACK), verdict=Verdict.REGRESSED, baked=BAKED)
    decision = plan.decide(API, state, see(state, None, word(Action.RETRY)))
    after = decision.state
    assert (after.phase, after.step, after.weight, after.evidence) == (Phase.WAITING, -1, 0, None)
    assert (after.rollout, after.number, after.revision, after.verdict) == ("api-2", 2, "r2", None)
    assert after.baked == timedelta(0)
    assert "tried again from the first step" in decision.sentence


def test_retry_of_what_nobody_wants_any_more_is_refused_instead_of_begun_and_ended() -> None:
    for phase in (Phase.ROLLED_BACK, Phase.IDLE):
        state = at(phase)
        decision = plan.decide(API, state, see(state, None, word(Action.RETRY), wanted="r1"))
        assert decision.kind is DecisionKind.REFUSED
        assert "r1 is what should run" in decision.sentence


def test_retry_without_any_revision_is_refused() -> None:
    decision = plan.decide(API, NEVER, see(NEVER, None, word(Action.RETRY, revision=""), wanted=None))
    assert "no revision to try again" in decision.sentence


def test_pause_keeps_weight_and_evidence_and_resume_goes_on() -> None:
    state = replace(at(Phase.PROGRESSING, 2), baked=timedelta(seconds=20), held=timedelta(seconds=30))
    paused = plan.decide(API, state, see(state, Verdict.INCONCLUSIVE, word(Action.PAUSE), scored=TICK)).state
    assert (paused.phase, paused.resume_to, paused.weight) == (Phase.PAUSED, Phase.PROGRESSING, 25)
    later = tick(API, paused, Verdict.HEALTHY, scored=TICK)
    assert later.kind is DecisionKind.HOLD
    assert later.state.held == paused.held  # a pause is no reason to give up
    assert later.state.baked == BAKED  # but evidence goes on
    resumed = plan.decide(API, later.state, see(later.state, None, word(Action.RESUME, id_="w2"))).state
    assert (resumed.phase, resumed.resume_to, resumed.baked) == (Phase.PROGRESSING, None, BAKED)
    assert tick(API, resumed, Verdict.HEALTHY).kind is DecisionKind.ADVANCE


# ── revisions ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.PROMOTING])
def test_a_new_revision_starts_at_the_first_step_with_fresh_evidence(phase: Phase) -> None:
    state = replace(at(phase, 2), baked=BAKED, blind=TICK, verdict=Verdict.HEALTHY, latest={"evidence": {}})
    decision = tick(API, state, Verdict.HEALTHY, wanted="r3")
    after = decision.state
    assert decision.kind is (DecisionKind.RESTART if phase.is_active else DecisionKind.START)
    assert decision.tell
    assert (after.phase, after.step, after.weight, after.revision) == (Phase.WAITING, -1, 0, "r3")
    assert (after.rollout, after.evidence, after.baked, after.held) == ("api-2", None, timedelta(0), timedelta(0))
    assert (after.blind, after.routed, after.verdict, after.hook) == (timedelta(0), None, None, None)
    assert after.resume_to is None
    assert len(after.history) == 1
    assert ("replaces r2" in decision.sentence) is phase.is_active


def test_the_first_release_starts() -> None:
    decision = plan.decide(API, None, see(NEVER, None, wanted="r1"))
    assert decision.sentence == "api: rollout of revision r1 begins by anna"
    assert decision.state.rollout == "api-1"
    nameless = plan.decide(API, None, replace(see(NEVER), release=Release("r1")))
    assert nameless.sentence == "api: rollout of revision r1 begins"


@pytest.mark.parametrize("hook", [None, HookState("api-1-1")])
def test_a_newer_revision_while_promoting_waits_and_is_not_promoted_unseen(hook: HookState | None) -> None:
    c = HOOKED if hook else API
    state = at(Phase.PROMOTING, 4, c, hook=hook)
    decision = tick(c, state, Verdict.HEALTHY, wanted="r3")
    if hook is None:
        assert (decision.kind, decision.state.stable_revision) == (DecisionKind.SUCCEED, "r2")
        begun = tick(c, decision.state, wanted="r3")
        assert (begun.kind, begun.state.revision, begun.state.weight) == (DecisionKind.START, "r3", 0)
        assert (begun.state.stable, begun.state.canary) == ("api-b", "api-a")
    else:
        assert (decision.kind, decision.state.revision) == (DecisionKind.HOOK, "r2")


def test_the_same_revision_after_a_rollback_waits_for_a_person() -> None:
    state = at(Phase.ROLLED_BACK, sentence="api rolled back: because")
    for _ in range(3):
        decision = tick(API, state)
        assert (decision.kind, decision.state.phase) == (DecisionKind.IDLE, Phase.ROLLED_BACK)
        assert decision.sentence == "api rolled back: because"
        state = decision.state
    assert "was rolled back" in tick(API, at(Phase.ROLLED_BACK)).sentence


@pytest.mark.parametrize(
    "phase", [p for p in Phase if p.is_active and p not in (Phase.PROMOTING,)], ids=lambda p: str(p)
)
def test_back_to_the_stable_revision_ends_with_weight_0_and_no_alarm(phase: Phase) -> None:
    state = at(phase, 3)
    decision = tick(API, state, Verdict.INCONCLUSIVE, wanted="r1")
    assert (decision.kind, decision.severity) == (DecisionKind.REVERT, "info")
    assert (decision.state.phase, decision.state.weight, decision.extra) == (Phase.IDLE, 0, ())
    late = 0 if phase is Phase.WAITING else 50  # the route is not there yet: no hand is suspected
    later = tick(API, decision.state, wanted="r1", weight=late)
    assert (later.kind, later.extra) == (DecisionKind.IDLE, ())
    assert later.sentence == decision.sentence


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.IDLE])
def test_wanting_what_is_stable_already_changes_nothing(phase: Phase) -> None:
    decision = tick(API, at(phase), wanted="r1")
    assert (decision.kind, decision.state.phase) == (DecisionKind.IDLE, phase)


def test_an_idle_canary_without_words_says_so() -> None:
    assert tick(API, at(Phase.IDLE)).sentence == "api: nothing to roll out"


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────


def waiting(**more: Any) -> RolloutState:
    return at(Phase.WAITING, -1, **more)


@pytest.mark.parametrize(
    ("state", "verdict", "seen", "says"),
    [
        pytest.param(waiting(), None, {"workloads": WorkloadView(False, "api-b: 1 of 3")}, "1 of 3", id="not-ready"),
        pytest.param(waiting(), None, {"workloads": None}, "the workloads cannot be seen", id="unseen"),
        pytest.param(waiting(), None, {"workloads": None, "trouble": ("refused",)}, "refused", id="trouble"),
        pytest.param(waiting(), Verdict.BLIND, {}, "before canaryd can see", id="blind"),
        pytest.param(waiting(evidence=None), None, {}, "learning the rates of api-a", id="nothing-read"),
        pytest.param(
            waiting(evidence=Evidence(START)), Verdict.INCONCLUSIVE, {}, "learning the rates", id="nothing-counted"
        ),
    ],
)
def test_no_traffic_before_everything_is_ready(
    state: RolloutState, verdict: Verdict | None, seen: dict[str, Any], says: str
) -> None:
    decision = tick(API, state, verdict, **seen)
    assert (decision.kind, decision.state.weight, decision.tell) == (DecisionKind.WAIT, 0, False)
    assert says in decision.sentence


def test_ready_and_known_takes_the_first_step() -> None:
    decision = tick(API, waiting(), Verdict.INCONCLUSIVE)
    assert (decision.kind, decision.state.phase, decision.state.weight) == (
        DecisionKind.ADVANCE,
        Phase.PROGRESSING,
        5,
    )
    assert decision.sentence == "api 0 % → 5 %: api-b is ready; first step of 5"


def test_waiting_too_long_is_told_once_and_again_every_half_hour() -> None:
    state, times = waiting(), []
    for i in range(300):
        decision = tick(API, state, None, workloads=WorkloadView(False, "no pods"))
        state = decision.state
        if decision.tell:
            times.append((i + 1) * TICK)
            assert decision.severity == "warning"
    assert times == [timedelta(minutes=10), timedelta(minutes=40)]


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "judgement", "moves"),
    [
        pytest.param({}, judged(Verdict.HEALTHY), True, id="all-there"),
        pytest.param({"baked": BAKED - TICK}, judged(Verdict.HEALTHY), False, id="not-baked"),
        pytest.param({"routed": None}, judged(Verdict.HEALTHY), False, id="not-routed"),
        pytest.param({}, judged(Verdict.HEALTHY, confirmed=False), False, id="split-not-confirmed"),
        pytest.param({}, replace(judged(Verdict.HEALTHY), share=None), False, id="no-split"),
        pytest.param({}, judged(Verdict.INCONCLUSIVE), False, id="not-proven"),
        pytest.param({}, None, False, id="nothing-new"),
    ],
)
def test_a_step_is_taken_only_when_proven_baked_and_confirmed(
    change: dict[str, Any], judgement: Judgement | None, moves: bool
) -> None:
    state = replace(at(Phase.PROGRESSING), **{"baked": BAKED, **change})
    weight = 99 if state.routed is None else -1  # a route that does not have it
    decision = tick(API, state, judgement, weight=weight)
    assert (decision.state.weight > state.weight) is moves
    assert decision.kind is (DecisionKind.ADVANCE if moves else DecisionKind.HOLD)
    if moves:
        assert decision.state.step_started == decision.state.ticked
        assert (decision.state.baked, decision.state.held, decision.state.routed) == (timedelta(0),) * 2 + (None,)


def test_no_step_is_taken_when_the_route_cannot_be_read() -> None:
    state = replace(at(Phase.PROGRESSING), baked=BAKED)
    decision = tick(API, state, Verdict.HEALTHY, weight=None, trouble=("route unreadable",))
    assert decision.kind is DecisionKind.HOLD
    assert "route unreadable" in decision.sentence


def test_a_hold_says_what_is_waited_for() -> None:
    state = at(Phase.PROGRESSING)
    assert "40 s of bake time left" in tick(API, state, Verdict.HEALTHY).sentence
    baked = replace(state, baked=BAKED)
    assert "split is not confirmed" in tick(API, baked, judged(Verdict.HEALTHY, confirmed=False)).sentence
    assert "it is inconclusive" in tick(API, baked, Verdict.INCONCLUSIVE).sentence
    unseen = tick(API, baked, judged(Verdict.HEALTHY), weight=None).sentence
    assert unseen.endswith("it is healthy")
    assert "nothing counted yet" in tick(API, state, None).sentence
    assert tick(API, replace(state, sentence="as before"), None).sentence == "as before"


def drive(c: Canary, state: RolloutState, most: int = 40) -> list[int]:
    """Weights of a canary that is healthy at every tick, until it is promoted."""
    weights = []
    for _ in range(most):
        decision = tick(c, state, Verdict.HEALTHY, scored=TICK)
        state = decision.state
        if not weights or weights[-1] != state.weight:
            weights.append(state.weight)
        if state.phase is Phase.SUCCEEDED:
            return weights
    raise AssertionError(state.sentence)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([5, 10, 25, 50, 100], [5, 10, 25, 50, 100, 0]),
        ([20, 60], [20, 60, 100, 0]),  # ends below 100: promotion is the rest
        ([100], [100, 0]),
        ([30], [30, 100, 0]),
    ],
)
def test_weights_follow_the_steps_and_promotion_swaps_the_roles(steps: list[int], expected: list[int]) -> None:
    c = canary(steps=steps)
    assert drive(c, waiting()) == expected


def test_promotion_swaps_the_roles() -> None:
    done = tick(API, at(Phase.PROMOTING, 4), Verdict.HEALTHY).state
    assert (done.phase, done.stable, done.canary, done.weight) == (Phase.SUCCEEDED, "api-b", "api-a", 0)
    assert (done.stable_revision, done.evidence, done.routed) == ("r2", None, None)


def test_promotion_waits_for_the_route() -> None:
    decision = tick(API, replace(at(Phase.PROMOTING, 4), routed=None), Verdict.HEALTHY, weight=50)
    assert (decision.kind, decision.state.phase) == (DecisionKind.HOLD, Phase.PROMOTING)
    assert "the route is being written" in decision.sentence


def test_a_plan_that_became_shorter_goes_on_at_its_last_step() -> None:
    short = canary(steps=[5, 10])
    state = replace(at(Phase.PROGRESSING, 3), baked=BAKED)
    held = tick(short, state, Verdict.INCONCLUSIVE)
    assert (held.state.step, held.state.weight) == (1, 50)
    moved = tick(short, state, Verdict.HEALTHY)
    assert (moved.kind, moved.state.phase) == (DecisionKind.PROMOTE, Phase.PROMOTING)


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_bake_counts_scored_time_only_and_never_time_without_sight() -> None:
    state = at(Phase.PROGRESSING)
    assert tick(API, state, Verdict.INCONCLUSIVE).state.baked == timedelta(0)
    assert tick(API, state, Verdict.INCONCLUSIVE, scored=TICK).state.baked == TICK
    blind = tick(API, state, Verdict.BLIND, scored=TICK).state
    assert (blind.baked, blind.held, blind.blind) == (timedelta(0), timedelta(0), TICK)


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
@pytest.mark.parametrize("verdict", [Verdict.HEALTHY, Verdict.INCONCLUSIVE, Verdict.BLIND, None])
def test_a_clock_that_jumps_reaches_no_deadline(jump: timedelta, verdict: Verdict | None) -> None:
    c = canary(onBlind="rollback", onInconclusive="rollback", blindDeadline="1m", maxHold="10m")
    state = at(Phase.PROGRESSING)
    decision = tick(c, state, verdict, after=jump)
    assert decision.kind is DecisionKind.HOLD
    after = decision.state
    assert after.baked == timedelta(0)
    assert after.held + after.blind in (timedelta(0), 2 * TICK)
    assert decision.state.ticked == START + jump
    assert tick(c, after, verdict).kind is DecisionKind.HOLD


# ── without sight ────────────────────────────────────────────────────────────────────────────────────────────


def blind_ticks(c: Canary, n: int) -> list[Decision]:
    state, out = at(Phase.PROGRESSING), []
    for _ in range(n):
        out.append(tick(c, state, judged(Verdict.BLIND, says="connection refused")))
        state = out[-1].state
    return out


def test_blindness_is_told_once_then_at_the_deadline_then_every_half_hour() -> None:
    ticks = blind_ticks(API, 400)
    heard = {(i + 1) * TICK: kinds for i, d in enumerate(ticks) if (kinds := told(d))}
    assert heard == {
        timedelta(seconds=20): [DecisionKind.BLIND],
        timedelta(minutes=1): [DecisionKind.BLIND_DEADLINE],
        timedelta(minutes=31): [DecisionKind.BLIND_DEADLINE],
        timedelta(minutes=61): [DecisionKind.BLIND_DEADLINE],
    }
    assert {d.state.weight for d in ticks} == {10}
    assert "no sight for 20 s (connection refused)" in ticks[1].extra[0][1]
    assert "nothing moves, said again in 30 min" in ticks[-1].sentence


def test_one_missed_tick_is_not_worth_a_word_and_sight_that_returns_is_told_once() -> None:
    one = blind_ticks(API, 1)[0].state
    assert told(tick(API, one, Verdict.INCONCLUSIVE)) == []
    many = blind_ticks(API, 10)[-1].state
    seeing = tick(API, many, Verdict.INCONCLUSIVE)
    assert told(seeing) == [DecisionKind.RESUMED]
    assert "api sees again after 1 min 40 s" in seeing.extra[0][1]
    assert (seeing.state.blind, seeing.state.blind_told) == (timedelta(0), False)
    assert told(tick(API, seeing.state, Verdict.INCONCLUSIVE)) == []


def test_a_second_spell_of_blindness_is_told_again() -> None:
    state = tick(API, blind_ticks(API, 10)[-1].state, Verdict.INCONCLUSIVE).state
    heard = []
    for _ in range(10):
        decision = tick(API, state, Verdict.BLIND)
        heard += told(decision)
        state = decision.state
    assert heard == [DecisionKind.BLIND, DecisionKind.BLIND_DEADLINE]


def test_a_hold_that_was_told_before_does_not_swallow_the_blind_deadline() -> None:
    state = replace(at(Phase.PROGRESSING), held=timedelta(hours=4), deadline_told=timedelta(hours=4))
    heard = []
    for _ in range(10):
        decision = tick(API, state, Verdict.BLIND)
        heard += told(decision)
        state = decision.state
    assert heard == [DecisionKind.BLIND, DecisionKind.BLIND_DEADLINE]


def test_on_blind_rollback_rolls_back_at_the_deadline() -> None:
    c = canary(onBlind="rollback", blindDeadline="1m")
    ticks = blind_ticks(c, 6)
    assert [d.kind for d in ticks] == [DecisionKind.HOLD] * 5 + [DecisionKind.ROLLBACK]
    assert "onBlind: rollback after 1 min" in ticks[-1].sentence


def test_a_blind_promotion_with_a_hook_stays_where_it_is() -> None:
    state = replace(BETTER_HOOKED, blind=timedelta(hours=1))
    decision = tick(HOOKED, state, Verdict.BLIND)
    assert (decision.kind, decision.state.weight) == (DecisionKind.HOLD, 100)


# ── no decision in time ──────────────────────────────────────────────────────────────────────────────────────


def long_held(c: Canary, n: int, verdict: Verdict = Verdict.INCONCLUSIVE) -> list[Decision]:
    state, out = at(Phase.PROGRESSING), []
    for _ in range(n):
        out.append(tick(c, state, verdict))
        state = out[-1].state
    return out


def test_no_decision_in_time_holds_and_is_told_once_then_every_half_hour() -> None:
    ticks = long_held(API, 300)
    heard = {(i + 1) * TICK: kinds for i, d in enumerate(ticks) if (kinds := told(d))}
    assert heard == {
        timedelta(minutes=10): [DecisionKind.INCONCLUSIVE],
        timedelta(minutes=40): [DecisionKind.INCONCLUSIVE],
    }
    assert "Choose: canaryd promote api" in ticks[-1].sentence
    assert {d.state.weight for d in ticks} == {10}


def test_no_decision_in_time_rolls_back_when_asked_to() -> None:
    ticks = long_held(canary(onInconclusive="rollback", maxHold="1m"), 6)
    assert [d.kind for d in ticks] == [DecisionKind.HOLD] * 5 + [DecisionKind.ROLLBACK]
    assert "onInconclusive: rollback" in ticks[-1].sentence


def test_no_decision_in_time_promotes_when_asked_to_and_says_it_is_not_proven() -> None:
    c = canary(onInconclusive="promote", maxHold="1m")
    ticks = long_held(c, 6)
    assert [d.kind for d in ticks] == [DecisionKind.HOLD] * 5 + [DecisionKind.ADVANCE]
    assert "not proven healthy" in ticks[-1].sentence
    unrouted = replace(at(Phase.PROGRESSING), held=timedelta(minutes=2), routed=None)
    assert tick(c, unrouted, Verdict.INCONCLUSIVE, weight=5).kind is DecisionKind.INCONCLUSIVE


def test_a_steps_own_timeout_counts() -> None:
    c = canary(steps=[{"weight": 5, "bake": "10s", "timeout": "20s"}, 100], onInconclusive="rollback")
    state = at(Phase.PROGRESSING, 0, c)
    first = tick(c, state, Verdict.INCONCLUSIVE)
    assert tick(c, first.state, Verdict.INCONCLUSIVE).kind is DecisionKind.ROLLBACK


# ── a hand on the weight ─────────────────────────────────────────────────────────────────────────────────────


def test_a_hand_on_the_weight_is_reported_with_its_name_and_undone() -> None:
    state = replace(at(Phase.PROGRESSING), baked=BAKED)
    edited = RouteView(weight=60, version=7, stamped_weight=10, editor="anna, 14:02:11")
    decision = plan.decide(API, state, replace(see(state, Verdict.HEALTHY), route=edited))
    assert told(decision) == [DecisionKind.DRIFT]
    assert decision.extra[0][1] == (
        "api: somebody set the weight to 60 % (anna, 14:02:11); put back to 10 %, the current step"
    )
    assert (decision.kind, decision.state.weight, decision.state.routed) == (DecisionKind.HOLD, 10, None)
    again = plan.decide(API, decision.state, replace(see(decision.state), route=edited))
    assert told(again) == []  # once
    back = tick(API, again.state, None)
    assert back.state.routed == back.state.ticked


def test_a_hand_on_a_settled_route_is_undone_too() -> None:
    decision = tick(API, at(Phase.SUCCEEDED), weight=30)
    assert "put back to 0 %, as decided" in decision.extra[0][1]
    assert "somebody set the weight to 30 %;" in decision.extra[0][1]


def test_the_route_is_left_alone_before_the_first_rollout() -> None:
    state = NEVER
    for weight in (0, 40, 0, 70):
        decision = plan.decide(API, state, see(state, None, wanted=None, weight=weight))
        assert told(decision) == []
        assert decision.state.weight == 0
        state = decision.state


# ── the afterPromotion hook ──────────────────────────────────────────────────────────────────────────────────


def hooked(status: HookStatus | None, weight: int = 100, detail: str = "", **more: Any) -> RolloutState:
    hook = None if status is None else HookState("api-1-1", status, detail)
    return replace(at(Phase.PROMOTING, 4, HOOKED, hook=hook), weight=weight, **more)


def test_the_hook_is_owed_before_it_is_started() -> None:
    decision = tick(HOOKED, hooked(None), Verdict.HEALTHY)
    assert decision.state.hook == HookState("api-1-1", HookStatus.OWED)
    assert (decision.kind, decision.tell) == (DecisionKind.HOOK, False)


def test_a_failed_hook_holds_at_100_and_is_told_once() -> None:
    failed = HookState("api-1-1", HookStatus.FAILED, "exit code 1")
    first = tick(HOOKED, hooked(HookStatus.OWED), Verdict.HEALTHY, hook=failed)
    assert told(first) == [DecisionKind.HOOK]
    assert "exit code 1" in first.sentence
    assert "canaryd retry api" in first.sentence
    second = tick(HOOKED, first.state, Verdict.HEALTHY)
    assert (told(second), second.state.weight, second.state.phase) == ([], 100, Phase.PROMOTING)


def test_retry_of_a_failed_hook_is_a_new_run_and_of_a_running_one_is_refused() -> None:
    state = hooked(HookStatus.FAILED)
    decision = plan.decide(HOOKED, state, see(state, Verdict.HEALTHY, word(Action.RETRY)))
    assert decision.state.hook == HookState("api-1-2")
    refused = plan.decide(HOOKED, decision.state, see(decision.state, None, word(Action.RETRY, id_="w2")))
    assert "hook has not failed" in refused.sentence
    third = replace(decision.state, hook=HookState("api-1-2", HookStatus.FAILED))
    assert plan.decide(HOOKED, third, see(third, None, word(Action.RETRY, id_="w3"))).state.hook == HookState("api-1-3")


def test_after_the_hook_traffic_goes_back_step_by_step_without_a_swap() -> None:
    state, weights = hooked(HookStatus.DONE), [100]
    for _ in range(30):
        decision = tick(HOOKED, state, Verdict.INCONCLUSIVE, scored=TICK)
        if decision.state.weight != state.weight:
            weights.append(decision.state.weight)
        state = decision.state
        if state.phase is Phase.SUCCEEDED:
            break
    assert weights == [100, 50, 25, 10, 5, 0]
    assert (state.stable, state.canary, state.stable_revision) == ("api-a", "api-b", "r2")


def test_what_was_proven_is_forgotten_when_stable_changed_but_not_its_rates() -> None:
    state = hooked(HookStatus.DONE)
    assert state.evidence is not None
    before = {k: v.copy() for k, v in state.evidence.arrays.items()}
    after = tick(HOOKED, state, Verdict.INCONCLUSIVE).state.evidence
    assert after is not None
    assert after.intervals == 0
    assert not after.arrays["worse"].any()
    assert after.arrays["long"][1, 0] == 1000.0
    assert all((state.evidence.arrays[k] == v).all() for k, v in before.items())  # the old ones are not changed
    for empty in (None, Evidence(START)):
        assert tick(HOOKED, replace(state, evidence=empty), Verdict.INCONCLUSIVE).state.evidence == empty


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        pytest.param(hooked(HookStatus.DONE), None, id="nothing-read"),
        pytest.param(hooked(HookStatus.DONE), Verdict.BLIND, id="blind"),
        pytest.param(hooked(HookStatus.DONE, 50), Verdict.HEALTHY, id="no-look-at-this-weight-yet"),
    ],
)
def test_traffic_goes_back_only_with_open_eyes(state: RolloutState, verdict: Verdict | None) -> None:
    decision = tick(HOOKED, state, verdict)
    assert (decision.kind, decision.state.weight) == (DecisionKind.HOLD, state.weight)


def test_a_stable_that_fails_after_its_upgrade_loses_all_traffic_until_a_person_upgrades_it_again() -> None:
    state = hooked(HookStatus.DONE, 50)
    decision = tick(HOOKED, state, judged(Verdict.INCONCLUSIVE, stable_worse=True))
    assert (decision.state.weight, decision.severity, decision.tell) == (100, "critical", True)
    assert "api-a fails more than api-b" in decision.sentence
    state = decision.state
    for _ in range(5):
        later = tick(HOOKED, state, Verdict.INCONCLUSIVE, scored=TICK)
        assert (later.state.weight, told(later)) == (100, [])
        state = later.state
    again = plan.decide(HOOKED, state, see(state, None, word(Action.RETRY)))
    assert again.state.hook == HookState("api-1-2")


def test_a_regression_after_the_hook_began_asks_a_person_once_and_hears_the_answer() -> None:
    state, heard = hooked(HookStatus.OWED), []
    for _ in range(20):
        decision = tick(HOOKED, state, Verdict.REGRESSED)
        heard += told(decision)
        state = decision.state
        assert (decision.kind, state.weight) == (DecisionKind.HOLD, 100)
        assert "a person must choose" in decision.sentence
    assert heard == [DecisionKind.HOLD]
    refused = plan.decide(HOOKED, state, see(state, Verdict.REGRESSED, word(Action.PAUSE)))
    assert refused.kind is DecisionKind.REFUSED
    aborted = plan.decide(HOOKED, refused.state, see(refused.state, Verdict.REGRESSED, word(Action.ABORT, id_="w2")))
    assert (aborted.kind, aborted.state.phase, aborted.state.weight) == (DecisionKind.OVERRIDE, Phase.ROLLING_BACK, 0)


def test_a_regression_while_the_hook_runs_does_not_lose_its_news() -> None:
    failed = HookState("api-1-1", HookStatus.FAILED, "exit code 1")
    assert tick(HOOKED, hooked(HookStatus.OWED), Verdict.REGRESSED, hook=failed).state.hook == failed


def test_a_promotion_with_a_hook_that_regresses_before_the_hook_is_rolled_back() -> None:
    decision = tick(HOOKED, hooked(None), Verdict.REGRESSED)
    assert (decision.kind, decision.state.weight) == (DecisionKind.ROLLBACK, 0)


# ── purity ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", plan.RULES, ids=lambda r: r.__name__)
def test_every_rule_leaves_its_input_alone(rule: Callable[..., Decision | None]) -> None:
    for phase in Phase:
        state = at(phase)
        seen = see(state, Verdict.INCONCLUSIVE, word(Action.ABORT))
        copy = replace(state)
        rule(API, state, seen)
        assert state == copy

"""Whatever comes in whatever order: what the state machine must never do, searched for by hypothesis."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from world import START, canary

from canaryd import plan, records
from canaryd.codec import encode, encode_state
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
    RouteView,
    Share,
    Verdict,
    WorkloadView,
)
from canaryd.policy import Canary
from canaryd.stats import evidence as tests

# Every edge that may ever be taken; staying is always allowed.
EDGES: dict[Phase, set[Phase]] = {
    Phase.IDLE: {Phase.WAITING},
    Phase.WAITING: {Phase.PROGRESSING, Phase.PAUSED, Phase.ROLLING_BACK, Phase.IDLE},
    Phase.PROGRESSING: {Phase.PAUSED, Phase.PROMOTING, Phase.ROLLING_BACK, Phase.IDLE, Phase.WAITING},
    Phase.PAUSED: {Phase.WAITING, Phase.PROGRESSING, Phase.PROMOTING, Phase.ROLLING_BACK, Phase.IDLE},
    Phase.PROMOTING: {Phase.SUCCEEDED, Phase.ROLLING_BACK},
    Phase.SUCCEEDED: {Phase.WAITING},
    Phase.ROLLING_BACK: {Phase.ROLLED_BACK, Phase.WAITING, Phase.IDLE},
    Phase.ROLLED_BACK: {Phase.WAITING},
}
EXAMPLES = 8  # for each canary; 300 of them found nothing more when this was written
HOOK: dict[str, Any] = {"afterPromotion": {"command": ["upgrade"]}}
CANARIES = (
    canary(blindDeadline="30s", maxHold="2m", steps=[{"weight": w, "bake": "20s"} for w in (5, 20, 100)]),
    canary(blindDeadline="30s", maxHold="2m", steps=[10, 40], onBlind="rollback", onInconclusive="rollback"),
    canary(blindDeadline="30s", maxHold="2m", steps=[30], onInconclusive="promote", **HOOK),
    canary(steps=[{"weight": w, "bake": "10s"} for w in (10, 50, 90)], **HOOK),
)
KNOWN = tests.empty(np.array([50.0]), 3)
KNOWN["long"][1] = 1000.0


class Rollouts(RuleBasedStateMachine):
    """A world that does anything, and a person who says anything."""

    c: Canary = CANARIES[0]

    def __init__(self) -> None:
        super().__init__()
        self.state = plan.initial(self.c)
        self.now = START
        self.release: Release | None = None
        self.pending: list[Override] = []
        self.said = 0
        self.route = 0
        self.ready = True
        self.kept: list[str] = []  # ids of all records

    # ── what may happen ──────────────────────────────────────────────────────────────────────────────────────

    @rule(revision=st.sampled_from(["r1", "r2", "r3"]))
    def somebody_starts(self, revision: str) -> None:
        self.release = Release(revision, by="anna")

    @rule(action=st.sampled_from(list(Action)), full=st.booleans(), stale=st.sampled_from([False] * 4 + [True]))
    def somebody_says(self, action: Action, full: bool, stale: bool) -> None:
        self.said += 1
        revision = "r0" if stale else self.state.revision
        self.pending.append(Override(str(self.said), action, revision, "anna", "", self.now, full=full))

    @rule(weight=st.integers(0, 100))
    def somebody_edits_the_route(self, weight: int) -> None:
        self.route = weight

    @rule(ready=st.booleans())
    def pods_come_and_go(self, ready: bool) -> None:
        self.ready = ready

    @rule()
    def healthy_for_a_while(self) -> None:
        for _ in range(4):
            self.tick(Verdict.HEALTHY, seconds=10, confirmed=True, scored=True, routed=True)

    @rule(
        verdict=st.sampled_from([None, *Verdict]),
        seconds=st.sampled_from([0, 1, 10, 10, 10, 60, 3600, -3600]),
        confirmed=st.booleans(),
        scored=st.booleans(),
        stable_worse=st.sampled_from([False] * 5 + [True]),
        hook=st.sampled_from([HookStatus.OWED, HookStatus.DONE, HookStatus.DONE, HookStatus.FAILED]),
        routed=st.sampled_from([True, True, True, False]),
        readable=st.sampled_from([True, True, True, False]),
    )
    def time_passes(self, verdict: Verdict | None, seconds: int, **more: Any) -> None:
        self.tick(verdict, seconds=seconds, **more)

    @rule()
    @precondition(lambda self: self.pending)
    def every_word_is_answered_in_the_end(self) -> None:
        for _ in range(len(self.pending) + 2):
            self.tick(Verdict.INCONCLUSIVE, seconds=10)
        assert self.pending == []

    # ── one tick and what it must never do ───────────────────────────────────────────────────────────────────

    def tick(self, verdict: Verdict | None, **more: Any) -> None:
        self.now += timedelta(seconds=more["seconds"])
        seen = self.observe(verdict, **more)
        before, frozen = self.state, encode_state(self.state)
        decision = plan.decide(self.c, before, seen)
        twin = plan.decide(self.c, before, seen)
        assert encode(decision) == encode(twin), "the same input gave two answers"
        assert encode_state(before) == frozen, "the input was changed"
        self.check_edges(decision)
        self.check_weight(decision, seen.judgement.verdict if seen.judgement else None)
        self.check_words(decision)
        self.check_record(decision, seen)
        self.state = replace(decision.state, decisions=len(self.kept))
        if more.get("routed", True):
            self.route = self.state.weight

    def observe(self, verdict: Verdict | None, **more: Any) -> Observation:
        state = self.state
        if state.phase not in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING) and verdict is not None:
            # without traffic nothing can be proven, in the one direction or the other
            verdict = Verdict.BLIND if verdict is Verdict.BLIND else Verdict.INCONCLUSIVE
        judgement, evidence = None, None
        if verdict is not None and state.phase.is_active:
            share = Share(0.1, 100.0, confirmed=more.get("confirmed", False), mismatch=False)
            worse = more.get("stable_worse", False)
            judgement = Judgement(verdict, (), f"it is {verdict}", share=share, stable_worse=worse)
            evidence = Evidence(through=self.now, edges=np.array([50.0]), arrays=KNOWN)
        hook = None
        if self.c.spec.after_promotion and state.phase is Phase.PROMOTING and state.hook:
            hook = state.hook if state.hook.status is not HookStatus.OWED else None
            hook = hook or HookState(state.hook.id, more.get("hook", HookStatus.OWED))
        return Observation(
            at=self.now,
            release=self.release,
            route=RouteView(self.route, 1, None) if more.get("readable", True) else None,
            workloads=WorkloadView(self.ready),
            judgement=judgement,
            evidence=evidence,
            scored=timedelta(seconds=10) if more.get("scored") and judgement else timedelta(0),
            overrides=tuple(self.pending),
            hook=hook,
        )

    def check_edges(self, decision: Decision) -> None:
        before, after = self.state, decision.state
        assert after.phase is before.phase or after.phase in EDGES[before.phase], decision.sentence
        moved = (after.phase, after.step, after.weight) != (before.phase, before.step, before.weight)
        if moved:
            last = after.history[-1]
            assert last.sentence
            assert (last.at, last.phase, last.step, last.weight) == (self.now, after.phase, after.step, after.weight)
        if self.release is None:
            assert not moved
        elif before.phase.is_settled and decision.kind is not DecisionKind.OVERRIDE:
            assert not moved or self.release.revision not in (before.revision, before.stable_revision)
        assert decision.sentence == after.sentence
        assert decision.sentence

    def check_weight(self, decision: Decision, verdict: Verdict | None) -> None:
        before, after = self.state, decision.state
        weights = [s.weight for s in self.c.spec.steps]
        assert after.weight in (0, *weights, 100)
        if after.phase in (Phase.IDLE, Phase.WAITING, Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.SUCCEEDED):
            assert after.weight == 0
        if after.weight <= before.weight:
            return
        if after.phase is Phase.PROMOTING and before.phase is Phase.PROMOTING:
            assert after.weight == 100, "away from a stable that fails, and nowhere else"
            return
        by_a_person = decision.kind is DecisionKind.OVERRIDE
        assert verdict is not Verdict.REGRESSED
        assert by_a_person or verdict is not Verdict.BLIND
        assert (after.step == before.step + 1 and after.weight == weights[after.step]) or (
            after.phase is Phase.PROMOTING and (before.step == len(weights) - 1 or by_a_person)
        )

    def check_words(self, decision: Decision) -> None:
        old = {a.id for a in self.state.answered}
        new = [a for a in decision.state.answered if a.id not in old]
        assert len(new) <= 1
        assert len({a.id for a in decision.state.answered}) == len(decision.state.answered)
        if new:
            assert new[0].id == self.pending[0].id, "words are answered in the order they were said"
            assert new[0].sentence
            assert (decision.kind is DecisionKind.OVERRIDE) is new[0].accepted
            self.pending.pop(0)
        else:
            assert decision.kind not in (DecisionKind.OVERRIDE, DecisionKind.REFUSED)

    def check_record(self, decision: Decision, seen: Observation) -> None:
        before = replace(self.state, decisions=len(self.kept))
        new = records.records(self.c, before, decision, seen)
        self.kept += [r.id for r in new]
        assert self.kept == [f"{self.c.name}/{i + 1}" for i in range(len(self.kept))]
        after, old = decision.state, self.state
        if (after.phase, after.step, after.weight) != (old.phase, old.step, old.weight):
            assert new[-1].sentence == decision.sentence, "every transition is in the record"
            assert all(r.body["revision"] == after.revision for r in new)

    @invariant()
    def clocks_never_run_backwards(self) -> None:
        zero = timedelta(0)
        assert min(self.state.baked, self.state.held, self.state.blind, self.state.deadline_told) >= zero


@pytest.mark.parametrize("c", CANARIES, ids=["default", "rollback", "promote-hook", "hook"])
def test_no_sequence_of_events_breaks_a_rule(c: Canary) -> None:
    machine = type("RolloutsOf", (Rollouts,), {"c": c})
    machine.TestCase.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase().runTest()

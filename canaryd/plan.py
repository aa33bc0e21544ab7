"""The state machine: policy, state and observation in, the desired state and one sentence out. Pure.

Rules that protect users come before rules that advance, and the first that applies decides:

    being adopted → a new revision → regressed → broken → a person's word → blind too long → paused → waiting
    → advance → too long → hold

`_move` is the only function that changes phase, step or weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from canaryd import wording
from canaryd.model import (
    Action,
    Answer,
    Decision,
    DecisionKind,
    Evidence,
    HookState,
    HookStatus,
    Judgement,
    Observation,
    Override,
    Phase,
    Pods,
    RolloutState,
    Transition,
    Verdict,
    WorkloadView,
)
from canaryd.policy import Canary, OnBlind, OnInconclusive
from canaryd.stats.evidence import clock, forget

SETTLE = timedelta(seconds=10)  # after a change of the route, until the last request has left a workload
DRIFTS = 5  # hands on the weight within QUARREL that are put right; more is a quarrel, which helps nobody
QUARREL = timedelta(minutes=10)
TRUCE = timedelta(minutes=5)  # for so long a weight below the decided one is then left alone
RESTARTS = 3  # of canary containers, while stable's hardly restart: it crashes
HISTORY = 50  # transitions kept in the state; the records keep all
ANSWERS = 20  # answers kept, so that a repeated override is recognised

Rule = Callable[[Canary, RolloutState, Observation], Decision | None]


def initial(canary: Canary) -> RolloutState:
    """The state of a Canary that has never been rolled out."""
    stable, other = canary.spec.workloads.names
    return RolloutState(stable=stable, canary=other)


def decide(canary: Canary, state: RolloutState | None, seen: Observation) -> Decision:
    """The desired state after this tick. Nothing is asked but what is passed."""
    state = state or initial(canary)
    state = replace(state, step=min(state.step, len(canary.spec.steps) - 1))  # the plan may have become shorter
    state, extra = _notice(canary, _clocked(canary, state, seen), seen)
    for rule in RULES:
        decision = rule(canary, state, seen)
        if decision is not None:
            break
    else:
        raise AssertionError("the last rule always applies")
    judged = seen.judgement if decision.state.rollout == state.rollout else None  # a new rollout has no verdict yet
    after = replace(
        decision.state,
        sentence=decision.sentence,
        verdict=judged.verdict if judged else decision.state.verdict,
    )
    return replace(decision, state=after, extra=(*extra, *decision.extra))


def clocked(canary: Canary, state: RolloutState, seen: Observation) -> RolloutState:
    """The state after this tick if nothing were decided: clocks, evidence and what was told of sight."""
    return _notice(canary, _clocked(canary, state, seen), seen)[0]


# ── before the rules: clocks, sight, drift ───────────────────────────────────────────────────────────────────


def _clocked(canary: Canary, state: RolloutState, seen: Observation) -> RolloutState:
    """Add the time since the last tick to whatever it counts for; a tick counts at most two intervals."""
    since = seen.at - state.ticked if state.ticked else timedelta(0)
    passed = min(max(since, timedelta(0)), 2 * canary.spec.interval)
    state = replace(state, ticked=seen.at)
    if not state.phase.is_active:
        return state
    if seen.evidence is not None:
        state = replace(state, evidence=seen.evidence)
    if seen.judgement is None:
        return state if state.phase is Phase.PAUSED else replace(state, held=state.held + passed)
    if seen.judgement.verdict is Verdict.BLIND:
        return replace(state, blind=state.blind + passed)
    held = state.held if state.phase is Phase.PAUSED else state.held + passed
    return replace(state, held=held, baked=state.baked + seen.scored)


def _notice(
    canary: Canary, state: RolloutState, seen: Observation
) -> tuple[RolloutState, tuple[tuple[DecisionKind, str], ...]]:
    """What a person should hear of besides the decision: sight lost and found, a hand on the weight."""
    news: list[tuple[DecisionKind, str]] = []
    judged = seen.judgement
    if state.phase.is_active and judged is not None:
        if judged.verdict is Verdict.BLIND:
            if not state.blind_told and state.blind >= 1.5 * canary.spec.interval:
                state = replace(state, blind_told=True, deadline_told=timedelta(0))  # this spell has its own deadline
                news.append((DecisionKind.BLIND, f"{_held_at(canary, state)}: {_blind_words(state, seen, canary)}"))
        elif state.blind > timedelta(0):
            if state.blind_told:
                lost = wording.span(state.blind)
                news.append(
                    (DecisionKind.RESUMED, f"{canary.name} sees again after {lost}; nothing was lost or guessed")
                )
            state = replace(state, blind=timedelta(0), blind_told=False, deadline_told=timedelta(0))
        news += _higher_gauges(canary, state, judged)
    if seen.route is not None and (seen.route.weight is not None or seen.route.adoptable):
        state, drift = _compare_route(canary, state, seen)
        news += drift
    return state, tuple(news)


def _higher_gauges(canary: Canary, state: RolloutState, judged: Judgement) -> list[tuple[DecisionKind, str]]:
    """A gauge above its tolerance holds the rollout, which a person should hear of; once, when it is first seen."""
    known = {f.get("metric") for f in state.latest.get("findings", ()) if f.get("verdict") == Verdict.REGRESSED}
    return [
        (DecisionKind.HOLD, f"{_held_at(canary, state)}: {f.metric}: {f.note}; a person must choose: promote or abort")
        for f in judged.findings
        if f.verdict is Verdict.REGRESSED and f.means is not None and f.metric not in known
    ]


def _compare_route(
    canary: Canary, state: RolloutState, seen: Observation
) -> tuple[RolloutState, list[tuple[DecisionKind, str]]]:
    """The weight in the route against the desired one: in place, not there yet, or changed by somebody."""
    assert seen.route is not None
    found = seen.route.weight
    if found == state.weight:
        return (state if state.routed else replace(state, routed=seen.at)), []
    if state.routed is None:  # not there yet: canaryd itself has still to write it
        return state, []
    if state.number == 0 and not state.stable_revision:  # before the first rollout the route is not canaryd's
        return replace(state, routed=None), []
    drifts = (*(at for at in state.drifts if seen.at - at <= QUARREL), seen.at)
    state = replace(state, routed=None, drifts=drifts[-4 * DRIFTS :])
    did = "somebody put the plain route back" if found is None else f"somebody set the weight to {found} %"
    who = f" ({seen.route.editor})" if seen.route.editor else ""
    if len(drifts) > DRIFTS:
        return _quarrel(canary, state, seen, f"{did} again, {len(drifts)} times in {wording.span(QUARREL)} now{who}")
    told = (
        f"{canary.name}: {did}{who}; put back to {state.weight} %, "
        f"{'the current step' if state.phase.is_active else 'as decided'}"
    )
    if len(drifts) > 1:
        told = _with_remedy(told, seen)
    return state, [(DecisionKind.DRIFT, told)]


def _quarrel(
    canary: Canary, state: RolloutState, seen: Observation, did: str
) -> tuple[RolloutState, list[tuple[DecisionKind, str]]]:
    """Somebody undoes it again and again: less risk than decided is left for a while, more is never left. Said once."""
    if may_stay(state, seen):
        told = f"{canary.name}: {did}; left so for {wording.span(TRUCE)} instead of {state.weight} %"
    elif state.contested is not None and seen.at < state.contested:
        return state, []
    else:
        told = f"{canary.name}: {did}; put back to {state.weight} % each time, because that is the safer one"
    return replace(state, contested=seen.at + TRUCE), [(DecisionKind.CONTESTED, _with_remedy(told, seen))]


def may_stay(state: RolloutState, seen: Observation) -> bool:
    """The route as it is found gives the canary no more than was decided.

    A plain route reaches every pod of both workloads: it may stay only while the canary has none.
    """
    if seen.route is None:
        return False
    if seen.route.weight is not None:
        return seen.route.weight < state.weight
    pods = seen.workloads.canary if seen.workloads is not None else None
    return seen.route.adoptable and not state.phase.is_active and pods is not None and pods.wanted == 0


def _with_remedy(told: str, seen: Observation) -> str:
    return f"{told}. {seen.route.remedy}" if seen.route is not None and seen.route.remedy else told


# ── the rules, in order of danger ────────────────────────────────────────────────────────────────────────────


def _no_release(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    if seen.release is None:
        idle = Decision(state, DecisionKind.IDLE, f"{canary.name}: nothing to roll out")
        return _word(canary, state, seen) or idle
    return None


def _adopting(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    """A running service comes into canaryd's care: what runs now is stable, and has all traffic before anything else.

    Nothing is judged by that: whoever wrote the Canary says that what runs is good.
    """
    if canary.spec.workloads.deployment is None or state.number or state.stable_revision:
        return None
    view, route = seen.workloads, seen.route
    waits = ""
    if view is None or route is None:
        waits = "; ".join(seen.trouble) or "the cluster cannot be seen"
    elif view.gone or not view.ready:
        waits = view.gone or view.detail
    elif route.weight != state.weight or state.routed is None:
        waits = f"the route gives {state.stable} all traffic first"
    elif seen.at - state.routed < SETTLE:
        waits = f"the last requests leave {state.canary}"
    if waits or view is None:
        return _word(canary, state, seen) or Decision(
            state, DecisionKind.IDLE, f"{canary.name} is being adopted: {waits}", severity="warning"
        )
    said = (
        f"{canary.name} is in canaryd's care: {state.stable} runs {view.stable_revision} and has all traffic; "
        f"the next change of {state.canary} is released step by step"
    )
    return Decision(replace(state, stable_revision=view.stable_revision), DecisionKind.ADOPT, said, tell=True)


def _new_revision(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    """What runs is what was asked for last: start, start again, or end because stable is wanted back."""
    assert seen.release is not None
    wanted = seen.release.revision
    if state.phase is Phase.PROMOTING or wanted == state.revision:
        return None  # a promotion under way is finished first, for the revision that was analysed
    if wanted == state.stable_revision:
        return _revert(canary, state, seen) if state.phase.is_active else None
    return _start(canary, state, seen, wanted)


def _start(canary: Canary, state: RolloutState, seen: Observation, revision: str) -> Decision:
    replaced = state.revision if state.phase.is_active else ""
    number = state.number + 1
    fresh = replace(
        state,
        rollout=f"{canary.name}-{number}",
        number=number,
        revision=revision,
        started=seen.at,
        skip_analysis=False,
        resume_to=None,
        evidence=None,
        verdict=None,
        hook=None,
        blind=timedelta(0),
        blind_told=False,
        history=(),
    )
    by = f" by {seen.release.by}" if seen.release and seen.release.by else ""
    if replaced:
        said = f"{canary.name}: revision {revision} replaces {replaced}{by}; it starts again at the first step"
    else:
        said = f"{canary.name}: rollout of revision {revision} begins{by}"
    moved = _move(fresh, seen, said, phase=Phase.WAITING, step=-1, weight=0)
    return Decision(moved, DecisionKind.RESTART if replaced else DecisionKind.START, said, tell=True)


def _revert(canary: Canary, state: RolloutState, seen: Observation) -> Decision:
    said = (
        f"{canary.name} {state.weight} % → 0 %: {state.stable_revision}, the stable revision, is wanted again; "
        f"the rollout of {state.revision} ends"
    )
    return Decision(_move(state, seen, said, phase=Phase.IDLE, step=-1, weight=0), DecisionKind.REVERT, said, tell=True)


def _regressed(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    judged = seen.judgement
    if judged is None or judged.verdict is not Verdict.REGRESSED:
        return None
    if state.phase is Phase.PROMOTING and state.hook is not None and canary.spec.after_promotion is not None:
        # Stable may be half upgraded by now: going back to it blindly could be worse. A person must choose.
        said = (
            f"{canary.name}: {judged.sentence}; the afterPromotion hook has begun, a person must choose: abort or wait"
        )
        due = _due(state, seen)
        told = replace(state, hook=seen.hook or state.hook, deadline_told=state.held if due else state.deadline_told)
        held = Decision(told, DecisionKind.HOLD, said, tell=due, severity="critical")
        return _word(canary, state, seen) or held
    if state.phase not in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING):
        return None
    return _roll_back(canary, state, seen, judged.sentence)


def _broken(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    """What the cluster itself says of the canary's pods: gone, none ready, killed for memory, restarting."""
    view = seen.workloads
    if view is None or state.phase not in (Phase.WAITING, Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING):
        return None
    if view.gone:
        return _roll_back(canary, state, seen, view.gone)
    if state.phase is Phase.WAITING:
        return _roll_back(canary, state, seen, view.overdue) if view.overdue else None
    why = _failing(state, view)
    return _roll_back(canary, state, seen, why) if why and state.weight else None


def _failing(state: RolloutState, view: WorkloadView) -> str:
    """Why the canary's pods cannot be trusted with traffic; "" when they can, or when pods are not known."""
    canary, stable = view.canary, view.stable
    if canary is None:
        return ""
    trouble = f" ({canary.trouble})" if canary.trouble else ""
    if canary.ready == 0:
        return f"no pod of {state.canary} is ready{trouble}"
    others = stable or Pods()
    if canary.killed_for_memory and not others.killed_for_memory:
        times = wording.plural(canary.killed_for_memory, "container")
        return f"{times} of {state.canary} ran out of memory, none of {state.stable}{trouble}"
    if canary.restarts >= RESTARTS and canary.restarts * max(others.wanted, 1) > 2 * others.restarts * canary.wanted:
        restarts = wording.plural(canary.restarts, "restart")
        return f"{restarts} of {state.canary}, {others.restarts} of {state.stable}{trouble}"
    return ""


def _roll_back(canary: Canary, state: RolloutState, seen: Observation, why: str) -> Decision:
    way = f"{state.weight} % → 0 %" if state.weight else "stays at 0 %"
    said = f"{canary.name} {way}: {why}{_harm(state)}"
    moved = _move(state, seen, said, phase=Phase.ROLLING_BACK, step=state.step, weight=0)
    return Decision(moved, DecisionKind.ROLLBACK, said, tell=True, severity="critical")


def _rolling_back(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    if state.phase is not Phase.ROLLING_BACK:
        return None
    if state.routed is None:
        return Decision(state, DecisionKind.HOLD, f"{canary.name}: rolling back; {_route_words(seen)}")
    began = next((t.sentence for t in reversed(state.history) if t.phase is Phase.ROLLING_BACK), "")
    why = began.partition(": ")[2]
    said = (
        f"{canary.name} rolled back: all traffic is on {state.stable}{f' ({why})' if why else ''}; "
        f"canaryd retry {canary.name} starts {state.revision} again"
    )
    moved = _move(state, seen, said, phase=Phase.ROLLED_BACK, step=state.step, weight=0)
    return Decision(moved, DecisionKind.ROLLED_BACK, said)


def _word(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    """The oldest override that has not been answered."""
    answered = {a.id for a in state.answered}
    pending = [o for o in seen.overrides if o.id not in answered]
    return carry_out(canary, state, seen, pending[0]) if pending else None


def _blind_too_long(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    spec = canary.spec
    judged = seen.judgement
    if judged is None or judged.verdict is not Verdict.BLIND or state.phase not in (Phase.PROGRESSING, Phase.PAUSED):
        return None
    words = _blind_words(state, seen, canary)
    if state.blind < spec.blind_deadline:
        return Decision(state, DecisionKind.HOLD, f"{_held_at(canary, state)}: {words}")
    if spec.on_blind is OnBlind.ROLLBACK:
        return _roll_back(canary, state, seen, f"{words}; onBlind: rollback after {wording.span(spec.blind_deadline)}")
    due = state.deadline_told == timedelta(0) or state.blind - state.deadline_told >= seen.tell_again
    again = wording.span(seen.tell_again)
    said = f"{_held_at(canary, state)}: {words}; nothing moves, said again in {again} (onBlind: hold)"
    told = replace(state, deadline_told=state.blind) if due else state
    return Decision(told, DecisionKind.BLIND_DEADLINE, said, tell=due, severity="critical" if due else "info")


def _paused(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    if state.phase is not Phase.PAUSED:
        return None
    return Decision(
        state, DecisionKind.HOLD, f"{_held_at(canary, state)}: paused; canaryd resume {canary.name} goes on"
    )


def _settled(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    if state.phase is Phase.SUCCEEDED:
        return Decision(
            state, DecisionKind.IDLE, f"{canary.name}: {state.stable_revision} is promoted on {state.stable}"
        )
    if state.phase is Phase.ROLLED_BACK:
        return Decision(state, DecisionKind.IDLE, state.sentence or f"{canary.name}: {state.revision} was rolled back")
    if state.phase is Phase.IDLE:
        return Decision(state, DecisionKind.IDLE, state.sentence or f"{canary.name}: nothing to roll out")
    return None


def _waiting(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    if state.phase is not Phase.WAITING:
        return None
    ready = seen.workloads is not None and seen.workloads.ready
    blind = seen.judgement is not None and seen.judgement.verdict is Verdict.BLIND
    if blind or not ready or not _knows_stable(state):
        detail = seen.workloads.detail if seen.workloads else "; ".join(seen.trouble) or "the workloads cannot be seen"
        if blind and seen.judgement:
            detail = f"no traffic before canaryd can see: {seen.judgement.sentence}"
        elif ready:
            detail = f"learning the rates of {state.stable} before {state.canary} gets traffic"
        due = _due(state, seen) and state.held >= canary.spec.max_hold
        told = replace(state, deadline_told=state.held) if due else state
        said = f"{canary.name} waits: {detail}"
        return Decision(told, DecisionKind.WAIT, said, tell=due, severity="warning" if due else "info")
    weight = canary.spec.steps[0].weight
    said = f"{canary.name} 0 % → {weight} %: {state.canary} is ready; first step of {len(canary.spec.steps)}"
    moved = _move(state, seen, said, phase=Phase.PROGRESSING, step=0, weight=weight)
    return Decision(moved, DecisionKind.ADVANCE, said, tell=True)


def _knows_stable(state: RolloutState) -> bool:
    """Requests of stable have been counted: there is something to compare with before the canary gets any."""
    return state.evidence is not None and bool(state.evidence.arrays) and state.evidence.arrays["long"][1, 0] > 0


def _promoting(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    if state.phase is not Phase.PROMOTING:
        return None
    if state.routed is None:
        return Decision(state, DecisionKind.HOLD, f"{canary.name}: promoting; {_route_words(seen)}")
    if not canary.spec.upgrades_stable:
        said = (
            f"{canary.name} promoted: {state.revision} on {state.canary} is stable now; "
            f"the next release goes to {state.stable}"
        )
        return Decision(_succeed(state, seen, said, swap=True), DecisionKind.SUCCEED, said, tell=True)
    return _upgrading(canary, state, seen)


def _upgrading(canary: Canary, state: RolloutState, seen: Observation) -> Decision:
    """All traffic is on the canary; the hook upgrades stable, then traffic goes back to it step by step."""
    hook = seen.hook or state.hook or HookState(id=f"{state.rollout}-1")
    changed = hook != state.hook
    state = replace(state, hook=hook)
    if hook.status is HookStatus.OWED:
        how = hook.detail or ("the afterPromotion hook" if canary.spec.after_promotion else "canaryd")
        return Decision(state, DecisionKind.HOOK, f"{canary.name} at 100 %: {how} upgrades {state.stable}")
    if hook.status is HookStatus.FAILED:
        failed = f"the afterPromotion hook failed ({hook.detail})"
        if canary.spec.after_promotion is None:
            failed = f"{state.stable} could not be upgraded ({hook.detail})"
        said = f"{canary.name} stays at {state.weight} %: {failed}; canaryd retry {canary.name} tries it again"
        return Decision(state, DecisionKind.HOOK, said, tell=changed, severity="critical")
    if state.weight == 0:
        said = f"{canary.name} promoted: {state.stable} runs {state.revision} and has all traffic again"
        return Decision(_succeed(state, seen, said, swap=False), DecisionKind.SUCCEED, said, tell=True)
    return _shift_back(canary, state, seen, hook)


def _shift_back(canary: Canary, state: RolloutState, seen: Observation, hook: HookState) -> Decision:
    judged = seen.judgement
    if judged is not None and judged.stable_worse:
        why = f"{state.stable} fails more than {state.canary} after its upgrade"
        said = f"{canary.name} {state.weight} % → 100 %: {why}; canaryd retry {canary.name} upgrades it again"
        moved = _move(state, seen, said, phase=Phase.PROMOTING, step=state.step, weight=100)
        # An upgrade that made stable worse has failed: without this, traffic would go to it again at the next tick.
        failed = replace(hook, status=HookStatus.FAILED, detail=why)
        moved = replace(moved, evidence=_forget(moved), hook=failed)
        return Decision(moved, DecisionKind.HOLD, said, tell=True, severity="critical")
    if judged is None or judged.verdict is Verdict.BLIND or (state.weight < 100 and state.baked < canary.spec.interval):
        return Decision(
            state, DecisionKind.HOLD, f"{_held_at(canary, state)}: {state.stable} takes traffic back step by step"
        )
    weight = _weight_back(canary, state)
    said = (
        f"{canary.name} {state.weight} % → {weight} %: {state.stable} runs {state.revision} now and takes traffic back"
    )
    moved = _move(state, seen, said, phase=Phase.PROMOTING, step=state.step, weight=weight)
    # What stable was before its upgrade says nothing about what it is now.
    return Decision(replace(moved, evidence=_forget(moved)), DecisionKind.ADVANCE, said)


def _weight_back(canary: Canary, state: RolloutState) -> int:
    """The next smaller step; where both run the very same template and stable is ready, one stop on the way will do."""
    if canary.spec.workloads.deployment is not None and state.weight < 100:
        return 0
    return max((s.weight for s in canary.spec.steps if s.weight < state.weight), default=0)


def _forget(state: RolloutState) -> Evidence | None:
    """Evidence counted up to the same instant with nothing proven yet; rates and histograms stay known.

    Without the rates no row of durations could be judged again, and the canary would be blind for ever.
    """
    held = state.evidence
    if held is None or not held.arrays:
        return held
    return replace(held, arrays=forget(held.arrays), intervals=0, spans=None)


def _advance(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    """The step is passed: proven healthy (or a person took that on), baked, and the split confirmed by traffic."""
    judged = seen.judgement
    if state.phase is not Phase.PROGRESSING or judged is None or seen.route is None:
        return None
    proven = judged.verdict is Verdict.HEALTHY or (state.skip_analysis and judged.verdict is Verdict.INCONCLUSIVE)
    confirmed = judged.share is not None and judged.share.confirmed
    if not (proven and confirmed and state.routed and state.baked >= canary.spec.bake(state.step)):
        return None
    why = judged.sentence if judged.verdict is Verdict.HEALTHY else "analysis skipped by a person"
    return _next_step(canary, state, seen, f"{why}; {_baked_words(state)}")


def _next_step(canary: Canary, state: RolloutState, seen: Observation, why: str) -> Decision:
    if state.step + 1 < len(canary.spec.steps):
        weight = canary.spec.steps[state.step + 1].weight
        said = f"{canary.name} {state.weight} % → {weight} %: {why}"
        moved = _move(state, seen, said, phase=Phase.PROGRESSING, step=state.step + 1, weight=weight)
        return Decision(moved, DecisionKind.ADVANCE, said, tell=True)
    said = f"{canary.name} {state.weight} % → promotion: {why}"
    moved = _move(state, seen, said, phase=Phase.PROMOTING, step=state.step, weight=100)
    return Decision(moved, DecisionKind.PROMOTE, said, tell=True)


def _too_long(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    spec = canary.spec
    if state.phase is not Phase.PROGRESSING or seen.judgement is None or state.held < spec.timeout(state.step):
        return None
    said = f"{_held_at(canary, state)} for {wording.span(state.held)}: {seen.judgement.sentence}"
    if spec.on_inconclusive is OnInconclusive.ROLLBACK:
        return _roll_back(canary, state, seen, f"no decision in {wording.span(state.held)} (onInconclusive: rollback)")
    clear = seen.judgement.verdict is not Verdict.BLIND and state.routed is not None
    if spec.on_inconclusive is OnInconclusive.PROMOTE and clear:
        why = f"no decision in {wording.span(state.held)} (onInconclusive: promote, not proven healthy)"
        return _next_step(canary, state, seen, why)
    due = state.deadline_told == timedelta(0) or state.held - state.deadline_told >= seen.tell_again
    said += f". Choose: canaryd promote {canary.name} --reason …, abort, or a larger budget"
    told = replace(state, deadline_told=state.held) if due else state
    return Decision(told, DecisionKind.INCONCLUSIVE, said, tell=due, severity="warning" if due else "info")


def _hold(canary: Canary, state: RolloutState, seen: Observation) -> Decision | None:
    judged = seen.judgement
    if judged is None:  # nothing new was counted: what was said last still holds
        return Decision(state, DecisionKind.HOLD, state.sentence or f"{_stays_at(canary, state)}: nothing counted yet")
    why = _still_needed(canary, state, seen) if judged.verdict is Verdict.HEALTHY else judged.sentence
    if seen.route is None:
        why = "; ".join((*seen.trouble, why))
    return Decision(state, DecisionKind.HOLD, f"{_stays_at(canary, state)}: {why}")


RULES: tuple[Rule, ...] = (
    _no_release,
    _adopting,
    _new_revision,
    _regressed,
    _broken,
    _word,
    _rolling_back,
    _blind_too_long,
    _paused,
    _settled,
    _waiting,
    _promoting,
    _advance,
    _too_long,
    _hold,
)


# ── what people say ──────────────────────────────────────────────────────────────────────────────────────────


def carry_out(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> Decision:
    """Carry out one override, or refuse it with the reason; either way it is answered and never heard again."""
    refusal = _refusal(canary, state, seen, said)
    if refusal:
        text = f"{canary.name}: {said.action} by {said.by} refused: {refusal}"
        return Decision(_answer(state, said, text, seen, accepted=False), DecisionKind.REFUSED, text, tell=True)
    decision = _ACTIONS[said.action](canary, state, seen, said)
    answered = _answer(decision.state, said, decision.sentence, seen, accepted=True)
    return replace(decision, state=answered, kind=DecisionKind.OVERRIDE, tell=True, severity="warning")


def _refusal(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> str:
    """Why this cannot be done now; empty when it can."""
    if said.revision and said.revision != state.revision:
        return f"it was said for revision {said.revision}, but {state.revision or 'nothing'} is being rolled out"
    phases = {
        Action.ABORT: (Phase.WAITING, Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING),
        Action.PAUSE: (Phase.WAITING, Phase.PROGRESSING),
        Action.RESUME: (Phase.PAUSED,),
        Action.RETRY: (Phase.ROLLED_BACK, Phase.IDLE, Phase.PROMOTING),
        Action.PROMOTE: (Phase.PROGRESSING, Phase.PAUSED),
        Action.SKIP: (Phase.WAITING, Phase.PROGRESSING, Phase.PAUSED),
    }[said.action]
    if state.phase not in phases:
        return f"{canary.name} is {state.phase}; {said.action} needs {' or '.join(phases)}"
    if said.action is Action.RETRY and state.phase is Phase.PROMOTING:
        return "" if state.hook and state.hook.status is HookStatus.FAILED else "the afterPromotion hook has not failed"
    if said.action is Action.RETRY and not state.revision:
        return "there is no revision to try again"
    if said.action is Action.RETRY and seen.release and seen.release.revision != state.revision:
        wanted = f"{seen.release.revision} is what should run"
        return f"{wanted}; canaryd start {canary.name} --revision {state.revision} says otherwise"
    if said.action is Action.PROMOTE and state.phase is Phase.PAUSED and state.resume_to is not Phase.PROGRESSING:
        return "the canary has no traffic yet; resume first"
    return ""


def _abort(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> Decision:
    return _roll_back(canary, state, seen, f"aborted by {_who(said)}{_despite(state)}")


def _pause(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> Decision:
    text = f"{_held_at(canary, state)}: paused by {_who(said)}"
    moved = _move(state, seen, text, phase=Phase.PAUSED, step=state.step, weight=state.weight)
    return Decision(replace(moved, resume_to=state.phase), DecisionKind.OVERRIDE, text)


def _resume(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> Decision:
    text = f"{canary.name} goes on at {state.weight} %: resumed by {_who(said)}"
    moved = _move(state, seen, text, phase=state.resume_to or Phase.PROGRESSING, step=state.step, weight=state.weight)
    return Decision(replace(moved, resume_to=None), DecisionKind.OVERRIDE, text)


def _retry(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> Decision:
    if state.phase is Phase.PROMOTING:
        number = int(state.hook.id.rpartition("-")[2]) + 1 if state.hook else 1
        text = f"{canary.name}: the afterPromotion hook runs again, said {_who(said)}"
        again = replace(state, hook=HookState(id=f"{state.rollout}-{number}"))
        return Decision(again, DecisionKind.OVERRIDE, text)
    decision = _start(canary, state, seen, state.revision)
    return replace(
        decision, sentence=f"{canary.name}: {state.revision} is tried again from the first step, said {_who(said)}"
    )


def _promote(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> Decision:
    if not said.full:
        return _next_step(canary, state, seen, f"promoted by {_who(said)}, {_overruled(state)}")
    text = f"{canary.name} {state.weight} % → promotion: promoted in full by {_who(said)}, {_overruled(state)}"
    moved = _move(state, seen, text, phase=Phase.PROMOTING, step=len(canary.spec.steps) - 1, weight=100)
    return Decision(moved, DecisionKind.OVERRIDE, text)


def _skip(canary: Canary, state: RolloutState, seen: Observation, said: Override) -> Decision:
    text = (
        f"{canary.name}: the remaining steps need no proof, only their bake time, said {_who(said)}, "
        f"{_overruled(state)}; a proven regression still rolls back"
    )
    return Decision(replace(state, skip_analysis=True), DecisionKind.OVERRIDE, text)


_ACTIONS: dict[Action, Callable[[Canary, RolloutState, Observation, Override], Decision]] = {
    Action.ABORT: _abort,
    Action.PAUSE: _pause,
    Action.RESUME: _resume,
    Action.RETRY: _retry,
    Action.PROMOTE: _promote,
    Action.SKIP: _skip,
}


def _answer(state: RolloutState, said: Override, text: str, seen: Observation, *, accepted: bool) -> RolloutState:
    answer = Answer(id=said.id, action=said.action, accepted=accepted, sentence=text, at=seen.at)
    return replace(state, answered=(*state.answered, answer)[-ANSWERS:])


# ── the one function that moves ──────────────────────────────────────────────────────────────────────────────


def _move(
    state: RolloutState, seen: Observation, sentence: str, *, phase: Phase, step: int, weight: int
) -> RolloutState:
    """Change phase, step or weight, and start the clocks that belong to them."""
    transition = Transition(at=seen.at, phase=phase, step=step, weight=weight, sentence=sentence)
    moved = replace(state, phase=phase, step=step, weight=weight, history=(*state.history, transition)[-HISTORY:])
    if (step, weight) != (state.step, state.weight) or state.started == seen.at:
        moved = replace(
            moved,
            step_started=seen.at,
            routed=None,
            baked=timedelta(0),
            held=timedelta(0),
            deadline_told=timedelta(0),
        )
    return moved


def _succeed(state: RolloutState, seen: Observation, sentence: str, *, swap: bool) -> RolloutState:
    """The rollout is over and its revision is stable; with `swap` the two workloads change roles."""
    moved = _move(state, seen, sentence, phase=Phase.SUCCEEDED, step=state.step, weight=0)
    stable, canary = (state.canary, state.stable) if swap else (state.stable, state.canary)
    return replace(moved, stable=stable, canary=canary, stable_revision=state.revision, evidence=None, hook=None)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────


def _held_at(canary: Canary, state: RolloutState) -> str:
    return f"{canary.name} held at {state.weight} %"


def _stays_at(canary: Canary, state: RolloutState) -> str:
    return f"{canary.name} stays at {state.weight} %"


def _who(said: Override) -> str:
    return f"{said.by} ({said.reason!r})" if said.reason else said.by


def _blind_words(state: RolloutState, seen: Observation, canary: Canary) -> str:
    why = seen.judgement.sentence if seen.judgement else "nothing can be seen"
    return f"no sight for {wording.span(state.blind)} ({why})"


def _baked_words(state: RolloutState) -> str:
    return f"{wording.span(state.baked)} of evidence at {state.weight} %"


def _route_words(seen: Observation) -> str:
    return "; ".join(seen.trouble) if seen.route is None and seen.trouble else "the route is being written"


def _still_needed(canary: Canary, state: RolloutState, seen: Observation) -> str:
    judged = seen.judgement
    assert judged is not None
    left = canary.spec.bake(state.step) - state.baked
    if left > timedelta(0):
        return f"healthy; {wording.span(left)} of bake time left. {judged.sentence}"
    if judged.share is None or not judged.share.confirmed:
        share = judged.share.observed if judged.share else None
        n = judged.share.requests if judged.share else 0
        return (
            f"healthy, but the split is not confirmed yet: {wording.percent(share)} of {wording.plural(n, 'request')}"
        )
    return judged.sentence


def _despite(state: RolloutState) -> str:
    towards = _latest(state, "towardStep")
    return f", with {wording.percent(towards)} of the evidence for the next step" if towards else ""


def _overruled(state: RolloutState) -> str:
    """Which evidence a promotion overrules."""
    back, step = _latest(state, "towardRollback"), _latest(state, "towardStep")
    if back >= 0.1:
        return f"against {wording.percent(back)} of the evidence needed to roll back"
    return f"with {wording.percent(step)} of the evidence needed for the step"


def _latest(state: RolloutState, key: str) -> float:
    evidence = state.latest.get("evidence")
    value = evidence.get(key) if isinstance(evidence, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _harm(state: RolloutState) -> str:
    failures = clock(state.evidence.arrays, "failures") if state.evidence and state.evidence.arrays else 0.0
    return f". {wording.plural(failures, 'canary request')} failed" if failures else ""


def _due(state: RolloutState, seen: Observation) -> bool:
    return state.deadline_told == timedelta(0) or state.held - state.deadline_told >= seen.tell_again

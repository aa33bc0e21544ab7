"""One decision as it is kept and shown everywhere: CLI, log, notification, dashboard all read this one body. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from canaryd import wording
from canaryd.codec import encode
from canaryd.model import Decision, DecisionKind, Finding, Judgement, Observation, Phase, Record, RolloutState, Verdict
from canaryd.policy import Canary, dump_canary
from canaryd.stats.account import account
from canaryd.stats.edges import NO_EDGES
from canaryd.stats.evidence import Rules, clock

MOST_LABELS = 16  # that a record keeps, by name
MOST_STARTS = 64  # start times of pods that a record keeps

_SEVERITY = {
    DecisionKind.BLIND: "warning",
    DecisionKind.DRIFT: "warning",
    DecisionKind.CONTESTED: "critical",
    DecisionKind.HOLD: "warning",
    DecisionKind.RESUMED: "info",
}


def records(canary: Canary, before: RolloutState | None, decision: Decision, seen: Observation) -> tuple[Record, ...]:
    """What this tick adds to the record: the decision itself when it says something new, and every extra.

    Numbers continue from `before.decisions`; the caller saves the state with as many decisions added.
    """
    said = [(kind, text, _SEVERITY.get(kind, "info"), True) for kind, text in decision.extra]
    if worth_keeping(before, decision, seen):
        said.append((decision.kind, decision.sentence, decision.severity, decision.tell))
    number = before.decisions if before else 0
    content = body(canary, before, decision, seen) if said else {}
    out = []
    for i, (kind, text, severity, tell) in enumerate(said, start=1):
        own = {**content, "kind": str(kind), "sentence": text, "severity": severity}
        out.append(Record(f"{canary.key}/{number + i}", canary.key, seen.at, kind, text, own, tell))
    return tuple(out)


def latest(
    canary: Canary, before: RolloutState | None, decision: Decision, seen: Observation, new: tuple[Record, ...]
) -> Mapping[str, Any]:
    """The body of the decision itself, be it kept as the last of the `new` records or not."""
    said = (str(decision.kind), decision.sentence, decision.severity)
    if new and (new[-1].body["kind"], new[-1].sentence, new[-1].body["severity"]) == said:
        return new[-1].body
    return body(canary, before, decision, seen)


def worth_keeping(before: RolloutState | None, decision: Decision, seen: Observation) -> bool:
    """Every look that counted evidence, and everything that changed; not the ticks in which nothing happened.

    With traffic on the canary every look that read something is kept: `canaryd replay` has to repeat each of them.
    """
    if decision.tell or seen.scored or seen.spans:
        return True
    if before is not None and before.phase.is_scored and seen.evidence is not None:
        return True
    if before is None:
        return decision.kind is not DecisionKind.IDLE
    after = decision.state
    changed = (after.phase, after.step, after.weight) != (before.phase, before.step, before.weight)
    return changed or (after.verdict != before.verdict and after.phase.is_active)


def body(canary: Canary, before: RolloutState | None, decision: Decision, seen: Observation) -> dict[str, Any]:
    """Plain JSON values, camelCase; rates and shares 0..1, durations in seconds, times ISO 8601."""
    state = decision.state
    begins = before is None or before.rollout != state.rollout
    judged = seen.judgement if before is None or not begins else None  # never of another rollout
    answer = state.answered[-1] if state.answered and state.answered[-1].at == seen.at else None
    said = next((o for o in seen.overrides if answer and o.id == answer.id), None)
    kept = state.latest if judged is None and (before is None or before.rollout == state.rollout) else {}
    return {
        "canary": canary.name,
        "namespace": canary.metadata.namespace,
        **_labels(canary),
        "rollout": state.rollout,
        "revision": state.revision,
        "stableRevision": state.stable_revision,
        "at": iso(seen.at),
        "kind": str(decision.kind),
        "phase": str(state.phase),
        "step": state.step,
        "stepWeights": [s.weight for s in canary.spec.steps],
        "since": iso(state.started),
        "stepSince": iso(state.step_started),
        "workloads": {"stable": state.stable, "canary": state.canary},
        "weight": _weight(before, decision, seen, judged),
        "verdict": str(state.verdict) if (state.verdict and not state.phase.is_settled) or _ended(state) else None,
        "sentence": decision.sentence,
        "decisive": judged.decisive if judged else kept.get("decisive"),
        "next": _next(canary, state, judged),
        "nextLook": iso(seen.at + canary.spec.interval) if state.phase.is_active else None,
        "evidence": (not judged and kept.get("evidence")) or _evidence(canary, state, judged),
        "findings": [finding(f) for f in judged.findings] if judged else kept.get("findings", []),
        "harmed": _harmed(state, kept),
        "override": {
            "id": answer.id,
            "action": str(answer.action),
            "accepted": answer.accepted,
            "by": said.by if said else "",
            "reason": said.reason if said else "",
        }
        if answer
        else None,
        "history": [
            {"at": iso(t.at), "phase": str(t.phase), "step": t.step, "weight": t.weight, "sentence": t.sentence}
            for t in state.history
        ],
        "account": _account(canary, before, state, judged) if judged and seen.evidence else kept.get("account"),
        "look": _look(canary, before, seen) if judged and before else None,
        "trouble": list(seen.trouble),
        "severity": decision.severity,
        **({"document": without_queries(dump_canary(canary))} if begins and state.rollout else {}),
    }


def without_queries(value: Any) -> Any:
    """The same JSON value with the query part of every URL left out: tokens like to live there."""
    if isinstance(value, Mapping):
        return {str(key): without_queries(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_queries(item) for item in value]
    if isinstance(value, str) and re.match(r"https?://", value):
        return re.sub(r"[?#].*", "?…", value, flags=re.DOTALL)
    return value


def _labels(canary: Canary) -> dict[str, Any]:
    """By which people choose what they are told of; only where there are any, and not more than a body can bear."""
    labels = sorted(canary.metadata.labels.items())[:MOST_LABELS]
    return {"labels": {key[:253]: value[:63] for key, value in labels}} if labels else {}


def iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _ended(state: RolloutState) -> bool:
    return state.phase in (Phase.SUCCEEDED, Phase.ROLLED_BACK) and state.verdict is not None


def _weight(
    before: RolloutState | None, decision: Decision, seen: Observation, judged: Judgement | None
) -> dict[str, Any]:
    share = judged.share if judged else None
    state = decision.state
    return {
        "before": before.weight if before else 0,
        "desired": state.weight,
        "configured": seen.route.weight if seen.route else None,
        "observed": share.observed if share else None,
        "requests": share.requests if share else 0.0,
        "confirmed": bool(share and share.confirmed),
    }


def _evidence(canary: Canary, state: RolloutState, judged: Judgement | None) -> dict[str, Any]:
    held = state.evidence
    return {
        "through": iso(held.through) if held else None,
        "intervals": held.intervals if held else 0,
        "towardRollback": judged.toward_rollback if judged else 0.0,
        "towardStep": judged.toward_step if judged else 0.0,
        "logE": judged.log_e if judged else 0.0,
        "baked": state.baked.total_seconds(),
        "bake": canary.spec.bake(state.step).total_seconds() if 0 <= state.step < len(canary.spec.steps) else 0.0,
        "held": state.held.total_seconds(),
        "blind": state.blind.total_seconds(),
    }


def _look(canary: Canary, before: RolloutState, seen: Observation) -> dict[str, Any]:
    """What the look began with, so that it can be repeated; see canaryd.hindsight.replay."""
    workloads, hook = seen.workloads, seen.hook
    return {
        "document": fingerprint(canary),
        "first": before.evidence is None,
        "read": seen.evidence is not None,
        "scored": seen.scored.total_seconds(),
        "stable": before.stable,
        "canary": before.canary,
        "phase": str(before.phase),
        "step": before.step,
        "weight": before.weight,
        "routed": iso(before.routed),
        "resumeTo": str(before.resume_to) if before.resume_to else None,
        "skipped": before.skip_analysis,
        "ticked": iso(before.ticked),
        "baked": before.baked.total_seconds(),
        "held": before.held.total_seconds(),
        "blind": before.blind.total_seconds(),
        "blindTold": before.blind_told,
        "deadlineTold": before.deadline_told.total_seconds(),
        "ready": workloads.ready if workloads else None,
        "started": {pod: iso(at) for pod, at in sorted(workloads.started.items())[:MOST_STARTS]} if workloads else {},
        "hook": [before.hook.id, str(before.hook.status)] if before.hook else None,
        "hookSeen": [hook.id, str(hook.status)] if hook else None,
        **({"versions": list(workloads.versions)} if workloads and any(workloads.versions) else {}),
        # A trace source forgets, and may know more later: what was counted then is kept, without the edges, which are
        # always the same.
        **({"spans": [encode(replace(counts, edges=NO_EDGES)) for counts in seen.spans]} if seen.spans else {}),
    }


def _account(
    canary: Canary, before: RolloutState | None, state: RolloutState, judged: Judgement
) -> dict[str, Any] | None:
    """The arithmetic of the decisive metric, to be checked by hand; None before there is any."""
    decisive = next((f for f in judged.findings if f.metric == judged.decisive), None)
    held = state.evidence
    if decisive is None or held is None or not held.arrays:
        return None
    earlier = before.evidence if before and before.evidence and before.rollout == state.rollout else None
    arrays = earlier.arrays if earlier is not None and earlier.arrays else None
    step = before.step if before is not None else state.step
    rows = [decisive.row, *(f.row for f in judged.findings)]
    traces = canary.spec.traces()
    spans = next((f.log_e for f in judged.findings if traces is not None and f.metric == traces.name), 0.0)
    return account(Rules.of(canary.spec), held.arrays, held.edges, rows, step, arrays, spans) or None


def fingerprint(canary: Canary) -> str:
    """Twelve characters that change when the document does."""
    text = json.dumps(dump_canary(canary)["spec"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def finding(f: Finding) -> dict[str, Any]:
    """One metric's numbers under their names in camelCase; what is no whole number has seven digits."""
    out = {}
    for name, value in asdict(f).items():
        head, *tail = name.split("_")
        plain = [_seven(v) for v in value] if isinstance(value, tuple) else _seven(value)
        out[head + "".join(t.capitalize() for t in tail)] = plain
    out["verdict"] = str(f.verdict)
    return out


def _seven(value: Any) -> Any:
    """More digits than anybody reads would be most of what a record weighs; counts stay exact."""
    return float(f"{value:.7g}") if isinstance(value, float) and not value.is_integer() else value


def _harmed(state: RolloutState, kept: Any) -> dict[str, float]:
    if state.evidence and state.evidence.arrays:
        arrays = state.evidence.arrays
        return {"requests": clock(arrays, "harmed"), "failures": clock(arrays, "failures")}
    return kept.get("harmed") or {"requests": 0.0, "failures": 0.0}


def _next(canary: Canary, state: RolloutState, judged: Judgement | None) -> str:
    """What is waited for, in a few words."""
    if state.phase is Phase.PAUSED:
        return "a person: resume"
    if state.phase is Phase.WAITING:
        return "ready pods, stable's rates"
    if state.phase is Phase.ROLLED_BACK:
        return "retry, or a new revision"
    if state.phase.is_settled:
        return "a new revision"
    if state.phase is not Phase.PROGRESSING:
        return "the route"
    if judged is None:
        return "the next interval"
    if judged.verdict is Verdict.BLIND:
        return "sight"
    if judged.verdict is Verdict.HEALTHY:
        left = (canary.spec.bake(state.step) - state.baked).total_seconds()
        return f"bake time, {wording.span(left)}" if left > 0 else "a confirmed split"
    worse = [f.metric for f in judged.findings if f.verdict is Verdict.REGRESSED]
    if worse and judged.verdict is Verdict.INCONCLUSIVE:
        return f"a person, because of {' and '.join(worse)}"
    needed = max((f.needed for f in judged.findings if f.needed is not None), default=None)
    return f"{wording.plural(needed, 'canary request')}" if needed else "more requests"

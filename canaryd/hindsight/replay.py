"""A stored rollout decided once more, look by look, from the counters that the source still has and from the records.

Every look begins with what its record says it began with (weight, clocks, route) and with the evidence that this
replay itself has gathered; nothing that was computed then is used, it is only compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from canaryd import plan, records, tally
from canaryd.codec import decode
from canaryd.errors import CanarydError, StoreError
from canaryd.hindsight.past import Past
from canaryd.measure import Case, Measurer
from canaryd.model import (
    Decision,
    DecisionKind,
    Evidence,
    HookState,
    HookStatus,
    Judgement,
    Observation,
    Phase,
    Record,
    Release,
    RolloutState,
    RouteView,
    SpanCounts,
    Verdict,
    WorkloadView,
)
from canaryd.policy import Canary
from canaryd.ports import MetricSource

TOLERANCE = 1e-9  # of log e-values
BEFORE = timedelta(days=1)  # of the first look that may be asked for; a rollout begins with a few intervals of it
# A person's word and a wanted revision are not recomputed: their looks are compared, their decisions taken as told.
_TOLD = {DecisionKind.OVERRIDE, DecisionKind.REFUSED, DecisionKind.REVERT, DecisionKind.RESTART, DecisionKind.START}


class ReplayError(CanarydError):
    """The records do not hold what a replay needs; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One look: what was decided then and now."""

    record: str  # its id
    at: datetime
    weight: int  # percent, before the decision
    kind: str
    verdict: str | None
    log_e: float
    differences: tuple[str, ...] = ()  # "verdict: healthy then, regressed now"; empty: they agree


def looks(found: Sequence[Record], rollout: str) -> list[list[Record]]:
    """Records of the looks of one rollout, oldest first, those of one tick together. Raises ReplayError."""
    own = [r for r in sorted(found, key=_number) if r.body.get("rollout") == rollout]
    if not own:
        raise ReplayError(f"there are no records of {rollout}; canaryd keeps them for a limited time")
    seen = [r for r in own if isinstance(r.body.get("look"), Mapping)]
    if not seen:
        raise ReplayError(f"no record of {rollout} says what was looked at; an older canaryd wrote them")
    if not seen[0].body["look"].get("first"):
        raise ReplayError(f"the beginning of {rollout} is no longer kept, and the evidence begins there")
    return [list(group) for _, group in groupby(seen, key=lambda r: r.at)]


def _number(record: Record) -> int:
    return int(record.id.rpartition("/")[2])


def replay(canary: Canary, source: MetricSource, found: Sequence[Record], rollout: str) -> Iterator[Compared]:
    """Every look of the rollout once more. Raises ReplayError; SourceError when the source does not answer."""
    groups = looks(found, rollout)
    first, last = groups[0][0].at, groups[-1][0].at
    past = Past(source, first - BEFORE, last, canary.spec.interval)
    measurer, evidence = Measurer(past), None
    for group in groups:
        try:
            compared, evidence = _again(canary, measurer, group, evidence)
        except (KeyError, TypeError, ValueError, StoreError) as e:
            raise ReplayError(f"{group[-1].id} cannot be read: {type(e).__name__}: {e}") from e
        if past.failed is not None:
            raise past.failed
        yield compared


def _again(
    canary: Canary, measurer: Measurer, group: Sequence[Record], evidence: Evidence | None
) -> tuple[Compared, Evidence | None]:
    record = group[-1]
    body, look = record.body, record.body["look"]
    state = _before(body, look, None if look["first"] else evidence)
    configured = body["weight"]["configured"]
    route = RouteView(configured, version=1, stamped_weight=configured) if configured is not None else None
    started = {pod: datetime.fromisoformat(at) for pod, at in look["started"].items()}
    stable, other = look.get("versions") or ("", "")
    workloads = (
        WorkloadView(look["ready"], started=started, versions=(stable, other)) if look["ready"] is not None else None
    )
    case = Case(canary=canary, state=state, route=route, workloads=workloads)
    spans = (decode(SpanCounts, counts) for counts in look.get("spans", ()))
    case.arrived = tuple(replace(counts, edges=tally.EDGES) for counts in spans)
    if look["read"]:
        measurer.measure([case], record.at)
    else:  # nothing could be read then, and what is readable now says nothing about that
        case.unseen = "nothing could be read"
        measurer.judge([case])
    judged = case.judgement
    if judged is None:
        return _compared(record, look, ("nothing new can be read now",)), evidence
    told = {r.kind for r in group} & _TOLD
    seen = Observation(
        at=record.at,
        release=Release(state.revision),
        route=route,
        workloads=workloads,
        judgement=judged,
        evidence=case.evidence,
        scored=case.scored,
        hook=_hook(look["hookSeen"]),
    )
    differences = [*_document(canary, look), *_of_judgement(body, judged, case.evidence)]
    after = case.evidence or evidence
    if not told:
        decision = plan.decide(canary, state, seen)
        differences += _of_decision(group, decision)
        after = decision.state.evidence or after
    return _compared(record, look, tuple(differences)), after


def _compared(record: Record, look: Mapping[str, Any], differences: tuple[str, ...]) -> Compared:
    log_e = float(record.body["evidence"]["logE"])
    return Compared(record.id, record.at, look["weight"], str(record.kind), record.body["verdict"], log_e, differences)


def _before(body: Mapping[str, Any], look: Mapping[str, Any], evidence: Evidence | None) -> RolloutState:
    """The state as it was when the look began."""
    rollout = str(body["rollout"])
    return RolloutState(
        rollout=rollout,
        number=max(int(rollout.rpartition("-")[2]), 1),
        revision=body["revision"],
        stable_revision=body["stableRevision"],
        stable=look["stable"],
        canary=look["canary"],
        phase=Phase(look["phase"]),
        resume_to=Phase(look["resumeTo"]) if look["resumeTo"] else None,
        step=look["step"],
        weight=look["weight"],
        skip_analysis=look["skipped"],
        started=_time(body["since"]),
        routed=_time(look["routed"]),
        ticked=_time(look["ticked"]),
        baked=timedelta(seconds=look["baked"]),
        held=timedelta(seconds=look["held"]),
        blind=timedelta(seconds=look["blind"]),
        blind_told=look["blindTold"],
        deadline_told=timedelta(seconds=look["deadlineTold"]),
        hook=_hook(look["hook"]),
        evidence=evidence,
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _hook(value: Sequence[str] | None) -> HookState | None:
    return HookState(value[0], HookStatus(value[1])) if value else None


# ── then and now ─────────────────────────────────────────────────────────────────────────────────────────────


def _differ(name: str, then: object, now: object) -> list[str]:
    return [] if then == now else [f"{name}: {then} then, {now} now"]


def _document(canary: Canary, look: Mapping[str, Any]) -> list[str]:
    same = look["document"] == records.fingerprint(canary)
    return [] if same else ["the document of the Canary has changed since"]


def _of_judgement(body: Mapping[str, Any], judged: Judgement, evidence: Evidence | None) -> list[str]:
    out = []
    if body["verdict"] is not None and Verdict(body["verdict"]) is not judged.verdict:
        out += _differ("verdict", body["verdict"], str(judged.verdict))
    then = float(body["evidence"]["logE"])
    if not abs(then - judged.log_e) <= TOLERANCE:
        out += _differ("log e-value", then, judged.log_e)
    if evidence is not None:
        out += _differ("intervals scored", body["evidence"]["intervals"], evidence.intervals)
        out += _differ("counted up to", body["evidence"]["through"], records.iso(evidence.through))
    now = {f.metric: f for f in judged.findings}
    for one in body["findings"]:
        finding = now.get(one["metric"])
        if finding is None:
            out.append(f"{one['metric']}: judged then, not known now")
            continue
        out += _differ(f"{finding.metric}, canary requests", one["canaryN"], finding.canary_n)
        out += _differ(f"{finding.metric}, stable requests", one["stableN"], finding.stable_n)
        out += _differ(f"{finding.metric}, verdict", one["verdict"], str(finding.verdict))
    return out


def _of_decision(group: Sequence[Record], decision: Decision) -> list[str]:
    """Everything that was told in that tick is told again, and the rollout goes to the same place."""
    body, after = group[-1].body, decision.state
    told = {str(decision.kind), *(str(kind) for kind, _ in decision.extra)}
    out = [f"decision: {r.kind} then, {decision.kind} now" for r in group if str(r.kind) not in told]
    out += _differ("phase", body["phase"], str(after.phase))
    out += _differ("step", body["step"], after.step)
    return out + _differ("weight", body["weight"]["desired"], after.weight)

"""The status of a Canary as people, kubectl and scripts read it: fields, conditions, and what became of a word. Pure.

Never decides anything: it renders a state that was decided, and reads back what canaryd itself has rendered. A
condition of an old rollout never answers for a new one: each says which generation of the document it speaks of, and
Promoted and Healthy are Unknown from the first moment of a rollout until it has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from canaryd.errors import StoreError
from canaryd.kube.packed import Chest, unpack_chest, unpack_state
from canaryd.kube.words import Refusal
from canaryd.model import Answer, Override, Phase, RolloutState, Verdict

JSON = dict[str, Any]

READY, PROGRESSING, PROMOTED, HEALTHY = "Ready", "Progressing", "Promoted", "Healthy"
VALID, INVALID, HELD = "Valid", "Invalid", "Held"  # reasons of Ready
LONGEST = 1024  # characters of a message
MOST_CONDITIONS = 16


@dataclass(frozen=True, slots=True)
class Held:
    """What a status holds for canaryd itself."""

    version: int = 0
    state: RolloutState | None = None
    chest: Chest = field(default_factory=Chest)
    answered: tuple[str, ...] = ()  # marks of words


def held(status: Any) -> Held:
    """Reads a status; None is one that was never written. Raises StoreError that names the field."""
    if status is None:
        return Held()
    if not isinstance(status, Mapping):
        raise StoreError("status: expected an object")
    version = status.get("version", 0)
    if type(version) is not int or version < 0:
        raise StoreError(f"status.version: expected a whole number from 0, found {version!r}")
    if why := pruned(status):
        raise StoreError(why)
    if (version > 0) != ("state" in status):
        raise StoreError(f"status.state: it is {'missing' if version else 'there'}, but status.version is {version}")
    answered = status.get("answered", [])
    if not isinstance(answered, list) or not all(isinstance(m, str) for m in answered):
        raise StoreError("status.answered: expected a list of texts")
    chest = _named("status.records", unpack_chest, status["records"]) if "records" in status else Chest()
    state = _named("status.state", unpack_state, status["state"], version, chest) if version else None
    return Held(version, state, chest, tuple(answered))


def pruned(status: Any) -> str:
    """Which field a server has dropped that canaryd wrote, because its definition does not know it; "" for none.

    A whole status that is gone is none: a person may have removed it.
    """
    if not isinstance(status, Mapping):
        return ""
    lost = ["version"] if "phase" in status and "version" not in status else []
    lost += ["state"] if status.get("version") and "state" not in status else []
    return f"status.{lost[0]}: it is missing, although the rest of the status is there" if lost else ""


def _named(field: str, unpack: Any, *arguments: Any) -> Any:
    try:
        return unpack(*arguments)
    except StoreError as e:
        raise StoreError(f"{field}: {e}") from None


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────


def rendered(base: Mapping[str, Any] | None, state: RolloutState, generation: int, at: datetime) -> JSON:
    """The status after a decision, but for what `packed` and `words` keep in it. What others wrote in it stays."""
    latest = state.latest
    status: JSON = {
        **(base or {}),
        "observedGeneration": generation,
        "phase": state.phase.value,
        "step": _step(state),
        "weight": _weight(state),
        "verdict": state.verdict.value if state.verdict and state.phase is not Phase.IDLE else "",
        "rollout": cut(state.rollout, 300),
        "revision": cut(state.revision, 256),
        "stableRevision": cut(state.stable_revision, 256),
        "message": cut(state.sentence),
        "decisive": cut(_text(latest.get("decisive")), 253),
        "progress": _progress(state),
        "next": cut(_text(latest.get("next")), 256),
        "conditions": conditions((base or {}).get("conditions"), state, generation, at),
    }
    for name, time in (("started", state.started), ("nextLook", _time(latest.get("nextLook")))):
        status.pop(name, None)
        if time is not None:
            status[name] = iso(time)
    return status


def _step(state: RolloutState) -> str:
    steps = state.latest.get("stepWeights")
    if state.phase is Phase.IDLE or not isinstance(steps, list):
        return ""
    return f"{len(steps) if state.phase is Phase.SUCCEEDED else min(state.step + 1, len(steps))}/{len(steps)}"


def _weight(state: RolloutState) -> JSON:
    weight = state.latest.get("weight")
    weight = weight if isinstance(weight, Mapping) else {}
    out: JSON = {"desired": state.weight}
    if type(weight.get("configured")) is int:
        out["configured"] = weight["configured"]
    if (observed := _number(weight.get("observed"))) is not None:
        out["observed"] = round(100 * observed, 1)
    return out


def _progress(state: RolloutState) -> str:
    evidence = state.latest.get("evidence")
    if not state.phase.is_scored or not isinstance(evidence, Mapping):
        return ""
    step, rollback = _number(evidence.get("towardStep")), _number(evidence.get("towardRollback"))
    if step is None or rollback is None:
        return ""
    return f"step {100 * step:.0f} %, rollback {100 * rollback:.0f} %"


def last_override(answer: Answer | Refusal, word: Override | None, at: datetime) -> JSON:
    """What became of a word, under status.lastOverride."""
    if isinstance(answer, Refusal):
        told = {"accepted": False, "message": cut(answer.sentence), "at": iso(at)}
        said = {"revision": answer.revision, "by": answer.by, "reason": answer.reason}
        return {"id": answer.id, "action": answer.action, **said, **told}
    told = {"accepted": answer.accepted, "message": cut(answer.sentence), "at": iso(answer.at)}
    said = {"revision": word.revision, "by": word.by, "reason": word.reason} if word else {}
    return {"id": cut(answer.id, 200), "action": answer.action.value, **said, **told}


def cut(text: str, longest: int = LONGEST) -> str:
    """At most so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def iso(time: datetime) -> str:
    """As Kubernetes writes times: whole seconds, UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _number(value: Any) -> float | None:
    """A share; None for whatever is none."""
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


# ── conditions ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, without its times."""

    type: str
    status: str  # True, False or Unknown
    reason: str  # CamelCase
    message: str


def conditions(base: Any, state: RolloutState, generation: int, at: datetime) -> list[JSON]:
    """All conditions after a decision. Ready is only ever set where it is missing or was about the document."""
    out = _listed(base)
    ready = next((c for c in out if c["type"] == READY), None)
    if ready is None or ready.get("reason") in (VALID, INVALID):
        out = with_condition(out, valid(), generation, at)
    for condition in (_progressing(state), _promoted(state), _healthy(state)):
        out = with_condition(out, condition, generation, at)
    return out


def with_condition(base: Any, condition: Condition, generation: int, at: datetime) -> list[JSON]:
    """The list with one condition set; the time of its last transition changes with its status alone."""
    out = _listed(base)
    before = next((c for c in out if c["type"] == condition.type), None)
    same = before is not None and before.get("status") == condition.status and before.get("lastTransitionTime")
    new = {
        "type": condition.type,
        "status": condition.status,
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before and same else iso(at),
        "reason": condition.reason,
        "message": cut(condition.message),
    }
    if before is None:
        return [*out, new][-MOST_CONDITIONS:]
    return [new if c is before else c for c in out]


def valid() -> Condition:
    return Condition(READY, "True", VALID, "The document is valid; canaryd looks after it.")


def invalid(problems: Sequence[object]) -> Condition:
    return Condition(READY, "False", INVALID, "; ".join(str(p) for p in problems))


def held_up(why: str) -> Condition:
    return Condition(READY, "False", HELD, why)


def is_refused(status: Mapping[str, Any]) -> bool:
    """It says that the document is wrong."""
    return any(c["type"] == READY and c.get("reason") == INVALID for c in _listed(status.get("conditions")))


def is_held_up(status: Mapping[str, Any]) -> bool:
    """It says what keeps the Canary from being looked after."""
    return any(c["type"] == READY and c.get("reason") == HELD for c in _listed(status.get("conditions")))


def _listed(base: Any) -> list[JSON]:
    return [c for c in base if isinstance(c, dict) and "type" in c] if isinstance(base, list) else []


def _progressing(state: RolloutState) -> Condition:
    phase, message = state.phase, state.sentence
    if phase is Phase.PAUSED:
        return Condition(PROGRESSING, "Unknown", "Paused", message)
    if phase is Phase.PROGRESSING:
        return Condition(PROGRESSING, "True", _why_progressing(state), message)
    if phase.is_active:
        reason = "WaitingForWorkloads" if phase is Phase.WAITING else phase.value
        return Condition(PROGRESSING, "True", reason, message)
    return Condition(PROGRESSING, "False", _end(state), message)


def _why_progressing(state: RolloutState) -> str:
    if state.latest.get("kind") == "advance":
        return "StepPassed" if state.step > 0 else "FirstStep"
    return {
        Verdict.BLIND: "Blind",
        Verdict.HEALTHY: "Baking",
        Verdict.REGRESSED: "Regressed",
        Verdict.INCONCLUSIVE: "Analysing",
        None: "Analysing",
    }[state.verdict]


def _promoted(state: RolloutState) -> Condition:
    if state.phase.is_active:
        rollout = f"{state.rollout} of revision {state.revision} is under way ({state.phase})"
        return Condition(PROMOTED, "Unknown", "UnderWay", rollout)
    status = "True" if state.phase is Phase.SUCCEEDED else "False"
    return Condition(PROMOTED, status, _end(state), state.sentence)


def _end(state: RolloutState) -> str:
    if state.phase is not Phase.IDLE:
        return state.phase.value
    return "Reverted" if state.number else "NothingToRollOut"


def _healthy(state: RolloutState) -> Condition:
    status, reason = {
        Verdict.HEALTHY: ("True", "Healthy"),
        Verdict.REGRESSED: ("False", "Regressed"),
        Verdict.INCONCLUSIVE: ("Unknown", "Inconclusive"),
        Verdict.BLIND: ("Unknown", "Blind"),
        None: ("Unknown", "NotJudged"),
    }[None if state.phase is Phase.IDLE else state.verdict]
    return Condition(HEALTHY, status, reason, state.sentence if state.verdict else "No verdict yet.")

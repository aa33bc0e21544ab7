"""Bodies of decision records in, what the pages show out. Pure: no clock, no HTML.

Words and numbers are those of the command line (`canaryd.render`), so that a person finds the same in both places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from canaryd import render, wording
from canaryd.bodies import Body
from canaryd.model import Action, Phase
from canaryd.render import NONE, clean

# phase or verdict -> icon of the sprite and tone; a phase that says something wins over the verdict
_PHASES = {
    "Idle": ("rest", "quiet"),
    "Waiting": ("wait", "care"),
    "Paused": ("pause", "care"),
    "Succeeded": ("done", "good"),
    "RollingBack": ("back", "bad"),
    "RolledBack": ("stop", "bad"),
}
_VERDICTS = {
    "healthy": ("good", "good"),
    "inconclusive": ("half", "care"),
    "regressed": ("stop", "bad"),
    "blind": ("blind", "care"),
}
_KINDS = {
    "advance": ("up", "good"),
    "promote": ("up", "good"),
    "succeed": ("done", "good"),
    "start": ("play", "canary"),
    "restart": ("play", "canary"),
    "revert": ("back", "care"),
    "rollback": ("back", "bad"),
    "rolled-back": ("stop", "bad"),
    "blind": ("blind", "care"),
    "blind-deadline": ("blind", "bad"),
    "resumed": ("good", "good"),
    "inconclusive": ("half", "care"),
    "drift": ("drift", "care"),
    "contested": ("drift", "bad"),
    "override": ("person", "canary"),
    "refused": ("stop", "care"),
    "hook": ("half", "quiet"),
}
_INSIDE = re.compile(r"(?<=\d) (?=\d{3}\b|%|pt\b|ms\b|s\b|min\b|h\b)")
_SETTLED = ("Idle", "Succeeded", "RolledBack")

# What can be said in which phase; the daemon has the last word. The first one is what the page proposes.
_ACTIONS = {
    Phase.WAITING: (Action.PAUSE, Action.ABORT),
    Phase.PROGRESSING: (Action.PROMOTE, Action.PAUSE, Action.ABORT),
    Phase.PAUSED: (Action.RESUME, Action.PROMOTE, Action.ABORT),
    Phase.PROMOTING: (Action.ABORT, Action.RETRY),
    Phase.ROLLED_BACK: (Action.RETRY,),
}

# what is shown together: word of the filter -> title
GROUPS = {"attention": "Need a person", "rolling": "Rolling out", "back": "Rolled back", "rest": "At rest"}
_RANK = {"attention": 0, "rolling": 1, "back": 2, "rest": 3}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the plan."""

    weight: str  # "25 %"
    state: str  # done, now, next, or gone after a rollback
    filled: int  # tenths of it, 0..10


@dataclass(frozen=True, slots=True)
class Row:
    """One canary in the overview."""

    key: str
    name: str
    namespace: str
    path: str  # of its page, below the prefix
    group: str  # of GROUPS
    icon: str
    tone: str
    phase: str
    revision: str
    steps: tuple[Step, ...]
    step: str  # "2/5"
    weight: str  # "10 / 10 / 9.7 %"
    differs: bool  # what is set is not what is wanted
    desired: float  # percent
    verdict: str
    verdict_icon: str
    verdict_tone: str
    decided: str  # "errors +1.8 pt (+1.1..+2.6)"
    sentence: str  # "" where nothing is going on
    since: str  # ISO; "" unknown
    look: str  # ISO of the next look; "" none

    @property
    def order(self) -> tuple[int, str]:
        """Most pressing first."""
        return _RANK[self.group], self.key


def row(key: str, body: Body) -> Row:
    """What one canary looks like now."""
    phase = clean(body.get("phase"), 20) or "Idle"
    verdict = clean(body.get("verdict"), 20)
    weight = _part(body, "weight")
    icon, tone = mark(body)
    verdict_icon, verdict_tone = _VERDICTS.get(verdict, ("", "quiet"))
    desired = _number(weight.get("desired")) or 0.0
    idle = not weight or phase == "Idle"
    configured = _number(weight.get("configured"))
    group = _group(body, phase, verdict)
    begun, total = _step(body)
    return Row(
        key=key,
        name=clean(body.get("canary"), 80) or key.rpartition("/")[2],
        namespace=key.rpartition("/")[0],
        path=path_of(key),
        group=group,
        icon=icon,
        tone=tone,
        phase=phase,
        revision=clean(body.get("revision"), 60),
        steps=steps(body),
        step=f"{begun}/{total}" if begun and total else "",
        weight="" if idle else split(weight),
        differs=not idle and configured is not None and configured != desired,
        desired=desired,
        verdict=verdict,
        verdict_icon=verdict_icon,
        verdict_tone=verdict_tone,
        decided="" if phase == "Idle" else _known(render.decided_by(body)),
        sentence=_sentence(body, group),
        since=clean(body.get("since"), 40),
        look=clean(body.get("nextLook"), 40) if phase not in _SETTLED else "",
    )


def path_of(key: str, rollout: str = "") -> str:
    """ "shop/api", "api-3" → "/canaries/shop/api/rollouts/api-3"; names become safe for a URL."""
    parts = ["canaries", *key.split("/"), *(("rollouts", rollout) if rollout else ())]
    return "".join("/" + quote(part, safe="") for part in parts)


def split(weight: Body) -> str:
    """ "10 / 10 / 9.7 %": wanted, set and seen."""
    desired, configured = _number(weight.get("desired")), _number(weight.get("configured"))
    observed = _number(weight.get("observed"))
    texts = ["?" if n is None else f"{n:g}" for n in (desired, configured)]
    return f"{texts[0]} / {texts[1]} / {NONE if observed is None else f'{100 * observed:.1f} %'}"


def mark(body: Body) -> tuple[str, str]:
    """Icon and tone of where a canary is; both only repeat words."""
    phase, verdict = str(body.get("phase")), str(body.get("verdict"))
    return _PHASES.get(phase) or _VERDICTS.get(verdict) or ("half", "quiet")


def mark_of_kind(kind: object) -> tuple[str, str]:
    """Icon and tone of a decision."""
    return _KINDS.get(str(kind), ("dot", "quiet"))


def mark_of_verdict(verdict: object) -> tuple[str, str]:
    """Icon and tone of a finding."""
    return _VERDICTS.get(str(verdict), ("dot", "quiet"))


def steps(body: Body) -> tuple[Step, ...]:
    """The plan, and how far it is."""
    weights = body.get("stepWeights")
    weights = weights if isinstance(weights, list | tuple) else []
    begun, _ = _step(body)
    phase = str(body.get("phase"))
    toward = min(max(_number(_part(body, "evidence").get("towardStep")) or 0.0, 0.0), 1.0)
    out = []
    for i, value in enumerate(weights[:50], start=1):
        number = _number(value)
        state, filled = "next", 0
        if phase in ("Succeeded", "Promoting") or (begun and i < begun):
            state, filled = "done", 10
        elif i == begun and phase not in ("Idle",):
            state, filled = "now", min(int(toward * 10), 9)
        if phase in ("RollingBack", "RolledBack") and state in ("done", "now"):
            state, filled = "gone", 10
        out.append(Step(f"{number:g} %" if number is not None else "?", state, filled))
    return tuple(out)


def actions(body: Body) -> tuple[Action, ...]:
    """What a person can say now."""
    try:
        return _ACTIONS.get(Phase(str(body.get("phase"))), ())
    except ValueError:
        return ()


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many there are in each group."""
    found = dict.fromkeys(GROUPS, 0)
    for one in rows:
        found[one.group] += 1
    return found


def change(before: Row | None, after: Row) -> str:
    """What a person who listens should hear of it; "" when it is not worth a word."""
    if before is None or (before.phase, before.verdict, before.desired) == (after.phase, after.verdict, after.desired):
        return ""
    if before.phase != after.phase:
        return f"{after.name}: {spoken(after.phase)}"
    if before.desired != after.desired:
        return f"{after.name}: {before.desired:g} to {after.desired:g} %"
    return f"{after.name}: {after.verdict or 'no verdict'}" if after.verdict in ("regressed", "blind") else ""


def spoken(phase: str) -> str:
    """ "RolledBack" → "rolled back"."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in phase).strip()


def share(value: object) -> int | None:
    """0..1 → whole percent of a threshold; 100 only when it is reached."""
    number = _number(value)
    if number is None:
        return None
    return 100 if number >= 1 else min(int(max(number, 0.0) * 100), 99)


def text(value: object, limit: int = 400) -> str:
    """Text from outside, made harmless, in which a line ends neither inside a number nor before its unit."""
    return _INSIDE.sub("\u00a0", clean(value, limit))


def count(value: object) -> str:
    return wording.count(_number(value))


def value(finding: Body, arm: str) -> str:
    """A rate, or the mean of a gauge in its own unit."""
    means = finding.get("means")
    if isinstance(means, list | tuple) and len(means) == 2:
        number = _number(means[1 if arm == "canary" else 0])
        return NONE if number is None else wording.amount(number)
    return wording.percent(_number(finding.get(arm)))


def difference(finding: Body) -> str:
    return render.difference(finding) or NONE


def tolerated(finding: Body) -> str:
    return wording.points(_number(finding.get("tolerated")))


def milliseconds(value: object) -> str:
    number = _number(value)
    return NONE if number is None else f"{number:,.0f} ms".replace(",", " ")


def link(url: object) -> str:
    """An address that may be followed; "" for anything that is not plainly one."""
    text = str(url or "")
    plain = len(text) <= 2000 and text.isprintable() and not any(c.isspace() for c in text)
    return text if plain and text.startswith(("https://", "http://")) else ""


# key in the traces of a record, title, what is told of each arm
TRACE_TABLES = (
    ("onlyCanaryFails", "Operations that fail in the canary only", "failed of all"),
    ("newCalls", "Calls that the canary makes, or makes more often", "calls per request"),
    ("criticalPath", "Where the canary's extra time goes", "own time per request"),
)


def trace_value(kind: str, line: Body, arm: str) -> str:
    """One arm's number in one of TRACE_TABLES."""
    n = count(line.get(f"{arm}N"))
    if kind == "onlyCanaryFails":
        return f"{count(line.get(f'{arm}Errors'))} of {n} failed"
    if kind == "newCalls":
        number = _number(line.get(f"{arm}PerRequest"))
        return f"{NONE if number is None else f'{number:.2g}'} per request (n {n})"
    return f"{milliseconds(line.get(f'{arm}Ms'))} (n {n})"


def _group(body: Body, phase: str, verdict: str) -> str:
    if body.get("trouble") or phase == "Paused" or (phase not in _SETTLED and verdict in ("blind", "regressed")):
        return "attention"
    if phase in _SETTLED:
        return "back" if phase == "RolledBack" else "rest"
    if str(body.get("next") or "").startswith("a person") or body.get("severity") == "critical":
        return "attention"
    return "rolling"


def _sentence(body: Body, group: str) -> str:
    """Only where something is going on: five hundred sentences are read by nobody."""
    trouble = body.get("trouble")
    if isinstance(trouble, list | tuple) and trouble:
        return clean(trouble[0], 300)
    return clean(body.get("sentence"), 300) if group != "rest" else ""


def _step(body: Body) -> tuple[int, int]:
    """Steps begun (1-based; 0: none) and steps in all."""
    weights, step = body.get("stepWeights"), _number(body.get("step"))
    total = len(weights) if isinstance(weights, list | tuple) else 0
    begun = int(step) + 1 if step is not None else 0
    return (total if body.get("phase") == "Succeeded" else min(max(begun, 0), total)), total


def _known(text: str) -> str:
    return "" if text == NONE else text


def _part(body: Body, key: str) -> Body:
    value = body.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        return None
    return float(value)


def phases_of(action: Action) -> tuple[str, ...]:
    """The phases in which it can be said."""
    return tuple(phase.value for phase, known in _ACTIONS.items() if action in known)

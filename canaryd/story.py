"""The records of one rollout in, its story out: what happened, why, what now, and the series behind it. Pure.

Everything that is drawn or reported later is read from here, so that all of it agrees. Records may come in any order,
may miss keys (older ones do) and may hold anything at all: what is not a finite number is None here, never zero.
Times are UTC; rates, shares and differences are shares (0.01 is one percent), weights are percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise

from canaryd import wording
from canaryd.bodies import Body, instant, number, part, parts
from canaryd.model import Record
from canaryd.policy import Canary, dump_canary

QUIET_KINDS = frozenset({"hold", "wait", "idle"})  # looks that changed nothing
PATIENCE = 3  # intervals without any record after which nobody looked
LEAST_PATIENCE = timedelta(minutes=1)
NO_LOOKS = "no decision was recorded in this time"
_LOOKED_AT = ("Progressing", "Promoting")  # phases in which every look is recorded


class Outcome(StrEnum):
    """How it ended, or that it has not."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    REPLACED = "replaced by a newer rollout"
    UNDER_WAY = "under way"
    PAUSED = "paused"
    NONE = "no rollout"

    @property
    def is_over(self) -> bool:
        return self in (Outcome.PROMOTED, Outcome.ROLLED_BACK, Outcome.REPLACED)


@dataclass(frozen=True, slots=True)
class Moment:
    """One decision."""

    id: str
    at: datetime
    kind: str  # of model.DecisionKind
    sentence: str
    severity: str
    phase: str
    step: int  # index into the steps, -1 before the first
    weight: float  # percent wanted afterwards
    verdict: str  # "" without one
    override: Body | None = None

    @property
    def is_quiet(self) -> bool:
        """A look that changed nothing."""
        return self.kind in QUIET_KINDS and self.severity == "info"


@dataclass(frozen=True, slots=True)
class Point:
    """What one look said about one metric, over all that was counted until then."""

    at: datetime
    difference: float | None  # canary minus stable; of a gauge: canary / stable - 1. None: not known
    low: float | None
    high: float | None
    tolerated: float | None
    toward_step: float | None  # 0..1, 1: reached
    toward_rollback: float | None
    n: float | None  # canary requests
    stable_n: float | None
    canary: float | None  # rate; of a gauge: mean in its own unit
    stable: float | None
    log_e: float | None
    verdict: str
    event: str  # what is counted, for people
    note: str = ""

    @property
    def is_blind(self) -> bool:
        return self.verdict == "blind" or self.difference is None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric over time."""

    name: str
    points: tuple[Point, ...]
    is_relative: bool = False  # differences are relative to stable (a gauge), not shares of requests
    is_decisive: bool = False

    @property
    def last(self) -> Point | None:
        """The latest that could be seen; None before any."""
        return next((p for p in reversed(self.points) if not p.is_blind), None)


@dataclass(frozen=True, slots=True)
class Weight:
    """What was wanted, set and seen at one look. Percent; None: not known."""

    at: datetime
    desired: float
    configured: float | None
    observed: float | None
    requests: float | None  # since the weight was set
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """How far both decisions were at one look: shares of their thresholds, 1 = reached."""

    at: datetime
    toward_step: float | None
    toward_rollback: float | None
    log_e: float | None


@dataclass(frozen=True, slots=True)
class Band:
    """A time in which one weight was wanted; `end` is that of the story for the last one."""

    start: datetime
    end: datetime
    weight: float  # percent
    step: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without numbers."""

    start: datetime
    end: datetime
    word: str  # "blind", "no looks"
    why: str


@dataclass(frozen=True, slots=True)
class Story:
    """One rollout."""

    canary: str
    namespace: str
    rollout: str
    revision: str
    stable_revision: str
    outcome: Outcome
    started: datetime | None
    ended: datetime | None  # None while it is under way
    until: datetime | None  # the latest record, or now
    interval: timedelta | None  # between two looks
    moments: tuple[Moment, ...] = ()  # oldest first
    metrics: tuple[Metric, ...] = ()
    weights: tuple[Weight, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    bands: tuple[Band, ...] = ()
    gaps: tuple[Gap, ...] = ()
    bodies: tuple[Body, ...] = field(default=(), repr=False)  # of its records, oldest first
    traces: Body = field(default_factory=dict)  # the latest trace evidence
    latest: Body = field(default_factory=dict)  # body of the latest record
    decided: Body = field(default_factory=dict)  # body of the decision that explains the outcome
    document: Body | None = None  # the Canary document that it ran with
    document_note: str = ""  # what should be known of it
    complete: bool = True  # the record of its beginning is here

    @classmethod
    def of(
        cls,
        records: Iterable[Record | Body],
        canary: Canary | None = None,
        *,
        rollout: str = "",
        now: datetime | None = None,
    ) -> Story:
        """The story of `rollout`, or of the latest one in the records. `canary`: its document as it is now.

        With `now` the time axis of a rollout that is under way goes on to it, so that silence is seen.
        """
        known = _in_order(_unique(records))
        name = rollout or next((_text(body, "rollout") for body, _ in reversed(known) if body.get("rollout")), "")
        mine = [(body, moment) for body, moment in known if _text(body, "rollout") == name]
        if not mine:
            return cls(canary.name if canary else "", "", name, "", "", Outcome.NONE, None, None, None, None)
        bodies = [body for body, _ in mine]
        latest, moments = bodies[-1], tuple(moment for _, moment in mine)
        newer = any(m.at > moments[-1].at and _text(b, "rollout") not in ("", name) for b, m in known)
        outcome = _outcome(latest, newer)
        started = instant(latest.get("since")) or moments[0].at
        decided = _decided(bodies, outcome)
        document, note = _document(bodies, canary)
        interval = _interval(bodies)
        until = moments[-1].at if outcome.is_over or now is None else max(moments[-1].at, now.astimezone(UTC))
        return cls(
            canary=_text(latest, "canary") or moments[-1].id.rpartition("/")[0],
            namespace=_text(latest, "namespace"),
            rollout=name,
            revision=_text(latest, "revision"),
            stable_revision=next((_text(b, "stableRevision") for b in bodies if _was_stable(b)), ""),
            outcome=outcome,
            started=started,
            ended=_end(bodies, outcome),
            until=until,
            interval=interval,
            moments=moments,
            metrics=_metrics(bodies, _text(decided, "decisive")),
            weights=_weights(bodies),
            evidence=_evidence(bodies),
            bands=_bands(moments, until),
            gaps=_gaps(mine, interval, until),
            bodies=tuple(bodies),
            traces=next((t for b in reversed(bodies) if (t := part(b, "traces"))), {}),
            latest=latest,
            decided=decided,
            document=document,
            document_note=note,
            complete=moments[0].kind in ("start", "restart", "adopt") or _first_known(latest, moments[0]),
        )

    # ── for people ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def duration(self) -> timedelta | None:
        end = self.ended or self.until
        return end - self.started if end and self.started else None

    @property
    def key_moments(self) -> tuple[Moment, ...]:
        """The decisions that changed something or told somebody."""
        return tuple(m for m in self.moments if not m.is_quiet)

    @property
    def overrides(self) -> tuple[Moment, ...]:
        """What people said, each once."""
        return tuple({str(m.override.get("id")): m for m in self.moments if m.override}.values())

    @property
    def findings(self) -> tuple[Body, ...]:
        """The numbers of the decision that explains the outcome, or the latest ones."""
        return tuple(parts(self.decided, "findings") or parts(self.latest, "findings"))

    @property
    def harmed(self) -> tuple[float, float]:
        """Canary requests of this run, and how many of them failed."""
        harmed = part(self.latest, "harmed")
        return number(harmed.get("requests")) or 0.0, number(harmed.get("failures")) or 0.0

    @property
    def highest(self) -> float:
        """The largest weight that was wanted, percent."""
        return max((m.weight for m in self.moments), default=0.0)

    @property
    def what(self) -> str:
        """What happened, in a sentence."""
        name = f"{self.canary} {self.revision}".strip()
        took = f" {wording.span(self.duration)} after it began" if self.duration else ""
        at = f" at {self.ended:%H:%M:%S} UTC" if self.ended else ""
        if self.outcome is Outcome.PROMOTED:
            return f"{name} was promoted{at},{took or ' at once'}: it serves all requests."
        if self.outcome is Outcome.ROLLED_BACK:
            back = "was rolled back" if self.ended else "is being rolled back"
            return f"{name} {back} from {self.highest:g} %{at}{',' if took else ''}{took}."
        if self.outcome is Outcome.REPLACED:
            return f"{name} was replaced by a newer rollout{took}."
        if self.outcome is Outcome.NONE:
            return "There has been no rollout."
        weight = self.moments[-1].weight if self.moments else 0.0
        verb = "is paused" if self.outcome is Outcome.PAUSED else "is under way"
        since = f", {wording.span(self.duration)} after it began" if self.duration else ""
        return f"{name} {verb} at {weight:g} %{since}."

    @property
    def why(self) -> str:
        """The sentence of the decision that explains the outcome."""
        return _text(self.decided, "sentence") or "No decision has been recorded."

    @property
    def now(self) -> str:
        """What comes next, and what a person can do."""
        stable = _text(part(self.latest, "workloads"), "stable") or "stable"
        if self.outcome is Outcome.PROMOTED:
            return "Nothing is to be done."
        if self.outcome is Outcome.ROLLED_BACK and self.ended:
            return (
                f"All requests go to {stable}. Correct the release and start a new revision; "
                f"canaryd retry {self.canary} starts this one again."
            )
        if self.outcome is Outcome.REPLACED:
            return f"The newer rollout decides what {self.canary} runs."
        waits = _text(self.latest, "next")
        text = f"It waits for: {waits}." if waits else "Nothing is to be done."
        if self.outcome is Outcome.PAUSED:
            return f"It waits for a person: canaryd resume {self.canary}, or canaryd abort {self.canary}."
        return text


# ── reading bodies ───────────────────────────────────────────────────────────────────────────────────────────


def _in_order(known: Iterable[tuple[Body, Moment]]) -> list[tuple[Body, Moment]]:
    """Oldest first; records of one look by their numbers, those without a number as they came."""
    found = list(known)
    if found and found[0][1].at > found[-1][1].at:
        found.reverse()

    def place(one: tuple[Body, Moment]) -> tuple[datetime, int]:
        last = one[1].id.rpartition("/")[2]
        return one[1].at, int(last) if last.isdecimal() and len(last) < 18 else 0

    return sorted(found, key=place)


def _unique(records: Iterable[Record | Body]) -> Iterable[tuple[Body, Moment]]:
    """Each record once, as its body and its moment; one without a time is left out."""
    seen: set[tuple[str, datetime, str, str]] = set()
    for i, record in enumerate(records):
        body = record if isinstance(record, Mapping) else record.body
        at = instant(body.get("at")) if isinstance(record, Mapping) else record.at.astimezone(UTC)
        if at is None:
            continue
        id_ = str(body.get("id") or f"-{i}") if isinstance(record, Mapping) else record.id
        kind = _text(body, "kind") if isinstance(record, Mapping) else str(record.kind)
        sentence = _text(body, "sentence") if isinstance(record, Mapping) else record.sentence
        key = ("" if isinstance(record, Mapping) else id_, at, kind, sentence)
        if key not in seen:
            seen.add(key)
            yield body, _moment(body, id_, at, kind, sentence)


def _moment(body: Body, id_: str, at: datetime, kind: str, sentence: str) -> Moment:
    step = number(body.get("step"))
    return Moment(
        id=id_,
        at=at,
        kind=kind,
        sentence=sentence,
        severity=_text(body, "severity") or "info",
        phase=_text(body, "phase"),
        step=int(step) if step is not None else -1,
        weight=number(part(body, "weight").get("desired")) or 0.0,
        verdict=_text(body, "verdict"),
        override=part(body, "override") or None,
    )


def _outcome(latest: Body, newer: bool) -> Outcome:
    phase = _text(latest, "phase")
    if phase == "Succeeded":
        return Outcome.PROMOTED
    if phase in ("RolledBack", "RollingBack"):
        return Outcome.ROLLED_BACK
    if newer:
        return Outcome.REPLACED
    return Outcome.PAUSED if phase == "Paused" else Outcome.UNDER_WAY


def _decided(bodies: Sequence[Body], outcome: Outcome) -> Body:
    """The body whose sentence explains the outcome best."""
    kinds = {
        Outcome.ROLLED_BACK: ("rollback", "blind-deadline", "inconclusive", "revert", "rolled-back"),
        Outcome.PROMOTED: ("promote", "advance", "override", "succeed"),
    }.get(outcome, ())
    found = [b for b in bodies if b.get("kind") in kinds]
    if outcome is Outcome.PROMOTED:  # the decision to go on says more than that it is done
        found = [b for b in found if b.get("kind") == "promote"] or found
    if outcome is Outcome.ROLLED_BACK:  # an abort is a word of a person and a rollback in one look
        causes = [b for b in found if b.get("kind") != "rolled-back"]
        return (causes or found or [bodies[-1]])[-1]
    return (found or [bodies[-1]])[-1]


def _end(bodies: Sequence[Body], outcome: Outcome) -> datetime | None:
    if outcome is Outcome.REPLACED:
        return instant(bodies[-1].get("at"))
    if not outcome.is_over or _text(bodies[-1], "phase") == "RollingBack":
        return None
    settled = _text(bodies[-1], "phase")
    first = next((b for b in bodies if b.get("phase") == settled), bodies[-1])
    return instant(first.get("at"))


def _interval(bodies: Sequence[Body]) -> timedelta | None:
    for body in reversed(bodies):
        at, after = instant(body.get("at")), instant(body.get("nextLook"))
        if at and after and after > at:
            return after - at
    return None


def _document(bodies: Sequence[Body], canary: Canary | None) -> tuple[Body | None, str]:
    """The document that the rollout began with; without a record of it the present one, and what is to be said."""
    kept = next((d for b in bodies if (d := part(b, "document"))), None)
    prints = {str(part(b, "look").get("document")) for b in bodies if part(b, "look").get("document")}
    note = "The document was changed while the rollout was under way." if len(prints) > 1 else ""
    if kept is not None:
        return kept, note
    if canary is None:
        return None, "The document is not at hand."
    return dump_canary(canary), "This is the document as it is now; it may have been changed since the rollout."


def _first_known(latest: Body, first: Moment) -> bool:
    since = instant(latest.get("since"))
    return since is not None and first.at <= since


def _was_stable(body: Body) -> bool:
    """It names the revision that was stable during the rollout, not the one that came out of it."""
    return bool(body.get("stableRevision")) and body.get("phase") != "Succeeded"


def _looks(bodies: Sequence[Body]) -> list[Body]:
    """One body for each look that judged something, in order; what was only carried along is left out."""
    out: list[Body] = []
    for body in bodies:
        judged = bool(part(body, "look")) if "look" in body else bool(body.get("findings"))
        if judged and not (out and out[-1].get("at") == body.get("at")):
            out.append(body)
    return out


def _metrics(bodies: Sequence[Body], decisive: str) -> tuple[Metric, ...]:
    series: dict[str, list[Point]] = {}
    relative: set[str] = set()
    for body in _looks(bodies):
        at = instant(body.get("at"))
        for finding in parts(body, "findings"):
            name = _text(finding, "metric")
            if at is None or not name:
                continue
            if isinstance(finding.get("means"), Sequence):
                relative.add(name)
            series.setdefault(name, []).append(_point(finding, at))
    made = [Metric(name, tuple(points), name in relative, name == decisive) for name, points in series.items()]
    return tuple(sorted(made, key=lambda m: not m.is_decisive))


def _point(finding: Body, at: datetime) -> Point:
    get = {key: number(value) for key, value in finding.items()}
    canary, stable, difference = get.get("canary"), get.get("stable"), get.get("difference")
    means = finding.get("means")
    if isinstance(means, Sequence) and not isinstance(means, str) and len(means) == 2:
        stable, canary = number(means[0]), number(means[1])
        difference = canary / stable - 1 if canary is not None and stable else None
    return Point(
        at=at,
        difference=difference,
        low=get.get("low"),
        high=get.get("high"),
        tolerated=get.get("tolerated"),
        toward_step=get.get("towardStep"),
        toward_rollback=get.get("towardRollback"),
        n=get.get("canaryN"),
        stable_n=get.get("stableN"),
        canary=canary,
        stable=stable,
        log_e=get.get("logE"),
        verdict=_text(finding, "verdict"),
        event=_text(finding, "event"),
        note=_text(finding, "note"),
    )


def _weights(bodies: Sequence[Body]) -> tuple[Weight, ...]:
    out: list[Weight] = []
    for body in bodies:
        split, at = part(body, "weight"), instant(body.get("at"))
        desired = number(split.get("desired"))
        if at is None or desired is None:
            continue
        observed = number(split.get("observed"))
        weight = Weight(
            at=at,
            desired=desired,
            configured=number(split.get("configured")),
            observed=None if observed is None else observed * 100,
            requests=number(split.get("requests")),
            confirmed=split.get("confirmed") is True,
        )
        if not out or out[-1] != weight:
            out.append(weight)
    return tuple(out)


def _evidence(bodies: Sequence[Body]) -> tuple[Evidence, ...]:
    out = []
    for body in _looks(bodies):
        found, at = part(body, "evidence"), instant(body.get("at"))
        if at is not None:
            shares = (number(found.get(key)) for key in ("towardStep", "towardRollback", "logE"))
            out.append(Evidence(at, *shares))
    return tuple(out)


def _bands(moments: Sequence[Moment], until: datetime) -> tuple[Band, ...]:
    """Times of one weight; the weight of a moment holds until the next one says otherwise."""
    out: list[Band] = []
    for moment in moments:
        if out:
            out[-1] = Band(out[-1].start, moment.at, out[-1].weight, out[-1].step)
        if not out or out[-1].weight != moment.weight:
            out.append(Band(moment.at, moment.at, moment.weight, moment.step))
    out[-1] = Band(out[-1].start, max(until, out[-1].end), out[-1].weight, out[-1].step)
    return tuple(band for band in out if band.end > band.start or band is out[-1])


def _gaps(mine: Sequence[tuple[Body, Moment]], interval: timedelta | None, until: datetime) -> tuple[Gap, ...]:
    """Times of blindness, and times in which nobody looked though somebody should have."""
    out: list[Gap] = []
    patience = max(PATIENCE * interval, LEAST_PATIENCE) if interval else None
    for (body, moment), (after, later) in pairwise(mine):
        spell = timedelta(seconds=number(part(after, "evidence").get("blind")) or 0.0)
        if _text(body, "verdict") == "blind":
            out.append(Gap(moment.at, later.at, "blind", moment.sentence))
        elif later.kind in ("blind", "blind-deadline") and spell:
            out.append(Gap(max(later.at - spell, moment.at), later.at, "blind", later.sentence))
        elif patience and moment.phase in _LOOKED_AT and later.at - moment.at > patience:
            out.append(Gap(moment.at, later.at, "no looks", NO_LOOKS))
    body, moment = mine[-1]
    if _text(body, "verdict") == "blind" and until > moment.at:
        out.append(Gap(moment.at, until, "blind", moment.sentence))
    elif patience and moment.phase in _LOOKED_AT and until - moment.at > patience:
        out.append(Gap(moment.at, until, "no looks", NO_LOOKS))
    return tuple(_joined(out))


def _joined(gaps: Iterable[Gap]) -> list[Gap]:
    out: list[Gap] = []
    for gap in gaps:
        if out and out[-1].word == gap.word and gap.start <= out[-1].end:
            out[-1] = Gap(out[-1].start, max(out[-1].end, gap.end), gap.word, out[-1].why)
        else:
            out.append(gap)
    return out


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────


def _text(body: Body, key: str) -> str:
    value = body.get(key)
    return str(value) if value is not None else ""

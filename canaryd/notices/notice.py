"""The facts of one decision, chosen and worded for a person who was not there. Pure.

Everything comes from the record's body, which may be of an older canaryd: a key that is missing is a fact that is not
told. Texts from outside lose what does not show as itself, and are bounded. No layout and no markup here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

from canaryd import wording
from canaryd.bodies import Body, instant, number, part, parts
from canaryd.model import DecisionKind, Record
from canaryd.notices.kinds import word

SETTLED = ("Idle", "Succeeded", "RolledBack")
_EXPLAINED = (DecisionKind.ROLLBACK, DecisionKind.INCONCLUSIVE, DecisionKind.PROMOTE)
MOST_FINDINGS = 20
MOST_TRACES = 5

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]+"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One metric, in words."""

    metric: str
    canary: str
    stable: str
    difference: str  # with its interval
    tolerated: str
    verdict: str
    n: tuple[str, str]  # requests of canary and stable, "" where requests are not counted


@dataclass(frozen=True, slots=True)
class Trace:
    """One request to look at."""

    label: str
    url: str  # "" where nobody knows where traces are shown


@dataclass(frozen=True, slots=True)
class Notice:
    """One decision for people."""

    id: str
    canary: str  # key, such as "shop/api"
    rollout: str
    revision: str
    kind: str  # one of kinds.KINDS
    severity: str
    sentence: str
    at: datetime
    phase: str
    verdict: str
    weight: int  # percent wanted
    steps: tuple[int, int]  # begun and all
    seen: str  # share that requests show, "" unknown
    since: datetime | None
    decisive: str
    rows: tuple[Row, ...] = ()
    cleared: tuple[str, ...] = ()  # metrics that were not the cause
    harmed: str = ""
    next: str = ""
    traces: tuple[Trace, ...] = ()
    clues: tuple[str, ...] = ()  # what traces show, in sentences
    by: str = ""  # who said something, and what became of it
    who: str = ""
    late: str = ""  # "sent 9 min late"
    is_full: bool = False  # a person needs to understand it: with all the numbers
    page: str = ""  # URL of the rollout
    report: str = ""

    @property
    def name(self) -> str:
        return self.canary.rpartition("/")[2]

    @property
    def is_over(self) -> bool:
        return self.phase in SETTLED


def notice(record: Record, now: datetime, late_after: timedelta, external_url: str = "") -> Notice:
    """The facts of a record, as they are told at `now`. `external_url` is where the dashboard is, "" for none."""
    body = record.body
    weight, steps = part(body, "weight"), body.get("stepWeights")
    step, total = number(body.get("step")), len(steps) if isinstance(steps, Sequence) else 0
    phase, observed = plain(body.get("phase"), 20), number(weight.get("observed"))
    begun = total if phase == "Succeeded" else min(int(step) + 1, total) if step is not None else 0
    page = _page(external_url, record)
    findings = parts(body, "findings")[:MOST_FINDINGS]
    return Notice(
        id=record.id,
        canary=plain(record.canary, 320),
        rollout=plain(body.get("rollout"), 320),
        revision=plain(body.get("revision"), 64),
        kind=word(record),
        severity=plain(body.get("severity"), 20) or "info",
        sentence=plain(record.sentence, 2000),
        at=record.at.astimezone(UTC),
        phase=phase,
        verdict=plain(body.get("verdict"), 20),
        weight=int(number(weight.get("desired")) or 0),
        steps=(max(begun, 0), total),
        seen="" if observed is None or not number(weight.get("requests")) else f"{100 * observed:.1f} %",
        since=instant(body.get("since")),
        decisive=plain(body.get("decisive"), 80),
        rows=tuple(_row(f) for f in findings),
        cleared=_cleared(findings, body),
        harmed=_harmed(part(body, "harmed"), phase),
        next=plain(body.get("next"), 200),
        traces=_traces(part(body, "traces")),
        clues=_clues(part(body, "traces")),
        by=_by(part(body, "override")),
        who=plain(part(body, "override").get("by"), 200),
        is_full=record.kind in _EXPLAINED or (record.kind is DecisionKind.HOLD and body.get("severity") == "critical"),
        late=_late(record, now, late_after),
        page=page,
        report=f"{page}/report" if page else "",
    )


def plain(value: object, limit: int = 400) -> str:
    """Text from outside on one line, without what does not show as itself; None is ""."""
    if value is None:
        return ""
    text = _HIDDEN.sub(" ", str(value)[: limit + 1]).strip()
    return text[: limit - 1] + "…" if len(text) > limit else text


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────


def _row(finding: Body) -> Row:
    middle, low, high = (number(finding.get(k)) for k in ("difference", "low", "high"))
    tolerated, means = number(finding.get("tolerated")), finding.get("means")
    canary, stable = (wording.percent(number(finding.get(k))) for k in ("canary", "stable"))
    if isinstance(means, Sequence) and not isinstance(means, str) and len(means) == 2:
        stable, canary = (wording.amount(number(m) if number(m) is not None else math.nan) for m in means)  # type: ignore[arg-type]
        shown, allowed = _relative(middle), _relative(tolerated)  # a gauge's difference is a share of stable's mean
    else:
        shown, allowed = wording.interval(middle, low, high), wording.points(tolerated)
    n = [number(finding.get(k)) for k in ("canaryN", "stableN")]
    counted = any(n)
    return Row(
        metric=plain(finding.get("metric"), 40),
        canary=canary,
        stable=stable,
        difference=shown,
        tolerated=allowed,
        verdict=plain(finding.get("verdict"), 20),
        n=(wording.count(n[0]), wording.count(n[1])) if counted else ("", ""),
    )


def _relative(share: float | None) -> str:
    text = wording.percent(share)
    return text if share is None or share <= 0 else f"+{text}"


def _cleared(findings: Sequence[Body], body: Body) -> tuple[str, ...]:
    """What was looked at and found no worse, where something else was."""
    if not any(f.get("verdict") == "regressed" for f in findings) or body.get("decisive") is None:
        return ()
    return tuple(plain(f.get("metric"), 40) for f in findings if f.get("verdict") == "healthy")


def _harmed(harmed: Body, phase: str) -> str:
    requests, failures = number(harmed.get("requests")), number(harmed.get("failures"))
    if not requests or phase == "Idle":
        return ""
    return f"{wording.plural(failures or 0, 'request')} failed of {wording.count(requests)} that the canary got"


def _traces(traces: Body) -> tuple[Trace, ...]:
    out = []
    for one in parts(traces, "exemplars")[:MOST_TRACES]:
        ms, facts = number(one.get("durationMs")), part(one, "facts")
        words = [f"{plain(one.get('service'), 60)} {plain(one.get('operation'), 80)}".strip()]
        words += [plain(one.get("status"), 20)] if one.get("status") else ["failed"] if one.get("error") else []
        words += [plain(facts.get("response_flags"), 20)] if facts.get("response_flags") else []
        words += [f"{ms:.0f} ms"] if ms is not None else []
        out.append(Trace(", ".join(w for w in words if w) or plain(one.get("trace"), 40), _url(one.get("url"))))
    return tuple(out)


def _clues(traces: Body) -> tuple[str, ...]:
    out = []
    for one in parts(traces, "onlyCanaryFails")[:2]:
        bad, n, stable = (wording.count(number(one.get(k))) for k in ("canaryErrors", "canaryN", "stableN"))
        out.append(f"{_where(one)} fails in the canary alone: {bad} of {n}, stable none of {stable}")
    for one in parts(traces, "newCalls")[:2]:
        per = [number(one.get(k)) for k in ("canaryPerRequest", "stablePerRequest")]
        rates = " against ".join("–" if p is None else f"{p:.2g}" for p in per)
        out.append(f"the canary calls {_where(one)} more often: {rates} times a request")
    for one in parts(traces, "criticalPath")[:2]:
        ms = [number(one.get(k)) for k in ("canaryMs", "stableMs")]
        times = " against ".join("–" if m is None else f"{m:.0f} ms" for m in ms)
        out.append(f"time is spent in {_where(one)}: {times} a request")
    note = plain(traces.get("note"), 200)
    return (*out, *([f"traces: {note}"] if note else []))


def _where(one: Body) -> str:
    return f"{plain(one.get('service'), 60)} {plain(one.get('operation'), 80)}".strip()


def _by(override: Body) -> str:
    if not override:
        return ""
    who, why = plain(override.get("by"), 200) or "somebody", plain(override.get("reason"), 500)
    became = "" if override.get("accepted") else ", refused"
    return f"{plain(override.get('action'), 20)} by {who}{became}" + (f': "{why}"' if why else "")


def _late(record: Record, now: datetime, late_after: timedelta) -> str:
    age = now - record.at
    return f"sent {wording.span(age)} late" if age >= late_after else ""


def _page(external_url: str, record: Record) -> str:
    rollout = record.body.get("rollout")
    if not external_url:
        return ""
    namespace, _, name = record.canary.rpartition("/")
    place = "/".join(quote(each, safe="") for each in (namespace, name) if each)
    base = f"{external_url.rstrip('/')}/canaries/{place}"
    return f"{base}/rollouts/{quote(str(rollout), safe='')}" if rollout else base


def _url(value: object) -> str:
    """A link for people; "" for anything else."""
    if not isinstance(value, str) or len(value) > 1000 or _HIDDEN.search(value) or any(c in value for c in " <>|\"'"):
        return ""
    return value if urlsplit(value).scheme in ("http", "https") else ""

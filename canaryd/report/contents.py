"""What a report says, as rows of text: the page and the text for a ticket show the same ones. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from canaryd import wording
from canaryd.bodies import Body, number, part, parts
from canaryd.records import without_queries
from canaryd.story import QUIET_KINDS, Band, Metric, Moment, Outcome, Point, Story

MOST_ROWS = 120  # decisions in the timeline
MOST_STEPS = 60
MOST_TRACES = 5
MOVING = ("advance", "promote", "rollback", "revert", "blind-deadline", "override", "restart")  # kinds that end a step
NONE = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the timeline; `times`: of quiet looks that are told together."""

    at: datetime
    until: datetime
    kind: str
    text: str
    severity: str
    weight: float
    times: int = 1


# ── first screen ─────────────────────────────────────────────────────────────────────────────────────────────


def mark(outcome: Outcome) -> tuple[str, str]:
    """(icon, class of its colour) of how it ended; the word stands beside it."""
    return {
        Outcome.PROMOTED: ("✓", "good"),
        Outcome.ROLLED_BACK: ("▼", "bad"),
        Outcome.PAUSED: ("‖", "care"),
        Outcome.UNDER_WAY: ("▶", "care"),
    }.get(outcome, ("·", "quiet"))


def decisive(story: Story) -> Body:
    """The finding that decided, {} without one."""
    found = [f for f in story.findings if f.get("metric") == story.decided.get("decisive")]
    return (found or list(story.findings) or [{}])[0]


def key_numbers(story: Story) -> list[tuple[str, str]]:
    """(what, how much): the few numbers that tell how large the matter was."""
    requests, failures = story.harmed
    looks = max((len(m.points) for m in story.metrics), default=0)
    out = [
        ("highest weight", f"{story.highest:g} %"),
        ("took", wording.span(story.duration)),
        ("requests to the canary", wording.count(requests)),
        ("of them failed", wording.count(failures)),
        ("looks", wording.count(looks)),
    ]
    blind = sum(((g.end - g.start).total_seconds() for g in story.gaps if g.word == "blind"), 0.0)
    return [*out, ("without sight", wording.span(blind))] if blind else out


def others(story: Story) -> str:
    """ "latency, memory": what was looked at and was not the cause; "" when it was not a rollback by numbers."""
    name = story.decided.get("decisive")
    if story.outcome is not Outcome.ROLLED_BACK or story.decided.get("kind") != "rollback":
        return ""
    return ", ".join(
        wording.clean(f.get("metric"), 63)
        for f in story.findings
        if f.get("metric") != name and f.get("verdict") != "regressed"
    )


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────


def findings(story: Story) -> list[tuple[str, ...]]:
    """The cells of FINDING_HEADS for each metric."""
    return [_finding(f) for f in story.findings]


FINDING_HEADS = (
    "metric",
    "counts",
    "canary",
    "stable",
    "difference (95 % interval)",
    "tolerated",
    "n canary / stable",
    "verdict",
)


def _finding(f: Body) -> tuple[str, ...]:
    get = {key: number(value) for key, value in f.items()}
    means = f.get("means")
    if isinstance(means, Sequence) and not isinstance(means, str) and len(means) == 2:
        stable, canary = (number(v) for v in means)
        values = [NONE if v is None else wording.amount(v) for v in (canary, stable)]
        change = wording.relative(canary / stable - 1) if canary is not None and stable else NONE
        tolerated = f"{wording.percent(get.get('tolerated'))} higher"
    else:
        values = [wording.percent(get.get("canary")), wording.percent(get.get("stable"))]
        change = wording.interval(get.get("difference"), get.get("low"), get.get("high"))
        tolerated = wording.points(get.get("tolerated"))
    sizes = f"{wording.count(get.get('canaryN'))} / {wording.count(get.get('stableN'))}"
    names = (wording.clean(f.get("metric"), 63), wording.clean(f.get("event"), 100))
    return (*names, *values, change, tolerated, sizes, wording.clean(f.get("verdict"), 20))


def notes(story: Story) -> list[str]:
    """What limits each finding, for those that say."""
    return [
        f"{wording.clean(f.get('metric'), 63)}: {wording.clean(f.get('note'), 400)}"
        for f in story.findings
        if f.get("note")
    ]


STEP_HEADS = ("weight", "from (UTC)", "for", "canary requests", "at its end", "ended by")


def steps(story: Story) -> list[tuple[str, ...]]:
    """Each weight: when, for how long, requests, every metric's difference at its end, and what ended it."""
    bands = [b for b in story.bands if b.weight > 0]
    return [_step(story, band) for band in bands[:MOST_STEPS]]


def _step(story: Story, band: Band) -> tuple[str, ...]:
    after = [m for m in story.moments if m.at >= band.end and m.weight != band.weight]
    ended = next((m for m in after if m.at == after[0].at and m.kind in MOVING), after[0] if after else None)
    requests = _requests(story.metrics, band)
    last = [(m, p) for m in story.metrics if (p := _last_in(m, band)) is not None]
    numbers = "; ".join(f"{wording.clean(m.name, 63)} {_shown(m, p)}" for m, p in last)
    how = ended.kind if ended else ("still there" if not story.outcome.is_over else NONE)
    span = wording.span(band.end - band.start)
    return (f"{band.weight:g} %", clock(band.start, story), span, requests, numbers or NONE, how)


def _requests(metrics: Sequence[Metric], band: Band) -> str:
    """Canary requests counted in a band; from the metric that counts most."""
    best = 0.0
    for metric in metrics:
        before = [p.n for p in metric.points if p.at <= band.start and p.n is not None]
        within = [p.n for p in metric.points if band.start < p.at <= band.end and p.n is not None]
        if within and len({p.event for p in metric.points}) == 1:
            best = max(best, within[-1] - (before[-1] if before else 0.0))
    return wording.count(best) if best else NONE


def _last_in(metric: Metric, band: Band) -> Point | None:
    return next((p for p in reversed(metric.points) if band.start < p.at <= band.end and not p.is_blind), None)


def _shown(metric: Metric, p: Point) -> str:
    if metric.is_relative:
        return wording.relative(p.difference or 0.0)
    return wording.interval(p.difference, p.low, p.high)


# ── what happened ────────────────────────────────────────────────────────────────────────────────────────────


def timeline(story: Story) -> tuple[list[Row], int]:
    """The decisions, oldest first, quiet looks that follow each other in one row; and how many rows are left out."""
    rows: list[Row] = []
    for moment in story.moments:
        last = rows[-1] if rows else None
        if moment.is_quiet and last is not None and last.kind == moment.kind and last.weight == moment.weight:
            rows[-1] = _row(moment, last.at, last.times + 1)
        else:
            rows.append(_row(moment, moment.at, 1))
    if len(rows) <= MOST_ROWS:
        return rows, 0
    kept, half = [r for r in rows if r.kind not in QUIET_KINDS], MOST_ROWS // 2
    kept = kept if len(kept) <= MOST_ROWS else [*kept[:half], *kept[-half:]]
    return kept, len(rows) - len(kept)


def _row(moment: Moment, start: datetime, times: int) -> Row:
    text = wording.clean(moment.sentence, 800)
    return Row(start, moment.at, moment.kind, text, moment.severity, moment.weight, times)


def row_time(row: Row, story: Story) -> str:
    first = clock(row.at, story)
    return first if row.until == row.at else f"{first} to {clock(row.until, story)}"


def row_text(row: Row) -> str:
    return row.text if row.times == 1 else f"{row.times} looks without a change; the last: {row.text}"


def people(story: Story) -> list[tuple[str, ...]]:
    """when, what, by whom, why, what became of it."""
    out = []
    for m in story.overrides:
        said = m.override or {}
        became = {True: "accepted", False: "refused"}.get(said.get("accepted"), "not answered")  # type: ignore[arg-type]
        texts = (wording.clean(said.get(key), 300) or NONE for key in ("action", "by", "reason"))
        out.append((clock(m.at, story), *texts, became))
    return out


PEOPLE_HEADS = ("when (UTC)", "what", "by", "reason", "answer")


def clock(at: datetime | None, story: Story) -> str:
    """ "14:05:10", with the day where the rollout saw more than one."""
    if at is None:
        return NONE
    ends = [t.date() for t in (story.started, story.until) if t is not None]
    return f"{at:%H:%M:%S}" if len(set(ends)) < 2 else f"{at:%d %b %H:%M:%S}"


def when(story: Story) -> str:
    """ "1 March 2026, 12:01:10 to 12:02:40 UTC"."""
    if story.started is None or story.until is None:
        return NONE
    start, end = story.started, story.ended or story.until
    last = f"{end:%H:%M:%S}" if start.date() == end.date() else f"{end.day} {end:%B %Y, %H:%M:%S}"
    return f"{start.day} {start:%B %Y, %H:%M:%S} to {last} UTC"


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────────────


def exemplars(story: Story) -> list[tuple[str, str, str]]:
    """(trace id, link or "", what it is): failing or slow traces of the canary."""
    out = []
    for t in parts(story.traces, "exemplars")[:MOST_TRACES]:
        facts = ", ".join(f"{wording.clean(k, 40)} {wording.clean(v, 80)}" for k, v in part(t, "facts").items())
        what = f"{_call(t)}: {_ms(t.get('durationMs'))}" + (", failed" if t.get("error") is True else "")
        what += f" ({wording.clean(t.get('status'), 40)})" if t.get("status") else ""
        out.append((wording.clean(t.get("trace"), 64), link(t.get("url")), what + (f"; {facts}" if facts else "")))
    return out


TRACE_TABLES = {
    "onlyCanaryFails": ("fails only in the canary", "canary failed / n", "stable failed / n"),
    "newCalls": ("called only or more by the canary", "canary, per request", "stable, per request"),
    "criticalPath": ("on the critical path", "canary", "stable"),
}


def trace_rows(story: Story, kind: str) -> list[tuple[str, str, str]]:
    """(service and operation, canary, stable) of one of TRACE_TABLES."""
    out = []
    for t in parts(story.traces, kind)[:MOST_TRACES]:
        if kind == "onlyCanaryFails":
            cells = [_of(t, f"{arm}Errors", f"{arm}N") for arm in ("canary", "stable")]
        elif kind == "newCalls":
            cells = [_per(t.get(f"{arm}PerRequest"), t.get(f"{arm}N")) for arm in ("canary", "stable")]
        else:
            cells = [f"{_ms(t.get(f'{arm}Ms'))} (n {_count(t.get(f'{arm}N'))})" for arm in ("canary", "stable")]
        out.append((_call(t), cells[0], cells[1]))
    return out


def trace_note(story: Story) -> str:
    return wording.clean(story.traces.get("note"), 400)


def _call(t: Body) -> str:
    return " ".join(wording.clean(t.get(key), 120) for key in ("service", "operation") if t.get(key)) or NONE


def _ms(value: object) -> str:
    known = number(value)
    return NONE if known is None else f"{known / 1000:.3g} s" if known >= 1000 else f"{known:.3g} ms"


def _count(value: object) -> str:
    return wording.count(number(value))


def _of(t: Body, errors: str, n: str) -> str:
    return f"{_count(t.get(errors))} / {_count(t.get(n))}"


def _per(value: object, n: object) -> str:
    known = number(value)
    return NONE if known is None else f"{known:.3g} (n {_count(n)})"


def link(value: object) -> str:
    """A link that may be followed; "" for anything but http and https."""
    text = wording.clean(value, 2000)
    return text if re.match(r"https?://[^\s\"'<>\\]+$", text) else ""


# ── where numbers come from ──────────────────────────────────────────────────────────────────────────────────


SOURCE_HEADS = ("metric", "from", "counted")


def sources(story: Story) -> list[tuple[str, str, str]]:
    """(metric, its query or counters, what of them is counted)."""
    spec = part(story.document or {}, "spec")
    workloads = part(story.latest, "workloads")
    arms = ", ".join(wording.clean(workloads.get(k), 100) for k in ("canary", "stable") if workloads.get(k))
    counters = part(spec, "source")
    return [(wording.clean(m.get("name"), 63), *_source(m, counters, arms)) for m in parts(spec, "metrics")]


def _source(metric: Body, counters: Body, arms: str) -> tuple[str, str]:
    kind, of = str(metric.get("kind")), f"{{destination_workload={arms}}}" if arms else ""
    if kind == "errors":
        name = wording.clean(counters.get("requests") or "istio_requests_total", 200)
        codes = ", ".join(wording.clean(c, 20) for c in metric.get("httpFailures") or ())
        return f"{name}{of}", f"requests, of them failed: {codes}; gRPC failures; requests that reached no pod"
    if kind == "latency":
        name = wording.clean(counters.get("durations") or "istio_request_duration_milliseconds_bucket", 200)
        return f"{name}{of}", "requests slower than each edge of the histogram"
    texts = []
    for key in ("query", "failures", "total"):
        told = metric.get(key)
        if isinstance(told, Mapping):
            texts += [f"{wording.clean(arm, 20)} {key}: {wording.clean(text, 600)}" for arm, text in told.items()]
        elif told:
            texts.append(f"{key}: {wording.clean(told, 600)}")
    word = "levels of pods" if kind == "gauge" else "spans by operation" if kind == "traces" else "failures of a total"
    return " · ".join(texts) or NONE, word


def window(story: Story) -> str:
    """From when to when was counted, in which steps, and up to where all is counted."""
    evidence = part(story.decided, "evidence") or part(story.latest, "evidence")
    first = next((m.points[0].at for m in story.metrics if m.points), None)
    through = wording.clean(evidence.get("through"), 40)
    every = f"every {wording.span(story.interval)}" if story.interval else "at every look"
    if not evidence.get("intervals"):
        return f"Raw counters of both versions are read {every}; nothing has been compared yet."
    seen = f"{_count(evidence.get('intervals'))} intervals"
    start = f" from {clock(first, story)} UTC" if first else ""
    mark_ = f"; everything up to the watermark {through} is counted exactly once" if through else ""
    return f"Raw counters of both versions are read {every}{start}; {seen} were compared{mark_}."


def shown_document(story: Story) -> Body | None:
    """The document without what may be a secret: the query part of URLs."""
    return without_queries(story.document) if story.document else None

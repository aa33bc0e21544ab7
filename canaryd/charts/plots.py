"""The four charts of a rollout over time: difference, evidence, weight, share. Pure; see the package."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby

from canaryd import wording
from canaryd.charts.axes import extent
from canaryd.charts.frame import Frame, fewer, legend, nothing, path, range_of, uid_of
from canaryd.charts.marks import el, label
from canaryd.story import Evidence, Metric, Point, Story, Weight

WIDTH = 760
WIDEST_INTERVAL = 1.0  # how much of the y axis intervals may claim, in spans of what matters
FIRST_MINUTES = timedelta(minutes=2)


# ── difference ───────────────────────────────────────────────────────────────────────────────────────────────


def difference(story: Story, metric: Metric, *, width: int = WIDTH, height: int = 260) -> str:
    """Canary minus stable with its interval, and how much is tolerated, at every look."""
    name = f"{metric.name}: canary minus stable"
    seen = [p for p in metric.points if not p.is_blind]
    if not seen:
        return nothing(story, width, 110, name, _no_numbers(story, metric), uid_of(story, name))
    low, high = _difference_range(seen)
    frame = Frame.of(story, low, high, width, height, name)
    unit = "% more than stable" if metric.is_relative else "percentage points"
    inside = "".join(
        _band(frame, run) + _tolerated(frame, run) + _middle(frame, run, metric) for run in _event_runs(frame, metric)
    )
    has_interval = any(p.low is not None for p in seen)
    entries = [("cd-canary", "line", "difference")]
    entries += [("cd-interval", "area", "its 95 % interval")] if has_interval else []
    entries += [("cd-tolerated", "line", "tolerated")]
    drawn = frame.picture(inside, name, told(metric), unit, lambda v: _points(v))
    return _with_legend(drawn, entries, _events(frame, metric))


LEGEND_X = 130.0


def _points(share: float) -> str:
    return wording.points(share, unit=False)


def _difference_range(seen: Sequence[Point]) -> tuple[float, float]:
    """What the y axis spans: everything that matters, and intervals as far as they leave that readable."""
    core = extent([0.0, *(p.difference for p in seen), *(p.tolerated for p in seen), seen[-1].low, seen[-1].high])
    ends = extent([*(p.low for p in seen), *(p.high for p in seen)])
    assert core is not None
    low, high = core
    room = WIDEST_INTERVAL * max(high - low, 1e-9)
    if ends:
        low, high = max(min(low, ends[0]), low - room), min(max(high, ends[1]), high + room)
    return range_of(low, high)


def _event_runs(frame: Frame, metric: Metric) -> list[list[Point]]:
    """Runs of points that count the same thing, without gaps."""
    out: list[list[Point]] = []
    for run in frame.runs(metric.points, lambda p: p.at, lambda p: None if p.is_blind else p.difference):
        begin = 0
        for i in range(1, len(run) + 1):
            if i == len(run) or run[i].event != run[begin].event:
                out.append(run[begin:i])
                begin = i
    return [
        fewer(run, frame.width, lambda p: p.difference, lambda p: p.low, lambda p: p.high, lambda p: p.tolerated)
        for run in out
    ]


def _band(frame: Frame, run: Sequence[Point]) -> str:
    known = [p for p in run if p.low is not None and p.high is not None]
    if not known:
        return ""
    upper = [(frame.clock(p.at), frame.y.inside(p.high or 0.0)) for p in known]
    lower = [(frame.clock(p.at), frame.y.inside(p.low or 0.0)) for p in known]
    if len(known) == 1:
        (x, top), (_, bottom) = upper[0], lower[0]
        return el("rect", "cd-interval", x=x - 2, y=top, width=4, height=max(bottom - top, 1))
    return el("path", "cd-interval", d=path([*upper, *reversed(lower)]) + "Z")


def _tolerated(frame: Frame, run: Sequence[Point]) -> str:
    places = [(frame.clock(p.at), frame.y(p.tolerated)) for p in run if p.tolerated is not None]
    return frame.line("cd-tolerated", places, "tolerated") if len(places) > 1 else ""


def _middle(frame: Frame, run: Sequence[Point], metric: Metric) -> str:
    places = [(frame.clock(p.at), frame.y(p.difference)) for p in run if p.difference is not None]
    line = frame.line("cd-canary", places, metric.name)
    dots = run if len(run) <= 60 else run[-1:]
    return line + "".join(
        el(
            "circle",
            "cd-canary-dot",
            f"<title>{point_text(p)}</title>",
            cx=frame.clock(p.at),
            cy=frame.y(p.difference or 0.0),
            r=2.5,
        )
        for p in dots
    )


def point_text(p: Point) -> str:
    """One point in words; no markup in it but what is escaped by who shows it."""
    span = wording.interval(p.difference, p.low, p.high) if p.low is not None else wording.points(p.difference)
    n = f", n {wording.count(p.n)} / {wording.count(p.stable_n)}" if p.n else ""
    return f"{p.at:%H:%M:%S} UTC: {span}, tolerated {wording.points(p.tolerated)}{n}"


def _events(frame: Frame, metric: Metric) -> str:
    """What is counted, where that changes and there is room: "slower than 250 ms"."""
    out, free, before = [], 0.0, ""
    if len({p.event for p in metric.points}) < 2:
        return ""
    for run in _event_runs(frame, metric):
        x = frame.clock(run[0].at)
        if run[0].event != before and x >= free and x < frame.width - 110:
            out.append(label(x + 3, frame.bottom - 6, run[0].event, "cd-halo"))
            free = x + 6.2 * len(run[0].event)
        before = run[0].event
    return "".join(out)


def told(metric: Metric) -> str:
    """The chart's last point as text."""
    p = metric.last
    if p is None:
        return "nothing could be compared yet"
    return f"{len(metric.points)} looks; the last: {p.event}, {point_text(p)}, {p.verdict}"


def _no_numbers(story: Story, metric: Metric) -> str:
    note = next((p.note for p in reversed(metric.points) if p.note), "")
    if metric.points and metric.points[-1].verdict == "blind":
        return "blind: nothing could be compared" + (f"\n{note[:90]}" if note else "")
    since = story.duration
    if since is not None and since < FIRST_MINUTES and not story.outcome.is_over:
        return "the first minutes: nothing has been compared yet" + (f"\n{note[:90]}" if note else "")
    return "nothing was compared" + (f"\n{note[:90]}" if note else "")


# ── evidence ─────────────────────────────────────────────────────────────────────────────────────────────────


def evidence(story: Story, *, width: int = WIDTH, height: int = 220) -> str:
    """How much of the evidence for each decision there was, in percent of what it needs."""
    name = "evidence towards each decision"
    if not story.evidence:
        return nothing(story, width, 110, name, _nothing_yet(story), uid_of(story, name))
    frame = Frame.of(story, 0.0, 1.08, width, height, name)
    lines = [
        _toward(frame, "cd-step", [(e, e.toward_step) for e in story.evidence], "towards the next step"),
        _toward(frame, "cd-rollback", [(e, e.toward_rollback) for e in story.evidence], "towards rollback"),
    ]
    level = frame.y(1.0)
    lines.append(
        el("line", "cd-wanted", x1=frame.clock(frame.clock.start), x2=frame.clock(frame.clock.end), y1=level, y2=level)
    )
    last = story.evidence[-1]
    text = f"at last {_whole(last.toward_rollback)} towards rollback, {_whole(last.toward_step)} towards the next step"
    drawn = frame.picture("".join(lines), name, text, "% of what it needs", lambda v: f"{v * 100:.0f}")
    entries = [
        ("cd-rollback", "line", "towards rollback"),
        ("cd-step", "line", "towards next step"),
        ("cd-wanted", "line", "decided"),
    ]
    return _with_legend(drawn, entries)


def _with_legend(drawn: str, entries: Sequence[tuple[str, str, str]], more: str = "") -> str:
    return drawn.replace("</svg>", legend(entries, x=LEGEND_X) + more + "</svg>")


def _whole(share: float | None) -> str:
    return "–" if share is None else f"{min(int(share * 100), 100)} %"


def _toward(frame: Frame, look: str, points: Sequence[tuple[Evidence, float | None]], word: str) -> str:
    out = []
    for run in frame.runs(points, lambda p: p[0].at, lambda p: p[1]):
        kept = fewer(run, frame.width, lambda p: p[1])
        out.append(frame.line(look, [(frame.clock(e.at), frame.y.inside(share or 0.0)) for e, share in kept], word))
    return "".join(out)


def _nothing_yet(story: Story) -> str:
    if story.outcome.is_over:
        return "no look counted any evidence"
    return "the first minutes: no evidence has been counted yet"


# ── weight and share ─────────────────────────────────────────────────────────────────────────────────────────


def weight(story: Story, *, width: int = WIDTH, height: int = 200) -> str:
    """The share of requests for the canary: as it was wanted, as the route had it, and as requests showed it."""
    name = "weight: wanted, set, seen"
    if not story.weights:
        return nothing(story, width, 110, name, "no weight has been recorded yet", uid_of(story, name))
    top = max(5.0, *(max(w.desired, w.configured or 0.0, w.observed or 0.0) for w in story.weights))
    frame = Frame.of(story, 0.0, top * 1.12, width, height, name)
    end = frame.clock(frame.clock.end)
    wanted = fewer(story.weights, width, lambda w: w.desired)
    inside = [frame.steps("cd-wanted", [(frame.clock(w.at), frame.y(w.desired)) for w in wanted], end, "wanted")]
    for run in frame.runs(story.weights, lambda w: w.at, lambda w: w.configured):
        kept = fewer(run, width, lambda w: w.configured)
        places = [(frame.clock(w.at), frame.y(w.configured or 0.0)) for w in kept]
        inside.insert(0, frame.steps("cd-set", places, places[-1][0], "set in the route"))
    for run in frame.runs(story.weights, lambda w: w.at, lambda w: w.observed):
        inside += [_seen(frame, part) for part in _by_weight(run)]
    last = story.weights[-1]
    text = f"at last wanted {last.desired:g} %, set {_known(last.configured)}, seen {_known(last.observed)}"
    drawn = frame.picture("".join(inside), name, text, "% of requests", lambda v: f"{v:g}")
    entries = [
        ("cd-wanted", "line", "wanted"),
        ("cd-set", "line", "set in the route"),
        ("cd-canary", "line", "seen in requests"),
    ]
    return _with_legend(drawn, entries)


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} %"


def _seen(frame: Frame, run: Sequence[Weight]) -> str:
    kept = fewer(run, frame.width, lambda w: w.observed)
    places = [(frame.clock(w.at), frame.y(w.observed or 0.0)) for w in kept]
    return frame.line("cd-canary", places, "seen in requests")


def _by_weight(run: Sequence[Weight]) -> list[list[Weight]]:
    """Cut where the route's weight changed: what is seen is counted anew from there on."""
    return [list(part) for _, part in groupby(run, lambda w: w.configured)]


def share(story: Story, *, width: int = WIDTH, height: int = 180) -> str:
    """Requests that reached the canary, in percent of what the weight asks for; 50 to 200 will do."""
    name = "share seen, of the share wanted"
    points = [
        (w, w.observed / w.configured if w.observed is not None and w.configured else None) for w in story.weights
    ]
    if not any(value is not None for _, value in points):
        return nothing(story, width, 110, name, "no request has been counted beside a weight yet", uid_of(story, name))
    top = max(2.1, *(min(value or 0.0, 6.0) * 1.1 for _, value in points))
    frame = Frame.of(story, 0.0, top, width, height, name)
    right, left = frame.clock(frame.clock.end), frame.clock(frame.clock.start)
    box = el("rect", "cd-inside", x=left, y=frame.y(2.0), width=right - left, height=frame.y(0.5) - frame.y(2.0))
    inside = [box, el("line", "cd-wanted", x1=left, x2=right, y1=frame.y(1.0), y2=frame.y(1.0))]
    for run in frame.runs(points, lambda p: p[0].at, lambda p: p[1]):
        kept = fewer(run, width, lambda p: p[1])
        places = [(frame.clock(w.at), frame.y.inside(value or 0.0)) for w, value in kept]
        inside.append(frame.line("cd-canary", places, "seen, of what was wanted"))
    shown = next(value for _, value in reversed(points) if value is not None)
    text = f"at last {shown * 100:.0f} % of the wanted share was seen"
    drawn = frame.picture("".join(inside), name, text, "% of wanted", lambda v: f"{v * 100:.0f}")
    entries = [
        ("cd-canary", "line", "seen"),
        ("cd-wanted", "line", "as wanted"),
        ("cd-inside", "area", "within a factor of two"),
    ]
    return _with_legend(drawn, entries)

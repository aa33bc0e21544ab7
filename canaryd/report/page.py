"""The report as one HTML page without scripts: first what happened, why and what now, then everything behind it. Pure.

Every text from outside goes through `text_of`; links are http and https only. The page forbids itself to load anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import canaryd
from canaryd import charts, wording, yamlout
from canaryd.bodies import number
from canaryd.charts.marks import SHAPES, shape, text_of
from canaryd.report import contents
from canaryd.report.look import CSS
from canaryd.story import QUIET_KINDS, Metric, Outcome, Story
from canaryd.workings import workings

MOST_METRICS = 24  # that are drawn
MOST_CONFIGURATION = 40_000  # characters
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def html(story: Story, at: datetime, *, nonce: str = "") -> str:
    """The whole page. `at`: when it is made. `nonce`: of the style, for a server with a content security policy."""
    name = f"{story.canary} {story.revision}: {story.outcome}" if story.rollout else story.canary or "no rollout"
    style = f' nonce="{text_of(nonce)}"' if nonce else ""
    policy = "" if nonce else f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{policy}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="canaryd {canaryd.__version__}"><meta name="robots" content="noindex">'
        f"<title>{text_of(name)}</title><style{style}>{charts.CSS}{CSS}</style></head><body>\n"
        + "\n".join(part for part in _parts(story, at) if part)
        + "\n</body></html>\n"
    )


def _parts(story: Story, at: datetime) -> Iterable[str]:
    yield _top(story)
    if story.outcome is Outcome.NONE:
        return
    yield "<main>"
    yield _first_metric(story)
    yield _numbers(story)
    yield _traces(story)
    yield _timeline(story)
    yield _people(story)
    yield _charts(story)
    yield _steps(story)
    yield _sources(story)
    yield _arithmetic(story)
    yield _configuration(story)
    yield "</main>"
    made = f"{at.day} {at:%B %Y, %H:%M:%S} UTC"
    by = f"made by canaryd {canaryd.__version__} on {made} from its records"
    yield f"<footer>{text_of(story.rollout)} · {by}</footer>"


# ── first screen ─────────────────────────────────────────────────────────────────────────────────────────────


def _top(story: Story) -> str:
    icon, tone = contents.mark(story.outcome)
    ids = [f"{story.namespace}/{story.canary}" if story.namespace else story.canary, story.rollout]
    if story.stable_revision or story.revision:
        ids.append(f"{story.stable_revision or 'stable'} → {story.revision or '–'}")
    ids.append(contents.when(story))
    numbers = "".join(
        f"<div><dt>{text_of(what)}</dt><dd>{text_of(value)}</dd></div>" for what, value in contents.key_numbers(story)
    )
    incomplete = "" if story.complete else '<p class="note">Its beginning is no longer among the records.</p>'
    return (
        f'<header class="{tone}"><p class="ids">{text_of(" · ".join(ids), 600)}</p>'
        f'<h1><span class="icon" aria-hidden="true">{icon}</span> {text_of(story.canary)} '
        f"<b>{text_of(story.revision)}</b> {text_of(story.outcome)}</h1>"
        f'<div class="answers"><section><h2>What happened</h2><p>{text_of(story.what, 600)}</p>{_bar(story)}</section>'
        f"<section><h2>Why</h2>{_why(story)}</section>"
        f"<section><h2>What now</h2><p>{text_of(story.now, 600)}</p></section></div>"
        f'<dl class="key">{numbers}</dl>{incomplete}</header>'
    )


def _bar(story: Story) -> str:
    """The steps as boxes, done up to where it came."""
    weights = [w for w in (number(v) for v in story.latest.get("stepWeights") or ()) if w is not None]
    if not weights:
        return ""
    reached = max((m.step for m in story.moments), default=-1)
    done = len(weights) if story.outcome is Outcome.PROMOTED else reached
    words = " → ".join(f"{w:g} %" for w in weights)
    return f'<p class="steps">{charts.step_bar(weights, done, 0.5, width=220, uid="steps")} <small>{words}</small></p>'


def _why(story: Story) -> str:
    """Both values large, the difference as a ruler, the sentence below."""
    finding = contents.decisive(story)
    values = [number(finding.get(arm)) for arm in ("canary", "stable")]
    drawn = ""
    if None not in values:
        what = text_of(finding.get("metric"), 63)
        event = finding.get("event")
        what += f" <small>({text_of(event, 80)})</small>" if event and event != finding.get("metric") else ""
        canary, stable = (wording.percent(v) for v in values)
        drawn = (
            f'<p class="versus">{what}<br><b class="canary">{canary}</b> canary, '
            f'<b class="stable">{stable}</b> stable</p>{charts.ruler(finding, uid="ruler")}'
        )
    others = contents.others(story)
    return f'{drawn}<p class="sentence">{text_of(story.why, 1000)}</p>' + (
        f'<p class="note">Not the cause: {text_of(others)}.</p>' if others and "Not the cause" not in story.why else ""
    )


def _first_metric(story: Story) -> str:
    """The decisive metric over time, so that the first page shows it."""
    metric = story.metrics[0] if story.metrics else None
    return _section("", _figure(charts.difference(story, metric), _caption(metric)) + _legend(story)) if metric else ""


def _caption(metric: Metric) -> str:
    last = metric.last
    event = f" ({last.event})" if last and last.event not in ("", metric.name) else ""
    unit = "relative to stable" if metric.is_relative else "in percentage points"
    return f"{wording.clean(metric.name, 63)}{wording.clean(event, 90)}: canary minus stable {unit}, all looks so far"


def _legend(story: Story) -> str:
    """The marks that occur, with their words."""
    kinds = [kind for kind in SHAPES if any(m.kind == kind for m in story.moments)]
    marks = "".join(
        f'<li><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{shape(kind, 7, 7)}</svg> '
        f"{text_of(SHAPES[kind][2])}</li>"
        for kind in kinds
    )
    return f'<ul class="marks">{marks}</ul>' if marks else ""


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────────


def _section(head: str, inside: str, look: str = "") -> str:
    title = f"<h2>{text_of(head)}</h2>" if head else ""
    attribute = f' class="{look}"' if look else ""
    return f"<section{attribute}>{title}{inside}</section>" if inside else ""


def _figure(svg: str, caption: str) -> str:
    return f"<figure><figcaption>{text_of(caption)}</figcaption>{svg}</figure>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, strong: int = -1) -> str:
    """Cells are text; the first of each row is its head. `strong`: the row that decided."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{text_of(h)}</th>' for h in heads)
    lines = []
    for i, row in enumerate(rows):
        first, *rest = (text_of(cell, 900) for cell in row)
        look = ' class="strong"' if i == strong else ""
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr{look}><th scope="row">{first}</th>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _numbers(story: Story) -> str:
    rows = contents.findings(story)
    decided = [f.get("metric") for f in story.findings]
    name = story.decided.get("decisive")
    strong = decided.index(name) if name in decided else -1
    notes = "".join(f"<li>{text_of(note, 500)}</li>" for note in contents.notes(story))
    return _section(
        "All metrics at the decision",
        _table(contents.FINDING_HEADS, rows, strong=strong) + (f'<ul class="note">{notes}</ul>' if notes else ""),
    )


def _timeline(story: Story) -> str:
    rows, left = contents.timeline(story)
    lines = []
    for row in rows:
        svg = f'<svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{shape(row.kind, 7, 7)}</svg>'
        look = "quiet" if row.kind in QUIET_KINDS and row.severity == "info" else row.severity
        lines.append(
            f'<li class="{text_of(look)}"><time>{text_of(contents.row_time(row, story))}</time>'
            f"<span>{svg} <b>{text_of(row.kind)}</b> {text_of(contents.row_text(row), 900)}</span></li>"
        )
    told = f'<p class="note">{left} lines are left out; the JSON report has them.</p>' if left else ""
    return _section("Decisions (UTC)", f'<ol class="timeline">{"".join(lines)}</ol>{told}')


def _people(story: Story) -> str:
    return _section("What people said", _table(contents.PEOPLE_HEADS, contents.people(story)))


def _charts(story: Story) -> str:
    drawn = [_figure(charts.difference(story, m), _caption(m)) for m in story.metrics[1:MOST_METRICS]]
    left = len(story.metrics) - MOST_METRICS
    drawn += [
        _figure(charts.evidence(story), "Evidence towards each decision, in percent of what it needs"),
        _figure(charts.weight(story), "Weight: wanted, set in the route, seen in requests"),
        _figure(charts.share(story), "Requests that reached the canary, in percent of the wanted share"),
    ]
    told = f'<p class="note">{left} more metrics are in the JSON report.</p>' if left > 0 else ""
    return _section("Over time", "".join(drawn) + told)


def _steps(story: Story) -> str:
    return _section("Step by step", _table(contents.STEP_HEADS, contents.steps(story)))


def _traces(story: Story) -> str:
    """The traces to look at, and what they have in common."""
    note = contents.trace_note(story)
    items = []
    for trace, url, what in contents.exemplars(story):
        shown = f"<code>{text_of(trace[:32])}</code>"
        linked = f'<a href="{text_of(url, 2000)}" rel="noreferrer noopener">{shown}</a>' if url else shown
        items.append(f"<li>{linked} {text_of(what, 600)}</li>")
    tables = "".join(_table(heads, contents.trace_rows(story, kind)) for kind, heads in contents.TRACE_TABLES.items())
    inside = (f'<p class="note">{text_of(note, 500)}</p>' if note else "") + (
        f"<ul>{''.join(items)}</ul>" if items else ""
    )
    return _section("Traces of the canary", inside + tables)


def _sources(story: Story) -> str:
    rows = contents.sources(story)
    return _section(
        "Where the numbers come from",
        f"<p>{text_of(contents.window(story), 900)} Differences are stratified by interval; their 95 % interval may be "
        "looked at as often as one likes, and is for showing: decisions are made by e-values.</p>"
        + _table(contents.SOURCE_HEADS, rows),
    )


def _arithmetic(story: Story) -> str:
    lines = workings(story.decided, story.bodies)
    return _section("The arithmetic of the decision", f"<pre>{text_of_lines(lines)}</pre>", "small") if lines else ""


def _configuration(story: Story) -> str:
    document = contents.shown_document(story)
    if document is None:
        return _section("Configuration", f'<p class="note">{text_of(story.document_note)}</p>')
    text = yamlout.documents([document])
    cut = text[:MOST_CONFIGURATION] + (
        "\n… cut here; the JSON report has all of it" if len(text) > MOST_CONFIGURATION else ""
    )
    note = f'<p class="note">{text_of(story.document_note)}</p>' if story.document_note else ""
    return _section("Configuration", f"{note}<pre>{text_of_lines(cut.splitlines())}</pre>", "small")


def text_of_lines(lines: Iterable[str]) -> str:
    return "\n".join(text_of(line, 2000) for line in lines)

"""The report as Markdown, short enough for a ticket. Pure.

Text from outside cannot leave its cell: what Markdown would read is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

import canaryd
from canaryd import wording
from canaryd.report import contents
from canaryd.story import Outcome, Story

MOST_ROWS = 40  # of the timeline: a ticket is no log

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|~$@])")


def markdown(story: Story, at: datetime, link: str = "") -> str:
    """The whole text. `link`: where the page is, "" when that is not known."""
    return "\n".join(_lines(story, at, link)).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, whatever it holds."""
    plain = wording.clean(text, 2000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def _lines(story: Story, at: datetime, link: str) -> Iterable[str]:
    icon, _ = contents.mark(story.outcome)
    yield f"# {icon} {escaped(story.canary)}: {story.outcome}"
    yield ""
    yield f"- **What happened:** {escaped(story.what)}"
    yield f"- **Why:** {escaped(story.why)}"
    yield f"- **What now:** {escaped(story.now)}"
    yield ""
    yield " · ".join(f"{what}: **{escaped(value)}**" for what, value in contents.key_numbers(story))
    if story.outcome is Outcome.NONE:
        return
    yield from _section("Numbers", contents.FINDING_HEADS, contents.findings(story))
    yield from (f"- {escaped(note)}" for note in contents.notes(story))
    yield from _section("Steps", contents.STEP_HEADS, contents.steps(story))
    yield from _section("What people said", contents.PEOPLE_HEADS, contents.people(story))
    yield from _traces(story)
    yield from _timeline(story)
    yield from _section("Where the numbers come from", contents.SOURCE_HEADS, contents.sources(story))
    yield ""
    yield escaped(contents.window(story))
    yield ""
    more = f" · [report]({link})" if contents.link(link) else ""
    made = f"canaryd {canaryd.__version__}, {at:%Y-%m-%d %H:%M} UTC"
    yield f"_{escaped(story.rollout)}, {contents.when(story)}; {made}{more}_"


def _section(head: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    if not rows:
        return
    yield ""
    yield f"## {head}"
    yield ""
    yield _row(heads)
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield _row([escaped(cell) for cell in row])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _traces(story: Story) -> Iterable[str]:
    found = contents.exemplars(story)
    note = contents.trace_note(story)
    if found or note:
        yield from ("", "## Traces", "")
    if note:
        yield escaped(note)
    for trace, url, what in found:
        yield f"- {f'[{escaped(trace)}](<{url}>)' if url else escaped(trace)} {escaped(what)}"
    for kind, heads in contents.TRACE_TABLES.items():
        rows = contents.trace_rows(story, kind)
        if rows:
            yield from (
                "",
                _row(heads),
                "|" + " --- |" * len(heads),
                *(_row([escaped(c) for c in row]) for row in rows),
            )


def _timeline(story: Story) -> Iterable[str]:
    rows, left = contents.timeline(story)
    yield from ("", "## Timeline (UTC)", "")
    half = MOST_ROWS // 2
    shown = rows if len(rows) <= MOST_ROWS else [*rows[:half], *rows[-half:]]
    for i, row in enumerate(shown):
        if i == half and len(shown) < len(rows):
            left += len(rows) - len(shown)
            yield f"- … {left} lines left out; the JSON report has them"
        yield f"- {contents.row_time(row, story)} **{escaped(row.kind)}** {escaped(contents.row_text(row))}"

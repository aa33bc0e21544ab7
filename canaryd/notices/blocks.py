"""A notice laid out for Slack (Block Kit), within Slack's limits. Pure.

Nothing from outside becomes markup: &, < and > are escaped, so that a name or a reason calls nobody and links nowhere,
and a back-tick never ends a code block. Icons stand beside the word that says the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from canaryd import wording
from canaryd.notices.notice import Notice, Row, plain

JSON = dict[str, Any]

MOST_BLOCKS = 50
SECTION = 3000  # characters of the text of a section
FALLBACK = 3000  # of the text that notifications show
VALUE = 2000  # of the value of a button
ACTION = "canaryd:"  # begins the action_id of every button

_PHASES = {
    "Idle": ":white_circle: idle",
    "Waiting": ":hourglass_flowing_sand: waiting",
    "Paused": ":double_vertical_bar: paused",
    "Promoting": ":arrow_double_up: promoting",
    "Succeeded": ":white_check_mark: promoted",
    "RollingBack": ":small_red_triangle_down: rolling back",
    "RolledBack": ":x: rolled back",
}
_VERDICTS = {
    "healthy": ":large_green_circle: healthy",
    "inconclusive": ":large_yellow_circle: inconclusive",
    "regressed": ":red_circle: regressed",
    "blind": ":white_circle: blind",
}
_KINDS = {
    "start": ":arrow_forward:",
    "step": ":arrow_up:",
    "hold": ":large_yellow_circle:",
    "rollback": ":small_red_triangle_down:",
    "promoted": ":white_check_mark:",
    "blind": ":white_circle:",
    "resumed": ":large_green_circle:",
    "override": ":point_right:",
    "drift": ":warning:",
    "hook": ":hook:",
}
_CONFIRM = {
    "promote": ("Take the next step now?", "The evidence so far is passed over for this step.", "Promote"),
    "pause": (
        "Pause this rollout?",
        "The weight stays as it is until somebody resumes. A rollback still happens.",
        "Pause",
    ),
    "resume": ("Resume this rollout?", "It goes on as the evidence says.", "Resume"),
    "abort": ("Abort this rollout?", "All traffic goes back to stable at once.", "Abort"),
}


def escape(text: str) -> str:
    """Text that Slack shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fit(text: str, limit: int) -> str:
    """Escaped, in at most so many characters, and never cut within an escape."""
    if len(whole := escape(text)) <= limit:
        return whole
    out, size = [], 1
    for character in text:
        one = escape(character)
        if (size := size + len(one)) > limit:
            break
        out.append(one)
    return "".join(out) + "…"


def mention(who: str) -> str:
    """An id, or here, channel, everyone, as Slack calls them."""
    if who in ("here", "channel", "everyone"):
        return f"<!{who}>"
    return f"<!subteam^{who}>" if who.startswith("S") else f"<@{who}>"


# ── the head of a thread ─────────────────────────────────────────────────────────────────────────────────────


def head(notice: Notice, *, buttons: bool = False) -> tuple[str, list[JSON]]:
    """Where a rollout is, for the message that is updated in place: (fallback text, blocks)."""
    state = _state(notice)
    first = f"*{fit(notice.canary, 330)}*  {_code(notice.revision or notice.rollout)}  {state}"
    step, total = notice.steps
    progress = f"`{wording.bar(step / total if total else 0.0)}`  step {step} of {total}  *{notice.weight} %*"
    progress += f" (seen {escape(notice.seen)})" if notice.seen and notice.weight else ""
    progress += f"  since {_when(notice.since)}" if notice.since else ""
    blocks = [_section(f"{first}\n{progress}"), _context(fit(notice.sentence, 2000))]
    if buttons and not notice.is_over and (row := _buttons(notice)):
        blocks.append(row)
    if links := _links(notice):
        blocks.append(_context(links))
    return fit(f"{notice.canary} {notice.revision}: {notice.sentence}", FALLBACK), blocks


def _state(notice: Notice) -> str:
    return _PHASES.get(notice.phase) or _VERDICTS.get(notice.verdict) or f":arrow_forward: {escape(notice.phase)}"


def _buttons(notice: Notice) -> JSON | None:
    """With what they are about in their value: another revision than this makes a press void."""
    about = json.dumps({"canary": notice.canary, "revision": notice.revision, "rollout": notice.rollout})
    if not notice.revision or len(about) > VALUE:
        return None
    actions = ("promote", "resume" if notice.phase == "Paused" else "pause", "abort")
    return {"type": "actions", "elements": [_button(action, notice, about) for action in actions]}


def _button(action: str, notice: Notice, about: str) -> JSON:
    title, text, confirm = _CONFIRM[action]
    said = f"{notice.canary} {notice.revision}: {text}"
    made: JSON = {
        "type": "button",
        "action_id": f"{ACTION}{action}",
        "text": _plain_text(confirm),
        "value": about,
        "confirm": {
            "title": _plain_text(title),
            "text": _plain_text(plain(said, 300)),
            "confirm": _plain_text(confirm),
            "deny": _plain_text("Leave it"),
        },
    }
    if action == "abort":
        made["style"] = made["confirm"]["style"] = "danger"
    return made


# ── one decision ─────────────────────────────────────────────────────────────────────────────────────────────


def decision(
    notice: Notice, *, said: str = "", mentions: Iterable[str] = (), alone: bool = False
) -> tuple[str, list[JSON]]:
    """One decision, as a reply or, `alone`, as a message of its own: (fallback text, blocks).

    `said` are other words for the sentence, with markup of their own.
    """
    calls = " ".join(mention(m) for m in mentions)
    sentence = fit(notice.sentence, 2000)
    words = said[: SECTION - 700] or (f"*{sentence}*" if notice.is_full else sentence)
    lead = f"*{fit(notice.canary, 330)}*  {_code(notice.revision)}\n" if alone and notice.rollout else ""
    icon = _KINDS.get(notice.kind, ":grey_question:")
    blocks = [_section(f"{lead}{icon} {words}{'  ' + calls if calls else ''}")]
    if notice.late:
        blocks.append(_context(f":clock3: {escape(notice.late)}: this was decided at {_when(notice.at)}"))
    if notice.by and notice.kind == "override" and notice.who not in notice.sentence:
        blocks.append(_context(fit(notice.by, 1000)))
    if notice.is_full:
        blocks += _why(notice, wide=alone)
    if alone and not notice.is_full and (links := _links(notice)):
        blocks.append(_context(links))
    return fit(
        f"{notice.canary}: {notice.sentence}{' (' + notice.late + ')' if notice.late else ''}", FALLBACK
    ), blocks[:MOST_BLOCKS]


def _why(notice: Notice, *, wide: bool) -> list[JSON]:
    """All that a person needs to understand it."""
    blocks = []
    if notice.rows:
        blocks.append(_section(table(notice.rows, wide=wide)))
    facts = [
        f"*Harmed:* {escape(notice.harmed)}" if notice.harmed else "",
        f"*Decided by:* {fit(notice.decisive, 100)}" if notice.decisive else "",
        f"*Not the cause:* {fit(', '.join(notice.cleared), 500)}" if notice.cleared else "",
        *(f"*Traces show:* {fit(clue, 400)}" for clue in notice.clues),
    ]
    if told := "\n".join(f for f in facts if f):
        blocks.append(_section(told[:SECTION]))
    if notice.traces:
        lines = [f"• <{escape(t.url)}|{_label(t.label)}>" if t.url else f"• {_label(t.label)}" for t in notice.traces]
        blocks.append(_section(_lines(["*Requests to look at:*", *lines])))
    ends = [f"*Next:* {fit(notice.next, 300)}" if notice.next else "", _links(notice)]
    if told := "   ".join(e for e in ends if e):
        blocks.append(_context(told))
    return blocks


def table(rows: Sequence[Row], *, wide: bool) -> str:
    """The findings in a code block, at most as long as a section may be: `wide` in columns, else a few short lines for
    each, as the pane of a thread is too narrow for columns.
    """
    shown = list(rows)
    while True:
        lines = _columns(shown) if wide else [line for row in shown for line in _short(row)]
        left = len(rows) - len(shown)
        text = "\n".join([*lines, *([f"… and {wording.plural(left, 'metric')} more"] if left else [])])
        block = f"```{escape(text)}```"
        if len(block) <= SECTION or not shown:
            return block
        shown.pop()


def _columns(rows: Sequence[Row]) -> list[str]:
    head_ = Row("metric", "canary", "stable", "difference", "tolerated", "verdict", ("canary n", "stable n"))
    cells = [
        [_cell(v) for v in (r.metric, r.canary, r.stable, r.difference, r.tolerated, r.verdict, *r.n)]
        for r in (head_, *rows)
    ]
    widths = [max(len(c) for c in column) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]


def _short(row: Row) -> list[str]:
    counts = [f" (n {_cell(n)})" if n else "" for n in row.n]
    out = [f"{_cell(row.metric)}: {_cell(row.verdict)}"]
    out.append(f"  canary {_cell(row.canary)}{counts[0]}")
    out.append(f"  stable {_cell(row.stable)}{counts[1]}")
    out.append(f"  {_cell(row.difference)}, tolerated {_cell(row.tolerated)}")
    return out


def _cell(text: str) -> str:
    return text.replace("`", "'") or "–"


def _label(text: str) -> str:
    return fit(text.replace("|", "/"), 200)


def _lines(lines: Sequence[str]) -> str:
    """As many whole lines as a section holds."""
    out: list[str] = []
    for line in lines:
        if sum(len(x) + 1 for x in out) + len(line) > SECTION:
            break
        out.append(line)
    return "\n".join(out)


def _links(notice: Notice) -> str:
    links = (("dashboard", notice.page), ("report", notice.report))
    return "  ·  ".join(f"<{escape(url)}|{name}>" for name, url in links if url)


def _when(at: datetime | None) -> str:
    """A time in the reader's own zone, and in UTC where Slack cannot."""
    if at is None:
        return "–"
    return f"<!date^{int(at.timestamp())}^{{date_short_pretty}} {{time}}|{at:%Y-%m-%d %H:%M} UTC>"


def _code(text: str) -> str:
    return f"`{fit(text.replace('`', chr(39)), 80)}`" if text else ""


def _section(text: str) -> JSON:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text[:SECTION] or "–", "verbatim": True}}


def _context(text: str) -> JSON:
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": text[:SECTION] or "–", "verbatim": True}]}


def _plain_text(text: str) -> JSON:
    return {"type": "plain_text", "text": text, "emoji": False}


def problems(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What Slack would refuse in these blocks; empty when it would take them."""
    out = [f"{len(blocks)} blocks, {MOST_BLOCKS} are the most"] if len(blocks) > MOST_BLOCKS else []
    for i, block in enumerate(blocks):
        texts = [block["text"]] if "text" in block else list(block.get("elements", ()))
        for text in texts:
            if text["type"] == "mrkdwn" and not 1 <= len(text["text"]) <= SECTION:
                out.append(f"block {i}: a text of {len(text['text'])} characters")
            if text["type"] == "button" and (len(text["value"]) > VALUE or len(text["text"]["text"]) > 75):
                out.append(f"block {i}: a button that is too long")
    return out

"""Decision bodies in, text for people out: the table, the tree, the explanation, plain lines and a picture.

Everything shown comes from the body of the latest decision record (plain JSON values). Pure: it reads no store, asks
for no time (times are shown in the time zone of `now`) and prints nothing. Text from outside is never interpreted:
control characters are made visible and no markup is parsed. Colour only repeats what a word or an icon already says.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from canaryd import wording
from canaryd.bodies import Body, instant, number, part, parts
from canaryd.wording import clean as clean

if TYPE_CHECKING:
    from canaryd.model import Record


NONE = "–"

# Okabe and Ito's colours, told apart by colour-blind readers; red and green also differ in icon and word.
CANARY, STABLE = "#e69f00", "#56b4e9"
GOOD, CARE, BAD, QUIET = "#00b383", "#f0e442", "#e8384f", "grey62"

# verdict or phase -> icon and style; the phase wins where both say something
_VERDICTS = {
    "healthy": ("●", GOOD),
    "inconclusive": ("◐", CARE),
    "regressed": ("✕", BAD),
    "blind": ("○", CARE),
}
_PHASES = {
    "Idle": ("◌", QUIET),
    "Waiting": ("◔", CARE),
    "Paused": ("‖", CARE),
    "Succeeded": ("✓", GOOD),
    "RollingBack": ("▼", BAD),
    "RolledBack": ("✕", BAD),
}
_KINDS = {
    "advance": ("▲", GOOD),
    "promote": ("▲", GOOD),
    "succeed": ("✓", GOOD),
    "start": ("▶", CANARY),
    "restart": ("▶", CANARY),
    "revert": ("◀", CARE),
    "rollback": ("▼", BAD),
    "rolled-back": ("✕", BAD),
    "blind": ("○", CARE),
    "blind-deadline": ("○", BAD),
    "resumed": ("●", GOOD),
    "inconclusive": ("◐", CARE),
    "drift": ("≠", CARE),
    "override": ("☞", CANARY),
    "refused": ("✕", CARE),
}
_SETTLED = ("Idle", "Succeeded", "RolledBack")

# ── reading a body ───────────────────────────────────────────────────────────────────────────────────────────


def is_deceptive(text: str) -> bool:
    """It holds characters that do not show as themselves; line ends and tabs are taken as honest."""
    return any(found not in "\n\t" for found in wording.HIDDEN.findall(text))


def as_json(value: object) -> str:
    """Indented JSON with readable characters; those that could fool a terminal are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return wording.HIDDEN.sub(lambda m: m.group() if m.group() == "\n" else f"\\u{ord(m.group()):04x}", text)


def clock(value: object, now: datetime, *, seconds: bool = False) -> str:
    """ISO time → "14:05", with the date when it is not the day of `now`; "–" when it is no time."""
    at = value if isinstance(value, datetime) else instant(value)
    if at is None:
        return NONE
    try:
        local = at.astimezone(now.tzinfo)
    except OverflowError:  # the first or last day there is
        return NONE
    text = local.strftime("%H:%M:%S" if seconds else "%H:%M")
    return text if local.date() == now.date() else f"{local:%Y-%m-%d} {text}"


def span(seconds: object) -> str:
    """Seconds → "2 min 10 s"; "–" when it is no number."""
    known = number(seconds)
    return wording.span(None if known is None else max(known, 0.0))


def _percent(share: object) -> str:
    return wording.percent(number(share))


def _count(value: object) -> str:
    return wording.count(number(value))


def bar(share: object, cells: int = 10) -> str:
    """0..1 → "▇▇▇░░░░░░░"; full only at 1, so that nearly is never shown as reached."""
    full = number(share) or 0.0
    return wording.bar(full if full >= 1 else min(full, 1 - 0.6 / cells), cells)


def difference(finding: Body) -> str:
    """ "+1.8 pt (+1.1..+2.6)": canary minus stable in points, with its interval; "" without a difference."""
    middle, low, high = (number(finding.get(k)) for k in ("difference", "low", "high"))
    return "" if middle is None else wording.interval(middle, low, high)


def _weight(value: object, unknown: str = "?") -> str:
    known = number(value)
    return unknown if known is None else f"{known:g}"


def _seen(value: object) -> str:
    known = number(value)
    return NONE if known is None else f"{known * 100:.1f} %"


def _phase(body: Body) -> str:
    return clean(body.get("phase"), 20) or NONE


def mark(body: Body) -> tuple[str, str]:
    """Icon and colour of where a canary is; both only repeat its phase and verdict."""
    known = _PHASES.get(_phase(body)) or _VERDICTS.get(str(body.get("verdict")))
    return known or ("·", QUIET)


def _step(body: Body) -> tuple[int, int]:
    """Steps begun (1-based; 0: none yet) and steps in all (0: unknown)."""
    weights = body.get("stepWeights")
    total = len(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else 0
    step = number(body.get("step"))
    return (int(step) + 1 if step is not None else 0), total


def _decisive(body: Body) -> Body:
    findings = parts(body, "findings")
    for finding in findings:
        if finding.get("metric") == body.get("decisive"):
            return finding
    return findings[0] if findings else {}


def decided_by(body: Body) -> str:
    """The decisive number, short: "errors +1.8 pt (1.1..2.6)", "needs 1 150 requests", "no sight for 2 min"."""
    finding, evidence = _decisive(body), part(body, "evidence")
    blind = number(evidence.get("blind"))
    if body.get("verdict") == "blind" and _phase(body) not in _SETTLED:
        return f"no sight for {span(blind)}" if blind else "no sight"
    needed = number(finding.get("needed"))
    if body.get("verdict") == "inconclusive" and needed:
        return f"needs {_count(needed)} canary requests"
    text = difference(finding)
    return f"{clean(finding.get('metric'), 40)} {text}" if text else NONE


def _requests(body: Body) -> str:
    """Canary requests of this run and how many failed."""
    harmed = part(body, "harmed")
    requests, failures = number(harmed.get("requests")), number(harmed.get("failures"))
    if requests is None:
        return ""
    return f"{_count(requests)} canary requests" + (f", {_count(failures)} failed" if failures else "")


def _next_look(body: Body, now: datetime) -> str:
    """Countdown "00:21" to the next look; "–" when there is none."""
    at = instant(body.get("nextLook"))
    if at is None or _phase(body) in _SETTLED:
        return NONE
    left = max(0, round((at - now).total_seconds()))
    return f"{left // 60:02d}:{left % 60:02d}" if left < 3600 else clock(at, now)


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────


class Cell(NamedTuple):
    """One cell: its text, its colour, and whether the colour is for the icon in front alone."""

    text: str
    style: str = ""
    icon: str = ""


# name -> least width of the column; a second line under the row takes what a layout leaves out
_COLUMNS = {
    "NAMESPACE": 9,
    "NAME": 8,
    "PHASE": 11,
    "STEP": 4,
    "WANT/SET/SEEN": 13,
    "VERDICT": 12,
    "DECIDED BY": 31,
    "CANARY REQUESTS": 15,
    "WAITS FOR": 30,
    "NEXT LOOK": 9,
}
_NARROW = ("NAME", "PHASE", "STEP", "WANT/SET/SEEN", "VERDICT")
_MIDDLE = (*_NARROW, "DECIDED BY", "NEXT LOOK")


def table(
    bodies: Iterable[Body], now: datetime, width: int = 80, colour: bool = True, *, namespaces: bool = False
) -> Text:
    """A row for each canary, in the widest layout that fits into `width` columns; 80 suffice for the narrowest."""
    shown = list(bodies)
    if not shown:
        return Text("no canaries")
    first = ("NAMESPACE",) if namespaces else ()
    for columns in (tuple(_COLUMNS)[1:], _MIDDLE, _NARROW):
        layout = (*first, *columns)
        rows = [_row(body, now, bars=columns is not _NARROW) for body in shown]
        lines = [[Cell(head, "bold") for head in layout], *([row[head] for head in layout] for row in rows)]
        widths = [max(cell_len(cell.icon + cell.text) for cell in column) for column in zip(*lines, strict=True)]
        widths = [max(natural, _COLUMNS[head]) for natural, head in zip(widths, layout, strict=True)]
        spare = width - sum(widths) - 2 * (len(widths) - 1)
        if spare >= 0:
            break
    widths[len(first)] = max(widths[len(first)] + min(spare, 0), 8)
    out = _line(lines[0], widths)
    for body, line in zip(shown, lines[1:], strict=True):
        out.append("\n").append_text(_line(line, widths))
        for words in textwrap.wrap(_below(body, now, layout), max(width - 4, 20), break_on_hyphens=False):
            out.append("\n    " + words, QUIET)
    return out if colour else Text(out.plain)


def standing(bodies: Iterable[Body]) -> str:
    """How many of the regressed releases stand when all are looked at together; "" with fewer than two of them.

    Each release is rolled back at its own alpha; over a fleet some alarms are false. e-BH says which ones are not
    expected to be: among them at most one in twenty is.
    """
    judged = [b for b in bodies if number(part(b, "evidence").get("logE")) is not None and b.get("verdict")]
    alarms = [b for b in judged if b.get("verdict") == "regressed"]
    if len(alarms) < 2:
        return ""
    import numpy as np

    from canaryd.stats.discovery import RATE, e_bh

    log_e = np.array([number(part(b, "evidence").get("logE")) or 0.0 for b in judged])
    kept = e_bh(log_e, np.ones(len(judged), dtype=bool))
    stand = [clean(b.get("canary")) for b, keep in zip(judged, kept, strict=True) if keep]
    text = f"{len(stand)} of {len(alarms)} regressed releases stand among {len(judged)} (false discovery rate"
    return f"{text} {_percent(RATE)}){': ' + ', '.join(stand) if len(stand) < len(alarms) else ''}"


def _line(cells: Sequence[Cell], widths: Sequence[int]) -> Text:
    """Cells side by side, each padded to its width; one that is too long is cut with "…"."""
    out = Text()
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = Text(cell.icon, cell.style).append(cell.text, "" if cell.icon else cell.style)
        text.truncate(width, overflow="ellipsis", pad=i < len(cells) - 1)
        out.append_text(text).append("  " if i < len(cells) - 1 else "")
    out.rstrip()
    return out


def _row(body: Body, now: datetime, *, bars: bool) -> dict[str, Cell]:
    """All cells of one canary by the name of their column."""
    icon, style = mark(body)
    weight = part(body, "weight")
    begun, total = _step(body)
    toward = number(part(body, "evidence").get("towardStep")) or 0.0
    step = f"{begun}/{total}" if begun and total else NONE
    if bars and begun and total and _phase(body) not in _SETTLED:
        step += " " + bar((begun - 1 + min(toward, 1.0)) / total)
    wanted, configured = _weight(weight.get("desired")), _weight(weight.get("configured"))
    idle = not weight or _phase(body) == "Idle"  # the route is not canaryd's then
    split = NONE if idle else f"{wanted}/{configured}/{_seen(weight.get('observed'))}"
    verdict = clean(body.get("verdict"), 20)
    return {
        "NAMESPACE": Cell(clean(body.get("namespace"), 63) or NONE),
        "NAME": Cell(clean(body.get("canary"), 80), style, f"{icon} "),
        "PHASE": Cell(_phase(body), style if _phase(body) in _PHASES else ""),
        "STEP": Cell(step),
        "WANT/SET/SEEN": Cell(
            split.replace("/", " / ") if bars else split, CARE if wanted != configured and not idle else ""
        ),
        "VERDICT": Cell(verdict or NONE, _VERDICTS.get(verdict, ("", QUIET))[1]),
        "DECIDED BY": Cell(decided_by(body)),
        "CANARY REQUESTS": Cell(_requests(body).replace(" canary requests", "") or NONE),
        "WAITS FOR": Cell(clean(body.get("next"), 120) or NONE, QUIET),
        "NEXT LOOK": Cell(_next_look(body, now), QUIET),
    }


def _below(body: Body, now: datetime, layout: Sequence[str]) -> str:
    """What the layout left out of the row: who decided, requests so far, what is waited for, the next look."""
    waits, look = clean(body.get("next"), 200), _next_look(body, now)
    pieces = {
        "DECIDED BY": decided_by(body),
        "CANARY REQUESTS": _requests(body),
        "WAITS FOR": f"waits for: {waits}" if waits else "",
        "NEXT LOOK": "" if look == NONE else f"next look {look}",
    }
    return " · ".join(piece for head, piece in pieces.items() if head not in layout and piece not in ("", NONE))


def short(bodies: Iterable[Body], now: datetime, *, wide: bool = False, namespaces: bool = False) -> Text:
    """The list that `get` shows: one line for each canary, no icons, nothing folded."""
    heads: tuple[str, ...] = ("NAME", "PHASE", "STEP", "WEIGHT", "VERDICT", "REVISION", "AGE")
    last = {"namespace": "NAMESPACE", "stableRevision": "STABLE", "rollout": "RUN"} if wide else {}
    if namespaces:  # in front then, as kubectl has it
        heads = ("NAMESPACE", *heads)
        last.pop("namespace", None)
    rows = [[Cell(head, "bold") for head in (*heads, *last.values())]]
    for body in bodies:
        begun, total = _step(body)
        since = instant(body.get("since"))
        wanted = _weight(part(body, "weight").get("desired"), NONE)
        texts = [clean(body.get("namespace"), 63) or NONE] if namespaces else []
        texts += [clean(body.get("canary"), 80), _phase(body), f"{begun}/{total}" if begun and total else NONE]
        texts += [f"{wanted} %" if wanted != NONE else NONE]
        texts += [clean(body.get("verdict"), 20) or NONE, clean(body.get("revision"), 80) or NONE]
        texts += [span((now - since).total_seconds()) if since else NONE]
        texts += [clean(body.get(key), 80) or NONE for key in last]
        rows.append([Cell(text) for text in texts])
    widths = [max(cell_len(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    return Text("\n").join(_line(row, widths) for row in rows)


def lines(bodies: Iterable[Body]) -> list[str]:
    """One plain line for each canary, without colour, icon or redraw: for logs and pipes."""
    return [_plain(body) for body in bodies]


def _plain(body: Body) -> str:
    weight, (begun, total) = part(body, "weight"), _step(body)
    pieces = [_phase(body)]
    pieces += [f"step {begun} of {total}"] if begun and total else []
    if weight:
        wanted, configured = _weight(weight.get("desired")), _weight(weight.get("configured"))
        pieces.append(f"weight wanted {wanted} % set {configured} % seen {_seen(weight.get('observed'))}")
    pieces += [
        word for word in (clean(body.get("verdict"), 20), decided_by(body), _requests(body)) if word not in ("", NONE)
    ]
    waits, sentence = clean(body.get("next"), 200), clean(body.get("sentence"), 600)
    pieces += [f"waits for: {waits}"] if waits else []
    return f"{clean(body.get('canary'), 80)}: {', '.join(pieces)}" + (f" | {sentence}" if sentence else "")


def decision_line(record: Record | Body, now: datetime | None = None) -> Text:
    """ "14:05:11 ▲ api 5 % → 10 %: …": one decision on one line, in the time zone of `now` (without it: UTC)."""
    body: Body = (
        record
        if isinstance(record, Mapping)
        else {"at": record.at, "kind": record.kind, "canary": record.canary, "sentence": record.sentence}
    )
    at, kind = body.get("at"), str(body.get("kind"))
    icon, style = _KINDS.get(kind, ("·", QUIET))
    when = at if isinstance(at, datetime) else instant(at)
    shown = NONE if when is None else clock(when, now or when, seconds=True)
    name, sentence = clean(body.get("canary"), 80), clean(body.get("sentence"), 600)
    line = Text(f"{shown} ", QUIET).append(f"{icon} ", style)
    return line.append(sentence if sentence.startswith(name) else f"{name}: {sentence}")


# ── one canary ───────────────────────────────────────────────────────────────────────────────────────────────


def tree(body: Body, now: datetime) -> RenderableType:
    """One canary with its traffic, evidence and history, as a tree."""
    root = Tree(_title(body, now), guide_style=QUIET)
    sentence = clean(body.get("sentence"), 600)
    if sentence:
        root.add(Text(sentence))
    for trouble in _texts(body, "trouble"):
        root.add(Text("trouble  ", BAD).append(trouble))
    _add_traffic(root, body)
    _add_evidence(root, body)
    if found := part(body, "traces"):
        branch = root.add(Text("traces", "bold"))
        for line in traces(found, now):
            branch.add(line)
    _add_people(root, body, now)
    past = _past(body, now)
    if past:
        root.add(Text("history   ", "bold").append(past))
    return root


def _title(body: Body, now: datetime) -> Text:
    icon, style = mark(body)
    begun, total = _step(body)
    title = Text(f"{icon} ", style).append(clean(body.get("canary"), 80), "bold")
    namespace, revision = clean(body.get("namespace"), 80), clean(body.get("revision"), 80)
    title.append(f"  {namespace}" if namespace else "").append(f"  {_phase(body)}", style)
    title.append(f"   revision {revision}" if revision else "")
    title.append(f" after {clean(body.get('stableRevision'), 80)}" if revision and body.get("stableRevision") else "")
    title.append(f"   since {clock(body.get('since'), now)}" if instant(body.get("since")) else "")
    title.append(f", step {begun} of {total}" if begun and total else "")
    return title


def _texts(body: Body, key: str) -> list[str]:
    value = body.get(key)
    return [clean(item) for item in value] if isinstance(value, list | tuple) else []


def _add_traffic(root: Tree, body: Body) -> None:
    weight, workloads = part(body, "weight"), part(body, "workloads")
    if weight:
        wanted, configured = _weight(weight.get("desired")), _weight(weight.get("configured"))
        line = Text("traffic   ", "bold").append(f"want {wanted} %   ")
        line.append(f"set {configured} %" if configured != "?" else "set unknown", CARE if wanted != configured else "")
        line.append(f"   seen {_seen(weight.get('observed'))}")
        requests = number(weight.get("requests"))
        line.append(f" of {_count(requests)} requests" if requests else "")
        line.append(" ✓ confirmed" if weight.get("confirmed") is True else "", GOOD)
        root.add(line)
    for arm, colour in (("stable", STABLE), ("canary", CANARY)):
        name = clean(workloads.get(arm), 200)
        if name:
            revision = clean(body.get("stableRevision" if arm == "stable" else "revision"), 80)
            root.add(
                Text(f"{arm:<10}", f"bold {colour}").append(name).append(f"   revision {revision}" if revision else "")
            )


def _add_evidence(root: Tree, body: Body) -> None:
    evidence, findings = part(body, "evidence"), parts(body, "findings")
    if not evidence and not findings:
        return
    baked, bake = number(evidence.get("baked")), number(evidence.get("bake"))
    branch = root.add(Text("evidence  ", "bold").append(f"baked {span(baked)} of {span(bake)}" if bake else "", QUIET))
    for what, key in (("towards rollback", "towardRollback"), ("towards next step", "towardStep")):
        share = number(evidence.get(key))
        if share is not None:
            branch.add(Text(f"{what:<18}{bar(share)} {_whole_percent(share)}"))
    if findings:
        branch.add(_finding_grid(findings, short=True))
    requests = _requests(body)
    if requests:
        root.add(Text("harm      ", "bold").append(requests + " in this run"))


def _whole_percent(share: float) -> str:
    """Whole percent of a threshold; 100 only when it is reached."""
    return "100 %" if share >= 1 else f"{min(int(max(share, 0.0) * 100), 99)} %"


def _finding_grid(findings: Sequence[Body], *, short: bool) -> Table:
    """The findings, one in each row; folds instead of cutting numbers off."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=True)
    heads = [
        ("metric", ""),
        ("canary", CANARY),
        ("stable", STABLE),
        ("difference", ""),
        ("tolerated", ""),
        ("verdict", ""),
    ]
    for head, colour in heads:
        grid.add_column(Text(head, f"bold {colour}"), overflow="fold")
    if not short:
        grid.add_column("n canary / stable", overflow="fold")
    for finding in findings:
        icon, style = _VERDICTS.get(str(finding.get("verdict")), ("·", QUIET))
        tolerated = number(finding.get("tolerated"))
        cells = [
            Text(clean(finding.get("metric"), 63)),
            Text(_percent(finding.get("canary"))),
            Text(_percent(finding.get("stable"))),
            Text(difference(finding) or NONE),
            Text(NONE if tolerated is None else wording.points(tolerated)),
            Text(f"{icon} ", style).append(clean(finding.get("verdict"), 20)),
        ]
        grid.add_row(*cells, *([] if short else [_sizes(finding)]))
    return grid


def _sizes(finding: Body) -> Text:
    return Text(f"{_count(finding.get('canaryN'))} / {_count(finding.get('stableN'))}")


def _add_people(root: Tree, body: Body, now: datetime) -> None:
    said = part(body, "override")
    if said:
        became = {True: "accepted", False: "refused"}.get(said.get("accepted"), "not yet answered")  # type: ignore[arg-type]
        reason = f' ("{clean(said.get("reason"))}")' if said.get("reason") else ""
        root.add(
            Text("person    ", "bold").append(
                f"{clean(said.get('action'), 20)} by {clean(said.get('by'), 80)}{reason}: {became}"
            )
        )
    waits, look = clean(body.get("next"), 300), _next_look(body, now)
    if waits or look != NONE:
        line = Text("next      ", "bold").append(f"waits for: {waits}" if waits else "")
        root.add(line.append(f"{'   ' if waits else ''}next look in {look}" if look != NONE else "", QUIET))


def _past(body: Body, now: datetime) -> str:
    """The latest changes of weight or phase, newest first: "14:05 5→10 %   14:02 0→5 %"."""
    out, before = [], 0.0
    for change in parts(body, "history"):
        weight = number(change.get("weight"))
        phase = clean(change.get("phase"), 20)
        weight = before if weight is None else weight
        what = f"{before:g}→{weight:g} %" if weight != before else phase
        out.append(f"{clock(change.get('at'), now)} {what}")
        before = weight
    return "   ".join(reversed(out[-8:]))


def explanation(body: Body, now: datetime, *, verbose: bool = False) -> RenderableType:
    """Why: the sentence, the findings with their numbers, how far each decision is, what comes next."""
    evidence, findings = part(body, "evidence"), parts(body, "findings")
    at = clock(body.get("at"), now, seconds=True)
    pieces: list[RenderableType] = [
        Text(clean(body.get("sentence"), 2000) or "no decision yet", "bold"),
        Text(f"decided at {at}: {clean(body.get('kind'), 20)}, {_phase(body)}", QUIET),
        Text(""),
    ]
    if findings:
        pieces += [_finding_grid(findings, short=False), *_notes(findings), Text("")]
    for what, key in (("towards rollback", "towardRollback"), ("towards next step", "towardStep")):
        share = number(evidence.get(key))
        if share is not None:
            pieces.append(Text(f"{what:<18}{bar(share, 20)} {_whole_percent(share)} of the evidence needed"))
    if _requests(body):
        pieces.append(Text(f"{'harm':<18}{_requests(body)} in this run"))
    if body.get("next"):
        pieces.append(Text(f"{'waits for':<18}{clean(body.get('next'), 400)}"))
    pieces += [Text(f"{'trouble':<18}{trouble}", BAD) for trouble in _texts(body, "trouble")]
    if found := part(body, "traces"):
        pieces += [Text(""), *traces(found, now)]
    if verbose:
        pieces += [Text(""), *_arithmetic(body, findings, evidence)]
    return Group(*pieces)


def _notes(findings: Sequence[Body]) -> list[Text]:
    """What limits each finding, and what is counted."""
    out = []
    for finding in findings:
        needed = number(finding.get("needed"))
        metric, event = clean(finding.get("metric"), 63), clean(finding.get("event"), 100)
        words = [event if event != metric else "", clean(finding.get("note"), 300)]
        words += [f"{_count(needed)} canary requests more needed for the step"] if needed else []
        text = "; ".join(word for word in words if word)
        if text:
            out.append(Text(f"{metric}: {text}", QUIET))
    return out


def _arithmetic(body: Body, findings: Sequence[Body], evidence: Body) -> list[Text]:
    """The numbers behind the verdict, for those who want to check it."""
    through, intervals = clean(evidence.get("through"), 40) or NONE, _count(evidence.get("intervals"))
    baked, bake, held, blind = (span(evidence.get(key)) for key in ("baked", "bake", "held", "blind"))
    out = [
        Text(f"counted once up to {through}, {intervals} intervals"),
        Text(f"baked {baked} of {bake}, at this step {held}, without sight {blind}"),
    ]
    for finding in (*findings, {**evidence, "metric": "all together"}):
        log_e = number(finding.get("logE"))
        far = [number(finding.get(key)) for key in ("towardRollback", "towardStep")]
        if log_e is not None:
            far_text = ", ".join(
                f"{_whole_percent(share)} towards {what}"
                for share, what in zip(far, ("rollback", "step"), strict=True)
                if share is not None
            )
            noise = _noise(finding)
            out.append(Text(f"{clean(finding.get('metric'), 63)}: ln(e-value) {log_e:.2f}; {far_text}{noise}"))
    ids = ("rollout", "revision", "stableRevision", "severity")
    out.append(Text(", ".join(f"{key} {clean(body.get(key), 80)}" for key in ids if body.get(key))))
    return out


def _noise(finding: Body) -> str:
    """By how much the variance is larger than that of independent requests, from which pods, and what is waited for."""
    inflation, pods = number(finding.get("inflation")), finding.get("pods")
    if inflation is None:
        return ""
    text = f"; variance x {inflation:.2f}"
    if isinstance(pods, Sequence) and len(pods) == 2:
        text += f" from {_count(pods[0])} stable and {_count(pods[1])} canary pods"
    limit = clean(finding.get("limit"), 40)
    return text + (f"; limited by {limit}" if limit else "")


# ── elsewhere ────────────────────────────────────────────────────────────────────────────────────────────────


def traces(found: Body, now: datetime) -> list[Text]:
    """Trace evidence (`traces` of a record's body) line by line; nothing for nothing."""
    requests = part(found, "requests")
    out = []
    if requests:
        counted = f"{_count(requests.get('canary'))} canary and {_count(requests.get('stable'))} stable"
        out.append(Text(f"requests with spans: {counted}", QUIET))
    for heading, key, line in (
        ("fails only in the canary", "onlyCanaryFails", _only_fails),
        ("calls of the canary alone, or more often", "newCalls", _new_call),
        ("extra time on the critical path", "criticalPath", _extra_time),
    ):
        if entries := parts(found, key):
            out.append(Text(heading, "bold"))
            out += [Text("  ").append_text(line(entry)) for entry in entries]
    if exemplars := parts(found, "exemplars"):
        out.append(Text("traces to look at", "bold"))
        out += [line for entry in exemplars for line in _exemplar(entry, now)]
    if note := clean(found.get("note"), 700):
        out.append(Text(note, QUIET))
    return out or [Text("traces say nothing", QUIET)]


def _operation(entry: Body) -> Text:
    return Text(clean(entry.get("service"), 200), "bold").append(f" {clean(entry.get('operation'), 200)}")


def _only_fails(entry: Body) -> Text:
    numbers = [_count(entry.get(k)) for k in ("canaryErrors", "canaryN", "stableErrors", "stableN")]
    return _operation(entry).append(": {} of {} failed, in stable {} of {}".format(*numbers), BAD)


def _new_call(entry: Body) -> Text:
    canary, stable = (number(entry.get(k)) or 0.0 for k in ("canaryPerRequest", "stablePerRequest"))
    sizes = f"n {_count(entry.get('canaryN'))} / {_count(entry.get('stableN'))}"
    return _operation(entry).append(f": {canary:.3g} for each request, in stable {stable:.3g} ({sizes})")


def _extra_time(entry: Body) -> Text:
    canary, stable = (number(entry.get(k)) or 0.0 for k in ("canaryMs", "stableMs"))
    sizes = f"n {_count(entry.get('canaryN'))} / {_count(entry.get('stableN'))}"
    return _operation(entry).append(f": {canary:.1f} ms, in stable {stable:.1f} ms ({sizes})")


def _exemplar(entry: Body, now: datetime) -> list[Text]:
    icon, style = ("✕", BAD) if entry.get("error") is True else ("·", QUIET)
    line = Text(f"  {icon} ", style).append(clock(entry.get("at"), now, seconds=True)).append(" ")
    line.append_text(_operation(entry)).append(f"  {number(entry.get('durationMs')) or 0.0:.1f} ms")
    status, facts = clean(entry.get("status"), 20), part(entry, "facts")
    line.append(f"  {status}" if status else "")
    if cause := clean(facts.get("cause"), 300):
        line.append(f"  because of {cause}")
    where = clean(entry.get("url"), 400) or f"trace {clean(entry.get('trace'), 64)}"
    return [line, Text(f"    {where}", QUIET)]


def svg(bodies: Sequence[Body], now: datetime, *, width: int = 116, title: str = "canaryd status -w") -> str:
    """The table and the latest sentences as a picture (SVG text)."""
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(table(bodies, now, width))
    console.print()
    for body in bodies:
        if body.get("sentence"):
            console.print(decision_line(body, now))
    return console.export_svg(title=clean(title, 80), unique_id="canaryd")

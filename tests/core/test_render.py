"""What people see: fixed bodies in, text out."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from canaryd import render
from canaryd.model import DecisionKind, Record

NOW = datetime(2026, 1, 5, 14, 5, 20, tzinfo=UTC)
BODIES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "bodies.json").read_text())
ALL = list(BODIES.values())
HOSTILE: dict[str, Any] = {
    "canary": "[red]x[/]\x1b[31m",
    "phase": "Waiting\x1b[2J",
    "sentence": "[bold]boo\x1b]0;title\x07\u202e\r\nfake line",
    "verdict": "[blink]",
    "revision": "\x9b31m",
    "step": None,
    "decisive": "[red]errors[/]",
    "weight": {"desired": "a", "observed": "\x1b"},
    "next": "[red]n[/]\x08\x08",
    "findings": [{"metric": "[red]errors[/]\x1b", "note": "\x1b[1m", "event": "[u]", "difference": 0.1}],
    "history": [1, {"at": 3}, {"at": "2026-01-05T14:00:00Z", "phase": "\x1b[31mP"}],
    "override": {"action": "\x1b", "by": "[red]eve[/]", "reason": '"\x1b['},
    "trouble": ["a\x1bb", None, 3],
}


def shown(what: RenderableType, width: int = 80, *, colour: bool = False) -> str:
    """As a terminal of this width would get it."""
    out = io.StringIO()
    Console(
        file=out, width=width, force_terminal=colour, color_system="truecolor" if colour else None, highlight=False
    ).print(what)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def views(body: Any, now: datetime = NOW) -> list[RenderableType]:
    """Every way to show one body."""
    return [
        render.table([body], now, 80),
        render.table([body], now, 200),
        render.tree(body, now),
        render.explanation(body, now, verbose=True),
        render.short([body], now, wide=True),
        render.decision_line(body, now),
        *render.lines([body]),
    ]


def test_the_table_fits_into_80_columns_and_holds_every_decisive_number() -> None:
    assert shown(render.table(ALL, NOW, 80)) == (
        "NAME      PHASE        STEP  WANT/SET/SEEN  VERDICT\n"
        "● api     Progressing  2/5   10/10/9.7 %    healthy\n"
        "    errors −0.02 pt (−0.09..+0.05) · 2 310 canary requests, 2 failed · waits\n"
        "    for: 2 more checks, about 1 min · next look 00:21\n"
        "◐ cart    Progressing  1/5   5/6/5.2 %      inconclusive\n"
        "    needs 1 150 canary requests · 2 310 canary requests, 2 failed · waits for: 2\n"
        "    more checks, about 1 min · next look 00:21\n"
        "✕ pay     RolledBack   3/5   0/0/0.0 %      regressed\n"
        "    errors +1.8 pt (+1.1..+2.6) · 2 100 canary requests, 31 failed\n"
        "◌ search  Idle         –     –              –"
    )


def test_the_table_shows_more_in_a_line_where_there_is_room() -> None:
    assert shown(render.table(ALL, NOW, 120), 120).splitlines()[:3] == [
        "NAME      PHASE        STEP            WANT/SET/SEEN    VERDICT       DECIDED BY                  "
        "     NEXT LOOK",
        "● api     Progressing  2/5 ▇▇▇░░░░░░░  10 / 10 / 9.7 %  healthy       errors −0.02 pt (−0.09..+0.05)   00:21",
        "    2 310 canary requests, 2 failed · waits for: 2 more checks, about 1 min",
    ]
    one_line_each = shown(render.table(ALL, NOW, 200), 200).splitlines()
    assert len(one_line_each) == 1 + len(ALL)
    assert " ".join(one_line_each[1].split()) == (
        "● api Progressing 2/5 ▇▇▇░░░░░░░ 10 / 10 / 9.7 % healthy errors −0.02 pt (−0.09..+0.05)"
        " 2 310, 2 failed 2 more checks, about 1 min 00:21"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 250])
def test_no_line_of_the_table_is_wider_than_the_terminal(width: int) -> None:
    bodies = [*ALL, BODIES["api"] | {"canary": "a-name-as-long-as-kubernetes-allows-" + "x" * 27}]
    lines = str(render.table(bodies, NOW, width)).splitlines()
    assert all(cell_len(line) <= max(width, 56) for line in lines)


def test_a_name_that_is_too_long_is_cut_only_where_80_columns_do_not_suffice() -> None:
    name = "checkout-service-europe-west"
    assert name in str(render.table([BODIES["api"] | {"canary": name}], NOW, 80))


def test_without_colour_no_style_is_left() -> None:
    assert "\x1b" in shown(render.table(ALL, NOW, 80), colour=True)
    assert not render.table(ALL, NOW, 80, colour=False).spans
    assert str(render.table(ALL, NOW, 80, colour=False)) == str(render.table(ALL, NOW, 80))


def test_every_state_has_a_word_and_an_icon_so_that_colour_is_never_needed() -> None:
    states = [("Progressing", v) for v in ("healthy", "inconclusive", "blind")]
    states += [(p, "healthy") for p in ("Idle", "Waiting", "Paused", "Succeeded", "RollingBack", "RolledBack")]
    rows = [str(render.table([{"canary": "a", "phase": p, "verdict": v}], NOW, 80)).splitlines()[1] for p, v in states]
    assert len({row[0] for row in rows}) == len(rows)
    assert all(p in row and v in row for (p, v), row in zip(states, rows, strict=True))


def test_no_canaries_is_said_not_shown_as_an_empty_table() -> None:
    assert shown(render.table([], NOW)) == "no canaries"


def test_the_tree_tells_the_whole_story_of_one_canary() -> None:
    assert shown(render.tree(BODIES["api"], NOW)) == (
        "● api  shop  Progressing   revision 7f3c after 6a1b   since 14:01, step 2 of 5\n"
        "├── api stays at 10 %: 1 150 canary requests more needed (about 6 min) to rule\n"
        "│   out 0.4 % more errors.\n"
        "├── traffic   want 10 %   set 10 %   seen 9.7 % of 3 211 requests ✓ confirmed\n"
        "├── stable    api-blue   revision 6a1b\n"
        "├── canary    api-green   revision 7f3c\n"
        "├── evidence  baked 1 min of 2 min\n"
        "│   ├── towards rollback  ▇░░░░░░░░░ 8 %\n"
        "│   ├── towards next step ▇▇▇▇▇▇░░░░ 63 %\n"
        "│   └── metric   canary  stable  difference               tolerated  verdict\n"
        "│       errors   0.09 %  0.11 %  −0.02 pt (−0.09..+0.05)  +0.03 pt   ● healthy\n"
        "│       latency  3.1 %   3 %     +0.1 pt (−0.4..+0.6)     +0.15 pt   ● healthy\n"
        "├── harm      2 310 canary requests, 2 failed in this run\n"
        '├── person    promote by anna@box ("hotfix"): accepted\n'
        "├── next      waits for: 2 more checks, about 1 min   next look in 00:21\n"
        "└── history   14:05 5→10 %   14:02 0→5 %   14:01 Progressing"
    )


def test_a_share_seen_in_traffic_is_called_confirmed_only_when_it_is() -> None:
    assert "confirmed" not in shown(render.tree(BODIES["cart"], NOW))


def test_the_explanation_has_the_numbers_and_verbose_adds_the_arithmetic() -> None:
    brief = shown(render.explanation(BODIES["pay"], NOW), 110)
    for part in (
        "1.9 %   0.1 %   +1.8 pt (+1.1..+2.6)  +0.03 pt   ✕ regressed  2 310 / 43 870",
        "towards rollback  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇ 100 % of the evidence needed",
        "2 100 canary requests, 31 failed",
        "decided at 14:05:19: rolled-back, RolledBack",
    ):
        assert part in brief
    assert "e-value" not in brief
    verbose = shown(render.explanation(BODIES["pay"], NOW, verbose=True), 110)
    assert "errors: ln(e-value) 0.40" in verbose
    assert "counted once up to 2026-01-05T14:05:10+00:00, 8 intervals" in verbose


def test_evidence_that_is_nearly_enough_is_never_shown_as_enough() -> None:
    assert render.bar(0.999) == "▇▇▇▇▇▇▇▇▇░"
    assert render.bar(1.0) == "▇▇▇▇▇▇▇▇▇▇"
    body = BODIES["api"] | {"evidence": {"towardRollback": 0.9999}}
    assert "99 %" in shown(render.tree(body, NOW))
    assert "100 %" not in shown(render.tree(body, NOW))


def test_the_decisive_metric_is_the_one_that_is_named() -> None:
    assert render.decided_by(BODIES["api"] | {"decisive": "latency"}) == "latency +0.1 pt (−0.4..+0.6)"


def test_what_decides_is_sight_when_there_is_none() -> None:
    blind = BODIES["api"] | {"verdict": "blind", "evidence": {"blind": 130}}
    assert render.decided_by(blind) == "no sight for 2 min 10 s"


def test_lines_are_plain_and_say_the_same() -> None:
    assert render.lines([BODIES["pay"]]) == [
        "pay: RolledBack, step 3 of 5, weight wanted 0 % set 0 % seen 0.0 %, regressed, errors +1.8 pt (+1.1..+2.6), "
        "2 100 canary requests, 31 failed | pay 25 % → 0 %: errors 1.9 % canary vs 0.10 % stable; difference +1.8 "
        "points (1.1 to 2.6), tolerated +0.03. 31 requests failed."
    ]


def test_a_decision_line_takes_a_record_or_its_body_and_says_the_name_once() -> None:
    record = Record(
        id="api/7", canary="api", at=NOW, kind=DecisionKind.ADVANCE, sentence="api 5 % → 10 %: fine", body={}
    )
    assert str(render.decision_line(record, NOW)) == "14:05:20 ▲ api 5 % → 10 %: fine"
    other = {"at": NOW.isoformat(), "canary": "api", "kind": "drift", "sentence": "put back"}
    assert str(render.decision_line(other, NOW)) == "14:05:20 ≠ api: put back"


def test_times_are_shown_in_the_zone_of_the_person_and_with_the_date_when_it_is_another_day() -> None:
    tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    assert render.clock("2026-01-05T14:01:00+00:00", tokyo) == "23:01"
    assert render.clock("2026-01-05T15:01:00+00:00", tokyo) == "2026-01-06 00:01"
    assert render.clock("2026-01-05T14:01:00", NOW) == "14:01"
    assert render.clock("yesterday", NOW) == "–"


def test_the_short_list_is_one_line_each() -> None:
    assert shown(render.short(ALL, NOW)) == (
        "NAME    PHASE        STEP  WEIGHT  VERDICT       REVISION  AGE\n"
        "api     Progressing  2/5   10 %    healthy       7f3c      4 min 20 s\n"
        "cart    Progressing  1/5   5 %     inconclusive  7f3c      4 min 20 s\n"
        "pay     RolledBack   3/5   0 %     regressed     7f3c      4 min 20 s\n"
        "search  Idle         –     –       –             –         –"
    )


def test_a_weight_that_is_not_where_it_should_be_stands_out() -> None:
    def care(body: dict[str, Any]) -> list[str]:
        table = render.table([body], NOW, 80)
        return [str(table)[span.start : span.end] for span in table.spans if span.style == render.CARE]

    assert "5/6/5.2 %" in care(BODIES["cart"])
    assert care(BODIES["api"]) == []


# ── hostile text ─────────────────────────────────────────────────────────────────────────────────────────────


def test_text_from_outside_is_never_interpreted() -> None:
    for view in views(HOSTILE):
        text = shown(view, 300)
        assert not any(ord(c) < 32 and c != "\n" for c in text), text
        assert not set(text) & set("\x7f\x9b\u202e\u200b")
        assert "\nfake" not in text
    assert "[red]x[/]\\x1b[31m" in shown(render.table([HOSTILE], NOW, 200), 200)
    assert "[red]eve[/]" in shown(render.tree(HOSTILE, NOW), 200)


def test_hostile_text_cannot_change_a_colour() -> None:
    coloured = shown(render.tree(HOSTILE, NOW), 300, colour=True)
    assert "\x1b[31m" not in coloured
    assert "\x1b[2J" not in coloured


def test_json_keeps_every_character_but_none_that_fools_a_terminal() -> None:
    text = render.as_json(HOSTILE)
    assert json.loads(text) == HOSTILE
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "−" in render.as_json({"a": "−"})


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["at", "weight", "metric"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*BODIES["api"], "extra"]), JSON))
def test_any_body_can_be_shown(change: dict[str, Any]) -> None:
    body = BODIES["api"] | change
    for view in views(body):
        shown(view)
    render.as_json(body)


@pytest.mark.parametrize("key", [*BODIES["api"]])
def test_a_body_without_any_one_key_can_be_shown(key: str) -> None:
    for view in views({k: v for k, v in BODIES["api"].items() if k != key}):
        assert shown(view)


def test_the_picture_is_well_formed_and_repeatable() -> None:
    picture = render.svg([*ALL, HOSTILE], NOW)
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    assert "rolled" in picture.lower()
    assert picture == render.svg([*ALL, HOSTILE], NOW)


def test_the_arithmetic_says_how_noisy_the_traffic_is_and_what_limits_the_decision() -> None:
    finding = {"metric": "errors", "event": "errors", "logE": 1.5, "inflation": 2.5, "pods": [3, 1], "limit": "pods"}
    body = {"canary": "api", "phase": "Progressing", "findings": [finding]}
    said = shown(render.explanation(body, NOW, verbose=True))
    assert "variance x 2.50 from 3 stable and 1 canary pods; limited by pods" in " ".join(said.split())

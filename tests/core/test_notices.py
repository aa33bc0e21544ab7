"""Facts for people from whatever a record holds, and templates that can say much but not everything."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd.config.notify import Channel
from canaryd.model import Action, DecisionKind, Record
from canaryd.notices import blocks, cloudevent
from canaryd.notices.kinds import KINDS, WORDS, Wish, is_wanted
from canaryd.notices.notice import notice
from canaryd.notices.press import press
from canaryd.notices.templates import LONGEST, TemplateError, problem, render
from canaryd.notices.words import Words

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BODIES = json.loads((Path(__file__).parent / "bodies.json").read_text())
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = sorted({*BODIES["pay"], "traces", "labels", "override"})


def record(body: Any, kind: DecisionKind = DecisionKind.ROLLBACK) -> Record:
    return Record("shop/pay/8", "shop/pay", NOW, kind, str(body.get("sentence", "")), body, tell=True)


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING), st.sampled_from(list(DecisionKind)))
def test_whatever_a_record_holds_slack_takes_the_layout_and_a_program_the_event(body: Any, kind: DecisionKind) -> None:
    told = notice(record(body, kind), NOW + timedelta(hours=9), MINUTE, "https://x.example.com")
    for _, made in (blocks.head(told, buttons=True), blocks.decision(told, alone=True, mentions=["U1", "here"])):
        assert blocks.problems(made) == []
        json.dumps(made).encode()
    assert json.loads(cloudevent.event(record(body, kind), told, "/canaryd"))["specversion"] == "1.0"


@given(ANYTHING)
def test_no_payload_of_slack_is_an_exception(payload: Any) -> None:
    if isinstance(payload, dict):
        press(payload)
        press({"type": "block_actions", "user": payload, "actions": [payload]})
        action = {"action_id": "canaryd:abort", "value": json.dumps(payload), "action_ts": "1"}
        press({"type": "block_actions", "user": {"id": "U1"}, "actions": [action]})


def test_every_kind_of_decision_has_a_word_that_routes_know() -> None:
    assert set(WORDS) == set(DecisionKind)
    assert set(WORDS.values()) == set(KINDS)


def test_a_wish_must_fit_in_all_that_it_names() -> None:
    told = record({"namespace": "shop", "severity": "critical", "labels": {"team": "pay"}})
    assert is_wanted(told, ())
    for fits in (
        Wish(),
        Wish(("sh?p",)),
        Wish(labels={"team": "pay"}),
        Wish(severities=("critical",), kinds=("rollback",)),
    ):
        assert is_wanted(told, (Wish(("none",)), fits))
    for misses in (
        Wish(("Shop",)),
        Wish(labels={"team": "x"}),
        Wish(severities=("info",)),
        Wish(("shop",), kinds=("step",)),
    ):
        assert not is_wanted(told, (misses,))


def test_a_record_of_an_older_canaryd_has_the_facts_that_it_has() -> None:
    told = notice(record({"phase": "RolledBack"}), NOW, MINUTE)
    assert (told.harmed, told.rows, told.page, told.late, told.steps) == ("", (), "", "", (0, 0))
    late = notice(record({}), NOW + timedelta(minutes=9), MINUTE)
    assert late.late == "sent 9 min late"


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ canary }} {{ weight.desired }} %", "pay 0 %"),
        ("{% for f in findings %}{{ f.metric }}: {{ percent(f.canary) }}{% endfor %}", "errors: 1.9 %"),
        ("{{ sentence | upper | truncate(9) }}", "PAY..."),
        ("{% if harmed.failures > 30 %}bad{% else %}fine{% endif %}", "bad"),
        ("{{ stepWeights | join(', ') }} and {{ (1 + 2) * 3 }}", "5, 10, 25, 50, 100 and 9"),
        ("{{ nothing | default('none') }}", "none"),
        ("{{ findings[0].metric ~ '!' }}", "errors!"),
    ],
)
def test_a_template_shows_values_of_the_record(template: str, said: str) -> None:
    assert problem(template) == ""
    assert render(template, BODIES["pay"]) == said


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ canary.__class__ }}",
        "{{ canary.upper() }}",
        "{{ cycler }}{{ range(9) }}",
        "{% set a = canary %}{{ a }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{% macro m() %}{% endmacro %}{{ m() }}",
        "{% for a in findings %}{% for b in findings %}{% for c in findings %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in findings recursive %}{{ loop(a) }}{% endfor %}",
        "{{ 2 ** 999999999 }}",
        "{{ canary | attr('x') }}",
        "{{ canary | replace('a', canary) }}",
        "{{ canary | center(10**9) }}",
        "{{ unfinished",
        "{% if %}",
        "{{ '%s' % canary }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_what_could_reach_out_or_run_for_ever_is_refused_when_the_settings_are_read(template: str) -> None:
    refused = problem(template) or _failing(template)
    assert refused, template
    if problem(template):
        with pytest.raises(ValueError, match="template"):
            Channel.model_validate({"name": "x", "slack": {"webhookURLEnv": "X"}, "templates": {"step": template}})


def _failing(template: str) -> str:
    try:
        render(template, BODIES["pay"])
    except TemplateError as e:
        return str(e)
    return ""


@pytest.mark.parametrize(
    "template",
    [
        "{{ canary * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ canary + canary }}",
        "{% for a in many %}{% for b in many %}{{ a ~ a ~ a }}{% endfor %}{% endfor %}",
        "{% for a in many %}{% for b in many %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}",
        "{% for a in [long ~ long ~ long] %}{{ a ~ a }}{% endfor %}",
        "{{ 10 / 0 }}",
        "{{ findings }}",
        "{{ many[999] }}",
        "{{ weight.nobody }}",
        "{{ long | truncate(99999999) ~ long }}",
    ],
)
def test_a_template_ends_soon_with_an_error_in_words_and_never_with_more_than_a_message(template: str) -> None:
    began = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        render(template, {**BODIES["pay"], "many": list(range(100_000)), "long": "x" * 100_000})
    assert time.perf_counter() - began < 2
    assert 0 < len(str(caught.value)) < 400
    assert LONGEST == 3000


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────


def explained() -> Record:
    errors = BODIES["pay"]["findings"][0]
    memory = {**errors, "metric": "memory", "verdict": "healthy", "means": [2.08e8, 2.12e8], "difference": 0.019}
    gauge = {**memory, "low": None, "high": None, "tolerated": 0.1, "canaryN": 0, "stableN": 0}
    traces = {
        "note": "truncated",
        "exemplars": [
            {
                "service": "pay",
                "operation": "GET /pay",
                "durationMs": 812.4,
                "error": True,
                "url": "https://j.example/1",
            },
            {"trace": "83a9", "status": "503", "facts": {"response_flags": "UF"}, "url": "javascript:alert(1)"},
        ],
        "onlyCanaryFails": [{"service": "pay", "operation": "POST", "canaryErrors": 12, "canaryN": 40, "stableN": 800}],
        "newCalls": [{"service": "ledger", "operation": "POST", "canaryPerRequest": 1.0, "stablePerRequest": None}],
        "criticalPath": [{"service": "ledger", "operation": "POST", "canaryMs": 310.2, "stableMs": 12.1}],
    }
    body = {**BODIES["pay"], "severity": "critical", "findings": [errors, gauge], "traces": traces, "next": "retry"}
    return record(body)


def test_a_rollback_has_all_that_a_person_needs_in_a_thread_and_alone() -> None:
    told = notice(explained(), NOW, MINUTE, "https://canaryd.example.com")
    assert told.clues == (
        "pay POST fails in the canary alone: 12 of 40, stable none of 800",
        "the canary calls ledger POST more often: 1 against – times a request",
        "time is spent in ledger POST: 310 ms against 12 ms a request",
        "traces: truncated",
    )
    assert [(t.label, t.url) for t in told.traces] == [
        ("pay GET /pay, failed, 812 ms", "https://j.example/1"),
        ("503, UF", ""),
    ]
    assert (told.rows[1].difference, told.rows[1].tolerated, told.rows[1].n) == ("+1.9 %", "+10 %", ("", ""))
    for alone, words in ((False, "  canary 1.9 % (n 2 310)"), (True, "metric  canary")):
        _, made = blocks.decision(told, mentions=["S1"], alone=alone)
        shown = json.dumps(made, ensure_ascii=False)
        for said in (
            words,
            "*Not the cause:* memory",
            "*Decided by:* errors",
            "*Next:* retry",
            "• 503, UF",
            "|report>",
        ):
            assert said in shown, said
        assert blocks.problems(made) == []


def test_the_head_of_a_rollout_that_is_under_way_has_buttons_for_its_revision_alone() -> None:
    body = {**BODIES["pay"], "phase": "Progressing", "verdict": "healthy", "since": "2026-01-05T14:01:00"}
    body["weight"] = {"desired": 25, "observed": 0.247, "requests": 3211}
    told = notice(record(body, DecisionKind.ADVANCE), NOW, MINUTE)
    _, made = blocks.head(told, buttons=True)
    assert "*25 %* (seen 24.7 %)  since <!date^" in made[0]["text"]["text"]
    (row,) = [b for b in made if b["type"] == "actions"]
    values = {b["action_id"]: json.loads(b["value"]) for b in row["elements"]}
    assert set(values) == {"canaryd:promote", "canaryd:pause", "canaryd:abort"}
    assert all(v == {"canary": "shop/pay", "revision": "7f3c", "rollout": "pay-1"} for v in values.values())
    nameless = notice(record({**body, "revision": ""}, DecisionKind.ADVANCE), NOW, MINUTE)
    assert not [b for b in blocks.head(nameless, buttons=True)[1] if b["type"] == "actions"]


def test_more_findings_than_find_room_are_counted() -> None:
    row = notice(explained(), NOW, MINUTE).rows[0]
    for wide in (True, False):
        text = blocks.table([row] * 60, wide=wide)
        assert len(text) <= blocks.SECTION
        assert "metrics more" in text
    assert blocks.fit("<" * 100, 20) == "&lt;&lt;&lt;&lt;…"


def test_what_slack_would_refuse_is_named() -> None:
    button = {"type": "button", "value": "x" * 2001, "text": {"text": "x"}}
    wrong = [{"type": "section", "text": {"type": "mrkdwn", "text": ""}}] * 50 + [
        {"type": "actions", "elements": [button]}
    ]
    found = blocks.problems(wrong)
    assert found[0] == "51 blocks, 50 are the most"
    assert found[1] == "block 0: a text of 0 characters"
    assert found[-1] == "block 50: a button that is too long"


def test_who_said_something_is_told_once() -> None:
    said = {"action": "pause", "by": "anna", "accepted": False, "reason": "odd"}
    told = notice(record({"override": said, "sentence": "refused"}, DecisionKind.REFUSED), NOW, MINUTE)
    assert told.by == 'pause by anna, refused: "odd"'
    assert told.by in json.dumps(blocks.decision(told)[1]).replace('\\"', '"')
    again = notice(record({"override": said, "sentence": "refused anna"}, DecisionKind.REFUSED), NOW, MINUTE)
    assert len(blocks.decision(again)[1]) == 1


def test_other_words_are_used_where_there_are_some_and_the_usual_ones_where_they_fail() -> None:
    given, told = explained(), notice(explained(), NOW, MINUTE)
    assert Words().said(given, told) == ""
    assert (
        Words({"rollback": "{{ key }} {{ harmed }}", "default": "x"})
        .said(given, told)
        .startswith("shop/pay 31 requests")
    )
    assert Words({"default": "{{ revision }}"}).said(given, told, str.upper) == "7F3C"
    assert "the template for rollback failed" in Words({"rollback": "{{ nobody }}"}).said(given, told)


def test_an_event_is_signed_over_its_id_its_time_and_its_body() -> None:
    given, told = explained(), notice(explained(), NOW, MINUTE)
    body = cloudevent.event(given, told, "/canaryd/")
    assert json.loads(body)["source"] == "/canaryd/namespaces/shop/canaries/pay"
    assert cloudevent.SIGNATURE not in cloudevent.headers(given, body, None, NOW)
    plain = cloudevent.headers(given, body, b"key", NOW)[cloudevent.SIGNATURE]
    assert plain == cloudevent.headers(given, body, b"whsec_a2V5", NOW)[cloudevent.SIGNATURE]
    assert plain != cloudevent.headers(given, body, b"key", NOW + MINUTE)[cloudevent.SIGNATURE]
    with pytest.raises(ValueError, match="no base64"):
        cloudevent.headers(given, body, b"whsec_***", NOW)


def test_a_press_is_who_what_and_for_which_revision() -> None:
    def payload(action: str = "abort", **about: Any) -> dict[str, Any]:
        value = json.dumps({"canary": "shop/pay", "revision": "7f3c", "rollout": "pay-1", **about})
        pressed = {"action_id": f"canaryd:{action}", "value": value, "action_ts": "1.5"}
        return {
            "type": "block_actions",
            "user": {"id": "U1", "username": "anna"},
            "channel": {"id": "C1"},
            "message": {"ts": "9.1", "thread_ts": "9.1"},
            "actions": [pressed],
        }

    pressed = press(payload())
    assert pressed is not None
    assert (pressed.by, pressed.thread, pressed.channel) == ("slack:U1 (anna)", "", "C1")
    word = pressed.override(NOW)
    assert (word.id, word.action, word.revision) == ("slack-U1-abort-1.5", Action.ABORT, "7f3c")
    reply = press({**payload(), "message": {"ts": "9.2", "thread_ts": "9.1"}, "user": {"id": "U1"}})
    assert reply is not None
    assert (reply.thread, reply.by) == ("9.1", "slack:U1")
    for wrong in (
        payload("skip"),
        payload("none"),
        payload(revision=""),
        payload(canary=7),
        {**payload(), "actions": []},
    ):
        assert press(wrong) is None
